"""What the speed benchmark times: a step, inference of a window or a volume, a convolution, a product of matrices."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from bench.formulations import FORMULATIONS
from bench.provenance import ROOT
from cryoshuffle.inference.inferers import HaloWindowInferer, PrecisionInferer
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.layers import PointwiseConv3d
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.network import BlindSpotNet, ShuffleUNet

CONFIG = json.loads((ROOT / "configs" / "train.json").read_text(encoding="utf-8"))
MOMENTUM = next(h["momentum"] for h in CONFIG["train"]["handlers"] if h["_target_"].endswith("AveragedWeights"))
CHANNELS = tuple(CONFIG["network_def"]["body"]["channels"])
PAPER_CHANNELS = (24, 48, 96)
LATTICES = {
    "blind": Lattice((1, 3, 1), BlindSet("plane", "y")),
    "open": Lattice(blind_set=BlindSet("none")),
    "voxel": Lattice((2, 2, 2), BlindSet("voxel")),
}
MEMORY = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
