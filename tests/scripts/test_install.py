"""The check of installations tells what works from what does not, and the page shows what it found."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def script(load_script):
    """The check as a module."""
    return load_script("check.install")


def test_the_page_shows_what_was_found(script):
    """The table is that of ``install.json``, with machine and commit; nothing where nothing was tried."""
    findings = script.read()
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.partition(script.BEGIN)[2].partition(script.END)[0] == script.table(findings)
    assert script.table({}) == ""
    tried = {"python": "3.10.1", "ok": True, "packages": "newest found", "machine": "a mill", "commit": "abc"}
    assert "on a mill, commit abc:\n\n| Python |" in script.table({"one": tried})


def test_the_oldest_packages_are_the_lower_bounds(script):
    """Each dependency is pinned to its own, extras are not."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = script.oldest(text)
    assert len(pins) == len(text.partition("\ndependencies = [")[2].partition("]")[0].strip().splitlines())
    assert all(f'"{pin.replace("==", ">=")}"' in text for pin in pins)
    assert not any(pin.startswith("tensorboard") for pin in pins)
    assert script.oldest('dependencies = [\n    "a-b>=0.5",\n    "c>=2.8.1",\n]\n') == ["a-b==0.5", "c==2.8.1"]


@pytest.mark.nightly
def test_what_cannot_be_installed_or_used_is_said_so(script, tmp_path, capsys):
    """A package that is none, and one without our program, fail in one line; no Python is refused at once."""
    (empty := tmp_path / "empty").mkdir()
    (empty / "pyproject.toml").write_text('[project]\nname = "empty"\nversion = "1"\n')
    for package, words in ((tmp_path / "none.whl", "ERROR"), (empty, "cryoshuffle: No such file")):
        found = script.check(sys.executable, [package], [], tmp_path)
        assert not found["ok"]
        assert words in found["why"]
        assert script.line(found).startswith(f"Python {found['python']}: FAILED: ")
        assert "fails: " in script.table({"one": {**found, "packages": "newest found", "machine": "", "commit": ""}})
        assert not (tmp_path / "venv").exists()
    with pytest.raises(SystemExit):
        script.main([str(tmp_path / "no_python")])
    assert "name a Python that runs" in capsys.readouterr().err
