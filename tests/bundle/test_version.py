"""The version, of which there is one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import cryoshuffle

ROOT = Path(__file__).resolve().parents[2]


def test_the_version_is_that_of_the_metadata():
    """One version, read from configs/metadata.json wherever that lies."""
    metadata = json.loads((cryoshuffle.config_dir() / "metadata.json").read_text())
    assert cryoshuffle.__version__ == metadata["version"]
    assert metadata["version"] in metadata["changelog"]
    assert isinstance(cryoshuffle.config_dir(), Path)


def test_the_version_is_the_newest_of_the_changelog():
    """What is written by the program as it is does not carry the name of an earlier one."""
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == cryoshuffle.__version__
    assert len(set(headings)) == len(headings) > 1
