"""The held-out risk."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError

from cryoshuffle.fit.risk import HeldOutRisk, is_as_good, lower_is_better


def test_blind_risk_counts_scored_voxels_only():
    """NaN is left out; batches of any size add up; nothing scored is an error."""
    risk = HeldOutRisk()
    risk.reset()
    with pytest.raises(NotComputableError):
        risk.compute()
    scored = torch.full((1, 2, 2, 2), float("nan"))
    scored[0, 0, 0, 0] = 1.0
    risk.update((torch.full((1, 2, 2, 2), 3.0), scored))
    risk.update(([torch.full((1, 1, 1, 1), 1.0)] * 3, [torch.full((1, 1, 1, 1), 1.0)] * 3))
    assert risk.compute() == 1.0
    assert lower_is_better(0.5, 0.6)
    assert not lower_is_better(0.6, 0.5)


SLAB = (1, 1, 24, 96, 96)


def risk_parts(error: float, seed: int = 1) -> torch.Tensor:
    """The risk of a prediction that is wrong by so much, in noise of deviation 1, in parts."""
    noise = torch.randn(SLAB, generator=torch.Generator().manual_seed(0))
    wrong = error * torch.randn(SLAB, generator=torch.Generator().manual_seed(seed))
    engine = Engine(lambda engine, batch: batch)
    risk = HeldOutRisk()
    risk.attach(engine, "risk")
    engine.run([(wrong, noise)])
    parts = engine.state.risk_parts
    assert float(parts.sum()) == pytest.approx(engine.state.metrics["risk"] * noise.numel())
    assert len(parts) == 2 * 6 * 6
    return parts


@pytest.mark.parametrize(("error", "best", "kept"), [
    (0.10, 0.10, True), (0.08, 0.10, True), (0.102, 0.10, True), (0.20, 0.10, False), (0.40, 0.10, False),
])  # fmt: skip
def test_of_models_that_are_equal_but_for_chance_the_later_is_kept(error, best, kept):
    """Errors of .100 and .102 cannot be told apart by the noise of this slab, those of .10 and .20 can (control)."""
    assert is_as_good(risk_parts(error), risk_parts(best, seed=2)) is kept


def test_chance_is_told_rightly():
    """Of 100 models as good as the best at most 10 are taken for worse, and at least 90 of 100 that are worse."""
    pairs = [(seed, 1000 + seed) for seed in range(100)]
    for error, kept in ((0.1, True), (0.2, False)):
        right = sum(is_as_good(risk_parts(error, one), risk_parts(0.1, other)) is kept for one, other in pairs)
        assert right >= 90, error
