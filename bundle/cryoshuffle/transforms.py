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

from cryoshuffle import scratch
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.inputs import file_of
from cryoshuffle.lattice import Triple, as_triple
from cryoshuffle.sampling import BLOCK, draw_by_worth
from cryoshuffle.windows import HeldOutSlab, draw_box, fit_window

logger = logging.getLogger("cryoshuffle")


def _name(image: Any) -> str:
    """The file an image came from, for messages."""
    return file_of(image) or "the tomogram"


class FillNotFinite(Transform):
    """Puts the mean of the other voxels where voxels are NaN or Inf, and says how many and where; or leaves all alone.

    A volume on disk (:mod:`cryoshuffle.scratch`) is changed in place.

    Args:
        fill: whether to do anything.

    Shape:
        ``(C, Z, Y, X) -> (C, Z, Y, X)``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, fill: bool = True) -> None:
        self.fill = fill

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Fill an image."""
        if not self.fill:
            return img
        image = convert_to_tensor(img, track_meta=True)
        values, count, total = image.as_tensor(), 0, 0.0
        first, last = [*values.shape[1:]], [0, 0, 0]
        for part in scratch.sections(values.shape):
            bad = ~torch.isfinite(values[:, part])
            found = torch.nonzero(bad)[:, 1:] + torch.tensor([part.start, 0, 0])
            if len(found):
                first = [min(a, int(b)) for a, b in zip(first, found.amin(dim=0), strict=True)]
                last = [max(a, int(b)) for a, b in zip(last, found.amax(dim=0), strict=True)]
            count += len(found)
            total += float(values[:, part].double().nan_to_num(0.0, 0.0, 0.0).sum())
        if count in (0, values.numel()):
            return image
        mean = total / (values.numel() - count)
        filled = values if scratch.on_disk(values) else values.clone()
        for part in scratch.sections(values.shape):
            filled[:, part].nan_to_num_(mean, mean, mean)
        where = ", ".join(f"{axis} {a} to {b}" for axis, a, b in zip("zyx", first, last, strict=True))
        logger.warning(
            "%s: %d voxels are NaN or Inf, in %s; the mean of the others, %g, takes their place",
            _name(image), count, where, mean,
        )  # fmt: skip
        return MetaTensor(filled, meta=image.meta, applied_operations=image.applied_operations)


class FillNotFinited(MapTransform):
    """Dictionary form of :class:`FillNotFinite`.

    Args:
        keys: of the images.
        fill: whether to do anything.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = FillNotFinite.backend

    def __init__(self, keys: KeysCollection, fill: bool = True, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = FillNotFinite(fill)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Fill the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result


# Steps of a 32-bit number that the grey values have to be spread over.
_STEPS = 16


class StandardiseIntensity(InvertibleTransform):
    """Mean 0 and standard deviation 1, undone exactly by ``inverse``.

    MONAI's own normalisation cannot be undone; this one keeps mean and standard deviation with the image, computed
    in double precision, so tiny values on a large offset survive. A volume on disk (:mod:`cryoshuffle.scratch`) is
    changed in place, forth and back.

    It is for images of grey values only. Labels would be scaled too: undo them with a chain that leaves this transform
    out. Labels that became floating-point numbers on the way cannot be told from grey values.

    Shape:
        ``(C, Z, Y, X) -> (C, Z, Y, X)``; the statistics are those of the whole image.

    Units:
        grey values of the tomogram in, standard deviations out.

    Raises:
        InputError: if a voxel is not finite (count and first place are named), or all voxels, or all planes across an
            axis, are equal; if what is to be standardised is a mask, or what is to be undone holds whole numbers or is
            a mask.
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        """Standardise an image."""
        image = convert_to_tensor(img, track_meta=True)
        values = image.as_tensor()
        if values.dtype == torch.bool:
            raise InputError(f"{_name(image)}: is a mask, not an image of grey values: leave it out of the keys")
        mean, std = _statistics(values, _name(image))
        standard = values if scratch.on_disk(values) else torch.empty(values.shape, dtype=torch.float32)
        for part in scratch.sections(values.shape):
            for z in range(part.start, part.stop):
                standard[:, z] = (values[:, z].double() - mean) / std
        result: MetaTensor = MetaTensor(standard, meta=image.meta)
        result.applied_operations = image.applied_operations
        self.push_transform(result, extra_info={"mean": mean, "std": std})
        return result

    def inverse(self, data: NdarrayOrTensor) -> MetaTensor:
        """Give an image its mean and scale back."""
        image = convert_to_tensor(data, track_meta=True)
        if not image.is_floating_point():
            raise InputError(
                f"an image of {image.dtype} holds labels, not grey values: undo it with transforms that leave out "
                "StandardiseIntensity"
            )
        info = self.pop_transform(image)["extra_info"]
        values = image.as_tensor()
        restored = values if scratch.on_disk(values) else torch.empty(values.shape, dtype=torch.float32)
        for part in scratch.sections(values.shape):
            for z in range(part.start, part.stop):
                restored[:, z] = values[:, z].double() * float(info["std"]) + float(info["mean"])
        result: MetaTensor = MetaTensor(restored, meta=image.meta)
        result.applied_operations = image.applied_operations
        return result


def _statistics(values: torch.Tensor, name: str) -> tuple[float, float]:
    """Mean and standard deviation of an image; it is read twice, section by section."""
    count, first, total = 0, None, 0.0
    for part in scratch.sections(values.shape):
        section = values[:, part]
        bad = ~torch.isfinite(section)
        if first is None and bool(bad.any()):
            z, y, x = (int(i) for i in torch.nonzero(bad)[0][1:])
            first = (part.start + z, y, x)
        count += int(bad.sum())
        total += float(section.sum(dtype=torch.float64))
    if count:
        raise InputError(
            f"{name}: {count} voxels are NaN or Inf, the first at (z, y, x) = {first}: "
            "add --fill-nan to put the mean of the others in their place"
        )
    mean, power = total / values.numel(), 0.0
    repeated = [axis for axis in (1, 2, 3) if values.shape[axis] > 1]
    for part in scratch.sections(values.shape):
        section = values[:, part]
        repeated = [a for a in repeated if bool((section == (values if a == 1 else section).narrow(a, 0, 1)).all())]
        power += sum(float((values[:, z].double() - mean).square_().sum()) for z in range(part.start, part.stop))
    std = (power / values.numel()) ** 0.5
    if std == 0.0:
        raise InputError(f"{name}: all voxels are {mean:g}, there is nothing to denoise")
    if repeated:
        raise InputError(
            f"{name}: all its planes across {'zyx'[repeated[0] - 1]} are equal, one image again and again: "
            "give the volume as it was reconstructed"
        )
    if values.dtype == torch.float32 and std < _STEPS * torch.finfo(torch.float32).eps * abs(mean):
        raise InputError(
            f"{name}: has grey values of {mean:.8g} ± {std:.2g}, and 32-bit numbers of that size do not differ so "
            "little: subtract the offset before"
        )
    return mean, std


class StandardiseIntensityd(MapTransform, InvertibleTransform):
    """Dictionary form of :class:`StandardiseIntensity`, for images of grey values only, as that.

    Args:
        keys: of the images.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = StandardiseIntensity.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = StandardiseIntensity()

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Standardise the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform(result[key])
        return result

    def inverse(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Give the images under the keys their mean and scale back."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform.inverse(result[key])
        return result


class _AlikeForAllKeys(Randomizable, MapTransform, InvertibleTransform):
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

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo it for the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.transform.inverse(result[key])
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
            weights: of its blocks (:mod:`cryoshuffle.sampling`), (Z, Y, X), from 0 to 1; None if all are worth the
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
            values = scratch.taken(cut.as_tensor())
            return MetaTensor(values, meta=cut.meta, applied_operations=cut.applied_operations)
        part = img[(slice(None), *box)]
        return scratch.taken(part) if isinstance(part, torch.Tensor) else part

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Put a window back to its place."""
        return self._crop.inverse(data)


class RandLatticeWindowd(_AlikeForAllKeys):
    """Dictionary form of :class:`RandLatticeWindow`; all keys get the same window.

    Args:
        keys: of the images.
        window: see :class:`RandLatticeWindow`.
        period: likewise.
        held_out: likewise.
        allow_missing_keys: do not complain about a missing key.
        weights_key: of what blocks are worth, as :class:`cryoshuffle.sampling.FitRegiond` leaves it; it is taken out.
            All are worth the same where there is nothing under it.
    """

    backend = RandLatticeWindow.backend

    def __init__(
        self,
        keys: KeysCollection,
        window: Sequence[int] | int,
        period: Sequence[int] | int,
        held_out: HeldOutSlab | None = None,
        allow_missing_keys: bool = False,
        weights_key: str = "weights",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = RandLatticeWindow(window, period, held_out)
        self.weights_key = weights_key

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Cut the same window from the images under the keys."""
        rest: dict[Hashable, Any] = dict(data)
        weights = rest.pop(self.weights_key, None)
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
        prob: likewise.
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
        the crop, and a copy in which every voxel outside the slab is NaN: :class:`cryoshuffle.metrics.BlindRisk`
        leaves those out.

    Shape:
        ``(C, Z, Y, X) -> (C, z, y, x), (C, z, y, x)``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, held_out: HeldOutSlab) -> None:
        self.held_out = held_out

    def __call__(self, img: NdarrayOrTensor, weights: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Crop an image.

        Args:
            img: to crop.
            weights: of its blocks (:mod:`cryoshuffle.sampling`), (Z, Y, X); voxels of blocks that are worth less than
                half of the best in the slab are not scored. None if all are worth the same.
        """
        image = convert_to_tensor(img)
        window = self.held_out.scored(image.shape[1:])
        crop = scratch.taken(image[(slice(None), *window.read)]).clone()
        scored = torch.full_like(crop, float("nan"))
        core = (slice(None), *window.core)
        scored[core] = crop[core]
        if weights is not None:
            z, y, x = (torch.arange(side.start, side.stop) // BLOCK for side in window.keep)
            worth = weights[z][:, y][:, :, x]
            scored[core] = torch.where(worth < worth.max() / 2, float("nan"), scored[core])
        return crop, scored


class CropHeldOutd(MapTransform):
    """Dictionary form of :class:`CropHeldOut`: the crop stays under its key, what is scored goes to another.

    Args:
        keys: of the images.
        held_out: the slab.
        scored_key: where the copy that is NaN outside the slab goes.
        allow_missing_keys: do not complain about a missing key.
        weights_key: of what blocks are worth; it is taken out.
    """

    backend = CropHeldOut.backend

    def __init__(
        self,
        keys: KeysCollection,
        held_out: HeldOutSlab,
        scored_key: str = "label",
        allow_missing_keys: bool = False,
        weights_key: str = "weights",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = CropHeldOut(held_out)
        self.scored_key = scored_key
        self.weights_key = weights_key

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Crop the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        weights = result.pop(self.weights_key, None)
        for key in self.key_iterator(result):
            result[key], result[self.scored_key] = self.transform(result[key], weights)
        return result


FillNotFiniteD = FillNotFiniteDict = FillNotFinited
StandardiseIntensityD = StandardiseIntensityDict = StandardiseIntensityd
RandLatticeWindowD = RandLatticeWindowDict = RandLatticeWindowd
RandLatticeFlipD = RandLatticeFlipDict = RandLatticeFlipd
CropHeldOutD = CropHeldOutDict = CropHeldOutd
