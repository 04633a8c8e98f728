"""What whole runs begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from phantoms import small_tomogram

from cryoshuffle.cli import main


@pytest.fixture(scope="session")
def fitted(tmp_path_factory) -> tuple[Path, Path]:
    """A tomogram and a network for it."""
    folder = tmp_path_factory.mktemp("fitted")
    tomogram = small_tomogram(folder / "in.mrc", (24, 72, 72))
    assert main(["fit", str(tomogram), "--checkpoint", str(folder / "c.pt"), "--effort", "fast", "--quiet"]) == 0
    return tomogram, folder / "c.pt"
