"""Line charts of one size: laid out here, drawn into the page as SVG and into a file as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 330
TEXT, ROW = 13, 19
# Told apart by the colour-blind too (Okabe & Ito 2008); of more than four curves colours repeat.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_LEFT, _RIGHT, _BOTTOM = 62, WIDTH - 24, HEIGHT - 46
_SCALE = 2
Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart as it is drawn; positions are in pixels from its upper left corner.

    Attributes:
        title: above it.
        x_label: quantity and unit.
        y_label: quantity and unit.
        curves: points of each, by name.
        x_ticks: position and text of each.
        y_ticks: position and text of each.
        levels: position and text of lines across the chart.
        box: left, top, right and bottom of the part that curves are in.
        explanation: a sentence on how to read it, for the page.
    """

    title: str
    x_label: str
    y_label: str
    curves: dict[str, list[Point]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    levels: list[tuple[float, str]]
    box: tuple[float, float, float, float]
    explanation: str = ""


def _ticks(low: float, high: float, parts: int, least: float = 0.0) -> list[float]:
    """Round numbers from ``low`` to ``high``, about as many as ``parts``."""
    power = 10.0 ** math.floor(math.log10((high - low) / parts))
    step = power * min((1, 2, 5, 10), key=lambda factor: abs((high - low) / (factor * power) - parts))
    step = max(step, least)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
    levels: Sequence[float] = (),
    reach: Sequence[float] = (),
) -> Chart:
    """Lay out a chart.

    Args:
        title: above it, and what a screen reader says.
        curves: points of each, by name.
        x_label: quantity and unit.
        y_label: quantity and unit.
        logarithmic: powers of ten upwards; values of 0 and less are left out.
        levels: values upwards at which a line runs across.
        reach: values upwards that the chart holds in any case.

    Raises:
        ValueError: if there is no point to draw.
    """
    drawn = {
        name: [(x, math.log10(y) if logarithmic else y) for x, y in points if not logarithmic or y > 0]
        for name, points in curves.items()
    }
    xs = [x for points in drawn.values() for x, _ in points]
    if not xs:
        raise ValueError(f"there is nothing to draw of {title}")
    ys = [*(y for points in drawn.values() for _, y in points), *levels, *reach]
    margin = 0.05 * (max(ys) - min(ys)) or abs(ys[0]) * 0.05 or 1.0
    low, high, first, last = min(ys) - margin, max(ys) + margin, min(xs), max(xs)
    last = last if last > first else first + 1
    top = ROW * (len(drawn) + 1) + 8
    # As many as tell one tick from the next, of a curve that is nearly flat too.
    digits = max(4, 2 + math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))))

    def across(x: float) -> float:
        return round(_LEFT + (x - first) / (last - first) * (_RIGHT - _LEFT), 1)

    def down(y: float) -> float:
        return round(top + (high - y) / (high - low) * (_BOTTOM - top), 1)

    return Chart(
        title,
        x_label,
        y_label,
        {name: [(across(x), down(y)) for x, y in points] for name, points in drawn.items()},
        [(across(x), f"{x:.4g}") for x in _ticks(first, last, 5)],
        [(down(y), f"1e{y:g}" if logarithmic else f"{y:.{digits}g}") for y in _ticks(low, high, 4, float(logarithmic))],
        [(down(level), f"{level:g}") for level in levels],
        (_LEFT, top, _RIGHT, _BOTTOM),
    )


def frequency_axis(frequency: Sequence[float], voxel_size_angstrom: float | None) -> tuple[list[float], str]:
    """Frequencies (cycles per voxel) as charts have them, and the label of their axis.

    Args:
        frequency: cycles per voxel.
        voxel_size_angstrom: None leaves them in cycles per voxel.
    """
    unit = "cycles per voxel" if voxel_size_angstrom is None else "cycles per Å"
    return [value / (voxel_size_angstrom or 1.0) for value in frequency], f"spatial frequency, {unit}"


def fsc_chart(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    thresholds: Sequence[float],
    voxel_size_angstrom: float | None = None,
) -> Chart:
    """Lay out Fourier shell correlations, from 0 to 1 at least.

    Args:
        title: above the chart.
        curves: frequencies (cycles per voxel) and values of each, by name.
        thresholds: that they are said to cross, each a line.
        voxel_size_angstrom: to label frequencies in cycles per Å; None labels them in cycles per voxel.

    Raises:
        ValueError: if there is no point to draw.
    """
    points, label = {}, ""
    for name, (frequency, values) in curves.items():
        k, label = frequency_axis(frequency, voxel_size_angstrom)
        points[name] = list(zip(k, values, strict=True))
    return line_chart(title, points, label, "correlation", levels=thresholds, reach=(0, 1))


def chart_image(chart: Chart) -> Image.Image:
    """A chart as a picture, twice as fine as its pixels."""
    picture = Image.new("RGB", (WIDTH * _SCALE, HEIGHT * _SCALE), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT * _SCALE)
    left, _, right, bottom = chart.box

    def line(points: Sequence[Point], colour: str, width: int = 1) -> None:
        pen.line([(x * _SCALE, y * _SCALE) for x, y in points], colour, width * _SCALE, "curve")

    def text(x: float, y: float, words: str, anchor: str, colour: str = "black") -> None:
        # Pillow's own font has no Å.
        pen.text((x * _SCALE, y * _SCALE), words.replace("Å", "angstrom"), colour, font, anchor)

    text(left, ROW / 2, f"{chart.title}: {chart.y_label}", "lm")
    for y, words in chart.y_ticks:
        line([(left, y), (right, y)], "#D4D7DA")
        text(left - 6, y, words, "rm")
    for x, words in chart.x_ticks:
        text(x, bottom + 6, words, "mt")
    text((left + right) / 2, bottom + 26, chart.x_label, "mt")
    for y, words in chart.levels:
        line([(left, y), (right, y)], "#5C6166")
        text(right, y - 2, words, "rb", "#5C6166")
    for index, (name, points) in enumerate(chart.curves.items()):
        colour, y = COLOURS[index % len(COLOURS)], ROW * (index + 1.5)
        line(points, colour, 2)
        line([(left, y), (left + 30, y)], colour, 2)
        text(left + 38, y, name, "lm")
    return picture
