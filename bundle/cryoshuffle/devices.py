"""Where the work is done and with how many bits."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from cryoshuffle.errors import SettingError

logger = logging.getLogger("cryoshuffle")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
# Where a container says how much memory it may use, and what is taken for there where no one says.
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
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
# Versions of cuDNN from and before which bfloat16 is wrong, and those that were told of.
_WRONG_CUDNN = (90800, 91300)
_told: set[int] = set()
# Parameters of glibc's mallopt, and the values that are nearest to how it begins.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_MMAP_LIMIT = 32 * 2**20
_keeping: list[bool] = []
_DEFAULTS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: _MMAP_LIMIT, _TRIM_THRESHOLD: 2 * _MMAP_LIMIT}


def choose_device(name: str | int | torch.device = "auto") -> torch.device:
    """The device to run on: cuda, else mps, else cpu, unless one is named.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; or a device, or the number of a GPU.

    Raises:
        SettingError: for a name that is none of these, or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            _warn_of_slow_torch()
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SettingError(f"device '{name}' is unknown: use auto, cpu, cuda, cuda:1 or mps") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise SettingError(f"device '{name}' is not available on this machine: use --device auto")
    if device.type == "cuda":
        _warn_of_slow_torch()
    return device


def _warn_of_slow_torch() -> None:
    """PyTorch 2.9 lost a fast way to convolve volumes (pytorch issue 166122)."""
    if torch.__version__.startswith("2.9."):
        logger.warning(
            "torch %s convolves volumes 4 to 20 times slower on NVIDIA GPUs than other versions: install another",
            torch.__version__,
        )


def device_name(device: torch.device) -> str:
    """What a device is called, for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "GPU of the Mac" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in: with ``auto`` bfloat16 on GPUs that have it, else float32.

    cuDNN 9.8 to 9.12 is silently wrong in bfloat16 (pytorch issue 163539): there it is float32, and it is said once.

    On CPUs with bfloat16 instructions a step takes about two thirds of the time, but repeated steps differ in the last
    bits (seen with torch 2.13 on an AMD EPYC), so a seed would no longer give one result: there it is for the asking.

    Args:
        name: ``auto``, ``fp32`` or ``bf16``.
        device: that computes.

    Raises:
        SettingError: for another name.
    """
    if name not in PRECISIONS:
        raise SettingError(f"precision is '{name}': choose one of {', '.join(PRECISIONS)}")
    if name in ("fp32", "tf32"):
        return torch.float32  # in tf32 too: see allow_tf32
    if name == "auto" and not (device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8):
        return torch.float32
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    if cudnn is not None and _WRONG_CUDNN[0] <= cudnn < _WRONG_CUDNN[1]:
        if cudnn not in _told:
            _told.add(cudnn)
            logger.warning(
                "cuDNN %d.%d is wrong in bfloat16: float32 is used, install a PyTorch with cuDNN 9.13 or newer",
                cudnn // 10000,
                cudnn % 10000 // 100,
            )
        return torch.float32
    return torch.bfloat16


@contextmanager
def no_autocast() -> Iterator[None]:
    """Within it no autocast of the caller's rounds anything; what the package's own precision asks for still does."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def allow_tf32(name: str) -> None:
    """With ``tf32`` let CUDA round what it multiplies to TensorFloat-32, with any other precision forbid it.

    Left alone, torch rounds in convolutions and not in products of matrices. For the whole process; nothing but NVIDIA
    GPUs of 2020 and later heeds it.

    Args:
        name: precision, as for :func:`choose_precision`.

    Raises:
        SettingError: for another name.
    """
    if name not in PRECISIONS:
        raise SettingError(f"precision is '{name}': choose one of {', '.join(PRECISIONS)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


@contextmanager
def rounding_kept() -> Iterator[None]:
    """After this CUDA rounds as it did before, by whichever of torch's settings that was told.

    torch refuses to read an older setting where a newer one says more than it can; such a one is left out.
    """

    def told(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    cudnn: Any = torch.backends.cudnn
    products, convolutions = told(torch.get_float32_matmul_precision), told(lambda: cudnn.allow_tf32)
    newer: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
    rounds = [one.fp32_precision for one in newer]
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            cudnn.allow_tf32 = convolutions
        for one, precision in zip(newer, rounds, strict=True):
            one.fp32_precision = precision


def to_device(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device; the CPU does not wait for what it sends to a GPU.

    Args:
        x: any tensor. On its way to CUDA it goes through memory that the system does not move, a copy if need be.
        device: where it is to be.
    """
    if torch.device(device).type == "cuda" and x.device.type == "cpu":
        x = x.pin_memory()
    return x.to(device, non_blocking=True)


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
    for path in map(Path, LIMITS):
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        if text.isdigit():
            known.append(int(text))
    return min(known, default=UNKNOWN_MEMORY)


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
    there = memory_bytes(torch.device("cpu"))
    return _most[0] if _most else max(there // 4, min(LEAST_MEMORY, there // 2))


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
