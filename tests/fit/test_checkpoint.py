"""Which model of a fit is kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cryoshuffle.fit.checkpoint import FitCheckpoint

# What an epoch adds to the risk of each of 64 parts by chance: its sum scatters by 8.
CHANCE = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


def kept_epochs(sums: Sequence[float], scatter: float = 1.0, told: bool = True) -> list[int]:
    """The epochs, from 0 on, that are kept one after the other, of risks whose parts have such sums."""
    checkpoint = FitCheckpoint.__new__(FitCheckpoint)
    checkpoint.risks, checkpoint._best = [], None
    kept = []
    for epoch, (total, chance) in enumerate(zip(sums, CHANCE, strict=False)):
        parts = 100 + scatter * (chance - chance.mean()) + (total - 6400) / 64
        checkpoint.risks.append(float(parts.sum()))
        if checkpoint._is_kept(parts if told else None):
            kept.append(epoch)
    return kept


def test_of_epochs_that_are_equal_but_for_chance_the_last_is_kept():
    """Two standard errors of the difference, about 23; without the parts nothing counts as chance (control)."""
    assert kept_epochs([7000, 6400, 6410, 6405]) == [0, 1, 2, 3]
    assert kept_epochs([7000, 6400, 6410, 6405], told=False) == [0, 1]
    assert kept_epochs([7000, 6400, 6500, 6450]) == [0, 1]
    assert kept_epochs([7000, 6400, 6500, 6399]) == [0, 1, 3]


def test_parts_of_a_slab_of_another_size_are_not_compared():
    """As a state of other settings has them: what is no smallest risk is not kept; the next smallest is (control)."""
    checkpoint = FitCheckpoint.__new__(FitCheckpoint)
    checkpoint.risks, checkpoint._best = [1.0, 1.01], torch.ones(7)
    assert not checkpoint._is_kept(torch.ones(8))
    checkpoint.risks.append(0.9)
    assert checkpoint._is_kept(torch.ones(8))


def test_epochs_that_scatter_less_are_told_apart_sooner():
    """The same risks, of parts that all say the same."""
    assert kept_epochs([7000, 6400, 6410, 6405], scatter=0.01) == [0, 1]


def test_what_grows_a_little_at_each_epoch_is_not_followed():
    """Each is as good as the one before it, but for chance; the last are worse than the best."""
    kept = kept_epochs([6400 + 10 * epoch for epoch in range(10)])
    assert kept[0] == 0
    assert max(kept) in {1, 2, 3}
