"""The verdicts of the report: each number is good on one side of its threshold and a reason to look on the other."""

from __future__ import annotations

import pytest

from cryoshuffle.report.findings import findings

LATTICE = {"stride": 3, "scatter": 0.1}
PAINTED = {"where": [5, 6], "levels": [0.9, 1.0, 1.2]}
HALVES = {"frequency": [0.1, 0.2], "fsc": [0.9, 0.1], "crossing": 0.15, "resolution_angstrom": 60.0}


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
            {"numbers": {"residual": {"low_frequency_correlation": -0.34}}},
            {"numbers": {"residual": {"low_frequency_correlation": -0.36}}},
            "look",
            "coarse detail in common",
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
            {"numbers": {"painted": {**PAINTED, "least": -0.05}}},
            {"numbers": {"painted": {**PAINTED, "least": -0.15}}},
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
        assert f"is {ratio:.2f} times as strong where there is structure as elsewhere, good below 1.35" in one.words
    for content, limit in (
        ({"residual": {"low_frequency_correlation": 0.1}}, "+0.10, good within ±0.35"),
        ({"residual": {"low_frequency_correlation": 0.4}}, "+0.40, good within ±0.35"),
        ({"painted": {**PAINTED, "least": 0.2}}, "+0.20 or more in every region, good above -0.1"),
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


def test_detail_that_runs_against_the_tomogram_is_told():
    """By its band; where every slope is above 0 nothing is said."""
    assert findings(None, None, {"slopes": [3.0, 2.0, 1.5, 1.1]}) == []
    (found,) = findings(None, None, {"slopes": [3.0, -0.2, 1.5, 1.1]})
    assert found.level == "bad"
    assert "Detail of 0.7 to 1.4 voxels" in found.words


def test_uneven_noise_is_told_where_it_was_taken_for_even():
    painted = {**PAINTED, "least": 0.1}
    for levels, count in ((True, 0), (False, 1)):
        found = findings(None, {"trust": 0.8, "levels": levels}, {"painted": painted})
        assert sum("was taken for even" in one.words for one in found) == count


def test_a_weight_above_all_is_told():
    refinement = {"trust": 0.8, "weight": 1.7}
    assert not any("not quite known" in one.words for one in findings(None, refinement, {}))
    found = findings(None, {**refinement, "excessive": True}, {})
    assert any("has 1.70 times the network" in one.words for one in found)
