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
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import IO, Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from cryoshuffle.devices import choose_device
from cryoshuffle.errors import SettingError
from cryoshuffle.files.writing import write_json
from cryoshuffle.inference.inferers import HaloWindowInferer, PrecisionInferer
from cryoshuffle.lattice import (
    BlindSet,
    Lattice,
    Triple,
    as_triple,
    padding_to_multiple,
    volume_shuffle,
    volume_unshuffle,
)
from cryoshuffle.layers import ChannelLayerNorm, DilatedChannelAttention, DilatedChannelAttentionBlock, PointwiseConv3d
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.memory import keep_memory
from cryoshuffle.network import BlindSpotNet, ShuffleUNet

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench import methods, peers, report
from bench.methods import ROOT, Job, NotRunError
from bench.quality import SNR, own_versions, prepare

BEGIN, END = "<!-- speed: begin, written by scripts/bench/speed.py -->", "<!-- speed: end -->"
PARTS = ("rates", "paper", "peers", "matmul", "process", "cubes")
CONFIG = json.loads((ROOT / "configs" / "train.json").read_text(encoding="utf-8"))
MOMENTUM = next(h["momentum"] for h in CONFIG["train"]["handlers"] if h["_target_"].endswith("AveragedWeights"))
CHANNELS = tuple(CONFIG["network_def"]["body"]["channels"])
PAPER_CHANNELS = (24, 48, 96)
LATTICES = {
    "blind": Lattice((1, 3, 1), BlindSet("plane", "y")),
    "open": Lattice(blind_set=BlindSet("none")),
    "voxel": Lattice((2, 2, 2), BlindSet("voxel")),
}
NETWORKS = {
    "blind": "blind plane, stride 1,3,1",
    "open": "second stage, hides nothing",
    "voxel": "blind voxel, stride 2,2,2",
}
MEMORY = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TASKS = {"training": "Training", "window": "Inference, one window", "volume": "Inference, a volume"}
SMALLEST_CUBE, WARM_SIDE = 64, 128
# Of the peers, as they come or as ``peers.py`` sets them up.
TOPAZ_PATCH, N2V_VALIDATION, SMALLEST_PATCH = 96, 2, 8
# What a config that cannot run on a device raises.
CANNOT = (RuntimeError, TypeError, ValueError, MemoryError)
Row = dict[str, Any]


class DilatedFormulation(BlindSpotNet):
    """The paper's formulation out of our own layers: dilated on the full grid, no sub-lattice is split off.

    It has the weights of :class:`cryoshuffle.network.BlindSpotNet` under the same names, with
    :class:`cryoshuffle.network.ShuffleUNet` as body. ``dilation`` is the lattice stride.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, 1, Z, Y, X)``, any Z, Y, X.

    Invariant:
        The output is that of ``BlindSpotNet`` with the same weights.

    Source:
        Liu, Kassab, Xu & Ho, arXiv 2411.15248.
    """

    def __init__(self, lattice: Lattice, body: ShuffleUNet) -> None:
        super().__init__(lattice, body)
        self.dilation = self.stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        z, y, w = x.shape[2:]
        pads = [padding_to_multiple(n, p) for n, p in zip((z, y, w), self.period, strict=True)]
        x = F.pad(x, [0, pads[2], 0, pads[1], 0, pads[0]])
        body, skips = self.body, []
        x = self._pointwise(body.enter, self.stem(x))
        for level, down in zip(body.encoder, body.down, strict=True):
            x = self._level(level, x)
            skips.append(x)
            x = self._pointwise(down.project, volume_unshuffle(x, down.factor, self.dilation))
        x = self._level(body.bottom, x)
        for up, level in zip(body.up, body.decoder, strict=True):
            x = volume_shuffle(self._pointwise(up.project, x), up.factor, self.dilation)
            for axis in range(3):
                x = _box(x, 2 + axis, up.factor[axis], self.dilation[axis])
            x = self._level(level, x + skips.pop())
        return self._leave(x)[:, :, :z, :y, :w]

    def _pointwise(self, layer: nn.Conv3d, x: Tensor) -> Tensor:
        return layer(x)

    def _norm(self, layer: ChannelLayerNorm, x: Tensor) -> Tensor:
        return layer(x)

    def _gate(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        return block.gate(x)

    def _leave(self, x: Tensor) -> Tensor:
        return self.body.leave(x)

    def _level(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = self._block(block, x)
        return x

    def _block(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        conv, normal = block.conv, self._norm(block.norm_conv, x)
        y = F.conv3d(normal, conv.weight, conv.bias, padding=self.dilation, dilation=self.dilation)
        y = self._pointwise(block.conv_out, self._attention(block.attention, self._gate(block, y)))
        x = x + y * block.conv_scale[None, :, None, None, None]
        y = self._gate(block, self._pointwise(block.feed_forward, self._norm(block.norm_feed_forward, x)))
        return x + self._pointwise(block.feed_forward_out, y) * block.feed_forward_scale[None, :, None, None, None]

    def _attention(self, layer: DilatedChannelAttention, x: Tensor) -> Tensor:
        """Pools the voxels of each residue; in evaluation the running mean serves all residues."""
        if not layer.training:
            return layer(x)
        dz, dy, dx = self.dilation
        parts = x.unflatten(4, (-1, dx)).unflatten(3, (-1, dy)).unflatten(2, (-1, dz))
        mean = parts.mean(dim=(2, 4, 6))
        with torch.no_grad():
            seen = mean.detach().mean(dim=(0, 2, 3, 4)).to(layer.running_mean.dtype)
            layer.running_mean.lerp_(seen, layer.momentum)
        weight = layer.weight.weight[:, :, None, None, None]
        scale = 2.0 * torch.sigmoid(F.conv3d(mean, weight, layer.weight.bias))
        parts = parts * scale[:, :, None, :, None, :, None]
        return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class PlainFormulation(DilatedFormulation):
    """The paper's formulation as torch's own layers give it: convolutions, normalisation and gate without our code.

    Shape and invariant are those of :class:`DilatedFormulation`.
    """

    def _pointwise(self, layer: nn.Conv3d, x: Tensor) -> Tensor:
        return F.conv3d(x, layer.weight, layer.bias)

    def _norm(self, layer: ChannelLayerNorm, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        weight, bias = (p[None, :, None, None, None] for p in (layer.weight, layer.bias))
        return (x - mean) * torch.rsqrt(variance + layer.eps) * weight + bias

    def _gate(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b

    def _leave(self, x: Tensor) -> Tensor:
        first, activation, last = self.body.leave
        x = activation(self._pointwise(first, x))
        return F.conv3d(x, last.weight[:, :, None, None, None], last.bias)


FORMULATIONS = {"sub-lattices": BlindSpotNet, "dilated": DilatedFormulation, "plain": PlainFormulation}


def _box(x: Tensor, dim: int, width: int, step: int) -> Tensor:
    """Mean over each voxel and those of its residue before it, ``width`` in all; the first is repeated there."""
    if width == 1:
        return x
    n = x.shape[dim]
    padded = torch.cat([x.narrow(dim, 0, step)] * (width - 1) + [x], dim)
    mean = padded.narrow(dim, 0, n)
    for k in range(1, width):
        mean = mean + padded.narrow(dim, k * step, n)
    return mean / width


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Attributes:
        task: ``training`` (an optimiser step), ``window`` or ``volume`` (inference), ``matmul`` or ``convolution``.
        shape: (Z, Y, X) of window or volume; both sides of a matrix; (B, Z, Y, X) of the input of a convolution.
        network: key of ``LATTICES``.
        formulation: ``sub-lattices`` (ours); the paper's, ``dilated`` out of our layers or ``plain`` out of torch's.
        channels: of the levels; in and out of a convolution.
        precision: key of ``PRECISIONS``.
        memory: key of ``MEMORY``.
        kernel: of a convolution.
        count: how often the network has this convolution.
    """

    task: str
    shape: tuple[int, ...]
    network: str = "blind"
    formulation: str = "sub-lattices"
    channels: tuple[int, ...] = CHANNELS
    precision: str = "fp32"
    memory: str = "contiguous"
    kernel: int = 0
    count: int = 1

    @property
    def work(self) -> int:
        """Voxels, or floating-point operations of ``matmul`` and ``convolution``, in one go; padding is no work."""
        if self.task == "matmul":
            return 2 * self.shape[0] ** 3
        if self.task != "convolution":
            return math.prod(self.shape)
        reach = self.kernel // 2
        pairs = [self.kernel * n - reach * (reach + 1) for n in self.shape[1:]]
        return 2 * math.prod(self.channels) * self.shape[0] * math.prod(pairs)


def build_network(subject: Subject) -> BlindSpotNet:
    """The network of a subject, in training mode; stem, factors and depth are those of ``train.json``."""
    body = {name: value for name, value in CONFIG["network_def"]["body"].items() if name != "_target_"}
    return FORMULATIONS[subject.formulation](
        LATTICES[subject.network], ShuffleUNet(**{**body, "channels": subject.channels})
    )


def make_work(
    subject: Subject, device: torch.device, change: Callable[[BlindSpotNet], object] = lambda network: None
) -> Callable[[], object]:
    """A function that does once what is to be timed, with a network that is changed first."""
    torch.manual_seed(0)
    dtype, layout = PRECISIONS[subject.precision], MEMORY[subject.memory]
    if subject.task == "matmul":
        if device.type == "cuda":
            # Convolutions may round to TensorFloat-32 there: then what they are compared with may as well.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        left, right = (torch.randn(*subject.shape).to(device, dtype) for _ in range(2))
        return lambda: left @ right
    if subject.task == "convolution":
        padding = subject.kernel // 2
        conv = (
            nn.Conv3d(*subject.channels, subject.kernel, padding=padding)
            if padding
            else PointwiseConv3d(*subject.channels)
        )
        conv = conv.to(device, dtype, memory_format=layout)
        batch, *sides = subject.shape
        features = torch.randn(batch, subject.channels[0], *sides).to(device, dtype, memory_format=layout)
        return torch.no_grad()(lambda: conv(features))
    network = build_network(subject).to(device, memory_format=layout)
    change(network)
    volume = torch.randn(1, 1, *subject.shape).to(device, memory_format=layout)
    if subject.task == "training":
        return training_step(network, volume, subject.precision)
    network.eval()
    # A window of the volume's own shape has no halo: the whole volume goes through the network at once.
    window = subject.shape if subject.task == "window" else None
    inferer = HaloWindowInferer(window, precision=subject.precision)
    return torch.no_grad()(lambda: inferer(volume, network))


def training_step(
    network: BlindSpotNet, volume: Tensor, precision: str, inferer: PrecisionInferer | None = None
) -> Callable[[], object]:
    """A whole step as ``train.json`` has it, from the window in memory to the averaged weights.

    Without an inferer every kernel is launched by itself; ``train.json`` has a
    :class:`cryoshuffle.fit.graphs.GraphedInferer`, which is the same on a CPU.
    """
    weights = CONFIG["loss_weights"]["unbiased"]
    settings = {name: CONFIG["optimizer"][name] for name in ("weight_decay", "fused")}
    loss = EdgeGuidedLoss(network.lattice, weights).to(volume.device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=CONFIG["learning_rate"], **settings)
    inferer = PrecisionInferer(precision) if inferer is None else inferer
    engine = Engine(lambda engine, batch: None)
    EMAHandler(network, momentum=MOMENTUM).attach(engine)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss(inferer(volume, network), volume).backward()
        clip_grad_norm_(network.parameters(), CONFIG["gradient_norm"])
        optimiser.step()
        engine.fire_event(Events.ITERATION_COMPLETED)

    return step


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def timed(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Wall time of one call, seconds, as the mean over some."""
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(calls):
        work()
    synchronize(device)
    return (time.perf_counter() - begin) / calls


def peak_mib(device: torch.device) -> float | None:
    """The most memory so far, MiB: resident of this process, on CUDA the tensors there; None where nobody counts."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if device.type != "cpu":
        return None
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def serve(device_name: str, threads: int, least_s: float) -> None:
    """Time what the parent asks for, a line of JSON each, until there is nothing more to read.

    The first time that a subject is asked for, it is warmed up for ``least_s``; a repetition lasts that long too.
    """
    # Libraries may print: the answers keep the way out for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    # Linux can forget the peak of loading the libraries.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib(device)
    ready: dict[Subject, tuple[Callable[[], object], int]] = {}
    kept = contextlib.ExitStack()
    for line in sys.stdin:
        asked = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(line).items()}
        subject = Subject(**asked)
        try:
            if not ready:
                kept.enter_context(keep_memory(device))  # as a fit does, and inference of a large volume
            if subject not in ready:
                ready[subject] = warm_up(subject, device, least_s)
            work, calls = ready[subject]
            seconds = timed(work, device, calls)
            after = peak_mib(device)
            grown = None if before is None or after is None else after - before
            answer: dict[str, Any] = {"seconds": seconds, "mib": grown}
        except CANNOT as error:
            answer = {"reason": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def warm_up(subject: Subject, device: torch.device, least_s: float) -> tuple[Callable[[], object], int]:
    """The work of a subject, and how many calls make a repetition; a large volume is warmed up on a part of it."""
    work = make_work(subject, device)
    warm = work
    if subject.task == "volume" and max(subject.shape) > WARM_SIDE:
        warm = make_work(replace(subject, shape=tuple(min(n, WARM_SIDE) for n in subject.shape)), device)
    spent = [timed(warm, device)]
    while sum(spent) < least_s:
        spent.append(timed(warm, device))
    return work, max(1, math.ceil(least_s / spent[-1]))


@dataclass(frozen=True)
class Place:
    """Where work is done: a column of the tables.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: of the process.
    """

    device: str
    threads: int

    @property
    def name(self) -> str:
        """In the tables."""
        if self.device != "cpu":
            return self.device.upper()
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """What tells a program its number of threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Worker:
    """A process with one number of threads that times what it is asked for; it starts when it is first asked.

    Args:
        place: where it works.
        log: file for all that it says.
        least_s: shortest warm-up and repetition, seconds.
    """

    def __init__(self, place: Place, log: Path, least_s: float) -> None:
        self.place, self.log, self.least_s = place, log, least_s
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def ask(self, subject: Subject) -> dict[str, Any]:
        """Time a subject once.

        Returns:
            ``seconds``, and by how many ``mib`` the memory of the process has grown since its start, at its peak.

        Raises:
            NotRunError: if the machine cannot do it, or the process ended.
        """
        if self.place.device == "cpu" and self.place.threads > cores():
            raise NotRunError(f"{self.place.name} asked for, cores there: {cores()}")
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(subject)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            raise NotRunError(f"the process ended with code {code}" + (", out of memory perhaps" if code > 128 else ""))
        answer = json.loads(line)
        if "reason" in answer:
            raise NotRunError(answer["reason"])
        return answer

    def time(self, subject: Subject) -> dict[str, Any]:
        """The ``seconds`` of :meth:`ask` alone: the memory of a process that does many things tells nothing."""
        return {"seconds": self.ask(subject)["seconds"]}

    def _start(self) -> subprocess.Popen[str]:
        self._said = self.log.open("a", encoding="utf-8")
        # A program begins with the peak memory of what it was started by: that is to be a shell, not this process.
        command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(Path(__file__).resolve())]
        command += ["--least-seconds", str(self.least_s)]
        command += ["--serve", self.place.device, "--threads", str(self.place.threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **environment(self.place.threads)},
            start_new_session=True,
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.__exit__(None, None, None)
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.close()


@dataclass(frozen=True)
class Bench:
    """What all parts need to know.

    Attributes:
        settings: that the results of a work folder have in common.
        places: columns of the tables.
        crew: a worker for each place.
        work: folder of what is kept.
        peers: folder of the peers' environments.
        cap_minutes: no run of a peer may take longer, and a cube is not repeated beyond.
        largest: side of the largest cube.
    """

    settings: Mapping[str, Any]
    places: Sequence[Place]
    crew: Sequence[Worker]
    work: Path
    peers: Path | None
    cap_minutes: float
    largest: int

    @property
    def strongest(self) -> list[Place]:
        """The most threads that the machine has cores for, and an accelerator.

        Raises:
            NotRunError: if there is neither.
        """
        fits = [p for p in self.places if p.device == "cpu" and p.threads <= cores()]
        found = sorted(fits, key=lambda p: p.threads)[-1:] + [p for p in self.places if p.device != "cpu"]
        if not found:
            raise NotRunError(f"more threads asked for than there are cores: {cores()}")
        return found

    def fresh(self, place: Place) -> Worker:
        """A worker that has done nothing yet, for the sake of its memory; its first repetition is not lengthened."""
        return Worker(place, self.work / "worker.log", 0.0)

    def tomogram(self) -> Path:
        """A simulated tomogram."""
        prepare(self.work / "volume", "wbp", self.settings["volume"], SNR["wbp"], 0)
        return self.work / "volume" / "tomogram.mrc"


def in_turns(subjects: Sequence[Subject], crew: Sequence[Worker], repeats: int) -> list[Row]:
    """Time subjects at all places: a repetition is one round through all of them."""
    rows = [row_of(subject, worker.place) for subject in subjects for worker in crew]
    for _ in range(repeats):
        for row, (subject, worker) in zip(rows, ((s, w) for s in subjects for w in crew), strict=True):
            repeat(row, partial(worker.time, subject))
    return rows


def row_of(subject: Subject, place: Place) -> Row:
    """A row without a measurement yet."""
    return {**asdict(subject), "work": subject.work, "place": place.name, "seconds": []}


def repeat(row: Row, measure: Callable[[], Mapping[str, Any]]) -> None:
    """Add one repetition to a row; what cannot be done is told by its reason and not tried again."""
    if "reason" in row:
        return
    try:
        found = measure()
    except NotRunError as error:
        row["reason"] = str(error)
        return
    for name, value in found.items():
        row.setdefault(name, []).append(value)


def rates(bench: Bench, task: str) -> list[Row]:
    """Part ``rates``: one task by network, precision and memory format."""
    shape = {"training": "window", "window": "inference_window", "volume": "volume"}[task]
    subjects = [
        Subject(
            task,
            bench.settings[shape],
            network,
            precision=precision,
            memory=memory,
        )
        for network in ("blind", "open")
        for precision in bench.settings["precisions"]
        for memory in MEMORY
    ]
    return in_turns(subjects, bench.crew, bench.settings["repeats"])


def beside_paper(bench: Bench, task: str) -> list[Row]:
    """Part ``paper``: the dilated formulations in both memory formats, ours as the config has it."""
    shape = bench.settings["window" if task == "training" else "inference_window"]
    ours = [Subject(task, shape, channels=channels) for channels in (CHANNELS, PAPER_CHANNELS)]
    dilated = [
        Subject(task, shape, network, formulation, channels, memory=memory)
        for formulation in ("plain", "dilated")
        for network, channels in (("blind", CHANNELS), ("blind", PAPER_CHANNELS), ("voxel", PAPER_CHANNELS))
        for memory in MEMORY
    ]
    return in_turns([*ours, *dilated], bench.crew, bench.settings["repeats"])


def run_peer(bench: Bench, key: str, place: Place, tomogram: Path, *more: str) -> float:
    """Wall time of a peer's program, seconds.

    Raises:
        NotRunError: if it is absent, fails or takes too long.
    """
    method = next(m for m in methods.METHODS if m.key == key)
    told = [f"{name}={value}" for name, value in environment(place.threads).items()]
    command = [
        "env",
        *told,
        str(methods.peer_python(method, bench.peers)),
        str(ROOT / "scripts" / "bench" / "peers.py"),
    ]
    command += [key, "--tomogram", str(tomogram), "--output", str(tomogram.parent / f"{key}.mrc"), *more]
    command += ["--gpu", "-1" if place.device == "cpu" else "0"]
    job = Job(tomogram.parent, 0, 0, 0, 60 * bench.cap_minutes, place.device, bench.peers)
    return methods.call(command, tomogram.parent / f"{key}.log", job)


def check_peer(bench: Bench, key: str) -> str:
    """The version of a peer.

    Raises:
        NotRunError: if it is absent.
    """
    return methods.peer_version(next(m for m in methods.METHODS if m.key == key), bench.peers)


def noise2void_epoch(shape: Sequence[int]) -> tuple[int, int]:
    """Steps and voxels of an epoch of Noise2Void as ``peers.py`` sets it up.

    An epoch has as many patches as would fill the volume, less those of the validation; its last batch may be smaller.

    Raises:
        NotRunError: if the volume is too small.
    """
    if min(shape) < 2 * SMALLEST_PATCH:
        raise NotRunError(f"a volume of {tuple(shape)} is too small for Noise2Void: give a larger --volume")
    patch = [min(side, n // 16 * 8) for side, n in zip(peers.N2V_PATCH, shape, strict=True)]
    patches = math.ceil(math.prod(shape) / math.prod(patch)) - N2V_VALIDATION
    return math.ceil(patches / peers.N2V_BATCH), patches * math.prod(patch)


def beside_noise2void(bench: Bench) -> list[Row]:
    """Part ``peers``: training of Noise2Void, as the difference of a longer and a shorter run, and ours."""
    check_peer(bench, "n2v")
    tomogram, epochs = bench.tomogram(), bench.settings["peer_epochs"]
    steps, voxels = noise2void_epoch(bench.settings["volume"])

    def difference(place: Place) -> dict[str, Any]:
        runs = [run_peer(bench, "n2v", place, tomogram, "--steps", str(n * steps)) for n in (1, 1 + epochs)]
        said = (tomogram.parent / "n2v.log").read_text(errors="replace")
        shown = re.search(r"Epoch 0: [^\n\r]*?\b0/(\d+)", said)
        if shown and int(shown[1]) != steps:
            raise NotRunError(f"an epoch has {shown[1]} steps where {steps} were counted on")
        return {"seconds": runs[1] - runs[0], "runs": runs}

    ours = Subject("training", bench.settings["window"])
    # What it reads for the first time takes longer.
    run_peer(bench, "n2v", bench.strongest[0], tomogram, "--steps", "1")
    return beside_peer(bench, ours, {"task": "n2v", "work": epochs * voxels}, difference)


def beside_topaz(bench: Bench) -> list[Row]:
    """Part ``peers``: inference of Topaz, its start taken off by a volume of a single patch, and ours."""
    check_peer(bench, "topaz")
    tomogram, shape = bench.tomogram(), bench.settings["volume"]
    patches = math.prod(math.ceil(n / TOPAZ_PATCH) for n in shape)
    if patches == 1:
        raise NotRunError("the volume is a single patch of Topaz: give a larger --volume")
    small = tomogram.with_name("patch.mrc")
    methods.write(methods.read(tomogram)[:TOPAZ_PATCH, :TOPAZ_PATCH, :TOPAZ_PATCH], small)

    def difference(place: Place) -> dict[str, Any]:
        runs = [run_peer(bench, "topaz", place, path, "--model", "unet-3d-10a") for path in (small, tomogram)]
        return {"seconds": (runs[1] - runs[0]) * patches / (patches - 1), "runs": runs}

    ours = Subject("volume", shape, "open")
    run_peer(bench, "topaz", bench.strongest[0], small, "--model", "unet-3d-10a")
    return beside_peer(bench, ours, {"task": "topaz", "work": math.prod(shape)}, difference)


def beside_peer(
    bench: Bench, ours: Subject, peer: Mapping[str, Any], measure: Callable[[Place], dict[str, Any]]
) -> list[Row]:
    """Ours and a peer in turns, at all places."""
    mine = [row_of(ours, place) for place in bench.places]
    theirs: list[Row] = [{**peer, "place": place.name, "seconds": []} for place in bench.places]
    for _ in range(bench.settings["process_repeats"]):
        for row, other, worker in zip(mine, theirs, bench.crew, strict=True):
            repeat(row, partial(worker.time, ours))
            if "reason" in row or worker.place.device == "mps":
                # The machine cannot do it: nothing to try again.
                other |= {"reason": row.get("reason", "peers are run on CPUs and on CUDA"), "final": True}
            repeat(other, partial(measure, worker.place))
    for row in theirs:
        if "reason" not in row and median(row["seconds"]) <= 0:
            row["reason"] = "the runs differ by less than their start does: give a larger --volume or --peer-epochs"
    return [*mine, *theirs]


def convolutions(window: Sequence[int], precision: str) -> list[Subject]:
    """The convolutions of our body on a window, one subject for all that are alike."""
    network = build_network(Subject("training", tuple(window)))
    found: Counter[Subject] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x = inputs[0]
        memory = "channels_last_3d" if x.is_contiguous(memory_format=torch.channels_last_3d) else "contiguous"
        channels, kernel = (layer.in_channels, layer.out_channels), layer.kernel_size[0]
        shape = (x.shape[0], *x.shape[2:])
        found[Subject("convolution", shape, "", "", channels, precision, memory, kernel)] += 1

    for layer in network.body.modules():
        if isinstance(layer, nn.Conv3d) and min(layer.in_channels, layer.out_channels) >= 16:
            layer.register_forward_hook(note)
    with torch.no_grad():
        network(torch.randn(1, 1, *window))
    return [replace(subject, count=count) for subject, count in found.items()]


def beside_matmul(bench: Bench, precision: str) -> list[Row]:
    """Part ``matmul``: a product of matrices and the convolutions of the body."""
    product = Subject("matmul", (bench.settings["matmul"],) * 2, "", "", (), precision)
    subjects = [product, *convolutions(bench.settings["window"], precision)]
    return in_turns(subjects, bench.crew, bench.settings["repeats"])


def memory(bench: Bench) -> list[Row]:
    """Part ``process``: peak memory of a step and of a window, each repetition in a process of its own."""
    cells = [
        (Subject(task, bench.settings[shape], network, precision=precision), place)
        for task, shape, network in (("training", "window", "blind"), ("window", "inference_window", "open"))
        for precision in bench.settings["precisions"]
        for place in bench.strongest
    ]
    rows = [row_of(*cell) for cell in cells]
    for _ in range(bench.settings["process_repeats"]):
        for row, (subject, place) in zip(rows, cells, strict=True):
            with bench.fresh(place) as worker:
                repeat(row, partial(worker.ask, subject))
    return rows


def start_up(bench: Bench) -> list[Row]:
    """Part ``process``: from the start of the program to its help, and to the first step of a fit."""
    place = bench.strongest[-1]
    told = [f"{name}={value}" for name, value in environment(place.threads).items()]
    program = ["env", *told, sys.executable, "-m", "cryoshuffle"]
    tomogram = bench.tomogram()
    folder = tomogram.parent / "start_run"
    fit = ["denoise", str(tomogram), str(tomogram.parent / "start.mrc"), "--report", str(folder), "--overwrite"]
    fit += ["--tilt-axis", "y", "--device", place.device]
    job = Job(tomogram.parent, 0, 0, 0, 60 * bench.cap_minutes, place.device, None)

    def help_shown() -> dict[str, Any]:
        return {"seconds": methods.call([*program, "--help"], tomogram.parent / "help.log", job)}

    def step_begun() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        return {"seconds": until_said([*program, *fit], b"fitting:")}

    rows: list[Row] = [{"task": task, "place": place.name, "seconds": []} for task in ("help", "first step")]
    with contextlib.suppress(NotRunError):
        help_shown()
    for _ in range(bench.settings["process_repeats"]):
        repeat(rows[0], help_shown)
        repeat(rows[1], step_begun)
    return rows


def until_said(command: Sequence[str], word: bytes) -> float:
    """Seconds from the start of a program until it says a word as an error or on its bar; it is ended then.

    Raises:
        NotRunError: if it ends without the word.
    """
    begin = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = b""
        try:
            while word not in said:
                more = os.read(process.stderr.fileno(), 4096)
                if not more:
                    lines = said.decode(errors="replace").strip().splitlines()
                    raise NotRunError(lines[-1] if lines else "it ended without a word")
                said += more
            return time.monotonic() - begin
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def cube_sides(largest: int) -> list[int]:
    """Sides of the cubes: doubled from the smallest up to the largest."""
    sides = [SMALLEST_CUBE << k for k in range(20)]
    return [*(side for side in sides if side < largest), largest]


def cube(bench: Bench, side: int) -> list[Row]:
    """Part ``cubes``: inference of one size, in a process of its own."""
    precision = bench.settings["precisions"][0]
    subject = Subject("volume", (side,) * 3, "open", precision=precision)
    rows = []
    for place in bench.strongest:
        row = row_of(subject, place)
        with Worker(place, bench.work / "worker.log", bench.settings["least_seconds"]) as worker:
            while len(row["seconds"]) < bench.settings["process_repeats"] and "reason" not in row:
                repeat(row, partial(worker.ask, subject))
                if sum(row["seconds"]) > 60 * bench.cap_minutes:
                    break
        rows.append(row)
    return rows


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
    facts = {"machine": report.machine(), "commit": report.commit(ROOT), "version": own_versions()}
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


class Results:
    """Measured units, and how their rows are found and told.

    Args:
        units: as they were kept.
        places: names of the columns.
    """

    def __init__(self, units: Sequence[Mapping[str, Any]], places: Sequence[str]) -> None:
        self.units, self.places = {unit["unit"]: unit for unit in units}, places

    def rows(self, unit: str, **wanted: Any) -> list[Row]:
        """The rows of a unit with some properties."""
        found = self.units.get(unit, {}).get("rows", [])
        return [row for row in found if all(row.get(name) == value for name, value in wanted.items())]

    def best(self, unit: str, **wanted: Any) -> float | str:
        """Work per second of the fastest such row; where there is none, why."""
        if unit not in self.units:
            return "not measured"
        if "reason" in self.units[unit]:
            return f"not run: {self.units[unit]['reason']}"
        rows = self.rows(unit, **wanted)
        done = [row["work"] / median(row["seconds"]) for row in rows if "reason" not in row]
        reasons = [f"not run: {row['reason']}" for row in rows if "reason" in row]
        return max(done) if done else (reasons or ["not measured"])[-1]

    def rate(self, unit: str, scale: float, **wanted: Any) -> str:
        """Work per second as text."""
        found = self.best(unit, **wanted)
        return found if isinstance(found, str) else number(found / scale)

    def ratio(self, ours: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]], place: str) -> str:
        """How many times faster ours is, as text."""
        a, b = (self.best(unit, **{"place": place, **wanted}) for unit, wanted in (ours, other))
        if isinstance(a, str) or isinstance(b, str):
            return a if isinstance(a, str) else str(b)
        return f"{a / b:.2f}"

    def share(self, precision: str, place: str) -> str:
        """What all convolutions of the body together reach of the matrix product, percent as text."""
        unit = f"matmul_{precision}"
        peak = self.best(unit, task="matmul", place=place)
        rows = self.rows(unit, task="convolution", place=place)
        reasons = [f"not run: {row['reason']}" for row in rows if "reason" in row]
        if isinstance(peak, str) or reasons:
            return peak if isinstance(peak, str) else reasons[-1]
        work = sum(row["count"] * row["work"] for row in rows)
        return f"{100 * work / sum(row['count'] * median(row['seconds']) for row in rows) / peak:.0f} %"


def number(value: float) -> str:
    """Three digits, without an exponent.

    Example:
        >>> number(1234.5), number(98.76), number(0.01234)
        ('1,234', '98.8', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A table of Markdown whose first ``names`` columns are text."""
    lines = [head, ["---" if i < names else "---:" for i in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def ratio_table(results: Results, settings: Mapping[str, Any]) -> str:
    """The ratios that tell the most, a place a column."""
    ours = {"formulation": "sub-lattices", "channels": list(CHANNELS), "network": "blind", "memory": "contiguous"}
    plain = {**ours, "precision": "fp32"}
    compared = [
        (f"{what}: ours over {letter}, {how}", (f"paper_{task}", mine), (f"paper_{task}", theirs))
        for formulation, letter in (("plain", "(a)"), ("dilated", "(a) out of our layers"))
        for how, mine, width in (
            ("at equal width", plain, CHANNELS),
            ("both at the paper's widths", {**plain, "channels": list(PAPER_CHANNELS)}, PAPER_CHANNELS),
            ("at the paper's widths, ours at its own", plain, PAPER_CHANNELS),
        )
        for theirs in [{"formulation": formulation, "network": "blind", "channels": list(width)}]
        for task, what in (("training", "training"), ("window", "inference"))
    ]
    compared += [
        ("training: ours over (b) Noise2Void", ("n2v", {"task": "training"}), ("n2v", {"task": "n2v"})),
        ("inference: ours over (c) Topaz", ("topaz", {"task": "volume"}), ("topaz", {"task": "topaz"})),
    ]
    rows = [[label, *(results.ratio(a, b, place) for place in results.places)] for label, a, b in compared]
    fewest, *more = [place for place in results.places if "thread" in place] or [""]
    for task, what in (("training", "training"), ("window", "inference")) if more else ():
        here, there = (f"rates_{task}", plain), (f"rates_{task}", {**plain, "place": fewest})
        cells = [results.ratio(here, there, place) if place in more else "" for place in results.places]
        rows.append([f"{what}: over {fewest}", *cells])
    for precision in settings["precisions"]:
        shares = [results.share(precision, place) for place in results.places]
        rows.append([f"convolutions of the body: share of (d), {precision}", *shares])
    return table(["times as fast", *results.places], rows, 1)


def rate_table(results: Results, task: str, settings: Mapping[str, Any]) -> str:
    """Voxels per second of one task."""
    rows = []
    for network in ("blind", "open"):
        for precision in settings["precisions"]:
            for layout in MEMORY:
                wanted = {"network": network, "precision": precision, "memory": layout}
                cells = [results.rate(f"rates_{task}", 1e3, place=place, **wanted) for place in results.places]
                rows.append([NETWORKS[network], precision, f"`{layout}`", *cells])
    return table(["10³ voxels/s", "precision", "memory format", *results.places], rows, 3)


def paper_table(results: Results) -> str:
    """Ours and the dilated formulations."""
    rows = []
    for formulation, network, channels in (
        ("sub-lattices", "blind", CHANNELS),
        ("sub-lattices", "blind", PAPER_CHANNELS),
        *(
            (formulation, network, channels)
            for formulation in ("plain", "dilated")
            for network, channels in (("blind", CHANNELS), ("blind", PAPER_CHANNELS), ("voxel", PAPER_CHANNELS))
        ),
    ):
        wanted = {"formulation": formulation, "network": network, "channels": list(channels)}
        cells = [
            results.rate(f"paper_{task}", 1e3, place=place, **wanted)
            for task in ("training", "window")
            for place in results.places
        ]
        rows.append([f"{formulation}, {NETWORKS[network]}", ", ".join(map(str, channels)), *cells])
    head = [f"{task}, {place}" for task in ("training", "inference") for place in results.places]
    return table(["10³ voxels/s", "channels", *head], rows, 2)


def peer_table(results: Results) -> str:
    """Ours and the peers."""
    rows = [
        [label, *(results.rate(unit, 1e3, task=task, place=place) for place in results.places)]
        for label, unit, task in (
            ("training, cryoshuffle, blind network", "n2v", "training"),
            ("training, (b) Noise2Void 3-D (CAREamics)", "n2v", "n2v"),
            ("inference, cryoshuffle, second network", "topaz", "volume"),
            ("inference, (c) Topaz Denoise 3-D, `unet-3d-10a`", "topaz", "topaz"),
        )
        # Ours is measured beside a peer that is there, not by itself.
        if task == unit or results.rows(unit)
    ]
    return table(["10³ voxels/s", *results.places], rows, 1)


def matmul_table(results: Results, precision: str) -> str:
    """GFLOP/s of the matrix product and of each convolution, with its share."""
    unit = f"matmul_{precision}"
    peaks = {place: results.best(unit, task="matmul", place=place) for place in results.places}
    cells = [peak if isinstance(peak, str) else number(peak / 1e9) for peak in peaks.values()]
    rows = [["(d) product of matrices", "", "", "", *cells]]
    kinds = [row for row in results.rows(unit, task="convolution") if row["place"] == results.places[0]]
    for kind in kinds:
        same = {name: kind[name] for name in ("task", "channels", "shape", "kernel", "memory")}
        cells = []
        for place, peak in peaks.items():
            found = results.best(unit, place=place, **same)
            told = isinstance(found, str) or isinstance(peak, str)
            cells.append(str(found) if told else f"{number(found / 1e9)} ({100 * found / peak:.0f} %)")
        name = f"{kind['channels'][0]} → {kind['channels'][1]}, {' x '.join([str(kind['kernel'])] * 3)}"
        shape, layout = " x ".join(map(str, kind["shape"])), f"`{kind['memory']}`"
        rows.append([name, shape, layout, str(kind["count"]), *cells])
    return table([f"GFLOP/s, {precision}", "B x Z x Y x X", "memory format", "times", *results.places], rows, 3)


def middle(row: Row, name: str) -> str:
    """The median of what a row holds, as text."""
    values = [value for value in row.get(name, ()) if value is not None]
    if "reason" in row:
        return f"not run: {row['reason']}"
    return number(median(values)) if values else "not counted on this device"


def process_tables(results: Results) -> list[str]:
    """Memory and start."""
    label = {"training": "training step", "window": "inference, one window"}
    peaks = [
        [label[row["task"]], NETWORKS[row["network"]], row["precision"], row["place"], middle(row, "mib")]
        for row in results.rows("memory")
    ]
    label = {"help": "`cryoshuffle --help`", "first step": "`cryoshuffle denoise`, until its first step begins"}
    starts = [[label[row["task"]], row["place"], middle(row, "seconds")] for row in results.rows("start")]
    found = [table(["", "network", "precision", "place", "peak, MiB"], peaks, 4)] if peaks else []
    return [*found, *([table(["from the start of the program", "place", "s"], starts, 2)] if starts else [])]


def cube_table(results: Results) -> str:
    """Inference by size."""
    rows = []
    for row in (row for name in results.units if name.startswith("cube_") for row in results.rows(name)):
        cost = "" if "reason" in row else number(1e9 * median(row["seconds"]) / row["work"])
        told = [middle(row, "seconds"), cost, middle(row, "mib"), str(len(row["seconds"]))]
        rows.append([f"{row['shape'][0]}³", row["place"], row["precision"], *told])
    return table(["volume", "place", "precision", "s", "ns per voxel", "peak, MiB", "repetitions"], rows, 3)


def speed_section(units: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """The section as Markdown, markers included.

    Args:
        units: as they were kept.
        settings: that they have in common.
    """
    results = Results(units, settings["places"])
    done = {unit["part"] for unit in units if "rows" in unit}
    sides = {name: " x ".join(map(str, settings[name])) for name in ("window", "inference_window", "volume")}
    parts = [
        BEGIN,
        "## Speed",
        f"Medians of {settings['repeats']} repetitions ({settings['process_repeats']} where a repetition is a program "
        f"or a cube), each of at least {settings['least_seconds']:g} s of wall time, without warm-up. What is "
        "compared was measured in turns. Each number of threads has a process of its own, which keeps the memory that "
        f"it frees, as a fit does. Ours has the values of the configs: channels {', '.join(map(str, CHANNELS))}, and "
        "unless stated precision fp32 and memory format `contiguous`. Raw numbers: "
        "[benchmarks_speed.json](../data/benchmarks_speed.json).",
        "### Ratios",
        ratio_table(results, settings),
        "(a) is the paper's formulation of the same network: dilated convolutions on the full grid, made of torch's "
        "layers or of ours, in the faster of two memory formats. Its depth and lattice are ours. From the same weights "
        "it gives the same output, by test. "
        f"(b), (c): see *Peers*. (d) is a product of matrices of {settings['matmul']} x {settings['matmul']} at the "
        "same precision and number of threads. The share is that of all convolutions together.",
    ]
    if "rates" in done:
        parts += [
            "### Voxels per second",
            f"Training: a whole optimiser step on a window of {sides['window']} in memory (forward, loss `unbiased`, "
            "backward, clipping, fused AdamW, averaged weights), batch 1. Inference, one window: "
            f"{sides['inference_window']} without halo. Inference, a volume: {sides['volume']} through "
            "`HaloWindowInferer`, which chooses window and pieces by the memory of the machine.",
        ]
        for task, title in TASKS.items():
            parts += [f"#### {title}", rate_table(results, task, settings)]
    if "paper" in done:
        parts += [
            "### The paper's formulation",
            "fp32. Dilated convolutions made of torch's layers (`plain`) and of ours (`dilated`), in the faster of two "
            "memory formats. Training and inference of one window as above.",
            paper_table(results),
        ]
    if any(unit["part"] == "peers" for unit in units):
        parts += [
            "### Peers",
            f"Programs with the same number of threads on a tomogram of {sides['volume']}. Noise2Void: the time of "
            f"{1 + settings['peer_epochs']} epochs minus the time of one, for the voxels of the patches in the steps "
            "between. So start and prediction do not count; the validation after each epoch does. Topaz: its default "
            "patches; its start, timed on a single patch, is subtracted. Ours: the same volume through "
            "`HaloWindowInferer`, without reading and writing.",
            peer_table(results),
        ]
    if "matmul" in done:
        parts += [
            "### Share of what the machine can do",
            f"The forward pass of each convolution of the blind network's body on a training window of "
            f"{sides['window']}, by itself, in the memory format of the fit. In brackets: the share of (d).",
            *(matmul_table(results, precision) for precision in settings["precisions"]),
        ]
    if "process" in done:
        parts += [
            "### Memory and start",
            "Peak: the largest resident memory of a process that does nothing else, minus its memory with libraries "
            "loaded and without network and data. On CUDA: the memory of the tensors. First step: the time until the "
            "progress bar of the fit appears, when the first step begins. Before that the command reads a tomogram of "
            f"{sides['volume']}, measures its noise, proves that the network is blind and scores it once.",
            *process_tables(results),
        ]
    if "cubes" in done:
        parts += [
            "### By size of the volume",
            "The second network on random volumes through `HaloWindowInferer`. Volumes of more than some millions of "
            "voxels are streamed within a quarter of the memory. Peak: as above, with volume and result. "
            "Repetitions end when their time is used up.",
            cube_table(results),
        ]
    parts += ["### Made with", made_with(units, settings), END]
    return report.wrapped(parts)


def made_with(units: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    """Machine, commit, versions and command, as a list."""

    def listed(name: str) -> str:
        return "; ".join(sorted({part for u in units for part in str(u.get(name, "")).split("; ") if part}))

    gpus = [place for place in settings["places"] if "thread" not in place]
    facts = {
        "machine": listed("machine"),
        "places": ", ".join(settings["places"]) + ("" if gpus else "; neither CUDA nor MPS was there, or asked for"),
        "commit": listed("commit"),
        "versions": listed("version"),
        "command": "`scripts/bench/speed.py --peers DIR`, after `scripts/bench/peers_setup DIR`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def write_documents(options: argparse.Namespace, settings: Mapping[str, Any]) -> None:
    """The section and the raw numbers, from what is in the work folder."""
    results = load_results(options.work)
    page, data, _ = report.documents_of(options.docs)
    document = page.read_text(encoding="utf-8") if page.is_file() else ""
    section = speed_section(results, settings)
    page.write_text(report.replace_section(document, section, BEGIN, END), encoding="utf-8")
    write_json({"settings": settings, "results": results}, data / "benchmarks_speed.json")
    print(f"documents: {page}")


def choose_places(device: str, threads: Sequence[int]) -> list[Place]:
    """The columns: each number of threads of the CPU, and an accelerator if one is there or asked for."""
    found = [Place("cpu", n) for n in sorted(set(threads))] if device in ("auto", "cpu") else []
    best = choose_device(device).type
    return [*found, *([] if best == "cpu" else [Place(best, cores())])]


def _names(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _counts(text: str) -> list[int]:
    numbers = [int(part) if part.isdigit() else 0 for part in _names(text)]
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not whole numbers above 0 with commas between")
    return numbers


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _triple(text: str) -> Triple:
    numbers = _counts(text)
    try:
        return as_triple(numbers[0] if len(numbers) == 1 else numbers, "size", smallest=1)
    except SettingError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    window = ",".join(map(str, CONFIG["window"]))
    parser.add_argument("--parts", type=_names, default=list(PARTS), help=f"of {','.join(PARTS)} (default: all)")
    parser.add_argument("--threads", type=_counts, default=[1, 2], help="of the CPU, each by itself (default: 1,2)")
    parser.add_argument("--precisions", type=_names, default=list(PRECISIONS), help="of fp32,bf16 (default: both)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto",
                        help="auto: the CPU, and CUDA or MPS if it is there (default: auto)")  # fmt: skip
    parser.add_argument("--repeats", type=_count, default=7, help="of what takes seconds (default: 7)")
    parser.add_argument("--process-repeats", type=_count, default=3, help="of programs and of cubes (default: 3)")
    parser.add_argument("--least-seconds", type=float, default=0.2, help="of a repetition (default: 0.2)")
    parser.add_argument("--window", type=_triple, default=_triple(window), help=f"of a step (default: {window})")
    parser.add_argument("--inference-window", type=_triple, default=(96, 192, 96), help="(default: 96,192,96)")
    parser.add_argument("--volume", type=_triple, default=(80, 144, 144), help="z,y,x, voxels (default: 80,144,144)")
    parser.add_argument("--matmul", type=_count, default=2048, help="side of the matrices (default: 2048)")
    parser.add_argument("--largest", type=_count, default=512, help="side of the largest cube, voxels (default: 512)")
    parser.add_argument("--peer-epochs", type=_count, default=3, help="of Noise2Void, behind one (default: 3)")
    parser.add_argument("--cap-minutes", type=float, default=30, help="longest run of a peer (default: 30)")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments, of scripts/bench/peers_setup")
    parser.add_argument("--work", type=Path, default=ROOT / "run" / "speed", help="keeps what is finished")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    parser.add_argument("--report-only", action="store_true", help="measure nothing, write the documents")
    parser.add_argument("--serve", metavar="DEVICE", help=argparse.SUPPRESS)
    return parser


def check_names(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Refuse what there is not."""
    for what, given, known in (("part", options.parts, PARTS), ("precision", options.precisions, PRECISIONS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {what} '{name}': choose of {', '.join(known)}")
    if not options.precisions:
        parser.error("name at least one precision")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the documents."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.threads[0], options.least_seconds)
        return
    check_names(options, parser)
    options.work = options.work.absolute()
    settings_path = options.work / "settings.json"
    if options.report_only:
        if not settings_path.is_file():
            parser.error(f"{options.work} holds no results: measure something first")
        write_documents(options, json.loads(settings_path.read_text(encoding="utf-8")))
        return
    try:
        places = choose_places(options.device, options.threads)
    except SettingError as error:
        parser.error(str(error))
    kept = ("repeats", "process_repeats", "least_seconds", "matmul", "peer_epochs", "precisions")
    sides = {name: list(getattr(options, name)) for name in ("window", "inference_window", "volume")}
    settings = {**{name: getattr(options, name) for name in kept}, **sides, "places": [p.name for p in places]}
    report.check_settings(options.work, settings, "speed")
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
