"""The stages of a fit, in the order in which they run.

A blind network is fitted first: its residual makes the noise known. A second network, which hides nothing, learns from
windows recorrupted with that noise; a third is distilled from it, so that one pass is enough. Last, its weights are
interpolated with those that the fit began with, it is weighed against the best linear filter, and the model is
written. :meth:`RefinedFit.run` is that order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer, Trainer, default_prepare_batch
from monai.handlers import LrScheduleHandler, ValidationHandler, from_engine
from monai.inferers import Inferer
from monai.transforms import Compose, Transform
from torch import nn

from cryoshuffle.devices import is_first_process, pins_memory
from cryoshuffle.errors import SettingError
from cryoshuffle.fit.checkpoint import FitCheckpoint
from cryoshuffle.fit.comparison import FilterComparison
from cryoshuffle.fit.data import Epochs, WindowDataset, forget, seed_everything
from cryoshuffle.fit.distillation import Distillation
from cryoshuffle.fit.handlers import (
    AveragedWeights,
    Budget,
    ClipGradients,
    EpochSeeds,
    GracefulStop,
    KeptMemory,
    averaged_copy,
)
from cryoshuffle.fit.noise_model import NoiseModel
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.risk import HeldOutRisk, lower_is_better
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.starting import copy_with_weights, fingerprint
from cryoshuffle.fit.transforms import CropHeldOutd
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.noise.whitening import without_whitening
from cryoshuffle.report.log import History, LossTerms, Progress, RunLog, StagePlace, Timer
from cryoshuffle.report.pictures import FitPreview

logger = logging.getLogger("cryoshuffle")
Volumes = Sequence[Mapping[str, Any]]
_RECORRUPTED, _DISTILLED = "recorrupted.pt", "distilled.pt"


@dataclass(frozen=True)
class StepPlan:
    """How the steps and the minutes of a fit are shared out among its stages.

    The blind stage gets an eighth of the steps, the distilled one a fifth, the recorrupted one the rest. Distillation
    mends what a long second stage has learnt by heart. Behind a short one from random weights it would only take away,
    so it is left out there.

    Args:
        steps: of the whole fit.
        minutes: of the whole fit; None for no limit.
        start: checkpoint that the second stage begins with; None for random weights.
        distil_after: steps of the second stage from which on the third runs; None for what measurements say.
    """

    steps: int
    minutes: float | None = None
    start: str | None = None
    distil_after: int | None = None

    @property
    def blind_steps(self) -> int:
        """Steps of the blind stage."""
        return max(1, self.steps // 8)

    @property
    def distilled_steps(self) -> int:
        """Steps of the distilled stage, where it runs."""
        return max(1, self.steps // 5)

    @property
    def least_recorrupted_steps(self) -> int:
        """The fewest steps of the recorrupted stage for which the distilled stage runs."""
        return (300 if self.start is None else 50) if self.distil_after is None else self.distil_after

    def recorrupted_steps(self, distils: bool) -> int:
        """Steps of the recorrupted stage."""
        return max(1, self.steps - self.blind_steps - (self.distilled_steps if distils else 0))

    def place(self, number: int, steps_per_epoch: int, distils: bool) -> StagePlace:
        """Where a stage stands, steps rounded to whole epochs.

        Args:
            number: of the stage, from 1 on.
            steps_per_epoch: about how many steps make an epoch.
            distils: whether the distilled stage runs.
        """
        wanted = [self.blind_steps, self.recorrupted_steps(distils), *([self.distilled_steps] if distils else [])]
        steps = [Epochs(stage, steps_per_epoch).steps for stage in wanted]
        return StagePlace(number, len(steps), sum(steps[: number - 1]), sum(steps))

    def blind_place(self, steps_per_epoch: int, only_settle: bool) -> StagePlace | None:
        """The place of the blind stage, as if minutes did not matter; None where no other stage runs.

        Args:
            steps_per_epoch: about how many steps make an epoch.
            only_settle: whether the starting network is applied without a fit.
        """
        if only_settle and self.start is not None:
            return None
        return self.place(1, steps_per_epoch, self.distils(lambda minutes: math.inf))

    def distils(self, steps_within: Callable[[float], float]) -> bool:
        """Whether the distilled stage runs.

        Args:
            steps_within: how many steps go into some minutes, by the pace of the blind stage.
        """
        reach = float(self.steps - self.blind_steps - self.distilled_steps)
        # A little less than the second stage gets: its pace is a guess.
        if self.minutes is not None:
            reach = min(reach, steps_within(0.55 * self.minutes))
        return reach >= self.least_recorrupted_steps

    @property
    def blind_minutes(self) -> float | None:
        """Minutes of the blind stage."""
        return self._share(0.15)

    def recorrupted_minutes(self, distils: bool) -> float | None:
        """Minutes of the recorrupted stage."""
        return self._share(0.6 if distils else 0.85)

    @property
    def distilled_minutes(self) -> float | None:
        """Minutes of the distilled stage."""
        return self._share(0.25)

    def _share(self, share: float) -> float | None:
        return None if self.minutes is None else share * self.minutes


@dataclass(frozen=True)
class StageSettings:
    """What the stages of a fit have in common.

    Attributes:
        output_dir: of the run.
        device: that computes.
        train_inferer: runs the network over a batch of windows.
        inferer: runs it over a volume.
        settings: of the run, plain; a stage is taken up only under the same ones.
        seed: of all windows.
        batch_size: windows in a step.
        steps_per_epoch: about how many steps make an epoch.
        val_interval: epochs between scores.
        preview_interval: epochs between pictures.
        gradient_norm: longest gradient.
        patience: epochs over which the risk has to be flat.
        resume: go on from the states in ``output_dir``.
        overwrite: start again although an unfinished fit is there.
        quiet: show no bar.
        json_lines: print the lines of the history.
    """

    output_dir: str
    device: torch.device
    train_inferer: Inferer
    inferer: Inferer
    settings: Mapping[str, Any]
    seed: int = 0
    batch_size: int = 1
    steps_per_epoch: int = 25
    val_interval: int = 1
    preview_interval: int = 4
    gradient_norm: float = 0.3
    patience: int | None = None
    resume: bool = False
    overwrite: bool = False
    quiet: bool = False
    json_lines: bool = False


@dataclass
class FitStage:
    """One stage: a network fitted to windows of the volumes, as ``train.json`` declares it for the blind stage.

    Args:
        name: in log, bar and history.
        common: to all stages.
        network: that is fitted.
        loss: of a step.
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)``.
        windows: transforms from a volume to the windows of a batch.
        scored: transforms from a volume to what the risk is measured on.
        learning_rate: at its highest.
        steps: of the stage.
        minutes: of the stage; None for no limit.
        model_name: of the model in the folder of the run.
        state_name: of the state there.
        later: names there of what later stages leave.
        seed_offset: added to the seed of the windows.
        prepare_batch: makes input and target of a batch.
        prepare_scored: the same for the risk.
        previews: whether to draw pictures.
        place: of the stage in its fit, for its bar.
    """

    name: str
    common: StageSettings
    network: nn.Module
    loss: EdgeGuidedLoss
    volumes: Volumes
    windows: Sequence[Transform]
    scored: Sequence[Transform]
    learning_rate: float
    steps: int
    minutes: float | None
    model_name: str
    state_name: str
    later: Sequence[str] = ()
    seed_offset: int = 0
    prepare_batch: Callable[..., Any] = default_prepare_batch
    prepare_scored: Callable[..., Any] = default_prepare_batch
    previews: bool = True
    place: StagePlace | None = None

    def run(self) -> str:
        """Fit; the path of the model.

        Raises:
            UserError: see :class:`cryoshuffle.fit.checkpoint.FitCheckpoint`.
        """
        common, epochs = self.common, Epochs(self.steps, self.common.steps_per_epoch)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.learning_rate, weight_decay=0.0001, fused=True)
        budget = Budget(epochs.steps, self.minutes, patience=common.patience)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.learning_rate_factor)
        dataset = WindowDataset(
            self.volumes, Compose(self.windows), epochs.length, common.seed + self.seed_offset,
            batch_size=common.batch_size,
        )  # fmt: skip
        averaged = averaged_copy(self.network)
        evaluator = self._evaluator(averaged)
        model_path = str(Path(common.output_dir) / self.model_name)
        checkpoint = FitCheckpoint(
            common.output_dir, model_path, self.network, averaged, optimizer, scheduler, evaluator, common.settings,
            common.resume, common.overwrite, budget, state_name=self.state_name, later=self.later,
        )  # fmt: skip
        SupervisedTrainer(
            device=common.device,
            max_epochs=epochs.count,
            epoch_length=epochs.length,
            train_data_loader=DataLoader(
                dataset, batch_size=common.batch_size, shuffle=False, num_workers=0,
                pin_memory=pins_memory(common.device),
            ),
            network=self.network,
            optimizer=optimizer,
            loss_function=self.loss,
            inferer=common.train_inferer,
            train_handlers=self._handlers(dataset, scheduler, averaged, evaluator, checkpoint),
            decollate=False,
            non_blocking=True,
            optim_set_to_none=True,
            amp=False,
            prepare_batch=self.prepare_batch,
        ).run()  # fmt: skip
        return model_path

    def _evaluator(self, averaged: nn.Module) -> SupervisedEvaluator:
        """The risk of the averaged network on what no step has seen."""
        return SupervisedEvaluator(
            device=self.common.device,
            val_data_loader=DataLoader(Dataset(self.volumes, Compose(self.scored)), batch_size=1, num_workers=0),
            network=averaged,
            inferer=self.common.inferer,
            key_val_metric={"risk": HeldOutRisk(output_transform=from_engine(["pred", "label"]))},
            metric_cmp_fn=lower_is_better,
            amp=False,
            prepare_batch=self.prepare_scored,
        )

    def _handlers(
        self,
        dataset: WindowDataset,
        scheduler: Any,
        averaged: nn.Module,
        evaluator: SupervisedEvaluator,
        checkpoint: FitCheckpoint,
    ) -> list[Any]:
        common = self.common
        preview = FitPreview(self.volumes, averaged, common.inferer, common.output_dir, common.preview_interval)
        return [
            RunLog(common.output_dir),
            Timer(self.name),
            KeptMemory(common.device),
            EpochSeeds(dataset),
            LrScheduleHandler(scheduler, print_lr=False, epoch_level=False),
            ClipGradients(self.network, common.gradient_norm),
            AveragedWeights(self.network, averaged),
            ValidationHandler(common.val_interval, evaluator, epoch_level=True, exec_at_start=True),
            LossTerms(self.loss, evaluator),
            History(evaluator, common.output_dir, self.name, common.json_lines),
            checkpoint,
            Progress(evaluator, common.quiet, self.name, self.place),
            *([preview] if self.previews else []),
            GracefulStop(),
        ]


class BlindFit:
    """A fit of one stage, the blind one.

    Args:
        trainer: of that stage.
        volumes: that it is fitted to.
    """

    def __init__(self, trainer: Trainer, volumes: Volumes) -> None:
        self.trainer, self.volumes = trainer, volumes

    def run(self) -> None:
        """Fit, and write the model."""
        self.trainer.run()

    def forget(self) -> None:
        """Give up the volumes, whose room the result needs."""
        forget([self.volumes])


@dataclass
class RefinedFit:
    """A fit of three stages and a comparison.

    Args:
        trainer: of the blind stage.
        budget: of the blind stage, which knows its pace.
        plan: shares out steps and minutes.
        common: to the later stages.
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)`` that the blind stage is fitted to.
        whitening: of those volumes; the later stages see them without.
        measure: :func:`cryoshuffle.fit.noise_model.measure_noise_model` with its settings.
        compare: :func:`cryoshuffle.fit.comparison.compare_with_filter` with its settings.
        network: of the later stages, with the weights it begins with.
        loss: of the recorrupted stage.
        distilled_loss: of the distilled stage.
        windows: transforms from a volume to a window and its label.
        recorrupt: :class:`cryoshuffle.fit.recorruption.RandRecorruptd` with its settings.
        flips: mirrors input and target; behind the noise, as a mirrored volume has mirrored noise.
        held_out: slab that no step sees.
        learning_rate: of random weights; trained ones move in steps a quarter as large.
        strength: of the recorruption that distilled targets are made with, that of ``recorrupt``.
        draws: of the noise that a distilled target is averaged over.
        fit_share: of the fitted weights in the model, 0 to 1; the starting network has the rest.
        only_settle: apply the starting network without fitting it.

    Raises:
        SettingError: if ``fit_share`` is not between 0 and 1.
    """

    trainer: Trainer
    budget: Budget
    plan: StepPlan
    common: StageSettings
    volumes: Volumes
    whitening: Mapping[str, Any] | None
    measure: Callable[..., NoiseModel]
    compare: Callable[..., FilterComparison]
    network: nn.Module
    loss: EdgeGuidedLoss
    distilled_loss: EdgeGuidedLoss
    windows: Sequence[Transform]
    recorrupt: Callable[..., RandRecorruptd]
    flips: Transform
    held_out: HeldOutSlab
    learning_rate: float
    strength: float
    draws: int
    fit_share: float = 1.0
    only_settle: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.fit_share <= 1:
            raise SettingError(
                f"fit_share {self.fit_share}: give a number from 0, the starting network, to 1, the fitted one"
            )
        self._plain_volumes: Volumes = []

    def run(self) -> FilterComparison:
        """Fit, compare, and write the model.

        The starting network, where there is one, is compared as it is in two cases: no fit is asked for, or the noise
        model is not reliable, so that a fit would learn its errors.
        """
        self.trainer.run()
        # At the pace of its steps, before the noise is measured.
        distils = self.plan.distils(self.budget.steps_within)
        seed_everything(self.common.seed, 0)
        self._plain_volumes = without_whitening(self.volumes, self.whitening)
        start = self.plan.start
        # Random weights tell nothing of a volume.
        noise = self.measure(start=None if start is None else self.network)
        if start is not None and (self.only_settle or not noise.reliable):
            return self._compare(noise, start, None)
        if not noise.weighs_networks and is_first_process():
            logger.warning(
                "%s; whatever is fitted, the result will be the linear filter's: erase the beads, or leave out "
                "--cold-start",
                noise.doubt,
            )
        if not distils and self.plan.distils(lambda minutes: math.inf) and is_first_process():
            logger.warning(
                "the third stage, distilling, is left out: --minutes allow less than %d steps of the second, more "
                "minutes bring it back",
                self.plan.least_recorrupted_steps,
            )
        model = self._recorrupted_stage(noise, distils).run()
        if distils:
            model = self._distilled_stage(noise, model).run()
        return self._compare(noise, model, self.held_out)

    def forget(self) -> None:
        """Give up the volumes, whose room the result needs."""
        forget([self.volumes, self._plain_volumes])

    def _compare(self, noise: NoiseModel, model: str, held_out: HeldOutSlab | None) -> FilterComparison:
        return self.compare(
            volumes=self._plain_volumes, network=self.network, checkpoint=model, noise=noise, held_out=held_out,
            start=self.plan.start, fit_share=self.fit_share,
        )  # fmt: skip

    def _recorrupted_stage(self, noise: NoiseModel, distils: bool) -> FitStage:
        """The second stage: from windows with more noise to the same windows with less of it."""
        measured = {"spectrum": noise.spectrum, "levels": noise.levels}
        return FitStage(
            "refining",
            self._with_settings(),
            self.network,
            self.loss,
            self._plain_volumes,
            [*self.windows, self.recorrupt(**measured), self.flips],
            [CropHeldOutd("image", self.held_out), self.recorrupt(**measured, fixed=True)],
            self._learning_rate,
            self.plan.recorrupted_steps(distils),
            self.plan.recorrupted_minutes(distils),
            _RECORRUPTED,
            "state_refine.pt",
            later=("state_distil.pt", _DISTILLED),
            place=self.plan.place(2, self.common.steps_per_epoch, distils),
        )

    def _distilled_stage(self, noise: NoiseModel, teacher: str) -> FitStage:
        """The third stage: from the tomogram itself to what the second network makes of it on average."""
        common = self._with_settings()
        taught = partial(
            Distillation,
            copy_with_weights(self.network, teacher),
            noise.spectrum,
            strength=self.strength,
            levels=noise.levels,
        )
        return FitStage(
            "distilling",
            common,
            copy_with_weights(self.network, teacher),
            self.distilled_loss,
            self._plain_volumes,
            self.windows,
            [CropHeldOutd("image", self.held_out)],
            0.5 * self._learning_rate,
            self.plan.distilled_steps,
            self.plan.distilled_minutes,
            _DISTILLED,
            "state_distil.pt",
            seed_offset=1,
            prepare_batch=taught(common.train_inferer, draws=self.draws),
            prepare_scored=taught(common.inferer, draws=4 * self.draws, fixed=True),
            previews=False,
            place=self.plan.place(3, self.common.steps_per_epoch, True),
        )

    @property
    def _learning_rate(self) -> float:
        return self.learning_rate * (1.0 if self.plan.start is None else 0.25)

    def _with_settings(self) -> StageSettings:
        """What the stages have in common, with the settings that only they have."""
        own = {
            "warm_start": fingerprint(self.plan.start),
            "refine_learning_rate": self._learning_rate,
            "distil_steps": self.plan.distilled_steps,
            "distil_after": self.plan.least_recorrupted_steps,
            "strength": self.strength,
            "draws": self.draws,
        }
        return replace(self.common, settings={**self.common.settings, **own})


def begin_processes(device: torch.device) -> None:
    """Join the processes that share a fit, as torchrun started them: by NCCL on GPUs, by Gloo on CPUs.

    Args:
        device: of this process.
    """
    dist.init_process_group(backend="nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)


def across_processes(network: nn.Module, device: torch.device) -> nn.Module:
    """A network whose gradients are averaged over all processes.

    Args:
        network: of this process.
        device: of this process.
    """
    ids = [device] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network.to(device), device_ids=ids)
