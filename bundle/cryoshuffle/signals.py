"""Ctrl-C, and SIGTERM, which schedulers send before they kill."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def listening(heard: Callable[[int, Any], None]) -> Iterator[None]:
    """While this lasts, Ctrl-C and SIGTERM call a function; then they do what they did before.

    Nothing is done outside the main thread, nor with a signal that something other than Python listens to: neither
    could be given back.

    Args:
        heard: takes the number of the signal and the frame it came in.
    """
    before: dict[int, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for one in NUMBERS:
                if signal.getsignal(one) is not None:
                    before[one] = signal.signal(one, heard)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
