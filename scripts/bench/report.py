"""The documents of ``quality.py``: a section of Markdown, the raw numbers as JSON, and pictures.

Everything is made from plain results, so that documents can be written again without running anything. A result is
a dictionary with ``case``, ``seed``, ``method`` and either ``scores`` and ``seconds`` or the ``reason`` it was not run.
"""

from __future__ import annotations

import io
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.markdown import wrapped

BEGIN, END = "<!-- quality: begin, written by scripts/bench/quality.py -->", "<!-- quality: end -->"
LARGEST_PICTURE = 300_000
_SIDE, _MARGIN, _TITLE = 192, 8, 16
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
# Methods that every version of ours runs alike.
SAME_IN_ALL_VERSIONS = ("noisy", "gaussian")
# Rows of the tables by the effort they are.
EFFORTS = {"fast": "fast", "auto": "standard", "best": "best"}
Result = Mapping[str, Any]
Row = tuple[str, str, str]  # key, label, told

# Key, heading, decimals.
COLUMNS = (
    ("correlation", "CC", 3),
    ("psnr_db", "PSNR, dB", 1),
    ("ssim", "SSIM", 3),
    ("fsc_angstrom", "FSC 0.5, Å", 1),
    ("seconds", "s", 0),
    ("lattice_excess", "excess (truth's)", 2),
    ("residue_imbalance", "imbalance", 2),
)
LEGEND = """\
CC: Pearson's correlation with the noise-free reconstruction. PSNR and SSIM: after the best gain and offset. FSC 0.5:
resolution at which the Fourier shell correlation with the noise-free reconstruction falls below 0.5; "none" if it is
below 0.5 everywhere. s: wall time of the whole program with start, reading and writing, without the runs that chose a
strength; empty if the machine had other work. Excess: power of stripes with the period of the lattice over the power
nearby in the spectrum, 1 without stripes. Imbalance: fine detail in the strongest planes of the lattice over the mean,
1 if all planes are equal. \\*: in at least one seed the best strength was an end of its grid. †: by an earlier version
of cryoshuffle than the newest here. Not run: the column CC gives the reason."""


def median(values: Iterable[float | None]) -> float | None:
    """The median, where None (a curve that crosses nowhere) is larger than any number.

    Returns:
        None if that is the median, or there are no values.

    Example:
        >>> median([21.0, None, 23.0])
        23.0
    """
    known = [math.inf if value is None else value for value in values]
    middle = statistics.median(known) if known else math.inf
    return None if math.isinf(middle) else middle


def rows_of(results: Sequence[Result], case: str, method: str) -> tuple[list[Result], str]:
    """The results of a method on a case, and why there is none."""
    mine = [r for r in results if r["case"] == case and r["method"] == method]
    done = [r for r in mine if "scores" in r]
    reasons = [r["reason"] for r in mine if "reason" in r]
    return done, "" if done else (reasons[-1] if reasons else "not asked for")


def _release(result: Result) -> tuple[int, ...]:
    """Version of cryoshuffle that a result is of; nothing where the method is not ours."""
    known = re.search(r"cryoshuffle (\d+)\.(\d+)", result.get("version") or "")
    return () if known is None or result["method"] in SAME_IN_ALL_VERSIONS else tuple(map(int, known.groups()))


def _dagger(results: Sequence[Result], done: Sequence[Result]) -> str:
    """A mark of what an earlier version of ours has made."""
    newest = max(map(_release, results), default=())
    return " †" if any(() < _release(result) < newest for result in done) else ""


def _value(result: Result, key: str) -> float | None:
    return result["seconds"] if key == "seconds" else result["scores"].get(key)


def _cell(done: Sequence[Result], key: str, decimals: int) -> str:
    """A median as text; empty where the score does not apply."""
    # Seconds that other work disturbed are left out.
    present = [r for r in done if (r["seconds"] is not None if key == "seconds" else key in r["scores"])]
    if not present:
        return ""
    middle = median(_value(r, key) for r in present)
    if middle is None:
        return "none"
    if key == "lattice_excess":
        return f"{middle:.2f} ({median(r['scores']['truth_lattice_excess'] for r in present):.2f})"
    return f"{middle:.{1 if key == 'seconds' and middle < 10 else decimals}f}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _head(cells: Sequence[str], numbers_from: int) -> list[str]:
    return [_line(cells), _line("---" if i < numbers_from else "---:" for i in range(len(cells)))]


def case_table(results: Sequence[Result], case: str, rows: Sequence[Row]) -> str:
    """All scores of one case, a method a row, as medians over seeds."""
    # Nothing to tell in an ablation.
    tells = any(told for _, _, told in rows)
    first = ["method", "also knows"] if tells else ["method"]
    lines = _head([*first, "seeds", *(heading for _, heading, _ in COLUMNS)], len(first))
    for key, label, told in rows:
        done, reason = rows_of(results, case, key)
        if reason:
            blank = [""] * (len(COLUMNS) - 1)
            names = [label, told][: len(first)]
            lines.append(_line([*names, "0", f"not run: {reason.replace('|', '/')}", *blank]))
            continue
        star = " \\*" if any(r.get("at_end") for r in done) else ""
        cells = [_cell(done, column, decimals) for column, _, decimals in COLUMNS]
        names = [label + star + _dagger(results, done), told][: len(first)]
        lines.append(_line([*names, str(len({r["seed"] for r in done})), *cells]))
    return "\n".join(lines)


def overview_table(results: Sequence[Result], cases: Sequence[str], rows: Sequence[Row]) -> str:
    """The correlation with the truth, a method a row and a case a column."""
    lines = _head(["CC", *cases], 1)
    for key, label, _ in rows:
        found = [rows_of(results, case, key)[0] for case in cases]
        cells = [_cell(done, "correlation", 3) + _dagger(results, done) if done else "–" for done in found]
        lines.append(_line([label, *cells]))
    return "\n".join(lines)


def effort_points(results: Sequence[Result], case: str) -> dict[str, tuple[float, float]]:
    """Seconds and correlation by effort, as medians over seeds, of those that were run on a case."""
    points = {}
    for key, effort in EFFORTS.items():
        done, _ = rows_of(results, case, key)
        seconds, quality = (median(_value(r, name) for r in done) for name in ("seconds", "correlation"))
        if seconds is not None and quality is not None:
            points[effort] = (seconds, quality)
    return points


def effort_table(results: Sequence[Result], cases: Sequence[str]) -> str:
    """What each effort takes and gives, a case a row, beside the best Gaussian."""
    lines = _head(["CC (s)", "Gaussian", *EFFORTS.values()], 1)
    for case in cases:
        cells = []
        for key in EFFORTS:
            done = rows_of(results, case, key)[0]
            quality, seconds = _cell(done, "correlation", 3), _cell(done, "seconds", 0)
            cells.append((f"{quality} ({seconds})" if seconds else quality or "–") + _dagger(results, done))
        gaussian = _cell(rows_of(results, case, "gaussian")[0], "correlation", 3) or "–"
        lines.append(_line([case, gaussian, *cells]))
    return "\n".join(lines)


def save_effort_plot(results: Sequence[Result], cases: Sequence[str], path: Path) -> None:
    """Correlation with the truth over the time it takes, a line a case, as a PNG.

    Args:
        results: of all cases, seeds and methods.
        cases: to draw; those without a result are left out.
        path: of the picture.
    """
    curves = {case: list(effort_points(results, case).values()) for case in cases}
    known = [point for curve in curves.values() for point in curve]
    if not known:
        return
    width, height, left, top = 480, 300, 48, 2 * _TITLE
    first = math.floor(math.log2(min(s for s, _ in known) / 30))
    last = max(first + 1, math.ceil(math.log2(max(s for s, _ in known) / 30)))
    lowest = math.floor(10 * min(cc for _, cc in known)) / 10

    def place(seconds: float, quality: float) -> tuple[int, int]:
        across = (math.log2(seconds / 30) - first) / (last - first)
        return left + round(across * width), top + round((1 - quality) / (1 - lowest) * height)

    picture = Image.new("RGB", (left + width + 80, top + height + 3 * _TITLE), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((left, 0), f"correlation with the truth by effort: {', '.join(EFFORTS.values())}", fill="black")
    pen.rectangle((left, top, left + width, top + height), outline="black")
    for tenth in range(round(10 * lowest), 11):
        x, y = place(30 * 2**first, tenth / 10)
        pen.line((x - 4, y, x, y), fill="black")
        pen.text((_MARGIN, y - 6), f"{tenth / 10:.1f}", fill="black")
    for power in range(first, last + 1):
        x, y = place(30 * 2**power, lowest)
        pen.line((x, y, x, y + 4), fill="black")
        pen.text((x - 12, y + 6), f"{30 * 2**power:g}", fill="black")
    pen.text((left + width // 2 - 60, top + height + 6 + _TITLE), "seconds, whole command", fill="black")
    for (case, curve), colour in zip(curves.items(), _COLOURS, strict=False):
        points = [place(*point) for point in curve]
        if len(points) > 1:
            pen.line(points, fill=colour, width=2)
        for x, y in points:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        if points:
            pen.text((points[-1][0] + 8, points[-1][1] - 6), case, fill=colour)
    picture.save(path, optimize=True)


def listed(values: Iterable[str]) -> str:
    """Each of several values once, without those that are empty."""
    return "; ".join(sorted({value for value in values if value}))


def quality_section(
    results: Sequence[Result],
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    ablated: Mapping[str, Sequence[Row]],
    pictures: Mapping[str, str],
) -> str:
    """The section as Markdown, markers included.

    Args:
        results: of all cases, seeds and methods.
        settings: ``shape``, ``snr`` by case, ``steps``, ``peer_steps``, ``cap_minutes``, ``device``, ``grids``.
        rows: the methods, in order.
        ablated: rows of the ablation by case.
        pictures: captions by case; a case without one has no picture.
    """
    cases = [case for case in settings["snr"] if any(r["case"] == case for r in results)]
    seeds = sorted({r["seed"] for r in results})
    shape = " x ".join(str(n) for n in settings["shape"])
    parts = [
        BEGIN,
        "## Quality",
        f"Simulated tomograms of {shape} voxels (`cryoshuffle simulate`), whose truth is known. Numbers are medians "
        f"over the seeds that a method was run with, of {', '.join(map(str, seeds))}; the tables of the cases say how "
        "many. Raw numbers: [benchmarks_quality.json](../data/benchmarks_quality.json).",
        f"Ours: {settings['steps'] or 'the'} steps{'' if settings['steps'] else ' of the effort or of the row'}. "
        f"Noise2Void and cryoCARE: {settings['peer_steps']} steps, each of about as many voxels as ours. Topaz: its "
        "own models as released. A method that chooses its strength, width or model by the truth knows what no user "
        f"knows. The limit for one run of a program is {settings['cap_minutes']:g} min. Our network on the halves: the "
        "same body without a blind spot, trained from one half to the other, with as many steps as `--effort best` has "
        "after the blind network.",
        "The choices, on the standardised tomogram:\n\n"
        + "\n".join(f"- {name}, {grid}" for name, grid in settings["grids"].items()),
        LEGEND,
    ]
    if cases:
        parts += ["### Overview", overview_table(results, cases, rows)]
    if any(effort_points(results, case) for case in cases):
        caption = "Correlation with the truth over the time of the whole command, by effort, for each case"
        picture = f"![{caption}](../pictures/benchmark_effort.png)\n\n*{caption}.*"
        parts += ["### Time and quality", effort_table(results, cases), picture]
    for case in cases:
        parts += [f"### Case {case}", f"SNR {settings['snr'][case]:g}.", case_table(results, case, rows)]
        if case in pictures:
            parts.append(f"![{pictures[case]}](../pictures/benchmark_{case}.png)\n\n*{pictures[case]}*")
    for case in (c for c in ablated if c in cases):
        table = case_table(results, case, ablated[case])
        parts += [f"### One thing changed, case {case}", "Each row is cryoshuffle with one change.", table]
    parts += ["### Made with", _made_with(results, settings), END]
    return wrapped(parts)


def _made_with(results: Sequence[Result], settings: Mapping[str, Any]) -> str:
    steps = f" --steps {settings['steps']}" if settings["steps"] else ""
    facts = {
        "machine": listed(r.get("machine", "") for r in results),
        "device": settings["device"],
        "commit": listed(r.get("commit", "") for r in results),
        "versions": listed(r.get("version", "") for r in results),
        "command": f"`scripts/bench/quality.py{steps} --peer-steps {settings['peer_steps']}"
        " --peers DIR --ablation`, after `scripts/bench/peers_setup DIR`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _plane(plane: np.ndarray, zoom: int, greys: int) -> Image.Image:
    """A plane stretched over its grey scale, of few greys if that saves room."""
    levels = (plane * (greys - 1)).round() * (255 / (greys - 1))
    image = Image.fromarray(np.ascontiguousarray(levels[::-1]).astype(np.uint8))
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def panel(volumes: Mapping[str, torch.Tensor], zoom: int = 2, greys: int = 256) -> Image.Image:
    """Central xy and xz planes of volumes side by side.

    Each volume has a grey scale of its own, from the 0.5th to the 99.5th percentile of its two planes.

    Args:
        volumes: ``(Z, Y, X)`` by their titles; only the middle is shown of what is large.
        zoom: pixels a voxel.
        greys: how many.
    """
    columns = []
    for volume in volumes.values():
        z, y, _ = (n // 2 for n in volume.shape)
        planes = [_middle(volume[z].numpy()), _middle(volume[:, y].numpy())]
        low, high = np.percentile(np.concatenate([p.ravel() for p in planes]), (0.5, 99.5))
        scaled = [np.clip((p - low) / max(high - low, 1e-12), 0, 1) for p in planes]
        columns.append([_plane(p, zoom, greys) for p in scaled])
    widths = [max(tile.width for tile in column) for column in columns]
    heights = [max(column[row].height for column in columns) for row in (0, 1)]
    size = (sum(widths) + _MARGIN * (len(columns) + 1), sum(heights) + _TITLE + 3 * _MARGIN)
    picture = Image.new("L", size, 255)
    pen, left = ImageDraw.Draw(picture), _MARGIN
    for title, column, width in zip(volumes, columns, widths, strict=True):
        pen.text((left, _MARGIN // 2), title[: width // 6], fill=0)
        picture.paste(column[0], (left, _TITLE + _MARGIN))
        picture.paste(column[1], (left, _TITLE + 2 * _MARGIN + heights[0]))
        left += width + _MARGIN
    return picture


def _middle(plane: np.ndarray) -> np.ndarray:
    first = [max(0, (n - _SIDE) // 2) for n in plane.shape]
    return plane[first[0] : first[0] + _SIDE, first[1] : first[1] + _SIDE]


def save_panel(volumes: Mapping[str, torch.Tensor], path: Path) -> None:
    """:func:`panel` as a PNG of at most 300 kB: with fewer greys, then smaller, where it has to be."""
    for zoom, greys in ((2, 256), (2, 64), (2, 24), (1, 256), (1, 64), (1, 16)):
        buffer = io.BytesIO()
        panel(volumes, zoom, greys).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST_PICTURE:
            break
    path.write_bytes(buffer.getvalue())
