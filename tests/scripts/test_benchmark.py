"""The benchmark says what was measured: medians over seeds, what was not run and why; nothing else is touched."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial

import pytest
import torch
from PIL import Image

SETTINGS = {
    "shape": [32, 48, 48],
    "snr": {"white": 0.1, "wbp": 0.061},
    "steps": 8,
    "peer_steps": 8,
    "cap_minutes": 30,
    "device": "cpu",
    "grids": {"Gaussian": "width in voxels: 1, 2"},
}
ROWS = [("gaussian", "Gaussian", "the truth"), ("auto", "ours", ""), ("topaz", "Topaz", "other tomograms")]


@pytest.fixture
def report(load_script):
    return load_script("bench.report")


@pytest.fixture
def quality(load_script):
    return load_script("bench.quality")


def _result(seed, method="auto", case="wbp", correlation=0.5, seconds=20.0, **more):
    scores = {"correlation": correlation, "psnr_db": 20.0, "ssim": 0.5, "fsc_angstrom": 25.0, **more}
    return {"case": case, "seed": seed, "method": method, "scores": scores, "seconds": seconds}


def _row(table, start):
    return [cell.strip() for cell in next(s for s in table.splitlines() if s.startswith(f"| {start}")).split("|")[1:-1]]


def test_a_row_holds_the_medians_over_seeds_and_their_number(report):
    """The median of each score by itself; a curve that crosses nowhere is worse than any resolution."""
    results = [_result(0, correlation=0.2), _result(1, correlation=0.9, seconds=2.0), _result(2, correlation=0.6)]
    results[0]["scores"]["fsc_angstrom"] = results[1]["scores"]["fsc_angstrom"] = None
    results.append(_result(0, case="white", correlation=0.99))
    row = _row(report.case_table(results, "wbp", ROWS), "ours")
    assert row[2:8] == ["3", "0.600", "20.0", "0.500", "none", "20"]
    assert report.median([30.0, 10.0, 20.0]) == 20.0
    assert report.median([]) is None


def test_seconds_that_other_work_disturbed_are_left_out(report):
    """The median is of the others; where there are none the cell is empty, and no crossing is told."""
    disturbed = _result(1)
    disturbed["seconds"] = None
    rows = [report.case_table(results, "wbp", ROWS) for results in ([_result(0), disturbed], [disturbed])]
    assert [_row(row, "ours")[7] for row in rows] == ["20", ""]


def test_a_peer_that_is_missing_is_told_with_its_reason_in_one_line(report):
    """A reason is a line of the table; a method that ran for one seed of two counts that one."""
    results = [
        {"case": "wbp", "seed": 0, "method": "topaz", "reason": "no environment 'topaz' | none"},
        _result(0),
        {"case": "wbp", "seed": 1, "method": "auto", "reason": "takes more than 1 min"},
    ]
    table = report.case_table(results, "wbp", ROWS)
    assert _row(table, "Topaz")[2:4] == ["0", "not run: no environment 'topaz' / none"]
    assert _row(table, "ours")[2:4] == ["1", "0.500"]
    assert _row(table, "Gaussian")[3] == "not run: not asked for"
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_lattice_and_a_grid_that_ended_are_told(report):
    """Excess is shown beside that of the truth, and an oracle that wanted a strength beyond its grid has a star."""
    lattice = {"lattice_excess": 1.25, "truth_lattice_excess": 1.1, "residue_imbalance": 1.03}
    results = [_result(0, **lattice), {**_result(0, "gaussian"), "at_end": True}]
    table = report.case_table(results, "wbp", ROWS)
    assert _row(table, "ours")[-2:] == ["1.25 (1.10)", "1.03"]
    assert _row(table, "Gaussian")[0] == "Gaussian \\*"
    assert _row(table, "Gaussian")[-2:] == ["", ""]


def test_what_an_earlier_version_made_is_marked(report):
    """In all three tables. Not what is alike in all versions, what others made, or what the newest made (controls)."""
    old, new = ({"version": f"Python 3.11.7, cryoshuffle {number}.0, torch 2.13.0"} for number in ("0.9", "0.10"))
    results = [
        {**_result(0), **new},
        {**_result(0, "best"), **old},
        {**_result(0, "gaussian"), **old},
        {**_result(0, "topaz"), "version": "topaz-em 0.3.20"},
    ]
    rows = [*ROWS, ("best", "longest", "")]
    for table in (report.case_table(results, "wbp", rows), report.overview_table(results, ["wbp"], rows)):
        marked = [line for line in table.splitlines() if "†" in line]
        assert len(marked) == 1
        assert marked[0].startswith("| longest")
    assert _row(report.effort_table(results, ["wbp"]), "wbp")[3:] == ["0.500 (20)", "0.500 (20) †"]


def test_time_and_quality_are_shown_by_effort(report, tmp_path):
    """A row a case; what was not run has a dash; a picture of what there is, and none of nothing."""
    results = [
        _result(0, "fast", correlation=0.4, seconds=40.0),
        *(
            _result(seed, correlation=cc, seconds=s)
            for seed, cc, s in ((0, 0.5, 100.0), (1, 0.7, 90.0), (2, 0.6, 140.0))
        ),
        _result(0, "best", "white", 0.9, 400.0),
    ]
    table = report.effort_table(results, ["white", "wbp"])
    assert _row(table, "wbp") == ["wbp", "–", "0.400 (40)", "0.600 (100)", "–"]
    assert _row(table, "white") == ["white", "–", "–", "–", "0.900 (400)"]
    untimed = report.effort_table([_result(0, seconds=None)], ["wbp"])
    assert _row(untimed, "wbp") == ["wbp", "–", "–", "0.500", "–"]
    report.save_effort_plot(results, ["white", "wbp"], tmp_path / "effort.png")
    with Image.open(tmp_path / "effort.png") as picture:
        assert len(picture.convert("RGB").getcolors(100_000)) > 3
    report.save_effort_plot([], ["wbp"], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    section = report.quality_section(results, SETTINGS, ROWS, {}, {})
    assert "](../pictures/benchmark_effort.png)" in section
    assert "benchmark_effort" not in report.quality_section([_result(0, "gaussian")], SETTINGS, ROWS, {}, {})


def test_only_the_section_between_the_markers_is_replaced(report, load_script):
    """Other sections stay to the letter, wherever they stand, and writing twice changes nothing."""
    first = report.quality_section([_result(0)], SETTINGS, ROWS, {"wbp": ROWS}, {})
    second = report.quality_section([_result(0, correlation=0.7)], SETTINGS, ROWS, {}, {"wbp": "planes"})
    replace = partial(load_script("bench.markdown").replace_section, begin=report.BEGIN, end=report.END)
    page = replace("# Benchmarks\n\n## Speed\n\nfast\n", first)
    page += "\n## Memory\n\nlittle\n"
    changed = replace(page, second)
    assert changed == page.replace(first.rstrip("\n"), second.rstrip("\n"))
    assert replace(changed, second) == changed
    assert "0.700" in changed
    assert "](../pictures/benchmark_wbp.png)" in changed
    assert replace("", first).startswith("# Benchmarks\n\n" + report.BEGIN)
    with pytest.raises(ValueError, match="mend or remove"):
        replace(report.END + report.BEGIN, first)


def test_page_and_numbers_are_written_both_or_neither(load_script, tmp_path, capsys):
    """A page with one marker is refused by its name, and nothing is written; without that marker both are."""
    write = partial(
        load_script("bench.markdown").write_section, tmp_path, "sums", "<b>\n\nnew\n\n<e>\n", ("<b>", "<e>")
    )
    page, numbers = tmp_path / "explain" / "benchmarks.md", tmp_path / "data" / "benchmarks_sums.json"
    page.parent.mkdir()
    page.write_text("# Benchmarks\n\n<b>\n\nold\n", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"benchmarks\.md: the document must hold '<b>' and behind it '<e>'"):
        write([1])
    assert page.read_text(encoding="utf-8") == "# Benchmarks\n\n<b>\n\nold\n"
    assert not numbers.exists()
    page.write_text("# Benchmarks\n\nold\n", encoding="utf-8")
    write([1])
    assert page.read_text(encoding="utf-8") == "# Benchmarks\n\nold\n\n<b>\n\nnew\n\n<e>\n"
    assert json.loads(numbers.read_text(encoding="utf-8")) == [1]
    assert capsys.readouterr().out == f"documents: {page}\n"


def test_a_work_folder_without_results_is_refused(load_script, tmp_path, capsys):
    """Where there are results, their settings are read."""
    options = load_script("bench.options")
    with pytest.raises(SystemExit, match="2"):
        options.stored_settings(tmp_path, argparse.ArgumentParser())
    assert f"{tmp_path} holds no results: run something first" in capsys.readouterr().err
    options.check_settings(tmp_path, {"steps": 8}, "sums")
    assert options.stored_settings(tmp_path, argparse.ArgumentParser()) == {"steps": 8}


@pytest.mark.parametrize(
    ("program", "more"),
    [("bench.quality", ()), ("bench.many", ("--cases", "wbp")), ("bench.downstream", ("--tasks", "ridge"))],
)
def test_sizes_that_cannot_be_simulated_are_refused_before_a_folder_is_begun(
    load_script, tmp_path, capsys, program, more
):
    """In one sentence; the same work folder may then be begun with others."""
    work = tmp_path / "work"
    with pytest.raises(SystemExit, match="2"):
        load_script(program).main([*more, "--shape", "16,8,16", "--work", str(work), "--docs", str(tmp_path)])
    assert "8, 16" in (told := capsys.readouterr().err)
    assert "give three whole numbers of at least 16 along z, y, x" in told
    assert not work.exists()


def test_lists_of_whole_numbers_have_0_and_are_not_empty(load_script):
    """What is no whole number is named."""
    parse = load_script("bench.options").whole_numbers
    assert parse("0,12,3") == [0, 12, 3]
    for text in ("", ",", "1,x", "-1", "1.5", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not whole numbers with commas between"):
            parse(text)


def test_a_picture_of_pure_noise_is_small_enough(report, tmp_path):
    """Nothing compresses worse than noise; large volumes are shown by their middle."""
    noise = torch.randn(200, 210, 220, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "panel.png"
    report.save_panel(dict.fromkeys(("truth", "noisy", "Gaussian", "ours", "peer"), noise), path)
    assert path.stat().st_size <= 300_000
    with Image.open(path) as picture:
        assert picture.width >= 5 * 192


def test_a_benchmark_is_run_resumed_and_reported_without_peers(quality, tmp_path, capsys):
    """What is finished is not run again, an absent peer is told, and other settings are refused for the same work."""
    arguments = ["--cases", "white", "--seeds", "0,1", "--shape", "16,24,24", "--methods", "noisy,gaussian,tv"]
    arguments += ["--work", str(tmp_path / "work"), "--docs", str(tmp_path)]
    quality.main(arguments)
    assert "tv: not run: no --peers given" in capsys.readouterr().out
    written = json.loads((tmp_path / "data" / "benchmarks_quality.json").read_text(encoding="utf-8"))
    noisy, gaussian = ([r for r in written["results"] if r["method"] == m] for m in ("noisy", "gaussian"))
    assert [r["seed"] for r in noisy] == [0, 1]
    assert all(g["scores"]["correlation"] > n["scores"]["correlation"] for g, n in zip(gaussian, noisy, strict=True))
    page = (tmp_path / "explain" / "benchmarks.md").read_text(encoding="utf-8")
    assert "not run: no --peers given" in page
    assert str(tmp_path) not in page + json.dumps(written)

    quality.main(arguments)
    assert "noisy" not in capsys.readouterr().out
    (tmp_path / "explain" / "benchmarks.md").unlink()
    quality.main([*arguments, "--report-only"])
    assert (tmp_path / "explain" / "benchmarks.md").read_text(encoding="utf-8") == page
    with pytest.raises(SystemExit, match="was begun with steps None"):
        quality.main([*arguments, "--steps", "7"])


def test_a_program_that_fails_or_hangs_gives_a_reason_without_paths(quality, tmp_path):
    """The last error it names; what takes too long is ended."""
    methods = sys.modules["bench.methods"]
    job = methods.Job(tmp_path, 0, 8, 8, 0.5, "cpu", tmp_path)
    with pytest.raises(methods.NotRunError, match=r"^takes more than 0\.00833333 min$"):
        methods.call(["sleep", "60"], tmp_path / "log", job)
    said = "ValueError: no /some/where/file\\n  see the manual"
    failing = [sys.executable, "-c", f"import sys; print('{said}'); sys.exit(3)"]
    job = methods.Job(tmp_path, 0, 8, 8, 60, "cpu", tmp_path)
    with pytest.raises(methods.NotRunError, match=r"^ValueError: no file$"):
        methods.call(failing, tmp_path / "log", job)


def test_the_network_on_the_halves_is_the_same_for_the_same_seed(quality):
    """It trains on volumes smaller than its window, and gives a volume of their shape."""
    methods = sys.modules["bench.methods"]
    even, odd = torch.randn(2, 16, 20, 24, generator=torch.Generator().manual_seed(0))
    one, two = (methods.train_on_halves(even, odd, steps=2, seed=3) for _ in range(2))
    assert one.shape == even.shape
    assert torch.equal(one, two)
