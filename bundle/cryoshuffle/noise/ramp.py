"""What back-projection does to noise and signal across the tilt axis.

Each tilt image fills a plane of the spectrum that holds the tilt axis. Next to the axis the planes overlap: there all
tilts add up to the signal, and the ramp leaves little of the noise. Further out the planes lie apart, and what one of
them holds no other tilt confirms. Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.noise.axes import interpolated, line_along

# Where across the axis the ramp is read off, cycles per voxel: the signal is weak there, and interpolation has not yet
# damped the noise.
_ANCHOR = (0.12, 0.17)
_NEXT_TO_AXIS = 0.03
# More power next to the axis than this share of the anchor's is no ramp's.
_MOST_AT_AXIS = 0.7
# Excess over the ramp that is none yet, and from which on it is all signal.
_EXCESS = (1.1, 1.25)
_LEAST_SLOPE = 0.5
# Where the damping is read off, and the most that it may be at the anchor.
_DAMPED = ((0.19, 0.22), (0.29, 0.32))
_MOST_DAMPED = 0.2
# Cycles per voxel: where the slope is read off, across the tilt axis and along it.
_LINE = (0.03, 0.12)
ALONG = (0.3, 0.5)
_SECTORS = 10
# Width of a shell of spatial frequencies; rings in which its power is averaged; and the frequency from which on the
# signal is alike in all directions: at lower ones there is what is larger than a molecule.
_SHELL = 1 / 48
_RINGS = 12
_ISOTROPIC = 0.1
_LEAST_POINTS = 4
_PADDED = 512
_MODULATION = 0.35
LARGEST_DEG = 50.0
_SMOOTH_DEG = 4.0
_STEP_DEG = 0.25
# Planes under a Hann window are up to 1.6 times as wide, the thicker the specimen, so they seem to overlap further out.
_WINDOW_WIDENS = 1.25
# Excess over the ramp beyond the anchor that is none yet, and from which on it is all signal; to what distance that is
# asked; and how interpolation damps the ramp, with the square of the distance.
_BEYOND = (1.25, 1.5)
_FARTHEST = 0.17
_DAMPING = 1.9
# Where a SIRT-like filter is told from the ramp, cycles per voxel: from the first ring without signal to where windows
# of the ramp cut it off, and the width of a ring. Corners that it may have; damping that it is told apart from; and the
# misfit, over that of the ramp alone, that takes it.
_SIRT_RINGS = (0.12, 0.36, 0.02)
_CORNERS = (0.003, 0.1, 50)
_DAMPINGS = (7.0, 71)
_FITS_BETTER = 0.5
# What two measurements of the same noise differ by, relative, without being called different.
_ALIKE = 0.05


def polar(beam: int, other: int) -> tuple[Tensor, Tensor]:
    """Distance from the tilt axis, cycles per voxel, and direction from the untilted image's plane, degrees.

    Args:
        beam: side of a grid of frequencies along the beam, voxels.
        other: along the axis across beam and tilt axis.

    Shape:
        ``(beam, other)`` each, zero frequency first.
    """
    one, two = (torch.fft.fftfreq(side, dtype=torch.float64) for side in (beam, other))
    direction = torch.rad2deg(torch.atan2(one[:, None].expand(beam, other), two.expand(beam, other)))
    # A direction and its opposite are one.
    return (one[:, None].square() + two.square()).sqrt(), (direction + 90) % 180 - 90


def _filled(power: Tensor) -> Tensor:
    """Where across the axis the tilts have been: not in the missing wedge."""
    grid = len(power)
    frequency = torch.fft.fftfreq(grid, dtype=torch.float64)
    direction = torch.atan2(frequency[:, None].expand(grid, grid), frequency.expand(grid, grid)) % math.pi
    sector = (direction / math.pi * 36).long().clamp(0, 35)
    radius = polar(grid, grid)[0]
    ring = (radius > 0.2) & (radius < 0.4)
    mean = torch.stack([power[ring & (sector == number)].mean() for number in range(36)])
    return (mean > 0.5 * mean.median())[sector]


def _blurred(radius: Tensor, reach: int) -> Tensor:
    """A spectrum as it is when correlation is kept over ``reach`` voxels only."""
    grid = len(radius)
    index = torch.arange(1 - reach, reach)
    taper = 0.5 + 0.5 * torch.cos(math.pi * index.double() / reach)
    kept = torch.zeros(grid, grid, dtype=torch.float64)
    kept[(index % grid)[:, None], index % grid] = taper[:, None] * taper
    blurred: Tensor = torch.fft.fft2(torch.fft.ifft2(radius) * kept).real
    return blurred


def hold_to_ramp(power: Tensor, slope: float = math.inf) -> Tensor:
    """The power of noise across the tilt axis, held to what the ramp leaves of white noise.

    Noise of back-projection grows in proportion to the distance from the axis. What a spectrum has next to the axis
    beyond that is signal, however far along the axis it was measured.

    Args:
        power: across the axis, ``(n, n)``, zero frequency first; an upper bound of the noise's.
        slope: of the ramp, as of :func:`ramp_slope`. Taken where it is less than the slope at the anchor without what
            interpolation damps it by, which holds signal too, and at least half of that.

    Returns:
        The same where it does not grow as a ramp's does (a SIRT-like filter), nowhere more than given.
    """
    known = _ramp_at_anchor(power, slope)
    if known is None:
        return power
    steepness, place = known
    radius, reach, filled = polar(len(power), len(power))[0], len(power) // 4, _filled(power)
    # Nearer to the axis than that reach resolves, the wedge that is empty beside it is blurred in.
    near = filled & (radius < 1 / reach)
    ramp = steepness * torch.where(near, _blurred(radius * filled, reach), _blurred(radius, reach))
    share = ((power / ramp - _EXCESS[0]) / (_EXCESS[1] - _EXCESS[0])).clamp(0, 1)
    return torch.where(radius < place, torch.minimum(power, (1 - share) * power + share * ramp), power)


def excess_beyond_anchor(power: Tensor, slope: float = math.inf) -> tuple[Tensor, Tensor]:
    """What a spectrum has beyond the anchor of the ramp, and above it: signal, where the tilts still overlap.

    Large voxels hold signal there; so the anchor is too high, and the slope read off next to the axis is needed.

    Args:
        power: across the axis, ``(n, n)``, zero frequency first; an upper bound of the noise's.
        slope: of the ramp, as of :func:`hold_to_ramp`.

    Returns:
        How sure it is that what lies over the ramp is no noise, from 0 to 1 and 0 up to the anchor; and the power of
        the noise if it is, nowhere more than given; ``(n, n)`` each.
    """
    known = _ramp_at_anchor(power, slope)
    if known is None:
        return torch.zeros_like(power), power
    steepness, place = known
    radius = polar(len(power), len(power))[0]
    ramp = steepness * radius * (1 - _DAMPING * radius.clamp(max=0.5).square()).square()
    sure = ((power / ramp.clamp(min=1e-30) - _BEYOND[0]) / (_BEYOND[1] - _BEYOND[0])).clamp(0, 1)
    sure = sure * ((radius >= place) & (radius < _FARTHEST))
    return sure, power - sure * (power - ramp).clamp(min=0)


def _ramp_at_anchor(power: Tensor, slope: float) -> tuple[float, float] | None:
    """Slope of the ramp, and how far from the axis it is read off; None where noise does not grow as a ramp's does."""
    radius, filled = polar(len(power), len(power))[0], _filled(power)

    def mean(low: float, high: float) -> tuple[float, float]:
        ring = filled & (radius >= low) & (radius < high)
        return float(power[ring].mean()), float(radius[ring].mean())

    at_axis, (anchor, place) = mean(0.0, _NEXT_TO_AXIS)[0], mean(*_ANCHOR)
    if not at_axis < _MOST_AT_AXIS * anchor:
        return None
    steepest = anchor / place * _undamped(mean, place)
    return min(steepest, max(_LEAST_SLOPE * steepest, slope)), place


def _undamped(mean: Callable[[float, float], tuple[float, float]], place: float) -> float:
    """What interpolation has left of the ramp's slope at a distance from the axis, as a factor that undoes it.

    The slope falls with the square of the distance; how fast is read off further out, where there is no signal.

    Args:
        mean: power and distance of a ring between two distances.
        place: the distance.
    """
    (near, one), (far, two) = (mean(*ring) for ring in _DAMPED)
    ratio = (far / two) / max(near / one, 1e-30)
    bend = (1 - ratio) / max(two**2 - ratio * one**2, 1e-30)
    return 1 / (1 - min(_MOST_DAMPED, max(0.0, bend * place**2)))


def missed_noise(power: Tensor, other: Tensor) -> float:
    """How much noise a second measurement across the tilt axis misses, where there is next to no signal.

    Noise that fades faster along the axis next to it than far from it is weaker at the finest detail there than it is
    taken for. Around the anchor of the ramp both measurements hold noise alone, so there it shows.

    Args:
        power: across the axis, ``(n, n)``, zero frequency first.
        other: the same, told by finer detail along the axis.

    Returns:
        What to multiply ``other`` by, at least 1.
    """
    radius = polar(len(power), len(power))[0]
    ring = _filled(power) & (radius >= _ANCHOR[0]) & (radius < _ANCHOR[1])
    return max(1.0, float(power[ring].mean() / other[ring].mean().clamp(min=1e-30)) - _ALIKE)


def ramp_slope(volume: Tensor, normal: int, beam: int, shape: Tensor | None = None) -> tuple[float, float]:
    """How fast noise grows with the distance from the tilt axis, where all tilts overlap.

    There the power of the signal hardly depends on the distance, so the power of the tomogram is a floor of signal
    and a line of noise on it: the slope of a straight line fitted to it is the noise's. What is fine along the axis is
    looked at, where the signal is weakest.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        beam: number of the axis of the beam.
        shape: of the noise along the tilt axis, mean 1, ``(n, n, n)``, the tilt axis first, then the beam, zero
            frequency first; None for white noise.

    Returns:
        Power per distance in cycles per voxel, the mean along the tilt axis, on the scale of the mean of a power
        spectrum; and its standard error, from the scatter between directions. Both are infinite where the volume is
        too small to tell.
    """
    along, power = _power(volume, normal, beam)
    power = power[(along >= ALONG[0]) & (along < ALONG[1])].mean(dim=0).double()
    radius, direction = polar(*power.shape)
    if shape is not None:
        frequency, place = torch.fft.fftfreq(len(shape), dtype=torch.float64).abs(), polar(*shape.shape[1:])
        near = (place[0] > 0) & (place[0] < _LINE[1]) & (place[1].abs() < LARGEST_DEG)
        power = power / shape[(frequency >= ALONG[0]) & (frequency < ALONG[1])][:, near].mean()
    ring = (radius >= _LINE[0]) & (radius < _LINE[1])

    def fitted(low: float, high: float) -> float | None:
        part = ring & (direction >= low) & (direction < high)
        if int(part.sum()) < _LEAST_POINTS:
            return None
        line = torch.stack([torch.ones_like(radius[part]), radius[part]], dim=1)
        return float(torch.linalg.lstsq(line, power[part][:, None]).solution[1])

    edges = torch.linspace(-LARGEST_DEG, LARGEST_DEG, _SECTORS + 1).tolist()
    sectors = [slope for low, high in pairwise(edges) if (slope := fitted(low, high)) is not None]
    whole = fitted(-LARGEST_DEG, LARGEST_DEG)
    if whole is None or len(sectors) < 2:
        return math.inf, math.inf
    return whole, float(torch.tensor(sectors).std()) / len(sectors) ** 0.5


def sirt_corner(volume: Tensor, normal: int, beam: int, passed: Tensor | None = None) -> float:
    """Up to which distance from the tilt axis a SIRT-like filter is a ramp; beyond, it passes all alike.

    Few iterations of SIRT pass ``r (1 - exp(-c / r))`` at the distance r, about, where weighted back-projection passes
    r; c is the corner. Noise of the ramp grows in proportion to r but for what interpolation damps, that of the filter
    falls. Which of them it does shows where there is no signal, far from the axis.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        beam: number of the axis of the beam.
        passed: what another filter has left of the power, by spatial frequency from 0 to 0.5; None for all.

    Returns:
        Cycles per voxel; infinite for a ramp.
    """
    along, power = _power(volume, normal, beam)
    along, power = along[(along >= ALONG[0]) & (along < ALONG[1])], power[(along >= ALONG[0]) & (along < ALONG[1])]
    radius, direction = polar(*power.shape[1:])
    if passed is None:
        power = power.double().mean(dim=0)
    else:
        whole = (along.double()[:, None, None].square() + radius.square()).sqrt()
        known = whole < 0.5
        power = power / interpolated(passed, 2 * whole * (len(passed) - 1))
        power = (power * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    low, high, width = _SIRT_RINGS
    number = ((radius - low) / width).floor().long()
    rings = [(number == n) & (direction.abs() < LARGEST_DEG) for n in range(round((high - low) / width))]
    if not all(int(ring.sum()) >= _LEAST_POINTS for ring in rings):
        return math.inf
    place = torch.stack([radius[ring].mean() for ring in rings])
    seen = torch.stack([power[ring].mean() for ring in rings]).clamp(min=1e-30).log() - place.log()
    first, last, count = _CORNERS
    corners = torch.logspace(math.log10(first), math.log10(last), count, dtype=torch.float64)
    corners = torch.cat([corners, torch.tensor([math.inf], dtype=torch.float64)])
    # Of the ways to write the damping one that puts the corner too low rather than too high: next to the axis that
    # takes a little signal for noise, and not noise for signal.
    damped = 1 - torch.linspace(0, *_DAMPINGS, dtype=torch.float64)[:, None] * place.square()
    model = 2 * (sirt_share(place, corners[:, None]).log()[:, None] + damped.log())
    misfit = (seen - model).std(dim=-1).amin(dim=1)
    best = int(misfit.argmin())
    return float(corners[best]) if float(misfit[best]) < _FITS_BETTER * float(misfit[-1]) else math.inf


def sirt_share(radius: Tensor, corner: float | Tensor) -> Tensor:
    """What a SIRT-like filter passes at a distance from the tilt axis over what the ramp does (:func:`sirt_corner`).

    Args:
        radius: cycles per voxel.
        corner: of the filter.

    Shape:
        that of ``radius``.
    """
    return -torch.expm1(-corner / radius.clamp(min=1e-9))


def undo_sirt(volume: Tensor, normal: int, corner: float) -> Tensor:
    """A volume as weighted back-projection has it, from one behind a SIRT-like filter.

    Args:
        volume: ``(Z, Y, X)``.
        normal: number of the tilt axis.
        corner: of the filter, see :func:`sirt_corner`.

    Shape:
        that of ``volume``.
    """
    values = volume.movedim(normal, 0)
    one, two = (torch.fft.fftfreq(n) for n in values.shape[1:])
    radius = (one[:, None].square() + two[: values.shape[2] // 2 + 1].square()).sqrt()
    spectrum = torch.fft.rfft2(values) / sirt_share(radius, corner)
    return torch.fft.irfft2(spectrum, s=values.shape[1:]).movedim(0, normal)


def _power(volume: Tensor, normal: int, beam: int) -> tuple[Tensor, Tensor]:
    """Frequencies along the tilt axis, and the power at each of them and each place across it, beam first."""
    values = volume.movedim((normal, beam), (0, 1)).float()
    values = values - values.mean()
    weight = 1.0
    for axis, side in enumerate(values.shape):
        taper = torch.hann_window(side, periodic=False)
        values = values * line_along(taper, axis)
        weight *= float(taper.square().sum())
    return torch.fft.rfftfreq(values.shape[0]), torch.fft.rfftn(values, dim=(1, 2, 0)).abs().square() / weight


def plane_power(volume: Tensor, normal: int, side: int | None = None) -> Tensor:
    """Power across the tilt axis, the sum over the planes there, each tapered.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        side: of the grid, voxels, to which planes are padded; None for theirs.

    Returns:
        ``(side, side)``, or the two other sides, zero frequency first.
    """
    values = volume.movedim(normal, 0)
    values = values - values.mean()
    for axis in (1, 2):
        values = values * line_along(torch.hann_window(values.shape[axis], periodic=False), axis)
    shape = tuple(values.shape[1:]) if side is None else (side, side)
    power = torch.zeros(shape)
    for part in values.split(16):
        power += torch.fft.fft2(part, s=shape).abs().square().sum(dim=0)
    return power


def most_signal(volume: Tensor, normal: int, beam: int) -> tuple[Tensor, Tensor]:
    """The most power that the signal can have, by spatial frequency, whatever the direction.

    Molecules lie in all directions, so their power depends on the spatial frequency alone, and what the reconstruction
    takes of it depends on the distance from the tilt axis, where it is none. Next to the axis the ramp leaves next to
    none of the noise: along lines of one frequency the power is that of the signal and a line of noise on it, and where
    that line meets the axis there is signal alone. Where noise does not vanish at the axis it counts as signal.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        beam: number of the axis of the beam.

    Returns:
        Spatial frequencies, cycles per voxel, and the power at each, with its standard error added, on the scale of the
        mean of a power spectrum. Frequencies that the volume is too small for, or where the signal may be another in
        another direction, are left out.
    """
    along, power = _power(volume, normal, beam)
    radius, direction = polar(*power.shape[1:])
    near = (radius < _LINE[1]) & (direction.abs() < LARGEST_DEG)
    lines = power[:, near].double()
    distance = radius[near].expand_as(lines)
    whole = (along.double()[:, None].square() + distance.square()).sqrt()
    shell = (whole / _SHELL).long()
    ring = (distance / _LINE[1] * _RINGS).long().clamp(max=_RINGS - 1)
    shells = int(shell.max()) + 1

    def summed(values: Tensor) -> Tensor:
        total = torch.zeros(shells * _RINGS, dtype=torch.float64)
        return total.index_add_(0, (shell * _RINGS + ring).flatten(), values.flatten()).reshape(shells, _RINGS)

    count = summed(torch.ones_like(lines))
    mean, place = (summed(values) / count.clamp(min=1) for values in (lines, distance))
    frequencies, most = [], []
    for number in range(math.ceil(_ISOTROPIC / _SHELL), min(shells, int(0.5 / _SHELL))):
        known = count[number] >= _LEAST_POINTS
        if int(known.sum()) < _LEAST_POINTS:
            continue
        weight = count[number, known].sqrt() / mean[number, known].clamp(min=1e-30)
        line = torch.stack([torch.ones_like(weight), place[number, known]], dim=1) * weight[:, None]
        inverse = torch.linalg.inv(line.T @ line)
        crossing = (inverse @ line.T @ (weight * mean[number, known]))[0]
        frequencies.append((number + 0.5) * _SHELL)
        most.append(max(0.0, float(crossing + inverse[0, 0].sqrt())))
    return torch.tensor(frequencies, dtype=torch.float64), torch.tensor(most, dtype=torch.float64)


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
    planes = volume.shape[normal]
    n = max(_PADDED, 2 * max(side for axis, side in enumerate(volume.shape) if axis != normal))
    power = plane_power(volume, normal, n)
    angle = torch.deg2rad(torch.arange(-LARGEST_DEG, LARGEST_DEG, _STEP_DEG))
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
    chance = 0.6 / planes
    modulation = (varied - chance).clamp(min=0).sqrt()
    overlap = (1 - modulation / _MODULATION).clamp(0, 1).cummin(dim=0).values
    radius = polar(grid, grid)[0].float().flatten()
    return (
        interpolated(overlap, (_WINDOW_WIDENS * radius - radii[0]) / (radii[1] - radii[0])).reshape(grid, grid).double()
    )
