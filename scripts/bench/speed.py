#!/usr/bin/env python3
"""Measures how fast fit and inference are and what memory they take, beside the paper's formulation and peers.

    scripts/bench/peers_setup /tmp/peers                      # once; the peers are optional
    scripts/bench/speed.py --peers /tmp/peers                 # hours; stop and start again as you like
    scripts/bench/speed.py --parts rates,paper --threads 2    # a piece of it
    scripts/bench/speed.py --report-only                      # the documents from what is there

Parts: ``rates`` (voxels/s by network, precision, memory format and threads), ``paper`` (beside the dilated
formulation), ``peers`` (beside Noise2Void and Topaz), ``matmul`` (share of what the machine can do), ``process``
(memory, start) and ``cubes`` (inference by size of the volume). Leave the machine alone while it runs. What is finished
stays in ``--work`` and is not measured again; a peer that failed is. The documents are written after each part: section
"Speed" of ``docs/explain/benchmarks.md`` and ``docs/data/benchmarks_speed.json``. Needs the checkout's own environment;
peers run in environments of their own.

Each number of threads has a process of its own. What is compared is measured in turns: each repetition goes once
through all that a table compares, so that a machine which slows down slows all of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cryoshuffle.devices import choose_device
from cryoshuffle.errors import SettingError
from cryoshuffle.files.writing import write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import write_section
from bench.methods import NotRunError
from bench.options import check_settings, count, counts, name_list, refuse_unknown, stored_settings, triple
from bench.provenance import ROOT, commit, machine, own_versions
from bench.speed_measures import beside_matmul, beside_paper, cube, cube_sides, memory, rates, start_up
from bench.speed_peers import beside_noise2void, beside_topaz, check_peer
from bench.speed_tables import BEGIN, END, TASKS, speed_section
from bench.subject import CONFIG, PRECISIONS
from bench.turns import Bench, Row
from bench.worker import Place, Worker, cores

PARTS = ("rates", "paper", "peers", "matmul", "process", "cubes")


def units(bench: Bench) -> list[tuple[str, str, Callable[[], list[Row]]]]:
    """What is measured and kept as a whole: part, name and how."""
    precisions = bench.settings["precisions"]
    return [
        *(("rates", f"rates_{task}", partial(rates, bench, task)) for task in TASKS),
        *(("paper", f"paper_{task}", partial(beside_paper, bench, task)) for task in ("training", "window")),
        ("peers", "n2v", partial(beside_noise2void, bench)),
        ("peers", "topaz", partial(beside_topaz, bench)),
        *(("matmul", f"matmul_{precision}", partial(beside_matmul, bench, precision)) for precision in precisions),
        ("process", "memory", partial(memory, bench)),
        ("process", "start", partial(start_up, bench)),
        *(("cubes", f"cube_{side}", partial(cube, bench, side)) for side in cube_sides(bench.largest)),
    ]


def finished(path: Path) -> bool:
    """Whether a unit was measured; what a peer could not do may be possible the next time."""
    if not path.is_file():
        return False
    unit = json.loads(path.read_text(encoding="utf-8"))
    failed = [r for r in unit.get("rows", ()) if "reason" in r and "precision" not in r and not r.get("final")]
    return "reason" not in unit and not failed


def measure(bench: Bench, part: str, name: str, run: Callable[[], list[Row]]) -> dict[str, Any]:
    """Measure a unit; a peer that is absent is told by its reason."""
    facts = {"machine": machine(), "commit": commit(), "version": own_versions()}
    try:
        if part == "peers":
            facts["version"] += f"; {check_peer(bench, name)}"
        return {"part": part, "unit": name, "rows": run(), **facts}
    except NotRunError as error:
        return {"part": part, "unit": name, "reason": str(error)}


def load_results(work: Path) -> list[dict[str, Any]]:
    """All units there are, in the order of the parts."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (work / "results").glob("*.json")]

    def order(unit: Mapping[str, Any]) -> tuple[int, int, str]:
        size = int(unit["unit"].removeprefix("cube_")) if unit["part"] == "cubes" else 0
        return PARTS.index(unit["part"]), size, unit["unit"]

    return sorted(found, key=order)


def write_documents(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """The section and the raw numbers, from what is in the work folder."""
    results = load_results(options.work)
    content = {"settings": settings, "results": results}
    write_section(options.docs, "speed", speed_section(results, settings), (BEGIN, END), content)


def choose_places(device: str, threads: Sequence[int]) -> list[Place]:
    """The columns: each number of threads of the CPU, and an accelerator if one is there or asked for."""
    found = [Place("cpu", n) for n in sorted(set(threads))] if device in ("auto", "cpu") else []
    best = choose_device(device).type
    return [*found, *([] if best == "cpu" else [Place(best, cores())])]


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    window = ",".join(map(str, CONFIG["window"]))
    parser.add_argument("--parts", type=name_list, default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=counts, default=[1, 2], help="of the CPU, each by itself (default: 1,2)")
    parser.add_argument("--precisions", type=name_list, default=list(PRECISIONS), help="of fp32,bf16 (default: both)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="auto: the CPU, and CUDA or MPS if it is there (default: auto)")  # fmt: skip
    parser.add_argument("--repeats", type=count, default=7, help="of what takes seconds (default: 7)")
    parser.add_argument("--process-repeats", type=count, default=3, help="of programs and of cubes (default: 3)")
    parser.add_argument("--least-seconds", type=float, default=0.2, help="of a repetition (default: 0.2)")
    parser.add_argument("--window", type=triple, default=triple(window), help=f"of a step (default: {window})")
    parser.add_argument("--inference-window", type=triple, default=(96, 192, 96), help="(default: 96,192,96)")
    parser.add_argument("--volume", type=triple, default=(80, 144, 144), help="z,y,x, voxels (default: 80,144,144)")
    parser.add_argument("--matmul", type=count, default=2048, help="side of the matrices (default: 2048)")
    parser.add_argument("--largest", type=count, default=512, help="side of the largest cube, voxels (default: 512)")
    parser.add_argument("--peer-epochs", type=count, default=3, help="of Noise2Void, behind one (default: 3)")
    parser.add_argument("--cap-minutes", type=float, default=30, help="longest run of a peer (default: 30)")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, of scripts/bench/peers_setup")
    parser.add_argument("--work", type=Path, default=ROOT / "run" / "speed", help="keeps what is finished")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write the documents")
    return parser


def check_names(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what there is not."""
    refuse_unknown(parser, "part", options.parts, PARTS)
    refuse_unknown(parser, "precision", options.precisions, PRECISIONS)
    if not options.precisions:
        parser.error("name at least one precision")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the documents."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    check_names(options, parser)
    options.work = options.work.absolute()
    if options.report_only:
        write_documents(options, stored_settings(options.work, parser))
        return
    try:
        places = choose_places(options.device, options.threads)
    except SettingError as error:
        parser.error(str(error))
    kept = ("repeats", "process_repeats", "least_seconds", "matmul", "peer_epochs", "precisions")
    sides = {name: list(getattr(options, name)) for name in ("window", "inference_window", "volume")}
    settings = {**{name: getattr(options, name) for name in kept}, **sides, "places": [p.name for p in places]}
    check_settings(options.work, settings, "speed")
    (options.work / "results").mkdir(exist_ok=True)
    used = {**settings, **{name: tuple(side) for name, side in sides.items()}}
    with contextlib.ExitStack() as stack:
        log = options.work / "worker.log"
        crew = [stack.enter_context(Worker(place, log, options.least_seconds)) for place in places]
        bench = Bench(used, places, crew, options.work, options.peers, options.cap_minutes, options.largest)
        for wanted in (part for part in PARTS if part in options.parts):
            for part, name, run in units(bench):
                path = options.work / "results" / f"{name}.json"
                if part == wanted and not finished(path):
                    found = measure(bench, part, name, run)
                    write_json(found, path)
                    print(f"{name}: {found.get('reason', 'measured')}", flush=True)
            write_documents(options, settings)


if __name__ == "__main__":
    main()
