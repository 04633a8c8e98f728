"""The linear filter that a network must beat: a Gaussian or the Wiener filter, both from the measured noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import SettingError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.lattice import BlindSet, Triple
from cryoshuffle.noise.axes import line_along
from cryoshuffle.noise.spectrum import ENOUGH, smooth_cross_spectrum, smooth_spectrum

WIDTHS = (0.5, 0.6, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.2, 2.4, 2.6, 2.8, 3.1, 3.4, 4.0)
WIENER_REACH = 16
# Widths, voxels, of the Gaussians between which the bands lie, fine to coarse.
BAND_EDGES = (0.7, 1.4, 2.8, 5.6)
_NARROW = 0.5**0.5
# Of the mean power of a tomogram: the least that a prediction from it is divided by.
_LEAST_POWER = 0.01
_PREDICTIONS = 3
# Largest side of what a Gaussian is chosen by beside a Wiener filter, voxels.
_SMOOTHED = 128
Widths = tuple[float, float, float]


def as_widths(sigma: float | Sequence[float]) -> Widths:
    """Widths of a Gaussian along (Z, Y, X), voxels, from one number for all axes or three.

    Raises:
        SettingError: if there are not one or three, or one is not positive.
    """
    values = list(sigma) if isinstance(sigma, Sequence) else [sigma] * 3
    if len(values) != 3 or not all(value > 0 for value in values):
        raise SettingError(f"width of the Gaussian is {sigma}: give more than 0, once or along z, y, x")
    return float(values[0]), float(values[1]), float(values[2])


def gaussian_reach(sigma: float | Sequence[float]) -> Triple:
    """How far a Gaussian of these widths looks to either side along (Z, Y, X), voxels."""
    z, y, x = (max(1, round(3 * width)) for width in as_widths(sigma))
    return z, y, x


def _line(sigma: float) -> Tensor:
    """A Gaussian along a line."""
    side = max(1, round(3 * sigma))
    offsets = torch.arange(-side, side + 1, dtype=torch.float32)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    return weights / weights.sum()


def gaussian(volume: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """A volume smoothed by a Gaussian; beyond its borders it is 0.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        sigma: width, voxels; one for all axes or three along (Z, Y, X).

    Raises:
        SettingError: if a width is not positive.
    """
    widths, volume = as_widths(sigma), volume[None, None]
    for axis, width in enumerate(widths):
        line = _line(width).to(volume)
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(line), len(line) // 2
        volume = F.conv3d(volume, line.reshape(shape), padding=padding)
    return volume[0, 0]


def _fast_side(side: int) -> int:
    """The next side that a Fourier transform is fast for: no prime factor above 5."""
    while True:
        rest = side
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return side
        side += 1


def convolve(volume: Tensor, kernel: Tensor) -> Tensor:
    """A volume convolved with a kernel of odd sides; beyond its borders it is 0.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        kernel: its middle is the voxel itself, ``(z, y, x)``.

    Shape:
        that of ``volume``.
    """
    reach = [k // 2 for k in kernel.shape]
    sides = [_fast_side(max(n + r, 2 * r + 1)) for n, r in zip(volume.shape, reach, strict=True)]
    placed = torch.zeros(sides, device=volume.device)
    z, y, x = ((torch.arange(-r, r + 1, device=volume.device) % n) for r, n in zip(reach, sides, strict=True))
    placed[z[:, None, None], y[None, :, None], x] = kernel.to(placed)
    response = torch.fft.rfftn(volume.float(), s=sides) * torch.fft.rfftn(placed)
    result: Tensor = torch.fft.irfftn(response, s=sides)
    return result[: volume.shape[0], : volume.shape[1], : volume.shape[2]]


def convolve_channels(volumes: Tensor, kernel: Tensor) -> Tensor:
    """:func:`convolve` for each volume of a batch.

    Args:
        volumes: ``(B, C, Z, Y, X)``.
        kernel: as there.

    Shape:
        that of ``volumes``.
    """
    return torch.stack([torch.stack([convolve(one, kernel) for one in channels]) for channels in volumes])


def smoothed(volumes: Tensor, sigma: float) -> Tensor:
    """Volumes smoothed by a Gaussian, at their borders by the part of it that is inside.

    Args:
        volumes: ``(B, C, Z, Y, X)``.
        sigma: width, voxels.

    Raises:
        SettingError: if the width is not positive.
    """
    inside = gaussian(torch.ones_like(volumes[0, 0]), sigma)
    return torch.stack([torch.stack([gaussian(one, sigma) / inside for one in channels]) for channels in volumes])


@dataclass(frozen=True)
class FilterChoice:
    """The best of a family of linear filters.

    Attributes:
        sigma: widths of the Gaussian along (Z, Y, X), voxels.
        gain: it is multiplied by.
        explained: estimate of how much nearer it comes to the signal than 0 does, mean square over a volume.
        kernel: of the Wiener filter that takes the place of the Gaussian, ``(z, y, x)``; None for the Gaussian.
    """

    sigma: Widths
    gain: float
    explained: float
    kernel: Tensor | None = field(default=None, compare=False, repr=False)

    def __call__(self, volume: Tensor) -> Tensor:
        """The filtered volume, ``(Z, Y, X)``."""
        return filtered(volume, self.config())

    def config(self) -> dict[str, Any]:
        """As plain values and a tensor, for the inferer and the checkpoint."""
        known = {} if self.kernel is None else {"kernel": self.kernel}
        return {"sigma": list(self.sigma), "gain": self.gain, **known}

    def describe(self) -> str:
        """What it is, for log and report."""
        if self.kernel is not None:
            return "the Wiener filter of the measured spectra"
        z, y, x = self.sigma
        return f"a Gaussian of {z:.2g} × {y:.2g} × {x:.2g} voxels along z, y, x"


def filtered(volume: Tensor, config: Mapping[str, Any]) -> Tensor:
    """A volume behind the filter of :meth:`FilterChoice.config`.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        config: ``kernel``, or ``sigma`` and ``gain`` of a Gaussian.

    Shape:
        that of ``volume``.
    """
    if config.get("kernel") is not None:
        return convolve(volume, config["kernel"])
    return float(config["gain"]) * gaussian(volume, config["sigma"])


def filter_reach(config: Mapping[str, Any]) -> Triple:
    """How far the filter of :meth:`FilterChoice.config` looks to either side along (Z, Y, X), voxels.

    With ``linear_part`` as far as that does, if it looks further.
    """
    kernels = [config[name] for name in ("kernel", "linear_part") if config.get(name) is not None]
    if kernels:
        z, y, x = (max(int(k) // 2 for k in sides) for sides in zip(*(kernel.shape for kernel in kernels), strict=True))
        return z, y, x
    return gaussian_reach(config["sigma"])


def _noise_seen(spectrum: Tensor, sigma: Widths) -> float:
    """Covariance of noise before and after a Gaussian."""
    seen = spectrum.double()
    for axis, width in enumerate(sigma):
        side, line = spectrum.shape[axis], _line(width).double()
        grid = torch.zeros(side, dtype=torch.float64)
        grid.index_add_(0, (torch.arange(len(line)) - len(line) // 2) % side, line)
        seen = seen * line_along(torch.fft.fft(grid).real, axis)
    return float(seen.mean())


def shape_for(blind_set: BlindSet, order: Sequence[int] = (0, 1, 2)) -> Widths:
    """How the widths of a filter go with each other along (Z, Y, X), for noise that asks for a blind set.

    A blind plane tells the tilt axis. Along it every tilt image has all detail, and back-projection strengthens no
    noise: the filter is narrowest. Along the beam the missing wedge leaves the least: there it is twice as wide,
    between them in between. Measured on simulated and real tomograms (``docs/explain/method.md``); a family with three
    widths to choose lets the smallest error of the spectrum choose, and ends worse. Without a tilt axis all are equal.

    Args:
        blind_set: the tomogram's.
        order: of its axes in which the beam comes first, as of :func:`cryoshuffle.noise.wedge.beam_first`.
    """
    if blind_set.tilt_axis is None:
        return 1.0, 1.0, 1.0
    widths = [1.0] * 3
    widths[order[0]], widths[blind_set.tilt_axis] = 1 / _NARROW, _NARROW
    return widths[0], widths[1], widths[2]


def choose_filter(
    volumes: Sequence[Tensor],
    spectrum: Tensor,
    error: float = 0.0,
    widths: Sequence[float] = WIDTHS,
    shape: Sequence[float] = (1.0, 1.0, 1.0),
) -> FilterChoice:
    """The Gaussian, and the gain, with the smallest risk that noise of a known spectrum lets expect.

    For a linear filter the risk follows from the noisy volume and the spectrum of its noise alone (Stein's
    unbiased estimate). Where the spectrum is uncertain the noise is taken for stronger than it was measured: a filter
    that smooths too much loses detail, one that smooths too little shows noise as structure.

    Args:
        volumes: standardised, each ``(Z, Y, X)``.
        spectrum: of their noise, as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.
        error: of the spectrum, relative.
        widths: to choose from, voxels.
        shape: each is multiplied by, along (Z, Y, X), as of :func:`shape_for`.

    Raises:
        SettingError: if a width is not positive.
    """
    count = sum(volume.numel() for volume in volumes)
    choices: list[FilterChoice] = []
    for width in sorted(widths):
        sigma = as_widths([width * factor for factor in shape])
        with_itself = with_noisy = 0.0
        for volume in volumes:
            smooth = gaussian(volume, sigma).double()
            with_itself += float(smooth.square().sum()) / count
            with_noisy += float((smooth * volume.double()).sum()) / count
        with_signal = with_noisy - (1 + error) * _noise_seen(spectrum, sigma)
        gain = min(1.0, max(0.0, with_signal / with_itself)) if with_itself > 0 else 0.0
        choices.append(FilterChoice(sigma, gain, 2 * gain * with_signal - gain**2 * with_itself))
    # Where no filter explains anything the widest does the least harm.
    return max(reversed(choices), key=lambda choice: choice.explained)


def _mirrored_mean(spectrum: Tensor) -> Tensor:
    """The mean of a spectrum and its mirror images: no axis has a direction that counts more than the other."""
    for axis in range(3):
        spectrum = (spectrum + spectrum.flip(axis).roll(1, axis)) / 2
    return spectrum


def bands(volume: Tensor) -> list[Tensor]:
    """A volume in bands of detail, fine to coarse; with what is coarser than all it is their sum.

    Args:
        volume: ``(Z, Y, X)``.

    Returns:
        Differences of neighbours among the volume and its Gaussians of :data:`BAND_EDGES`, as many as those.
    """
    smoothed = [volume, *(gaussian(volume, width) for width in BAND_EDGES)]
    return [finer - coarser for finer, coarser in pairwise(smoothed)]


def band_noise(spectrum: Tensor) -> list[tuple[float, float]]:
    """How much power noise of a spectrum has in each of :func:`bands`, fine to coarse.

    Args:
        spectrum: as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.

    Returns:
        For each band the power, and how many voxels count as one: the power that is measured over n voxels of such
        noise has a relative standard error of ``sqrt(2 * voxels / n)``.
    """
    side = spectrum.shape[0]
    responses = [torch.ones_like(spectrum, dtype=torch.float64)]
    for width in BAND_EDGES:
        line = _line(width).double()
        grid = torch.zeros(side, dtype=torch.float64)
        grid.index_add_(0, (torch.arange(len(line)) - len(line) // 2) % side, line)
        response = torch.fft.fft(grid).real
        responses.append(response[:, None, None] * response[:, None] * response)
    passed = [spectrum.double() * (finer - coarser).square() for finer, coarser in pairwise(responses)]
    return [(float(power.mean()), float(power.square().mean() / power.mean().square())) for power in passed]


def band_kernel(shares: Sequence[float]) -> Tensor:
    """The kernel that keeps a share of each band, and nothing of what is coarser than all of them.

    Args:
        shares: of :func:`bands`, fine to coarse, one for each of :data:`BAND_EDGES`.

    Shape:
        ``(k, k, k)``, odd.

    Raises:
        SettingError: if there are more or fewer shares.
    """
    if len(shares) != len(BAND_EDGES):
        raise SettingError(f"{len(shares)} shares of bands are given: give {len(BAND_EDGES)}, fine to coarse")
    reach = gaussian_reach(BAND_EDGES[-1])[0]
    kernel = torch.zeros((2 * reach + 1,) * 3)
    kernel[reach, reach, reach] = shares[0]
    for width, share, coarser in zip(BAND_EDGES, shares, [*shares[1:], 0.0], strict=True):
        line = _line(width)
        inner = slice(reach - len(line) // 2, reach + len(line) // 2 + 1)
        kernel[inner, inner, inner] += (coarser - share) * line[:, None, None] * line[:, None] * line
    return kernel


def wiener_kernel(total: Tensor, noise: Tensor, reach: int = WIENER_REACH) -> Tensor:
    """The kernel of the filter with the smallest mean squared error, of signal and noise with known spectra.

    Args:
        total: power spectrum of the tomogram, as of :func:`cryoshuffle.noise.spectrum.smooth_spectrum`.
        noise: of its noise, on the same grid.
        reach: to either side, voxels; the kernel is tapered towards its ends, and made stronger by what that costs.

    Shape:
        ``(2 reach + 1,) * 3``.
    """
    total, noise = _mirrored_mean(total), _mirrored_mean(noise)
    response = ((total - noise) / total).clamp(0, 1)
    return _short_kernel(response, total, reach)


def prediction_kernel(result: Tensor, volume: Tensor, reach: int = WIENER_REACH) -> Tensor:
    """The kernel that predicts a result from its volume best: what of a network's result is linear in the tomogram.

    What remains of the result is correlated with no voxel of the volume within reach.

    Args:
        result: of a volume, ``(Z, Y, X)``.
        volume: ``(Z, Y, X)``.
        reach: as of :func:`wiener_kernel`.

    Shape:
        ``(2 reach + 1,) * 3``.

    Raises:
        InputError: if a side is shorter than 8 voxels.
    """
    total = smooth_spectrum(volume)
    # Where a tomogram has next to no power, in the missing wedge for instance, chance would decide.
    divisor = total.clamp(min=_LEAST_POWER * float(total.mean()))
    kernel, rest = torch.zeros((2 * reach + 1,) * 3), result
    # Spectra are smooth and kernels short, so a little is left each time.
    for _ in range(_PREDICTIONS):
        kernel = kernel + _short_kernel(smooth_cross_spectrum(rest, volume) / divisor, total, reach)
        rest = result - convolve(volume, kernel)
    return kernel


def _short_kernel(response: Tensor, total: Tensor, reach: int) -> Tensor:
    """The kernel of a response, tapered towards its ends; ``total`` is the power that its strength is right for."""
    grid = torch.fft.ifftn(response.double()).real
    offsets = torch.arange(-reach, reach + 1)
    taper = 0.5 + 0.5 * torch.cos(math.pi * offsets.double() / (reach + 1))
    z, y, x = (offsets % side for side in grid.shape)
    kernel = grid[z[:, None, None], y[:, None], x] * taper[:, None, None] * taper[:, None] * taper
    return (_gain(kernel, total, total * response) * kernel).float()


def _gain(kernel: Tensor, total: Tensor, wanted: Tensor) -> float:
    """What a kernel is multiplied by for the smallest mean squared error.

    Args:
        kernel: of an even filter, ``(k, k, k)``.
        total: power spectrum of what it filters.
        wanted: the part of that power that is the signal's.
    """
    around = torch.zeros_like(total, dtype=torch.float64)
    z, y, x = (torch.arange(-(k // 2), k // 2 + 1) % side for k, side in zip(kernel.shape, total.shape, strict=True))
    around[z[:, None, None], y[:, None], x] = kernel.double()
    passed = torch.fft.fftn(around).real
    return float((wanted * passed).sum() / (total * passed.square()).sum().clamp(min=1e-30))


def choose_linear(
    volumes: Sequence[Tensor],
    spectrum: Tensor,
    error: float = 0.0,
    shape: Sequence[float] = (1.0, 1.0, 1.0),
) -> FilterChoice:
    """The Wiener filter of the measured spectra, or the best Gaussian where there are too few voxels to measure them.

    The Wiener filter has a number for each frequency, the Gaussian has two for all. So small volumes, whose spectra
    are chance, get the Gaussian.

    Args:
        volumes: standardised, each ``(Z, Y, X)``.
        spectrum: of their noise, as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.
        error: of the spectrum, relative.
        shape: of the Gaussian along (Z, Y, X), as of :func:`shape_for`.
    """
    if sum(volume.numel() for volume in volumes) < ENOUGH:
        return choose_filter(volumes, spectrum, error, shape=shape)
    # The two numbers of the Gaussian need no more voxels than these, and smoothing takes memory.
    chosen = choose_filter([central_crop(volume, _SMOOTHED) for volume in volumes], spectrum, error, shape=shape)
    total = torch.stack([smooth_spectrum(volume) for volume in volumes]).mean(dim=0)
    kernel = wiener_kernel(total, (1 + error) * spectrum.double())
    # Detail is left out for fear that it is noise. What is kept is as strong as the noise by itself lets expect.
    return replace(chosen, kernel=kernel * max(1.0, _gain(kernel, total, total - spectrum.double())))
