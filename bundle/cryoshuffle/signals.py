"""Ctrl-C, and SIGTERM, which schedulers send before they kill; and readers of our lines that go."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
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


class _Stream:
    """A stream whose reader may go: the rest goes nowhere then, and nothing fails. Signs it lacks are spelled out."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> Any:
        """As the stream does it."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except BrokenPipeError:
            self._drop()
        return len(text)

    def flush(self) -> None:
        """As the stream does it."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # Below Python, so that the interpreter does not fail at its end with what the stream still holds.
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, self._stream.fileno())
        finally:
            os.close(null)


@contextmanager
def readers_may_go() -> Iterator[None]:
    """While this lasts, whoever reads our lines may stop reading, as ``| head -1`` does, and the work goes on."""
    streams: list[Any] = [None if one is None else _Stream(one) for one in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for one in streams:
                with suppress(Exception):
                    one.flush()
