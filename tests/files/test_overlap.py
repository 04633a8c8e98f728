"""Reading ahead and writing behind: the work overlaps, and neither order, result nor error is another."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from functools import partial

import pytest
import torch

from cryoshuffle import memory
from cryoshuffle.files import overlap, scratch
from cryoshuffle.files.overlap import WriteBehind, can_overlap, read_ahead
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.mergers import WindowMerger

WAIT_S = 5.0


@pytest.mark.parametrize("ahead", [True, False])
def test_the_next_item_is_read_while_the_last_is_in_use(ahead):
    """With the negative control: without overlap it is not."""
    begun = [threading.Event() for _ in range(4)]

    def read(number: int) -> int:
        begun[number].set()
        return number * number

    for number, value in enumerate(read_ahead(range(4), read, ahead)):
        assert value == number * number
        if number < 3:
            assert begun[number + 1].wait(WAIT_S if ahead else 0.05) == ahead
        assert not any(event.is_set() for event in begun[number + 2 :]), "more than one item ahead"


def test_what_failed_is_not_kept():
    """The exception is all that holds what was in use when a thread failed: an attempt with less memory comes next."""

    class Held:
        pass

    def work() -> weakref.ref[Held]:
        held = Held()
        gone = weakref.ref(held)
        try:
            with WriteBehind() as writer:
                for _ in read_ahead(range(3), lambda item: held and _fail("no room")):
                    writer.put(_no_room)
        except MemoryError:
            pass
        return gone

    gc.disable()
    try:
        assert work()() is None
    finally:
        gc.enable()


def test_nothing_to_read_gives_nothing():
    """And asks for nothing."""
    assert list(read_ahead([], lambda item: 1 / 0)) == []


def test_an_error_of_the_reader_comes_where_its_item_would_have():
    """What was read before it is not lost, and a reader that is let down ends."""
    failing = read_ahead(range(5), lambda item: item if item < 2 else _fail("third"))
    assert [next(failing), next(failing)] == [0, 1]
    with pytest.raises(MemoryError, match="third"):
        next(failing)
    some = read_ahead(range(100), lambda item: item)
    next(some)
    some.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read ahead")]


def _fail(words: str) -> int:
    raise MemoryError(words)


def _no_room() -> None:
    _fail("no room")


def test_all_is_written_in_order_one_at_a_time_and_before_the_end():
    """The writer works while the next is computed: each write ends after the work behind its put, and not before."""
    goes_on = [threading.Event() for _ in range(5)]
    written: list[int] = []
    running = threading.Lock()

    def write(number: int) -> None:
        assert running.acquire(blocking=False), "two writes at a time"
        assert goes_on[number].wait(WAIT_S)
        written.append(number)
        running.release()

    with WriteBehind() as writer:
        for number, event in enumerate(goes_on):
            writer.put(partial(write, number))
            assert written == list(range(number)), "a put waits for the one before, and for no more"
            event.set()
    assert written == list(range(5))


def test_without_overlap_each_is_written_when_it_is_put():
    """The control of the test before."""
    written = []
    with WriteBehind(overlap=False) as writer:
        writer.put(lambda: written.append(threading.current_thread().name))
        assert written == [threading.current_thread().name]


@pytest.mark.parametrize("ending", [
    lambda writer: writer.put(lambda: None),
    lambda writer: writer.wait(),
    lambda writer: None,
])  # fmt: skip
def test_an_error_of_the_writer_is_not_lost(ending):
    """It comes with the next put, with a wait, or with the end."""

    def work() -> None:
        with WriteBehind() as writer:
            writer.put(_no_room)
            ending(writer)

    with pytest.raises(MemoryError, match="no room"):
        work()


def test_an_error_of_the_work_itself_goes_before_one_of_the_writer():
    """It came first."""

    def work() -> None:
        with WriteBehind() as writer:
            writer.put(_no_room)
            raise ValueError("work")

    with pytest.raises(ValueError, match="work"):
        work()


def _add_one(total: torch.Tensor) -> None:
    total.add_(1)


def test_a_thread_of_its_own_computes_with_or_without_gradients_as_here():
    """A thread begins with gradients, and could not add to what inference mode made."""
    with torch.inference_mode():
        total = torch.zeros(2)
        with WriteBehind() as writer:
            writer.put(lambda: _add_one(total))
        modes = list(read_ahead([0], lambda item: torch.is_inference_mode_enabled()))
    assert total.tolist() == [1, 1]
    assert modes == [True]
    with torch.no_grad():
        assert list(read_ahead([0], lambda item: torch.is_grad_enabled())) == [False]
    assert list(read_ahead([0], lambda item: torch.is_grad_enabled())) == [True]


def test_only_what_comes_from_a_disk_or_goes_to_a_gpu_can_overlap(tmp_path):
    """A volume in memory takes no time, and two threads may not use MPS."""
    here = torch.zeros(1, 1, 8, 8, 8)
    assert not can_overlap(here, torch.device("cpu"))
    assert can_overlap(here, torch.device("cuda"))
    memory.limit_memory(1e-6)
    there = torch.from_numpy(scratch.empty_volume(here.shape, tmp_path))
    assert can_overlap(there, torch.device("cpu"))
    assert not can_overlap(there, torch.device("mps"))


@pytest.mark.parametrize("waits", [True, False])
def test_a_window_is_done_when_all_of_it_is_written(tmp_path, monkeypatch, waits):
    """With the negative control: where the end does not wait for the writer, a window is done before it is whole."""
    events: list[str] = []

    class Slow(WindowMerger):
        def aggregate(self, values, location):
            time.sleep(0.05)
            super().aggregate(values, location)
            events.append("written")

        def mark(self, box):
            events.append("done")
            super().mark(box)

    if not waits:
        monkeypatch.setattr(overlap.WriteBehind, "__exit__", lambda self, *raised: None)
    memory.limit_memory(1e-6)
    x = torch.from_numpy(scratch.empty_volume((1, 1, 8, 24, 8), tmp_path))
    inferer = HaloWindowInferer((8, 8, 8), precision="fp32", halo=0, merger=lambda shape: Slow(shape, folder=tmp_path))
    with torch.no_grad():
        inferer(x, lambda given: given + 1)
    assert (events == ["written", "done"] * 3) == waits


def test_what_cannot_be_written_is_told_and_its_window_not_done(tmp_path):
    """Here because a disk is full."""
    marked, attempts = [], []

    class Full(WindowMerger):
        def aggregate(self, values, location):
            attempts.append(tuple(location))
            raise OSError(28, "No space left on device")

        def mark(self, box):
            marked.append(box)

    memory.limit_memory(1e-6)
    x = torch.from_numpy(scratch.empty_volume((1, 1, 8, 24, 8), tmp_path))
    inferer = HaloWindowInferer((8, 8, 8), precision="fp32", halo=0, merger=lambda shape: Full(shape, folder=tmp_path))
    with torch.no_grad(), pytest.raises(OSError, match="No space left"):
        inferer(x, lambda given: given + 1)
    assert attempts == [(0, 0, 0)]
    assert marked == []
