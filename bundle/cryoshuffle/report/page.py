"""The report of a run as one HTML page that needs no network: what was done, how it looks, and whether to trust it."""

from __future__ import annotations

import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ignite.engine import Engine, Events
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from monai.engines.utils import IterationEvents
from PIL import Image

from cryoshuffle.errors import FileError
from cryoshuffle.files.formats import split_suffix
from cryoshuffle.files.writing import checksum, write_json, write_text
from cryoshuffle.inference.checkpoints import Model
from cryoshuffle.report.charts import HEIGHT, ROW, WIDTH, Chart, frequency_axis, fsc_chart, line_chart
from cryoshuffle.report.error_map import COMPARISON_NAME
from cryoshuffle.report.findings import findings, graded
from cryoshuffle.report.log import logger, read_history
from cryoshuffle.report.measurement import NoiseScale, measure, voxel_size
from cryoshuffle.report.pictures import PICTURE_NAME, data_url, picture_planes
from cryoshuffle.report.provenance import locate
from cryoshuffle.report.slices import ERROR_COLOURS, read_slices
from cryoshuffle.report.survival import HEAD, SURVIVAL_NAME, survival_rows, survival_words
from cryoshuffle.report.verdict import Finding, verdict
from cryoshuffle.scores.evaluation import fsc_curves, rows

PAGE_NAME = "report.html"
FINDINGS_NAME = "report.json"
# That the provenance of a run names, with checksums.
_FILES = ("input", "output", "residual", "error", "network")
# Those that the page is of, and what the run did with each.
_COMPARED = {"output": "wrote", "input": "denoised", "network": "applied"}
_MACHINE = ("program", "python", "torch", "device", "began", "ended")
_MARKS = {"ok": "Good", "look": "Look", "bad": "Doubt"}
# What the console hears of even where the result is not doubtful; what else is to be looked at the page says.
_ALARMS = ("place",)
# What it heard of before the page was written.
_SAID = ("noise", "excess", "time")
# Settings of a run that its other looks have too.
_KEPT = ("mirrors", "fill_nan")
# Share of the residual in the result from which on there is too little of it left to tell its power.
_MOSTLY_GIVEN_BACK = 0.5
_THUMBNAIL = 96
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.globals.update(
    width=WIDTH, height=HEIGHT, row=ROW, marks=_MARKS, score_rows=rows, error_colours=ERROR_COLOURS, survival_head=HEAD
)


_POWER_CURVE = (
    "How strong result and residual are from coarse detail, left, to fine detail, right: good is a result that falls "
    "below the residual where the noise outweighs the signal."
)
_SHARED_CURVE = (
    "Good is 0 or more at every frequency: above 0 the residual holds signal and the result noise, which cannot be "
    "helped where they are alike; below 0 the result makes signal stronger than it is."
)
# Of a curve that tells whether more steps would gain.
_FEWEST_POINTS = 3
_RISK_CURVE = (
    "The error of the network on voxels that no step has seen, noise included: good is a curve that falls and then "
    "stays flat; one that still falls at its end would gain from more steps."
)
_HALVES_CURVE = (
    "Where the first curve is above the line both halves hold the same signal; the second curve estimates how well "
    "their mean shows the true signal."
)
_SCORE_CURVE = "The higher the better, and good where the denoised curve is above the noisy one."


def _read(path: Path) -> Any:
    """Content of a JSON file of a run; None where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read ({error}), run it again") from error


def _scores(place: Path) -> Any:
    """What ``cryoshuffle evaluate`` found; None where there is none, or a file of that name which is not its own."""
    path = place / "evaluation.json"
    try:
        content = _read(path)
    except FileError:
        content = {}
    if content is None or (isinstance(content, dict) and "sha256" in content):
        return content
    logger.warning("%s: was not written by cryoshuffle evaluate, so the report leaves it out", path)
    return None


def _data_url(picture: Image.Image) -> str:
    with io.BytesIO() as held:
        picture.save(held, "PNG", optimize=True)
        return data_url(held.getvalue(), "png")


def _curves(numbers: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Spectra of result and residual, and the risk of each stage."""
    charts = []
    if "residual" in numbers:
        residual = numbers["residual"]
        k, label = frequency_axis(residual["frequency"], voxel_size(numbers))
        power, shared = (
            {name: list(zip(k, residual[key], strict=True)) for name, key in keys.items()}
            for keys in (
                {"result": "result_power", "residual": "residual_power"},
                {"residual, result": "shell_correlation"},
            )
        )
        title = "Power by spatial frequency"
        chart = line_chart(title, power, label, "grey values squared", logarithmic=True)
        charts.append(replace(chart, explanation=_POWER_CURVE))
        title = "What result and residual have in common"
        chart = line_chart(title, shared, label, "correlation", reach=(-1, 1))
        charts.append(replace(chart, explanation=_SHARED_CURVE))
    for stage in dict.fromkeys(line["stage"] for line in history):
        points = [
            (line["step"], line["risk"]) for line in history if line["stage"] == stage and line["risk"] is not None
        ]
        if len(points) >= _FEWEST_POINTS:
            chart = line_chart(f"Held-out risk while {stage}", {"risk": points}, "step", "risk")
            charts.append(replace(chart, explanation=_RISK_CURVE))
    return charts


def _noise_rows(noise: Mapping[str, Any] | None) -> list[list[str]]:
    """Axis, and correlation of the noise at each lag."""
    if noise is None or noise.get("autocorrelation") is None:
        return []
    return [
        [axis, *(f"{r:+.3f} ± {e:.3f}" for r, e in zip(values, noise["uncertainty"][axis], strict=True))]
        for axis, values in noise["autocorrelation"].items()
    ]


def _halves_chart(numbers: Mapping[str, Any]) -> Chart:
    halves = numbers["halves"]
    curves = {
        "even half, odd half": (halves["frequency"], halves["fsc"]),
        "their mean, its own signal (estimated)": (halves["frequency"], halves["mean_fsc"]),
    }
    chart = fsc_chart("Agreement of the halves", curves, [halves["threshold"]], voxel_size(numbers))
    return replace(chart, explanation=_HALVES_CURVE)


def _score_charts(scores: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[Chart]:
    """Curves of what ``cryoshuffle evaluate`` left in the folder of the run."""
    charts = []
    for name in ("truth", "other_half"):
        words = name.replace("_", " ")
        curves = {key: curve for key, curve in fsc_curves(scores).items() if key.endswith(f", {words}")}
        if curves:
            threshold = scores[name]["threshold"]
            chart = fsc_chart(f"Agreement with the {words}", curves, [threshold], voxel_size(numbers))
            charts.append(replace(chart, explanation=_SCORE_CURVE))
    return charts


def _thumbnail(path: Path) -> str:
    """The middle of a result, small; empty where a run has no picture, which is not worth the page of all."""
    try:
        planes = picture_planes(path)
    except FileError:
        return ""
    plane = next((tile for key, tile in planes.items() if key.startswith("after, xy")), None)
    if plane is None:
        return ""
    plane.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return _data_url(plane)


def write_index(folder: str | os.PathLike[str], rows: Sequence[Mapping[str, str]], title: str) -> Path:
    """Write ``index.html`` of a batch: a line a tomogram, with its middle, what its report found, and a link to it.

    Args:
        folder: that the folders of the runs are in.
        rows: each with ``name``, ``status``, ``words`` and ``run``, the name of the run's folder.
        title: of the page.

    Raises:
        FileError: if the page cannot be written. Where the report of a run cannot be read, its row says so.
    """
    place, lines = Path(folder), []
    for row in rows:
        run = place / row["run"]
        status = "done before" if row["status"] == "skipped" else row["status"]
        line = {"name": row["name"], "status": status, "verdict": "", "words": row["words"], "picture": "", "link": ""}
        try:
            report = _read(run / FINDINGS_NAME) if row["status"] in {"done", "skipped"} else None
        except FileError as error:
            report, line["words"] = None, str(error)
        if report is not None:
            line["verdict"] = report["verdict"]["word"]
            line["link"] = f"{quote(row['run'])}/{PAGE_NAME}"
            line["words"] = " ".join(one["words"] for one in report["findings"] if one["level"] != "ok") or "Good."
            line["picture"] = _thumbnail(run / PICTURE_NAME)
        lines.append(line)
    path = place / "index.html"
    write_text(_TEMPLATES.get_template("index.html").render(title=title, rows=lines), path)
    return path


def _noise_scale(provenance: Mapping[str, Any], fitted: Model, deviation: float) -> NoiseScale | None:
    """The noise that the model of a run keeps; None where it keeps none, or the residual is no noise by intention.

    ``fitted`` is that of its lattice, which may be the same.
    """
    path, detail = Path(provenance["network"]["path"]), float(provenance["settings"].get("detail") or 0.0)
    if not path.is_file() or detail >= _MOSTLY_GIVEN_BACK or provenance["settings"].get("smooth"):
        return None
    noise = (fitted if path == fitted.path else Model(path)).noise()
    return None if noise is None else NoiseScale(noise, deviation, detail)


def _warn(listed: Sequence[Finding]) -> None:
    """Tell the console of what is wrong with a result, but for what it heard before."""
    for one in listed:
        if one.subject not in _SAID and (one.level == "bad" or (one.level == "look" and one.subject in _ALARMS)):
            logger.warning("%s %s", one.words, one.advice)


def read_verdict(folder: str | os.PathLike[str]) -> str:
    """The verdict on a finished run in a line, as its report has it; empty where there is no report.

    Args:
        folder: of the run.

    Raises:
        FileError: if ``report.json`` cannot be read.
    """
    report = _read(Path(folder) / FINDINGS_NAME)
    return "" if report is None else str(report["verdict"]["words"])


def _fitted_network(place: Path, provenance: Mapping[str, Any]) -> tuple[Model, list[int]]:
    """The checkpoint of a run with the lattice of its fit, and the strides of that lattice."""
    blind = place / "blind.pt"
    fitted = provenance["noise"] is not None and blind.is_file()
    network = blind if fitted else Path(provenance["network"]["path"])
    if not network.is_file():
        raise FileError(f"{network}: is gone, the network of the run is needed for its report")
    model = Model(network)
    stride = model.settings().stride
    return model, [1, 1, 1] if stride is None else list(stride)


def _is_array(provenance: Mapping[str, Any], name: str) -> bool:
    """Whether a file of a run stood for an array of the program around it."""
    return bool(provenance[name].get("in_memory"))


def _other_looks(provenance: Mapping[str, Any], permissive: bool) -> dict[str, str]:
    """Commands for a smoother and a more detailed result, which take no fit; other options are those of the run.

    None where the tomogram was an array; beside the tomogram where the result is one.
    """
    if _is_array(provenance, "input"):
        return {}
    network, source = (shlex.quote(provenance[name]["path"]) for name in ("network", "input"))
    output = Path(provenance["output"]["path"])
    if _is_array(provenance, "output"):
        tomogram = Path(provenance["input"]["path"])
        output = tomogram.with_name(f"{split_suffix(tomogram)[0]}{output.suffix}")
    flags = {"--permissive": permissive, **{f"--{n.replace('_', '-')}": provenance["settings"].get(n) for n in _KEPT}}
    same = "".join(f" {flag}" for flag, is_set in flags.items() if is_set)
    return {
        option: f"cryoshuffle apply {network} {source} {shlex.quote(str(output.with_name(f'{option}_{output.name}')))}"
        f" --{option} {value}{same}"
        for option, value in (("smooth", 0.8), ("detail", 0.1))
    }


def _run_values(place: Path, provenance: Mapping[str, Any], permissive: bool) -> dict[str, Any]:
    """What a page tells of what a run was made of, by name in its template."""
    settings, noise = provenance["settings"], provenance["noise"]
    return {
        "title": Path(provenance["output"]["path"]).name,
        "source": "An array" if _is_array(provenance, "input") else Path(provenance["input"]["path"]).name,
        "way": "from itself alone" if noise is not None else f"by the network {settings['checkpoint']}",
        "run": provenance,
        "noise": noise,
        "noise_rows": _noise_rows(noise),
        "other_looks": _other_looks(provenance, permissive),
        "window": provenance.get("window_zyx"),
        "own_halves": [os.path.abspath(half) for half in settings.get("halves") or ()],
        "files": [
            [name, "in memory" if _is_array(provenance, name) else provenance[name]["path"], provenance[name]["sha256"]]
            for name in _FILES
            if provenance.get(name) is not None
        ],
        "machine": [[name, provenance[name]] for name in _MACHINE],
        "settings": [[name, json.dumps(value)] for name, value in settings.items()],
        "beside": [name for name in ("run.log", "provenance.json", "noise.json") if (place / name).is_file()],
    }


def _score_values(scores: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The same, of the scores of ``cryoshuffle evaluate``; None for none."""
    if scores is None:
        return {"scores": None, "compared": [], "score_charts": []}
    compared = [[name.replace("_", " "), path] for name, path in scores["files"].items() if name != "result"]
    return {"scores": scores, "compared": compared, "score_charts": _score_charts(scores, numbers)}


def _located(provenance: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """The same with its files where they are, see :func:`cryoshuffle.report.provenance.locate`."""
    files = {
        name: {**provenance[name], "path": str(locate(provenance[name]["path"], place))}
        for name in _FILES
        if provenance.get(name) is not None
    }
    settings, halves = provenance["settings"], provenance["settings"].get("halves")
    if halves is not None:
        settings = {**settings, "halves": [str(locate(half, place)) for half in halves]}
    return {**provenance, **files, "settings": settings}


def _read_provenance(place: Path) -> Mapping[str, Any]:
    """What a run says its result was made of.

    Raises:
        FileError: if there is none, or it lacks what a page needs.
    """
    path = place / "provenance.json"
    provenance = _read(path)
    if provenance is None:
        raise FileError(f"{place}: holds no finished run, name the folder of one, <result>_run")
    is_whole = (
        isinstance(provenance, dict)
        and {*_MACHINE, "noise"} <= set(provenance)
        and isinstance(provenance.get("settings"), dict)
        and {"fill_nan", "checkpoint"} <= set(provenance["settings"])
        and all(
            isinstance(provenance.get(name), dict) and {"path", "sha256"} <= set(provenance[name]) for name in _COMPARED
        )
    )
    if not is_whole:
        raise FileError(f"{path}: is not as a run wrote it, denoise again to have a report")
    return provenance


def _check_files(place: Path, provenance: Mapping[str, Any]) -> None:
    """Refuse a result, tomogram or network that is another one than that of the run; one that is gone is told later."""
    for name, what in (("input", "tomogram"), ("output", "result")):
        if _is_array(provenance, name):
            raise FileError(
                f"{place}: its {what} was an array in memory, so its report cannot be made anew: denoise a file, or "
                "the array again"
            )
    for name, what in _COMPARED.items():
        path, before = provenance[name]["path"], provenance[name]["sha256"]
        if Path(path).exists() and checksum(path) != before:
            raise FileError(
                f"{path}: is not what the run {what}, its SHA-256 is not {before[:12]}...: put that file back, or "
                "denoise again"
            )


def write_page(folder: str | os.PathLike[str], permissive: bool = False, is_new: bool = False) -> Path:
    """Write ``report.html`` of a finished run, and ``report.json`` with verdict, findings and numbers for programs.

    Args:
        folder: of the run; tomogram and result must still be where its ``provenance.json`` says.
        permissive: also take MRC files whose header breaks the standard.
        is_new: the result was written just now, so checksums are not looked at.

    Returns:
        path of the page.

    Raises:
        FileError: if there is no finished run in the folder, one of its files is missing, result, tomogram or network
            is another one than that of the run, or the page cannot be written.
        InputError: if a file of it cannot be used.
    """
    place = Path(folder)
    provenance = _located(_read_provenance(place), place)
    if not is_new:
        _check_files(place, provenance)
    settings, noise = provenance["settings"], provenance["noise"]
    fitted, strides = _fitted_network(place, provenance)
    source, result = provenance["input"]["path"], provenance["output"]["path"]
    window = provenance.get("window_zyx")
    fill_nan, error = bool(settings["fill_nan"]), (provenance.get("error") or {}).get("path")
    shown = read_slices(source, result, error, permissive, fill_nan, place)
    scale = _noise_scale(provenance, fitted, shown.deviation)
    numbers = measure(source, result, strides, permissive, fill_nan, window, settings.get("halves"), scale, place)
    if settings.get("smooth"):
        numbers["smoothed"] = settings["smooth"]
    scores, survival = _scores(place), _read(place / SURVIVAL_NAME)
    more = {"survival": survival, "error_map": _read(place / COMPARISON_NAME)}
    numbers |= {name: content for name, content in more.items() if content is not None}
    refinement = _read(place / "refinement.json") if noise is not None else None
    history = read_history(place) if noise is not None else []
    listed = findings(noise, refinement, numbers, history)
    outcome = verdict(listed)
    _warn(listed)
    report = {"verdict": {**asdict(outcome), "words": outcome.words}, "findings": [asdict(one) for one in listed]}
    write_json({**report, "numbers": numbers}, place / FINDINGS_NAME)
    sizes = numbers["voxel_size_zyx"]
    page = _TEMPLATES.get_template("page.html").render(
        **_run_values(place, provenance, permissive),
        **_score_values(scores, numbers),
        numbers=numbers,
        verdict=outcome,
        findings=listed,
        graded=graded(noise, numbers),
        voxel_size="voxel size unknown" if sizes is None else " × ".join(f"{n:.4g}" for n in sizes) + " Å a voxel",
        shown=shown,
        survival_rows=survival_rows(survival or {}),
        survival_words=survival_words(survival or {}),
        halves_chart=_halves_chart(numbers) if "halves" in numbers else None,
        curves=_curves(numbers, history),
        one_window=window is not None and all(w >= n for w, n in zip(window, numbers["full_shape"], strict=True)),
    )
    path = place / PAGE_NAME
    write_text(page, path)
    return path


class ReportPage:
    """Writes :func:`write_page` when an engine has written its result and what it was made of.

    Args:
        output_dir: of the run.
        permissive: also take MRC files whose header breaks the standard.

    Invariant:
        No report of another result lies beside this one, wherever the run ends.
    """

    def __init__(self, output_dir: str, permissive: bool = False) -> None:
        self.output_dir, self.permissive = output_dir, permissive

    def attach(self, engine: Engine) -> None:
        """Write at the end; stands behind :class:`cryoshuffle.report.provenance.Provenance`."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.forget)
        engine.add_event_handler(Events.COMPLETED, self)

    def forget(self, engine: Engine) -> None:
        """Remove the report of another result, just before that is replaced."""
        for name in (PAGE_NAME, FINDINGS_NAME):
            (Path(self.output_dir) / name).unlink(missing_ok=True)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        logger.info("report: %s", write_page(self.output_dir, self.permissive, is_new=True))
