"""What the numbers of a run say of its result, and which of them are good."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from cryoshuffle.noise.linear_filter import BAND_EDGES
from cryoshuffle.report.verdict import Finding
from cryoshuffle.scores.artefacts import DETAIL_BANDS
from cryoshuffle.scores.evaluation import HALF_THRESHOLD, resolution

# The residual is .8 times as strong where structure is, after heavy smoothing 1.3 to 2.3 times.
_LEFT_RATIO = 1.25
_STRIPES = 3.0
# Jumps at borders of windows are .7 to 1.2 times those nearby by chance in 40 x 96 x 96 voxels; without the halo that
# windows need they are 1.6 to 2.3 times.
_SEAMS = 1.4
_MOSTLY = 0.5
# Correlation of the finest detail of result and tomogram, in the region where it is least: results on simulated
# tomograms and the real cell have +.0 to +.2, one with painted noise had -.5 to -.7.
_PAINTED = -0.1
# Deviation of that negative over that of all detail of the result there, from which on it is texture that can be seen:
# the one on the real cell had .13 to .45. Fits whose noise is known to a percent leave .05.
_VISIBLE = 0.08
# Noise of a region over that of another, where it is taken for even.
_UNEVEN = 1.25
# Power of the residual over that of the measured noise, by band of detail, fine to coarse: seven simulated tomograms
# and a real cell have .97 to 1.01, .85 to 1.02, .64 to 1.00 and .36 to .84. In coarse bands more noise stays in the
# result. A result without any detail has 1.24 to 2.4 in the third band and 2.6 to 18 in the fourth.
_LEAST_POWER = (0.85, 0.7, 0.0, 0.0)
_MOST_POWER = 1.15
# The same of the finest detail, in the region where it is least and most; those have .90 to 1.06,
# and .77 to 1.04 beside noise that is taken for even.
_PLACES = (0.75, 1.2)
# What residual and tomogram have in common over the power of the noise, by band of detail, fine to coarse: those have
# .99 to 1.01, .96 to 1.04, .87 to 1.08 and .72 to 1.13. With three tenths of the tomogram in the result .58 to .83 in
# all; at half strength 1.8 to 9.7 in the coarsest, behind a Gaussian of 3 voxels 1.5 to 7.2 there; .45 in the finest
# where the noise is taken for 1.5 times as strong as it is.
_REMOVED = ((0.85, 1.15), (0.85, 1.15), (0.75, 1.25), (0.7, 1.3))
# Standard errors that chance may take a number beyond its limits.
_CHANCE = 3.0
# Correlation of residual and result, over all and in coarse detail. The mean of all signals that the tomogram allows
# has none below 0 and any above; those have -.06 and more. Of what the correlation of the residual is off that of the
# noise at any lag, those have .01 to .08 but for two of .16.
_SHARED, _ALIKE = -0.1, 0.1
# Fine detail of the strongest planes of the lattice over the mean: those have 1.00 to 1.03.
_IMBALANCE = 1.1
# Noise of the halves that stays in a result over that of drawn noise: seven simulated tomograms, two seeds each, have
# .85 to 1.09, with a standard error of .01 to .03, and .78 to 1.16 in eighths of the error map. Noise taken for half as
# strong again makes it .61 to .71; where its level is measured anew the map rights itself, and the ratio stays.
_MAP = (0.8, 1.25)
# Correlation of the noise along an axis over that along the blind one, from which on it is another tilt axis.
_CLEANER = 0.5
# Power over that of the tomogram of a result that is none, or of a residual; on voxels of 10 Å a real one has .001.
_EMPTY = 1e-4
_AGAIN = "Denoise with --effort fast, and compare."
# Steps of a fit, half of those of the effort standard.
_FEW_STEPS = 150


def _width(sigma: float) -> int:
    """How wide detail is, voxels, of which a Gaussian leaves half: half the period of that wave."""
    return round(math.pi * sigma / math.sqrt(2 * math.log(2)))


DETAIL_NAMES = (
    f"under {_width(BAND_EDGES[0])}",
    *(f"{_width(low)} to {_width(high)}" for low, high in pairwise(BAND_EDGES)),
)


@dataclass(frozen=True)
class Check:
    """One number of a result, and between which limits it is good.

    Attributes:
        subject: one of :data:`cryoshuffle.report.verdict.SUBJECTS`, which a finding on it is of.
        what: was measured.
        value: the number.
        text: the number for people.
        low: it is good above this.
        high: it is good below this.
        limit: both for people; empty where there is none.
        margin: what chance may take it beyond either.
        where: axis or band of detail that it is of; empty for the whole.
    """

    subject: str
    what: str
    value: float
    text: str
    low: float
    high: float
    limit: str
    margin: float = 0.0
    where: str = ""

    @property
    def weak(self) -> bool:
        """Whether the number is below its limits."""
        return self.value < self.low - self.margin

    @property
    def good(self) -> bool:
        """Whether the number is within its limits; what is no number is not."""
        return self.low - self.margin < self.value < self.high + self.margin


def checks(noise: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[Check]:
    """The numbers of a result that stand in the table of its page, in that order.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        numbers: of :func:`cryoshuffle.report.measurement.measure`.

    Raises:
        ValueError: if there are more or fewer powers than bands of detail, or correlations than lags.
    """
    listed = []
    if "power" in numbers:
        listed += _power_checks(numbers["power"])
    if "removed" in numbers:
        listed += _removed_checks(numbers["removed"])
    if "residual" in numbers:
        # Behind a Gaussian the residual holds fine detail.
        listed += _residual_checks(numbers["residual"], None if "smoothed" in numbers else noise)
    if "seams" in numbers:
        jumps = numbers["seams"]["borders"]
        what = "jumps at window borders, over those nearby"
        listed.append(Check("seams", what, jumps, f"{jumps:.2f}", -math.inf, _SEAMS, f"{_SEAMS}"))
    for axis, lattice in numbers.get("lattice", {}).items():
        listed += _lattice_checks(axis, lattice)
    if "ratio" in numbers.get("error_map", {}):
        listed += _map_checks(numbers["error_map"])
    return listed


def _power_checks(power: Mapping[str, Any]) -> list[Check]:
    """Of the residual, by band of detail."""
    listed = []
    for ratio, error, least, name in zip(power["ratios"], power["errors"], _LEAST_POWER, DETAIL_NAMES, strict=True):
        what = f"residual over noise, power in detail of {name} voxels"
        low, limit = (least, f"{least} to {_MOST_POWER}") if least else (-math.inf, f"{_MOST_POWER}")
        listed.append(Check("power", what, ratio, f"{ratio:.2f}", low, _MOST_POWER, limit, _CHANCE * error, name))
    return listed


def _removed_checks(removed: Mapping[str, Any]) -> list[Check]:
    """Of what residual and tomogram have in common, by band of detail."""
    listed = []
    for ratio, error, (low, high), name in zip(
        removed["ratios"], removed["errors"], _REMOVED, DETAIL_NAMES, strict=True
    ):
        what = f"residual times tomogram, over the power of the noise, in detail of {name} voxels"
        limit = f"{low} to {high}"
        listed.append(Check("removed", what, ratio, f"{ratio:.2f}", low, high, limit, _CHANCE * error, name))
    return listed


def _residual_checks(residual: Mapping[str, Any], noise: Mapping[str, Any] | None) -> list[Check]:
    """Correlations of the residual, with the result and with itself."""
    shared, coarse = residual["correlation_with_result"], residual["low_frequency_correlation"]
    listed = [
        Check("shared", what, value, f"{value:+.3f}", _SHARED, math.inf, f"{_SHARED}")
        for what, value in (
            ("residual and result, correlation", shared),
            ("residual and result, correlation of coarse detail", coarse),
        )
    ]
    known = {} if noise is None else noise.get("autocorrelation") or {}
    for axis, values in residual["autocorrelation"].items():
        what, text, apart = f"residual with itself along {axis}, 1 to 4 voxels apart", _lags(values), 0.0
        most, limit = math.inf, ""
        if axis in known:
            apart = max(abs(a - b) for a, b in zip(values, known[axis], strict=True))
            text, most, limit = f"{text}   (noise: {_lags(known[axis])})", _ALIKE, f"{_ALIKE} from the noise"
        listed.append(Check("alike", what, apart, text, -math.inf, most, limit, where=axis))
    return listed


def _lags(correlations: Sequence[float]) -> str:
    return " ".join(f"{r:+.2f}" for r in correlations)


def _lattice_checks(axis: str, lattice: Mapping[str, Any]) -> list[Check]:
    """Of the result, along an axis of the lattice."""
    excess, most, strongest = lattice["excess"], 1 + _STRIPES * lattice["scatter"], lattice["imbalance"]
    stripes = f"stripes along {axis} of period {lattice['stride']}, over the power nearby"
    planes = f"fine detail along {axis} in the strongest planes, over the mean"
    return [
        Check("stripes", stripes, excess, f"{excess:.2f}", -math.inf, most, f"{most:.2f}", where=axis),
        Check("planes", planes, strongest, f"{strongest:.2f}", -math.inf, _IMBALANCE, f"{_IMBALANCE}", where=axis),
    ]


def _map_checks(compared: Mapping[str, Any]) -> list[Check]:
    """Of the error map, on the whole and where the map is least, and so on."""
    low, high = _MAP
    parts = len(compared["ratios"])
    where = ["", *(f"{number} of {parts}" for number in range(1, parts + 1))]
    listed = []
    for place, ratio, error in zip(
        where, [compared["ratio"], *compared["ratios"]], [compared["error"], *compared["errors"]], strict=True
    ):
        what = f"error map, part {place} from low to high" if place else "error map"
        what += ": noise of the halves in the result over drawn noise, power"
        text, limit = f"{ratio:.2f} ± {error:.2f}", f"{low} to {high}"
        listed.append(Check("map", what, ratio, text, low, high, limit, _CHANCE * error, place))
    return listed


def findings(
    noise: Mapping[str, Any] | None,
    refinement: Mapping[str, Any] | None,
    numbers: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
) -> list[Finding]:
    """What noise, judgement and result of a run say about it: each number, and whether it is good.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        refinement: content of ``refinement.json``; None without the second stage.
        numbers: of :func:`cryoshuffle.report.measurement.measure`.
        history: lines of ``history.jsonl``.
    """
    listed, checked = [], checks(noise, numbers)
    if noise is not None:
        listed += [*_noise_finding(noise), *_wedge_finding(noise)]
    listed += _time_findings(history, refinement)
    if refinement is not None:
        listed += _share_findings(refinement)
    listed += _kept_nothing_or_all(numbers.get("kept"), noise is not None)
    listed += _painted_findings(refinement, numbers)
    if "power" in numbers:
        listed.append(_power_finding([one for one in checked if one.subject == "power"], noise is not None))
        listed.append(_place_finding(numbers["power"]["regions"]))
    if any(one.subject == "map" for one in checked):
        listed.append(_map_finding([one for one in checked if one.subject == "map"]))
    if "removed" in numbers:
        listed.append(_removed_finding([one for one in checked if one.subject == "removed"], noise is not None))
    if "halves" in numbers:
        listed.append(_halves_finding(numbers["halves"]))
    if "smoothed" in numbers:
        words = (
            f"A Gaussian of {numbers['smoothed']:g} voxels lies over the result, as asked for with --smooth. The "
            "residual holds what it took, so it is not compared with the noise."
        )
        listed.append(Finding("ok", words, "measured"))
    elif "signal_left" in numbers:
        listed.append(_kept_finding(numbers["signal_left"]))
    listed += [_seams_finding(one, numbers["seams"]["halfway"]) for one in checked if one.subject == "seams"]
    listed += [
        _stripes_finding(one, numbers["lattice"][one.where]["stride"]) for one in checked if one.subject == "stripes"
    ]
    listed += _other_findings(checked)
    if "not_measured" in numbers:
        words = f"The result was not measured: {numbers['not_measured']}."
        listed.append(Finding("look", words, "measured", "Judge it by eye alone."))
    return listed


def _kept_nothing_or_all(kept: Mapping[str, float] | None, measured_here: bool) -> list[Finding]:
    """A result that is next to nothing, or that is the tomogram; nothing to say of others."""
    if kept is None:
        return []
    if kept["result"] < _EMPTY:
        words = (
            f"The result is next to empty: it has {kept['result']:.0e} times the power of the tomogram, good from "
            f"{_EMPTY:.0e} up. No signal was found."
        )
        advice = "Make sure that the tomogram is more than noise."
        return [
            Finding("bad", words, "empty", advice if measured_here else "Fit this tomogram by itself, and compare.")
        ]
    if kept["residual"] < _EMPTY:
        words = "The result is the tomogram: next to nothing was removed."
        return [Finding("look", words, "empty", "Give less of --detail.")]
    return []


def _noise_finding(noise: Mapping[str, Any]) -> list[Finding]:
    """Whether a blind spot fits the noise; nothing where that was not measured."""
    if noise["clean"] is None:
        return []
    if noise["clean"]:
        return [Finding("ok", f"The blind spot fits the noise: {noise['reason']}.", "noise")]
    words = f"The blind spot does not fit the noise, part of which may be learnt: {noise['reason']}."
    advice = "Trust no detail that a Gaussian of the tomogram does not show too."
    known = {axis: max(map(abs, lags)) for axis, lags in (noise.get("autocorrelation") or {}).items()}
    cleanest = min(known, key=known.__getitem__, default=None)
    if cleanest is not None and noise.get("axis") in known and known[cleanest] < _CLEANER * known[noise["axis"]]:
        advice = f"Along {cleanest} the noise is cleaner: leave out --tilt-axis, or make sure of it. {advice}"
    return [Finding("bad", words, "noise", advice)]


def _wedge_finding(noise: Mapping[str, Any]) -> list[Finding]:
    """The missing wedge, where it names another tilt axis; older files say nothing of it."""
    words = noise.get("contradiction")
    if not words:
        return []
    advice = f"With the wrong axis noise is learnt: make sure of it, and denoise with --tilt-axis {noise['wedge']} too."
    return [Finding("look", f"{words[0].upper()}{words[1:]}.", "wedge", advice)]


def _time_findings(history: Sequence[Mapping[str, Any]], refinement: Mapping[str, Any] | None) -> list[Finding]:
    """Stages whose minutes ran out, and a fit of few steps."""
    short = [line for line in history if line.get("out_of_time")]
    if short:
        where = ", ".join(f"{line['stage']} after step {line['step']} of {line['steps']}" for line in short)
        words = f"The fit was cut short by --minutes: {where}."
        advice = "Give it more minutes, or compare with --effort fast, which fits nothing."
        return [Finding("look", words, "time", advice)]
    last = {line["stage"]: line["step"] for line in history}
    steps = sum(last.values())
    if refinement is None or not refinement.get("fitted", True) or not last or steps >= _FEW_STEPS:
        return []
    words = f"The fit was short: {steps} steps, good from {_FEW_STEPS}."
    return [Finding("look", words, "time", "Leave --steps out, or compare with --effort fast, which fits nothing.")]


def _share_findings(refinement: Mapping[str, Any]) -> list[Finding]:
    """How network and filter share the result."""
    share = refinement["trust"]
    if not refinement.get("trusted", True):
        words = f"The result is all the best linear filter's: {refinement['doubt']}."
        return [Finding("look", words, "share", "Erase the beads in the tilt images, and reconstruct again.")]
    words = (
        f"{share:.0%} of the result is the network's, {1 - share:.0%} that of the best linear filter, as judged on "
        "noise drawn anew"
    )
    if share >= _MOSTLY:
        listed = [Finding("ok", f"{words}: good, most is the network's.", "share")]
    else:
        why, advice = _why_so_little(refinement)
        listed = [Finding("look", f"{words}: less than half is the network's; {why}.", "share", advice)]
    if refinement.get("excessive"):
        middle = refinement.get("middle_weight")
        whole = refinement["weight"] if middle is None else min(refinement["weight"], middle)
        # Runs of 0.2 before the middle was looked at counted the finest band too.
        first = 1 if "middle_weight" in refinement else 0
        asked = max([whole, *(band["weight"] for band in refinement.get("bands", [])[first:])])
        where = "" if asked == whole else " in one band of detail"
        words = (
            f"The noise is not quite known: judged with it, the best result has{where} {asked:.2f} times the network "
            "beside the filter, and more than all there cannot be."
        )
        listed.append(Finding("look", words, "excess", "Compare fine detail with a Gaussian of the tomogram."))
    return listed


def _why_so_little(refinement: Mapping[str, Any]) -> tuple[str, str]:
    """Why a network has less than half of the result, and what to do about it."""
    if refinement.get("fitted", True):
        why = "the volume is too small or too noisy for more, or the fit was too short"
        return why, "Take it for a filtered tomogram; a longer fit may give the network more."
    if refinement.get("doubt"):
        return refinement["doubt"], "Take it for a filtered tomogram."
    why = "the volume is too noisy for the starting network, or too unlike the simulations that it was trained on"
    return why, "Take it for a filtered tomogram, or fit the network to it: --effort standard."


def _power_finding(bands: Sequence[Check], measured_here: bool) -> Finding:
    """How strong the residual is beside the noise, by band of detail.

    That of another tomogram, which the model was fitted to, may differ for no fault of the result.
    """
    weak = [one for one in bands if one.weak]
    strong = [one for one in bands if not one.good and not one.weak]
    noise = "the measured noise" if measured_here else "the noise that the model was fitted to"
    if not strong and not weak:
        words = (
            f"The residual is as strong as {noise}: {bands[0].text} times its power in the finest detail, good from "
            f"{_LEAST_POWER[0]} to {_MOST_POWER}, and at most {max(one.value for one in bands[1:]):.2f} times in "
            "coarser detail, where part of the noise stays in the result, as is expected."
        )
        return Finding("ok", words, "power")
    if strong:
        worst = max(strong, key=lambda one: one.value)
        limit, why = f"up to {worst.high}", "signal was taken away, or the noise is stronger"
        advice = "Look for structures in the residual; if there are some, give --detail 0.1 or another --effort."
    else:
        worst = min(weak, key=lambda one: one.value)
        limit, why = f"from {worst.low} up", "noise was left in, or it is weaker"
        advice = "Trust no texture as fine as that; name even and odd half, which tell the noise better."
    words = (
        f"The residual has {worst.text} times the power of {noise} in detail of {worst.where} voxels, good {limit}: "
        f"{why} than {'it was measured' if measured_here else 'that'}."
    )
    if measured_here:
        return Finding("bad", words, "power", advice)
    return Finding("look", words, "power", "Fit this tomogram by itself, and compare.")


def _place_finding(regions: Mapping[str, Any]) -> Finding:
    """Whether the noise is as strong at each place as it was taken for."""
    low, high = _PLACES
    ratios = regions["ratios"]
    margins = [max(low - r, r - high) - _CHANCE * e for r, e in zip(ratios, regions["errors"], strict=True)]
    worst = margins.index(max(margins))
    if margins[worst] <= 0:
        words = (
            f"The noise is as strong at each place as it was modelled: the residual has {min(ratios):.2f} to "
            f"{max(ratios):.2f} times its power, good from {low} to {high}."
        )
        return Finding("ok", words, "place")
    z, y, x = regions["places"][worst]
    more = ratios[worst] > 1
    words = (
        f"The noise differs from place to place by more than was modelled: around z = {z}, y = {y}, x = {x} the "
        f"residual has {ratios[worst]:.2f} times its power, good from {low} to {high}."
    )
    why = "noise may be left in, or signal taken away" if more else "detail may be lost, or noise left in"
    return Finding("look", words, "place", f"Look there: {why}.")


def _map_finding(checked: Sequence[Check]) -> Finding:
    """Whether the noise of the halves stays in the result as the error map has it."""
    whole, *parts = checked
    bad = [one for one in checked if not one.good]
    if not bad:
        values = [one.value for one in parts]
        words = (
            f"The error map agrees with the halves: their noise stays in the result with {whole.value:.2f} times the "
            f"power of drawn noise, {min(values):.2f} to {max(values):.2f} times in parts of the map from low to high, "
            f"good from {whole.limit}."
        )
        return Finding("ok", words, "map")
    worst = max(bad, key=lambda one: abs(math.log(max(one.value, 1e-6))))
    where = f" in part {worst.where} of the map from low to high" if worst.where else ""
    words = (
        f"The error map does not agree with the halves: their noise stays in the result with {worst.text} times the "
        f"power of drawn noise{where}, good from {whole.limit}."
    )
    advice = (
        f"Take the map for where errors are, and multiply it by {max(worst.value, 0.0) ** 0.5:.2f} "
        f"{'there' if where else 'for how large they are'}; make sure that the halves are those of this tomogram."
    )
    return Finding("look", words, "map", advice)


def _removed_finding(bands: Sequence[Check], measured_here: bool) -> Finding:
    """Whether as much was taken away as there is noise, by band of detail.

    That of another tomogram, which the model was fitted to, may differ for no fault of the result.
    """
    noise = "the measured noise" if measured_here else "the noise that the model was fitted to"
    beyond = [one for one in bands if not one.good]
    if not beyond:
        words = (
            f"As much was taken away as there is noise: in each band of detail residual and tomogram have "
            f"{min(one.value for one in bands):.2f} to {max(one.value for one in bands):.2f} times the power of "
            f"{noise} in common; 1 is right."
        )
        return Finding("ok", words, "removed")
    worst = max(beyond, key=lambda one: one.low - one.value if one.weak else one.value - one.high)
    words = (
        f"In detail of {worst.where} voxels residual and tomogram have {worst.text} times the power of {noise} in "
        f"common, good from {worst.low} to {worst.high}: "
    )
    if worst.weak:
        words += "noise was left in, or signal was made too strong, or the noise is weaker."
        advice = "Compare detail of that size with the tomogram behind a Gaussian."
    else:
        words += "signal was taken away with the noise, or the noise is stronger."
        advice = "Look for structures of that size in the residual."
    return Finding("look", words, "removed", advice if measured_here else "Fit this tomogram by itself, and compare.")


def _other_findings(checked: Sequence[Check]) -> list[Finding]:
    """What the table tells to look at and no other finding is of; of what is good there is nothing to say."""
    listed = []
    for one in checked:
        if one.good:
            continue
        if one.subject == "shared":
            words = (
                f"The residual holds the negative of the result: {one.what} {one.value:+.2f}, good above {one.limit}. "
                "Signal was made stronger than it is."
            )
            listed.append(Finding("look", words, "shared", "Measure no grey values of the result."))
        elif one.subject == "alike":
            words = (
                f"Along {one.where} the correlation of the residual with itself differs from that of the noise by "
                f"{one.value:.2f}, good up to {one.high}: not all of it is noise, or the noise was misjudged."
            )
            listed.append(Finding("look", words, "alike", "Look for structures in the residual."))
        elif one.subject == "planes":
            words = (
                f"The planes of the lattice along {one.where} differ in fine detail: the strongest have {one.text} "
                f"times the mean, good below {one.limit}."
            )
            listed.append(
                Finding("look", words, "planes", "Take no difference between neighbouring planes for detail.")
            )
    return listed


def _kept_finding(kept: Mapping[str, Any]) -> Finding:
    """Whether the residual is stronger where there is structure."""
    limit = _LEFT_RATIO + 2 * kept["scatter"]
    words = (
        f"Coarse detail of the residual is {kept['ratio']:.2f} times as strong where there is structure as elsewhere, "
        f"good below {limit:.2f}"
    )
    if kept["ratio"] < limit:
        why = "; below 1 is natural, as more of the noise stays in the result there" if kept["ratio"] < 1 else ""
        return Finding("ok", f"{words}{why}.", "kept")
    z, y, x = kept["where"]
    why = f"some signal was taken away, or the noise is stronger there. Most at z = {z}, y = {y}, x = {x}"
    return Finding("look", f"{words}: {why}.", "kept", "Look at the residual there.")


def _seams_finding(jumps: Check, halfway: float) -> Finding:
    """Whether there are seams between windows."""
    words = (
        f"{'No seams' if jumps.good else 'Seams'} between the windows it was denoised in: jumps at their borders are "
        f"{jumps.text} times those nearby, good below {jumps.limit}"
    )
    if jumps.good:
        return Finding("ok", f"{words}.", "seams")
    why = f"halfway between borders they are {halfway:.2f} times"
    return Finding("look", f"{words}; {why}.", "seams", "Denoise with a larger --inference-window.")


def _stripes_finding(excess: Check, stride: int) -> Finding:
    """Whether there are stripes of the lattice along an axis."""
    words = "No stripes of the lattice" if excess.good else f"Stripes of period {stride}"
    power = f"{words} along {excess.where}: {excess.text} times the power nearby, good below {excess.limit}"
    if excess.good:
        return Finding("ok", f"{power}; lines of other periods come from the tilts and are in the tomogram.", "stripes")
    return Finding("look", f"{power}.", "stripes", "Take no repeat of that period for structure.")


def _halves_finding(halves: Mapping[str, Any]) -> Finding:
    """How far the halves agree."""
    crossing = halves["crossing"]
    if not halves["beyond_chance"] or (crossing is None and halves["fsc"][-1] < HALF_THRESHOLD):
        words = (
            f"Even and odd half agree at no frequency beyond chance (FSC {HALF_THRESHOLD}): there is hardly any signal "
            "in them, and little to check the result with."
        )
        return Finding("look", words, "halves", "Make sure that they are halves of this tomogram.")
    part = "" if crossing is None else f", {2 * crossing:.0%} of the frequencies that the voxels hold"
    words = (
        f"The data hold signal {resolution(halves)}{part} (even against odd half, FSC {HALF_THRESHOLD}); finer detail "
        "in the result has little support in them."
    )
    return Finding("ok", words, "halves")


def _negative_finding(painted: Mapping[str, Any]) -> Finding:
    """Whether the finest detail of the result is the negative of the noise in a region."""
    regions = list(zip(painted["correlations"], painted["strengths"], painted["places"], strict=True))
    beyond = [region for region in regions if region[0] <= _PAINTED]
    if not beyond:
        least = f"correlation {min(painted['correlations']):+.2f}"
        words = f"The result holds no negative of the noise: {least} or more in every region, good above {_PAINTED}."
        return Finding("ok", words, "painted")
    correlation, strength, (y, x) = max(beyond, key=lambda region: region[1])
    words = (
        f"The finest detail of the result is the negative of the noise: correlation {correlation:+.2f} around "
        f"y = {y}, x = {x}, good above {_PAINTED}. "
    )
    return _texture_finding("painted", words, strength)


def _texture_finding(subject: str, words: str, strength: float) -> Finding:
    """Texture that is in no data: how bad it is depends on whether it can be seen."""
    if strength < _VISIBLE:
        words += f"It has {strength:.1%} of the contrast of the detail there, too little to be seen."
        return Finding("look", words, subject, "Take no detail of that size for structure.")
    return Finding("bad", f"{words}It is a texture that is in no data.", subject, _AGAIN)


def _painted_findings(refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[Finding]:
    """What result and tomogram have in common where there is nearly nothing but noise."""
    listed = []
    if "painted" in numbers:
        painted = numbers["painted"]
        listed.append(_negative_finding(painted))
        uneven = max(painted["levels"]) / max(1e-6, min(painted["levels"]))
        if refinement is not None and not refinement.get("levels", True) and uneven > _UNEVEN:
            words = (
                f"The noise is {uneven:.2f} times as strong in one region as in another, good up to {_UNEVEN}, and was "
                "taken for even: where it is weak detail may be lost, where it is strong noise may be left."
            )
            listed.append(Finding("look", words, "uneven", "Compare the regions in the residual."))
    slopes = numbers.get("slopes")
    if slopes is not None and min(slopes) < 0:
        strengths = numbers.get("slope_strengths", [1.0] * len(slopes))
        worst = max((number for number, slope in enumerate(slopes) if slope < 0), key=lambda number: strengths[number])
        low, high = DETAIL_BANDS[worst]
        words = (
            f"Detail of {_width(low)} to {_width(high)} voxels in the result runs against the tomogram: slope "
            f"{slopes[worst]:.2f}, good from 0 up. "
        )
        listed.append(_texture_finding("against", words, strengths[worst]))
    return listed


def graded(noise: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Numbers of a result for people: what was measured, the value, and whether it is good.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        numbers: of :func:`cryoshuffle.report.measurement.measure`.

    Raises:
        ValueError: as :func:`checks`.
    """
    listed = []
    for one in checks(noise, numbers):
        words = "no limit, the noise was not measured here"
        if one.limit:
            side = "above " if one.high == math.inf else "up to " if one.low == -math.inf else ""
            words = f"{'good' if one.good else 'look'}; good is {side}{one.limit}"
        listed.append((one.what, one.text, words))
    return listed
