"""Options that benchmarks have in common, and the settings that a work folder was begun with."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cryoshuffle.errors import SettingError
from cryoshuffle.files.writing import write_json
from cryoshuffle.lattice import Triple, as_triple
from cryoshuffle.simulation.phantoms import SMALLEST_SIDE


def name_list(text: str) -> list[str]:
    """Names with commas between."""
    return [part for part in text.split(",") if part]


def counts(text: str) -> list[int]:
    """Whole numbers above 0 with commas between."""
    numbers = [int(part) if part.isdigit() else 0 for part in name_list(text)]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers above 0 with commas between")
    return numbers


def whole_numbers(text: str) -> list[int]:
    """Whole numbers with commas between, of which 0 is one."""
    names = name_list(text)
    if not names or not all(name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers with commas between")
    return [int(name) for name in names]


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def triple(text: str) -> Triple:
    """A size along (Z, Y, X), voxels; one number is that of all three."""
    numbers = counts(text)
    try:
        return as_triple(numbers[0] if len(numbers) == 1 else numbers, "size", smallest=1)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_shape(shape: Sequence[int], parser: argparse.ArgumentParser) -> None:
    """Refuse sizes that cannot be simulated, before a work folder is begun.

    Args:
        shape: (Z, Y, X), voxels.
        parser: that tells it.
    """
    try:
        as_triple(shape, "--shape", smallest=SMALLEST_SIDE)
    except SettingError as error:
        parser.error(str(error))


def refuse_unknown(parser: argparse.ArgumentParser, what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """End with the name that there is not, and those that there are.

    Args:
        parser: that tells it.
        what: the names are of.
        given: on the command line.
        known: that may be chosen.
    """
    known = list(known)
    for name in given:
        if name not in known:
            parser.error(f"there is no {what} '{name}': choose of {', '.join(known)}")


def stored_settings(work: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """The settings that a work folder was begun with; ends where there are none.

    Args:
        work: the folder.
        parser: that tells it.
    """
    path = work / "settings.json"
    if not path.is_file():
        parser.error(f"{work} holds no results: run something first")
    return json.loads(path.read_text(encoding="utf-8"))


def check_settings(work: Path, settings: Mapping[str, Any], program: str, free: Iterable[str] = ()) -> None:
    """Keep what the results of a work folder have in common, and refuse to mix.

    Args:
        work: the folder; made if it is not there.
        settings: of this run, plain values.
        program: name of the benchmark, for the message.
        free: names of settings that may differ, because they change no number.

    Raises:
        SystemExit: if the folder was begun with other settings; the message names them.
    """
    path = work / "settings.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        fixed = [name for name in settings if name not in set(free)]
        other = [f"{name} {before.get(name)}" for name in fixed if before.get(name) != settings[name]]
        if other:
            sys.exit(f"{program}: {work} was begun with {', '.join(other)}: choose another --work, or the same")
    work.mkdir(parents=True, exist_ok=True)
    write_json(dict(settings), path)
