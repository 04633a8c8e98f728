"""A lock keeps others out while its process lives, and not a moment longer."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cryoshuffle.errors import FileError
from cryoshuffle.files.locks import lock_run, unlock_run
from cryoshuffle.files.writing import write_text

HOLD = """
import sys, time
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def unlocked():
    """No test leaves a lock to the next."""
    yield
    unlock_run()


@pytest.fixture
def other():
    """A process that locks a file until it is killed."""
    started = []

    def hold(path: Path) -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("name", "words"), [("run/.lock", "at work there"), (".out.mrc.lock", "about to write it")])
def test_a_lock_dies_with_its_process(tmp_path, other, name, words):
    """While it lives, folder and result are refused with the way out; what SIGKILL leaves behind keeps nobody out."""
    (tmp_path / "run").mkdir()
    process = other(tmp_path / name)
    with pytest.raises(FileError, match=f"{words}, wait for it or choose another"):
        lock_run(tmp_path / "run", [tmp_path / "out.mrc"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / name).exists()
    lock_run(tmp_path / "run", [tmp_path / "out.mrc"])
    lock_run(tmp_path / "run", [tmp_path / "out.mrc"])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_output_is_locked(tmp_path, other, place):
    """Result, residual and error map alike; what is not asked for is not, nor a file of another name (control)."""
    names = ["out.mrc", "residual.mrc", "error.mrc"]
    other(tmp_path / f".{names[place]}.lock")
    lock_run(tmp_path / "run", [None, tmp_path / "another.mrc"])
    with pytest.raises(FileError, match=f"{names[place]}: another run is about to write it, wait for it or choose"):
        lock_run(tmp_path / "run", [tmp_path / name for name in names])


def test_what_appears_at_an_output_meanwhile_is_not_replaced(tmp_path):
    """Nor is a partial file left; what was there before, and the run's own file, is replaced (controls)."""
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text("of a run before")
    lock_run(tmp_path / "run", [old, new])
    write_text("ours", old)
    new.write_text("of somebody")
    with pytest.raises(FileError, match=r"new\.json: appeared while this run was at work, so it is not replaced"):
        write_text("ours", new)
    assert (old.read_text(), new.read_text()) == ("ours", "of somebody")
    assert list(tmp_path.glob("*partial*")) == []
    new.unlink()
    for words in ("ours", "ours again"):
        write_text(words, new)
    unlock_run()
    lock_run(tmp_path / "run", [new])
    write_text("of the next run", new)


def test_nothing_is_left_of_a_lock_that_is_given_back(tmp_path, other):
    """Whatever thread gives it back; then another may have it."""
    lock_run(tmp_path / "run", [tmp_path / "out.mrc"])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")) == [".out.mrc.lock", "run/.lock"]
    thread = threading.Thread(target=unlock_run)
    thread.start()
    thread.join()
    assert list(tmp_path.rglob(".*")) == []
    other(tmp_path / "run" / ".lock")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EBADF])
def test_a_file_system_without_locks_is_left_as_it_is(tmp_path, monkeypatch, number):
    """The run goes on, without a warning and without a marker that would outlive it."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        lock_run(tmp_path / "run", [tmp_path / "out.mrc"])
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob(".*"))


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch, other):
    """The others of one run are not refused; one that only has a rank in its environment is alone (control)."""
    (tmp_path / "run").mkdir()
    other(tmp_path / "run" / ".lock")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(FileError, match="another run is at work there"):
        lock_run(tmp_path / "run")
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: 1)
    lock_run(tmp_path / "run")
