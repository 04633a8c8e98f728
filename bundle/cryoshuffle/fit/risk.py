"""The risk of a fit on voxels that no step was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import Tensor

from cryoshuffle.boxes import block_sums

# Side of the parts of a slab whose risks are independent, as noise reaches no farther; voxels.
_PART = 16


class HeldOutRisk(Metric):
    """Mean squared difference between a blind prediction and the noisy voxels it did not see.

    Where noise is independent across the blind set this is the true error plus a constant (the noise power), so
    the smallest risk is the best network, without a ground truth.

    The state of the engine gets ``risk_parts`` as well, the sums over blocks of 16 voxels a side, for
    :func:`is_as_good`.

    Args:
        output_transform: from the engine's output to ``(prediction, scored)`` or a list of such pairs; voxels that
            are NaN in ``scored`` do not count.
        device: where the sums are kept.

    Shape:
        both ``(B, C, Z, Y, X)`` or ``(C, Z, Y, X)``.

    Source:
        Batson & Royer 2019, "Noise2Self", proposition 1.
    """

    def reset(self) -> None:
        """Forget all sums."""
        self._count = 0
        self._parts: list[Tensor] = []

    def update(self, output: Sequence[Any]) -> None:
        """Add predictions."""
        predictions, targets = output
        pairs = [(predictions, targets)] if isinstance(predictions, Tensor) else zip(predictions, targets, strict=True)
        for prediction, scored in pairs:
            valid = ~torch.isnan(scored)
            self._count += int(valid.sum())
            difference = prediction.cpu().double() - scored.cpu().double()
            self._parts.append(block_sums(torch.where(valid.cpu(), difference, 0).square(), _PART))

    def compute(self) -> float:
        """The mean over all scored voxels."""
        if self._count == 0:
            raise NotComputableError("no voxel was scored: the held-out slab is empty")
        return float(torch.cat(self._parts).sum() / self._count)

    def completed(self, engine: Engine, name: str) -> None:
        """Give the engine the risk, and the parts that it is the mean of."""
        super().completed(engine, name)
        engine.state.risk_parts = torch.cat(self._parts)  # type: ignore[attr-defined]


def is_as_good(parts: Tensor, best: Tensor) -> bool:
    """Whether a risk is as small as another on the same voxels, but for chance: two standard errors of the difference.

    Args:
        parts: of the one, as of :class:`HeldOutRisk`.
        best: of the other.

    Shape:
        both ``(blocks,)``.
    """
    difference = parts - best
    return float(difference.sum()) <= 2 * float(difference.square().sum().sqrt())


def lower_is_better(current: float, best: float) -> bool:
    """Compare two values of a metric of which the smaller one wins, as MONAI's ``metric_cmp_fn``."""
    return current < best
