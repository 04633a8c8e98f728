"""What a denoiser may do wrong that no truth is needed to see: signal in the residual, seams, stripes of the lattice.

Volumes are (Z, Y, X). Every ratio is 1 where nothing is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import AXES, as_triple
from cryoshuffle.noise.estimate import noise_from_halves
from cryoshuffle.noise.fields import bounded_fine_power, fine_power_of_noise, fine_voxels, level_plane
from cryoshuffle.noise.linear_filter import band_noise, bands, gaussian, gaussian_reach, smoothed
from cryoshuffle.scores.metrics import check_comparable, correlation
from cryoshuffle.scores.shells import fourier_shell_correlation, shell_power

LOW_FREQUENCY = 0.1
FEWEST_PERIODS = 16
_NEAREST, _FARTHEST, _NEIGHBOURS = 2, 4, 5
# Where else stripes are looked for, coefficients from the lattice's own, and the lowest such frequency.
_ELSEWHERE, _LOWEST = (7, 8, 9, 10), 0.1
_BLOCKS = 4
# Side of a block whose structure is told from others, voxels, and the fewest of them.
_BLOCK_SIDE, _FEWEST_BLOCKS = 16, 16
# Of the Gaussian that leaves coarse detail, voxels.
_COARSE = (1.5, 1.5, 1.5)
# What is finer than a Gaussian of this width, voxels, is nearly all noise.
_FINEST = 0.8
# Between Gaussians of these widths, voxels, fine to coarse.
DETAIL_BANDS = ((0.35, 0.7), (0.7, 1.4), (1.4, 2.8), (2.8, 5.6))
# Voxels of a region along y and along x, and the most regions along each.
_REGION, _REGIONS = 32, 3


def residual_report(before: Tensor, after: Tensor) -> dict[str, Any]:
    """What was taken away: is it noise, or does it hold signal?

    Pure noise has the autocorrelation of the noise and no correlation with the result. Signal that was removed
    correlates with the result (above 0), noise that was kept does too; signal made stronger than it was anticorrelates.
    The mean of all signals that the tomogram allows keeps some noise and loses some signal: it correlates, up to 1
    where it is no more than a filter. What was ``removed`` by :func:`beside_noise` tells it from a worse result.

    Args:
        before: the noisy tomogram, ``(Z, Y, X)``.
        after: the denoised one, in the same grey values.

    Returns:
        ``autocorrelation`` of the residual and its ``uncertainty``, for each axis at lags 1 to 4;
        ``correlation_with_result``, Pearson's; ``low_frequency_correlation``, the mean over the shells up to 0.1
        cycles per voxel, where the signal is; by shell ``frequency`` (cycles per voxel), ``shell_correlation`` with the
        result, ``residual_power`` and ``result_power`` (grey values squared).

    Raises:
        InputError: if the shapes differ, a voxel is not finite, a volume is constant, they are equal or too small.
    """
    check_comparable(before=before, after=after)
    residual = before - after
    low, high = (float(v) for v in torch.aminmax(residual))
    if low == high:
        raise InputError(
            "the volumes before and after differ by nothing but an offset: give the noisy and the denoised"
        )
    noise = noise_from_halves(before, after)
    frequency, by_shell = fourier_shell_correlation(residual, after)
    inside = [r for k, r in zip(frequency, by_shell, strict=True) if k <= LOW_FREQUENCY] or by_shell[:1]
    return {
        "autocorrelation": {axis: list(noise.autocorrelation[axis]) for axis in AXES},
        "uncertainty": {axis: list(noise.uncertainty[axis]) for axis in AXES},
        "correlation_with_result": correlation(residual, after),
        "low_frequency_correlation": sum(inside) / len(inside),
        "frequency": frequency,
        "shell_correlation": by_shell,
        "residual_power": shell_power(residual)[1],
        "result_power": shell_power(after)[1],
    }


def signal_left(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Whether the residual is stronger where there is structure, and where most: signal that was taken away.

    Noise does not know where the structure is. So the coarse part of the residual should be as strong in the quarter of
    the blocks whose result has the most structure as in the half that has the least. Sides of blocks are 16 voxels,
    smaller in volumes that hold fewer than 4 along an axis.

    Args:
        before: the noisy tomogram, ``(Z, Y, X)``.
        after: the denoised one, in the same grey values.

    Returns:
        ``ratio`` of the two powers; ``scatter``, the standard error that chance gives it; ``where``, the middle (z, y,
        x) of the block whose residual stands out most among those with structure, voxels.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, a volume is constant, has no 16 blocks, or has a
            residual of 0 in half of them.
    """
    check_comparable(before=before, after=after)
    sides = [max(4, min(_BLOCK_SIDE, n // 4)) for n in before.shape]
    # The Gaussian takes what is beyond the border for 0.
    inner = tuple(slice(min(4, n // 8), n - min(4, n // 8)) for n in before.shape)
    if math.prod((p.stop - p.start) // side for p, side in zip(inner, sides, strict=True)) < _FEWEST_BLOCKS:
        raise InputError(
            f"a volume of {tuple(before.shape)} voxels is too small to compare parts of it, give a larger one"
        )
    power = [
        torch.nn.functional.avg_pool3d(gaussian(volume.double(), _COARSE)[inner].square()[None], sides)[0]
        for volume in (before - after - (before - after).mean(), after - after.mean())
    ]
    residual, structure = power
    flat, ranked = residual.flatten(), structure.flatten().argsort()
    least, most = flat[ranked[: len(ranked) // 2]], flat[ranked[-(len(ranked) // 4) :]]
    if not least.mean() > 0 or not most.mean() > 0:
        raise InputError("nothing was taken away in half of the volume, so its parts cannot be compared: crop it")
    ratio = float(most.mean() / least.mean())
    spread = sum(float(part.var() / (len(part) * part.mean().square())) for part in (least, most))
    strongest = int(ranked[-(len(ranked) // 4) :][most.argmax()])
    place = torch.unravel_index(torch.tensor(strongest), residual.shape)
    where = [p.start + int(i) * side + side // 2 for p, i, side in zip(inner, place, sides, strict=True)]
    return {"ratio": ratio, "scatter": ratio * math.sqrt(spread), "where": where}


def _detail(volume: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """All detail of a result that an eye compares texture with, and where it is known: not next to the border.

    Brightness that changes slowly is none.
    """
    width = DETAIL_BANDS[-1][1]
    margins = [min(gaussian_reach(width)[0], n // 4) for n in volume.shape]
    inner = tuple(slice(margin, n - margin) for margin, n in zip(margins, volume.shape, strict=True))
    return volume - smoothed(volume[None, None], width)[0, 0], inner


def detail_slopes(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    """Slope of tomogram on result in each band of detail: what a result that makes up detail cannot keep above 0.

    1 where the result has all of the signal and none of the noise, more where it is fainter or keeps noise, below 0
    where it holds the tomogram's negative. The mean of all signals that the tomogram allows is both, fainter and not
    free of noise: a Wiener filter that passes half of the power of a band has a slope of 2 there.

    Args:
        before: the noisy tomogram, ``(Z, Y, X)``.
        after: the denoised one, in the same grey values.

    Returns:
        As many as :data:`DETAIL_BANDS`: ``slopes``, 0 where the result has no detail, and ``strengths``, the deviation
        of the tomogram's detail, as far as it is in the result, over that of all detail of the result.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.
    """
    check_comparable(before=before, after=after)
    # Beyond its borders a volume counts as its mean.
    before, after = (volume - volume.mean() for volume in (before, after))
    detail, inner = _detail(after)
    contrast = float(detail[inner].double().std())
    slopes, strengths = [], []
    for low, high in DETAIL_BANDS:
        noisy, denoised = ((gaussian(v, low) - gaussian(v, high))[inner].double() for v in (before, after))
        shared, power = float((noisy * denoised).mean()), float(denoised.square().mean())
        slopes.append(shared / power if power > 0 else 0.0)
        whole = float(noisy.square().mean()) ** 0.5 * contrast
        strengths.append(abs(shared) / whole if power > 0 and whole > 0 else 0.0)
    return {"slopes": slopes, "strengths": strengths}


def painted_noise(before: Tensor, after: Tensor) -> dict[str, Any]:
    """Whether the finest detail of a result is the negative of the tomogram's anywhere: texture that is in no data.

    The finest detail of a tomogram is nearly all noise. A denoiser that knows the noise keeps a little of it or
    nothing; one that takes it for stronger than it is takes more away than there is.

    Args:
        before: the noisy tomogram, ``(Z, Y, X)``.
        after: the denoised one, in the same grey values.

    Returns:
        Of the regions, up to 3 x 3 along y and x: ``correlations`` of the finest detail of result and tomogram;
        ``strengths``, the deviation of the tomogram's finest detail, as far as it is in the result, over that of all
        detail of the result there; ``levels``, deviation of the finest detail of the tomogram over that of the
        whole; and ``places``, their middles (y, x), voxels.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.
    """
    check_comparable(before=before, after=after)
    fine = [volume - gaussian(volume, _FINEST) for volume in (before, after)]
    inner = tuple(slice(min(2, n // 8), n - min(2, n // 8)) for n in before.shape)
    noisy, denoised = (volume[inner] for volume in fine)
    detail, known = _detail(after - after.mean())
    is_known = torch.zeros(detail.shape, dtype=torch.bool)
    is_known[known] = True
    detail, is_known = detail[inner], is_known[inner]
    whole = float(noisy.std())
    correlations, strengths, levels, places = [], [], [], []
    for region in itertools.product(*(_cuts(n) for n in noisy.shape[1:])):
        part = (slice(None), *region)
        a, b = noisy[part].double(), denoised[part].double()
        norm = float(a.square().mean().sqrt() * b.square().mean().sqrt())
        correlations.append(float((a * b).mean()) / norm if norm > 0 else 0.0)
        contrast = float(detail[part][is_known[part]].double().std())
        strengths.append(abs(correlations[-1]) * float(b.std()) / contrast if contrast > 0 else 0.0)
        levels.append(float(a.std()) / whole if whole > 0 else 1.0)
        places.append([(cut.start + cut.stop) // 2 + side.start for cut, side in zip(region, inner[1:], strict=True)])
    return {"correlations": correlations, "strengths": strengths, "levels": levels, "places": places}


def beside_noise(before: Tensor, after: Tensor, spectrum: Tensor) -> dict[str, dict[str, Any]]:
    """How strong the residual is in each band of detail, and how much of the noise is in it, beside the measured noise.

    A result that is the mean of all signals that the tomogram allows leaves as much ``power`` as the noise has, less
    what of the noise stays in it: next to nothing in the finest detail. So a residual below the noise tells that noise
    was left in, or taken for stronger than it is, and one above it that signal was taken away, or the noise taken for
    weaker.

    The residual is an estimate of the noise. If it is the mean of all noise that the tomogram allows, its product with
    the tomogram has the mean of the noise's power; so have the residuals of any Wiener filter and of the truth. Where
    more was ``removed``, signal was taken away as well; where less, noise was left in or signal made too strong. Or the
    noise is not as strong as it was measured.

    Args:
        before: the noisy tomogram, standardised, ``(Z, Y, X)``.
        after: the denoised one, on the same scale.
        spectrum: of the noise, as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.

    Returns:
        ``power`` and ``removed``, each with ``ratios``, for each band, fine to coarse
        (:func:`cryoshuffle.noise.linear_filter.bands`), and ``errors``, the standard errors that chance gives them:
        power of the residual over that of the noise, and mean product of residual and tomogram over it.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.
    """
    check_comparable(before=before, after=after)
    residual = before - after
    inner = tuple(slice(n // 10, n - n // 10) for n in before.shape)
    beside: dict[str, dict[str, Any]] = {name: {"ratios": [], "errors": []} for name in ("power", "removed")}
    for removed, noisy, (noise, voxels) in zip(bands(residual), bands(before), band_noise(spectrum), strict=True):
        first, second = removed[inner].double(), noisy[inner].double()
        total, share = float(second.square().mean()) / noise, voxels / first.numel()
        # Beyond the noise itself its products with the signal are chance.
        for name, other, squares in (("power", first, 2), ("removed", second, 2 + max(0.0, total - 1))):
            beside[name]["ratios"].append(float((first * other).mean()) / noise)
            beside[name]["errors"].append(math.sqrt(squares * share))
    return beside


def residual_levels(before: Tensor, after: Tensor, spectrum: Tensor, levels: bool) -> dict[str, Any]:
    """How strong the finest detail of the residual is from place to place, beside the noise as it was modelled there.

    Args:
        before: the noisy tomogram, standardised, ``(Z, Y, X)``.
        after: the denoised one, on the same scale.
        spectrum: of the noise, as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.
        levels: whether the noise was taken for as strong from place to place as
            :func:`cryoshuffle.noise.fields.level_plane` says; False where it was taken for even.

    Returns:
        Of the regions, up to 3 along each axis: ``ratios`` of the powers of residual and noise, ``errors`` that chance
        gives them, and ``places``, their middles (z, y, x), voxels.

    Raises:
        InputError: if the shapes differ, a voxel is not finite, or a volume is constant.
    """
    check_comparable(before=before, after=after)
    expected, voxels = fine_power_of_noise(spectrum), fine_voxels(spectrum)
    inner = tuple(slice(min(2, n // 8), n - min(2, n // 8)) for n in before.shape)
    removed = bounded_fine_power(before - after, expected)[inner]
    level = level_plane(before, spectrum)[inner[1:]] if levels else torch.ones(removed.shape[1:])
    modelled = expected * level.square()
    cuts = [_cuts(n) for n in removed.shape]
    regions: dict[str, Any] = {"ratios": [], "errors": [], "places": []}
    for y, x in itertools.product(*cuts[1:]):
        power = float(modelled[y, x].mean(dtype=torch.float64))
        for z in cuts[0]:
            part = removed[z, y, x]
            regions["ratios"].append(float(part.mean(dtype=torch.float64)) / power)
            regions["errors"].append(math.sqrt(2 * voxels / part.numel()))
            middles = zip((z, y, x), inner, strict=True)
            regions["places"].append([(cut.start + cut.stop) // 2 + margin.start for cut, margin in middles])
    return regions


def _cuts(side: int) -> list[slice]:
    """An axis cut into as many regions as it has room for."""
    count = max(1, min(_REGIONS, side // _REGION))
    return [slice(side * i // count, side * (i + 1) // count) for i in range(count)]


def seam_metric(
    result: Tensor, window: int | Sequence[int], stride: int | Sequence[int] = 1, start: int | Sequence[int] = 0
) -> float:
    """How much larger the jumps across window borders are than across the planes near them; 1 without seams.

    A jump is the step between two planes less the mean of the steps before and behind it, so a slope is none. Its mean
    size at the borders is divided by that at up to four planes on either side, along each axis that has borders.

    Args:
        result: ``(Z, Y, X)``.
        window: distance of the borders along (Z, Y, X), voxels.
        stride: lattice stride along (Z, Y, X); a border is only compared with planes of its own residue, so stripes of
            the lattice are not taken for seams.
        start: where the first window starts; half a window gives a control, planes that are no borders.

    Returns:
        The mean ratio of the axes that have borders. In a small volume a few percent to tens of percent are chance:
        compare with the control.

    Raises:
        InputError: if no border lies inside, or the volume is not finite, constant, or without any jumps.
        SettingError: if window, stride or start are not whole numbers, or window or stride are below 1.
    """
    check_comparable(result=result)
    starts = as_triple(start, "window start")
    settings = zip(as_triple(window, "window", 1), as_triple(stride, "stride", 1), starts, strict=True)
    ratios = []
    for dim, (width, step, first) in enumerate(settings):
        side = result.shape[dim]
        # Nearer than 2 planes a jump would hold the step of the seam itself, beyond half a window that of the next.
        offsets = [d for d in range(step, 4 * step + 2, step) if d >= 2]
        offsets = [d for d in offsets[:4] if d == offsets[0] or 2 * d + 2 < width]
        at = around = 0.0
        for border in range(first % width, side - 1, width):
            near = [border + s * d for d in offsets for s in (-1, 1) if 2 <= border + s * d <= side - 2]
            if border >= 2 and near:
                at += _jump(result, dim, border)
                around += sum(_jump(result, dim, plane) for plane in near) / len(near)
        if at > 0 and around == 0:
            raise InputError(f"the result has no detail along {AXES[dim]} to compare seams with: check the file")
        if around > 0:
            ratios.append(at / around)
    if not ratios:
        raise InputError(
            f"windows of {as_triple(window, 'window')} have no border in {tuple(result.shape)} voxels, so there can be "
            "no seam: leave the window out"
        )
    return sum(ratios) / len(ratios)


def window_seams(
    result: Tensor, window: Sequence[int], strides: Sequence[int], start: Sequence[int] = (0, 0, 0)
) -> dict[str, Any]:
    """:func:`seam_metric` at the borders of windows, and as a control halfway between them.

    Args:
        result: the volume, or a part of one, ``(Z, Y, X)``.
        window: distance of the borders along (Z, Y, X), voxels.
        strides: of the lattice along (Z, Y, X), voxels.
        start: where the part begins in the volume, which has a border at 0, along (Z, Y, X), voxels.

    Returns:
        ``window``, and the ratios at ``borders`` and ``halfway``.

    Raises:
        InputError, SettingError: as :func:`seam_metric`.
    """
    first = [-a % w for a, w in zip(start, window, strict=True)]
    between = [a + w // 2 // s * s for a, w, s in zip(first, window, strides, strict=True)]
    borders, halfway = (seam_metric(result, window, strides, at) for at in (first, between))
    return {"window": list(window), "borders": borders, "halfway": halfway}


def _jump(volume: Tensor, dim: int, plane: int) -> float:
    """Mean size over a plane of the step to it, less the mean of the steps before and behind."""
    a, b, c, d = (volume.select(dim, plane + i).double() for i in (-2, -1, 0, 1))
    return float((1.5 * (c - b) - 0.5 * (d - a)).abs().mean())


def _lattice_axis(result: Tensor, axis: str, stride: int) -> int:
    """The number of an axis, after what the lattice metrics need is checked."""
    check_comparable(result=result)
    if axis not in AXES:
        raise SettingError(f"lattice axis is '{axis}': choose one of {', '.join(AXES)}")
    if int(stride) != stride or stride < 2:
        raise SettingError(
            f"lattice stride is {stride}: give a whole number of at least 2, a stride of 1 has no lattice"
        )
    dim = AXES.index(axis)
    if result.shape[dim] < FEWEST_PERIODS * stride:
        raise InputError(
            f"the result has {result.shape[dim]} voxels along {axis}, too few to see stripes of period {stride}: "
            f"it takes {FEWEST_PERIODS * stride}"
        )
    return dim


def lattice_excess(result: Tensor, axis: str, stride: int) -> float:
    """The power of stripes with the period of the lattice, over what the spectrum has nearby; 1 without stripes.

    The spectrum along the axis is the mean over all lines. It is taken at the very frequencies 1 / stride,
    2 / stride, ... up to 0.5 cycles per voxel, so the side need not be a multiple of the stride. What would be there
    without stripes is a parabola through the logarithm of the spectrum at both sides, 2 to 4 widths of a coefficient
    away: the spectrum falls steeply and bends. Lines are differenced twice before a Hann window tapers them, so that
    their strong low frequencies do not leak; this is divided out.

    Stripes that are sharp in frequency show: an offset by residue, or structure much larger than a voxel that is
    stronger in some residues. Fine structure or noise that is stronger there makes no peak; for that there is
    :func:`residue_imbalance`.

    Args:
        result: ``(Z, Y, X)``, at least :data:`FEWEST_PERIODS` strides long along the axis.
        axis: ``z``, ``y`` or ``x``.
        stride: of the lattice along it, voxels.

    Returns:
        The largest ratio of the harmonics. How far it is from 1 by chance depends on the volume:
        :func:`lattice_scatter`.

    Raises:
        SettingError: for another axis or a stride below 2.
        InputError: if the volume is too short, not finite, constant, or without power at these frequencies.
    """
    return max(_excess(result, axis, stride, elsewhere=False))[0]


def lattice_scatter(result: Tensor, axis: str, stride: int) -> float:
    """How far :func:`lattice_excess` is from 1 by chance: its relative standard error.

    It is the jackknife over blocks of lines, at the harmonic of the largest ratio, or what the ratio has at frequencies
    near the lattice's, if that is more: few voxels with much structure have lines of their own in the spectrum.

    Args:
        result: ``(Z, Y, X)``, at least :data:`FEWEST_PERIODS` strides long along the axis.
        axis: ``z``, ``y`` or ``x``.
        stride: of the lattice along it, voxels.

    Returns:
        Standard error of the logarithm of the ratio; 0.05 means ±5 %.

    Raises:
        SettingError: as :func:`lattice_excess`.
        InputError: as :func:`lattice_excess`.

    Source:
        Efron & Stein 1981, "The jackknife estimate of variance".
    """
    return max(_excess(result, axis, stride))[1]


def _excess(result: Tensor, axis: str, stride: int, elsewhere: bool = True) -> list[tuple[float, float]]:
    """For each harmonic the power over what its neighbours let expect, and its relative standard error.

    Args:
        result: ``(Z, Y, X)``.
        axis: of the lattice.
        stride: along it.
        elsewhere: whether frequencies near the lattice's count for the error, which takes nine times the work.
    """
    dim = _lattice_axis(result, axis, stride)
    reach = [float(d) / result.shape[dim] for d in torch.linspace(_NEAREST, _FARTHEST, _NEIGHBOURS)]
    offsets = torch.tensor([-d for d in reach] + reach, dtype=torch.float64)
    # The first row of this turns logarithms of the neighbours into the parabola's value at the centre.
    weights = torch.linalg.pinv(torch.stack([offsets**p for p in range(3)], dim=1))[0]
    around = torch.cat([torch.zeros(1, dtype=torch.float64), offsets])
    excesses = []
    for harmonic in range(1, stride // 2 + 1):
        lattice = harmonic / stride
        # Structure has lines in its spectrum too: how far the power is from a parabola where the lattice has none.
        shifts = _ELSEWHERE if elsewhere else ()
        others = [lattice + sign * shift / result.shape[dim] for shift in shifts for sign in (-1, 1)]
        centres = torch.tensor([lattice, *(f for f in others if _LOWEST <= f <= 0.5)], dtype=torch.float64)
        power = _line_power(result, dim, (centres[:, None] + around).flatten()).unflatten(1, (len(centres), -1))
        # All blocks, then all but one.
        sums = torch.cat([power.sum(dim=0, keepdim=True), power.sum(dim=0) - power])
        if not bool((sums > 0).all()):
            raise InputError(f"the result has no power at high frequency along {axis}: check the file")
        logs = sums.log()
        log_ratios = logs[..., 0] - logs[..., 1:] @ weights
        ours, beside = log_ratios[:, 0], log_ratios[0, 1:]
        rest = ours[1:] - ours[1:].mean()
        error = float(rest.square().sum() * (len(rest) - 1) / len(rest)) ** 0.5
        spread = float(beside.square().mean()) ** 0.5 if len(beside) else 0.0
        excesses.append((math.exp(float(ours[0])), max(error, spread)))
    return excesses


def _line_power(volume: Tensor, dim: int, frequencies: Tensor) -> Tensor:
    """Power of the lines along an axis at given frequencies (cycles per voxel), summed in blocks of lines.

    Returns:
        ``(blocks, frequencies)``; the blocks divide the plane across the axis.
    """
    taper = torch.hann_window(volume.shape[dim], periodic=False, dtype=torch.float64)[1:-1]
    turns = 2 * math.pi * torch.arange(len(taper), dtype=torch.float64)[:, None] * frequencies
    waves = torch.cat([torch.cos(turns), torch.sin(turns)], dim=1) * taper[:, None]
    power = torch.zeros(_BLOCKS, _BLOCKS, len(frequencies), dtype=torch.float64)
    lines = volume.movedim(dim, -1)
    columns = torch.arange(lines.shape[1]) * _BLOCKS // lines.shape[1]
    for row, section in enumerate(lines):
        cosine, sine = (section.double().diff(n=2, dim=-1) @ waves).square().chunk(2, dim=1)
        power[row * _BLOCKS // len(lines)].index_add_(0, columns, cosine + sine)
    return power.flatten(0, 1) / (2 * torch.sin(math.pi * frequencies)) ** 4


def residue_imbalance(result: Tensor, axis: str, stride: int) -> float:
    """How unequal the planes of the lattice are in fine detail: the strongest residue over the mean; 1 if all equal.

    Noise left on every third plane makes no stripe in the spectrum, since it is another noise on each, and a fine field
    that is stronger there a broad one; here they show.
    Fine detail is the mean square of second differences within a plane, over that of the planes around it.

    Args:
        result: ``(Z, Y, X)``, at least :data:`FEWEST_PERIODS` strides long along the axis.
        axis: ``z``, ``y`` or ``x``.
        stride: of the lattice along it, voxels.

    Raises:
        SettingError: for another axis or a stride below 2.
        InputError: if the volume is too short, not finite, constant, or without detail.
    """
    dim = _lattice_axis(result, axis, stride)
    detail = []
    for plane in result.movedim(dim, 0):
        flat = plane.double()
        detail.append(sum(float(flat.diff(n=2, dim=d).square().mean()) for d in (0, 1) if flat.shape[d] > 2))
    if not any(detail):
        raise InputError(f"the result has no detail within planes across {axis}: check the file")
    # One whole period around each plane, its two ends counted by half if the stride is even.
    weights = torch.ones(stride | 1, dtype=torch.float64)
    if stride % 2 == 0:
        weights[0] = weights[-1] = 0.5
    levels = torch.tensor(detail, dtype=torch.float64)
    around = (levels.unfold(0, len(weights), 1) * weights).sum(dim=1) / stride
    reach = len(weights) // 2
    inner = levels[reach : len(levels) - reach]
    # Sums before the ratio, so that planes next to empty do not decide.
    shares = [float(inner[r::stride].sum() / around[r::stride].sum()) for r in range(stride)]
    return max(shares) * stride / sum(shares)
