"""Splitting and shuffling move every voxel to one known place, against index-loop oracles."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryoshuffle.errors import SettingError
from cryoshuffle.lattice import (
    SHAPES,
    BlindSet,
    Lattice,
    as_triple,
    merge_sublattices,
    split_sublattices,
    volume_shuffle,
    volume_unshuffle,
)
from cryoshuffle.network import ShuffleUNet

strides = st.tuples(*[st.integers(1, 4)] * 3)
factors = st.tuples(*[st.integers(1, 3)] * 3)
sides = st.tuples(*[st.sampled_from([1, 2, 3, 5])] * 3)


def tracer(batch: int, channels: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(batch * channels * int(np.prod(shape))).reshape(batch, channels, *shape)


@settings(max_examples=40, deadline=None)
@given(stride=strides, side=sides, batch=st.integers(1, 2), channels=st.integers(1, 3))
def test_split_puts_each_residue_into_its_own_item(stride, side, batch, channels):
    """Item b * n + r holds exactly the voxels of residue r of volume b, in order; merging brings them back."""
    shape = tuple(d * s for d, s in zip(stride, side, strict=True))
    x = tracer(batch, channels, shape)
    parts = split_sublattices(x, stride)
    oracle = torch.empty((batch * int(np.prod(stride)), channels, *side), dtype=x.dtype)
    for b in range(batch):
        for r, residue in enumerate(product(*map(range, stride))):
            for index in product(*map(range, side)):
                z, y, w = (i * d + o for i, d, o in zip(index, stride, residue, strict=True))
                oracle[(b * int(np.prod(stride)) + r, slice(None), *index)] = x[b, :, z, y, w]
    assert torch.equal(parts, oracle)
    assert torch.equal(merge_sublattices(parts, stride), x)


@settings(max_examples=40, deadline=None)
@given(stride=strides, factor=factors, side=sides, channels=st.integers(1, 2))
def test_unshuffle_takes_neighbours_of_one_residue_and_shuffle_brings_them_back(stride, factor, side, channels):
    """Channel k * C + c at sub-lattice place i of residue r is channel c at place i * f + k of residue r."""
    shape = tuple(d * f * s for d, f, s in zip(stride, factor, side, strict=True))
    x = tracer(1, channels, shape)
    y = volume_unshuffle(x, factor, stride)
    oracle = torch.empty_like(y)
    for residue in product(*map(range, stride)):
        for place in product(*map(range, side)):
            for k, step in enumerate(product(*map(range, factor))):
                coarse = tuple(i * d + r for i, d, r in zip(place, stride, residue, strict=True))
                z, v, w = (
                    (i * f + s) * d + r for i, f, s, d, r in zip(place, factor, step, stride, residue, strict=True)
                )
                oracle[(0, slice(k * channels, (k + 1) * channels), *coarse)] = x[0, :, z, v, w]
    assert torch.equal(y, oracle)
    assert torch.equal(volume_shuffle(y, factor, stride), x)


def test_plain_unshuffle_mixes_residues():
    """Negative control: without the stride, an unshuffle puts voxels of different residues into one voxel."""
    x = (torch.arange(8) % 2).reshape(1, 1, 1, 8, 1).expand(1, 1, 8, 8, 8)
    assert volume_unshuffle(x, (1, 2, 1)).unique(dim=1).shape[1] == 2
    kept = volume_unshuffle(x, (1, 2, 1), stride=(1, 2, 1))
    assert torch.equal(kept[:, :1].expand_as(kept), kept)


def blind_sets() -> st.SearchStrategy[BlindSet]:
    three = st.tuples(*[st.integers(0, 2)] * 3)
    return st.one_of(
        st.just(BlindSet("voxel")),
        st.builds(lambda axis, radius: BlindSet("plane", axis, radius), st.sampled_from("zyx"), st.integers(0, 2)),
        st.builds(lambda radius: BlindSet("cross", radius=radius), three),
        st.builds(lambda radius: BlindSet("box", radius=radius), three),
    )


@settings(max_examples=60, deadline=None)
@given(blind_set=blind_sets(), stride=strides)
def test_no_tap_of_the_stem_has_a_residue_of_the_blind_set(blind_set, stride):
    """A tap lives if and only if no offset of the blind set has its residue; else the pair is refused."""
    reach = range(-12, 13)
    hidden = {
        tuple(o % d for o, d in zip(offset, stride, strict=True))
        for offset in product(reach, repeat=3)
        if blind_set.contains(offset)
    }
    if len(hidden) == int(np.prod(stride)):
        with pytest.raises(ValueError, match="use stride"):
            Lattice(stride, blind_set)
        return
    lattice = Lattice(stride, blind_set)
    taps = lattice.taps()
    for index in np.ndindex(taps.shape):
        offset = [i - k // 2 for i, k in zip(index, taps.shape, strict=True)]
        assert taps[index] == (tuple(o % d for o, d in zip(offset, stride, strict=True)) not in hidden)
    assert taps.any()


@settings(max_examples=60, deadline=None)
@given(blind_set=blind_sets())
def test_the_default_stride_always_works(blind_set):
    """The stride that a refusal recommends leaves a lattice with live taps."""
    assert Lattice(blind_set.default_stride(), blind_set).taps().any()


@pytest.mark.parametrize("shape", SHAPES)
def test_mask_agrees_with_contains(shape):
    """The mask of a volume is the blind set moved to the voxel."""
    blind_set = BlindSet(shape, axis="x", radius=0 if shape in ("voxel", "none") else 1)
    mask = blind_set.mask((4, 5, 6), (1, 4, 0))
    for index in np.ndindex(mask.shape):
        assert mask[index] == blind_set.contains([i - v for i, v in zip(index, (1, 4, 0), strict=True)])
    assert mask[1, 4, 0] == (shape != "none")


def test_lattice_messages_quote_the_value():
    """Sizes that do not divide, triples that are none, names that do not exist."""
    x = torch.zeros(1, 2, 4, 5, 6)
    with pytest.raises(ValueError, match=r"\(4, 5, 6\) is not a multiple of the lattice stride \(1, 3, 1\)"):
        split_sublattices(x, (1, 3, 1))
    with pytest.raises(ValueError, match="batch of 1 is not a multiple of the 3"):
        merge_sublattices(x, (1, 3, 1))
    with pytest.raises(ValueError, match=r"stride \(1, 1, 1\) times factor \(1, 2, 1\)"):
        volume_unshuffle(x, (1, 2, 1))
    with pytest.raises(ValueError, match="2 channels"):
        volume_shuffle(x, (1, 3, 1))
    with pytest.raises(ValueError, match="three whole numbers"):
        as_triple([1, 2], "window")
    for wrong in (
        {"shape": "ball"},
        {"axis": "w"},
        {"shape": "voxel", "radius": 1},
        {"radius": (0, 1, 0)},
        {"radius": -1},
    ):
        with pytest.raises(SettingError):
            BlindSet(**wrong)
    with pytest.raises(SettingError, match="3 levels need 2"):
        ShuffleUNet(channels=(4, 4, 4), factors=(2,))
