"""Mistakes a user can make, each said in one sentence that names the file, the value and the way out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any


def named_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which of some named values are other ones than before, in words; empty if none is."""
    names = sorted(set(before) | set(now))
    changed = [name for name in names if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in changed)


class UserError(Exception):
    """A mistake outside the program: the command line says its sentence, without a traceback, and exits with 2."""


class SettingError(UserError, ValueError):
    """A setting that cannot work."""


class UsageError(SettingError):
    """Options that do not exist, miss their value, or have one they cannot take."""


class InputError(UserError, ValueError):
    """A tomogram, checkpoint or config whose content cannot be used."""


class FileError(UserError, OSError):
    """A file that cannot be read or written."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def unreadable(path: str | os.PathLike[str], error: OSError) -> FileError:
    """What to raise for a file that is there and that the system does not let be read."""
    return FileError(f"{path}: cannot be read ({error.strerror or error}), check the file and its rights")


class FitInterruptedError(BaseException):
    """The run was asked to stop and did, with its checkpoint kept; no mistake, so it has an exit code of its own, 3.

    No ``Exception``: it may come at any moment, also within code that goes on after any ``Exception``.
    """


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and all that it came from or while whose handling it came, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def stop_behind(error: BaseException) -> BaseException | None:
    """The request to stop behind an exception, or None: closing what it has interrupted can fail in any way.

    Args:
        error: the exception that reached the top.
    """
    return next((one for one in behind(error) if isinstance(one, (FitInterruptedError, KeyboardInterrupt))), None)


def user_error(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an exception, however deep MONAI or Ignite wrapped it.

    Args:
        error: the exception that reached the top.

    Returns:
        The first :class:`UserError` along its causes, or None if there is none. MONAI's loader and saver keep only
        the text of what a reader or writer raised; from that the error is made again.
    """
    for one in behind(error):
        if isinstance(one, UserError):
            return one
        matches = re.findall(r"^cryoshuffle\.errors\.(\w+): (.+)$", str(one), flags=re.MULTILINE)
        for name, sentence in matches:
            kind = {c.__name__: c for c in (SettingError, InputError, FileError)}.get(name)
            if kind is not None:
                return kind(sentence)
    return None


def tell_last() -> None:
    """Say a user's mistake below the traceback, where MONAI's own command line is the program.

    MONAI shows where its parser stood; the sentence is far above. Nothing is changed in any other program, which has
    its own way to show errors.
    """
    program = getattr(sys.modules.get("__main__"), "__spec__", None)
    if program is None or program.name != "monai.bundle.__main__":
        return
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        before(kind, error, traceback)
        mistake = user_error(error)
        if mistake is not None:
            print(f"cryoshuffle: {mistake}", file=sys.stderr)

    sys.excepthook = show


@contextmanager
def plainly() -> Iterator[None]:
    """Raise the user's mistake itself in place of an exception that MONAI or Ignite wrapped it in.

    Raises:
        UserError: see :func:`user_error`; what is none passes as it is.
    """
    try:
        yield
    except Exception as error:
        mistake = user_error(error)
        if mistake is None or mistake is error:
            raise
        raise mistake from error
