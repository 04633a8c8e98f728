"""The verdicts of the report: each number is good on one side of its threshold and a reason to look on the other."""

from __future__ import annotations

import itertools
import re

import pytest

from cryoshuffle.report.findings import findings, graded
from cryoshuffle.report.verdict import SUBJECTS, Finding, verdict

LATTICE = {"stride": 3, "scatter": 0.1, "excess": 1.0, "imbalance": 1.0}
RESIDUAL = {"correlation_with_result": 0.1, "low_frequency_correlation": 0.1, "autocorrelation": {}}
PAINTED = {
    "correlations": [0.1, -0.05, 0.2],
    "strengths": [0.1, 0.2, 0.1],
    "levels": [0.9, 1.0, 1.2],
    "places": [[5, 6], [7, 8], [9, 10]],
}
REMOVED = {"ratios": [1.0, 1.0, 0.95, 1.1], "errors": [0.003, 0.005, 0.01, 0.03]}
POWER = {"ratios": [1.0, 0.95, 0.8, 0.5], "errors": [0.002, 0.004, 0.008, 0.02]}
EVEN = {"ratios": [0.95, 1.0, 1.05], "errors": [0.01] * 3, "places": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
CONTRADICTED = {"wedge": "y", "contradiction": "the tilt axis is taken to be x, but the missing wedge lies along y"}
NOISE = {"clean": True, "reason": "measured", "autocorrelation": {"z": [0.0] * 4, "x": [0.3, 0.1, 0.0, 0.0]}}
MAP = {"ratio": 1.0, "error": 0.02, "ratios": [0.95, 1.0, 1.1], "errors": [0.05] * 3}
HALVES = {"frequency": [0.1, 0.2], "fsc": [0.9, 0.1], "crossing": 0.15, "resolution_angstrom": 60.0}


def test_a_fit_of_few_steps_is_told():
    """Where a network was fitted; the few steps of --effort fast, or of the blind stage alone, are enough."""
    lines = [{"stage": "fitting", "step": 25}, {"stage": "refining", "step": 50}, {"stage": "refining", "step": 124}]
    fitted, more = {"trust": 0.9, "fitted": True}, [*lines, {"stage": "distilling", "step": 1}]
    told = [one.words for one in findings(NOISE, fitted, {}, lines) if one.subject == "time"]
    assert told == ["The fit was short: 149 steps, good from 150."]
    for refinement, history in ((fitted, more), ({"trust": 0.9, "fitted": False}, lines), (None, lines), (fitted, [])):
        assert not [one for one in findings(NOISE, refinement, {}, history) if one.subject == "time"]


def test_a_wrong_tilt_axis_is_named():
    """Where the noise is clean along another axis than the blind one; where it is along none it is not (control)."""
    lags = {"z": [0.4, 0.1, 0.0, 0.0], "y": [0.01, 0.0, 0.0, 0.0], "x": [0.3, 0.1, 0.0, 0.0]}
    noise = {"clean": False, "reason": "as asked for", "axis": "x", "autocorrelation": lags}
    (found,) = findings(noise, None, {})
    assert found.advice.startswith("Along y the noise is cleaner")
    (found,) = findings({**noise, "axis": "y"}, None, {})
    assert "cleaner" not in found.advice


def test_a_blind_spot_that_was_not_measured_is_not_said_to_fit():
    """Then a good result says that it was not checked."""
    unknown = {**NOISE, "clean": None, "reason": "as asked for"}
    assert not [one for one in findings(unknown, None, {}) if one.subject == "noise"]
    assert (
        "Not checked: the blind spot" in verdict(findings(unknown, None, {"power": {**POWER, "regions": EVEN}})).words
    )
    assert "the blind spot" not in verdict(findings(NOISE, None, {"power": {**POWER, "regions": EVEN}})).advice


def test_a_missing_wedge_along_another_axis_is_to_be_looked_at():
    """With the axis to try; not where there is none, nor in files of older versions (controls)."""
    noise, words = {**NOISE, **CONTRADICTED}, CONTRADICTED["contradiction"]
    (found,) = (one for one in findings(noise, None, {}) if one.subject == "wedge")
    assert (found.level, found.words) == ("look", f"T{words[1:]}.")
    assert "--tilt-axis y" in found.advice
    for none in ({**noise, "contradiction": ""}, NOISE):
        assert not [one for one in findings(none, None, {}) if one.subject == "wedge"]


@pytest.mark.parametrize(
    ("refinement", "words", "advice"),
    [
        ({"trust": 0.2}, "the fit was too short", "a longer fit"),
        ({"trust": 0.2, "fitted": True, "doubt": "", "trusted": True}, "the fit was too short", "a longer fit"),
        ({"trust": 0.2, "fitted": False, "doubt": "", "trusted": True}, "for the starting network", "standard"),
        ({"trust": 0.2, "fitted": False, "doubt": "it leans", "trusted": True}, "it leans", "filtered tomogram.$"),
        ({"trust": 0.0, "fitted": False, "doubt": "gold", "trusted": False}, "is all the .* filter's: gold", "Erase"),
    ],
)
def test_a_small_share_of_the_network_has_the_reason_of_its_run(refinement, words, advice):
    """A fit that was not made is not called too short, and nobody is sent to a longer one by gold."""
    share = next(one for one in findings(NOISE, refinement, {}) if one.subject == "share")
    assert share.level == "look"
    assert re.search(words, share.words)
    assert re.search(advice, share.advice)
    assert ("too short" in share.words) == refinement.get("fitted", True)


@pytest.mark.parametrize(
    ("good", "doubtful", "level", "words"),
    [
        (
            {"noise": {"clean": True, "reason": "measured"}},
            {"noise": {"clean": False, "reason": "measured"}},
            "bad",
            "measured",
        ),
        ({"refinement": {"trust": 0.5}}, {"refinement": {"trust": 0.49}}, "look", "of the result is the network's"),
        (
            {"numbers": {"removed": {**REMOVED, "ratios": [1.0, 1.0, 0.95, 1.38]}}},
            {"numbers": {"removed": {**REMOVED, "ratios": [1.0, 1.0, 0.95, 1.40]}}},
            "look",
            "in common",
        ),
        (
            {"numbers": {"halves": {**HALVES, "beyond_chance": True}}},
            {"numbers": {"halves": {**HALVES, "beyond_chance": False}}},
            "look",
            "",
        ),
        (
            {"numbers": {"signal_left": {"ratio": 1.3, "scatter": 0.05, "where": [1, 2, 3]}}},
            {"numbers": {"signal_left": {"ratio": 1.4, "scatter": 0.05, "where": [1, 2, 3]}}},
            "look",
            "where there is structure",
        ),
        (
            {"numbers": {"painted": PAINTED}},
            {"numbers": {"painted": {**PAINTED, "correlations": [0.1, -0.15, 0.2]}}},
            "bad",
            "negative of the noise",
        ),
        (
            {"numbers": {"seams": {"borders": 1.3, "halfway": 1.0}}},
            {"numbers": {"seams": {"borders": 1.5, "halfway": 1.0}}},
            "look",
            "windows it was denoised in",
        ),
        (
            {"numbers": {"lattice": {"y": {**LATTICE, "excess": 1.2}}}},
            {"numbers": {"lattice": {"y": {**LATTICE, "excess": 1.4}}}},
            "look",
            "along y",
        ),
    ],
)
def test_a_number_is_good_on_one_side_of_its_threshold_only(good, doubtful, level, words):
    """One finding each, with the level of its side, that names what it is of."""
    for content, expected in ((good, "ok"), (doubtful, level)):
        arguments = {"noise": None, "refinement": None, "numbers": {}, **content}
        (found,) = findings(**arguments)
        assert found.level == expected
        assert words in found.words


def test_a_number_stands_beside_its_limit():
    """Of both sides the sentence says how much is good, and no word of it is against the number."""
    for ratio in (0.75, 1.3, 1.4):
        kept = {"ratio": ratio, "scatter": 0.05, "where": [1, 2, 3]}
        (one,) = findings(None, None, {"signal_left": kept})
        assert one.words.startswith("Coarse detail of the residual")
        assert ("below 1 is natural" in one.words) == (ratio < 1)
        assert f"is {ratio:.2f} times as strong where there is structure as elsewhere, good below 1.35" in one.words
    for content, limit in (
        ({"removed": REMOVED}, "have 0.95 to 1.10 times the power of the noise that the model was fitted to"),
        ({"removed": {**REMOVED, "ratios": [1.0, 0.7, 1.0, 1.0]}}, "have 0.70 times the power of the noise"),
        ({"removed": {**REMOVED, "ratios": [1.0, 0.7, 1.0, 1.0]}}, "good from 0.85 to 1.15: noise was left in"),
        ({"removed": {**REMOVED, "ratios": [1.0, 1.0, 1.0, 1.6]}}, "good from 0.7 to 1.3: signal was taken away"),
        ({"residual": {**RESIDUAL, "low_frequency_correlation": -0.2}}, "-0.20, good above -0.1"),
        ({"painted": PAINTED}, "-0.05 or more in every region, good above -0.1"),
        ({"seams": {"borders": 1.1, "halfway": 1.0}}, "1.10 times those nearby, good below 1.4"),
        ({"lattice": {"y": {**LATTICE, "excess": 1.2}}}, "1.20 times the power nearby, good below 1.30"),
        ({"halves": {**HALVES, "beyond_chance": True}}, "to 60.0 Å, 30% of the frequencies that the voxels hold"),
    ):
        assert limit in findings(None, None, content)[0].words


def test_a_result_that_is_mostly_the_filter_says_why():
    """The share of each stands in the sentence, the reason only where the network has the lesser part."""
    much, little = (findings(None, {"trust": trust}, {})[0].words for trust in (0.8, 0.2))
    assert "80% of the result is the network's, 20% that of the best linear filter" in much
    assert "too small or too noisy" not in much
    assert "20% of the result is the network's, 80% that of the best linear filter" in little
    assert "too small or too noisy" in little


@pytest.mark.parametrize(("result", "residual", "level"), [(1e-6, 1.0, "bad"), (1.0, 1e-9, "look"), (0.001, 0.9, None)])
def test_a_result_without_anything_or_without_a_change_is_told(result, residual, level):
    """Before all else; of a noisy tomogram that was denoised nothing is said."""
    found = findings(None, None, {"kept": {"result": result, "residual": residual}})
    assert [one.level for one in found] == ([] if level is None else [level])
    assert SUBJECTS[0] == "empty"


def test_detail_that_runs_against_the_tomogram_is_told():
    """By its band; where every slope is above 0 nothing is said."""
    assert findings(None, None, {"slopes": [3.0, 2.0, 1.5, 1.1]}) == []
    (found,) = findings(None, None, {"slopes": [3.0, -0.2, 1.5, 1.1]})
    assert found.level == "bad"
    assert "Detail of 2 to 4 voxels" in found.words
    numbers = {"slopes": [-3.0, -0.2, 1.5, 1.1], "slope_strengths": [0.01, 0.02, 0.9, 0.9]}
    (faint,) = findings(None, None, numbers)
    assert faint.level == "look"
    assert "slope -0.20, good from 0 up. It has 2.0% of the contrast" in faint.words


def test_the_negative_of_the_noise_makes_doubt_where_it_can_be_seen():
    """What is too faint for an eye is told all the same, and where one region has both that one is named."""
    for strengths, level, words in (
        ([0.04, 0.02, 0.9], "look", "-0.50 around y = 5, x = 6, good above -0.1. It has 4.0% of the contrast of the"),
        ([0.04, 0.09, 0.9], "bad", "-0.20 around y = 7, x = 8, good above -0.1. It is a texture that is in no data"),
    ):
        painted = {**PAINTED, "correlations": [-0.5, -0.2, 0.2], "strengths": strengths}
        (one,) = findings(None, None, {"painted": painted})
        assert one.level == level
        assert words in one.words
        assert one.advice


def test_what_a_gaussian_took_is_not_held_against_a_result():
    """Where --smooth was asked for it is named, and structure in the residual is no finding; it is one without it."""
    noise = {"clean": True, "reason": "measured", "autocorrelation": {"y": [0.0] * 4}}
    residual = {**RESIDUAL, "autocorrelation": {"y": [0.5, 0.2, 0.1, 0.0]}}
    numbers = {"residual": residual, "signal_left": {"ratio": 3.0, "scatter": 0.05, "where": [1, 2, 3]}}
    without, smoothed = (findings(noise, None, {**numbers, **more}) for more in ({}, {"smoothed": 0.8}))
    assert sorted(one.subject for one in without if one.level == "look") == ["alike", "kept"]
    assert {one.level for one in smoothed} == {"ok"}
    assert any("A Gaussian of 0.8 voxels lies over the result" in one.words for one in smoothed)


def test_uneven_noise_is_told_where_it_was_taken_for_even():
    for levels, count in ((True, 0), (False, 1)):
        found = findings(None, {"trust": 0.8, "levels": levels}, {"painted": PAINTED})
        assert sum("was taken for even" in one.words for one in found) == count


def test_a_weight_above_all_is_told():
    refinement = {"trust": 0.8, "weight": 1.7}
    assert not any("not quite known" in one.words for one in findings(None, refinement, {}))
    found = findings(None, {**refinement, "excessive": True}, {})
    assert any("has 1.70 times the network" in one.words for one in found)
    bands = [{"weight": 0.1}, {"weight": 1.9}]
    found = findings(None, {"trust": 0.3, "weight": 0.4, "excessive": True, "bands": bands}, {})
    assert any("has in one band of detail 1.90 times the network" in one.words for one in found)
    # The border of a volume alone tells nothing, and the finest band has no share of its own.
    bands = [{"weight": 2.5}, {"weight": 1.6}]
    found = findings(None, {**refinement, "excessive": True, "middle_weight": 1.1, "bands": bands}, {})
    assert any("has in one band of detail 1.60 times the network" in one.words for one in found)


@pytest.mark.parametrize(
    ("power", "level", "words"),
    [
        (POWER, "ok", "as strong as the measured noise: 1.00 times its power in the finest detail"),
        (
            {**POWER, "ratios": [0.66, 0.62, 0.5, 0.3]},
            "bad",
            "0.62 times the power of the measured noise in detail of 2 to 4",
        ),
        (
            {**POWER, "ratios": [0.84, 0.95, 0.8, 0.5]},
            "bad",
            "0.84 times the power of the measured noise in detail of under",
        ),
        (
            {**POWER, "ratios": [1.48, 1.38, 1.1, 0.7]},
            "bad",
            "1.48 times the power of the measured noise in detail of under",
        ),
        (
            {**POWER, "ratios": [1.0, 1.1, 1.3, 2.7]},
            "bad",
            "2.70 times the power of the measured noise in detail of 7 to 15",
        ),
        ({**POWER, "ratios": [1.0, 0.95, 0.3, 0.1]}, "ok", "as strong as"),
        ({"ratios": [0.8, 1.2, 1.3, 2.0], "errors": [0.1, 0.1, 0.2, 0.4]}, "ok", "as strong as"),
    ],
)
def test_a_residual_below_or_above_the_noise_is_told(power, level, words):
    """In fine detail both, in coarse detail, where noise stays in the result, above only; what may be chance is not."""
    _, one, place = findings(NOISE, None, {"power": {**power, "regions": EVEN}})
    assert (one.level, one.subject, place.level) == (level, "power", "ok")
    assert words in one.words
    assert bool(one.advice) == (level == "bad")
    rows = graded(None, {"power": power})
    assert all(state.startswith("good") for *_, state in rows) == (level == "ok")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (1.0, "as strong as the noise that the model was fitted to: 1.00 times its power"),
        (
            0.5,
            "0.50 times the power of the noise that the model was fitted to .*left in, or it is weaker than that",
        ),
        (1.5, "1.50 times the power of the noise that the model was fitted to .*or the noise is stronger than that"),
    ],
)
def test_the_noise_of_another_tomogram_gives_no_doubt(first, words):
    """Where the noise was not measured here, it is not called that, and the way out is a fit; else it is doubt."""
    numbers = {"power": {**POWER, "ratios": [first, 0.95, 0.8, 0.5], "regions": EVEN}}
    one, _ = findings(None, None, numbers)
    assert re.search(words, one.words)
    assert "measured" not in one.words
    assert (one.level, one.advice) == (
        ("ok", "") if first == 1 else ("look", "Fit this tomogram by itself, and compare.")
    )
    assert verdict(findings(NOISE, None, numbers)).word == ("good" if first == 1 else "doubt")


@pytest.mark.parametrize(("ratio", "level"), [(0.76, "ok"), (0.7, "look"), (1.19, "ok"), (1.3, "look"), (1.21, "ok")])
def test_a_place_whose_noise_is_not_as_modelled_is_named(ratio, level):
    """Within the limits, but for chance, nowhere; beyond them by its middle."""
    regions = {**EVEN, "ratios": [0.95, ratio, 1.05]}
    _, place = findings(None, None, {"power": {**POWER, "regions": regions}})
    assert (place.level, place.subject) == (level, "place")
    assert ("z = 4, y = 5, x = 6" in place.words) == (level == "look")


@pytest.mark.parametrize(
    ("content", "level"),
    [
        ({}, "ok"),
        ({"ratio": 0.75}, "ok"),
        ({"ratio": 0.73}, "look"),
        ({"ratio": 1.3}, "ok"),
        ({"ratio": 1.32}, "look"),
        ({"ratios": [0.5, 1.0, 1.1]}, "look"),
        ({"ratios": [0.6, 1.0, 1.1], "errors": [0.1, 0.05, 0.05]}, "ok"),
        ({"ratio": -0.1}, "look"),
    ],
)
def test_an_error_map_beyond_the_halves_by_more_than_chance_is_told(content, level):
    """On the whole or in any part of it; within three standard errors of the limits it may be chance."""
    (one,) = findings(None, None, {"error_map": {**MAP, **content}})
    assert (one.level, one.subject) == (level, "map")
    assert bool(one.advice) == (level == "look")
    assert findings(None, None, {"error_map": {"not_measured": "the halves do not add up"}}) == []


def test_a_fit_that_was_cut_short_is_told():
    """With its stages and steps; one that took all its steps, or ended as its risk was flat, is not."""
    line = {"stage": "refining", "step": 75, "steps": 175}
    assert findings(None, None, {}, [line]) == []
    (one,) = findings(None, None, {}, [{**line, "stage": "fitting"}, {**line, "out_of_time": True}])
    assert (one.level, one.subject) == ("look", "time")
    assert "cut short by --minutes: refining after step 75 of 175." in one.words
    assert "--effort fast" in one.advice


def test_what_could_not_be_measured_is_to_be_looked_at():
    (one,) = findings(None, None, {"not_measured": "too small"})
    assert (one.level, one.subject) == ("look", "measured")


GOOD = {
    "power": {**POWER, "regions": EVEN},
    "removed": REMOVED,
    "residual": {**RESIDUAL, "autocorrelation": {"z": [0.05, 0, 0, 0], "y": [0.9] * 4, "x": [0.3, 0.1, 0.05, 0]}},
    "seams": {"borders": 1.1, "halfway": 1.0},
    "lattice": {"y": LATTICE, "x": LATTICE},
    "error_map": MAP,
}


@pytest.mark.parametrize(
    ("part", "wrong", "subject", "words"),
    [
        ("power", {"ratios": [1.3, 0.95, 0.8, 0.5]}, "power", "1.30 times the power"),
        ("power", {"ratios": [1.0, 0.95, 0.8, 1.4]}, "power", "1.40 times the power"),
        ("power", {"ratios": [0.5, 0.95, 0.8, 0.5]}, "power", "good from 0.85 up"),
        ("power", {"ratios": [1.0, 0.6, 0.8, 0.5]}, "power", "good from 0.7 up"),
        ("removed", {"ratios": [1.2, 1.0, 1.0, 1.0]}, "removed", "under 2 voxels .* 1.20 times .* signal was taken"),
        ("removed", {"ratios": [0.8, 1.0, 1.0, 1.0]}, "removed", "under 2 voxels .* 0.80 times .* noise was left in"),
        ("removed", {"ratios": [1.0, 1.0, 1.0, 0.6]}, "removed", "7 to 15 voxels .* 0.60 times .* good from 0.7"),
        ("residual", {"correlation_with_result": -0.11}, "shared", "correlation -0.11, good above -0.1"),
        ("residual", {"low_frequency_correlation": -0.11}, "shared", "coarse detail -0.11, good above -0.1"),
        ("residual", {"autocorrelation": {"z": [0, 0.11, 0, 0]}}, "alike", "Along z .* by 0.11, good up to 0.1"),
        ("seams", {"borders": 1.5}, "seams", "good below 1.4"),
        ("lattice", {"x": {**LATTICE, "excess": 1.4}}, "stripes", "along x: 1.40 times"),
        ("error_map", {"ratio": 0.67}, "map", "stays in the result with 0.67 ± 0.02 times .* good from 0.8 to 1.25"),
        ("error_map", {"ratios": [0.95, 1.0, 1.5]}, "map", "1.50 ± 0.05 times .* in part 3 of 3 of the map"),
        ("lattice", {"x": {**LATTICE, "imbalance": 1.11}}, "planes", "along x .* have 1.11 times .* good below 1.1"),
    ],
)
def test_what_the_table_tells_to_look_at_the_verdict_has_heard_of(part, wrong, subject, words):
    """One number beyond its limit: one row of its own, one finding, and no good verdict; else all of them good."""
    for content, beyond in (({}, False), (wrong, True)):
        numbers = {**GOOD, part: {**GOOD[part], **content}}
        rows = [what for what, _, state in graded(NOISE, numbers) if state.startswith("look")]
        listed = findings(NOISE, {"trust": 0.8}, numbers)
        wanting = [one for one in listed if one.level != "ok"]
        assert (len(rows), len(wanting)) == (beyond, beyond)
        assert (verdict(listed).word == "good") != beyond
    assert wanting[0].subject == subject
    assert re.search(words, wanting[0].words)


def test_coarse_detail_in_common_is_no_fault():
    """A Wiener filter keeps noise and loses signal alike: its residual correlates with its result by 1."""
    residual = {**GOOD["residual"], "correlation_with_result": 0.5, "low_frequency_correlation": 1.0}
    assert verdict(findings(NOISE, {"trust": 0.8}, {**GOOD, "residual": residual})).word == "good"


def test_bands_and_their_errors_are_as_many_as_there_are_limits():
    """Others are no numbers of ours; a row that silently is not there would be taken for good."""
    for part in ({"ratios": [1.0] * 3}, {"errors": [0.1] * 5}):
        for name, content in (("power", POWER), ("removed", REMOVED)):
            with pytest.raises(ValueError, match="zip"):
                graded(None, {name: {**content, **part}})


def test_a_number_that_is_none_is_not_good():
    """NaN is within no limits."""
    (row,) = graded(None, {"seams": {"borders": float("nan"), "halfway": 1.0}})
    assert row[2].startswith("look")


def test_any_doubt_makes_doubt_any_look_makes_look_and_nothing_else():
    """Of all mixtures of three findings; the order in which they stand does not matter."""
    by_level = {"ok": "good", "look": "look", "bad": "doubt"}
    for levels in itertools.product(by_level, repeat=3):
        listed = [Finding(level, level, subject) for level, subject in zip(levels, SUBJECTS, strict=False)]
        worst = max(levels, key=list(by_level).index)
        for order in itertools.permutations(listed):
            assert verdict(order).word == by_level[worst]
    assert verdict([]).word == "good"


def test_the_reason_is_the_first_in_the_order_of_worth():
    """Of the findings of the worst level; a lesser one gives none, wherever it stands."""
    listed = [Finding("bad", f"{subject} is bad.", subject, f"Mind {subject}.") for subject in SUBJECTS[1:]]
    worst = verdict([Finding("look", "painted is odd.", SUBJECTS[0]), *reversed(listed)])
    assert worst.words == f"doubt. {SUBJECTS[1]} is bad. Mind {SUBJECTS[1]}."
    for first, second in itertools.pairwise(listed):
        assert verdict([second, first]).reason == first.words
    good = verdict([Finding("ok", "It is good.", "noise")])
    assert good.words.startswith(
        "good. Every check is within its limits. Not checked: the power of the residual, stripes"
    )
    assert "the blind spot" not in good.reason
    every = [Finding("ok", "It is good.", subject) for subject in ("noise", "power", "stripes")]
    assert verdict(every).reason == "Every check is within its limits."


def test_every_finding_weighs_something_and_says_what_to_do():
    """All that findings are of stands in the order of worth; what is not good has an advice, what is good has none."""
    wrong = {
        "power": {**POWER, "ratios": [2.0] * 4, "regions": {**EVEN, "ratios": [1.0, 2.0, 0.2]}},
        "removed": {**REMOVED, "ratios": [2.0] * 4},
        "residual": {
            "correlation_with_result": -0.9,
            "low_frequency_correlation": 0.9,
            "autocorrelation": {"y": [0.5, 0.2, 0.1, 0.0]},
        },
        "halves": {**HALVES, "beyond_chance": False},
        "signal_left": {"ratio": 3.0, "scatter": 0.05, "where": [1, 2, 3]},
        "seams": {"borders": 3.0, "halfway": 1.0},
        "lattice": {"y": {**LATTICE, "excess": 3.0, "imbalance": 2.0}},
        "painted": {**PAINTED, "correlations": [-0.5] * 3, "levels": [0.5, 1.0, 1.5]},
        "slopes": [-1.0, 1.0, 1.0, 1.0],
        "not_measured": "too small",
        "kept": {"result": 0.0, "residual": 1.0},
        "error_map": {**MAP, "ratio": 3.0},
    }
    refinement = {"trust": 0.2, "weight": 1.7, "excessive": True, "levels": False}
    history = [{"stage": "refining", "step": 1, "steps": 2, "out_of_time": True}]
    noise = {"clean": False, "reason": "measured", "autocorrelation": {"y": [0.0] * 4}, **CONTRADICTED}
    listed = findings(noise, refinement, wrong, history)
    assert sorted(one.subject for one in listed) == sorted(SUBJECTS)
    assert all(one.level != "ok" and one.advice for one in listed)
    fine = findings({"clean": True, "reason": "measured"}, {"trust": 0.8}, {"power": {**POWER, "regions": EVEN}})
    assert all(one.level == "ok" and not one.advice for one in fine)
