"""Files are written whole or not at all."""

from __future__ import annotations

import io
import json
import os
import sys

import pytest

from cryoshuffle.errors import FileError
from cryoshuffle.files.writing import write_json, write_text
from cryoshuffle.signals import readers_may_go


def test_json_is_written_whole_or_not_at_all(tmp_path):
    """What is written is read back; a folder that is missing is one sentence, and nothing is left."""
    write_json({"a": [1, 2]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
    with pytest.raises(FileError, match="cannot be written"):
        write_json({}, tmp_path / "no" / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_text_with_a_name_that_is_no_utf8_is_written(tmp_path):
    """A Latin-1 name comes as a surrogate: it is spelled out, and the file is UTF-8 all the same."""
    name = os.fsdecode(b"o\xfct.mrc")
    write_text(f"{name} and Å\n", tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == "o\\udcfct.mrc and Å\n"
    write_json({"path": name}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": name}


@pytest.mark.parametrize(("encoding", "spelled"), [
    ("ascii", "3 \\xb1 1 \\xc5, \\udcfc\n"), ("latin-1", "3 ± 1 Å, \\udcfc\n"), ("utf-8", "3 ± 1 Å, \\udcfc\n"),
])  # fmt: skip
def test_lines_are_printed_whatever_the_stream_can_spell(monkeypatch, encoding, spelled):
    """What it cannot is spelled out, the rest is as it was (control)."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    with readers_may_go():
        print("3 ± 1 Å, \udcfc")
    assert written.getvalue().decode(encoding) == spelled
