"""The risk of a fit on voxels that no step was trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import Tensor


class HeldOutRisk(Metric):
    """Mean squared difference between a blind prediction and the noisy voxels it did not see.

    Where noise is independent across the blind set this is the true error plus a constant (the noise power), so
    the smallest risk is the best network, without a ground truth.

    Args:
        output_transform: from the engine's output to ``(prediction, scored)`` or a list of such pairs; voxels that
            are NaN in ``scored`` do not count.
        device: where the sums are kept.

    Shape:
        both ``(B, C, Z, Y, X)`` or ``(C, Z, Y, X)``.

    Source:
        Batson & Royer 2019, "Noise2Self", proposition 1.
    """

    def __init__(
        self, output_transform: Callable[[Any], Any] = lambda x: x, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__(output_transform=output_transform, device=device)

    def reset(self) -> None:
        """Forget all sums."""
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0

    def update(self, output: Sequence[Any]) -> None:
        """Add predictions."""
        predictions, targets = output
        pairs = [(predictions, targets)] if isinstance(predictions, Tensor) else zip(predictions, targets, strict=True)
        for prediction, scored in pairs:
            valid = ~torch.isnan(scored)
            difference = prediction[valid].cpu().double() - scored[valid].cpu().double()
            self._sum += difference.square().sum()
            self._count += int(valid.sum())

    def compute(self) -> float:
        """The mean over all scored voxels."""
        if self._count == 0:
            raise NotComputableError("no voxel was scored: the held-out slab is empty")
        return float(self._sum / self._count)


def lower_is_better(current: float, best: float) -> bool:
    """Compare two values of a metric of which the smaller one wins, as MONAI's ``metric_cmp_fn``."""
    return current < best
