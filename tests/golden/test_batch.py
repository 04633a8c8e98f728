"""Many tomograms on workers of Dask: as if each had been denoised alone, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import psutil
import pytest
import starfile
from phantoms import small_tomogram

from cryoshuffle.batch import share_machine
from cryoshuffle.cli import main
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.lists import read_list, write_star

WORDS = ["--no-refine", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]
PROGRAM = [sys.executable, "-m", "cryoshuffle.cli"]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
STAR = """
data_global

loop_
_rlnTomoName #1
_rlnVoltage #2
_rlnTomoReconstructedTomogram #3
_rlnTomoReconstructedTomogramHalf1 #4
_rlnTomoReconstructedTomogramHalf2 #5
TS_01 300.0 Tomograms/a.mrc Tomograms/a_half1.mrc Tomograms/a_half2.mrc
TS_02 300.0 Tomograms/b.mrc Tomograms/b_half1.mrc Tomograms/b_half2.mrc
"""


def _folder(path: Path, names: tuple[str, ...]) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).touch()
    return path


def test_lists_name_tomograms_in_every_way(tmp_path, monkeypatch):
    """Files, a pattern, a text file beside them, a folder without what lies in a Zarr or a run, a star file."""
    data = _folder(tmp_path / "data", ("b.mrc", "a.rec.gz", "note.txt", "c.nii.gz"))
    _folder(data / "d.zarr" / "0", ("x.mrc",))
    _folder(data / "b_run", ("y.mrc",))
    (tmp_path / "list.txt").write_text("# mine\ndata/b.mrc\n\n data/c.nii.gz \n")
    monkeypatch.chdir(tmp_path)

    def outputs(*sources: str) -> list[str]:
        return [Path(item.output).name for item in read_list(sources, "out")]

    assert outputs("data/b.mrc", "data/a.rec.gz") == ["b.mrc", "a.mrc"]
    assert outputs("data/*.mrc") == ["b.mrc"]
    assert outputs("list.txt") == ["b.mrc", "c.nii.gz"]
    assert outputs("data") == ["a.mrc", "b.mrc", "c.nii.gz", "d.zarr"]
    assert all(Path(item.tomogram).is_absolute() for item in read_list(["data"], "out"))
    (tmp_path / "job" / "tomo").mkdir(parents=True)
    star = tmp_path / "job" / "tomo" / "tomograms.star"
    star.write_text(STAR)
    _folder(tmp_path / "Tomograms", ("a.mrc", "a_half1.mrc", "a_half2.mrc"))
    first = read_list([str(star)], "out")[0]
    assert (first.name, first.even) == ("TS_01", str(tmp_path / "Tomograms" / "a_half1.mrc"))
    write_star(str(star), tmp_path / "new.star", {"TS_01": "/out/TS_01.mrc"})
    table = starfile.read(tmp_path / "new.star")
    assert table["rlnTomoReconstructedTomogramDenoised"].tolist()[0] == "/out/TS_01.mrc"
    assert table["rlnVoltage"].tolist() == [300.0, 300.0]


def test_lists_that_cannot_be_are_refused(tmp_path, capsys):
    """Two results of one name, nothing, no list, a star file of something else."""
    for folder in ("one", "two"):
        _folder(tmp_path / folder, ("a.mrc",))
    (tmp_path / "wrong.star").write_text("data_x\n\nloop_\n_rlnImageName #1\na\nb\n")
    for sources, kind, words in (
        (["one/a.mrc", "two/a.mrc"], InputError, "make two batches"),
        (["*.rec"], InputError, "names no tomogram"),
        (["missing.txt"], FileError, "cannot be read as a list"),
        (["missing.star"], FileError, "there is no such file"),
        (["wrong.star"], InputError, "has no rlnTomoName"),
    ):
        with pytest.raises(kind, match=words):
            read_list([str(tmp_path / source) for source in sources], tmp_path)
    for name in ("../TS_01", "/TS_01", "..", "a\\b"):
        (tmp_path / "outside.star").write_text(STAR.replace("TS_01", name))
        with pytest.raises(InputError, match="leads out of"):
            read_list([str(tmp_path / "outside.star")], tmp_path / "out")
    jobs = tmp_path / "jobs.yaml"
    jobs.write_text("queue: gpu\n")
    for options, words in (
        (["--checkpoint", "net.pt", "--steps", "4"], "--steps is for a fit"),
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler of Dask answers"),
        (["--slurm", str(jobs)], "names no number of jobs"),
    ):
        assert main(["batch", str(small_tomogram(tmp_path / "in.mrc")), str(tmp_path / "out"), *options]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_a_dry_run_says_what_would_be_done_and_what_slurm_would_be_given(tmp_path, capsys):
    """Commands that can be run by hand; a job script; nothing is made."""
    tomogram = small_tomogram(tmp_path / "in.mrc")
    jobs = tmp_path / "slurm.yaml"
    jobs.write_text('jobs: 4\nqueue: gpu\nmemory: 32GB\nwalltime: "02:00:00"\njob_extra_directives: ["--gres=gpu:1"]\n')
    command = ["batch", str(tomogram), str(tmp_path / "out"), "--dry-run", "--slurm", str(jobs), "--steps", "4"]
    with socket.create_server(("", 8787)):  # the dashboard's usual port, as if another batch had it
        assert main(command) == 0
    said = capsys.readouterr().out
    assert f"cryoshuffle denoise --steps=4 --report={tmp_path / 'out' / 'in_run'} --quiet -- {tomogram}" in said
    assert "#SBATCH -p gpu" in said
    assert "#SBATCH --gres=gpu:1" in said
    assert "dask_worker" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("count", "gpus", "cores", "share"),
    [(200, 0, 32, (8, 4)), (2, 0, 32, (2, 16)), (9, 0, 2, (1, 2)), (9, 4, 64, (4, 16))],
)
def test_a_machine_is_shared_among_runs(count, gpus, cores, share):
    """One run a GPU, else one for four cores, never more than there are tomograms."""
    assert share_machine(count, gpus, cores) == share


def test_a_run_stops_when_whoever_started_it_is_gone(tmp_path):
    """Its input closes, it keeps its checkpoint and ends with 3."""
    source = small_tomogram(tmp_path / "in.mrc")
    command = ["denoise", str(source), str(tmp_path / "out.mrc"), *WORDS, "--steps", "5000", "--quiet"]
    with subprocess.Popen(
        [sys.executable, "-m", "cryoshuffle.batch", *command], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        _wait_for(tmp_path / "out_run" / "run.log", "the network is blind")
        run.stdin.close()
        assert run.wait(60) == 3
        assert "--resume" in run.stderr.read()


def _wait_for(log: Path, words: str) -> None:
    ends = time.monotonic() + 120
    while not (log.is_file() and words in log.read_text()):
        assert time.monotonic() < ends, f"{log} does not say '{words}'"
        time.sleep(0.1)


def test_a_batch_is_many_single_runs_whatever_dies(tmp_path):
    """One tomogram is corrupt, a worker is killed: the others are as when alone; again, nothing is left to do."""
    words = [*WORDS, "--steps", "12"]
    data = tmp_path / "data"
    data.mkdir()
    for seed, name in enumerate("abc"):
        small_tomogram(data / f"{name}.mrc", seed=seed)
    (data / "torn.mrc").write_bytes((data / "a.mrc").read_bytes()[:5000])
    out = tmp_path / "out"
    command = [*PROGRAM, "batch", str(data), str(out), "--workers", "2", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as batch:
        _wait_for(out / "a_run" / "run.log", "the network is blind")
        for process in psutil.Process(batch.pid).children(recursive=True):
            said = process.cmdline()
            if "cryoshuffle.batch" in said and str(data / "a.mrc") in said:
                process.parent().send_signal(signal.SIGKILL)
        printed, complained = batch.communicate(timeout=300)
    assert batch.returncode == 2
    assert "[4/4]" in printed
    assert complained.count("\n") == 1, complained
    sentence = complained.strip()
    assert sentence.startswith("cryoshuffle: torn failed: ")
    assert "torn.mrc" in sentence
    assert {o["name"]: o["status"] for o in json.loads((out / "batch.json").read_text())} == {
        "a": "done", "b": "done", "c": "done", "torn": "failed",
    }  # fmt: skip
    alone = [*PROGRAM, "denoise", str(data / "a.mrc"), str(tmp_path / "alone.mrc"), "--quiet", *words]
    threads = {name: str(max(1, (os.cpu_count() or 1) // 2)) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run(alone, check=True, capture_output=True, env={**os.environ, **threads})
    assert np.array_equal(mrcfile.read(out / "a.mrc"), mrcfile.read(tmp_path / "alone.mrc"))
    index = (out / "index.html").read_text()
    assert 'href="a_run/report.html"' in index
    assert "torn.mrc" in index

    (data / "torn.mrc").unlink()
    before = (out / "a.mrc").stat().st_mtime_ns
    began = subprocess.run(command, capture_output=True, text=True, check=True)
    assert began.stdout.count("skipped") == 3
    assert (out / "a.mrc").stat().st_mtime_ns == before
    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True)
    assert other.returncode == 2
    assert "say --overwrite" in other.stderr
