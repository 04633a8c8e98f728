"""Linear filters that hide what the network hides, so that both can be judged by one blind risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import SettingError
from cryoshuffle.lattice import BlindSet

WIDTHS = (0.7, 1.0, 1.4, 1.7, 2.0, 2.4, 2.8, 3.4, 4.0)
TOLERANCE = 0.2


def _line(sigma: float, reach: int | None = None) -> Tensor:
    """A Gaussian along a line; beyond ``reach`` voxels it is cut off, without being scaled up."""
    side = max(1, round(3 * sigma))
    offsets = torch.arange(-side, side + 1, dtype=torch.float32)
    weights = torch.exp(-offsets.square() / (2 * sigma**2))
    weights = weights / weights.sum()
    return weights if reach is None else weights * (offsets.abs() <= reach)


def _convolve(volume: Tensor, lines: Sequence[Tensor]) -> Tensor:
    volume = volume[None, None]
    for axis, line in enumerate(lines):
        shape, padding = [1, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = len(line), len(line) // 2
        volume = F.conv3d(volume, line.to(volume).reshape(shape), padding=padding)
    return volume[0, 0]


def gaussian(volume: Tensor, sigma: float) -> Tensor:
    """A volume smoothed by a Gaussian; beyond its borders it is 0.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        sigma: width, voxels.

    Raises:
        SettingError: if sigma is not positive.
    """
    if not sigma > 0:
        raise SettingError(f"width of the Gaussian is {sigma}: give more than 0")
    return _convolve(volume, [_line(sigma)] * 3)


def masked_gaussian(volume: Tensor, sigma: float, blind_set: BlindSet) -> Tensor:
    """A Gaussian with the taps of the blind set taken out, and scaled so that the rest sum to 1.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        sigma: width, voxels.
        blind_set: offsets that get no weight.

    Invariant:
        The result at v depends on no voxel v + b, b in the blind set.

    Raises:
        SettingError: if sigma is not positive, or so small that nothing is left beside the blind set.
    """
    whole = gaussian(volume, sigma)
    if blind_set.shape == "none":
        return whole
    reaches = blind_set.half_widths
    if blind_set.shape == "cross":
        centre = [_line(sigma, 0)] * 3
        arms = [[_line(sigma, r if a == b else 0) for b in range(3)] for a, r in enumerate(reaches)]
        parts, signs = [*arms, centre], [1.0, 1.0, 1.0, -2.0]
    else:
        parts, signs = [[_line(sigma, r) for r in reaches]], [1.0]
    hidden = torch.stack([s * _convolve(volume, lines) for s, lines in zip(signs, parts, strict=True)]).sum(dim=0)
    weight = sum(s * float(a.sum() * b.sum() * c.sum()) for s, (a, b, c) in zip(signs, parts, strict=True))
    if weight > 1 - 1e-3:
        raise SettingError(f"a Gaussian of width {sigma} sees nothing beside the blind set, use a wider one")
    return (whole - hidden) / (1 - weight)


@dataclass(frozen=True)
class FilterChoice:
    """The best of a family of blind linear filters.

    Attributes:
        sigma: width of the Gaussian, voxels.
        gain: it is multiplied by.
        risk: blind risk of the masked filter, mean squared difference to the voxels it does not see.
    """

    sigma: float
    gain: float
    risk: float


def choose_filter(volume: Tensor, blind_set: BlindSet, widths: Sequence[float] = WIDTHS) -> FilterChoice:
    """The widest Gaussian that explains next to as much as the best one, each with the gain that suits it best.

    What is explained is judged by blind risk. That favours narrow filters twice: a filter without its middle makes up
    for it by being narrow, and noise that the blind set does not quite hide is near. So of those within
    :data:`TOLERANCE` of the best the widest is taken.

    Args:
        volume: standardised, ``(Z, Y, X)``.
        blind_set: offsets without weight; the noise must be independent across it.
        widths: to choose from, voxels.

    Raises:
        SettingError: if no width leaves anything to see beside the blind set.
    """
    power = float(volume.double().square().mean())
    found: list[FilterChoice] = []
    for sigma in sorted(widths):
        try:
            smooth = masked_gaussian(volume, sigma, blind_set).double()
        except SettingError:
            continue
        own = float(smooth.square().mean())
        gain = min(1.0, max(0.0, float((smooth * volume.double()).mean()) / own)) if own > 0 else 0.0
        found.append(FilterChoice(sigma, gain, float((gain * smooth - volume.double()).square().mean())))
    if not found:
        raise SettingError(f"no Gaussian of width {', '.join(map(str, widths))} sees beyond the blind set")
    best = min(choice.risk for choice in found)
    return [choice for choice in found if power - choice.risk >= (1 - TOLERANCE) * (power - best)][-1]
