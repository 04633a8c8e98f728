"""NIfTI: MONAI's reader and writer, with lengths in Å, files checked before the work and written whole.

NIfTI knows no Å. ITK, and what is made with it, keeps the numbers of an MRC and calls them millimetres: 10 Å become
"10 mm". So do we.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monai.data import NibabelReader, NibabelWriter
from monai.utils import MetaKeys
from nibabel.filebasedimages import ImageFileError
from numpy.linalg import LinAlgError

from cryoshuffle.errors import InputError
from cryoshuffle.files.volumes import DENOISED, VolumeHeader, own_label, refuse_not_finite
from cryoshuffle.files.writing import written_whole
from cryoshuffle.host import usual_defaults

SUFFIXES = (".nii", ".nii.gz")
UNKNOWN = "unknown"
_ANGSTROM = {"mm": 1e7, "micron": 1e4, "meter": 1e10}
# No voxel is smaller, Å: what is less is in true millimetres.
_LEAST = 0.1


def length_unit(image: Any) -> tuple[str, float]:
    """The unit of length that a header names, and how many Å its numbers count.

    Args:
        image: nibabel's.

    Returns:
        ``mm``, ``micron``, ``meter`` or ``unknown``, and the factor. It is 1 for an unknown unit, and for millimetres
        where a voxel has at least 0.1 of them: those are Å that go by that name.

    Example:
        >>> import nibabel
        >>> image = nibabel.Nifti1Image(np.zeros((4, 4, 4)), np.diag([0.001, 0.001, 0.001, 1]))
        >>> image.header.set_xyzt_units("micron")
        >>> length_unit(image)
        ('micron', 10000.0)
    """
    try:
        unit = str(image.header.get_xyzt_units()[0])
    except (AttributeError, KeyError):
        unit = UNKNOWN
    if unit == "mm" and _smallest_voxel(image) >= _LEAST:
        return unit, 1.0
    return unit, _ANGSTROM.get(unit, 1.0)


def _smallest_voxel(image: Any) -> float:
    """Shortest side of a voxel, in the numbers of the file."""
    return float(np.linalg.norm(image.affine[:3, :3], axis=0).min())


def in_unit(affine: Any, factor: float) -> np.ndarray:
    """An affine with all its lengths times a factor.

    Args:
        affine: 4 x 4.
        factor: of another unit.
    """
    scaled: np.ndarray = np.diag([factor, factor, factor, 1.0]) @ np.asarray(affine, dtype=float)
    return scaled


def read_header(path: str | os.PathLike[str], permissive: bool = False) -> VolumeHeader:
    """What a NIfTI tells of its volume; a compressed one is unpacked once, for its checksum.

    Args:
        path: of the file.
        permissive: of other formats; not needed here.

    Raises:
        InputError: if it is no NIfTI, not one volume of real values, or cut short.
    """
    path = Path(path)
    try:
        image: Any = nibabel.load(path)
        shape = _volume_shape(tuple(getattr(image, "shape", ())))
        unit, factor = length_unit(image)
        note = f"names no unit of length, its voxels are taken for {_smallest_voxel(image):g} Å"
        header = VolumeHeader(shape, in_unit(image.affine, factor), [note] if unit == UNKNOWN else [])
        axes = header.affine[:3, :3]
        if not np.isfinite(header.affine).all() or np.linalg.det(axes) == 0:
            raise ValueError("its affine gives the voxels no volume or is no number")
        if len(shape) == 3:
            header.placed()
    except (ImageFileError, OSError, EOFError, zlib.error, ValueError, LinAlgError) as error:
        raise InputError(f"{path}: is not a valid NIfTI file ({error}), check the file") from error
    if len(shape) != 3:
        raise InputError(f"{path}: has {len(shape)} dimensions {shape[::-1]}, a tomogram needs three")
    _refuse_other_than_real(path, image)
    _refuse_cut(path, image)
    return header


def _volume_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without axes of one behind its three, as programs that know of time and channels write them."""
    return shape[:3] if math.prod(shape[3:]) == 1 else shape


def _refuse_other_than_real(path: str | os.PathLike[str], image: Any) -> None:
    dtype = np.dtype(image.get_data_dtype())
    if dtype.kind == "c":
        raise InputError(f"{path}: holds complex values (a transform, not a tomogram), give the real-space volume")
    if dtype.kind not in "biuf":
        name = "".join(dtype.names or ()) or str(dtype)
        raise InputError(f"{path}: holds values of type {name}, give a volume of real ones")


def _refuse_cut(path: Path, image: Any) -> None:
    """Refuse a NIfTI that is shorter than its header says, or whose compression says that it is damaged."""
    stat = path.stat()
    if path.suffix.lower() == ".gz":
        _refuse_damaged(str(path), stat.st_size, stat.st_mtime_ns)
        return
    stored = image.dataobj
    size = int(stored.offset) + math.prod(stored.shape) * stored.dtype.itemsize
    if stat.st_size < size:
        words = f"its header says {size} bytes, there are {stat.st_size}"
        raise InputError(f"{path}: is cut short ({words}), copy it again")


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


class NiftiReader(NibabelReader):
    """MONAI's NIfTI reader, with the affine in Å.

    Args:
        options: of other readers. A NIfTI is taken whole, and kept in memory however large it is.

    Raises:
        InputError: from ``get_data``, if the values are not real.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The volume and its metadata."""
        images = list(img) if isinstance(img, (list, tuple)) else [img]
        for image in images:
            _refuse_other_than_real(image.get_filename(), image)
        array, meta = super().get_data(img)
        if len(images) == 1 and array.shape != _volume_shape(array.shape):
            array = array.reshape(_volume_shape(array.shape))
            meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan")
        unit, factor = length_unit(images[0])
        meta.update({key: in_unit(meta[key], factor) for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE)})
        return array, {**meta, "nifti_unit": unit, "nifti_unit_angstrom": factor}


class NiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer; the file appears under its name only when it is complete, with our label in its header.

    A volume that came from a NIfTI keeps the unit of length it had there. The Å of any other are written as
    millimetres, number by number.

    Args:
        output_dtype: as MONAI has it.
        is_result: whether the file is labelled as a result of ours; not for what other programs save through MONAI.
        content: what the label says it holds.
        options: other options of MONAI's writer.

    Raises:
        InputError: from ``write``, if voxels of a result are not finite.
    """

    unit, unit_angstrom = "mm", 1.0

    def __init__(
        self, output_dtype: Any = np.float32, is_result: bool = False, content: str = DENOISED, **options: Any
    ) -> None:
        super().__init__(output_dtype, **options)
        self.is_result, self.content = is_result, content

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Take the metadata."""
        with usual_defaults():
            super().set_metadata(meta_dict, resample, **options)
        meta = meta_dict or {}
        self.unit, self.unit_angstrom = str(meta.get("nifti_unit", "mm")), float(meta.get("nifti_unit_angstrom", 1.0))
        if self.affine is not None:
            self.affine = in_unit(self.affine, 1 / self.unit_angstrom)

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the volume, whole or not at all."""
        header = nibabel.Nifti1Header()
        header.set_xyzt_units(self.unit)
        if self.is_result:
            header["descrip"] = own_label(self.content)
        if self.is_result:
            refuse_not_finite(filename, int((~np.isfinite(np.asarray(self.data_obj))).sum()))
        # nibabel tells the kind of a file by the end of its name.
        name = Path(filename).name
        ending = next((name[-len(suffix) :] for suffix in SUFFIXES if name.lower().endswith(suffix)), f".{name}")
        with written_whole(filename, ending=ending) as partial:
            super().write(partial, verbose=verbose, **{"header": header, **obj_kwargs})
