"""Volumes too large for memory: they are kept in files without a name, which vanish with the process.

A volume on disk is an ordinary tensor over a memory map, so whatever cuts windows from a volume cuts them from it too.
Only two things differ: what changes the whole of it does so in place, section by section, because there is no room for
a copy (:func:`sections`), and what was read or written has to be let go again (:func:`release`), or the system counts
the pages as memory of the program.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoshuffle.errors import FileError
from cryoshuffle.memory import most_memory_bytes

# A volume stays in memory if it takes no more than one part in SHARE of what the program may use.
SHARE = 16
# Bytes of a volume that are worked on at a time.
SECTION = 2**24
# The maps there are, by address, and the folders of their files.
_maps: dict[int, tuple[mmap.mmap, Path | None]] = {}


def in_memory_bytes() -> int:
    """Bytes of the largest volume that stays in memory."""
    return most_memory_bytes() // SHARE


def empty_volume(
    shape: Sequence[int], folder: str | os.PathLike[str] | None, path: str | os.PathLike[str] | None = None
) -> np.ndarray:
    """A float32 array of zeros, in memory or, where it is large, in a file.

    Args:
        shape: of the array, any number of axes.
        folder: for the file; None for memory, however large. It is made if it is not there.
        path: of a file that is to stay under its name, whatever the size; None for one without a name.

    Raises:
        FileError: if there is no room for the file, or it cannot be made; room is taken at once, not page by page.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if path is None and (folder is None or size <= in_memory_bytes()):
        return np.zeros(shape, dtype=np.float32)
    where = Path(path).parent if path is not None else Path(folder or ".")
    try:
        where.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryFile(dir=where) if path is None else open(path, "r+b" if _is(path, size) else "w+b") as f
        ):
            take_room(f, size)
            array = np.memmap(f, dtype=np.float32, mode="r+", shape=tuple(shape))
    except OSError as error:
        free = shutil.disk_usage(where).free if where.is_dir() else 0
        raise FileError(
            f"{where}: no room for a volume of {size / 2**20:.0f} MiB ({error.strerror or error}; "
            f"{free / 2**20:.0f} MiB are free), make room or choose another folder with --report"
        ) from error
    return track(array, where)


def _is(path: str | os.PathLike[str], size: int) -> bool:
    return Path(path).is_file() and Path(path).stat().st_size == size


def take_room(file: Any, size: int) -> None:
    """Make a file as large as it will be: a full disk is then an error here, not a signal that kills later.

    Args:
        file: open for writing, in binary.
        size: bytes.

    Raises:
        OSError: if there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    block = bytes(min(size, 2**20))
    file.seek(0, os.SEEK_END)
    while file.tell() < size:
        file.write(block[: size - file.tell()])
    file.flush()


def track(array: np.ndarray, folder: Path | None = None) -> np.ndarray:
    """Make :func:`release` let go of a memory-mapped array too; any other array is left as it is.

    Args:
        array: the map, or a view of it.
        folder: where more may be put; None if the array is not to be written.

    Returns:
        the array.
    """
    base: Any = array
    while isinstance(base, np.ndarray) and not isinstance(getattr(base, "_mmap", None), mmap.mmap):
        base = base.base
    if isinstance(base, np.ndarray):
        mapped: Any = base
        key = mapped.ctypes.data
        if key not in _maps:
            _maps[key] = mapped._mmap, folder
            weakref.finalize(mapped, _maps.pop, key, None)
    return array


def on_disk(volume: Tensor) -> bool:
    """Whether a tensor, or what it is a view of, is one of the volumes kept in a file."""
    return volume.device.type == "cpu" and _maps.get(volume.untyped_storage().data_ptr(), (None, None))[1] is not None


def release() -> None:
    """Let go of what was read and written of all volumes on disk; nothing of it is lost."""
    for mapped, _ in list(_maps.values()):
        if hasattr(mapped, "madvise"):
            mapped.madvise(mmap.MADV_DONTNEED)


def copy_planes(part: Tensor) -> Tensor:
    """A copy of a part of a volume on disk, which is let go of plane by plane; any other tensor as it is.

    A row of a part is short, and where it lies the system brings up to two MiB of the file into memory.

    Args:
        part: ``(..., Z, Y, X)``.
    """
    if not on_disk(part):
        return part
    copy = torch.empty_like(part, memory_format=torch.contiguous_format)
    # By one core: this may be a thread of its own, and should not take them from the network.
    to, of = copy.numpy(), part.numpy()
    for z in range(part.shape[-3]):
        to[..., z, :, :] = of[..., z, :, :]
        release()
    return copy


def central_crop(volume: Tensor, side: int) -> Tensor:
    """The middle of a volume, at most ``side`` voxels along each of the last three axes; of one on disk a copy."""
    for axis in (-3, -2, -1):
        length = volume.shape[axis]
        if length > side:
            volume = torch.narrow(volume, axis, (length - side) // 2, side)
    return copy_planes(volume)


def flush(volume: Tensor) -> None:
    """Bring what was written of a volume on disk to the disk itself, where a power cut does not reach it."""
    if on_disk(volume):
        _maps[volume.untyped_storage().data_ptr()][0].flush()


def empty_like(volume: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of zeros for what is made of a volume: in a file if it is, else beside it on its device.

    Args:
        volume: it is made of.
        shape: of the new one.
        dtype: of the new one; in a file always float32.

    Raises:
        FileError: if there is no room.
    """
    if on_disk(volume):
        return torch.from_numpy(empty_volume(shape, _maps[volume.untyped_storage().data_ptr()][1]))
    return volume.new_zeros(tuple(shape), dtype=dtype)


def sections(shape: Sequence[int], dim: int = 1) -> Iterator[slice]:
    """Slices along one axis that cut a volume into parts of at most :data:`SECTION` bytes, one plane at least.

    What was read and written of volumes on disk is let go after each.

    Args:
        shape: of the volume, any number of axes.
        dim: axis that is cut.
    """
    plane = 4 * int(np.prod(shape, dtype=np.int64)) // max(1, shape[dim])
    step = max(1, SECTION // max(1, plane))
    for start in range(0, shape[dim], step):
        yield slice(start, min(start + step, shape[dim]))
        release()
