"""Shared settings of the tests."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from sizes import FULL, VARIABLE, write_tiny_configs

from cryoshuffle import memory

SCRIPTS = Path(__file__).parent.parent / "scripts"


def pytest_configure(config: pytest.Config) -> None:
    """Runs of the default suite use the tiny network; the processes of pytest-xdist and of the runs inherit that."""
    if FULL or VARIABLE in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="cryoshuffle-configs-")
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ[VARIABLE] = str(write_tiny_configs(Path(folder)))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the nightly tests to the long run, which pytest counts as deselected."""
    nightly = [] if FULL else [item for item in items if item.get_closest_marker("nightly")]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]


@pytest.fixture
def whole_network(monkeypatch):
    """Runs use the network that is shipped, whatever the suite uses."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Makes a folder by its name, once for all workers; nobody may write into it afterwards."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def once(name: str, make: Callable[[Path], None]) -> Path:
        folder, finished = base / name, base / f"{name}.finished"
        with FileLock(base / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def wheel(make_once) -> Path:
    """The wheel, built from what the checkout lets a container see."""
    root = SCRIPTS.parent

    def build(folder: Path) -> None:
        (source := folder / "source").mkdir()
        for name in (line[1:] for line in (root / ".dockerignore").read_text().split() if line.startswith("!")):
            copy = shutil.copytree if (root / name).is_dir() else shutil.copy
            copy(root / name, source / name)
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            str(folder),
            str(source),
        ]
        subprocess.run(command, check=True)

    return next(make_once("wheel", build).glob("*.whl"))


@pytest.fixture
def load_script(monkeypatch):
    """Imports a program of ``scripts/``, as ``"bench.speed"``; the next test begins without it and its imports."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    modules = [path.relative_to(SCRIPTS).with_suffix("").parts for path in SCRIPTS.rglob("*.py")]
    # Set first: what is removed without that would not be removed again behind the test.
    for name in {".".join(parts[:length]) for parts in modules for length in range(1, len(parts) + 1)}:
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    return importlib.import_module


@pytest.fixture(autouse=True)
def _same_numbers():
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _usual_memory():
    """What a test, or a command in it, allows the program is not what the next one has."""
    yield
    memory.limit_memory(None)


@pytest.fixture(autouse=True)
def _one_thread_for_small_work(request):
    """Small tensors on several threads mostly wait for each other; whole runs keep the threads of the machine."""
    if "golden" in str(request.node.path):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
