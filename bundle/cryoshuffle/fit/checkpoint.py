"""The state that a fit goes on from, and the model it leaves behind."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import Tensor, nn

import cryoshuffle
from cryoshuffle.devices import are_processes_joined, is_first_process
from cryoshuffle.errors import FileError, InputError, SettingError, named_changes
from cryoshuffle.files.writing import as_plain, save_whole, write_json
from cryoshuffle.fit.handlers import Budget
from cryoshuffle.fit.risk import is_as_good
from cryoshuffle.inference.checkpoints import FORMAT, load_plain
from cryoshuffle.network import BlindSpotNet, unwrap

logger = logging.getLogger("cryoshuffle")
STATE_NAME = "state.pt"
# Settings of a fit that is finished, and whose result is written: it cannot be taken up any more.
FINISHED_NAME = "fit.json"
# What only a fit that goes on needs: the states of the stages, and the networks between them.
_PASSING = (STATE_NAME, "state_refine.pt", "state_distil.pt", "recorrupted.pt", "distilled.pt")
# What the stages behind the first leave in the folder of a run, and its end.
LATER = (*_PASSING[1:], "blind.pt", "refinement.json", FINISHED_NAME)
# Settings that may change between two parts of a fit.
_FREE = ("minutes",)


def drop_states(output_dir: str | os.PathLike[str]) -> None:
    """Remove what a fit goes on from, once its result is written; its settings are kept, in ``fit.json``.

    Of several processes the first does so. Without states nothing happens.

    Args:
        output_dir: of the run.

    Raises:
        FileError: if the settings cannot be written.
    """
    place = Path(output_dir)
    if is_first_process() and (place / STATE_NAME).exists():
        write_json({"settings": load_plain(place / STATE_NAME)["settings"]}, place / FINISHED_NAME)
        for name in _PASSING:
            (place / name).unlink(missing_ok=True)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have to stay the same while a fit is interrupted."""
    return {name: value for name, value in settings.items() if name not in _FREE}


def _told_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings are other ones than before, in words: what follows from another is left out, and checksums."""
    left_out = {"content"} | ({"blind_steps"} if before.get("steps") != now.get("steps") else set())
    plain = [{name: value for name, value in one.items() if name not in left_out} for one in (before, now)]
    words = [named_changes(*plain)]
    if before.get("content") != now.get("content") and before.get("tomograms") == now.get("tomograms"):
        words.append("the tomogram or its mask has changed since")
    return ", ".join(word for word in words if word)


class FitCheckpoint:
    """Keeps what a fit needs to go on, and the last model whose risk is as small as any but for chance.

    At the end of each epoch the state goes to ``state.pt``; the averaged weights go to the model whenever their
    risk is the smallest so far but for chance (:func:`cryoshuffle.fit.risk.is_as_good`): of equals the later one, with
    its smaller steps, is better. Both files are replaced whole; of several processes the first writes. A fit that is
    taken up again goes through the same windows and updates as one that was never interrupted.

    Args:
        output_dir: of the run.
        model_path: of the model.
        network: being fitted.
        averaged: its copy with the averaged weights, which is scored and kept.
        optimizer: of the fit.
        scheduler: of the learning rate.
        evaluator: whose metric ``risk`` chooses, as a rule a :class:`cryoshuffle.fit.risk.HeldOutRisk`.
        settings: of the run, plain; a fit is taken up only under the same ones, but for the minutes it may take.
        resume: go on from the state in ``output_dir`` if there is one.
        overwrite: start again although an unfinished fit is there.
        budget: of the fit, which follows its clock and risks and is attached behind it; None for none.
        whitening: of the noise, as plain values; goes into the model, which must be applied to what it was fitted to.
        state_name: of the state in ``output_dir``; each stage of a fit has its own.
        later: names in ``output_dir`` of what later stages leave; a stage that starts from the beginning removes it.

    Raises:
        SettingError: if there is a fit already and neither resume nor overwrite is asked for, if there is one whose
            states are gone (:func:`drop_states`), or if the settings differ from those the fit began with; the message
            names them.
    """

    def __init__(
        self,
        output_dir: str,
        model_path: str,
        network: nn.Module,
        averaged: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine,
        settings: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        budget: Budget | None = None,
        whitening: Mapping[str, Any] | None = None,
        state_name: str = STATE_NAME,
        later: Sequence[str] = LATER,
    ) -> None:
        self.later = [Path(output_dir) / name for name in later]
        self.state_path = Path(output_dir) / state_name
        self.model_path = Path(model_path)
        self.network, self.averaged, self.optimizer, self.scheduler = network, averaged, optimizer, scheduler
        self.evaluator = evaluator
        self.whitening = None if whitening is None else dict(whitening)
        self.settings = {str(k): as_plain(v) for k, v in settings.items()}
        self.resume, self.overwrite, self.budget = resume, overwrite, budget
        self.risks: list[float] = []
        self.kept_risk = math.inf
        self.kept_epoch = 0
        self.spent_s = 0.0
        self._kept: dict[str, Any] | None = None
        # The risk of the best epoch, in parts.
        self._best: Tensor | None = None
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Take up a fit at the start; save at the end of each epoch, and say at the end that it is finished."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        if self.budget is not None:
            self.budget.watch(self).attach(engine)

    def elapsed_s(self) -> float:
        """Seconds spent on the fit, those before an interruption included."""
        return self.spent_s + time.monotonic() - self._started

    def _start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        self.state_path.parent.mkdir(parents=True, exist_ok=True)
        self.model_path.parent.mkdir(parents=True, exist_ok=True)
        if self.state_path.exists() and self.resume:
            self._load(engine)
            return
        if self.state_path.name == STATE_NAME and not self.overwrite:
            self._refuse_finished()
        if self.resume and self.state_path.name == STATE_NAME:
            logger.warning(
                "there is nothing to resume in %s, the fit starts from the beginning", self.state_path.parent
            )
        elif self.state_path.exists() and not self.overwrite:
            own_state = load_plain(self.state_path)
            states = [
                own_state,
                *(load_plain(path) for path in self.later if path.name.startswith("state") and path.exists()),
            ]
            if not all(state["finished"] for state in states):
                raise SettingError(
                    f"{self.state_path.parent}: holds an unfinished fit, add --resume to go on with it "
                    "or --overwrite to start again"
                )
            self._refuse_other(own_state["settings"])
            raise SettingError(
                f"{self.state_path.parent}: holds this fit already, add --resume to use it or --overwrite to fit again"
            )
        if are_processes_joined():
            dist.barrier()  # no process writes before all have looked
        if is_first_process():
            for path in self.later:
                path.unlink(missing_ok=True)
        self._save(engine, finished=False)

    def _refuse_other(self, settings: Mapping[str, Any]) -> None:
        if _compared(settings) != _compared(self.settings):
            raise SettingError(
                f"{self.state_path.parent}: holds a fit with other settings, add --overwrite to replace it "
                "or choose another folder"
            )

    def _refuse_finished(self) -> None:
        """Refuse to take the place of a fit that is finished."""
        path = self.state_path.with_name(FINISHED_NAME)
        if not path.is_file():
            return
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        except (OSError, ValueError, KeyError) as error:
            raise FileError(f"{path}: cannot be read ({error}), remove it") from error
        self._refuse_other(settings)
        raise SettingError(
            f"{path.parent}: holds this fit already, and it is finished: denoise with its network by cryoshuffle apply "
            f"{path.with_name('model.pt')}, or add --overwrite to fit again"
        )

    def _load(self, engine: Engine) -> None:
        state = load_plain(self.state_path)
        changed = _told_changes(_compared(state["settings"]), _compared(self.settings))
        if changed:
            raise SettingError(
                f"{self.state_path}: the fit began with other settings ({changed}), "
                "use those again or start again with --overwrite"
            )
        network = unwrap(self.network)
        network.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.risks = [float(risk) for risk in state["risks"]]
        self.kept_risk, self.kept_epoch = state["kept_risk"], state["kept_epoch"]
        self.spent_s = state["spent_s"]
        self._kept, self._best = state["kept"], state.get("best")
        if self._kept is not None and not self.model_path.exists():
            self._write(self._kept, self.model_path)
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        if state["finished"]:
            engine.terminate()
        logger.info("going on after epoch %d, step %d", state["epoch"], state["iteration"])

    def _epoch(self, engine: Engine) -> None:
        risk = self.evaluator.state.metrics.get("risk")
        if risk is not None and math.isfinite(risk):
            self.risks.append(float(risk))
            if self._is_kept(getattr(self.evaluator.state, "risk_parts", None)):
                self.kept_risk, self.kept_epoch = float(risk), engine.state.epoch
                self._kept = self._model()
                self._write(self._kept, self.model_path)
        self._save(engine, finished=False)

    def _is_kept(self, parts: Tensor | None) -> bool:
        """Whether the last of the risks is as small as any; without its parts nothing counts as chance."""
        if self.risks[-1] <= min(self.risks):
            self._best = parts
            return True
        # A slab of another size has other parts, which cannot be compared.
        if parts is None or self._best is None or parts.shape != self._best.shape:
            return False
        return is_as_good(parts, self._best)

    def _finish(self, engine: Engine) -> None:
        if self.kept_epoch == 0:
            raise InputError("no risk of the fit was finite, so no model was kept: check the tomogram's values")
        self._save(engine, finished=True)
        logger.info("the model of epoch %d is kept, risk %.5f: %s", self.kept_epoch, self.kept_risk, self.model_path)

    def _model(self) -> dict[str, Any]:
        network = self.averaged
        return {
            "model": {name: value.detach().cpu().clone() for name, value in network.state_dict().items()},
            "network_def": network.config() if isinstance(network, BlindSpotNet) else None,
            "lattice": network.lattice.config() if isinstance(network, BlindSpotNet) else None,
            "whitening": self.whitening,
            "blend": None,
            "settings": self.settings,
            "risk": self.kept_risk,
            "epoch": self.kept_epoch,
            "version": cryoshuffle.__version__,
            "format": FORMAT,
        }

    def _save(self, engine: Engine, finished: bool) -> None:
        network = unwrap(self.network)
        state = {
            "model": network.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "risks": self.risks,
            "kept_risk": self.kept_risk,
            "kept_epoch": self.kept_epoch,
            "kept": self._kept,
            "best": self._best,
            "spent_s": self.elapsed_s(),
            "settings": self.settings,
            "finished": finished,
            "version": cryoshuffle.__version__,
            "format": FORMAT,
        }
        self._write(state, self.state_path)

    def _write(self, content: Mapping[str, Any], path: Path) -> None:
        if is_first_process():
            save_whole(content, path)
