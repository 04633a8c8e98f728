"""The noise of a tomogram, measured: how far it is correlated along each axis, and which blind set matches that.

Blind-spot training removes only noise that is independent of what a prediction sees, so this decides whether
anything is removed at all. Axes are (Z, Y, X).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoshuffle import scratch
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.inputs import load_beside
from cryoshuffle.lattice import AXES, BlindSet
from cryoshuffle.preview import central_crop
from cryoshuffle.recorruption import filter_power, smooth_spectrum
from cryoshuffle.sampling import mask_region, mask_weights, read_mask
from cryoshuffle.transforms import FillNotFinite, StandardiseIntensity
from cryoshuffle.whitening import Whitening

logger = logging.getLogger("cryoshuffle")

LAGS = 4
BAND = 0.35
CLEAN = 0.05
TIE = 0.02
SKEW = 0.02
LEAST_POWER = 0.1
# Difference in the correlation of neighbours that tells one axis from another.
_APART = 0.15
# Deviations of the noise that one voxel may be off, and voxels that the deviation is told by.
FARTHEST = 8.0
_SAMPLED = 500_000
# Share of the voxels that outliers may be.
_FEW = 0.03
# Outliers that are no hot voxels any more.
_BEADS = 20
# Share of the power that a filter has to leave of the finest detail: a Gaussian of .15 cycles per voxel leaves 1e-5.
LEAST_PASSED = 3e-6
# Voxels along each axis, from the middle, that tell the noise.
LARGEST = 192
_LEAST_EMPTY = 4096
_ADD_UP = 0.9
_GROUPS = 8


@dataclass(frozen=True)
class NoiseEstimate:
    """Autocorrelation of the noise.

    Attributes:
        autocorrelation: for each axis, at lags 1 to :data:`LAGS`, voxels.
        uncertainty: standard error of each of them.
        source: ``halves`` or ``one volume``.
        oblique: for each axis, the largest correlation with any voxel up to :data:`LAGS` away that does not lie in the
            same plane across that axis, once the correlation along the axis is whitened, less what chance makes in a
            volume of this size; an axis a few degrees off the grid couples its neighbours obliquely.
        skew: for each axis, how far the correlation with voxels ahead along it differs from that with voxels behind, at
            one place across it, less what chance makes; next to 0 where the tilt axis lies along the grid.
        filtered: whether the volume has next to no power at high frequency, so that one volume tells nothing.
    """

    autocorrelation: Mapping[str, Sequence[float]]
    uncertainty: Mapping[str, Sequence[float]]
    source: str
    oblique: Mapping[str, float] = field(default_factory=dict)
    filtered: bool = False
    skew: Mapping[str, float] = field(default_factory=dict)

    def leftover(self, axis: str, radius: int) -> float:
        """The largest correlation along an axis, of those measured, that a plane of this half-width does not hide.

        What lies within two standard errors of 0 does not count: small volumes cannot tell it from nothing.
        """
        errors = self.uncertainty.get(axis, [0.0] * LAGS)
        seen = zip(self.autocorrelation[axis][radius:], errors[radius:], strict=True)
        return max((max(abs(r) - 2 * error, 0.0) for r, error in seen), default=0.0)

    def table(self) -> str:
        """The estimate as text, a row an axis."""
        head = "axis  " + "".join(f"   lag {lag}        " for lag in range(1, LAGS + 1))
        rows = [
            f"{axis}     "
            + "".join(
                f"  {r:+.3f} ± {u:.3f} "
                for r, u in zip(self.autocorrelation[axis], self.uncertainty[axis], strict=True)
            )
            for axis in AXES
        ]
        return "\n".join([head.rstrip(), *(row.rstrip() for row in rows)])


@dataclass(frozen=True)
class BlindChoice:
    """The blind set that matches a noise estimate.

    Attributes:
        blind_set: to hide.
        whitening: to apply before the network and to undo behind it; None for none.
        reason: in one sentence.
        clean: whether what a prediction sees is next to independent of the noise it must not learn.
    """

    blind_set: BlindSet
    whitening: Whitening | None
    reason: str
    clean: bool


def _power(volume: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Power spectrum of the tapered middle of a volume, and the tapers along its axes."""
    if min(volume.shape) < 2 * LAGS:
        raise InputError(f"a volume of {tuple(volume.shape)} voxels is too small to measure its noise, set --blind")
    for axis, side in enumerate(volume.shape):
        if side > LARGEST:
            volume = volume.narrow(axis, (side - LARGEST) // 2, LARGEST)
    volume = volume.double() - volume.double().mean()
    tapers = [torch.hann_window(n, periodic=False, dtype=torch.float64) + 1e-3 for n in volume.shape]
    for axis, taper in enumerate(tapers):
        volume = volume * taper.reshape([-1 if a == axis else 1 for a in range(3)])
    return torch.fft.fftn(volume).abs().square(), tapers


def _autocorrelation(
    power: Tensor, tapers: Sequence[Tensor], axis: int, band: Tensor | None
) -> tuple[list[float], list[float]]:
    """Autocorrelation along an axis of what lies in a band across it, and its standard error over parts of the band.

    Args:
        power: spectrum, (Z, Y, X).
        tapers: of the volume along (Z, Y, X); the autocorrelation of the one along the axis is divided out.
        axis: number of the axis.
        band: boolean over the two other axes; None for everything.
    """
    lines = power.movedim(axis, -1)
    lines = lines.flatten(0, 1) if band is None else lines[band]
    n = lines.shape[-1]
    lags = torch.arange(LAGS + 1, dtype=torch.float64)
    waves = torch.cos(2 * torch.pi * torch.arange(n, dtype=torch.float64)[:, None] * lags / n)
    taper = tapers[axis]
    own = torch.stack([(taper[: n - k] * taper[k:]).sum() for k in range(LAGS + 1)])

    def correlate(part: Tensor) -> Tensor:
        raw = part.mean(dim=0) @ waves / own
        return raw[1:] / raw[0]

    order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
    parts = torch.stack([correlate(lines[chunk]) for chunk in order.chunk(_GROUPS)])
    # Lines at k and -k are equal, and a taper makes neighbouring lines alike: so many are one.
    alike = 2.0
    for other, across in enumerate(tapers):
        if other != axis:
            alike *= len(across) * float(across.pow(4).sum() / across.square().sum() ** 2)
    errors = parts.std(dim=0) * (alike / _GROUPS) ** 0.5
    return correlate(lines).tolist(), errors.tolist()


def _oblique(
    power: Tensor, tapers: Sequence[Tensor], axis: int, along: Sequence[float], share: float = 1.0
) -> tuple[float, float]:
    """The largest correlation out of the plane across an axis, after whitening along the axis, and the skew of it.

    See :class:`NoiseEstimate`.

    Args:
        power: spectrum of the noise, or of a band of it, (Z, Y, X).
        tapers: of the volume along (Z, Y, X); their autocorrelation is divided out.
        axis: number of the axis.
        along: autocorrelation along it, whitened before looking.
        share: of the spectrum that the band covers.
    """
    side = power.shape[axis]
    half = Whitening(AXES[axis], tuple(along)).spectrum(side)
    spectrum = torch.cat([half, half[1 : side - len(half) + 1].flip(0)])
    white = power / spectrum.reshape([-1 if a == axis else 1 for a in range(3)])
    lags = torch.fft.ifftn(white).real
    for a, taper in enumerate(tapers):
        near = [k % len(taper) for k in range(-LAGS, LAGS + 1)]
        own = torch.stack([(taper[: len(taper) - abs(k)] * taper[abs(k) :]).sum() for k in range(-LAGS, LAGS + 1)])
        lags = lags.index_select(a, torch.tensor(near)) / own.reshape([-1 if b == a else 1 for b in range(3)])
    lags = lags / lags[LAGS, LAGS, LAGS]
    outside = lags.index_select(axis, torch.tensor([k for k in range(2 * LAGS + 1) if k != LAGS]))
    # The largest of some 300 independent lags of white noise is about three of their standard errors.
    alike = float(np.prod([len(t) * float(t.pow(4).sum() / t.square().sum() ** 2) for t in tapers]))
    chance = 3.2 * (alike / (power.numel() * share)) ** 0.5
    skew = float((lags - lags.flip(axis)).abs().max()) / 2
    return max(float(outside.abs().max()) - chance, 0.0), max(skew - chance / 2**0.5, 0.0)


def noise_from_halves(even: Tensor, odd: Tensor) -> NoiseEstimate:
    """The noise of a tomogram from two halves with independent noise: their difference holds no signal.

    Args:
        even: one half, (Z, Y, X).
        odd: the other.

    Raises:
        InputError: if the shapes differ, the halves are equal, or they are too small.
    """
    if even.shape != odd.shape:
        raise InputError(f"halves of shapes {tuple(even.shape)} and {tuple(odd.shape)} are not of one tomogram")
    difference = even.double() - odd.double()
    if not bool(difference.any()):
        raise InputError("the halves are equal, so they tell nothing of the noise: give even and odd")
    difference, _ = without_outliers(difference)
    power, tapers = _power(difference)
    found = {AXES[a]: _autocorrelation(power, tapers, a, None) for a in range(3)}
    off = {axis: _oblique(power, tapers, a, found[axis][0]) for a, axis in enumerate(AXES)}
    return NoiseEstimate(
        {a: f[0] for a, f in found.items()},
        {a: f[1] for a, f in found.items()},
        "halves",
        {axis: value[0] for axis, value in off.items()},
        skew={axis: value[1] for axis, value in off.items()},
    )


def without_outliers(volume: Tensor) -> tuple[Tensor, int]:
    """A volume whose voxels far beyond all others are as far as the farthest that noise has; and how many they were.

    A hot voxel or a bead of gold is no noise, and outweighs all of it.

    Args:
        volume: (Z, Y, X).

    Returns:
        The same volume where there are none, or so many that they are no outliers.
    """
    step = max(1, math.ceil((volume.numel() / _SAMPLED) ** (1 / 3)))
    sample = volume[::step, ::step, ::step].flatten().double()
    middle = float(sample.median())
    deviation = 1.4826 * float((sample - middle).abs().median())
    low, high = middle - FARTHEST * deviation, middle + FARTHEST * deviation
    count = int(((volume < low) | (volume > high)).sum())
    if not 0 < count < _FEW * volume.numel() or deviation == 0:
        return volume, 0
    return volume.clamp(low, high), count


def noise_from_volume(volume: Tensor) -> NoiseEstimate:
    """The noise of a tomogram from itself: at high frequency across an axis there is next to no signal.

    Along each axis the autocorrelation is that of the band beyond :data:`BAND` cycles per voxel across it. The band is
    taken along the tilt axis where that is another axis, since there the noise is the same at all frequencies; as the
    tilt axis is not known yet, it is the one found cleanest in a first round.

    Args:
        volume: the noisy tomogram, (Z, Y, X).

    Raises:
        InputError: if the volume is too small.
    """
    volume, count = without_outliers(volume)
    if count >= _BEADS:
        logger.warning(
            "%d voxels stand out by more than %g deviations, as beads of gold do: noise is measured without them, but "
            "their rays count as signal; erase beads in the tilt images",
            count,
            FARTHEST,
        )
    elif count:
        logger.info("%d voxels beyond %g deviations are taken for no more when noise is measured", count, FARTHEST)
    power, tapers = _power(volume)
    high = [torch.fft.fftfreq(n, dtype=torch.float64).abs() > BAND for n in power.shape]

    def along(axis: int, across: Sequence[int]) -> tuple[list[float], list[float]]:
        others = [a for a in range(3) if a != axis]
        band = torch.zeros([power.shape[a] for a in others], dtype=torch.bool)
        for a in across:
            band |= high[a].reshape([-1 if other == a else 1 for other in others])
        return _autocorrelation(power, tapers, axis, band)

    first = {a: along(a, [b for b in range(3) if b != a]) for a in range(3)}
    cleanest = min(range(3), key=lambda a: _score(first[a][0]))
    found = {AXES[a]: first[a] if a == cleanest else along(a, [cleanest]) for a in range(3)}
    off = {}
    for a, axis in enumerate(AXES):
        others = [b for b in range(3) if b != a] if a == cleanest else [cleanest]
        band = torch.zeros_like(power)
        for b in others:
            band += high[b].reshape([-1 if c == b else 1 for c in range(3)])
        inside = band > 0
        off[axis] = _oblique(power * inside, tapers, a, found[axis][0], float(inside.double().mean()))
    shares = sorted(float(power.movedim(a, 0)[high[a]].mean() / power.mean()) for a in range(3))
    return NoiseEstimate(
        {a: f[0] for a, f in found.items()},
        {a: f[1] for a, f in found.items()},
        "one volume",
        {axis: value[0] for axis, value in off.items()},
        filtered=shares[1] < LEAST_POWER,
        skew={axis: value[1] for axis, value in off.items()},
    )


def on_one_scale(volume: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of a tomogram on the grey scale on which they add up to it.

    Then their signals are equal, whatever their noise, and the noise of the tomogram is their difference but for the
    sign at each voxel.

    Args:
        volume: the tomogram, (Z, Y, X).
        even: one half.
        odd: the other.

    Raises:
        InputError: if the shapes differ, the halves are equal, or they do not add up to the tomogram.
    """
    if not volume.shape == even.shape == odd.shape:
        shapes = " and ".join(str(tuple(v.shape)) for v in (even, odd, volume))
        raise InputError(f"even half, odd half and tomogram of shapes {shapes} do not belong together")
    halves = torch.stack([(half.double() - half.double().mean()).flatten() for half in (even, odd)])
    whole = (volume.double() - volume.double().mean()).flatten()
    products = halves @ halves.T
    if float(torch.linalg.det(products)) <= 1e-6 * float(products[0, 0] * products[1, 1]):
        raise InputError("the halves are equal, so they tell nothing of the noise: give even and odd")
    shares = torch.linalg.solve(products, halves @ whole)
    explained = float((shares @ (halves @ whole)) / whole.square().sum())
    if explained < _ADD_UP or not bool((shares > 0).all()):
        raise InputError("the halves do not add up to the tomogram: give the two it was made from")
    scaled = (halves * shares[:, None]).float()
    return scaled[0].reshape(even.shape), scaled[1].reshape(odd.shape)


def noise_from_empty(volume: Tensor, empty: Tensor) -> NoiseEstimate:
    """The noise of a tomogram where it holds no specimen: there all of it is noise, at every frequency.

    What leans is not looked for; :func:`noise_from_volume` does.

    Args:
        volume: the noisy tomogram, (Z, Y, X).
        empty: true where there is no specimen, (Z, Y, X).

    Raises:
        InputError: if the shapes differ, less than 4096 voxels are empty, too few of them are neighbours along an
            axis, or all have one value.
    """
    if volume.shape != empty.shape:
        raise InputError(f"the mask of shape {tuple(empty.shape)} is not of a tomogram of {tuple(volume.shape)} voxels")
    # A box around the middle of what is marked is enough.
    for axis, side in enumerate(volume.shape):
        if side > LARGEST:
            marked = torch.nonzero(empty.movedim(axis, 0).flatten(1).any(dim=1)).flatten()
            middle = int(marked.double().mean()) if len(marked) else 0
            start = min(max(0, middle - LARGEST // 2), side - LARGEST)
            volume, empty = (v.narrow(axis, start, LARGEST) for v in (volume, empty))
    count = int(empty.sum())
    if count < _LEAST_EMPTY:
        raise InputError(f"the mask has {count} empty voxels, measuring noise there takes {_LEAST_EMPTY}: mark more")
    inside = empty.double()
    values = (volume.double() - volume[empty].double().mean()) * inside
    sides = [n + LAGS for n in values.shape]
    near = torch.arange(-LAGS, LAGS + 1)

    def lags(field: Tensor) -> Tensor:
        found = torch.fft.irfftn(torch.fft.rfftn(field, s=sides).abs().square(), s=sides)
        for axis, side in enumerate(sides):
            found = found.index_select(axis, near % side)
        return found

    pairs = lags(inside).round().abs()
    for a, name in enumerate(AXES):
        enough = float(pairs[tuple(2 * LAGS if b == a else LAGS for b in range(3))])
        if enough < _LEAST_EMPTY / 4:
            raise InputError(
                f"the mask is too thin along {name}: {enough:.0f} pairs of empty voxels lie {LAGS} apart, measuring "
                f"noise takes {_LEAST_EMPTY // 4}; mark more"
            )
    pairs = pairs.clamp(min=1.0)
    correlation = lags(values) / pairs
    variance = float(correlation[LAGS, LAGS, LAGS])
    if not variance > 1e-9 * float(volume.double().var()):
        raise InputError("all voxels of the mask have one value, so there is no noise: mark vacuum or ice, not padding")
    correlation = correlation / variance
    # Bartlett's formula: the scatter of an estimate over pairs that are alike.
    error = (float(correlation.square().sum()) / pairs).sqrt()

    def along(table: Tensor, axis: int) -> list[float]:
        places = [tuple(LAGS + k * (a == axis) for a in range(3)) for k in range(1, LAGS + 1)]
        return [float(table[place]) for place in places]

    return NoiseEstimate(
        {axis: along(correlation, a) for a, axis in enumerate(AXES)},
        {axis: along(error, a) for a, axis in enumerate(AXES)},
        "empty region",
    )


def _score(autocorrelation: Sequence[float]) -> float:
    """How bad an axis is as the normal of a blind plane: what stays visible, with a price for each plane hidden."""
    rest = [max(abs(r) for r in autocorrelation[radius:]) for radius in range(3)]
    return min(r + CLEAN * radius for radius, r in enumerate(rest))


def choose_blind(estimate: NoiseEstimate, tilt_axis: str | None = None) -> BlindChoice:
    """The blind set that matches the noise.

    White noise gets a blind voxel. Else the plane across the axis along which the noise is least correlated. What
    correlation there is along that axis is undone by whitening, or, where its spectrum vanishes and cannot be
    undone, hidden by the smallest half-width that leaves at most :data:`CLEAN`, or the best there is.

    Args:
        estimate: of the noise.
        tilt_axis: if known; it is then not asked of the noise.

    Raises:
        SettingError: if no tilt axis is given and two axes are equally good, or the volume has been filtered.

    Example:
        >>> quiet, loud = [0.0] * 4, [0.4, -0.2, 0.1, 0.0]
        >>> choice = choose_blind(NoiseEstimate({"z": loud, "y": quiet, "x": loud}, {}, "halves"))
        >>> choice.blind_set.shape, choice.blind_set.axis, choice.whitening, choice.clean
        ('plane', 'y', None, True)
    """
    if estimate.filtered:
        if tilt_axis is None:
            raise SettingError(
                "the volume has been low-pass filtered, so its noise does not tell the tilt axis: give --tilt-axis, or "
                "better the reconstruction before the filter"
            )
        reason = (
            f"plane across {tilt_axis}, as asked for; the volume has been low-pass filtered, and what the filter has "
            "left of the noise is told from its spectrum"
        )
        return BlindChoice(BlindSet("plane", tilt_axis), None, reason, clean=False)
    largest = max(estimate.leftover(axis, 0) for axis in AXES)
    if largest <= CLEAN:
        return BlindChoice(
            BlindSet("voxel"), None, f"the noise is white: correlated by {largest:.3f} at most", clean=True
        )
    axis = tilt_axis or find_tilt_axis(estimate)
    quietest = min(AXES, key=lambda a: _score(estimate.autocorrelation[a]))
    seen = estimate.leftover(axis, 0)
    if _score(estimate.autocorrelation[axis]) > _score(estimate.autocorrelation[quietest]) + TIE:
        quieter = estimate.leftover(quietest, 0)
        reason = (
            f"plane across {axis}, as asked for, although the noise is correlated by {seen:.3f} along it and by "
            f"{quieter:.3f} along {quietest}: part of the noise will be learnt if {axis} is not the tilt axis"
        )
        return BlindChoice(BlindSet("plane", axis), None, reason, clean=False)
    if seen <= CLEAN:
        reason = f"the noise is correlated by {largest:.3f} across {axis} and by {seen:.3f} at most along it"
        return _looking_obliquely(BlindChoice(BlindSet("plane", axis), None, reason, clean=True), estimate)
    whitening = Whitening(axis, tuple(float(r) for r in estimate.autocorrelation[axis]))
    if whitening.is_bounded():
        reason = f"the noise is correlated by {seen:.3f} along {axis}, whitening undoes that"
        return _looking_obliquely(BlindChoice(BlindSet("plane", axis), whitening, reason, clean=True), estimate)
    radii = [r for r in range(LAGS) if estimate.leftover(axis, r) <= CLEAN]
    radius = radii[0] if radii else min(range(LAGS), key=lambda r: estimate.leftover(axis, r))
    left = estimate.leftover(axis, radius)
    reason = (
        f"the noise is correlated by {seen:.3f} along {axis} and its spectrum vanishes, so it cannot be whitened; "
        f"a half-width of {radius} leaves {left:.3f}"
    )
    return BlindChoice(BlindSet("plane", axis, radius), None, reason, clean=bool(radii))


def _looking_obliquely(choice: BlindChoice, estimate: NoiseEstimate) -> BlindChoice:
    """The choice, wider where the tilt axis is off the grid, with what it leaves visible off the axis in its reason."""
    axis = choice.blind_set.axis
    left, skew = estimate.oblique.get(axis, 0.0), estimate.skew.get(axis, 0.0)
    if skew > SKEW and estimate.leftover(axis, 1) <= 2 * CLEAN:
        reason = (
            f"{choice.reason}; the noise leans by {skew:.3f}, the tilt axis is some degrees off {axis}: a half-width "
            "of 1 hides most of that, in place of whitening"
        )
        return BlindChoice(BlindSet("plane", axis, 1), None, reason, clean=choice.clean)
    if left <= CLEAN:
        return choice
    reason = f"{choice.reason}; off the axis {left:.3f} stays visible, as when each tilt image was shifted by itself"
    return replace(choice, reason=reason, clean=left <= 2 * CLEAN)


def find_tilt_axis(estimate: NoiseEstimate) -> str:
    """The axis along which the noise is least correlated.

    Raises:
        SettingError: if two axes are equally good; the message has both.
    """
    ranked = sorted(AXES, key=lambda axis: _score(estimate.autocorrelation[axis]))
    best, second = (_score(estimate.autocorrelation[axis]) for axis in ranked[:2])
    if second - best < TIE:
        # Where each tilt image was interpolated the next planes along the tilt axis are a little alike, and along the
        # beam the ramp makes the next ones much alike: two that hide as well behind a wider plane.
        seen = [estimate.leftover(axis, 0) for axis in ranked[:2]]
        if abs(seen[0] - seen[1]) > _APART:
            return ranked[0] if seen[0] < seen[1] else ranked[1]
        raise SettingError(
            f"the noise is as little correlated along {ranked[0]} as along {ranked[1]}, so the tilt axis cannot be "
            "told from it: give --tilt-axis"
        )
    return ranked[0]


def average(estimates: Sequence[NoiseEstimate]) -> NoiseEstimate:
    """The mean of estimates of several tomograms of one kind."""

    def mean(tables: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
        return {axis: np.mean([table[axis] for table in tables], axis=0).tolist() for axis in AXES}

    return NoiseEstimate(
        mean([e.autocorrelation for e in estimates]),
        mean([e.uncertainty for e in estimates]),
        estimates[0].source,
        {axis: float(np.mean([e.oblique[axis] for e in estimates])) for axis in AXES if estimates[0].oblique},
        any(e.filtered for e in estimates),
        {axis: float(np.mean([e.skew[axis] for e in estimates])) for axis in AXES if estimates[0].skew},
    )


def load_volume(
    path: str,
    permissive: bool = False,
    largest: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    fill_nan: bool = False,
    mask: str | None = None,
    beside: str | None = None,
) -> Tensor:
    """A tomogram from a file, (Z, Y, X), standardised.

    Args:
        path: of the file.
        permissive: also take MRC files whose header breaks the standard.
        largest: voxels to take along each axis, from the middle; None for all.
        folder: where a volume too large for memory is kept; None for memory.
        fill_nan: put the mean of the others where voxels are not finite.
        mask: path of a mask; of the box around it the middle is taken. None for the whole volume.
        beside: path of the tomogram that this is a half of (:func:`cryoshuffle.inputs.load_beside`); None for none.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is no tomogram, or has voxels that are not finite and are not filled.
    """
    volume: Any = load_beside(path, beside, permissive, folder, None if mask is not None else largest)
    if mask is not None:
        inside = mask_weights(mask, folder, beside or path)
        volume = volume[(slice(None), *mask_region(inside, tuple(volume.shape[1:])))]
    volume = FillNotFinite(fill_nan)(volume if largest is None else central_crop(volume, largest))
    return StandardiseIntensity()(volume).as_tensor()[0]


def load_mask(path: str, folder: str | os.PathLike[str] | None = None, tomogram: str | None = None) -> Tensor:
    """A mask from a file, true inside, (Z, Y, X), as :func:`cryoshuffle.sampling.read_mask` has it.

    Args:
        path: of the file.
        folder: where a volume too large for memory is kept while it is read; None for memory.
        tomogram: path of the tomogram that it is of; None for none.

    Raises:
        FileError, InputError: those of :func:`cryoshuffle.sampling.read_mask`.
    """
    values, inside = read_mask(path, folder, tomogram)
    mask = torch.empty(values.shape, dtype=torch.bool)
    for part in scratch.sections(values.shape, 0):
        mask[part] = inside(values[part])
    return mask


def load_halves(
    paths: Sequence[str], permissive: bool = False, mask: str | None = None, tomogram: str | None = None
) -> tuple[Tensor, Tensor]:
    """The middle of even and odd half of a tomogram from files, each (Z, Y, X), standardised.

    Args:
        paths: of the two.
        permissive: also take MRC files whose header breaks the standard.
        mask: path of a mask; of the box around it the middle is taken. None for the whole volume.
        tomogram: path of the tomogram that they are of; None where there is none but the halves.

    Raises:
        FileError: if a file is missing or cannot be read.
        InputError: if one is no tomogram, or there are not two.
    """
    if len(paths) != 2:
        raise InputError(f"halves are {len(paths)} files: name the even and the odd one")
    beside = str(tomogram or paths[0])
    even, odd = (load_volume(str(path), permissive, LARGEST, mask=mask, beside=beside) for path in paths)
    return even, odd


@dataclass(frozen=True)
class Measured:
    """The blind set of a run: as asked for, or as the noise says.

    Attributes:
        choice: what is used.
        estimate: what was measured; None if nothing had to be.
    """

    choice: BlindChoice
    estimate: NoiseEstimate | None

    @property
    def blind_set(self) -> BlindSet:
        """Offsets to hide."""
        return self.choice.blind_set

    @property
    def whitening(self) -> dict[str, Any] | None:
        """To apply before the network, as plain values; None for none."""
        return None if self.choice.whitening is None else self.choice.whitening.config()

    def report(self) -> dict[str, Any]:
        """Everything as plain values, for a JSON file."""
        estimate = self.estimate
        return {
            "blind": self.blind_set.shape,
            "axis": self.blind_set.axis,
            "half_widths": list(self.blind_set._radius),
            "whitening": self.whitening,
            "reason": self.choice.reason,
            "clean": self.choice.clean,
            "filtered": None if estimate is None else estimate.filtered,
            "oblique": None if estimate is None else dict(estimate.oblique),
            "skew": None if estimate is None else dict(estimate.skew),
            "source": None if estimate is None else estimate.source,
            "autocorrelation": None if estimate is None else {a: list(v) for a, v in estimate.autocorrelation.items()},
            "uncertainty": None if estimate is None else {a: list(v) for a, v in estimate.uncertainty.items()},
        }


def _refuse_without_detail(path: str, volume: Tensor, tilt_axis: str) -> None:
    """Refuse a volume of whose finest detail a filter has left so little that its noise is not to be told.

    Raises:
        InputError: if it is one.
    """
    passed = filter_power(smooth_spectrum(volume), AXES.index(tilt_axis))
    if float(passed.min()) < LEAST_PASSED:
        raise InputError(
            f"{path}: has been low-pass filtered, and of its finest detail {float(passed.min()):.0e} of the power is "
            "left, too little to tell the noise by: bin it by 2, which takes nothing away that is there, or give the "
            "reconstruction before the filter"
        )


def resolve_blind(
    tomograms: Sequence[str],
    blind: str = "auto",
    tilt_axis: str | None = None,
    radius: int | Sequence[int] | None = None,
    permissive: bool = False,
    halves: Sequence[str] | None = None,
    empty: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    fill_nan: bool = False,
    mask: str | None = None,
    absent: BlindSet | None = None,
) -> Measured:
    """The blind set of a run.

    Args:
        tomograms: paths; with several the noise is the mean of theirs.
        blind: ``auto`` for what the noise says, or a shape of :class:`BlindSet`.
        tilt_axis: normal of the plane; None to find it from the noise.
        radius: half-width, voxels; None for what the noise says (``auto``), 0 (``plane``, ``voxel``) or 1.
        permissive: also take MRC files whose header breaks the standard.
        halves: paths of the even and the odd half of the tomogram; the noise is measured in their difference.
        empty: path of a mask, not 0 where the tomogram holds no specimen; the noise is measured there.
        folder: where volumes too large for memory are kept while they are read; None for memory.
        fill_nan: put the mean of the others where voxels of a tomogram are not finite.
        mask: path of a mask of the specimen; the noise is measured in the middle of the box around it. None for the
            middle of the volume.
        absent: what is hidden where there is no tomogram at the path of the only one: MONAI's programs build the
            network of a bundle to look at it. A run is stopped by :func:`cryoshuffle.preflight.check_inputs` then.

    Raises:
        SettingError: for a setting that cannot work, or a tilt axis that the noise does not tell.
        FileError, InputError: for a tomogram that cannot be read, or is too small to measure.
    """
    if blind == "none":
        raise SettingError("blind set is 'none': a network that hides nothing cannot be fitted to one tomogram")
    if blind not in ("auto", "plane") or (blind == "plane" and tilt_axis is not None):
        default = 0 if blind in ("plane", "voxel") else 1
        blind_set = BlindSet(blind, tilt_axis or "y", default if radius is None else radius)
        return Measured(BlindChoice(blind_set, None, "as asked for", clean=True), None)
    if not tomograms:
        raise InputError("no tomogram is given, name at least one")
    if absent is not None and len(tomograms) == 1 and not Path(tomograms[0]).exists():
        return Measured(BlindChoice(absent, None, "there is no tomogram", clean=True), None)
    if halves is not None and len(tomograms) > 1:
        raise InputError(f"halves go with one tomogram, not with {len(tomograms)}: fit them one by one")
    if empty is not None and (halves is not None or len(tomograms) > 1):
        raise InputError("a mask of empty regions goes with one tomogram without halves: leave one of them out")
    if halves is not None:
        volume = load_volume(str(tomograms[0]), permissive, LARGEST, folder, fill_nan, mask)
        estimate = noise_from_halves(*on_one_scale(volume, *load_halves(halves, permissive, mask, str(tomograms[0]))))
    elif empty is not None:
        volume = load_volume(str(tomograms[0]), permissive, folder=folder, fill_nan=fill_nan)
        estimate = noise_from_empty(volume, load_mask(empty, folder, str(tomograms[0])))
    else:
        estimates = []
        for path in tomograms:
            volume = load_volume(str(path), permissive, LARGEST, folder, fill_nan, mask)
            estimates.append(noise_from_volume(volume))
            if estimates[-1].filtered and tilt_axis is not None:
                _refuse_without_detail(path, volume, tilt_axis)
        estimate = average(estimates)
    if blind == "auto" and radius is None:
        return Measured(choose_blind(estimate, tilt_axis), estimate)
    white = all(estimate.leftover(axis, 0) <= CLEAN for axis in AXES)
    axis = tilt_axis or ("y" if white else choose_blind(estimate).blind_set.axis)
    blind_set = BlindSet("plane", axis, radius or 0)
    if blind_set.half_width >= LAGS:
        return Measured(BlindChoice(blind_set, None, "as asked for, beyond what is measured", clean=True), estimate)
    left = estimate.leftover(axis, blind_set.half_width)
    reason = f"plane across {axis}, as asked for; it leaves a correlation of {left:.3f}"
    return Measured(BlindChoice(blind_set, None, reason, clean=left <= CLEAN), estimate)
