"""Grey values on their way in: voxels that are no numbers, and the standard scale."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import (
    InvertibleTransform,
    MapTransform,
    Transform,
)
from monai.utils import TransformBackends, convert_to_tensor

from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.volumes import file_of
from cryoshuffle.host import usual_defaults

logger = logging.getLogger("cryoshuffle")


def _name(image: Any) -> str:
    """The file an image came from, for messages."""
    return file_of(image) or "the tomogram"


def _on_cpu(shape: torch.Size) -> torch.Tensor:
    """A new tensor for numbers that are computed in double precision, which not every other device has."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


class FillNotFinite(Transform):
    """Puts the mean of the other voxels where voxels are NaN or Inf, and says how many and where; or leaves all alone.

    A volume on disk (:mod:`cryoshuffle.files.scratch`) is changed in place.

    Args:
        fill: whether to do anything.

    Shape:
        ``(C, Z, Y, X) -> (C, Z, Y, X)``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, fill: bool = True) -> None:
        self.fill = fill

    @usual_defaults()
    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Fill an image."""
        if not self.fill:
            return img
        image = convert_to_tensor(img, track_meta=True)
        # On the CPU: not every other device has double precision.
        values, count, total = image.as_tensor().cpu(), 0, 0.0
        first, last = [*values.shape[1:]], [0, 0, 0]
        for part in scratch.sections(values.shape):
            bad = ~torch.isfinite(values[:, part])
            voxels = torch.nonzero(bad)[:, 1:] + torch.tensor([part.start, 0, 0], device="cpu")
            if len(voxels):
                first = [min(a, int(b)) for a, b in zip(first, voxels.amin(dim=0), strict=True)]
                last = [max(a, int(b)) for a, b in zip(last, voxels.amax(dim=0), strict=True)]
            count += len(voxels)
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
        return MetaTensor(filled.to(image.device), meta=image.meta, applied_operations=image.applied_operations)


class ForEachKey(MapTransform):
    """The frame of a dictionary transform that does the same to the image under each key, whatever the others are.

    Attributes:
        transform: of one image; None leaves all as they are.
    """

    transform: Any

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Transform the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            if self.transform is not None:
                result[key] = self.transform(result[key])
        return result


class InvertibleForEachKey(ForEachKey, InvertibleTransform):
    """The same, of a transform that can be undone."""

    def inverse(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Undo it for the images under the keys."""
        result: dict[Hashable, Any] = dict(data)
        for key in self.key_iterator(result):
            if self.transform is not None:
                result[key] = self.transform.inverse(result[key])
        return result


class FillNotFinited(ForEachKey):
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


# Key of the metadata of an image that holds differences of grey values: it has the scale of its tomogram, and no mean.
IS_SPREAD = "is_spread"
# Steps of a 32-bit number that the grey values have to be spread over.
_STEPS = 16


class StandardiseIntensity(InvertibleTransform):
    """Mean 0 and standard deviation 1, undone exactly by ``inverse``.

    MONAI's own normalisation cannot be undone; this one keeps mean and standard deviation with the image, computed
    in double precision, so tiny values on a large offset survive. A volume on disk (:mod:`cryoshuffle.files.scratch`)
    is changed in place, forth and back.

    What is undone may hold differences of grey values, an error for instance: metadata that say so under
    :data:`IS_SPREAD` give it the scale and no mean.

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

    @usual_defaults()
    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        """Standardise an image."""
        image = convert_to_tensor(img, track_meta=True)
        values = image.as_tensor().cpu()
        if values.dtype == torch.bool:
            raise InputError(f"{_name(image)}: is a mask, not an image of grey values: leave it out of the keys")
        mean, std = _statistics(values, _name(image))
        standard = values if scratch.on_disk(values) else _on_cpu(values.shape)
        for part in scratch.sections(values.shape):
            for z in range(part.start, part.stop):
                standard[:, z] = (values[:, z].double() - mean) / std
        result: MetaTensor = MetaTensor(standard.to(image.device), meta=image.meta)
        result.applied_operations = image.applied_operations
        self.push_transform(result, extra_info={"mean": mean, "std": std})
        return result

    @usual_defaults()
    def inverse(self, data: NdarrayOrTensor) -> MetaTensor:
        """Give an image its mean and scale back."""
        image = convert_to_tensor(data, track_meta=True)
        if not image.is_floating_point():
            raise InputError(
                f"an image of {image.dtype} holds labels, not grey values: undo it with transforms that leave out "
                "StandardiseIntensity"
            )
        info = self.pop_transform(image)["extra_info"]
        values, std = image.as_tensor().cpu(), float(info["std"])
        mean = 0.0 if image.meta.get(IS_SPREAD) else float(info["mean"])
        restored = values if scratch.on_disk(values) else _on_cpu(values.shape)
        for part in scratch.sections(values.shape):
            for z in range(part.start, part.stop):
                restored[:, z] = values[:, z].double() * std + mean
        result: MetaTensor = MetaTensor(restored.to(image.device), meta=image.meta)
        result.applied_operations = image.applied_operations
        return result


def mean_and_deviation(values: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of an image, which is read twice, section by section.

    Args:
        values: ``(C, Z, Y, X)``, perhaps on disk.

    Returns:
        Both are summed as float64; they are not finite where a voxel is not.
    """
    total = sum(float(values[:, part].sum(dtype=torch.float64)) for part in scratch.sections(values.shape))
    mean, power = total / values.numel(), 0.0
    for part in scratch.sections(values.shape):
        power += sum(float((values[:, z].double() - mean).square_().sum()) for z in range(part.start, part.stop))
    return mean, (power / values.numel()) ** 0.5


def _not_finite(values: torch.Tensor) -> tuple[int, tuple[int, ...] | None]:
    """How many voxels are no numbers, and where the first of them is."""
    count, first = 0, None
    for part in scratch.sections(values.shape):
        bad = ~torch.isfinite(values[:, part])
        if first is None and bool(bad.any()):
            z, y, x = (int(i) for i in torch.nonzero(bad)[0][1:])
            first = (part.start + z, y, x)
        count += int(bad.sum())
    return count, first


def _repeated(values: torch.Tensor) -> list[int]:
    """Axes across which all planes are equal; as a rule the first section tells that there are none."""
    axes = [axis for axis in (1, 2, 3) if values.shape[axis] > 1]
    for part in scratch.sections(values.shape):
        section = values[:, part]
        axes = [a for a in axes if bool((section == (values if a == 1 else section).narrow(a, 0, 1)).all())]
        if not axes:
            break
    return axes


def _statistics(values: torch.Tensor, name: str) -> tuple[float, float]:
    """Mean and standard deviation of an image that can be denoised."""
    mean, std = mean_and_deviation(values)
    count, first = (0, None) if math.isfinite(mean) else _not_finite(values)
    if count:
        raise InputError(
            f"{name}: {count} voxels are NaN or Inf, the first at (z, y, x) = {first}: "
            + (
                "none is left for --fill-nan to take the mean of"
                if count == values.numel()
                else "add --fill-nan to put the mean of the others in their place"
            )
        )
    if std == 0.0:
        raise InputError(f"{name}: all voxels are {mean:g}, there is nothing to denoise")
    repeated = _repeated(values)
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


class StandardiseIntensityd(InvertibleForEachKey):
    """Dictionary form of :class:`StandardiseIntensity`, for images of grey values only, as that.

    Args:
        keys: of the images.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = StandardiseIntensity.backend

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = StandardiseIntensity()


FillNotFiniteD = FillNotFiniteDict = FillNotFinited
StandardiseIntensityD = StandardiseIntensityDict = StandardiseIntensityd
