"""One run in a folder at a time."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from cryoshuffle.errors import FileError

_LOCK = ".lock"
# Locks that this process holds, by path.
_held: dict[Path, int] = {}


def lock_run(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> None:
    """Keep other runs out of a folder, and from a result, as long as this process lives, or until :func:`let_go`.

    The system forgets the locks when the process ends, however it ends. Systems and file systems without such locks are
    left as they are. Of several processes of one run the first holds them.

    Args:
        folder: of the run; made if it is not there.
        output: path of the result; beside it lies a hidden, empty file while it is held. None for none.

    Raises:
        FileError: if another run holds one of them.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    if not _lock(path):
        raise FileError(f"{folder}: another run is at work there, wait for it or choose another folder with --report")
    if output is not None:
        beside = Path(output).resolve()
        if not _lock(beside.with_name(f".{beside.name}{_LOCK}")):
            raise FileError(f"{output}: another run is about to write it, wait for it or choose another name")


def _lock(path: Path) -> bool:
    """Lock a folder, or a file that is made for it; False if another process has it."""
    try:
        import fcntl
    except ImportError:
        return True
    while path not in _held:
        try:
            number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
        except OSError:
            return True
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        except OSError as error:
            os.close(number)
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        if found is not None and os.path.samestat(found, os.fstat(number)):
            _held[path] = number
        else:
            # Whoever held it took it away meanwhile.
            os.close(number)
    return True


def unlock_run() -> None:
    """Let other runs at what was held."""
    while _held:
        path, number = _held.popitem()
        if path.name.endswith(_LOCK):
            path.unlink(missing_ok=True)
        os.close(number)
