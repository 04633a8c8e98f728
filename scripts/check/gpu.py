#!/usr/bin/env python3
"""Runs and times the program on a GPU: quality beside the CPU's, precisions, speed, memory, two runs at once.

    scripts/check/gpu.py --out gpu                          # all of it, at most 8 minutes
    scripts/check/gpu.py --out cpu --reference ref --device cpu --steps denoise     # results to compare with
    scripts/check/gpu.py --out gpu --reference ref          # on the GPU, beside those
    scripts/check/gpu.py --out small --device cpu --small   # every branch, in a few minutes without a GPU

Steps, in order of worth: laws, denoise, profile, training, inference, quality, precision, beside. After each of their
parts ``gpu.json`` and ``gpu.log`` in ``--out`` are written anew, so a run that is cut off keeps what it has. A step for
which the time does not suffice is left out and named. Needs the checkout, its dependencies and PyTorch, and no network.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import json
import os
import platform
import pstats
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from monai.transforms import Compose
from torch.utils.flop_counter import FlopCounterMode

from cryoshuffle.commands import cli
from cryoshuffle.devices import allow_tf32, choose_device
from cryoshuffle.files import scratch
from cryoshuffle.files.writing import write_json
from cryoshuffle.fit.data import WindowDataset
from cryoshuffle.fit.graphs import GraphedInferer
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.transforms import RandLatticeFlipd, RandLatticeWindowd
from cryoshuffle.inference import inferers, streaming
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.mergers import WindowMerger
from cryoshuffle.inference.streaming import StreamedNetwork
from cryoshuffle.memory import keep_memory
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.noise.linear_filter import WIENER_REACH
from cryoshuffle.noise.spectrum import GRID
from cryoshuffle.scores.metrics import correlation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.methods import read
from bench.provenance import ROOT, commit
from bench.quality import SNR, prepare
from bench.subject import CONFIG, Subject, build_network, make_work, training_step
from bench.timing import peak_mib, timed

SHAPE, SMALL_SHAPE = (80, 144, 144), (24, 40, 40)
SHIPPED = ROOT / "tests" / "data" / "cylindra_13pf_MT.mrc"
VOLUMES = ((256, 256, 256), (512, 512, 512), (300, 1024, 1024))
BATCHES = (1, 2, 4, 8)
FIT_STEPS = (300, 1500, 3000)
SECONDS = (10, 30, 60)
PRECISIONS = ("bf16", "tf32", "fp32")
# A step that takes less is not worth a line in the profile.
_DEAREST = 45


class NoTimeError(Exception):
    """What is left of the time does not suffice for a part."""


@dataclass
class Check:
    """A run of the steps.

    Attributes:
        out: folder of JSON, log and results.
        reference: of results of the CPU; None for none.
        device: that computes.
        ends: on the monotonic clock.
        small: sizes for a test.
        found: what was found, by step.
    """

    out: Path
    reference: Path | None
    device: torch.device
    ends: float
    small: bool
    found: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def say(self, words: str) -> None:
        """A line of the log."""
        line = f"{time.monotonic() - self.began:6.1f} s  {words}"
        print(line, flush=True)
        with (self.out / "gpu.log").open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def keep(self, step: str, **values: Any) -> None:
        """Add to what a step has found, and write it."""
        self.found.setdefault(step, {}).update(values)
        self.found["seconds"] = round(time.monotonic() - self.began, 1)
        write_json(self.found, self.out / "gpu.json")
        for name, value in values.items():
            self.say(f"{step}: {name} {json.dumps(value)[:300]}")

    def left_s(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def need(self, seconds: float) -> None:
        """Stop the step if less time than this is left."""
        if self.left_s() < seconds:
            raise NoTimeError(f"{seconds:.0f} s are needed and {max(0, self.left_s()):.0f} s are left")

    @property
    def steps(self) -> list[str]:
        """Options of a fit, shorter ones in a test."""
        return ["--steps", "24"] if self.small else []

    def simulated(self) -> tuple[Path, Path]:
        """A simulated tomogram, that of the reference if there is one, and its truth."""
        folder = (self.reference or self.out) / "wbp"
        prepare(folder, "wbp", SMALL_SHAPE if self.small else SHAPE, SNR["wbp"], 0)
        return folder / "tomogram.mrc", folder / "truth.mrc"

    def command(self, source: Path, name: str, *words: str) -> list[str]:
        """The words of a run of the program."""
        return [
            *(sys.executable, "-m", "cryoshuffle", "denoise", str(source), str(self.result(name)), "--quiet"),
            *("--device", str(self.device), "--report", str(self.out / f"{name}_run"), *words),
        ]

    def result(self, name: str) -> Path:
        """Where the result of a run is."""
        return self.out / f"{name}.mrc"

    def run(self, source: Path, name: str, *words: str) -> dict[str, Any]:
        """A run of the program, and how long it and its stages took; its last lines in the log if it fails."""
        began = time.monotonic()
        done = subprocess.run(
            self.command(source, name, *words),
            env=environment(),
            capture_output=True,
            text=True,
            timeout=max(1, self.left_s()),
            check=False,
        )
        seconds = round(time.monotonic() - began, 2)
        if done.returncode:
            self.say(f"{name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
            return {"seconds": seconds, "exit_code": done.returncode, "error": done.stderr[-300:]}
        return {"seconds": seconds, "stages_s": self.stages(name)}

    def stages(self, name: str) -> dict[str, float]:
        """Seconds of the stages of a run, by its log, and of the rest of it."""
        log = (self.out / f"{name}_run" / "run.log").read_text(encoding="utf-8")
        lines = [line.split(" INFO ")[1].split() for line in log.splitlines() if " took " in line and " INFO " in line]
        return {words[0]: float(words[2]) for words in lines}


def environment() -> dict[str, str]:
    """That of a run: the checkout's own package."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "bundle"), os.environ.get("PYTHONPATH", "")])}


def alike(a: Path, b: Path) -> dict[str, float]:
    """How alike two results are: correlation, root mean square of the difference in deviations, share of equal bits."""
    one, two = read(a), read(b)
    apart = (one - two).square().mean().sqrt() / two.std()
    return {
        "correlation": round(float(correlation(one, two)), 6),
        "difference": float(f"{float(apart):.3g}"),
        "same_bits": round(float((one == two).float().mean()), 6),
    }


def against(result: Path, truth: Path) -> float:
    """Correlation of a result with the truth."""
    return round(float(correlation(read(result), read(truth))), 5)


def check_machine(check: Check) -> None:
    """What the machine is, and the rates of its memory and of its matrix units."""
    device, cuda = check.device, check.device.type == "cuda"
    check.keep(
        "machine",
        device=torch.cuda.get_device_name(device) if cuda else platform.processor() or str(device),
        torch=torch.__version__,
        cudnn=torch.backends.cudnn.version() if cuda else None,
        python=platform.python_version(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        commit=commit(),
    )
    side = 256 if check.small else 8192
    work = make_work(Subject("matmul", (side, side), precision="bf16"), device)
    for _ in range(3):
        work()
    seconds = timed(work, device, 10)
    here = torch.randn(side, side // 2, 8, device=device)
    there = torch.empty_like(here)
    copy = timed(lambda: there.copy_(here), device, 10)
    moved = 2 * here.numel() * here.element_size()
    check.keep("machine", bf16_tflops=round(2 * side**3 / seconds / 1e12, 1), copy_gb_s=round(moved / copy / 1e9, 1))


def check_laws(check: Check) -> None:
    """The tests of devices and of blindness, on this one; convolutions and how a layer is lowered, beside float64."""
    check.need(20)
    tests = [str(ROOT / "tests" / "paper" / "test_device_laws.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=check.left_s(),
        check=False,
    )
    check.keep("laws", device_laws=done.stdout.strip().splitlines()[-1:] or done.stderr[-300:])
    if done.returncode:
        check.say(done.stdout[-6000:])
    side = 24 if check.small else 128
    for channels, kernel in ((24, 3), (40, 5), (64, 3)):
        apart = {}
        torch.manual_seed(0)
        x, weight = torch.randn(1, channels, side, side, side), torch.randn(channels, channels, *[kernel] * 3)
        x, weight = x.to(check.device), weight.to(check.device)
        exact = torch.nn.functional.conv3d(x.double(), weight.double(), padding=kernel // 2)
        for precision in PRECISIONS:
            allow_tf32(precision)
            with torch.autocast(check.device.type, torch.bfloat16, enabled=precision == "bf16"):
                found = torch.nn.functional.conv3d(x, weight, padding=kernel // 2)
            apart[precision] = float(f"{float((found.double() - exact).norm() / exact.norm()):.2g}")
        allow_tf32("fp32")
        check.keep("laws", **{f"conv3d_{channels}_channels_kernel_{kernel}_error": apart})


def check_denoise(check: Check) -> None:
    """A standard run of the shipped tomogram and of a simulation: time, quality, likeness to the CPU's, resuming."""
    source, truth = check.simulated()
    where = "cpu" if check.device.type == "cpu" else "gpu"
    runs = [("wbp", source), ("shipped", SHIPPED)]
    for name, path in runs[: 1 if check.small else 2]:
        check.need(20)
        label = f"{name}_{where}"
        found = check.run(path, label, *check.steps)
        if "error" not in found:
            if name == "wbp":
                found["correlation"] = against(check.result(label), truth)
            other = None if check.reference is None else check.reference / f"{name}_cpu.mrc"
            if other is not None and where == "cpu" and not other.is_file():
                other.write_bytes(check.result(label).read_bytes())
            if other is not None and other.is_file():
                found["beside_cpu"] = alike(check.result(label), other)
                if name == "wbp":
                    found["correlation_cpu"] = against(other, truth)
        check.keep("denoise", **{name: found})
    check.need(20)
    found = check.run(source, "again", *check.steps)
    if "error" not in found:
        found["beside_first"] = alike(check.result("again"), check.result(f"wbp_{where}"))
    check.keep("denoise", again=found)
    check.need(20)
    check.keep("denoise", resumed=resume(check, source, f"wbp_{where}"))


def resume(check: Check, source: Path, whole: str) -> dict[str, Any]:
    """Stop a run after its first stage, go on, and compare with one that was not stopped."""
    name, folder = "resumed", check.out / "resumed_run"
    began = time.monotonic()
    with subprocess.Popen(
        check.command(source, name, *check.steps), env=environment(), stderr=subprocess.PIPE, text=True
    ) as stopped:
        while stopped.poll() is None and not (folder / "state_refine.pt").is_file() and check.left_s() > 0:
            time.sleep(0.02)
        stopped.send_signal(signal.SIGINT)
        said = stopped.communicate()[1]
    cut = {"stopped_after_s": round(time.monotonic() - began, 2), "exit_code": stopped.returncode}
    found = check.run(source, name, *check.steps, "--resume")
    if "error" not in found:
        found["beside_whole"] = alike(check.result(name), check.result(whole))
    elif said:
        check.say(said[-1000:])
    return {**cut, **found}


def check_profile(check: Check) -> None:
    """What a run of the simulation waits for on the CPU: functions by their own time, and by all of it."""
    check.need(25)
    source, _ = check.simulated()
    words = check.command(source, "profiled", *check.steps, "--overwrite")[3:]
    profiler = cProfile.Profile()
    began = time.monotonic()
    with contextlib.suppress(SystemExit):
        profiler.runcall(cli.main, words)
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text)
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(_DEAREST if order == "tottime" else 2 * _DEAREST)
    (check.out / "profile.txt").write_text(text.getvalue(), encoding="utf-8")
    check.keep("profile", seconds=round(time.monotonic() - began, 2), stages_s=check.stages("profiled"))


def check_precision(check: Check) -> None:
    """A standard run with each precision: time and quality."""
    source, truth = check.simulated()
    for precision in PRECISIONS:
        check.need(20)
        found = check.run(source, precision, *check.steps, "--precision", precision)
        if "error" not in found:
            found["correlation"] = against(check.result(precision), truth)
        check.keep("precision", **{precision: found})


def windows(check: Check) -> Iterator[tuple[str, Callable[[], object], int]]:
    """Ways to run the network on one window, and the voxels of each."""
    sides = [(16, 24, 24)] if check.small else [(96, 96, 96), (96, 192, 192), (128, 256, 256)]
    for side in sides:
        for precision in ("bf16", "fp32"):
            subject = Subject("window", side, "open", precision=precision)
            yield f"{precision} {'x'.join(map(str, side))}", make_work(subject, check.device), subject.work
    subject = Subject("window", sides[-1], "open", precision="bf16", memory="channels_last_3d")
    yield f"bf16 {'x'.join(map(str, sides[-1]))} channels last", make_work(subject, check.device), subject.work


def check_inference(check: Check) -> None:
    """Voxels a second of windows and of whole volumes that are in the memory of the CPU, and the most memory there."""
    device, rates = check.device, {}
    check.need(15)
    for name, work, voxels in windows(check):
        with torch.no_grad():
            timed(work, device)
            timed(work, device)
            rates[name] = round(voxels / median(timed(work, device) for _ in range(3)) / 1e6, 2)
    network = build_network(Subject("window", (16, 16, 16), "open")).to(device).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        side = 16 if check.small else 96
        network(torch.randn(1, 1, side, side, side, device=device))
    flop = counter.get_total_flops() / side**3
    peak = check.found["machine"]["bf16_tflops"]
    most = max(rates.values())
    check.keep(
        "inference",
        window_mvoxels_per_s=rates,
        flop_per_voxel=round(flop),
        share_of_bf16_rate=None if not peak else round(most * 1e6 * flop / peak / 1e12, 4),
    )
    rate = None
    kernel = torch.randn(*[2 * WIENER_REACH + 1] * 3)
    bands = {"trust": [0.9, 0.6, 0.3, 0.1], "sigma": [1.0] * 3, "gain": 1.0, "kernel": kernel / kernel.norm()}
    for shape in [(24, 32, 32)] if check.small else VOLUMES:
        voxels = shape[0] * shape[1] * shape[2]
        found: dict[str, Any] = {}
        volume = torch.randn(1, 1, *shape)
        for name, blend in (("network", None), ("network and filter by band", bands)):
            check.need(5 if rate is None else 1.5 * voxels / rate)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            inferer = HaloWindowInferer(device=device, blend=blend)
            with torch.no_grad():
                seconds = timed(partial(inferer, volume, network), device)
            rate = voxels / seconds
            found[name] = {"mvoxels_per_s": round(rate / 1e6, 2), "seconds": round(seconds, 2)}
            found[name]["window"] = inferer.used_window
            found[name]["peak_mib"] = round(peak_mib(device) or 0)
            check.keep("inference", **{"x".join(map(str, shape)): found})
    check.need(60)
    check.keep("inference", pieces=pieces(check, network), compiled=compiled(check))
    check.need(60)
    check.keep("inference", overlap=compare_overlap(check, network))


def compare_overlap(check: Check, network: BlindSpotNet) -> dict[str, Any]:
    """How much faster a volume on disk is denoised where reading and writing overlap with the network.

    The result is on disk too. What was written a moment ago is read from the memory of the system, so this is the least
    that a slow disk gains.
    """
    path, folder = check.out / "volume.values", check.out / "overlap"
    shape = (1, 1, *((24, 32, 32) if check.small else (192, 512, 512)))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    results = {}
    try:
        volume = torch.from_numpy(scratch.empty_volume(shape, check.out, path))
        for part in scratch.sections(shape, 2):
            volume[:, :, part] = torch.randn(volume[:, :, part].shape)
        inferer = HaloWindowInferer(
            device=check.device, merger=lambda shape: WindowMerger(shape, folder=folder, overwrite=True)
        )
        for overlap in (True, False) * (1 if check.small else 3):
            with ExitStack() as stack, torch.no_grad():
                for module in () if overlap else (inferers, streaming):
                    stack.enter_context(mock.patch.object(module, "can_overlap", return_value=False))
                began = time.perf_counter()
                results[overlap] = inferer(volume, network)
                seconds[overlap].append(time.perf_counter() - began)
    finally:
        path.unlink(missing_ok=True)
    fastest = {overlap: min(times) for overlap, times in seconds.items()}
    return {
        "times_as_fast": round(fastest[False] / fastest[True], 3),
        "mvoxels_per_s": round(volume.numel() / fastest[True] / 1e6, 2),
        "same_bits": torch.equal(results[True], results[False]),
    }


def pieces(check: Check, network: BlindSpotNet) -> dict[str, float]:
    """Mega-voxels a second of a streamed volume that is on the device already, by the thickness of the pieces."""
    rates = {}
    volume = torch.randn(1, 1, *((24, 32, 32) if check.small else (192, 512, 512)), device=check.device)
    with torch.no_grad(), torch.autocast(check.device.type, torch.bfloat16):
        for thickness in (4, 8, 16, 32):
            stream = StreamedNetwork(network, thickness)

            def once() -> None:
                for _ in stream.pieces(volume):  # noqa: B023
                    pass

            timed(once, check.device)
            rates[str(thickness)] = round(volume.numel() / timed(once, check.device) / 1e6, 2)
    return rates


def compiled(check: Check) -> dict[str, Any]:
    """What ``torch.compile`` makes of a window."""
    subject = Subject("window", (16, 24, 24) if check.small else (96, 192, 192), "open", precision="bf16")
    plain = make_work(subject, check.device)
    began = time.perf_counter()
    try:
        other = make_work(subject, check.device, lambda network: network.body.compile())
        timed(other, check.device)
    except Exception as error:  # what a compiler does not find is told, and is no reason to end
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    warm_up = time.perf_counter() - began
    pairs = [(timed(plain, check.device), timed(other, check.device)) for _ in range(5)]
    before, after = (median(side) for side in zip(*pairs, strict=True))
    return {"warm_up_s": round(warm_up, 1), "times_as_fast": round(before / after, 2)}


def check_training(check: Check) -> None:
    """Steps a second by batch, of the network alone and with the preparation of its window."""
    check.need(20)
    side = 16 if check.small else CONFIG["window"][0]
    device = check.device
    found: dict[str, Any] = {}
    for precision in ("bf16", "fp32"):
        for batch in BATCHES[: 2 if check.small else None]:
            network = build_network(Subject("training", (side,) * 3, "open")).to(device)
            step = training_step(network, torch.randn(batch, 1, side, side, side, device=device), precision)
            for _ in range(5):
                step()
            seconds = timed(step, device, 3 if check.small else 20)
            found[f"{precision} batch {batch}"] = {
                "steps_per_s": round(1 / seconds, 1),
                "mvoxels_per_s": round(batch * side**3 / seconds / 1e6, 2),
            }
    check.keep("training", network=found)
    keys = ("image", "label")
    period = build_network(Subject("training", (side,) * 3, "open")).period
    chain = [
        RandLatticeWindowd("image", (side,) * 3, period),
        lambda data: {**data, "label": data["image"]},
        RandRecorruptd(keys, torch.ones(GRID, GRID, GRID), levels=True),
        RandLatticeFlipd(keys, stride=1),
    ]
    item = {"image": torch.randn(1, *[2 * side] * 3)}
    for threads in (1, torch.get_num_threads()):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        data = WindowDataset([item], Compose(chain), length=100)
        data[0]
        parts = [timed(partial(data.__getitem__, i), torch.device("cpu")) for i in range(20)]
        torch.set_num_threads(before)
        check.keep("training", **{f"preparation_ms_{threads}_threads": round(1e3 * median(parts), 2)})
    check.keep("training", graph_steps_per_s=graphed(check, side))


def graphed(check: Check, side: int) -> dict[str, float]:
    """Steps a second where forward and backward pass are replayed as a CUDA graph, if the device has graphs."""
    found = {}
    for precision in ("bf16", "fp32"):
        network = build_network(Subject("training", (side,) * 3, "open")).to(check.device)
        volume = torch.randn(1, 1, side, side, side, device=check.device)
        step = training_step(network, volume, precision, GraphedInferer(precision))
        for _ in range(5):
            step()
        found[precision] = round(1 / timed(step, check.device, 3 if check.small else 20), 1)
    return found


def check_quality(check: Check) -> None:
    """Quality by the steps of a fit, and by the time that it may take."""
    source, truth = check.simulated()
    for count in (24,) if check.small else FIT_STEPS:
        check.need(20)
        found = check.run(source, f"with_{count}_steps", "--steps", str(count))
        if "error" not in found:
            found["correlation"] = against(check.result(f"with_{count}_steps"), truth)
        check.keep("quality", **{f"{count} steps": found})
    for seconds in SECONDS[: 1 if check.small else None]:
        check.need(seconds + 25)
        steps = ["--steps", "24" if check.small else "20000"]
        found = check.run(source, f"within_{seconds}_s", *steps, "--minutes", str(seconds / 60))
        if "error" not in found:
            found["correlation"] = against(check.result(f"within_{seconds}_s"), truth)
        check.keep("quality", **{f"{seconds} s": found})


def check_beside(check: Check) -> None:
    """Two runs on one card, side by side."""
    source, _ = check.simulated()
    check.need(40)
    began = time.monotonic()
    commands = [check.command(source, f"beside_{number}", *check.steps) for number in range(2)]
    runs = [subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) for words in commands]
    try:
        codes = [run.wait(timeout=max(1, check.left_s())) for run in runs]
    finally:
        for run in runs:
            run.kill()
    alone = check.found.get("denoise", {}).get("again", {}).get("seconds")
    check.keep("beside", seconds=round(time.monotonic() - began, 2), alone_s=alone, exit_codes=codes)


STEPS: dict[str, Callable[[Check], None]] = {
    "laws": check_laws,
    "denoise": check_denoise,
    "profile": check_profile,
    "training": check_training,
    "inference": check_inference,
    "quality": check_quality,
    "precision": check_precision,
    "beside": check_beside,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON, log and results")
    parser.add_argument("--reference", type=Path, help="folder of the simulation and of the CPU's results")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", default=",".join(STEPS), help=f"of {','.join(STEPS)}")
    parser.add_argument("--small", action="store_true", help="small sizes, for a test")
    options = parser.parse_args(arguments)
    names = options.steps.split(",")
    if unknown := [name for name in names if name not in STEPS]:
        parser.error(f"unknown steps: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    check = Check(options.out, options.reference, device, time.monotonic() + 60 * options.minutes, options.small)
    allow_tf32("fp32")
    check_machine(check)
    with keep_memory(device):
        for name in names:
            try:
                STEPS[name](check)
                check.keep(name, complete=True)
            except NoTimeError as error:
                check.keep(name, left_out=str(error))
            except Exception as error:  # the next step may work
                check.say(traceback.format_exc())
                check.keep(name, error=f"{type(error).__name__}: {error}"[:300])


if __name__ == "__main__":
    main()
