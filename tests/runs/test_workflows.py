"""Whole runs, as users start them: real processes, foreign working directories, interruptions."""

from __future__ import annotations

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from ignite.engine import Engine
from phantoms import (
    REAL_TOMOGRAM,
    is_valid_mrc,
    membranes_and_blobs,
    small_tomogram,
    with_white_noise,
    write_mrc,
)
from PIL import Image
from scipy.ndimage import gaussian_filter
from sizes import FULL, suite_configs, suite_start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FitInterruptedError, UserError
from cryoshuffle.files.intensity import _statistics
from cryoshuffle.files.mrc import open_mrc
from cryoshuffle.files.writing import save_whole
from cryoshuffle.fit.handlers import EpochSeeds
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.simulation.phantoms import TEMPLATES
from cryoshuffle.simulation.tilt_series import simulate

COMMAND = [sys.executable, "-m", "cryoshuffle"]
QUICK = ["--window", "16,24,16", "--quiet"]


def bundle_words(*names: str, **overrides: object) -> list[str]:
    """What stands behind ``python -m monai.bundle`` for these configs."""
    files = "[" + ",".join(f"'{suite_configs() / name}'" for name in names) + "]"  # an absolute path stays itself
    return ["run", "--config_file", files, *(part for k, v in overrides.items() for part in (f"--{k}", str(v)))]


def bundle_process(cwd: Path, *names: str, **overrides: object) -> subprocess.CompletedProcess[str]:
    """``python -m monai.bundle run``."""
    command = [sys.executable, "-m", "monai.bundle", *bundle_words(*names, **overrides)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def bundle_run(cwd: Path, *names: str, **overrides: object) -> None:
    """The same in this process, which spares the seconds of the imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["monai.bundle", *bundle_words(*names, **overrides)])
        runpy.run_module("monai.bundle", run_name="__main__")


def causes(error: BaseException) -> str:
    """What an error and those behind it say; MONAI wraps ours."""
    return " ".join([str(error), *([causes(cause)] if (cause := error.__cause__ or error.__context__) else [])])


def command(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)


def data(path: Path) -> np.ndarray:
    return np.array(mrcfile.read(path))


@pytest.fixture
def tomogram(tmp_path) -> Path:
    return small_tomogram(tmp_path / "in.mrc")


def test_the_bundle_trains_and_infers_from_a_foreign_directory(tmp_path, tomogram):
    """The smoke overlay leaves a model, a log and a picture; inference with it writes the tomogram."""
    away = tmp_path / "away"
    away.mkdir()
    fitted = bundle_process(away, "train.json", "smoke.yaml", tomogram=tomogram, tensorboard=True)
    assert fitted.returncode == 0, fitted.stderr
    assert {p.name for p in (away / "run").iterdir()} >= {"run.log", "preview.png", "state.pt"}
    events = EventAccumulator(str(away / "run")).Reload()
    assert {"Loss", "loss_fidelity", "risk"} <= {name.split("/")[-1] for name in events.Tags()["scalars"]}
    log = (away / "run" / "run.log").read_text()
    assert re.search(r"step 4: fidelity [\d.]+, edge [\d.]+, smoothness [\d.]+, risk [\d.]+", log)
    assert "the network is blind as configured: voxel" in log, "the noise of this tomogram is white"
    assert "is kept, risk" in log
    assert re.search(r"fitting took [\d.]+ s", log)
    bundle_run(away, "train.json", "evaluate.yaml", tomogram=tomogram)
    risk = float(re.findall(r"[\d.]+$", (away / "run" / "metrics.csv").read_text().strip())[0])
    assert risk == pytest.approx(torch.load(away / "models" / "model.pt", weights_only=True)["risk"], rel=1e-4)
    refined = tmp_path / "refined"
    refined.mkdir()
    bundle_run(refined, "train.json", "smoke.yaml", "refine.yaml", tomogram=tomogram)
    assert set(torch.load(refined / "models" / "model.pt", weights_only=True)["blend"]) == {"trust", "sigma", "gain"}
    bundle_run(away, "inference.json", tomogram=tomogram)
    with mrcfile.open(away / "run" / "denoised.mrc") as result, mrcfile.open(tomogram) as source:
        assert result.data.shape == source.data.shape
        assert abs(result.data.mean() - source.data.mean()) < source.data.std()


def test_two_processes_fit_the_network_that_one_fits(tmp_path, tomogram):
    """The weights of torchrun's two processes are those of one that takes their windows together; one of them writes.

    Not so where a process keeps its gradients to itself, as one does that takes the first's windows alone (control).
    Statistics of attention are the first process's own.
    """
    weights = {}
    for name in ("one", "two", "apart"):
        options = {"tomogram": tomogram, "bundle_root": tmp_path / name}
        if name == "one":
            bundle_run(tmp_path, "train.json", "smoke.yaml", **options, batch_size=2)
        elif name == "two":
            words = bundle_words("train.json", "smoke.yaml", "multi_gpu.yaml", **options, tensorboard=True)
            program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
            subprocess.run(
                [*program, "-m", "monai.bundle", *words],
                cwd=tmp_path, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        else:
            every_other = {"_target_": "DistributedSampler", "dataset": "@train#dataset", "even_divisible": True}
            every_other |= {"shuffle": False, "num_replicas": 2, "rank": 0}
            bundle_run(
                tmp_path, "train.json", "smoke.yaml", **options,
                **{"train#dataset#processes": 2, "train#dataloader#sampler": every_other},
            )  # fmt: skip
        state = load_plain(tmp_path / name / "run" / "state.pt")["model"]
        weights[name] = torch.cat([value.flatten() for key, value in state.items() if "running" not in key])

    def apart(one: str, other: str) -> float:
        return float((weights[one] - weights[other]).norm())

    assert apart("one", "two") < 1e-3 * apart("one", "apart")
    assert (tmp_path / "two" / "models" / "model.pt").exists()
    written = tmp_path / "two" / "run"
    assert (written / "run.log").read_text().count("epoch 2/2") == 1
    assert len((written / "history.jsonl").read_text().splitlines()) == 2
    # Host, process and number stand behind the time in the name of a file of TensorBoard's.
    assert len({path.name.split(".")[-2] for path in written.glob("events.out.tfevents.*")}) == 1


@pytest.mark.parametrize("body", ["SegResNet"])
def test_a_body_of_monais_is_fitted_and_applied_from_config_alone(tmp_path, tomogram, body):
    """A foreign body needs its multiple and a halo, both knobs; fit and inference run."""
    options = {"tomogram": tomogram, "window": "[16,24,16]", "blind": "plane", "tilt_axis": "y"}
    channels = json.loads((suite_configs() / "train.json").read_text())["network_def"]["stem_channels"]
    foreign = {"_target_": body, "in_channels": channels, "out_channels": 1, "init_filters": 8}
    with pytest.raises((RuntimeError, UserError)) as refused:
        bundle_run(
            tmp_path, "train.json", "smoke.yaml", **options, **{"network_def#body": foreign},
            **{"network_def#body_multiple": 8},
        )  # fmt: skip
    assert "set the halo of the inferer" in causes(refused.value)
    overlay = tmp_path / "body.yaml"
    overlay.write_text(
        yaml.safe_dump({"network_def#body_multiple": 8, "halo": [8, 24, 8], "network_def#body": foreign})
    )
    files = ("train.json", "inference.json", "denoise.yaml", "smoke.yaml", str(overlay))
    bundle_run(tmp_path, *files, **options, overwrite=True)
    assert data(tmp_path / "run" / "denoised.mrc").shape == data(tomogram).shape


def test_command_line_and_bundle_give_the_same_bits(tmp_path, tomogram):
    """One seed, two ways in, equal outputs; and apply with the model that was left gives them once more."""
    by_command = command("denoise", tomogram, tmp_path / "a.mrc", "--steps", 6, "--seed", 3, *QUICK)
    assert by_command.returncode == 0, by_command.stderr
    by_bundle = bundle_process(
        tmp_path, "train.json", "inference.json", "denoise.yaml", "refine.yaml", tomogram=tomogram,
        output=tmp_path / "b.mrc", output_dir=tmp_path / "b", steps=6, seed=3, window="[16,24,16]",
    )  # fmt: skip
    assert by_bundle.returncode == 0, by_bundle.stderr
    model = tmp_path / "b" / "model.pt"
    bundle_run(tmp_path, "inference.json", tomogram=tomogram, checkpoint=model, output=tmp_path / "d.mrc")
    again = ["apply", str(tmp_path / "a_run" / "model.pt"), str(tomogram), str(tmp_path / "c.mrc"), "--quiet"]
    assert main(again) == 0
    assert np.array_equal(data(tmp_path / "a.mrc"), data(tmp_path / "b.mrc"))
    for other in ("c.mrc", "d.mrc"):
        assert np.array_equal(data(tmp_path / "a.mrc"), data(tmp_path / other))
    assert {p.name for p in (tmp_path / "a_run").iterdir()} >= {"blind.pt", "fit.json", "refinement.json"}
    with pytest.raises((RuntimeError, UserError)) as refused:
        bundle_run(tmp_path, "train.json", "evaluate.yaml", tomogram=tomogram, checkpoint=model)
    assert "hides nothing" in causes(refused.value)
    assert f"result:     {tmp_path / 'a.mrc'}" in by_command.stdout
    assert f"picture:    {tmp_path / 'a_run' / 'result.png'}" in by_command.stdout


def test_a_fit_begins_warm_unless_it_is_told_not_to(tmp_path, tomogram):
    """Before its first step the second network is the starting one, or the one named; with a cold start neither."""
    given = load_plain(suite_start())["model"]
    weights = {}
    for name, options in (
        ("warm", []),
        ("cold", ["--cold-start"]),
        ("named", ["--warm-start", str(tmp_path / "cold_run" / "model.pt")]),
    ):
        run = ["denoise", str(tomogram), str(tmp_path / f"{name}.mrc"), "--steps", "3", *QUICK, *options]
        assert main(run) == 0
        weights[name] = load_plain(tmp_path / f"{name}_run" / "model.pt")["model"]

    def apart(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
        return max(float((one[k] - two[k]).abs().max()) for k in one if k.endswith("weight"))

    # A step moves a weight by about the learning rate.
    assert apart(weights["warm"], given) < 0.02
    assert apart(weights["named"], weights["cold"]) < 0.02
    assert apart(weights["cold"], given) > 0.1


def test_effort_decides_whether_to_fit_and_to_mirror(tmp_path):
    """Fast keeps the weights of the starting network, best is what ``apply --mirrors`` makes of its model."""
    # Enough signal for the network to have a share.
    tomogram = write_mrc(tmp_path / "in.mrc", simulate("white", (32, 48, 48), snr=1.0, seed=1).tomogram.numpy())
    given = load_plain(suite_start())["model"]
    for effort in ("fast", "best"):
        run = ["denoise", str(tomogram), str(tmp_path / f"{effort}.mrc"), "--steps", "3", "--effort", effort, *QUICK]
        assert main(run) == 0
    fast, best = (load_plain(tmp_path / f"{effort}_run" / "model.pt")["model"] for effort in ("fast", "best"))
    assert all(torch.equal(fast[name], given[name]) for name in given if not name.endswith("running_mean"))
    assert any(not torch.equal(best[name], given[name]) for name in given if name.endswith("weight"))
    assert max(load_plain(tmp_path / "best_run" / "model.pt")["blend"]["trust"]) > 0.5
    assert "not fitted to the volume" in (tmp_path / "fast_run" / "run.log").read_text()
    for name, options in (("mirrored", ["--mirrors"]), ("plain", [])):
        again = ["apply", str(tmp_path / "best_run" / "model.pt"), str(tomogram), str(tmp_path / f"{name}.mrc")]
        assert main([*again, *options, "--quiet"]) == 0
    result = mrcfile.read(tmp_path / "best.mrc")
    assert np.array_equal(mrcfile.read(tmp_path / "mirrored.mrc"), result)
    assert not np.array_equal(mrcfile.read(tmp_path / "plain.mrc"), result)


def test_the_starting_network_is_trained_and_taken_up_from_its_config(tmp_path):
    """A few steps, interrupted by their number or not, give the same weights; a fit can begin with them."""
    options = {
        "templates": TEMPLATES, "only": "['1bxn','3cf3']", "steps_per_epoch": 2, "window": "[16,16,16]",
        "shape": "[16,24,24]", "scored_windows": 2, "quiet": True,
    }  # fmt: skip
    bundle_run(tmp_path, "start.yaml", output_dir=tmp_path / "a", steps=4, **options)
    state = load_plain(tmp_path / "a" / "state.pt")
    assert (state["epoch"], state["finished"]) == (2, True)
    bundle_run(tmp_path, "start.yaml", output_dir=tmp_path / "a", steps=4, resume=True, **options)
    with pytest.raises((RuntimeError, UserError)) as refused:
        bundle_run(tmp_path, "start.yaml", output_dir=tmp_path / "a", steps=4, resume=True, **{**options, "seed": 1})
    assert "seed was 0 and is 1" in causes(refused.value)
    source = small_tomogram(tmp_path / "in.mrc")
    begun = ["denoise", str(source), str(tmp_path / "out.mrc"), "--warm-start", str(tmp_path / "a" / "start.pt")]
    assert main([*begun, "--steps", "3", *QUICK]) == 0


def test_whitening_travels_with_the_model(tmp_path):
    """Aligned noise: fit and denoise, apply, and inference.json alone give one result; without whitening another."""
    source = write_mrc(tmp_path / "in.mrc", simulate("aligned", (36, 60, 48), snr=0.3, seed=1).tomogram.numpy())
    assert main(["denoise", str(source), str(tmp_path / "a.mrc"), "--steps", "4", "--no-refine", *QUICK]) == 0
    model = tmp_path / "a_run" / "model.pt"
    content = torch.load(model, weights_only=True)
    assert content["whitening"]["axis"] == "y"
    assert content["lattice"]["blind_set"]["shape"] == "plane"
    assert main(["apply", str(model), str(source), str(tmp_path / "b.mrc"), "--quiet"]) == 0
    options = {"tomogram": source, "checkpoint": model, "output_dir": tmp_path / "c"}
    bundle_run(tmp_path, "inference.json", **options, output=tmp_path / "c.mrc")
    for other in ("b.mrc", "c.mrc"):
        assert np.array_equal(data(tmp_path / "a.mrc"), data(tmp_path / other))
    bundle_run(tmp_path, "train.json", "evaluate.yaml", **options)
    told = float(re.findall(r"[\d.]+$", (tmp_path / "c" / "metrics.csv").read_text().strip())[0])
    assert told == pytest.approx(content["risk"], rel=1e-4)
    save_whole({**content, "whitening": None}, tmp_path / "unwhitened.pt")
    assert main(["apply", str(tmp_path / "unwhitened.pt"), str(source), str(tmp_path / "d.mrc"), "--quiet"]) == 0
    assert not np.allclose(data(tmp_path / "a.mrc"), data(tmp_path / "d.mrc"), rtol=1e-3)


def test_one_network_for_several_tomograms_keeps_the_grey_scale_of_each(tmp_path, monkeypatch):
    """Another gain and offset of one of two tomograms changes nothing in the network, and in the results just that.
    With the mean and deviation of the first tomogram for both it is not so (negative control)."""
    first, plain = (small_tomogram(tmp_path / f"{name}.mrc", seed=seed) for seed, name in enumerate(("a", "plain")))
    scaled = write_mrc(tmp_path / "scaled.mrc", 512 * data(plain) - 40000)

    def results(of: str, sources: tuple[Path, ...], *more: str) -> list[np.ndarray]:
        """Of each source with a network for the two as they are, then with one for the two of which one is scaled."""
        found = []
        for second in (plain, scaled):
            net = tmp_path / f"{of}_{second.stem}.pt"
            assert main(["fit", str(first), str(second), "--checkpoint", str(net), "--steps", "4", *QUICK, *more]) == 0
            for source in (second if source == plain else source for source in sources):
                result = net.with_name(f"{net.stem}_{source.stem}.mrc")
                assert main(["apply", str(net), str(source), str(result), "--quiet"]) == 0
                found.append(data(result))
        return found

    def alike(one: np.ndarray, two: np.ndarray) -> bool:
        return bool(np.allclose(one, two, rtol=0, atol=1e-3 * two.std()))

    one, two, one_again, two_scaled = results("own", (first, plain))
    assert alike(one_again, one)
    assert alike(two_scaled, 512 * two - 40000)
    for result, source in ((one, first), (two_scaled, scaled)):
        assert abs(result.mean() - data(source).mean()) < data(source).std()

    known: list[tuple[float, float]] = []

    def of_the_first(values: torch.Tensor, name: str) -> tuple[float, float]:
        known.append(_statistics(values, name))
        return known[0]

    monkeypatch.setattr("cryoshuffle.files.intensity._statistics", of_the_first)
    one, one_again = results("shared", (first,), "--no-refine")
    assert not alike(one_again, one)


def test_halves_tell_the_noise_of_a_run_and_detail_mixes_back(tmp_path, capsys):
    """With --even and --odd the noise is that of their difference; --detail 1 gives the tomogram itself."""
    made = tmp_path / "made"
    assert main(["simulate", str(made), "--shape", "24,40,40", "--snr", "0.2"]) == 0
    halves = ["--even", str(made / "even.mrc"), "--odd", str(made / "odd.mrc")]
    source, out, whole = str(made / "tomogram.mrc"), str(tmp_path / "o.mrc"), str(tmp_path / "whole.mrc")
    assert main(["denoise", source, out, *halves, "--steps", "4", *QUICK]) == 0
    noise = json.loads((tmp_path / "o_run" / "noise.json").read_text())
    assert (noise["source"], noise["axis"]) == ("halves", "y")
    assert main(["apply", str(tmp_path / "o_run" / "model.pt"), source, whole, "--detail", "1", "--quiet"]) == 0
    assert np.allclose(data(whole), data(source), atol=1e-4 * data(source).std())
    assert data(out).std() < 0.9 * data(source).std()
    smooth, words = str(tmp_path / "smooth.mrc"), ["apply", str(tmp_path / "o_run" / "model.pt"), source]
    assert main([*words, smooth, "--smooth", "0.8", "--quiet"]) == 0
    unsmoothed, expected = data(out), gaussian_filter(data(out), 0.8, mode="nearest")
    inside = (slice(4, -4),) * 3
    assert np.abs(data(smooth) - expected)[inside].max() < 0.05 * np.abs(unsmoothed - expected)[inside].max()
    assert json.loads((tmp_path / "smooth_run" / "provenance.json").read_text())["settings"]["smooth"] == 0.8
    capsys.readouterr()
    assert main([*words, str(tmp_path / "q.mrc"), "--smooth", "0.8", "--error", str(tmp_path / "e.mrc")]) == 2
    assert "e.mrc: an error map is that of the result without --smooth" in capsys.readouterr().err
    assert not (tmp_path / "q.mrc").exists()
    assert main(["denoise", source, str(tmp_path / "p.mrc"), *halves[:2], *QUICK]) == 2
    assert "name both with --even and --odd" in capsys.readouterr().err
    assert main(["fit", source, source, "--checkpoint", str(tmp_path / "c.pt"), *halves, *QUICK]) == 2
    assert "halves go with one tomogram" in capsys.readouterr().err


STAGES = ("blind", "refine", "distil")
STATES = {"blind": "state.pt", "refine": "state_refine.pt", "distil": "state_distil.pt"}


def three_stages(tomogram: Path, folder: Path, name: str) -> dict[str, object]:
    """Options of a fit through all three stages, some epochs each."""
    return {
        "tomogram": tomogram, "checkpoint": folder / f"{name}.pt", "output_dir": folder / f"{name}_run", "steps": 40,
        "distil_after": 10, "steps_per_epoch": 2, "window": "[16,24,16]", "blind": "plane", "tilt_axis": "y",
        "quiet": True,
    }  # fmt: skip


def run_three_stages(tomogram: Path, folder: Path, name: str, **more: object) -> None:
    bundle_run(folder, "train.json", "refine.yaml", **three_stages(tomogram, folder, name), **more)


@pytest.fixture(scope="session")
def whole_fit(make_once) -> Path:
    """The folder of a fit through three stages that nothing interrupted, and of its tomogram."""

    def fit(folder: Path) -> None:
        run_three_stages(small_tomogram(folder / "in.mrc"), folder, "whole")

    return make_once("three_stages", fit)


def assert_same_fit(whole_fit: Path, folder: Path, name: str) -> None:
    whole, cut = load_plain(whole_fit / "whole.pt"), load_plain(folder / f"{name}.pt")
    assert whole["blend"] is not None
    assert whole["blend"] == cut["blend"]
    assert all(torch.equal(whole["model"][k], cut["model"][k]) for k in whole["model"])
    for state in STATES.values():
        before, after = (load_plain(run / state) for run in (whole_fit / "whole_run", folder / f"{name}_run"))
        assert (before["epoch"], before["finished"]) == (after["epoch"], after["finished"])
        assert all(torch.equal(before["model"][k], after["model"][k]) for k in before["model"]), state


def test_a_killed_fit_resumes_to_the_same_weights(tmp_path, whole_fit):
    """SIGKILL in the second stage, --resume: bit for bit the weights of a fit that was never interrupted."""
    tomogram, state = whole_fit / "in.mrc", tmp_path / "cut_run" / STATES["refine"]
    process = subprocess.Popen(
        [
            sys.executable, "-m", "monai.bundle",
            *bundle_words("train.json", "refine.yaml", **three_stages(tomogram, tmp_path, "cut")),
        ],
        text=True, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (state.exists() and load_plain(state)["epoch"] >= 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no epoch ended in two minutes"
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not load_plain(state)["finished"]
    assert not (tmp_path / "cut.pt").exists(), "no model before the judge has spoken"
    with pytest.raises((RuntimeError, UserError)) as refused:
        run_three_stages(tomogram, tmp_path, "cut")
    assert "--resume" in causes(refused.value)
    run_three_stages(tomogram, tmp_path, "cut", resume=True)
    assert_same_fit(whole_fit, tmp_path, "cut")
    assert "going on after epoch" in (tmp_path / "cut_run" / "run.log").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_a_fit_interrupted_in_any_stage_resumes_to_the_same_weights(tmp_path, whole_fit, monkeypatch, stage):
    """Stopped in its second epoch: the same bits; what was finished before is not fitted again."""
    tomogram, begun = whole_fit / "in.mrc", []
    original = EpochSeeds.__call__

    def interrupt(self: EpochSeeds, engine: Engine) -> None:
        original(self, engine)
        if self not in begun:
            begun.append(self)
        if len(begun) == 1 + STAGES.index(stage) and engine.state.epoch == 2:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EpochSeeds, "__call__", interrupt)
        with pytest.raises(FitInterruptedError):
            run_three_stages(tomogram, tmp_path, "cut")
    state = load_plain(tmp_path / "cut_run" / STATES[stage])
    assert (state["epoch"], state["finished"]) == (1, False)
    steps: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(EpochSeeds, "__call__", lambda self, engine: (steps.append("epoch"), original(self, engine))[1])
        run_three_stages(tomogram, tmp_path, "cut", resume=True)
    assert_same_fit(whole_fit, tmp_path, "cut")
    epochs = {name: load_plain(tmp_path / "cut_run" / path)["epoch"] for name, path in STATES.items()}
    assert len(steps) == sum(epochs[name] for name in STAGES[STAGES.index(stage) :]) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_cleanly_and_keeps_a_checkpoint(tmp_path, tomogram, monkeypatch, capsys, number):
    """One sentence, exit code 3, no traceback, a state to go on from, and the signal is the program's no longer."""
    original, before = EpochSeeds.__call__, signal.getsignal(number)

    def press(self: EpochSeeds, engine: Engine) -> None:
        original(self, engine)
        if engine.state.epoch == 2:
            signal.raise_signal(number)

    monkeypatch.setattr(EpochSeeds, "__call__", press)
    words = ["fit", str(tomogram), "--checkpoint", str(tmp_path / "c.pt"), "--steps", "60", "--no-refine", *QUICK]
    assert main(words) == 3
    said = capsys.readouterr().err
    assert "--resume goes on" in said
    assert "Traceback" not in said
    state = load_plain(tmp_path / "c_run" / "state.pt")
    assert (state["epoch"], state["finished"]) == (1, False)
    assert not list(tmp_path.rglob("*.partial*"))
    assert signal.getsignal(number) is before
    if number == signal.SIGINT:
        monkeypatch.undo()
        assert main([*words, "--resume", "--minutes", "7", "--seed", "7"]) == 2
        assert "seed was 0 and is 7)" in capsys.readouterr().err
        assert main([*words, "--resume", "--minutes", "7"]) == 0
        assert load_plain(tmp_path / "c_run" / "state.pt")["finished"]


def test_the_real_tomogram_keeps_its_header_and_scale(real_run):
    """The output opens, validates, has the header of the input, is finite, and lies on the scale of the input."""
    out = real_run / "out.mrc"
    assert is_valid_mrc(out)
    with mrcfile.open(out) as result, open_mrc(REAL_TOMOGRAM) as source:
        for name in ("nx", "ny", "nz", "nxstart", "nystart", "nzstart", "mx", "my", "mz", "cella", "cellb", "mapc",
                     "mapr", "maps", "ispg", "origin", "exttyp", "extra1", "extra2"):  # fmt: skip
            assert result.header[name].tolist() == source.header[name].tolist(), name
        assert result.get_labels()[0] == source.get_labels()[0]
        assert np.isfinite(result.data).all()
        noisy, denoised = source.data.astype(float), result.data.astype(float)
    assert abs(denoised.mean() - noisy.mean()) < 0.1 * noisy.std()
    assert denoised.std() < noisy.std()
    # After so few steps the result is the linear filter's, whose own scale is a little less than the signal's.
    assert 0.5 < np.polyfit(denoised.ravel(), noisy.ravel(), 1)[0] < 2, "grey scale"
    with Image.open(real_run / "out_run" / "result.png") as picture:
        assert picture.width > 300
        assert np.asarray(picture).std() > 10


def test_halving_the_window_leaves_no_seams(real_run):
    """Half the window: the difference is below 1 % of the signal's standard deviation everywhere."""
    model = real_run / "out_run" / "model.pt"
    results = [data(real_run / "out.mrc")]
    for name, window in (("half", "48,96,48"), ("odd", "28,60,76")):
        out = real_run / f"{name}.mrc"
        assert main(["apply", str(model), str(REAL_TOMOGRAM), str(out), "--window", window, "--quiet"]) == 0
        results.append(data(out))
    for other in results[1:]:
        assert np.abs(other - results[0]).max() < 0.01 * results[0].std()


def test_bfloat16_gives_the_same_picture(real_run):
    """Half the bits inside: within a few percent of the float32 result, not quantised, no seams either."""
    model = real_run / "out_run" / "model.pt"
    results = []
    for name, window in (("a", "96,192,96"), ("b", "48,96,48")):
        out = real_run / f"{name}16.mrc"
        arguments = ["apply", str(model), str(REAL_TOMOGRAM), str(out), "--window", window, "--precision", "bf16"]
        assert main([*arguments, "--quiet"]) == 0
        results.append(data(out))
    full = data(real_run / "out.mrc")
    assert np.abs(results[0] - results[1]).max() < 0.01 * full.std()
    assert (results[0] - full).std() < 0.02 * full.std()
    assert len(np.unique(results[0])) > 0.5 * len(np.unique(full))


def test_a_checkpoint_and_a_config_are_proven_blind(real_run, capsys):
    """``cryoshuffle check`` says so for both; of the refined model it says that it hides nothing."""
    for network in (real_run / "out_run" / "blind.pt", suite_configs() / "train.json"):
        assert main(["check", str(network)]) == 0
        said = capsys.readouterr().out
        assert said.count("is blind: gradient and bump are exactly 0") == 2
        assert "plane across y, half-width 0, stride (1, 3, 1)" in said
    assert main(["check", str(real_run / "out_run" / "model.pt")]) == 1
    assert "the network hides nothing" in capsys.readouterr().out


def test_white_noise_is_removed_far_better_than_by_a_gaussian(tmp_path):
    """SNR 0.1, blind network alone: correlation with the truth at least 0.07 above the best Gaussian's."""
    truth = membranes_and_blobs(128 if FULL else 64)
    noisy = with_white_noise(truth, snr=0.1)
    source = write_mrc(tmp_path / "noisy.mrc", noisy)

    def correlation(volume: np.ndarray) -> float:
        return float(np.corrcoef(volume.ravel(), truth.ravel())[0, 1])

    best = max(correlation(gaussian_filter(noisy, sigma)) for sigma in np.arange(0.6, 3.1, 0.2))
    # The whole network learns in 120 steps what the tiny one learns in twice as many.
    whole, tiny = ["--steps", "120", "--window", "40"], ["--steps", "240", "--window", "32"]
    options = ["--blind", "voxel", "--no-refine", *(whole if FULL else tiny), "--quiet"]
    assert main(["denoise", str(source), str(tmp_path / "out.mrc"), *options]) == 0
    ours = correlation(data(tmp_path / "out.mrc"))
    print(f"white noise, SNR 0.1: ours {ours:.3f}, best Gaussian {best:.3f}")
    assert ours > best + 0.07
