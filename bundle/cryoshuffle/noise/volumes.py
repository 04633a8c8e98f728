"""Volumes as noise is measured in them: read whole, cropped to a mask, halves on one scale."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cryoshuffle.errors import InputError
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.intensity import FillNotFinite, StandardiseIntensity
from cryoshuffle.files.masks import mask_region, mask_weights
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.noise.estimate import LARGEST

logger = logging.getLogger("cryoshuffle")
_ADD_UP = 0.9


def on_one_scale(volume: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Halves of a tomogram on the grey scale on which they add up to it.

    Then their signals are equal, whatever their noise, and the noise of the tomogram is their difference but for the
    sign at each voxel.

    Args:
        volume: the tomogram, (Z, Y, X).
        even: one half.
        odd: the other.

    Raises:
        InputError: if the shapes differ, the halves are equal, or they do not add up to the tomogram.
    """
    if not volume.shape == even.shape == odd.shape:
        shapes = " and ".join(str(tuple(v.shape)) for v in (even, odd, volume))
        raise InputError(f"even half, odd half and tomogram of shapes {shapes} do not belong together")
    halves = torch.stack([(half.double() - half.double().mean()).flatten() for half in (even, odd)])
    whole = (volume.double() - volume.double().mean()).flatten()
    products = halves @ halves.T
    if float(torch.linalg.det(products)) <= 1e-6 * float(products[0, 0] * products[1, 1]):
        raise InputError("the halves are equal, so they tell nothing of the noise: give even and odd")
    shares = torch.linalg.solve(products, halves @ whole)
    explained = float((shares @ (halves @ whole)) / whole.square().sum())
    if explained < _ADD_UP or not bool((shares > 0).all()):
        raise InputError("the halves do not add up to the tomogram: give the two it was made from")
    scaled = (halves * shares[:, None]).float()
    return scaled[0].reshape(even.shape), scaled[1].reshape(odd.shape)


def load_volume(
    path: str,
    permissive: bool = False,
    largest: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    fill_nan: bool = False,
    mask: str | None = None,
    beside: str | None = None,
) -> Tensor:
    """A tomogram from a file, (Z, Y, X), standardised.

    Args:
        path: of the file.
        permissive: also take MRC files whose header breaks the standard.
        largest: voxels to take along each axis, from the middle; None for all.
        folder: where a volume too large for memory is kept; None for memory.
        fill_nan: put the mean of the others where voxels are not finite.
        mask: path of a mask; of the box around it the middle is taken. None for the whole volume.
        beside: path of the tomogram that this is a half of (:func:`cryoshuffle.files.formats.load_tomogram`); None for
            none.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is no tomogram, or has voxels that are not finite and are not filled.
    """
    volume: Any = load_tomogram(path, permissive, folder, None if mask is not None else largest, beside=beside)
    if mask is not None:
        shape = tuple(volume.shape[1:])
        volume = volume[(slice(None), *mask_region(mask_weights(mask, folder, beside or path, shape), shape))]
    volume = FillNotFinite(fill_nan)(volume if largest is None else central_crop(volume, largest))
    return StandardiseIntensity()(volume).as_tensor()[0]


def load_halves(
    paths: Sequence[str],
    permissive: bool = False,
    mask: str | None = None,
    tomogram: str | None = None,
    fill_nan: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> tuple[Tensor, Tensor]:
    """The middle of even and odd half of a tomogram from files, each (Z, Y, X), standardised.

    Args:
        paths: of the two.
        permissive: also take MRC files whose header breaks the standard.
        mask: path of a mask; of the box around it the middle is taken. None for the whole volume.
        tomogram: path of the tomogram that they are of; None where there is none but the halves.
        fill_nan: put the mean of the others where voxels are not finite.
        folder: where volumes too large for memory are kept while they are read; None for memory.

    Raises:
        FileError: if a file is missing or cannot be read.
        InputError: if one is no tomogram, or has voxels that are not finite and are not filled; if there are not two.
    """
    if len(paths) != 2:
        raise InputError(f"halves are {len(paths)} files: name the even and the odd one")
    beside = str(tomogram or paths[0])
    even, odd = (load_volume(str(path), permissive, LARGEST, folder, fill_nan, mask, beside) for path in paths)
    return even, odd
