"""Where a fit draws its windows: where there is specimen, rather than in vacuum, padding and gold.

A volume is looked at in blocks of a few voxels. Weights are by block, (Z, Y, X), from 0 to 1.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from cryoshuffle import scratch
from cryoshuffle.errors import InputError
from cryoshuffle.inputs import file_of, load_beside
from cryoshuffle.lattice import Triple
from cryoshuffle.windows import Box, draw_box

logger = logging.getLogger("cryoshuffle")
# Side of a block, voxels; what is left of a mask's surroundings along each axis at least, voxels.
BLOCK, MARGIN = 8, 64
# Blocks whose variance is within this factor of the usual one are drawn alike. Contrast is far below it, gold and
# constant padding are far beyond.
USUAL = 16.0
_CONSTANT = 1e-6
_TRIES = 64
# What all blocks lack on average has to be more, or they are drawn alike.
_MATTERS = 0.01


def _by_block(slab: Tensor) -> Tensor:
    """Means over blocks of one slab that is a block thick at most, (Y, X).

    Copy them to where they are kept: many small tensors made between large ones leave gaps in memory that grow to the
    size of the volume.
    """
    side = (slab.shape[0], min(BLOCK, slab.shape[1]), min(BLOCK, slab.shape[2]))
    return F.avg_pool3d(slab[None, None], side, stride=(BLOCK,) * 3, ceil_mode=True, count_include_pad=False)[0, 0, 0]


def robust_weights(volume: Tensor) -> Tensor:
    """Weights that keep vacuum, padding and gold from being drawn more than they are worth.

    Args:
        volume: ``(1, Z, Y, X)``, standardised.

    Returns:
        1 where the variance within a block is within a factor of 16 of the usual one; beyond, as much less as it is
        farther off; 0 in constant blocks. Usual is the median over blocks, each counted by its standard deviation:
        neither much vacuum nor little gold moves it.
    """
    # Of whole blocks; what is left at the end of an axis is too little to tell, and is worth what its neighbour is.
    whole = [n // BLOCK * BLOCK or n for n in volume.shape[1:]]
    variance = torch.empty([-(-n // BLOCK) for n in whole])
    for row, start in enumerate(range(0, whole[0], BLOCK)):
        slab = volume[0, start : start + BLOCK, : whole[1], : whole[2]].float()
        variance[row] = (_by_block(slab.square()) - _by_block(slab).square()).clamp_(min=0)
        scratch.release()
    left = [-(-n // BLOCK) - found for n, found in zip(volume.shape[1:], variance.shape, strict=True)]
    variance = F.pad(variance[None], [0, left[2], 0, left[1], 0, left[0]], mode="replicate")[0]
    sizes = variance.flatten().sort().values
    counted = sizes.sqrt().cumsum(0)
    usual = sizes[int(torch.searchsorted(counted, counted[-1] / 2).clamp_(max=len(sizes) - 1))]
    if usual <= 0:
        return torch.ones_like(variance)
    living = variance > _CONSTANT * usual
    ratio = torch.where(living, variance / usual, 1.0)
    weights = torch.minimum(ratio * USUAL, USUAL / ratio).clamp_(max=1)
    return torch.where(living, weights, 0.0)


def read_mask(
    path: str, folder: str | os.PathLike[str] | None = None, tomogram: str | None = None
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The values of a mask, and what tells which of them are inside.

    Of two values the one farther from 0 is inside, and of two on one side of it, as of IMOD's signed bytes, the larger
    one. Of whole numbers, as labels are, all but 0 are. Of values between, a soft edge, those above half of the largest
    are, and it is told. What is not finite is outside.

    Args:
        path: of the mask, any kind of file that a tomogram may be.
        folder: where one too large for memory is kept; None for memory.
        tomogram: path of the tomogram that it is of (:func:`cryoshuffle.inputs.load_beside`); None for none.

    Returns:
        Values (Z, Y, X), and a function from some of them to booleans.

    Raises:
        FileError: if it is missing or cannot be read.
        InputError: if it is no volume, marks nothing, or has values of both signs that are no mask.
    """
    values = load_beside(path, tomogram, True, folder).as_tensor()[0]
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
    if low > high or low == high == 0:
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


def mask_weights(path: str, folder: str | os.PathLike[str] | None = None, tomogram: str | None = None) -> Tensor:
    """The share of each block that is inside a mask, as :func:`read_mask` has it.

    Args:
        path: of the mask, any kind of file that a tomogram may be.
        folder: where one too large for memory is kept; None for memory.
        tomogram: path of the tomogram that it is of; None for none.

    Raises:
        FileError, InputError: those of :func:`read_mask`.
    """
    values, inside = read_mask(path, folder, tomogram)
    weights = torch.empty([-(-n // BLOCK) for n in values.shape])
    for row, start in enumerate(range(0, len(values), BLOCK)):
        weights[row] = _by_block(inside(values[start : start + BLOCK]).float())
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
        there = weights.amax(dim=[a for a in range(3) if a != axis]).nonzero().flatten()
        start, stop, least = int(there[0]) * BLOCK, min(side, (int(there[-1]) + 1) * BLOCK), min(MARGIN, side)
        if stop - start < least:
            start = min(max(0, (start + stop - least) // 2), side - least) // BLOCK * BLOCK
            stop = min(side, start + least + BLOCK)
        sides.append(slice(start, stop))
    return sides[0], sides[1], sides[2]


def draw_by_worth(shape: Sequence[int], window: Triple, random: np.random.RandomState, weights: Tensor) -> Box:
    """A window at a random place, as often as its blocks are worth on average.

    Args:
        shape: of the region that windows are drawn from, which starts where the weights do.
        window: its sides, voxels.
        random: numbers.
        weights: of blocks, from 0 to 1.

    Returns:
        the window; where many are refused in turn, the one of them that is worth most.
    """
    best, most = None, -1.0
    for _ in range(_TRIES):
        box = draw_box(shape, window, random)
        worth = float(weights[tuple(slice(s.start // BLOCK, -(-s.stop // BLOCK)) for s in box)].mean())
        if best is None or worth > most:
            best, most = box, worth
        if random.random_sample() < worth:
            return box
    assert best is not None
    return best


class FitRegiond(MapTransform):
    """Crops images to where a fit looks, and says how much each block of them is worth.

    A window is then drawn as often as the blocks in it are worth on average (:class:`RandLatticeWindowd
    <cryoshuffle.transforms.RandLatticeWindowd>`), and blocks that are worth little are not scored.

    Args:
        keys: of the images, ``(1, Z, Y, X)``, standardised and oriented.
        mask: path of a mask of the specimen; None for the whole volume.
        folder: where a mask too large for memory is kept.
        robust: keep vacuum, padding and gold from dominating (:func:`robust_weights`).
        weights_key: where the weights go; nothing goes there if almost all blocks are worth the same.
        allow_missing_keys: do not complain about a missing key.

    Raises:
        FileError, InputError: see :func:`mask_weights`; or if the mask is of another shape.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        robust: bool = True,
        weights_key: str = "weights",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.folder, self.robust, self.weights_key = mask, folder, robust, weights_key
        self.notes: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Say what was found when a fit begins, for its log."""
        engine.add_event_handler(Events.STARTED, self._say)

    def _say(self, engine: Engine) -> None:
        for note in self.notes:
            logger.info(note)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Crop, and weigh."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            plain = torch.as_tensor(image).as_subclass(Tensor)
            weights = robust_weights(plain) if self.robust else None
            if weights is not None and float(weights.mean()) > 1 - _MATTERS:
                weights = None
            if weights is not None:
                share = float((weights < 1).float().mean())
                self.notes.append(
                    f"{share:.0%} of the volume is nearly constant or of far more contrast than the rest; "
                    "windows avoid it"
                )
            if self.mask is not None:
                inside = mask_weights(self.mask, self.folder, file_of(image))
                whole = tuple(-(-n // BLOCK) for n in plain.shape[1:])
                if tuple(inside.shape) != whole:
                    raise InputError(f"{self.mask}: is not of the shape of the tomogram, give a mask of its voxels")
                region = mask_region(inside, tuple(plain.shape[1:]))
                weights = inside if weights is None else inside * weights
                weights = weights[tuple(slice(s.start // BLOCK, -(-s.stop // BLOCK)) for s in region)]
                if not bool(weights.any()):
                    raise InputError(f"{self.mask}: the tomogram is constant there, give the mask of the specimen")
                result[key] = image[(slice(None), *region)]
                self.notes.append(f"the fit looks at {float(inside.mean()):.1%} of the volume, as the mask says")
            if weights is not None:
                result[self.weights_key] = weights
        return result


FitRegionD = FitRegionDict = FitRegiond
