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
        lock_run(tmp_path / "run", tmp_path / "out.mrc")
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / name).exists()
    lock_run(tmp_path / "run", tmp_path / "out.mrc")
    lock_run(tmp_path / "run", tmp_path / "out.mrc")


def test_nothing_is_left_of_a_lock_that_is_given_back(tmp_path, other):
    """Whatever thread gives it back; then another may have it."""
    lock_run(tmp_path / "run", tmp_path / "out.mrc")
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
        lock_run(tmp_path / "run", tmp_path / "out.mrc")
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
