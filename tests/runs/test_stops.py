"""A signal that comes when the result has its name: what is said of it, and what lies beside it."""

from __future__ import annotations

import signal
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from phantoms import small_tomogram

from cryoshuffle.commands.cli import main
from cryoshuffle.files.writing import checksum


def stop_in(patch: pytest.MonkeyPatch, place: str) -> None:
    """The program gets a SIGTERM where it calls something."""
    module, _, name = place.rpartition(".")
    original = getattr(__import__(module, fromlist=[name]), name)

    def call(*args: object, **options: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **options)

    patch.setattr(place, call)


@pytest.mark.parametrize(
    ("place", "missing"),
    [
        ("cryoshuffle.report.residual.save_tomogram", "the residual and the report are not: the same command"),
        ("cryoshuffle.report.provenance.checksum", "the report is not: the same command with --resume --overwrite"),
        ("cryoshuffle.report.page.write_text", "its report is not: cryoshuffle report {folder} makes it"),
        ("cryoshuffle.commands.cli._say", "and so is the report"),
        ("cryoshuffle.inference.mergers.WindowMerger.mark", ""),
    ],
)
def test_a_stop_behind_the_result_says_what_is_there(tmp_path, fitted, monkeypatch, capsys, place, missing):
    """And what it promises works; before the result is written there is none (control)."""
    tomogram, model = fitted
    out, residual, folder = tmp_path / "out.mrc", tmp_path / "r.mrc", tmp_path / "out_run"
    command = ["apply", str(model), str(tomogram), str(out), "--residual", str(residual), "--quiet"]
    with monkeypatch.context() as patch:
        if place.endswith("mark"):
            from cryoshuffle.inference.mergers import WindowMerger

            patch.setattr(WindowMerger, "mark", lambda self, box: signal.raise_signal(signal.SIGTERM))
        else:
            stop_in(patch, place)
        assert main(command) == 3
    said = capsys.readouterr().err.strip()
    assert out.exists() == bool(missing)
    if not missing:
        assert said == "cryoshuffle: stopped; no result was written, what is done so far goes on with --resume"
        return
    assert said.startswith(f"cryoshuffle: stopped; {out} is written, {missing.format(folder=folder)}")
    assert "no result" not in said
    if "--overwrite" in said:
        assert main([*command, "--resume", "--overwrite"]) == 0
    elif "cryoshuffle report" in said:
        assert main(["report", str(folder)]) == 0
    assert (folder / "report.html").is_file()


def test_a_stop_while_objects_are_added_says_that_the_result_is_there(tmp_path, monkeypatch, capsys):
    """What it promises fits nothing anew."""
    source = small_tomogram(tmp_path / "in.mrc", (32, 48, 48))
    command = ["denoise", str(source), str(tmp_path / "out.mrc"), "--effort", "fast", "--steps", "8"]
    command += ["--tilt-axis", "y", "--quiet"]
    with monkeypatch.context() as patch:
        stop_in(patch, "cryoshuffle.report.survival.write_json")
        assert main(command) == 3
    said = capsys.readouterr().err
    assert "out.mrc is written, the report is not: the same command with --resume --overwrite makes it, and" in said
    history = (tmp_path / "out_run" / "history.jsonl").read_text()
    assert main([*command, "--resume", "--overwrite"]) == 0
    assert (tmp_path / "out_run" / "history.jsonl").read_text() == history


@pytest.mark.parametrize("place", ["cryoshuffle.report.provenance.write_json", "cryoshuffle.report.page.write_page"])
def test_no_report_of_another_result_stays_beside_a_new_one(tmp_path, fitted, monkeypatch, place):
    """A run that replaces a result and is stopped leaves none; one that ends before the result leaves all (control)."""
    tomogram, model = fitted
    out, folder = tmp_path / "out.mrc", tmp_path / "out_run"
    command = ["apply", str(model), str(tomogram), str(out), "--quiet", "--overwrite"]
    names = ("report.html", "report.json", "provenance.json")
    assert main(command) == 0
    before, kept = mrcfile.read(out), {name: checksum(folder / name) for name in names}
    with monkeypatch.context() as patch:
        from cryoshuffle.inference.mergers import WindowMerger

        patch.setattr(WindowMerger, "mark", lambda self, box: signal.raise_signal(signal.SIGTERM))
        assert main([*command, "--detail", "0.9"]) == 3
    assert {name: checksum(folder / name) for name in names} == kept
    with monkeypatch.context() as patch:
        stop_in(patch, place)
        assert main([*command, "--detail", "0.9"]) == 3
    assert not np.array_equal(mrcfile.read(out), before)
    there = {name for name in names if Path(folder / name).exists()}
    assert there == ({"provenance.json"} if place.endswith("page") else set())
