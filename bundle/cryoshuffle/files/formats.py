"""The formats of tomograms, one row each, and what reads and writes a tomogram by the name of its file.

A new format is a module with a reader, a writer and ``read_header``, and a row of :data:`FORMATS`.
"""

from __future__ import annotations

import json
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import ImageReader, ImageWriter, MetaTensor, register_writer
from monai.data.folder_layout import FolderLayoutBase
from monai.data.image_writer import SUPPORTED_WRITERS
from monai.data.image_writer import init as register_own_writers
from monai.transforms import LoadImage, Orientation
from monai.transforms.io.array import SUPPORTED_READERS

from cryoshuffle.errors import FileError, InputError, plainly
from cryoshuffle.files import mrc, nifti, omezarr
from cryoshuffle.files.volumes import (
    AXIS_CODES,
    DENOISED,
    DTYPES,
    LABEL,
    VolumeHeader,
    as_names,
    is_named,
    open_packed,
    refuse_no_file,
)
from cryoshuffle.files.writing import check_new_file
from cryoshuffle.host import usual_defaults
from cryoshuffle.lattice import Triple

# Bytes from the beginning of a file that hold our label.
_HEADER_BYTES = 1024
# Voxels that two volumes may be apart and still be at the same place.
_SAME_PLACE = 0.5


@dataclass(frozen=True)
class VolumeFormat:
    """One format of tomograms.

    Attributes:
        name: for messages.
        suffixes: of its names, lower case, in the order in which they are told.
        result_suffix: of a result, where the format alone is given.
        reader: MONAI's interface; takes ``permissive``, ``folder`` and ``largest``
            (:class:`cryoshuffle.files.volumes.VolumeReader`).
        writer: MONAI's interface; takes ``output_dtype``, ``is_result`` and ``content``
            (:class:`cryoshuffle.files.volumes.VolumeWriter`).
        read_header: tells what is known before the voxels are read, and refuses what is no tomogram; takes a path and
            ``permissive``.
        dtypes: that its writer takes.
        marks: files that a volume of it holds, the one that is written last first; empty where the volume is a file.
        check_old: raises a ``FileError`` if what a path holds is more than a volume of it, so is not to be replaced.
        check_extra: raises an ``InputError`` that names a path if a package that the format needs is missing.
    """

    name: str
    suffixes: tuple[str, ...]
    result_suffix: str
    reader: type[Any]
    writer: type[ImageWriter]
    read_header: Callable[[Path, bool], VolumeHeader]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    marks: tuple[str, ...] = ()
    check_old: Callable[[Path], Any] | None = None
    check_extra: Callable[[Path], Any] | None = None

    @property
    def is_folder(self) -> bool:
        """Whether a volume is a folder."""
        return bool(self.marks)

    def knows(self, path: str | os.PathLike[str]) -> bool:
        """Whether a path is that of a volume of the format by its name; of a folder also one that leads into it."""
        return is_named(path, self.suffixes, self.is_folder)


FORMATS: tuple[VolumeFormat, ...] = (
    VolumeFormat("MRC", mrc.SUFFIXES, ".mrc", mrc.MrcReader, mrc.MrcWriter, mrc.read_header),
    VolumeFormat(
        "OME-Zarr", omezarr.SUFFIXES, ".zarr", omezarr.OmeZarrReader, omezarr.OmeZarrWriter, omezarr.read_header,
        marks=omezarr.MARKS, check_old=omezarr.refuse_foreign, check_extra=omezarr.import_zarr,
    ),
    VolumeFormat(
        "NIfTI", nifti.SUFFIXES, ".nii.gz", nifti.NiftiReader, nifti.NiftiWriter, nifti.read_header, dtypes=("float32",)
    ),
)  # fmt: skip


def register_formats() -> None:
    """Make readers and writers known to MONAI's ``LoadImage`` and ``SaveImage``; what MONAI writes itself stays its."""
    if not SUPPORTED_WRITERS:
        register_own_writers()
    readers: dict[str, Any] = SUPPORTED_READERS
    for one in FORMATS:
        suffixes = [suffix.removeprefix(".") for suffix in one.suffixes]
        if not set(suffixes) & set(SUPPORTED_WRITERS):
            readers[one.reader.__name__.lower()] = one.reader
            for suffix in suffixes:
                register_writer(suffix, one.writer)


register_formats()


def split_suffix(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The name of a tomogram, and its suffix in lower case, compression included.

    Args:
        path: of any file or folder; the suffix is empty for one whose name is of no format.

    Example:
        >>> split_suffix("session/TS_1.rec.GZ"), split_suffix("notes.txt")
        (('TS_1', '.rec.gz'), ('notes.txt', ''))
    """
    name = Path(path).name
    suffixes = [suffix for one in FORMATS for suffix in one.suffixes if name.lower().endswith(suffix)]
    suffix = max(suffixes, key=len, default="")
    return name[: len(name) - len(suffix)], suffix


def find_format(path: str | os.PathLike[str]) -> VolumeFormat | None:
    """The format of a tomogram to read by its name; None for a name of no format."""
    return next((one for one in FORMATS if one.knows(path)), None)


def stem_beside(path: str | os.PathLike[str]) -> Path:
    """A path beside a tomogram, without suffix, for what belongs to it; outside of the volume that it is a level of.

    Args:
        path: of a tomogram, or of a level of one.

    Example:
        >>> stem_beside("session/TS_1.mrc").as_posix(), stem_beside("session/TS_1.zarr/0").as_posix()
        ('session/TS_1', 'session/TS_1_0')
    """
    path, known = Path(path), find_format(path)
    whole = path
    if known is not None and known.is_folder:
        whole = next(one for one in (*reversed(path.parents), path) if one.name.lower().endswith(known.suffixes))
    return whole.parent / "_".join([split_suffix(whole)[0], *path.relative_to(whole).parts])


def format_of(path: str | os.PathLike[str]) -> VolumeFormat:
    """The format of a tomogram to write.

    Raises:
        InputError: if the name is of no format.
    """
    suffix = split_suffix(path)[1]
    for one in FORMATS:
        if suffix in one.suffixes:
            return one
    known = ", ".join(suffix for one in FORMATS for suffix in one.suffixes)
    raise InputError(f"{path}: unknown kind of file, use a name that ends in {known}")


def image_writer(path: str | os.PathLike[str], **options: Any) -> Callable[..., ImageWriter]:
    """The writer for a file name, for MONAI's ``SaveImage``.

    Args:
        path: of the file.
        options: of the writer; the writers of other formats ignore ``ome_zarr``. ``is_result=True`` labels the file as
            a result of ours.

    Raises:
        InputError: if the name is of no format.
    """
    writer = format_of(path).writer
    return partial(writer, **options) if options else writer


class ExactPath(FolderLayoutBase):
    """The one path the user asked for, instead of a folder of names that MONAI makes up.

    Args:
        path: of the result.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)

    def filename(self, **kwargs: Any) -> str:
        """The path, whatever the subject is called."""
        return self.path


class TomogramReader(ImageReader):
    """The reader for a file name, of whatever format it is; the affine is in Å.

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
        self.options = {"permissive": permissive, "folder": folder, "largest": largest}

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether all names are those of one format."""
        return any(all(one.knows(name) for name in as_names(filename)) for one in FORMATS)

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> Any:
        """Open the files: the reader of their format, and what it gives."""
        first = as_names(data)[0]
        reader = (find_format(first) or format_of(first)).reader(**self.options)
        return reader, reader.read(data, **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The volume and its metadata."""
        reader, opened = img
        data: tuple[np.ndarray, dict[str, Any]] = reader.get_data(opened)
        return data


def read_header(path: str | os.PathLike[str], permissive: bool = False) -> VolumeHeader:
    """What a file tells of its volume, after everything that can be told without reading all of it is checked.

    A compressed NIfTI is unpacked once, for its checksum.

    Args:
        path: of the file.
        permissive: see :class:`TomogramReader`.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not one real volume of a known format.
    """
    one = find_format(path)
    if one is None or not one.is_folder:
        refuse_no_file(path)
    return (one or format_of(path)).read_header(Path(path), permissive)


def tomogram_shape(path: str | os.PathLike[str], permissive: bool = False) -> Triple:
    """The shape of a tomogram on disk, (Z, Y, X).

    Raises:
        FileError, InputError: those of :func:`read_header`.
    """
    return read_header(path, permissive).shape_zyx


def load_tomogram(
    path: str | os.PathLike[str],
    permissive: bool = False,
    folder: str | os.PathLike[str] | None = None,
    largest: int | None = None,
    axcodes: str | None = AXIS_CODES,
    beside: str | os.PathLike[str] | None = None,
) -> MetaTensor:
    """A tomogram from a file, as an image ``(1, Z, Y, X)`` with its metadata.

    The axes of a NIfTI may run either way. What ITK makes of an MRC runs against the MRC along x and y. So a volume
    that goes with a tomogram voxel by voxel is turned to it: where the affines put the voxels of both at the same
    places, they are followed; else voxels are taken index by index.

    Args:
        path: of the file.
        permissive: see :class:`TomogramReader`.
        folder: see :class:`TomogramReader`.
        largest: see :class:`TomogramReader`; a volume that has to be turned to another is taken whole.
        axcodes: orientation the image is turned to; None leaves it as it is in the file.
        beside: path of the tomogram, of the same shape, that this one is the mask, a half or the truth of, for the
            orientation there is by default; None for none.

    Raises:
        FileError: if a file is missing or cannot be read.
        InputError: if it is not one real volume of a known format.

    Warns:
        UserWarning: if the axes run against those of ``beside`` and voxels are taken index by index.
    """
    header = read_header(path, permissive)
    against = [] if beside is None else _axes_against(path, header, beside, read_header(beside, permissive))
    # The middle of an even number of voxels is another one from the other side.
    reader = TomogramReader(permissive, folder, None if against else largest)
    with plainly(), usual_defaults():
        image: Any = LoadImage(reader, ensure_channel_first=True, expanduser=False)(str(path))
        if axcodes is not None:
            image = Orientation(axcodes, labels=None)(image)
    turned: Any = torch.flip(image, [axis + 1 for axis in against]) if against else image
    result: MetaTensor = turned
    return result


def _axes_against(
    path: str | os.PathLike[str], header: VolumeHeader, beside: str | os.PathLike[str], other: VolumeHeader
) -> list[int]:
    """Axes (Z, Y, X) that run against those of another volume which is not at the same place."""
    (affine, backwards), (target, runs) = header.placed(), other.placed()
    against = [axis for axis in range(3) if backwards[axis] != runs[axis]]
    size = np.linalg.norm(target[:3, :3], axis=0).min()
    corners = np.array([(0.0, 0.0, 0.0, 1.0), (*(n - 1.0 for n in reversed(header.shape_zyx)), 1.0)])
    if not against or np.abs(corners @ (affine - target).T).max() < _SAME_PLACE * size:
        return []
    words = f"{' and '.join('zyx'[axis] for axis in reversed(against))} run{'s' if len(against) == 1 else ''} against"
    warnings.warn(
        f"{path}: {words} {beside}, and its header puts it elsewhere; voxels are taken index by index", stacklevel=1
    )
    return against


def save_tomogram(
    image: MetaTensor,
    path: str | os.PathLike[str],
    dtype: str = "float32",
    is_result: bool = True,
    content: str = DENOISED,
    **options: Any,
) -> None:
    """Write a volume in the format that its name says, whole or not at all.

    Args:
        image: ``(1, Z, Y, X)``, or with its axes in any order that its affine tells; with the header it was read with,
            if any.
        path: of the file.
        dtype: of the voxels.
        is_result: whether it is labelled as a result of ours; False for a volume that was not denoised.
        content: what the label says it holds.
        options: see :func:`image_writer`.

    Raises:
        FileError: if it cannot be written; nothing is left behind then.
        InputError: if the name is of no format, or the type does not hold the grey values.
    """
    writer: Any = image_writer(path, **options)(output_dtype=np.dtype(dtype), is_result=is_result, content=content)
    writer.set_data_array(image, channel_dim=0)
    writer.set_metadata(image.meta, resample=False)
    writer.write(str(path))


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a volume carries our own label: in the header of a file, or among the attributes of a folder.

    Args:
        path: of a file or folder that is there; False for one that cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            marks = [path / mark for one in FORMATS for mark in one.marks if (path / mark).is_file()]
            attributes = [json.loads(mark.read_text(encoding="utf-8")) for mark in marks]
            return any(LABEL in said or LABEL in said.get("attributes", {}) for said in attributes)
        with open_packed(path) as file:
            return LABEL.encode() in file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error, ValueError):
        return False


def check_new_tomogram(path: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Refuse a tomogram to write that exists or whose folder cannot be written.

    Args:
        path: of the tomogram.
        overwrite: allow one that exists; a folder only if a volume of the format is in it, and nothing else.

    Raises:
        FileError: see :func:`cryoshuffle.files.writing.check_new_file`; or if files of others are in it.
        InputError: if the name is of no format.
    """
    path, one = Path(path), format_of(path)
    if one.is_folder and path.is_dir() and not any((path / mark).exists() for mark in one.marks):
        raise FileError(f"{path}: is a folder, but no {one.name}, choose another name")
    check_new_file(path, overwrite, one.is_folder)
    if one.check_old is not None:
        one.check_old(path)
