"""Where the work is done and with how many bits."""

from __future__ import annotations

import torch

from cryoshuffle.errors import SettingError

PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str = "auto") -> torch.device:
    """The device to run on: cuda, else mps, else cpu, unless one is named.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        SettingError: for a name that is none of these, or a device that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
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
    return device


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in: with ``auto`` bfloat16 on GPUs that have it, else float32.

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
    if name != "auto":
        return torch.bfloat16 if name == "bf16" else torch.float32
    native = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    return torch.bfloat16 if native else torch.float32
