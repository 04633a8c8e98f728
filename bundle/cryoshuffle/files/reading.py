"""Tomograms from files of any kind the package knows, by the name of the file: MRC, OME-Zarr, NIfTI.

And what has to be known of a volume that is in memory before it is one.
"""

from __future__ import annotations

import gzip
import logging
import math
import os
import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import nibabel
import numpy as np
import torch
from monai.data import ImageReader, MetaTensor, NibabelReader
from monai.transforms import LoadImage, Orientation
from monai.utils import ImageMetaKey, MetaKeys
from mrcfile.mrcobject import MrcObject
from nibabel.filebasedimages import ImageFileError
from numpy.linalg import LinAlgError

from cryoshuffle.errors import InputError, plainly
from cryoshuffle.files.mrc import (
    AXIS_CODES,
    MrcReader,
    is_mrc_name,
    read_affine,
    read_shape,
    refuse_no_file,
    volume_meta,
)
from cryoshuffle.files.nifti import in_unit, length_unit
from cryoshuffle.files.omezarr import OmeZarrReader, ZarrVolume, is_zarr_name, open_zarr
from cryoshuffle.files.writing import image_suffix
from cryoshuffle.lattice import Triple

# Voxels that two volumes may be apart and still be at the same place.
_SAME_PLACE = 0.5


class TomogramReader(ImageReader):
    """The reader for a file name: the package's own for MRC and OME-Zarr, MONAI's for NIfTI.

    The affine is in Å; what a NIfTI says of its unit is in :mod:`cryoshuffle.files.nifti`.

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
        if isinstance(first, ZarrVolume):
            return self._zarr.get_data(img)
        array, meta = self._nifti.get_data(img)
        unit, factor = length_unit(first)
        meta.update({key: in_unit(meta[key], factor) for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE)})
        return array, {**meta, "nifti_unit": unit, "nifti_unit_angstrom": factor}


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
    with plainly():
        image: Any = LoadImage(reader, ensure_channel_first=True)(str(path))
    if axcodes is not None:
        image = Orientation(axcodes, labels=None)(image)
    result: MetaTensor = image
    return result


def load_beside(
    path: str | os.PathLike[str],
    tomogram: str | os.PathLike[str] | None,
    permissive: bool = False,
    folder: str | os.PathLike[str] | None = None,
    largest: int | None = None,
) -> MetaTensor:
    """A volume that goes with a tomogram voxel by voxel, as its mask, a half or its truth.

    The axes of a NIfTI may run either way. What ITK makes of an MRC runs against the MRC along x and y. Where the
    affines put the voxels of both at the same places, they are followed; else voxels are taken index by index.

    Args:
        path: of the file.
        tomogram: path of the tomogram, of the same shape; None for none, and the volume is as it is by itself.
        permissive: see :class:`TomogramReader`.
        folder: likewise.
        largest: likewise; a volume that has to be turned is taken whole.

    Returns:
        ``(1, Z, Y, X)``, the voxels in the order that :func:`load_tomogram` gives those of the tomogram.

    Raises:
        FileError, InputError: those of :func:`load_tomogram`.

    Warns:
        UserWarning: if the axes run against those of the tomogram and voxels are taken index by index.
    """
    image = load_tomogram(path, permissive, folder, largest)
    if tomogram is None:
        return image
    (own, backwards), (other, runs) = _placed(path, permissive), _placed(tomogram, permissive)
    against = [axis for axis in range(3) if backwards[axis] != runs[axis]]
    size = np.linalg.norm(other[:3, :3], axis=0).min()
    corners = np.array([(0.0, 0.0, 0.0, 1.0), (*(n - 1.0 for n in reversed(tomogram_shape(path, permissive))), 1.0)])
    if not against or np.abs(corners @ (own - other).T).max() < _SAME_PLACE * size:
        return image
    words = f"{' and '.join('zyx'[axis] for axis in reversed(against))} run{'s' if len(against) == 1 else ''} against"
    warnings.warn(
        f"{path}: {words} {tomogram}, and its header puts it elsewhere; voxels are taken index by index", stacklevel=1
    )
    if largest is not None:
        # The middle of an even number of voxels is another one from the other side.
        image = load_tomogram(path, permissive, folder)
    result: Any = torch.flip(image, [axis + 1 for axis in against])
    turned: MetaTensor = result
    return turned


def file_of(image: Any) -> str | None:
    """The file an image came from; None for one that does not tell."""
    named = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    return None if named is None else str(named)


def _placed(path: str | os.PathLike[str], permissive: bool) -> tuple[np.ndarray, list[bool]]:
    """Where the voxels of a file are, by its header alone.

    Returns:
        the affine of the voxels (X, Y, Z) once all axes run forwards, and for each axis (Z, Y, X) whether the stored
        ones run backwards; in MRC and Zarr none do.
    """
    shape: Sequence[int] = tomogram_shape(path, permissive)
    if is_mrc_name(path):
        affine = read_affine(path, permissive)
    elif is_zarr_name(path):
        volume = open_zarr(path, look=False)
        affine = volume_meta(volume.shape, volume.voxel_size_zyx, volume.origin_zyx)[MetaKeys.AFFINE]
    else:
        stored: Any = nibabel.load(Path(path))
        affine, shape = in_unit(stored.affine, length_unit(stored)[1]), stored.shape
    turns = nibabel.io_orientation(affine)
    backwards = [bool(turns[turns[:, 0] == axis, 1] < 0) for axis in (2, 1, 0)]
    return affine @ nibabel.orientations.inv_ornt_aff(turns, shape), backwards


logger = logging.getLogger("cryoshuffle")


def tomogram_shape(path: str | os.PathLike[str], permissive: bool = False) -> Triple:
    """The shape of a tomogram on disk, (Z, Y, X), after everything its header can tell is checked.

    A compressed NIfTI is unpacked once, for its checksum.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not one real volume in MRC, OME-Zarr or NIfTI.
    """
    path = Path(path)
    if is_zarr_name(path):
        return open_zarr(path, look=False).shape
    refuse_no_file(path)
    image_suffix(path)
    shape: Sequence[int]
    if is_mrc_name(path):
        shape = read_shape(path, permissive)
    else:
        try:
            image: Any = nibabel.load(path)
            shape = getattr(image, "shape", ())[::-1]
            if len(shape) == 3:  # the affine says which axis of the file runs along z, y and x
                along = nibabel.io_orientation(image.affine)[:, 0]
                shape = [n for _, n in sorted(zip(along, image.shape, strict=True), reverse=True)]
        except (ImageFileError, OSError, EOFError, zlib.error, ValueError, LinAlgError) as error:
            raise InputError(f"{path}: is not a valid NIfTI file ({error}), check the file") from error
        if len(shape) != 3:
            raise InputError(f"{path}: has {len(shape)} dimensions {shape}, a tomogram needs three")
        _refuse_cut_nifti(path, image)
    z, y, x = (int(n) for n in shape)
    return z, y, x


def _refuse_cut_nifti(path: Path, image: Any) -> None:
    """Refuse a NIfTI that is shorter than its header says, or whose compression says that it is damaged."""
    if path.suffix.lower() == ".gz":
        found = path.stat()
        _refuse_damaged(str(path), found.st_size, found.st_mtime_ns)
        return
    stored = image.dataobj
    size = int(stored.offset) + math.prod(stored.shape) * stored.dtype.itemsize
    if path.stat().st_size < size:
        raise InputError(
            f"{path}: is cut short (its header says {size} bytes, there are {path.stat().st_size}), copy it again"
        )


@lru_cache(maxsize=64)
def _refuse_damaged(path: str, size: int, changed_ns: int) -> None:
    """Refuse a compressed file that is cut short or has other bytes than were packed; each state is looked at once.

    nibabel stops at the last voxel, before the checksum.
    """
    try:
        with gzip.open(path, "rb") as file:
            while file.read(2**22):
                pass
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: is cut short or damaged ({str(error).rstrip('.')}), copy it again") from error
