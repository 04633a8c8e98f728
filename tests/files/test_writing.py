"""Files are written whole or not at all."""

from __future__ import annotations

import json

import pytest

from cryoshuffle.errors import FileError
from cryoshuffle.files.writing import write_json


def test_json_is_written_whole_or_not_at_all(tmp_path):
    """What is written is read back; a folder that is missing is one sentence, and nothing is left."""
    write_json({"a": [1, 2]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
    with pytest.raises(FileError, match="cannot be written"):
        write_json({}, tmp_path / "no" / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
