"""The unit of length of a NIfTI, which knows no Å.

ITK, and what is made with it, keeps the numbers of an MRC and calls them millimetres: 10 Å become "10 mm". So do we.
"""

from __future__ import annotations

from typing import Any

import numpy as np

UNKNOWN = "unknown"
_ANGSTROM = {"mm": 1e7, "micron": 1e4, "meter": 1e10}
# No voxel is smaller, Å: what is less is in true millimetres.
_LEAST = 0.1


def length_unit(image: Any) -> tuple[str, float]:
    """The unit of length that a header names, and how many Å its numbers count.

    Args:
        image: nibabel's.

    Returns:
        ``mm``, ``micron``, ``meter`` or ``unknown``, and the factor. It is 1 for an unknown unit, and for millimetres
        where a voxel has at least 0.1 of them: those are Å that go by that name.

    Example:
        >>> import nibabel
        >>> image = nibabel.Nifti1Image(np.zeros((4, 4, 4)), np.diag([0.001, 0.001, 0.001, 1]))
        >>> image.header.set_xyzt_units("micron")
        >>> length_unit(image)
        ('micron', 10000.0)
    """
    try:
        unit = str(image.header.get_xyzt_units()[0])
    except (AttributeError, KeyError):
        unit = UNKNOWN
    smallest = float(np.linalg.norm(image.affine[:3, :3], axis=0).min())
    if unit == "mm" and smallest >= _LEAST:
        return unit, 1.0
    return unit, _ANGSTROM.get(unit, 1.0)


def in_unit(affine: Any, factor: float) -> np.ndarray:
    """An affine with all its lengths times a factor.

    Args:
        affine: 4 x 4.
        factor: of another unit.
    """
    scaled: np.ndarray = np.diag([factor, factor, factor, 1.0]) @ np.asarray(affine, dtype=float)
    return scaled
