"""Recorruption: the noise of a tomogram, known as a spectrum, lets a network that hides nothing learn without halves.

With a field z of the noise's own spectrum, the noise in ``x + a z`` and in ``x - z / a`` is uncorrelated, as in true
halves: a network trained from one to the other learns the signal. What makes it possible is the blind network, whose
residual tells how strong the noise is where signal and noise overlap. Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import InputError
from cryoshuffle.lattice import BlindSet
from cryoshuffle.noise.axes import interpolated, line_along, tapered
from cryoshuffle.noise.ramp import (
    LARGEST_DEG,
    excess_beyond_anchor,
    hold_to_ramp,
    missed_noise,
    most_signal,
    polar,
    ramp_slope,
    sirt_corner,
    tilt_overlap,
    undo_sirt,
)
from cryoshuffle.noise.turn import Turn
from cryoshuffle.noise.wedge import beam_first

GRID = 64
REACH = 16
BAND = 0.35
HIGHEST = 0.44
_MARGIN = 0.05
_RING = 0.3
_ANGLES = 180
_WIDTH_DEG = 2.0
_LAGS = 4
_LEAST = 0.02
# Standard errors that the slope of the ramp may be less than it seems by chance.
_DOUBT = 1.0
# Next to the tilt axis the signal is not alike in all directions: cells have membranes. There that law adds at most a
# fifth to the noise.
_UNLIKE, _MOST_ADDED = 0.1, 1.2
# Shares of signal that are weak, and no longer.
_WEAK = (0.15, 0.4)
# Voxels that tell signal from noise by their spectrum alone; on fewer it is chance. Parts of a real cell of 74,000
# voxels and more, and simulations, are filtered better with than without what follows from that.
ENOUGH = 50_000
# Steps of the frequency in which a filter is told, distance from the tilt axis and frequency from which on there is
# little signal, rounds of the fit, and share of the power at Nyquist below which it was a filter.
FILTER_BINS = 16
_NEAR = 0.1
_SIGNAL = 0.12
_ALTERNATIONS = 200
# Steps of spatial frequency next to the signal that tell a filter where signal hides it.
_EXTRAPOLATED = 4
_FILTERED = 0.05
_FINE = (0.3, 0.5)


def smooth_spectrum(volume: Tensor, reach: int = REACH) -> Tensor:
    """Power spectrum of a volume as far as correlation over at most ``reach`` voxels makes it.

    Args:
        volume: ``(Z, Y, X)``, of any size.
        reach: lags kept, voxels, but not more than a quarter of a side; those near the end are weighted down.

    Returns:
        Power at each frequency of a grid of :data:`GRID` along every axis, zero frequency first; its mean is the
        variance.

    Raises:
        InputError: if a side is shorter than 8 voxels.
    """
    return _positive(smooth_cross_spectrum(volume, volume, reach), volume)


def _positive(spectrum: Tensor, volume: Tensor) -> Tensor:
    """A spectrum without the values below next to nothing of a volume's power that its scatter gives it."""
    return spectrum.clamp(min=1e-6 * float(volume.double().var(correction=0)) + 1e-30)


def half_spectrum(spectrum: Tensor) -> Tensor:
    """The half of a power spectrum that tells all of it, as of a real field: ``(G, G, G) -> (G, G, G // 2 + 1)``."""
    return spectrum[..., : spectrum.shape[-1] // 2 + 1].clone()


def full_spectrum(half: Tensor) -> Tensor:
    """The power spectrum that :func:`half_spectrum` is of: ``(G, G, G // 2 + 1) -> (G, G, G)``, G even."""
    side = half.shape[0]
    opposite = -torch.arange(side) % side
    return torch.cat([half, half[opposite][:, opposite][..., 1 : side // 2].flip(-1)], -1)


def smooth_cross_spectrum(one: Tensor, other: Tensor, reach: int = REACH) -> Tensor:
    """What two volumes have in common at each frequency, as :func:`smooth_spectrum` for one.

    Args:
        one: ``(Z, Y, X)``, of any size.
        other: of the same shape.
        reach: as there.

    Returns:
        The real part of the cross-spectrum on the same grid; its mean is the covariance, and it may be negative.

    Raises:
        InputError: if a side is shorter than 8 voxels.
    """
    if min(one.shape) < 8:
        raise InputError(
            f"a volume of {tuple(one.shape)} voxels is too small to measure the spectrum of its noise, "
            "which takes 8 along each axis: add --no-refine"
        )
    sides = [n + reach for n in one.shape]
    first = torch.fft.rfftn(one.double() - one.double().mean(), s=sides)
    second = first if other is one else torch.fft.rfftn(other.double() - other.double().mean(), s=sides)
    lags = torch.fft.irfftn((first * second.conj()).real, s=sides)
    result = torch.zeros(GRID, GRID, GRID, dtype=torch.float64)
    kept = [min(reach, n // 4) for n in one.shape]
    near = [torch.arange(1 - k, k) for k in kept]
    for axis, index in enumerate(near):
        lags = lags.index_select(axis, index % sides[axis])
        taper = 0.5 + 0.5 * torch.cos(math.pi * index / kept[axis])
        weight = taper / (one.shape[axis] - index.abs())
        lags = lags * line_along(weight, axis)
    z, y, x = (index % GRID for index in near)
    result[z[:, None, None], y[None, :, None], x[None, None, :]] = lags
    return torch.fft.fftn(result).real


def _profile_along_tilt_axis(volume: Tensor, normal: int) -> Tensor:
    """How noise is distributed along the tilt axis, for each direction across it, (GRID, n, n), mean 1 along it.

    Each tilt image fills one central plane of the spectrum, and was interpolated by a shift of its own: so the
    spectrum along the tilt axis depends on the direction across it, and on nothing else. Far out across the axis there
    is no signal, so it is measured there.
    """
    values, tapers = tapered(volume.movedim(normal, 0))
    across = torch.fft.fftn(values, dim=(1, 2))
    one, two = (torch.fft.fftfreq(n, dtype=torch.float64) for n in values.shape[1:])
    ring = (one[:, None].square() + two.square()).sqrt() > _RING
    direction = torch.atan2(one[:, None].expand_as(ring), two.expand_as(ring))[ring] % math.pi
    lines = across[:, ring]
    n = len(lines)
    lags = min(_LAGS, n // 4)
    taper = tapers[0]
    covariance = torch.stack(
        [
            (lines[k:] * lines[: n - k].conj()).real.sum(dim=0) / (taper[k:] * taper[: n - k]).sum()
            for k in range(lags + 1)
        ]
    )
    centres = (torch.arange(_ANGLES, dtype=torch.float64) + 0.5) * math.pi / _ANGLES
    apart = (direction - centres[:, None] + math.pi / 2) % math.pi - math.pi / 2
    near = torch.exp(-0.5 * (apart / math.radians(_WIDTH_DEG)).square())
    correlation = near @ covariance.T
    correlation = correlation / correlation[:, :1]
    waves = torch.cos(2 * math.pi * torch.arange(1, lags + 1, dtype=torch.float64)[:, None] * torch.fft.fftfreq(GRID))
    spectrum = (1 + 2 * (correlation[:, 1:] @ waves)).clamp(min=_LEAST)
    spectrum = spectrum / spectrum.mean(dim=1, keepdim=True)
    grid = torch.fft.fftfreq(GRID, dtype=torch.float64)
    angle = torch.atan2(grid[:, None].expand(GRID, GRID), grid.expand(GRID, GRID)) % math.pi
    return spectrum[(angle / math.pi * _ANGLES).long().clamp(0, _ANGLES - 1)].permute(2, 0, 1)


def _lesser(estimates: Sequence[Tensor], side: int) -> Tensor:
    """The least of several estimates of a power, each ``(GRID, GRID)``, at each frequency.

    Which is less is asked of neighbourhoods, and one has to be less by more than chance: the less of single values
    would be too small by their scatter.
    """
    half = GRID // (2 * min(REACH, side // 4))

    def nearby(power: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(power[None, None], (half,) * 4, mode="circular"), 2 * half + 1, stride=1)[0, 0]

    least, *others = estimates
    for other in others:
        least = torch.where(nearby(other) < (1 - _MARGIN) * nearby(least), other, least)
    return least


def noise_spectrum(
    volume: Tensor,
    residual: Tensor,
    blind_set: BlindSet,
    denoised: Tensor | None = None,
    around: Tensor | None = None,
    order: Sequence[int] | None = None,
    resampled: bool = False,
) -> Tensor:
    """Power spectrum of the noise of a tomogram.

    ``plane``
        Across the plane's normal, the tilt axis, the power is that of high frequencies along the axis, where there is
        little signal, or of the blind residual, whichever is less there and nearby: signal that is left makes each of
        them too large. Along the axis it is what interpolation made of each tilt image. Small voxels have no signal at
        high frequencies, large ones do: with a denoised volume what it explains of the tomogram is left out. Were
        it the mean of all signals that the tomogram allows, then the tomogram times what is left of it would be the
        noise, at every frequency. A SIRT-like filter is divided out before, and the share of the noise kept.
    ``voxel``
        White, with the variance of the highest frequencies or of the residual, whichever is less.
    other
        That of the blind residual; signal left in it counts as noise.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        residual: the tomogram less its blind prediction.
        blind_set: of the prediction.
        denoised: the tomogram as a network that sees everything has it, without a fit to it; None without such.
        around: more of the tomogram than the volume, for what takes many voxels to tell; None for no more.
        order: of the axes in which the beam comes first; None for that of
            :func:`cryoshuffle.noise.wedge.beam_first`.
        resampled: the volume was interpolated after it was reconstructed, which filters it, be it a little.

    Returns:
        Power on a grid of :data:`GRID` along (Z, Y, X), as of :func:`smooth_spectrum`.

    Raises:
        InputError: if the volume is too small.
    """
    normal = blind_set.tilt_axis
    if order is None:
        order = (0, 1, 2) if normal is None else beam_first(volume, normal)
    if tuple(order) != (0, 1, 2):
        # What follows takes the beam for Z.
        seen, more = (None if one is None else one.permute(*order) for one in (denoised, around))
        facing = noise_spectrum(
            volume.permute(*order), residual.permute(*order), BlindSet("plane", "y"), seen, more, (0, 1, 2), resampled
        )
        return facing.movedim((0, 1, 2), tuple(order)).contiguous()
    if blind_set.shape == "voxel":
        frequency = torch.fft.fftfreq(GRID, dtype=torch.float64).abs()
        high = (frequency[:, None, None] > BAND) & (frequency[:, None] > BAND) & (frequency > BAND)
        total, remaining = smooth_spectrum(volume), smooth_spectrum(residual)
        return torch.full_like(remaining, min(float(total[high].mean()), float(remaining.mean())))
    if normal is None:
        return smooth_spectrum(residual)
    corner, whole = math.inf, smooth_cross_spectrum(volume, volume)
    if volume.numel() >= ENOUGH:
        passed = filter_power(_positive(whole, volume), normal, resampled).movedim(normal, 0)
        line = passed[: GRID // 2, 0, 0] if float(passed.min()) < 1 else None
        corner = sirt_corner(volume if around is None else around, normal, 0, line)
    if math.isinf(corner):
        return _noise_of_planes(volume, whole, residual, normal, denoised, around, resampled=resampled)
    # A filter changes noise and signal alike, so what is noise of the power is as it was before the filter.
    before, left = undo_sirt(volume, normal, corner), undo_sirt(residual, normal, corner)
    seen, more = (None if one is None else undo_sirt(one, normal, corner) for one in (denoised, around))
    unfiltered = smooth_cross_spectrum(before, before)
    noise = _noise_of_planes(before, unfiltered, left, normal, seen, more, isotropic=False, resampled=resampled)
    return _positive(_positive(whole, volume) * noise / _positive(unfiltered, before), volume)


def turned_noise_spectrum(
    volume: Tensor,
    turn: Turn,
    blind_set: BlindSet,
    denoised: Tensor | None = None,
    around: Tensor | None = None,
    order: Sequence[int] | None = None,
) -> Tensor:
    """:func:`noise_spectrum` of a tomogram whose tilt axis is off the grid.

    What tells the noise is turned upright, and the spectrum is turned back. No residual is asked: a blind plane that is
    not across the tilt axis learns noise.

    Args:
        volume: the tomogram, ``(Z, Y, X)``; of it the middle is known when it is turned.
        turn: that stands it upright.
        blind_set: as there.
        denoised: as there.
        around: as there.
        order: as there.
    """
    upright = turn.upright(volume)
    seen, more = (None if one is None else turn.upright(one) for one in (denoised, around))
    spectrum = turn.as_given(noise_spectrum(upright, upright, blind_set, seen, more, order, resampled=True))
    # Beyond, in the corners, there is no signal.
    return torch.where(_radii()[1] < 0.5, spectrum, smooth_spectrum(volume))


def _noise_of_planes(
    volume: Tensor,
    whole: Tensor,
    residual: Tensor,
    normal: int,
    denoised: Tensor | None,
    around: Tensor | None,
    isotropic: bool = True,
    resampled: bool = False,
) -> Tensor:
    """:func:`noise_spectrum` where each tilt image fills a plane that holds the axis ``normal``.

    Args:
        volume: as there.
        whole: :func:`smooth_cross_spectrum` of the volume with itself.
        residual: as there.
        normal: number of the tilt axis.
        denoised: as there.
        around: as there.
        isotropic: hold the signal to what is alike in all directions; not behind a filter that was divided out, which
            leaves too little of the signal next to the axis.
        resampled: as there.
    """
    frequency = torch.fft.fftfreq(GRID, dtype=torch.float64).abs()
    remaining = smooth_spectrum(residual)
    total = _positive(whole, volume)
    passed, total = filter_power(total, normal, resampled).movedim(normal, 0), total.movedim(normal, 0)
    was_filtered = resampled or float(passed.min()) < 1
    # A filter outweighs what interpolation did along the axis. Noise that it made alike there the blind network may
    # have learnt, so its residual tells nothing.
    shape = passed if was_filtered else _profile_along_tilt_axis(volume, normal)
    unexplained = whole if denoised is None else smooth_cross_spectrum(volume, volume - denoised)
    unexplained, remaining = unexplained.movedim(normal, 0) / passed, remaining.movedim(normal, 0)

    def across(above: float) -> Tensor:
        high = frequency > above
        return (unexplained[high] * shape[high]).sum(dim=0) / shape[high].square().sum(dim=0)

    if was_filtered:
        bounds = [_unfiltered_power(unexplained)]
    else:
        high, highest = across(BAND), across(HIGHEST)
        bounds = [high, missed_noise(high, highest) * highest, remaining.mean(dim=0)]
    power = _lesser(bounds, min(volume.shape))
    noise = power * shape
    if volume.numel() >= ENOUGH:
        seen = volume if around is None else around
        noise = _without_overlapping_signal(volume, normal, total, power, shape, seen, isotropic)
    if was_filtered:
        # Beyond what is known of the filter there is no signal.
        noise = torch.where(_radii()[1] < 0.5, noise, total)
    return _positive(noise.movedim(0, normal), volume).contiguous()


def _radii() -> tuple[Tensor, Tensor]:
    """Distance from the first axis of a spectrum, and from its origin, cycles per voxel."""
    frequency = torch.fft.fftfreq(GRID, dtype=torch.float64)
    across = polar(GRID, GRID)[0].expand(GRID, GRID, GRID)
    return across, (across.square() + frequency[:, None, None].square()).sqrt()


def _unfiltered_power(total: Tensor) -> Tensor:
    """Power across the tilt axis of a spectrum that a filter was divided out of, from detail it is known for.

    Args:
        total: the tilt axis first.

    Shape:
        ``(GRID, GRID)``.
    """
    across, whole = _radii()
    known = (whole > _FINE[0]) & (whole < _FINE[1])
    # Far from the axis, the finest that there is.
    known |= (across > _FINE[0]) & (whole < across.clamp(min=0.5) + 0.5 / GRID)
    return (total * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)


def filter_power(spectrum: Tensor, normal: int, certain: bool = False) -> Tensor:
    """What a filter behind the reconstruction has left of the power, by spatial frequency.

    The noise of a reconstruction depends on the distance from the tilt axis, a filter on the distance from the origin
    of the spectrum. So the logarithm of the power, away from the signal, is the sum of a function of the one and a
    function of the other.

    Args:
        spectrum: of the tomogram, as of :func:`smooth_spectrum`.
        normal: number of the tilt axis.
        certain: that there was one.

    Returns:
        Share of the power, of the shape of ``spectrum``, 1 at the origin. Unless there certainly was a filter all 1
        where the finest detail has kept most of its power: that is what interpolation of the images does.
    """
    logs = spectrum.movedim(normal, 0).clamp(min=1e-30).log()
    across, whole = _radii()
    # The missing wedge holds no noise of the images.
    tilted = polar(GRID, GRID)[1].abs() < LARGEST_DEG
    inside = (tilted if normal != 0 else torch.ones_like(tilted)).expand_as(logs)
    used = inside & (across > _NEAR) & (whole > _SIGNAL) & (whole < 0.5)
    place = (2 * FILTER_BINS * across[used]).long() * FILTER_BINS + (2 * FILTER_BINS * whole[used]).long()
    count = torch.zeros(FILTER_BINS**2, dtype=torch.float64).index_add_(0, place, torch.ones_like(logs[used]))
    mean = torch.zeros_like(count).index_add_(0, place, logs[used]) / count.clamp(min=1)
    count, mean = count.reshape(FILTER_BINS, FILTER_BINS), mean.reshape(FILTER_BINS, FILTER_BINS)
    passed = torch.zeros(FILTER_BINS, dtype=torch.float64)
    for _ in range(_ALTERNATIONS):
        ramp = ((mean - passed) * count).sum(dim=1) / count.sum(dim=1).clamp(min=1)
        passed = ((mean - ramp[:, None]) * count).sum(dim=0) / count.sum(dim=0).clamp(min=1)
    known = count.sum(dim=0) > 0
    passed = torch.where(known, passed - passed[known][0], torch.zeros_like(passed))
    if not certain and float(passed[-1]) > math.log(_FILTERED):
        return torch.ones_like(spectrum)
    passed = _to_origin(passed, known)
    return interpolated(passed, 2 * FILTER_BINS * whole - 0.5).exp().movedim(0, normal)


def _to_origin(passed: Tensor, known: Tensor) -> Tensor:
    """The logarithm of what a filter passes where signal hides it, as a Gaussian has it, and 0 at the origin.

    Args:
        passed: by spatial frequency, the same steps up to 0.5.
        known: where it was measured.
    """
    squared = ((torch.arange(len(passed), dtype=torch.float64) + 0.5) / (2 * len(passed))).square()
    first = int(known.nonzero()[0])
    near = slice(first, first + _EXTRAPOLATED)
    apart = squared[near] - squared[near].mean()
    bend = min(0.0, float((apart * passed[near]).sum() / apart.square().sum()))
    return torch.where(squared < squared[first], bend * squared, passed - passed[first] + bend * squared[first])


def _without_overlapping_signal(
    volume: Tensor, normal: int, total: Tensor, power: Tensor, shape: Tensor, around: Tensor, isotropic: bool
) -> Tensor:
    """Noise less what real tomograms have of signal in the bands that tell it; see :mod:`cryoshuffle.noise.ramp`.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.
        total: power of the tomogram, the tilt axis first.
        power: of the noise across the tilt axis, an upper bound, ``(GRID, GRID)``.
        shape: of the noise along it, for each direction, ``(GRID, GRID, GRID)``.
        around: more of the tomogram.
        isotropic: hold the signal to what is alike in all directions.

    Returns:
        Power, the tilt axis first.
    """
    slope, error = ramp_slope(around, normal, 0, shape)
    slope += _DOUBT * error
    noise = hold_to_ramp(power, slope) * shape
    if isotropic:
        least = total - _most_signal(around, normal)
        across = _radii()[0]
        noise = torch.maximum(noise, torch.where(across < _UNLIKE, torch.minimum(_MOST_ADDED * noise, least), least))
    # Weak signal that no other tilt confirms is taken for noise.
    share, strong = _signal_share(total, noise)
    overlap = tilt_overlap(volume, normal, GRID)
    sure, held = excess_beyond_anchor(power, slope)
    beyond, surely = _signal_share(total, held * shape)
    return total * (1 - torch.maximum(share * torch.maximum(strong, overlap), beyond * surely * sure * overlap))


def _signal_share(total: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the signal in a power, and how far it is from weak, 0 to 1."""
    share = ((total - noise) / total).clamp(min=0)
    return share, ((share - _WEAK[0]) / (_WEAK[1] - _WEAK[0])).clamp(0, 1)


def _most_signal(around: Tensor, normal: int) -> Tensor:
    """:func:`cryoshuffle.noise.ramp.most_signal` on the grid, the tilt axis first; infinite where it says nothing."""
    known, most = most_signal(around, normal, 0)
    whole = _radii()[1]
    if len(known) < 2:
        return torch.full_like(whole, math.inf)
    signal = interpolated(most, (whole - known[0]) / (known[-1] - known[0]) * (len(known) - 1))
    return torch.where(whole < known[0], math.inf, signal)
