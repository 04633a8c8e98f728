"""A fit to one tomogram: its windows, stages, handlers and checkpoint, and the comparison with a filter."""

from __future__ import annotations

from cryoshuffle.fit.checkpoint import FitCheckpoint
from cryoshuffle.fit.comparison import compare_with_filter
from cryoshuffle.fit.data import (
    WindowDataset,
    choose_preset,
    collate_one,
    epoch_count,
    epoch_length,
    forget,
    image_paths,
    seed_everything,
)
from cryoshuffle.fit.distillation import Distillation
from cryoshuffle.fit.graphs import GraphedInferer
from cryoshuffle.fit.handlers import (
    BlindnessGuard,
    Budget,
    ClipGradients,
    EpochSeeds,
    GracefulStop,
    KeptMemory,
    ListedOutput,
    named,
)
from cryoshuffle.fit.noise_model import measure_noise_model
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.risk import HeldOutRisk, lower_is_better
from cryoshuffle.fit.sampling import FitRegiond, HeldOutSlab
from cryoshuffle.fit.starting import begin_with, copy_with_weights, fingerprint
from cryoshuffle.fit.transforms import CropHeldOutd, RandLatticeFlipd, RandLatticeWindowd

__all__ = [
    "BlindnessGuard",
    "Budget",
    "ClipGradients",
    "CropHeldOutd",
    "Distillation",
    "EpochSeeds",
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
    "WindowDataset",
    "begin_with",
    "choose_preset",
    "collate_one",
    "compare_with_filter",
    "copy_with_weights",
    "epoch_count",
    "epoch_length",
    "fingerprint",
    "forget",
    "image_paths",
    "lower_is_better",
    "measure_noise_model",
    "named",
    "seed_everything",
]
