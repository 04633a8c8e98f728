"""Many tomograms, here or on workers of Dask: as if each had been denoised alone, whatever dies meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TextIO
from unittest.mock import Mock

import distributed
import mrcfile
import numpy as np
import psutil
import pytest
import starfile
import torch
from monai.data import MetaTensor
from phantoms import small_tomogram

from cryoshuffle.commands import batch as batch_module
from cryoshuffle.commands import cli
from cryoshuffle.commands.batch import _recorded, command_of, is_done, share_machine
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.lists import Item, find_halves, read_list, write_star
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import save_tomogram
from cryoshuffle.files.volumes import DENOISED
from cryoshuffle.report.residual import CONTENT
from cryoshuffle.simulation.tilt_series import save_simulation, simulate

WORDS = ["--no-refine", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]
PROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"
PROGRAM = [sys.executable, "-m", "cryoshuffle"]
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
    _folder(data / "b_run", ("y.mrc", "run.log"))
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


def test_halves_that_aretomo_and_warp_write_go_with_their_tomogram(tmp_path):
    """They are no tomograms of their own, unless theirs is not in the list; one half alone is none."""
    volumes = ("a_Vol.mrc", "a_EVN_Vol.mrc", "a_ODD_Vol.mrc", "b_Vol.mrc", "b_EVN_Vol.mrc", "c_EVN_Vol.mrc")
    aretomo = _folder(tmp_path / "aretomo", volumes)
    warp = _folder(tmp_path / "reconstruction", ("d_10.00Apx.mrc", "e_10.00Apx.mrc"))
    for half in ("even", "odd"):
        _folder(warp / half, ("d_10.00Apx.mrc",))
    _folder(warp / "denoised", ("d_10.00Apx.mrc",))

    def pairs(output: str, *sources: object) -> dict[str, tuple[str | None, str | None]]:
        items = read_list([str(source) for source in sources], tmp_path / output)
        return {item.name: (item.even, item.odd) for item in items}

    whole = (str(aretomo / "a_EVN_Vol.mrc"), str(aretomo / "a_ODD_Vol.mrc"))
    alone = dict.fromkeys(("b_EVN_Vol", "b_Vol", "c_EVN_Vol"), (None, None))
    assert pairs("out", aretomo) == pairs("out", aretomo / "*_Vol.mrc") == {"a_Vol": whole, **alone}
    assert pairs("out", aretomo / "a_EVN_Vol.mrc") == {"a_EVN_Vol": (None, None)}
    halves = {"d_10.00Apx": tuple(str(warp / half / "d_10.00Apx.mrc") for half in ("even", "odd"))}
    expected = {**halves, "e_10.00Apx": (None, None)}
    assert pairs("out", warp / "*.mrc") == pairs("reconstruction/denoised", warp) == expected
    with pytest.raises(InputError, match="make two batches"):
        pairs("out", warp)
    assert find_halves(aretomo / "b_Vol.mrc") is None


def test_results_are_no_tomograms_of_a_batch(tmp_path, caplog):
    """Neither from a folder nor from a pattern, and that is told; a text file names them all the same (control)."""
    (tmp_path / "data").mkdir()
    image = MetaTensor(torch.zeros(1, 4, 4, 4))
    save_tomogram(image, tmp_path / "data" / "raw.mrc", is_result=False)
    for name, content in (("raw_denoised.mrc", DENOISED), ("error.mrc", "standard error"), ("residual.mrc", CONTENT)):
        save_tomogram(image, tmp_path / "data" / name, content=content)
    (tmp_path / "list.txt").write_text("data/raw.mrc\ndata/raw_denoised.mrc\n")

    def names(source: str) -> list[str]:
        caplog.clear()
        return [item.name for item in read_list([str(tmp_path / source)], tmp_path / "out")]

    for source in ("data", "data/*.mrc"):
        assert names(source) == ["raw"]
        assert all(name in caplog.text for name in ("left out", "raw_denoised.mrc", "error.mrc", "residual.mrc"))
    assert names("list.txt") == ["raw", "raw_denoised"]
    assert not caplog.text
    with pytest.raises(InputError, match="names no tomogram"):
        names("data/error.mrc")


@pytest.mark.parametrize("mark", ["run.log", "provenance.json", "batch.json", None])
def test_raw_data_in_a_folder_with_the_name_of_a_run_are_no_run(tmp_path, caplog, mark):
    """Only what a run of ours wrote is not looked into, and what is left out so is told; named by itself it counts."""
    volumes = _folder(tmp_path / "session" / "day1_run", ("TS1.mrc",))
    _folder(tmp_path / "session" / "day2", ("TS2.mrc",))
    _folder(tmp_path / "session" / "TS2_run", ("run.log", "model.pt"))
    if mark is not None:
        (volumes / mark).touch()
    names = [item.name for item in read_list([str(tmp_path / "session")], tmp_path / "out")]
    assert names == (["TS1", "TS2"] if mark is None else ["TS2"])
    told = f"{volumes}: left out, as a run of cryoshuffle wrote this folder: name it to denoise what is in it"
    assert caplog.messages == ([] if mark is None else [told])
    assert [item.name for item in read_list([str(volumes)], tmp_path / "out")] == ["TS1"]


def test_a_simulation_is_one_tomogram_with_its_halves(tmp_path, caplog):
    """What lies beside it is left out and told; a file without a record of a simulation beside it is not (control)."""
    place = tmp_path / "phantom"
    files = save_simulation(simulate("white", (16, 16, 16), 0.1), place)
    for source in (place, place / "*.mrc", place / "tomogram.mrc"):
        (item,) = read_list([str(source)], tmp_path / "out")
        assert (item.name, item.even, item.odd) == ("tomogram", str(place / "even.mrc"), str(place / "odd.mrc"))
    assert "truth.mrc" in caplog.text
    assert [item.name for item in read_list([str(place / "truth.mrc")], tmp_path / "out")] == ["truth"]
    (place / "simulation.json").unlink()
    assert len(read_list([str(place)], tmp_path / "out")) == len(files)


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
        [sys.executable, "-m", "cryoshuffle.commands.worker", *command],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
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


def _wait_until(is_so: Callable[[], object]) -> None:
    ends = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < ends, "it never is"
        time.sleep(0.1)


def _wait_for_file(path: Path) -> None:
    ends = time.monotonic() + 120
    while not path.is_file():
        assert time.monotonic() < ends, f"{path} is not written"
        time.sleep(0.1)


def _scheduler_words(place: str, threads: int, stack: contextlib.ExitStack) -> list[str]:
    """Options for a batch in threads here, none, or on a Dask cluster that lives as long as the stack."""
    if place != "dask":
        return []
    local = distributed.LocalCluster(
        1, processes=False, threads_per_worker=threads, protocol="tcp", host="127.0.0.1", dashboard_address=None
    )
    return ["--scheduler", stack.enter_context(local).scheduler_address]


def _batch_words(folder: Path) -> list[str]:
    return ["batch", str(folder / "data"), str(folder / "out"), "--workers", "2", *WORDS, "--steps", "4"]


def _data(folder: Path, names: str) -> None:
    (folder / "data").mkdir()
    for seed, name in enumerate(names):
        small_tomogram(folder / "data" / f"{name}.mrc", seed=seed)


def _statuses(folder: Path) -> dict[str, str]:
    return {outcome["name"]: outcome["status"] for outcome in json.loads((folder / "out" / "batch.json").read_text())}


@pytest.fixture(scope="session")
def batch(make_once) -> Path:
    """A folder with ``data``, one tomogram, and the batch of it, ``out``."""

    def run(folder: Path) -> None:
        _data(folder, "a")
        subprocess.run([*PROGRAM, *_batch_words(folder)], check=True, env=ONE_THREAD)

    return make_once("batch", run)


def _as_alone(folder: Path, name: str, result: Path) -> bool:
    source = folder / "data" / f"{name}.mrc"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["denoise", str(source), str(result), "--quiet", *WORDS, "--steps", "4"]) == 0
    torch.set_num_threads(threads)
    return np.array_equal(mrcfile.read(folder / "out" / f"{name}.mrc"), mrcfile.read(result))


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        ("kill -KILL $$", -9, "was killed by SIGKILL, out of memory perhaps: give a smaller --memory, or fewer --work"),
        ("kill -SEGV $$", -11, "was killed by SIGSEGV, see the run.log in its folder"),
        ("exit 2", 2, "note: in.mrc: the voxel size is 0"),
    ],
)
def test_a_run_that_is_killed_says_by_what(tmp_path, monkeypatch, end, code, words):
    """Not a note that it wrote before; of one that ends by itself the last line counts (control)."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho 'cryoshuffle: note: in.mrc: the voxel size is 0' >&2\n{end}\n")
    program.chmod(0o755)
    monkeypatch.setattr(batch_module, "sys", Mock(executable=str(program)))
    ended, said = batch_module._run(["apply"], {})
    assert ended == code
    assert said.startswith(words)


def test_a_batch_of_nothing_leaves_no_folder(tmp_path, capsys):
    """Where nothing that is named is there, that is one sentence, and no page of results that are none."""
    assert main(["batch", str(tmp_path / "nosuch"), str(tmp_path / "out")]) == 2
    assert "nosuch: there is no such file or folder" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_batch_is_many_single_runs(batch, tmp_path):
    """The same bits as when alone; the page of the batch leads to each."""
    assert _statuses(batch) == {"a": "done"}
    assert _as_alone(batch, "a", tmp_path / "alone.mrc")
    assert 'href="a_run/report.html"' in (batch / "out" / "index.html").read_text()


@pytest.mark.parametrize("place", ["here", "dask"])
def test_one_that_fails_is_tried_again_and_the_others_go_on(tmp_path, monkeypatch, capsys, place):
    """The sentence it ended with is the batch's, and stands on its page. Dask is real, the runs are not."""
    _data(tmp_path, "ab")
    tried: list[str] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        source = Path(command[-2])
        tried.append(source.stem)
        return (2, f"{source}: is cut short") if source.stem == "a" else (0, "")

    monkeypatch.setattr(batch_module, "_run", run)
    monkeypatch.setattr("cryoshuffle.report.page.read_verdict", lambda folder: f"look. See {folder}. Look.")
    with contextlib.ExitStack() as stack:
        words = _batch_words(tmp_path) + _scheduler_words(place, 2, stack)
        assert main(words) == 2
    said = capsys.readouterr()
    assert sorted(tried) == ["a", "a", "b"]
    assert [": done" in line for line in said.out.splitlines() if ", verdict look" in line] == [True]
    assert _statuses(tmp_path) == {"a": "failed", "b": "done"}
    assert "[2/2]" in said.out
    assert said.err.strip() == f"cryoshuffle: a failed: {tmp_path / 'data' / 'a.mrc'}: is cut short"
    assert "is cut short" in (tmp_path / "out" / "index.html").read_text()


def _unread() -> TextIO:
    """A pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w", buffering=1)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("words", [[], ["--json-lines"]])
def test_a_batch_goes_on_when_nobody_reads_its_lines(tmp_path, monkeypatch, stream, words):
    """As after ``| head -1``: all runs, the page and the exit code of a failure; a line there fails (control)."""
    _data(tmp_path, "abc")
    ran: list[str] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        ran.append(Path(command[-2]).stem)
        return (2, "no") if ran[-1] == "b" else (0, "")

    monkeypatch.setattr(batch_module, "_run", run)
    pipe = _unread()
    with monkeypatch.context() as patch:
        patch.setattr(sys, stream, pipe)
        assert main([*_batch_words(tmp_path), *words]) == 2
        assert getattr(sys, stream) is pipe
    assert sorted(ran) == ["a", "b", "b", "c"]
    assert _statuses(tmp_path) == {"a": "done", "b": "failed", "c": "done"}
    pipe.close()
    with pytest.raises(BrokenPipeError), _unread() as other:
        print("line", file=other)


def test_only_what_spreads_a_batch_needs_dask(tmp_path, monkeypatch, capsys):
    """Without it this machine does; the way out names what the extra installs, which needs no checkout."""
    _data(tmp_path, "a")
    for name in ("distributed", "dask", "dask_jobqueue", "starfile"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(batch_module, "_run", lambda command, surroundings: (0, ""))
    assert main(_batch_words(tmp_path)) == 0
    assert _statuses(tmp_path) == {"a": "done"}
    (tmp_path / "slurm.yaml").write_text("jobs: 2")
    (tmp_path / "list.star").write_text(STAR)
    extra = json.loads(re.search(r"^cluster = (.*)$", PROJECT.read_text(), flags=re.MULTILINE)[1])
    for words, needed in (
        ([*_batch_words(tmp_path), "--overwrite", "--scheduler", "tcp://127.0.0.1:9"], extra[:2]),
        ([*_batch_words(tmp_path), "--overwrite", "--slurm", str(tmp_path / "slurm.yaml")], extra[:2]),
        (["batch", str(tmp_path / "list.star"), str(tmp_path / "out")], extra[2:]),
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert sorted(re.findall(r'"([^"]+)"', said.split("pip install")[1])) == sorted(needed)


def test_runs_take_turns_on_the_gpus_of_a_machine(tmp_path, monkeypatch):
    """Never two at once on one, and each is used."""
    _data(tmp_path, "abcdef")
    at_work: list[str] = []
    seen: list[str] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        gpu = surroundings["CUDA_VISIBLE_DEVICES"]
        assert gpu not in at_work
        at_work.append(gpu), seen.append(gpu)
        time.sleep(0.05)
        at_work.remove(gpu)
        return 0, ""

    monkeypatch.setattr(batch_module, "_run", run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["batch", str(tmp_path / "data"), str(tmp_path / "out")]) == 0
    assert set(_statuses(tmp_path).values()) == {"done"}
    assert len(seen) == 6
    assert set(seen) == {"0", "1"}


@pytest.mark.parametrize(
    ("visible", "words", "expected"),
    [
        ("2,3", [], {"2", "3"}),
        ("GPU-aa,MIG-bb", ["--device", "cuda"], {"GPU-aa", "MIG-bb"}),
        ("2,3", ["--device", "gpu"], {"2", "3"}),
        ("2,3", ["--device", "CUDA"], {"2", "3"}),
        (None, ["--device", "cuda:1"], {None}),
        (None, ["--device", "GPU:1"], {None}),
        (None, ["--device", "cpu"], {None}),
        (None, [], {"0", "1"}),
    ],
)
def test_a_batch_takes_no_gpu_that_it_was_not_given(tmp_path, monkeypatch, visible, words, expected):
    """Its runs share those that it may see itself; one that is named is named to all of them, as before."""
    _data(tmp_path, "abcd")
    seen: list[str | None] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        seen.append(surroundings.get("CUDA_VISIBLE_DEVICES"))
        time.sleep(0.05)
        return 0, ""

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(batch_module, "_run", run)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(["batch", str(tmp_path / "data"), str(tmp_path / "out"), "--workers", "2", *words]) == 0
    assert set(seen) == expected


@pytest.mark.parametrize(
    ("device", "workers"),
    [("auto", 2), ("gpu", 2), ("CUDA", 2), ("cuda:1", 1), ("gpu:0", 1), ("cpu", 4), ("CPU", 4), ("mps", 4)],
)
def test_runs_are_as_many_as_their_device_has_room_for(monkeypatch, device, workers):
    """One on each GPU that they share, one on a GPU that is named; on the CPU one for four cores."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    share = batch_module._share_of(batch_module.Cluster(cores=16), 9, None, device)
    assert share.workers == workers


def test_a_batch_takes_the_cores_that_it_was_given(monkeypatch):
    """Of a node those of its job; all where the system does not tell (control)."""
    monkeypatch.setattr(batch_module.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(batch_module.os, "sched_getaffinity", lambda process: set(range(3, 11)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    share = batch_module._share_of(batch_module.Cluster(), 9, None, "cpu")
    assert (share.workers, share.threads) == (2, 4)
    monkeypatch.delattr(batch_module.os, "sched_getaffinity")
    assert batch_module._share_of(batch_module.Cluster(), 9, None, "cpu").workers == 9


def test_memory_is_for_each_run_where_a_cluster_has_them():
    """There nothing divides it; here it is divided by the runs (control)."""
    assert batch_module._share_of(batch_module.Cluster(scheduler="tcp://node:8786"), 4, 3.0).words == ("--memory=3",)
    assert batch_module._share_of(batch_module.Cluster(scheduler="tcp://node:8786"), 4, None).words == ()
    assert batch_module._share_of(batch_module.Cluster(workers=4), 4, 3.0).words == ("--memory=0.750",)


def test_a_batch_that_is_stopped_stops_its_runs(tmp_path):
    """They keep their checkpoints; what has not begun does not begin; nothing is left at work."""
    _data(tmp_path, "ab")
    command = [*PROGRAM, "batch", str(tmp_path / "data"), str(tmp_path / "out"), "--workers", "1", *WORDS]
    with subprocess.Popen([*command, "--steps", "5000"], stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as batch:
        _wait_for_file(tmp_path / "out" / "a_run" / "state.pt")
        (run,) = psutil.Process(batch.pid).children()
        batch.send_signal(signal.SIGTERM)
        try:
            assert batch.wait(60) == 3
        finally:
            batch.kill()
        assert batch.stderr.read().strip() == "cryoshuffle: stopped; no result was written, the same command goes on"
    assert not run.is_running()
    assert (tmp_path / "out" / "a_run" / "state.pt").is_file()
    assert not (tmp_path / "out" / "b_run").exists()


def test_a_batch_does_not_repeat_what_is_done(batch, tmp_path, capsys):
    """Nothing is left to do the second time; with other settings it is refused before the first run."""
    folder = _copy(batch, tmp_path / "copy")
    before = (folder / "out" / "a.mrc").stat().st_mtime_ns
    assert main(_batch_words(folder)) == 0
    assert capsys.readouterr().out.count("skipped") == 1
    word = json.loads((folder / "out" / "a_run" / "report.json").read_text())["verdict"]["word"]
    assert f"<td>done before</td><td>{word}</td>" in (folder / "out" / "index.html").read_text()
    assert (folder / "out" / "a.mrc").stat().st_mtime_ns == before
    # A result that was taken away, as RELION does with its own, is made again.
    bits = (folder / "out" / "a.mrc").rename(tmp_path / "away.mrc")
    assert main(_batch_words(folder)) == 0
    assert _statuses(folder) == {"a": "done"}
    assert np.array_equal(mrcfile.read(folder / "out" / "a.mrc"), mrcfile.read(bits))
    assert main([*_batch_words(folder), "--seed", "1"]) == 2
    complained = capsys.readouterr().err
    assert "say --overwrite" in complained
    assert re.search("was run with .*, now with --seed", complained)
    assert "--quiet" not in complained


@pytest.mark.parametrize("name", ["result.png", "report.json"])
def test_a_batch_ends_well_without_a_picture_or_a_report_of_one(batch, tmp_path, name):
    """Its row has no picture, or says why it has no verdict; with both it has both (control)."""
    folder = _copy(batch, tmp_path / "copy")
    index = folder / "out" / "index.html"
    assert "data:image/png" in index.read_text()
    index.unlink()
    if name == "result.png":
        (folder / "out" / "a_run" / name).unlink()
    else:
        (folder / "out" / "a_run" / name).write_text("{")
    assert main(_batch_words(folder)) == 0
    assert "data:image/png" not in index.read_text()
    assert ("a_run/report.json: cannot be read" in index.read_text()) == (name == "report.json")


def test_star_files_are_written_before_the_page(tmp_path, monkeypatch):
    """A page that cannot be written takes nothing from what comes next in a workflow."""
    written = []
    monkeypatch.setattr("cryoshuffle.commands.lists.write_star", lambda *words: written.append(words[1].name))
    monkeypatch.setattr("cryoshuffle.report.page.write_index", Mock(side_effect=FileError("no room")))
    with pytest.raises(FileError, match="no room"):
        cli._write_results(tmp_path, [], [], {"a.star": tmp_path / "a.star"})
    assert written == ["a.star"]


def test_other_halves_under_their_names_make_another_run(tmp_path):
    """Where the command reads them; a batch that applies a network does not (control), nor do older records tell."""
    data = _folder(tmp_path / "data", ("a.mrc", "a_even.mrc", "a_odd.mrc"))
    paths = [str(data / name) for name in ("a.mrc", "a_even.mrc", "a_odd.mrc")]
    item = Item("a", paths[0], str(tmp_path / "out" / "a.mrc"), *paths[1:])
    (tmp_path / "net.pt").touch()
    fit, applied = command_of(item, []), command_of(item, [], str(tmp_path / "net.pt"))
    for command in (fit, applied):
        with _recorded(item, command) as run:
            Path(item.output).touch()
            run.code = 0
        assert is_done(item, command)
        (data / "a_odd.mrc").write_text("another")
        if command is fit:
            with pytest.raises(InputError, match=r"is of another run .*halves was"):
                is_done(item, command)
            record = json.loads((item.folder / "batch.json").read_text())
            record.pop("halves")
            (item.folder / "batch.json").write_text(json.dumps(record))
        assert is_done(item, command)


def test_another_network_under_its_name_makes_another_run(tmp_path):
    """One that is fitted anew is told of; the same one is not, nor what an older version did not record (control)."""
    network = tmp_path / "net.pt"
    network.write_bytes(b"one")
    tomogram = small_tomogram(tmp_path / "a.mrc")
    item = Item("a", str(tomogram), str(tmp_path / "out" / "a.mrc"))
    for command in (command_of(item, [], str(network)), command_of(item, [f"--warm-start={network}"])):
        with _recorded(item, command) as run:
            Path(item.output).write_bytes(b"a result")
            run.code = 0
        assert is_done(item, command)
        network.write_bytes(network.read_bytes() + b"more")
        with pytest.raises(InputError, match=r"network was \[\d+, \d+\] and is"):
            is_done(item, command)
        path = item.folder / "batch.json"
        record = json.loads(path.read_text())
        del record["network"]
        path.write_text(json.dumps(record))
        assert is_done(item, command)


def _copy(batch: Path, folder: Path) -> Path:
    shutil.copytree(batch, folder)
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace(str(batch), str(folder)))
    return folder


def test_a_run_that_is_refused_leaves_what_is_done(batch, tmp_path, capsys):
    """Its sentence is told, not one of the second attempt; the first command finds its result. All runs are real."""
    folder = _copy(batch, tmp_path / "copy")
    run = folder / "out" / "a_run"
    record, result = (run / "batch.json").read_text(), (folder / "out" / "a.mrc").read_bytes()
    network = shutil.copy(run / "model.pt", tmp_path / "network.pt")
    command = ["batch", str(folder / "data"), str(folder / "out"), "--checkpoint", str(network), "--overwrite"]
    assert main(command) == 2
    assert "is the folder of a fit" in capsys.readouterr().err
    assert (run / "batch.json").read_text() == record
    assert (folder / "out" / "a.mrc").read_bytes() == result
    assert main(_batch_words(folder)) == 0
    assert _statuses(folder) == {"a": "skipped"}


@pytest.mark.parametrize("place", ["here", "dask"])
@pytest.mark.parametrize("begins", [False, True])
def test_a_record_stands_until_another_run_begins(tmp_path, monkeypatch, begins, place):
    """With the result, or a file of the fit, the record is of the new run, which the second attempt goes on with."""
    _data(tmp_path, "a")
    folder = tmp_path / "out"
    called: list[bool] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        called.append("--resume" in command)
        (folder / "a_run" / "run.log").write_text("said")
        if len(called) == 1:
            (folder / "a.mrc").write_bytes(b"result")
            return 0, ""
        if begins:
            (folder / "a_run" / "state.pt").write_text(str(len(called)))
        return 2, "no"

    with contextlib.ExitStack() as stack:
        words = _batch_words(tmp_path) + _scheduler_words(place, 1, stack)
        monkeypatch.setattr(batch_module, "_run", run)
        assert main(words) == 0
        first = json.loads((folder / "a_run" / "batch.json").read_text())
        assert first["done"]
        # The same command too, which would otherwise be done at its second attempt.
        for more in ([], ["--seed", "3"]):
            del called[1:]
            assert main([*words, *more, "--overwrite"]) == 2
            assert called == [True, False, begins]
            record = json.loads((folder / "a_run" / "batch.json").read_text())
            assert (record == first) != begins


def test_a_run_that_is_refused_leaves_no_record_where_there_was_none(tmp_path, monkeypatch):
    """Other options are no other run then; after one that began they are (control)."""
    _data(tmp_path, "a")
    monkeypatch.setattr(batch_module, "_run", lambda command, surroundings: (2, "no"))
    assert main(_batch_words(tmp_path)) == 2
    assert not (tmp_path / "out" / "a_run").exists()
    monkeypatch.setattr(batch_module, "_run", lambda command, surroundings: (3, "stopped"))
    assert main([*_batch_words(tmp_path), "--seed", "3"]) == 2
    assert _statuses(tmp_path) == {"a": "stopped"}
    assert main(_batch_words(tmp_path)) == 2
    assert _statuses(tmp_path) == {"a": "stopped"}


def test_a_batch_on_dask_that_is_stopped_stops_its_runs(tmp_path, monkeypatch):
    """The one that runs is asked and its end waited for, the others never begin; another batch's run goes on."""
    _data(tmp_path, "ab")
    sleeper = [sys.executable, "-c", "import sys; sys.exit(3 if sys.stdin.read() == '' else 0)"]
    other = subprocess.Popen([*sleeper, "other.mrc"], stdin=subprocess.PIPE)
    began: list[str] = []

    def run(command: Sequence[str], surroundings: Mapping[str, str]) -> tuple[int, str]:
        began.append(command[-1])
        with subprocess.Popen([*sleeper, command[-1]], stdin=subprocess.PIPE) as process:
            batch_module._running.add(process)
            process.wait()
        batch_module._running.discard(process)
        return process.returncode, "stopped"

    monkeypatch.setattr(batch_module, "_run", run)
    batch_module._running.add(other)
    # Ctrl-C while the batch waits for the first outcome.
    threading.Thread(target=lambda: (_wait_until(lambda: began), os.kill(os.getpid(), signal.SIGINT))).start()
    with contextlib.ExitStack() as stack:
        words = _scheduler_words("dask", 1, stack)
        assert main([*_batch_words(tmp_path), *words]) == 3
        assert batch_module._running == {other}
    assert len(began) == 1
    assert other.poll() is None
    batch_module._running.discard(other)
    other.communicate()


@pytest.mark.nightly
def test_a_process_that_is_killed_costs_nothing_but_time(tmp_path):
    """Another one takes its tomogram up: the bits of a run that is left alone; beside a tomogram that is torn."""
    _data(tmp_path, "abc")
    torn = tmp_path / "data" / "torn.mrc"
    torn.write_bytes((tmp_path / "data" / "a.mrc").read_bytes()[:5000])
    command = [*PROGRAM, *_batch_words(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as batch:
        _wait_for(tmp_path / "out" / "a_run" / "run.log", "the network is blind")
        for process in psutil.Process(batch.pid).children(recursive=True):
            said = process.cmdline()
            if "cryoshuffle.commands.worker" in said and str(tmp_path / "data" / "a.mrc") in said:
                process.kill()
        printed, complained = batch.communicate(timeout=300)
    assert batch.returncode == 2
    assert "[4/4]" in printed
    assert complained.count("\n") == 1, complained
    sentence = complained.strip()
    assert sentence.startswith("cryoshuffle: torn failed: ")
    assert "torn.mrc" in sentence
    assert _statuses(tmp_path) == {**dict.fromkeys("abc", "done"), "torn": "failed"}
    assert _as_alone(tmp_path, "a", tmp_path / "alone.mrc")
    assert "torn.mrc" in (tmp_path / "out" / "index.html").read_text()
