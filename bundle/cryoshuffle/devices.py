"""Where the work is done and with how many bits."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cryoshuffle.errors import SettingError

logger = logging.getLogger("cryoshuffle")
PRECISIONS = ("auto", "fp32", "tf32", "bf16")
# Versions of cuDNN from and before which bfloat16 is wrong, and those that were told of.
_WRONG_CUDNN = (90800, 91300)
_told: set[int] = set()


def choose_device(name: str | int | torch.device = "auto") -> torch.device:
    """The device to run on: cuda, else mps, else cpu, unless one is named.

    Args:
        name: ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1`` or ``mps``; or a device, or the number of a GPU.

    Raises:
        SettingError: for a name that is none of these, or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            _warn_of_slow_torch()
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(_torch_name(name) if isinstance(name, str) else name)
    except RuntimeError as error:
        raise SettingError(f"device '{name}' is unknown: use auto, cpu, gpu, cuda:1 or mps") from error
    availability = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not availability.get(device.type, False):
        raise SettingError(f"device '{name}' is not available on this machine: use --device auto")
    if device.type == "cuda":
        _warn_of_slow_torch()
    return device


def count_gpus(name: str) -> int:
    """How many GPUs of CUDA several runs can share that are all given one name of a device.

    Args:
        name: as for :func:`choose_device`; with a number it is one GPU for all of them.
    """
    kind, colon, _ = name.lower().partition(":")
    return min(torch.cuda.device_count(), 1 if colon else 2**31) if kind in ("auto", "cuda", "gpu") else 0


def _torch_name(name: str) -> str:
    """The name of a device as torch has it; a GPU is that of the Mac where there is no other."""
    kind, colon, index = name.lower().partition(":")
    if kind != "gpu":
        return name.lower()
    own = not torch.cuda.is_available() and torch.backends.mps.is_available()
    return f"{'mps' if own else 'cuda'}{colon}{index}"


def _warn_of_slow_torch() -> None:
    """PyTorch 2.9 lost a fast way to convolve volumes (pytorch issue 166122)."""
    if torch.__version__.startswith("2.9."):
        logger.warning(
            "torch %s convolves volumes 4 to 20 times slower on NVIDIA GPUs than other versions: install another",
            torch.__version__,
        )


def are_processes_joined() -> bool:
    """Whether this process and others share a fit."""
    return dist.is_available() and dist.is_initialized()


def is_first_process() -> bool:
    """Whether this process is the first of those that share a fit; true of one that is alone, whoever started it."""
    return not are_processes_joined() or dist.get_rank() == 0


def process_device() -> torch.device:
    """The device of this process where several share a fit: the GPU that torchrun gave it, else the CPU."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def pins_memory(device: torch.device) -> bool:
    """Whether batches for a device go through pinned memory, from which a GPU copies while it computes."""
    return device.type == "cuda"


def device_name(device: torch.device) -> str:
    """What a device is called, for messages."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "GPU of the Mac" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"


def device_reason(device: torch.device, name: str = "auto") -> str:
    """Why a device was chosen, in words.

    Args:
        device: that was.
        name: as asked for.
    """
    if name != "auto":
        return "as asked for"
    if device.type != "cpu":
        return "the best there is"
    if torch.version.cuda is None:
        gpu = "there is an NVIDIA GPU, but " if Path("/proc/driver/nvidia/version").exists() else ""
        return f"{gpu}this PyTorch is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        old = re.search(r"driver .*too old.*?\(found version (\d+)\)", str(error))
        if old is not None:
            cuda = f"{int(old[1]) // 1000}.{int(old[1]) % 1000 // 10}"
            return f"the NVIDIA driver is too old for this PyTorch, it is of CUDA {cuda}"
        if "no NVIDIA driver" in str(error):
            return "there is no NVIDIA driver"
    return "no GPU was found"


def _check_precision(name: str) -> None:
    if name not in PRECISIONS:
        raise SettingError(f"precision is '{name}': choose one of {', '.join(PRECISIONS)}")


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
    _check_precision(name)
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
    _check_precision(name)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


@contextmanager
def rounding_kept() -> Iterator[None]:
    """After this CUDA rounds as it did before, by whichever of torch's settings that was told.

    torch refuses to read an older setting where a newer one says more than it can; such a one is left out.
    """

    def setting(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except RuntimeError:
            return None

    cudnn: Any = torch.backends.cudnn
    products, convolutions = setting(torch.get_float32_matmul_precision), setting(lambda: cudnn.allow_tf32)
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


def pin_memory(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor in memory that the system does not move, as a GPU reads it fastest.

    Args:
        x: any tensor.
        device: where it goes next.

    Returns:
        ``x`` itself unless it goes from the CPU to CUDA.
    """
    return x.pin_memory() if torch.device(device).type == "cuda" and x.device.type == "cpu" else x


def to_device(x: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A tensor on a device; the CPU does not wait for what it sends to a GPU.

    Args:
        x: any tensor.
        device: where it is to be.
    """
    # On the way to the CPU what is not waited for would be read before it is there.
    return pin_memory(x, device).to(device, non_blocking=torch.device(device).type == "cuda")
