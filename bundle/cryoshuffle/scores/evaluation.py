"""Scores of a denoised tomogram: whatever the volumes at hand allow, as plain values and as a table for people.

With a truth: correlation, PSNR, SSIM and Fourier shell correlation. With the other, raw half: the correlation with
that, which is unbiased since its noise is independent. With the noisy tomogram: what was taken away. With window and
lattice: what artefacts were added. Volumes are (Z, Y, X).
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.volumes import common_voxel_size, voxel_sizes
from cryoshuffle.files.writing import checksum
from cryoshuffle.lattice import AXES, Triple, as_triple
from cryoshuffle.noise.estimate import noise_from_halves
from cryoshuffle.scores.artefacts import (
    FEWEST_PERIODS,
    lattice_excess,
    lattice_scatter,
    residual_report,
    residue_imbalance,
    window_seams,
)
from cryoshuffle.scores.metrics import check_comparable, correlation, psnr_after_fit, ssim_after_fit
from cryoshuffle.scores.shells import crossing, fourier_shell_correlation

logger = logging.getLogger("cryoshuffle")
TRUTH_THRESHOLD = 0.5
HALF_THRESHOLD = 0.143
# Powers of 2 from which on grey values are scaled.
_FAR = 40
# Correlation with what was denoised below which it is another tomogram: results of the noisiest have .1.
_SAME_TOMOGRAM = 0.02
# Fourier shell correlation of two volumes in the finest detail, from which on they have noise in common.
_SAME_NOISE = 0.6


def _agreement(a: Tensor, b: Tensor, threshold: float, voxel_size_angstrom: float | None) -> dict[str, Any]:
    """Correlation of two volumes, in all and by shell."""
    frequency, values = fourier_shell_correlation(a, b)
    limit = crossing(frequency, values, threshold)
    scores: dict[str, Any] = {
        "correlation": correlation(a, b),
        "frequency": frequency,
        "fsc": values,
        "threshold": threshold,
        "crossing": limit,
    }
    if voxel_size_angstrom is not None:
        scores["resolution_angstrom"] = None if limit is None else voxel_size_angstrom / limit
    return scores


def halves_agreement(even: Tensor, odd: Tensor, voxel_size_angstrom: float | None = None) -> dict[str, Any]:
    """How far two raw halves agree: what the data itself holds, whatever a denoiser makes of it.

    Their noise is independent, that of a result made from both is of neither; so this is a yardstick to lay beside
    a result, not its score. What both halves have besides the specimen, streaks for instance, counts as signal.

    Args:
        even: one half.
        odd: the other.
        voxel_size_angstrom: for resolutions.

    Returns:
        As ``other_half`` of :func:`evaluate`, and ``mean_fsc``: the correlation that the mean of both would have with
        their signal alone, ``sqrt(2 FSC / (1 + FSC))``; it is 0.5 where the FSC is 0.143. ``beyond_chance``: whether
        they agree further than noise might, since the first shells have few coefficients: the mean FSC up to the
        crossing, over all coefficients there, is more than three times its standard error for noise.

    Shape:
        both ``(Z, Y, X)``.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.

    Source:
        Rosenthal & Henderson 2003, "Optimal determination of particle orientation, absolute hand, and contrast loss
        in single-particle electron cryomicroscopy".
    """
    agreement = _agreement(even, odd, HALF_THRESHOLD, voxel_size_angstrom)
    shared = [max(r, 0.0) for r in agreement["fsc"]]
    # Coefficients of a shell in cycles per voxel, half of them, as the others mirror them.
    longest = max(even.shape)
    counts = [2 * math.pi * (k * longest) ** 2 * even.numel() / longest**3 for k in agreement["frequency"]]
    reach = 0.5 if agreement["crossing"] is None else agreement["crossing"]
    held = [(n, r) for n, k, r in zip(counts, agreement["frequency"], agreement["fsc"], strict=True) if k <= reach]
    total = sum(n for n, _ in held)
    return {
        **agreement,
        "mean_fsc": [math.sqrt(2 * r / (1 + r)) for r in shared],
        "beyond_chance": sum(n * r for n, r in held) > 3 * math.sqrt(total),
    }


def _against_truth(volume: Tensor, truth: Tensor, voxel_size_angstrom: float | None) -> dict[str, Any]:
    return {
        "psnr_db": psnr_after_fit(volume, truth),
        "ssim": ssim_after_fit(volume, truth),
        **_agreement(volume, truth, TRUTH_THRESHOLD, voxel_size_angstrom),
    }


def _lattice(result: Tensor, truth: Tensor | None, strides: Triple) -> dict[str, Any]:
    """Stripes along each axis that has a lattice and is long enough to tell."""
    stripes: dict[str, Any] = {}
    for axis, step, side in zip(AXES, strides, result.shape, strict=True):
        if step > 1 and side >= FEWEST_PERIODS * step:
            stripes[axis] = {
                "stride": step,
                "excess": lattice_excess(result, axis, step),
                "scatter": lattice_scatter(result, axis, step),
                "imbalance": residue_imbalance(result, axis, step),
            }
            if truth is not None:
                stripes[axis]["truth_excess"] = lattice_excess(truth, axis, step)
    return stripes


def _factor(volumes: Sequence[Tensor]) -> float:
    """What grey values are multiplied by so that their squares fit into float32: 1 unless they are far from it."""
    exponent = max(math.frexp(max(abs(float(v)) for v in torch.aminmax(volume)))[1] for volume in volumes)
    # A power of 2 moves no bit.
    return 1.0 if abs(exponent) < _FAR else 2.0**-exponent


def evaluate(
    result: Tensor,
    *,
    truth: Tensor | None = None,
    noisy: Tensor | None = None,
    other_half: Tensor | None = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    voxel_size_angstrom: float | None = None,
) -> dict[str, Any]:
    """All scores that the given volumes allow.

    Args:
        result: the denoised tomogram.
        truth: what it should be.
        noisy: what was denoised, in the grey values of the result; it is scored as well, to compare with.
        other_half: a raw half whose noise is independent of what was denoised (not of the mean of both halves, which
            holds it).
        window: distance of the borders of the windows it was denoised in, along (Z, Y, X), voxels.
        stride: lattice stride, one for all axes, or three along (Z, Y, X).
        voxel_size_angstrom: for resolutions.

    Returns:
        Plain values for a JSON file. ``truth`` and ``noisy_truth`` (of the noisy tomogram), ``other_half`` and
        ``noisy_other_half`` hold ``correlation``, ``fsc`` by ``frequency`` (cycles per voxel), ``threshold``,
        ``crossing`` (cycles per voxel) and ``resolution_angstrom``, those of the truth also ``psnr_db`` and ``ssim``.
        ``residual`` is :func:`~cryoshuffle.scores.artefacts.residual_report`; with the other half ``noise`` holds the
        autocorrelation it should have. ``seams`` is the ratio at ``borders`` and ``halfway`` between them. ``lattice``
        holds ``excess`` (with a truth also ``truth_excess``), ``scatter`` and ``imbalance`` by axis, where the axis
        is long enough. What was not given is left out.

    Shape:
        all ``(Z, Y, X)``.

    Raises:
        InputError: if shapes differ, a voxel is not finite, or a volume is constant or too small.
        SettingError: for a window, stride or voxel size that cannot be.
    """
    if voxel_size_angstrom is not None and not 0 < voxel_size_angstrom < math.inf:
        raise SettingError(f"voxel size is {voxel_size_angstrom} Å: give more than 0, or leave it out")
    strides = as_triple(1 if stride is None else stride, "stride", 1)
    given = {"result": result, "truth": truth, "noisy": noisy, "other_half": other_half}
    check_comparable(**{name: volume for name, volume in given.items() if volume is not None})
    factor = _factor([volume for volume in given.values() if volume is not None])
    if factor != 1:
        result = result * factor
        truth, noisy, other_half = (None if v is None else v * factor for v in (truth, noisy, other_half))
    report: dict[str, Any] = {"shape": list(result.shape), "voxel_size_angstrom": voxel_size_angstrom}
    if truth is not None:
        report["truth"] = _against_truth(result, truth, voxel_size_angstrom)
        if noisy is not None:
            report["noisy_truth"] = _against_truth(noisy, truth, voxel_size_angstrom)
    if other_half is not None:
        report["other_half"] = _agreement(result, other_half, HALF_THRESHOLD, voxel_size_angstrom)
        if noisy is not None:
            report["noisy_other_half"] = _agreement(noisy, other_half, HALF_THRESHOLD, voxel_size_angstrom)
            noise = noise_from_halves(noisy, other_half)
            report["noise"] = {a: list(noise.autocorrelation[a]) for a in AXES}
    if noisy is not None:
        report["residual"] = residual_report(noisy, result)
        for name in ("residual_power", "result_power"):
            report["residual"][name] = [power / factor**2 for power in report["residual"][name]]
    if window is not None:
        widths = as_triple(window, "window", 1)
        if any(w < n - 1 for w, n in zip(widths, result.shape, strict=True)):
            report["seams"] = window_seams(result, widths, strides)
    if stride is not None:
        report["lattice"] = _lattice(result, truth, strides)
    return report


def evaluate_files(
    result: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    noisy: str | os.PathLike[str] | None = None,
    other_half: str | os.PathLike[str] | None = None,
    window: int | Sequence[int] | None = None,
    stride: int | Sequence[int] | None = None,
    permissive: bool = False,
) -> dict[str, Any]:
    """:func:`evaluate` on files, with grey values as they are and the voxel size of the result's MRC header.

    Args:
        result: path of the denoised tomogram.
        truth: path of what it should be.
        noisy: path of what was denoised.
        other_half: path of a raw half whose noise is independent of what was denoised.
        window: as :func:`evaluate`.
        stride: as :func:`evaluate`.
        permissive: also take MRC files whose header breaks the standard.

    Returns:
        those of :func:`evaluate`, ``files``, the paths that were given by name, and ``sha256`` of the result.

    Raises:
        FileError: for a file that is missing or cannot be read.
        InputError, SettingError: as :func:`evaluate`.
    """
    paths = {"result": result, "truth": truth, "noisy": noisy, "other_half": other_half}
    images = {
        name: load_tomogram(path, permissive, beside=None if name == "result" else result)
        for name, path in paths.items()
        if path is not None
    }
    volumes = {name: image.as_tensor()[0] for name, image in images.items()}
    denoised = volumes.pop("result")
    voxel_size = common_voxel_size(voxel_sizes(images["result"]))
    try:
        report = evaluate(denoised, **volumes, window=window, stride=stride, voxel_size_angstrom=voxel_size)
    except InputError as error:
        raise InputError(f"{result}: {error}") from error
    if "noisy" in volumes and (shared := correlation(denoised, volumes["noisy"])) < _SAME_TOMOGRAM:
        logger.warning(
            "%s: has next to nothing in common with %s (correlation %.3f): make sure that it is what was denoised",
            noisy, result, shared,
        )  # fmt: skip
    halves = report.get("noisy_other_half")
    if halves is not None and halves["fsc"][-1] > _SAME_NOISE:
        logger.warning(
            "%s: has noise in common with %s (FSC %.2f in the finest detail), as a half has with its tomogram, so it "
            "tells nothing of the result: denoise one half, and score it by the other",
            other_half, noisy, halves["fsc"][-1],
        )  # fmt: skip
    files = {name: os.path.abspath(path) for name, path in paths.items() if path is not None}
    return {**report, "files": files, "sha256": checksum(result)}


def fsc_curves(report: Mapping[str, Any]) -> dict[str, tuple[list[float], list[float]]]:
    """The Fourier shell correlations of a report by name, to draw; empty if there is none.

    Args:
        report: of :func:`evaluate`.
    """
    names = {
        "truth": "denoised, truth",
        "noisy_truth": "noisy, truth",
        "other_half": "denoised, other half",
        "noisy_other_half": "noisy, other half",
    }
    return {words: (report[name]["frequency"], report[name]["fsc"]) for name, words in names.items() if name in report}


def resolution(scores: Mapping[str, Any]) -> str:
    """How far a curve stays above its threshold, in words.

    Args:
        scores: of one comparison, see :func:`evaluate`.
    """
    limit = scores["crossing"]
    if limit is None:
        above = scores["fsc"][-1] >= scores["threshold"]
        return "to the finest detail the voxels hold" if above else "at no frequency"
    if scores.get("resolution_angstrom") is None:
        return f"to {limit:.3f} cycles/voxel"
    return f"to {scores['resolution_angstrom']:.1f} Å"


def rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report of :func:`evaluate` for people: what was scored, and the score.

    Args:
        report: of :func:`evaluate`.

    Raises:
        InputError: if there is nothing in it but the result itself.
    """
    lines: list[tuple[str, str]] = []

    def compare(key: str, label: str, show: str, unit: str = "") -> None:
        """A score of the result, and beside it that of the noisy tomogram."""
        name, _, score = key.partition(".")
        if name in report:
            text = f"{report[name][score]:{show}}{unit}"
            if f"noisy_{name}" in report:
                text += f"   (noisy: {report[f'noisy_{name}'][score]:{show}}{unit})"
            lines.append((label, text))

    compare("truth.correlation", "correlation with the truth", ".3f")
    compare("truth.psnr_db", "peak signal-to-noise ratio", ".1f", " dB")
    compare("truth.ssim", "structural similarity (SSIM)", ".3f")
    compare("other_half.correlation", "correlation with the other half", ".3f")
    for name, label in (("truth", "truth"), ("other_half", "other half")):
        if name in report:
            text = resolution(report[name])
            if f"noisy_{name}" in report:
                text += f"   (noisy: {resolution(report[f'noisy_{name}'])})"
            lines.append((f"agrees with the {label} (FSC {report[name]['threshold']:g})", text))
    if "residual" in report:
        residual = report["residual"]
        lines.append(("residual: correlation with result", f"{residual['correlation_with_result']:+.3f}"))
        lines.append(("residual: the same, coarse detail", f"{residual['low_frequency_correlation']:+.3f}"))
        for name in AXES:
            text = " ".join(f"{r:+.2f}" for r in residual["autocorrelation"][name])
            if "noise" in report:
                text += f"   (noise: {' '.join(f'{r:+.2f}' for r in report['noise'][name])})"
            lines.append((f"residual: along {name}, 1 to 4 voxels", text))
    if "seams" in report:
        seams = report["seams"]
        text = f"{seams['borders']:.2f} times those nearby   (halfway between borders: {seams['halfway']:.2f})"
        lines.append(("jumps at window borders", text))
    for name, lattice in report.get("lattice", {}).items():
        chance = f"±{100 * lattice['scatter']:.0f} % by chance"
        if "truth_excess" in lattice:
            chance += f", truth: {lattice['truth_excess']:.2f}"
        text = f"{lattice['excess']:.2f} times the power nearby   ({chance})"
        lines.append((f"stripes along {name}, period {lattice['stride']}", text))
        text = f"{lattice['imbalance']:.2f} times the mean in the strongest planes"
        lines.append((f"fine detail along {name}", text))
    if not lines:
        raise InputError(
            "there is nothing to score the result with: give the truth, the other half or the noisy tomogram"
        )
    return lines


def table(report: Mapping[str, Any]) -> str:
    """:func:`rows` as text, a score a line.

    Args:
        report: of :func:`evaluate`.

    Raises:
        InputError: if there is nothing in it but the result itself.
    """
    lines = rows(report)
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}   {text}" for label, text in lines)
