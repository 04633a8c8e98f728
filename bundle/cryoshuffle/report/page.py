"""The report of a run as one HTML page that needs no network: what was done, how it looks, and whether to trust it."""

from __future__ import annotations

import base64
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from PIL import Image
from torch import Tensor

from cryoshuffle.boxes import middle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import load_tomogram, tomogram_shape
from cryoshuffle.files.intensity import FillNotFinite
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.writing import write_json, write_text
from cryoshuffle.inference.checkpoints import read_model_settings
from cryoshuffle.report.log import logger, read_history
from cryoshuffle.report.pictures import PICTURE_NAME, picture_planes
from cryoshuffle.scores.artefacts import DETAIL_BANDS, detail_slopes, painted_noise, seam_metric, signal_left
from cryoshuffle.scores.evaluation import HALF_THRESHOLD, evaluate, fsc_curves, halves_agreement, resolution, rows

PAGE_NAME = "report.html"
FINDINGS_NAME = "report.json"
_NAMES = {"ok": "Good", "look": "Look", "bad": "Doubt"}
# The middle of a volume, that its numbers are from; a page should not take long.
_SIDE = 160
# More of it, for what differs from place to place.
_AROUND = 320
_THUMBNAIL = 96
# Of tomograms whose truth is known ours have up to .27, heavy smoothing .5 to .9 (the residual of the truth itself 0);
# and the residual is .8 times as strong where structure is, after heavy smoothing 1.3 to 2.3 times.
_COARSE_SHARED = 0.35
_LEFT_RATIO = 1.25
_STRIPES = 3.0
# Jumps at borders of windows are .7 to 1.2 times those nearby by chance in 40 x 96 x 96 voxels; without the halo that
# windows need they are 1.6 to 2.3 times.
_SEAMS = 1.4
_MOSTLY = 0.5
# Correlation of the finest detail of result and tomogram, in the region where it is least: results on simulated
# tomograms and the real cell have +.0 to +.2, one with painted noise had -.5 to -.7.
_PAINTED = -0.1
# Noise of a region over that of another, where it is taken for even.
_UNEVEN = 1.25


@dataclass(frozen=True)
class Finding:
    """One thing that a page says of a result.

    Attributes:
        level: ``ok``, ``look`` where a person should look for himself, ``bad`` where the result is doubtful.
        words: one or two sentences.
    """

    level: Literal["ok", "look", "bad"]
    words: str


def findings(
    noise: Mapping[str, Any] | None, refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]
) -> list[Finding]:
    """What noise, judgement and result of a run say about it, in words.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        refinement: content of ``refinement.json``; None without the second stage.
        numbers: of :func:`measure`.
    """
    found = []
    if noise is not None:
        if noise["clean"]:
            found.append(Finding("ok", f"The blind spot fits the noise: {noise['reason']}."))
        else:
            found.append(
                Finding("bad", f"The noise is not clean along any axis, part of it may be learnt: {noise['reason']}.")
            )
    if refinement is not None:
        share = refinement["trust"]
        level: Literal["ok", "look"] = "ok" if share >= _MOSTLY else "look"
        words = f"{share:.0%} of the result is the network's, {1 - share:.0%} that of the best linear filter"
        why = "" if share >= _MOSTLY else "; the volume is too small or too noisy, or the fit was too short, for more"
        found.append(Finding(level, f"{words}, as judged on noise drawn anew{why}."))
        if refinement.get("excessive"):
            found.append(
                Finding(
                    "look",
                    f"The noise is not quite known: judged with it, the best result has {refinement['weight']:.2f} "
                    "times the network beside the filter, and more than all there cannot be.",
                )
            )
    found += _painted_findings(refinement, numbers)
    residual = numbers.get("residual")
    if residual is not None:
        shared = residual["low_frequency_correlation"]
        if abs(shared) < _COARSE_SHARED:
            found.append(
                Finding(
                    "ok", f"What was taken away has little coarse detail in common with the result ({shared:+.2f})."
                )
            )
        else:
            found.append(
                Finding(
                    "look",
                    f"What was taken away has coarse detail in common with the result ({shared:+.2f}): signal that was "
                    "removed, or noise that was kept. Look at the residual.",
                )
            )
    halves = numbers.get("halves")
    if halves is not None:
        nowhere = halves["crossing"] is None and halves["fsc"][-1] < HALF_THRESHOLD
        if nowhere or not halves["beyond_chance"]:
            found.append(
                Finding(
                    "look",
                    f"Even and odd half agree at no frequency beyond chance (FSC {HALF_THRESHOLD}): there is hardly "
                    "any signal in them, and little to check the result with.",
                )
            )
        else:
            found.append(
                Finding(
                    "ok",
                    f"The data hold signal {resolution(halves)} (even against odd half, FSC {HALF_THRESHOLD}); finer "
                    "detail in the result has little support in them.",
                )
            )
    left = numbers.get("signal_left")
    if left is not None:
        if left["ratio"] - 2 * left["scatter"] < _LEFT_RATIO:
            found.append(
                Finding(
                    "ok",
                    f"The residual is as strong where there is structure as elsewhere ({left['ratio']:.2f} times).",
                )
            )
        else:
            z, y, x = left["where"]
            found.append(
                Finding(
                    "look",
                    f"The residual is {left['ratio']:.2f} times as strong where there is structure: some signal was "
                    f"taken away, or the noise is stronger there. Most at z = {z}, y = {y}, x = {x}.",
                )
            )
    seams = numbers.get("seams")
    if seams is not None:
        if seams["borders"] < _SEAMS:
            found.append(Finding("ok", "No seams between the windows it was denoised in."))
        else:
            found.append(
                Finding(
                    "look",
                    f"Jumps between the windows it was denoised in: {seams['borders']:.2f} times those nearby, "
                    f"halfway between borders {seams['halfway']:.2f}.",
                )
            )
    for axis, stripes in numbers.get("lattice", {}).items():
        if stripes["excess"] < 1 + _STRIPES * stripes["scatter"]:
            found.append(Finding("ok", f"No stripes of the lattice along {axis}."))
        else:
            found.append(
                Finding(
                    "look",
                    f"Stripes of period {stripes['stride']} along {axis}: {stripes['excess']:.1f} times the power "
                    "nearby.",
                )
            )
    return found


def _painted_findings(refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[Finding]:
    """What result and tomogram have in common where there is nearly nothing but noise, in words."""
    found, painted = [], numbers.get("painted")
    if painted is not None:
        if painted["least"] > _PAINTED:
            words = f"correlation {painted['least']:+.2f} or more in every region"
            found.append(Finding("ok", f"The result holds no negative of the noise ({words})."))
        else:
            y, x = painted["where"]
            found.append(
                Finding(
                    "bad",
                    "The finest detail of the result is the negative of the noise (correlation "
                    f"{painted['least']:+.2f} around y = {y}, x = {x}): a texture that is in no data. Denoise with "
                    "--effort fast, and compare.",
                )
            )
        uneven = max(painted["levels"]) / max(1e-6, min(painted["levels"]))
        if refinement is not None and not refinement.get("levels", True) and uneven > _UNEVEN:
            found.append(
                Finding(
                    "look",
                    f"The noise is {uneven:.2f} times as strong in one region as in another, and was taken for even: "
                    "where it is weak detail may be lost, where it is strong noise may be left.",
                )
            )
    slopes = numbers.get("slopes")
    if slopes is not None and min(slopes) < 0:
        low, high = DETAIL_BANDS[slopes.index(min(slopes))]
        found.append(
            Finding(
                "bad",
                f"Detail of {low} to {high} voxels in the result runs against the tomogram (slope {min(slopes):.2f}): "
                "it is not from the data. Denoise with --effort fast, and compare.",
            )
        )
    return found


def _seams(result: Tensor, window: Sequence[int], strides: Sequence[int], start: Sequence[int]) -> dict[str, Any]:
    """Jumps at the borders of windows, of a part of a volume that begins at ``start``; empty without a border in it."""
    first = [-a % w for a, w in zip(start, window, strict=True)]
    between = [a + w // 2 // s * s for a, w, s in zip(first, window, strides, strict=True)]
    try:
        borders, halfway = (seam_metric(result, window, strides, at) for at in (first, between))
    except InputError:
        return {}
    return {"seams": {"window": list(window), "borders": borders, "halfway": halfway}}


def measure(
    noisy: str,
    output: str,
    strides: Sequence[int],
    permissive: bool = False,
    fill_nan: bool = False,
    window: Sequence[int] | None = None,
    halves: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The numbers of a page, of the middle of a tomogram and its result.

    Args:
        noisy: path of the tomogram.
        output: path of the result.
        strides: of the lattice along (Z, Y, X), voxels.
        permissive: also take MRC files whose header breaks the standard.
        fill_nan: put the mean of the others where voxels of the tomogram are not finite.
        window: that it was denoised in, along (Z, Y, X), voxels; None where that is not known.
        halves: paths of the even and the odd one; None for none.

    Returns:
        what :func:`cryoshuffle.scores.evaluation.evaluate` tells of the middle, ``signal_left`` of it, with its place
        in the whole volume, ``slopes`` of it and ``painted`` of more of the volume
        (:mod:`cryoshuffle.scores.artefacts`), ``seams`` where a border is in it, ``voxel_size_zyx`` (Å) where it is
        known, and the ``full_shape``. Where the volume is too small for them, ``not_measured`` says so instead.
        ``halves`` is :func:`cryoshuffle.scores.evaluation.halves_agreement` of the same middle, or
        ``halves_not_measured`` says why not.

    Raises:
        FileError, InputError: if a file is missing, cannot be read, or is not the size of the other.
    """
    full = tomogram_shape(noisy, permissive)
    if tomogram_shape(output, permissive) != full:
        raise InputError(f"{output}: is not of the size of {noisy}, name the tomogram it was made from")
    images = [load_tomogram(path, permissive, largest=_AROUND) for path in (noisy, output)]
    fill = FillNotFinite(fill_nan)

    def crop(image: MetaTensor, side: int = _SIDE) -> Tensor:
        return central_crop(torch.as_tensor(fill(image)).as_subclass(Tensor), side)[0]

    before, after = (crop(image) for image in images)
    sizes = images[0].meta.get("voxel_size_zyx")
    numbers: dict[str, Any] = {
        "full_shape": list(full),
        "voxel_size_zyx": None if sizes is None or min(sizes) <= 0 else [float(size) for size in sizes],
    }
    start = [part.start for part in middle(full, _SIDE)]
    try:
        numbers.update(evaluate(after, noisy=before, stride=list(strides)))
        left = signal_left(before, after)
        numbers["slopes"] = detail_slopes(before, after)
        painted = painted_noise(*(crop(image, _AROUND) for image in images))
    except InputError as error:
        numbers["not_measured"] = str(error)
    else:
        numbers["signal_left"] = {**left, "where": [a + b for a, b in zip(start, left["where"], strict=True)]}
        around = [part.start for part in middle(full, _AROUND)[1:]]
        numbers["painted"] = {**painted, "where": [a + b for a, b in zip(around, painted["where"], strict=True)]}
        if window is not None:
            numbers.update(_seams(after, window, strides, start))
    if halves is not None:
        try:
            even, odd = (crop(load_tomogram(path, permissive, largest=_SIDE, beside=noisy)) for path in halves)
            numbers["halves"] = halves_agreement(even, odd, _voxel_size(numbers))
        except (FileError, InputError) as error:
            numbers["halves_not_measured"] = str(error)
    return numbers


def _voxel_size(numbers: Mapping[str, Any]) -> float | None:
    """In Å; None where it is not known, or not the same along all axes."""
    sizes = numbers["voxel_size_zyx"]
    return sizes[0] if sizes is not None and max(sizes) < 1.01 * min(sizes) else None


def _frequencies(values: Sequence[float], numbers: Mapping[str, Any]) -> tuple[list[float], str]:
    """Frequencies (cycles per voxel) as a chart has them, and their unit."""
    size = _voxel_size(numbers)
    return [value / (size or 1.0) for value in values], "cycles per voxel" if size is None else "cycles per Å"


def _read(path: Path) -> Any:
    """Content of a JSON file of a run; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read ({error}), run it again") from error


def _data_url(picture: Image.Image) -> str:
    with io.BytesIO() as held:
        picture.save(held, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")


def _planes(folder: Path) -> str:
    """The slider over three planes, and what was taken away below it."""
    by_plane: dict[str, dict[str, Image.Image]] = {}
    for name, tile in picture_planes(folder / PICTURE_NAME).items():
        column, plane = name.split(", ", 1)
        by_plane.setdefault(plane, {})[column] = tile
    figures, residuals = [], []
    for plane, tiles in by_plane.items():
        width = tiles["before"].width
        said = escape(plane)
        figures.append(
            f'<figure class="plane"><span class="stack" style="width:{width}px">'
            f'<img src="{_data_url(tiles["before"])}" alt="{said}, before">'
            f'<img class="over" src="{_data_url(tiles["after"])}" alt="{said}, denoised"><span class="edge"></span>'
            f'</span><input type="range" min="0" max="100" value="50" aria-label="{said}: left of the line before, '
            'right of it denoised" '
            "oninput=\"this.previousElementSibling.style.setProperty('--cut', this.value + '%')\">"
            f"<figcaption>{said}</figcaption></figure>"
        )
        residuals.append(
            f'<figure class="plane"><img class="alone" src="{_data_url(tiles["residual"])}" '
            f'alt="{said}, what was taken away"><figcaption>{said}</figcaption></figure>'
        )
    return (
        '<p class="soft">Left of the line the tomogram, right of it the result; the slider moves the line (arrow keys '
        'too).</p><div class="planes">' + "".join(figures) + "</div><h2>What was taken away</h2>"
        '<p class="soft">Tomogram minus result, on the grey scale of the tomogram. Noise has no shape; where a '
        'structure shows, signal was lost.</p><div class="planes">' + "".join(residuals) + "</div>"
    )


def _nice_step(span: float, parts: int) -> float:
    power = 10.0 ** math.floor(math.log10(span / parts))
    return power * min((1, 2, 5, 10), key=lambda factor: abs(span / (factor * power) - parts))


def line_chart(
    title: str,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    logarithmic: bool = False,
) -> str:
    """Curves as an SVG figure in the colours of the page; told apart by their dashes too.

    Args:
        title: above it, and what a screen reader says.
        curves: points of each, by name; three at most.
        x_label: quantity and unit.
        y_label: likewise.
        logarithmic: powers of ten upwards; values of 0 and less are left out.

    Raises:
        ValueError: if there is no point to draw.
    """
    drawn = {
        name: [(x, math.log10(y) if logarithmic else y) for x, y in points if not logarithmic or y > 0]
        for name, points in curves.items()
    }
    xs, ys = ([point[i] for points in drawn.values() for point in points] for i in (0, 1))
    if not xs:
        raise ValueError(f"there is nothing to draw of {title}")
    low, high = min(ys), max(ys)
    margin = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
    low, high, first, last = low - margin, high + margin, min(xs), max(xs)
    last = last if last > first else first + 1
    left, top, width, height = 58, 30 + 18 * len(drawn), 400, 190

    def at(x: float, y: float) -> tuple[float, float]:
        return left + (x - first) / (last - first) * width, top + (high - y) / (high - low) * height

    parts = []
    step = max(1.0, _nice_step(high - low, 4)) if logarithmic else _nice_step(high - low, 4)
    for i in range(math.ceil(low / step), math.floor(high / step) + 1):
        y = at(first, i * step)[1]
        shown = f"1e{i * step:g}" if logarithmic else f"{i * step:.4g}"
        parts.append(f'<line class="grid" x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{shown}</text>')
    step = _nice_step(last - first, 5)
    for i in range(math.ceil(first / step), math.floor(last / step + 1e-9) + 1):
        x = at(i * step, low)[0]
        parts.append(f'<text x="{x:.1f}" y="{top + height + 16}" text-anchor="middle">{i * step:.4g}</text>')
    for index, (name, points) in enumerate(drawn.items()):
        line = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        y = 30 + 18 * index
        parts.append(f'<polyline class="s{index}" fill="none" stroke-width="2" points="{line}"/>')
        parts.append(f'<line class="s{index}" stroke-width="2" x1="{left}" x2="{left + 30}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left + 38}" y="{y + 4}">{escape(name)}</text>')
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(12 {top + height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    said = escape(title)
    return (
        f'<figure class="chart"><svg viewBox="0 0 {left + width + 14} {top + height + 44}" role="img" '
        f'aria-label="{said}">'
        f'<text x="0" y="12" font-weight="700">{said}</text>{"".join(parts)}</svg></figure>'
    )


def _table(rows: Sequence[Sequence[str]], head: Sequence[str] = ()) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    above = f"<thead>{line(head, 'th')}</thead>" if head else ""
    return f'<div class="wide"><table>{above}<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>'


def _noise_section(noise: Mapping[str, Any]) -> str:
    said = f"<h2>The noise</h2><p>{escape(noise['reason'].capitalize())}.</p>"
    if noise.get("autocorrelation") is None:
        return said
    rows = [
        [axis, *(f"{r:+.3f} ± {e:.3f}" for r, e in zip(values, noise["uncertainty"][axis], strict=True))]
        for axis, values in noise["autocorrelation"].items()
    ]
    return (
        f'{said}<p class="soft">How alike the noise is at voxels 1 to 4 apart, from {escape(str(noise["source"]))}. A '
        "prediction may look only where this is near 0.</p>" + _table(rows, ["axis", "1", "2", "3", "4"])
    )


def _charts(numbers: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> str:
    charts = []
    residual = numbers.get("residual")
    if residual is not None:
        k, unit = _frequencies(residual["frequency"], numbers)
        power = {
            "result": list(zip(k, residual["result_power"], strict=True)),
            "taken away": list(zip(k, residual["residual_power"], strict=True)),
        }
        shared = {"taken away, result": list(zip(k, residual["shell_correlation"], strict=True))}
        charts.append(line_chart("Power by spatial frequency", power, unit, "grey values squared", logarithmic=True))
        charts.append(line_chart("What result and residual have in common", shared, unit, "correlation"))
    for stage in dict.fromkeys(line["stage"] for line in history):
        points = [
            (line["step"], line["risk"]) for line in history if line["stage"] == stage and line["risk"] is not None
        ]
        if len(points) > 1:
            charts.append(line_chart(f"Held-out risk while {stage}", {"risk": points}, "step", "risk"))
    return f'<h2>Curves</h2><div class="charts">{"".join(charts)}</div>' if charts else ""


def _fsc_chart(
    title: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    threshold: float,
    numbers: Mapping[str, Any],
) -> str:
    """Fourier shell correlations, and the line they are said to cross."""
    drawn, unit = {}, ""
    for name, (frequency, values) in curves.items():
        k, unit = _frequencies(frequency, numbers)
        drawn[name] = list(zip(k, values, strict=True))
    ends = [point[0] for points in drawn.values() for point in (points[0], points[-1])]
    line = {f"{threshold:g}": [(min(ends), threshold), (max(ends), threshold)]}
    return line_chart(title, {**drawn, **line}, unit, "correlation")


def _halves_section(numbers: Mapping[str, Any]) -> str:
    halves = numbers.get("halves")
    if halves is None:
        why = numbers.get("halves_not_measured")
        said = "" if why is None else f'<h2>What the data hold</h2><p class="soft">Not measured: {escape(why)}</p>'
        return said
    curves = {
        "even half, odd half": (halves["frequency"], halves["fsc"]),
        "their mean, its own signal (estimated)": (halves["frequency"], halves["mean_fsc"]),
    }
    return (
        "<h2>What the data hold</h2>"
        '<p class="soft">Fourier shell correlation of the raw halves, a yardstick for the detail in the result. It '
        "counts all that both halves share, streaks too. The result is of both, so it is compared with neither; to "
        "score one, denoise one half alone and evaluate it with the other.</p>"
        '<div class="charts">'
        + _fsc_chart("Agreement of the halves", curves, halves["threshold"], numbers)
        + "</div>"
    )  # fmt: skip


def _scores_section(scores: Mapping[str, Any] | None, provenance: Mapping[str, Any], numbers: Mapping[str, Any]) -> str:
    """What ``cryoshuffle evaluate`` left in the folder of the run."""
    if scores is None:
        return ""
    head = "<h2>Scores</h2>"
    if scores.get("sha256") != provenance["output"]["sha256"]:
        return f'{head}<p class="soft">evaluation.json is of another result: evaluate this one again.</p>'
    files, halves = scores["files"], provenance["settings"].get("halves") or ()
    said = '<p class="soft">Of the whole volume, by cryoshuffle evaluate.</p>'
    if "other_half" in files and files["other_half"] in [os.path.abspath(half) for half in halves]:
        said += (
            "<p>The other half is one that the tomogram was made of. Its noise is in the result too, so their "
            "agreement flatters.</p>"
        )
    compared = [[name.replace("_", " "), path] for name, path in files.items() if name != "result"]
    drawn, charts = fsc_curves(scores), []
    for name, title in (("truth", "Agreement with the truth"), ("other_half", "Agreement with the other half")):
        curves = {words: curve for words, curve in drawn.items() if words.endswith(f", {name.replace('_', ' ')}")}
        if curves:
            charts.append(_fsc_chart(title, curves, scores[name]["threshold"], numbers))
    return (
        head + said + _table(compared, ["compared with", "path"]) + _table(rows(scores))
        + (f'<div class="charts">{"".join(charts)}</div>' if charts else "")
    )  # fmt: skip


def _numbers_section(numbers: Mapping[str, Any], window: Sequence[int] | None) -> str:
    """Residual, seams and stripes in numbers."""
    if "residual" not in numbers:
        return ""
    said = ""
    if window is not None and "seams" not in numbers:
        whole = all(w >= n for w, n in zip(window, numbers["full_shape"], strict=True))
        why = "It was denoised in one window" if whole else "No border of its windows is in the middle of the volume"
        said = f'<p class="soft">{why}, so there is no seam to measure.</p>'
    return f"<h2>In numbers</h2>{said}{_table(rows(numbers))}"


def _settings_section(provenance: Mapping[str, Any], folder: Path) -> str:
    files = [
        [name, provenance[name]["path"], provenance[name]["sha256"]]
        for name in ("input", "output", "residual", "network")
        if provenance.get(name) is not None
    ]
    settings = [[name, json.dumps(value)] for name, value in provenance["settings"].items()]
    machine = [[name, str(provenance[name])] for name in ("program", "python", "torch", "device", "began", "ended")]
    kept = ", ".join(
        f'<a href="{name}">{name}</a>'
        for name in ("run.log", "provenance.json", "noise.json")
        if (folder / name).is_file()
    )
    return (
        "<h2>How it was made</h2>" + _table(machine) + _table(files, ["file", "path", "SHA-256"])
        + f"<details><summary>All settings</summary>{_table(settings)}</details><p>Beside this page: {kept}.</p>"
    )  # fmt: skip


def _document(title: str, body: str) -> str:
    """A whole page, which may load nothing but the pictures in it."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    said = escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{said}</title><style>{style}</style></head><body><main><h1>{said}</h1>{body}</main></body></html>\n"
    )


def write_index(folder: str | os.PathLike[str], rows: Sequence[Mapping[str, str]], title: str) -> Path:
    """Write ``index.html`` of a batch: a line a tomogram, with its middle, what its report found, and a link to it.

    Args:
        folder: that the folders of the runs are in.
        rows: each with ``name``, ``status``, ``words`` and ``run``, the name of the run's folder.
        title: of the page.

    Raises:
        FileError: if the page cannot be written, or the report of a run not read.
    """
    place, lines = Path(folder), []
    for row in rows:
        run = place / row["run"]
        report = _read(run / FINDINGS_NAME) if row["status"] in {"done", "skipped"} else None
        name, picture, told = escape(row["name"]), "", escape(row["words"])
        if report is not None:
            name = f'<a href="{quote(row["run"])}/{PAGE_NAME}">{name}</a>'
            told = " ".join(escape(one["words"]) for one in report["findings"] if one["level"] != "ok") or "Good."
            planes = [tile for key, tile in picture_planes(run / PICTURE_NAME).items() if key.startswith("after, xy")]
            planes[0].thumbnail((_THUMBNAIL, _THUMBNAIL))
            picture = f'<img src="{_data_url(planes[0])}" alt="{escape(row["name"])}, denoised">'
        lines.append(f"<tr><td>{picture}</td><td>{name}</td><td>{escape(row['status'])}</td><td>{told}</td></tr>")
    head = "<tr><th>middle</th><th>tomogram</th><th>status</th><th>what to look at</th></tr>"
    table = f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>'
    path = place / "index.html"
    write_text(_document(title, table), path)
    return path


def write_page(folder: str | os.PathLike[str], permissive: bool = False) -> Path:
    """Write ``report.html`` of a finished run, and ``report.json`` with its findings and numbers for programs.

    Args:
        folder: of the run; tomogram and result must still be where its ``provenance.json`` says.
        permissive: also take MRC files whose header breaks the standard.

    Returns:
        path of the page.

    Raises:
        FileError: if there is no finished run in the folder, one of its files is missing, or the page cannot be
            written.
        InputError: if a file of it cannot be used.
    """
    place = Path(folder)
    provenance = _read(place / "provenance.json")
    if provenance is None:
        raise FileError(f"{place}: holds no finished run, name the folder of one, <result>_run")
    settings, noise = provenance["settings"], provenance["noise"]
    blind = place / "blind.pt"
    network = blind if noise is not None and blind.is_file() else Path(provenance["network"]["path"])
    if not network.is_file():
        raise FileError(f"{network}: is gone, the network of the run is needed for its report")
    stride = read_model_settings(network).stride
    strides = [1, 1, 1] if stride is None else list(stride)
    source, result = provenance["input"]["path"], provenance["output"]["path"]
    window = provenance.get("window_zyx")
    numbers = measure(source, result, strides, permissive, bool(settings["fill_nan"]), window, settings.get("halves"))
    scores = _read(place / "evaluation.json")
    refinement = _read(place / "refinement.json") if noise is not None else None
    history = read_history(place) if noise is not None else []
    found = findings(noise, refinement, numbers)
    said = "".join(
        f'<li class="{one.level}"><span class="mark">{_NAMES[one.level]}</span><span>{escape(one.words)}</span></li>'
        for one in found
    )
    z, y, x = numbers["full_shape"]
    sizes = numbers["voxel_size_zyx"]
    size = "voxel size unknown" if sizes is None else " × ".join(f"{value:.4g}" for value in sizes) + " Å a voxel"
    unmeasured = f'<p class="soft">{escape(numbers["not_measured"])}</p>' if "not_measured" in numbers else ""
    body = (
        f'<p class="soft">{escape(Path(source).name)} denoised from itself alone by {escape(provenance["program"])}; '
        f"{z} × {y} × {x} voxels (z, y, x), {escape(size)}; {escape(provenance['ended'])}</p>"
        f'<h2>Whether to trust it</h2><ul class="findings">{said}</ul>{unmeasured}'
        '<p class="soft">Numbers are of the middle of the volume where nothing else is said. A denoised volume is for '
        "looking, segmenting and picking; measure in the data.</p>"
        f"<h2>Before and after</h2>{_planes(place)}"
        + (_noise_section(noise) if noise is not None else "")
        + _halves_section(numbers)
        + _charts(numbers, history)
        + _numbers_section(numbers, window)
        + _scores_section(scores, provenance, numbers)
        + _settings_section(provenance, place)
    )
    # What is not clean was told before the fit.
    for one in _painted_findings(refinement, numbers):
        if one.level == "bad":
            logger.warning(one.words)
    write_json({"findings": [asdict(one) for one in found], "numbers": numbers}, place / FINDINGS_NAME)
    page = _document(Path(result).name, body)
    path = place / PAGE_NAME
    write_text(page, path)
    return path


class ReportPage:
    """Writes :func:`write_page` when an engine has written its result and what it was made of.

    Args:
        output_dir: of the run.
        permissive: also take MRC files whose header breaks the standard.
    """

    def __init__(self, output_dir: str, permissive: bool = False) -> None:
        self.output_dir, self.permissive = output_dir, permissive

    def attach(self, engine: Engine) -> None:
        """Write at the end; stands behind :class:`cryoshuffle.report.provenance.Provenance`."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        logger.info("report: %s", write_page(self.output_dir, self.permissive))
