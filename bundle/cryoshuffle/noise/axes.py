"""Lines of values: laid along an axis of a volume, falling to its borders, or read between their places."""

from __future__ import annotations

import torch
from torch import Tensor


def line_along(line: Tensor, axis: int) -> Tensor:
    """A line as a volume one voxel wide, to be multiplied with others.

    Args:
        line: ``(n,)``.
        axis: number of the axis it lies along, 0 to 2.

    Shape:
        ``(n, 1, 1)``, ``(1, n, 1)`` or ``(1, 1, n)``.

    Example:
        >>> line_along(torch.ones(4), 1).shape
        torch.Size([1, 4, 1])
    """
    return line.reshape([-1 if a == axis else 1 for a in range(3)])


def tapered(volume: Tensor) -> tuple[Tensor, list[Tensor]]:
    """A volume less its mean that falls to next to nothing at its borders, and the tapers along its axes.

    Args:
        volume: ``(Z, Y, X)``.

    Shape:
        ``(Z, Y, X)``, and ``(Z,)``, ``(Y,)``, ``(X,)``, all float64.
    """
    values = volume.double()
    values = values - values.mean()
    tapers = [torch.hann_window(n, periodic=False, dtype=torch.float64) + 1e-3 for n in values.shape]
    for axis, taper in enumerate(tapers):
        values = values * line_along(taper, axis)
    return values, tapers


def interpolated(line: Tensor, places: Tensor) -> Tensor:
    """Values of a line at places between its own, linearly; beyond its ends those of the ends.

    Args:
        line: ``(n,)``, n at least 2.
        places: in steps of the line, from 0 to n - 1, of any shape.

    Shape:
        that of ``places``.

    Example:
        >>> interpolated(torch.tensor([0.0, 10.0, 30.0]), torch.tensor([-1.0, 0.5, 1.25])).tolist()
        [0.0, 5.0, 15.0]
    """
    places = places.clamp(0, len(line) - 1.001)
    lower = places.long()
    return line[lower] * (1 - places + lower) + line[lower + 1] * (places - lower)


def between(one: Tensor, other: Tensor, degrees: float | Tensor) -> tuple[Tensor, Tensor]:
    """Places along a direction that lies between two axes, and along the one across it.

    Args:
        one: places along an axis.
        other: along another.
        degrees: from the first axis to the direction.

    Shape:
        that of the three together.

    Example:
        >>> along, across = between(torch.tensor(3.0), torch.tensor(4.0), 90.0)
        >>> round(float(along)), round(float(across))
        (4, -3)
    """
    radians = torch.deg2rad(torch.as_tensor(degrees, dtype=one.dtype))
    cosine, sine = radians.cos(), radians.sin()
    return one * cosine + other * sine, other * cosine - one * sine
