"""Wall time of work on a device, and the most memory that it took."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def timed(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Wall time of one call, seconds, as the mean over some."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def peak_mib(device: torch.device) -> float | None:
    """The most memory so far, MiB: resident of this process, on CUDA the tensors there; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
