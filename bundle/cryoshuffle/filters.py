"""The linear filter that a network must beat: a Gaussian whose width and gain follow from the measured noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import SettingError

WIDTHS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.2, 2.4, 2.6, 2.8, 3.1, 3.4, 4.0)


def gaussian_reach(sigma: float) -> int:
    """How far a Gaussian of this width looks to either side, voxels."""
    return max(1, round(3 * sigma))


def _line(sigma: float) -> Tensor:
    """A Gaussian along a line."""
    side = gaussian_reach(sigma)
    offsets = torch.arange(-side, side + 1, dtype=torch.float32)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


def gaussian(volume: Tensor, sigma: float) -> Tensor:
    """A volume smoothed by a Gaussian; beyond its borders it is 0.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        sigma: width, voxels.

    Raises:
        SettingError: if sigma is not positive.
    """
    if not sigma > 0:
        raise SettingError(f"width of the Gaussian is {sigma}: give more than 0")
    line, volume = _line(sigma).to(volume), volume[None, None]
    for axis in range(3):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(line), len(line) // 2
        volume = F.conv3d(volume, line.reshape(shape), padding=padding)
    return volume[0, 0]


@dataclass(frozen=True)
class FilterChoice:
    """The best of a family of linear filters.

    Attributes:
        sigma: width of the Gaussian, voxels.
        gain: it is multiplied by.
        explained: estimate of how much nearer it comes to the signal than 0 does, mean square over a volume.
    """

    sigma: float
    gain: float
    explained: float

    def __call__(self, volume: Tensor) -> Tensor:
        """The filtered volume, ``(Z, Y, X)``."""
        return self.gain * gaussian(volume, self.sigma)


def _noise_seen(spectrum: Tensor, sigma: float) -> float:
    """Covariance of noise before and after a Gaussian."""
    side, line = spectrum.shape[0], _line(sigma).double()
    grid = torch.zeros(side, dtype=torch.float64)
    grid.index_add_(0, (torch.arange(len(line)) - len(line) // 2) % side, line)
    wave = torch.fft.fft(grid).real
    return float((wave[:, None, None] * wave[:, None] * wave * spectrum.double()).mean())


def choose_filter(
    volumes: Sequence[Tensor], spectrum: Tensor, error: float = 0.0, widths: Sequence[float] = WIDTHS
) -> FilterChoice:
    """The Gaussian, and the gain, with the smallest risk that noise of a known spectrum lets expect.

    For a linear filter the risk follows from the noisy volume and the spectrum of its noise alone (Stein's
    unbiased estimate). Where the spectrum is uncertain the noise is taken for stronger than it was measured: a filter
    that smooths too much loses detail, one that smooths too little shows noise as structure.

    Args:
        volumes: standardised, each ``(Z, Y, X)``.
        spectrum: of their noise, as of :func:`cryoshuffle.recorruption.noise_spectrum`.
        error: of the spectrum, relative.
        widths: to choose from, voxels.

    Raises:
        SettingError: if a width is not positive.
    """
    count = sum(volume.numel() for volume in volumes)
    found: list[FilterChoice] = []
    for sigma in sorted(widths):
        with_itself = with_noisy = 0.0
        for volume in volumes:
            smooth = gaussian(volume, sigma).double()
            with_itself += float(smooth.square().sum()) / count
            with_noisy += float((smooth * volume.double()).sum()) / count
        with_signal = with_noisy - (1 + error) * _noise_seen(spectrum, sigma)
        gain = min(1.0, max(0.0, with_signal / with_itself)) if with_itself > 0 else 0.0
        found.append(FilterChoice(sigma, gain, 2 * gain * with_signal - gain**2 * with_itself))
    # Where no filter explains anything the widest does the least harm.
    return max(reversed(found), key=lambda choice: choice.explained)
