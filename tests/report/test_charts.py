"""Charts have one size, hold what they are given, and look the same in the page and in a file."""

from __future__ import annotations

import pytest

from cryoshuffle.report.charts import HEIGHT, WIDTH, chart_image, fsc_chart, line_chart


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("logarithmic", [False, True])
def test_all_that_is_drawn_lies_in_the_chart(count, logarithmic):
    """Curves, lines across and ticks, of any number of curves and any range; the picture has the size of the page's."""
    curves = {f"{scale:g}": [(x / 7, scale * (x + 1)) for x in range(8)] for scale in (1e-6, 1.0, 30.0, 1e5)[:count]}
    chart = line_chart("title", curves, "x", "y", logarithmic, levels=() if logarithmic else (0.5,))
    left, top, right, bottom = chart.box
    assert 0 < left < right < WIDTH
    assert 0 < top < bottom < HEIGHT
    assert all(left <= x <= right and top <= y <= bottom for points in chart.curves.values() for x, y in points)
    assert all(left <= x <= right for x, _ in chart.x_ticks)
    assert all(top <= y <= bottom for y, _ in (*chart.y_ticks, *chart.levels))
    assert len(chart.x_ticks) >= 3
    assert chart_image(chart).size == (2 * WIDTH, 2 * HEIGHT)


def test_a_tick_stands_where_its_number_is():
    """Upwards, across, and in powers of ten."""
    chart = line_chart("title", {"one": [(0, 0), (10, 100)]}, "x", "y")
    ends = {"0": chart.curves["one"][0], "10": chart.curves["one"][1]}
    assert {words: x for x, words in chart.x_ticks if words in ends} == {words: x for words, (x, _) in ends.items()}
    assert {words: y for y, words in chart.y_ticks}["100"] == ends["10"][1]
    chart = line_chart("title", {"one": [(0, 1e-3), (1, 0), (2, 1e3)]}, "x", "y", logarithmic=True)
    assert len(chart.curves["one"]) == 2, "0 has no logarithm"
    assert {words: y for y, words in chart.y_ticks}["1e0"] == pytest.approx(sum(y for _, y in chart.curves["one"]) / 2)


def test_a_correlation_is_drawn_from_0_to_1():
    """With its threshold, in cycles per Å where the voxel size is known."""
    curves = {"one": ([0.1, 0.5], [0.4, 0.6])}
    plain, sized = (fsc_chart("title", curves, [0.143], size) for size in (None, 10.0))
    assert [words for _, words in plain.levels] == ["0.143"]
    assert {"0", "1"} <= {words for _, words in plain.y_ticks}
    assert plain.curves == sized.curves
    assert ("0.5" in dict(map(reversed, plain.x_ticks)), "0.05" in dict(map(reversed, sized.x_ticks))) == (True, True)
    assert plain.x_label.endswith("cycles per voxel")
    assert sized.x_label.endswith("cycles per Å")


def test_nothing_to_draw_is_refused():
    """By the title of the chart."""
    with pytest.raises(ValueError, match="nothing to draw of power"):
        line_chart("power", {"one": [(1, 0)]}, "x", "y", logarithmic=True)
