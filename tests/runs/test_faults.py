"""What goes wrong over night: kills, full disks, files that change, two runs at once. Real processes."""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from phantoms import small_tomogram, write_mrc

from cryoshuffle.boxes import Box
from cryoshuffle.commands.cli import main
from cryoshuffle.files import scratch
from cryoshuffle.files.locks import lock_run, unlock_run
from cryoshuffle.files.mrc import MrcWriter
from cryoshuffle.files.writing import checksum
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.inference.mergers import JOURNAL, VALUES, WindowMerger
from cryoshuffle.report.log import read_history
from cryoshuffle.simulation.tilt_series import simulate

COMMAND = [sys.executable, "-m", "cryoshuffle"]
# So little memory that the volume goes to disk, and windows so small that there are many.
ON_DISK = ["--memory", "0.0001", "--window", "8,24,24", "--quiet"]
QUICK = ["--effort", "fast", "--quiet"]


def apply(checkpoint: Path, tomogram: Path, out: Path, *more: str) -> list[str]:
    return ["apply", str(checkpoint), str(tomogram), str(out), *ON_DISK, *more]


def stop_after_windows(patch: pytest.MonkeyPatch, count: int) -> None:
    """The program gets a SIGTERM once so many windows of the result are done in this run."""
    original, marked = WindowMerger.mark, itertools.count(1)

    def mark(self: WindowMerger, box: Box) -> None:
        original(self, box)
        # A fit scores its held-out slab by windows too; those leave no journal.
        if self.folder is not None and next(marked) == count:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(WindowMerger, "mark", mark)


def wait_for_windows(process: subprocess.Popen[str], journal: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if journal.exists() and len(json.loads(journal.read_text())["done"]) >= count:
            return
        time.sleep(0.01)
    raise AssertionError("no window ended in two minutes")


def left_behind(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*") if path.name.startswith(".") or "partial" in path.name)


def test_a_killed_denoising_goes_on_after_its_last_window(tmp_path, fitted, monkeypatch, capsys):
    """SIGKILL, a SIGTERM, --resume each time: the bits of a run that nothing interrupted, and of one in memory."""
    tomogram, checkpoint = fitted
    assert main(apply(checkpoint, tomogram, tmp_path / "whole.mrc")) == 0
    journal, cut = tmp_path / "cut_run" / JOURNAL, apply(checkpoint, tomogram, tmp_path / "cut.mrc")
    process = subprocess.Popen([*COMMAND, *cut], text=True, stderr=-1)
    wait_for_windows(process, journal, 3)
    process.kill()
    process.communicate()
    assert not (tmp_path / "cut.mrc").exists(), "never a partial file under the final name"
    with monkeypatch.context() as patch:
        stop_after_windows(patch, 3)
        assert main([*cut, "--resume"]) == 3
    assert not (tmp_path / "cut.mrc").exists()
    capsys.readouterr()
    assert main(cut) == 2
    assert "holds an unfinished result, add --resume to go on with it or --overwrite" in capsys.readouterr().err
    assert main([*cut, "--resume"]) == 0
    assert "windows are done" in (tmp_path / "cut_run" / "run.log").read_text()
    in_memory = ["apply", str(checkpoint), str(tomogram), str(tmp_path / "memory.mrc"), "--quiet"]
    assert main([*in_memory, "--window", "8,24,24"]) == 0
    results = [mrcfile.read(tmp_path / f"{name}.mrc") for name in ("whole", "cut", "memory")]
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert left_behind(tmp_path) == []
    assert not journal.exists()


@pytest.mark.parametrize("fault", ["SIGTERM", "a full disk"])
def test_windows_are_kept_until_the_result_is_written(tmp_path, fitted, monkeypatch, capsys, fault):
    """Not one is computed again, and the result is that of a run that nothing interrupted."""
    tomogram, checkpoint = fitted
    whole, cut = (apply(checkpoint, tomogram, tmp_path / f"{name}.mrc") for name in ("whole", "cut"))
    assert main(whole) == 0

    def fail(self: MrcWriter, *given: object) -> None:
        if fault == "SIGTERM":
            signal.raise_signal(signal.SIGTERM)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(MrcWriter, "_fill", fail)
        assert main(cut) == (3 if fault == "SIGTERM" else 2)
    assert not (tmp_path / "cut.mrc").exists()
    with monkeypatch.context() as patch:
        patch.setattr(WindowMerger, "mark", lambda self, box: pytest.fail("a window was computed again"))
        assert main([*cut, "--resume"]) == 0
    assert np.array_equal(mrcfile.read(tmp_path / "whole.mrc"), mrcfile.read(tmp_path / "cut.mrc"))
    assert left_behind(tmp_path) == []
    assert not (tmp_path / "cut_run" / VALUES).exists()
    assert not (tmp_path / "cut_run" / JOURNAL).exists()


def test_other_windows_on_disk_differ_by_rounding(tmp_path, fitted):
    """Two windows, and the plan that follows from the memory: one result."""
    tomogram, checkpoint = fitted
    results = []
    for number, window in enumerate((["--window", "8,24,24"], ["--window", "24,40,72"], [])):
        out = tmp_path / f"{number}.mrc"
        command = ["apply", str(checkpoint), str(tomogram), str(out), "--memory", "0.0001", "--quiet", *window]
        assert main(command) == 0
        results.append(mrcfile.read(out))
    assert max(np.abs(result - results[0]).max() for result in results) < 1e-5 * results[0].std() + 1e-5 * 110


def test_what_has_changed_since_is_named(tmp_path, fitted, monkeypatch, capsys):
    """Another tomogram under the same name, or other options: neither fit nor result is gone on with."""
    _, checkpoint = fitted
    tomogram = small_tomogram(tmp_path / "in.mrc", (24, 72, 72), seed=5)
    with monkeypatch.context() as patch:
        stop_after_windows(patch, 3)
        assert main(apply(checkpoint, tomogram, tmp_path / "out.mrc")) == 3
    capsys.readouterr()
    small_tomogram(tmp_path / "in.mrc", seed=6)
    for more, words in (((), "tomogram was"), (("--detail", "0.5"), "detail was 0.0 and is 0.5")):
        assert main(apply(checkpoint, tomogram, tmp_path / "out.mrc", "--resume", *more)) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    fit = ["fit", str(tomogram), "--checkpoint", str(tmp_path / "c.pt"), *QUICK]
    assert main(fit) == 0
    small_tomogram(tmp_path / "in.mrc", seed=7)
    capsys.readouterr()
    assert main([*fit, "--resume"]) == 2
    assert "the tomogram or its mask has changed since" in capsys.readouterr().err


def test_a_finished_fit_is_not_repeated_after_the_result_was_interrupted(tmp_path, fitted, monkeypatch, capsys):
    """SIGTERM while a tomogram is denoised after its fit: exit code 3, a sentence, and --resume takes it up."""
    tomogram, _ = fitted
    command = ["denoise", str(tomogram), str(tmp_path / "out.mrc"), *QUICK, "--memory", "0.0001"]
    command += ["--inference-window", "8,24,24"]
    with monkeypatch.context() as patch:
        stop_after_windows(patch, 2)
        assert main(command) == 3
    said = capsys.readouterr().err
    assert "goes on with --resume" in said
    assert "Traceback" not in said
    steps = len(read_history(tmp_path / "out_run"))
    assert main([*command, "--resume"]) == 0
    assert len(read_history(tmp_path / "out_run")) == steps
    whole = [part.replace("out.mrc", "whole.mrc") for part in command]
    assert main(whole) == 0
    assert np.array_equal(mrcfile.read(tmp_path / "out.mrc"), mrcfile.read(tmp_path / "whole.mrc"))
    assert left_behind(tmp_path) == []


def test_a_full_disk_costs_nothing_but_time(tmp_path, fitted):
    """A limit on the size of files stands for the disk: one sentence, and after it is lifted --resume goes on."""
    tomogram, checkpoint = fitted

    def limit(most: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *apply(checkpoint, tomogram, tmp_path / "out.mrc", "--resume")], capture_output=True, text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        )  # fmt: skip

    size = tomogram.stat().st_size
    for most, words in ((size // 2, "no room for a volume"), (size - 500, "cannot be written")):
        said = limit(most)
        assert said.returncode == 2, said.stderr
        assert words in said.stderr
        assert "make room" in said.stderr
        assert not (tmp_path / "out.mrc").exists()
        assert left_behind(tmp_path) == []
    assert main(apply(checkpoint, tomogram, tmp_path / "out.mrc", "--resume")) == 0
    assert (tmp_path / "out.mrc").exists()


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path, fitted, monkeypatch, capsys):
    """Nothing is written, and the sentence names the file."""
    _, checkpoint = fitted
    tomogram = small_tomogram(tmp_path / "in.mrc")
    from cryoshuffle.inference.checkpoints import ModelLoader

    original = ModelLoader.__call__

    def replaced(self: ModelLoader, engine: object) -> None:
        original(self, engine)
        os.utime(tomogram, ns=(1, 1))

    monkeypatch.setattr(ModelLoader, "__call__", replaced)
    assert main(["apply", str(checkpoint), str(tomogram), str(tmp_path / "out.mrc"), "--quiet"]) == 2
    assert f"{tomogram}: was changed while it was being denoised" in capsys.readouterr().err
    assert not (tmp_path / "out.mrc").exists()
    assert left_behind(tmp_path) == []


def test_a_clock_that_is_set_changes_nothing(tmp_path, monkeypatch):
    """The wall clock jumps by years: the same network, no early end. If the steady clock did, the budget would end."""
    tomogram = small_tomogram(tmp_path / "in.mrc")
    words = ["--no-refine", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y", "--steps", "12", "--quiet"]

    def fit(name: str) -> tuple[dict[str, torch.Tensor], str]:
        command = ["fit", str(tomogram), "--checkpoint", str(tmp_path / f"{name}.pt"), "--minutes", "600", *words]
        assert main(command) == 0
        return load_plain(tmp_path / f"{name}.pt")["model"], (tmp_path / f"{name}_run" / "run.log").read_text()

    whole, _ = fit("whole")
    jumps, now = itertools.cycle([0.0, 3e7, -3e7, 9e7]), time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now + next(jumps))
        jumped, said = fit("jumped")
    assert all(torch.equal(jumped[name], value) for name, value in whole.items())
    assert "is used up" not in said
    steady = time.monotonic
    calls = itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: steady() + 3600 * next(calls))
        assert "is used up" in fit("late")[1]


def test_two_runs_in_one_folder_do_not_meet(tmp_path, fitted, capsys):
    """The second is refused while the first lives; the system forgets the lock of a run that was killed."""
    tomogram, checkpoint = fitted
    command, residual = apply(checkpoint, tomogram, tmp_path / "out.mrc"), str(tmp_path / "r.mrc")
    first = subprocess.Popen([*COMMAND, *command, "--residual", residual], text=True, stderr=-1)
    wait_for_windows(first, tmp_path / "out_run" / JOURNAL, 1)
    # It would be done before the second has begun.
    first.send_signal(signal.SIGSTOP)
    try:
        for more, words in (
            (["--resume"], "another run is at work there"),
            (["--report", str(tmp_path / "elsewhere")], "out.mrc: another run is about to write it"),
            (["--residual", residual], "r.mrc: another run is about to write it"),
        ):
            wanted = apply(checkpoint, tomogram, tmp_path / "b.mrc") if "--residual" in more else command
            assert main([*wanted, *more]) == 2
            assert words in capsys.readouterr().err
    finally:
        first.kill()
        first.communicate()
    lock_run(tmp_path / "out_run")
    lock_run(tmp_path / "out_run")
    unlock_run()


@pytest.mark.parametrize("name", ["out.mrc", "r.mrc"])
def test_a_file_that_appears_where_a_result_goes_is_kept(tmp_path, fitted, monkeypatch, capsys, name):
    """It is of somebody else; --resume --overwrite goes on once it is moved."""
    tomogram, checkpoint = fitted
    command = [*apply(checkpoint, tomogram, tmp_path / "out.mrc"), "--residual", str(tmp_path / "r.mrc")]
    original = WindowMerger.mark

    def mark(self: WindowMerger, box: Box) -> None:
        (tmp_path / name).write_text("raw data")
        original(self, box)

    with monkeypatch.context() as patch:
        patch.setattr(WindowMerger, "mark", mark)
        assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"cryoshuffle: {tmp_path / name}: appeared while this run was at work, so it is not")
    assert (tmp_path / name).read_text() == "raw data"
    (tmp_path / name).rename(tmp_path / "moved")
    assert main([*command, "--resume", "--overwrite"]) == 0
    assert left_behind(tmp_path) == []


def test_a_result_says_what_it_was_made_of(tmp_path, fitted):
    """Checksums of input, network and output, settings, noise, device and times."""
    tomogram, _ = fitted
    out = tmp_path / "out.mrc"
    assert main(["denoise", str(tomogram), str(out), *QUICK, "--seed", "3"]) == 0
    said = json.loads((tmp_path / "out_run" / "provenance.json").read_text())
    assert said["input"] == {"path": str(tomogram), "sha256": checksum(tomogram)}
    assert said["output"] == {"path": str(out), "sha256": checksum(out)}
    assert said["network"]["sha256"] == checksum(tmp_path / "out_run" / "model.pt")
    assert said["settings"]["seed"] == 3
    assert said["settings"]["effort"] == "fast"
    assert said["noise"]["blind"] == load_plain(tmp_path / "out_run" / "blind.pt")["lattice"]["blind_set"]["shape"]
    assert said["began"] <= said["ended"]
    assert torch.__version__ == said["torch"]


def test_nothing_is_fetched_or_sent_at_run_time(tmp_path, fitted, monkeypatch):
    """A run with sockets forbidden ends like any other."""
    tomogram, _ = fitted

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "bind", "sendto"):
        monkeypatch.setattr(socket.socket, name, forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    assert main(["denoise", str(tomogram), str(tmp_path / "out.mrc"), *QUICK]) == 0


def test_a_gain_and_an_offset_of_the_input_are_those_of_the_result(tmp_path, fitted):
    """From 1e-6 to 1e6, and on an offset a thousand times the scale: to 1e-4 of the scale."""
    tomogram, checkpoint = fitted
    values = mrcfile.read(tomogram).astype(np.float64)
    results = {}
    for gain, offset in ((1.0, 0.0), (1e-6, 0.0), (1e6, 0.0), (1.0, 1e3 * values.std())):
        source, out = tmp_path / "in.mrc", tmp_path / "out.mrc"
        with mrcfile.new(source, overwrite=True) as mrc:
            mrc.set_data(((values - values.mean()) * gain + offset).astype(np.float32))
        assert main(["apply", str(checkpoint), str(source), str(out), "--quiet", "--overwrite"]) == 0
        results[gain, offset] = (mrcfile.read(out).astype(np.float64) - offset) / gain
    first = results[1.0, 0.0]
    for result in results.values():
        assert np.abs(result - first).max() < 1e-4 * np.abs(first).max() + 3e-4 * values.std()


def test_volumes_on_disk_are_looked_for_room_before_the_fit(tmp_path, fitted, monkeypatch, capsys):
    """Four times the volume while the program runs, five with a residual, seven with an error map; and outputs."""
    tomogram, checkpoint = fitted
    size = tomogram.stat().st_size
    monkeypatch.setattr(scratch, "in_memory_bytes", lambda: 1000)
    usage = type("Usage", (), {"free": int(3.5 * size)})()
    monkeypatch.setattr("cryoshuffle.commands.preflight.shutil.disk_usage", lambda path: usage)
    for copies, name in ((4, None), (5, "residual"), (7, "error")):
        more = [] if name is None else [f"--{name}", str(tmp_path / f"{name}.mrc")]
        command = ["apply", str(checkpoint), str(tomogram), str(tmp_path / f"{copies}.mrc"), "--quiet", *more]
        usage.free = int((copies + (0.5 if name is None else 1.5)) * size)
        assert main(command) == 2
        assert "make room or choose another folder" in capsys.readouterr().err
        usage.free += size
        assert main(command) == 0


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_islands_of_nan_are_filled_where_it_is_asked_for(tmp_path, fitted, capsys):
    """Refused with the way out; with it the result is finite, and the log says where they were."""
    values = mrcfile.read(fitted[0]).copy()
    values[5:8, 10:14, 20:22] = np.nan
    source, out = write_mrc(tmp_path / "in.mrc", values), tmp_path / "out.mrc"
    assert main(["denoise", str(source), str(out), *QUICK]) == 2
    assert "add --fill-nan" in capsys.readouterr().err
    assert main(["denoise", str(source), str(out), *QUICK, "--fill-nan"]) == 0
    assert bool(np.isfinite(mrcfile.read(out)).all())
    assert "24 voxels are NaN or Inf, in z 5 to 7, y 10 to 13, x 20 to 21" in (tmp_path / "out_run/run.log").read_text()


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_islands_of_nan_are_filled_in_the_halves_too(tmp_path, capsys):
    """Wherever halves are read: for the blind set, for the noise of the second stage, and by the command ``noise``."""
    made = simulate("wbp", (32, 64, 64), snr=0.3, seed=0)
    paths = []
    for name, volume in (("in", made.tomogram), ("even", made.even), ("odd", made.odd)):
        volume[:, :2] = math.nan
        paths.append(str(write_mrc(tmp_path / f"{name}.mrc", volume.numpy())))
    halves = ["--even", paths[1], "--odd", paths[2]]
    command = ["denoise", paths[0], str(tmp_path / "out.mrc"), *halves, "--effort", "fast", "--steps", "8", "--quiet"]
    for words in (["noise", *halves], command):
        assert main(words) == 2
        assert "add --fill-nan" in capsys.readouterr().err
        assert main([*words, "--fill-nan"]) == 0


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_what_is_said_each_time_a_tomogram_is_read_is_told_once(tmp_path, fitted):
    """On the console; the log has it as often as it was read (control)."""
    values = mrcfile.read(fitted[0]).copy()
    values[5:8, 10:14, 20:22] = np.nan
    source, words = write_mrc(tmp_path / "in.mrc", values), "24 voxels are NaN or Inf"
    command = ["denoise", str(source), str(tmp_path / "out.mrc"), *QUICK, "--fill-nan"]
    done = subprocess.run([sys.executable, "-m", "cryoshuffle", *command], capture_output=True, text=True, check=True)
    assert done.stderr.count(words) == 1
    assert (tmp_path / "out_run/run.log").read_text().count(words) > 1
