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
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.writing import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import documents_of, replace_section, table, wrapped
from bench.options import name_list, refuse_unknown
from bench.provenance import ROOT, commit, machine, own_versions
from bench.quality import CASES, SNR, prepare
from bench.real import REGIONS

BEGIN, END = "<!-- errors: begin, written by scripts/bench/errors.py -->", "<!-- errors: end -->"
PARTS = 8
MARGIN = 8
# What the noise is made of in the negative control, as power.
WRONG = 1.5


def voxels(path: Path) -> np.ndarray:
    """A volume, (Z, Y, X)."""
    return load_tomogram(path)[0].numpy()


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
        RuntimeError: if it fails.
    """
    if cryoshuffle_main([*words, "--quiet", "--overwrite"]):
        raise RuntimeError(f"cryoshuffle {' '.join(words)} failed")


def with_wrong_noise(model: Path, path: Path) -> None:
    """A copy of a model that takes the noise for stronger than it is, and does not look at its level again."""
    content = torch.load(model, weights_only=True)
    noise = (content.get("cryoshuffle") or content)["noise"]
    noise["spectrum"], noise["levels"] = WRONG * noise["spectrum"], False
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
    model, wrong = folder / f"e_{effort}_run" / "model.pt", folder / "wrong.pt"
    with_wrong_noise(model, wrong)
    run(["apply", str(wrong), str(tomogram), str(folder / "w.mrc"), "--error", str(folder / "w_error.mrc")])
    inside = (slice(MARGIN, -MARGIN),) * 3
    apart = (voxels(out) - voxels(folder / "truth.mrc"))[inside]
    result = {
        "case": case, "seed": seed, "effort": effort,
        **calibration(apart, voxels(error)[inside]),
        "wrong": calibration(apart, voxels(folder / "w_error.mrc")[inside]),
    }  # fmt: skip
    write_json(result, finished)
    return result


def compare_halves(work: Path, halves: Sequence[Path], effort: str) -> dict[str, Any]:
    """Both halves denoised alike: how often they differ by no more than two standard errors of both together."""
    results, errors = [], []
    for half in halves:
        out, error = work / f"{half.stem}_{effort}.mrc", work / f"{half.stem}_error_{effort}.mrc"
        if not error.is_file():
            run(["denoise", str(half), str(out), "--effort", effort, "--error", str(error)])
        results.append(voxels(out))
        errors.append(voxels(error))
    apart, both = np.abs(results[0] - results[1]), np.sqrt(errors[0] ** 2 + errors[1] ** 2)
    regions = {"whole": (slice(None),) * 3, **REGIONS}
    return {name: float((apart[place] < 2 * both[place]).mean()) for name, place in regions.items()}


def section(content: Mapping[str, Any]) -> str:
    """The section of the page."""
    rows = [
        [
            one["case"], str(one["seed"]), one["effort"], *(f"{ratio:.2f}" for ratio in one["ratios"]),
            f"{one['within_two']:.1%}", f"{one['wrong']['predicted'] / one['predicted']:.2f}",
        ]
        for one in content["cases"]
    ]  # fmt: skip
    head = ["case", "seed", "effort", *map(str, range(1, PARTS + 1)), "within two", "wrong noise"]
    parts = [
        BEGIN, "## Error map",
        "Is the error map (`--error`) as large as the error? Voxels are sorted into eight parts by the map, least "
        "error first. Each column is the true error over that of the map, root mean square; 1 is right, less is "
        "caution. Of errors that are normally distributed 95 % would be within two standard errors. "
        "The last column is the negative control: the map with noise taken for "
        f"{WRONG} times as strong, over the map. For it the level of the noise is not measured again in the finest "
        "detail, as it is otherwise: then the map stays within 3 % of the right one.",
        table(head, rows, 3),
    ]  # fmt: skip
    if content.get("halves"):
        shares = [[name, f"{share:.1%}"] for name, share in content["halves"].items()]
        parts += [
            "The real cell, voxels of 20 Å: even and odd half denoised alike, each with its map. Voxels where the two "
            "results differ by no more than two standard errors of both together:",
            table(["region", "share of the voxels"], shares, 1),
        ]
    facts = {name: content[name] for name in ("machine", "commit", "versions")}
    return wrapped([*parts, "### Made with", "\n".join(f"- {name}: {fact}" for name, fact in facts.items()), END])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for volumes and results")
    parser.add_argument("--cases", type=name_list, default=list(CASES), help="of the simulations")
    parser.add_argument("--seeds", type=name_list, default=["0", "1"], help="of the simulations")
    parser.add_argument("--shape", type=name_list, default=["80", "144", "144"], help="Z,Y,X, voxels")
    parser.add_argument("--effort", default="fast", help="of the denoising")
    parser.add_argument(
        "--halves", type=Path, nargs=2, help="even and odd half of the real cell (scripts/bench/real.py)"
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the documents")
    chosen = parser.parse_args(arguments)
    refuse_unknown(parser, "case", chosen.cases, CASES)
    shape = [int(side) for side in chosen.shape]
    page, data, _ = documents_of(chosen.docs)
    path = data / "benchmarks_errors.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= {"cases": [], "machine": machine(), "commit": commit(), "versions": own_versions()}
    for case in chosen.cases:
        for seed in map(int, chosen.seeds):
            content["cases"].append(measure(chosen.work, case, seed, shape, chosen.effort))
            print(json.dumps(content["cases"][-1]), flush=True)
    if chosen.halves:
        chosen.work.mkdir(parents=True, exist_ok=True)
        content["halves"] = compare_halves(chosen.work, chosen.halves, chosen.effort)
        print(json.dumps(content["halves"]), flush=True)
    write_json(content, path)
    document = page.read_text(encoding="utf-8") if page.is_file() else ""
    page.write_text(replace_section(document, section(content), BEGIN, END), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
