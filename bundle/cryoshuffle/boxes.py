"""Boxes of voxels: windows that fit a volume, and where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import AXES, Triple, as_triple

Box = tuple[slice, slice, slice]


def round_up(size: int, multiple: int) -> int:
    """The next multiple that is not smaller."""
    return -(-size // multiple) * multiple


def middle(shape: Sequence[int], largest: int | None) -> Box:
    """The middle of a volume (Z, Y, X), at most ``largest`` voxels along each axis; None for all of it."""
    z, y, x = (0 if largest is None else max(0, n - largest) // 2 for n in shape)
    sides = [n if largest is None else min(n, largest) for n in shape]
    return slice(z, z + sides[0]), slice(y, y + sides[1]), slice(x, x + sides[2])


def block_sums(values: Tensor, side: int) -> Tensor:
    """Sums over blocks of voxels, whose scatter tells chance; the last blocks along an axis may be smaller.

    Args:
        values: whose last three axes are ``(Z, Y, X)``.
        side: of a block, voxels.

    Shape:
        ``(..., Z, Y, X) -> (blocks,)``, of at most five axes.
    """
    blocks = [min(side, n) for n in values.shape[-3:]]
    batched = values if values.ndim > 3 else values[None]
    return F.avg_pool3d(batched, blocks, ceil_mode=True, divisor_override=1).flatten()


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
                f"of the tomogram a fit sees {side} voxels along {axis}, less than the lattice period of {step}: "
                "give a larger tomogram, or use a smaller --stride or another blind set"
            )
        if want < step:
            raise SettingError(f"window is {want} along {axis}, less than the lattice period of {step}: use more")
        sides.append(min(want, side) // step * step)
    return sides[0], sides[1], sides[2]


def box_between(start: Sequence[int], stop: Sequence[int]) -> Box:
    """The box from one corner up to another."""
    z, y, x = (slice(a, b) for a, b in zip(start, stop, strict=True))
    return z, y, x


def box_seen_from(start: Sequence[int], stop: Sequence[int], origin: Sequence[int]) -> Box:
    """The same box in coordinates that begin at another origin."""
    z, y, x = (slice(a - o, b - o) for a, b, o in zip(start, stop, origin, strict=True))
    return z, y, x


def draw_box(shape: Sequence[int], window: Triple, random: np.random.RandomState) -> Box:
    """A window at a random place of a region, any voxel of which may be its start."""
    start = [int(random.randint(0, n - w + 1)) for n, w in zip(shape, window, strict=True)]
    return box_between(start, [a + w for a, w in zip(start, window, strict=True)])
