"""How good a prediction is, voxel by voxel: the risk without a truth; correlation, PSNR and SSIM with one.

Volumes are (Z, Y, X). Grey values of a tomogram have no fixed zero and scale, so a result is compared after the best
gain and offset; the gain is never negative, inverted contrast is no match.
"""

from __future__ import annotations

import math

import torch
from monai.metrics import SSIMMetric
from torch import Tensor

from cryoshuffle.errors import InputError

_SSIM_WINDOW = 11
_SSIM_SLAB = 32


def check_comparable(**volumes: Tensor) -> None:
    """Refuse volumes that cannot be compared.

    Args:
        volumes: by the names the messages use.

    Shape:
        all ``(Z, Y, X)``.

    Raises:
        InputError: if the shapes differ or are not three-dimensional, a voxel is not finite, or all voxels of a volume
            are equal.
    """
    first, reference = next(iter(volumes.items()))
    for name, volume in volumes.items():
        if volume.ndim != 3 or volume.shape != reference.shape:
            shapes = f"{name.replace('_', ' ')} has shape {tuple(volume.shape)}"
            if name != first:
                shapes += f" and {first.replace('_', ' ')} has {tuple(reference.shape)}"
            raise InputError(f"{shapes}: give volumes (z, y, x) of one shape")
        low, high = (float(v) for v in torch.aminmax(volume))
        if not -torch.inf < low <= high < torch.inf:
            raise InputError(f"{name.replace('_', ' ')} has voxels that are NaN or Inf: replace them, by the mean say")
        if low == high:
            raise InputError(
                f"all voxels of {name.replace('_', ' ')} are {low:g}, there is nothing to compare: check the file"
            )


def _moments(a: Tensor, b: Tensor) -> tuple[float, float, float, float, float]:
    """Means, variances and covariance of two volumes in double precision, plane by plane to save memory."""
    count = a.numel()
    mean_a, mean_b = (sum(float(plane.sum(dtype=torch.float64)) for plane in v) / count for v in (a, b))
    var_a = var_b = cov = 0.0
    for plane_a, plane_b in zip(a, b, strict=True):
        one, two = plane_a.double() - mean_a, plane_b.double() - mean_b
        var_a += float(one.square().sum())
        var_b += float(two.square().sum())
        cov += float((one * two).sum())
    return mean_a, mean_b, var_a / count, var_b / count, cov / count


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's correlation of two volumes, -1 to 1, in double precision.

    Against a volume whose noise is independent of ``a``, it is the correlation with the truth times a factor that
    does not depend on ``a``; so it ranks results without a truth.

    Args:
        a: one volume, ``(Z, Y, X)``.
        b: the other.

    Invariant:
        gain (above 0) and offset of either volume do not matter.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.

    Example:
        >>> ramp = torch.arange(24.0).reshape(2, 3, 4)
        >>> round(correlation(ramp, 5 - 2 * ramp), 6)
        -1.0
    """
    check_comparable(first=a, second=b)
    _, _, var_a, var_b, cov = _moments(a, b)
    return max(-1.0, min(1.0, cov / (var_a**0.5 * var_b**0.5)))


def _fit(result: Tensor, truth: Tensor) -> tuple[float, float]:
    """Gain (not below 0) and offset that bring a result closest to the truth."""
    mean_result, mean_truth, var_result, _, cov = _moments(result, truth)
    gain = max(cov / var_result, 0.0)
    return gain, mean_truth - gain * mean_result


def psnr_after_fit(result: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio after the best gain and offset; the peak is the range of the truth.

    Args:
        result: to score, ``(Z, Y, X)``.
        truth: what it should be.

    Returns:
        Decibels; infinite if the fit leaves nothing.

    Invariant:
        gain (above 0) and offset of the result do not matter.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.
    """
    check_comparable(result=result, truth=truth)
    gain, offset = _fit(result, truth)
    pairs = zip(result, truth, strict=True)
    error = sum(float((gain * one.double() + offset - two.double()).square().sum()) for one, two in pairs)
    low, high = (float(v) for v in torch.aminmax(truth))
    return math.inf if error == 0 else 10 * math.log10((high - low) ** 2 * truth.numel() / error)


def ssim_after_fit(result: Tensor, truth: Tensor) -> float:
    """MONAI's 3-D structural similarity after the best gain and offset, the truth scaled to 0 to 1.

    SSIM is made for images that start at 0, so the smallest voxel of the truth is taken as that; then the offset of
    neither volume matters.

    Args:
        result: to score, ``(Z, Y, X)``, at least 11 voxels a side.
        truth: what it should be.

    Returns:
        At most 1, which is equality; the mean over all places of MONAI's Gaussian window of 11 voxels.

    Invariant:
        gain (above 0) and offset of the result do not matter.

    Raises:
        InputError: if the shapes differ, a side is too short, a voxel is not finite, or a volume is constant.

    Source:
        Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
    """
    check_comparable(result=result, truth=truth)
    if min(truth.shape) < _SSIM_WINDOW:
        raise InputError(
            f"volumes of {tuple(truth.shape)} voxels are too small for SSIM: it needs {_SSIM_WINDOW} a side"
        )
    gain, offset = _fit(result, truth)
    low, high = (float(v) for v in torch.aminmax(truth))
    metric = SSIMMetric(spatial_dims=3, data_range=1.0, win_size=_SSIM_WINDOW)
    total, places = 0.0, truth.shape[0] - _SSIM_WINDOW + 1
    # Slabs that overlap by a window less one give every place once, and bound the memory.
    for start in range(0, places, _SSIM_SLAB):
        count = min(_SSIM_SLAB, places - start)
        slab = slice(start, start + count + _SSIM_WINDOW - 1)
        one = ((gain * result[slab].double() + offset - low) / (high - low)).float()
        two = ((truth[slab].double() - low) / (high - low)).float()
        total += count * float(torch.as_tensor(metric(one[None, None], two[None, None])))
    return total / places
