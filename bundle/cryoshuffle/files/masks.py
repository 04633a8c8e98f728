"""Masks: read, checked against their tomogram, and the box that holds one."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.boxes import Box
from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram

logger = logging.getLogger("cryoshuffle")
# Side of a block, voxels; what is left of a mask's surroundings along each axis at least, voxels.
BLOCK, MARGIN = 8, 64


def mean_by_block(slab: Tensor) -> Tensor:
    """Means over blocks of one slab that is a block thick at most, (Y, X).

    Copy them to where they are kept: many small tensors made between large ones leave gaps in memory that grow to the
    size of the volume.
    """
    side = (slab.shape[0], min(BLOCK, slab.shape[1]), min(BLOCK, slab.shape[2]))
    return F.avg_pool3d(slab[None, None], side, stride=(BLOCK,) * 3, ceil_mode=True, count_include_pad=False)[0, 0, 0]


def read_mask(
    path: str,
    folder: str | os.PathLike[str] | None = None,
    tomogram: str | None = None,
    shape: Sequence[int] | None = None,
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The values of a mask, and what tells which of them are inside.

    Of two values the one farther from 0 is inside, and of two on one side of it, as of IMOD's signed bytes, the larger
    one. Of whole numbers, as labels are, all but 0 are. Of values between, a soft edge, those above half of the largest
    are, and it is told. What is not finite is outside.

    Args:
        path: of the mask, any kind of file that a tomogram may be.
        folder: where one too large for memory is kept; None for memory.
        tomogram: path of the tomogram that it is of (:func:`cryoshuffle.files.formats.load_tomogram`); None for none.
        shape: (Z, Y, X) of the tomogram; None for any.

    Returns:
        Values (Z, Y, X), and a function from some of them to booleans.

    Raises:
        FileError: if it is missing or cannot be read.
        InputError: if it is no volume, of another shape, marks nothing, or has values of both signs that are no mask.
    """
    values = load_tomogram(path, True, folder, beside=tomogram).as_tensor()[0]
    if shape is not None:
        check_mask_shape(path, tuple(values.shape), tuple(shape))
    low, high, whole, outside = math.inf, -math.inf, True, False
    for part in scratch.sections(values.shape, 0):
        section = values[part]
        finite = section[section.isfinite()]
        outside |= finite.numel() < section.numel()
        if finite.numel():
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
            whole &= bool((finite == finite.round()).all())
    two = low < high
    for part in scratch.sections(values.shape, 0):
        section = values[part]
        two &= bool(((section == low) | (section == high) | ~section.isfinite()).all())
    if low > high:
        raise InputError(f"{path}: has no voxel that is a number, a mask is not 0 where the specimen is")
    if low == high == 0:
        raise InputError(f"{path}: is 0 everywhere, a mask is not 0 where the specimen is")
    if low == high:
        if not outside:
            logger.warning("%s: is %g everywhere, so it marks all of the volume", path, low)
        return values, torch.isfinite
    if two and high == 0:
        return values, lambda part: part == low
    if two:
        return values, lambda part: part == high
    if whole and low >= 0:
        return values, lambda part: part.isfinite() & (part != 0)
    if low < 0:
        raise InputError(f"{path}: has values from {low:g} to {high:g}, a mask has two, or whole numbers from 0 on")
    logger.warning("%s: has values between 0 and %g, those above half of that are taken for inside", path, high)
    return values, lambda part: part > high / 2


def check_mask_shape(path: str, own: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """Refuse a mask, of shape ``own``, that is not of the shape of its tomogram.

    Raises:
        InputError: naming both.
    """
    if own != shape:
        raise InputError(f"{path}: is of {own} voxels, the tomogram of {shape}; give a mask of its voxels")


def mask_weights(
    path: str,
    folder: str | os.PathLike[str] | None = None,
    tomogram: str | None = None,
    shape: Sequence[int] | None = None,
) -> Tensor:
    """The share of each block that is inside a mask, as :func:`read_mask` has it.

    Args:
        path: of the mask, any kind of file that a tomogram may be.
        folder: where one too large for memory is kept; None for memory.
        tomogram: path of the tomogram that it is of; None for none.
        shape: (Z, Y, X) of the tomogram; None for any.

    Raises:
        FileError, InputError: those of :func:`read_mask`.
    """
    values, inside = read_mask(path, folder, tomogram, shape)
    weights = torch.empty([-(-n // BLOCK) for n in values.shape])
    for row, start in enumerate(range(0, len(values), BLOCK)):
        weights[row] = mean_by_block(inside(values[start : start + BLOCK]).float())
        scratch.release()
    return weights


def mask_region(weights: Tensor, shape: tuple[int, ...]) -> Box:
    """The smallest box of whole blocks around a mask, but no thinner than a fit needs.

    Args:
        weights: of :func:`mask_weights`.
        shape: of the volume, (Z, Y, X).
    """
    sides = []
    for axis, side in enumerate(shape):
        blocks = weights.amax(dim=[a for a in range(3) if a != axis]).nonzero().flatten()
        start, stop, least = int(blocks[0]) * BLOCK, min(side, (int(blocks[-1]) + 1) * BLOCK), min(MARGIN, side)
        if stop - start < least:
            start = min(max(0, (start + stop - least) // 2), side - least) // BLOCK * BLOCK
            stop = min(side, start + least + BLOCK)
        sides.append(slice(start, stop))
    return sides[0], sides[1], sides[2]


def load_mask(path: str, folder: str | os.PathLike[str] | None = None, tomogram: str | None = None) -> Tensor:
    """A mask from a file, true inside, (Z, Y, X), as :func:`cryoshuffle.files.masks.read_mask` has it.

    Args:
        path: of the file.
        folder: where a volume too large for memory is kept while it is read; None for memory.
        tomogram: path of the tomogram that it is of; None for none.

    Raises:
        FileError, InputError: those of :func:`cryoshuffle.files.masks.read_mask`.
    """
    values, inside = read_mask(path, folder, tomogram)
    mask = torch.empty(values.shape, dtype=torch.bool)
    for part in scratch.sections(values.shape, 0):
        mask[part] = inside(values[part])
    return mask
