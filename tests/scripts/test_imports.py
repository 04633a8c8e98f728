"""Python in shell scripts and pages imports what the package has; the scripts themselves run too seldom to tell."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SHELL = [path for path in ROOT.glob("scripts/**/*") if path.is_file() and path.suffix in ("", ".sh")]
TEXTS = sorted([*SHELL, *ROOT.glob("scripts/**/*.py"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("README.md")])


Statement = ast.Import | ast.ImportFrom


def of_lines(text: str) -> list[Statement]:
    """Imports of the package in Python that stands within another text."""
    pattern = r"^ *(from cryoshuffle[\w.]* import .+|import cryoshuffle[\w.]*)$"
    return [ast.parse(line.strip()).body[0] for line in re.findall(pattern, text, flags=re.MULTILINE)]


def of_program(text: str) -> list[Statement]:
    """Imports of the package anywhere in a program, over several lines as well."""
    return [
        node
        for node in ast.walk(ast.parse(text))
        if (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cryoshuffle")
        or (isinstance(node, ast.Import) and node.names[0].name.split(".")[0] == "cryoshuffle")
    ]


def absent(statements: list[Statement]) -> list[str]:
    """Names of the package that are imported, and that are not there."""
    missing = []
    for statement in statements:
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
    text = path.read_text(encoding="utf-8")
    assert absent(of_program(text) if path.suffix == ".py" else of_lines(text)) == []


def test_what_has_moved_away_is_noticed():
    """A name that its module no longer has, and a module that is gone."""
    text = "x\n  from cryoshuffle.files.writing import ExactPath, write_json\nimport cryoshuffle.outputs\n"
    gone = ["cryoshuffle.files.writing.ExactPath", "cryoshuffle.outputs"]
    assert absent(of_lines(text)) == gone
    program = "def f():\n  from cryoshuffle.files.writing import (\n  ExactPath,\n  )\nimport cryoshuffle.outputs\n"
    assert sorted(absent(of_program(program))) == gone
    assert {"demo", "setup", "test", "peers_setup", "real.py"} <= {path.name for path in TEXTS}


# What the standard library has from Python 3.11 on: the package is to run with 3.10 too, which no test here does.
LATER = {
    "typing": {"Self", "Never", "LiteralString", "Required", "NotRequired", "Unpack", "TypeVarTuple", "assert_never",
               "assert_type", "dataclass_transform", "reveal_type", "override", "TypeAliasType"},
    "enum": {"StrEnum", "verify", "member", "nonmember"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "itertools": {"batched"},
    "asyncio": {"TaskGroup", "timeout", "Runner"},
    "tomllib": {"load", "loads"},
}  # fmt: skip


def later(text: str) -> list[str]:
    """Names that a program imports, and that Python 3.10 has not."""
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [f"{i.module}.{a.name}" for i in imports for a in i.names if a.name in LATER.get(i.module or "", ())]


def test_the_package_imports_nothing_that_the_oldest_python_has_not():
    """With the negative control: a name of Python 3.11 is noticed, one of 3.10 is not."""
    assert later("from typing import Any, Self\nfrom typing_extensions import Self\n") == ["typing.Self"]
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    programs = sorted(ROOT.glob("bundle/**/*.py"))
    assert len(programs) > 50
    assert {str(path): names for path in programs if (names := later(path.read_text(encoding="utf-8")))} == {}
