"""What whole runs begin with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from phantoms import REAL_TOMOGRAM, small_tomogram
from sizes import VARIABLE

from cryoshuffle.commands.cli import main


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
        subprocess.run([*command, "--steps", "25", "--quiet"], check=True, env=environment)

    return make_once("real_run", denoise)
