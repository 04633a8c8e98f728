"""Cutting a volume into windows changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cryoshuffle.boxes import draw_box, fit_window
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.inference import inferers, streaming
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.streaming import StreamedNetwork, can_stream
from cryoshuffle.inference.windows import choose_pieces, choose_window, cut_windows
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.noise.linear_filter import gaussian

three = st.tuples(*[st.integers(1, 12)] * 3)
periods = st.tuples(*[st.integers(1, 4)] * 3)


@settings(max_examples=60, deadline=None)
@given(shape=three, window=three, halo=st.tuples(*[st.integers(0, 6)] * 3), period=periods)
def test_windows_keep_every_voxel_once_and_start_on_periods(shape, window, halo, period):
    """The kept parts are a partition; read and kept parts start on multiples of the period; the halo is there."""
    count = np.zeros(shape, int)
    for cut in cut_windows(shape, window, halo, period):
        count[cut.keep] += 1
        for read, keep, core, step, side, rim in zip(cut.read, cut.keep, cut.core, period, shape, halo, strict=True):
            assert read.start % step == keep.start % step == 0
            assert read.start == 0 or keep.start - read.start >= rim
            assert read.stop == side or read.stop - keep.stop >= rim
            assert (core.start, core.stop) == (keep.start - read.start, keep.stop - read.start)
    assert (count == 1).all()


@settings(max_examples=60, deadline=None)
@given(shape=three, halo=st.tuples(*[st.integers(0, 6)] * 3), period=periods, most=st.integers(1, 3000))
def test_a_chosen_window_keeps_to_the_memory_and_no_other_does_less_work(shape, halo, period, most):
    """Over all windows there are: the largest part read is within bounds if any is, and the voxels read are fewest."""

    def reads(window: tuple[int, ...]) -> tuple[int, int]:
        sizes = [int(np.prod([s.stop - s.start for s in cut.read])) for cut in cut_windows(shape, window, halo, period)]
        return max(sizes), sum(sizes)

    chosen = choose_window(shape, halo, period, most)
    largest, work = reads(chosen)
    every = [reads(w) for w in np.ndindex(*[-(-n // p) for n, p in zip(shape, period, strict=True)])
             for w in [[(i + 1) * p for i, p in zip(w, period, strict=True)]]]  # fmt: skip
    within = [other for other, _ in every if other <= most]
    assert largest <= most if within else largest == min(other for other, _ in every)
    if within:
        assert work == min(total for other, total in every if other <= most)


class _Identity(nn.Module):
    period = (2, 3, 1)

    def forward(self, x):
        return x


@settings(max_examples=25, deadline=None)
@given(shape=three, window=three, halo=st.integers(0, 4))
def test_merging_windows_of_the_identity_gives_the_volume_back(shape, window, halo):
    """What is cut and not changed comes back bit for bit, in a new tensor."""
    x = torch.randn(1, 1, *shape)
    y = HaloWindowInferer(window, halo, precision="fp32")(x, _Identity())
    assert torch.equal(x, y)
    assert y.data_ptr() != x.data_ptr()


@settings(max_examples=25, deadline=None)
@given(shape=three, window=three, halo=st.integers(0, 4))
def test_the_mean_over_mirror_images_of_the_identity_is_the_volume(shape, window, halo):
    """Mirrored, padded to whole periods and mirrored back, every voxel is where it was."""
    x = torch.randn(1, 1, *shape)
    y = HaloWindowInferer(window, halo, precision="fp32", mirrors=True)(x, _Identity())
    assert torch.allclose(x, y, atol=1e-6)


def perturbed(network: BlindSpotNet) -> BlindSpotNet:
    """A network whose blocks do something, with running means, in evaluation mode."""
    for name, parameter in network.named_parameters():
        if name.endswith("_scale"):
            nn.init.ones_(parameter)
    for _ in range(3):
        network.train()(torch.randn(1, 1, 8, 8, 8, dtype=torch.float64))
    return network.eval()


@pytest.fixture(scope="module")
def net() -> BlindSpotNet:
    torch.manual_seed(0)
    lattice = Lattice((1, 2, 1), BlindSet("plane", "y"))
    return perturbed(BlindSpotNet(lattice, ShuffleUNet(4, 1, (4, 6), factors=(2,)), stem_channels=4).double())


class _Opaque(nn.Module):
    """A network of which no more is known than its period and how far it sees."""

    def __init__(self, inner: BlindSpotNet) -> None:
        super().__init__()
        self.inner, self.period, self.receptive_radius = inner, inner.period, inner.receptive_radius

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("mirrors", [False, True])
@pytest.mark.parametrize("window", [(4, 4, 4), (8, 12, 6), (10, 20, 30)])
def test_the_result_does_not_depend_on_the_window(net, window, mirrors):
    """Any window gives what one pass over the whole volume gives, streamed or with halos, mirror images or none."""
    x = torch.randn(1, 1, *((9, 19, 14) if mirrors else (21, 35, 26)), dtype=torch.float64)
    with torch.no_grad():
        whole = HaloWindowInferer(99, precision="fp32", mirrors=mirrors)(x, net)
        assert mirrors or (whole - net(x)).abs().max() < 1e-12
        for network in (net, _Opaque(net)):
            cut = HaloWindowInferer(window, precision="fp32", mirrors=mirrors)(x, network)
            assert (cut - whole).abs().max() < 1e-12


def test_the_mean_over_mirror_images_does_not_know_left_from_right(net):
    """A mirrored volume of whole periods gives the mirrored result; one pass does not (negative control)."""
    x = torch.randn(1, 1, 8, 12, 8, dtype=torch.float64)
    with torch.no_grad():
        for mirrors in (True, False):
            inferer = HaloWindowInferer(99, precision="fp32", mirrors=mirrors)
            apart = (inferer(x.flip(2, 4), net).flip(2, 4) - inferer(x, net)).abs().max()
            assert apart < 1e-12 if mirrors else apart > 1e-3


def test_the_mean_over_mirror_images_is_blind(net):
    """The gradient of a prediction at its own plane is 0, and not everywhere."""
    x = torch.randn(1, 1, 9, 13, 7, dtype=torch.float64, requires_grad=True)
    HaloWindowInferer(99, precision="fp32", mirrors=True)(x, net)[0, 0, 4, 5, 3].backward()
    assert x.grad is not None
    assert x.grad[0, 0, :, 5].abs().max() == 0
    assert x.grad.abs().max() > 0


def test_less_memory_means_smaller_windows_and_the_same_result(net, monkeypatch):
    """Without a window the memory of the device decides."""
    x, net = torch.randn(1, 1, 21, 35, 26, dtype=torch.float64), _Opaque(net)
    reads = {}
    for gib in (64.0, 0.0225):
        monkeypatch.setattr(inferers, "window_bytes", lambda device, held, gib=gib: int(gib * 2**30))
        seen: list[int] = []
        hook = net.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0].numel()))
        with torch.no_grad():
            result = HaloWindowInferer(precision="fp32")(x, net)
        hook.remove()
        reads[gib] = seen
        assert (result - net(x)).abs().max() < 1e-12
    assert reads[64.0] == [x.numel()]
    assert len(reads[0.0225]) > 1
    assert max(reads[0.0225]) * inferers.BYTES_PER_VOXEL <= 0.0225 * 2**30


def test_a_volume_too_large_for_one_window_is_streamed_with_the_same_result(net, monkeypatch):
    """Pieces of a few planes, of windows that need no halo along Z: whatever the memory, what one pass gives."""
    x = torch.randn(1, 1, 37, 35, 26, dtype=torch.float64)
    pieces, original = [], StreamedNetwork.pieces

    def noted(self: StreamedNetwork, *given: Any) -> Iterator[tuple[slice, Tensor]]:
        for planes, piece in original(self, *given):
            pieces.append(planes)
            yield planes, piece

    monkeypatch.setattr(StreamedNetwork, "pieces", noted)
    counts = []
    for gib in (64.0, 0.036, 0.018):
        pieces.clear()
        monkeypatch.setattr(inferers, "window_bytes", lambda device, held, gib=gib: int(gib * 2**30))
        blend = {"trust": 0.6, "sigma": [2.0, 1.0, 0.5], "gain": 0.7}
        for more in (
            {},
            {"mirrors": True},
            {"smooth": 0.8},
            {"blend": blend, "detail": 0.2, "smooth": 1.3},
            {"blend": {**blend, "trust": [0.9, 0.6, 0.3, 0.1]}, "smooth": 0.8},
        ):
            whole = HaloWindowInferer(99, precision="fp32", **more)
            with torch.no_grad():
                apart = HaloWindowInferer(precision="fp32", **more)(x, net) - whole(x, net)
            # Bands are parted in float32.
            assert apart.abs().max() < (1e-12 if whole.bands is None else 1e-6)
        counts.append(len(pieces))
    assert counts[0] == 0 < counts[1] < counts[2]


@pytest.mark.parametrize("thickness", [1, 5, 64])
@pytest.mark.parametrize("lattice", [
    Lattice(blind_set=BlindSet("none")),
    Lattice((1, 3, 1), BlindSet("plane", "y")),
    Lattice((3, 1, 1), BlindSet("plane", "z")),
    Lattice((2, 2, 2), BlindSet("voxel")),
])  # fmt: skip
def test_a_streamed_network_gives_what_it_gives_at_once(lattice, thickness):
    """Any lattice, any thickness, any number of blocks, levels and items, with sides that are no whole periods."""
    for body in (
        ShuffleUNet(4, 1, (4, 6, 8)),
        ShuffleUNet(4, 2, (4, 6), blocks=2, factors=(2,)),
        ShuffleUNet(4, 1, (4, 6, 8), factors=((1, 2, 2), (3, 1, 2))),
    ):
        network = perturbed(BlindSpotNet(lattice, body, stem_channels=4).double())
        for shape in ((1, 1, 29, 13, 10), (2, 1, 12, 7, 9), (1, 1, 2, 5, 6)):
            x = torch.randn(shape, dtype=torch.float64)
            with torch.no_grad():
                apart = StreamedNetwork(network, thickness)(x) - network(x)
            assert apart.abs().max() < 1e-12


def test_a_streamed_network_looks_at_the_limit_before_each_convolution(net, monkeypatch):
    """So it is above what it plans with by what one layer takes at most; the result is the same."""
    seen: list[str] = []
    convolve, x = F.conv3d, torch.randn(1, 1, 24, 12, 12, dtype=torch.float64)

    def watched(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.extend(["layer"] if weight[0, 0].numel() > 1 else [])
        return convolve(x, weight, *args, **kwargs)

    with torch.no_grad():
        whole = net(x)
        monkeypatch.setattr(streaming, "trim_near_limit", lambda: seen.append("look"))
        monkeypatch.setattr(F, "conv3d", watched)
        assert torch.allclose(StreamedNetwork(net, 12)(x), whole, atol=1e-12)
    assert seen == ["look", "layer"] * (len(seen) // 2)
    assert len(seen) > 2 * 2 * len(net.body.encoder)


def test_only_what_needs_no_whole_window_is_streamed(net):
    """Attention that pools while training, and bodies that are not ours, want all of a window."""
    assert can_stream(net)
    for other in (copy.deepcopy(net).train(), _Identity(), BlindSpotNet(body=torch.nn.Conv3d(24, 1, 1)).eval()):
        assert not can_stream(other)
        with pytest.raises(ValueError, match="only a BlindSpotNet around a ShuffleUNet"):
            StreamedNetwork(other, 8)


def test_a_layer_that_forgets_its_planes_is_noticed(net, monkeypatch):
    """Negative control: pieces that each begin as at the border of the volume disagree with the whole."""
    x, push = torch.randn(1, 1, 16, 10, 8, dtype=torch.float64), streaming._Up.push

    def forgetful(self: Any, given: Tensor | None) -> Tensor | None:
        self._before = None
        return push(self, given)

    monkeypatch.setattr(streaming._Up, "push", forgetful)
    with torch.no_grad():
        assert (StreamedNetwork(net, 4)(x) - net(x)).abs().max() > 1e-3


@pytest.mark.parametrize("most", [10, 20_000, 400_000, 10**9])
@pytest.mark.parametrize("shape", [(33, 60, 47), (300, 256, 256), (5, 9, 8)])
def test_pieces_go_into_memory_and_take_the_least_work(shape, most):
    """What a piece has is no more than allowed, if anything can be; with more memory there is no more work."""
    halo, period, held = (17, 17, 17), (4, 4, 8), 4

    def read(window: Sequence[int]) -> list[int]:
        cuts = list(cut_windows((1, *shape[1:]), (1, *window[1:]), (0, *halo[1:]), (1, *period[1:])))
        return [int(np.prod([s.stop - s.start for s in cut.read])) for cut in cuts]

    window, thickness = choose_pieces(shape, halo, period, most, held)
    assert window[0] == shape[0]
    assert thickness % period[0] == 0
    areas = read(window)
    if max(areas) * (thickness + held) > most:
        assert (max(areas), thickness) == (max(read(period)), period[0])
    more, _ = choose_pieces(shape, halo, period, 2 * most, held)
    assert sum(read(more)) <= sum(areas) or max(areas) * (thickness + held) > most
    assert most < 10**9 or len(areas) == 1


def test_what_is_all_the_filters_does_not_ask_the_network():
    """Without trust in it a network is not run: the time it would take is saved."""
    x = torch.randn(1, 1, 8, 8, 8)
    blend = {"trust": 0.0, "sigma": [1.0, 2.0, 1.5], "gain": 0.5}
    seen: list[int] = []

    def network(given: Tensor) -> Tensor:
        seen.append(1)
        return given

    for trust, runs in ((0.0, 0), (0.5, 1)):
        seen.clear()
        smooth = 0.5 * gaussian(x[0, 0], (1.0, 2.0, 1.5))[None, None]
        result = HaloWindowInferer(halo=0, precision="fp32", blend={**blend, "trust": trust})(x, network)
        assert torch.allclose(result, trust * x + (1 - trust) * smooth, atol=1e-6)
        assert len(seen) == runs


def test_a_halo_that_is_too_short_is_noticed(net):
    """Negative control: without a halo windows disagree with the whole."""
    x = torch.randn(1, 1, 21, 35, 26, dtype=torch.float64)
    with torch.no_grad():
        assert (HaloWindowInferer((8, 8, 8), 0, precision="fp32")(x, net) - net(x)).abs().max() > 1e-5


def test_statistics_of_the_window_would_show_the_seams(net):
    """Negative control: attention that pools each window makes the result depend on the window."""
    x = torch.randn(1, 1, 20, 32, 24, dtype=torch.float64).cumsum(2)
    with torch.no_grad():
        net.train()
        try:
            cut = HaloWindowInferer((8, 8, 8), precision="fp32")(x, net)
            assert (cut - net(x)).abs().max() > 1e-5
        finally:
            net.eval()


def test_a_network_that_does_not_know_its_reach_needs_a_halo(net):
    """The inferer refuses to guess."""
    with pytest.raises(ValueError, match="set the halo"):
        HaloWindowInferer((8, 8, 8))(torch.zeros(1, 1, 8, 8, 8), _Identity())


def test_windows_that_ignore_the_region_do_touch_the_slab():
    """Negative control: windows drawn from the whole volume reach into the slab sooner or later."""
    slab, random = HeldOutSlab(0.2), np.random.RandomState(0)
    start = slab.scored((10, 40, 10)).keep[1].start
    assert any(draw_box((10, 40, 10), (8, 8, 8), random)[1].stop > start for _ in range(50))


class _Overlapping(_Identity):
    """Says a period of 1, although its windows are shifted by what they read."""

    period = (1, 1, 1)

    def forward(self, x):
        return x.roll(1, 4)


def test_merging_notices_a_network_that_moves_voxels():
    """Negative control: the comparison with the volume fails if anything is not in its place."""
    x = torch.randn(1, 1, 4, 4, 12)
    assert not torch.equal(x, HaloWindowInferer((4, 4, 4), 2, precision="fp32")(x, _Overlapping()))


@settings(max_examples=60, deadline=None)
@given(shape=st.tuples(*[st.integers(8, 60)] * 3), fraction=st.floats(0.02, 0.4), seed=st.integers(0, 99))
def test_no_window_touches_the_held_out_slab(shape, fraction, seed):
    """Windows of the fit end at least a gap before the slab that is scored."""
    slab = HeldOutSlab(fraction, gap=3)
    region = slab.fit_region(shape)
    sides = [s.stop - s.start for s in region]
    window = fit_window(min(5, *sides), sides, (1, 1, 1))
    box = draw_box(sides, window, np.random.RandomState(seed))
    scored = slab.scored(shape)
    axis = max((1, 2, 0), key=lambda a: shape[a])
    assert region[axis].start + box[axis].stop <= max(1, scored.keep[axis].start - 3)
    for read, keep, core, side in zip(scored.read, scored.keep, scored.core, shape, strict=True):
        assert 0 <= read.start <= keep.start < keep.stop <= read.stop <= side
        assert (core.start, core.stop) == (keep.start - read.start, keep.stop - read.start)


def test_windows_shrink_to_whole_periods_and_refuse_less():
    """48 asked of 36, 206, 94 with period 4, 12, 4 gives 36, 48, 48; a side below the period is refused."""
    assert fit_window(48, (36, 206, 94), (4, 12, 4)) == (36, 48, 48)
    assert fit_window(50, (38, 206, 94), (4, 12, 4)) == (36, 48, 48)
    with pytest.raises(ValueError, match="8 voxels along y, less than the lattice period of 12"):
        fit_window(48, (36, 8, 94), (4, 12, 4))
    with pytest.raises(ValueError, match="window is 6 along y"):
        fit_window(6, (36, 206, 94), (4, 12, 4))
