"""The benchmark of many tomograms counts what a way takes, fit included, and compares only what is complete."""

from __future__ import annotations

import json
from functools import partial

import pytest

from cryoshuffle.commands.cli import build_parser

SETTINGS = {
    "cases": ["wbp", "aligned"], "shape": [16, 24, 24], "snr": {"wbp": 0.061, "aligned": 0.19}, "ratios": [1.0, 0.5],
    "fitted": 1, "window": [12, 24, 12], "steps": None, "few": 60,
}  # fmt: skip


@pytest.fixture
def many(load_script):
    return load_script("bench.many")


def _result(way, tomogram, correlation, steps=0, seconds=1.0, case="wbp"):
    made = {"case": case, "way": way, "tomogram": tomogram, "scores": {"correlation": correlation}}
    return {**made, "steps": steps, "seconds": seconds, "machine": "M", "commit": "abc", "version": "V"}


FIT = {"case": "wbp", "way": "fit", "steps": 300, "seconds": 100.0, "machine": "M", "commit": "abc", "version": "V"}
RESULTS = [
    FIT,
    _result("shared", 0, 0.7),
    _result("shared", 1, 0.4),
    _result("tuned", 0, 0.9, 60, 20.0),
    _result("alone", 0, 0.8, 300, 90.0),
    _result("alone", 1, 0.4, 250, 80.0),
    _result("other", 0, 0.3),
    _result("fast", 0, 0.2, case="aligned"),
]


def _row(table, start):
    return [cell.strip() for cell in next(s for s in table.splitlines() if s.startswith(f"| {start}")).split("|")[1:-1]]


def test_the_fit_of_a_network_counts_once_for_all_that_need_it(many):
    """Steps and seconds are those of all tomograms; without the fit, or with another session's, there is no sum."""
    assert many.totals(RESULTS[:-1], "shared") == (300, 102.0)
    assert many.totals(RESULTS[:-1], "alone") == (550, 170.0)
    assert many.totals(RESULTS[1:-1], "shared") is None
    assert many.totals(RESULTS[:-1], "other") is None


def test_only_what_is_complete_is_compared(many):
    """A difference and a sum need all tomograms on both sides; what is not there is a dash, or no row."""
    table = many.session_table(RESULTS, SETTINGS, "wbp")
    assert _row(table, "CC") == ["CC", "1, fitted", "2, new", "mean, less `denoise`'s", "steps", "s"]
    assert _row(table, "`apply net.pt`")[1:] == ["0.700", "0.400", "-0.050", "300", "102"]
    assert _row(table, "`denoise --steps 60 --warm-start net.pt`")[1:] == ["0.900", "–", "", "", ""]
    assert _row(table, "`denoise` |")[1:] == ["0.800", "0.400", "", "550", "170"]
    assert _row(table, "`apply` of the `net.pt` of session aligned")[1] == "0.300"
    assert "--effort fast" not in table
    alone_missing = [r for r in RESULTS if (r["way"], r.get("tomogram")) != ("alone", 1)]
    assert _row(many.session_table(alone_missing, SETTINGS, "wbp"), "`apply net.pt`")[3] == ""


def test_the_section_stands_beside_the_others(many, load_script):
    """Machine, commit and version are named once; the rest of the page stays; a session without results is left out."""
    section = many.many_section(RESULTS[:-1], SETTINGS)
    replace = partial(load_script("bench.markdown").replace_section, begin=many.BEGIN, end=many.END)
    page = replace("# Benchmarks\n\n## Speed\n", section)
    assert page.startswith("# Benchmarks\n\n## Speed\n")
    assert replace(page, section) == page
    assert "- machine: M\n- commit: abc\n- version: V" in page
    assert "SNR 0.061; tomogram 2 has 0.5 times that." in page
    assert "Session aligned" not in page
    assert "Session aligned" in many.many_section(RESULTS, SETTINGS)


def test_each_way_is_a_command_with_its_network_and_its_steps(many, tmp_path):
    """What is run is a line that the program understands; placeholders are gone; only whole fits take ``--steps``."""
    job = many.Job(tmp_path, 3, None, 0, 60, "cpu", None)
    nets = {many.NET: tmp_path / "own.pt", many.OTHER: tmp_path / "other.pt"}
    told = {**SETTINGS, "steps": 7, "few": 5}
    parsed = {way: build_parser().parse_args(many.words_of(way, job, nets, told)) for way in many.WAYS}
    assert {way: options.command for way, options in parsed.items() if options.command == "apply"}.keys() == {
        "shared", "other",
    }  # fmt: skip
    assert parsed["shared"].checkpoint == str(tmp_path / "own.pt")
    assert parsed["other"].checkpoint == str(tmp_path / "other.pt")
    steps = {way: options.steps for way, options in parsed.items() if options.command == "denoise"}
    assert steps == {"fast": None, "settled": None, "few": 5, "tuned": 5, "alone": 7}
    assert all(options.window == [12, 24, 12] for options in parsed.values() if options.command == "denoise")
    starts = {way: options.warm_start for way, options in parsed.items() if options.command == "denoise"}
    assert starts == {**dict.fromkeys(starts), "settled": str(tmp_path / "own.pt"), "tuned": str(tmp_path / "own.pt")}


def test_a_session_is_taken_up_where_it_was_left(many, tmp_path, capsys):
    """What is finished is not run again; other settings are refused for the same work, and names that there are not."""
    arguments = ["--cases", "wbp", "--ratios", "1,0.5", "--fitted", "1", "--shape", "16,24,24", "--ways", "noisy"]
    arguments += ["--work", str(tmp_path / "work"), "--docs", str(tmp_path)]
    many.main(arguments)
    assert "wbp_1, noisy: CC" in capsys.readouterr().out
    written = json.loads((tmp_path / "data" / "benchmarks_many.json").read_text(encoding="utf-8"))
    one, two = (r["scores"]["correlation"] for r in written["results"])
    assert one > two, "half the SNR"
    page = (tmp_path / "explain" / "benchmarks.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in page + json.dumps(written)
    many.main([*arguments, "--ways", "noisy,gaussian"])
    said = capsys.readouterr().out
    assert "noisy" not in said
    assert "wbp_0, gaussian: CC" in said
    many.main([*arguments, "--report-only"])
    assert "Gaussian" in (tmp_path / "explain" / "benchmarks.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit, match="was begun with few 60"):
        many.main([*arguments, "--few", "7"])
    for wrong, sentence in ((["--ways", "none"], "there is no way 'none'"), (["--fitted", "3"], "--fitted is 3")):
        with pytest.raises(SystemExit):
            many.main([*arguments, *wrong])
        assert sentence in capsys.readouterr().err
