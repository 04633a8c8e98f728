"""Tomograms from files of any kind the package knows, by the name of the file: MRC, OME-Zarr, NIfTI.

And what has to be known of a volume that is in memory before it is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.transforms import LoadImage, Orientation
from mrcfile.mrcobject import MrcObject

from cryoshuffle.errors import InputError
from cryoshuffle.mrc import AXIS_CODES, MrcReader, is_mrc_name
from cryoshuffle.omezarr import OmeZarrReader, ZarrVolume, is_zarr_name
from cryoshuffle.preflight import tomogram_shape


class TomogramReader(ImageReader):
    """The reader for a file name: the package's own for MRC and OME-Zarr, MONAI's for NIfTI.

    Args:
        permissive: also take MRC files whose header breaks the standard.
        folder: where volumes too large for memory are kept while the program runs; None for memory. A NIfTI is kept in
            memory however large it is.
        largest: voxels to take along each axis, from the middle; None for all. A NIfTI is taken whole.

    Raises:
        FileError, InputError: those of the readers.
    """

    def __init__(
        self, permissive: bool = False, folder: str | os.PathLike[str] | None = None, largest: int | None = None
    ) -> None:
        super().__init__()
        self._mrc, self._zarr = MrcReader(permissive, folder, largest), OmeZarrReader(folder, largest)
        self._nifti = NibabelReader()

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether all names are those of one kind."""
        return any(one.verify_suffix(filename) for one in (self._mrc, self._zarr, self._nifti))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> Any:
        """Open the files."""
        first = data if isinstance(data, (str, os.PathLike)) else data[0]
        if is_mrc_name(first):
            return self._mrc.read(data)
        return self._zarr.read(data) if is_zarr_name(first) else self._nifti.read(data, **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The volume and its metadata."""
        first = img[0] if isinstance(img, (list, tuple)) else img
        if isinstance(first, MrcObject):
            return self._mrc.get_data(img)
        array, meta = (self._zarr if isinstance(first, ZarrVolume) else self._nifti).get_data(img)
        return array, meta


def tells_axes(volume: object) -> TypeGuard[MetaTensor]:
    """Whether a volume tells which axis is which; if not, its axes are (Z, Y, X).

    MONAI gives the identity as affine to what came without one, so the identity tells nothing.

    Args:
        volume: of any kind; only a ``MetaTensor`` has an affine.
    """
    return isinstance(volume, MetaTensor) and not torch.equal(volume.affine, torch.eye(4).to(volume.affine))


def refuse_masked(volume: object) -> None:
    """Refuse a masked array of numpy's that hides voxels; one that hides none is an array like any other.

    Args:
        volume: of any kind.

    Raises:
        InputError: if a voxel is masked; the count is named.
    """
    if isinstance(volume, np.ma.MaskedArray) and (hidden := int(np.ma.getmaskarray(volume).sum())):
        raise InputError(f"{hidden} voxels of the array are masked: fill them first, as volume.filled(volume.mean())")


def load_tomogram(
    path: str | os.PathLike[str],
    permissive: bool = False,
    folder: str | os.PathLike[str] | None = None,
    largest: int | None = None,
    axcodes: str | None = AXIS_CODES,
) -> MetaTensor:
    """A tomogram from a file, as an image ``(1, Z, Y, X)`` with its metadata.

    Args:
        path: of the file.
        permissive: see :class:`TomogramReader`.
        folder: likewise.
        largest: likewise.
        axcodes: orientation the image is turned to; None leaves it as it is in the file.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not one real volume in MRC, OME-Zarr or NIfTI.
    """
    tomogram_shape(path, permissive)
    reader = TomogramReader(permissive, folder, largest)
    image: Any = LoadImage(reader, ensure_channel_first=True)(str(path))
    if axcodes is not None:
        image = Orientation(axcodes, labels=None)(image)
    result: MetaTensor = image
    return result
