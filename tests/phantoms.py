"""Volumes with a known truth, and the tomograms that tests make of them. Axes are (Z, Y, X)."""

from __future__ import annotations

import io
from pathlib import Path

import mrcfile
import numpy as np
import torch
import torch.nn.functional as F

REAL_TOMOGRAM = Path(__file__).parent / "data" / "cylindra_13pf_MT.mrc"
REAL_CELL = REAL_TOMOGRAM.with_name("mycoplasma_cell.mrc")
CONFIGS = Path(__file__).parent.parent / "configs"


def membranes_and_blobs(side: int, seed: int = 0) -> np.ndarray:
    """Bilayer vesicles and compact particles, mean 0 and standard deviation 1, float32."""
    random = np.random.default_rng(seed)
    z, y, x = np.indices((side,) * 3, dtype=np.float32)
    volume = np.zeros((side,) * 3, np.float32)
    for _ in range(6):
        centre, radius = random.uniform(0.2 * side, 0.8 * side, 3), random.uniform(0.1 * side, 0.25 * side)
        depth = np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2) - radius
        volume += np.exp(-((depth + 2) ** 2) / 1.28) + np.exp(-((depth - 2) ** 2) / 1.28)
    for _ in range(500 * side**3 // 128**3):
        centre, radius = random.uniform(0, side, 3), random.uniform(1.5, 4)
        low = np.maximum(0, (centre - 3 * radius).astype(int))
        high = np.minimum(side, (centre + 3 * radius).astype(int) + 1)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        squared = (z[box] - centre[0]) ** 2 + (y[box] - centre[1]) ** 2 + (x[box] - centre[2]) ** 2
        volume[box] += 1.2 * np.exp(-squared / (2 * (0.6 * radius) ** 2))
    return (volume - volume.mean()) / volume.std()


def with_white_noise(truth: np.ndarray, snr: float, seed: int = 1) -> np.ndarray:
    """A phantom under white noise of power 1 / snr, float32."""
    noise = np.random.default_rng(seed).standard_normal(truth.shape).astype(np.float32)
    return (truth + noise / np.sqrt(snr)).astype(np.float32)


def write_mrc(path: Path, volume: np.ndarray, voxel_size: float = 10.0) -> Path:
    """A tomogram as an MRC volume."""
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(volume)
        mrc.set_volume()
        mrc.voxel_size = voxel_size
    return path


def small_tomogram(path: Path, shape: tuple[int, int, int] = (24, 48, 36), seed: int = 0) -> Path:
    """A tomogram that a few steps can be run on: a noisy ball."""
    z, y, x = np.indices(shape, dtype=np.float32)
    middle = [n / 2 for n in shape]
    ball = (z - middle[0]) ** 2 + (y - middle[1]) ** 2 + (x - middle[2]) ** 2 < (min(shape) / 3) ** 2
    noise = np.random.default_rng(seed).standard_normal(shape)
    return write_mrc(path, (100 + 10 * (ball + noise)).astype(np.float32))


def is_valid_mrc(path: Path) -> bool:
    """Whether mrcfile's validator finds nothing wrong with a file."""
    found = io.StringIO()
    valid = mrcfile.validate(path, print_file=found)
    assert valid, found.getvalue()
    return bool(valid)


def turned_about_z(volume: torch.Tensor, degrees: float) -> torch.Tensor:
    """A volume turned in its XY plane, as when the tilt axis does not lie along the grid."""
    cos, sin = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    grid = F.affine_grid(torch.tensor([[[cos, -sin, 0], [sin, cos, 0]]]), [1, *volume.shape], align_corners=False)
    return F.grid_sample(volume[None], grid, align_corners=False, mode="bicubic", padding_mode="reflection")[0]
