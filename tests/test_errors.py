"""Errors: a mistake of the user is told from a bug, however it is wrapped."""

from __future__ import annotations

from cryoshuffle.errors import FileError, InputError, SettingError, user_error


def test_a_mistake_is_found_behind_any_wrapping():
    """As a cause, as a context, and as text in an exception that kept only a traceback."""
    mistake = InputError("t.mrc: is cut short")
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = mistake
    outer = RuntimeError("engine run")
    outer.__context__ = wrapped
    assert user_error(outer) is mistake
    told = RuntimeError("no reader\nTraceback ...\ncryoshuffle.errors.FileError: a.mrc: cannot be read\n")
    found = user_error(told)
    assert isinstance(found, FileError)
    assert str(found) == "a.mrc: cannot be read"
    assert user_error(RuntimeError("a bug")) is None
    assert isinstance(SettingError("x"), ValueError)
    assert isinstance(FileError("x"), OSError)
