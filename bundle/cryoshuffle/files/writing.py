"""Where results go, whole or not at all."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import torch
from monai.data import ImageWriter, NibabelWriter
from monai.data.folder_layout import FolderLayoutBase

import cryoshuffle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files import omezarr, scratch
from cryoshuffle.files.mrc import SUFFIXES as MRC_SUFFIXES
from cryoshuffle.files.mrc import MrcWriter, is_mrc_name
from cryoshuffle.files.nifti import in_unit

# Checksums this process has taken, by the state that the files were in.
_known: dict[str, str] = {}
# So long after it was changed, seconds, a file that is changed again has other times, however coarse they are.
SETTLED_S = 2.0
# What tells a volume of ours from another, within this many bytes of its beginning.
LABEL = "cryoshuffle"
_HEADER_BYTES = 1024
SUFFIXES = (*MRC_SUFFIXES, *omezarr.SUFFIXES, ".nii", ".nii.gz")


def image_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a tomogram's name, compression included.

    Raises:
        InputError: if it is none of MRC, OME-Zarr and NIfTI.
    """
    name = Path(path).name.lower()
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    raise InputError(f"{path}: unknown kind of file, use a name that ends in {', '.join(SUFFIXES)}")


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a volume carries our own label: in an MRC or NIfTI header, or among the attributes of a Zarr.

    Args:
        path: of a file or folder that is there; False for one that cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            named = [path / name for name in (".zattrs", "zarr.json") if (path / name).is_file()]
            read = [json.loads(file.read_text(encoding="utf-8")) for file in named]
            return any(LABEL in attributes or LABEL in attributes.get("attributes", {}) for attributes in read)
        opened: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
        with opened(path, "rb") as file:
            return LABEL.encode() in file.read(_HEADER_BYTES)
    except (OSError, EOFError, zlib.error, ValueError):
        return False


class WholeNiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer; the file appears under its name only when it is complete, with our label in its header.

    A volume that came from a NIfTI keeps the unit of length it had there. The Å of any other are written as
    millimetres, number by number (:mod:`cryoshuffle.files.nifti`).
    """

    unit, unit_angstrom = "mm", 1.0

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = True, **options: Any) -> None:
        """Take the metadata."""
        super().set_metadata(meta_dict, resample, **options)
        meta = meta_dict or {}
        self.unit, self.unit_angstrom = str(meta.get("nifti_unit", "mm")), float(meta.get("nifti_unit_angstrom", 1.0))
        if self.affine is not None:
            self.affine = in_unit(self.affine, 1 / self.unit_angstrom)

    @classmethod
    def create_backend_obj(cls, data_array: Any, affine: Any = None, dtype: Any = None, **kwargs: Any) -> Any:
        """The image, with its description."""
        image: Any = super().create_backend_obj(data_array, affine, dtype, **kwargs)
        image.header["descrip"] = f"{LABEL} {cryoshuffle.__version__}: denoised".encode()[:80]
        return image

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write under a temporary name and move into place."""
        header = nibabel.Nifti1Header()
        header.set_xyzt_units(self.unit)
        path = scratch.real_path(filename)
        # nibabel tells the kind of a file by the end of its name.
        partial = scratch.partial_path(path, ending=f".{path.name}")
        with scratch.written_whole(path, partial):
            super().write(partial, verbose=verbose, **{"header": header, **obj_kwargs})
            os.replace(partial, path)


def image_writer(path: str | os.PathLike[str]) -> type[ImageWriter]:
    """The writer for a file name, for MONAI's ``SaveImage``."""
    if is_mrc_name(path):
        return MrcWriter
    return omezarr.OmeZarrWriter if image_suffix(path) in omezarr.SUFFIXES else WholeNiftiWriter


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


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, of the names and the content of all its files.

    What this process has read before is not read again as long as the system says that it is the same file, of the same
    size, and that neither content nor name have changed since.

    Raises:
        FileError: if it cannot be read.
    """
    digest, whole = hashlib.sha256(), Path(path)
    try:
        files = sorted(part for part in whole.rglob("*") if part.is_file()) if whole.is_dir() else [whole]
        state = _state(whole, files)
        if state is not None and state in _known:
            return _known[state]
        for one in files:
            if one != whole:
                digest.update(one.relative_to(whole).as_posix().encode() + b"\0")
            with one.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
        if state is not None and state == _state(whole, files):
            _known[state] = digest.hexdigest()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}), check the file and its rights") from error
    return digest.hexdigest()


def _state(whole: Path, files: Sequence[Path]) -> str | None:
    """What the system says of files; None for some that were changed too shortly before for that to be relied on."""
    digest, now = hashlib.sha256(), time.time()
    for one in files:
        found = os.stat(one)
        if now - max(found.st_mtime, found.st_ctime) < SETTLED_S:
            return None
        name = one.relative_to(whole).as_posix()
        digest.update(
            repr((name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)).encode()
        )
    return digest.hexdigest()


def write_text(content: str, path: str | os.PathLike[str]) -> None:
    """Write text as UTF-8 under a temporary name and move it into place.

    Raises:
        FileError: if the file cannot be written; nothing is left behind then.
    """
    path = scratch.real_path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(content, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FileError(f"{path}: cannot be written ({error.strerror or error}), choose another folder") from error


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON under a temporary name and move them into place.

    Raises:
        FileError: see :func:`write_text`.
    """
    write_text(json.dumps(content, indent=2) + "\n", path)


logger = logging.getLogger("cryoshuffle")


def check_new_file(path: str | os.PathLike[str], overwrite: bool = False, folder: bool = False) -> None:
    """Refuse a file that exists or whose folder cannot be written.

    Args:
        path: of the file.
        overwrite: allow one that exists.
        folder: whether what is to be written is a folder itself, an OME-Zarr.

    Raises:
        FileError: in either case.
    """
    path = Path(path)
    if path.is_dir() and not (folder and any((path / name).exists() for name in (".zattrs", ".zgroup", "zarr.json"))):
        raise FileError(f"{path}: is a folder, name a file" if not folder else f"{path}: is a folder, but no Zarr")
    if path.exists() and not overwrite:
        raise FileError(f"{path}: exists already, add --overwrite or choose another name")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}, make it first")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: the folder {path.parent} cannot be written, choose another")


def save_whole(content: Any, path: str | os.PathLike[str]) -> None:
    """Save with torch under a temporary name, then move into place.

    Raises:
        FileError: if it cannot be written; what was there before is kept.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"{path}: the checkpoint cannot be written ({error}), make room and continue with --resume"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
