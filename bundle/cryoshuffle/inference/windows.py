"""How a volume is cut into windows for inference, each with its halo."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from cryoshuffle.boxes import Box, box_between, box_seen_from, round_up
from cryoshuffle.lattice import Triple, as_triple

_MOST_CUTS = 64
# Pieces of this many voxels go through the network fastest on a CPU (measured: 0.25 to 1.3 million; twice that takes a
# fifth longer), and GPUs are busy with them.
_PIECE = 1_300_000


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
        yield Window(box_between(first, last), box_between(start, stop), box_seen_from(start, stop, first))


def choose_window(shape: Sequence[int], halo: Sequence[int] | int, period: Triple, most: int) -> Triple:
    """The window with which a volume takes the least work, of those that read no more than ``most`` voxels.

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
