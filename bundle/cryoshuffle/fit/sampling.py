"""Where a fit draws its windows: where there is specimen, rather than in vacuum, padding and gold.

A volume is looked at in blocks of a few voxels. Weights are by block, (Z, Y, X), from 0 to 1.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.transforms import MapTransform
from torch import Tensor

from cryoshuffle.boxes import Box, box_between, box_seen_from, draw_box
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.masks import BLOCK, mask_region, mask_weights, mean_by_block
from cryoshuffle.files.volumes import file_of
from cryoshuffle.inference.windows import Window
from cryoshuffle.lattice import Triple

logger = logging.getLogger("cryoshuffle")
# Where an item of a fit has what its blocks are worth.
WEIGHTS_KEY = "weights"
# Blocks whose variance is within this factor of the usual one are drawn alike. Contrast is far below it, gold and
# constant padding are far beyond.
USUAL = 16.0
_CONSTANT = 1e-6
_TRIES = 64
# What all blocks lack on average has to be more, or they are drawn alike.
_MATTERS = 0.01


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
        variance[row] = (mean_by_block(slab.square()) - mean_by_block(slab).square()).clamp_(min=0)
        scratch.release()
    missing = [-(-n // BLOCK) - blocks for n, blocks in zip(volume.shape[1:], variance.shape, strict=True)]
    variance = F.pad(variance[None], [0, missing[2], 0, missing[1], 0, missing[0]], mode="replicate")[0]
    sizes = variance.flatten().sort().values
    counted = sizes.sqrt().cumsum(0)
    usual = sizes[int(torch.searchsorted(counted, counted[-1] / 2).clamp_(max=len(sizes) - 1))]
    if usual <= 0:
        return torch.ones_like(variance)
    living = variance > _CONSTANT * usual
    ratio = torch.where(living, variance / usual, 1.0)
    weights = torch.minimum(ratio * USUAL, USUAL / ratio).clamp_(max=1)
    return torch.where(living, weights, 0.0)


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
    <cryoshuffle.fit.transforms.RandLatticeWindowd>`), and blocks that are worth little are not scored. It is kept under
    ``weights``; nothing is where almost all blocks are worth the same.

    Args:
        keys: of the images, ``(1, Z, Y, X)``, standardised and oriented.
        mask: path of a mask of the specimen; None for the whole volume.
        folder: where a mask too large for memory is kept.
        robust: keep vacuum, padding and gold from dominating (:func:`robust_weights`).
        allow_missing_keys: do not complain about a missing key.

    Attributes:
        notes: sentences for the log of a fit.

    Raises:
        FileError, InputError: see :func:`mask_weights`; or if the mask is of another shape.
    """

    def __init__(
        self,
        keys: KeysCollection,
        mask: str | None = None,
        folder: str | os.PathLike[str] | None = None,
        robust: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask, self.folder, self.robust = mask, folder, robust
        self.notes: list[str] = []

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
                shape = tuple(plain.shape[1:])
                inside = mask_weights(self.mask, self.folder, file_of(image), shape)
                region = mask_region(inside, shape)
                weights = inside if weights is None else inside * weights
                weights = weights[tuple(slice(s.start // BLOCK, -(-s.stop // BLOCK)) for s in region)]
                if not bool(weights.any()):
                    raise InputError(f"{self.mask}: the tomogram is constant there, give the mask of the specimen")
                result[key] = image[(slice(None), *region)]
                self.notes.append(f"the fit looks at {float(inside.mean()):.1%} of the volume, as the mask says")
            if weights is not None:
                result[WEIGHTS_KEY] = weights
        return result


FitRegionD = FitRegionDict = FitRegiond


@dataclass(frozen=True)
class HeldOutSlab:
    """A slab at the end of the longest axis that the fit never sees, for the blind risk.

    Args:
        fraction: of the volume held out.
        gap: voxels between the slab and what the fit sees; noise that reaches from one into the other does not
            reach across.
        context: voxels around the slab that the network may look at when the slab is scored.
        largest: longest side of the scored part along the other axes; the rest is left out to save time.
        border: outermost planes that are not scored, a third of the slab at most: interpolation makes their noise
            weaker, so that a network which smooths too much would look good there.

    Raises:
        SettingError: for a fraction outside (0, 0.5], or a number of voxels below 0.
    """

    fraction: float = 0.1
    gap: int = 4
    context: int = 24
    largest: int = 128
    border: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 0.5:
            raise SettingError(f"held-out fraction is {self.fraction}: give more than 0 and at most 0.5")
        for name, voxels in (("gap", self.gap), ("context", self.context), ("border", self.border)):
            if voxels < 0:
                raise SettingError(f"{name} of the held-out slab is {voxels}: give 0 or more voxels")

    def axis(self, shape: Sequence[int]) -> int:
        """Number of the axis that the slab is at the end of: the longest."""
        return max((1, 2, 0), key=lambda axis: shape[axis])

    def _start(self, shape: Sequence[int]) -> int:
        side = shape[self.axis(shape)]
        return side - max(1, round(side * self.fraction))

    def fit_region(self, shape: Sequence[int]) -> Box:
        """The part of a volume (Z, Y, X) that the fit may see."""
        axis = self.axis(shape)
        z, y, x = (
            slice(0, max(1, self._start(shape) - self.gap)) if a == axis else slice(0, shape[a]) for a in range(3)
        )
        return z, y, x

    def scored(self, shape: Sequence[int]) -> Window:
        """The part of a volume that is read for the risk, and the voxels of it that are scored."""
        axis = self.axis(shape)
        read, keep = [], []
        for a, side in enumerate(shape):
            middle = max(0, (side - self.largest) // 2)
            start, stop = middle, min(side, middle + self.largest)
            if a == axis:
                start = self._start(shape)
                stop = side - min(self.border, (side - start) // 3)
            read.append((max(0, start - self.context), min(side, stop + self.context)))
            keep.append((start, stop))
        first, last = zip(*read, strict=True)
        start_, stop_ = zip(*keep, strict=True)
        return Window(box_between(first, last), box_between(start_, stop_), box_seen_from(start_, stop_, first))
