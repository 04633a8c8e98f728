#!/usr/bin/env python3
"""Measures whether the error map is as large as the error, on simulations whose truth is known and on real halves.

    scripts/bench/errors.py --work /tmp/errors                     # twenty minutes on two cores
    scripts/bench/errors.py --work /tmp/errors --cases wbp --seeds 0,1
    scripts/bench/errors.py --work /tmp/errors --halves even.mrc odd.mrc

What is finished stays in ``--work`` and is not run again. Writes section "Error map" of ``docs/explain/benchmarks.md``
and ``docs/data/benchmarks_errors.json``. Needs the checkout's own environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoshuffle.commands.cli import main as cryoshuffle_main
from cryoshuffle.files.writing import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import table, wrapped, write_section
from bench.methods import NotRunError, read
from bench.options import check_settings, name_list, refuse_unknown, triple, whole_numbers
from bench.provenance import ROOT, commit, machine, own_versions
from bench.quality import CASES, SNR, prepare
from bench.real import REGIONS

BEGIN, END = "<!-- errors: begin, written by scripts/bench/errors.py -->", "<!-- errors: end -->"
PARTS = 8
MARGIN = 8
# Sides below which next to nothing is within the margins.
SMALLEST = 32
# What the noise is made of in the negative control, as power.
WRONG = 1.5


def calibration(error: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """True error over the predicted one, root mean square, in octiles of the predicted; and what two of them hold.

    Args:
        error: result less truth.
        predicted: its standard error, of the same shape.
    """
    apart, told = np.abs(error).ravel().astype(float), predicted.ravel().astype(float)
    parts = np.array_split(told.argsort(), PARTS)
    return {
        "ratios": [float(np.sqrt((apart[part] ** 2).mean() / (told[part] ** 2).mean())) for part in parts],
        "within_two": float((apart < 2 * told).mean()),
        "error": float(np.sqrt((apart**2).mean())),
        "predicted": float(np.sqrt((told**2).mean())),
    }


def run(words: Sequence[str]) -> None:
    """A command of the program.

    Raises:
        NotRunError: if it fails.
    """
    if cryoshuffle_main([*words, "--quiet", "--overwrite"]):
        raise NotRunError(f"cryoshuffle {' '.join(words)} failed")


def origin() -> dict[str, str]:
    """Where a result comes from."""
    return {"machine": machine(), "commit": commit(), "versions": own_versions()}


def with_wrong_noise(model: Path, path: Path, levels: bool) -> None:
    """A copy of a model that takes the noise for stronger than it is, and perhaps looks at its level again."""
    content = torch.load(model, weights_only=True)
    noise = content["noise"]
    noise["spectrum"], noise["levels"] = WRONG * noise["spectrum"], levels
    torch.save(content, path)


def measure(work: Path, case: str, seed: int, shape: Sequence[int], effort: str) -> dict[str, Any]:
    """A simulated case: denoised with its error map, and once more with the wrong noise."""
    folder = work / f"{case}_{seed}"
    finished = folder / f"errors_{effort}.json"
    if finished.is_file():
        return dict(json.loads(finished.read_text(encoding="utf-8")))
    prepare(folder, case, shape, SNR[case], seed)
    tomogram, out, error = (folder / name for name in ("tomogram.mrc", f"e_{effort}.mrc", f"error_{effort}.mrc"))
    run(["denoise", str(tomogram), str(out), "--effort", effort, "--error", str(error)])
    right, wrong = read(error).numpy(), {}
    for levels in (False, True):
        model, other = folder / "wrong.pt", folder / "wrong_error.mrc"
        with_wrong_noise(folder / f"e_{effort}_run" / "model.pt", model, levels)
        run(["apply", str(model), str(tomogram), str(folder / "wrong.mrc"), "--error", str(other)])
        wrong["level measured" if levels else "level kept"] = float(
            np.sqrt((read(other).numpy() ** 2 / right**2).mean())
        )
    inside = (slice(MARGIN, -MARGIN),) * 3
    apart = (read(out) - read(folder / "truth.mrc")).numpy()[inside]
    result = {
        "case": case, "seed": seed, "effort": effort,
        **calibration(apart, right[inside]),
        "wrong": wrong,
        "residual": residual_numbers(folder / f"e_{effort}_run"),
        **origin(),
    }  # fmt: skip
    write_json(result, finished)
    return result


def residual_numbers(run_folder: Path) -> dict[str, Any]:
    """The residual beside the measured noise, as the report of a run has it.

    Returns:
        ``bands`` and ``regions`` of its power, and what it has in common with the tomogram (``removed``), by band.
    """
    numbers = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))["numbers"]
    ratios = numbers["power"]["regions"]["ratios"]
    return {
        "bands": numbers["power"]["ratios"],
        "regions": [min(ratios), max(ratios)],
        "removed": numbers["removed"]["ratios"],
    }


def compare_halves(work: Path, halves: Sequence[Path], effort: str) -> dict[str, Any]:
    """Both halves denoised alike: how often they differ by no more than two standard errors of both together."""
    results, errors = [], []
    for name, half in zip(("even", "odd"), halves, strict=True):
        out, error = work / f"{name}_{effort}.mrc", work / f"{name}_error_{effort}.mrc"
        run(["denoise", str(half), str(out), "--effort", effort, "--error", str(error)])
        results.append(read(out).numpy())
        errors.append(read(error).numpy())
    apart, both = np.abs(results[0] - results[1]), np.sqrt(errors[0] ** 2 + errors[1] ** 2)
    regions = {"whole": (slice(None),) * 3, **REGIONS}
    result = {
        "halves": [str(half.name) for half in halves],
        "within_two": {name: float((apart[place] < 2 * both[place]).mean()) for name, place in regions.items()},
        "residual": residual_numbers(work / f"even_{effort}_run"),
        **origin(),
    }
    write_json(result, work / f"halves_{effort}.json")
    return result


def load_results(work: Path, effort: str) -> dict[str, Any]:
    """All that is finished in a work folder: the simulated cases in their order, and the halves or None."""
    cases = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob(f"*/errors_{effort}.json")]
    cases.sort(key=lambda one: (CASES.index(one["case"]), one["seed"]))
    halves = work / f"halves_{effort}.json"
    real = json.loads(halves.read_text(encoding="utf-8")) if halves.is_file() else None
    return {"effort": effort, "cases": cases, "halves": real}


def _source(result: Mapping[str, Any]) -> str:
    """Which rows a result is one of."""
    return f"seed {result['seed']}" if "seed" in result else "real cell"


def section(content: Mapping[str, Any]) -> str:
    """The section of the page."""
    rows = [
        [
            one["case"], str(one["seed"]), *(f"{ratio:.2f}" for ratio in one["ratios"]),
            f"{one['within_two']:.1%}", *(f"{ratio:.2f}" for ratio in one["wrong"].values()),
        ]
        for one in content["cases"]
    ]  # fmt: skip
    head = [
        "case",
        "seed",
        *map(str, range(1, PARTS + 1)),
        "within two",
        "wrong, level kept",
        "wrong, level measured",
    ]
    parts = [
        BEGIN, "## Error map",
        f"Is the error map (`--error`, here of `--effort {content['effort']}`) as large as the error? Voxels are "
        "sorted into eight parts by the map, least error first. Each column is the true error over that of the map, "
        "root mean square; 1 is right, less is caution. Of errors that are normally distributed 95 % would be within "
        "two standard errors. "
        f"The last two columns are the negative control: the map with noise taken for {WRONG} times as strong, over "
        "the map. Where the level of the noise is measured again, in the finest detail of the tomogram, that mends it.",
        table(head, rows, 2),
    ]  # fmt: skip
    residuals = [(f"{one['case']}, seed {one['seed']}", one["residual"]) for one in content["cases"]]
    if content["halves"] is not None:
        residuals.append(("real cell, even half", content["halves"]["residual"]))
        shares = [[name, f"{share:.1%}"] for name, share in content["halves"]["within_two"].items()]
        parts += [
            "The real cell, voxels of 20 Å: even and odd half denoised alike, each with its map. Voxels where the two "
            "results differ by no more than two standard errors of both together:",
            table(["region", "share of the voxels"], shares, 1),
        ]
    bands = [f"band {number}" for number in range(1, 5)]
    powers = [
        [name, *(f"{ratio:.2f}" for kind in ("bands", "regions", "removed") for ratio in residual[kind])]
        for name, residual in residuals
    ]
    parts += [
        "The residual of the same runs beside the noise that each has measured, as power: by band of detail, fine to "
        "coarse, and the least and the most of the regions that the report looks at. Last, by band, the mean product "
        "of residual and tomogram over the power of the noise: 1 where as much was taken away as there is noise. The "
        "limits of the report follow from this table.",
        table(["tomogram", *bands, "least region", "most", *(f"removed, {band}" for band in bands)], powers, 1),
    ]
    results = [*content["cases"], *([] if content["halves"] is None else [content["halves"]])]
    facts = {name: ", ".join(sorted({one[name] for one in results})) for name in ("machine", "commit", "versions")}
    facts["commit"] = "; ".join(
        f"{commit} ({', '.join(sorted({_source(one) for one in results if one['commit'] == commit}))})"
        for commit in sorted({one["commit"] for one in results})
    )
    facts["command"] = "`scripts/bench/errors.py --work DIR --halves even.mrc odd.mrc`"
    return wrapped([*parts, "### Made with", "\n".join(f"- {name}: {fact}" for name, fact in facts.items()), END])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for volumes and results")
    parser.add_argument("--cases", type=name_list, default=list(CASES), help="of the simulations")
    parser.add_argument("--seeds", type=whole_numbers, default=[0, 1], help="of the simulations")
    parser.add_argument("--shape", type=triple, default=(80, 144, 144), help="Z,Y,X, voxels")
    parser.add_argument("--effort", choices=("fast", "standard", "best"), default="fast", help="of the denoising")
    parser.add_argument(
        "--halves", type=Path, nargs=2, help="even and odd half of the real cell (scripts/bench/real.py)"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the documents")
    chosen = parser.parse_args(arguments)
    refuse_unknown(parser, "case", chosen.cases, CASES)
    if min(chosen.shape) < SMALLEST:
        parser.error(f"{chosen.shape} is too small a shape to measure: give {SMALLEST} voxels or more along each axis")
    check_settings(chosen.work, {"shape": list(chosen.shape)}, "errors")
    try:
        for case in chosen.cases:
            for seed in chosen.seeds:
                print(json.dumps(measure(chosen.work, case, seed, chosen.shape, chosen.effort)), flush=True)
        if chosen.halves:
            print(json.dumps(compare_halves(chosen.work, chosen.halves, chosen.effort)), flush=True)
    except NotRunError as error:
        sys.exit(f"errors: {error}")
    content = load_results(chosen.work, chosen.effort)
    write_section(chosen.docs, "errors", section(content), (BEGIN, END), content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
