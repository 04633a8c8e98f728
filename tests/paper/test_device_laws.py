"""The fast paths give what the plain one gives, on every device that is there, and stay blind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from cryoshuffle.devices import allow_tf32
from cryoshuffle.fit.graphs import GraphedInferer
from cryoshuffle.inference.inferers import HaloWindowInferer, PrecisionInferer
from cryoshuffle.inference.streaming import StreamedNetwork
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.losses import EdgeGuidedLoss
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.scores.metrics import correlation

# The CPU is always among them, so that the laws are never passed by skipping.
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]
# CUDA alone has TensorFloat-32, and torch no bfloat16 autocast on MPS.
FAST = [
    (device, precision)
    for device in DEVICES
    for precision in {"cpu": ["fp32", "bf16"], "cuda": ["fp32", "tf32", "bf16"], "mps": ["auto"]}[device]
]
PLANE = Lattice((1, 3, 1), BlindSet("plane", "y"))


@pytest.fixture(autouse=True)
def _tf32_as_it_was():
    """What a test allows is taken back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32("fp32")
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def network(lattice: Lattice = PLANE) -> BlindSpotNet:
    """One whose blocks do something."""
    torch.manual_seed(0)
    net = BlindSpotNet(lattice, ShuffleUNet(8, 1, (8, 12, 16)), stem_channels=8)
    for name, parameter in net.named_parameters():
        if name.endswith("_scale"):
            torch.nn.init.normal_(parameter, 0.5, 0.2)
    net.train()(torch.randn(1, 1, 12, 12, 12))
    return net


def gradients(net: BlindSpotNet, x: Tensor) -> Tensor:
    """Of the loss with respect to all weights, on the CPU in double precision."""
    net.zero_grad()
    EdgeGuidedLoss(net.lattice, {"fidelity": 1.0, "edge": 0.5, "smoothness": 0.1}).to(x)(net(x), x).backward()
    return torch.cat([p.grad.flatten().double().cpu() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_gives_what_double_precision_gives(device):
    """Prediction and gradients of a training step, single against double precision on the CPU."""
    x = torch.randn(1, 1, 13, 18, 14)
    exact, net = network().double(), network().to(device)
    wanted, found = gradients(exact, x.double()), gradients(net, x.to(device))
    assert torch.nn.functional.cosine_similarity(wanted, found, dim=0) > 1 - 1e-5
    with torch.no_grad():
        apart = net.eval()(x.to(device)).cpu().double() - exact.eval()(x.double())
    assert apart.abs().max() < 5e-3


@pytest.mark.parametrize(("device", "precision"), FAST)
def test_every_fast_path_gives_the_same_volume(device, precision):
    """Windows, pieces, mirror images, of a volume that stays on the CPU; bfloat16 is as good as single precision."""
    allow_tf32(precision)
    x, lattice = torch.randn(1, 1, 24, 26, 30), Lattice(blind_set=BlindSet("none"))
    net = network(lattice).eval()
    with torch.no_grad():
        plain = net(x)
        net = net.to(device)
        for mirrors in (False, True):
            whole = HaloWindowInferer(99, precision="fp32", mirrors=mirrors)(x, copy.deepcopy(net).cpu())
            fast = HaloWindowInferer((8, 8, 12), precision=precision, mirrors=mirrors, device=device)(x, net)
            assert fast.device == x.device
            assert fast.dtype == x.dtype
            assert correlation(fast[0, 0], whole[0, 0]) > 0.9995
        with PrecisionInferer(precision).autocast(torch.device(device)):
            pieces = torch.cat([piece for _, piece in StreamedNetwork(net, 8).pieces(x, device=device)], 2)
    assert correlation(pieces[0, 0].float().cpu(), plain[0, 0]) > 0.9995


@pytest.mark.parametrize(("device", "precision"), FAST)
def test_every_fast_path_is_blind(device, precision):
    """A plane that is changed by a lot changes nothing in its own prediction, not a bit, and does in others."""
    allow_tf32(precision)
    net = network().eval().to(device)
    x = torch.randn(1, 1, 12, 24, 12)
    changed = x.clone()
    changed[:, :, :, 10] += 1000
    stream = StreamedNetwork(net, 4)

    def streamed(volume: Tensor) -> Tensor:
        with PrecisionInferer(precision).autocast(torch.device(device)):
            return torch.cat([piece for _, piece in stream.pieces(volume, device=device)], 2).cpu()

    windows = HaloWindowInferer((8, 12, 8), precision=precision, device=device)
    with torch.no_grad():
        for run in (lambda volume: windows(volume, net), streamed):
            before, after = run(x), run(changed)
            assert torch.equal(before[:, :, :, 10], after[:, :, :, 10])
            assert not torch.equal(before[:, :, :, 11], after[:, :, :, 11])


def steps(inferer: PrecisionInferer, net: BlindSpotNet, device: str, count: int = 4) -> list[Tensor]:
    """Weights and buffers behind some steps with windows of their own, on the CPU."""
    net = copy.deepcopy(net).to(device).train()
    loss = EdgeGuidedLoss(net.lattice, {"fidelity": 1.0, "edge": 0.5, "smoothness": 0.1}).to(device)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.05)
    random = torch.Generator().manual_seed(1)
    for _ in range(count):
        x = torch.randn(1, 1, 12, 24, 12, generator=random).to(device)
        optimiser.zero_grad(set_to_none=True)
        loss(inferer(x, net), x).backward()
        optimiser.step()
    return [value.detach().double().cpu() for value in net.state_dict().values()]


@pytest.mark.parametrize(("device", "precision"), FAST)
def test_steps_that_are_replayed_learn_the_same(device, precision):
    """Weights and running means of a fit whose steps are a graph, where the device has graphs, are those of one
    without; another window in one of the steps gives others (negative control)."""
    allow_tf32(precision)
    net = network()
    wanted = steps(PrecisionInferer(precision), net, device)
    graphed = GraphedInferer(precision)
    found = steps(graphed, net, device)
    fewer = steps(PrecisionInferer(precision), net, device, count=3)

    def apart(one: list[Tensor], two: list[Tensor]) -> float:
        return max(float((a - b).norm() / (a.norm() + 1e-3)) for a, b in zip(one, two, strict=True))

    assert apart(found, wanted) < 0.1 * apart(fewer, wanted)
    assert (device == "cuda") == any(replay is not None for replay in graphed._captured.values())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA tells when the CPU waits for it")
def test_a_step_does_not_wait_for_the_gpu():
    """Forward, loss, backward and optimiser are queued without a look at any value."""
    net = network().cuda()
    loss = EdgeGuidedLoss(net.lattice, {"fidelity": 1.0, "edge": 0.5, "smoothness": 0.1}).cuda()
    optimiser = torch.optim.AdamW(net.parameters(), fused=True)
    x = torch.randn(1, 1, 24, 24, 24, device="cuda")
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            optimiser.zero_grad()
            loss(net(x), x).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            optimiser.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
