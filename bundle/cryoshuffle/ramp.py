"""What back-projection does to noise and signal across the tilt axis.

Each tilt image fills a plane of the spectrum that holds the tilt axis. Next to the axis the planes overlap: there all
tilts add up to the signal, and the ramp leaves little of the noise. Further out the planes lie apart, and what one of
them holds no other tilt confirms. Axes are (Z, Y, X).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Where across the axis the ramp is read off, cycles per voxel: the signal is weak there, and interpolation has not yet
# damped the noise.
_ANCHOR = (0.12, 0.17)
_NEXT_TO_AXIS = 0.03
# More power next to the axis than this share of the anchor's is no ramp's.
_MOST_AT_AXIS = 0.7
# Excess over the ramp that is none yet, and from which on it is all signal.
_EXCESS = (1.1, 1.25)
# Cycles per voxel: coarse across the tilt axis, fine along it.
BAND_ACROSS = (0.03, 0.09)
BAND_ALONG = (0.3, 0.5)
_FINE_ACROSS = 0.2
_STRETCH = 8
_PADDED = 512
_MODULATION = 0.35
_LARGEST_DEG = 50.0
_SMOOTH_DEG = 4.0
_STEP_DEG = 0.25


def _radius(grid: int) -> Tensor:
    """Distance from the tilt axis on a grid of frequencies across it, cycles per voxel."""
    frequency = torch.fft.fftfreq(grid, dtype=torch.float64)
    return (frequency[:, None].square() + frequency.square()).sqrt()


def _filled(power: Tensor) -> Tensor:
    """Where across the axis the tilts have been: not in the missing wedge."""
    grid = len(power)
    frequency = torch.fft.fftfreq(grid, dtype=torch.float64)
    direction = torch.atan2(frequency[:, None].expand(grid, grid), frequency.expand(grid, grid)) % math.pi
    sector = (direction / math.pi * 36).long().clamp(0, 35)
    ring = (_radius(grid) > 0.2) & (_radius(grid) < 0.4)
    mean = torch.stack([power[ring & (sector == number)].mean() for number in range(36)])
    return (mean > 0.5 * mean.median())[sector]


def hold_to_ramp(power: Tensor, scale: float = 1.0) -> Tensor:
    """The power of noise across the tilt axis, held to what the ramp leaves of white noise.

    Noise of back-projection grows in proportion to the distance from the axis. What a spectrum has next to the axis
    beyond that is signal, however far along the axis it was measured.

    Args:
        power: across the axis, ``(n, n)``, zero frequency first; an upper bound of the noise's.
        scale: of the ramp beside what is read off at the anchor, up to 1, which itself holds signal.

    Returns:
        The same where it does not grow as a ramp's does (a SIRT-like filter), nowhere more than given.
    """
    radius, filled = _radius(len(power)), _filled(power)

    def mean(low: float, high: float) -> tuple[float, float]:
        ring = filled & (radius >= low) & (radius < high)
        return float(power[ring].mean()), float(radius[ring].mean())

    at_axis, (anchor, place) = mean(0.0, _NEXT_TO_AXIS)[0], mean(*_ANCHOR)
    if not at_axis < _MOST_AT_AXIS * anchor:
        return power
    # The spectrum is smooth over about one step of the grid, so it does not come down to 0 at the axis.
    ramp = scale * anchor / place * radius.clamp(min=0.5 / len(power))
    share = ((power / ramp - _EXCESS[0]) / (_EXCESS[1] - _EXCESS[0])).clamp(0, 1)
    return torch.where(radius < place, torch.minimum(power, (1 - share) * power + share * ramp), power)


def quietest_section(volume: Tensor, normal: int, beam: int) -> float:
    """The least power of a stretch of sections across the beam, where noise is seen next to the axis of the ramp.

    Back-projection lays the noise evenly along the beam, but the specimen ends above and below: what the quietest
    sections hold is an upper bound of the noise. Looked at is what is coarse across the tilt axis, where the ramp
    leaves the least noise, and fine along it.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        beam: number of the axis of the beam.

    Returns:
        Mean power over :data:`BAND_ACROSS` and :data:`BAND_ALONG`, on the scale of the mean of a power spectrum along
        the beam.
    """
    values = volume.movedim((beam, normal), (0, 1)).float()
    tapers = [torch.hann_window(n, periodic=False) for n in values.shape[1:]]
    taper = tapers[0][:, None] * tapers[1]
    along, across = torch.fft.fftfreq(values.shape[1]).abs()[:, None], torch.fft.rfftfreq(values.shape[2])
    band = (along >= BAND_ALONG[0]) & (across >= BAND_ACROSS[0]) & (across < BAND_ACROSS[1])
    fine = (along >= BAND_ALONG[0]) & (across >= _FINE_ACROSS)
    planes = [torch.fft.rfft2((plane - plane.mean()) * taper).abs().square() for plane in values]
    power, level = (
        torch.stack([plane[part].mean() for plane in planes]) / taper.square().sum() for part in (band, fine)
    )
    # Padding is no specimen and no noise either. Of the rest the noise may be uneven, and shows where it is finest.
    whole = level > 0.5 * level.median()
    power = power[whole] * level[whole].mean() / level[whole]
    stretch = min(_STRETCH, len(power))
    return float(F.avg_pool1d(power[None, None], stretch, 1).min())


def power_next_to_axis(noise: Tensor) -> float:
    """What a spectrum of noise lets expect of :func:`quietest_section`.

    Args:
        noise: ``(n, n, n)``, the tilt axis first, then the beam, zero frequency first.
    """
    frequency = torch.fft.fftfreq(len(noise), dtype=torch.float64).abs()
    across = (frequency >= BAND_ACROSS[0]) & (frequency < BAND_ACROSS[1])
    return float(noise.mean(dim=1)[frequency >= BAND_ALONG[0]][:, across].mean())


def tilt_overlap(volume: Tensor, normal: int, grid: int) -> Tensor:
    """How far the planes of the tilts overlap, by the distance from the tilt axis: 1 where all do, 0 where none does.

    Where planes lie apart the power goes up and down from plane to plane. So the overlap is 1 less what the power
    varies with the direction, over and above chance.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        grid: side of the result.

    Returns:
        ``(grid, grid)``, zero frequency first.
    """
    values = volume.movedim(normal, 0)
    values = values - values.mean()
    for axis in (1, 2):
        taper = torch.hann_window(values.shape[axis], periodic=False)
        values = values * taper.reshape([-1 if a == axis else 1 for a in range(3)])
    n = max(_PADDED, 2 * max(values.shape[1:]))
    power = torch.zeros(n, n)
    for part in values.split(16):
        power += torch.fft.fft2(part, s=(n, n)).abs().square().sum(dim=0)
    angle = torch.deg2rad(torch.arange(-_LARGEST_DEG, _LARGEST_DEG, _STEP_DEG))
    radii = torch.arange(0.02, 0.5, 0.02)
    # In units of grid_sample, zero frequency in the middle.
    place = torch.stack([radii[:, None] * torch.cos(angle), radii[:, None] * torch.sin(angle)], dim=-1) * 2
    place = place * n / (n - 1) + 1 / (n - 1)
    shifted = torch.fft.fftshift(power)[None, None]
    rings = F.grid_sample(shifted, place[None], align_corners=True)[0]
    width = _SMOOTH_DEG / _STEP_DEG
    line = torch.exp(-0.5 * (torch.arange(-3 * width, 3 * width + 1) / width).square())
    around = F.conv1d(rings.transpose(0, 1), (line / line.sum())[None, None], padding=len(line) // 2)
    inner = slice(int(width), -int(width))
    varied = (rings.transpose(0, 1) / around)[:, 0, inner].var(dim=1)
    chance = 0.6 / len(values)
    modulation = (varied - chance).clamp(min=0).sqrt()
    overlap = (1 - modulation / _MODULATION).clamp(0, 1).cummin(dim=0).values
    radius = _radius(grid).float().flatten()
    step = ((radius - radii[0]) / (radii[1] - radii[0])).clamp(0, len(radii) - 1.001)
    left = step.long()
    found = overlap[left] * (1 - step + left) + overlap[left + 1] * (step - left)
    return found.reshape(grid, grid).double()
