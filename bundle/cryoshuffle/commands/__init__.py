"""The command line, batches, and the checks before a run.

Its modules are loaded when a name is asked for: the help of the command line waits for no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "check_overrides": "overrides",
    "check_inputs": "preflight",
    "check_halves": "preflight",
    "check_mask": "preflight",
    "check_output": "preflight",
    "check_single": "preflight",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"cryoshuffle.commands.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'cryoshuffle.commands' has no attribute '{name}'")


__all__ = [
    "check_halves",
    "check_inputs",
    "check_mask",
    "check_output",
    "check_overrides",
    "check_single",
]
