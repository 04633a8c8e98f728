"""Network against filter: how sure a weight is said to be, with controls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryoshuffle.boxes import block_sums
from cryoshuffle.fit import comparison
from cryoshuffle.noise.linear_filter import bands, gaussian

SIDE, MARGIN, SEEDS = 76, 6, 24


def _field(power: Tensor, random: torch.Generator) -> Tensor:
    return torch.fft.ifftn(torch.fft.fftn(torch.randn(SIDE, SIDE, SIDE, generator=random)) * power.sqrt()).real


def _surprise(monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, ...]) -> Tensor:
    """Weight over its error by band, root mean square over fields that have nothing in common; 1 if the error is so."""
    monkeypatch.setattr(comparison, "_BLOCKS", blocks)
    line = torch.fft.fftfreq(SIDE)
    radius = (line[:, None, None].square() + line.square()).sqrt().expand(SIDE, SIDE, SIDE)
    core, rows = (slice(MARGIN, -MARGIN),) * 3, []
    for seed in range(SEEDS):
        random = torch.Generator().manual_seed(seed)
        apart = gaussian(torch.randn(SIDE, SIDE, SIDE, generator=random), 2.0)
        row = []
        for one, other in zip(bands(apart), bands(_field(radius + 0.003, random)), strict=True):
            sums = comparison._Comparison()
            sums.add([one[core]], [other[core]])
            weight = sums.weight()
            row.append(weight.value / weight.error)
        rows.append(row)
    return torch.tensor(rows).square().mean(dim=0).sqrt()


def test_a_weight_is_as_sure_as_it_is_said_to_be(monkeypatch):
    """In each band, of noise as reconstructions have it; by blocks of 4 the coarsest would seem twice as sure."""
    usual = _surprise(monkeypatch, comparison._BLOCKS)
    assert bool(((usual > 0.6) & (usual < 1.5)).all()), usual
    small = _surprise(monkeypatch, (4,))
    assert float(small[-1]) > 1.7, small


def test_sums_over_blocks_are_those_of_their_voxels():
    """Of any number of axes before the last three; the last block along an axis is smaller."""
    values = torch.arange(2 * 3 * 5 * 4, dtype=torch.float64).reshape(2, 3, 5, 4)
    sums = block_sums(values, 4)
    assert sums.tolist() == [float(part.sum()) for image in values for part in (image[:, :4], image[:, 4:])]
    assert torch.equal(block_sums(values[None], 4), sums)
    assert torch.equal(block_sums(values[1], 4), sums[2:])


def test_blocks_are_many_and_lose_no_voxel():
    """As large as leaves enough of them; what is left at an end counts."""
    for shape, count in (((64, 64, 64), 64), ((66, 64, 64), 80), ((33, 40, 40), 5**3), ((9, 8, 8), 12)):
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0)).double()
        sums = comparison._block_sums(values)
        assert len(sums) == count
        assert float(sums.sum()) == pytest.approx(float(values.sum()))
