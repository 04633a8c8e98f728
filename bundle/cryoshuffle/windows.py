"""Window geometry: the windows a volume is cut into, and the slab that is held out of the fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import AXES, Triple, as_triple

Box = tuple[slice, slice, slice]
_MOST_CUTS = 64
# Pieces of so many voxels go through the network fastest on a CPU (measured: 0.25 to 1.3 million; twice that takes a
# fifth longer), and GPUs are busy with them.
_PIECE = 1_300_000


def round_up(size: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-size // multiple) * multiple


def middle(shape: Sequence[int], largest: int | None) -> Box:
    """The middle of a volume (Z, Y, X), at most so many voxels along each axis; None for all of it."""
    z, y, x = (0 if largest is None else max(0, n - largest) // 2 for n in shape)
    sides = [n if largest is None else min(n, largest) for n in shape]
    return slice(z, z + sides[0]), slice(y, y + sides[1]), slice(x, x + sides[2])


def fit_window(window: Sequence[int] | int, shape: Sequence[int], period: Triple) -> Triple:
    """The largest window of whole lattice periods that is asked for and fits.

    Args:
        window: asked for, along (Z, Y, X), voxels.
        shape: of the region that windows are drawn from.
        period: of the lattice: stride times unshuffle factors.

    Raises:
        InputError: if the region is shorter than one period along an axis.
        SettingError: if the window is.
    """
    wanted = as_triple(window, "window", smallest=1)
    sides = []
    for axis, want, side, step in zip(AXES, wanted, shape, period, strict=True):
        if side < step:
            raise InputError(
                f"the tomogram has {side} voxels to fit to along {axis}, less than the lattice period of {step}: "
                "use a smaller --stride or another blind set"
            )
        if want < step:
            raise SettingError(f"window is {want} along {axis}, less than the lattice period of {step}: use more")
        sides.append(min(want, side) // step * step)
    return sides[0], sides[1], sides[2]


@dataclass(frozen=True)
class Window:
    """One window: what is read, and what of it is kept.

    Attributes:
        read: voxels the network is given, halo included.
        keep: voxels whose prediction is kept.
        core: the same voxels, counted from the start of ``read``.
    """

    read: Box
    keep: Box
    core: Box


def cut_windows(
    shape: Sequence[int], window: Sequence[int] | int, halo: Sequence[int] | int, period: Triple
) -> Iterator[Window]:
    """Windows that cover a volume once, each with a halo of context that is thrown away.

    Every window starts on a multiple of the lattice period, read and kept, so that neighbouring windows divide
    their voxels among the sub-lattices in the same way.

    Args:
        shape: of the volume (Z, Y, X).
        window: side of the kept part, voxels; rounded up to whole periods.
        halo: context on every side, voxels; rounded up to whole periods.
        period: of the lattice.

    Yields:
        Windows in the order Z, Y, X; their ``keep`` are disjoint and their union is the volume.
    """
    sides = [round_up(w, p) for w, p in zip(as_triple(window, "window", 1), period, strict=True)]
    rims = [round_up(h, p) for h, p in zip(as_triple(halo, "halo"), period, strict=True)]
    for start in product(*(range(0, n, s) for n, s in zip(shape, sides, strict=True))):
        stop = [min(a + s, n) for a, s, n in zip(start, sides, shape, strict=True)]
        first = [max(0, a - r) for a, r in zip(start, rims, strict=True)]
        last = [min(n, b + r) for b, r, n in zip(stop, rims, shape, strict=True)]
        yield Window(_box(first, last), _box(start, stop), _box_from(start, stop, first))


def choose_window(shape: Sequence[int], halo: Sequence[int] | int, period: Triple, most: int) -> Triple:
    """The window with which a volume takes the least work, of those that read no more than so many voxels.

    Args:
        shape: of the volume (Z, Y, X).
        halo: context on every side, voxels.
        period: of the lattice.
        most: voxels that a window may read, halo included; where not even the smallest window reads so few, the one
            that reads the least is taken.

    Returns:
        Sides of the kept part along (Z, Y, X), whole periods, no larger than it takes for the volume.
    """
    # Along an axis: side, voxels read by one window at most and by all.
    choices: list[list[tuple[int, int, int]]] = []
    for n, rim, step in zip(shape, as_triple(halo, "halo"), period, strict=True):
        rim = round_up(rim, step)
        sides = sorted({round_up(-(-n // count), step) for count in range(1, min(_MOST_CUTS, -(-n // step)) + 1)})
        spans = [[min(n, a + s + rim) - max(0, a - rim) for a in range(0, n, s)] for s in sides]
        choices.append([(s, max(span), sum(span)) for s, span in zip(sides, spans, strict=True)])

    def rank(window: Sequence[tuple[int, int, int]]) -> tuple[int, int, int]:
        largest, work = (math.prod(axis[i] for axis in window) for i in (1, 2))
        return max(0, largest - most), work, largest

    z, y, x = (axis[0] for axis in min(product(*choices), key=rank))
    return z, y, x


def choose_pieces(
    shape: Sequence[int], halo: Sequence[int] | int, period: Triple, most: int, held: int
) -> tuple[Triple, int]:
    """The window and the thickness with which a volume takes the least work if it is streamed along Z.

    Args:
        shape: of the volume (Z, Y, X).
        halo: context on every side, voxels; there is none along Z.
        period: of the lattice.
        most: voxels that a piece may have, halo and what is held included; where not even the smallest window has so
            few, the one with the fewest is taken.
        held: planes that the layers keep between two pieces, in all.

    Returns:
        Sides of the kept part along (Z, Y, X), the first that of the volume, and planes of a piece, whole periods: the
        fewest that make for the least work, but more where there is memory for them.
    """
    rims = as_triple(halo, "halo")
    step, sides = (1, period[1], period[2]), (1, shape[1], shape[2])
    thickness = period[0]
    window = choose_window(sides, (0, rims[1], rims[2]), step, most // (thickness + held))
    area = max(
        math.prod(s.stop - s.start for s in cut.read) for cut in cut_windows(sides, window, (0, *rims[1:]), step)
    )
    while thickness < shape[0] and 2 * thickness * area <= _PIECE and area * (2 * thickness + held) <= most:
        thickness *= 2
    return (shape[0], window[1], window[2]), thickness


def _box(start: Sequence[int], stop: Sequence[int]) -> Box:
    z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return z, y, x


def _box_from(start: Sequence[int], stop: Sequence[int], origin: Sequence[int]) -> Box:
    z, y, x = (slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
    return z, y, x


@dataclass(frozen=True)
class HeldOutSlab:
    """A slab at the end of the longest axis that the fit never sees, for the blind risk.

    Args:
        fraction: of the volume held out.
        gap: voxels between the slab and what the fit sees; noise that reaches from one into the other does not
            reach across.
        context: voxels around the slab that the network may look at when the slab is scored.
        largest: longest side of the scored part along the other axes; the rest is left out to save time.

    Raises:
        SettingError: for a fraction outside (0, 0.5].
    """

    fraction: float = 0.1
    gap: int = 4
    context: int = 24
    largest: int = 128

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise SettingError(f"held-out fraction is {self.fraction}: give more than 0 and at most 0.5")

    def _axis(self, shape: Sequence[int]) -> int:
        return max((1, 2, 0), key=lambda axis: shape[axis])

    def _start(self, shape: Sequence[int]) -> int:
        side = shape[self._axis(shape)]
        return side - max(1, round(side * self.fraction))

    def fit_region(self, shape: Sequence[int]) -> Box:
        """The part of a volume (Z, Y, X) that the fit may see."""
        axis = self._axis(shape)
        z, y, x = (
            slice(0, max(1, self._start(shape) - self.gap)) if a == axis else slice(0, shape[a]) for a in range(3)
        )
        return z, y, x

    def scored(self, shape: Sequence[int]) -> Window:
        """The part of a volume that is read for the risk, and the voxels of it that are scored."""
        axis = self._axis(shape)
        read, keep = [], []
        for a, side in enumerate(shape):
            middle = max(0, (side - self.largest) // 2)
            start = self._start(shape) if a == axis else middle
            stop = side if a == axis else min(side, middle + self.largest)
            read.append((max(0, start - self.context), min(side, stop + self.context)))
            keep.append((start, stop))
        first, last = zip(*read, strict=True)
        start_, stop_ = zip(*keep, strict=True)
        return Window(_box(first, last), _box(start_, stop_), _box_from(start_, stop_, first))


def draw_box(shape: Sequence[int], window: Triple, random: np.random.RandomState) -> Box:
    """A window at a random place of a region, any voxel of which may be its start."""
    start = [int(random.randint(0, n - w + 1)) for n, w in zip(shape, window, strict=True)]
    return _box(start, [a + w for a, w in zip(start, window, strict=True)])
