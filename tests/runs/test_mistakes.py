"""Bad input: one sentence that names the file, the value and the way out; exit code 2; nothing half-written."""

from __future__ import annotations

import copy
import gzip
import os
import resource
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from unittest.mock import Mock

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from phantoms import CONFIGS, is_valid_mrc, small_tomogram, write_mrc
from scipy.ndimage import gaussian_filter

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FileError
from cryoshuffle.files.writing import save_whole
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.invariance import Leak
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.report.log import read_history

QUICK = ["--steps", "2", "--window", "12", "--quiet", "--blind", "plane", "--tilt-axis", "y"]
SHAPE = (24, 36, 24)


def volume(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def missing(path: Path) -> None:
    """Nothing there."""


def truncated(path: Path) -> None:
    write_mrc(path, volume())
    os.truncate(path, 5000)


def no_mrc(path: Path) -> None:
    path.write_bytes(b"these are not the voxels you are looking for" * 100)


def empty(path: Path) -> None:
    path.touch()


def two_dimensional(path: Path) -> None:
    write_mrc(path, volume(shape=(1, 36, 24)))


def complex_mode(path: Path) -> None:
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume().astype(np.complex64))


def stack_of_volumes(path: Path) -> None:
    with mrcfile.new(path) as mrc:
        mrc.set_data(volume(shape=(2, *SHAPE)))


def not_finite(path: Path) -> None:
    bad = volume()
    bad[3, 4, 5] = np.nan
    bad[6, 7, 8] = np.inf
    write_mrc(path, bad)


def constant(path: Path) -> None:
    write_mrc(path, np.full(SHAPE, 3, np.float32))


def too_thin(path: Path) -> None:
    write_mrc(path, volume(shape=(24, 8, 24)))


def bad_header(path: Path) -> None:
    write_mrc(path, volume())
    with path.open("r+b") as stream:
        stream.seek(208)
        stream.write(b"\0\0\0\0")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing, "there is no such file"),
        (truncated, "is cut short"),
        (no_mrc, "is not a valid MRC file"),
        (empty, "is no MRC file"),
        (two_dimensional, "single image"),
        (complex_mode, "complex values"),
        (stack_of_volumes, "has 4 dimensions"),
        (not_finite, "2 voxels are NaN or Inf, the first at (z, y, x) = (3, 4, 5)"),
        (constant, "all voxels are 3"),
        (too_thin, "8 voxels along y, less than the lattice period of 12"),
        (bad_header, "if it is an old one add --permissive"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_bad_tomogram_is_refused_in_one_sentence(tmp_path, capsys, make, words):
    """The sentence names the file; exit code 2; no output, no partial file."""
    source = tmp_path / "in.mrc"
    make(source)
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *QUICK]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("cryoshuffle: ")
    assert said.count("\n") == 0
    assert words in said
    assert str(source) in said
    assert not list(tmp_path.glob("*out.mrc*"))
    assert not list(tmp_path.rglob("*partial*"))
    if make is not too_thin:
        assert main(["denoise", str(source), str(tmp_path / "out.mrc"), "--steps", "2", "--quiet"]) == 2
        assert capsys.readouterr().err.strip() == said, "measuring the noise says the same"


def test_other_names_and_packed_rubbish_are_refused(tmp_path, capsys):
    """Unknown suffix, damaged gzip, damaged NIfTI, 4-D NIfTI."""
    cases = {"in.tif": b"II*", "cut.mrc.gz": gzip.compress(b"x" * 5000)[:-20], "bad.nii": b"no"}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        assert main(["denoise", str(tmp_path / name), str(tmp_path / "out.mrc"), *QUICK]) == 2
        assert name in capsys.readouterr().err
    nibabel.save(nibabel.Nifti1Image(volume(shape=(8, 8, 8, 2)), np.eye(4)), tmp_path / "four.nii")
    assert main(["denoise", str(tmp_path / "four.nii"), str(tmp_path / "out.mrc"), *QUICK]) == 2
    assert "has 4 dimensions" in capsys.readouterr().err


def test_permissive_takes_an_old_header(tmp_path, capsys):
    """Without the MAP stamp: refused, then taken with --permissive, voxels unchanged in size and place."""
    source = tmp_path / "in.mrc"
    bad_header(source)
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *QUICK, "--permissive"]) == 0
    assert is_valid_mrc(tmp_path / "out.mrc")


def test_voxel_size_0_is_noted_and_work_goes_on(tmp_path, capsys):
    """A note, exit code 0, and the header says 0 still."""
    source = write_mrc(tmp_path / "in.mrc", volume(), voxel_size=0.0)
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *QUICK]) == 0
    assert f"{source}: the voxel size is 0, 1 Å is assumed" in capsys.readouterr().err
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert mrc.voxel_size.x == 0


def test_outputs_are_protected(tmp_path, capsys, monkeypatch):
    """What exists, the input itself, a folder that is missing, cannot be written or is full: refused before the fit."""
    source = small_tomogram(tmp_path / "in.mrc")
    taken = tmp_path / "out.mrc"
    taken.write_text("precious")

    def refused(output: Path, *more: str) -> str:
        assert main(["denoise", str(source), str(output), *QUICK, *more]) == 2
        return capsys.readouterr().err

    for more in ([], ["--overwrite"]):
        assert "exists and is no result of cryoshuffle" in refused(taken, *more)
    assert taken.read_text() == "precious"
    assert "is the input itself" in refused(source, "--overwrite")
    assert "there is no folder" in refused(tmp_path / "no" / "out.mrc")
    assert "unknown kind of file" in refused(tmp_path / "out.jpg")
    (tmp_path / "dir.mrc").mkdir()
    assert "is a folder" in refused(tmp_path / "dir.mrc")
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 1000))
        assert "0 MiB are free, make room" in refused(tmp_path / "full.mrc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert f"{tmp_path / 'locked_run'}: the folder cannot be written" in refused(tmp_path / "locked.mrc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: "report" in str(path))
        (tmp_path / "report").mkdir()
        said = refused(tmp_path / "locked.mrc", "--report", str(tmp_path / "report"))
        assert f"{tmp_path / 'locked.mrc'}: the folder {tmp_path} cannot be written" in said
    assert "a NIfTI is written as float32" in refused(tmp_path / "out.nii", "--dtype", "int8")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.mrc", "in.mrc", "out.mrc", "report"]
    assert main(["denoise", str(source), str(taken), *QUICK, "--force"]) == 0
    assert mrcfile.read(taken).shape == mrcfile.read(source).shape
    assert "exists already, add --overwrite" in refused(taken)
    assert main(["denoise", str(source), str(taken), *QUICK, "--overwrite"]) == 0


def test_a_disk_that_fills_up_while_writing_leaves_nothing_behind(tmp_path):
    """The operating system refuses more bytes in the middle of the output: one sentence, no file under the name."""
    source = write_mrc(tmp_path / "in.mrc", volume(shape=(48, 96, 96)))
    net = BlindSpotNet()
    save_whole(
        {"model": net.state_dict(), "network_def": net.config(), "lattice": net.lattice.config()}, tmp_path / "net.pt"
    )
    result = subprocess.run(
        [
            sys.executable, "-m", "cryoshuffle", "apply", str(tmp_path / "net.pt"), str(source),
            str(tmp_path / "out.mrc"), "--quiet",
        ],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)),
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    assert "out.mrc: cannot be written" in result.stderr
    assert "nothing was left behind" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.glob("*out.mrc*"))


def test_wrong_options_are_refused_in_one_sentence(tmp_path, capsys):
    """A stride that hides everything, an unknown device, a window below the period, options that are no numbers."""
    source, out = str(small_tomogram(tmp_path / "in.mrc")), str(tmp_path / "out.mrc")
    for options, words in (
        (["--blind", "plane", "--tilt-axis", "y", "--radius", "1", "--stride", "1,3,1"], "use stride (1, 4, 1)"),
        (["--device", "cuda:77"], "not available on this machine: use --device auto"),
        (["--window", "5"], "less than the lattice period"),
        (["--blind", "voxel", "--radius", "2"], "choose box or cross"),
    ):
        assert main(["denoise", source, out, "--steps", "2", "--quiet", *options]) == 2
        assert words in capsys.readouterr().err
    for options, words in (
        (["--warm-start", str(tmp_path / "no.pt")], "no such checkpoint"),
        (["--warm-start", source], "is not a checkpoint"),
        (["--warm-start", source, "--no-refine"], "leave one out"),
        (["--cold-start", "--no-refine"], "leave one out"),
        (["--warm-start", str(tmp_path / "new_run" / "model.pt")], "copy it elsewhere first"),
    ):
        assert main(["denoise", source, str(tmp_path / "new.mrc"), *QUICK, *options]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
    assert not list(tmp_path.glob("new_run/*.pt")), "looked at before the first stage"
    assert main(["denoise", source, out, "--warm-start", source, "--cold-start"]) == 2
    assert "not allowed with" in capsys.readouterr().err
    for options in (["--steps", "0"], ["--minutes", "-1"], ["--stride", "1,2"], ["--blind", "ball"], ["--radius", "x"]):
        assert main(["denoise", source, out, *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_foreign_or_damaged_checkpoint_is_refused(tmp_path, capsys):
    """Missing, rubbish, a pickle that would run code, another network's weights, a config that names other code."""
    source, out = str(small_tomogram(tmp_path / "in.mrc")), str(tmp_path / "out.mrc")

    def refused(name: str) -> str:
        assert main(["apply", str(tmp_path / name), source, out, "--quiet"]) == 2
        said = capsys.readouterr().err
        assert name in said
        return said

    assert "there is no such checkpoint" in refused("missing.pt")
    (tmp_path / "rubbish.pt").write_bytes(b"rubbish")
    assert "is not a checkpoint" in refused("rubbish.pt")
    torch.save({"model": torch.nn.Linear(1, 1)}, tmp_path / "code.pt")
    assert "is not a checkpoint" in refused("code.pt")
    net = BlindSpotNet()
    good = {"model": net.state_dict(), "network_def": net.config(), "lattice": net.lattice.config()}
    save_whole({**good, "model": {"stem.bias": torch.zeros(3)}}, tmp_path / "other.pt")
    assert "do not fit" in refused("other.pt")
    save_whole({**good, "network_def": None}, tmp_path / "body.pt")
    assert "its body is not ours" in refused("body.pt")
    for evil in (
        {"_target_": "os.system", "command": "true"},
        {**net.config(), "stem_channels": "$__import__('os').getpid()"},
        {**net.config(), "_mode_": "debug"},
        {**net.config(), "lattice": "@network_def"},
    ):
        save_whole({**good, "network_def": evil}, tmp_path / "evil.pt")
        assert "which a checkpoint may not" in refused("evil.pt")


@pytest.mark.parametrize(
    ("part", "name", "words"),
    [
        ("blend", "trust", "its blend is not as a fit wrote it (KeyError: 'trust'), make one with cryoshuffle fit"),
        ("blend", "sigma", "its blend is not as a fit wrote it (KeyError: 'sigma')"),
        ("blend", "gain", "its blend is not as a fit wrote it (KeyError: 'gain')"),
        ("lattice", "stride", "its lattice is not as a fit wrote it (KeyError: 'stride')"),
        ("lattice", "blind_set", "its lattice is not as a fit wrote it (KeyError: 'blind_set')"),
        ("blind_set", "radius", "its lattice is not as a fit wrote it (KeyError: 'radius')"),
        ("network_def", "_target_", "does not say which network it belongs to"),
        ("whitening", "", "its whitening is not as a fit wrote it ("),
        ("", "", None),
    ],
)
def test_a_model_that_lacks_a_value_is_refused(fitted, tmp_path, capsys, part, name, words):
    """In one sentence, whatever it lacks; whole it denoises (control)."""
    tomogram, model = fitted
    content = copy.deepcopy(load_plain(model))
    if content["blend"] is None:
        content["blend"] = {"trust": 1.0, "sigma": [1.0, 1.0, 1.0], "gain": 1.0}
    if part == "whitening":
        content["whitening"] = {"axis": "y"}
    elif part:
        (content["lattice"]["blind_set"] if part == "blind_set" else content[part]).pop(name)
    save_whole(content, tmp_path / "m.pt")
    command = ["apply", str(tmp_path / "m.pt"), str(tomogram), str(tmp_path / "out.mrc"), "--quiet"]
    assert main(command) == (0 if words is None else 2)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if words is not None:
        assert f"{tmp_path / 'm.pt'}: {words}" in said
        assert said.count("\n") == 1
    assert (tmp_path / "out.mrc").exists() == (words is None)


def test_a_fit_is_taken_up_only_under_its_own_settings(tmp_path, capsys):
    """--resume with other settings names them; a finished fit resumes to itself; --minutes ends early."""
    source, model = str(small_tomogram(tmp_path / "in.mrc")), str(tmp_path / "net.pt")
    assert main(["fit", source, "--checkpoint", model, *QUICK]) == 0
    before = torch.load(model, weights_only=True)["model"]
    assert main(["fit", source, "--checkpoint", model, *QUICK]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["fit", source, "--checkpoint", model, *QUICK, "--resume", "--seed", "7"]) == 2
    assert "seed was 0 and is 7" in capsys.readouterr().err
    assert main(["fit", source, "--checkpoint", model, *QUICK, "--resume"]) == 0
    after = torch.load(model, weights_only=True)["model"]
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_a_fit_that_minutes_cut_says_so_and_how_to_have_more(tmp_path, capsys, caplog):
    """At that moment and in the last lines; --resume leaves it as it is, --overwrite fits anew."""
    source, run = str(small_tomogram(tmp_path / "in.mrc")), tmp_path / "net_run"
    words = ["fit", source, "--checkpoint", str(tmp_path / "net.pt"), "--steps", "40", "--no-refine", "--quiet"]
    words += ["--window", "16,24,16", "--blind", "voxel"]
    last = "fit:        cut short by --minutes: fitting after step 20 of 40; for more, run it again with --overwrite"
    assert main([*words, "--minutes", "0.0001"]) == 0
    assert "fitting: cut short by --minutes after step 20 of 40, more minutes give it the rest" in caplog.text
    assert last in capsys.readouterr().out
    before = torch.load(tmp_path / "net.pt", weights_only=True)["model"]
    assert main([*words, "--minutes", "7", "--resume"]) == 0
    assert last in capsys.readouterr().out
    after = torch.load(tmp_path / "net.pt", weights_only=True)["model"]
    assert all(torch.equal(before[k], after[k]) for k in before)
    caplog.clear()
    assert main([*words, "--minutes", "7", "--overwrite"]) == 0
    assert [line["step"] for line in read_history(run)] == [20, 40]
    assert "cut short" not in capsys.readouterr().out + caplog.text


def test_resuming_nothing_does_not_replace_a_model(tmp_path, capsys):
    """--resume with the wrong report folder: the model there stays."""
    source, model = str(small_tomogram(tmp_path / "in.mrc")), tmp_path / "net.pt"
    model.write_bytes(b"precious")
    assert main(["fit", source, "--checkpoint", str(model), *QUICK, "--report", str(tmp_path / "r"), "--resume"]) == 2
    assert "is no checkpoint of cryoshuffle, so it is not replaced" in capsys.readouterr().err
    assert model.read_bytes() == b"precious"


def test_a_lost_model_comes_back_on_resume(tmp_path):
    """The best weights are in the state too: another checkpoint name on --resume gets them."""
    source = str(small_tomogram(tmp_path / "in.mrc"))
    report = ["--report", str(tmp_path / "r")]
    assert main(["fit", source, "--checkpoint", str(tmp_path / "a.pt"), *QUICK, *report]) == 0
    assert main(["fit", source, "--checkpoint", str(tmp_path / "b.pt"), *QUICK, *report, "--resume"]) == 0
    a, b = (torch.load(tmp_path / f"{n}.pt", weights_only=True)["model"] for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_finished_fit_of_other_settings_is_not_overwritten(tmp_path, capsys):
    """Two tomograms with one report folder: the second is refused, the first one's model stays."""
    for name in ("a", "b"):
        small_tomogram(tmp_path / f"{name}.mrc")
    report = ["--report", str(tmp_path / "r"), *QUICK]
    assert main(["denoise", str(tmp_path / "a.mrc"), str(tmp_path / "a_out.mrc"), *report]) == 0
    before = (tmp_path / "r" / "model.pt").read_bytes()
    assert main(["denoise", str(tmp_path / "b.mrc"), str(tmp_path / "b_out.mrc"), *report]) == 2
    assert "holds the report of" in capsys.readouterr().err
    (tmp_path / "a_out.mrc").rename(tmp_path / "first.mrc")
    assert main(["denoise", str(tmp_path / "b.mrc"), str(tmp_path / "b_out.mrc"), *report]) == 2
    assert "holds a fit with other settings" in capsys.readouterr().err
    assert main(["denoise", str(tmp_path / "a.mrc"), str(tmp_path / "a_out.mrc"), *report]) == 2
    assert "holds this fit already, and it is finished: denoise with its network" in capsys.readouterr().err
    assert (tmp_path / "r" / "model.pt").read_bytes() == before
    model = str(tmp_path / "r" / "model.pt")
    assert main(["apply", model, str(tmp_path / "a.mrc"), str(tmp_path / "a_out.mrc"), "--quiet"]) == 0
    assert np.array_equal(mrcfile.read(tmp_path / "a_out.mrc"), mrcfile.read(tmp_path / "first.mrc"))


def test_a_checkpoint_of_another_format_is_refused(tmp_path, capsys):
    """Its numbers would be taken for what they are not."""
    source, model = str(small_tomogram(tmp_path / "in.mrc")), tmp_path / "net.pt"
    assert main(["fit", source, "--checkpoint", str(model), *QUICK]) == 0
    content = torch.load(model, weights_only=True)
    torch.save({**content, "format": content["format"] - 1}, model)
    assert main(["apply", str(model), source, str(tmp_path / "out.mrc")]) == 2
    assert "was written by another version of cryoshuffle" in capsys.readouterr().err


def test_an_empty_region_goes_with_measuring_alone(tmp_path, capsys):
    """A mask says where to measure; with a blind set that is asked for, or with halves, it is refused."""
    source = str(small_tomogram(tmp_path / "in.mrc"))
    for more, words in (
        (["--blind", "voxel"], "--blind voxel measures none"),
        (["--blind", "auto", "--even", source, "--odd", source], "without halves"),
    ):
        assert main(["denoise", source, str(tmp_path / "out.mrc"), *QUICK, *more, "--noise-mask", source]) == 2
        assert words in capsys.readouterr().err


def test_names_that_mean_something_in_configs_are_just_names(tmp_path, capsys):
    """``#``, ``@``, ``$``, ``%``, several dots and spaces in paths; the run folder keeps all but the suffix."""
    source = small_tomogram(tmp_path / "$in @1#2.mrc")
    out = tmp_path / "TS 01.5%#b.mrc"
    assert main(["denoise", str(source), str(out), *QUICK]) == 0
    assert out.exists()
    assert (tmp_path / "TS 01.5%#b_run" / "model.pt").exists()
    assert f"result:     {out}" in capsys.readouterr().out


def test_running_out_of_memory_is_said_in_words(tmp_path, capsys, monkeypatch):
    """What torch raises on a device or on the CPU becomes one sentence with a way out."""

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")

    monkeypatch.setattr(BlindSpotNet, "forward", full)
    monkeypatch.setattr(
        "cryoshuffle.fit.handlers.measure_leak", lambda net: Leak(0.0, 0.0, (0, 0, 0), (0, 0, 0), 1.0, 1)
    )
    source = small_tomogram(tmp_path / "in.mrc")
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *QUICK]) == 2
    assert "out of memory, use a smaller --window" in capsys.readouterr().err


def test_a_leaking_network_is_stopped_before_its_first_step(tmp_path, capsys, monkeypatch):
    """The guard reads the configured network, not its promise."""
    source = str(small_tomogram(tmp_path / "in.mrc"))
    monkeypatch.setattr("cryoshuffle.layers.stem_mask", lambda lattice: torch.ones(1, 1, *lattice.kernel_size))
    assert main(["fit", source, "--checkpoint", str(tmp_path / "net.pt"), *QUICK]) == 2
    assert "leaks: the prediction at voxel" in capsys.readouterr().err
    assert not (tmp_path / "net.pt").exists()


def test_check_says_what_it_cannot_judge(tmp_path, capsys):
    """A missing config, one without a network, one with another network or one that cannot be made, folders."""
    (tmp_path / "none.json").write_text("{}")
    (tmp_path / "other.yaml").write_text("network_def: {_target_: torch.nn.Identity}")
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "list.json").write_text("[1, 2]")
    (tmp_path / "overlay.yaml").write_text('"lattice#stride": 2')
    (tmp_path / "target.yaml").write_text("network_def: {_target_: nope.Network}")
    (tmp_path / "value.yaml").write_text("network_def: {_target_: cryoshuffle.network.BlindSpotNet, lattice: 3}")
    (tmp_path / "refers.yaml").write_text('network_def: "@nothing"')
    for name in ("empty", "run/blind.pt", "fit/model.pt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch() if name.endswith(".pt") else (tmp_path / name).mkdir()
    for name, words in (
        ("list.json", "has no network_def, name a config that declares the network"),
        ("overlay.yaml", "has no network_def"),
        (CONFIGS / "denoise.yaml", "has no network_def"),
        (CONFIGS / "evaluate.yaml", "has no network_def"),
        ("target.yaml", "its network_def cannot be made (Cannot locate class or function path: 'nope.Network'), check"),
        ("value.yaml", "its network_def cannot be made ("),
        ("refers.yaml", "its network_def cannot be made (the referring item `@nothing` is not defined in the config"),
        ("empty", "is a folder, name a checkpoint or a config"),
        ("run", f"is a folder, name the network in it: {tmp_path / 'run' / 'blind.pt'}"),
        ("fit", f"is a folder, name the network in it: {tmp_path / 'fit' / 'model.pt'}"),
        ("missing.json", "no such config"),
        ("none.json", "has no network_def"),
        ("other.yaml", "is a Identity"),
        ("broken.yaml", "not a config that can be read"),
    ):
        assert main(["check", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


def test_a_nifti_tomogram_goes_through_and_keeps_its_orientation(tmp_path):
    """NIfTI in, NIfTI and MRC out: same axes and affine, the tilt axis in its place."""
    data = 100 + volume(shape=(24, 36, 28))
    affine = np.diag([-2.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 5, 6, 7
    nibabel.save(nibabel.Nifti1Image(data, affine), tmp_path / "in.nii.gz")
    assert main(["denoise", str(tmp_path / "in.nii.gz"), str(tmp_path / "out.nii.gz"), *QUICK]) == 0
    result = nibabel.load(tmp_path / "out.nii.gz")
    assert result.shape == (24, 36, 28)
    assert np.allclose(result.affine, affine)
    assert result.get_data_dtype() == np.float32
    assert abs(float(np.mean(result.dataobj)) - 100) < 1
    model = str(tmp_path / "out_run" / "model.pt")
    assert main(["apply", model, str(tmp_path / "in.nii.gz"), str(tmp_path / "again.mrc"), "--quiet"]) == 0
    assert np.allclose(mrcfile.read(tmp_path / "again.mrc")[:, :, ::-1], np.asarray(result.dataobj).T, atol=1e-4)


def test_what_later_stages_left_is_neither_taken_nor_lost_silently(tmp_path, capsys, monkeypatch):
    """An unfinished second stage is named before anything is written; a fresh start removes what it left."""
    source = small_tomogram(tmp_path / "in.mrc")
    arguments = ["denoise", str(source), str(tmp_path / "o.mrc"), "--steps", "4", "--window", "16,24,16", "--quiet"]
    drop = "cryoshuffle.fit.drop_states"
    with monkeypatch.context() as patch:
        patch.setattr(drop, lambda output_dir: None)
        assert main(arguments) == 0
    run = tmp_path / "o_run"
    state = torch.load(run / "state_refine.pt", weights_only=True)
    torch.save({**state, "finished": False}, run / "state_refine.pt")
    (tmp_path / "o.mrc").unlink()
    capsys.readouterr()
    assert main(arguments) == 2
    assert "unfinished fit" in capsys.readouterr().err
    assert main([*arguments, "--no-refine", "--overwrite"]) == 0
    left = {path.name for path in run.iterdir()}
    assert not left & {"state_refine.pt", "state_distil.pt", "blind.pt", "recorrupted.pt", "refinement.json"}
    assert not (run / "state.pt.partial").exists()


def test_a_finished_run_keeps_no_states_and_says_what_it_keeps(tmp_path, capsys):
    """The network and what the report needs stay; --resume has nothing to do, with the result there or gone; the
    report is written again from what is left."""
    source, out = str(small_tomogram(tmp_path / "in.mrc")), tmp_path / "o.mrc"
    words = ["denoise", source, str(out), "--steps", "4", "--window", "16,24,16", "--quiet"]
    assert main(words) == 0
    run = tmp_path / "o_run"
    assert {path.name for path in run.iterdir()} == {
        "model.pt", "blind.pt", "fit.json", "history.jsonl", "noise.json", "provenance.json",
        "refinement.json", "report.html", "report.json", "result.png", "run.log", "survival.json",
    }  # fmt: skip
    *_, last, verdict = capsys.readouterr().out.splitlines()
    assert verdict.startswith("verdict:    ")
    assert last.startswith(
        f"folder:     {run} has report, log and checksums, and the network for cryoshuffle apply {run}"
    )
    kept = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.log"}
    assert main([*words, "--resume"]) == 2
    assert f"{out}: is finished, so there is nothing to resume: add --overwrite" in capsys.readouterr().err
    assert main(["report", str(run)]) == 0
    first = mrcfile.read(out)
    out.unlink()
    for more, sentence in (
        (["--resume"], f"{run}: holds this fit already, and it is finished"),
        (["--resume", "--minutes", "7"], f"{run}: holds this fit already, and it is finished"),
        (["--resume", "--seed", "7"], f"{run}: holds a fit with other settings"),
    ):
        assert main([*words, *more]) == 2
        assert sentence in capsys.readouterr().err
    assert kept == {path.name: path.read_bytes() for path in run.iterdir() if path.name != "run.log"}
    assert main([*words, "--overwrite"]) == 0
    assert np.array_equal(mrcfile.read(out), first)
    (run / "fit.json").write_text("torn")
    out.unlink()
    assert main(words) == 2
    assert "fit.json: cannot be read" in capsys.readouterr().err


def test_a_run_that_fails_before_it_begins_leaves_no_empty_folder(tmp_path, monkeypatch):
    """One that was there before stays. A window that is too small is told before a fit begins."""
    source, run = small_tomogram(tmp_path / "in.mrc"), tmp_path / "o_run"
    words = ["denoise", str(source), str(tmp_path / "o.mrc"), *QUICK]
    with monkeypatch.context() as patch:
        patch.setattr("cryoshuffle.report.InputSnapshot", Mock(side_effect=FileError("the disk is gone")))
        assert main(words) == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mrc"]
        run.mkdir()
        assert main(words) == 2
        assert list(run.iterdir()) == []
    run.rmdir()
    assert main([*words, "--window", "5"]) == 2
    assert not run.exists()


def test_evaluate_scores_files_and_says_what_it_lacks(tmp_path, capsys):
    """A table, a JSON file and a plot; a missing file, other shapes, nothing to score with: one sentence each."""
    noisy = small_tomogram(tmp_path / "in.mrc")
    with mrcfile.open(noisy) as source:
        smooth = write_mrc(tmp_path / "smooth.mrc", gaussian_filter(source.data.astype(np.float32), 1))
        other = write_mrc(tmp_path / "other.mrc", source.data[2:].astype(np.float32))
    where = ["--report", str(tmp_path / "scores")]
    assert main(["evaluate", str(smooth), "--truth", str(smooth), "--noisy", str(noisy), *where]) == 0
    assert "correlation with the truth          1.000   (noisy: 0." in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "scores").iterdir()} == {"evaluation.json", "fsc.png"}
    for arguments, words in (
        (["--truth", str(smooth)], "--overwrite"),
        (["--overwrite"], "nothing to score the result with"),
        (["--truth", str(other), "--overwrite"], "give volumes (z, y, x) of one shape"),
        (["--truth", str(tmp_path / "no.mrc"), "--overwrite"], "no.mrc"),
    ):
        assert main(["evaluate", str(smooth), *arguments, *where]) == 2
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
