#!/usr/bin/env python3
"""A plan on paper: a thousand large tomograms on 16 GPUs, from what was measured on a CPU, run by Dask's scheduler.

    scripts/bench/scaling.py --measure       # how often a run reads and writes, how fast that is; then the plan
    scripts/bench/scaling.py                 # the plan, from what was measured before

The rates of fit and denoising are those of ``docs/data/benchmarks_quality.json`` and
``docs/data/benchmarks_speed.json``. What no script could measure is in ``ASSUMED``, by name. Each scenario is worked
out in closed form and then given to Dask's own scheduler with as many workers as there are GPUs; only their clock is
simulated. Writes ``docs/data/scaling.json`` and the tables of ``docs/explain/scaling.md``. Takes a minute or two, and
three times ``--mib`` of disk in ``--work``. ``--measure`` needs Linux, which says what a process reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import io
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from cryoshuffle.commands.cli import main as cryoshuffle
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.writing import SETTLED_S, checksum, write_json, write_text
from cryoshuffle.memory import limit_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import replace_section, wrapped
from bench.provenance import ROOT, commit, machine

DOCS = ROOT / "docs"
BEGIN, END = "<!-- plan: begin, written by scripts/bench/scaling.py -->", "<!-- plan: end -->"
GIB = 2**30
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
# What is counted, in sizes of the tomogram.
COUNTED = {
    "file_reads": "read from files",
    "loads": "of that, to load it",
    "scratch_passes": "gone over in volumes on disk",
}
WAYS = {"fit": "a fit to each", "apply": "one network for all"}
Json = dict[str, Any]


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


class VirtualClock:
    """Time that passes when all who could work are waiting for it.

    Args:
        site: whose file system is shared.
        busy: how many should be waiting before time may pass.
        patience_s: of real time, after which it passes all the same: somebody was given nothing to do, and idles.
    """

    def __init__(self, site: Site, busy: Callable[[], int], patience_s: float = 30.0) -> None:
        self.now = self.gpu_s = 0.0
        self.idled = 0
        self._site, self._busy, self._patience_s = site, busy, patience_s
        self._sleeping: list[tuple[float, asyncio.Event]] = []
        self._moving: list[list[Any]] = []

    async def sleep(self, seconds: float) -> None:
        """Wait for a time."""
        event = asyncio.Event()
        self._sleeping.append((self.now + seconds, event))
        await event.wait()

    async def move(self, gib: float) -> None:
        """Wait until so much went through the file system."""
        event = asyncio.Event()
        self._moving.append([gib, event])
        await event.wait()

    def _rate(self) -> float:
        return min(self._site.link_gib_per_s, self._site.shared_gib_per_s / max(1, len(self._moving)))

    def _pass(self) -> None:
        """Go on to whatever comes next."""
        rate = self._rate()
        ends = [end for end, _ in self._sleeping] + [self.now + gib / rate for gib, _ in self._moving]
        now = min(ends)
        for one in self._moving:
            one[0] -= (now - self.now) * rate
        self.now = now
        # Ends that differ by rounding alone are one.
        late = now * (1 + 1e-12)
        for event in [e for end, e in self._sleeping if end <= late] + [e for gib, e in self._moving if gib <= 1e-9]:
            event.set()
        self._sleeping = [one for one in self._sleeping if not one[1].is_set()]
        self._moving = [one for one in self._moving if not one[1].is_set()]

    async def run(self) -> None:
        """Let time pass until nobody is expected any more."""
        since = time.monotonic()
        while self._busy():
            waiting = len(self._sleeping) + len(self._moving)
            patient = time.monotonic() - since < self._patience_s
            if waiting and (waiting >= self._busy() or not patient):
                self.idled += waiting < self._busy()
                self._pass()
                since = time.monotonic()
            elif not patient:
                raise RuntimeError("the scheduler gave nobody anything to do")
            await asyncio.sleep(0)


async def _attempt(job: Job, fails: bool) -> None:
    """What a worker does with a tomogram."""
    from distributed import get_worker

    clock = get_worker().virtual_clock
    await clock.move(job.read_gib)
    await clock.sleep(job.cpu_s + job.gpu_s)
    clock.gpu_s += job.gpu_s
    await clock.move(job.write_gib)
    if fails:
        raise OSError("as assumed")


async def _simulate(job: Job, site: Site, tomograms: int, nth: int) -> Json:
    import distributed

    left = tomograms
    clock = VirtualClock(site, lambda: min(site.gpus, left))
    # A worker is given the next tomogram when it is done with the one before.
    with _dask_settings({"distributed.scheduler.worker-saturation": 1.0}):
        async with (
            distributed.LocalCluster(
                n_workers=site.gpus, threads_per_worker=1, processes=False, asynchronous=True, memory_limit=0,
                dashboard_address=None, silence_logs=logging.CRITICAL,
            ) as cluster,
            distributed.Client(cluster, asynchronous=True) as client,
        ):  # fmt: skip
            for worker in cluster.workers.values():
                worker.virtual_clock = clock
            began, attempts = time.monotonic(), 0

            def submit(number: int, again: bool) -> Any:
                nonlocal attempts
                attempts += 1
                fails = not again and nth > 0 and number % nth == nth - 1
                return client.submit(_attempt, job, fails, key=f"tomogram-{number}-{int(again)}", pure=False)

            names = {submit(number, False): number for number in range(tomograms)}
            passing = asyncio.ensure_future(clock.run())
            coming = distributed.as_completed(list(names))
            async for future in coming:
                number = names.pop(future)
                if future.status == "error":
                    again = submit(number, True)
                    names[again] = number
                    coming.add(again)
                else:
                    left -= 1
            await passing
            real_s = time.monotonic() - began
    return {
        "attempts": attempts,
        "makespan_s": clock.now,
        "gpu_idle_share": 1 - clock.gpu_s / (site.gpus * clock.now),
        "times_somebody_was_left_idle": clock.idled,
        "real_ms_per_attempt": 1000 * real_s / attempts,
    }


@contextlib.contextmanager
def _dask_settings(values: Mapping[str, Any]) -> Iterator[None]:
    import dask

    with dask.config.set(values):
        yield


def simulate(job: Job, site: Site, tomograms: int, nth: int = 0) -> Json:
    """Give tomograms to Dask's scheduler, on workers whose clock is virtual.

    Args:
        job: each of them.
        site: a worker for each of its GPUs.
        tomograms: how many.
        nth: every so manieth fails once and is tried again; 0 for none.

    Returns:
        ``attempts``; ``makespan_s``, virtual; ``gpu_idle_share``; ``times_somebody_was_left_idle`` though there was
        something to do; ``real_ms_per_attempt``: what scheduler, workers and client took together for each.
    """
    return asyncio.run(_simulate(job, site, tomograms, nth))


def _read_by_process() -> int:
    """Bytes this process has read so far, of files and of what the system had of them in memory."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@contextlib.contextmanager
def _counted(count: dict[str, int]) -> Iterator[None]:
    """Count the bytes that are loaded and standardised, and those that go by section by section in volumes on disk."""
    sections, standardise = scratch.sections, StandardiseIntensity.__call__

    def counting(shape: Sequence[int], dim: int = 1) -> Iterator[slice]:
        plane = 4 * math.prod(shape) // max(1, shape[dim])
        for part in sections(shape, dim):
            count["scratch_passes"] += plane * (part.stop - part.start)
            yield part

    def counting_too(self: StandardiseIntensity, image: Any) -> Any:
        count["loads"] += 4 * math.prod(image.shape)
        return standardise(self, image)

    scratch.sections, StandardiseIntensity.__call__ = counting, counting_too
    try:
        yield
    finally:
        scratch.sections, StandardiseIntensity.__call__ = sections, standardise


def count_passes(work: Path) -> Json:
    """How often a run reads files, loads its tomogram, and goes over volumes on disk: what a larger tomogram adds.

    Returns:
        ``file_reads``, loads included, ``loads`` and ``scratch_passes`` by way, in sizes of the tomogram.
    """
    found: dict[str, list[dict[str, int]]] = {way: [] for way in WAYS}
    fit = ["--steps", "4", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]
    within = "32,48,48"
    # The first is to load all libraries. What looks at the middle of a volume only is the same for the other two.
    for number, planes in enumerate((32, 256, 512)):
        source, network = work / f"count_{number}.mrc", work / f"fit_{number}_run" / "model.pt"
        with mrcfile.new(source) as mrc:
            mrc.set_data(np.random.default_rng(0).standard_normal((planes, 48, 48)).astype(np.float32))
            mrc.set_volume()
            mrc.voxel_size = 10.0
        # What was changed a moment ago is read for its checksum each time.
        time.sleep(2 * SETTLED_S)
        for way, words in {
            "fit": ["denoise", *fit, "--inference-window", within],
            "apply": ["apply", str(network), "--window", within],
        }.items():
            count = {"size": 4 * planes * 48 * 48, "loads": 0, "scratch_passes": 0, "file_reads": -_read_by_process()}
            out = [str(source), str(work / f"{way}_{number}.mrc"), "--quiet", "--memory", "0.004"]
            with _counted(count), contextlib.redirect_stdout(io.StringIO()):
                code = cryoshuffle([*words, *out])
            if code:
                raise RuntimeError(f"the run that counts ended with {code}")
            count["file_reads"] += _read_by_process()
            found[way].append(count)
    limit_memory()
    counted: Json = {}
    for name in COUNTED:
        counted[name] = {w: (c[2][name] - c[1][name]) / (c[2]["size"] - c[1]["size"]) for w, c in found.items()}
    return counted


def _evict(path: Path) -> None:
    """Make the system forget what it has of a file in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def measure_rates(work: Path, mib: int) -> Json:
    """Rates of the disk, and of what the node's processor does with each volume, on a volume on disk.

    The disk by wall clock; the processor by the seconds that it was at work for this process.
    """
    shape, rates = (mib, 512, 512), {}
    size_gib = 4 * math.prod(shape) / GIB

    def timed(name: str, act: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> Any:
        began = clock()
        result = act()
        rates[name] = clock() - began
        return result

    raw = work / "raw"
    plane = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float32)

    def write_raw() -> None:
        volume = torch.from_numpy(scratch.empty_volume(shape, work, raw))
        for part in scratch.sections(shape, 0):
            volume[part] = torch.from_numpy(plane)
        scratch.flush(volume)

    def read_raw() -> None:
        with raw.open("rb") as file:
            while file.read(scratch.SECTION):
                pass

    timed("write", write_raw, time.monotonic)
    _evict(raw)
    timed("read", read_raw, time.monotonic)
    raw.unlink()
    source, copy = work / "volume.mrc", work / "copy.mrc"
    with mrcfile.new_mmap(source, shape, 2) as mrc:
        for z in range(shape[0]):
            mrc.data[z] = plane * (1 + z / shape[0])
        mrc.voxel_size = 10.0
    limit_memory(size_gib)
    standardise = StandardiseIntensity()
    image = timed("load", lambda: standardise(load_tomogram(source, folder=work)))

    def write_result() -> None:
        save_tomogram(standardise.inverse(image), copy)

    timed("finish", write_result)
    timed("checksum", lambda: checksum(source))
    limit_memory()
    return {
        "disk_write_gib_per_s": size_gib / rates["write"],
        "disk_read_gib_per_s": size_gib / rates["read"],
        "load_s_per_gib": rates["load"] / size_gib,
        "finish_s_per_gib": rates["finish"] / size_gib,
        "checksum_s_per_gib": rates["checksum"] / size_gib,
        "volume_gib": size_gib,
        "threads": torch.get_num_threads(),
    }


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
    """All scenarios, in closed form and simulated."""
    found = []
    for way in WAYS:
        for faster in assumed["faster_than_two_cores"]:
            job = job_of(way, known, measured, assumed["gib_of_each"], faster)
            for shared in assumed["shared_gib_per_s"]:
                site = Site(assumed["gpus"], shared, assumed["link_gib_per_s"])
                simulated = simulate(job, site, assumed["tomograms"], assumed["every_nth_fails_once"])
                bound = bounds_s(job, site, simulated["attempts"])
                found.append(
                    {
                        "way": way,
                        "faster": faster,
                        "shared_gib_per_s": shared,
                        "job": dataclasses.asdict(job),
                        "bounds_s": bound,
                        "bottleneck": bottleneck(job, site, simulated["attempts"]),
                        **simulated,
                    }
                )
                print(f"{WAYS[way]}, {faster} x, {shared} GiB/s: {simulated['makespan_s'] / 3600:.1f} h", flush=True)
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first columns are words."""
    rule = ["---"] * words + ["---:"] * (len(head) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


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
        _table(["what", "is", "from"], facts, 3),
        f"Counted and timed by `scripts/bench/scaling.py --measure`: {measured['machine']}, commit "
        f"{measured['commit']}, threads {measured['threads']}, a volume of {measured['volume_gib']:g} GiB. All other "
        f"reads are for checksums. The benchmarks: {known['machine']}, with their commits on their page.",
        "## Assumed",
        _table(
            ["is", "what"],
            [[", ".join(f"{v:g}" for v in (x if isinstance(x, list) else [x])), TOLD[k]] for k, x in assumed.items()],
            2,
        ),
        "## One tomogram",
        _table(
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
                f"{s['makespan_s'] / 3600:.1f}",
                f"{100 * s['gpu_idle_share']:.0f} %",
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
            "h, simulated",
            "GPU idle",
        ]
        parts += [f"### {WAYS[way].capitalize()}", _table(head, rows, 3)]
    real = statistics.median(s["real_ms_per_attempt"] for s in content["scenarios"])
    idled = sum(s["times_somebody_was_left_idle"] for s in content["scenarios"])
    attempts = content["scenarios"][0]["attempts"]
    shortest = min(s["makespan_s"] * assumed["gpus"] / s["attempts"] for s in content["scenarios"])
    parts += [
        "h, runs and h, file system: lower bounds in closed form. h, simulated: Dask's scheduler, client and "
        f"{assumed['gpus']} workers with a simulated clock. {attempts} attempts each, failed ones included. Equal "
        "tomograms stay in step, so the file system rests while all workers compute: the worst case.",
        f"Scheduler, workers and client together took {real:.1f} ms of real time per attempt (median over the "
        f"scenarios), {100 * real / 1000 / shortest:.3f} % of the shortest attempt: Dask is not the bottleneck. A "
        f"worker was idle while work was waiting {idled} times.",
        f"Simulated on {content['machine']}, commit {content['commit']}, Dask {content['dask']}. Raw numbers: "
        "[scaling.json](../data/scaling.json).",
        END,
    ]
    return wrapped(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, plan, and write the documents."""
    import distributed

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
        "dask": distributed.__version__,
        "machine": machine(),
        "commit": commit(),
    }
    write_json(content, path)
    page = DOCS / "explain" / "scaling.md"
    write_text(replace_section(page.read_text(encoding="utf-8"), section(content), BEGIN, END), page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
