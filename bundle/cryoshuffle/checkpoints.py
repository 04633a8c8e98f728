"""Checkpoints: the state a fit goes on from, and the model it leaves behind.

Both hold tensors and plain containers only and are read with ``weights_only=True``. A model names the network that
its weights belong to, as a config limited to this package, so that a foreign checkpoint cannot run code.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.bundle import ConfigParser
from torch import nn

import cryoshuffle
from cryoshuffle.errors import FileError, InputError, SettingError, named_changes
from cryoshuffle.filters import as_widths
from cryoshuffle.lattice import BlindSet
from cryoshuffle.network import BlindSpotNet, unwrap
from cryoshuffle.whitening import WhitenNoise

logger = logging.getLogger("cryoshuffle")
STATE_NAME = "state.pt"
FORMAT = 2
BESIDE = "cryoshuffle"
_TARGETS = (
    "cryoshuffle.network.BlindSpotNet",
    "cryoshuffle.network.ShuffleUNet",
    "cryoshuffle.lattice.Lattice",
    "cryoshuffle.lattice.BlindSet",
)


def save_whole(content: Any, path: str | os.PathLike[str]) -> None:
    """Save with torch under a temporary name, then move into place.

    Raises:
        FileError: if it cannot be written; what was there before is kept.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"{path}: the checkpoint cannot be written ({error}), make room and continue with --resume"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def weights_first(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A model as MONAI's own programs take it: the weights by their names, and all else beside them in one entry.

    Args:
        checkpoint: as :func:`load_plain` gives it, which takes both forms.
    """
    return {**checkpoint["model"], BESIDE: {name: value for name, value in checkpoint.items() if name != "model"}}


def load_plain(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load a checkpoint that holds tensors and plain containers only.

    Raises:
        FileError: if it is missing or cannot be read.
        InputError: if it is not a checkpoint of ours or of another format, or holds anything that could run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: there is no such checkpoint, check the path or make one with cryoshuffle fit")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}), check the file and its rights") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path}: is not a checkpoint, or is damaged; make one with cryoshuffle fit") from error
    if isinstance(content, dict) and isinstance(content.get(BESIDE), dict):
        weights = {name: value for name, value in content.items() if name != BESIDE}
        content = {**content[BESIDE], "model": weights}
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(f"{path}: holds no model of cryoshuffle, make one with cryoshuffle fit")
    if "settings" in content and content.get("format") != FORMAT:
        raise InputError(
            f"{path}: was written by another version of cryoshuffle ({content.get('version', 'unknown')}, this is "
            f"{cryoshuffle.__version__}) and would mean something else here, make it anew with cryoshuffle fit"
        )
    return content


def network_config(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The network that the weights of a checkpoint belong to, as a MONAI component config.

    Raises:
        InputError: if the checkpoint does not name it (its body is not ours), or names anything but this package's
            network and plain numbers.
    """
    config = checkpoint.get("network_def")
    if not isinstance(config, dict):
        raise InputError(
            f"{path}: does not say which network it belongs to, its body is not ours; "
            "run it with the configs it was fitted with: python -m monai.bundle run"
        )
    _refuse_code(config, path)
    return config


def _refuse_code(config: Any, path: str | os.PathLike[str]) -> None:
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_":
                if value not in _TARGETS:
                    raise InputError(f"{path}: names the component '{value}', which a checkpoint may not do")
            elif str(key).startswith("_"):
                raise InputError(f"{path}: its network has the key '{key}', which a checkpoint may not have")
            else:
                _refuse_code(value, path)
    elif isinstance(config, (list, tuple)):
        for value in config:
            _refuse_code(value, path)
    elif isinstance(config, str) and not config.isalpha():
        raise InputError(f"{path}: its network holds the text '{config}', which a checkpoint may not do")


@dataclass(frozen=True)
class Fitted:
    """What a model was fitted with, as far as a config needs it to apply the model.

    Attributes:
        blind_set: offsets its predictions do not see.
        stride: lattice stride along (Z, Y, X), voxels; None for the blind set's default.
        whitening: of the noise, as plain values; None for none.
        blend: of network and linear filter, as plain values; None for the network alone.
    """

    blind_set: BlindSet
    stride: Sequence[int] | None
    whitening: Mapping[str, Any] | None
    blend: Mapping[str, Any] | None = None


def fitted_blind(path: str | os.PathLike[str]) -> Fitted:
    """What a model was fitted with; where there is no model yet, the blind plane across y.

    Without a model nothing is denoised: :class:`ModelLoader` stops such a run. The default lets MONAI export and verify
    the network of a bundle that is not fitted.

    Raises:
        InputError: if the file is no checkpoint, or names more than plain settings.
    """
    if not Path(path).is_file():
        return Fitted(BlindSet("plane", "y"), None, None)
    checkpoint = load_plain(path)
    whitening = checkpoint.get("whitening")
    if whitening is not None:
        whitening = WhitenNoise(**whitening).whitening.config()
    lattice = checkpoint.get("lattice")
    if lattice is None:
        raise InputError(f"{path}: does not say which lattice it was fitted on, make one with cryoshuffle fit")
    _refuse_code(lattice, path)
    blind = {name: value for name, value in lattice["blind_set"].items() if name != "_target_"}
    blend = checkpoint.get("blend")
    if blend is not None:
        trust = blend["trust"]
        blend = {
            "trust": [float(t) for t in trust] if isinstance(trust, Sequence) else float(trust),
            "sigma": list(as_widths(blend["sigma"])),
            "gain": float(blend["gain"]),
            **({"kernel": torch.as_tensor(blend["kernel"])} if blend.get("kernel") is not None else {}),
        }
    return Fitted(BlindSet(**blind), lattice["stride"], whitening, blend)


def load_network(path: str | os.PathLike[str]) -> BlindSpotNet:
    """The network of a checkpoint with its weights, in evaluation mode, on the CPU.

    Raises:
        FileError: if the file is missing.
        InputError: if it is not a checkpoint, or its weights do not fit the network it names.
    """
    checkpoint = load_plain(path)
    network = ConfigParser({"net": network_config(checkpoint, path)}).get_parsed_content("net")
    load_weights(network, checkpoint["model"], path)
    network.eval()
    return network


def load_weights(network: nn.Module, weights: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Put the weights of a checkpoint into a network.

    Args:
        network: to fill.
        weights: its state.
        path: of the checkpoint, for the message.

    Raises:
        InputError: if they do not fit.
    """
    try:
        network.load_state_dict(weights)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise InputError(
            f"{path}: its weights do not fit the configured network ({first}), "
            "use the blind set, stride and body it was fitted with"
        ) from error


class ModelLoader:
    """Loads the weights of a model when an engine starts, or says why it cannot; never runs with random weights.

    Args:
        path: of the checkpoint.
        network: that gets the weights.
        whitening: that the run applies, as plain values; it must be the one the model was fitted with.
    """

    def __init__(self, path: str, network: nn.Module, whitening: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self.network = network
        self.whitening = None if whitening is None else dict(whitening)

    def attach(self, engine: Engine) -> None:
        """Load at the start of the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load now."""
        checkpoint = load_plain(self.path)
        named = checkpoint.get("lattice")
        own = self.network.lattice.config() if isinstance(self.network, BlindSpotNet) else None
        if named is not None and own is not None and named != own:
            raise InputError(
                f"{self.path}: was fitted with lattice {_plain(named)}, the config says {_plain(own)}; "
                "use the same blind set and stride"
            )
        if checkpoint.get("whitening") != self.whitening:
            raise InputError(
                f"{self.path}: was fitted with whitening {checkpoint.get('whitening')}, the config says "
                f"{self.whitening}; use the same"
            )
        load_weights(self.network, checkpoint["model"], self.path)


def _plain(lattice: Mapping[str, Any]) -> str:
    blind = lattice["blind_set"]
    return f"{blind['shape']} across {blind['axis']}, half-widths {blind['radius']}, stride {lattice['stride']}"


def is_as_good(risks: Sequence[float], tolerance: float = 0.05) -> bool:
    """Whether the last of some risks is as small as any of them, but for chance.

    Chance is half of what risks typically change by from one epoch to the next, the first change, which is learning,
    left out.

    Args:
        risks: of the epochs so far, at least one.
        tolerance: the most that counts as chance, as a share of what was gained since the first epoch.
    """
    best = min(risks)
    changes = sorted(abs(b - a) for a, b in itertools.pairwise(risks[1:]))
    chance = 0.5 * changes[len(changes) // 2] if changes else 0.0
    return risks[-1] <= best + min(chance, tolerance * (risks[0] - best))


class FitCheckpoint:
    """Keeps what a fit needs to go on, and the last model whose risk is as small as any.

    At the end of each epoch the state goes to ``state.pt``; the averaged weights go to the model whenever their
    risk is the smallest so far but for chance (:func:`is_as_good`): of equals the later one, with its smaller steps,
    is better. Both files are replaced whole. A fit that is taken up again goes through the same
    windows and updates as one that was never interrupted.

    Args:
        output_dir: of the run.
        model_path: of the model.
        network: being fitted.
        ema: averages its weights.
        optimizer: of the fit.
        scheduler: of the learning rate.
        evaluator: whose metric ``risk`` chooses.
        settings: of the run, plain; a fit is taken up only under the same ones.
        resume: go on from the state in ``output_dir`` if there is one.
        overwrite: start again although an unfinished fit is there.
        writes: whether this process writes; only one of several should.
        whitening: of the noise, as plain values; goes into the model, which must be applied to what it was fitted to.
        state_name: of the state in ``output_dir``; each stage of a fit has its own.
        later: names in ``output_dir`` of what later stages leave; a stage that starts from the beginning removes it.

    Raises:
        SettingError: if there is a fit already and neither resume nor overwrite is asked for, or if the
            settings differ from those the fit began with; the message names them.
    """

    def __init__(
        self,
        output_dir: str,
        model_path: str,
        network: nn.Module,
        ema: EMAHandler,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        evaluator: Engine,
        settings: Mapping[str, Any],
        resume: bool = False,
        overwrite: bool = False,
        writes: bool = True,
        whitening: Mapping[str, Any] | None = None,
        state_name: str = STATE_NAME,
        later: Sequence[str] = (),
    ) -> None:
        self.later = [Path(output_dir) / name for name in later]
        self.state_path = Path(output_dir) / state_name
        self.model_path = Path(model_path)
        self.network, self.ema, self.optimizer, self.scheduler = network, ema, optimizer, scheduler
        self.evaluator = evaluator
        self.whitening = None if whitening is None else dict(whitening)
        self.settings = {str(k): _as_plain(v) for k, v in settings.items()}
        self.resume, self.overwrite, self.writes = resume, overwrite, writes
        self.risks: list[float] = []
        self.kept_risk = math.inf
        self.kept_epoch = 0
        self.spent_s = 0.0
        self._kept: dict[str, Any] | None = None
        self._started = 0.0

    def attach(self, engine: Engine) -> None:
        """Take up a fit at the start; save at the end of each epoch, and say at the end that it is finished."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

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
        if self.resume and self.state_path.name == STATE_NAME:
            logger.warning(
                "there is nothing to resume in %s, the fit starts from the beginning", self.state_path.parent
            )
        elif self.state_path.exists() and not self.overwrite:
            there = load_plain(self.state_path)
            states = [
                there,
                *(load_plain(path) for path in self.later if path.name.startswith("state") and path.exists()),
            ]
            if not all(state["finished"] for state in states):
                raise SettingError(
                    f"{self.state_path.parent}: holds an unfinished fit, add --resume to go on with it "
                    "or --overwrite to start again"
                )
            if there["settings"] != self.settings:
                raise SettingError(
                    f"{self.state_path.parent}: holds a fit with other settings, add --overwrite to replace it "
                    "or choose another folder"
                )
            raise SettingError(
                f"{self.state_path.parent}: holds this fit already, add --resume to use it or --overwrite to fit again"
            )
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # no process writes before all have looked
        if self.writes:
            for path in self.later:
                path.unlink(missing_ok=True)
        self._save(engine, finished=False)

    def _load(self, engine: Engine) -> None:
        state = load_plain(self.state_path)
        changed = named_changes(state["settings"], self.settings)
        if changed:
            raise SettingError(
                f"{self.state_path}: the fit began with other settings ({changed}), "
                "use those again or start again with --overwrite"
            )
        network = unwrap(self.network)
        network.load_state_dict(state["model"])
        self.ema.ema_model.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.risks = [float(risk) for risk in state["risks"]]
        self.kept_risk, self.kept_epoch = state["kept_risk"], state["kept_epoch"]
        self.spent_s = state["spent_s"]
        self._kept = state["kept"]
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
            if is_as_good(self.risks):
                self.kept_risk, self.kept_epoch = float(risk), engine.state.epoch
                self._kept = self._model()
                self._write(self._kept, self.model_path)
        self._save(engine, finished=False)

    def _finish(self, engine: Engine) -> None:
        if self.kept_epoch == 0:
            raise InputError("no risk of the fit was finite, so no model was kept: check the tomogram's values")
        self._save(engine, finished=True)
        logger.info("the model of epoch %d is kept, risk %.5f: %s", self.kept_epoch, self.kept_risk, self.model_path)

    def _model(self) -> dict[str, Any]:
        network = self.ema.ema_model
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
            "ema": self.ema.ema_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "risks": self.risks,
            "kept_risk": self.kept_risk,
            "kept_epoch": self.kept_epoch,
            "kept": self._kept,
            "spent_s": self.elapsed_s(),
            "settings": self.settings,
            "finished": finished,
            "version": cryoshuffle.__version__,
            "format": FORMAT,
        }
        self._write(state, self.state_path)

    def _write(self, content: Mapping[str, Any], path: Path) -> None:
        if self.writes:
            save_whole(content, path)


def _as_plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_as_plain(v) for v in value]
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)
