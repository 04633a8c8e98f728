"""Which way a tomogram lies, by its missing wedge; and how to stand it upright where its axes are off the grid.

Beside the beam, all along the tilt axis, there is next to no power in the spectrum: no image was seen from there. No
filter behind the reconstruction changes that. Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.lattice import AXES, Triple
from cryoshuffle.noise.axes import line_along
from cryoshuffle.noise.ramp import polar

# Where the wedge is looked for: distance from the origin of the spectrum or from the tilt axis, cycles per voxel, and
# degrees around the beam.
_RING = (0.15, 0.35)
_DEG = 20.0
# Power in the wedge over that beside it from which on none shows, for a tilt axis that is known.
_SHOWS = 0.7
# The same where tilt axis and beam are not known, of the best pair and at least of the others: a real cell in 14
# variants and a real microtubule have .0008 to .007 and .17 to .77.
_TELLS = (0.03, 0.08)
# Degrees that a tilt axis may be off the grid and count as on it.
_ON_GRID_DEG = 1.5
# Frequencies that are looked at, and the fewest that tell. Degrees between angles at first, and around the best one.
_LOOKED_AT, _FEWEST = 15_000, 2_000
_COARSE_DEG, _AROUND_DEG = 3.0, 15.0


@dataclass(frozen=True)
class Wedge:
    """The missing wedge of a tomogram.

    Attributes:
        axis: of the grid that is nearest to the tilt axis.
        beam: axis of the grid that the beam comes along.
        turned_deg: from that axis to the tilt axis, towards the third one, -45 to 45 degrees.
    """

    axis: str
    beam: str
    turned_deg: float

    @property
    def is_turned(self) -> bool:
        """Whether the tilt axis is off the grid."""
        return abs(self.turned_deg) > _ON_GRID_DEG


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
    chosen = torch.randint(len(ring), (_LOOKED_AT,), generator=torch.Generator().manual_seed(0))
    place = ring[chosen].unbind(dim=1)
    values = power[place].double()
    along = [line[index] for line, index in zip(lines, place, strict=True)]
    angles = torch.arange(-90, 90, _COARSE_DEG, dtype=torch.float64)
    emptiness = [_emptiness(values, along, beam, angles) for beam in range(3)]
    beam, *others = sorted(range(3), key=lambda axis: float(emptiness[axis].min()))
    least = emptiness[beam]
    if not (float(least.min()) < _TELLS[0] and all(float(emptiness[other].min()) > _TELLS[1] for other in others)):
        return None
    near = float(angles[int(least.argmin())]) + torch.arange(-_AROUND_DEG, _AROUND_DEG + 1, dtype=torch.float64)
    angle = _middle_of_dip(_emptiness(values, along, beam, near), near)
    # Angles are counted from the last axis across the beam towards the first.
    first, last = (axis for axis in range(3) if axis != beam)
    nearest, turned = (last, angle) if abs(angle) <= 45 else (first, math.copysign(90 - abs(angle), angle))
    return Wedge(AXES[nearest], AXES[beam], turned)


def mean_wedge(wedges: Sequence[Wedge | None]) -> Wedge | None:
    """The wedge of several tomograms that lie one way; None where they do not, or one shows none."""
    known = [wedge for wedge in wedges if wedge is not None]
    if not known or len(known) < len(wedges) or len({(wedge.axis, wedge.beam) for wedge in known}) > 1:
        return None
    return replace(known[0], turned_deg=sum(wedge.turned_deg for wedge in known) / len(known))


def _emptiness(values: Tensor, along: list[Tensor], beam: int, angles: Tensor) -> Tensor:
    """Power in the wedge over that beside it, for tilt axes at some angles across a beam.

    Args:
        values: power at some frequencies.
        along: these frequencies, along each axis.
        beam: number of its axis.
        angles: degrees, from the last of the other two axes towards the first.
    """
    first, last = (along[axis][:, None] for axis in range(3) if axis != beam)
    radians = torch.deg2rad(angles)
    across = first * radians.cos() - last * radians.sin()
    inside = across.abs() < math.tan(math.radians(_DEG)) * along[beam][:, None].abs()
    means = [(values[:, None] * part).sum(dim=0) / part.sum(dim=0).clamp(min=1) for part in (inside, ~inside)]
    return means[0] / means[1].clamp(min=1e-30)


def _middle_of_dip(emptiness: Tensor, angles: Tensor) -> float:
    """The middle of where the wedge is empty, degrees between -90 and 90."""
    weight = (3 * emptiness.min() + _TELLS[0] - emptiness).clamp(min=0)
    return (float((weight * angles).sum() / weight.sum()) + 90) % 180 - 90


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
    values = (volume - volume.mean()).movedim(normal, 0)
    for axis in (1, 2):
        values = values * line_along(torch.hann_window(values.shape[axis], periodic=False), axis)
    power = torch.zeros(values.shape[1:])
    for part in values.split(16):
        power += torch.fft.fft2(part).abs().square().sum(dim=0)
    first, second = _around_axes(power)
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


@dataclass(frozen=True)
class Turn:
    """A turn about the beam that lays the tilt axis along an axis of the grid.

    Attributes:
        beam: number of its axis.
        normal: number of the axis that is nearest to the tilt axis.
        degrees: from that axis to the tilt axis, towards the third one.
    """

    beam: int
    normal: int
    degrees: float

    @property
    def _radians(self) -> float:
        return math.radians(self.degrees)

    def widen(self, side: int) -> int:
        """Side of a cube whose middle, of a side, is known when it was turned, voxels; even if that is."""
        if not self.degrees:
            return side
        return side + 2 * math.ceil(side * (math.cos(self._radians) + abs(math.sin(self._radians)) - 1) / 2 + 1)

    def upright(self, volume: Tensor) -> Tensor:
        """The middle of a volume, turned, as far as it is known.

        Three shears by shifts in the Fourier domain: white noise stays white, and nothing is damped.

        Args:
            volume: ``(Z, Y, X)``.

        Shape:
            less along tilt axis and third axis, by :meth:`widen`.

        Source:
            Paeth 1986, "A fast algorithm for general raster rotation"; Unser, Thevenaz & Yaroslavsky 1995,
            "Convolution-based interpolation for fast, high-quality rotation of images".
        """
        if not self.degrees:
            return volume
        third = 3 - self.beam - self.normal
        order = (self.beam, self.normal, third)
        values = volume.permute(order)
        values = _sheared(values, 1, -math.tan(self._radians / 2))
        values = _sheared(values, 2, math.sin(self._radians))
        values = _sheared(values, 1, -math.tan(self._radians / 2))
        cosine, sine = math.cos(self._radians), abs(math.sin(self._radians))
        one, two = values.shape[1:]
        share = min(one / (one * cosine + two * sine), two / (one * sine + two * cosine))
        kept = [min(side, 2 * (int(share * side) // 2) + side % 2) for side in (one, two)]
        first, second = ((side - keep) // 2 for side, keep in zip((one, two), kept, strict=True))
        values = values[:, first : first + kept[0], second : second + kept[1]]
        return values.permute([order.index(axis) for axis in range(3)]).contiguous()

    def as_given(self, spectrum: Tensor) -> Tensor:
        """The power spectrum of a volume, from that of the volume turned upright; what lies in corners is not known.

        Shape:
            ``(G, G, G)``, zero frequency first.
        """
        if not self.degrees:
            return spectrum
        order = (self.beam, self.normal, 3 - self.beam - self.normal)
        side = spectrum.shape[0]
        # From -0.5 to 0.5, both ends included.
        centred = F.pad(torch.fft.fftshift(spectrum.permute(order))[:, None], (0, 1, 0, 1), mode="circular")
        line = torch.linspace(-1, 1, side + 1, dtype=spectrum.dtype)[:side]
        one, two = line[:, None].expand(side, side), line.expand(side, side)
        cosine, sine = math.cos(self._radians), math.sin(self._radians)
        along, across = one * cosine + two * sine, two * cosine - one * sine
        grid = torch.stack([across, along], dim=-1).expand(side, side, side, 2)
        turned = F.grid_sample(centred, grid, padding_mode="border", align_corners=True)[:, 0]
        return torch.fft.ifftshift(turned).permute([order.index(axis) for axis in range(3)]).contiguous()


UPRIGHT = Turn(0, 1, 0.0)


def _sheared(volume: Tensor, axis: int, slope: float) -> Tensor:
    """What lies at ``u + slope * v``, where u counts along an axis (1 or 2) and v along the other, from the middle."""
    side, other = volume.shape[axis], volume.shape[3 - axis]
    shift = slope * (torch.arange(other, dtype=torch.float32) - (other - 1) / 2)
    wave = 2 * math.pi * torch.fft.rfftfreq(side)
    phase = torch.polar(torch.ones(1), line_along(wave, axis) * line_along(shift, 3 - axis))
    return torch.fft.irfft(torch.fft.rfft(volume.float(), dim=axis) * phase, n=side, dim=axis)
