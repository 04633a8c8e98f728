"""Membranes by a ridge filter and by a small U-Net of MONAI, and which of them a tilt series can show."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from scipy import ndimage
from torch import Tensor, nn

SIGMAS_ANGSTROM = (20.0, 30.0, 40.0, 60.0)
WINDOW = 48
_BATCH = 2
_NEAR = 3
_LARGEST_TILT_DEG = 60.0


def _components(volume: np.ndarray, sigma: float) -> np.ndarray:
    """The Hessian behind a Gaussian, ``(Z, Y, X, 3, 3)``."""
    hessian = np.empty((*volume.shape, 3, 3), dtype=np.float32)
    for i, j in combinations_with_replacement(range(3), 2):
        order = [0, 0, 0]
        order[i] += 1
        order[j] += 1
        hessian[..., i, j] = hessian[..., j, i] = ndimage.gaussian_filter(volume, sigma, order)
    return hessian


def ridges(volume: np.ndarray, sigma: float) -> np.ndarray:
    """How much a place looks like a bright sheet: curved across it and flat within.

    Args:
        volume: ``(Z, Y, X)``.
        sigma: of the Gaussian, voxels.
    """
    curvatures = torch.linalg.eigvalsh(torch.from_numpy(_components(volume, sigma))).numpy()
    return np.maximum(-curvatures[..., 0] - np.abs(curvatures[..., 1]), 0.0)


def visible(membrane: np.ndarray) -> np.ndarray:
    """What of a membrane tilts of up to 60 degrees about y show: where its normal lies outside the missing wedge.

    Args:
        membrane: True within, ``(Z, Y, X)``.
    """
    slopes = np.stack(np.gradient(ndimage.gaussian_filter(membrane.astype(np.float32), 1.0)))
    tensor = np.empty((int(membrane.sum()), 3, 3), dtype=np.float32)
    for i, j in combinations_with_replacement(range(3), 2):
        tensor[:, i, j] = tensor[:, j, i] = ndimage.gaussian_filter(slopes[i] * slopes[j], 2.0)[membrane]
    normal = np.linalg.eigh(tensor)[1][:, :, 2]
    shown = np.zeros_like(membrane)
    shown[membrane] = np.abs(normal[:, 0]) <= math.tan(math.radians(_LARGEST_TILT_DEG)) * np.abs(normal[:, 2])
    return shown


def around(part: np.ndarray) -> np.ndarray:
    """A mask and what is near it, 3 voxels."""
    return ndimage.binary_dilation(part, iterations=_NEAR) if part.any() else part


def train(volume: np.ndarray, truth: np.ndarray, ignored: np.ndarray, steps: int) -> nn.Module:
    """Fit a U-Net to the membranes of one volume; the same gives the same.

    Args:
        volume: ``(Z, Y, X)``.
        truth: True within a membrane.
        ignored: True where it does not matter.
        steps: of Adam, two windows each, of which half have a membrane in their middle.
    """
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    network = UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="batch")
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    channels = torch.from_numpy(np.stack([_standardised(volume), truth, ~ignored]).astype(np.float32))
    places = np.argwhere(truth & ~ignored)
    rare = torch.tensor(float((~truth & ~ignored).sum()) / max(1, len(places))).sqrt()
    for _ in range(steps):
        batch = torch.stack([_window(channels, places if n % 2 else None, random) for n in range(_BATCH)])
        image, label, weight = batch.split(1, dim=1)
        loss = nn.functional.binary_cross_entropy_with_logits(network(image), label, weight, pos_weight=rare)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _standardised(volume: np.ndarray) -> np.ndarray:
    return (volume - volume.mean()) / volume.std()


def _window(channels: Tensor, places: np.ndarray | None, random: np.random.Generator) -> Tensor:
    """A window anywhere, or about one of some places, mirrored at random."""
    sides = channels.shape[1:]
    window = [min(WINDOW, n // 4 * 4) for n in sides]
    if places is None or not len(places):
        corner = [int(random.integers(n - w + 1)) for n, w in zip(sides, window, strict=True)]
    else:
        place = places[random.integers(len(places))]
        corner = [int(np.clip(p - w // 2, 0, n - w)) for p, w, n in zip(place, window, sides, strict=True)]
    box = tuple(slice(c, c + w) for c, w in zip(corner, window, strict=True))
    return channels[(slice(None), *box)].flip([axis for axis in (1, 2, 3) if random.integers(2)])


def segment(network: nn.Module, volume: np.ndarray) -> np.ndarray:
    """The scores of a trained network, ``(Z, Y, X)``."""
    image = torch.from_numpy(_standardised(volume).astype(np.float32))[None, None]
    with torch.no_grad():
        scores = sliding_window_inference(image, (WINDOW,) * 3, 1, network, overlap=0.25, mode="gaussian")
    return scores[0, 0].numpy()
