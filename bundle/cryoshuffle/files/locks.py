"""One run in a folder at a time."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from cryoshuffle.devices import is_first_process
from cryoshuffle.errors import FileError

_LOCK = ".lock"
# Locks that this process holds, by the path of their file.
_held: dict[Path, FileLock] = {}


def lock_run(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> None:
    """Keep other runs out of a folder, and from a result, as long as this process lives, or until :func:`unlock_run`.

    In the folder, and beside the result, lies a hidden, empty file while it is held. The system forgets the lock when
    the process ends, however it ends: a file that a killed process left keeps nobody out. File systems without such
    locks are left as they are. Of several processes of one run the first holds them.

    Args:
        folder: of the run; made if it is not there.
        output: path of the result. None for none.

    Raises:
        FileError: if another run holds one of them.
    """
    if not is_first_process():
        return
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    if not _lock(path / _LOCK):
        raise FileError(f"{folder}: another run is at work there, wait for it or choose another folder with --report")
    if output is not None:
        beside = Path(output).resolve()
        if not _lock(beside.with_name(f".{beside.name}{_LOCK}")):
            raise FileError(f"{output}: another run is about to write it, wait for it or choose another name")


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
    while _held:
        path, lock = _held.popitem()
        path.unlink(missing_ok=True)
        lock.release()
