"""Jobs of RELION from its call to the files that it takes, a few steps each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from phantoms import small_tomogram

from cryoshuffle.commands import batch
from cryoshuffle.commands.batch import Outcome
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.relion import pairs_of, run_tool
from cryoshuffle.files.mean import save_mean
from cryoshuffle.files.writing import write_json

WORDS = ["--no-refine", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y", "--steps", "2"]
HALVES = [[f"Tomograms/job004/rec_{name}_half{n}.mrc" for name in ("TS_01", "TS_02")] for n in (1, 2)]
CONF = Path("Denoise/job006/external/training/predict_config.json")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project with two pairs of halves, and the folder of a Denoise job as RELION prepares it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("Tomograms/job004").mkdir(parents=True)
    for seed, path in enumerate(HALVES[0] + HALVES[1]):
        small_tomogram(Path(path), seed=seed)
    Path("Denoise/job006/external/training").mkdir(parents=True)
    Path("Denoise/job006/tomograms").mkdir()
    settings = {
        "path": "Denoise/job005/denoising_model.tar.gz",
        "even": HALVES[0],
        "odd": HALVES[1],
        "n_tiles": [1, 1, 1],
        "output": "Denoise/job006/tomograms",
        "overwrite": "True",
        "gpu_id": [7],
    }
    CONF.write_text(json.dumps(settings))
    return tmp_path


def _predict(count: int) -> list[str]:
    """What the prediction says of the first tomograms, called as RELION calls it."""
    settings = json.loads(CONF.read_text())
    (CONF.parent / "some.json").write_text(
        json.dumps({**settings, "even": HALVES[0][:count], "odd": HALVES[1][:count]})
    )
    command = f"shim/cryoCARE_predict.py --conf {CONF.parent}/some.json"
    said = subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout
    return [line.split(" in ")[0] for line in said.splitlines() if line.startswith("[")]


def test_the_denoise_job_gets_a_tomogram_for_each_even_half(project):
    """It is the mean of the halves, denoised; the mean goes; what is done is skipped."""
    assert main(["relion-shim", "shim", *WORDS]) == 0
    assert _predict(1) == ["[1/1] rec_TS_01_half1: done"]
    folder = Path("Denoise/job006/tomograms")
    first = (folder / "rec_TS_01_half1.mrc").read_bytes()
    assert _predict(1) == ["[1/1] rec_TS_01_half1: skipped"]
    assert [path.name for path in folder.rglob("*.mrc")] == ["rec_TS_01_half1.mrc"]
    assert (folder / "rec_TS_01_half1.mrc").read_bytes() == first
    save_mean(HALVES[0][0], HALVES[1][0], "mean.mrc")
    halves = [f"--even={HALVES[0][0]}", f"--odd={HALVES[1][0]}"]
    assert main(["denoise", *halves, *WORDS, "--quiet", "mean.mrc", "alone.mrc"]) == 0
    with mrcfile.open("alone.mrc") as alone, mrcfile.open(folder / "rec_TS_01_half1.mrc") as job:
        np.testing.assert_array_equal(alone.data, job.data)
        assert job.voxel_size == alone.voxel_size


@pytest.mark.parametrize("overwrite", ["True", "False"])
def test_a_result_of_other_halves_gives_way_where_the_job_says_so(project, monkeypatch, overwrite):
    """A half that was changed since is told from the one before; one that was not, is done."""
    item, command = pairs_of(json.loads(CONF.read_text()), CONF)[0], ["denoise"]
    item.folder.mkdir(parents=True)
    Path(item.output).touch()
    write_json({"command": command, **item.state(), "done": True}, item.folder / batch.RECORD_NAME)
    calls = []
    monkeypatch.setattr(batch, "command_of", lambda item, words: command)
    monkeypatch.setattr(
        batch, "run_item", lambda item, *rest, overwrite: calls.append(overwrite) or Outcome("", "done")
    )
    CONF.write_text(json.dumps({**json.loads(CONF.read_text()), "overwrite": overwrite}))
    assert run_tool("predict", CONF) == 0
    small_tomogram(Path(HALVES[1][0]), seed=9)
    assert run_tool("predict", CONF) == 0
    assert calls == [False, False, overwrite == "True", False]


def test_a_pair_that_fails_leaves_the_others(project, capsys):
    """Exit code 2, the sentence of that pair, the tomogram of the other, and no mean."""
    small_tomogram(Path(HALVES[1][0]), (24, 48, 40))
    assert run_tool("predict", CONF, WORDS) == 2
    said = capsys.readouterr().out
    assert "there is no GPU 7 here" in said
    assert "[1/2] rec_TS_01_half1: failed" in said
    assert "so they are not halves of one tomogram" in said
    assert "[2/2] rec_TS_02_half1: done" in said
    folder = Path("Denoise/job006/tomograms")
    assert sorted(path.name for path in folder.rglob("*.mrc")) == ["rec_TS_02_half1.mrc"]


def test_an_external_job_writes_the_star_file_and_the_mark(project):
    """Called as RELION calls it: list, --o, --in_mics, --label value, --j."""
    save_mean(HALVES[0][0], HALVES[1][0], "Tomograms/job004/rec_TS_01.mrc")
    columns = [f"_rlnTomoReconstructedTomogram{name} #{n}" for n, name in enumerate(("", "Half1", "Half2"), 2)]
    row = f"TS_01 Tomograms/job004/rec_TS_01.mrc {HALVES[0][0]} {HALVES[1][0]}"
    Path("Tomograms/job004/tomograms.star").write_text(
        "\n".join(["data_global", "", "loop_", "_rlnTomoName #1", *columns, row, ""])
    )
    Path("External/job007").mkdir(parents=True)
    job = "relion-job --o External/job007/ --in_mics Tomograms/job004/tomograms.star"
    command = [sys.executable, "-m", "cryoshuffle", *job.split(), *WORDS, "--j", "1", "--quiet"]
    subprocess.run(command, check=True)
    folder = Path("External/job007")
    assert (folder / "RELION_JOB_EXIT_SUCCESS").is_file()
    assert not (folder / "RELION_JOB_EXIT_FAILURE").exists()
    nodes = starfile.read(folder / "RELION_OUTPUT_NODES.star", always_dict=True)["output_nodes"]
    assert nodes["rlnPipeLineNodeName"].tolist() == ["External/job007/tomograms.star"]
    table = starfile.read(folder / "tomograms.star")
    assert table["rlnTomoReconstructedTomogramDenoised"].tolist() == [str(folder.resolve() / "TS_01.mrc")]


def test_an_external_job_that_fails_says_so(project):
    """A list that is not there: the mark of a failure, and exit code 2."""
    Path("External/job008").mkdir(parents=True)
    assert main(["relion-job", "missing.star", "--o", "External/job008/", "--j", "1"]) == 2
    assert [path.name for path in Path("External/job008").iterdir()] == ["RELION_JOB_EXIT_FAILURE"]
