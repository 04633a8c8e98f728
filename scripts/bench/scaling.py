#!/usr/bin/env python3
"""A plan on paper, in closed form: a thousand large tomograms on 16 GPUs, from what was measured on a CPU.

    scripts/bench/scaling.py --measure      # how often a run reads and writes, how fast that is; then the plan
    scripts/bench/scaling.py                # the plan, from what was measured before

The rates of fit and denoising are those of ``docs/data/benchmarks_quality.json`` and
``docs/data/benchmarks_speed.json``. What no script could measure is in ``ASSUMED``, by name. Writes
``docs/data/scaling.json`` and the tables of ``docs/explain/scaling.md``. ``--measure`` takes minutes, and three times
``--mib`` of disk in ``--work``. It needs Linux, which says what a process reads.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryoshuffle.files.writing import write_json, write_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import replace_section, table, wrapped
from bench.provenance import ROOT, commit, machine
from bench.scaling_measure import COUNTED, GIB, WAYS, Json, count_passes, measure_rates

DOCS = ROOT / "docs"
BEGIN, END = "<!-- plan: begin, written by scripts/bench/scaling.py -->", "<!-- plan: end -->"
ASSUMED = {
    "tomograms": 1000,
    "gib_of_each": 4.0,
    "gpus": 16,
    "faster_than_two_cores": [5, 20, 50],
    "shared_gib_per_s": [0.5, 2.0, 10.0],
    "link_gib_per_s": 1.16,
    "every_nth_fails_once": 50,
}
# How each assumption is told.
TOLD = {
    "tomograms": "tomograms",
    "gib_of_each": "GiB of each, in float32",
    "gpus": "GPUs, one run on each",
    "faster_than_two_cores": "times as fast as two cores is a GPU, at fit and denoising: a range",
    "shared_gib_per_s": "GiB/s of the file system that all nodes share, reading and writing together",
    "link_gib_per_s": "GiB/s at most between it and a run (10 Gbit/s)",
    "every_nth_fails_once": "one tomogram in this number fails once, at its end, and is tried again",
}


@dataclass(frozen=True)
class Job:
    """What one attempt at one tomogram takes.

    Attributes:
        read_gib: from the shared file system, before anything else.
        cpu_s: of the node's processor, which no GPU makes faster.
        gpu_s: of the GPU.
        write_gib: to the shared file system, and what is read of it again, at the end.
    """

    read_gib: float
    cpu_s: float
    gpu_s: float
    write_gib: float

    @property
    def moved_gib(self) -> float:
        """Through the shared file system."""
        return self.read_gib + self.write_gib


@dataclass(frozen=True)
class Site:
    """Where the attempts are made.

    Attributes:
        gpus: runs at once.
        shared_gib_per_s: of the file system, shared equally among those who read or write; infinity for no limit.
        link_gib_per_s: that one run gets at most.
    """

    gpus: int
    shared_gib_per_s: float
    link_gib_per_s: float


def alone_s(job: Job, site: Site) -> float:
    """Seconds of an attempt that has the file system for itself.

    Example:
        >>> alone_s(Job(read_gib=4, cpu_s=10, gpu_s=20, write_gib=2), Site(16, math.inf, 1.0))
        36.0
    """
    return job.cpu_s + job.gpu_s + job.moved_gib / min(site.link_gib_per_s, site.shared_gib_per_s)


def bounds_s(job: Job, site: Site, attempts: int) -> dict[str, float]:
    """Seconds that nothing can be faster than, by what limits it.

    Args:
        job: each of the attempts.
        site: where.
        attempts: failed ones included.

    Returns:
        ``runs``: some GPU has to make so many attempts one after another; ``file system``: all has to go through it.
        All of it takes at least the longer of the two and at most both together: whenever the file system has room,
        each run goes on at its own pace.

    Example:
        >>> bounds_s(Job(4, 10, 20, 2), Site(2, 0.5, 1.0), attempts=3)
        {'runs': 84.0, 'file system': 36.0}
    """
    return {
        "runs": math.ceil(attempts / site.gpus) * alone_s(job, site),
        "file system": attempts * job.moved_gib / site.shared_gib_per_s,
    }


def bottleneck(job: Job, site: Site, attempts: int) -> str:
    """What to make faster first: the shared file system if it is full, else the longest part of a run."""
    bound = bounds_s(job, site, attempts)
    if bound["file system"] >= bound["runs"]:
        return "shared file system"
    moving = alone_s(job, site) - job.cpu_s - job.gpu_s
    parts = {"GPU": job.gpu_s, "the node's processor": job.cpu_s, "link to the file system": moving}
    return max(parts, key=lambda name: parts[name])


def from_benchmarks() -> Json:
    """Seconds of a fit and of a start, and voxels a second, on two cores."""
    quality, speed = (
        json.loads((DOCS / "data" / f"benchmarks_{name}.json").read_text(encoding="utf-8"))
        for name in ("quality", "speed")
    )
    runs = [r["seconds"] for r in quality["results"] if r["method"] == "auto" and r.get("seconds")]
    rows = [row for unit in speed["results"] for row in unit["rows"] if row.get("place") == "2 threads"]
    cube = max((row for row in rows if row["task"] == "volume" and row["network"] == "open"), key=lambda r: r["work"])
    start_s = statistics.median(next(row["seconds"] for row in rows if row["task"] == "first step"))
    rate = cube["work"] / statistics.median(cube["seconds"])
    whole_s = statistics.median(runs)
    return {
        "whole_run_s": whole_s,
        "whole_run_voxels": math.prod(quality["settings"]["shape"]),
        "runs": len(runs),
        "start_s": start_s,
        "voxels_per_s": rate,
        "cube": cube["shape"],
        "fit_s": whole_s - start_s - math.prod(quality["settings"]["shape"]) / rate,
        "machine": next(unit["machine"] for unit in speed["results"]),
        "commits": sorted({unit["commit"] for unit in speed["results"]}),
    }


def memory_of_a_run() -> Json | None:
    """The largest tomogram whose peak memory was measured."""
    path = DOCS / "data" / "robustness.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [value for name, value in known.items() if name.startswith("memory")]
    return max(found, key=lambda one: one["tomogram_gib"], default=None)


def job_of(way: str, known: Json, measured: Json, gib: float, faster: float) -> Job:
    """What one tomogram takes on one GPU.

    Args:
        way: one of ``WAYS``.
        known: of :func:`from_benchmarks`.
        measured: of :func:`count_passes` and :func:`measure_rates`.
        gib: of the tomogram.
        faster: than two cores is the GPU.
    """
    reads, loads = measured["file_reads"][way], measured["loads"][way]
    cpu_s = known["start_s"] + gib * (
        loads * measured["load_s_per_gib"]
        + measured["finish_s_per_gib"]
        + (reads - loads) * measured["checksum_s_per_gib"]
    )
    two_cores_s = gib * GIB / 4 / known["voxels_per_s"] + (known["fit_s"] if way == "fit" else 0.0)
    return Job((reads - 1) * gib, cpu_s, two_cores_s / faster, 2 * gib)


def plan(known: Json, measured: Json, assumed: Json) -> list[Json]:
    """All scenarios."""
    attempts = assumed["tomograms"] + assumed["tomograms"] // assumed["every_nth_fails_once"]
    scenarios = []
    for way in WAYS:
        for faster in assumed["faster_than_two_cores"]:
            job = job_of(way, known, measured, assumed["gib_of_each"], faster)
            for shared in assumed["shared_gib_per_s"]:
                site = Site(assumed["gpus"], shared, assumed["link_gib_per_s"])
                bound = bounds_s(job, site, attempts)
                scenarios.append(
                    {
                        "way": way,
                        "faster": faster,
                        "shared_gib_per_s": shared,
                        "job": dataclasses.asdict(job),
                        "attempts": attempts,
                        "bounds_s": bound,
                        "bottleneck": bottleneck(job, site, attempts),
                        "gpu_idle_share_at_least": 1 - attempts * job.gpu_s / (site.gpus * max(bound.values())),
                    }
                )
    return scenarios


def section(content: Json) -> str:
    """The section of the document, markers included."""
    known, measured, assumed, memory = (content[name] for name in ("known", "measured", "assumed", "memory"))
    gib = assumed["gib_of_each"]
    cpu_h = {way: job_of(way, known, measured, gib, 1.0) for way in WAYS}
    facts = [
        ("a fit, two cores, whatever the size", f"{known['fit_s']:.0f} s", "benchmarks_quality.json"),
        ("denoising, two cores, fp32", f"{known['voxels_per_s'] / 1e6:.2f} 10⁶ voxels/s", "benchmarks_speed.json"),
        ("start of the program", f"{known['start_s']:.1f} s", "benchmarks_speed.json"),
        *(
            (f"{told}, {WAYS[way]}", f"{measured[name][way]:.1f} times the tomogram", "counted")
            for name, told in COUNTED.items()
            for way in WAYS
        ),
        ("load and standardise", f"{measured['load_s_per_gib']:.1f} s of a core/GiB", "timed"),
        ("back to grey values, write", f"{measured['finish_s_per_gib']:.1f} s of a core/GiB", "timed"),
        ("checksum", f"{measured['checksum_s_per_gib']:.1f} s of a core/GiB", "timed"),
        ("disk, writing as a volume on disk", f"{measured['disk_write_gib_per_s']:.2f} GiB/s", "timed"),
        ("disk, reading", f"{measured['disk_read_gib_per_s']:.2f} GiB/s", "timed"),
    ]
    if memory is not None:
        windows = memory.get("windows_computed_and_there")
        some = f", {windows[0]} of {windows[1]} windows computed" if windows else ""
        allowed = f"{memory['memory_asked_gib']:g} GiB allowed{some}"
        facts.append(
            (
                f"peak memory of a run on {memory['tomogram_gib']:.1f} GiB, {allowed}",
                f"{memory['peak_resident_gib']:.1f} GiB",
                "robustness.json",
            )
        )
    passes_gib = measured["scratch_passes"]["fit"] * gib
    disk = min(measured["disk_write_gib_per_s"], measured["disk_read_gib_per_s"])
    parts = [
        BEGIN,
        "## Measured",
        table(["what", "is", "from"], facts, 3),
        f"Counted and timed by `scripts/bench/scaling.py --measure`: {measured['machine']}, commit "
        f"{measured['commit']}, threads {measured['threads']}, a volume of {measured['volume_gib']:g} GiB. All other "
        f"reads are for checksums. The benchmarks: {known['machine']}, with their commits on their page.",
        "## Assumed",
        table(
            ["is", "what"],
            [[", ".join(f"{v:g}" for v in (x if isinstance(x, list) else [x])), TOLD[k]] for k, x in assumed.items()],
            2,
        ),
        "## One tomogram",
        table(
            ["seconds", *(WAYS[way] for way in WAYS)],
            [
                ["network, two cores", *(f"{cpu_h[way].gpu_s:.0f}" for way in WAYS)],
                *(
                    [f"network, {n:g} times as fast", *(f"{cpu_h[way].gpu_s / n:.0f}" for way in WAYS)]
                    for n in assumed["faster_than_two_cores"]
                ),
                ["the node's processor, one core", *(f"{cpu_h[way].cpu_s:.0f}" for way in WAYS)],
                ["GiB through the shared file system", *(f"{cpu_h[way].moved_gib:.0f}" for way in WAYS)],
            ],
            1,
        ),
        f"Volumes on disk take {2 * gib:g} GiB of the node's own disk. A run with a fit moves {passes_gib:.0f} GiB "
        "through them. If they fit into the system's memory, that time is part of the processor's seconds above. If "
        f"not, each pass goes to the disk: {passes_gib / disk:.0f} s more for each tomogram at the slower of the two "
        f"rates above ({disk:.2f} GiB/s). So give each run {2 * gib:g} GiB beyond its own memory, or a faster disk.",
        f"## {assumed['tomograms']} tomograms",
    ]
    for way in WAYS:
        rows = [
            [
                f"{s['faster']:g}",
                f"{s['shared_gib_per_s']:g}",
                s["bottleneck"],
                f"{s['bounds_s']['runs'] / 3600:.1f}",
                f"{s['bounds_s']['file system'] / 3600:.1f}",
                f"{sum(s['bounds_s'].values()) / 3600:.1f}",
                f"{100 * s['gpu_idle_share_at_least']:.0f} %",
            ]
            for s in content["scenarios"]
            if s["way"] == way
        ]
        head = [
            "GPU, times two cores",
            "GiB/s shared",
            "bottleneck",
            "h, runs",
            "h, file system",
            "h, both",
            "GPU idle, at least",
        ]
        parts += [f"### {WAYS[way].capitalize()}", table(head, rows, 3)]
    parts += [
        "h, runs: each GPU makes its share of the attempts, one after another. h, file system: all attempts go through "
        "it. h, both: the sum. The plan takes at least the longer of the two times and at most their sum. Equal "
        "tomograms come close to the sum: they stay in step, so the file system rests while all workers compute. "
        f"{content['scenarios'][0]['attempts']} attempts each, failed ones included. GPU idle: at the shorter time.",
        "Raw numbers: [scaling.json](../data/scaling.json).",
        END,
    ]
    return wrapped(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, plan, and write the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="anew, although it was measured before")
    parser.add_argument("--mib", type=int, default=256, help="of the volume that is timed (default: 256)")
    parser.add_argument("--work", type=Path, help="folder for it (default: a temporary one)")
    options = parser.parse_args(arguments)
    path = DOCS / "data" / "scaling.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    measured = before.get("measured")
    if options.measure or measured is None:
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            measured = {**count_passes(Path(folder)), **measure_rates(Path(folder), options.mib)}
        measured |= {"machine": machine(), "commit": commit()}
        print(json.dumps(measured, indent=2))
    known = from_benchmarks()
    content = {
        "known": known,
        "measured": measured,
        "assumed": ASSUMED,
        "memory": memory_of_a_run(),
        "scenarios": plan(known, measured, ASSUMED),
    }
    write_json(content, path)
    page = DOCS / "explain" / "scaling.md"
    write_text(replace_section(page.read_text(encoding="utf-8"), section(content), BEGIN, END), page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
