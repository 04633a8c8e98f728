"""What a run is found to be: the numbers of its result, and which of them are good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from torch import Tensor

from cryoshuffle.boxes import middle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import load_tomogram, tomogram_shape
from cryoshuffle.files.intensity import FillNotFinite
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.scores.artefacts import DETAIL_BANDS, detail_slopes, painted_noise, seam_metric, signal_left
from cryoshuffle.scores.evaluation import HALF_THRESHOLD, evaluate, halves_agreement, resolution

Level = Literal["ok", "look", "bad"]
# The middle of a volume, that its numbers are from; a page should not take long.
_SIDE = 160
# More of it, for what differs from place to place.
_AROUND = 320
# Of tomograms whose truth is known ours have up to .27, heavy smoothing .5 to .9 (the residual of the truth itself 0);
# and the residual is .8 times as strong where structure is, after heavy smoothing 1.3 to 2.3 times.
_COARSE_SHARED = 0.35
_LEFT_RATIO = 1.25
_STRIPES = 3.0
# Jumps at borders of windows are .7 to 1.2 times those nearby by chance in 40 x 96 x 96 voxels; without the halo that
# windows need they are 1.6 to 2.3 times.
_SEAMS = 1.4
_MOSTLY = 0.5
# Correlation of the finest detail of result and tomogram, in the region where it is least: results on simulated
# tomograms and the real cell have +.0 to +.2, one with painted noise had -.5 to -.7.
_PAINTED = -0.1
# Noise of a region over that of another, where it is taken for even.
_UNEVEN = 1.25


@dataclass(frozen=True)
class Finding:
    """One thing that a page says of a result.

    Attributes:
        level: ``ok``, ``look`` where a person should look for himself, ``bad`` where the result is doubtful.
        words: one or two sentences.
    """

    level: Level
    words: str


def findings(
    noise: Mapping[str, Any] | None, refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]
) -> list[Finding]:
    """What noise, judgement and result of a run say about it: each number, and whether it is good.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        refinement: content of ``refinement.json``; None without the second stage.
        numbers: of :func:`measure`.
    """
    listed = []
    if noise is not None:
        if noise["clean"]:
            listed.append(Finding("ok", f"The blind spot fits the noise: {noise['reason']}."))
        else:
            words = f"The noise is not clean along any axis, part of it may be learnt: {noise['reason']}."
            listed.append(Finding("bad", words))
    if refinement is not None:
        listed += _share_findings(refinement)
    listed += painted_findings(refinement, numbers)
    if "residual" in numbers:
        shared = numbers["residual"]["low_frequency_correlation"]
        good = abs(shared) < _COARSE_SHARED
        words = (
            f"The residual has {'little ' if good else ''}coarse detail in common with the result: correlation "
            f"{shared:+.2f}, good within ±{_COARSE_SHARED}."
        )
        why = "" if good else " It is signal that was removed, or noise that was kept: look at the residual."
        listed.append(Finding("ok" if good else "look", words + why))
    if "halves" in numbers:
        listed.append(_halves_finding(numbers["halves"]))
    if "signal_left" in numbers:
        kept = numbers["signal_left"]
        limit = _LEFT_RATIO + 2 * kept["scatter"]
        words = (
            f"The residual is {kept['ratio']:.2f} times as strong where there is structure as elsewhere, good below "
            f"{limit:.2f}"
        )
        z, y, x = kept["where"]
        why = f": some signal was taken away, or the noise is stronger there. Most at z = {z}, y = {y}, x = {x}"
        good = kept["ratio"] < limit
        listed.append(Finding("ok" if good else "look", f"{words}{'' if good else why}."))
    if "seams" in numbers:
        seams = numbers["seams"]
        good = seams["borders"] < _SEAMS
        words = (
            f"{'No seams' if good else 'Seams'} between the windows it was denoised in: jumps at their borders are "
            f"{seams['borders']:.2f} times those nearby, good below {_SEAMS}"
        )
        why = f"; halfway between borders they are {seams['halfway']:.2f} times"
        listed.append(Finding("ok" if good else "look", f"{words}{'' if good else why}."))
    for axis, stripes in numbers.get("lattice", {}).items():
        limit = 1 + _STRIPES * stripes["scatter"]
        good = stripes["excess"] < limit
        words = "No stripes of the lattice" if good else f"Stripes of period {stripes['stride']}"
        power = f"{stripes['excess']:.2f} times the power nearby, good below {limit:.2f}"
        listed.append(Finding("ok" if good else "look", f"{words} along {axis}: {power}."))
    return listed


def _share_findings(refinement: Mapping[str, Any]) -> list[Finding]:
    """How network and filter share the result."""
    share = refinement["trust"]
    words = (
        f"{share:.0%} of the result is the network's, {1 - share:.0%} that of the best linear filter, as judged on "
        "noise drawn anew"
    )
    if share >= _MOSTLY:
        listed = [Finding("ok", f"{words}: good, most is the network's.")]
    else:
        why = "the volume is too small or too noisy, or the fit was too short, for more"
        listed = [Finding("look", f"{words}: less than half is the network's; {why}.")]
    if refinement.get("excessive"):
        words = (
            f"The noise is not quite known: judged with it, the best result has {refinement['weight']:.2f} times the "
            "network beside the filter, and more than all there cannot be."
        )
        listed.append(Finding("look", words))
    return listed


def _halves_finding(halves: Mapping[str, Any]) -> Finding:
    """How far the halves agree."""
    crossing = halves["crossing"]
    if not halves["beyond_chance"] or (crossing is None and halves["fsc"][-1] < HALF_THRESHOLD):
        return Finding(
            "look",
            f"Even and odd half agree at no frequency beyond chance (FSC {HALF_THRESHOLD}): there is hardly any signal "
            "in them, and little to check the result with.",
        )
    part = "" if crossing is None else f", {2 * crossing:.0%} of the frequencies that the voxels hold"
    return Finding(
        "ok",
        f"The data hold signal {resolution(halves)}{part} (even against odd half, FSC {HALF_THRESHOLD}); finer detail "
        "in the result has little support in them.",
    )


def painted_findings(refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[Finding]:
    """What result and tomogram have in common where there is nearly nothing but noise.

    Args:
        refinement: content of ``refinement.json``; None without the second stage.
        numbers: of :func:`measure`.
    """
    listed = []
    again = "Denoise with --effort fast, and compare."
    if "painted" in numbers:
        painted = numbers["painted"]
        least = f"correlation {painted['least']:+.2f}"
        if painted["least"] > _PAINTED:
            words = (
                f"The result holds no negative of the noise: {least} or more in every region, good above {_PAINTED}."
            )
            listed.append(Finding("ok", words))
        else:
            y, x = painted["where"]
            words = (
                f"The finest detail of the result is the negative of the noise: {least} around y = {y}, x = {x}, good "
                f"above {_PAINTED}. It is a texture that is in no data. {again}"
            )
            listed.append(Finding("bad", words))
        uneven = max(painted["levels"]) / max(1e-6, min(painted["levels"]))
        if refinement is not None and not refinement.get("levels", True) and uneven > _UNEVEN:
            words = (
                f"The noise is {uneven:.2f} times as strong in one region as in another, good up to {_UNEVEN}, and was "
                "taken for even: where it is weak detail may be lost, where it is strong noise may be left."
            )
            listed.append(Finding("look", words))
    slopes = numbers.get("slopes")
    if slopes is not None and min(slopes) < 0:
        low, high = DETAIL_BANDS[slopes.index(min(slopes))]
        words = (
            f"Detail of {low} to {high} voxels in the result runs against the tomogram: slope {min(slopes):.2f}, good "
            f"from 0 up. It is not from the data. {again}"
        )
        listed.append(Finding("bad", words))
    return listed


def _seams(result: Tensor, window: Sequence[int], strides: Sequence[int], start: Sequence[int]) -> dict[str, Any]:
    """Jumps at the borders of windows, of a part of a volume that begins at ``start``; empty without a border in it."""
    first = [-a % w for a, w in zip(start, window, strict=True)]
    between = [a + w // 2 // s * s for a, w, s in zip(first, window, strides, strict=True)]
    try:
        borders, halfway = (seam_metric(result, window, strides, at) for at in (first, between))
    except InputError:
        return {}
    return {"seams": {"window": list(window), "borders": borders, "halfway": halfway}}


def measure(
    noisy: str,
    output: str,
    strides: Sequence[int],
    permissive: bool = False,
    fill_nan: bool = False,
    window: Sequence[int] | None = None,
    halves: Sequence[str] | None = None,
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

    Returns:
        what :func:`cryoshuffle.scores.evaluation.evaluate` tells of the middle, ``signal_left`` of it, with its place
        in the whole volume, ``slopes`` of it and ``painted`` of more of the volume
        (:mod:`cryoshuffle.scores.artefacts`), ``seams`` where a border is in it, ``voxel_size_zyx`` (Å) where it is
        known, and the ``full_shape``. Where the volume is too small for them, ``not_measured`` says so instead.
        ``halves`` is :func:`cryoshuffle.scores.evaluation.halves_agreement` of the same middle, or
        ``halves_not_measured`` says why not.

    Raises:
        FileError, InputError: if a file is missing, cannot be read, or is not the size of the other.
    """
    full = tomogram_shape(noisy, permissive)
    if tomogram_shape(output, permissive) != full:
        raise InputError(f"{output}: is not of the size of {noisy}, name the tomogram it was made from")
    images = [load_tomogram(path, permissive, largest=_AROUND) for path in (noisy, output)]
    fill = FillNotFinite(fill_nan)

    def crop(image: MetaTensor, side: int = _SIDE) -> Tensor:
        return central_crop(torch.as_tensor(fill(image)).as_subclass(Tensor), side)[0]

    before, after = (crop(image) for image in images)
    sizes = images[0].meta.get("voxel_size_zyx")
    numbers: dict[str, Any] = {
        "full_shape": list(full),
        "voxel_size_zyx": None if sizes is None or min(sizes) <= 0 else [float(size) for size in sizes],
    }
    start = [part.start for part in middle(full, _SIDE)]
    try:
        numbers.update(evaluate(after, noisy=before, stride=list(strides)))
        signal = signal_left(before, after)
        numbers["slopes"] = detail_slopes(before, after)
        painted = painted_noise(*(crop(image, _AROUND) for image in images))
    except InputError as error:
        numbers["not_measured"] = str(error)
    else:
        numbers["signal_left"] = {**signal, "where": [a + b for a, b in zip(start, signal["where"], strict=True)]}
        around = [part.start for part in middle(full, _AROUND)[1:]]
        numbers["painted"] = {**painted, "where": [a + b for a, b in zip(around, painted["where"], strict=True)]}
        if window is not None:
            numbers.update(_seams(after, window, strides, start))
    if halves is not None:
        try:
            even, odd = (crop(load_tomogram(path, permissive, largest=_SIDE, beside=noisy)) for path in halves)
            numbers["halves"] = halves_agreement(even, odd, voxel_size(numbers))
        except (FileError, InputError) as error:
            numbers["halves_not_measured"] = str(error)
    return numbers


def voxel_size(numbers: Mapping[str, Any]) -> float | None:
    """The voxel size in Å; None where it is not known, or not the same along all axes.

    Args:
        numbers: of :func:`measure`.
    """
    sizes = numbers["voxel_size_zyx"]
    return sizes[0] if sizes is not None and max(sizes) < 1.01 * min(sizes) else None
