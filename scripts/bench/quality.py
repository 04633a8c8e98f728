#!/usr/bin/env python3
"""Measures denoising quality on simulated tomograms whose truth is known, beside classical and learnt peers.

    scripts/bench/peers_setup /tmp/peers                           # once; each peer is optional
    scripts/bench/quality.py --peers /tmp/peers --ablation         # hours; stop and start again as you like
    scripts/bench/quality.py --cases wbp --methods auto,blind      # a piece of it
    scripts/bench/quality.py --report-only                         # the documents from what is there

What is finished stays in ``--work`` and is not run again; what failed is. The documents are written after each case:
section "Quality" of ``docs/explain/benchmarks.md``, ``docs/data/benchmarks_quality.json``,
``docs/pictures/benchmark_<case>.png`` and ``docs/pictures/benchmark_effort.png``.
Needs the checkout's own environment; peers run in environments of their own (``--peers``).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryoshuffle.files.writing import write_json
from cryoshuffle.scores.evaluation import evaluate
from cryoshuffle.simulation.tilt_series import CASES as SIMULATED
from cryoshuffle.simulation.tilt_series import save_simulation, simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import methods, report
from bench.markdown import documents_of, write_section
from bench.methods import ABLATION, METHODS, Job, Method, NotRunError, Outcome
from bench.options import check_settings, check_shape, name_list, refuse_unknown, stored_settings, whole_numbers
from bench.provenance import ROOT, commit, machine, own_versions

# The cell in voxels of 20 Å as well, as large as those of the real one.
COARSE = "insitu20"
CASES = (*SIMULATED, COARSE)
SNR = {"white": 0.1, "wbp": 0.061, "aligned": 0.19, "sirt": 0.19, "binned": 0.1, "insitu": 0.02, COARSE: 0.06}
VOLUMES = ("tomogram", "even", "odd", "truth")
BY_KEY = {method.key: method for method in (*METHODS, *ABLATION)}
# Rows of the ablation that the main tables have as well, under their plain names.
COMMON = ("auto", "cold", "blind")


def prepare(folder: Path, case: str, shape: Sequence[int], snr: float, seed: int) -> float:
    """Simulate, unless it is there, and put all volumes on the scale of the standardised tomogram.

    Returns:
        Voxel size, Å.
    """
    described = folder / "simulation.json"
    if not described.is_file():
        made = (
            simulate("insitu", shape, snr, seed, voxel_size_angstrom=20.0)
            if case == COARSE
            else simulate(case, shape, snr, seed)
        )
        mean, deviation = made.tomogram.mean(), made.tomogram.std()
        scaled = {name: (getattr(made, name) - mean) / deviation for name in VOLUMES}
        folder.mkdir(parents=True, exist_ok=True)
        save_simulation(replace(made, **scaled), folder, force=True)
    return float(json.loads(described.read_text(encoding="utf-8"))["voxel_size_angstrom"])


def score(outcome: Outcome, truth_path: Path, voxel_size_angstrom: float) -> dict[str, Any]:
    """The scores of a result, as the tables want them."""
    result, truth = methods.read(outcome.path), methods.read(truth_path)
    found = evaluate(result, truth=truth, stride=outcome.stride, voxel_size_angstrom=voxel_size_angstrom)
    against = found["truth"]
    finest = 2 * voxel_size_angstrom if against["fsc"][-1] >= against["threshold"] else None
    scores = {name: against[name] for name in ("correlation", "psnr_db", "ssim")}
    scores["fsc_angstrom"] = against.get("resolution_angstrom") or finest
    lattice = list(found.get("lattice", {}).values())
    if lattice:
        scores["lattice_stride"] = list(outcome.stride or ())
        scores["lattice_excess"] = max(axis["excess"] for axis in lattice)
        scores["truth_lattice_excess"] = max(axis["truth_excess"] for axis in lattice)
        scores["residue_imbalance"] = max(axis["imbalance"] for axis in lattice)
    return scores


def measure(method: Method, job: Job, voxel_size_angstrom: float) -> dict[str, Any]:
    """Run and score a method; a peer that is absent or fails is told by its reason."""
    try:
        versions = methods.peer_version(method, job.peers) or own_versions()
        outcome = methods.run(method, job)
        scores = score(outcome, job.folder / "truth.mrc", voxel_size_angstrom)
    except (NotRunError, OSError, ValueError) as error:
        return {"reason": str(error if isinstance(error, NotRunError) else NotRunError(str(error)))}
    return {
        "scores": scores,
        "seconds": outcome.seconds,
        "strength": outcome.strength,
        "at_end": outcome.at_end,
        "version": versions,
        "machine": machine(),
        "commit": commit(),
    }


def load_results(work: Path) -> list[dict[str, Any]]:
    """All results there are, in the order of cases, seeds and methods."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*/results/*.json")]
    order = [*BY_KEY]
    known = [r for r in found if r["method"] in BY_KEY]
    return sorted(known, key=lambda r: (CASES.index(r["case"]), r["seed"], order.index(r["method"])))


def rows(listed: Sequence[Method]) -> list[report.Row]:
    """Methods as rows of a table."""
    return [(method.key, method.label, method.told) for method in listed]


def ablation_rows(case: str) -> list[report.Row]:
    """What is changed on a case, behind what it is compared with."""
    common = [
        (key, label, "")
        for key, label in zip(COMMON, ("nothing changed", "`--cold-start`", "`--no-refine`"), strict=True)
    ]
    return [*common, *rows([method for method in ABLATION if case in method.cases])]


def draw(work: Path, pictures: Path, results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A picture for each case where ours is done, and its caption."""
    captions = {}
    for case in CASES:
        seeds = sorted(r["seed"] for r in results if (r["case"], r["method"]) == (case, "auto") and "scores" in r)
        if not seeds:
            continue
        folder = work / f"{case}_{seeds[0]}"
        mine = {r["method"]: r for r in results if (r["case"], r["seed"]) == (case, seeds[0]) and "scores" in r}
        peers = [key for key in mine if BY_KEY[key].kind == "peer"]
        shown = {"truth": "truth", "noisy": "tomogram", "Gaussian": "gaussian", "cryoshuffle": "auto"}
        if peers:
            best = max(peers, key=lambda key: mine[key]["scores"]["correlation"])
            shown[BY_KEY[best].label.partition(",")[0]] = best
        there = {title: folder / f"{name}.mrc" for title, name in shown.items()}
        picture = pictures / f"benchmark_{case}.png"
        if all(path.is_file() for path in there.values()):
            report.save_panel({title: methods.read(path) for title, path in there.items()}, picture)
        elif not picture.is_file():
            continue
        # Else the picture of an earlier work folder, whose results were taken over, is still the right one.
        captions[case] = (
            f"Case {case}, seed {seeds[0]}, central xy (top) and xz plane (bottom): {', '.join(there)}. "
            "Each with a grey scale of its own."
        )
    return captions


def write_documents(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """The section, the raw numbers and the pictures, from what is in the work folder."""
    results = load_results(options.work)
    _, _, pictures = documents_of(options.docs)
    captions = draw(options.work, pictures, results)
    report.save_effort_plot(results, CASES, pictures / "benchmark_effort.png")
    grids = {
        method.label: f"{method.unit}: {', '.join(f'{strength:g}' for strength in method.grid)}"
        for method in METHODS
        if method.unit
    }
    names = {method.key for method in ABLATION}
    ablated = {
        case: ablation_rows(case)
        for case in methods.ABLATED_CASES
        if any(r["case"] == case and r["method"] in names for r in results)
    }
    described = {**settings, "grids": grids}
    section = report.quality_section(results, described, rows(METHODS), ablated, captions)
    content = {"settings": described, "results": results}
    write_section(options.docs, "quality", section, (report.BEGIN, report.END), content)


def _ratios(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (part.split("=") for part in name_list(text))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like wbp=0.061,white=0.1") from None


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(f"{name} {value:g}" for name, value in SNR.items())
    parser.add_argument("--cases", type=name_list, default=list(CASES), help=f"of {','.join(CASES)} (default: all)")
    parser.add_argument("--methods", type=name_list, help=f"of {','.join(BY_KEY)} (default: all but the ablation)")
    parser.add_argument("--ablation", action="store_true", help="also ours with one thing changed, on wbp and aligned")
    parser.add_argument("--seeds", type=whole_numbers, default=[0, 1, 2], help="for medians (default: 0,1,2)")
    parser.add_argument("--shape", type=whole_numbers, default=[80, 144, 144], help="z,y,x (default: 80,144,144)")
    parser.add_argument("--snr", type=_ratios, default={}, help=f"case=ratio with commas between (default: {known})")
    parser.add_argument("--steps", type=int, help="of our fits (default: as many as their effort has)")
    parser.add_argument("--peer-steps", type=int, default=600, help="of Noise2Void and cryoCARE (default: 600)")
    parser.add_argument("--cap-minutes", type=float, default=30, help="longest run of a program (default: 30)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="for all methods (default: cpu)")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, of scripts/bench/peers_setup")
    parser.add_argument("--work", type=Path, default=ROOT / "run" / "quality", help="keeps volumes and results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    parser.add_argument("--report-only", action="store_true", help="run nothing, write the documents")
    return parser


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Method]:
    """The methods asked for, in the order of the tables."""
    refuse_unknown(parser, "case", options.cases, CASES)
    refuse_unknown(parser, "case", options.snr, CASES)
    refuse_unknown(parser, "method", options.methods or [], BY_KEY)
    keys = [method.key for method in METHODS] if options.methods is None else options.methods
    keys = [*keys, *(COMMON if options.ablation else ()), *(m.key for m in ABLATION if options.ablation)]
    return [method for key, method in BY_KEY.items() if key in keys]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the documents."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    wanted = chosen(options, parser)
    options.work = options.work.absolute()
    if options.report_only:
        write_documents(options, stored_settings(options.work, parser))
        return
    check_shape(options.shape, parser)
    settings = {
        "shape": options.shape,
        "snr": {**SNR, **options.snr},
        "steps": options.steps,
        "peer_steps": options.peer_steps,
        "cap_minutes": options.cap_minutes,
        "device": options.device,
    }
    # How long a program may take changes no number.
    check_settings(options.work, settings, "quality", free=("cap_minutes",))
    for case in (name for name in CASES if name in options.cases):
        for seed in options.seeds:
            folder = options.work / f"{case}_{seed}"
            size = prepare(folder, case, options.shape, settings["snr"][case], seed)
            cap_s = 60 * options.cap_minutes
            job = Job(folder, seed, options.steps, options.peer_steps, cap_s, options.device, options.peers)
            (folder / "results").mkdir(exist_ok=True)
            for method in (m for m in wanted if not m.cases or case in m.cases):
                path = folder / "results" / f"{method.key}.json"
                if path.is_file() and "scores" in json.loads(path.read_text(encoding="utf-8")):
                    continue
                found = {"case": case, "seed": seed, "method": method.key, **measure(method, job, size)}
                write_json(found, path)
                print(f"{case}, seed {seed}, {method.key}: {_short(found)}", flush=True)
        write_documents(options, settings)


def _short(found: Mapping[str, Any]) -> str:
    if "reason" in found:
        return f"not run: {found['reason']}"
    seconds = "" if found["seconds"] is None else f", {found['seconds']:.0f} s"
    return f"CC {found['scores']['correlation']:.3f}{seconds}"


if __name__ == "__main__":
    main()
