"""The plan for many tomograms: no simulation beats the closed form, and the page says what the numbers say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def plan(load_script):
    return load_script("bench.scaling")


@pytest.mark.parametrize(("gpus", "tomograms", "nth"), [(1, 3, 0), (3, 12, 0), (3, 11, 0), (3, 12, 4)])
def test_without_a_limit_dask_takes_as_long_as_the_closed_form(plan, gpus, tomograms, nth):
    """Whole rounds of all workers, failed attempts included; a round more would be too many (control)."""
    job, site = plan.Job(read_gib=4, cpu_s=10, gpu_s=20, write_gib=2), plan.Site(gpus, math.inf, 0.5)
    found = plan.simulate(job, site, tomograms, nth)
    assert found["attempts"] == tomograms + (tomograms // nth if nth else 0)
    bound = plan.bounds_s(job, site, found["attempts"])
    assert bound["file system"] == 0
    assert found["makespan_s"] == pytest.approx(bound["runs"], rel=1e-9)
    assert plan.bounds_s(job, site, found["attempts"] + gpus)["runs"] > 1.1 * found["makespan_s"]
    rounds = math.ceil(found["attempts"] / gpus)
    assert found["gpu_idle_share"] == pytest.approx(1 - found["attempts"] * 20 / (gpus * rounds * 42))


@pytest.mark.parametrize("shared", [0.25, 1.0, 4.0])
@pytest.mark.parametrize(("cpu_s", "gpu_s"), [(0.0, 0.0), (3.0, 5.0)])
def test_nothing_beats_the_closed_form(plan, shared, cpu_s, gpu_s):
    """Neither bound is beaten; where there is nothing to compute a full file system alone decides."""
    job, site = plan.Job(4, cpu_s, gpu_s, 2), plan.Site(4, shared, 1.0)
    found = plan.simulate(job, site, 10, nth=5)
    bound = plan.bounds_s(job, site, 12)
    assert found["attempts"] == 12
    assert found["makespan_s"] >= max(bound.values()) * (1 - 1e-9)
    assert found["makespan_s"] <= sum(bound.values()) * (1 + 1e-9)
    if cpu_s + gpu_s == 0 and shared <= 1:
        assert found["makespan_s"] == pytest.approx(bound["file system"], rel=1e-9)


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
    """Its tables are those of the numbers beside it, and each scenario names a bottleneck that its numbers have."""
    content = json.loads((ROOT / "docs" / "data" / "scaling.json").read_text(encoding="utf-8"))
    assert plan.section(content) in (ROOT / "docs" / "explain" / "scaling.md").read_text(encoding="utf-8")
    content["scenarios"][0]["makespan_s"] *= 2
    assert plan.section(content) not in (ROOT / "docs" / "explain" / "scaling.md").read_text(encoding="utf-8")
    for scenario in content["scenarios"][1:]:
        site = plan.Site(content["assumed"]["gpus"], scenario["shared_gib_per_s"], content["assumed"]["link_gib_per_s"])
        job = plan.Job(**scenario["job"])
        assert scenario["bottleneck"] == plan.bottleneck(job, site, scenario["attempts"])
        assert scenario["makespan_s"] >= max(plan.bounds_s(job, site, scenario["attempts"]).values()) * (1 - 1e-9)
