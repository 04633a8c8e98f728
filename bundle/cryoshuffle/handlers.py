"""Ignite handlers that drive the fit of one volume."""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor, nn
from tqdm import tqdm

import cryoshuffle
from cryoshuffle.data import WindowDataset, seed_everything
from cryoshuffle.errors import FileError, FitInterruptedError, SettingError
from cryoshuffle.invariance import measure_leak
from cryoshuffle.lattice import Lattice
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.network import unwrap
from cryoshuffle.noise import Measured
from cryoshuffle.preview import central_crop, save_preview
from cryoshuffle.whitening import undo_whitening

logger = logging.getLogger("cryoshuffle")


class _Absent:
    """In the place of a handler that a config has disabled."""

    def attach(self, engine: Engine) -> None:
        """Do nothing."""


def named(handler: Any) -> Any:
    """The handler itself: lets a config list handlers by name, where MONAI wants a list of components.

    Args:
        handler: a reference such as ``@train#ema``; None, a disabled component, attaches nothing.
    """
    return _Absent() if handler is None else handler


class RunLog:
    """Writes what this package logs to ``run.log`` while an engine runs.

    MONAI's own handler takes the log of the engine, where our lines do not appear.

    Args:
        output_dir: of the run; made if it is not there.

    Raises:
        FileError: when the engine starts, if the file cannot be written.
    """

    def __init__(self, output_dir: str) -> None:
        self.path = Path(output_dir) / "run.log"
        self._handler: logging.Handler | None = None

    def attach(self, engine: Engine) -> None:
        """Write from the start of the engine to its end."""
        engine.add_event_handler(Events.STARTED, self._start)

    def _start(self, engine: Engine) -> None:
        # Added only now, behind what all other handlers do at the end: their last lines belong into the log.
        if not engine.has_event_handler(self._stop, Events.COMPLETED):
            engine.add_event_handler(Events.COMPLETED, self._stop)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = logging.FileHandler(self.path, encoding="utf-8")
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror}), choose another folder") from error
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(self._handler)
        logger.setLevel(logging.INFO)
        logger.info(
            "cryoshuffle %s, torch %s, %d threads", cryoshuffle.__version__, torch.__version__, torch.get_num_threads()
        )

    def _stop(self, engine: Engine) -> None:
        if self._handler is not None:
            logger.removeHandler(self._handler)
            self._handler.close()
            self._handler = None


class BlindnessGuard:
    """Stops a run before its first step if the configured network is not blind.

    The network is judged by :func:`cryoshuffle.invariance.measure_leak`, in training and in evaluation mode.

    Args:
        network: of the run.

    Raises:
        SettingError: when the engine starts, if the network leaks or sees nothing; the worst pair is named.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Judge at the start of the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Judge now."""
        network = unwrap(self.network)
        was_training = network.training
        for training in (True, False):
            leak = measure_leak(network.train(training))
            if not leak.is_blind:
                mode = "training" if training else "evaluation"
                raise SettingError(f"the configured network {leak.describe()} in {mode} mode, so it would learn noise")
            if leak.sees == 0.0:
                raise SettingError("the configured network sees no voxel at all, so it cannot learn: check its body")
        network.train(was_training)
        lattice = getattr(network, "lattice", None)
        if isinstance(lattice, Lattice):
            logger.info("the network is blind as configured: %s, stride %s", lattice.describe(), lattice.stride_zyx)


class NoiseReport:
    """Says what noise was measured and which blind set follows, in the log and in ``noise.json``.

    Args:
        measured: blind set of the run.
        output_dir: of the run.
    """

    def __init__(self, measured: Measured, output_dir: str) -> None:
        self.measured = measured
        self.path = Path(output_dir) / "noise.json"

    def attach(self, engine: Engine) -> None:
        """Say it at the start of the engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Say it now."""
        estimate, choice = self.measured.estimate, self.measured.choice
        if estimate is not None:
            logger.info("noise autocorrelation from %s:\n%s", estimate.source, estimate.table())
        logger.info("blind set: %s", choice.reason)
        if not choice.clean:
            logger.warning("the noise is not clean along any way to look: %s", choice.reason)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.measured.report(), indent=2) + "\n", encoding="utf-8")


class EpochSeeds:
    """Tells the window stream which epoch it is in, so that windows depend on seed and epoch alone.

    Args:
        dataset: the stream.
    """

    def __init__(self, dataset: WindowDataset) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Set at the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set now."""
        self.dataset.set_epoch(engine.state.epoch)
        seed_everything(self.dataset.seed, engine.state.epoch)


class Budget:
    """How long a fit may take: its steps, and its minutes if they run out first.

    The learning rate follows the same budget, so a fit that is short of time still ends with small steps.

    Args:
        steps: of the whole fit.
        minutes: of the whole fit, time before an interruption included; None for no limit.
        warmup: steps over which the learning rate rises.

    Raises:
        SettingError: if minutes are not positive.
    """

    def __init__(self, steps: int, minutes: float | None = None, warmup: int = 15) -> None:
        if minutes is not None and minutes <= 0:
            raise SettingError(f"minutes are {minutes}: give more than 0, or none for no limit")
        self.steps = steps
        self.minutes = minutes
        self.warmup = warmup
        self.elapsed_s: Callable[[], float] = lambda: 0.0
        self._epoch_began_s = 0.0

    def attach(self, engine: Engine) -> None:
        """Stop the engine at the end of the last epoch that fits."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def watch(self, elapsed_s: Callable[[], float]) -> Budget:
        """Take the clock of the checkpoint, which goes on across interruptions."""
        self.elapsed_s = elapsed_s
        return self

    def _now_s(self) -> float:
        """Seconds spent; those of the first process where there are several, so that all decide alike."""
        now = [self.elapsed_s()]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(now, src=0)
        return now[0]

    def _epoch_started(self, engine: Engine) -> None:
        if self.minutes is not None:
            self._epoch_began_s = self._now_s()

    def _epoch_completed(self, engine: Engine) -> None:
        if self.minutes is None:
            return
        now = self._now_s()
        if now + (now - self._epoch_began_s) > 60 * self.minutes:
            logger.info("the time of %g minutes is used up after step %d", self.minutes, engine.state.iteration)
            engine.terminate()

    def progress(self, step: int) -> float:
        """How much of the budget is used after ``step`` steps, 0 to 1."""
        used = step / self.steps
        if self.minutes is not None:
            used = max(used, self._now_s() / (60 * self.minutes))
        return min(1.0, used)

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 over the budget."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress(step)))


class LossTerms:
    """Logs every term of the loss by itself, averaged over the epoch, and the blind risk.

    The means are also left in ``engine.state.metrics`` as ``loss_<term>``, where MONAI's own handlers find them.

    Args:
        loss: of the fit.
        evaluator: whose metric ``risk`` is logged with them.
    """

    def __init__(self, loss: EdgeGuidedLoss, evaluator: Engine) -> None:
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
            "epoch %d/%d, step %d: %s, blind risk %.5f",
            engine.state.epoch,
            engine.state.max_epochs,
            engine.state.iteration,
            words,
            risk,
        )
        self._sums, self._count = {}, 0


class Progress:
    """A bar with the time left and the current blind risk.

    Args:
        evaluator: whose metric ``risk`` is shown.
        quiet: show nothing.
    """

    def __init__(self, evaluator: Engine, quiet: bool = False) -> None:
        self.evaluator = evaluator
        self.quiet = quiet
        self._bar: tqdm[Any] | None = None

    def attach(self, engine: Engine) -> None:
        """Show from the first step to the last."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self.close)
        engine.add_event_handler(Events.TERMINATE, self.close)

    def _open(self, engine: Engine) -> None:
        if self._bar is None:
            total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
            self._bar = tqdm(
                total=total,
                initial=engine.state.iteration,
                desc="fitting",
                unit="step",
                disable=self.quiet,
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 15.0,
            )

    def _step(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def _epoch(self, engine: Engine) -> None:
        risk = self.evaluator.state.metrics.get("risk")
        if self._bar is not None and risk is not None:
            self._bar.set_postfix_str(f"blind risk {risk:.4f}", refresh=False)

    def close(self, engine: Engine | None = None) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class GracefulStop:
    """Ctrl-C and SIGTERM stop a run after the current step; the checkpoint of the last epoch stays.

    Raises:
        FitInterruptedError: from the engine, after the step in which the signal came.
    """

    def __init__(self) -> None:
        self._asked: int | None = None
        self._before: dict[int, Any] = {}

    def attach(self, engine: Engine) -> None:
        """Listen while the engine runs."""
        engine.add_event_handler(Events.STARTED, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _listen(self, engine: Engine) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _check(self, engine: Engine) -> None:
        if self._asked is not None:
            self._forget(engine)
            raise FitInterruptedError(
                f"stopped at step {engine.state.iteration}; the checkpoint of the last whole epoch is kept, "
                "go on with --resume"
            )

    def _finish(self, engine: Engine) -> None:
        self._check(engine)
        self._forget(engine)

    def _forget(self, engine: Engine) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class FitPreview:
    """A picture at intervals while a fit runs: the middle of the first volume, before, after and residual.

    Args:
        volumes: the standardised volumes of the fit, dictionaries with ``image`` of shape ``(1, Z, Y, X)``.
        network: to show, the averaged one say.
        inferer: that runs it.
        output_dir: where ``preview.png`` goes; it is replaced each time.
        interval: epochs between pictures.
        side: longest side of what is shown, voxels.
        whitening: of the volumes, undone for the picture.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, Any]],
        network: nn.Module,
        inferer: Callable[..., Tensor],
        output_dir: str,
        interval: int = 4,
        side: int = 96,
        whitening: Mapping[str, Any] | None = None,
    ) -> None:
        self.volumes, self.network, self.inferer = volumes, network, inferer
        self.path = Path(output_dir) / "preview.png"
        self.interval = interval
        self.side = side
        self.whitening = whitening

    def attach(self, engine: Engine) -> None:
        """Draw every few epochs."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Draw now."""
        before = central_crop(torch.as_tensor(self.volumes[0]["image"]), self.side)
        device = next(self.network.parameters()).device
        was_training = self.network.training
        self.network.eval()
        with torch.no_grad():
            after = self.inferer(before[None].to(device), self.network)[0]
        self.network.train(was_training)
        before, after = (undo_whitening(v.cpu(), self.whitening) for v in (before, after))
        save_preview(before[0], after[0], self.path)


class ResultPreview:
    """The picture of a finished tomogram, drawn from what the evaluator read and predicted.

    Args:
        path: of the PNG.
        whitening: of the image, undone for the picture.
    """

    def __init__(self, path: str, whitening: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.whitening = whitening

    def attach(self, engine: Engine) -> None:
        """Draw before the intensities are given back, so that both sides have one scale."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        output: Any = engine.state.output
        volumes = [output[key].as_subclass(Tensor)[0] for key in ("image", "pred")]
        before, after = (undo_whitening(volume, self.whitening) for volume in volumes)
        save_preview(before[0], after[0], self.path)
        logger.info("picture: %s", self.path)


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
