"""The version, of which there is one."""

from __future__ import annotations

import json
from pathlib import Path

import cryoshuffle


def test_the_version_is_that_of_the_metadata():
    """One version, read from configs/metadata.json wherever that lies."""
    metadata = json.loads((cryoshuffle.config_dir() / "metadata.json").read_text())
    assert cryoshuffle.__version__ == metadata["version"]
    assert metadata["version"] in metadata["changelog"]
    assert isinstance(cryoshuffle.config_dir(), Path)
