"""One run in a folder at a time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from cryoshuffle.devices import is_first_process
from cryoshuffle.errors import FileError
from cryoshuffle.files.writing import forget_free, remember_free

_LOCK = ".lock"
# Locks that this process holds, by the path of their file.
_held: dict[Path, FileLock] = {}


def lock_run(folder: str | os.PathLike[str], outputs: Sequence[str | os.PathLike[str] | None] = ()) -> None:
    """Keep other runs out of a folder, and from what a run writes, as long as this process lives.

    Or until :func:`unlock_run`. In the folder, and beside each output, lies a hidden, empty file while it is held. The
    system forgets the lock when the process ends, however it ends: a file that a killed process left keeps nobody out.
    File systems without such locks are left as they are. Of several processes of one run the first holds them. What
    appears meanwhile where no output was is not replaced, whoever writes it
    (:func:`cryoshuffle.files.writing.remember_free`).

    Args:
        folder: of the run; made if it is not there.
        outputs: paths of result, residual, error map or checkpoint. None for what is not asked for.

    Raises:
        FileError: if another run holds one of them.
    """
    if not is_first_process():
        return
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    if not _lock(path / _LOCK):
        raise FileError(f"{folder}: another run is at work there, wait for it or choose another folder with --report")
    named = [output for output in outputs if output is not None]
    for output in named:
        beside = Path(output).resolve()
        if not _lock(beside.with_name(f".{beside.name}{_LOCK}")):
            raise FileError(f"{output}: another run is about to write it, wait for it or choose another name")
    remember_free(named)


def _lock(path: Path) -> bool:
    """Lock a file that is made for it; False if another process has it."""
    if path not in _held:
        # Whoever may write in the folder can see the lock. A marker in its place would outlive a killed process.
        lock = FileLock(path, mode=0o666, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        except (OSError, NotImplementedError):
            return True
        _held[path] = lock
    return True


def unlock_run() -> None:
    """Let other runs at what was held."""
    forget_free()
    while _held:
        path, lock = _held.popitem()
        path.unlink(missing_ok=True)
        lock.release()
