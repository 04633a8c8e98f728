#!/usr/bin/env python3
"""Measures what denoising does for the steps behind it: particle picking and membranes, where the truth is known.

    pip install -e ".[bench]" -c constraints.txt
    scripts/bench/downstream.py                          # a quarter of an hour on two cores; stop and start again
    scripts/bench/downstream.py --cases wbp --inputs noisy,fast,truth
    scripts/bench/downstream.py --report-only            # the documents from what is there

Simulated tomograms are picked and segmented as they are, behind a Gaussian, denoised, and without noise. Widths,
thresholds and networks come from a tomogram of another seed (``--tune-seed``), for each input apart. Template matching,
Laplacian and difference of Gaussians are those of acryo. Membranes are found by a ridge filter and by a small U-Net.
What is finished stays in ``--work``. The documents are section "Downstream" of ``docs/explain/benchmarks.md`` and
``docs/data/benchmarks_downstream.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import mrcfile
import numpy as np
from scipy import ndimage

from cryoshuffle.files.writing import write_json
from cryoshuffle.noise.linear_filter import gaussian
from cryoshuffle.scores.metrics import correlation
from cryoshuffle.simulation.tilt_series import load_particles

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import membranes, methods
from bench.detection import TEMPLATE, Detections, match, voxels
from bench.markdown import table, wrapped, write_section
from bench.methods import Job, NotRunError
from bench.options import (
    check_settings,
    check_shape,
    count,
    name_list,
    refuse_unknown,
    stored_settings,
    triple,
    whole_numbers,
)
from bench.provenance import ROOT, commit, machine, own_versions
from bench.quality import BY_KEY, SNR, prepare

BEGIN, END = "<!-- downstream: begin, written by scripts/bench/downstream.py -->", "<!-- downstream: end -->"
INPUTS = {
    "noisy": "noisy tomogram",
    "gaussian": "Gaussian",
    "fast": "cryoshuffle, `--effort fast`",
    "auto": "**cryoshuffle**",
    "truth": "truth",
}
TASKS = {
    "templates": "templates",
    "log": "LoG",
    "dog": "DoG",
    "ridge": "ridge filter",
    "unet": "U-Net",
}
PICKING = ("templates", "log", "dog")
# The other has no tilt series.
CASES = tuple(case for case in SNR if case != "white")
CHANCE = "chance"
_WHOLE_RIBOSOME = 0.8
# A blob that a Gaussian can find among others.
_BLOB_ANGSTROM = 40.0
# Beside the border a filter answers to how the volume goes on, strongest in noise: nothing counts there.
_BORDER_ANGSTROM = 60.0
# Of templates, in half the time of the 3 that tomograms have. For a box of 280 Å in voxels of 20 Å steps of 8 degrees
# are enough (Crowther). A template by steps of 6 correlates with that by steps of 3 by .998, by steps of 10 by .983.
_TILT_STEP_DEG = 6.0
_CAP_S = 1800.0
_CHANCE_DRAWS = 20

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Scene:
    """What there is to find in a simulated tomogram.

    Attributes:
        folder: of its volumes.
        voxel_size_angstrom: of them.
        positions: of the particles, voxels, ``(n, 3)``.
        radii: of balls of their volume, voxels.
        clear: whether each is away from the border, and in no membrane to half its radius.
        ribosomes: whether each is one, of at least 0.8 of its size.
        membrane: that the tilts show, ``(Z, Y, X)``.
        unseen: near membrane that they do not show, or near the border.
        border: what does not count at each side, voxels.
    """

    folder: Path
    voxel_size_angstrom: float
    positions: np.ndarray
    radii: np.ndarray
    clear: np.ndarray
    ribosomes: np.ndarray
    membrane: np.ndarray
    unseen: np.ndarray
    border: float

    def targets(self, task: str) -> np.ndarray:
        """Which particles a picker is to find."""
        wanted = self.ribosomes if task == "templates" else self.radii * self.voxel_size_angstrom >= _BLOB_ANGSTROM
        return wanted & self.clear

    def excused(self, task: str) -> np.ndarray:
        """Which particles are neither right nor wrong: of the kind that is sought, but cut off, small or embedded."""
        return (self.ribosomes if task == "templates" else np.ones_like(self.clear)) & ~self.targets(task)

    def score_picks(self, task: str, picks: np.ndarray, scores: np.ndarray) -> Detections:
        """Picks beside the particles there are."""
        targets, excused = self.targets(task), self.excused(task)
        parts = self.positions[targets], self.radii[targets], self.positions[excused], self.radii[excused]
        kept = inside(picks, self.membrane.shape, self.border)
        return match(picks[kept], scores[kept], *parts)

    def score_voxels(self, scores: np.ndarray) -> Detections:
        """A map of membranes beside those there are."""
        return voxels(scores, self.membrane, self.unseen)


def inside(positions: np.ndarray, shape: Sequence[int], border: float) -> np.ndarray:
    """Which positions are at least a border away from every side of a volume."""
    return np.minimum(positions, np.array(shape) - 1 - positions).min(axis=1) >= border


def load_scene(folder: Path, voxel_size_angstrom: float) -> Scene:
    """The record of a simulation.

    Args:
        folder: that ``save_simulation`` has written.
        voxel_size_angstrom: of the volumes.
    """
    particles = load_particles(folder / "particles.csv")
    membrane = np.array(mrcfile.read(folder / "membrane.mrc")).astype(bool)
    positions = np.array([p.position_zyx for p in particles])
    radii = np.array([p.radius for p in particles])
    border = _BORDER_ANGSTROM / voxel_size_angstrom
    nearest = np.clip(positions.round().astype(int), 0, np.array(membrane.shape) - 1)
    away = ndimage.distance_transform_edt(~membrane)[tuple(nearest.T)] if membrane.any() else np.inf
    shown = membranes.visible(membrane)
    shell = np.ones_like(membrane)
    shell[(slice(math.ceil(border), -math.ceil(border)),) * 3] = False
    return Scene(
        folder=folder,
        voxel_size_angstrom=voxel_size_angstrom,
        positions=positions,
        radii=radii,
        clear=inside(positions, membrane.shape, border) & (away >= radii / 2),
        ribosomes=np.array([p.template == TEMPLATE and p.scale >= _WHOLE_RIBOSOME for p in particles]),
        membrane=shown,
        unseen=(membranes.around(membrane & ~shown) & ~shown) | shell,
        border=border,
    )


class Case:
    """The tomograms of one case, their inputs, and what is found in them.

    Args:
        name: of the case.
        settings: of the work folder.
        work: the folder.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], work: Path) -> None:
        self.name, self.settings, self.work = name, settings, work
        self.scene, self.volume = cache(self._scene), cache(self._volume)

    def _scene(self, seed: int) -> Scene:
        folder = self.work / f"{self.name}_{seed}"
        size = prepare(folder, self.name, self.settings["shape"], SNR[self.name], seed)
        return load_scene(folder, size)

    @cached_property
    def gaussian_width(self) -> float:
        """The width, voxels, with which the tomogram of the tuning seed is most like its truth."""
        folder = self.scene(self.settings["tune_seed"]).folder
        noisy, truth = (methods.read(folder / f"{name}.mrc") for name in ("tomogram", "truth"))
        return max(map(float, BY_KEY["gaussian"].grid), key=lambda s: correlation(gaussian(noisy, s), truth))

    def _volume(self, name: str, seed: int) -> np.ndarray:
        folder = self.scene(seed).folder
        if name == "gaussian":
            return gaussian(methods.read(folder / "tomogram.mrc"), self.gaussian_width).numpy()
        path = folder / f"{ {'noisy': 'tomogram'}.get(name, name) }.mrc"
        if not path.is_file():
            job = Job(folder, seed, self.settings["steps"], 0, _CAP_S, "cpu", None)
            path = methods.run(BY_KEY[name], job).path
        return methods.read(path).numpy()

    def candidates(self, task: str, name: str) -> dict[str, Callable[[np.ndarray], Any]]:
        """The ways to do a task that are tried on the tuning seed, by what differs."""
        seed, size = self.settings["tune_seed"], self.scene(self.settings["tune_seed"]).voxel_size_angstrom
        if task == "ridge":
            widths = membranes.SIGMAS_ANGSTROM
            return {f"{s:g} Å": lambda v, s=s: membranes.ridges(v, s / size) for s in widths}
        if task == "unet":
            scene, steps = self.scene(seed), self.settings["unet_steps"]
            network = membranes.train(self.volume(name, seed), scene.membrane, scene.unseen, steps)
            return {f"{steps} steps": lambda v: membranes.segment(network, v)}
        from bench import picking

        if task == "templates":
            bank = self.bank
            return {f"{self.settings['rotations']} rotations": lambda v: picking.match_templates(v, bank, size)}
        pick = {"log": picking.pick_log, "dog": picking.pick_dog}[task]
        return {f"{s:g} Å": lambda v, s=s: pick(v, s / size) for s in picking.SIGMAS_ANGSTROM}

    @cached_property
    def bank(self) -> Any:
        """The templates of the case."""
        from bench import picking

        size = self.scene(self.settings["tune_seed"]).voxel_size_angstrom
        return picking.make_bank(picking.ribosome(size), size, self.settings["rotations"], _TILT_STEP_DEG)

    def measure(self, task: str, name: str) -> dict[str, Any]:
        """Tune a task for an input on one seed, and score it on the others."""

        def detect(way: Callable[[np.ndarray], Any], seed: int) -> Detections:
            output = way(self.volume(name, seed))
            scene = self.scene(seed)
            return scene.score_picks(task, *output) if task in PICKING else scene.score_voxels(output)

        ways = self.candidates(task, name)
        tuned = {label: detect(way, self.settings["tune_seed"]) for label, way in ways.items()}
        best = max(tuned, key=lambda label: tuned[label].average_precision())
        threshold = tuned[best].best_threshold()
        scores = {}
        for seed in self.settings["seeds"]:
            detections = detect(ways[best], seed)
            scores[str(seed)] = {"ap": detections.average_precision(), **detections.at(threshold)}
        return {
            "case": self.name, "input": name, "task": task, "choice": best, "threshold": threshold,
            "tuned_ap": tuned[best].average_precision(), **at_end(best, [*ways]), "scores": scores,
        }  # fmt: skip

    def chance(self, task: str) -> dict[str, Any]:
        """What picks at random places, as many as there are targets, or random voxels have."""
        random = np.random.default_rng(0)
        scores = {}
        for seed in self.settings["seeds"]:
            scene = self.scene(seed)
            kept = scene.border, np.array(scene.membrane.shape) - 1 - scene.border
            if task in PICKING:
                number = max(1, int(scene.targets(task).sum()))
                draws = [
                    scene.score_picks(task, random.uniform(*kept, (number, 3)), random.random(number))
                    for _ in range(_CHANCE_DRAWS)
                ]
            else:
                draws = [scene.score_voxels(random.random(scene.membrane.shape))]
            found = [{"ap": d.average_precision(), **d.at(0.0)} for d in draws]
            scores[str(seed)] = {key: mean(one[key] for one in found) for key in found[0]}
        return {"case": self.name, "input": CHANCE, "task": task, "scores": scores}

    def counts(self) -> dict[str, Any]:
        """What there is to find, by seed."""
        return {
            str(seed): {
                "ribosomes": int(self.scene(seed).targets("templates").sum()),
                "blobs": int(self.scene(seed).targets("log").sum()),
                "membrane": float(self.scene(seed).membrane.mean()),
            }
            for seed in self.settings["seeds"]
        }


def at_end(choice: str, labels: Sequence[str]) -> dict[str, bool]:
    """Whether a choice is the first or the last of its grid, by the name that results have for it.

    Args:
        choice: one of the labels.
        labels: of all that was tried, in order; nothing is said of a single one.
    """
    return {"at_end": choice in (labels[0], labels[-1])} if len(labels) > 1 else {}


def run(case: Case, inputs: Sequence[str], tasks: Sequence[str]) -> None:
    """Measure what is missing, and keep each result."""
    for name in (*inputs, CHANCE):
        for task in tasks:
            path = case.work / "results" / f"{case.name}_{name}_{task}.json"
            if path.is_file():
                continue
            result = case.chance(task) if name == CHANCE else case.measure(task, name)
            path.parent.mkdir(exist_ok=True)
            facts = {"machine": machine(), "commit": commit(), "version": _versions(), "counts": case.counts()}
            write_json({**result, **facts}, path)
            values = [one["ap"] for one in result["scores"].values()]
            print(f"{case.name}, {name}, {task}: AP {mean(values):.3f}", flush=True)


def has_acryo() -> bool:
    """Whether acryo, which picks, is installed."""
    return find_spec("acryo") is not None


def _versions() -> str:
    return f"{own_versions()}, acryo {version('acryo')}" if has_acryo() else own_versions()


def load_results(work: Path) -> list[dict[str, Any]]:
    """All results there are, in the order of cases, inputs and tasks."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("results/*.json")]
    inputs = [*INPUTS, CHANCE]
    return sorted(results, key=lambda r: (r["case"], inputs.index(r["input"]), [*TASKS].index(r["task"])))


def value(results: Sequence[Result], case: str, name: str, task: str, key: str) -> float | None:
    """A score, as the mean over seeds; None where it was not measured."""
    for result in results:
        if (result["case"], result["input"], result["task"]) == (case, name, task):
            return mean(one[key] for one in result["scores"].values())
    return None


def case_table(results: Sequence[Result], case: str) -> str:
    """Average precision by input and task; recall and precision, or Dice, at the frozen threshold in brackets.

    A star is on what was tuned to the end of its grid.
    """
    ends = {(r["input"], r["task"]) for r in results if r["case"] == case and r.get("at_end")}
    rows = []
    for name, label in {**INPUTS, CHANCE: "chance"}.items():
        cells = []
        for task in TASKS:
            keys = ("ap", "recall", "precision") if task in PICKING else ("ap", "dice")
            numbers = [value(results, case, name, task, key) for key in keys]
            if numbers[0] is None:
                cells.append("–")
            else:
                first, *rest = (f"{number:.2f}" for number in numbers)
                star = " \\*" if (name, task) in ends else ""
                cells.append(first if name == CHANCE else f"{first} ({', '.join(rest)}){star}")
        if set(cells) != {"–"}:
            rows.append([label, *cells])
    return table(["input", *TASKS.values()], rows, 1)


def losses(results: Sequence[Result], case: str) -> str:
    """A sentence on what denoised inputs lose against the noisy tomogram, and one against the Gaussian.

    Each is there only where something was measured on both sides.
    """
    sentences = []
    for reference, what in (("noisy", "the noisy tomogram"), ("gaussian", "the Gaussian")):
        compared, lost = False, []
        for name in ("fast", "auto"):
            for task, label in TASKS.items():
                before, after = (value(results, case, one, task, "ap") for one in (reference, name))
                if before is None or after is None:
                    continue
                compared = True
                if round(after - before, 2) < 0:
                    lost.append(f"{label} {after - before:+.2f} ({INPUTS[name].replace('**', '')})")
        if compared:
            sentences.append(f"Average precision lost against {what}: {', '.join(lost) if lost else 'none'}.")
    return " ".join(sentences)


def section(results: Sequence[Result], settings: Mapping[str, Any]) -> str:
    """The part of the page of benchmarks that shows the results."""
    z, y, x = settings["shape"]
    seeds = ", ".join(map(str, settings["seeds"]))
    parts = [
        BEGIN,
        "## Downstream",
        f"Picking and membranes in simulated tomograms of {z} x {y} x {x} voxels. Numbers are means over the seeds "
        f"{seeds}. Widths, thresholds and the U-Net come from seed {settings['tune_seed']}, for each input apart. The "
        "Gaussian has the width that suits that seed best. Raw numbers: "
        "[benchmarks_downstream.json](../data/benchmarks_downstream.json).",
        "A cell is average precision, 1 at best. Behind it, at the frozen threshold: recall and precision of picks, "
        "Dice of membranes. A pick is right within the radius of a particle that no surer pick has taken. Particles "
        "that are drawn through a membrane do not count, nor does membrane with its normal in the missing wedge, nor "
        f"what lies within {_BORDER_ANGSTROM:g} Å of the border.",
        f"Templates: {settings['rotations']} rotations of a ribosome by zero-normalised cross-correlation (acryo); "
        "only ribosomes are right. Each template has the contrast transfer and the missing wedge of the tomogram. LoG "
        "and DoG: Laplacian and difference of Gaussians (acryo); each molecule with a ball of its volume above "
        f"{_BLOB_ANGSTROM:g} Å in radius is right. Ridge filter: curvature across a sheet less that within. U-Net: of "
        f"MONAI, 8 to 32 channels, {settings['unet_steps']} steps on one tomogram.",
    ]
    for case in dict.fromkeys(result["case"] for result in results):
        counts = next(r["counts"] for r in results if r["case"] == case)
        told = [
            f"{one['ribosomes']} ribosomes, {one['blobs']} molecules, {one['membrane']:.1%} membrane (seed {seed})"
            for seed, one in counts.items()
        ]
        parts += [f"### Downstream of case {case}", f"SNR {SNR[case]:g}. To find: {'; '.join(told)}."]
        parts.append(case_table(results, case))
        if any(r.get("at_end") for r in results if r["case"] == case):
            parts.append("\\* The width is the smallest or the largest of those tried.")
        parts += filter(None, [losses(results, case)])
    parts += ["### Downstream, made with", _made_with(results), END]
    return wrapped(parts)


def _made_with(results: Sequence[Result]) -> str:
    lines = [f"- {name}: {'; '.join(sorted({r[name] for r in results}))}" for name in ("machine", "commit", "version")]
    return "\n".join([*lines, "- command: `scripts/bench/downstream.py`"])


def write_documents(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """The section of the page of benchmarks, and the raw numbers."""
    results = load_results(options.work)
    content = {"settings": settings, "results": results}
    write_section(options.docs, "downstream", section(results, settings), (BEGIN, END), content)


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=name_list, default=["wbp", "insitu20"], help="(default: wbp,insitu20)")
    parser.add_argument("--inputs", type=name_list, default=["noisy", "gaussian", "fast", "truth"],
                        help=f"of {','.join(INPUTS)} (default: all but auto, which is --effort standard)")  # fmt: skip
    parser.add_argument("--tasks", type=name_list, default=[*TASKS], help=f"of {','.join(TASKS)} (default: all)")
    # Of the cells of the first seeds, that of seed 1 has next to no membrane that its tilts show.
    parser.add_argument("--tune-seed", type=int, default=3, help="all choices are made on it (default: 3)")
    parser.add_argument("--seeds", type=whole_numbers, default=[0, 2], help="that are scored (default: 0,2)")
    parser.add_argument("--shape", type=triple, default=(80, 144, 144), help="z,y,x, voxels (default: 80,144,144)")
    parser.add_argument("--rotations", type=count, default=100, help="of the template (default: 100)")
    parser.add_argument("--unet-steps", type=count, default=400, help="of the U-Net (default: 400)")
    parser.add_argument("--steps", type=count, help="of our fits (default: those of the effort)")
    parser.add_argument("--work", type=Path, default=ROOT / "run" / "downstream", help="keeps volumes and results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the documents")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the documents."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if "white" in options.cases:
        parser.error(
            "--cases white has no tilt series, and templates have the contrast transfer and the missing wedge of one: "
            f"choose of {', '.join(CASES)}"
        )
    refuse_unknown(parser, "case", options.cases, CASES)
    refuse_unknown(parser, "input", options.inputs, INPUTS)
    refuse_unknown(parser, "task", options.tasks, TASKS)
    if options.tune_seed in options.seeds:
        parser.error(f"--tune-seed {options.tune_seed} is among --seeds: choices must come from another tomogram")
    options.work = options.work.absolute()
    if options.report_only:
        write_documents(options, stored_settings(options.work, parser))
        return
    if not set(PICKING).isdisjoint(options.tasks) and not has_acryo():
        parser.error('picking needs acryo: pip install -e ".[bench]", or leave it out of --tasks')
    check_shape(options.shape, parser)
    names = ("tune_seed", "seeds", "shape", "rotations", "unet_steps", "steps")
    settings = {name: getattr(options, name) for name in names}
    settings["shape"] = list(options.shape)
    check_settings(options.work, settings, "downstream")
    try:
        for name in options.cases:
            run(Case(name, settings, options.work), options.inputs, options.tasks)
    except NotRunError as error:
        sys.exit(f"downstream: {error}")
    write_documents(options, settings)


if __name__ == "__main__":
    main()
