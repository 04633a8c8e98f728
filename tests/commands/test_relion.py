"""What RELION 5 calls, and the files that it waits for."""

from __future__ import annotations

import json
import os
import tarfile
import threading
import time
from pathlib import Path

import pytest
import starfile

from cryoshuffle.commands import relion
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.relion import pairs_of, run_external, run_tool, write_model, write_shim
from cryoshuffle.errors import FileError, FitInterruptedError, InputError

HALVES = {"even": ["T/rec_a_half1.mrc"], "odd": ["T/rec_a_half2.mrc"], "output": "out"}


def test_the_executables_have_the_names_that_the_job_calls(tmp_path, capsys):
    """Options go to the prediction alone; a second call writes them anew; none of another program gives way."""
    folder = tmp_path / "shim"
    assert main(["relion-shim", str(folder), "--effort", "fast", "--tilt-axis", "y"]) == 0
    names = ["cryoCARE_extract_train_data.py", "cryoCARE_predict.py", "cryoCARE_train.py"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert all(os.access(folder / name, os.X_OK) for name in names)
    assert "relion predict --tilt-axis=y --effort=fast" in (folder / names[1]).read_text()
    assert "--effort" not in (folder / names[2]).read_text()
    assert str(folder / names[1]) in capsys.readouterr().out
    write_shim(folder, ["--effort=best"])
    assert "--effort=best" in (folder / names[1]).read_text()
    (folder / names[0]).write_text("#!/usr/bin/env python\n")
    with pytest.raises(FileError, match=f"{names[0]}: is not one that cryoshuffle wrote"):
        write_shim(folder)
    (folder / names[0]).unlink()
    (folder / names[0]).mkdir()
    with pytest.raises(FileError, match=f"{names[0]}: is not one that cryoshuffle wrote"):
        write_shim(folder)


def test_memory_goes_to_the_prediction_and_overwriting_is_left_to_the_job(tmp_path, capsys):
    """What a batch sees to itself, the executables have to."""
    assert main(["relion-shim", str(tmp_path / "shim"), "--memory", "4"]) == 0
    assert "relion predict --memory=4" in (tmp_path / "shim" / "cryoCARE_predict.py").read_text()
    assert main(["relion-shim", str(tmp_path / "other"), "--overwrite"]) == 2
    assert "--overwrite is what RELION says" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_a_file_in_the_place_of_an_external_job_is_refused(tmp_path):
    """Before the work."""
    (tmp_path / "job").touch()
    with pytest.raises(FileError, match="is a file where the folder of the job should be"):
        run_external(tmp_path / "job", lambda: 0)


def test_the_training_leaves_the_file_that_the_job_looks_for_and_says_what_it_is(tmp_path, capsys):
    """An archive of that name with a sentence in it; nothing is extracted; no word of a training that was done."""
    conf = tmp_path / "train_config.json"
    conf.write_text(json.dumps({"path": str(tmp_path), "model_name": "denoising_model", "gpu_id": [0]}))
    assert run_tool("extract", conf) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train_config.json"]
    assert run_tool("train", conf) == 0
    said = capsys.readouterr().out
    assert "nothing is extracted" in said
    assert "nothing is trained here" in said
    with tarfile.open(tmp_path / "denoising_model.tar.gz") as archive:
        text = archive.extractfile("denoising_model/README.txt").read().decode()
    assert text.startswith("There is no network in this file.")
    with pytest.raises(InputError, match="has no model_name"):
        write_model({"path": str(tmp_path)}, conf)


def test_pairs_have_the_names_of_their_even_halves(tmp_path, monkeypatch):
    """The result is where the job renames it; the tomogram is the mean, in the run's own folder."""
    monkeypatch.chdir(tmp_path)
    item = pairs_of(HALVES, "conf")[0]
    assert item.output == str(tmp_path / "out" / "rec_a_half1.mrc")
    assert (item.even, item.odd) == tuple(str(tmp_path / "T" / f"rec_a_half{n}.mrc") for n in (1, 2))
    assert item.is_mean
    assert Path(item.tomogram).parent == item.folder
    assert pairs_of({**HALVES, "even": "T/b.mrc", "odd": "T/c.mrc"}, "conf")[0].name == "b"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"odd": []}, "names 1 even halves and 0 odd ones"),
        ({"even": [], "odd": []}, "names no halves"),
        ({"output": ""}, "has no output"),
        ({"even": None}, "has no even"),
        ({"even": ["a/x.mrc", "b/x.mrc"], "odd": ["a/y.mrc", "b/y.mrc"]}, "have one name"),
    ],
)
def test_a_prediction_that_cannot_be_is_refused(change, words):
    """One sentence with the file of the job."""
    with pytest.raises(InputError, match=f"conf: .*{words}"):
        pairs_of({**HALVES, **change}, "conf")


def test_a_file_that_is_none_of_the_job_is_refused(tmp_path, capsys):
    """A sentence and exit code 2 for each."""
    for content, words in (("[1]", "holds no settings"), ("{", "cannot be read as JSON"), ("{}", "has no even")):
        (tmp_path / "conf.json").write_text(content)
        assert relion.main(["predict", "--effort=fast", "--conf", str(tmp_path / "conf.json")]) == 2
        assert words in capsys.readouterr().err


def _stop() -> int:
    raise FitInterruptedError("stopped")


def _fail() -> int:
    raise InputError("no")


@pytest.mark.parametrize(
    ("run", "mark"), [(lambda: 0, "SUCCESS"), (lambda: 2, "FAILURE"), (_fail, "FAILURE"), (_stop, "ABORTED")]
)
def test_an_external_job_ends_with_one_mark(tmp_path, run, mark):
    """The mark is that of this run, not of one before; the error still goes on to the command line."""
    for old in ("SUCCESS", "FAILURE"):
        (tmp_path / f"RELION_JOB_EXIT_{old}").touch()
    if run in (_fail, _stop):
        with pytest.raises((InputError, FitInterruptedError)):
            run_external(tmp_path, run)
    else:
        run_external(tmp_path, run)
    assert [path.name for path in tmp_path.iterdir()] == [f"RELION_JOB_EXIT_{mark}"]


def test_an_external_job_tells_of_the_star_files_that_it_wrote(tmp_path, monkeypatch):
    """Node names count from the project, and only files that are there are nodes."""
    monkeypatch.chdir(tmp_path)
    folder = Path("External/job007")
    folder.mkdir(parents=True)
    (folder / "tomograms.star").touch()
    run_external(folder, lambda: 0, ["tomograms.star", "missing.star"])
    nodes = starfile.read(folder / "RELION_OUTPUT_NODES.star", always_dict=True)["output_nodes"]
    assert nodes["rlnPipeLineNodeName"].tolist() == ["External/job007/tomograms.star"]
    assert nodes["rlnPipeLineNodeTypeLabel"].tolist() == ["TomogramGroupMetadata.star.relion"]


def test_a_file_of_relion_stops_an_external_job(tmp_path, monkeypatch):
    """It asks as SIGTERM does; the request is taken away; without it nothing stops."""
    asked = threading.Event()
    monkeypatch.setattr(relion, "_POLL_S", 0.01)
    monkeypatch.setattr(relion.os, "kill", lambda process, number: asked.set())

    def run() -> int:
        time.sleep(0.1)
        assert not asked.is_set()
        (tmp_path / "RELION_JOB_ABORT_NOW").touch()
        assert asked.wait(10)
        raise FitInterruptedError("stopped")

    with pytest.raises(FitInterruptedError):
        run_external(tmp_path, run)
    assert [path.name for path in tmp_path.iterdir()] == ["RELION_JOB_EXIT_ABORTED"]
