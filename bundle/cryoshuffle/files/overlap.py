"""Reading ahead and writing behind, while what is in hand is computed.

A thread of its own reads the next part of a volume, another one writes the last: never more than one part each, so what
it takes in memory is known. The order of all that is read and written, and so the result, is as without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

import torch

from cryoshuffle.files import scratch

Item = TypeVar("Item")
Read = TypeVar("Read")


def worth_it(volume: torch.Tensor, device: torch.device) -> bool:
    """Whether it takes time to bring a part of a volume to where it is computed: from the disk, or to a GPU.

    Args:
        volume: any tensor.
        device: that computes.
    """
    return scratch.on_disk(volume) or device.type != volume.device.type


def read_ahead(items: Iterable[Item], read: Callable[[Item], Read], overlap: bool = True) -> Iterator[Read]:
    """What ``read`` makes of each item, the next one while the last is in use.

    Args:
        items: what to read, in order.
        read: reads one of them; what it raises is raised where its item would have come.
        overlap: False reads each item when it is asked for.
    """
    if not overlap:
        yield from map(read, items)
        return
    with ThreadPoolExecutor(1, "read ahead") as reader:
        waiting: Future[Read] | None = None
        for item in items:
            coming = reader.submit(_as_here(read), item)
            if waiting is not None:
                yield waiting.result()
            waiting = coming
        if waiting is not None:
            yield waiting.result()


class WriteBehind:
    """Runs what is put into it one by one, in a thread of its own; as a context it has done all when it is left.

    Args:
        overlap: False runs each at once.
    """

    def __init__(self, overlap: bool = True) -> None:
        self._writer = ThreadPoolExecutor(1, "write behind") if overlap else None
        self._waiting: Future[None] | None = None

    def put(self, write: Callable[[], None]) -> None:
        """Write this as soon as the last is written; what that one raised is raised here."""
        self.wait()
        if self._writer is None:
            write()
        else:
            self._waiting = self._writer.submit(_as_here(write))

    def wait(self) -> None:
        """Until all is written; what that raised is raised here."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.shutdown(wait=True)
        if error is None:
            self.wait()


def _as_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is run in another thread with or without gradients as this one is."""
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run(*given: Any) -> Any:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function(*given)

    return run
