"""Transforms, each as array and dictionary form: ``X`` and ``Xd``.

Images are channel first, ``C Z Y X``.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import (
    Crop,
    Flip,
    InvertibleTransform,
    MapTransform,
    Randomizable,
    RandomizableTransform,
    Transform,
)
from monai.utils import TransformBackends, convert_to_tensor

from cryoshuffle.boxes import draw_box, fit_window
from cryoshuffle.errors import SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.intensity import InvertibleForEachKey
from cryoshuffle.files.masks import BLOCK
from cryoshuffle.fit.sampling import WEIGHTS_KEY, HeldOutSlab, draw_by_worth
from cryoshuffle.lattice import Triple, as_triple

logger = logging.getLogger("cryoshuffle")


class _AlikeForAllKeys(Randomizable, InvertibleForEachKey):
    """Applies one random transform to all keys with the same random numbers, and undoes it."""

    transform: RandLatticeWindow | RandLatticeFlip

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Apply the transform to the images under the keys."""
        return self._apply(data)

    def _apply(self, data: Mapping[Hashable, NdarrayOrTensor], **more: Any) -> dict[Hashable, Any]:
        result: dict[Hashable, Any] = dict(data)
        seed = int(self.R.randint(2**31))
        for key in self.key_iterator(result):
            self.transform.set_random_state(seed=seed)
            result[key] = self.transform(result[key], **more)
        return result


class RandLatticeWindow(Randomizable, InvertibleTransform):
    """A window of whole lattice periods at a random place outside the held-out slab.

    Where weights are given a window is drawn as often as its blocks are worth on average. Of a ``MetaTensor`` it is cut
    by MONAI's ``Crop``: the affine says where the window lies, and ``inverse`` puts it back there, with 0 around.

    Args:
        window: asked for, along (Z, Y, X), voxels; shrunk to whole periods that fit.
        period: of the lattice along (Z, Y, X), voxels: stride times unshuffle factors.
        held_out: slab that no window may touch; None for none.

    Shape:
        ``(C, Z, Y, X) -> (C, z, y, x)``.

    Raises:
        InputError: if the image is shorter than one period along an axis.
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(
        self, window: Sequence[int] | int, period: Sequence[int] | int, held_out: HeldOutSlab | None = None
    ) -> None:
        self.window = as_triple(window, "window", smallest=1)
        self.period = as_triple(period, "lattice period", smallest=1)
        self.held_out = held_out
        self._crop = Crop()

    def __call__(self, img: NdarrayOrTensor, weights: torch.Tensor | None = None) -> NdarrayOrTensor:
        """Cut a window.

        Args:
            img: to cut it from.
            weights: of its blocks (:mod:`cryoshuffle.fit.sampling`), (Z, Y, X), from 0 to 1; None if all are worth the
                same.
        """
        shape: Sequence[int] = img.shape[1:]
        if self.held_out is not None:
            # It begins where the volume does.
            shape = [side.stop for side in self.held_out.fit_region(shape)]
        window = fit_window(self.window, shape, self.period)
        box = draw_box(shape, window, self.R) if weights is None else draw_by_worth(shape, window, self.R, weights)
        if isinstance(img, MetaTensor) and get_track_meta():
            cut: Any = self._crop(img, box)
            values = scratch.copy_planes(cut.as_tensor())
            return MetaTensor(values, meta=cut.meta, applied_operations=cut.applied_operations)
        part = img[(slice(None), *box)]
        return scratch.copy_planes(part) if isinstance(part, torch.Tensor) else part

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Put a window back to its place."""
        return self._crop.inverse(data)


class RandLatticeWindowd(_AlikeForAllKeys):
    """Dictionary form of :class:`RandLatticeWindow`; all keys get the same window.

    What blocks are worth, as :class:`cryoshuffle.fit.sampling.FitRegiond` leaves it under ``weights``, is taken out.
    All are worth the same where there is nothing.

    Args:
        keys: of the images.
        window: see :class:`RandLatticeWindow`.
        period: of the lattice.
        held_out: slab without windows.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = RandLatticeWindow.backend

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[int] | int,
        period: Sequence[int] | int,
        held_out: HeldOutSlab | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RandLatticeWindow(window, period, held_out)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Cut the same window from the images under the keys."""
        rest: dict[Hashable, Any] = dict(data)
        weights = rest.pop(WEIGHTS_KEY, None)
        return self._apply(rest, weights=weights)


class RandLatticeFlip(RandomizableTransform, InvertibleTransform):
    """Flip along a random choice of axes: the symmetries that keep lattice, tilt axis and missing wedge.

    A flip maps sub-lattices onto sub-lattices and, for a tilt range symmetric about 0, the wedge onto itself.
    Rotations by 90 degrees and transpositions do not, so they are never drawn. A ``MetaTensor`` is flipped by MONAI's
    ``Flip``: the affine follows, and ``inverse`` flips it back.

    Args:
        stride: lattice stride along (Z, Y, X), voxels.
        prob: probability of a flip, for each axis.

    Shape:
        ``(C, Z, Y, X) -> (C, Z, Y, X)``.

    Raises:
        SettingError: if a side is not a multiple of the stride; a flip would then tear the sub-lattices apart.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, stride: Sequence[int] | int, prob: float = 0.5) -> None:
        RandomizableTransform.__init__(self, prob=1.0)
        self.stride: Triple = as_triple(stride, "lattice stride", smallest=1)
        self.flip_prob = prob

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        """Flip an image."""
        if any(n % d for n, d in zip(img.shape[1:], self.stride, strict=True)):
            raise SettingError(f"window {tuple(img.shape[1:])} is not a multiple of the lattice stride {self.stride}")
        axes = [axis for axis in range(3) if self.R.random_sample() < self.flip_prob]
        if isinstance(img, MetaTensor) and get_track_meta():
            flipped = _flipped(img, axes)
            self.push_transform(flipped, extra_info={"axes": axes})
            return flipped
        return torch.flip(convert_to_tensor(img), [axis + 1 for axis in axes])

    def inverse(self, data: MetaTensor) -> torch.Tensor:
        """Flip an image back."""
        return _flipped(data, self.pop_transform(data)["extra_info"]["axes"])


def _flipped(image: MetaTensor, axes: Sequence[int]) -> torch.Tensor:
    """An image flipped along spatial axes by MONAI's transform, which is not noted among those applied."""
    flip = Flip(axes)
    with flip.trace_transform(False):
        return flip(image)


class RandLatticeFlipd(_AlikeForAllKeys):
    """Dictionary form of :class:`RandLatticeFlip`; all keys are flipped alike.

    Args:
        keys: of the images.
        stride: see :class:`RandLatticeFlip`.
        prob: of each flip.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = RandLatticeFlip.backend

    def __init__(
        self, keys: KeysCollection, stride: Sequence[int] | int, prob: float = 0.5, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RandLatticeFlip(stride, prob)


class CropHeldOut(Transform):
    """The held-out slab with its context, and what to score of it.

    Args:
        held_out: the slab.

    Returns:
        the crop, and a copy in which every voxel outside the slab is NaN: :class:`cryoshuffle.fit.risk.HeldOutRisk`
        leaves those out.

    Shape:
        ``(C, Z, Y, X) -> (C, z, y, x), (C, z, y, x)``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, held_out: HeldOutSlab) -> None:
        self.held_out = held_out
        self._told = False

    def __call__(self, img: NdarrayOrTensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Crop an image.

        Args:
            img: to crop.
            weights: of its blocks (:mod:`cryoshuffle.fit.sampling`), (Z, Y, X); voxels of blocks that are worth less
                than half of the best in the slab are not scored. None if all are worth the same.
        """
        image = convert_to_tensor(img)
        window = self.held_out.scored(image.shape[1:])
        crop = scratch.copy_planes(image[(slice(None), *window.read)]).clone()
        scored = torch.full_like(crop, float("nan"))
        core = (slice(None), *window.core)
        scored[core] = crop[core]
        if weights is not None:
            z, y, x = (torch.arange(side.start, side.stop) // BLOCK for side in window.keep)
            worth = weights[z][:, y][:, :, x]
            if not bool(worth.any()) and not self._told:
                self._told = True
                logger.warning(
                    "the last planes across %s, held out to judge the fit, are padding and tell nothing: crop them, or "
                    "name the specimen with --mask",
                    "zyx"[self.held_out.axis(image.shape[1:])],
                )
            scored[core] = torch.where(worth < worth.max() / 2, float("nan"), scored[core])
        return crop, scored


class CropHeldOutd(MapTransform):
    """Dictionary form of :class:`CropHeldOut`: the crop stays under its key, what is scored goes to ``label``.

    What blocks are worth is taken out, see :class:`RandLatticeWindowd`.

    Args:
        keys: of the images.
        held_out: the slab.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = CropHeldOut.backend

    def __init__(
        self,
        keys: KeysCollection,
        held_out: HeldOutSlab,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CropHeldOut(held_out)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Crop the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        weights = result.pop(WEIGHTS_KEY, None)
        for key in self.key_iterator(result):
            result[key], result["label"] = self.transform(result[key], weights)
        return result


RandLatticeWindowD = RandLatticeWindowDict = RandLatticeWindowd
RandLatticeFlipD = RandLatticeFlipDict = RandLatticeFlipd
CropHeldOutD = CropHeldOutDict = CropHeldOutd
