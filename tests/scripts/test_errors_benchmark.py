"""The benchmark of the error map: a map that is right is seen to be, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parent.parent.parent / "docs" / "data" / "benchmarks_errors.json"
POWER = {"bands": [1.0, 0.9, 0.7, 0.5], "regions": [0.9, 1.0], "removed": [1.01, 1.02, 1.03, 1.04]}
ORIGIN = {"machine": "two cores", "commit": "abc", "versions": "torch 2"}


@pytest.fixture
def errors(load_script):
    """The program, as a module."""
    return load_script("bench.errors")


def test_a_right_map_has_ratios_of_1_and_half_of_it_2(errors):
    """Normal errors, as large as the map says; the halved map is the negative control."""
    random = np.random.default_rng(0)
    sigma = random.uniform(1, 3, (40, 40, 40))
    error = sigma * random.normal(size=sigma.shape)
    right, half = errors.calibration(error, sigma), errors.calibration(error, sigma / 2)
    assert right["ratios"] == pytest.approx([1] * errors.PARTS, abs=0.05)
    assert right["within_two"] == pytest.approx(0.954, abs=0.005)
    assert half["ratios"] == pytest.approx([2] * errors.PARTS, abs=0.1)
    assert half["within_two"] < 0.75


def test_a_map_of_the_right_size_in_the_wrong_places_is_seen(errors):
    """Shuffled, it is right on the whole and in no part."""
    random = np.random.default_rng(1)
    sigma = random.uniform(1, 5, (40, 40, 40))
    error = sigma * random.normal(size=sigma.shape)
    shuffled = random.permutation(sigma.ravel()).reshape(sigma.shape)
    ratios = errors.calibration(error, shuffled)["ratios"]
    assert ratios[0] > 1.5
    assert ratios[-1] < 0.75


def test_all_that_is_finished_is_on_the_page_with_where_it_is_from(errors, tmp_path):
    """Cases in their order, whatever was run last; other efforts are left out; halves where there are any."""
    for case, seed, effort in (("wbp", 1, "fast"), ("white", 0, "fast"), ("wbp", 0, "fast"), ("wbp", 2, "best")):
        (folder := tmp_path / f"{case}_{seed}").mkdir()
        one = {"case": case, "seed": seed, "effort": effort, "ratios": [1.0] * errors.PARTS, "within_two": 0.95}
        one |= {"wrong": {"level kept": 1.22, "level measured": 1.0}, "residual": POWER, **ORIGIN, "commit": f"c{seed}"}
        (folder / f"errors_{effort}.json").write_text(json.dumps(one))
    content = errors.load_results(tmp_path, "fast")
    assert [(one["case"], one["seed"]) for one in content["cases"]] == [("white", 0), ("wbp", 0), ("wbp", 1)]
    page = errors.section(content)
    assert "- commit: c0 (seed 0); c1 (seed 1)" in page
    assert "| 1.01 | 1.02 | 1.03 | 1.04 |" in page
    assert "real cell" not in page
    halves = {"halves": ["even.mrc", "odd.mrc"], "within_two": {"whole": 0.96}, "residual": POWER, **ORIGIN}
    (tmp_path / "halves_fast.json").write_text(json.dumps(halves))
    page = errors.section(errors.load_results(tmp_path, "fast"))
    assert "| whole | 96.0% |" in page
    assert "real cell, even half" in page


def test_the_page_is_what_the_program_makes_of_its_numbers(errors):
    """The section in the documents is that of the numbers beside it."""
    page = (DATA.parent.parent / "explain" / "benchmarks.md").read_text(encoding="utf-8")
    assert errors.section(json.loads(DATA.read_text(encoding="utf-8"))).strip() in page


@pytest.mark.parametrize("words", [
    ["--cases", "nonsense"], ["--seeds", "x"], ["--effort", "much"], ["--shape", "8,8,8"], ["--shape", "a"],
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_a_folder_is_made(errors, tmp_path, words, capsys):
    """With argparse's own exit."""
    with pytest.raises(SystemExit) as stop:
        errors.main(["--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs"), *words])
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
