"""The noise of a tomogram, measured: how far it is correlated along each axis, and which blind set matches that.

Blind-spot training removes only noise that is independent of what a prediction sees, so this decides whether
anything is removed at all. Axes are (Z, Y, X).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.lattice import AXES
from cryoshuffle.noise.axes import line_along, tapered
from cryoshuffle.noise.wedge import Wedge, find_wedge, mean_wedge
from cryoshuffle.noise.whitening import Whitening

logger = logging.getLogger("cryoshuffle")

LAGS = 4
BAND = 0.35
CLEAN = 0.05
TIE = 0.02
SKEW = 0.02
LEAST_POWER = 0.1
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
        wedge: the missing wedge; None where none shows.
    """

    autocorrelation: Mapping[str, Sequence[float]]
    uncertainty: Mapping[str, Sequence[float]]
    source: str
    oblique: Mapping[str, float] = field(default_factory=dict)
    filtered: bool = False
    skew: Mapping[str, float] = field(default_factory=dict)
    wedge: Wedge | None = None

    @property
    def wedge_axis(self) -> str:
        """The axis that the missing wedge lies along, or nearly; empty where none shows."""
        return "" if self.wedge is None else self.wedge.axis

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


def _power(volume: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Power spectrum of the tapered middle of a volume, and the tapers along its axes."""
    if min(volume.shape) < 2 * LAGS:
        raise InputError(
            f"a volume of {tuple(volume.shape)} voxels is too small to measure its noise, which takes {2 * LAGS} along "
            "each axis: give a larger one"
        )
    values, tapers = tapered(central_crop(volume, LARGEST))
    return torch.fft.fftn(values).abs().square(), tapers


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
    # Lines at k and -k are equal, and a taper makes neighbouring lines alike: this many count as one.
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
    white = power / line_along(spectrum, axis)
    lags = torch.fft.ifftn(white).real
    for a, taper in enumerate(tapers):
        near = [k % len(taper) for k in range(-LAGS, LAGS + 1)]
        own = torch.stack([(taper[: len(taper) - abs(k)] * taper[abs(k) :]).sum() for k in range(-LAGS, LAGS + 1)])
        lags = lags.index_select(a, torch.tensor(near)) / line_along(own, a)
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
    correlations = {AXES[a]: _autocorrelation(power, tapers, a, None) for a in range(3)}
    off = {axis: _oblique(power, tapers, a, correlations[axis][0]) for a, axis in enumerate(AXES)}
    return NoiseEstimate(
        {a: c[0] for a, c in correlations.items()},
        {a: c[1] for a, c in correlations.items()},
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
        The same volume where there are none, or too many of them to be outliers.
    """
    low, high = _farthest(volume)
    count = int(((volume < low) | (volume > high)).sum())
    if not 0 < count < _FEW * volume.numel() or low == high:
        return volume, 0
    return volume.clamp(low, high), count


def planes_without_beads(volume: Tensor, axis: int, margin: int) -> Tensor:
    """Which planes hold no bead of gold.

    A bead is smeared along the beam of each image, so across the tilt axis: its rays stay in the planes that hold it.

    Args:
        volume: (Z, Y, X); it may be on disk.
        axis: number of the tilt axis, which the planes are across.
        margin: planes beside a bead that are left out too, for its rim.

    Returns:
        A boolean for each plane.
    """
    low, high = _farthest(volume)
    held = torch.zeros(volume.shape[axis], dtype=torch.bool)
    others = [a for a in range(3) if a != axis]
    for part in scratch.sections(volume.shape, 0):
        beyond = ((volume[part] < low) | (volume[part] > high)).any(dim=others)
        held[part if axis == 0 else slice(None)] |= beyond
    return F.max_pool1d(held[None].float(), 2 * margin + 1, stride=1, padding=margin)[0] == 0


def longest_run(flags: Tensor) -> slice:
    """The longest run of true values; empty where there are none."""
    longest, start = slice(0, 0), 0
    for number, flag in enumerate([*flags.tolist(), False]):
        if not flag:
            longest = max(longest, slice(start, number), key=lambda run: run.stop - run.start)
            start = number + 1
    return longest


def _farthest(volume: Tensor) -> tuple[float, float]:
    """The least and the greatest value that a voxel of noise may have."""
    step = max(1, math.ceil((volume.numel() / _SAMPLED) ** (1 / 3)))
    sample = volume[::step, ::step, ::step].flatten().double()
    scratch.release()
    middle = float(sample.median())
    deviation = 1.4826 * float((sample - middle).abs().median())
    return middle - FARTHEST * deviation, middle + FARTHEST * deviation


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
    cleanest = min(range(3), key=lambda a: correlation_score(first[a][0]))
    correlations = {AXES[a]: first[a] if a == cleanest else along(a, [cleanest]) for a in range(3)}
    off = {}
    for a, axis in enumerate(AXES):
        others = [b for b in range(3) if b != a] if a == cleanest else [cleanest]
        band = torch.zeros_like(power)
        for b in others:
            band += high[b].reshape([-1 if c == b else 1 for c in range(3)])
        inside = band > 0
        off[axis] = _oblique(power * inside, tapers, a, correlations[axis][0], float(inside.double().mean()))
    shares = sorted(float(power.movedim(a, 0)[high[a]].mean() / power.mean()) for a in range(3))
    return NoiseEstimate(
        {a: c[0] for a, c in correlations.items()},
        {a: c[1] for a, c in correlations.items()},
        "one volume",
        {axis: value[0] for axis, value in off.items()},
        filtered=shares[1] < LEAST_POWER,
        skew={axis: value[1] for axis, value in off.items()},
        wedge=find_wedge(power),
    )


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
    # A box that holds as much of what is marked as any is enough.
    for axis, side in enumerate(volume.shape):
        if side > LARGEST:
            start = _fullest(empty.movedim(axis, 0).flatten(1).sum(dim=1, dtype=torch.int64), LARGEST)
            volume, empty = (v.narrow(axis, start, LARGEST) for v in (volume, empty))
    count = int(empty.sum())
    if count < _LEAST_EMPTY:
        raise InputError(f"the mask has {count} empty voxels, measuring noise there takes {_LEAST_EMPTY}: mark more")
    inside = empty.double()
    values = (volume.double() - volume[empty].double().mean()) * inside
    sides = [n + LAGS for n in values.shape]
    near = torch.arange(-LAGS, LAGS + 1)

    def lags(field: Tensor) -> Tensor:
        products = torch.fft.irfftn(torch.fft.rfftn(field, s=sides).abs().square(), s=sides)
        for axis, side in enumerate(sides):
            products = products.index_select(axis, near % side)
        return products

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


def _fullest(counts: Tensor, length: int) -> int:
    """Where the part of a line that has most begins; of several that have as much the one nearest the middle."""
    sums = F.pad(counts.cumsum(dim=0), (1, 0))
    starts = torch.nonzero(torch.eq(parts := sums[length:] - sums[:-length], parts.max())).flatten()
    return int(starts[(2 * starts + length - len(counts)).abs().argmin()])


def wedge_of(volume: Tensor) -> Wedge | None:
    """The missing wedge of a tomogram; None where none shows.

    Args:
        volume: (Z, Y, X).

    Raises:
        InputError: if the volume is too small.
    """
    return find_wedge(_power(without_outliers(volume)[0])[0])


def correlation_score(autocorrelation: Sequence[float]) -> float:
    """How bad an axis is as the normal of a blind plane: what stays visible, with a price for each plane hidden."""
    rest = [max(abs(r) for r in autocorrelation[radius:]) for radius in range(3)]
    return min(r + CLEAN * radius for radius, r in enumerate(rest))


def average(estimates: Sequence[NoiseEstimate]) -> NoiseEstimate:
    """The mean of estimates of several tomograms of one kind, whose errors are independent."""
    n = len(estimates)

    def along(axis: str, tables: Sequence[Mapping[str, Sequence[float]]]) -> np.ndarray:
        return np.array([table[axis] for table in tables])

    return NoiseEstimate(
        {axis: along(axis, [e.autocorrelation for e in estimates]).mean(axis=0).tolist() for axis in AXES},
        {
            axis: (np.square(along(axis, [e.uncertainty for e in estimates])).sum(axis=0) ** 0.5 / n).tolist()
            for axis in AXES
        },
        estimates[0].source,
        {axis: float(np.mean([e.oblique[axis] for e in estimates])) for axis in AXES if estimates[0].oblique},
        any(e.filtered for e in estimates),
        {axis: float(np.mean([e.skew[axis] for e in estimates])) for axis in AXES if estimates[0].skew},
        mean_wedge([e.wedge for e in estimates]),
    )
