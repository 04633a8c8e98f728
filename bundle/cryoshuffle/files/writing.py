"""Files appear under their name when they are whole, or not at all; and what the state of a file tells."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from cryoshuffle.errors import FileError, unreadable

# Paths of this process's run where nothing was when it began.
_free: set[Path] = set()
# Checksums this process has taken, by the state that the files were in.
_known: dict[str, str] = {}
# So long after it was changed, seconds, a file that is changed again has other times, however coarse they are.
SETTLED_S = 2.0
# Bytes of a name that fits into the name of a partial file as it is; a system takes 255 as a rule.
_LONGEST = 120


def remember_free(paths: Sequence[str | os.PathLike[str]]) -> None:
    """What appears at one of these paths from now on is not replaced by :func:`written_whole`, but for its own.

    Args:
        paths: of files or folders; those that are there already may be replaced.
    """
    _free.update(Path(path).resolve() for path in paths if not Path(path).exists())


def forget_free() -> None:
    """Undo :func:`remember_free`."""
    _free.clear()


def real_path(path: str | os.PathLike[str]) -> Path:
    """What a path stands for: of a link its target, so that writing whole goes through the link and not over it."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def partial_path(path: str | os.PathLike[str], kind: str = "", ending: str = "") -> Path:
    """Where a file is written until it is whole; what processes that were killed left there is removed.

    Args:
        path: it will have.
        kind: to tell several partial files of one path from each other.
        ending: of the name, where it matters.
    """
    path, host = Path(path), platform.node()
    encoded = os.fsencode(path.name)
    name = path.name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()
    for other in path.parent.glob(f".{glob.escape(name)}.*.partial{glob.escape(ending)}"):
        owner = re.search(rf"\.{re.escape(host)}\.(\d+)\.partial{re.escape(ending)}$", other.name)
        if owner and not _lives(int(owner[1])):
            remove(other)
    return path.with_name(f".{name}.{kind}{host}.{os.getpid()}.partial{ending}")


def _lives(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def partial_file(path: str | os.PathLike[str], kind: str = "", ending: str = "") -> Iterator[Path]:
    """A temporary path beside another; what is there at the end is removed.

    Args:
        path: the other.
        kind: see :func:`partial_path`.
        ending: see :func:`partial_path`.
    """
    partial = partial_path(path, kind, ending)
    try:
        yield partial
    finally:
        remove(partial)


@contextmanager
def written_whole(
    path: str | os.PathLike[str],
    what: str = "",
    way_out: str = "make room or choose another folder; nothing was left behind",
    needed: int | None = None,
    ending: str = "",
) -> Iterator[Path]:
    """A temporary path for a file or folder, which gets its own name when the block ends, whole and on the disk.

    Where the block or the disk fails, nothing is left behind, and what had the name before keeps it.

    Args:
        path: of the result; a link is written through.
        what: is written, for the message, with a blank behind it.
        way_out: for the message.
        needed: bytes, for the message; None if that is not known.
        ending: of the temporary name, where it matters.

    Raises:
        FileError: if it cannot be written, or something has appeared where it was to be
            (:func:`remember_free`).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with written_whole(f"{folder}/a.txt") as partial:
        ...         length = partial.write_text("whole")
        ...         before = (Path(folder) / "a.txt").exists()
        ...     before, (Path(folder) / "a.txt").read_text(), len(os.listdir(folder))
        (False, 'whole', 1)
    """
    path = real_path(path)
    try:
        with partial_file(path, ending=ending) as partial:
            yield partial
            _sync(partial)
            place = path.resolve()
            if place in _free and path.exists():
                raise FileError(
                    f"{path}: appeared while this run was at work, so it is not replaced: move it, then repeat the "
                    "command with --resume --overwrite"
                )
            _replace(path, partial)
            _free.discard(place)
    except FileError:
        raise
    except OSError as error:
        why = str(error.strerror or error) + ("" if needed is None else f", {needed / 2**20:.0f} MiB needed")
        raise FileError(f"{path}: {what}cannot be written ({why}), {way_out}") from error


def _sync(path: Path) -> None:
    """Bring a file, or all files of a folder, to the disk, where a power cut does not reach them."""
    for one in (path, *path.rglob("*")):
        if one.is_file():
            with one.open("r+b") as file:
                os.fsync(file.fileno())


def _replace(path: Path, partial: Path) -> None:
    """Give a path what was written for it; a folder cannot take another's name while that is there."""
    with partial_file(path, "before.") as before:
        try:
            if partial.is_dir() and path.exists():
                os.replace(path, before)
            os.replace(partial, path)
        finally:
            if before.exists() and not path.exists():
                os.replace(before, path)


def write_text(content: str, path: str | os.PathLike[str]) -> None:
    """Write text as UTF-8, whole or not at all; bytes of names that are no UTF-8 are spelled out.

    Raises:
        FileError: if the file cannot be written; nothing is left behind then.
    """
    with written_whole(path, way_out="choose another folder") as partial:
        partial.write_text(content, encoding="utf-8", errors="backslashreplace")


def as_plain(value: Any) -> Any:
    """A value as JSON has it: tuples become lists, and what it has no word for becomes text.

    Example:
        >>> as_plain({1: (2.5, None, Path("in.mrc"))})
        {'1': [2.5, None, 'in.mrc']}
    """
    if isinstance(value, Mapping):
        return {str(name): as_plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(one) for one in value]
    return value if isinstance(value, (int, float, bool, type(None))) else str(value)


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        FileError: see :func:`write_text`.
    """
    write_text(json.dumps(content, indent=2) + "\n", path)


def save_whole(content: Any, path: str | os.PathLike[str]) -> None:
    """Save a checkpoint with torch, whole or not at all.

    Raises:
        FileError: if it cannot be written; what was there before is kept.
    """
    way_out = "make room and continue with --resume"
    # To a stream: torch writes the name of a file into it.
    with written_whole(path, "the checkpoint ", way_out) as partial, partial.open("wb") as stream:
        try:
            torch.save(content, stream)
        except RuntimeError as error:
            raise OSError(str(error)) from error


def check_new_file(path: str | os.PathLike[str], overwrite: bool = False, folder: bool = False) -> None:
    """Refuse a file that exists or whose folder cannot be written.

    Args:
        path: of the file.
        overwrite: allow one that exists.
        folder: whether what is to be written is a folder itself.

    Raises:
        FileError: in either case.
    """
    path = Path(path)
    if path.is_dir() and not folder:
        raise FileError(f"{path}: is a folder, name a file")
    if path.exists() and not overwrite:
        raise FileError(f"{path}: exists already, add --overwrite or choose another name")
    if not path.parent.is_dir():
        raise FileError(f"{path}: there is no folder {path.parent}, make it first")
    if not os.access(path.parent, os.W_OK):
        raise FileError(f"{path}: the folder {path.parent} cannot be written, choose another")


def checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal; of a folder, of the names and the content of all its files.

    What this process has read before is not read again as long as the system says that it is the same file, of the same
    size, and that neither content nor name have changed since.

    Raises:
        FileError: if it cannot be read.
    """
    digest, whole = hashlib.sha256(), Path(path)
    try:
        files = sorted(part for part in whole.rglob("*") if part.is_file()) if whole.is_dir() else [whole]
        state = _state(whole, files)
        if state is not None and state in _known:
            return _known[state]
        for one in files:
            if one != whole:
                digest.update(one.relative_to(whole).as_posix().encode() + b"\0")
            with one.open("rb") as file:
                while block := file.read(2**22):
                    digest.update(block)
        if state is not None and state == _state(whole, files):
            _known[state] = digest.hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def _state(whole: Path, files: Sequence[Path]) -> str | None:
    """What the system says of files; None for some that were changed too shortly before for that to be relied on."""
    digest, now = hashlib.sha256(), time.time()
    for one in files:
        stat = os.stat(one)
        if now - max(stat.st_mtime, stat.st_ctime) < SETTLED_S:
            return None
        name = one.relative_to(whole).as_posix()
        digest.update(repr((name, stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
    return digest.hexdigest()
