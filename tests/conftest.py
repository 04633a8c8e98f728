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
from phantoms import REAL_TOMOGRAM, small_tomogram
from sizes import FULL, VARIABLE, write_tiny_configs

from cryoshuffle import memory
from cryoshuffle.commands.cli import main

# Run by a test of its own, where napari is.
collect_ignore = ["commands/napari_session.py"]
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


@pytest.fixture(scope="session")
def fitted(make_once) -> tuple[Path, Path]:
    """A tomogram and a network for it."""

    def fit(folder: Path) -> None:
        tomogram = small_tomogram(folder / "in.mrc", (24, 72, 72))
        assert main(["fit", str(tomogram), "--checkpoint", str(folder / "c.pt"), "--effort", "fast", "--quiet"]) == 0

    folder = make_once("fitted", fit)
    return folder / "in.mrc", folder / "c.pt"


@pytest.fixture(scope="session")
def real_run(make_once) -> Path:
    """The folder of the real microtubule tomogram, denoised in a few steps of the network that is shipped."""

    def denoise(folder: Path) -> None:
        command = [sys.executable, "-m", "cryoshuffle", "denoise", REAL_TOMOGRAM, folder / "out.mrc"]
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        subprocess.run([*command, "--steps", "10", "--no-survival", "--quiet"], check=True, env=environment)

    return make_once("real_run", denoise)


@pytest.fixture
def allocator_calls(monkeypatch):
    """What a C library that is not there is asked for."""
    words: list[tuple[str, ...]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> None:
            words.append(("mallopt", str(parameter), str(value)))

        def malloc_trim(self, pad: int) -> None:
            words.append(("trim",))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Libc())
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_resident_bytes", lambda: 0)
    return words


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
    if request.node.path.parent.name in ("runs", "docs"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
