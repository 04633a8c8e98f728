"""The theorem: a prediction does not change with the voxels hidden from it, bit for bit, in double precision."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from monai.networks.nets import BasicUNet, SegResNet
from torch import nn

from cryoshuffle.files.writing import save_whole
from cryoshuffle.inference.checkpoints import load_network
from cryoshuffle.invariance import measure_leak
from cryoshuffle.lattice import (
    BlindSet,
    Lattice,
    merge_sublattices,
    split_sublattices,
    volume_shuffle,
    volume_unshuffle,
)
from cryoshuffle.network import BlindSpotNet, ShuffleUNet

LATTICES = {
    "voxel": Lattice((2, 2, 2), BlindSet("voxel")),
    "voxel, stride 3": Lattice((3, 3, 3), BlindSet("voxel")),
    "plane y": Lattice((1, 3, 1), BlindSet("plane", "y")),
    "plane x, half-width 1": Lattice((1, 1, 4), BlindSet("plane", "x", 1)),
    "plane z": Lattice((2, 1, 1), BlindSet("plane", "z")),
    "cross": Lattice((2, 2, 2), BlindSet("cross", radius=1)),
    "cross, stride 3": Lattice((3, 3, 3), BlindSet("cross", radius=(2, 1, 0))),
    "box of 3 x 3 x 3": Lattice((4, 4, 4), BlindSet("box", radius=1)),
    "box": Lattice((4, 1, 1), BlindSet("box", radius=(1, 0, 0))),
}
BODIES = {
    "ShuffleUNet": lambda: (ShuffleUNet(4, 1, (4, 6), factors=(2,)), None),
    "BasicUNet": lambda: (BasicUNet(3, 4, 1, features=(4, 4, 4, 4, 4, 4)), 16),
    "SegResNet": lambda: (
        SegResNet(3, init_filters=8, in_channels=4, out_channels=1, blocks_down=(1, 1), blocks_up=(1,)),
        2,
    ),
}


def network(lattice: Lattice, body: str = "ShuffleUNet") -> BlindSpotNet:
    torch.manual_seed(0)
    module, multiple = BODIES[body]()
    net = BlindSpotNet(lattice, module, stem_channels=4, body_multiple=multiple).double()
    for name, parameter in net.named_parameters():
        if name.endswith("_scale"):
            nn.init.ones_(parameter)
    return net


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LATTICES)
def test_each_blind_shape_is_blind_voxel_by_voxel(name, training):
    """Corners, faces, inside: gradient exactly 0 on the blind set, prediction bitwise the same after a bump there."""
    lattice = LATTICES[name]
    net = network(lattice).train(training)
    shape = tuple(p + 1 if p > 1 else 3 for p in net.period)
    x = torch.randn(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    y = net(x)
    last = tuple(n - 1 for n in shape)
    for voxel in [(0, 0, 0), last, (0, last[1], shape[2] // 2), tuple(n // 2 for n in shape)]:
        slope = torch.autograd.grad(y[0, 0][voxel], x, retain_graph=True)[0][0, 0]
        hidden = torch.from_numpy(lattice.blind_set.mask(shape, voxel))
        assert slope[hidden].abs().max() == 0.0
        assert slope[~hidden].abs().max() > 0.0
        bumped = x.detach().clone()
        bumped[0, 0][hidden] += 1e4
        with torch.no_grad():
            assert torch.equal(net(bumped)[0, 0][voxel], y[0, 0][voxel])


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", ["voxel", "plane y", "cross", "box"])
def test_any_body_is_blind_in_both_modes(name, body):
    """Global pooling, instance and group normalisation act on one sub-lattice, so they cannot leak."""
    net = network(LATTICES[name], body)
    # BasicUNet halves four times and its instance norm needs more than one voxel at the bottom.
    z, y, x = (16 * d for d in net.stride)
    shape = (z + 1, y, x) if body == "BasicUNet" else None
    for training in (True, False):
        leak = measure_leak(net.train(training), shape=shape)
        assert leak.is_blind, leak.describe()
        assert leak.sees > 0.0


def test_an_averaged_and_reloaded_network_is_still_blind(tmp_path):
    """Exponential averaging and a checkpoint cannot open a tap: the mask is applied in forward."""
    net = network(LATTICES["plane y"]).float()
    trainer = Engine(lambda engine, batch: None)
    ema = EMAHandler(net, momentum=0.5)
    ema.attach(trainer)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    trainer.run([0, 0])
    save_whole({"model": ema.ema_model.state_dict(), "network_def": ema.ema_model.config()}, tmp_path / "net.pt")
    again = load_network(tmp_path / "net.pt")
    assert measure_leak(ema.ema_model).is_blind
    assert measure_leak(again).is_blind
    x = torch.randn(1, 1, 5, 13, 6)
    with torch.no_grad():
        assert torch.equal(again(x), ema.ema_model.eval()(x))


def test_an_open_tap_leaks():
    """Negative control: one tap of the centre opened is found, and named at offset (0, 0, 0)."""
    net = network(LATTICES["voxel"])
    net.stem.mask[0, 0, 1, 1, 1] = 1.0
    leak = measure_leak(net)
    assert not leak.is_blind
    assert leak.gradient > 0.0
    assert leak.bump > 0.0
    assert leak.offset == (0, 0, 0)


class _PixelUnshuffled(nn.Module):
    """A network that unshuffles the full grid behind the stem, as one is tempted to."""

    def __init__(self, net: BlindSpotNet) -> None:
        super().__init__()
        self.stem, self.mix = net.stem, nn.Conv3d(32, 32, 3, padding=1, dtype=torch.float64)
        self.out = nn.Conv3d(4, 1, 1, dtype=torch.float64)

    def forward(self, x):
        return self.out(volume_shuffle(self.mix(volume_unshuffle(self.stem(x), (2, 2, 2))), (2, 2, 2)))


def test_plain_unshuffle_after_the_stem_leaks():
    """Negative control: plain pixel-unshuffle lets sub-lattices meet again, and the voxel sees itself."""
    net = _PixelUnshuffled(network(LATTICES["voxel"]))
    leak = measure_leak(net, LATTICES["voxel"], shape=(8, 8, 8))
    assert not leak.is_blind


class _SplitBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm3d(4), nn.Conv3d(4, 1, 1)

    def forward(self, x):
        return self.out(self.norm(x))


def test_batch_normalisation_leaks_while_training_and_is_refused():
    """Negative control: statistics over the batch mix sub-lattices; the constructor refuses such a body."""
    net = network(LATTICES["voxel"])
    net.body = _SplitBatchNorm().double()
    assert not measure_leak(net.train()).is_blind
    assert measure_leak(net.eval()).is_blind
    with pytest.raises(ValueError, match="batch normalisation 'norm'"):
        BlindSpotNet(LATTICES["voxel"], _SplitBatchNorm(), stem_channels=4)


class _Reflecting(nn.Module):
    """A blind-spot network whose stem reflects the borders instead of padding them with zeros."""

    def __init__(self, net: BlindSpotNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        z, y, w = self.net.stem.padding
        padded = nn.functional.pad(x, [w, w, y, y, z, z], mode="reflect")
        stem = nn.functional.conv3d(padded, self.net.stem.weight * self.net.stem.mask, self.net.stem.bias)
        return merge_sublattices(self.net.body(split_sublattices(stem, self.net.stride)), self.net.stride)


def test_reflected_borders_leak():
    """Negative control: reflection brings a hidden voxel back; the voxel next to the border sees itself."""
    net = network(LATTICES["plane y"])
    leak = measure_leak(_Reflecting(net), net.lattice, shape=(4, 12, 4))
    assert not leak.is_blind
    assert leak.voxel[1] in (1, 10)
    assert measure_leak(net, shape=(4, 12, 4)).is_blind


def test_a_network_that_predicts_nan_is_not_called_blind():
    """Negative control: NaN compares false with everything, and proves nothing."""
    net = network(LATTICES["plane y"])
    with torch.no_grad():
        net.stem.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN or Inf, so it cannot be judged"):
        measure_leak(net)


def test_a_measurement_leaves_the_network_alone():
    """Weights, buffers, mode and gradients are what they were."""
    net = network(LATTICES["plane y"]).train()
    before = copy.deepcopy(net.state_dict())
    measure_leak(net)
    assert net.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_pairs_counts_all_hidden_pairs():
    """Every prediction with every voxel hidden from it: for a blind plane, all voxels of the planes of its residue."""
    leak = measure_leak(network(LATTICES["plane y"]), shape=(2, 6, 3))
    assert leak.pairs == 3 * (2 * 2 * 3) ** 2
    assert np.isclose(leak.gradient, 0.0)
