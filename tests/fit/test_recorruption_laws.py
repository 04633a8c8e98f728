"""Recorruption: the noise of input and target is uncorrelated, if the spectrum is that of the noise; with controls."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from phantoms import turned_about_z, write_mrc
from torch import Tensor

from cryoshuffle import starting_network
from cryoshuffle.commands.options import smoothing
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.fit.comparison import FilterComparison, Weight, compare_with_filter
from cryoshuffle.fit.distillation import Distillation
from cryoshuffle.fit.handlers import BlindnessGuard
from cryoshuffle.fit.noise_model import NoiseModel, _side_of_middle, measure_noise_model
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.starting import copy_with_weights
from cryoshuffle.inference.checkpoints import load_network, load_plain
from cryoshuffle.inference.inferers import HaloWindowInferer, PrecisionInferer
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.noise import spectrum as spectrum_module
from cryoshuffle.noise.estimate import LARGEST
from cryoshuffle.noise.fields import draw_noise, lay_noise
from cryoshuffle.noise.linear_filter import (
    BAND_EDGES,
    WIDTHS,
    FilterChoice,
    bands,
    choose_filter,
    choose_linear,
    convolve,
    gaussian,
    prediction_kernel,
    shape_for,
    smoothed,
    wiener_kernel,
)
from cryoshuffle.noise.spectrum import GRID, noise_spectrum, smooth_cross_spectrum, smooth_spectrum
from cryoshuffle.noise.volumes import on_one_scale
from cryoshuffle.scores.metrics import correlation
from cryoshuffle.simulation.tilt_series import simulate

SHELLS = ((0.0, 0.12), (0.12, 0.25), (0.25, 0.5))


def noise_field(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Noise with neighbours alike along z and x, independent along y."""
    white = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return white + 0.6 * white.roll(1, 0) - 0.4 * white.roll(1, 2)


def small_network(shape: str = "none", axis: str = "y") -> BlindSpotNet:
    body = ShuffleUNet(in_channels=4, channels=(4, 4), factors=(2,))
    return BlindSpotNet(Lattice(None, BlindSet(shape, axis)), body, stem_channels=4)


def ratios(found: Tensor, true: Tensor) -> list[float]:
    """Power of one spectrum over another in a few shells."""
    k = torch.fft.fftfreq(GRID)
    radius = (k[:, None, None].square() + k[:, None].square() + k.square()).sqrt()
    shells = [(radius >= low) & (radius < high) for low, high in SHELLS]
    return [float(found[shell].sum() / true[shell].sum()) for shell in shells]


def test_a_smooth_spectrum_keeps_the_variance_and_what_is_drawn_from_it_has_it():
    """Parseval on any size; noise drawn from a spectrum has that spectrum."""
    noise = noise_field((40, 52, 47))
    spectrum = smooth_spectrum(noise)
    assert float(spectrum.mean()) == pytest.approx(float(noise.var()), rel=1e-3)
    drawn = torch.stack([draw_noise(spectrum, torch.Generator().manual_seed(s)) for s in range(3)])
    again = torch.stack([smooth_spectrum(d) for d in drawn]).mean(dim=0)
    assert ratios(again, spectrum) == pytest.approx([1, 1, 1], abs=0.06)
    with pytest.raises(InputError, match="too small"):
        smooth_spectrum(torch.zeros(4, 40, 40))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_noise_of_input_and_target_is_uncorrelated(strength):
    """At every lag up to 2; with a spectrum twice or half as strong it is not (negative control)."""
    noise = noise_field((48, 48, 48))
    spectrum = smooth_spectrum(noise_field((48, 48, 48), seed=9))

    def worst(scale: float) -> float:
        pair = {"image": noise[None], "label": noise[None]}
        made = RandRecorruptd(["image", "label"], scale * spectrum, strength, fixed=True)(pair)
        given, target = made["image"][0], made["label"][0]
        lags = [(z, y, x) for z in range(3) for y in range(3) for x in range(3)]
        return max(abs(correlation(given, target.roll(lag, (0, 1, 2)))) for lag in lags)

    assert worst(1.0) < 0.03
    assert worst(2.0) > 0.15
    assert worst(0.5) > 0.08


def test_recorruption_gives_the_tomogram_back_and_is_repeatable():
    """(input + a² target) / (1 + a²) is the tomogram; fixed noise is the same each time, other noise is not."""
    window = torch.randn(1, 12, 70, 9)
    pair = {"image": window, "label": window}
    spectrum = torch.ones(GRID, GRID, GRID)
    made = RandRecorruptd(["image", "label"], spectrum, 0.7, fixed=True)
    one, two = made(pair), made(pair)
    assert torch.equal(one["image"], two["image"])
    assert torch.allclose((one["image"] + 0.49 * one["label"]) / 1.49, window, atol=1e-5)
    free = RandRecorruptd(["image", "label"], spectrum, 0.7)
    assert not torch.equal(free(pair)["image"], free(pair)["image"])
    with pytest.raises(SettingError, match="name the input and the target"):
        RandRecorruptd("image", spectrum)
    with pytest.raises(SettingError, match="give more than 0"):
        RandRecorruptd(["image", "label"], spectrum, 0.0)


def test_noise_is_laid_over_any_window():
    """The field goes on beyond its side; a window smaller than the field gets its beginning."""
    tile = torch.randn(8, 8, 8)
    whole = lay_noise(tile, (20, 8, 5))
    assert whole.shape == (20, 8, 5)
    assert torch.equal(whole[:8], tile[..., :5])
    assert torch.equal(whole[8:16], whole[:8])


@pytest.mark.parametrize("case", ["wbp", "aligned", "sirt"])
def test_the_spectrum_of_reconstruction_noise_is_found(case):
    """Within a quarter in every shell, with a third of the signal left in the residual; across the wrong axis it is
    not (negative control)."""
    made = simulate(case, (64, 96, 96), snr=0.1, seed=3)
    residual = made.noise + made.truth / 3
    true = smooth_spectrum(made.noise)
    found = noise_spectrum(made.tomogram, residual, BlindSet("plane", "y"))
    assert ratios(found, true) == pytest.approx([1, 1, 1], abs=0.25)
    error = float((found - true).square().sum() / true.square().sum()) ** 0.5
    wrong = noise_spectrum(made.tomogram, residual, BlindSet("plane", "x"))
    assert error < 0.35
    assert float((wrong - true).square().sum() / true.square().sum()) ** 0.5 > 1.5 * error


def test_what_the_mean_of_all_signals_leaves_unexplained_is_the_noise():
    """Tomogram times residual has the noise's power where signal and noise overlap; the residual's own power is too
    small there (negative control)."""
    noise = noise_field((64, 64, 64), seed=2)
    signal = 3 * gaussian(torch.randn(64, 64, 64, generator=torch.Generator().manual_seed(3)), 0.8)
    powers = [torch.fft.fftn(f).abs().square() for f in (noise_field((64, 64, 64), seed=s) for s in range(4, 20))]
    of_noise = torch.stack(powers).mean(dim=0)
    wave = torch.fft.fftn(gaussian(torch.zeros(64, 64, 64).index_put((torch.tensor(32),) * 3, torch.tensor(3.0)), 0.8))
    of_signal = wave.abs().square() * 64**3
    volume = noise + signal
    mean = torch.fft.ifftn(torch.fft.fftn(volume) * of_signal / (of_signal + of_noise)).real
    true = smooth_spectrum(noise)
    assert ratios(smooth_cross_spectrum(volume, volume - mean), true) == pytest.approx([1, 1, 1], abs=0.1)
    assert ratios(smooth_spectrum(volume - mean), true)[0] < 0.5


@pytest.mark.parametrize("seed", [3, 4])
def test_large_voxels_have_signal_at_all_frequencies_and_the_starting_network_knows_it(seed, tmp_path, monkeypatch):
    """Fourier-cropped: less of the signal counts as noise with the starting network than without it, which is too much
    by far at low frequency (negative control). Without the laws of the ramp, which take signal away too."""
    monkeypatch.setattr(spectrum_module, "ENOUGH", math.inf)
    made = simulate("binned", (64, 96, 96), snr=0.1, seed=seed)
    deviation = made.tomogram.std()
    volumes = [{"image": ((made.tomogram - made.tomogram.mean()) / deviation)[None]}]
    network, path = small_network("plane"), tmp_path / "blind.pt"
    torch.save({"model": network.state_dict()}, path)
    true = smooth_spectrum(made.noise / deviation)
    start = load_network(starting_network())
    without, found = (
        measure_noise_model(volumes, network, str(path), HaloWindowInferer(), start=one).spectrum
        for one in (None, start)
    )
    assert ratios(without, true)[0] > 1.3
    assert ratios(found, true)[0] < 1 + 0.8 * (ratios(without, true)[0] - 1)
    assert min(ratios(found, true)) > 0.9


@pytest.mark.parametrize("shape", [(8, 8, 8), (16, 16, 16), (12, 64, 64), (48, 48, 48)])
def test_the_spectrum_of_white_noise_is_not_too_small(shape):
    """The smaller of two estimates is taken; that must not take noise away where there is no signal at all."""
    seeds = range(6)
    found = []
    for seed in seeds:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        found.append(float(noise_spectrum(noise, noise, BlindSet("plane", "y")).mean() / noise.var()))
    assert sum(found) / len(found) == pytest.approx(1, abs=0.1)


def test_white_noise_gets_a_flat_spectrum_of_its_variance():
    """Blind voxel: one number, near the variance; another blind set: the residual's own spectrum."""
    made = simulate("white", (48, 64, 64), snr=0.2, seed=1)
    flat = noise_spectrum(made.tomogram, made.noise, BlindSet("voxel"))
    assert float(flat.max() - flat.min()) == 0
    assert float(flat.mean()) == pytest.approx(float(made.noise.var()), rel=0.1)
    own = noise_spectrum(made.tomogram, made.noise, BlindSet("box", radius=1))
    assert torch.equal(own, smooth_spectrum(made.noise))


@pytest.mark.parametrize(("case", "snr"), [("wbp", 0.05), ("white", 0.1), ("sirt", 0.19)])
def test_the_chosen_filter_is_near_the_best_one(case, snr):
    """The noise of a tomogram tells its filter, to 2 percent of the best correlation; noise taken for half as strong
    leaves too much of it (negative control)."""
    made = simulate(case, (64, 96, 96), snr, seed=2)
    tomogram = (made.tomogram - made.tomogram.mean()) / made.tomogram.std()
    spectrum = smooth_spectrum(made.noise / made.tomogram.std())
    scores = {(sigma, sigma, sigma): correlation(gaussian(tomogram, sigma), made.truth) for sigma in WIDTHS}
    chosen = choose_filter([tomogram], spectrum)
    assert scores[chosen.sigma] > 0.98 * max(scores.values())
    assert 0 < chosen.gain <= 1
    assert torch.equal(chosen(tomogram), chosen.gain * gaussian(tomogram, chosen.sigma))
    assert choose_filter([tomogram], 0.5 * spectrum).sigma < chosen.sigma


@pytest.mark.parametrize(
    ("case", "snr", "turned"), [("wbp", 0.05, False), ("aligned", 0.19, True), ("sirt", 0.19, True)]
)
def test_a_filter_shaped_by_the_geometry_beats_every_round_one(case, snr, turned):
    """Narrow along the tilt axis, wide along the beam: better than the best Gaussian of one width, which only the
    truth tells, whichever the tilt axis is; for the wrong axis it is worse than that (negative control)."""
    made = simulate(case, (64, 96, 96), snr, seed=2)
    volumes = [(v - v.mean()) / made.tomogram.std() for v in (made.tomogram, made.truth, made.noise)]
    tomogram, truth, noise = (v.transpose(1, 2) for v in volumes) if turned else volumes
    spectrum = smooth_spectrum(noise)
    right, wrong = ("x", "y") if turned else ("y", "x")
    best = max(correlation(gaussian(tomogram, sigma), truth) for sigma in WIDTHS)
    for axis, better in ((right, True), (wrong, False)):
        chosen = choose_filter([tomogram], spectrum, shape=shape_for(BlindSet("plane", axis)))
        assert (correlation(chosen(tomogram), truth) > 1.01 * best) == better


def test_the_shape_of_a_filter_follows_from_the_blind_set():
    """A plane tells the tilt axis, and Z is the beam; the volume that a width smooths over is always the same."""
    assert shape_for(BlindSet("voxel")) == shape_for(BlindSet("box", radius=1)) == (1.0, 1.0, 1.0)
    for axis, order in (("x", (0, 1, 2)), ("y", (0, 1, 2)), ("z", (1, 0, 2)), ("z", (2, 0, 1))):
        shape = shape_for(BlindSet("plane", axis), order)
        assert math.prod(shape) == pytest.approx(1)
        assert min(shape) == shape["zyx".index(axis)]
        assert max(shape) == shape[order[0]]
    (z, y, x), turned = shape_for(BlindSet("plane", "y")), shape_for(BlindSet("plane", "x"))
    assert turned == (z, x, y)
    assert z == pytest.approx(2 * y)


def test_what_a_filter_explains_is_what_it_explains():
    """The estimate from the noise alone is the true one; doubt in the spectrum makes the filter wider, never narrower;
    pure noise gets next to nothing."""
    made = simulate("wbp", (64, 96, 96), 0.05, seed=2)
    spectrum = smooth_spectrum(made.noise)
    truth = made.truth - made.truth.mean()
    for sigma in (0.7, 1.0, 1.7):
        chosen = choose_filter([made.tomogram], spectrum, widths=(sigma,))
        explained = float(truth.square().mean() - (truth - chosen(made.tomogram)).square().mean())
        assert chosen.explained == pytest.approx(explained, abs=0.1 * float(truth.square().mean()))
    sigmas = [choose_filter([made.tomogram], spectrum, error).sigma for error in (0.0, 0.05, 0.2, 0.8)]
    assert sigmas == sorted(sigmas)
    assert sigmas[-1] > sigmas[0]
    nothing = choose_filter([made.noise], spectrum, 0.05)
    assert float(nothing(made.noise).square().mean()) < 0.01 * float(made.noise.square().mean())
    for wrong in (0, (1.0, 2.0), (1.0, 0.0, 2.0)):
        with pytest.raises(SettingError, match="give more than 0"):
            gaussian(made.noise, wrong)


@pytest.mark.parametrize(("weight", "error", "trust", "words"), [
    (0.9, 0.05, 0.9, "the network carries the result"),
    (1.05, 0.05, 1.0, "the network carries the result"),
    (1.5, 0.05, 1.0, "the network carries the result"),
    (1.6, 0.05, 2 / 3, "the noise is not quite known: 33% of the result is the filter's"),
    (1.7, 0.05, 1 / 3, "the noise is not quite known: 67% of the result is the filter's"),
    (1.7, 0.4, 1.0, "the network carries the result"),
    (0.4, 0.05, 0.4, "60% of the result is the filter's"),
    (0.4, 0.16, 0.1, "90% of the result is the filter's"),
    (0.4, 0.3, 0.0, "the result is all the filter's"),
    (-0.2, 0.01, 0.0, "best weight of the network on voxels held out of the fit -0.20 ± 0.01"),
    (0.0, 0.0, 0.0, "the result is all the filter's"),
])  # fmt: skip
def test_trust_is_the_weight_of_the_network_unless_that_may_be_chance(weight, error, trust, words):
    """Four standard errors are enough; a network that may be of no use is not used."""
    found = FilterComparison(FilterChoice((2.0, 1.4, 1.0), 0.8, 0.1), Weight(weight, error))
    assert found.trust == pytest.approx(trust)
    assert words in found.describe()
    assert "2 × 1.4 × 1 voxels along z, y, x" in found.describe()
    assert found.blend() == {"trust": found.trust, "sigma": [2.0, 1.4, 1.0], "gain": 0.8}


def test_a_network_that_asks_for_more_than_all_gets_a_third_of_what_its_bands_ask():
    """And it is told. A band that asks for more than all, where the whole does not, has all (control)."""
    linear, much, right = FilterChoice((2.0, 1.4, 1.0), 0.8, 0.1), Weight(1.7, 0.05), Weight(1.0, 0.05)
    bands_ = (Weight(0.6, 0.05), much)
    banded, whole, control = (FilterComparison(linear, *parts) for parts in ((much, bands_), (much,), (right, bands_)))
    assert banded.blend()["trust"] == pytest.approx([0.2, 1 / 3])
    assert whole.blend()["trust"] == pytest.approx(1 / 3)
    assert control.blend()["trust"] == pytest.approx([0.6, 1.0])
    for found in (banded, whole):
        assert "more than all" in found.describe()


def test_the_border_of_a_volume_alone_does_not_say_that_the_noise_is_unknown():
    """Where the middle asks for no more than all, the bands have what they ask for; where it does, a third (control).
    The finest band, which has no share of its own, raises no alarm either; the next does (control)."""
    linear, much, right = FilterChoice((2.0, 1.4, 1.0), 0.8, 0.1), Weight(2.1, 0.1), Weight(1.1, 0.04)
    finest, next_ = (much, right), (right, much)
    kept = FilterComparison(linear, much, finest, middle=right)
    assert kept.blend()["trust"] == pytest.approx([1.0, 1.0])
    assert not kept.is_excessive
    assert "held out of the fit 2.10 ± 0.10, in the middle 1.10 ± 0.04" in kept.describe()
    control = FilterComparison(linear, much, finest, middle=Weight(1.9, 0.04))
    assert control.blend()["trust"] == pytest.approx([1 / 3, 1 / 3])
    assert control.is_excessive
    assert FilterComparison(linear, right, next_, middle=right).is_excessive


class Told(torch.nn.Module):
    """In the place of a network: a volume that it gives whatever it is shown, and a share of what it is shown."""

    def __init__(self, volume: Tensor, share: float) -> None:
        super().__init__()
        self.volume, self.share = torch.nn.Parameter(volume), share

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.share) * self.volume.detach() + self.share * x


@pytest.mark.parametrize("share", [0.0, 1.0, 0.1])
def test_the_judge_finds_the_best_mixture(tmp_path, share):
    """The truth gets all the trust; what the network is shown itself, noise and all, none (negative control); between
    the two the weight is that of the smallest true error."""
    made = simulate("wbp", (40, 64, 64), snr=0.1, seed=0)
    mean, deviation = made.tomogram.mean(), made.tomogram.std()
    volumes = [{"image": ((made.tomogram - mean) / deviation)[None]}]
    spectrum = smooth_spectrum(made.noise / deviation).float()
    slab, window = HeldOutSlab(), HeldOutSlab().scored(made.truth.shape)
    truth = ((made.truth - mean) / deviation)[window.read][None, None]
    network, path = Told(truth, share), tmp_path / "model.pt"
    torch.save({"model": network.state_dict()}, path)
    found = NoiseModel(spectrum, choose_filter([volumes[0]["image"][0]], spectrum))
    output = tmp_path / "judged.pt"
    verdict = compare_with_filter(
        volumes, network, str(path), found, PrecisionInferer("fp32"), slab, str(output), str(tmp_path)
    )
    noisy = volumes[0]["image"][0][window.read]
    noisy = noisy + 0.1 * lay_noise(draw_noise(spectrum, torch.Generator().manual_seed(9)), noisy.shape)
    linear, net = found.linear(noisy)[window.core], network(noisy[None, None])[0, 0][window.core]
    apart = net - linear
    best = float((apart * (truth[0, 0][window.core] - linear)).sum() / apart.square().sum())
    assert verdict.weight.error < 0.1
    assert verdict.weight.value == pytest.approx(best, abs=4 * verdict.weight.error)
    assert (verdict.trust > 0.9, verdict.trust == 0) == (share == 0, share == 1)
    assert load_plain(output)["blend"] == verdict.blend()
    assert json.loads((tmp_path / "refinement.json").read_text())["weight"] == verdict.weight.value
    assert "on voxels held out" in (tmp_path / "run.log").read_text()


class Filter(torch.nn.Module):
    """In the place of a network: a Gaussian."""

    def __init__(self, linear: FilterChoice) -> None:
        super().__init__()
        self.linear, self.unused = linear, torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[0, 0])[None, None]


class ByPlace(torch.nn.Module):
    """In the place of a network: a volume for the held-out slab, and another for the middle, told by their shapes."""

    def __init__(self, slab: Tensor, middle: Tensor) -> None:
        super().__init__()
        self.slab, self.middle = torch.nn.Parameter(slab), torch.nn.Parameter(middle)

    def forward(self, x: Tensor) -> Tensor:
        return next(v for v in (self.slab.detach(), self.middle.detach()) if v.shape == x.shape[2:])[None, None]


@pytest.mark.parametrize("kind", ["fine", "slab alone", "faint slab", "faint"])
def test_the_judge_weighs_by_band_and_where_the_network_does_worse(tmp_path, kind):
    """With the truth in the two finer bands alone: trust there, none in the coarsest. With the truth in the slab and
    nothing in the middle: no trust in any, though the weight over all detail is high (control). With the filter and
    half of what it lacks in the slab, the best weight is two there; that is no alarm while the middle has the truth,
    and one where it has half too (control)."""
    made = simulate("wbp", (40, 64, 96), snr=0.1, seed=0)
    mean, deviation = made.tomogram.mean(), made.tomogram.std()
    volume, spectrum = (made.tomogram - mean) / deviation, smooth_spectrum(made.noise / deviation).float()
    truth = (made.truth - made.truth.mean()) / deviation
    linear = replace(
        choose_filter([volume], spectrum), kernel=wiener_kernel(smooth_spectrum(volume), spectrum.double())
    )
    read = HeldOutSlab().scored(truth.shape).read
    fine = sum(bands(truth)[:2])
    half = (truth + linear(volume)) / 2
    known = {
        "fine": (fine[read], fine),
        "slab alone": (truth[read], torch.zeros_like(truth)),
        "faint slab": (half[read], truth),
        "faint": (half[read], half),
    }
    network, path = ByPlace(*known[kind]), tmp_path / "model.pt"
    torch.save({"model": network.state_dict()}, path)
    verdict = compare_with_filter(
        [{"image": volume[None]}], network, str(path), NoiseModel(spectrum, linear), PrecisionInferer("fp32"),
        HeldOutSlab(), str(tmp_path / "judged.pt"), str(tmp_path),
    )  # fmt: skip
    trusts, linear_trusts = verdict.shares, verdict.linear_shares
    most = 1 / 3 if kind == "faint" else 1.0
    assert linear_trusts[1:] == pytest.approx([most * band.share for band in verdict.bands[1:]])
    assert all(share >= linear for share, linear in zip(trusts, linear_trusts, strict=True))
    assert verdict.blend()["trust"] == trusts
    if kind == "fine":
        assert min(linear_trusts[:2]) > 0.8
        assert linear_trusts[3] < 0.2
        assert "share of the network by band of detail, fine to coarse" in verdict.describe()
    elif kind.startswith("faint"):
        assert verdict.weight.is_excessive
        assert verdict.is_excessive == (kind == "faint")
        assert (min(linear_trusts) > 0.8) == (kind == "faint slab")
        judged = json.loads((tmp_path / "refinement.json").read_text())
        assert judged["middle_weight"] == verdict.middle.value
    else:
        assert max(linear_trusts) < 0.2
        assert verdict.weight.trust > 0.8
    assert load_plain(tmp_path / "judged.pt")["blend"]["trust"] == trusts


class WrongFilter(torch.nn.Module):
    """In the place of a network: a filter that is wrong, and beside it a volume less what a kernel tells of it."""

    def __init__(self, beside: Tensor, kernel: Tensor) -> None:
        super().__init__()
        self.beside, self.kernel = torch.nn.Parameter(beside), kernel

    def forward(self, x: Tensor) -> Tensor:
        rest = self.beside.detach() - convolve(x[0, 0], self.kernel)
        return (gaussian(x[0, 0], 0.6) + rest)[None, None]


@pytest.mark.parametrize("right", [True, False])
def test_what_no_filter_tells_is_added_to_the_filter(tmp_path, right):
    """The network filters wrongly, and the rest of it is right. Where that is added, the result is nearer to the truth
    than the filter, and than a mixture of both. If the rest is noise, nothing is added (negative control)."""
    made = simulate("wbp", (48, 72, 72), snr=0.1, seed=0)
    deviation = made.tomogram.std()
    volume, spectrum = (
        (made.tomogram - made.tomogram.mean()) / deviation,
        smooth_spectrum(made.noise / deviation).float(),
    )
    truth = (made.truth - made.truth.mean()) / deviation
    kernel = wiener_kernel(smooth_spectrum(volume), spectrum.double())
    linear = replace(choose_filter([volume], spectrum), kernel=kernel)
    noise = lay_noise(draw_noise(spectrum, torch.Generator().manual_seed(5)), volume.shape)
    beside = truth if right else 0.3 * noise
    network, path = WrongFilter(beside, prediction_kernel(beside, volume)), tmp_path / "model.pt"
    torch.save({"model": network.state_dict()}, path)
    # In its middle alone, so that the network need not know where it is.
    found = NoiseModel(spectrum, linear)
    verdict = compare_with_filter(
        [{"image": volume[None]}], network, str(path), found, PrecisionInferer("fp32"), None, str(tmp_path / "out.pt"),
        str(tmp_path),
    )  # fmt: skip
    replacing = {"trust": verdict.linear_shares, "sigma": [1.0] * 3, "gain": 1.0, "kernel": kernel}
    mixtures = [
        HaloWindowInferer(volume.shape, halo=0, precision="fp32", blend=blend)(volume[None, None], network)[
            0, 0
        ].detach()
        for blend in (verdict.blend(), replacing)
    ]
    added, replaced, alone = (float((one - truth).square().mean()) for one in (*mixtures, convolve(volume, kernel)))
    if right:
        assert min(verdict.shares[1:]) > 0.8
        assert verdict.shares[0] == verdict.linear_shares[0]
        assert added < 0.75 * replaced
        assert added < 0.75 * alone
    else:
        assert max(verdict.shares) < 0.1
        assert added == pytest.approx(alone, rel=0.05)


@pytest.mark.parametrize(("next_to_it", "share"), [(0.0, 0.0), (-0.4, 0.0), (0.5, 0.5), (1.0, 0.9)])
def test_the_finest_detail_is_trusted_no_more_than_what_is_next_to_it(next_to_it, share):
    """Seen on a real cell: a weight of 1 in the finest band, and less than 0 in all others."""
    weights = tuple(Weight(value, 0.01) for value in (0.9, next_to_it, 0.2, 1.0))
    verdict = FilterComparison(FilterChoice((1.0, 1.0, 1.0), 1.0, 0.1), Weight(0.5, 0.01), weights)
    assert verdict.shares == pytest.approx([share, max(0.0, next_to_it), 0.2, 1.0])
    assert verdict.blend()["trust"] == verdict.shares


@pytest.mark.parametrize("seed", [2, 3])
def test_the_judge_weighs_at_the_noise_of_the_tomogram(tmp_path, seed):
    """A Gaussian made for noise half as strong again, in the place of a network, gets the weight that is best on the
    tomogram itself; judged on strongly recorrupted voxels it gets much more (negative control)."""
    made = simulate("wbp", (64, 96, 96), snr=0.061, seed=seed)
    volume = (made.tomogram - made.tomogram.mean()) / made.tomogram.std()
    truth = (made.truth - made.truth.mean()) / made.tomogram.std()
    spectrum = smooth_spectrum(made.noise / made.tomogram.std()).float()
    found = NoiseModel(spectrum, choose_filter([volume], spectrum))
    noise = lay_noise(draw_noise(spectrum, torch.Generator().manual_seed(4)), volume.shape)
    network, path = Filter(choose_filter([volume + 0.7 * noise], 1.49 * spectrum)), str(tmp_path / "model.pt")
    torch.save({"model": network.state_dict()}, path)
    window = HeldOutSlab(border=0).scored(volume.shape)
    linear, net, slab = (v[window.read][window.core] for v in (found.linear(volume), network.linear(volume), truth))
    best = float(((net - linear) * (slab - linear)).sum() / (net - linear).square().sum())

    def errors_off(**more: float) -> float:
        files = str(tmp_path / "judged.pt"), str(tmp_path)
        inferer = PrecisionInferer("fp32")
        verdict = compare_with_filter(
            [{"image": volume[None]}], network, path, found, inferer, HeldOutSlab(border=0), *files, **more
        )
        return (verdict.weight.value - best) / verdict.weight.error

    assert abs(errors_off()) < 1.5
    assert errors_off(strength=0.7) > 2


def test_the_second_stage_measures_with_a_blind_network_alone(tmp_path):
    """Of several tomograms the mean; leaning noise counts as stronger; a network that hides nothing is refused."""
    made = simulate("wbp", (40, 64, 64), snr=0.1, seed=0)
    straight = [{"image": ((made.tomogram - made.tomogram.mean()) / made.tomogram.std())[None]}]
    leaning = turned_about_z(made.tomogram, 8)
    leaning = [{"image": ((leaning - leaning.mean()) / leaning.std())[None]}]
    network, path = small_network("plane"), tmp_path / "blind.pt"
    torch.save({"model": network.state_dict()}, path)
    found, turned, both = (
        measure_noise_model(volumes, network, str(path), HaloWindowInferer())
        for volumes in (straight, leaning, [*straight, *leaning])
    )
    assert found.spectrum.shape == (GRID, GRID, GRID)
    assert torch.allclose(both.spectrum, (found.spectrum + turned.spectrum) / 2)
    shape = shape_for(network.lattice.blind_set)
    known = choose_linear([straight[0]["image"][0]], found.spectrum, 0.08, shape)
    assert found.linear.explained == known.explained
    assert torch.equal(found.linear.config()["kernel"], known.config()["kernel"])
    told = choose_linear([leaning[0]["image"][0]], turned.spectrum, 0.08, shape)
    assert turned.linear.explained < told.explained
    assert turned.linear.sigma >= told.sigma
    assert network.training
    with pytest.raises(SettingError, match="needs a blind-spot network"):
        measure_noise_model(straight, small_network(), str(path), HaloWindowInferer())


def test_halves_tell_the_spectrum_of_the_noise(tmp_path):
    """Closer to the noise's own than one volume tells it, whatever the grey scale of the halves; halves of another
    tomogram are refused."""
    made = simulate("aligned", (48, 64, 64), snr=0.2, seed=5)
    deviation = made.tomogram.std()
    volumes = [{"image": ((made.tomogram - made.tomogram.mean()) / deviation)[None]}]
    network, path = small_network("plane"), tmp_path / "blind.pt"
    torch.save({"model": network.state_dict()}, path)
    names = {"even": made.even, "odd": made.odd, "other": made.odd.flip(0), "both": made.even}
    files = {name: str(write_mrc(tmp_path / f"{name}.mrc", (7 + 30 * v).numpy())) for name, v in names.items()}
    true = smooth_spectrum(made.noise / deviation)

    def error(**more: object) -> float:
        found = measure_noise_model(volumes, network, str(path), HaloWindowInferer(), **more).spectrum
        return float((found - true).square().sum() / true.square().sum()) ** 0.5

    with_halves = error(halves=[files["even"], files["odd"]])
    assert with_halves < 0.25 < error()
    with pytest.raises(InputError, match="do not add up"):
        error(halves=[files["even"], files["other"]])
    with pytest.raises(InputError, match="halves are equal"):
        error(halves=[files["even"], files["both"]])
    with pytest.raises(InputError, match="name the even and the odd"):
        error(halves=[files["even"]])


def test_the_middle_of_the_middle_is_the_middle():
    """Halves are read up to a limit and cropped then, the tomogram is cropped at once: both give the same voxels, for
    odd sides too. A side of the middle that is odd would not (control)."""
    shifted = []
    for shape in ((24, 333, 333), (24, 463, 463), (211, 24, 464)):
        image = torch.arange(math.prod(shape)).reshape(1, *shape)
        side = _side_of_middle(image)
        assert torch.equal(central_crop(central_crop(image, LARGEST), side), central_crop(image, side))
        shifted.append(not torch.equal(central_crop(central_crop(image, LARGEST), 151), central_crop(image, 151)))
    assert any(shifted)


@pytest.mark.parametrize(
    ("shape", "side"),
    [
        ((96, 314, 326), 128), ((192, 628, 652), 192), ((60, 200, 200), 130), ((48, 192, 400), 146),
        ((400, 40, 384), 160), ((27, 700, 700), 192), ((30, 40, 50), 192),
    ],
)  # fmt: skip
def test_the_middle_of_a_flat_volume_is_wider(shape, side):
    """Until it has the voxels that tell spectra from chance, as far as halves are read; of a thick one it is not."""
    image = torch.empty(1, *shape, device="meta")
    assert _side_of_middle(image) == side
    middle = math.prod(min(side, n) for n in shape)
    assert middle >= 1_000_000 or side == 192
    assert side in {128, 192} or math.prod(min(side - 2, n) for n in shape) < 1_000_000
    without_halves = _side_of_middle(image, 320)
    assert without_halves == side or shape in {(27, 700, 700), (30, 40, 50)}
    assert math.prod(min(without_halves, n) for n in shape) >= 1_000_000 or math.prod(shape) < 1_000_000


def test_halves_of_unequal_noise_leave_no_signal_in_their_difference():
    """On the scale on which they add up to the tomogram their signals cancel; standardised one by one they do not
    (negative control)."""
    made = simulate("wbp", (48, 64, 64), snr=0.3, seed=5)
    one, other = made.even - made.truth, made.odd - made.truth
    even, odd = made.truth + 2 * one, made.truth + other
    tomogram = (even + odd) / 2

    def left(even: Tensor, odd: Tensor) -> float:
        return abs(correlation(even - odd, made.truth))

    apart = [(half - half.mean()) / half.std() for half in (even, odd)]
    assert left(*on_one_scale(tomogram, *apart)) < 0.02
    assert left(*apart) > 0.1
    with pytest.raises(InputError, match="do not belong together"):
        on_one_scale(tomogram[1:], even, odd)


def test_detail_mixes_the_noisy_volume_back():
    """0 is the result, 1 the input, between them the mean; other shares are refused."""
    volume, network = torch.randn(1, 1, 20, 22, 24), small_network().eval()

    def run(detail: float) -> Tensor:
        with torch.no_grad():
            return HaloWindowInferer(16, detail=detail)(volume, network)

    assert torch.equal(run(0.0), HaloWindowInferer(16)(volume, network))
    assert torch.allclose(run(1.0), volume)
    assert torch.allclose(run(0.25), 0.75 * run(0.0) + 0.25 * volume, atol=1e-6)
    with pytest.raises(SettingError, match=r"detail is 1\.5"):
        HaloWindowInferer(16, detail=1.5)


def test_smooth_is_a_gaussian_over_the_result_and_not_over_the_input_in_it():
    """What the Gaussian makes of the result without it, up to the borders, where no dark rim is; not of others."""
    volume, network = torch.randn(1, 1, 20, 22, 24) + 3, small_network().eval()

    def run(**more: float) -> Tensor:
        with torch.no_grad():
            return HaloWindowInferer(8, **more)(volume, network)

    inside = gaussian(torch.ones(20, 22, 24), 0.8)
    expected = gaussian(run()[0, 0], 0.8) / inside
    assert torch.allclose(run(smooth=0.8)[0, 0], expected, atol=1e-5)
    assert not torch.allclose(run(smooth=0.6)[0, 0], expected, atol=1e-2)
    assert torch.allclose(run(smooth=0.8, detail=0.25), 0.75 * run(smooth=0.8) + 0.25 * volume, atol=1e-5)
    assert torch.allclose(smoothed(torch.full((1, 1, 9, 9, 9), 5.0), 1.5), torch.tensor(5.0))
    HaloWindowInferer(8, smooth=smoothing("4"))
    for width in (-0.1, 4.1):
        with pytest.raises(SettingError, match=rf"smooth is {width}"):
            HaloWindowInferer(8, smooth=width)
        with pytest.raises(argparse.ArgumentTypeError, match="from 0 to 4"):
            smoothing(str(width))


def test_the_blend_goes_from_filter_to_network_whatever_the_window():
    """Trust 0 is the Gaussian, 1 the network, between them the mean; windows do not show."""
    volume, network = torch.randn(1, 1, 20, 22, 24), small_network().eval()
    blend = {"sigma": [2.0, 1.4, 1.0], "gain": 0.5}

    def run(trust: float, window: int = 64) -> Tensor:
        with torch.no_grad():
            return HaloWindowInferer(window, blend={"trust": trust, **blend})(volume, network)

    smooth = 0.5 * gaussian(volume[0, 0], (2.0, 1.4, 1.0))[None, None]
    assert torch.allclose(run(0.0), smooth, atol=1e-6)
    assert torch.equal(run(1.0), HaloWindowInferer(64)(volume, network))
    assert torch.allclose(run(0.25), 0.25 * run(1.0) + 0.75 * smooth, atol=1e-6)
    assert torch.allclose(run(0.25, window=8), run(0.25), atol=1e-5)
    small = {"trust": 0.0, "sigma": 3.0, "gain": 1.0}
    narrow, whole = (HaloWindowInferer(w, halo=2, blend=small)(volume, network) for w in (8, 64))
    assert torch.allclose(narrow, whole, atol=1e-5)


def test_a_network_that_hides_nothing_cannot_be_fitted_to_its_own_input():
    """It sees every voxel; the guard stops the run."""
    network = small_network()
    assert network.lattice.stride_zyx == (1, 1, 1)
    assert bool(network.lattice.taps().all())
    assert network.lattice.describe() == "nothing"
    assert not BlindSet("none").contains((0, 0, 0))
    with pytest.raises(SettingError, match="hides nothing"):
        BlindnessGuard(network)(None)
    with pytest.raises(SettingError, match="there is none"):
        BlindSet("none", radius=1)


def test_distillation_aims_at_the_mean_over_draws(tmp_path):
    """The target is what the teacher makes of recorrupted input, mirrored; voxels that do not count stay out."""
    network, path = small_network(), tmp_path / "teacher.pt"
    torch.save({"model": network.state_dict()}, path)
    teacher = copy_with_weights(network, str(path))
    assert teacher is not network
    image = torch.randn(1, 1, 16, 16, 16)
    label = image.clone()
    label[..., :4] = math.nan
    spectrum = torch.ones(GRID, GRID, GRID)
    make = Distillation(teacher, spectrum, PrecisionInferer("fp32"), 0.7, draws=2, fixed=True)
    given, target = make({"image": image, "label": label}, "cpu")
    assert torch.equal(given, image)
    assert bool(torch.isnan(target[..., :4]).all())
    assert torch.equal(target[..., 4:], make({"image": image, "label": label}, "cpu")[1][..., 4:])
    random = torch.Generator().manual_seed(0)
    seen, mean = set(), torch.zeros_like(image)
    for _ in range(2):
        noisy = image + 0.7 * lay_noise(draw_noise(spectrum, random), (16, 16, 16))
        axes = [2 + axis for axis in range(3) if int(torch.randint(2, (1,), generator=random))]
        seen.add(tuple(axes))
        with torch.no_grad():
            mean += teacher(noisy.flip(axes)).flip(axes) / 2
    assert len(seen) == 2, "the draws are mirrored differently"
    assert torch.allclose(target[..., 4:], mean[..., 4:], atol=1e-5)


def test_halves_of_tilts_are_not_believed_where_their_planes_lie_apart(tmp_path):
    """There they differ in signal too, and the noise is taken for what the tomogram alone tells, nearer to the true
    one; halves of frames differ in noise alone, and are right either way (control)."""
    made = simulate("insitu", (96, 104, 104), snr=0.3, seed=0, voxel_size_angstrom=20.0)
    assert made.even_tilts is not None
    mean, deviation = made.tomogram.mean(), made.tomogram.std()
    volume, true = ((made.tomogram - mean) / deviation)[None], smooth_spectrum(made.noise / deviation)
    network, path = small_network("plane"), tmp_path / "blind.pt"
    torch.save({"model": network.state_dict()}, path)
    off = {}
    for name, pair in (("tilts", (made.even_tilts, made.odd_tilts)), ("frames", (made.even, made.odd))):
        files = [str(write_mrc(tmp_path / f"{name}{i}.mrc", half.numpy())) for i, half in enumerate(pair)]
        found = measure_noise_model([{"image": volume}], network, str(path), HaloWindowInferer(), halves=files)
        even, odd = on_one_scale(volume[0], *((half - half.mean()) / half.std() for half in pair))
        told = smooth_spectrum(even - odd)
        off[name] = [max(abs(math.log(ratio)) for ratio in ratios(s, true)) for s in (found.spectrum, told)]
    assert off["tilts"][0] < off["tilts"][1] - 0.05
    assert max(off["frames"]) < 0.2


def test_no_network_is_fitted_to_rays_of_gold(tmp_path):
    """With beads left in the second stage is left out, and the starting network has no share, however good it seems to
    noise that holds no rays; the verdict says why. Without beads it is not so (control)."""
    made = simulate("wbp", (40, 64, 64), snr=0.1, seed=0)
    volume = (made.tomogram - made.tomogram.mean()) / made.tomogram.std()
    beads = volume.clone()
    beads[10:14, 20:24, 20:24] -= 40
    network, path = small_network("plane"), tmp_path / "blind.pt"
    torch.save({"model": network.state_dict()}, path)
    for one, reliable in ((volume, True), (beads, False)):
        found = measure_noise_model([{"image": one[None]}], network, str(path), HaloWindowInferer())
        assert found.reliable == reliable
        how = {"fitted": False, "doubt": found.doubt, "trusted": found.weighs_networks}
        verdict = FilterComparison(found.linear, Weight(1.6, 0.01), **how)
        assert ("beads of gold" in verdict.describe()) != reliable
        assert (verdict.trust > 0.5) == verdict.is_excessive == reliable
        assert reliable or verdict.blend()["trust"] == 0
        sure = (Weight(0.9, 0.01),) * len(BAND_EDGES)
        by_band = FilterComparison(found.linear, sure[0], sure, sure, **how)
        assert by_band.blend()["trust"] == [0.9 if reliable else 0.0] * len(sure)
        assert by_band.is_excessive is False


def with_rays(volume: Tensor, rows: Sequence[int]) -> Tensor:
    """Beads of gold in some rows, each with the ray that every tilt image draws through it."""
    volume, (z, _, x) = volume.clone(), volume.shape
    up, along = torch.meshgrid(torch.arange(z) - z / 2, torch.arange(x) - x / 2, indexing="ij")
    for row in rows:
        for tilt in range(-60, 61, 10):
            angle = math.radians(tilt)
            off = along * math.cos(angle) - up * math.sin(angle)
            ray = torch.exp(-off.square() / 6)
            volume[:, row - 2 : row + 3] -= 1.5 * ray[:, None]
    return volume


def test_halves_of_a_tomogram_with_beads_are_halves_of_it(tmp_path):
    """Beads are in both halves as they are in the whole, also where the tomogram is longer than what is read of the
    halves; fine noise is that of the planes without. Halves of another tomogram are refused (control)."""
    made = simulate("wbp", (96, 256, 112), snr=0.1, seed=0)
    deviation = made.tomogram.std()
    volume, even, odd = (with_rays(v / deviation, (100, 112)) for v in (made.tomogram, made.even, made.odd))
    files = [str(write_mrc(tmp_path / f"{n}.mrc", half.numpy())) for n, half in enumerate((even, odd, odd.flip(1)))]
    network, path, inferer = small_network("plane"), str(tmp_path / "blind.pt"), HaloWindowInferer(halo=16)
    torch.save({"model": network.state_dict()}, path)
    standard = (volume - volume.mean()) / volume.std()
    item, start = [{"image": standard[None]}], Filter(FilterChoice((1.4, 1.4, 1.4), 1.0, 0.0))

    def found(*halves: str) -> NoiseModel:
        return measure_noise_model(item, network, path, inferer, halves=halves, start=start)

    noise = found(*files[:2])
    assert noise.clear is not None
    assert 112 < noise.clear.planes[0].start < noise.clear.planes[0].stop == 32 + LARGEST
    true = smooth_spectrum(made.noise / deviation / volume.std())
    assert ratios(noise.clear.spectrum, true)[-1] == pytest.approx(1, abs=0.15)
    with pytest.raises(InputError, match="do not add up"):
        found(files[0], files[2])


def test_what_a_network_is_worth_is_asked_where_there_are_no_rays_of_gold(tmp_path):
    """The noise is that of the planes without rays, and the weight what these planes give without beads elsewhere; the
    whole volume tells another noise and another weight (negative controls)."""
    made = simulate("wbp", (84, 176, 104), snr=0.1, seed=0)
    deviation = made.tomogram.std()
    plain, true = (made.tomogram - made.tomogram.mean()) / deviation, smooth_spectrum(made.noise / deviation)
    beads = with_rays(plain, (128, 142))
    network, path, model = small_network("plane"), str(tmp_path / "blind.pt"), str(tmp_path / "model.pt")
    torch.save({"model": network.state_dict()}, path)
    candidate, inferer = Filter(choose_filter([plain], true)), HaloWindowInferer(halo=16)
    torch.save({"model": candidate.state_dict()}, model)
    noise = measure_noise_model([{"image": beads[None]}], network, path, inferer, start=candidate)
    assert not noise.reliable
    assert noise.clear is not None
    assert ratios(noise.clear.spectrum, true)[0] == pytest.approx(1, abs=0.1)
    assert abs(ratios(noise.spectrum, true)[0] - 1) > 0.3

    def verdict(volume: Tensor, noise: NoiseModel) -> FilterComparison:
        files = str(tmp_path / "judged.pt"), str(tmp_path)
        return compare_with_filter([{"image": volume[None]}], candidate, model, noise, inferer, None, *files, draws=1)

    found = verdict(beads, noise)
    expected = verdict(plain[:, noise.clear.planes[0]], replace(noise, clear=None, spectrum=noise.clear.spectrum))
    assert found.trusted
    assert not expected.trusted
    assert found.weight.value == pytest.approx(expected.weight.value, abs=0.02)
    assert abs(verdict(beads, replace(noise, clear=None)).weight.value - found.weight.value) > 0.1


def test_a_large_field_of_view_tells_its_noise_by_more_voxels(tmp_path, monkeypatch):
    """Its filter takes less of the scatter of the noise for signal than one from the middle 128 voxels does (negative
    control); a small field has no more than these."""
    volume = torch.randn(64, 490, 484, generator=torch.Generator().manual_seed(0))
    network, path = small_network("plane"), str(tmp_path / "blind.pt")
    torch.save({"model": network.state_dict()}, path)

    def kept(volume: Tensor) -> float:
        measured = measure_noise_model([{"image": volume[None]}], network, path, HaloWindowInferer(halo=16))
        return float(measured.linear(central_crop(volume, 128)).square().mean())

    large, small = kept(volume), kept(central_crop(volume, 250))
    monkeypatch.setattr("cryoshuffle.fit.noise_model._LARGEST_SIDE", 128)
    assert large < 0.7 * kept(volume)
    assert small == pytest.approx(kept(volume), rel=1e-3)
