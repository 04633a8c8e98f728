"""How much memory there is, how much of it a run may take, and how it is given back."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from cryoshuffle.errors import SettingError

logger = logging.getLogger("cryoshuffle")
# Where the system says which group this process is in, and each group, of version 1 and 2, how much it may use; what a
# Slurm job may use, MiB; and what is taken for there where no one says.
_OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_LIMITS = {"memory": ("memory", "memory.limit_in_bytes"), "": ("", "memory.max")}
_SLURM_LIMIT = "SLURM_MEM_PER_NODE"
UNKNOWN_MEMORY = 8 * 2**30
# What the program takes on a CPU at least, unless it is told otherwise or there is not twice as much.
LEAST_MEMORY = 2 * 2**30
# What a window takes at least: smaller ones are mostly halo.
LEAST_WINDOW = 2**28
# What the program takes itself, libraries and all; and the share of a GPU's memory that a window may take.
_OWN, _GPU_SHARE = int(0.7 * 2**30), 4
_most: list[int] = []
# From what share on the program counts as near to what it may take, and how much more than what was in use has to be
# there, bytes, for it to be worth giving back.
_NEAR, _WORTH = 0.85, 2**26
_in_use: list[int] = []
# Parameters of glibc's mallopt, and the values that are nearest to how it begins.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MMAP_LIMIT = 32 * 2**20
_keeping: list[bool] = []
_DEFAULTS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: _MMAP_LIMIT, _TRIM_THRESHOLD: 2 * _MMAP_LIMIT}


def memory_bytes(device: torch.device) -> int:
    """All the memory of a device, free or not, so that what follows from it is the same in every run.

    Args:
        device: a GPU, or the CPU, whose memory may be limited for this container or job.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    known = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        known.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    known += _group_limits()
    job = os.environ.get(_SLURM_LIMIT, "")
    # 0 stands for all that the node has.
    if job.isdigit() and int(job):
        known.append(int(job) * 2**20)
    return min(known, default=UNKNOWN_MEMORY)


def _group_limits() -> list[int]:
    """What the groups of this process may use, bytes: its own and those above it, of a job or a container."""
    paths = {"memory": "/", "": "/"}
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, kinds, path = line.split(":", 2)
        paths.update({kind: path for kind in kinds.split(",") if kind in paths})
    limits = []
    for kind, path in paths.items():
        folder, name = _LIMITS[kind]
        own = GROUPS / folder / path.lstrip("/")
        for group in (own, *own.parents):
            # A group may be gone, or hidden from a container.
            with suppress(OSError):
                text = (group / name).read_text(encoding="utf-8").strip()
                limits += [int(text)] if text.isdigit() else []
            if group == GROUPS / folder:
                break
    return limits


def limit_memory(gib: float | None = None) -> float | None:
    """Set how much memory the program may take on the CPU, for the whole process.

    Args:
        gib: GiB (2^30 bytes); None for a quarter of what there is, but at least 2, or half
            of what there is if that is less.

    Returns:
        what was set before.

    Raises:
        SettingError: if it is not positive.
    """
    before = _most[0] / 2**30 if _most else None
    _most.clear()
    if gib is not None:
        if not gib > 0:
            raise SettingError(f"memory is {gib} GiB: give more than 0")
        _most.append(int(gib * 2**30))
    return before


def most_memory_bytes() -> int:
    """How much memory the program may take on the CPU, as :func:`limit_memory` has it."""
    total = memory_bytes(torch.device("cpu"))
    return _most[0] if _most else max(total // 4, min(LEAST_MEMORY, total // 2))


def window_bytes(device: torch.device, held: int = 0) -> int:
    """How much memory of a device the network may take for a window.

    Args:
        device: of a GPU a quarter; of the CPU what the program may take without what it takes itself.
        held: bytes that volumes take in the memory of the CPU.
    """
    if device.type != "cpu":
        return memory_bytes(device) // _GPU_SHARE
    return max(most_memory_bytes() - _OWN - held, LEAST_WINDOW)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of a GPU or of the system, did not suffice."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|allocate memory", str(error)))


def trim_memory() -> None:
    """Give back what :func:`keep_memory` has kept so far: tensors of many sizes leave gaps that others do not fit."""
    if _keeping:
        libc: Any = ctypes.CDLL(None)
        libc.malloc_trim(0)


def trim_near_limit() -> None:
    """:func:`trim_memory`, where the program has come near to what it may take; elsewhere nothing happens.

    How well the tensors of a layer fit the gaps that others left differs from run to run: the same streaming of the
    same volume peaks hundreds of MiB higher in one than in another. Where more than the limit is in use anyway it is
    done less often: each time makes the next layers wait for memory.
    """
    if not _keeping:
        return
    near, used = _NEAR * most_memory_bytes(), sum(_in_use)
    if _resident_bytes() > max(near, used + (_WORTH if used < near else LEAST_WINDOW)):
        trim_memory()
        _in_use[:] = [_resident_bytes()]


def _resident_bytes() -> int:
    """What the system counts as memory of this process; Linux only, where memory is kept at all."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def keep_memory(device: torch.device, tensor_bytes: int | None = None) -> Iterator[None]:
    """While this lasts, memory that a layer frees is kept for the next one; then it is all given back.

    Layers make and drop tensors of many megabytes. glibc asks the system for each anew and gives it back at once, and
    the system fills it with zeros page by page: that took half the time of inference and an eighth of a fit. It
    concerns the whole process. For other devices, systems and C libraries nothing is done. Inside another one that
    lasts already, it changes nothing.

    Args:
        device: that computes.
        tensor_bytes: size of the tensors, if known: nothing is done for those so small that glibc keeps them anyway.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    small = tensor_bytes is not None and tensor_bytes < _MMAP_LIMIT // 2
    if device.type != "cpu" or small or not hasattr(libc, "mallopt"):
        yield
        return
    if not _keeping:
        _in_use.clear()
        libc.mallopt(_MMAP_MAX, 0)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    _keeping.append(True)
    try:
        yield
    finally:
        _keeping.pop()
        if not _keeping:
            for parameter, value in _DEFAULTS.items():
                libc.mallopt(parameter, value)
            libc.malloc_trim(0)
