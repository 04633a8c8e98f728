"""A fit to one tomogram: its windows, stages, handlers and checkpoint, and the comparison with a filter."""

from __future__ import annotations

from cryoshuffle.fit.checkpoint import FitCheckpoint, drop_states
from cryoshuffle.fit.comparison import compare_with_filter
from cryoshuffle.fit.data import (
    Epochs,
    WindowDataset,
    as_datalist,
    choose_effort,
    choose_preset,
    collate_one,
    image_paths,
    seed_everything,
)
from cryoshuffle.fit.graphs import GraphedInferer
from cryoshuffle.fit.handlers import (
    AveragedWeights,
    BlindnessGuard,
    Budget,
    ClipGradients,
    EpochSeeds,
    GracefulStop,
    KeptMemory,
    ListedOutput,
    averaged_copy,
)
from cryoshuffle.fit.noise_model import measure_noise_model
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.risk import HeldOutRisk, lower_is_better
from cryoshuffle.fit.sampling import FitRegiond, HeldOutSlab
from cryoshuffle.fit.stages import BlindFit, RefinedFit, StageSettings, StepPlan, across_processes, begin_processes
from cryoshuffle.fit.starting import begin_with, starting_checkpoint
from cryoshuffle.fit.transforms import CropHeldOutd, RandLatticeFlipd, RandLatticeWindowd

__all__ = [
    "AveragedWeights",
    "BlindFit",
    "BlindnessGuard",
    "Budget",
    "ClipGradients",
    "CropHeldOutd",
    "EpochSeeds",
    "Epochs",
    "FitCheckpoint",
    "FitRegiond",
    "GracefulStop",
    "GraphedInferer",
    "HeldOutRisk",
    "HeldOutSlab",
    "KeptMemory",
    "ListedOutput",
    "RandLatticeFlipd",
    "RandLatticeWindowd",
    "RandRecorruptd",
    "RefinedFit",
    "StageSettings",
    "StepPlan",
    "WindowDataset",
    "across_processes",
    "as_datalist",
    "averaged_copy",
    "begin_processes",
    "begin_with",
    "choose_effort",
    "choose_preset",
    "collate_one",
    "compare_with_filter",
    "drop_states",
    "image_paths",
    "lower_is_better",
    "measure_noise_model",
    "seed_everything",
    "starting_checkpoint",
]
