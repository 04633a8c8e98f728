"""Ignite handlers that tell what a run does: log, noise, loss terms, progress, pictures, times."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from torch import Tensor
from tqdm import tqdm

import cryoshuffle
from cryoshuffle.devices import is_first_process
from cryoshuffle.errors import FileError
from cryoshuffle.files.writing import write_json, write_text
from cryoshuffle.host import is_terminal, while_running
from cryoshuffle.losses import EdgeGuidedLoss, RelativeError
from cryoshuffle.noise.choice import BlindPlan

logger = logging.getLogger("cryoshuffle")
HISTORY_NAME = "history.jsonl"


def _all_steps(engine: Engine) -> int:
    return (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)


class RunLog:
    """Writes what this package logs to ``run.log`` while an engine, or a ``with`` block, runs.

    MONAI's own handler takes the log of the engine, where our lines do not appear. Whoever else listens to the logger
    hears of it what its level lets through, as without a log.

    Args:
        output_dir: of the run; made if it is not there.

    Raises:
        FileError: when the engine starts, if the file cannot be written.
    """

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "run.log"
        self._handler: logging.Handler | None = None
        self._level, self._effective = logging.NOTSET, logging.NOTSET

    def attach(self, engine: Engine) -> None:
        """Write from the start of the engine to its end, or to an error; of several processes the first writes."""
        if is_first_process():
            while_running(engine, self._write)

    @contextmanager
    def _write(self, engine: Engine) -> Iterator[None]:
        version, threads = cryoshuffle.__version__, torch.get_num_threads()
        with self:
            words = f"cryoshuffle {version}, torch {torch.__version__}, {threads} threads"
            if logger.isEnabledFor(logging.INFO):
                logger.info(words)
            elif self._handler is not None:
                # The first line tells whose folder it is, also where the program around us has turned logging off.
                self._handler.handle(logger.makeRecord(logger.name, logging.INFO, __file__, 0, words, (), None))
            yield

    def __enter__(self) -> RunLog:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = logging.FileHandler(self.path, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror}), choose another folder") from error
        self._handler.setLevel(logging.INFO)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._level, self._effective = logger.level, logger.getEffectiveLevel()
        logger.addHandler(self._handler)
        logger.addFilter(self._is_for_all)
        logger.setLevel(min(logging.INFO, self._effective))
        return self

    def __exit__(self, *error: object) -> None:
        if self._handler is not None:
            logger.setLevel(self._level)
            logger.removeFilter(self._is_for_all)
            logger.removeHandler(self._handler)
            self._handler.close()
            self._handler = None

    def _is_for_all(self, record: logging.LogRecord) -> bool:
        """Whether others hear a line; those that they do not want go into the file alone."""
        if record.levelno >= self._effective:
            return True
        if self._handler is not None:
            self._handler.handle(record)
        return False


class NoiseReport:
    """Says what noise was measured and which blind set follows, in the log and in ``noise.json``.

    Args:
        measured: blind set of the run.
        output_dir: of the run.
        notes: sentences on where the fit looks, said as well.
    """

    def __init__(self, measured: BlindPlan, output_dir: str, notes: Sequence[str] = ()) -> None:
        self.measured, self.notes = measured, notes
        self.path = Path(output_dir) / "noise.json"

    def attach(self, engine: Engine) -> None:
        """Say it at the start of the engine; of several processes the first does."""
        if is_first_process():
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Say it now."""
        estimate, choice = self.measured.estimate, self.measured.choice
        if estimate is not None:
            logger.info("noise autocorrelation from %s:\n%s", estimate.source, estimate.table())
        logger.info("blind set: %s", choice.reason)
        if choice.clean is False:
            logger.warning("the noise is not clean along any way to look: %s", choice.reason)
        if self.measured.contradiction:
            logger.warning("%s: make sure of it, and give --tilt-axis", self.measured.contradiction)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.measured.report(), self.path)
        for note in self.notes:
            logger.info(note)


class LossTerms:
    """Logs every term of the loss by itself, averaged over the epoch, and the risk.

    The means are also left in ``engine.state.metrics`` as ``loss_<term>``, where MONAI's own handlers find them.

    Args:
        loss: of the fit.
        evaluator: whose metric ``risk`` is logged with them.
    """

    def __init__(self, loss: EdgeGuidedLoss | RelativeError, evaluator: Engine) -> None:
        self.loss = loss
        self.evaluator = evaluator
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def attach(self, engine: Engine) -> None:
        """Add up each step; log at the end of each epoch."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _step(self, engine: Engine) -> None:
        for name, value in self.loss.terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._count += 1

    def _epoch(self, engine: Engine) -> None:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        engine.state.metrics.update({f"loss_{name}": value for name, value in means.items()})
        risk = self.evaluator.state.metrics.get("risk", float("nan"))
        words = ", ".join(f"{name} {value:.5f}" for name, value in means.items())
        logger.info(
            "epoch %d/%d, step %d: %s, risk %.5f",
            engine.state.epoch,
            engine.state.max_epochs,
            engine.state.iteration,
            words,
            risk,
        )
        self._sums, self._count = {}, 0


def read_history(output_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of ``history.jsonl`` of a run, see :class:`History`; none if there is no such file.

    Raises:
        FileError: if it cannot be read.
    """
    path = Path(output_dir) / HISTORY_NAME
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read ({error}), remove it") from error


def time_note(output_dir: str | os.PathLike[str]) -> str:
    """That the minutes of a fit ran out before its steps, and what to do; empty where they did not.

    Args:
        output_dir: of the run.

    Raises:
        FileError: see :func:`read_history`.
    """
    short = [line for line in read_history(output_dir) if line.get("out_of_time")]
    if not short:
        return ""
    where = ", ".join(f"{line['stage']} after step {line['step']} of {line['steps']}" for line in short)
    return f"cut short by --minutes: {where}; for more, run it again with --overwrite and more minutes"


class History:
    """Writes the course of a fit for programs: a line of JSON an epoch, in ``history.jsonl``.

    A line holds ``stage``, ``step``, ``steps`` (of the stage), ``risk`` (None before it is measured), ``loss`` by term,
    ``steps_per_second`` and ``seconds_left`` of the stage. A stage drops what it will write anew, and what
    came behind it. Where its minutes ran out before its steps the last line of the file also has ``out_of_time``.
    Stands behind :class:`LossTerms`. Of several processes the first writes.

    Args:
        evaluator: whose metric ``risk`` is written.
        output_dir: of the run.
        name: of the stage.
        json_lines: print the lines as well.

    Raises:
        FileError: from the engine, if the file cannot be written.
    """

    def __init__(self, evaluator: Engine, output_dir: str, name: str = "fitting", json_lines: bool = False) -> None:
        self.evaluator, self.output_dir, self.name, self.json_lines = evaluator, output_dir, name, json_lines
        self._began, self._first = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Write at the end of each epoch."""
        if is_first_process():
            engine.add_event_handler(Events.EPOCH_STARTED, self._start)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _finish(self, engine: Engine) -> None:
        if getattr(engine.state, "out_of_time", False):
            *before, last = read_history(self.output_dir)
            self._write([*before, {**last, "out_of_time": True}])

    def _start(self, engine: Engine) -> None:
        if not self._began:
            self._began, self._first = time.monotonic(), engine.state.iteration
            before = read_history(self.output_dir)
            stages = [line["stage"] for line in before]
            past = stages.index(self.name) if self.name in stages else len(before)
            kept = [line for line in before[past:] if line["stage"] == self.name and line["step"] <= self._first]
            self._write([*before[:past], *kept])

    def __call__(self, engine: Engine) -> None:
        """Write a line."""
        state = engine.state
        total = _all_steps(engine)
        pace = (state.iteration - self._first) / max(time.monotonic() - self._began, 1e-9)
        line = {
            "stage": self.name,
            "step": state.iteration,
            "steps": total,
            "risk": self.evaluator.state.metrics.get("risk"),
            "loss": {name[5:]: value for name, value in state.metrics.items() if name.startswith("loss_")},
            "steps_per_second": round(pace, 3),
            "seconds_left": round(max(0, total - state.iteration) / pace, 1),
        }
        self._write([*read_history(self.output_dir), line])
        if self.json_lines:
            print(json.dumps(line), flush=True)

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        path = Path(self.output_dir) / HISTORY_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text("".join(json.dumps(line) + "\n" for line in lines), path)


@dataclass(frozen=True)
class StagePlace:
    """Where a stage of a fit stands among the others.

    Attributes:
        number: of the stage, from 1 on.
        count: of the stages.
        before: steps of the stages before it.
        total: steps of all.
    """

    number: int
    count: int
    before: int
    total: int


class Progress:
    """A bar with the time left and the current risk; where a fit has several stages, its total is that of all.

    That the minutes of a stage ran out is said below its bar, as :class:`History` has it.

    Args:
        evaluator: whose metric ``risk`` is shown.
        quiet: show nothing.
        name: of the work.
        place: of the stage in its fit; None where it is all of it.
    """

    def __init__(
        self, evaluator: Engine, quiet: bool = False, name: str = "fitting", place: StagePlace | None = None
    ) -> None:
        self.name = name if place is None else f"stage {place.number} of {place.count}, {name}"
        self.place = place
        self.evaluator = evaluator
        self.quiet = quiet or not is_first_process()
        self._bar: tqdm[Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Show from the first step to the last."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        while_running(engine, lambda engine: closing(self))

    def _open(self, engine: Engine) -> None:
        if self._bar is None:
            own = _all_steps(engine)
            before, total = (0, own) if self.place is None else (self.place.before, self.place.total)
            self._bar = tqdm(
                total=total,
                initial=before + engine.state.iteration,
                desc=self.name,
                unit="step",
                disable=self.quiet or sys.stderr is None,
                dynamic_ncols=True,
                mininterval=0.5 if is_terminal(sys.stderr) else 15.0,
            )

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def _epoch(self, engine: Engine) -> None:
        risk = self.evaluator.state.metrics.get("risk")
        if self._bar is not None and risk is not None:
            self._bar.set_postfix_str(f"risk {risk:.4f}", refresh=False)

    def _finish(self, engine: Engine) -> None:
        self.close()
        if getattr(engine.state, "out_of_time", False) and is_first_process():
            total = _all_steps(engine)
            logger.warning(
                "%s: cut short by --minutes after step %d of %d, more minutes give it the rest",
                self.name, engine.state.iteration, total,
            )  # fmt: skip

    def close(self) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TensorBoardLog:
    """MONAI's log for TensorBoard, where it is asked for; of several processes the first writes.

    Args:
        log_dir: of its files.
        wanted: whether to write.
        options: others of :class:`monai.handlers.TensorBoardStatsHandler`.
    """

    def __init__(self, log_dir: str, wanted: bool = False, **options: Any) -> None:
        self.log_dir, self.wanted, self.options = log_dir, wanted, options

    def attach(self, engine: Engine) -> None:
        """Write while the engine runs."""
        if self.wanted and is_first_process():
            TensorBoardStatsHandler(log_dir=self.log_dir, **self.options).attach(engine)


class Timer:
    """Logs how long an engine took.

    Args:
        name: of the work.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._began = 0.0

    def attach(self, engine: Engine) -> None:
        """From start to end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._stop)

    def _start(self, engine: Engine) -> None:
        self._began = time.monotonic()

    def _stop(self, engine: Engine) -> None:
        logger.info("%s took %.1f s", self.name, time.monotonic() - self._began)
