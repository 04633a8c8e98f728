"""Whitening along the tilt axis: a filter that undoes what interpolation did to the noise, and can itself be undone.

Aligning tilt images interpolates between pixels, which correlates neighbours along the tilt axis. That is a filter,
so dividing by the square root of the noise's spectrum along that axis makes the noise white there; after denoising
the same factor is multiplied back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from cryoshuffle.errors import SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.intensity import InvertibleForEachKey
from cryoshuffle.files.volumes import images_of
from cryoshuffle.lattice import AXES

LARGEST_GAIN = 3.0


@dataclass(frozen=True)
class Whitening:
    """A short-range correlation of the noise along one axis, to be undone.

    Args:
        axis: ``z``, ``y`` or ``x``.
        autocorrelation: of the noise along it, at lags 1, 2, ..., voxels.

    Raises:
        SettingError: for another axis.
    """

    axis: str
    autocorrelation: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.axis not in AXES:
            raise SettingError(f"whitening axis is '{self.axis}': choose one of {', '.join(AXES)}")

    def spectrum(self, side: int) -> Tensor:
        """Power of the noise at each coefficient of a real transform along the axis, mean 1, not below 1 / gain².

        Args:
            side: of the volume along the axis, voxels.
        """
        turns = 2 * torch.pi * torch.fft.rfftfreq(side, dtype=torch.float64)
        power = 1 + 2 * sum(r * torch.cos(turns * lag) for lag, r in enumerate(self.autocorrelation, start=1))
        return torch.as_tensor(power).clamp(min=1 / LARGEST_GAIN**2)

    def is_bounded(self) -> bool:
        """Whether the spectrum stays away from 0, so that whitening amplifies nothing by more than the bound."""
        turns = 2 * torch.pi * torch.linspace(0, 0.5, 257, dtype=torch.float64)
        power = 1 + 2 * sum(r * torch.cos(turns * lag) for lag, r in enumerate(self.autocorrelation, start=1))
        return bool((torch.as_tensor(power) > 1 / LARGEST_GAIN**2).all())

    def config(self) -> dict[str, Any]:
        """As plain values, for configs and checkpoints."""
        return {"axis": self.axis, "autocorrelation": list(self.autocorrelation)}


class WhitenNoise(InvertibleTransform):
    """Divides the spectrum along an axis by the square root of the noise's; ``inverse`` multiplies it back.

    Gains are bounded by :data:`LARGEST_GAIN`, so the inverse is exact. A volume on disk
    (:mod:`cryoshuffle.files.scratch`) is changed in place, forth and back.

    Args:
        axis: ``z``, ``y`` or ``x``.
        autocorrelation: of the noise along it, at lags 1, 2, ..., voxels.

    Shape:
        ``(C, Z, Y, X) -> (C, Z, Y, X)``.
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, axis: str, autocorrelation: Sequence[float]) -> None:
        self.whitening = Whitening(axis, tuple(float(r) for r in autocorrelation))

    def _filter(self, volume: Tensor, exponent: float, result: Tensor) -> Tensor:
        dim = 1 + AXES.index(self.whitening.axis)
        side = volume.shape[dim]
        gain = self.whitening.spectrum(side).pow(exponent).to(volume.device, volume.dtype)
        gain = gain.reshape([-1 if d == dim else 1 for d in range(volume.ndim)])
        # Section by section along another axis: a transform of the whole volume would be twice its size.
        other = 1 if dim != 1 else 2
        for part in scratch.sections(volume.shape, other):
            section = volume.narrow(other, part.start, part.stop - part.start)
            done = torch.fft.irfft(torch.fft.rfft(section, dim=dim) * gain, n=side, dim=dim)
            result.narrow(other, part.start, part.stop - part.start).copy_(done)
        return result

    def unwhiten(self, volume: Tensor) -> Tensor:
        """The inverse on a plain tensor; one on disk stays as it is too, the result is another there."""
        return self._filter(volume, 0.5, scratch.empty_like(volume, volume.shape, volume.dtype))

    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        """Whiten an image."""
        return self._with_meta(img, -0.5, keep=True)

    def inverse(self, data: NdarrayOrTensor) -> MetaTensor:
        """Undo the whitening."""
        return self._with_meta(data, 0.5, keep=False)

    def _with_meta(self, data: NdarrayOrTensor, exponent: float, keep: bool) -> MetaTensor:
        image = convert_to_tensor(data, track_meta=True)
        if not keep:
            self.pop_transform(image)
        values = image.as_tensor()
        filtered = self._filter(values, exponent, values if scratch.on_disk(values) else torch.empty_like(values))
        result: MetaTensor = MetaTensor(filtered, meta=image.meta)
        result.applied_operations = image.applied_operations
        if keep:
            self.push_transform(result)
        return result


class WhitenNoised(InvertibleForEachKey):
    """Dictionary form of :class:`WhitenNoise`; does nothing where there is nothing to undo.

    Args:
        keys: of the images.
        whitening: ``axis`` and ``autocorrelation`` of :class:`WhitenNoise`, or None.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = WhitenNoise.backend

    def __init__(
        self, keys: KeysCollection, whitening: Mapping[str, Any] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = None if whitening is None else WhitenNoise(**whitening)


def undo_whitening(volume: Tensor, whitening: Mapping[str, Any] | None) -> Tensor:
    """A whitened volume as it was, for pictures.

    Args:
        volume: ``(C, Z, Y, X)``.
        whitening: ``axis`` and ``autocorrelation`` of :class:`WhitenNoise`, or None.
    """
    return volume if whitening is None else WhitenNoise(**whitening).unwhiten(volume)


def without_whitening(
    volumes: Sequence[Mapping[str, Any]], whitening: Mapping[str, Any] | None
) -> Sequence[Mapping[str, Any]]:
    """Volumes as they were before they were whitened; the same ones where they were not.

    Args:
        volumes: dictionaries with ``image`` ``(C, Z, Y, X)``.
        whitening: ``axis`` and ``autocorrelation`` of :class:`WhitenNoise`, or None.
    """
    if whitening is None:
        return volumes
    images = (undo_whitening(image, whitening) for image in images_of(volumes))
    return [{**item, "image": image} for item, image in zip(volumes, images, strict=True)]


WhitenNoiseD = WhitenNoiseDict = WhitenNoised
