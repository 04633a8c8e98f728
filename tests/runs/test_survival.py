"""What would survive, as a user sees it: the table of a run, and that of ``cryoshuffle evaluate``."""

from __future__ import annotations

import html
import json
import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from phantoms import small_tomogram

from cryoshuffle.commands.cli import main
from cryoshuffle.report.survival import HEAD, survival_of_files, survival_rows, survival_table


@pytest.fixture(scope="session")
def run(make_once) -> Path:
    """The folder of a tomogram, what becomes of it and the run, with the table."""

    def denoise(folder: Path) -> None:
        tomogram = small_tomogram(folder / "in.mrc", (32, 64, 64))
        assert main(["denoise", str(tomogram), str(folder / "out.mrc"), "--effort", "fast", "--quiet"]) == 0

    return make_once("survival", denoise)


def test_a_run_has_the_table_and_its_page_shows_it(run):
    """What ``survival.json`` holds is in ``report.json``, and each of its rows on the page; the log names it."""
    survival = json.loads((run / "out_run" / "survival.json").read_text())
    assert survival["crop"] == {"start": [0, 0, 0], "shape": [32, 64, 64]}
    assert survival["voxel_size_angstrom"] == 10
    assert json.loads((run / "out_run" / "report.json").read_text())["numbers"]["survival"] == survival
    page = html.unescape((run / "out_run" / "report.html").read_text(encoding="utf-8"))
    assert "What would survive" in page
    rows = survival_rows(survival)
    assert rows
    for row in rows:
        assert "".join(f"<td>{cell}</td>" for cell in row) in page
    assert "which has no room there" in page
    assert "what would survive:" in (run / "out_run" / "run.log").read_text()


def test_the_result_is_the_same_without_the_table(run, tmp_path):
    """Bit for bit; the older table of the folder is gone, and the page says nothing of one."""
    copy = shutil.copytree(run, tmp_path / "copy")
    words = ["denoise", str(copy / "in.mrc"), str(copy / "out.mrc"), "--effort", "fast", "--quiet", "--overwrite"]
    assert main([*words, "--no-survival"]) == 0
    assert np.array_equal(mrcfile.read(copy / "out.mrc"), mrcfile.read(run / "out.mrc"))
    assert not (copy / "out_run" / "survival.json").exists()
    assert "What would survive" not in (copy / "out_run" / "report.html").read_text()


def test_evaluate_prints_the_same_table(run, tmp_path, capsys):
    """Of the model, or the folder of its run; written with the scores; its tomogram must be named."""
    words = ["evaluate", str(run / "out.mrc"), "--noisy", str(run / "in.mrc")]
    tables = []
    for model in (run / "out_run" / "model.pt", run / "out_run"):
        assert main([*words, "--survival", str(model), "--report", str(tmp_path / "scores"), "--overwrite"]) == 0
        tables.append(json.loads((tmp_path / "scores" / "evaluation.json").read_text())["survival"])
        assert survival_table(tables[-1]) in capsys.readouterr().out
    assert tables[0] == tables[1] == json.loads((run / "out_run" / "survival.json").read_text())
    assert main(["evaluate", str(run / "out.mrc"), "--survival", str(run / "out_run")]) == 2
    assert "name it with --noisy" in capsys.readouterr().err


def test_the_folder_of_a_run_tells_what_was_mixed_into_its_result(run, tmp_path):
    """Of a fit, and where the network lies elsewhere; the network alone has another table."""
    source, mixed = str(run / "in.mrc"), ["--detail", "0.3", "--smooth", "0.8", "--quiet"]
    assert main(["denoise", source, str(tmp_path / "one.mrc"), "--effort", "fast", *mixed]) == 0
    table, model = json.loads((tmp_path / "one_run" / "survival.json").read_text()), tmp_path / "one_run" / "model.pt"
    assert main(["apply", str(model), source, str(tmp_path / "two.mrc"), *mixed]) == 0
    for named, is_same in ((tmp_path / "one_run", True), (tmp_path / "two_run", True), (model, False)):
        assert (survival_of_files(str(named), source) == table) == is_same


def test_what_cannot_be_measured_is_said_in_a_sentence(run, tmp_path, capsys):
    """A model without noise and a tomogram that is too small: refused by ``evaluate``, a line on the page of a run."""
    checkpoint = torch.load(run / "out_run" / "model.pt", weights_only=True)
    del checkpoint["noise"]
    torch.save(checkpoint, tmp_path / "old.pt")
    words = ["evaluate", str(run / "out.mrc"), "--noisy", str(run / "in.mrc"), "--survival"]
    assert main([*words, str(tmp_path / "old.pt")]) == 2
    assert "in units of which --survival adds objects" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "none.pt")]) == 2
    assert "none.pt: there is no such checkpoint" in capsys.readouterr().err
    for shape, more, words in (
        ((24, 48, 48), [], "too small to add"),
        ((32, 48, 48), ["--no-refine"], "know the noise"),
    ):
        tomogram = small_tomogram(tmp_path / "in.mrc", shape)
        few = ["--steps", "4", "--window", "16", "--quiet", "--overwrite"]
        assert main(["denoise", str(tomogram), str(tmp_path / "out.mrc"), *few, *more]) == 0
        assert words in json.loads((tmp_path / "out_run" / "survival.json").read_text())["not_measured"]
        assert words in (tmp_path / "out_run" / "report.html").read_text()


def test_a_table_is_told_for_people():
    """Shares in percent with their errors, aligned; what was left out, and where the rest was added."""
    row = {"contrast": 0.25, "share": 0.314, "share_error": 0.02, "stands_out": 2.04, "stands_out_error": 0.2}
    survival = {
        "crop": {"start": [16, 8, 8], "shape": [48, 128, 128]},
        "objects": [
            {"name": "blob, 5 nm", "copies": 50, "noise_alone": 0.013, "noise_alone_error": 0.001, "rows": [
                {**row, "stood_out": 3.2}
            ]},
        ],
        "too_small": ["blob, 1 nm"],
        "too_large": ["blob, 90 nm"],
    }  # fmt: skip
    lines = survival_table(survival).splitlines()
    assert lines[0].split() == " ".join(HEAD).split()
    assert " ".join(lines[1].split()) == "blob, 5 nm (50 copies) 0.25 31% ± 2% 2.0 ± 0.2 3.2 0.013 ± 0.001"
    assert lines[2] == (
        "Objects were added at z = 16 to 64, y = 8 to 136, x = 8 to 136. Left out: blob, 1 nm, which is thinner than 2 "
        "voxels. Left out: blob, 90 nm, which has no room there."
    )
