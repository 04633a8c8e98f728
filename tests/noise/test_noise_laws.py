"""The noise is measured as it is, the blind set follows it, and only with the matching one does risk follow error."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import mrcfile
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from phantoms import REAL_TOMOGRAM, turned_about_z, write_mrc

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.masks import load_mask
from cryoshuffle.files.volumes import DENOISED, own_label
from cryoshuffle.lattice import AXES, BlindSet
from cryoshuffle.noise import estimate as estimate_module
from cryoshuffle.noise.choice import BlindChoice, BlindPlan, choose_blind, choose_blind_set, find_tilt_axis
from cryoshuffle.noise.estimate import (
    NoiseEstimate,
    average,
    longest_run,
    noise_from_empty,
    noise_from_halves,
    noise_from_volume,
    planes_without_beads,
    without_outliers,
)
from cryoshuffle.noise.linear_filter import gaussian
from cryoshuffle.noise.volumes import load_volume
from cryoshuffle.noise.wedge import Wedge
from cryoshuffle.noise.whitening import Whitening, WhitenNoise, WhitenNoised
from cryoshuffle.simulation.tilt_series import CASES, Simulation, TiltScheme, simulate

SNR = {"white": 0.1, "wbp": 0.06, "aligned": 0.19, "sirt": 0.1, "binned": 0.1, "insitu": 0.1}


@lru_cache
def simulated(case: str) -> Simulation:
    return simulate(case, shape=(56, 96, 96), snr=SNR[case], seed=5)


def true_autocorrelation(noise: torch.Tensor, axis: int, lag: int) -> float:
    noise = noise - noise.mean()
    n = noise.shape[axis]
    return float((noise.narrow(axis, 0, n - lag) * noise.narrow(axis, lag, n - lag)).mean() / noise.square().mean())


@pytest.mark.parametrize("case", CASES)
def test_halves_tell_the_autocorrelation_of_the_noise(case):
    """Along every axis, at lags 1 to 3, within 0.05 of what the noise really has."""
    simulation = simulated(case)
    estimate = noise_from_halves(simulation.even, simulation.odd)
    for a, axis in enumerate(AXES):
        for lag in (1, 2, 3):
            truth = true_autocorrelation(simulation.noise, a, lag)
            assert abs(estimate.autocorrelation[axis][lag - 1] - truth) < 0.05


@pytest.mark.parametrize("case", CASES)
def test_one_volume_tells_it_along_the_tilt_axis(case):
    """From the noisy tomogram alone: within 0.05 along the tilt axis at lags 1 to 3, in situ within 0.08."""
    simulation = simulated(case)
    estimate = noise_from_volume(simulation.tomogram)
    for lag in (1, 2, 3):
        truth = true_autocorrelation(simulation.noise, 1, lag)
        assert abs(estimate.autocorrelation["y"][lag - 1] - truth) < (0.08 if case == "insitu" else 0.05)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("turned", [False, True])
def test_the_right_blind_set_is_chosen(case, turned):
    """White noise gets a voxel, the rest the plane across the tilt axis, wherever that lies; aligned is whitened."""
    simulation = simulated(case)
    volumes = [simulation.tomogram, simulation.even, simulation.odd]
    volume, even, odd = (v.transpose(1, 2).contiguous() if turned else v for v in volumes)
    for estimate in (noise_from_volume(volume), noise_from_halves(even, odd)):
        choice = choose_blind(estimate)
        if case == "white":
            assert choice.blind_set.shape == "voxel"
            continue
        assert (choice.blind_set.shape, choice.blind_set.axis) == ("plane", "x" if turned else "y")
        assert choice.blind_set.half_width == 0
        assert (choice.whitening is not None) == (case in {"aligned", "insitu"})
        assert choice.clean


def test_the_real_tomogram_has_its_tilt_axis_along_y():
    """As its gold streaks and wedge show."""
    measured = choose_blind_set([str(REAL_TOMOGRAM)])
    assert (measured.blind_set.shape, measured.blind_set.axis) == ("plane", "y")
    assert measured.estimate is not None
    assert measured.estimate.leftover("x", 0) > 0.1


def test_two_equal_axes_are_not_guessed_between():
    """The message names both; a given tilt axis or the missing wedge settles it."""
    loud, quiet = [0.5, 0.2, 0.1, 0.0], [0.1, 0.0, 0.0, 0.0]
    estimate = NoiseEstimate({"z": loud, "y": quiet, "x": quiet}, {}, "halves")
    with pytest.raises(ValueError, match=r"along y as along x.*--tilt-axis"):
        find_tilt_axis(estimate)
    assert find_tilt_axis(replace(estimate, wedge=Wedge("x", "z", 0.0))) == "x"
    assert choose_blind(estimate, "x").blind_set.axis == "x"


def test_noise_that_cannot_be_whitened_is_hidden_by_a_slab_or_owned_up_to():
    """A spectrum that vanishes: half-width instead; correlation everywhere: the best there is, marked as not clean."""
    loud, band_limited = [0.9, 0.8, 0.7, 0.6], [0.48, -0.02, 0.0, 0.0]
    choice = choose_blind(NoiseEstimate({"z": loud, "y": band_limited, "x": loud}, {}, "halves"))
    assert choice.whitening is None
    assert choice.blind_set.half_width == 1
    assert choice.clean
    choice = choose_blind(NoiseEstimate({"z": loud, "y": [0.7, 0.6, 0.5, 0.4], "x": loud}, {}, "halves"))
    assert not choice.clean
    assert "cannot be whitened" in choice.reason


def test_settings_are_taken_as_given(tmp_path):
    """Named shapes are not measured; a plane without an axis is; a radius switches whitening off."""
    path = str(write_mrc(tmp_path / "in.mrc", simulated("aligned").tomogram.numpy()))
    assert choose_blind_set([path], "cross").blind_set.half_width == 1
    assert choose_blind_set([path], "plane", "z", 2).estimate is None
    found = choose_blind_set([path, path], "plane", None, None)
    assert (found.blind_set.axis, found.whitening) == ("y", None)
    assert not found.choice.clean
    white = str(write_mrc(tmp_path / "white.mrc", simulated("white").noise.numpy()))
    assert choose_blind_set([white], "plane").blind_set.axis == "y"
    assert choose_blind_set([white], "auto", None, 1).choice.clean
    with pytest.raises(ValueError, match="no tomogram is given"):
        choose_blind_set([])
    wide = choose_blind_set([path], "auto", None, 1)
    assert (wide.blind_set.half_width, wide.whitening) == (1, None)
    assert wide.choice.clean
    with pytest.raises(ValueError, match="choose one of"):
        choose_blind_set([path], "ball")


def test_a_filtered_volume_is_not_measured():
    """Low-pass filtered, the band holds the filter's tail: the missing wedge tells the axis, and where it is filled
    nothing is guessed; a given axis is taken; each is marked."""
    volume = simulated("wbp").tomogram
    k = [torch.fft.fftfreq(n).abs() for n in volume.shape]
    keep = (k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2).sqrt() < 0.25
    estimate = noise_from_volume(torch.fft.ifftn(torch.fft.fftn(volume) * keep).real)
    assert estimate.filtered
    assert not noise_from_volume(volume).filtered
    told = choose_blind(estimate)
    assert (told.blind_set.axis, told.clean) == ("y", False)
    assert "which the missing wedge lies along" in told.reason
    with pytest.raises(ValueError, match=r"low-pass filtered.*no missing wedge does"):
        choose_blind(replace(estimate, wedge=None))
    choice = choose_blind(estimate, "x")
    assert (choice.blind_set.axis, choice.clean) == ("x", False)


@pytest.mark.parametrize("axis", ["z", "y", "x"])
@pytest.mark.parametrize("case", ["wbp", "aligned", "sirt"])
def test_the_missing_wedge_tells_the_tilt_axis(case, axis):
    """Of each reconstruction, whichever way it lies, behind a filter too; white noise and full tilts show none."""
    order = {"z": (1, 0, 2), "y": (0, 1, 2), "x": (0, 2, 1)}[axis]
    volume = simulate(case, (64, 96, 96), 0.1, seed=0).tomogram.permute(order)
    for seen in (volume, gaussian(volume, 1.0)):
        assert noise_from_volume(seen).wedge_axis == axis


def test_a_tilt_axis_that_the_missing_wedge_contradicts_is_told(tmp_path, capsys):
    """In the plan, its report and by the command; the right axis, white noise and an older file's have none."""
    path = str(write_mrc(tmp_path / "in.mrc", simulate("aligned", (64, 96, 96), 0.1, seed=0).tomogram.numpy()))
    words = "the tilt axis is taken to be x, but the missing wedge lies along y"
    wrong, right = (choose_blind_set([path], "auto", axis) for axis in ("x", None))
    assert (wrong.contradiction, right.contradiction) == (words, "")
    assert (wrong.report()["contradiction"], right.report()["contradiction"]) == (words, "")
    assert choose_blind_set([path], "cross").contradiction == ""
    assert BlindPlan(BlindChoice(BlindSet("voxel"), None, "white", clean=True), wrong.estimate).contradiction == ""
    for axis, is_told in (("x", True), ("y", False)):
        assert main(["noise", path, "--tilt-axis", axis]) == 0
        assert (f"but:        {words}" in capsys.readouterr().out) == is_told


def test_without_a_missing_wedge_none_is_told():
    """White noise, and tilts all around."""
    full = simulate("wbp", (64, 96, 96), 0.1, seed=0, scheme=TiltScheme(largest_deg=88.0))
    for volume in (torch.randn(64, 96, 96), full.tomogram):
        assert noise_from_volume(volume).wedge is None


def test_a_result_of_ours_is_recognised_before_it_is_called_filtered(tmp_path):
    """Hardly any noise is left in it, so the way out is the tomogram, not the tilt axis; without its label it is."""
    volume = simulated("wbp").tomogram
    k = [torch.fft.fftfreq(n).abs() for n in volume.shape]
    keep = (k[0][:, None, None] ** 2 + k[1][:, None] ** 2 + k[2] ** 2).sqrt() < 0.25
    path = write_mrc(tmp_path / "result.mrc", torch.fft.ifftn(torch.fft.fftn(volume) * keep).real.numpy())
    with pytest.raises(ValueError, match="low-pass filtered"):
        choose_blind_set([str(path)])
    with mrcfile.open(path, "r+") as file:
        file.add_label(own_label(DENOISED).decode())
    with pytest.raises(ValueError, match="was denoised by cryoshuffle before"):
        choose_blind_set([str(path)])


def test_a_tilt_axis_off_the_grid_is_noticed():
    """Turned by 10 degrees, noise is correlated obliquely and the reason says so; straight or by chance it is not."""
    noise = simulated("wbp").noise
    straight = noise_from_halves(noise, torch.zeros_like(noise))
    turned = noise_from_halves(turned_about_z(noise, 10), torch.zeros_like(noise))
    assert straight.oblique["y"] < 0.02
    assert turned.oblique["y"] > 0.06
    assert turned.skew["y"] > 2 * straight.skew["y"] + 0.02
    choice = choose_blind(turned, "y")
    assert (choice.blind_set.half_width, choice.whitening) == (1, None)
    assert "degrees off y" in choice.reason
    assert "off" not in choose_blind(straight).reason
    for seed in range(10):
        white = torch.randn((20, 24, 28), generator=torch.Generator().manual_seed(seed))
        assert max(noise_from_volume(white).oblique.values()) < 0.05


def test_a_tilt_axis_against_the_evidence_is_taken_and_said():
    """The loudest axis as asked for: no whitening, not clean, and the quieter axis is named."""
    choice = choose_blind(noise_from_volume(simulated("wbp").tomogram), "z")
    assert (choice.blind_set.axis, choice.whitening, choice.clean) == ("z", None, False)
    assert "along y" in choice.reason


def test_the_uncertainty_is_the_scatter_between_volumes():
    """Over seeds, the spread of an estimate is what each estimate says of itself, within a factor of 1.6."""
    found = [
        noise_from_volume(torch.randn((24, 28, 32), generator=torch.Generator().manual_seed(s))) for s in range(40)
    ]
    for axis in AXES:
        scatter = float(np.std([e.autocorrelation[axis][:3] for e in found], axis=0).mean())
        told = float(np.mean([e.uncertainty[axis][:3] for e in found]))
        assert 1 / 1.6 < told / scatter < 1.6


def test_an_empty_region_on_both_sides_is_measured(monkeypatch):
    """Of a large volume the part that holds most of it; what lies between the two holds none (control)."""
    monkeypatch.setattr(estimate_module, "LARGEST", 24)
    volume, empty = torch.randn(60, 24, 24), torch.zeros(60, 24, 24, dtype=torch.bool)
    for marked, start in ((slice(0, 14), 0), (slice(46, 60), 36), (slice(20, 40), 18)):
        empty[:] = False
        empty[marked] = True
        assert estimate_module._fullest(empty.flatten(1).sum(dim=1), 24) == start
    empty[:] = False
    empty[:14], empty[46:] = True, True
    assert noise_from_empty(volume, empty).source == "empty region"
    assert int(empty[18:42].sum()) == 0


def test_several_tomograms_are_averaged():
    """The mean of the estimates, axis by axis, whose scatter is what its errors say; means of errors would not be."""
    a = NoiseEstimate({x: [0.2] * 4 for x in AXES}, {x: [0.1] * 4 for x in AXES}, "halves")
    b = NoiseEstimate({x: [0.4] * 4 for x in AXES}, {x: [0.1] * 4 for x in AXES}, "halves")
    assert np.allclose(average([a, b]).autocorrelation["z"], 0.3)
    random = torch.Generator().manual_seed(0)
    each = [noise_from_volume(torch.randn(24, 24, 24, generator=random)) for _ in range(64)]
    means = [average(each[n : n + 8]) for n in range(0, 64, 8)]
    scatter = np.std([mean.autocorrelation["z"] for mean in means], ddof=1)
    assert 0.5 < np.mean([mean.uncertainty["z"] for mean in means]) / scatter < 1.6
    assert np.mean([one.uncertainty["z"] for one in each]) / scatter > 1.8


def test_halves_and_a_mask_take_filter_and_wedge_from_the_tomogram(tmp_path):
    """Filtered, halves and empty region are as little measured as the tomogram alone; the noise stays theirs."""
    made = simulate("wbp", (56, 60, 60), snr=0.1, seed=3)
    mask = str(write_mrc(tmp_path / "mask.mrc", np.ones(made.tomogram.shape, np.int8)))
    for width in (0.8, 1.2):
        volumes = {name: gaussian(getattr(made, name), width) for name in ("tomogram", "even", "odd")}
        files = {n: str(write_mrc(tmp_path / f"{n}_{width}.mrc", volume.numpy())) for n, volume in volumes.items()}
        for more in ({"halves": [files["even"], files["odd"]]}, {"empty": mask}, {}):
            if width > 1:
                with pytest.raises(InputError, match="too little to tell the noise by"):
                    choose_blind_set([files["tomogram"]], **more)
                continue
            plan = choose_blind_set([files["tomogram"]], **more)
            assert (plan.blind_set.axis, plan.choice.clean, plan.estimate.filtered) == ("y", False, True)
            assert (plan.estimate.source == "one volume") == (not more)
            assert plan.estimate.wedge_axis == "y"


def test_an_empty_region_tells_the_noise_along_all_axes(tmp_path):
    """Within 0.05 of the noise's own, though the specimen beside it is many times as strong; with a mask that takes in
    the specimen it is not (negative control)."""
    made = simulate("wbp", (48, 96, 96), snr=0.1, seed=4)
    empty = torch.zeros(made.noise.shape, dtype=torch.bool)
    empty[:, :, :60] = True
    empty[:20] = False
    volume = made.noise + 5 * made.truth / made.truth.std() * ~empty
    known = noise_from_halves(made.noise, -made.noise).autocorrelation

    def error(mask: torch.Tensor) -> float:
        found = noise_from_empty(volume, mask).autocorrelation
        return max(abs(a - b) for axis in AXES for a, b in zip(found[axis][:3], known[axis][:3], strict=True))

    assert error(empty) < 0.05
    assert error(torch.ones_like(empty)) > 0.2
    assert noise_from_empty(volume, empty).source == "empty region"
    assert choose_blind(noise_from_empty(volume, empty)).blind_set == BlindSet("plane", "y")
    with pytest.raises(InputError, match="takes 4096"):
        noise_from_empty(volume, torch.zeros_like(empty))
    with pytest.raises(InputError, match="is not of a tomogram"):
        noise_from_empty(volume, empty[1:])
    thin = torch.zeros_like(empty)
    thin[10] = True
    with pytest.raises(InputError, match="too thin along z: 0 pairs"):
        noise_from_empty(volume, thin)
    with pytest.raises(InputError, match="have one value"):
        noise_from_empty(torch.where(empty, 3.0, volume), empty)
    write_mrc(tmp_path / "mask.mrc", empty.numpy().astype(np.int8))
    assert torch.equal(load_mask(str(tmp_path / "mask.mrc")), empty)


def test_bad_halves_are_refused():
    """Different shapes, equal halves, too few voxels."""
    v = torch.randn(8, 8, 8)
    for even, odd, words in (
        (v, v[:4], "not of one"),
        (v, v, "are equal"),
        (v[:2, :2, :2], -v[:2, :2, :2], "too small"),
    ):
        with pytest.raises(ValueError, match=words):
            noise_from_halves(even, odd)


@settings(max_examples=30, deadline=None)
@given(axis=st.sampled_from(AXES), first=st.floats(-0.4, 0.4), second=st.floats(-0.09, 0.09), side=st.integers(5, 20))
def test_whitening_is_undone_exactly(axis, first, second, side):
    """Any bounded correlation, odd and even sides: the inverse gives the volume back."""
    transform = WhitenNoise(axis, [first, second])
    volume = torch.from_numpy(np.random.default_rng(0).normal(size=(1, side, side + 1, side + 20)))
    assert torch.allclose(transform.inverse(transform(volume)).as_tensor(), volume, atol=1e-10)


def test_whitening_makes_interpolated_noise_white():
    """Noise correlated by 0.25 along y is not correlated any more; without whitening it is (negative control)."""
    noise = simulated("aligned").noise
    before = [true_autocorrelation(noise, 1, lag) for lag in (1, 2, 3)]
    estimate = noise_from_volume(simulated("aligned").tomogram)
    white = WhitenNoise("y", estimate.autocorrelation["y"])(noise[None])[0].as_tensor()
    after = [true_autocorrelation(white, 1, lag) for lag in (1, 2, 3)]
    assert before[0] > 0.15
    assert max(map(abs, after)) < 0.03


def test_whitening_is_bounded_or_refused():
    """Gains never pass the bound; a spectrum that vanishes says so."""
    assert Whitening("y", (0.25,)).is_bounded()
    vanishing = Whitening("y", (0.5,))
    assert not vanishing.is_bounded()
    assert vanishing.spectrum(64).min() >= 1 / 9
    with pytest.raises(ValueError, match="whitening axis"):
        Whitening("w", (0.1,))


def test_the_dictionary_form_is_undone_by_monai_and_may_do_nothing():
    """Invertd undoes it on a prediction; None passes images through."""
    chain = Compose([WhitenNoised("image", {"axis": "x", "autocorrelation": [0.2]})])
    image = MetaTensor(torch.randn(1, 6, 7, 8))
    data = chain({"image": image})
    data["pred"] = MetaTensor(data["image"].as_tensor().clone())
    assert torch.allclose(Invertd("pred", chain, "image", nearest_interp=False)(data)["pred"], image, atol=1e-5)
    assert WhitenNoised("image")({"image": image})["image"] is image


def kernel(sigma: float, hidden: str) -> torch.Tensor:
    """A normalised Gaussian that is 0 on the blind voxel's sub-lattice (stride 2) or the blind plane's (stride 3)."""
    axis = torch.arange(-4, 5, dtype=torch.float64)
    g = torch.exp(-(axis**2) / (2 * sigma**2))
    k = g[:, None, None] * g[:, None] * g
    if hidden == "voxel":
        even = axis % 2 == 0
        k[even[:, None, None] & even[:, None] & even] = 0
    else:
        k[:, axis % 3 == 0] = 0
    return (k / k.sum())[None, None].float()


def test_risk_follows_error_with_the_matched_blind_set_only():
    """Reconstruction noise: argmin of risk is argmin of error over plane-blind filters, not over voxel-blind ones."""
    simulation = simulated("wbp")
    truth, noisy = (v[None, None, 8:48, 16:80, 16:80] for v in (simulation.truth, simulation.tomogram))
    chosen = {}
    for hidden in ("plane", "voxel"):
        estimates = [F.conv3d(noisy, kernel(s, hidden), padding=4) for s in (0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0)]
        # Each filter may also be scaled: a family that could hide its mistakes in its gain otherwise.
        family = [gain * e for e in estimates for gain in (0.25, 0.5, 1.0)]
        risk = [float((e - noisy).square().mean()) for e in family]
        error = [float((e - truth).square().mean()) for e in family]
        chosen[hidden] = (int(np.argmin(risk)), int(np.argmin(error)))
    assert chosen["plane"][0] == chosen["plane"][1]
    assert chosen["voxel"][0] != chosen["voxel"][1]


def test_the_command_prints_table_choice_and_reason(tmp_path, capsys):
    """For one tomogram and for halves; JSON and picture lie in the folder named."""
    simulation = simulated("aligned")
    for name in ("tomogram", "even", "odd"):
        write_mrc(tmp_path / f"{name}.mrc", getattr(simulation, name).numpy())
    one = [str(tmp_path / "tomogram.mrc")]
    halves = ["--even", str(tmp_path / "even.mrc"), "--odd", str(tmp_path / "odd.mrc")]
    for source, words in ((one, "one volume"), (halves, "halves")):
        assert main(["noise", *source, "--report", str(tmp_path / "report"), "--overwrite"]) == 0
        said = capsys.readouterr().out
        assert f"from {words}" in said
        assert "choice:     --blind auto --tilt-axis y (a plane, whitened along y)" in said
        report = json.loads((tmp_path / "report" / "noise.json").read_text())
        assert report["source"] == words
        assert report["whitening"]["axis"] == "y"
        assert (tmp_path / "report" / "noise.png").stat().st_size > 500
    mask = np.zeros(simulation.tomogram.shape, np.int8)
    mask[:, :48] = 1
    write_mrc(tmp_path / "mask.mrc", mask)
    empty = ["--empty", str(tmp_path / "mask.mrc")]
    assert main(["noise", *one, *empty, "--report", str(tmp_path / "report"), "--overwrite"]) == 0
    assert "from empty region" in capsys.readouterr().out
    assert json.loads((tmp_path / "report" / "noise.json").read_text())["axis"] == "y"
    assert main(["noise", *halves, *empty]) == 2
    assert "--noise-mask goes with one tomogram" in capsys.readouterr().err
    assert main(["noise", *one, "--report", str(tmp_path / "report")]) == 2
    assert "noise.json: exists already" in capsys.readouterr().err
    assert main(["noise", *one, *halves]) == 2
    assert main(["noise", "--even", one[0]]) == 2
    assert capsys.readouterr().err.count("name either one tomogram, or its halves") == 2


def test_the_same_seed_simulates_the_same_bits(tmp_path, capsys):
    """Twice the same; another seed differs; the files hold what the simulation has."""
    arguments = ["simulate", "--shape", "24,32,40", "--case", "aligned", "--snr", "0.2"]
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main([*arguments, "--seed", seed, str(tmp_path / name)]) == 0
    a, b, c = ((tmp_path / n / "tomogram.mrc") for n in "abc")
    assert np.array_equal(mrcfile.read(a), mrcfile.read(b))
    assert not np.array_equal(mrcfile.read(a), mrcfile.read(c))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "even.mrc", "membrane.mrc", "odd.mrc", "particles.csv", "phantom.mrc", "simulation.json", "tomogram.mrc",
        "truth.mrc",
    ]  # fmt: skip
    assert load_volume(str(a)).shape == (24, 32, 40)
    before = a.read_bytes()
    assert main([*arguments, str(tmp_path / "a"), "--seed", "9"]) == 2
    assert "tomogram.mrc: exists already" in capsys.readouterr().err
    assert a.read_bytes() == before
    assert main([*arguments, str(tmp_path / "d"), "--templates", str(tmp_path / "none")]) == 2
    assert "is no folder with MRC densities" in capsys.readouterr().err


@pytest.mark.parametrize("height", [50.0, 1000.0, 1e6])
def test_a_hot_voxel_changes_nothing(height, caplog):
    """Nor do a dozen beads of gold: the blind set is that of the tomogram without them. A volume of which most is
    quiet keeps its specimen (control)."""
    volume = simulated("wbp").tomogram
    volume = (volume - volume.mean()) / volume.std()
    expected = choose_blind(noise_from_volume(volume))
    hot = volume.clone()
    hot[20, 40, 40] += height
    assert without_outliers(hot)[1] == 1
    beads = volume.clone()
    random = torch.Generator().manual_seed(0)
    for _ in range(12):
        z, y, x = (int(torch.randint(4, n - 4, (1,), generator=random)) for n in volume.shape)
        beads[z - 3 : z + 3, y - 3 : y + 3, x - 3 : x + 3] -= 40
    for spoilt in (hot, beads):
        estimate = noise_from_volume(spoilt)
        assert not estimate.filtered
        assert choose_blind(estimate).blind_set == expected.blind_set
        assert ("as beads of gold do" in caplog.text) == (spoilt is beads)
    quiet = 0.01 * volume
    quiet[:, :, :30] *= 100
    assert without_outliers(quiet) == (quiet, 0)


def test_the_planes_without_beads_are_the_longest_run_of_those_beside_none():
    """Across any axis, up to a margin; all where there is no bead, none where one is everywhere (controls)."""
    volume = torch.randn(20, 24, 28, generator=torch.Generator().manual_seed(0))

    def run(volume: torch.Tensor, axis: int, margin: int) -> slice:
        return longest_run(planes_without_beads(volume, axis, margin))

    assert run(volume, 1, 2) == slice(0, 24)
    beads = volume.clone()
    beads[5, 4:6, 9] = beads[7, 20, 3] = -30
    assert run(beads, 1, 2) == slice(8, 18)
    assert run(beads, 1, 0) == slice(6, 20)
    assert run(beads, 0, 2) == slice(10, 20)
    assert run(beads, 2, 2) == slice(12, 28)
    assert planes_without_beads(beads, 1, 2).sum() == 24 - 6 - 5
    beads[3, :, 3] = 30
    assert run(beads, 1, 2) == slice(0, 0)


def test_an_offset_that_takes_all_detail_is_refused():
    """Differences below what a 32-bit number holds; a large offset that leaves them is taken."""
    noise = torch.randn(1, 8, 8, 8)
    StandardiseIntensity()(noise * 10 + 1e5)
    with pytest.raises(InputError, match="subtract the offset"):
        StandardiseIntensity()((noise.double() * 0.01 + 1e6).float())


def test_the_tilt_axis_of_images_interpolated_at_their_own_pixels_is_told():
    """As measured on a real cell in voxels of 10 Å: one axis a little correlated at lag 1, the beam's much. Where the
    two differ by less nothing is guessed (control)."""
    real = {
        "z": [0.464, 0.016, 0.002, 0.024],
        "y": [0.172, -0.024, 0.030, -0.007],
        "x": [-0.086, -0.303, -0.090, -0.023],
    }
    assert find_tilt_axis(NoiseEstimate(real, {}, "one volume")) == "y"
    alike = {**real, "z": [0.2, 0.016, 0.002, 0.024]}
    with pytest.raises(SettingError, match="give --tilt-axis"):
        find_tilt_axis(NoiseEstimate(alike, {}, "one volume"))
