"""Shared settings of the tests."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from cryoshuffle import devices

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def load_script(monkeypatch):
    """Imports a program of ``scripts/`` by its name; the next test begins without it, and what it imported there."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    # Set first: what is removed without that would not be removed again behind the test.
    for path in SCRIPTS.glob("*.py"):
        monkeypatch.setitem(sys.modules, path.stem, None)
        del sys.modules[path.stem]
    return importlib.import_module


@pytest.fixture(autouse=True)
def _same_numbers():
    """A test draws the same numbers whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _usual_memory():
    """What a test, or a command in it, allows the program is not what the next one has."""
    yield
    devices.limit_memory(None)


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
