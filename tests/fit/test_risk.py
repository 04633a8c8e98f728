"""The held-out risk."""

from __future__ import annotations

import pytest
import torch
from ignite.exceptions import NotComputableError

from cryoshuffle.fit.risk import HeldOutRisk, lower_is_better


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
