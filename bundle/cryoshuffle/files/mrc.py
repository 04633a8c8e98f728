"""MRC files as MONAI images: a reader and a writer that keep the header.

In memory the axes are always (Z, Y, X), whatever order the file declares; the affine of the image says so (axis codes
``SAR``, offsets and spacings in Å where NIfTI has mm).

Source:
    MRC2014: Cheng et al. 2015, J. Struct. Biol. 192, 146.
"""

from __future__ import annotations

import bz2
import gzip
import io
import math
import os
import shutil
import warnings
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from monai.utils import MetaKeys
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.mrcinterpreter import MrcInterpreter
from mrcfile.mrcobject import MrcObject
from mrcfile.utils import data_shape_from_header, dtype_from_mode, machine_stamp_from_byte_order, mode_from_dtype

from cryoshuffle.boxes import middle
from cryoshuffle.errors import FileError, InputError, unreadable
from cryoshuffle.files import scratch
from cryoshuffle.files.volumes import (
    LABEL,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    affine_of,
    grid_of,
    is_named,
    open_packed,
    own_label,
    refuse_no_file,
    volume_meta,
    why_unknown,
)
from cryoshuffle.files.writing import partial_file

SUFFIXES = tuple(f"{s}{c}" for s in (".mrc", ".rec", ".map", ".st") for c in ("", ".gz", ".bz2"))
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2"}
_STACK = "is a stack of images by its header, a tilt series perhaps: name the tomogram made of it"
_IMOD_STAMP = 1146047817
_LABELS = 10
# What rounding may change of an affine: voxel sizes, as a share, and places, voxels.
_SAME_SIZE, _SAME_PLACE = 1e-5, 1e-2
# How mrcfile says that more bytes follow the voxels.
_LONGER = "larger than expected"
# Where the header says how long the extended header is, and how much smaller compression makes a file at most.
_NSYMBT = slice(92, 96)
_STAMP = slice(208, 212)
_MOST_PACKED = {".gz": 1100, ".bz2": 50_000}


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
        InputError: if it is not MRC, is cut short, is longer than its header says and not read permissively, or holds
            something other than one real volume.

    Warns:
        UserWarning: if it is longer than its header says and read permissively.
    """
    path = Path(path)
    size = _check_header(path, permissive)[1]
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
        raise unreadable(path, error) from error
    except (ValueError, EOFError, OverflowError, zlib.error) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    if mrc.data is None:
        mrc.close()
        reason = str(caught[-1].message) if caught else "no data"
        raise InputError(_why_not_mrc(path, reason, permissive))
    try:
        _refuse_other_than_volume(path, mrc.data.dtype, mrc.data.shape)
        if any(_LONGER in str(one.message) for one in caught):
            words = f"{path}: is longer than its header says ({size} bytes), so its voxels may be others than it means"
            if not permissive:
                raise InputError(f"{words}: check the file, or add --permissive to read it all the same")
            warnings.warn(words, stacklevel=1)
    except InputError:
        mrc.close()
        raise
    return mrc


def read_header(path: str | os.PathLike[str], permissive: bool = False) -> VolumeHeader:
    """What an MRC tells of its volume; a compressed file is not unpacked for it.

    Args:
        path: of the file.
        permissive: also take files whose header breaks the standard.

    Raises:
        FileError: if the file is missing or cannot be read.
        InputError: if it is not MRC, is cut short as far as can be told without unpacking it, or holds something other
            than one real volume.
    """
    path = Path(path)
    header, _ = _check_header(path, permissive)
    if path.suffix.lower() not in _COMPRESSIONS:
        with warnings.catch_warnings():
            # What is noted of a file is said where its voxels are read.
            warnings.simplefilter("ignore")
            open_mrc(path, permissive).close()
    stored = tuple(int(n) for n in data_shape_from_header(header))
    _refuse_other_than_volume(path, dtype_from_mode(header.mode), stored)
    shape, affine = [stored[axis] for axis in _axis_order(header)], affine_of(*_grid(header))
    return VolumeHeader(shape, affine, [_STACK] if _is_image_stack(header) else [])


def _is_image_stack(header: np.ndarray) -> bool:
    """Whether a header says that a file holds images one by one, as a tilt series does, and not a volume."""
    by_microscope = bytes(header["exttyp"].tobytes()) in {b"SERI", b"FEI1", b"FEI2"} and int(header["nsymbt"]) > 0
    return int(header["nz"]) > 1 and (by_microscope or (int(header["ispg"]) == 0 and int(header["mz"]) == 1))


def _peek(path: Path, permissive: bool) -> tuple[np.recarray, int]:
    """The header of a file, alone, and the bytes of its extended header."""
    refuse_no_file(path)
    if not is_named(path, SUFFIXES):
        raise InputError(f"{path}: not an MRC file by its name, expected one of {', '.join(SUFFIXES)}")
    try:
        with open_packed(path) as file:
            raw = bytearray(file.read(HEADER_DTYPE.itemsize))
        extended = bytes(raw[_NSYMBT])
        # mrcfile makes room for whatever the header says that follows, before it looks how much there is.
        raw[_NSYMBT] = bytes(4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = MrcInterpreter(io.BytesIO(raw), permissive, header_only=True).header
    except OSError as error:
        raise unreadable(path, error) from error
    except (ValueError, EOFError, zlib.error) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    return header, int(np.frombuffer(extended, f"{_byte_order(header)}i4")[0])


def _byte_order(header: np.ndarray) -> str:
    """``>`` where a header has the largest byte of a number first, else ``<``."""
    return ">" if header.dtype["mode"].byteorder == ">" else "<"


def _check_header(path: Path, permissive: bool) -> tuple[np.recarray, int]:
    """The header of a file, and its bytes without compression; a header that says more than can be is refused."""
    header, extended = _peek(path, permissive)
    try:
        shape, item = data_shape_from_header(header), dtype_from_mode(header.mode).itemsize
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(_why_not_mrc(path, str(error), permissive)) from error
    if extended < 0 or min(shape) < 1:
        raise InputError(_why_not_mrc(path, f"its header says shape {shape}, extended header {extended}", permissive))
    size = HEADER_DTYPE.itemsize + extended + item * math.prod(shape)
    limit = path.stat().st_size * _MOST_PACKED.get(path.suffix.lower(), 1)
    if size > limit:
        raise InputError(_why_not_mrc(path, f"Expected {size} bytes, there are {limit} at most", permissive))
    return header, size


def _unpack(path: Path, size: int, folder: Path, permissive: bool) -> MrcObject:
    """A compressed file unpacked piece by piece into one that loses its name as soon as it is open."""
    folder.mkdir(parents=True, exist_ok=True)
    with partial_file(folder / f"{path.name}.mrc") as partial:
        with partial.open("wb") as file:
            try:
                scratch.take_room(file, size)
            except OSError as error:
                raise FileError(
                    f"{path}: needs {size / 2**20:.0f} MiB in {folder} to be unpacked ({error.strerror or error}), "
                    "make room or choose another folder with --report"
                ) from error
            file.seek(0)
            missing = size
            with open_packed(path) as packed:
                while missing and (block := packed.read(min(missing, 2**22))):
                    file.write(block)
                    missing -= len(block)
                longer = not missing and bool(packed.read(1))
        if missing:
            raise EOFError(f"Expected {size} bytes, there are {size - missing}")
        if longer:
            warnings.warn(_LONGER, stacklevel=1)
        return mrcfile.mmap(partial, permissive=permissive)


def _why_not_mrc(path: Path, reason: str, permissive: bool) -> str:
    reason = reason.rstrip(".")
    is_short = any(words in reason for words in ("Expected", "enough bytes", "end-of-stream", "mmap length"))
    if is_short and not permissive and not _has_stamp(path):
        return f"{path}: is no MRC file (it lacks the MAP stamp of one, and is shorter than one), check what it is"
    if is_short:
        return f"{path}: is cut short ({reason}), copy it again"
    if permissive:
        return f"{path}: is not an MRC file, even when read permissively ({reason})"
    way_out = "if it is an old one add --permissive" if _is_read_permissively(path) else "check what it is"
    return f"{path}: is not a valid MRC file ({reason}), {way_out}"


def _has_stamp(path: Path) -> bool:
    """Whether a file has the stamp of an MRC file; True for a compressed one that cannot be read so far."""
    try:
        with open_packed(path) as file:
            return bool(file.read(_STAMP.stop)[_STAMP] == b"MAP ")
    except (OSError, EOFError, zlib.error):
        return True


def _is_read_permissively(path: Path) -> bool:
    """Whether a file that breaks the standard is a volume all the same, as far as its header tells."""
    try:
        read_header(path, permissive=True)
    except (FileError, InputError):
        return False
    return True


def _refuse_other_than_volume(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if dtype.kind == "c":
        raise InputError(f"{path}: holds complex values (a transform, not a tomogram), give the real-space volume")
    if len(shape) == 2 or (len(shape) == 3 and shape[0] == 1):
        raise InputError(f"{path}: is a single image of {shape[-2:]}, a tomogram needs three dimensions")
    if len(shape) != 3:
        raise InputError(f"{path}: has {len(shape)} dimensions {shape}, give one volume at a time")


def _axis_order(header: np.ndarray) -> tuple[int, int, int]:
    """Where Z, Y and X of the volume are among the axes of the stored array (sections, rows, columns)."""
    stored = [3 - int(header[name]) for name in ("maps", "mapr", "mapc")]
    order = [stored.index(axis) for axis in (0, 1, 2)] if sorted(stored) == [0, 1, 2] else [0, 1, 2]
    return order[0], order[1], order[2]


def _unsigned_bytes(header: np.ndarray) -> bool:
    """Whether 8-bit data are unsigned; where statistics alone say so, it is told.

    IMOD's files say so behind their stamp in the extra space. Without it statistics that no signed byte can have do,
    as IMOD has it: none below 0 and some at 128 or above.
    """
    if int(header["mode"]) != 0:
        return False
    stamp, flags = np.frombuffer(bytes(header["extra2"].tobytes())[40:48], dtype=f"{_byte_order(header)}i4")
    if int(stamp) == _IMOD_STAMP:
        return not int(flags) & 1
    least, most = float(header["dmin"]), float(header["dmax"])
    unsigned = least >= 0 and most >= 128
    if unsigned:
        words = f"8-bit values are read as 0 to 255, as the header has {least:g} to {most:g} for them"
        warnings.warn(words, stacklevel=1)
    return unsigned


def voxel_size_zyx(header: np.ndarray) -> tuple[float, float, float]:
    """Voxel size along (Z, Y, X) in Å; 0 where the header does not say, or says what is no number."""
    z, y, x = (value if math.isfinite(value) else 0.0 for value in _stored_size(header))
    return z, y, x


def _stored_size(header: np.ndarray) -> list[float]:
    """Voxel size along (Z, Y, X) in Å, whatever it is; 0 where the header has no count of intervals."""
    return [
        float(header["cella"][axis]) / int(header[f"m{axis}"]) if int(header[f"m{axis}"]) > 0 else 0.0
        for axis in ("z", "y", "x")
    ]


def _grid(header: np.ndarray) -> tuple[tuple[float, float, float], list[float]]:
    """Voxel size and origin along (Z, Y, X) in Å; 0 where the header says what is no number."""
    origin = [float(header["origin"][axis]) for axis in ("z", "y", "x")]
    return voxel_size_zyx(header), [value if math.isfinite(value) else 0.0 for value in origin]


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


class MrcReader(VolumeReader):
    """Reads one real MRC volume with its whole header.

    Reads ``.mrc .rec .map .st``, also with ``.gz`` or ``.bz2``; modes 0, 1, 2, 6 and 12, either byte order.

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
        UserWarning: if the voxel size is not above 0 along an axis; the affine then takes 1 Å along all, and the header
            stays as it is. And if bytes are taken for unsigned because of their statistics alone.
    """

    suffixes = SUFFIXES

    def _open(self, path: str | os.PathLike[str]) -> MrcObject:
        file = open_mrc(path, self.permissive, self.folder)
        if why := why_unknown(_stored_size(file.header)):
            # Attributed to this module, not to MONAI's loader: the command line shows our notes only.
            words = f"{path}: the voxel size is {why}, 1 Å is assumed along all axes; the header stays as it is"
            warnings.warn(words, stacklevel=1)
        if not all(math.isfinite(float(file.header["origin"][axis])) for axis in ("z", "y", "x")):
            warnings.warn(f"{path}: the origin is no number, 0 is assumed; the header stays as it is", stacklevel=1)
        return file

    def _volume(self, file: MrcObject) -> np.ndarray:
        stored, order = file.data, _axis_order(file.header)
        kind = np.uint8 if _unsigned_bytes(file.header) else stored.dtype
        # Part of each stored axis, and the volume with its axes in the order they are stored in.
        parts = middle(stored.shape, self.largest)
        sides = [part.stop - part.start for part in parts]
        volume = scratch.empty_volume([sides[axis] for axis in order], self.folder)
        target, first = np.transpose(volume, np.argsort(order)), parts[0].start
        for part in scratch.sections((sides[0], *stored.shape[1:]), 0):
            section = _read_sections(stored, first + part.start, first + part.stop)
            target[part] = section.view(kind)[:, parts[1], parts[2]]
        file.close()
        return volume

    def _meta(self, file: MrcObject) -> dict[str, Any]:
        header = file.header
        shape = [file.data.shape[axis] for axis in _axis_order(header)]
        return {
            **volume_meta(shape, *_grid(header)),
            "mrc_header": _byte_order(header) + header.tobytes().hex(),
            "mrc_extended_header": np.asarray(file.extended_header).tobytes().hex(),
        }


class MrcWriter(VolumeWriter):
    """Writes one volume as MRC2014, with the header it was read with.

    Kept field by field: voxel size, origin, nstart, axis order, cell, labels, extra space and extended header. Made
    new: dimensions, mode, statistics, and one label of ours (the tenth gives way where all ten are taken). Numbers have
    the byte order of the source. Of a volume that was cropped or resampled since, voxel size and origin are those of
    its affine. The file appears under its name only when it is complete.

    Args:
        output_dtype: ``float32`` (mode 2), ``float16`` (12), ``int8`` (0), ``int16`` (1) or ``uint16`` (6); whole
            numbers are rounded and clipped.

    Raises:
        FileError: if the file cannot be written; nothing is left behind then.
        InputError: see :class:`VolumeWriter`.
    """

    def _bytes_needed(self) -> int:
        return int(np.size(self.data_obj)) * self.output_dtype.itemsize

    def _write(self, partial: Path, path: Path) -> None:
        source = self._source_header()
        order = _axis_order(source) if source is not None else (0, 1, 2)
        volume, mode = np.transpose(self.data_obj, np.argsort(order)), mode_from_dtype(self.output_dtype)
        more = self.meta.get("mrc_extended_header")
        extended = np.frombuffer(bytes.fromhex(more), dtype="V1") if more else None
        compression = _COMPRESSIONS.get(path.suffix.lower())
        with nullcontext(partial) if compression is None else partial_file(path, "plain.") as plain:
            with mrcfile.new_mmap(plain, volume.shape, mode, overwrite=True, extended_header=extended) as mrc:
                with plain.open("r+b") as file:
                    scratch.take_room(file, plain.stat().st_size)
                if source is not None:
                    _use_byte_order(mrc, _byte_order(source))
                self._fill(mrc, volume)
                if source is None:
                    self._describe(mrc)
                else:
                    _copy_header(source, mrc)
                    self._move(mrc)
                _set_labels(mrc, [own_label(self.content)] if self.is_result else [])
            if compression is not None:
                _compress(plain, partial, compression)

    def _fill(self, mrc: MrcObject, volume: np.ndarray) -> None:
        """Write the voxels section by section, and their statistics into the header."""
        scratch.track(mrc.data)
        mean, power, count = 0.0, 0.0, 0
        for part in scratch.sections(volume.shape, 0):
            mrc.data[part] = section = self._as_dtype(volume[part])
            values = section.astype(np.float64)
            # Means and squares of parts add up to those of the whole without loss (Chan et al. 1979).
            apart, total = values.mean() - mean, count + values.size
            power += float(np.square(values - values.mean()).sum()) + apart**2 * count * values.size / total
            mean, count = mean + apart * values.size / total, total
        header = mrc.header
        header.dmin, header.dmax = self._after
        header.dmean, header.rms = mean, (power / count) ** 0.5

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
        (z, y, x), origin = grid_of(np.asarray(affine, dtype=float))
        mrc.voxel_size = (x, y, z)
        mrc.header.origin.z, mrc.header.origin.y, mrc.header.origin.x = origin
        mrc.set_volume()

    def _move(self, mrc: MrcObject) -> None:
        """Voxel size and origin from the affine, where the volume was cropped or resampled since it was read."""
        affine, before = (self.meta.get(key) for key in (MetaKeys.AFFINE, MetaKeys.ORIGINAL_AFFINE))
        if affine is None or before is None:
            return
        (size, origin), (old_size, old_origin) = (grid_of(np.asarray(one, dtype=float)) for one in (affine, before))
        resampled = not np.allclose(size, old_size, rtol=_SAME_SIZE, atol=0)
        if not resampled and np.allclose(origin, old_origin, rtol=0, atol=_SAME_PLACE * size.min()):
            return
        if resampled:
            mrc.voxel_size = tuple(size[::-1])
        header = mrc.header
        header.origin.z, header.origin.y, header.origin.x = origin
        header.nxstart = header.nystart = header.nzstart = 0


def _use_byte_order(mrc: MrcObject, order: str) -> None:
    """Write numbers as the source does: what is kept of it byte by byte has numbers that only its program knows."""
    if order == _byte_order(mrc.header):
        return
    mrc.header.byteswap(inplace=True)
    mrc.header.dtype = mrc.header.dtype.newbyteorder(order)
    mrc.header.machst = machine_stamp_from_byte_order(order)
    dtype, shape = mrc.data.dtype.newbyteorder(order), mrc.data.shape
    mrc._close_data()
    mrc._open_memmap(dtype, shape)


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
    order: Any = "big" if _byte_order(source) == ">" else "little"
    if stamp[40:44] == _IMOD_STAMP.to_bytes(4, order):
        # We write signed bytes, whatever the input had.
        stamp[44 if order == "little" else 47] |= 1
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


def _set_labels(mrc: MrcObject, own: list[bytes]) -> None:
    """The labels that a file has from its source, and our own; what is no result of ours is called none."""
    # The count of a damaged header may be anything; labels with text are what is there.
    labels = [bytes(label) for label in mrc.header.label if bytes(label).strip(b"\0 ")]
    if not own:
        labels = [label for label in labels if not label.startswith(LABEL.encode())]
    labels = [*labels[: _LABELS - len(own)], *own]
    for place in range(_LABELS):
        mrc.header.label[place] = labels[place] if place < len(labels) else b""
    mrc.header.nlabl = len(labels)
