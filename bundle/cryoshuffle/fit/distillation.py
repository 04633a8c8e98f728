"""The teacher of the last stage: its result, averaged over draws of the noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cryoshuffle.noise.fields import draw_noise, lay_noise, noise_level


class Distillation:
    """Batches for the last stage: the tomogram itself, and what the teacher makes of it over several recorruptions.

    A network trained on recorrupted input is best averaged over draws of the noise, and over mirror images; one that
    has learnt the average needs a single pass, over the tomogram as it is. Used as ``prepare_batch`` of MONAI's
    engines.

    Args:
        teacher: the network of the second stage.
        spectrum: of the noise.
        inferer: that runs the teacher.
        strength: of the recorruption.
        draws: averaged.
        fixed: draw the same noise each time, for a score that can be compared.
        levels: make the noise as strong as the volume's is at each place.

    Shape:
        batch with ``image`` and ``label`` of ``(B, 1, Z, Y, X) -> (B, 1, Z, Y, X)`` twice; voxels that are NaN in
        ``label`` are NaN in the target.
    """

    def __init__(
        self,
        teacher: nn.Module,
        spectrum: Tensor,
        inferer: Callable[..., Tensor],
        strength: float = 1.0,
        draws: int = 2,
        fixed: bool = False,
        levels: bool = False,
    ) -> None:
        self.teacher = teacher.eval()
        self.spectrum, self.inferer, self.strength = spectrum, inferer, strength
        self.draws, self.fixed, self.levels = draws, fixed, levels
        self._known: dict[tuple[float, ...], Tensor] = {}

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor]:
        """Make the pair."""
        image, label = (
            torch.as_tensor(batch[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking)
            for key in ("image", "label")
        )
        if not self.fixed:
            return image, self._target(image, label, int(torch.randint(2**31, (1,))))
        # What is drawn is always the same, so it is worth keeping.
        key = (*image.shape, float(image.cpu().double().sum()), float(image.flatten()[0]))
        if key not in self._known:
            self._known[key] = self._target(image, label, 0)
        return image, self._known[key]

    def _target(self, image: Tensor, label: Tensor, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        target = torch.zeros_like(image)
        level: Tensor | float = 1.0
        if self.levels:
            level = torch.stack([noise_level(one[0].cpu(), self.spectrum)[None] for one in image]).to(image.device)
        for _ in range(self.draws):
            noise = level * lay_noise(draw_noise(self.spectrum, random), image.shape[2:]).to(image.device)
            mirrored = [2 + axis for axis in range(3) if int(torch.randint(2, (1,), generator=random))]
            with torch.no_grad():
                one = self.inferer((image + self.strength * noise).flip(mirrored), self.teacher)
            target += one.flip(mirrored) / self.draws
        return torch.where(torch.isnan(label), label, target)
