"""A network over a whole volume: windows, streaming, models."""

from __future__ import annotations

from cryoshuffle.inference.checkpoints import ModelLoader, load_network, load_plain, read_model_settings
from cryoshuffle.inference.error_map import count_passes
from cryoshuffle.inference.inferers import HaloWindowInferer, PrecisionInferer
from cryoshuffle.inference.mergers import WindowCleaner, WindowMerger
from cryoshuffle.inference.transform import Denoise, Denoised

__all__ = [
    "Denoise",
    "Denoised",
    "HaloWindowInferer",
    "ModelLoader",
    "PrecisionInferer",
    "WindowCleaner",
    "WindowMerger",
    "count_passes",
    "load_network",
    "load_plain",
    "read_model_settings",
]
