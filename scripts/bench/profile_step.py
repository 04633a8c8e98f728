#!/usr/bin/env python3
"""Shows where the time of a training step, or of inference, goes: by kind of operation, and the dearest operations.

    scripts/bench/profile_step.py                                  # a step of the second stage, as the defaults have it
    scripts/bench/profile_step.py --network blind --threads 1      # of the first stage, on one core
    scripts/bench/profile_step.py --task window --shape 96,96,96   # inference of one window
    scripts/bench/profile_step.py --trace trace.json               # also a timeline, for chrome://tracing
    scripts/bench/profile_step.py --compile                        # instead: whether torch.compile wins, with warm-up

Leave the machine alone while it runs. The preparation of a batch (window, recorruption, mirroring) is timed by itself
and given as a share of the step it is for.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from cryoshuffle.devices import choose_device
from cryoshuffle.errors import SettingError
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.transforms import RandLatticeFlipd, RandLatticeWindowd
from cryoshuffle.memory import keep_memory
from cryoshuffle.noise.spectrum import GRID

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import table
from bench.options import count, triple
from bench.subject import CONFIG, LATTICES, MEMORY, PRECISIONS, Subject, build_network, make_work
from bench.timing import timed

# The first that matches the name of an operation counts.
KINDS = {
    "convolutions": r"conv|mm$|linear|matmul",
    "layer normalisation": r"layer_norm",
    "copies and changes of layout": r"copy|contiguous|clone|cat$|pad|flip|roll|fill|zero",
    "optimiser, clipping and averaging": r"adam|foreach|lerp|norm$",
    "sums and means": r"sum|mean|max|min|pool",
    "element by element": r"mul|add|sub|div|sigmoid|gelu|sqrt|square|abs|where|pow|neg|sgn|clamp|relu|gt$|lt$",
}


def kind_of(operation: str) -> str:
    """The kind of an operation of torch, by its name."""
    name = operation.removeprefix("aten::").lower()
    return next((kind for kind, words in KINDS.items() if re.search(words, name)), "other")


def self_times(work: Callable[[], object], device: torch.device, steps: int, trace: Path | None) -> Counter[str]:
    """Time of each operation itself, without what it calls, seconds of one step."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        timed(work, device, steps)
    if trace is not None:
        found.export_chrome_trace(str(trace))
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        micro = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        spent[event.key] += micro / 1e6 / steps
    return spent


def preparation(subject: Subject, repeats: int) -> float:
    """Time to prepare the batch of a step, seconds: window, recorruption, mirroring; without a worker, on the CPU."""
    sides = [2 * n for n in subject.shape]
    item: dict[str, Any] = {"image": torch.randn(1, *sides)}
    period = build_network(subject).period
    keys = ("image", "label")
    steps = [RandLatticeWindowd("image", subject.shape, period), lambda data: {**data, "label": data["image"]}]
    if subject.network == "open":
        steps.append(RandRecorruptd(keys, torch.ones(GRID, GRID, GRID)))
    steps.append(RandLatticeFlipd(keys, stride=LATTICES[subject.network].stride_zyx))

    def once() -> None:
        data = item
        for step in steps:
            data = step(data)

    return median(timed(once, torch.device("cpu")) for _ in range(repeats))


def compiled(subject: Subject, device: torch.device, steps: int) -> str:
    """What torch.compile makes of the network's body: time in turns with the body as it is, and the warm-up."""
    plain = make_work(subject, device)
    began = time.perf_counter()
    other = make_work(subject, device, lambda network: network.body.compile())
    timed(other, device)
    warm_up = time.perf_counter() - began
    with keep_memory(device):
        for work in (plain, other):
            timed(work, device)
        pairs = [(timed(plain, device), timed(other, device)) for _ in range(steps)]
    before, after = (median(side) for side in zip(*pairs, strict=True))
    gain = before - after
    pays = f"it pays after {warm_up / gain:.0f} of them" if gain > 0 else "it never pays"
    return (
        f"{subject.task}, network {subject.network}, {subject.precision}, {device}, {torch.get_num_threads()} threads: "
        f"{before * 1e3:.0f} ms, compiled {after * 1e3:.0f} ms ({before / after:.2f} times as fast); the first "
        f"compiled one took {warm_up:.0f} s, as long as {warm_up / before:.0f} others: {pays}"
    )


def report(subject: Subject, device: torch.device, steps: int, dearest: int, trace: Path | None) -> str:
    """The tables, as Markdown."""
    work = make_work(subject, device)
    with keep_memory(device):
        for _ in range(2):
            timed(work, device)
        seconds = median(timed(work, device) for _ in range(steps))
        spent = self_times(work, device, steps, trace)
    total = sum(spent.values())
    kinds: Counter[str] = Counter()
    for operation, one in spent.items():
        kinds[kind_of(operation)] += one
    rows = [[kind, f"{one * 1e3:.1f}", f"{one / total:.0%}"] for kind, one in kinds.most_common()]
    ways = [[f"`{name}`", f"{one * 1e3:.1f}", f"{one / total:.0%}"] for name, one in spent.most_common(dearest)]
    sides = " x ".join(map(str, subject.shape))
    lines = [
        f"{subject.task}, {sides} voxels, network {subject.network}, {subject.precision}, {subject.memory}, {device}, "
        f"{torch.get_num_threads()} threads: {seconds * 1e3:.0f} ms, {subject.work / seconds / 1e3:.0f}k voxels/s"
    ]
    if subject.task == "training":
        ready = preparation(subject, steps)
        lines.append(f"preparing its batch: {ready * 1e3:.1f} ms, {ready / seconds:.1%} of the step")
    head = ["ms", "share"]
    return "\n\n".join([*lines, table(["kind", *head], rows, 1), table(["operation", *head], ways, 1)])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    window = CONFIG["window"]
    parser.add_argument("--task", choices=["training", "window"], default="training")
    parser.add_argument("--network", choices=list(LATTICES), default="open")
    parser.add_argument("--shape", type=triple, default=tuple(window), help="z,y,x, voxels (default: a step's window)")
    parser.add_argument("--precision", choices=list(PRECISIONS), default="fp32")
    parser.add_argument("--memory", choices=list(MEMORY), default="contiguous")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=count, help="of the CPU (default: torch's own)")
    parser.add_argument("--steps", type=count, default=10)
    parser.add_argument("--dearest", type=count, default=15, help="operations listed (default: 15)")
    parser.add_argument("--trace", type=Path, help="file for a timeline")
    parser.add_argument("--compile", action="store_true", help="compare with torch.compile, which needs a C++ compiler")
    options = parser.parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    subject = Subject(options.task, options.shape, options.network, precision=options.precision, memory=options.memory)
    try:
        device = choose_device(options.device)
    except SettingError as error:
        parser.error(str(error))
    if options.compile:
        print(compiled(subject, device, options.steps))
    else:
        print(report(subject, device, options.steps, options.dearest, options.trace))


if __name__ == "__main__":
    main()
