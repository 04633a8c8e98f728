"""The rooms of the package: imports go one way, and configs name what a room exports."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest
from phantoms import CONFIGS

import cryoshuffle

PACKAGE = Path(cryoshuffle.__file__).parent
PAPER = ("lattice", "layers", "network", "invariance", "losses")
# From the ground up. A module may import from its own floor only within its room, and from any floor below.
FLOORS = (
    ("cryoshuffle", "errors", "signals"),
    ("devices", "memory"),
    ("boxes", "host", *PAPER),
    ("files",),
    ("noise", "simulation"),
    ("inference", "scores"),
    ("report",),
    ("fit",),
    ("commands",),
    ("api", "__main__"),
)
# Modules of the ground floors stand in no room; among those of one floor imports are free, but for circles.
ROOMS = ("files", "noise", "simulation", "inference", "scores", "report", "fit", "commands")


def module_name(path: Path, package: Path = PACKAGE) -> str:
    """``files.mrc`` of its path; a room's own name of its ``__init__``."""
    parts = path.relative_to(package).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts).replace("__init__", "")


def imports(source: str, modules: set[str]) -> set[str]:
    """The modules of the package that a source imports, wherever in it; those for types alone left out."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "cryoshuffle":
            base = node.module.removeprefix("cryoshuffle").lstrip(".")
            for alias in node.names:
                whole = f"{base}.{alias.name}".lstrip(".")
                found.add(whole if whole in modules else base)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("cryoshuffle").lstrip(".")
                for alias in node.names
                if alias.name.split(".")[0] == "cryoshuffle"
            }
    return found


def offending(arrows: set[tuple[str, str]]) -> list[str]:
    """Arrows that go upwards, or from one room to another of its floor, or into ``__init__`` from below it."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    bad = []
    for source, target in sorted(arrows):
        here, there = (name.split(".")[0] or "cryoshuffle" for name in (source, target))
        if source == "":
            continue
        sideways = floor[here] == floor[there] and here != there and here in ROOMS
        if floor[there] > floor[here] or sideways:
            bad.append(f"{source} -> {target}")
    return bad


def circles(arrows: set[tuple[str, str]]) -> list[str]:
    """Modules that import each other, by whatever way round; rooms' ``__init__`` left out, which import their own."""
    targets: dict[str, set[str]] = {}
    for source, target in arrows:
        if source not in (*ROOMS, "") and target not in (*ROOMS, ""):
            targets.setdefault(source, set()).add(target)

    def reaches(start: str) -> bool:
        seen, left = set(), list(targets.get(start, ()))
        while left:
            one = left.pop()
            if one == start:
                return True
            if one not in seen:
                seen.add(one)
                left += targets.get(one, ())
        return False

    return sorted(name for name in targets if reaches(name))


@pytest.fixture(scope="module")
def arrows() -> set[tuple[str, str]]:
    paths = sorted(PACKAGE.rglob("*.py"))
    modules = {module_name(path) for path in paths}
    return {
        (module_name(path), target) for path in paths for target in imports(path.read_text(encoding="utf-8"), modules)
    }


def test_imports_go_one_way(arrows):
    """No module imports from a floor above its own or from a room beside it; an arrow upwards is named."""
    assert offending(arrows) == []
    assert offending({*arrows, ("files.mrc", "fit.data")}) == ["files.mrc -> fit.data"]
    assert offending({*arrows, ("scores.metrics", "inference.inferers")}) == ["scores.metrics -> inference.inferers"]


def test_no_modules_import_each_other(arrows):
    """No circle anywhere, not even within a room or inside of a function."""
    assert circles(arrows) == []
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")}) == ["a", "b", "c"]


def test_every_module_stands_on_a_floor():
    """A module that no floor names would escape the rule."""
    known = {name for names in FLOORS for name in names}
    assert {module_name(path).split(".")[0] or "cryoshuffle" for path in PACKAGE.rglob("*.py")} <= known


def unexported(config: str) -> list[str]:
    """Own names in a config that are neither ``cryoshuffle.<room>.<Name>``, in ``__all__`` there, nor of the ground."""
    bad = []
    for name in sorted(set(re.findall(r"cryoshuffle((?:\.\w+)+)", config)) - {".__version__"}):
        _, place, *rest = name.split(".")
        if name == f".{place}" or (place in (*PAPER, "devices", "memory", "errors") and len(rest) == 1):
            continue
        exported = importlib.import_module(f"cryoshuffle.{place}").__all__ if place in ROOMS else []
        if len(rest) != 1 or rest[0] not in exported:
            bad.append(name)
    return bad


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.*")), ids=lambda path: path.name)
def test_configs_name_what_a_room_exports(path):
    """Files inside a room can move, and no config notices."""
    assert unexported(path.read_text(encoding="utf-8")) == []


def test_a_name_from_inside_a_room_is_noticed():
    """A module in a room, a name that a room does not export, and a module that is none."""
    config = "cryoshuffle.fit.data.Epochs cryoshuffle.fit.Budget cryoshuffle.fit.NoiseModel cryoshuffle.cli.main"
    assert unexported(config) == [".cli.main", ".fit.NoiseModel", ".fit.data.Epochs"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_what_it_says(room):
    """``__all__`` of a room names things that are there, once each and in order."""
    exported = importlib.import_module(f"cryoshuffle.{room}").__all__
    assert exported == sorted(set(exported))
    for name in exported:
        assert getattr(importlib.import_module(f"cryoshuffle.{room}"), name) is not None


def participles(source: str) -> list[str]:
    """Variables, arguments and attributes called by a participle that says nothing of what it holds."""
    banned = {"found", "told", "made", "taken", "there"}
    names = (
        getattr(node, "id", None) or getattr(node, "arg", None) or getattr(node, "attr", None)
        for node in ast.walk(ast.parse(source))
    )
    return sorted(name for name in names if name in banned)


def test_names_are_nouns():
    """What lies to the left in a picture may be called left, so that participle is not looked for."""
    for path in sorted(PACKAGE.rglob("*.py")):
        assert participles(path.read_text(encoding="utf-8")) == [], path
    assert participles("found = 1\nf(told=2)\nself.made = 3\nlambda taken: 4") == ["found", "made", "taken", "told"]
