"""Denoising as a transform among others: a network that was fitted before, applied on the fly."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Transform
from monai.utils import TransformBackends, convert_to_tensor

from cryoshuffle.devices import choose_device, no_autocast
from cryoshuffle.errors import InputError, plainly
from cryoshuffle.files.intensity import ForEachKey, StandardiseIntensityd
from cryoshuffle.files.volumes import AXIS_CODES, refuse_masked, tells_axes
from cryoshuffle.host import usual_defaults
from cryoshuffle.inference.checkpoints import Model
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.noise.whitening import WhitenNoised

_KEY = "image"


class Denoise(Transform):
    """Denoises an image with the network of a checkpoint; what ``cryoshuffle apply`` does, without files.

    Args:
        checkpoint: path of the network.
        device: ``auto``, ``cpu``, ``cuda``, ``mps``; computes, the image stays where it is.
        window: see :class:`cryoshuffle.inference.inferers.HaloWindowInferer`.
        precision: of the computation.
        detail: share of input.
        mirrors: averages mirror images.
        progress: shows a bar.
        smooth: width of a Gaussian over the result, voxels.

    Shape:
        ``(1, Z, Y, X) -> (1, Z, Y, X)``, float32. The axes of an image with an affine may be in any order that it
        tells: the image is turned for the network, and back. The identity tells none, unless a file had it.

    Units:
        grey values in, the same grey values out.

    Raises:
        FileError: if the checkpoint is missing.
        InputError: if it is none of ours, or the image has several channels, or voxels that are masked or not finite.
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        device: str = "auto",
        window: Sequence[int] | int | None = None,
        precision: str = "auto",
        detail: float = 0.0,
        mirrors: bool = False,
        progress: bool = False,
        smooth: float = 0.0,
    ) -> None:
        where = choose_device(device)
        model = Model(checkpoint)
        self.network, fitted = model.network().to(where), model.settings()
        self.inferer = HaloWindowInferer(
            window, precision=precision, device=where, blend=fitted.blend, detail=detail, smooth=smooth,
            mirrors=mirrors, quiet=not progress,
        )  # fmt: skip
        steps = [StandardiseIntensityd(_KEY), WhitenNoised(_KEY, fitted.whitening)]
        self._plain = Compose(steps)
        self._turned = Compose([Orientationd(_KEY, AXIS_CODES, labels=None), *steps])

    @usual_defaults()
    def __call__(self, img: NdarrayOrTensor) -> MetaTensor:
        """Denoise an image; an autocast of the caller's changes nothing."""
        refuse_masked(img)
        image = convert_to_tensor(img, track_meta=True, dtype=torch.float32)
        if image.ndim != 4 or len(image) != 1:
            raise InputError(f"an image of shape {tuple(image.shape)} is not one volume, give (1, Z, Y, X)")
        chain = self._turned if tells_axes(img) else self._plain
        with torch.no_grad(), no_autocast(), plainly():
            given: Any = chain({_KEY: image})[_KEY]
            denoised = self.inferer(given.as_tensor()[None], self.network)[0]
            output = MetaTensor(denoised, meta=given.meta, applied_operations=given.applied_operations)
            result: MetaTensor = chain.inverse({_KEY: output})[_KEY]
        return result


class Denoised(ForEachKey):
    """Dictionary form of :class:`Denoise`.

    Args:
        keys: of the images.
        checkpoint: path of the network.
        options: the others of :class:`Denoise`.
        allow_missing_keys: do not complain about a missing key.
    """

    backend = Denoise.backend

    def __init__(
        self,
        keys: KeysCollection,
        checkpoint: str | os.PathLike[str],
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transform = Denoise(checkpoint, **options)


DenoiseD = DenoiseDict = Denoised
