"""The plan for many tomograms: no schedule beats its closed form, and the page says what the numbers say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def plan(load_script):
    return load_script("bench.scaling")


def makespan_s(job, site, attempts):
    """Event by event: each GPU takes the next attempt, those that move share the file system equally."""
    phases = [("move", job.read_gib), ("compute", job.cpu_s + job.gpu_s), ("move", job.write_gib)]
    waiting, running, now = attempts, [], 0.0
    while waiting or running:
        start = min(waiting, site.gpus - len(running))
        waiting -= start
        running += [[0, phases[0][1]] for _ in range(start)]
        moving = sum(phases[phase][0] == "move" for phase, _ in running)
        rates = {"move": min(site.link_gib_per_s, site.shared_gib_per_s / max(1, moving)), "compute": 1.0}
        step = min(rest / rates[phases[phase][0]] for phase, rest in running)
        now += step
        for run in running:
            run[1] -= step * rates[phases[run[0]][0]]
            while run[0] < len(phases) and run[1] <= 1e-9:
                run[0] += 1
                run[1] = phases[run[0]][1] if run[0] < len(phases) else 0.0
        running = [run for run in running if run[0] < len(phases)]
    return now


@pytest.mark.parametrize(("gpus", "attempts"), [(1, 3), (3, 12), (3, 11), (4, 15)])
def test_without_a_limit_it_takes_whole_rounds(plan, gpus, attempts):
    """Of all GPUs; a round more would be too many (control)."""
    job, site = plan.Job(read_gib=4, cpu_s=10, gpu_s=20, write_gib=2), plan.Site(gpus, math.inf, 0.5)
    bound = plan.bounds_s(job, site, attempts)
    assert bound["file system"] == 0
    assert makespan_s(job, site, attempts) == pytest.approx(bound["runs"])
    assert plan.bounds_s(job, site, attempts + gpus)["runs"] > 1.1 * makespan_s(job, site, attempts)


@pytest.mark.parametrize("shared", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("cpu_s", "gpu_s"), [(0.0, 0.0), (3.0, 5.0), (30.0, 1.0)])
@pytest.mark.parametrize(("read_gib", "write_gib"), [(4, 2), (1, 7)])
def test_it_takes_neither_less_nor_more_than_the_closed_form(plan, shared, cpu_s, gpu_s, read_gib, write_gib):
    """Neither bound is beaten, both together suffice; with nothing to compute a full file system alone decides."""
    job, site = plan.Job(read_gib, cpu_s, gpu_s, write_gib), plan.Site(4, shared, 1.0)
    bound = plan.bounds_s(job, site, 13)
    assert max(bound.values()) * (1 - 1e-9) <= makespan_s(job, site, 13) <= sum(bound.values()) * (1 + 1e-9)
    if cpu_s + gpu_s == 0 and shared <= 1:
        assert makespan_s(job, site, 13) == pytest.approx(bound["file system"])


def test_the_bottleneck_is_what_helps_most(plan):
    """The file system where it is full, else the longest part of a run."""
    for job, site, expected in (
        (plan.Job(4, 1, 90, 2), plan.Site(4, 10, 1), "GPU"),
        (plan.Job(4, 90, 1, 2), plan.Site(4, 10, 1), "the node's processor"),
        (plan.Job(4, 1, 1, 2), plan.Site(4, 10, 1), "link to the file system"),
        (plan.Job(4, 1, 90, 2), plan.Site(4, 0.1, 1), "shared file system"),
    ):
        assert plan.bottleneck(job, site, 100) == expected
    assert plan.bounds_s(plan.Job(4, 10, 20, 2), plan.Site(2, 0.5, 1.0), 3) == {"runs": 84.0, "file system": 36.0}


def test_the_page_says_what_the_numbers_say(plan):
    """Its tables are those of the numbers beside it, and these follow from what was measured and assumed."""
    content = json.loads((ROOT / "docs" / "data" / "scaling.json").read_text(encoding="utf-8"))
    assert content["assumed"] == plan.ASSUMED
    assert content["scenarios"] == plan.plan(content["known"], content["measured"], content["assumed"])
    page = (ROOT / "docs" / "explain" / "scaling.md").read_text(encoding="utf-8")
    assert plan.section(content).rstrip("\n") in page
    content["scenarios"][0]["bounds_s"]["runs"] *= 2
    assert plan.section(content).rstrip("\n") not in page
    for scenario in content["scenarios"]:
        assert 0 <= scenario["gpu_idle_share_at_least"] < 1
