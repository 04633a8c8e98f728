"""Fourier shells: how far two volumes agree at each spatial frequency, and how strong a volume is there.

Frequencies are in cycles per voxel, the same along every axis, so a volume need not be a cube. Shells are as wide as
the longest side allows and end at 0.5. Borders are tapered, since a volume does not go on periodically.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from cryoshuffle.scores.metrics import check_comparable

EDGE = 0.125


def _taper(side: int) -> Tensor:
    """1 inside, falling as a half Hann window over :data:`EDGE` of the side at each border."""
    width = max(1, round(EDGE * side))
    rise = 0.5 - 0.5 * torch.cos(torch.pi * (torch.arange(width, dtype=torch.float64) + 0.5) / width)
    taper = torch.ones(side, dtype=torch.float64)
    taper[:width] *= rise
    taper[side - width :] *= rise.flip(0)
    return taper


def _spectrum(volume: Tensor) -> Tensor:
    """Half of the Fourier transform of a tapered volume; white noise of variance 1 has power 1 everywhere."""
    mean = sum(float(plane.sum(dtype=torch.float64)) for plane in volume) / volume.numel()
    kind = torch.float64 if volume.dtype == torch.float64 else torch.float32
    tapered = torch.empty(volume.shape, dtype=kind)
    tapers = [_taper(n) for n in volume.shape]
    plane = tapers[1][:, None] * tapers[2]
    for z, (section, weight) in enumerate(zip(volume, tapers[0], strict=True)):
        tapered[z] = (section.double() - mean) * (plane * weight)
    scale = 1.0
    for taper in tapers:
        scale *= float(taper.square().sum()) ** -0.5
    return torch.fft.rfftn(tapered).mul_(scale)


def _sums(shape: Sequence[int], a: Tensor, b: Tensor) -> tuple[list[float], Tensor]:
    """Frequencies of the shells, and in each the number of coefficients, the powers and the cross-power.

    Args:
        shape: of the volumes (Z, Y, X).
        a: spectrum of one volume, (Z, Y, X // 2 + 1).
        b: of the other.

    Returns:
        Frequencies, and ``(4, shells)``: count, power of ``a``, of ``b``, real part of the cross-power.
    """
    longest = max(shape)
    shells = longest // 2
    kz, ky = (torch.fft.fftfreq(n, dtype=torch.float64) for n in shape[:2])
    kx = torch.fft.rfftfreq(shape[2], dtype=torch.float64)
    # The half of a real transform that is left out mirrors the one that is there, but for its first (and last) plane.
    weight = torch.full((len(kx),), 2.0, dtype=torch.float64)
    weight[0] = 1.0
    if shape[2] % 2 == 0:
        weight[-1] = 1.0
    sums = torch.zeros(4, shells + 2, dtype=torch.float64)
    for z, one, two in zip(kz, a, b, strict=True):
        k = (z**2 + ky[:, None] ** 2 + kx**2).sqrt()
        shell = (k * longest).round().long().clamp(max=shells + 1)
        shell[k > 0.5] = shells + 1
        values = (torch.ones_like(k), one.abs().double().square(), two.abs().double().square(), (one * two.conj()).real)
        for row, value in zip(sums, values, strict=True):
            row += torch.bincount(shell.ravel(), (weight * value).ravel(), shells + 2)
    return [i / longest for i in range(1, shells + 1)], sums[:, 1:-1]


def fourier_shell_correlation(a: Tensor, b: Tensor) -> tuple[list[float], list[float]]:
    """The correlation of two volumes at each spatial frequency.

    Args:
        a: one volume, ``(Z, Y, X)``.
        b: the other.

    Returns:
        Frequencies of the shells, cycles per voxel, and the correlation in each, -1 to 1. Where a volume has no power
        it is 0.

    Invariant:
        gain (above 0) and offset of either volume do not matter.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.

    Source:
        Harauz & van Heel 1986, "Exact filters for general geometry three dimensional reconstruction".
    """
    check_comparable(first=a, second=b)
    frequencies, (_, power_a, power_b, cross) = _sums(a.shape, _spectrum(a), _spectrum(b))
    norm = (power_a * power_b).sqrt()
    return frequencies, torch.where(norm > 0, cross / norm, 0.0).clamp(-1, 1).tolist()


def shell_power(volume: Tensor) -> tuple[list[float], list[float]]:
    """The power of a volume at each spatial frequency; of white noise it is the variance, in all shells.

    Args:
        volume: ``(Z, Y, X)``.

    Returns:
        Frequencies of the shells, cycles per voxel, and the mean power in each, grey values squared.

    Raises:
        InputError: if the volume is not three-dimensional, has voxels that are not finite, or is constant.
    """
    check_comparable(volume=volume)
    spectrum = _spectrum(volume)
    frequencies, (count, power, _, _) = _sums(volume.shape, spectrum, spectrum)
    return frequencies, (power / count).tolist()


def crossing(frequencies: Sequence[float], values: Sequence[float], threshold: float = 0.5) -> float | None:
    """The first frequency at which a curve falls below a threshold, interpolated between shells.

    Args:
        frequencies: of the shells, rising.
        values: of the curve.
        threshold: to fall below.

    Returns:
        In the unit of ``frequencies``; the resolution is the voxel size over it. None if the curve is nowhere above
        the threshold, or stays above it to the end.

    Example:
        >>> crossing([0.1, 0.2, 0.3], [0.9, 0.7, 0.3])
        0.25
        >>> crossing([0.1, 0.2, 0.3], [0.9, 0.8, 0.7]) is None
        True
    """
    for (k, above), (next_k, below) in pairwise(zip(frequencies, values, strict=True)):
        if above >= threshold > below:
            return k + (next_k - k) * (above - threshold) / (above - below)
    return None
