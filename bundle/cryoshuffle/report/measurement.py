"""The numbers of a page: what can be told of a tomogram and its result without a truth."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor

from cryoshuffle.boxes import middle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import load_tomogram, tomogram_shape
from cryoshuffle.files.intensity import FillNotFinite
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.volumes import common_voxel_size, voxel_sizes
from cryoshuffle.inference.checkpoints import StoredNoise
from cryoshuffle.scores.artefacts import (
    beside_noise,
    detail_slopes,
    painted_noise,
    residual_levels,
    signal_left,
    window_seams,
)
from cryoshuffle.scores.evaluation import evaluate, halves_agreement

# The middle of a volume, that its numbers are from; a page should not take long.
_SIDE = 160
# More of it, for what differs from place to place.
_AROUND = 320


@dataclass(frozen=True)
class NoiseScale:
    """The noise of a tomogram as a model keeps it, and what it takes to compare a residual with it.

    Attributes:
        stored: that the model keeps.
        deviation: standard deviation of the whole tomogram, grey values.
        detail: share of the residual that was given back to the result.
    """

    stored: StoredNoise
    deviation: float
    detail: float = 0.0


def _in_whole(place: Sequence[int], start: Sequence[int]) -> list[int]:
    """A place in the whole volume, from that in a part which begins at ``start``."""
    return [a + b for a, b in zip(start, place, strict=True)]


def _beside_noise(
    middles: Sequence[Tensor], around: Sequence[Tensor], noise: NoiseScale, start: Sequence[int]
) -> dict[str, Any]:
    """The residual beside the noise, of the middle by band, of more of the volume by region.

    Args:
        middles: of tomogram and result, grey values.
        around: more of the same.
        noise: of the tomogram.
        start: of what is around, voxels.
    """

    def standard(volumes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        before, after = ((volume - volumes[0].mean()) / noise.deviation for volume in volumes)
        return before, before - (before - after) / (1 - noise.detail)

    regions = residual_levels(*standard(around), noise.stored.spectrum, noise.stored.levels)
    regions["places"] = [_in_whole(place, start) for place in regions["places"]]
    beside = beside_noise(*standard(middles), noise.stored.spectrum)
    beside["power"]["regions"] = regions
    return beside


def _of_halves(halves: Iterable[Tensor], voxel_size_angstrom: float | None) -> dict[str, Any]:
    """How far two halves agree, which may be read only now; or why that is not known."""
    try:
        even, odd = halves
        return {"halves": halves_agreement(even, odd, voxel_size_angstrom)}
    except (FileError, InputError) as error:
        return {"halves_not_measured": str(error)}


def measure(
    noisy: str,
    output: str,
    strides: Sequence[int],
    permissive: bool = False,
    fill_nan: bool = False,
    window: Sequence[int] | None = None,
    halves: Sequence[str] | None = None,
    noise: NoiseScale | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """The numbers of a page, of the middle of a tomogram and its result.

    Args:
        noisy: path of the tomogram.
        output: path of the result.
        strides: of the lattice along (Z, Y, X), voxels.
        permissive: also take MRC files whose header breaks the standard.
        fill_nan: put the mean of the others where voxels of the tomogram are not finite.
        window: that it was denoised in, along (Z, Y, X), voxels; None where that is not known.
        halves: paths of the even and the odd one; None for none.
        noise: of the tomogram as it was modelled; None where that is not known.
        folder: where compressed files too large for memory are unpacked while they are read; None for memory.

    Returns:
        what :func:`cryoshuffle.scores.evaluation.evaluate` tells of the middle, the power of result and residual over
        the tomogram's there (``kept``), ``signal_left`` of it, with its place in the whole volume, ``slopes`` of it
        with ``slope_strengths``, and ``painted`` of more of the volume (:mod:`cryoshuffle.scores.artefacts`), ``seams``
        where a border is in it, ``power`` of the residual beside the noise and how much of the noise was ``removed``
        where the noise is known, ``voxel_size_zyx`` (Å) where it is known, and the ``full_shape``. Where the volume is
        too small for them, ``not_measured`` says so instead. ``halves`` is
        :func:`cryoshuffle.scores.evaluation.halves_agreement` of the same middle, or ``halves_not_measured`` says why
        not.

    Raises:
        FileError, InputError: if a file is missing, cannot be read, or is not the size of the other.
    """
    full = tomogram_shape(noisy, permissive)
    if tomogram_shape(output, permissive) != full:
        raise InputError(f"{output}: is not of the size of {noisy}, name the tomogram it was made from")
    images = [load_tomogram(path, permissive, folder, _AROUND) for path in (noisy, output)]
    fill = FillNotFinite(fill_nan)

    def crop(image: MetaTensor, side: int = _SIDE) -> Tensor:
        return central_crop(torch.as_tensor(fill(image)).as_subclass(Tensor), side)[0]

    before, after = (crop(image) for image in images)
    numbers: dict[str, Any] = {"full_shape": list(full), "voxel_size_zyx": voxel_sizes(images[0])}
    start = [part.start for part in middle(full, _SIDE)]
    power = float(before.double().var())
    if power > 0:
        kept, removed = (float(one.double().var()) / power for one in (after, before - after))
        numbers["kept"] = {"result": kept, "residual": removed}
    try:
        numbers.update(evaluate(after, noisy=before, stride=list(strides)))
        signal = signal_left(before, after)
        of_detail = detail_slopes(before, after)
        numbers["slopes"], numbers["slope_strengths"] = of_detail["slopes"], of_detail["strengths"]
        whole = [crop(image, _AROUND) for image in images]
        painted = painted_noise(*whole)
    except InputError as error:
        numbers["not_measured"] = str(error)
    else:
        around = [part.start for part in middle(full, _AROUND)]
        numbers["signal_left"] = {**signal, "where": _in_whole(signal["where"], start)}
        numbers["painted"] = {**painted, "places": [_in_whole(place, around[1:]) for place in painted["places"]]}
        if noise is not None:
            numbers.update(_beside_noise((before, after), whole, noise, around))
        if window is not None:
            # There may be no border in the middle.
            with contextlib.suppress(InputError):
                numbers["seams"] = window_seams(after, window, strides, start)
    if halves is not None:
        parts = (crop(load_tomogram(path, permissive, folder, _SIDE, beside=noisy)) for path in halves)
        numbers.update(_of_halves(parts, voxel_size(numbers)))
    return numbers


def voxel_size(numbers: Mapping[str, Any]) -> float | None:
    """The voxel size in Å; None where it is not known, or not the same along all axes.

    Args:
        numbers: of :func:`measure`.
    """
    return common_voxel_size(numbers["voxel_size_zyx"])
