"""Reading ahead and writing behind, while the part in hand is computed.

One thread reads the next part of a volume, another writes the last. No more than two parts wait on either side, so
memory stays bounded. Everything is read and written in the same order as without threads, so the result has the same
bits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import TracebackType
from typing import Any, TypeVar

import torch

from cryoshuffle.files import scratch

Item = TypeVar("Item")
Part = TypeVar("Part")


def can_overlap(volume: torch.Tensor, device: torch.device) -> bool:
    """Whether reading and writing take time that can overlap with the work: from a disk, or to and from a GPU.

    Args:
        volume: any tensor.
        device: that computes.

    Returns:
        False on MPS, which two threads may not use at a time.
    """
    return device.type != "mps" and (scratch.on_disk(volume) or device.type != volume.device.type)


def read_ahead(items: Iterable[Item], read: Callable[[Item], Part], overlap: bool = True) -> Iterator[Part]:
    """Read each item while the one before it is in use.

    Args:
        items: what to read, in order.
        read: reads one of them.
        overlap: False reads each item when it is asked for.

    Yields:
        what ``read`` returns for each item; what it raises for one is raised in its place.
    """
    if not overlap:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, "read ahead") as reader:
        # In no variable of its own: a future that failed would keep this frame, and this frame the future.
        queue: deque[Future[Part]] = deque()
        for item in items:
            queue.append(reader.submit(_in_callers_modes(read), item))
            if len(queue) > 1:
                yield queue.popleft().result()
        if queue:
            yield queue.popleft().result()


class WriteBehind:
    """Runs functions that write, one after the other, in a thread of its own.

    Leaving it as a context waits until all of them have run.

    Args:
        overlap: False runs each function when it is put.
    """

    def __init__(self, overlap: bool = True) -> None:
        self._writer = ThreadPoolExecutor(1, "write behind") if overlap else None
        self._queue: deque[Future[None]] = deque()

    def put(self, write: Callable[[], None]) -> None:
        """Wait for the function before, and begin to run this one.

        Raises:
            Exception: that of the function before.
        """
        self.wait()
        if self._writer is None:
            write()
        else:
            self._queue.append(self._writer.submit(_in_callers_modes(write)))

    def wait(self) -> None:
        """Wait until every function has run.

        Raises:
            Exception: that of the last function.
        """
        while self._queue:
            self._queue.popleft().result()

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        if error is None:
            self.wait()
        self._queue.clear()


def _in_callers_modes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for another thread, which there has the gradient modes and the CUDA stream of this one."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    stream = torch.cuda.current_stream() if torch.cuda.is_initialized() else None

    def run(*values: Any) -> Any:
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(gradients),
            nullcontext() if stream is None else torch.cuda.stream(stream),
        ):
            return function(*values)

    return run
