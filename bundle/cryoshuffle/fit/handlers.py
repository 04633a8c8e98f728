"""Ignite handlers that drive the fit: blindness guard, window seeds, memory, budget, interruption."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines import IterationEvents
from torch import nn
from torch.nn.utils import clip_grad_norm_

from cryoshuffle.devices import are_processes_joined
from cryoshuffle.errors import FitInterruptedError, SettingError
from cryoshuffle.fit.data import WindowDataset, seed_everything
from cryoshuffle.host import while_running
from cryoshuffle.invariance import measure_leak
from cryoshuffle.lattice import Lattice
from cryoshuffle.memory import keep_memory, trim_near_limit
from cryoshuffle.network import unwrap
from cryoshuffle.signals import listening
from cryoshuffle.simulation.windows import SimulatedWindows

if TYPE_CHECKING:
    from cryoshuffle.fit.checkpoint import FitCheckpoint

logger = logging.getLogger("cryoshuffle")
# Share of what was gained since the first epoch, below which a gain counts for none.
_FLAT = 0.05


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy of a network that :class:`AveragedWeights` keeps; it is what is scored and saved.

    Args:
        network: being fitted; its copy has no gradients and is in evaluation mode.
    """
    averaged = copy.deepcopy(unwrap(network)).eval()
    return averaged.requires_grad_(False)


class AveragedWeights(EMAHandler):
    """Makes the weights of a copy the running mean of those of the network that is fitted.

    Args:
        network: being fitted.
        averaged: its copy (:func:`averaged_copy`).
        momentum: share of a step in the mean.
    """

    def __init__(self, network: nn.Module, averaged: nn.Module, momentum: float = 0.1) -> None:
        super().__init__(network, momentum=momentum)
        self.ema_model = averaged


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
        lattice = getattr(network, "lattice", None)
        if isinstance(lattice, Lattice) and lattice.blind_set.hides_nothing:
            raise SettingError(
                "the configured network hides nothing, so its blind risk means nothing and it would learn noise: "
                "choose a blind set, or the model blind.pt that a refined one came from"
            )
        was_training = network.training
        for training in (True, False):
            leak = measure_leak(network.train(training))
            if not leak.is_blind:
                mode = "training" if training else "evaluation"
                raise SettingError(f"the configured network {leak.describe()} in {mode} mode, so it would learn noise")
            if leak.sees == 0.0:
                raise SettingError("the configured network sees no voxel at all, so it cannot learn: check its body")
        network.train(was_training)
        if isinstance(lattice, Lattice):
            logger.info("the network is blind as configured: %s, stride %s", lattice.describe(), lattice.stride_zyx)


class EpochSeeds:
    """Tells the window stream which epoch it is in, so that windows depend on seed and epoch alone.

    Args:
        dataset: the stream.
    """

    def __init__(self, dataset: WindowDataset | SimulatedWindows) -> None:
        self.dataset = dataset

    def attach(self, engine: Engine) -> None:
        """Set at the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set now."""
        self.dataset.set_epoch(engine.state.epoch)
        seed_everything(self.dataset.seed, engine.state.epoch)


class ClipGradients:
    """Shortens gradients that are longer than a norm: a single hard window must not undo what was learnt.

    Args:
        network: being fitted.
        norm: largest length, of all gradients together; the loss is that of a standardised tomogram.

    Raises:
        SettingError: if the norm is not positive.
    """

    def __init__(self, network: nn.Module, norm: float = 0.3) -> None:
        if not norm > 0:
            raise SettingError(f"gradients are clipped to a norm of {norm}: give more than 0")
        # Listed once: to walk through all modules at each step takes longer than to clip.
        self.parameters, self.norm = list(network.parameters()), norm

    def attach(self, engine: Engine) -> None:
        """Clip after each backward pass, before the optimiser steps."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip now."""
        clip_grad_norm_(self.parameters, self.norm)


def flat_after(risks: Sequence[float], patience: int) -> int | None:
    """After how many epochs the risk was flat for the first time; None if it falls still.

    It is flat when the smallest risk of the last ``patience`` epochs is no smaller than the smallest before, but for
    a twentieth of all that was gained since the first epoch.

    Args:
        risks: of the epochs so far.
        patience: epochs.
    """
    for count in range(patience + 1, len(risks) + 1):
        before, recent = min(risks[: count - patience]), min(risks[count - patience : count])
        if before - recent <= _FLAT * max(0.0, risks[0] - recent):
            return count
    return None


class KeptMemory:
    """Keeps the memory that layers free for the next step, while an engine runs (:func:`keep_memory`).

    Between two steps of a program that has come near to its limit it is given back.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def attach(self, engine: Engine) -> None:
        """From start to end, or to an error."""
        while_running(engine, lambda engine: keep_memory(self.device))
        engine.add_event_handler(Events.ITERATION_COMPLETED, trim_near_limit)


class Budget:
    """How long a fit may take: its steps, its minutes if they run out first, and no more than it learns from.

    The learning rate follows the same budget, so a fit that is short of time still ends with small steps. That it was
    short is told by ``engine.state.out_of_time``, for :class:`cryoshuffle.report.log.History`. Where the
    risk is flat (:func:`flat_after`), what is left is cut to a quarter of the steps so far, which still bring the
    learning rate down.

    Args:
        steps: of the whole fit.
        minutes: of the whole fit, time before an interruption included; None for no limit.
        warmup: steps over which the learning rate rises.
        patience: epochs over which the risk has to be flat; None to take all steps.

    Raises:
        SettingError: if minutes or patience are not positive.
    """

    def __init__(self, steps: int, minutes: float | None = None, warmup: int = 15, patience: int | None = None) -> None:
        if minutes is not None and minutes <= 0:
            raise SettingError(f"minutes are {minutes}: give more than 0, or none for no limit")
        if patience is not None and patience < 1:
            raise SettingError(f"patience is {patience}: give at least one epoch, or none to take all steps")
        self.steps = steps
        self.minutes = minutes
        self.warmup = warmup
        self.patience = patience
        self.fit: FitCheckpoint | None = None
        self._epoch_began_s = 0.0
        self._flat_step: int | None = None
        self._last_step = steps
        self._engine: Engine | None = None

    def attach(self, engine: Engine) -> None:
        """Stop the engine at the end of the last epoch that fits."""
        self._engine = engine
        engine.add_event_handler(Events.STARTED, self._look_at_risks)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch_completed)

    def watch(self, fit: FitCheckpoint) -> Budget:
        """Take clock and risks of the checkpoint, which go on across interruptions."""
        self.fit = fit
        return self

    def steps_within(self, minutes: float) -> float:
        """How many steps of this fit's pace so far go into some minutes; without any step so far, 0."""
        done = 0 if self._engine is None else self._engine.state.iteration
        return done * 60 * minutes / max(1e-3, self._now_s())

    def _now_s(self) -> float:
        """Seconds spent; those of the first process where there are several, so that all decide alike."""
        return float(_of_the_first(0.0 if self.fit is None else self.fit.elapsed_s()))

    def _look_at_risks(self, engine: Engine) -> None:
        if self.patience is None or self.fit is None or self._flat_step is not None:
            return
        epochs = _of_the_first(flat_after(self.fit.risks, self.patience))
        if epochs is None:
            return
        length = engine.state.epoch_length or 1
        self._flat_step = epochs * length
        more = length * math.ceil(self._flat_step / 4 / length)
        if self._flat_step + more < self.steps:
            self._last_step = self._flat_step + more
            logger.info(
                "the risk is flat since epoch %d: the fit ends at step %d of %d",
                epochs - self.patience,
                self._last_step,
                self.steps,
            )

    def _epoch_started(self, engine: Engine) -> None:
        if self.minutes is not None:
            self._epoch_began_s = self._now_s()

    def _epoch_completed(self, engine: Engine) -> None:
        self._look_at_risks(engine)
        if self._last_step < self.steps and engine.state.iteration >= self._last_step:
            engine.terminate()
        if self.minutes is None:
            return
        now = self._now_s()
        if now + (now - self._epoch_began_s) > 60 * self.minutes:
            logger.info("the time of %g minutes is used up after step %d", self.minutes, engine.state.iteration)
            state: Any = engine.state
            state.out_of_time = engine.state.iteration < self._last_step
            engine.terminate()

    def progress(self, step: int) -> float:
        """How much of the budget is used after ``step`` steps, 0 to 1."""
        used = step / self.steps
        if self._flat_step is not None and step > self._flat_step:
            rest = (step - self._flat_step) / (self._last_step - self._flat_step)
            flat = self._flat_step / self.steps
            used = flat + (1 - flat) * rest
        if self.minutes is not None:
            used = max(used, self._now_s() / (60 * self.minutes))
        return min(1.0, used)

    def learning_rate_factor(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 0 over the budget."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * self.progress(step)))


def _of_the_first(value: Any) -> Any:
    """The value that the first process has, where there are several."""
    values = [value]
    if are_processes_joined():
        dist.broadcast_object_list(values, src=0)
    return values[0]


class ListedOutput:
    """Leaves the output of an engine as a list of one dictionary, as decollated batches are.

    MONAI's trackers (TensorBoard, MLflow) take the loss from such a list. Decollating would copy the loss from the
    device at every step; this does not.
    """

    def attach(self, engine: Engine) -> None:
        """List it as soon as it is there."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """List it now."""
        state: Any = engine.state
        state.output = state.output if isinstance(state.output, list) else [state.output]


class GracefulStop:
    """Ctrl-C and SIGTERM stop a run after the current step; the checkpoint of the last epoch stays.

    Raises:
        FitInterruptedError: from the engine, after the step in which the signal came.
    """

    def __init__(self) -> None:
        self._asked: int | None = None

    def attach(self, engine: Engine) -> None:
        """Listen while the engine runs; however it ends, the signals then do what they did before."""
        while_running(engine, self._listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._check, epoch_is_kept=False)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._check)

    @contextmanager
    def _listen(self, engine: Engine) -> Iterator[None]:
        self._asked = None
        with listening(self._ask):
            yield
        self._check(engine)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number

    def _check(self, engine: Engine, epoch_is_kept: bool = True) -> None:
        if self._asked is not None:
            epochs = engine.state.epoch if epoch_is_kept else engine.state.epoch - 1
            kept = max(0, epochs) * (engine.state.epoch_length or 0)
            raise FitInterruptedError(
                f"stopped at step {engine.state.iteration} of this stage; --resume goes on from step {kept}, "
                "where it was last saved"
            )
