"""What the numbers of a run say of its result, and which of them are good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from cryoshuffle.noise.linear_filter import BAND_EDGES
from cryoshuffle.report.verdict import Finding
from cryoshuffle.scores.artefacts import DETAIL_BANDS
from cryoshuffle.scores.evaluation import HALF_THRESHOLD, resolution

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
# Power of the residual over that of the measured noise, by band of detail, fine to coarse: seven simulated tomograms
# and a real cell have .97 to 1.01, .85 to 1.00, .62 to .98 and .35 to .86. In coarse bands more noise stays in the
# result. A result without any detail has 1.24 to 2.4 in the third band and 2.6 to 18 in the fourth.
_LEAST_POWER = (0.85, 0.7, 0.0, 0.0)
_MOST_POWER = 1.15
# The same of the finest detail, in the region where it is least and most; those have .91 to 1.01,
# and .84 to 1.07 beside noise that is taken for even.
_PLACES = (0.75, 1.2)
# Standard errors that chance may take a power beyond its limits.
_CHANCE = 3.0
# Correlation of residual and result: those have .04 to .16. And of what the correlation of the residual is off that of
# the noise at any lag: .01 to .08 but for one of .16.
_SHARED, _ALIKE = 0.25, 0.1
# Fine detail of the strongest planes of the lattice over the mean: those have 1.00 to 1.03.
_IMBALANCE = 1.1
DETAIL_NAMES = ("under 0.7", *(f"{low} to {high}" for low, high in pairwise(BAND_EDGES)))


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
    listed = []
    if noise is not None:
        listed.append(_noise_finding(noise))
    listed += _time_findings(history)
    if refinement is not None:
        listed += _share_findings(refinement)
    listed += _painted_findings(refinement, numbers)
    if "power" in numbers:
        listed += _power_findings(numbers["power"])
    if "residual" in numbers:
        listed.append(_coarse_finding(numbers["residual"]["low_frequency_correlation"]))
    if "halves" in numbers:
        listed.append(_halves_finding(numbers["halves"]))
    if "signal_left" in numbers:
        listed.append(_kept_finding(numbers["signal_left"]))
    if "seams" in numbers:
        listed.append(_seams_finding(numbers["seams"]))
    listed += [_stripes_finding(axis, stripes) for axis, stripes in numbers.get("lattice", {}).items()]
    if "not_measured" in numbers:
        words = f"The result was not measured: {numbers['not_measured']}."
        listed.append(Finding("look", words, "measured", "Judge it by eye alone."))
    return listed


def _noise_finding(noise: Mapping[str, Any]) -> Finding:
    """Whether a blind spot fits the noise."""
    if noise["clean"]:
        return Finding("ok", f"The blind spot fits the noise: {noise['reason']}.", "noise")
    words = f"The noise is not clean along any axis, part of it may be learnt: {noise['reason']}."
    return Finding("bad", words, "noise", "Trust no detail that a Gaussian of the tomogram does not show too.")


def _time_findings(history: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Stages whose minutes ran out."""
    short = [line for line in history if line.get("out_of_time")]
    if not short:
        return []
    where = ", ".join(f"{line['stage']} after step {line['step']} of {line['steps']}" for line in short)
    words = f"The fit was cut short by --minutes: {where}."
    return [Finding("look", words, "time", "Give it more minutes, or leave --minutes out.")]


def _share_findings(refinement: Mapping[str, Any]) -> list[Finding]:
    """How network and filter share the result."""
    share = refinement["trust"]
    words = (
        f"{share:.0%} of the result is the network's, {1 - share:.0%} that of the best linear filter, as judged on "
        "noise drawn anew"
    )
    if share >= _MOSTLY:
        listed = [Finding("ok", f"{words}: good, most is the network's.", "share")]
    else:
        why = "the volume is too small or too noisy, or the fit was too short, for more"
        advice = "Take it for a filtered tomogram; --effort best may give the network more."
        listed = [Finding("look", f"{words}: less than half is the network's; {why}.", "share", advice)]
    if refinement.get("excessive"):
        words = (
            f"The noise is not quite known: judged with it, the best result has {refinement['weight']:.2f} times the "
            "network beside the filter, and more than all there cannot be."
        )
        listed.append(Finding("look", words, "excess", "Compare fine detail with a Gaussian of the tomogram."))
    return listed


def _power_findings(power: Mapping[str, Any]) -> list[Finding]:
    """How strong the residual is beside the noise that was measured, by band of detail and by region."""
    listed = []
    amounts = list(zip(power["ratios"], power["errors"], _LEAST_POWER, DETAIL_NAMES, strict=True))
    strong = [(r, name) for r, e, _, name in amounts if r > _MOST_POWER + _CHANCE * e]
    weak = [(r, name) for r, e, least, name in amounts if r < least - _CHANCE * e]
    if strong:
        ratio, name = max(strong)
        words = (
            f"The residual has {ratio:.2f} times the power of the measured noise in detail of {name} voxels, good up "
            f"to {_MOST_POWER}: signal was taken away, or the noise is stronger than it was measured."
        )
        advice = "Look for structures in the residual; if there are some, give --detail 0.1 or another --effort."
        listed.append(Finding("bad", words, "power", advice))
    elif weak:
        ratio, name = min(weak)
        least = next(least for r, _, least, _ in amounts if r == ratio)
        words = (
            f"The residual has {ratio:.2f} times the power of the measured noise in detail of {name} voxels, good from "
            f"{least} up: noise was left in, or it is weaker than it was measured."
        )
        advice = "Trust no texture as fine as that; name even and odd half, which tell the noise better."
        listed.append(Finding("bad", words, "power", advice))
    else:
        words = (
            f"The residual is as strong as the measured noise: {power['ratios'][0]:.2f} times its power in the finest "
            f"detail, good from {_LEAST_POWER[0]} to {_MOST_POWER}, and at most {max(power['ratios'][1:]):.2f} times "
            "in coarser detail."
        )
        listed.append(Finding("ok", words, "power"))
    return [*listed, _place_finding(power["regions"])]


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


def _coarse_finding(shared: float) -> Finding:
    """What coarse detail residual and result have in common."""
    good = abs(shared) < _COARSE_SHARED
    words = (
        f"The residual has {'little ' if good else ''}coarse detail in common with the result: correlation "
        f"{shared:+.2f}, good within ±{_COARSE_SHARED}."
    )
    if good:
        return Finding("ok", words, "coarse")
    why = "It is signal that was removed, or noise that was kept: look at the residual."
    return Finding("look", f"{words} {why}", "coarse", "Where it shows structures, look for them in the tomogram.")


def _kept_finding(kept: Mapping[str, Any]) -> Finding:
    """Whether the residual is stronger where there is structure."""
    limit = _LEFT_RATIO + 2 * kept["scatter"]
    words = (
        f"The residual is {kept['ratio']:.2f} times as strong where there is structure as elsewhere, good below "
        f"{limit:.2f}"
    )
    if kept["ratio"] < limit:
        return Finding("ok", f"{words}.", "kept")
    z, y, x = kept["where"]
    why = f"some signal was taken away, or the noise is stronger there. Most at z = {z}, y = {y}, x = {x}"
    return Finding("look", f"{words}: {why}.", "kept", "Look at the residual there.")


def _seams_finding(seams: Mapping[str, Any]) -> Finding:
    """Whether there are seams between windows."""
    good = seams["borders"] < _SEAMS
    words = (
        f"{'No seams' if good else 'Seams'} between the windows it was denoised in: jumps at their borders are "
        f"{seams['borders']:.2f} times those nearby, good below {_SEAMS}"
    )
    if good:
        return Finding("ok", f"{words}.", "seams")
    why = f"halfway between borders they are {seams['halfway']:.2f} times"
    return Finding("look", f"{words}; {why}.", "seams", "Denoise with a larger --inference-window.")


def _stripes_finding(axis: str, stripes: Mapping[str, Any]) -> Finding:
    """Whether there are stripes of the lattice along an axis."""
    limit = 1 + _STRIPES * stripes["scatter"]
    good = stripes["excess"] < limit
    words = "No stripes of the lattice" if good else f"Stripes of period {stripes['stride']}"
    power = f"{stripes['excess']:.2f} times the power nearby, good below {limit:.2f}"
    advice = "" if good else "Take no repeat of that period for structure."
    return Finding("ok" if good else "look", f"{words} along {axis}: {power}.", "stripes", advice)


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


def _painted_findings(refinement: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[Finding]:
    """What result and tomogram have in common where there is nearly nothing but noise."""
    listed = []
    again = "Denoise with --effort fast, and compare."
    if "painted" in numbers:
        painted = numbers["painted"]
        least = f"correlation {painted['least']:+.2f}"
        if painted["least"] > _PAINTED:
            words = (
                f"The result holds no negative of the noise: {least} or more in every region, good above {_PAINTED}."
            )
            listed.append(Finding("ok", words, "painted"))
        else:
            y, x = painted["where"]
            words = (
                f"The finest detail of the result is the negative of the noise: {least} around y = {y}, x = {x}, good "
                f"above {_PAINTED}. It is a texture that is in no data."
            )
            listed.append(Finding("bad", words, "painted", again))
        uneven = max(painted["levels"]) / max(1e-6, min(painted["levels"]))
        if refinement is not None and not refinement.get("levels", True) and uneven > _UNEVEN:
            words = (
                f"The noise is {uneven:.2f} times as strong in one region as in another, good up to {_UNEVEN}, and was "
                "taken for even: where it is weak detail may be lost, where it is strong noise may be left."
            )
            listed.append(Finding("look", words, "uneven", "Compare the regions in the residual."))
    slopes = numbers.get("slopes")
    if slopes is not None and min(slopes) < 0:
        low, high = DETAIL_BANDS[slopes.index(min(slopes))]
        words = (
            f"Detail of {low} to {high} voxels in the result runs against the tomogram: slope {min(slopes):.2f}, good "
            "from 0 up. It is not from the data."
        )
        listed.append(Finding("bad", words, "against", again))
    return listed


def graded(noise: Mapping[str, Any] | None, numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Numbers of a result for people: what was measured, the value, and whether it is good.

    Args:
        noise: content of ``noise.json``; None where the network was fitted elsewhere.
        numbers: of :func:`cryoshuffle.report.measurement.measure`.
    """
    lines: list[tuple[str, str, str]] = []

    def grade(what: str, value: str, good: bool, limit: str) -> None:
        lines.append((what, value, f"{'good' if good else 'look'}, the limit is {limit}"))

    for ratio, error, least, name in zip(
        *(numbers.get("power", {}).get(key, ()) for key in ("ratios", "errors")),
        _LEAST_POWER,
        DETAIL_NAMES,
        strict=False,
    ):
        good = least - _CHANCE * error <= ratio <= _MOST_POWER + _CHANCE * error
        limit = f"{least} to {_MOST_POWER}" if least else f"{_MOST_POWER}"
        grade(f"residual over noise, power in detail of {name} voxels", f"{ratio:.2f}", good, limit)
    if "residual" in numbers:
        residual = numbers["residual"]
        shared, coarse = residual["correlation_with_result"], residual["low_frequency_correlation"]
        grade("residual and result, correlation", f"{shared:+.3f}", abs(shared) < _SHARED, f"±{_SHARED}")
        grade("the same, coarse detail", f"{coarse:+.3f}", abs(coarse) < _COARSE_SHARED, f"±{_COARSE_SHARED}")
        known = {} if noise is None else noise.get("autocorrelation") or {}
        for axis, values in residual["autocorrelation"].items():
            text = " ".join(f"{r:+.2f}" for r in values)
            what = f"residual with itself along {axis}, 1 to 4 voxels apart"
            if axis not in known:
                lines.append((what, text, "no limit, the noise was not measured here"))
                continue
            apart = max(abs(a - b) for a, b in zip(values, known[axis], strict=True))
            of_noise = " ".join(f"{r:+.2f}" for r in known[axis])
            grade(what, f"{text}   (noise: {of_noise})", apart < _ALIKE, f"{_ALIKE} from the noise")
    if "seams" in numbers:
        jumps = numbers["seams"]["borders"]
        grade("jumps at window borders, over those nearby", f"{jumps:.2f}", jumps < _SEAMS, f"{_SEAMS}")
    for axis, lattice in numbers.get("lattice", {}).items():
        limit = 1 + _STRIPES * lattice["scatter"]
        what = f"stripes along {axis} of period {lattice['stride']}, over the power nearby"
        grade(what, f"{lattice['excess']:.2f}", lattice["excess"] < limit, f"{limit:.2f}")
        strongest = lattice["imbalance"]
        what = f"fine detail along {axis} in the strongest planes, over the mean"
        grade(what, f"{strongest:.2f}", strongest < _IMBALANCE, f"{_IMBALANCE}")
    return lines
