"""Scores mean what they say: invariances, known values, and controls that each artefact must fail."""

from __future__ import annotations

import hashlib
import json
import math
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import SSIMMetric
from phantoms import write_mrc
from PIL import Image

from cryoshuffle.errors import FileError, InputError
from cryoshuffle.noise.linear_filter import gaussian
from cryoshuffle.report.pictures import save_fsc_plot
from cryoshuffle.scores.artefacts import (
    detail_slopes,
    lattice_excess,
    lattice_scatter,
    painted_noise,
    residual_report,
    residue_imbalance,
    seam_metric,
    signal_left,
    window_seams,
)
from cryoshuffle.scores.evaluation import evaluate, evaluate_files, halves_agreement, table
from cryoshuffle.scores.metrics import check_comparable, correlation, psnr_after_fit, ssim_after_fit
from cryoshuffle.scores.shells import crossing, fourier_shell_correlation, shell_power
from cryoshuffle.simulation.tilt_series import Simulation, simulate

SHAPE = (48, 64, 56)


def white(seed: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(volume: torch.Tensor, sigma: float) -> torch.Tensor:
    """Convolved with a Gaussian, borders repeated."""
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    result = volume.double()[None, None]
    for dim in range(3):
        pad = [reach if d == dim else 0 for d in (2, 2, 1, 1, 0, 0)]
        shape = [-1 if d == dim else 1 for d in range(3)]
        result = F.conv3d(F.pad(result, pad, mode="replicate"), kernel.reshape(1, 1, *shape))
    return result[0, 0]


@lru_cache
def simulated() -> Simulation:
    return simulate("wbp", shape=SHAPE, snr=0.3, seed=3)


def along(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.reshape([-1 if d == dim else 1 for d in range(3)])


def stripes(period: int, dim: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    """A cosine along an axis, the same on all lines."""
    return along(torch.cos(2 * torch.pi * torch.arange(shape[dim]) / period), dim).expand(shape)


def seamed(volume: torch.Tensor, window: int, size: float) -> torch.Tensor:
    """Each window with an offset of its own, standard deviation ``size``."""
    counts = [-(-n // window) for n in volume.shape]
    offsets = torch.randn(counts, generator=torch.Generator().manual_seed(0)) * size
    for dim, n in enumerate(volume.shape):
        offsets = offsets.repeat_interleave(window, dim).narrow(dim, 0, n)
    return volume + offsets


THIRD = along((torch.arange(64) % 3 == 0).double(), 1)


# Agreement with a truth


@settings(max_examples=15, deadline=None)
@given(gain=st.floats(0.01, 100), offset=st.floats(-100, 100))
def test_gain_and_offset_of_a_result_do_not_matter(gain, offset):
    """Correlation, PSNR, SSIM and every shell: the same for ``gain * result + offset``, and no other number."""
    truth = smooth(white(0, (16, 20, 24)), 1.0)
    result = truth + 0.1 * white(1, (16, 20, 24)).double()
    changed = gain * result + offset
    for score in (correlation, psnr_after_fit, ssim_after_fit):
        assert score(changed, truth) == pytest.approx(score(result, truth), abs=1e-4)
    before, after = (fourier_shell_correlation(v, truth)[1] for v in (result, changed))
    assert after == pytest.approx(before, abs=1e-6)


def test_inverted_contrast_is_no_match():
    """The fit does not turn a result over: -truth scores as badly as a constant would."""
    truth = smooth(white(0), 1.5)
    assert correlation(-truth, truth) == pytest.approx(-1)
    span = float(truth.max() - truth.min())
    assert psnr_after_fit(-truth, truth) == pytest.approx(10 * math.log10(span**2 / float(truth.var(correction=0))))
    assert ssim_after_fit(-truth, truth) < 0.3 < 0.999 < ssim_after_fit(truth, truth)


def test_psnr_is_that_of_the_noise_left():
    """Noise of known power, range of the truth: the decibels follow; the fit gains next to nothing. Equality has no
    end."""
    truth = smooth(white(0), 1.0) * 10
    noise = 0.2 * white(1)
    expected = 20 * math.log10(float(truth.max() - truth.min()) / 0.2)
    assert psnr_after_fit(truth + noise, truth) == pytest.approx(expected, abs=0.2)
    ramp = torch.arange(512.0).reshape(8, 8, 8)
    assert psnr_after_fit(ramp, ramp) > 200


def test_ssim_is_monais_on_the_whole_volume():
    """Slab by slab gives what one call on the fitted volume gives; deep enough for three slabs."""
    truth = smooth(white(0, (80, 16, 18)), 1.5)
    result = truth + 0.02 * white(1, (80, 16, 18))
    gain = correlation(result, truth) * float(truth.std() / result.std())
    fitted = gain * (result - result.mean()) + truth.mean()
    low, span = truth.min(), truth.max() - truth.min()
    pair = [((v - low) / span).float()[None, None] for v in (fitted, truth)]
    assert ssim_after_fit(result, truth) == pytest.approx(float(SSIMMetric(3, data_range=1.0)(*pair)), abs=1e-5)


@pytest.mark.parametrize("shape", [(32, 32, 32), (17, 40, 23), (40, 12, 31)])
def test_a_volume_agrees_with_itself_in_every_shell(shape):
    """1 in all shells up to 0.5, cubic or not, odd or even; -1 with its inverse."""
    volume = white(0, shape)
    frequencies, values = fourier_shell_correlation(volume, volume)
    assert len(frequencies) == max(shape) // 2
    assert frequencies[0] == 1 / max(shape)
    assert 0.5 - 1 / max(shape) < frequencies[-1] <= 0.5
    assert values == pytest.approx([1.0] * len(values), abs=1e-6)
    assert fourier_shell_correlation(volume, -volume)[1] == pytest.approx([-1.0] * len(values), abs=1e-6)


def test_independent_noise_agrees_in_no_shell():
    """Over 40 pairs the mean of each shell is within 4 of its standard errors of 0, and that error is small."""
    shape = (20, 32, 26)
    curves = torch.tensor([fourier_shell_correlation(white(s, shape), white(1000 + s, shape))[1] for s in range(40)])
    error = curves.std(dim=0) / len(curves) ** 0.5
    assert bool((curves.mean(dim=0).abs() < 4 * error).all())
    assert float(curves.std(dim=0)[5:].max()) < 0.15


def test_shells_are_of_equal_frequency_on_every_axis():
    """A wave of 0.25 cycles per voxel lies in the shell at 0.25, along z, y and x of a volume that is no cube."""
    for dim in range(3):
        frequencies, power = shell_power(stripes(4, dim, (32, 48, 64)))
        strongest = max(range(len(power)), key=power.__getitem__)
        assert frequencies[strongest] == pytest.approx(0.25, abs=0.02)


def test_white_noise_has_its_variance_in_every_shell():
    """The power of a shell is in grey values squared."""
    _, power = shell_power(3 * white(0))
    assert power[4:] == pytest.approx([9.0] * len(power[4:]), rel=0.2)


def test_a_known_pair_crosses_at_its_known_frequency():
    """Signal power equals noise power at 0.2 cycles per voxel, so halves correlate by 0.5 there; gain set to match."""
    shape, cut = (64, 64, 64), 0.2
    k = [torch.fft.fftfreq(n, dtype=torch.float64) for n in shape]
    radius = (k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2).sqrt()
    # A Gaussian of power 1 at the cut, where the noise has power 1 too.
    gain = torch.exp((cut**2 - radius**2) / (2 * 0.1**2))
    signal = torch.fft.ifftn(torch.fft.fftn(white(0, shape).double()) * gain).real
    found = crossing(*fourier_shell_correlation(signal + white(1, shape), signal + white(2, shape)))
    assert found == pytest.approx(cut, abs=0.01)


def test_a_crossing_is_found_only_where_there_is_one():
    """Interpolated between shells; None for a curve that stays above, or is never there."""
    k = [0.1, 0.2, 0.3, 0.4]
    assert crossing(k, [0.9, 0.6, 0.2, 0.8]) == pytest.approx(0.225)
    assert crossing(k, [0.9, 0.6, 0.2, 0.1], 0.143) == pytest.approx(0.3 + 0.1 * 0.57)
    assert crossing(k, [0.9] * 4) is None
    assert crossing(k, [0.1] * 4) is None


# Agreement without a truth


def test_halves_tell_how_far_their_mean_agrees_with_what_they_share():
    """Known signal, independent noise: the estimate is how mean and signal agree, above the halves."""
    signal = smooth(white(0), 2)
    signal = signal / signal.std()
    even, odd = signal + 2 * white(1), signal + 2 * white(2)
    found = halves_agreement(even, odd, 10.0)
    frequency, true = fourier_shell_correlation((even + odd) / 2, signal)
    held = [i for i, k in enumerate(frequency) if 0.05 < k < 0.2]
    off = [found["mean_fsc"][i] - true[i] for i in held]
    assert sum(off) / len(off) == pytest.approx(0, abs=0.03)
    assert all(found["fsc"][i] < found["mean_fsc"][i] for i in held)
    assert found["crossing"] == crossing(frequency, found["fsc"], 0.143)
    assert crossing(frequency, found["mean_fsc"], 0.5) == pytest.approx(found["crossing"], abs=0.01)
    assert found["resolution_angstrom"] == pytest.approx(10 / found["crossing"])
    assert found["beyond_chance"]
    by_chance = [halves_agreement(white(seed), white(100 + seed)) for seed in range(20)]
    assert not any(noise["beyond_chance"] for noise in by_chance), "noise alone"
    assert any(noise["crossing"] is not None for noise in by_chance), "which may cross in the first shells"


def test_the_other_half_ranks_as_the_truth_does_and_copying_noise_does_not_help():
    """Against the other raw half a result scores its correlation with the truth, times one factor for all results.

    So a smoothing filter beats the identity. Negative control: against its own half the identity wins with 1.
    """
    truth = smooth(white(0), 2.0)
    truth = truth / truth.std()
    even, odd = (truth + 2 * white(seed) for seed in (1, 2))
    factor = correlation(odd, truth)
    family = {"identity": even, **{s: smooth(even, s) for s in (0.6, 1.0, 1.5, 3.0)}}
    with_truth = {name: correlation(v, truth) for name, v in family.items()}
    with_odd = {name: correlation(v, odd) for name, v in family.items()}
    with_even = {name: correlation(v, even) for name, v in family.items()}
    for name in family:
        # Four standard errors of a correlation over smoothed noise.
        assert with_odd[name] == pytest.approx(factor * with_truth[name], abs=0.03)
    assert max(with_odd, key=with_odd.__getitem__) == max(with_truth, key=with_truth.__getitem__)
    assert with_odd[1.5] > 1.5 * with_odd["identity"]
    assert with_even["identity"] == pytest.approx(1)
    assert max(with_even, key=with_even.__getitem__) == "identity"


def test_the_residual_of_a_perfect_result_is_the_noise():
    """White, uncorrelated with the result at all frequencies, of the noise's power."""
    truth = smooth(white(0), 1.0) * 5
    report = residual_report(truth + white(1), truth)
    assert abs(report["correlation_with_result"]) < 0.02
    assert abs(report["low_frequency_correlation"]) < 0.1
    for axis in "zyx":
        assert report["autocorrelation"][axis] == pytest.approx([0.0] * 4, abs=0.02)
    assert report["residual_power"][4:] == pytest.approx([1.0] * len(report["frequency"][4:]), rel=0.2)
    assert report["result_power"][3] > 10 > 0.1 > report["result_power"][-1]


def test_signal_in_the_residual_shows():
    """A result that lost half its contrast, and one that lost its fine detail: correlated, the latter near voxels."""
    truth = smooth(white(0), 1.0) * 5
    noisy = truth + 0.3 * white(1)
    assert residual_report(noisy, 0.5 * truth)["low_frequency_correlation"] > 0.9
    blurred = residual_report(noisy, smooth(noisy, 2.0))
    assert blurred["correlation_with_result"] > 0.1
    assert blurred["autocorrelation"]["y"][0] > 0.3
    assert residual_report(noisy, 1.5 * truth)["correlation_with_result"] < -0.5


# Artefacts


def test_no_seam_is_seen_where_there_is_none():
    """White noise, smooth fields, noisy and noise-free simulated tomograms: near 1."""
    for sigma in (0.7, 1.5):
        assert seam_metric(smooth(white(0), sigma), 16) == pytest.approx(1, abs=0.06)
    assert seam_metric(white(0), (12, 18, 15), (1, 3, 1)) == pytest.approx(1, abs=0.02)
    assert seam_metric(simulated().tomogram, 16) == pytest.approx(1, abs=0.03)
    assert seam_metric(simulated().truth, 16) == pytest.approx(1, abs=0.2)


def test_seams_are_seen_where_they_are():
    """Offsets between windows raise it, more the larger they are; not halfway between, nor for another window."""
    field = smooth(white(0), 1.5)
    found = [seam_metric(seamed(field, 16, size * float(field.std())), 16) for size in (0.0, 0.1, 0.3)]
    assert found[0] < 1.06
    assert 1.2 < found[1] < found[2]
    assert found[2] > 2
    loud = seamed(field, 16, 0.3 * float(field.std()))
    assert seam_metric(loud, 16, start=8) == pytest.approx(1, abs=0.06)
    assert seam_metric(loud, 23) < 1.2
    of_a_part = window_seams(loud[5:, :, 40:], (16, 16, 16), (1, 1, 1), (5, 0, 40))
    assert of_a_part["borders"] > 2
    assert of_a_part["halfway"] == pytest.approx(1, abs=0.06)


def test_a_slope_or_a_stripe_is_no_seam():
    """A steep ramp changes nothing; stripes of the lattice neither, if its stride is told (negative control: 1)."""
    field = smooth(white(0), 1.5)
    ramp = along(torch.arange(64.0), 1) * 5
    assert seam_metric(field + ramp, 18, 3) == pytest.approx(seam_metric(field, 18, 3), rel=1e-6)
    comb = 0.2 * THIRD
    assert seam_metric(field + comb, (48, 18, 56), (1, 3, 1)) == pytest.approx(1, abs=0.06)
    assert seam_metric(field + comb, (48, 18, 56)) > 1.1


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_no_stripe_is_seen_where_there_is_none(stride):
    """White noise and smooth fields have a ratio near 1 on sides that are no multiple of the stride too."""
    shape = (40, 67, 41)
    assert lattice_excess(white(0, shape), "y", stride) == pytest.approx(1, abs=0.12)
    assert lattice_excess(smooth(white(0, shape), 0.7), "y", stride) == pytest.approx(1, abs=0.2)
    if stride == 3:
        assert lattice_excess(smooth(white(0, shape), 1.5), "y", stride) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("sigma", [0.0, 0.7, 1.2])
def test_the_ratio_is_unbiased_and_its_scatter_is_as_told(sigma):
    """Over 30 fields: mean logarithm within 4 standard errors of 0, spread within a factor of 1.7."""
    shape = (24, 49, 28)
    fields = [white(s, shape) if sigma == 0 else smooth(white(s, shape), sigma) for s in range(30)]
    logs = torch.tensor([lattice_excess(v, "y", 3) for v in fields]).log()
    told = sum(lattice_scatter(v, "y", 3) for v in fields) / len(fields)
    assert abs(float(logs.mean())) < 4 * float(logs.std()) / len(fields) ** 0.5
    assert 1 / 1.7 < told / float(logs.std()) < 1.7


def test_a_simulated_truth_has_no_stripes_beyond_its_scatter():
    """No false alarm: above 1 by no more than 10 % or three standard errors, along every axis.

    A spectrum that bends within the few coefficients of a short axis may lower the ratio further.
    """
    simulation = simulate("wbp", shape=(48, 112, 96), snr=0.3, seed=1)
    for volume in (simulation.truth, simulation.tomogram):
        for axis in "zyx":
            excess, scatter = lattice_excess(volume, axis, 3), lattice_scatter(volume, axis, 3)
            assert -0.1 - 3 * scatter < math.log(excess) < max(0.1, 3 * scatter)
            assert scatter < 0.15
            assert residue_imbalance(volume, axis, 3) < 1.03


def test_a_small_truth_gives_no_alarm_and_the_same_with_a_stripe_does():
    """On six small phantoms, smoothed or not, whose ratio alone is up to 1.3: a stripe of .1 deviations is beyond three
    scatters in each of them."""
    for seed in range(6):
        truth = simulate("wbp", shape=(48, 96, 96), snr=0.3, seed=seed).truth
        for volume in (truth, smooth(truth, 1.0)):
            assert lattice_excess(volume, "y", 3) < 1 + 3 * lattice_scatter(volume, "y", 3)
            striped = volume + 0.1 * float(volume.std()) * stripes(3, 1, (48, 96, 96))
            assert lattice_excess(striped, "y", 3) > 1 + 3 * lattice_scatter(striped, "y", 3)


@pytest.mark.parametrize(("axis", "stride"), [("y", 3), ("x", 3), ("y", 2), ("y", 4), ("z", 3)])
def test_stripes_of_the_lattice_are_seen(axis, stride):
    """A cosine of 0.15 standard deviations raises the ratio, more the stronger it is; another axis stays near 1."""
    field = smooth(white(0), 1.0)
    dim = "zyx".index(axis)
    faint, strong = (field + a * float(field.std()) * stripes(stride, dim) for a in (0.15, 0.4))
    assert 1.4 < lattice_excess(faint, axis, stride) < lattice_excess(strong, axis, stride)
    other = "x" if axis == "y" else "y"
    assert lattice_excess(strong, other, stride if stride < 4 else 3) == pytest.approx(1, abs=0.25)


def test_every_harmonic_counts():
    """Period 4 with nothing but its second harmonic, and a stride that asks for it."""
    field = smooth(white(0), 0.7)
    assert lattice_excess(field + 0.05 * stripes(2, 1), "y", 4) > 1.5
    assert lattice_excess(field + 0.1 * stripes(5, 1), "y", 3) == pytest.approx(1, abs=0.1)


def test_an_offset_by_residue_is_seen():
    """Every third plane brighter by 2 % of a standard deviation: a sharp line in the spectrum of a smooth field."""
    field = smooth(white(0), 1.5)
    assert lattice_excess(field, "y", 3) == pytest.approx(1, abs=0.2)
    assert lattice_excess(field + 0.02 * float(field.std()) * THIRD, "y", 3) > 3


def test_another_strength_or_noise_on_every_third_plane_is_seen():
    """5 % more contrast there, or noise of a fifth of the field's deviation: the residues are not equal any more.

    Negative control: neither is a sharp line in the spectrum, so the excess alone misses both.
    """
    field, fine = smooth(white(0), 1.5), smooth(white(0), 0.7)
    stronger = field * (1 + 0.05 * THIRD)
    noisy = fine + 0.2 * float(fine.std()) * THIRD * white(1)
    for good, bad in ((field, stronger), (fine, noisy)):
        assert residue_imbalance(good, "y", 3) < 1.02
        assert residue_imbalance(bad, "y", 3) > 1.05
        assert residue_imbalance(bad, "x", 3) < 1.02
        assert lattice_excess(bad, "y", 3) == pytest.approx(1, abs=0.1)
    assert residue_imbalance(white(0) * (1 + 0.2 * along((torch.arange(64) % 2).double(), 1)), "y", 2) > 1.1


def test_a_slow_change_along_the_axis_is_no_imbalance():
    """Planes four times as strong at one end as at the other: the residues stay equal."""
    assert residue_imbalance(white(0) * along(torch.linspace(1, 2, 64), 1), "y", 3) < 1.02
    assert residue_imbalance(white(0) * along(torch.linspace(1, 2, 64), 1), "y", 4) < 1.02


# The whole report


def test_a_report_holds_what_was_given_and_nothing_else():
    """No key without its input; the table says each score once, the noisy volume's beside it."""
    s = simulated()
    result = smooth(s.even, 1.5).float()
    assert set(evaluate(result)) == {"shape", "voxel_size_angstrom"}
    assert set(evaluate(result, truth=s.truth)) == {"shape", "voxel_size_angstrom", "truth"}
    full = evaluate(
        result, truth=s.truth, noisy=s.even, other_half=s.odd, window=18, stride=(1, 3, 1), voxel_size_angstrom=10.0
    )
    assert set(full) == {
        "shape", "voxel_size_angstrom", "truth", "noisy_truth", "other_half", "noisy_other_half", "noise", "residual",
        "seams", "lattice",
    }  # fmt: skip
    assert json.loads(json.dumps(full)) == full
    assert full["truth"]["resolution_angstrom"] == pytest.approx(10 / full["truth"]["crossing"])
    assert full["truth"]["correlation"] > full["noisy_truth"]["correlation"]
    assert full["other_half"]["correlation"] > full["noisy_other_half"]["correlation"]
    assert set(full["lattice"]) == {"y"}
    assert full["lattice"]["y"]["truth_excess"] == lattice_excess(s.truth, "y", 3)
    assert "truth_excess" not in evaluate(result, stride=3)["lattice"]["y"]
    said = table(full)
    assert f"correlation with the truth               {full['truth']['correlation']:.3f}" in said
    assert " dB   (noisy: " in said
    assert " Å   (noisy: " in said
    assert "times those nearby" in said
    assert "stripes along y, period 3" in said
    assert "by chance, truth:" in said
    assert "truth:" not in table(evaluate(result, stride=3))
    assert "cycles/voxel" in table(evaluate(result, truth=s.truth))
    assert "(noisy:" not in table(evaluate(result, truth=s.truth))


def test_curves_without_a_crossing_are_told_apart():
    """A truth agrees with itself to the end; independent noise nowhere."""
    assert "to the finest detail" in table(evaluate(simulated().truth, truth=simulated().truth))
    # A threshold of 0.143 can be met by chance in the first shells, so a half that is the inverse.
    assert "at no frequency" in table(evaluate(white(0), other_half=-white(0)))


def test_axes_too_short_and_windows_without_borders_are_left_out():
    """Nothing is said of what cannot be seen; three strides ask for three axes."""
    volume = white(0, (20, 50, 52))
    report = evaluate(volume, window=64, stride=(3, 3, 3))
    assert "seams" not in report
    assert set(report["lattice"]) == {"y", "x"}
    assert set(evaluate(volume, stride=3)["lattice"]) == {"y", "x"}


def test_files_are_scored_in_their_own_grey_values(tmp_path):
    """The same numbers as from memory, the voxel size from the header; gain would change the residual."""
    s = simulated()
    result = (100 + 7 * smooth(s.even, 1.5)).float()
    assert (
        evaluate_files(write_mrc(tmp_path / "cuboid.mrc", result.numpy(), (10, 10, 20)))["voxel_size_angstrom"] is None
    )
    paths = {
        name: str(write_mrc(tmp_path / f"{name}.mrc", volume.numpy(), 12.5))
        for name, volume in (("result", result), ("noisy", 100 + 7 * s.even), ("truth", s.truth))
    }
    found = evaluate_files(paths["result"], noisy=paths["noisy"], truth=paths["truth"], window=18)
    expected = evaluate(
        result, noisy=100 + 7 * s.even, truth=s.truth, window=18, voxel_size_angstrom=found["voxel_size_angstrom"]
    )
    assert found["voxel_size_angstrom"] == pytest.approx(12.5)
    assert found["sha256"] == hashlib.sha256((tmp_path / "result.mrc").read_bytes()).hexdigest()
    assert found.pop("files") == paths
    assert {name: value for name, value in found.items() if name != "sha256"} == expected
    with pytest.raises(FileError, match="no such file"):
        evaluate_files(paths["result"], truth=str(tmp_path / "none.mrc"))


def test_the_picture_shows_a_curve_where_it_belongs(tmp_path):
    """Written whole, in colour; the frequency axis is labelled with or without a voxel size."""
    curves = {"one": fourier_shell_correlation(white(0), white(0)), "none": ([0.1, 0.5], [0.2, -0.4])}
    for size in (None, 10.0):
        path = save_fsc_plot(curves, tmp_path / "fsc.png", size, thresholds=(0.143, 0.5))
        with Image.open(path) as picture:
            assert picture.mode == "RGB"
            colours = {colour for _, colour in picture.getcolors(100_000)}
        assert {(0, 114, 178), (213, 94, 0)} <= colours
    assert [p.name for p in tmp_path.iterdir()] == ["fsc.png"]
    with pytest.raises(FileError, match="cannot be written"):
        save_fsc_plot(curves, tmp_path / "none" / "fsc.png")


def test_mistakes_are_said_in_one_sentence():
    """What is wrong, and the way out, for every input."""
    v = white(0, (8, 9, 10))
    holed = v.clone()
    holed[1, 2, 3] = float("nan")
    wrong = (
        (lambda: check_comparable(result=v, other_half=v[:4]), r"other half has shape \(4, 9, 10\) and result has"),
        (lambda: correlation(v[None], v[None]), "volumes .z, y, x. of one shape"),
        (lambda: psnr_after_fit(v, holed), "truth has voxels that are NaN"),
        (lambda: psnr_after_fit(v * float("inf"), v), "result has voxels that are NaN or Inf"),
        (lambda: ssim_after_fit(torch.ones_like(v), v), "all voxels of result are 1"),
        (lambda: ssim_after_fit(v, v), "too small for SSIM: it needs 11"),
        (lambda: shell_power(torch.zeros(4, 4, 4)), "all voxels of volume are 0"),
        (lambda: residual_report(v, v + 0.0), "differ by nothing but an offset"),
        (lambda: seam_metric(v, 16), "no border in .8, 9, 10. voxels"),
        (lambda: seam_metric(v, 0), "window is 0"),
        (lambda: seam_metric((torch.arange(16.0) // 8).reshape(16, 1, 1).expand(16, 16, 16), 8), "no detail along z"),
        (lambda: lattice_excess(v, "w", 3), "choose one of z, y, x"),
        (lambda: lattice_excess(v, "y", 1), "at least 2"),
        (lambda: lattice_excess(v, "y", 3), "has 9 voxels along y, too few .* it takes 48"),
        (lambda: lattice_scatter(v, "y", 3), "too few"),
        (lambda: lattice_excess(along(torch.arange(48.0), 0).expand(SHAPE), "y", 3), "no power at high frequency"),
        (lambda: residue_imbalance(along(torch.arange(64.0), 1).expand(SHAPE), "y", 3), "has no detail"),
        (lambda: evaluate(v, stride=(1, 3)), "stride is .1, 3.: give three whole numbers"),
        (lambda: evaluate(v, voxel_size_angstrom=0.0), "voxel size is 0.0 Å"),
        (lambda: evaluate(v, truth=v[:4]), "truth has shape"),
        (lambda: table(evaluate(v)), "nothing to score the result with"),
    )
    for act, words in wrong:
        with pytest.raises(ValueError, match=words) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_residual_that_holds_signal_is_stronger_where_structure_is():
    """Pure noise is as strong everywhere; smoothing takes signal where it is (control), and the place is named."""
    truth = torch.zeros(32, 64, 64)
    truth[8:24, 32:56, 32:56] = torch.randn(16, 24, 24).cumsum(0) / 2
    noisy = truth + torch.randn(truth.shape)
    clean = signal_left(noisy, truth)
    assert abs(clean["ratio"] - 1) < 3 * clean["scatter"] < 0.5
    smooth = signal_left(noisy, gaussian(truth, 3.0))
    assert smooth["ratio"] > 1.5 + 2 * smooth["scatter"]
    assert all(low <= at < high for at, low, high in zip(smooth["where"], (4, 24, 24), (28, 64, 64), strict=True))
    with pytest.raises(InputError, match="too small to compare"):
        signal_left(noisy[:6, :8, :8], truth[:6, :8, :8] + noisy[:6, :8, :8])


@pytest.mark.parametrize(("shape", "is_measured"), [((8, 8, 40), False), ((12, 12, 12), False), ((16, 32, 32), True)])
def test_parts_are_compared_where_enough_of_them_are_away_from_the_border(shape, is_measured):
    """Blocks at the border do not count; a number that comes out is one (control)."""
    noisy = torch.randn(shape)
    if is_measured:
        one = signal_left(noisy, gaussian(noisy, 1.0))
        assert math.isfinite(one["ratio"])
        assert math.isfinite(one["scatter"])
    else:
        with pytest.raises(InputError, match="too small to compare parts"):
            signal_left(noisy, gaussian(noisy, 1.0))


def test_a_residual_of_nothing_is_not_divided_by():
    """In half of the volume: parts are not compared, and detail that is not there has no strength."""
    noisy = torch.randint(8, (32, 64, 64)).float()
    noisy[4:12, 4:20, 4:20] *= 100
    result = noisy.clone()
    result[5, 8, 8] += 1
    result[5, 9, 9] -= 1
    with pytest.raises(InputError, match="nothing was taken away in half of the volume"):
        signal_left(noisy, result)
    spike = torch.full((24, 40, 40), 1.0)
    spike[2, 2, 2] = 1e30
    slopes = detail_slopes(spike, gaussian(spike, 1.0))
    assert all(map(math.isfinite, (*slopes["slopes"], *slopes["strengths"])))


@pytest.mark.parametrize("power", [100, -100])
def test_scores_do_not_depend_on_the_unit_of_the_grey_values(power):
    """However large or small they are, to the bit; power is in their squares, and 1e30 squared fits no float32."""
    noisy = torch.randn(24, 40, 40)
    result = gaussian(noisy, 1.0)
    one = evaluate(result, noisy=noisy, stride=(1, 3, 1))
    other = evaluate(result * 2.0**power, noisy=noisy * 2.0**power, stride=(1, 3, 1))
    powers = ("residual_power", "result_power")
    for name in powers:
        scaled = [value * 4.0**power for value in one["residual"][name]]
        assert other["residual"][name] == pytest.approx(scaled, rel=1e-6)
    for report in (one, other):
        report["residual"] = {name: value for name, value in report["residual"].items() if name not in powers}
    assert other["residual"]["shell_correlation"] == pytest.approx(one["residual"]["shell_correlation"], abs=1e-6)
    assert math.isfinite(other["residual"]["low_frequency_correlation"])
    assert other["lattice"] == one["lattice"]


def test_painted_noise_is_seen_where_it_is():
    """The truth, and a Gaussian, hold no negative of the noise; where it is painted in a corner the corner is named."""
    made = simulate("wbp", (32, 96, 96), snr=0.1, seed=0)
    noisy, truth = made.tomogram, made.truth
    for result in (truth, gaussian(noisy, 1.5)):
        assert min(painted_noise(noisy, result)["correlations"]) > -0.1
    fine = made.noise - gaussian(made.noise, 0.8)
    corner = torch.zeros(96, 96)
    corner[64:, :32] = 0.8
    painted = painted_noise(noisy, truth - corner * fine)
    least, next_least = sorted(painted["correlations"])[:2]
    assert least < -0.4
    assert next_least > -0.1
    corner_region = painted["correlations"].index(least)
    y, x = painted["places"][corner_region]
    assert y > 64
    assert x < 32
    part = (slice(2, -2), slice(48, 94), slice(2, 48))
    for share in (0.02, 0.2):
        result = gaussian(truth, 2.0) - share * fine
        strength = painted_noise(noisy, result)["strengths"][corner_region]
        assert strength == pytest.approx(share * float(fine[part].std() / result[part].std()), rel=0.2)
    before, louder = (painted_noise(v, truth)["levels"] for v in (noisy, noisy * (1 + corner)))
    assert max(louder) > 1.2 * max(before)


def test_slopes_tell_detail_that_runs_against_the_tomogram():
    """Those of the truth are about 1, of a faint result more; below 0 only in the band that is turned round."""
    made = simulate("wbp", (48, 96, 96), snr=1.0, seed=0)
    noisy, truth = made.tomogram, made.truth
    assert detail_slopes(noisy, truth)["slopes"] == pytest.approx([1, 1, 1, 1], abs=0.25)
    assert detail_slopes(noisy, truth / 2)["slopes"] == pytest.approx([2, 2, 2, 2], abs=0.5)
    turned = truth - 6 * (gaussian(truth, 0.35) - gaussian(truth, 0.7))
    slopes = detail_slopes(noisy, turned)["slopes"]
    assert slopes[0] < -0.1
    assert slopes[3] > 0.5


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_slopes_and_their_strength_do_not_depend_on_the_grey_values(offset):
    """A tenth of the negative has a slope of -10 in each band, whatever the mean; it has as little of the contrast as
    there is other detail, and slow brightness is none."""
    noise, brightness = torch.randn(32, 96, 96), torch.linspace(-20, 20, 96)
    negative = detail_slopes(noise + offset, offset - 0.1 * noise)
    assert negative["slopes"] == pytest.approx([-10] * 4, rel=0.1)
    detail = 2 * gaussian(torch.randn(32, 96, 96), 2.0) / 0.05
    faint = [detail_slopes(noise + detail + offset, detail + slow + offset - 0.1 * noise) for slow in (0, brightness)]
    assert faint[0]["strengths"][0] < 0.02 * negative["strengths"][0]
    assert faint[1]["strengths"] == pytest.approx(faint[0]["strengths"], rel=0.05)
    painted = [painted_noise(noise, slow - 0.1 * noise)["strengths"] for slow in (0, brightness)]
    assert painted[1] == pytest.approx(painted[0], rel=0.05)
