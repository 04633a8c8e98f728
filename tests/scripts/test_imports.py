"""Python in shell scripts and pages imports what the package has; the scripts themselves run too seldom to tell."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TEXTS = sorted([*ROOT.glob("scripts/**/*.sh"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("README.md")])


def absent(text: str) -> list[str]:
    """Names of the package that lines of a text import, and that are not there."""
    missing = []
    for line in re.findall(
        r"^ *(from cryoshuffle[\w.]* import .+|import cryoshuffle[\w.]*)$", text, flags=re.MULTILINE
    ):
        (statement,) = ast.parse(line.strip()).body
        module = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
        try:
            place = importlib.import_module(module)
        except ModuleNotFoundError:
            missing.append(module)
            continue
        if isinstance(statement, ast.ImportFrom):
            missing += [f"{module}.{alias.name}" for alias in statement.names if not hasattr(place, alias.name)]
    return missing


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_imported_is_there(path):
    """Each import is tried."""
    assert absent(path.read_text(encoding="utf-8")) == []


def test_what_has_moved_away_is_noticed():
    """A name that its module no longer has, and a module that is gone."""
    text = "x\n  from cryoshuffle.files.writing import ExactPath, write_json\nimport cryoshuffle.outputs\n"
    assert absent(text) == ["cryoshuffle.files.writing.ExactPath", "cryoshuffle.outputs"]
