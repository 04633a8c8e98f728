"""What the network is: the paper's dilated network, seen from its sub-lattices."""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import permutations, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Act, Norm
from torch import nn

from cryoshuffle.errors import SettingError
from cryoshuffle.lattice import (
    BlindSet,
    Lattice,
    volume_shuffle,
)
from cryoshuffle.layers import (
    ChannelLayerNorm,
    DilatedChannelAttention,
    PointwiseConv3d,
    SimpleGate,
    register_layers,
)
from cryoshuffle.network import BlindSpotNet, ShuffleUNet, _Up, mean_with_before, turn_weights, unwrap


def open_network(lattice: Lattice, channels=(4, 6, 8), factors=(2, (1, 2, 2)), blocks: int = 1) -> BlindSpotNet:
    torch.manual_seed(1)
    net = BlindSpotNet(lattice, ShuffleUNet(4, 1, channels, blocks, factors), stem_channels=4).double()
    for name, parameter in net.named_parameters():
        if name.endswith("_scale"):
            nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("items", [1, 3])
def test_a_pointwise_convolution_scales_its_weights_as_if_it_scaled_the_features(items):
    """Against torch's own convolution of features scaled before and behind, whatever the layout; with the factors of
    another item the result is another (negative control)."""
    torch.manual_seed(0)
    layer = PointwiseConv3d(4, 6).double()
    x = torch.randn(items, 4, 3, 5, 2, dtype=torch.float64)
    before, behind = torch.rand(items, 4, dtype=torch.float64), torch.rand(6, dtype=torch.float64)
    plain = F.conv3d(x, layer.weight, layer.bias)
    scaled = F.conv3d(x * before[:, :, None, None, None], layer.weight, layer.bias) * behind[:, None, None, None]
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        assert torch.allclose(layer(given), plain)
        assert torch.allclose(layer(given, before, behind), scaled)
    assert not torch.allclose(layer(x, before.roll(1), behind), scaled)


@pytest.fixture
def with_the_same_weights(load_script):
    """Makes the paper's formulation of a network, as the benchmark times it."""
    formulations = load_script("bench.formulations").FORMULATIONS

    def formulate(net: BlindSpotNet, formulation: str = "dilated") -> BlindSpotNet:
        other = formulations[formulation](net.lattice, deepcopy(net.body), stem_channels=4).double()
        other.load_state_dict(net.state_dict())
        return other.train(net.training)

    return formulate


@pytest.mark.parametrize("formulation", ["dilated", "plain"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "lattice",
    [Lattice((2, 2, 2), BlindSet("voxel")), Lattice((1, 3, 1), BlindSet("plane", "y"))],
    ids=["voxel", "plane"],
)
def test_the_papers_dilated_network_equals_ours(with_the_same_weights, lattice, training, formulation):
    """Dilated layers on the full grid give what dense layers on the sub-lattices give, to 1e-10: output, gradients and
    statistics, on sizes that do not divide too."""
    ours = open_network(lattice).train(training)
    dilated = with_the_same_weights(ours, formulation)
    x = torch.randn(2, 1, *(p + 3 for p in ours.period), dtype=torch.float64)
    outputs = [network(x) for network in (ours, dilated)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-10)
    assert float(outputs[0].detach().std()) > 1e-2
    for output in outputs:
        output.square().mean().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), dilated.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-9), name
    for (name, mine), theirs in zip(ours.named_buffers(), dilated.buffers(), strict=True):
        assert torch.allclose(mine, theirs), name


def test_the_pooling_of_the_dilated_network_is_that_of_an_index_loop(with_the_same_weights):
    """Residue by residue, so that the formulation above is the paper's and not ours in other words."""
    lattice = Lattice((1, 3, 2), BlindSet("none"))
    dilated = with_the_same_weights(open_network(lattice).train())
    layer = dilated.body.bottom[0].attention
    nn.init.normal_(layer.weight.weight)
    x = torch.randn(2, layer.weight.in_features, 4, 6, 8, dtype=torch.float64)
    expected = torch.empty_like(x)
    for a, b, c in product(*map(range, dilated.stride)):
        part = (..., *(slice(r, None, s) for r, s in zip((a, b, c), dilated.stride, strict=True)))
        weight = 2 * torch.sigmoid(layer.weight(x[part].mean(dim=(2, 3, 4))))
        expected[part] = x[part] * weight[:, :, None, None, None]
    with torch.no_grad():
        assert torch.allclose(dilated._attention(layer, x), expected)


def test_the_comparison_notices_a_wrong_dilation(with_the_same_weights):
    """Negative control: the same comparison with dilation 1 fails by far more than 1e-10."""
    net = open_network(Lattice((2, 2, 2), BlindSet("voxel"))).eval()
    dilated = with_the_same_weights(net)
    x = torch.randn(1, 1, *net.period, dtype=torch.float64)
    dilated.dilation = (1, 1, 1)
    with torch.no_grad():
        assert (dilated(x) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("factor", [2, (1, 2, 3)])
def test_going_up_leaves_no_pattern_on_a_flat_volume(factor):
    """Where features are the same everywhere, so they are on the finer level; after the bare shuffle they are not
    (negative control)."""
    torch.manual_seed(3)
    up = ShuffleUNet(4, 1, (4, 6), 1, (factor,)).up[0]
    flat = torch.randn(1, 6, 1, 1, 1).expand(1, 6, 4, 4, 4)
    with torch.no_grad():
        core = up(flat)[..., 2:, 2:, 2:]
        bare = volume_shuffle(up.project(flat), up.factor)
    assert float((core - core[..., :1, :1, :1]).abs().max()) < 1e-6
    assert float((bare - bare[..., :1, :1, :1]).abs().max()) > 0.1


@pytest.fixture
def narrow() -> BlindSpotNet:
    return open_network(Lattice((1, 2, 1), BlindSet("plane", "y")), channels=(4, 4), factors=(2,)).eval()


def test_translation_by_the_period_commutes(narrow):
    """Moving the tomogram by one lattice period moves the prediction, away from borders."""
    radius, period = narrow.receptive_radius(), narrow.period
    shape = [2 * r + 3 * p for r, p in zip(radius, period, strict=True)]
    x = torch.randn(1, 1, *shape, dtype=torch.float64)
    core = tuple(slice(r + p, n - r - p) for r, p, n in zip(radius, period, shape, strict=True))
    with torch.no_grad():
        moved = torch.roll(narrow(torch.roll(x, period, (2, 3, 4))), [-p for p in period], (2, 3, 4))
        assert (moved - narrow(x))[(0, 0, *core)].abs().max() < 1e-12
        off = torch.roll(narrow(torch.roll(x, 1, 4)), -1, 4)
        assert (off - narrow(x))[(0, 0, *core)].abs().max() > 1e-6, "negative control: one voxel is no period"


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_network_sees_exactly_as_far_as_it_says(blocks):
    """Beyond the receptive radius the gradient is 0; along some axis it is not, one voxel nearer."""
    net = open_network(Lattice((1, 2, 1), BlindSet("plane", "y")), (4, 4), (2,), blocks).eval()
    radius = net.receptive_radius()
    shape = [2 * (r // p + 2) * p for r, p in zip(radius, net.period, strict=True)]
    x = torch.randn(1, 1, *shape, dtype=torch.float64, requires_grad=True)
    y = net(x)
    reached = [0, 0, 0]
    for shift in product(*(range(p) for p in net.period)):
        voxel = tuple(n // 2 + s for n, s in zip(shape, shift, strict=True))
        seen = torch.nonzero(torch.autograd.grad(y[0, 0][voxel], x, retain_graph=True)[0][0, 0])
        far = (seen - torch.tensor(voxel)).abs().max(dim=0).values.tolist()
        assert all(f <= r for f, r in zip(far, radius, strict=True))
        reached = [max(a, b) for a, b in zip(reached, far, strict=True)]
    assert tuple(reached) == radius


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 7, 11), (8, 13, 9)])
def test_any_size_goes_in_and_comes_out(narrow, shape):
    """Sizes that do not divide are padded and cropped."""
    with torch.no_grad():
        assert narrow(torch.randn(1, 1, *shape, dtype=torch.float64)).shape == (1, 1, *shape)


def test_evaluation_uses_the_statistics_of_the_volume():
    """The running mean follows the windows' means while training, and alone decides in evaluation."""
    layer = DilatedChannelAttention(3, momentum=0.5)
    x = torch.randn(4, 3, 5, 5, 5) + torch.tensor([1.0, 2.0, 3.0])[:, None, None, None]
    for _ in range(20):
        layer.train()(x)
    assert torch.allclose(layer.running_mean, x.mean(dim=(0, 2, 3, 4)), atol=1e-4)
    layer.eval()
    assert torch.equal(layer(x)[:1], layer(x[:1])), "no window changes another"
    assert torch.allclose(layer(2 * x), 2 * layer(x)), "the scale does not follow the window"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_turned_weights_do_to_a_volume_what_they_did_to_the_turned_volume(order):
    """For each order of the axes and any sides; the weights as they were do not, unless the order is the usual one."""
    net = open_network(Lattice(blind_set=BlindSet("none")), factors=(2, 2)).eval()
    turned = deepcopy(net)
    turned.load_state_dict(turn_weights(net, net.state_dict(), order))
    volume = torch.randn(1, 1, 9, 14, 11, dtype=torch.float64)
    back = [order.index(axis) for axis in range(3)]
    with torch.no_grad():
        seen = net(volume[0].permute(0, *(1 + axis for axis in order))[None])
        expected = seen[0].permute(0, *(1 + axis for axis in back))[None]
        assert torch.allclose(turned(volume), expected, atol=1e-12)
        assert torch.allclose(net(volume), expected, atol=1e-3) == (order == (0, 1, 2))
    again = turn_weights(net, turn_weights(net, net.state_dict(), order), back)
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())


def test_a_network_that_treats_its_axes_differently_is_not_turned():
    """No weights of its do the same along other axes."""
    net = open_network(Lattice(blind_set=BlindSet("none")))
    with pytest.raises(SettingError, match=r"unshuffle factor \(1, 2, 2\): a network is turned with equal ones only"):
        turn_weights(net, net.state_dict(), (1, 0, 2))


@pytest.mark.parametrize("widths", [(2, 2, 2), (3, 1, 2), (1, 1, 1), (4, 2, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6, 7), (1, 2, 1, 2, 3)])
def test_the_box_is_a_mean_over_what_came_before(shape, widths):
    """Against a loop over voxels, also where the box is wider than the volume; the gradients are right, and
    pieces along Z with the planes before them give the whole."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(shape, dtype=torch.float64)
    for voxel in np.ndindex(*shape[2:]):
        for back in np.ndindex(*widths):
            seen = [max(0, v - b) for v, b in zip(voxel, back, strict=True)]
            expected[(..., *voxel)] += x.detach()[(..., *seen)] / math.prod(widths)
    assert torch.allclose(mean_with_before(x, widths), expected)
    up = _Up(3, 3, widths)
    assert torch.autograd.gradcheck(up.box, (x,))
    if shape[2] > widths[0]:
        cut = widths[0]
        rest = mean_with_before(x[:, :, cut:], widths, x[:, :, 1:cut])
        assert torch.allclose(rest, expected[:, :, cut:])


def test_the_gate_has_the_gradient_of_a_product():
    """Written by hand, it is that of finite differences."""
    x = torch.randn(2, 6, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(SimpleGate(), (x,))
    a, b = x.chunk(2, dim=1)
    assert torch.equal(SimpleGate()(x), a * b)


def test_layers_are_known_to_monais_factories():
    """By name, once, and computing what they say."""
    register_layers()
    assert Norm["CHANNELLAYER", 3] is ChannelLayerNorm
    assert Act["simplegate"] is SimpleGate
    x = torch.randn(2, 6, 3, 4, 5)
    y = ChannelLayerNorm(6)(x)
    assert torch.allclose(y, torch.nn.functional.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1), atol=1e-6)
    assert torch.equal(SimpleGate()(x), x[:, :3] * x[:, 3:])


def test_unwrap_finds_the_network():
    """Behind a wrapper with ``module``, or itself."""
    net = torch.nn.Linear(1, 1)
    assert unwrap(torch.nn.DataParallel(net)) is net
    assert unwrap(net) is net


def test_a_body_that_does_not_know_itself_says_none():
    """Reach and config of a foreign body are unknown, and said to be."""
    net = BlindSpotNet(body=torch.nn.Conv3d(24, 1, 1))
    assert net.receptive_radius() is None
    assert net.config() is None
