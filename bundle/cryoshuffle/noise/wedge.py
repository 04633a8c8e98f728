"""Which way a tomogram lies, by its missing wedge.

Beside the beam, all along the tilt axis, there is next to no power in the spectrum: no image was seen from there. No
filter behind the reconstruction changes that. Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoshuffle.lattice import AXES, Triple
from cryoshuffle.noise.axes import between, line_along
from cryoshuffle.noise.ramp import plane_power, polar

# Where the wedge is looked for: distance from the origin of the spectrum or from the tilt axis, cycles per voxel, and
# degrees around the beam.
_RING = (0.15, 0.35)
_DEG = 20.0
# Power in the wedge over that beside it from which on none shows, for a tilt axis that is known.
_SHOWS = 0.7
# The same where tilt axis and beam are not known, of the best pair and at least of the others: a real cell in 19
# variants and a real microtubule have .0012 to .009 and .15 to .77.
_TELLS = (0.03, 0.08)
# Degrees that a tilt axis may be off the grid and count as on it.
_ON_GRID_DEG = 1.0
# Degrees by which the middle of the wedge may lie beside the beam, as where a lamella was tilted before the series. It
# is looked for there if the power that shows around the beam is less than this share.
_BESIDE_DEG = (0.0, -10.0, 10.0, -20.0, 20.0)
_MAY_TELL = 0.3
# Frequencies that are looked at, and the fewest that tell. Degrees between angles at first, and around the best one.
_LOOKED_AT, _FEWEST = 15_000, 2_000
_COARSE_DEG, _AROUND_DEG = 3.0, 15.0
# How far a tilt axis may lean towards the beam at first, and then from what was measured, degrees. Where that shows:
# along the axis, from which to which frequency, and how near it towards the beam and towards the third axis.
_LEANS_DEG, _LEAN_STEPS = (12.0, 6.0), 13
_ALONG, _NEAR_BEAM, _NEAR_THIRD = (0.1, 0.4), 0.1, 0.05


@dataclass(frozen=True)
class Wedge:
    """The missing wedge of a tomogram.

    Attributes:
        axis: of the grid that is nearest to the tilt axis.
        beam: axis of the grid that the beam comes along.
        turned_deg: from that axis to the tilt axis, towards the third one, -45 to 45 degrees.
        lean_deg: of the tilt axis towards the beam, degrees.
    """

    axis: str
    beam: str
    turned_deg: float
    lean_deg: float = 0.0

    @property
    def off_grid_deg(self) -> float:
        """Degrees between the tilt axis and the axis of the grid that is nearest to it."""
        turned, lean = math.radians(self.turned_deg), math.radians(self.lean_deg)
        return math.degrees(math.acos(math.cos(turned) * math.cos(lean)))

    @property
    def is_off_grid(self) -> bool:
        """Whether the tilt axis is off the grid."""
        return self.off_grid_deg > _ON_GRID_DEG


def find_wedge(power: Tensor) -> Wedge | None:
    """The missing wedge, whichever way a tomogram lies and however it was turned about the beam.

    For each axis of the grid as the beam, and each direction across it as the tilt axis, the power in the wedge that
    both would leave empty is compared with the power beside it. The right pair has next to none, no other has little.

    Args:
        power: spectrum of a tomogram, ``(Z, Y, X)``, zero frequency first.

    Returns:
        None where no wedge shows.
    """
    lines = [torch.fft.fftfreq(side, dtype=torch.float64) for side in power.shape]
    z, y, x = (line_along(line.square(), axis) for axis, line in enumerate(lines))
    distance = (z + y + x).sqrt()
    ring = torch.nonzero((distance >= _RING[0]) & (distance < _RING[1]))
    if len(ring) < _FEWEST:
        return None
    place = _some(ring).unbind(dim=1)
    values = power[place].double()
    along = [line[index] for line, index in zip(lines, place, strict=True)]
    angles = torch.arange(-90, 90, _COARSE_DEG, dtype=torch.float64)

    def emptiness(beside: float) -> Tensor:
        return torch.stack([_emptiness(values, along, beam, angles, beside_deg=beside) for beam in range(3)])

    seen = [emptiness(_BESIDE_DEG[0])]
    if _TELLS[0] < float(seen[0].min()) < _MAY_TELL:
        seen += [emptiness(beside) for beside in _BESIDE_DEG[1:]]
    # By beam, angle beside it and angle of the tilt axis.
    least = torch.stack(seen, dim=1)
    beam, *others = sorted(range(3), key=lambda axis: float(least[axis].min()))
    if not (float(least[beam].min()) < _TELLS[0] and all(float(least[other].min()) > _TELLS[1] for other in others)):
        return None
    number, nearest_angle = divmod(int(least[beam].argmin()), len(angles))
    beside = _BESIDE_DEG[number]
    near = float(angles[nearest_angle]) + torch.arange(-_AROUND_DEG, _AROUND_DEG + 1, dtype=torch.float64)
    angle = (_middle_of_dip(_emptiness(values, along, beam, near, beside_deg=beside), near) + 90) % 180 - 90
    # Angles are counted from the last axis across the beam towards the first.
    first, last = (axis for axis in range(3) if axis != beam)
    nearest, turned = (last, angle) if abs(angle) <= 45 else (first, math.copysign(90 - abs(angle), angle))
    # The lean is of the direction at that angle, which is backwards along the first axis if it is less than 0.
    lean = _find_lean(power, beam, angle, beside) * (-1 if angle < -45 else 1)
    return Wedge(AXES[nearest], AXES[beam], turned, lean)


def mean_wedge(wedges: Sequence[Wedge | None]) -> Wedge | None:
    """The wedge of several tomograms that lie one way; None where they do not, or one shows none."""
    known = [wedge for wedge in wedges if wedge is not None]
    if not known or len(known) < len(wedges) or len({(wedge.axis, wedge.beam) for wedge in known}) > 1:
        return None
    turned, lean = (
        sum(values) / len(known) for values in zip(*((w.turned_deg, w.lean_deg) for w in known), strict=True)
    )
    return replace(known[0], turned_deg=turned, lean_deg=lean)


def _find_lean(power: Tensor, beam: int, angle: float, beside: float) -> float:
    """How far the tilt axis leans towards the beam, degrees; next to the axis the wedge tells it best.

    Args:
        power: spectrum of a tomogram, zero frequency first.
        beam: number of its axis.
        angle: of the tilt axis across it, degrees from the last of the other two axes towards the first.
        beside: of the middle of the wedge beside the beam, degrees.
    """
    planes = power.movedim(beam, 0)
    ahead, *across = (torch.fft.fftfreq(side, dtype=torch.float64) for side in planes.shape)
    along, third = between(across[1], across[0][:, None], angle)
    near = (along.abs() > _ALONG[0]) & (along.abs() < _ALONG[1]) & (third.abs() < _NEAR_THIRD)
    first, last = torch.nonzero(near).unbind(dim=1)
    direction, lean = torch.tensor([angle], dtype=torch.float64), 0.0
    for most in _LEANS_DEG:
        # Looked at is what lies as far ahead of the axis as behind it, as far as its lean is known.
        distance = between(along[first, last], ahead[:, None], lean)[1]
        place = torch.nonzero(distance.abs() < _NEAR_BEAM)
        if len(place) < _FEWEST:
            return 0.0
        one, number = _some(place).unbind(dim=1)
        values = planes[one, first[number], last[number]].double()
        seen = [across[0][first[number]], across[1][last[number]]]
        seen.insert(beam, ahead[one])
        leans = lean + torch.linspace(-most, most, _LEAN_STEPS, dtype=torch.float64)
        emptiness = torch.cat([_emptiness(values, seen, beam, direction, float(value), beside) for value in leans])
        lean = _middle_of_dip(emptiness, leans)
    return lean


def _some(places: Tensor) -> Tensor:
    """Some of many places, the same each time."""
    return places[torch.randint(len(places), (_LOOKED_AT,), generator=torch.Generator().manual_seed(0))]


def _emptiness(
    values: Tensor, along: list[Tensor], beam: int, angles: Tensor, lean_deg: float = 0.0, beside_deg: float = 0.0
) -> Tensor:
    """Power in the wedge over that beside it, for tilt axes at some angles across a beam.

    Args:
        values: power at some frequencies.
        along: these frequencies, along each axis.
        beam: number of its axis.
        angles: degrees, from the last of the other two axes towards the first.
        lean_deg: of the tilt axes towards the beam.
        beside_deg: of the middle of the wedge beside the beam, about the tilt axis.
    """
    first, last = (along[axis][:, None] for axis in range(3) if axis != beam)
    axis, third = between(last, first, angles)
    _, ahead = between(axis, along[beam][:, None], lean_deg)
    ahead, third = between(ahead, third, beside_deg)
    inside = third.abs() < math.tan(math.radians(_DEG)) * ahead.abs()
    means = [(values[:, None] * part).sum(dim=0) / part.sum(dim=0).clamp(min=1) for part in (inside, ~inside)]
    return means[0] / means[1].clamp(min=1e-30)


def _middle_of_dip(emptiness: Tensor, angles: Tensor) -> float:
    """The middle of where the wedge is empty, degrees."""
    weight = (3 * emptiness.min() + _TELLS[0] - emptiness).clamp(min=0)
    return float((weight * angles).sum() / weight.sum())


def _around_axes(power: Tensor) -> tuple[float, float]:
    """Mean power around the first and around the second axis of a plane of a spectrum, zero frequency first."""
    radius, direction = polar(*power.shape)
    ring = (radius >= _RING[0]) & (radius < _RING[1])
    # The direction is counted from the second axis.
    around = [ring & (direction.abs() > 90 - _DEG), ring & (direction.abs() < _DEG)]
    first, second = (float(power[part].mean()) if part.any() else math.nan for part in around)
    return first, second


def find_beam(volume: Tensor, normal: int) -> int:
    """The axis of the beam, by the missing wedge around it.

    Where none shows it is Z, or, where that is the tilt axis, the shorter of the other two.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.

    Returns:
        Number of the axis.
    """
    axes = [axis for axis in range(3) if axis != normal]
    first, second = _around_axes(plane_power(volume, normal))
    if min(first, second) < _SHOWS * max(first, second):
        return axes[0] if first < second else axes[1]
    return 0 if normal != 0 else min(axes, key=lambda axis: volume.shape[axis])


def beam_first(volume: Tensor, normal: int) -> Triple:
    """The order of axes in which the beam comes first, as in most reconstructions.

    Volumes lie another way where IMOD's or AreTomo's were not yet rotated, or where an array has its axes reversed.

    Args:
        volume: the tomogram, ``(Z, Y, X)``.
        normal: number of the tilt axis.

    Returns:
        Numbers of the axes, as ``volume.permute`` takes them: as they are where the beam comes along Z, else beam, tilt
        axis, and the third.
    """
    beam = find_beam(volume, normal)
    return (0, 1, 2) if beam == 0 else (beam, normal, 3 - beam - normal)
