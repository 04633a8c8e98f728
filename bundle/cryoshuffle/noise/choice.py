"""Which blind set the measured noise asks for."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.formats import is_ours
from cryoshuffle.files.masks import load_mask
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.lattice import AXES, BlindSet, Triple
from cryoshuffle.noise.estimate import (
    CLEAN,
    LAGS,
    LARGEST,
    LEAST_PASSED,
    SKEW,
    TIE,
    NoiseEstimate,
    average,
    correlation_score,
    noise_from_empty,
    noise_from_halves,
    noise_from_volume,
    wedge_of,
)
from cryoshuffle.noise.spectrum import filter_power, smooth_spectrum
from cryoshuffle.noise.turn import UPRIGHT, Turn
from cryoshuffle.noise.volumes import load_halves, load_volume, on_one_scale
from cryoshuffle.noise.wedge import beam_first
from cryoshuffle.noise.whitening import Whitening

logger = logging.getLogger("cryoshuffle")
# Difference in the correlation of neighbours that tells one axis from another.
_APART = 0.15


@dataclass(frozen=True)
class BlindChoice:
    """The blind set that matches a noise estimate.

    Attributes:
        blind_set: to hide.
        whitening: to apply before the network and to undo behind it; None for none.
        reason: in one sentence.
        clean: whether what a prediction sees is next to independent of the noise it must not learn; None where that
            was not measured.
    """

    blind_set: BlindSet
    whitening: Whitening | None
    reason: str
    clean: bool | None


def choose_blind(estimate: NoiseEstimate, tilt_axis: str | None = None) -> BlindChoice:
    """The blind set that matches the noise.

    White noise gets a blind voxel. Else the plane across the axis along which the noise is least correlated. What
    correlation there is along that axis is undone by whitening, or, where its spectrum vanishes and cannot be
    undone, hidden by the smallest half-width that leaves at most :data:`CLEAN`, or the best there is.

    Args:
        estimate: of the noise.
        tilt_axis: if known; it is then not asked of the noise.

    Raises:
        SettingError: if no tilt axis is given and no missing wedge tells it, where two axes are equally good or the
            volume has been filtered.

    Example:
        >>> quiet, loud = [0.0] * 4, [0.4, -0.2, 0.1, 0.0]
        >>> choice = choose_blind(NoiseEstimate({"z": loud, "y": quiet, "x": loud}, {}, "halves"))
        >>> choice.blind_set.shape, choice.blind_set.axis, choice.whitening, choice.clean
        ('plane', 'y', None, True)
    """
    if estimate.filtered:
        axis = tilt_axis or estimate.wedge_axis
        if not axis:
            raise SettingError(
                "the volume has been low-pass filtered, so its noise does not tell the tilt axis, and no missing wedge "
                "does: give --tilt-axis, or better the reconstruction before the filter"
            )
        why = "as asked for" if tilt_axis else "which the missing wedge lies along"
        reason = (
            f"plane across {axis}, {why}; the volume has been low-pass filtered, and what the filter has left of the "
            "noise is told from its spectrum"
        )
        return BlindChoice(BlindSet("plane", axis), None, reason, clean=False)
    largest = max(estimate.leftover(axis, 0) for axis in AXES)
    if largest <= CLEAN:
        return BlindChoice(
            BlindSet("voxel"), None, f"the noise is white: correlated by {largest:.3f} at most", clean=True
        )
    wedge = estimate.wedge
    if wedge is not None and wedge.is_off_grid and tilt_axis in (None, wedge.axis):
        reason = (
            f"plane across {wedge.axis}; by the missing wedge the tilt axis is {wedge.off_grid_deg:.0f} degrees off "
            "it, so what this blind spot leaves of the noise is not known, and noise is measured in a part that is "
            "turned upright"
        )
        return BlindChoice(BlindSet("plane", wedge.axis, 1), None, reason, clean=None)
    axis = tilt_axis or find_tilt_axis(estimate)
    quietest = min(AXES, key=lambda a: correlation_score(estimate.autocorrelation[a]))
    seen = estimate.leftover(axis, 0)
    if correlation_score(estimate.autocorrelation[axis]) > correlation_score(estimate.autocorrelation[quietest]) + TIE:
        quieter = estimate.leftover(quietest, 0)
        reason = (
            f"plane across {axis}, as asked for, although the noise is correlated by {seen:.3f} along it and by "
            f"{quieter:.3f} along {quietest}: part of the noise will be learnt if {axis} is not the tilt axis"
        )
        return BlindChoice(BlindSet("plane", axis), None, reason, clean=False)
    if seen <= CLEAN:
        reason = f"the noise is correlated by {largest:.3f} across {axis} and by {seen:.3f} at most along it"
        return _looking_obliquely(BlindChoice(BlindSet("plane", axis), None, reason, clean=True), estimate)
    whitening = Whitening(axis, tuple(float(r) for r in estimate.autocorrelation[axis]))
    if whitening.is_bounded():
        reason = f"the noise is correlated by {seen:.3f} along {axis}, whitening undoes that"
        return _looking_obliquely(BlindChoice(BlindSet("plane", axis), whitening, reason, clean=True), estimate)
    radii = [r for r in range(LAGS) if estimate.leftover(axis, r) <= CLEAN]
    radius = radii[0] if radii else min(range(LAGS), key=lambda r: estimate.leftover(axis, r))
    leftover = estimate.leftover(axis, radius)
    reason = (
        f"the noise is correlated by {seen:.3f} along {axis} and its spectrum vanishes, so it cannot be whitened; "
        f"a half-width of {radius} leaves {leftover:.3f}"
    )
    return BlindChoice(BlindSet("plane", axis, radius), None, reason, clean=bool(radii))


def _looking_obliquely(choice: BlindChoice, estimate: NoiseEstimate) -> BlindChoice:
    """The choice, wider where the tilt axis is off the grid, with what it leaves visible off the axis in its reason."""
    axis = choice.blind_set.axis
    leftover, skew = estimate.oblique.get(axis, 0.0), estimate.skew.get(axis, 0.0)
    if skew > SKEW and estimate.leftover(axis, 1) <= 2 * CLEAN:
        reason = (
            f"{choice.reason}; the noise leans by {skew:.3f}, the tilt axis is some degrees off {axis}: a half-width "
            "of 1 hides most of that, in place of whitening"
        )
        return BlindChoice(BlindSet("plane", axis, 1), None, reason, clean=choice.clean)
    if leftover <= CLEAN:
        return choice
    reason = (
        f"{choice.reason}; off the axis {leftover:.3f} stays visible, as when each tilt image was shifted by itself"
    )
    return replace(choice, reason=reason, clean=leftover <= 2 * CLEAN)


def find_tilt_axis(estimate: NoiseEstimate) -> str:
    """The axis along which the noise is least correlated, or of two that are alike the one along the missing wedge.

    Raises:
        SettingError: if two axes are equally good and no wedge tells; the message has both.
    """
    ranked = sorted(AXES, key=lambda axis: correlation_score(estimate.autocorrelation[axis]))
    best, second = (correlation_score(estimate.autocorrelation[axis]) for axis in ranked[:2])
    if second - best < TIE:
        # Where each tilt image was interpolated the next planes along the tilt axis are a little alike, and along the
        # beam the ramp makes the next ones much alike: two that hide as well behind a wider plane.
        seen = [estimate.leftover(axis, 0) for axis in ranked[:2]]
        if abs(seen[0] - seen[1]) > _APART:
            return ranked[0] if seen[0] < seen[1] else ranked[1]
        if estimate.wedge_axis in ranked[:2]:
            return estimate.wedge_axis
        raise SettingError(
            f"the noise is as little correlated along {ranked[0]} as along {ranked[1]}, so the tilt axis cannot be "
            "told from it: give --tilt-axis"
        )
    return ranked[0]


@dataclass(frozen=True)
class BlindPlan:
    """The blind set of a run: as asked for, or as the noise says.

    Attributes:
        choice: what is used.
        estimate: what was measured; None if nothing had to be.
        order: of the axes of the tomogram in which the beam comes first, as of
            :func:`cryoshuffle.noise.wedge.beam_first`.
        turn: that stands the tomogram upright.
    """

    choice: BlindChoice
    estimate: NoiseEstimate | None
    order: Triple = (0, 1, 2)
    turn: Turn = UPRIGHT

    @property
    def blind_set(self) -> BlindSet:
        """Offsets to hide."""
        return self.choice.blind_set

    @property
    def whitening(self) -> dict[str, Any] | None:
        """To apply before the network, as plain values; None for none."""
        return None if self.choice.whitening is None else self.choice.whitening.config()

    @property
    def contradiction(self) -> str:
        """That the missing wedge names another tilt axis than the one in use, in words; empty if it does not."""
        normal, wedge = self.blind_set.tilt_axis, "" if self.estimate is None else self.estimate.wedge_axis
        if normal is None or wedge in ("", AXES[normal]):
            return ""
        return f"the tilt axis is taken to be {AXES[normal]}, but the missing wedge lies along {wedge}"

    def report(self) -> dict[str, Any]:
        """Everything as plain values, for a JSON file."""
        estimate = self.estimate
        return {
            "blind": self.blind_set.shape,
            "axis": self.blind_set.axis,
            "half_widths": list(self.blind_set._radius),
            "whitening": self.whitening,
            "reason": self.choice.reason,
            "clean": self.choice.clean,
            "filtered": None if estimate is None else estimate.filtered,
            "oblique": None if estimate is None else dict(estimate.oblique),
            "skew": None if estimate is None else dict(estimate.skew),
            "wedge": None if estimate is None else estimate.wedge_axis,
            "turned_deg": self.turn.degrees,
            "lean_deg": self.turn.lean,
            "contradiction": self.contradiction,
            "source": None if estimate is None else estimate.source,
            "autocorrelation": None if estimate is None else {a: list(v) for a, v in estimate.autocorrelation.items()},
            "uncertainty": None if estimate is None else {a: list(v) for a, v in estimate.uncertainty.items()},
        }


def _beside_volume(measured: NoiseEstimate, volume: Tensor, path: str, tilt_axis: str | None) -> NoiseEstimate:
    """Noise of halves or of a part, with what only the whole volume tells: filter and missing wedge."""
    whole = noise_from_volume(central_crop(volume, LARGEST))
    _refuse_filtered(path, volume, whole, tilt_axis)
    return replace(measured, filtered=whole.filtered, wedge=whole.wedge)


def _refuse_filtered(path: str, volume: Tensor, estimate: NoiseEstimate, tilt_axis: str | None) -> None:
    """Refuse a result of ours, and a volume of whose finest detail a filter has left too little to tell its noise.

    Raises:
        InputError: if it is one.
    """
    if not estimate.filtered:
        return
    if is_ours(path):
        raise InputError(
            f"{path}: was denoised by cryoshuffle before, so hardly any noise is left to measure: name the tomogram "
            "that it was made from"
        )
    axis = tilt_axis or estimate.wedge_axis
    if not axis:
        return
    volume = central_crop(volume, LARGEST)
    passed = filter_power(smooth_spectrum(volume), AXES.index(axis))
    if float(passed.min()) < LEAST_PASSED:
        raise InputError(
            f"{path}: has been low-pass filtered, and of its finest detail {float(passed.min()):.0e} of the power is "
            "left, too little to tell the noise by: bin it by 2, which takes nothing away that is there, or give the "
            "reconstruction before the filter"
        )


def choose_blind_set(
    tomograms: Sequence[str],
    blind: str = "auto",
    tilt_axis: str | None = None,
    radius: int | Sequence[int] | None = None,
    permissive: bool = False,
    halves: Sequence[str] | None = None,
    empty: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    fill_nan: bool = False,
    mask: str | None = None,
    absent: BlindSet | None = None,
) -> BlindPlan:
    """The blind set of a run.

    Args:
        tomograms: paths; with several the noise is the mean of theirs.
        blind: ``auto`` for what the noise says, or a shape of :class:`BlindSet`.
        tilt_axis: normal of the plane; None to find it from the noise.
        radius: half-width, voxels; None for what the noise says (``auto``), 0 (``plane``, ``voxel``) or 1.
        permissive: also take MRC files whose header breaks the standard.
        halves: paths of the even and the odd half of the tomogram; the noise is measured in their difference.
        empty: path of a mask, not 0 where the tomogram holds no specimen; the noise is measured there.
        folder: where volumes too large for memory are kept while they are read; None for memory.
        fill_nan: put the mean of the others where voxels of a tomogram are not finite.
        mask: path of a mask of the specimen; the noise is measured in the middle of the box around it. None for the
            middle of the volume.
        absent: what is hidden where there is no tomogram at the path of the only one: MONAI's programs build the
            network of a bundle to look at it. A run is stopped by :func:`cryoshuffle.commands.preflight.check_inputs`
            then.

    Raises:
        SettingError: for a setting that cannot work, or a tilt axis that the noise does not tell.
        FileError, InputError: for a tomogram that cannot be read, or is too small to measure.
    """
    if blind == "none":
        raise SettingError("blind set is 'none': a network that hides nothing cannot be fitted to one tomogram")
    read = partial(load_volume, permissive=permissive, folder=folder, fill_nan=fill_nan)
    if blind not in ("auto", "plane") or (blind == "plane" and tilt_axis is not None):
        default = 0 if blind in ("plane", "voxel") else 1
        blind_set = BlindSet(blind, tilt_axis or "y", default if radius is None else radius)
        asked = BlindPlan(BlindChoice(blind_set, None, "as asked for", clean=None), None)
        if blind_set.tilt_axis is None or not tomograms or not Path(tomograms[0]).exists():
            return asked
        return _as_it_lies(asked, read(str(tomograms[0]), largest=LARGEST, mask=mask))
    if not tomograms:
        raise InputError("no tomogram is given, name at least one")
    if absent is not None and len(tomograms) == 1 and not Path(tomograms[0]).exists():
        return BlindPlan(BlindChoice(absent, None, "there is no tomogram", clean=None), None)
    if halves is not None and len(tomograms) > 1:
        raise InputError(f"halves go with one tomogram, not with {len(tomograms)}: fit them one by one")
    if empty is not None and (halves is not None or len(tomograms) > 1):
        raise InputError("a mask of empty regions goes with one tomogram without halves: leave one of them out")
    first = str(tomograms[0])
    if halves is not None:
        volume = read(first, largest=LARGEST, mask=mask)
        measured = noise_from_halves(
            *on_one_scale(volume, *load_halves(halves, permissive, mask, first, fill_nan, folder))
        )
        estimate = _beside_volume(measured, volume, first, tilt_axis)
    elif empty is not None:
        volume = read(first)
        estimate = _beside_volume(noise_from_empty(volume, load_mask(empty, folder, first)), volume, first, tilt_axis)
    else:
        estimates: list[NoiseEstimate] = []
        # Tomograms of one kind lie one way: the last one tells the beam.
        for path in tomograms:
            volume = read(str(path), largest=LARGEST, mask=mask)
            estimates.append(noise_from_volume(volume))
            _refuse_filtered(str(path), volume, estimates[-1], tilt_axis)
        estimate = average(estimates)
    if blind == "auto" and radius is None:
        plan = BlindPlan(choose_blind(estimate, tilt_axis), estimate)
    else:
        plan = BlindPlan(_plane_as_asked(estimate, tilt_axis, radius or 0), estimate)
    return _as_it_lies(plan, volume)


def _as_it_lies(plan: BlindPlan, volume: Tensor) -> BlindPlan:
    """The plan with the way that the tomogram lies, ``(Z, Y, X)``."""
    normal = plan.blind_set.tilt_axis
    if normal is None:
        return plan
    middle = central_crop(volume, LARGEST)
    order = beam_first(middle, normal)
    wedge = wedge_of(middle) if plan.estimate is None else plan.estimate.wedge
    if wedge is None or not wedge.is_off_grid or (wedge.axis, wedge.beam) != (AXES[normal], AXES[order[0]]):
        return replace(plan, order=order)
    return replace(plan, order=order, turn=Turn(order[0], normal, wedge.turned_deg, wedge.lean_deg))


def _plane_as_asked(estimate: NoiseEstimate, tilt_axis: str | None, radius: int | Sequence[int]) -> BlindChoice:
    """A plane of the half-width that was asked for, across the axis that was, or that the noise tells."""
    white = all(estimate.leftover(axis, 0) <= CLEAN for axis in AXES)
    axis = tilt_axis or ("y" if white else choose_blind(estimate).blind_set.axis)
    blind_set = BlindSet("plane", axis, radius)
    if blind_set.half_width >= LAGS:
        return BlindChoice(blind_set, None, "as asked for, beyond what is measured", clean=None)
    leftover = estimate.leftover(axis, blind_set.half_width)
    reason = f"plane across {axis}, as asked for; it leaves a correlation of {leftover:.3f}"
    return BlindChoice(blind_set, None, reason, clean=leftover <= CLEAN)
