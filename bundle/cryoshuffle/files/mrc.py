"""MRC files as MONAI images: a reader and a writer that keep the header.

Importing this module registers both, so that plain ``LoadImaged(keys)`` and ``SaveImaged(output_ext=".mrc")``
find them. In memory the axes are always (Z, Y, X), whatever order the file declares; the affine of the image says
so (axis codes ``SAR``, offsets and spacings in Å where NIfTI has mm).

Source:
    MRC2014: Cheng et al. 2015, J. Struct. Biol. 192, 146.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import math
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import mrcfile
import numpy as np
import torch
from monai.data import ImageReader, ImageWriter, MetaTensor, register_writer
from monai.data.image_writer import SUPPORTED_WRITERS
from monai.data.image_writer import init as register_own_writers
from monai.transforms import Orientation
from monai.transforms.io.array import SUPPORTED_READERS
from monai.utils import MetaKeys, SpaceKeys
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.mrcobject import MrcObject
from mrcfile.utils import data_shape_from_header, dtype_from_mode, mode_from_dtype

from cryoshuffle.boxes import middle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files import scratch

logger = logging.getLogger("cryoshuffle")

SUFFIXES = tuple(f"{s}{c}" for s in (".mrc", ".rec", ".map", ".st") for c in ("", ".gz", ".bz2"))
AXIS_CODES = "SAR"
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2"}
_DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "int16": np.int16, "uint16": np.uint16}
_IMOD_STAMP = 1146047817
_LABELS = 10
# Share of a result's voxels that its type may clip.
_MOST_CLIPPED = 0.001
# Where the header says how long the extended header is, and how much smaller compression makes a file at most.
_NSYMBT = slice(92, 96)
_MOST_PACKED = {".gz": 1100, ".bz2": 50_000}


def is_mrc_name(path: str | os.PathLike[str]) -> bool:
    """Whether a file name ends like an MRC file's, compressed or not."""
    return str(path).lower().endswith(SUFFIXES)


def refuse_no_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path that leads to no file.

    Raises:
        FileError: if it is a folder, or nothing is there.
    """
    if Path(path).is_dir():
        raise FileError(f"{path}: is a folder, name the file of one volume in it; a series of images makes no tomogram")
    if not Path(path).is_file():
        raise FileError(f"{path}: there is no such file, check the path")


def open_mrc(
    path: str | os.PathLike[str], permissive: bool = False, folder: str | os.PathLike[str] | None = None
) -> MrcObject:
    """Open one tomogram for reading; data are a memory map unless the file is compressed.

    Args:
        path: of the file.
        permissive: also take files whose header breaks the standard, an old one without the ``MAP`` stamp say.
        folder: where a compressed file too large for memory is unpacked, for as long as it is open; None for memory.

    Returns:
        mrcfile's object, open; its ``data`` are three-dimensional and real.

    Raises:
        FileError: if the file is missing or cannot be read, or there is no room to unpack it.
        InputError: if it is not MRC, is cut short, or holds something other than one real volume.
    """
    path = Path(path)
    size = _unpacked_size(path, permissive)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if path.suffix.lower() not in _COMPRESSIONS:
                mrc = mrcfile.mmap(path, permissive=permissive)
            elif folder is None or size <= scratch.in_memory_bytes():
                mrc = mrcfile.open(path, permissive=permissive)
            else:
                mrc = _unpack(path, size, Path(folder), permissive)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}), check the file and its rights") from error
    except (ValueError, EOFError, OverflowError, zlib.error) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    if mrc.data is None:
        mrc.close()
        reason = str(caught[-1].message) if caught else "no data"
        raise InputError(_why_not_mrc(path, reason, permissive))
    try:
        _refuse_other_than_volume(path, mrc.data)
    except InputError:
        mrc.close()
        raise
    return mrc


def read_shape(path: str | os.PathLike[str], permissive: bool = False) -> tuple[int, ...]:
    """Shape of the stored array of a tomogram, from its header; a compressed file is not unpacked for it.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not MRC, is cut short as far as can be told without unpacking it, or holds something other
            than one real volume.
    """
    path = Path(path)
    if path.suffix.lower() not in _COMPRESSIONS:
        with open_mrc(path, permissive) as mrc:
            return tuple(mrc.data.shape)
    _unpacked_size(path, permissive)
    header, _ = _peek(path, permissive)
    shape = data_shape_from_header(header)
    _refuse_other_than_volume(path, np.broadcast_to(np.zeros((), dtype_from_mode(header.mode)), shape))
    return tuple(shape)


def read_affine(path: str | os.PathLike[str], permissive: bool = False) -> np.ndarray:
    """Affine of a tomogram with axes (Z, Y, X), Å, from its header alone.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not MRC.
    """
    header, _ = _peek(Path(path), permissive)
    affine: np.ndarray = volume_meta((), voxel_size_zyx(header), _origin_zyx(header))[MetaKeys.AFFINE]
    return affine


def is_image_stack(path: str | os.PathLike[str], permissive: bool = False) -> bool:
    """Whether a header says that a file holds images one by one, as a tilt series does, and not a volume.

    Args:
        path: of the file.
        permissive: also take files whose header breaks the standard.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not MRC.
    """
    header, _ = _peek(Path(path), permissive)
    by_microscope = bytes(header["exttyp"].tobytes()) in {b"SERI", b"FEI1", b"FEI2"} and int(header["nsymbt"]) > 0
    return int(header["nz"]) > 1 and (by_microscope or (int(header["ispg"]) == 0 and int(header["mz"]) == 1))


def _peek(path: Path, permissive: bool) -> tuple[np.recarray, int]:
    """The header of a file, alone, and the bytes of its extended header."""
    refuse_no_file(path)
    if not is_mrc_name(path):
        raise InputError(f"{path}: not an MRC file by its name, expected one of {', '.join(SUFFIXES)}")
    opener: Any = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            raw = bytearray(file.read(HEADER_DTYPE.itemsize))
        extended = bytes(raw[_NSYMBT])
        # mrcfile makes room for whatever the header says that follows, before it looks how much there is.
        raw[_NSYMBT] = bytes(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = MrcInterpreter(io.BytesIO(raw), permissive, header_only=True).header
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror or error}), check the file and its rights") from error
    except (ValueError, EOFError, zlib.error) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    order: Literal["big", "little"] = "big" if header.dtype["mode"].byteorder == ">" else "little"
    return header, int.from_bytes(extended, order, signed=True)


def _unpacked_size(path: Path, permissive: bool) -> int:
    """Bytes of a file without compression, as its header has them; a header that says more than can be is refused."""
    header, extended = _peek(path, permissive)
    try:
        shape, item = data_shape_from_header(header), dtype_from_mode(header.mode).itemsize
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    if extended < 0 or min(shape) < 1:
        raise InputError(_why_not_mrc(path, f"its header says shape {shape}, extended header {extended}", permissive))
    size = HEADER_DTYPE.itemsize + extended + item * math.prod(shape)
    there = path.stat().st_size * _MOST_PACKED.get(path.suffix.lower(), 1)
    if size > there:
        raise InputError(_why_not_mrc(path, f"Expected {size} bytes, there are {there} at most", permissive))
    return size


def _unpack(path: Path, size: int, folder: Path, permissive: bool) -> MrcObject:
    """A compressed file unpacked piece by piece into one that loses its name as soon as it is open."""
    folder.mkdir(parents=True, exist_ok=True)
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else bz2.open
    partial = scratch.partial_path(folder / f"{path.name}.mrc")
    try:
        with partial.open("wb") as file:
            try:
                scratch.take_room(file, size)
            except OSError as error:
                raise FileError(
                    f"{path}: needs {size / 2**20:.0f} MiB in {folder} to be unpacked ({error.strerror or error}), "
                    "make room or choose another folder with --report"
                ) from error
            file.seek(0)
            left = size
            with opener(path, "rb") as packed:
                while left and (block := packed.read(min(left, 2**22))):
                    file.write(block)
                    left -= len(block)
        if left:
            raise EOFError(f"Expected {size} bytes, there are {size - left}")
        return mrcfile.mmap(partial, permissive=permissive)
    finally:
        partial.unlink(missing_ok=True)


def _why_not_mrc(path: Path, reason: str, permissive: bool) -> str:
    reason = reason.rstrip(".")
    if any(words in reason for words in ("Expected", "enough bytes", "end-of-stream", "mmap length")):
        return f"{path}: is cut short ({reason}), copy it again"
    if permissive:
        return f"{path}: is not an MRC file, even when read permissively ({reason})"
    way_out = "if it is an old one add --permissive" if _is_read_permissively(path) else "check what it is"
    return f"{path}: is not a valid MRC file ({reason}), {way_out}"


def _is_read_permissively(path: Path) -> bool:
    """Whether a file that breaks the standard is a volume all the same, as far as its header tells."""
    try:
        read_shape(path, permissive=True)
    except (FileError, InputError):
        return False
    return True


def _refuse_other_than_volume(path: Path, data: np.ndarray) -> None:
    if np.iscomplexobj(data):
        raise InputError(f"{path}: holds complex values (a transform, not a tomogram), give the real-space volume")
    if data.ndim == 2 or (data.ndim == 3 and data.shape[0] == 1):
        raise InputError(f"{path}: is a single image of {data.shape[-2:]}, a tomogram needs three dimensions")
    if data.ndim != 3:
        raise InputError(f"{path}: has {data.ndim} dimensions {data.shape}, give one volume at a time")


def _axis_order(header: np.ndarray) -> tuple[int, int, int]:
    """Where Z, Y and X of the volume are among the axes of the stored array (sections, rows, columns)."""
    stored = [3 - int(header[name]) for name in ("maps", "mapr", "mapc")]
    order = [stored.index(axis) for axis in (0, 1, 2)] if sorted(stored) == [0, 1, 2] else [0, 1, 2]
    return order[0], order[1], order[2]


def _unsigned_bytes(header: np.ndarray) -> bool:
    """Whether 8-bit data are unsigned.

    IMOD's files say so behind their stamp in the extra space. Without it statistics that no signed byte can have do,
    as IMOD has it: none below 0 and some at 128 or above.
    """
    if int(header["mode"]) != 0:
        return False
    if _has_imod_stamp(header):
        return not _imod_stamp(header)[1] & 1
    least, most = _least_and_most(header)
    return least >= 0 and most >= 128


def _imod_stamp(header: np.ndarray) -> tuple[int, int]:
    """IMOD's stamp and its flags, as they stand in the extra space."""
    order = ">" if header.dtype["mode"].byteorder == ">" else "<"
    stamp, flags = np.frombuffer(bytes(header["extra2"].tobytes())[40:48], dtype=f"{order}i4")
    return int(stamp), int(flags)


def _has_imod_stamp(header: np.ndarray) -> bool:
    return _imod_stamp(header)[0] == _IMOD_STAMP


def _least_and_most(header: np.ndarray) -> tuple[float, float]:
    return float(header["dmin"]), float(header["dmax"])


def voxel_size_zyx(header: np.ndarray) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X) in Å; 0 where the header does not say, or says what is no number."""
    size = [
        float(header["cella"][axis]) / int(header[f"m{axis}"]) if int(header[f"m{axis}"]) > 0 else 0.0
        for axis in ("z", "y", "x")
    ]
    z, y, x = (value if math.isfinite(value) else 0.0 for value in size)
    return z, y, x


def _origin_zyx(header: np.ndarray) -> list[float]:
    """Origin along (Z, Y, X) in Å; 0 where the header says what is no number."""
    origin = [float(header["origin"][axis]) for axis in ("z", "y", "x")]
    return [value if math.isfinite(value) else 0.0 for value in origin]


def _read_sections(stored: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Some sections of the stored array; of a map from its file, for a map whose file fails ends the program."""
    path = Path(stored.filename) if isinstance(stored, np.memmap) and stored.filename is not None else None
    if path is None or not isinstance(stored, np.memmap) or not path.exists():
        return np.asarray(stored[start:stop])
    plane = math.prod(stored.shape[1:])
    count, offset = (stop - start) * plane, int(stored.offset) + start * plane * stored.dtype.itemsize
    try:
        values = np.fromfile(path, stored.dtype, count, offset=offset)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be read from section {start} on ({error.strerror or error}), check the disk"
        ) from error
    if len(values) < count:
        raise FileError(f"{path}: was cut short while it was read, at section {start}; copy it again")
    return values.reshape(stop - start, *stored.shape[1:])


class MrcReader(ImageReader):
    """Reads one real MRC volume with its whole header.

    Reads ``.mrc .rec .map .st``, also with ``.gz`` or ``.bz2``; modes 0, 1, 2, 6 and 12, either byte order. MONAI
    asks explicit readers in turn and ignores suffixes, so this one itself refuses what is not MRC.

    Args:
        permissive: also take files whose header breaks the standard.
        folder: where volumes too large for memory are kept while the program runs (:mod:`cryoshuffle.files.scratch`);
            None for memory, however large they are.
        largest: voxels to take along each axis, from the middle; None for all.

    Returns:
        ``get_data`` gives the volume ``(Z, Y, X)`` and a dictionary with ``affine`` (Å, axis codes SAR),
        ``voxel_size_zyx`` (Å), ``mrc_header`` and ``mrc_extended_header`` (hexadecimal, with the byte order first).

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not MRC, cut short, complex, or not one volume.

    Warns:
        UserWarning: if the voxel size is 0; the affine then takes 1 Å and the header stays as it is. And if bytes are
            taken for unsigned because of their statistics alone.
    """

    def __init__(
        self, permissive: bool = False, folder: str | os.PathLike[str] | None = None, largest: int | None = None
    ) -> None:
        super().__init__()
        self.permissive = permissive
        self.folder = folder
        self.largest = largest

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether all names end like an MRC file's."""
        names = [filename] if isinstance(filename, (str, os.PathLike)) else list(filename)
        return all(is_mrc_name(name) for name in names)

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> list[MrcObject]:
        """Open the files; see :func:`open_mrc` for what is refused."""
        names = [data] if isinstance(data, (str, os.PathLike)) else list(data)
        files = [open_mrc(name, self.permissive, self.folder) for name in names]
        for name, file in zip(names, files, strict=True):
            if min(voxel_size_zyx(file.header)) <= 0:
                # Attributed to this module, not to MONAI's loader: the command line shows our notes only.
                cell = [float(file.header["cella"][axis]) for axis in ("z", "y", "x")]
                said = "0" if all(map(math.isfinite, cell)) else "no number"
                words = f"{name}: the voxel size is {said}, 1 Å is assumed; the header stays as it is"
                warnings.warn(words, stacklevel=1)
            if not all(math.isfinite(float(file.header["origin"][axis])) for axis in ("z", "y", "x")):
                warnings.warn(f"{name}: the origin is no number, 0 is assumed; the header stays as it is", stacklevel=1)
        return files

    def get_data(self, img: Sequence[MrcObject] | MrcObject) -> tuple[np.ndarray, dict[str, Any]]:
        """The volume and its metadata; several files become channels, the header is the first one's."""
        files = [img] if isinstance(img, MrcObject) else list(img)
        refuse_unlike(file.data.shape for file in files)
        volumes = [self._volume(file) for file in files]
        meta = self._meta(files[0])
        for file in files:
            file.close()
        return as_channels(volumes, meta)

    def _volume(self, file: MrcObject) -> np.ndarray:
        stored = file.data
        unsigned = _unsigned_bytes(file.header)
        if unsigned and not _has_imod_stamp(file.header):
            low, high = _least_and_most(file.header)
            warnings.warn(
                f"8-bit values are read as 0 to 255, as the header has {low:g} to {high:g} for them", stacklevel=2
            )
        order, kind = _axis_order(file.header), np.uint8 if unsigned else stored.dtype
        # What is taken of each stored axis, and the volume with its axes in the order they are stored in.
        taken = middle(stored.shape, self.largest)
        sides = [part.stop - part.start for part in taken]
        volume = scratch.empty_volume([sides[axis] for axis in order], self.folder)
        target, first = np.transpose(volume, np.argsort(order)), taken[0].start
        for part in scratch.sections((sides[0], *stored.shape[1:]), 0):
            section = _read_sections(stored, first + part.start, first + part.stop)
            target[part] = section.view(kind)[:, taken[1], taken[2]]
        return volume

    def _meta(self, file: MrcObject) -> dict[str, Any]:
        header = file.header
        order = ">" if header.dtype["mode"].byteorder == ">" else "<"
        shape = [file.data.shape[axis] for axis in _axis_order(header)]
        origin = _origin_zyx(header)
        return {
            **volume_meta(shape, voxel_size_zyx(header), origin),
            "mrc_header": order + header.tobytes().hex(),
            "mrc_extended_header": np.asarray(file.extended_header).tobytes().hex(),
        }


def volume_meta(shape: Sequence[int], size_zyx: Sequence[float], origin_zyx: Sequence[float]) -> dict[str, Any]:
    """What MONAI keeps with an image, for a volume with axes (Z, Y, X).

    Args:
        shape: of the volume.
        size_zyx: of a voxel, Å; 0 where it is not known, and the affine takes 1 Å.
        origin_zyx: of the volume, Å.
    """
    affine = np.zeros((4, 4))
    for row, axis in enumerate((2, 1, 0)):
        affine[row, axis] = size_zyx[axis] if size_zyx[axis] > 0 else 1.0
        affine[row, 3] = origin_zyx[axis]
    affine[3, 3] = 1.0
    return {
        MetaKeys.AFFINE: affine,
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array(shape),
        "voxel_size_zyx": list(size_zyx),
    }


def refuse_unlike(shapes: Iterable[tuple[int, ...]]) -> None:
    """Refuse volumes that cannot be the channels of one image.

    Raises:
        InputError: if their shapes differ.
    """
    different = set(shapes)
    if len(different) > 1:
        raise InputError(f"volumes of shapes {sorted(different)} cannot be stacked, give volumes of one shape")


def as_channels(volumes: Sequence[np.ndarray], meta: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """What ``get_data`` of a reader gives: one volume as it is, several as channels.

    Args:
        volumes: each (Z, Y, X), of one shape.
        meta: of the first; it is told where the channels are.
    """
    single = len(volumes) == 1
    meta[MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan") if single else 0
    return volumes[0] if single else np.stack(volumes), meta


class VolumeWriter(ImageWriter):
    """What writers of volumes with axes (Z, Y, X) have in common: they take one volume, turn it, and round it.

    Args:
        output_dtype: ``float32``, ``float16``, ``int8``, ``int16`` or ``uint16``; whole numbers are rounded and
            clipped.

    Raises:
        InputError: for another type, several channels or fewer than three dimensions.
    """

    def __init__(self, output_dtype: Any = np.float32, **kwargs: Any) -> None:
        name = np.dtype(np.float32 if output_dtype is None else output_dtype).name
        if name not in _DTYPES:
            raise InputError(f"a tomogram cannot be written as {name}: choose one of {', '.join(_DTYPES)}")
        super().__init__()
        self.output_dtype = np.dtype(_DTYPES[name])
        self.meta: dict[str, Any] = {}
        self._clipped = 0
        self._before, self._after = (np.inf, -np.inf), (np.inf, -np.inf)

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the volume.

        Args:
            data_array: ``(1, Z, Y, X)``, or ``(Z, Y, X)`` where ``channel_dim`` is None.
            channel_dim: which axis is the channel.
            kwargs: other options of MONAI's writers; not needed here.
        """
        array = data_array.detach().cpu().numpy() if isinstance(data_array, torch.Tensor) else np.asarray(data_array)
        if channel_dim is not None and array.ndim > 3:
            if array.shape[channel_dim] != 1:
                raise InputError(f"{array.shape[channel_dim]} channels cannot be written as one volume, save each")
            array = np.squeeze(array, axis=channel_dim)
        if array.ndim != 3:
            raise InputError(f"an array of shape {array.shape} is not a volume and cannot be written as one")
        self.data_obj = array

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = False, **options: Any) -> None:
        """Take the metadata; a volume whose affine orders the axes otherwise is turned to (Z, Y, X).

        Args:
            meta_dict: as ``MrcReader`` or another MONAI reader made it.
            resample: not supported; a tomogram keeps its grid.
            options: other options of MONAI's writers; not needed here.
        """
        self.meta = dict(meta_dict or {})
        affine = self.meta.get(MetaKeys.AFFINE)
        if affine is None or np.allclose(np.asarray(affine), np.eye(4)):
            return
        image = MetaTensor(torch.as_tensor(np.ascontiguousarray(self.data_obj))[None], affine=torch.as_tensor(affine))
        turned = MetaTensor(Orientation(axcodes=AXIS_CODES, labels=None)(image))
        self.data_obj = turned.as_tensor()[0].numpy()
        self.meta[MetaKeys.AFFINE] = np.asarray(turned.affine)

    def _as_dtype(self, data: np.ndarray) -> np.ndarray:
        given = data
        if self.output_dtype != np.float32:
            whole = np.issubdtype(self.output_dtype, np.integer)
            limits: Any = np.iinfo(self.output_dtype.name) if whole else np.finfo(self.output_dtype.name)
            self._clipped += int(((data < limits.min) | (data > limits.max)).sum())
            data = np.clip(np.rint(data) if whole else data, limits.min, limits.max)
        made = np.ascontiguousarray(data, dtype=self.output_dtype)
        if made.size:
            self._before = min(self._before[0], float(given.min())), max(self._before[1], float(given.max()))
            self._after = min(self._after[0], float(made.min())), max(self._after[1], float(made.max()))
        return made

    def _refuse_lost(self, voxels: int) -> None:
        """Refuse a result that its type has taken range or all contrast from; a few clipped voxels are told.

        Raises:
            InputError: if more than a thousandth of the voxels were clipped, or all became one value.
        """
        low, high = self._before
        name = self.output_dtype.name
        if self._clipped > _MOST_CLIPPED * voxels or (self._after[0] == self._after[1] and low < high):
            raise InputError(f"grey values of {low:.4g} to {high:.4g} do not fit into {name}: write float32")
        if self._clipped:
            logger.warning("%d voxels beyond what %s holds were clipped", self._clipped, name)


class MrcWriter(VolumeWriter):
    """Writes one volume as MRC2014, with the header it was read with.

    Kept field by field: voxel size, origin, nstart, axis order, cell, labels, extra space and extended header. Made
    new: dimensions, mode, statistics, machine stamp, and one label of ours (the tenth gives way where all ten are
    taken). The file appears under its name only when it is complete.

    Args:
        output_dtype: ``float32`` (mode 2), ``float16`` (12), ``int8`` (0), ``int16`` (1) or ``uint16`` (6); whole
            numbers are rounded and clipped.

    Raises:
        FileError: if the file cannot be written; nothing is left behind then.
        InputError: see :class:`VolumeWriter`.
    """

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        """Write the file under a temporary name and move it into place."""
        super().write(filename, verbose=verbose)
        path = scratch.real_path(filename)
        partial, packed = scratch.partial_path(path), scratch.partial_path(path, "packed.")
        source = self._source_header()
        order = _axis_order(source) if source is not None else (0, 1, 2)
        volume = np.transpose(self.data_obj, np.argsort(order))
        needed = volume.size * self.output_dtype.itemsize
        compression = _COMPRESSIONS.get(path.suffix.lower())
        extended = np.frombuffer(bytes.fromhex(self.meta.get("mrc_extended_header", "")), dtype="V1")
        mode = mode_from_dtype(self.output_dtype)
        with scratch.written_whole(path, partial, packed, needed=needed):
            with mrcfile.new_mmap(
                partial, volume.shape, mode, overwrite=True, extended_header=extended if extended.size else None
            ) as mrc:
                with partial.open("r+b") as file:
                    scratch.take_room(file, partial.stat().st_size)
                self._fill(mrc, volume)
                if source is None:
                    self._describe(mrc)
                else:
                    _copy_header(source, mrc)
                _add_label(mrc)
            self._refuse_lost(volume.size)
            if compression is not None:
                _compress(partial, packed, compression)
            os.replace(partial if compression is None else packed, path)

    def _fill(self, mrc: MrcObject, volume: np.ndarray) -> None:
        """Write the voxels section by section, and their statistics into the header."""
        scratch.track(mrc.data)
        least, most, mean, power, count = np.inf, -np.inf, 0.0, 0.0, 0
        for part in scratch.sections(volume.shape, 0):
            section = self._as_dtype(volume[part])
            mrc.data[part] = section
            values = section.astype(np.float64)
            least, most = min(least, values.min()), max(most, values.max())
            # Means and squares of parts add up to those of the whole without loss (Chan et al. 1979).
            apart, total = values.mean() - mean, count + values.size
            power += float(np.square(values - values.mean()).sum()) + apart**2 * count * values.size / total
            mean, count = mean + apart * values.size / total, total
        header = mrc.header
        header.dmin, header.dmax, header.dmean, header.rms = least, most, mean, (power / count) ** 0.5

    def _source_header(self) -> np.ndarray | None:
        text = self.meta.get("mrc_header")
        if not text:
            return None
        return np.frombuffer(bytes.fromhex(text[1:]), dtype=HEADER_DTYPE.newbyteorder(text[0]))[0]

    def _describe(self, mrc: MrcObject) -> None:
        """Voxel size and origin from the affine, where the image did not come from MRC."""
        affine = self.meta.get(MetaKeys.AFFINE)
        if affine is None:
            return
        affine = np.asarray(affine, dtype=float)
        z, y, x = np.linalg.norm(affine[:3, :3], axis=0)
        mrc.voxel_size = (x, y, z)
        mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z = affine[:3, 3]
        mrc.set_volume()


def _copy_header(source: np.ndarray, mrc: MrcObject) -> None:
    """Every field of the header but what the new data decide."""
    made_new = {"nx", "ny", "nz", "mode", "nsymbt", "dmin", "dmax", "dmean", "rms", "map", "machst", "nversion"}
    same_shape = all(int(source[n]) == int(mrc.header[n]) for n in ("nx", "ny", "nz"))
    if not same_shape:
        made_new |= {"mx", "my", "mz", "ispg"}
    for name in HEADER_DTYPE.names or ():
        if name not in made_new:
            mrc.header[name] = source[name]
    if int(source["nversion"]) in (20140, 20141):
        mrc.header.nversion = source["nversion"]
    stamp = bytearray(mrc.header.extra2.tobytes())
    if stamp[40:44] == _IMOD_STAMP.to_bytes(4, "little"):
        # We write signed bytes, whatever the input had.
        stamp[44] |= 1
        mrc.header.extra2 = np.void(bytes(stamp))
    if not same_shape:
        z, y, x = voxel_size_zyx(source)
        mrc.voxel_size = (x, y, z)


def _compress(source: Path, target: Path, compression: str) -> None:
    """Compress a file, piece by piece."""
    with source.open("rb") as plain, target.open("wb") as raw:
        # No name and no time in it: the same volume gives the same bytes.
        packer: Any = gzip.GzipFile("", "wb", 6, raw, mtime=0) if compression == "gzip" else bz2.BZ2File(raw, "wb")
        with packer:
            shutil.copyfileobj(plain, packer, 2**20)


def _add_label(mrc: MrcObject) -> None:
    import cryoshuffle

    # The count of a damaged header may be anything; labels with text are what is there.
    there = [bytes(label) for label in mrc.header.label if bytes(label).strip(b"\0 ")][: _LABELS - 1]
    own = f"cryoshuffle {cryoshuffle.__version__}: denoised, J-invariant volume shuffle".encode()[:80]
    for place in range(_LABELS):
        mrc.header.label[place] = [*there, own][place] if place <= len(there) else b""
    mrc.header.nlabl = len(there) + 1


def know_writers() -> None:
    """Let MONAI register its own writers before ours: it does so for the first file, if no writer is there yet."""
    if not SUPPORTED_WRITERS:
        register_own_writers()


def register_mrc() -> None:
    """Make reader and writer known to MONAI's ``LoadImage`` and ``SaveImage``."""
    know_writers()
    SUPPORTED_READERS["mrcreader"] = MrcReader
    for suffix in SUFFIXES:
        register_writer(suffix.removeprefix("."), MrcWriter)


register_mrc()
