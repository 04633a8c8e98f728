"""The lattice: which voxels a prediction may see, and how the grid falls apart into sub-lattices.

A voxel's *residue* is its index modulo the lattice stride; all voxels of one residue form a *sub-lattice*.
One rule carries the method: the stem is the only layer that mixes sub-lattices, its taps live only where the
residue of the offset is not a residue of the blind set, and after the stem the sub-lattices never meet again.
Then the output at ``v`` depends on no voxel ``v + b`` with ``b`` in the blind set.

Axes are always ``B C Z Y X``; a triple is always along ``(Z, Y, X)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoshuffle.errors import SettingError

AXES = ("z", "y", "x")
SHAPES = ("voxel", "plane", "cross", "box", "none")
Triple = tuple[int, int, int]


def as_triple(value: int | Sequence[int], name: str, smallest: int = 0) -> Triple:
    """Three whole numbers along (Z, Y, X).

    Args:
        value: one number for all axes, or three.
        name: what the value is called in the message.
        smallest: the least value allowed.

    Raises:
        SettingError: if there are not three whole numbers of at least ``smallest``.
    """
    values = [value] * 3 if isinstance(value, (int, np.integer)) else list(value)
    if len(values) != 3 or any(int(v) != v or v < smallest for v in values):
        raise SettingError(f"{name} is {value}: give three whole numbers of at least {smallest} along z, y, x")
    return int(values[0]), int(values[1]), int(values[2])


@dataclass(frozen=True)
class BlindSet:
    """The offsets a prediction must not see; offset 0 is among them, except for ``none``.

    ==========  ==================================================================
    ``voxel``   the voxel itself (the paper)
    ``plane``   the plane across ``axis`` and ``radius`` more planes on either side
    ``cross``   ``radius`` voxels along each axis
    ``box``     all voxels within ``radius`` along every axis
    ``none``    nothing is hidden: for a network whose target has noise of its own (recorruption, halves)
    ==========  ==================================================================

    Args:
        shape: one of those above.
        axis: normal of the plane, ``z``, ``y`` or ``x``; the tilt axis of the tomogram. Other shapes ignore it.
        radius: half-width, voxels; for ``cross`` and ``box`` also three numbers along (Z, Y, X).

    Raises:
        SettingError: for an unknown shape or axis, or a radius that does not fit the shape.

    Source:
        J-invariance: Batson & Royer 2019, "Noise2Self", definition 1.

    Example:
        >>> plane = BlindSet("plane", axis="y", radius=0)
        >>> plane.contains((5, 0, -3)), plane.contains((0, 1, 0))
        (True, False)
    """

    shape: str = "plane"
    axis: str = "y"
    radius: int | Sequence[int] = 0

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise SettingError(f"blind set shape is '{self.shape}': choose one of {', '.join(SHAPES)}")
        if self.axis not in AXES:
            raise SettingError(f"tilt axis is '{self.axis}': choose one of {', '.join(AXES)}")
        radius = as_triple(self.radius, "blind set radius")
        if self.shape == "voxel" and radius != (0, 0, 0):
            raise SettingError(f"blind set radius is {self.radius}: a blind voxel has none, choose box or cross")
        if self.shape == "none" and radius != (0, 0, 0):
            raise SettingError(f"blind set radius is {self.radius}: where nothing is hidden there is none")
        if self.shape == "plane" and len(set(radius)) > 1:
            raise SettingError(f"blind set radius is {self.radius}: a blind plane has one half-width, along its normal")
        object.__setattr__(self, "radius", radius)

    @property
    def hides_nothing(self) -> bool:
        """Whether a prediction sees all there is."""
        return self.shape == "none"

    @property
    def tilt_axis(self) -> int | None:
        """Axis of (Z, Y, X) that a blind plane lies across; None for other shapes."""
        return AXES.index(self.axis) if self.shape == "plane" else None

    @property
    def half_widths(self) -> tuple[int | None, int | None, int | None]:
        """Half-width along (Z, Y, X), voxels; None where the blind set goes on for ever."""
        if self.shape == "plane":
            normal = AXES.index(self.axis)
            z, y, x = (self._radius[a] if a == normal else None for a in range(3))
            return z, y, x
        return self._radius

    @property
    def _radius(self) -> Triple:
        return as_triple(self.radius, "blind set radius")

    @property
    def half_width(self) -> int:
        """The largest half-width, voxels."""
        return max(self._radius)

    def contains(self, offset: Sequence[int]) -> bool:
        """Whether a prediction at ``v`` must not see ``v + offset``.

        Args:
            offset: along (Z, Y, X), voxels.
        """
        if self.hides_nothing:
            return False
        inside = all(r is None or abs(o) <= r for o, r in zip(offset, self.half_widths, strict=True))
        return inside and (self.shape != "cross" or sum(o != 0 for o in offset) <= 1)

    def mask(self, shape: Sequence[int], voxel: Sequence[int]) -> np.ndarray:
        """The voxels of a volume that the prediction at ``voxel`` must not see.

        Args:
            shape: of the volume, (Z, Y, X).
            voxel: index of the prediction, (Z, Y, X).

        Returns:
            Boolean array of ``shape``.
        """
        if self.shape == "none":
            return np.zeros(tuple(shape), dtype=bool)
        offsets = np.indices(tuple(shape)) - np.reshape(np.asarray(voxel), (3, 1, 1, 1))
        hidden = np.ones(tuple(shape), dtype=bool)
        for offset, half_width in zip(offsets, self.half_widths, strict=True):
            if half_width is not None:
                hidden &= np.abs(offset) <= half_width
        if self.shape == "cross":
            hidden &= (offsets != 0).sum(axis=0) <= 1
        return hidden

    def residues(self, stride: Triple) -> set[Triple]:
        """Residues of all offsets in the blind set, for a lattice stride along (Z, Y, X)."""
        reach = (range(s) if r is None else range(-r, r + 1) for s, r in zip(stride, self.half_widths, strict=True))
        return {
            (z % stride[0], y % stride[1], x % stride[2]) for z, y, x in product(*reach) if self.contains((z, y, x))
        }

    def default_stride(self) -> Triple:
        """The lattice stride taken when none is given; it always leaves taps alive.

        None: 1. Voxel and cross: 2 on every axis. Plane: ``max(3, 2 * radius + 2)`` along the normal, 1 across.
        Box: ``2 * radius + 2``, so that a visible voxel lies on every side.
        """
        if self.shape == "none":
            return 1, 1, 1
        if self.shape in ("voxel", "cross"):
            return 2, 2, 2
        if self.shape == "plane":
            z, y, x = (1 if r is None else max(3, 2 * r + 2) for r in self.half_widths)
            return z, y, x
        z, y, x = (2 * r + 2 for r in self._radius)
        return z, y, x


@dataclass(frozen=True)
class Lattice:
    """A lattice stride and a blind set that leave the stem something to see.

    Args:
        stride: lattice stride along (Z, Y, X), voxels; None for the blind set's default.
        blind_set: offsets a prediction must not see.

    Raises:
        SettingError: if the residues of the blind set are all residues, so that no tap of the stem is left;
            the message names a stride that works.

    Example:
        The stem of a blind plane across y with stride 3, seen along z: ``#`` is hidden, ``o`` is a live tap.

        >>> taps = Lattice((1, 3, 1), BlindSet("plane", "y")).taps()
        >>> for row in taps[1].tolist():
        ...     print("".join("o" if tap else "#" for tap in row))
        ooo
        ooo
        ###
        ooo
        ooo
    """

    stride: int | Sequence[int] | None = None
    blind_set: BlindSet = BlindSet()

    def __post_init__(self) -> None:
        stride = self.blind_set.default_stride() if self.stride is None else self.stride
        stride = as_triple(stride, "lattice stride", smallest=1)
        object.__setattr__(self, "stride", stride)
        if len(self.blind_set.residues(stride)) == self.size:
            works = self.blind_set.default_stride()
            raise SettingError(
                f"lattice stride {stride} leaves nothing to see beside the blind set "
                f"{self.describe()}: every voxel would be hidden, use stride {works}"
            )

    @property
    def stride_zyx(self) -> Triple:
        """The lattice stride along (Z, Y, X), voxels."""
        return as_triple(self.stride or 1, "lattice stride", smallest=1)

    @property
    def size(self) -> int:
        """Number of sub-lattices."""
        return int(np.prod(self.stride_zyx))

    @property
    def kernel_size(self) -> Triple:
        """Kernel of the stem: ``2 d - 1`` along an axis of stride d, and 3 where d is 1."""
        z, y, x = (3 if d == 1 else 2 * d - 1 for d in self.stride_zyx)
        return z, y, x

    def taps(self) -> np.ndarray:
        """The live taps of the stem.

        Returns:
            Boolean array of ``kernel_size``; a tap lives if its residue is not a residue of the blind set.
        """
        stride, hidden = self.stride_zyx, self.blind_set.residues(self.stride_zyx)
        taps = np.zeros(self.kernel_size, dtype=bool)
        for index in np.ndindex(taps.shape):
            offset = tuple(i - k // 2 for i, k in zip(index, taps.shape, strict=True))
            taps[index] = tuple(o % d for o, d in zip(offset, stride, strict=True)) not in hidden
        return taps

    def config(self) -> dict[str, Any]:
        """A MONAI component config that builds the same lattice."""
        return {
            "_target_": "cryoshuffle.lattice.Lattice",
            "stride": list(self.stride_zyx),
            "blind_set": {
                "_target_": "cryoshuffle.lattice.BlindSet",
                "shape": self.blind_set.shape,
                "axis": self.blind_set.axis,
                "radius": list(self.blind_set._radius),
            },
        }

    def describe(self) -> str:
        """The blind set in words, for logs and messages."""
        shape, radius = self.blind_set.shape, self.blind_set.radius
        if shape in ("voxel", "none"):
            return shape if shape == "voxel" else "nothing"
        if shape == "plane":
            return f"plane across {self.blind_set.axis}, half-width {self.blind_set._radius[0]}"
        return f"{shape}, half-widths {radius}"


def padding_to_multiple(size: int, multiple: int) -> int:
    """How many voxels must be added to ``size`` to reach the next multiple."""
    return (multiple - size % multiple) % multiple


def split_sublattices(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """The sub-lattices of ``x`` as items of the batch.

    Args:
        x: features on the full grid.
        stride: lattice stride along (Z, Y, X), voxels.

    Shape:
        ``(B, C, Z, Y, X) -> (B * n, C, Z / dz, Y / dy, X / dx)`` with ``n = dz * dy * dx``; channels last in memory.

    Invariant:
        ``merge_sublattices(split_sublattices(x, d), d)`` is ``x``; no two residues share an item.

    Raises:
        ValueError: if a side is not a multiple of its stride; the message quotes both.
    """
    dz, dy, dx = stride
    b, c, z, y, w = x.shape
    if z % dz != 0 or y % dy != 0 or w % dx != 0:
        raise ValueError(f"volume {(z, y, w)} is not a multiple of the lattice stride {(dz, dy, dx)} along z, y, x")
    x = x.permute(0, 2, 3, 4, 1).reshape(b, z // dz, dz, y // dy, dy, w // dx, dx, c)
    x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b * dz * dy * dx, z // dz, y // dy, w // dx, c)
    return x.permute(0, 4, 1, 2, 3)


def merge_sublattices(x: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """Put the sub-lattices back on the full grid; the inverse of :func:`split_sublattices`.

    Args:
        x: one item of the batch per sub-lattice.
        stride: lattice stride along (Z, Y, X), voxels.

    Shape:
        ``(B * n, C, Z / dz, Y / dy, X / dx) -> (B, C, Z, Y, X)`` with ``n = dz * dy * dx``.

    Raises:
        ValueError: if the batch is not a multiple of the number of sub-lattices.
    """
    dz, dy, dx = stride
    n, c, z, y, w = x.shape
    if n % (dz * dy * dx) != 0:
        raise ValueError(f"batch of {n} is not a multiple of the {dz * dy * dx} sub-lattices of stride {(dz, dy, dx)}")
    b = n // (dz * dy * dx)
    x = x.permute(0, 2, 3, 4, 1).reshape(b, dz, dy, dx, z, y, w, c)
    x = x.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(b, z * dz, y * dy, w * dx, c)
    return x.permute(0, 4, 1, 2, 3)


def volume_unshuffle(x: Tensor, factor: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """Trade resolution for channels without mixing residues (the paper's volume-unshuffle).

    ``factor`` neighbours *of one sub-lattice* along each axis become channels of one voxel of that same
    sub-lattice. On features that are split already (``stride`` 1) this is an ordinary space-to-depth.

    Args:
        x: features.
        factor: along (Z, Y, X).
        stride: lattice stride along (Z, Y, X), voxels, whose residues are kept.

    Shape:
        ``(B, C, Z, Y, X) -> (B, f * C, Z / fz, Y / fy, X / fx)`` with ``f = fz * fy * fx``; channel
        ``k * C + c`` holds channel ``c`` of neighbour ``k``, neighbours counted with X fastest.

    Raises:
        ValueError: if a side is not a multiple of stride times factor.
    """
    fz, fy, fx = factor
    dz, dy, dx = stride
    b, c, z, y, w = x.shape
    if z % (fz * dz) != 0 or y % (fy * dy) != 0 or w % (fx * dx) != 0:
        raise ValueError(
            f"volume {(z, y, w)} is not a multiple of stride {(dz, dy, dx)} times factor {(fz, fy, fx)} along z, y, x"
        )
    z, y, w = z // (fz * dz), y // (fy * dy), w // (fx * dx)
    x = x.permute(0, 2, 3, 4, 1).reshape(b, z, fz, dz, y, fy, dy, w, fx, dx, c)
    x = x.permute(0, 1, 3, 4, 6, 7, 9, 2, 5, 8, 10).reshape(b, z * dz, y * dy, w * dx, fz * fy * fx * c)
    return x.permute(0, 4, 1, 2, 3)


def volume_shuffle(x: Tensor, factor: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """Trade channels for resolution without mixing residues; the inverse of :func:`volume_unshuffle`.

    Args:
        x: features.
        factor: along (Z, Y, X).
        stride: lattice stride along (Z, Y, X), voxels, whose residues are kept.

    Shape:
        ``(B, f * C, Z / fz, Y / fy, X / fx) -> (B, C, Z, Y, X)`` with ``f = fz * fy * fx``.

    Raises:
        ValueError: if the channels are not a multiple of the factor, or a side not one of the stride.
    """
    fz, fy, fx = factor
    dz, dy, dx = stride
    b, n, z, y, w = x.shape
    if n % (fz * fy * fx) != 0 or z % dz != 0 or y % dy != 0 or w % dx != 0:
        raise ValueError(
            f"{n} channels on {(z, y, w)} cannot be shuffled by factor {(fz, fy, fx)} on stride {(dz, dy, dx)}"
        )
    c = n // (fz * fy * fx)
    z, y, w = z // dz, y // dy, w // dx
    x = x.permute(0, 2, 3, 4, 1).reshape(b, z, dz, y, dy, w, dx, fz, fy, fx, c)
    x = x.permute(0, 1, 7, 2, 3, 8, 4, 5, 9, 6, 10).reshape(b, z * fz * dz, y * fy * dy, w * fx * dx, c)
    return x.permute(0, 4, 1, 2, 3)


def stem_mask(lattice: Lattice) -> Tensor:
    """The live taps of the stem as a weight factor.

    Shape:
        ``(1, 1, kz, ky, kx)``, ones where a tap lives.
    """
    return torch.from_numpy(lattice.taps()).to(torch.get_default_dtype())[None, None]
