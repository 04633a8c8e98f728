"""What a run says before and while it works."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from phantoms import small_tomogram

from cryoshuffle import devices
from cryoshuffle.commands.cli import main
from cryoshuffle.devices import device_reason
from cryoshuffle.fit.stages import StepPlan
from cryoshuffle.lattice import BlindSet
from cryoshuffle.report.log import Progress, StagePlace
from cryoshuffle.report.opening import RunOpening

CPU = torch.device("cpu")


def opening(tomogram, blind: BlindSet, others=(), **more) -> dict[str, str]:
    """What is said of a network that takes a hundredth of a second for a window, by name."""

    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.01)
            return x

    values = {"effort": "standard", "steps": 38, "window": 12, "device": CPU, "device_name": "cpu", **more}
    one = RunOpening([str(tomogram), *map(str, others)], SimpleNamespace(blind_set=blind), Slow().eval(), **values)
    return dict(line.split(":", 1) for line in one.lines())


def test_a_run_says_what_it_works_on_and_with(tmp_path):
    """Size, device, where the axis is from, steps of all stages; without stages those of the one."""
    tomogram = small_tomogram(tmp_path / "in.mrc", (24, 36, 30))
    plan = StepPlan(300)
    said = opening(tomogram, BlindSet("plane", "x"), place=plan.place(1, 25, True))
    assert said["tomogram"].strip() == f"{tomogram}, 24 × 36 × 30 voxels (z, y, x)"
    assert said["device"].strip() == f"CPU, {torch.get_num_threads()} threads: as asked for"
    assert said["tilt axis"].strip() == "x, found from the noise"
    assert said["effort"].strip() == f"standard, {plan.place(1, 25, True).total} steps in 3 stages"
    said = opening(tomogram, BlindSet("plane", "x"), tilt_axis="x")
    assert said["tilt axis"].strip() == "x, as given"
    assert said["effort"].strip() == "standard, 38 steps"
    assert "not needed" in opening(tomogram, BlindSet("voxel"))["tilt axis"]


def test_the_time_follows_pace_steps_limit_and_mirrors(tmp_path):
    """More steps take longer, a limit of minutes less, mirror images longer; no guess is made for a GPU."""
    tomogram = small_tomogram(tmp_path / "in.mrc", (60, 72, 60))

    def seconds(**more) -> float:
        _, number, unit, *_ = opening(tomogram, BlindSet("voxel"), **more)["time"].split()
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]

    assert seconds(steps=38) < seconds(steps=1000) < seconds(steps=100_000)
    assert seconds(steps=100_000, minutes=2) < seconds(steps=100_000)
    assert seconds(steps=1, mirrors=True) > seconds(steps=1)


def test_the_time_counts_the_voxels_of_each_tomogram(tmp_path, monkeypatch):
    """Of several that differ in size, in any order: their sum."""
    counts = []
    monkeypatch.setattr(RunOpening, "_seconds", lambda self, voxels: counts.append(voxels) or 1.0)
    small, large = small_tomogram(tmp_path / "a.mrc", (24, 36, 30)), small_tomogram(tmp_path / "b.mrc", (48, 36, 32))
    for first, *others in ((small, large), (large, small)):
        assert opening(first, BlindSet("voxel"), others)["tomogram"].endswith(", and 1 more")
    assert counts == [24 * 36 * 30 + 48 * 36 * 32] * 2


@pytest.mark.parametrize(("error", "words"), [
    ("Found no NVIDIA driver on your system.", "there is no NVIDIA driver"),
    ("The NVIDIA driver on your system is too old (found version 11040).",
     "too old for this PyTorch, it is of CUDA 11.4"),
    ("No CUDA GPUs are available", "no GPU was found"),
])  # fmt: skip
def test_why_there_is_no_gpu_is_said(monkeypatch, error, words):
    """Of a PyTorch that has CUDA, by what it says itself; of one that has not, that."""

    def init() -> None:
        raise RuntimeError(error)

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "init", init)
    assert words in device_reason(CPU)
    assert device_reason(CPU, "cpu") == "as asked for"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert device_reason(CPU).endswith("this PyTorch is built without CUDA")
    monkeypatch.setattr(devices.Path, "exists", lambda path: True)
    assert device_reason(CPU) == "there is an NVIDIA GPU, but this PyTorch is built without CUDA"


@pytest.mark.parametrize("steps", [1, 3, 40, 300, 601])
@pytest.mark.parametrize("distils", [False, True])
def test_the_stages_of_a_plan_follow_each_other(steps, distils):
    """Each begins where the one before ends, and all have one total; a fit that is only settled has no places."""
    plan = StepPlan(steps, start="start.pt")
    places = [plan.place(number, 25, distils) for number in range(1, 4 if distils else 3)]
    assert {place.count for place in places} == {len(places)}
    assert len({place.total for place in places}) == 1
    before = [place.before for place in places]
    assert before[0] == 0
    assert before == sorted(set(before))
    assert before[-1] < places[0].total
    assert plan.blind_place(25, only_settle=True) is None
    assert plan.blind_place(25, only_settle=False) == plan.place(1, 25, plan.distils(lambda minutes: 1e9))


def test_a_bar_of_a_stage_has_the_total_of_all(capsys):
    """It begins where the stage before ends; one without a place has its own."""
    second = StagePlace(2, 3, 5, 20)
    for place, words in ((second, ("stage 2 of 3, refining: ", " 9/20 ")), (None, ("refining: ", " 4/4 "))):
        engine = Engine(lambda engine, batch: None)
        Progress(Engine(lambda engine, batch: None), name="refining", place=place).attach(engine)
        engine.run([0] * 4, max_epochs=1)
        said = capsys.readouterr().err
        assert all(word in said for word in words), said


def test_the_opening_comes_before_the_first_bar_and_is_left_out_where_it_is_asked_to_be(tmp_path, capsys):
    """With --quiet and --json-lines nothing is said; the bars count the stages."""
    source = str(small_tomogram(tmp_path / "in.mrc"))
    words = ["denoise", source, "--steps", "4", "--window", "16,24,16", "--tilt-axis", "Y", "--blind", "plane"]
    assert main([*words, str(tmp_path / "a.mrc")]) == 0
    said = capsys.readouterr().err
    places = [said.index(part) for part in ("tomogram:   ", "device:", "tilt axis:  y, as given", "stage 1 of ")]
    assert places == sorted(places)
    assert "stage 2 of " in said
    for number, option in enumerate(("--quiet", "--json-lines")):
        assert main([*words, str(tmp_path / f"{number}.mrc"), option]) == 0
        assert "device:" not in capsys.readouterr().err
