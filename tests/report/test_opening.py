"""What a run says before and while it works."""

from __future__ import annotations

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from phantoms import CONFIGS, small_tomogram

from cryoshuffle import devices
from cryoshuffle.commands.cli import main
from cryoshuffle.devices import device_reason
from cryoshuffle.errors import InputError
from cryoshuffle.fit.stages import StepPlan
from cryoshuffle.inference.error_map import count_passes
from cryoshuffle.lattice import BlindSet
from cryoshuffle.report.log import Progress, StagePlace
from cryoshuffle.report.opening import GPUS, Pace, RunOpening

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
    said = opening(tomogram, BlindSet("plane", "x"), minutes=0.5)
    assert said["effort"].strip() == "standard, 38 steps, or what 0.5 minutes allow of them"
    assert "not needed" in opening(tomogram, BlindSet("voxel"))["tilt axis"]


def seconds(words: str) -> float:
    """The time that an opening says."""
    _, number, unit, *_ = words.split()
    return float(number) * {"s": 1, "min": 60, "h": 3600}[unit.rstrip(",")]


def test_the_time_follows_pace_steps_limit_and_passes():
    """More steps and more passes take longer; a limit of minutes less, but never less than its stages take at least."""
    shape, pace = (60, 72, 60), Pace(step_s=0.5, voxel_s=1e-4, rest_s=5.0)

    def expected(steps: int = 38, **more) -> float:
        one = RunOpening([], SimpleNamespace(), torch.nn.Identity(), CPU, "cpu", "standard", steps, 48, **more)
        return one._seconds([shape], pace)

    assert expected(1000) - expected(38) == pytest.approx(962 * pace.step_s)
    assert 60 < expected(100_000, minutes=1) < expected(100_000)
    few, many = StagePlace(1, 3, 0, 50), StagePlace(1, 3, 0, 5000)
    assert expected(place=many, minutes=1e-6) == expected(place=few) < 0.2 * expected(place=many)
    for ways in ((), (False, "error.mrc"), (True,), (True, "error.mrc")):
        passes = count_passes(*ways)
        assert expected(passes=passes) - expected() == pytest.approx(passes * math.prod(shape) * pace.voxel_s)
    assert expected(passes=count_passes(error="error.mrc")) > expected(passes=count_passes()) > expected()


def test_the_pace_of_a_cpu_is_measured(tmp_path):
    """A network that takes ten times as long makes every part of the run ten times as long."""

    class Sleeping(torch.nn.Module):
        def __init__(self, nap: float) -> None:
            super().__init__()
            self.nap = nap

        def forward(self, x):
            time.sleep(self.nap)
            return x

    slow, fast = (
        RunOpening([], SimpleNamespace(), Sleeping(nap), CPU, "cpu", "standard", 38, 12)._measured_pace()
        for nap in (0.2, 0.0)
    )
    assert slow.step_s > 0.2 > fast.step_s
    assert slow.voxel_s > fast.voxel_s


def test_a_run_with_an_error_map_says_a_longer_time(tmp_path, monkeypatch, capsys):
    """The config counts the passes of the command: one, five with --error, eight times as many with --mirrors."""
    counts = []

    def count(self, shapes):
        counts.append(self.passes)
        raise InputError("enough")

    monkeypatch.setattr(RunOpening, "_time", count)
    source = str(small_tomogram(tmp_path / "in.mrc"))
    words = ["denoise", source, str(tmp_path / "out.mrc"), "--steps", "2", "--window", "16,24,16", "--blind", "voxel"]
    error = ["--error", str(tmp_path / "error.mrc")]
    for more in ([], error, ["--mirrors"], ["--effort", "best", *error]):
        assert main([*words, *more, "--overwrite"]) == 2
    assert main(["fit", source, "--checkpoint", str(tmp_path / "c.pt"), *words[3:]]) == 2
    assert capsys.readouterr().err.count("enough") == len(counts)
    assert counts == [1, 5, 8, 40, 0]


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_gpu_is_not_taken_for_a_cpu(tmp_path, monkeypatch, kind):
    """Of one that runs were timed on their time is said, of any other that it is not known: no pass is timed."""

    def never(self):
        raise AssertionError("a pass was timed")

    tomogram = small_tomogram(tmp_path / "in.mrc", (60, 72, 60))
    monkeypatch.setattr(RunOpening, "_measured_pace", never)
    monkeypatch.setattr("cryoshuffle.report.opening.device_name", lambda device: "GPU of a stub")
    device = torch.device(kind)
    said = opening(tomogram, BlindSet("voxel"), device=device)
    assert said["time"].strip().startswith("not known for this GPU")
    monkeypatch.setitem(GPUS, "GPU of a stub", Pace(1.0, 0.0, 0.0))
    said = opening(tomogram, BlindSet("voxel"), device=device, steps=300)
    assert said["time"].strip() == "about 5 min, as runs on such a GPU took"
    with pytest.raises(AssertionError, match="timed"):
        opening(tomogram, BlindSet("voxel"))


def test_the_time_of_a_known_gpu_is_that_of_its_measured_runs():
    """The two whole runs of docs/data/gpu_graph.json, within a quarter of their time; a CPU's pace is far off."""
    runs = json.loads((CONFIGS.parent / "docs" / "data" / "gpu_graph.json").read_text())
    pace = GPUS[runs["machine"]["device"]]
    for steps in (300, 1500):
        one = RunOpening([], SimpleNamespace(), torch.nn.Identity(), CPU, "auto", "standard", steps, 48, passes=1)
        took = runs[f"{steps} steps"]["seconds"]
        assert one._seconds([(80, 144, 144)], pace) == pytest.approx(took, rel=0.25)
        assert one._seconds([(80, 144, 144)], Pace(0.5, 1e-6, 6.0)) > 2 * took


def test_the_time_counts_the_voxels_of_each_tomogram(tmp_path, monkeypatch):
    """Of several that differ in size, in any order: their sum."""
    monkeypatch.setattr(RunOpening, "_measured_pace", lambda self: Pace(0.0, 1.0, 0.0))
    small, large = small_tomogram(tmp_path / "a.mrc", (24, 36, 30)), small_tomogram(tmp_path / "b.mrc", (48, 36, 32))
    times = []
    for first, *others in ((small, large), (large, small)):
        said = opening(first, BlindSet("voxel"), others, passes=3)
        assert said["tomogram"].endswith(", and 1 more")
        times.append(seconds(said["time"]))
    alone = [seconds(opening(one, BlindSet("voxel"), passes=3)["time"]) for one in (small, large)]
    assert times == pytest.approx([sum(alone)] * 2, rel=0.02)


def test_the_time_counts_the_table_of_what_would_survive(tmp_path, monkeypatch):
    """Where objects are added the run takes longer, but not where the tomogram is too small for them."""
    monkeypatch.setattr(RunOpening, "_measured_pace", lambda self: Pace(0.0, 1.0, 0.0))
    for shape, longer in (((40, 64, 64), True), ((24, 64, 64), False)):
        tomogram, times = small_tomogram(tmp_path / "in.mrc", shape), []
        for adds in (False, True):
            times.append(seconds(opening(tomogram, BlindSet("voxel"), adds_objects=adds)["time"]))
        assert (times[1] > 2 * times[0]) == longer


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
