"""Laws of the error map: it is as large as the error, whatever the windows, and only for the noise it is told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cryoshuffle.errors import FileError, InputError, SettingError
from cryoshuffle.inference.checkpoints import Model, StoredNoise, read_noise
from cryoshuffle.inference.error_map import NO_ERROR_MAP, ErrorMap
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.noise.fields import draw_noise, lay_noise, level_plane, noise_level
from cryoshuffle.noise.linear_filter import wiener_kernel
from cryoshuffle.noise.spectrum import GRID, full_spectrum, half_spectrum, smooth_spectrum

SHAPE = (40, 64, 64)
WHITE = torch.ones(GRID, GRID, GRID)


def field(spectrum: Tensor, seed: int) -> Tensor:
    """A Gaussian field that is not periodic within the volume."""
    return lay_noise(draw_noise(spectrum, torch.Generator().manual_seed(seed)), SHAPE)


def coarse_spectrum(width: float = 0.08, variance: float = 1.0) -> Tensor:
    """The power of a signal without fine detail."""
    line = torch.fft.fftfreq(GRID)
    square = line[:, None, None] ** 2 + line[:, None] ** 2 + line**2
    power = torch.exp(-square / (2 * width**2))
    return power * (variance / power.mean())


def nothing(volume: Tensor) -> Tensor:
    """A network that has no share of the result."""
    return torch.zeros_like(volume)


def filter_of(signal: Tensor, noise: Tensor) -> HaloWindowInferer:
    """The best linear filter as an inferer."""
    kernel = wiener_kernel(signal + noise, noise)
    return HaloWindowInferer(halo=0, blend={"trust": 0.0, "sigma": [1.0] * 3, "gain": 1.0, "kernel": kernel})


@pytest.fixture(scope="module")
def gaussian() -> tuple[Tensor, Tensor, Tensor, HaloWindowInferer]:
    """Truth and volume of a Gaussian signal in white noise, the result, and the filter that made it."""
    signal = coarse_spectrum()
    truth = field(signal, 1)
    volume = (truth + torch.randn(SHAPE, generator=torch.Generator().manual_seed(2)))[None, None]
    inferer = filter_of(signal, WHITE)
    return truth, volume, inferer(volume, nothing), inferer


def test_the_map_is_as_large_as_the_error(gaussian):
    """Of the best filter of a Gaussian signal: rms within 10 %, and 95 % of the voxels within two standard errors."""
    truth, volume, result, inferer = gaussian
    error = ErrorMap(StoredNoise(WHITE, False), inferer)(volume, result, nothing)[0, 0]
    inside = (slice(8, -8),) * 3
    apart = (result[0, 0] - truth)[inside]
    assert float(error[inside].square().mean() / apart.square().mean()) ** 0.5 == pytest.approx(1, abs=0.1)
    assert 0.93 < float((apart.abs() < 2 * error[inside]).float().mean()) < 0.97


@pytest.mark.parametrize("detail", [0.1, 0.5, 1.0])
def test_input_that_is_mixed_in_brings_its_noise(gaussian, detail):
    """With ``--detail`` the map is that of the mixture: rms within 10 %, 95 % within two; without it, too small."""
    truth, volume, _, plain = gaussian
    inferer = HaloWindowInferer(halo=0, blend=plain.blend, detail=detail)
    result, inside = inferer(volume, nothing), (slice(8, -8),) * 3
    error, without = (
        ErrorMap(StoredNoise(WHITE, False), one)(volume, one(volume, nothing), nothing)[0, 0][inside]
        for one in (inferer, plain)
    )
    apart = (result[0, 0] - truth)[inside]
    assert float(error.square().mean() / apart.square().mean()) ** 0.5 == pytest.approx(1, abs=0.1)
    assert 0.93 < float((apart.abs() < 2 * error).float().mean()) < 0.97
    assert detail < 0.5 or float((apart.abs() < 2 * without).float().mean()) < 0.93


def test_a_smoothed_result_has_no_map(gaussian):
    """What a Gaussian takes from a result is no noise, so no map knows of it."""
    blend = gaussian[-1].blend
    ErrorMap(StoredNoise(WHITE, False), HaloWindowInferer(halo=0, blend=blend))
    with pytest.raises(SettingError, match=r"smooth is 0\.8 voxels.*leave out one of the two"):
        ErrorMap(StoredNoise(WHITE, False), HaloWindowInferer(halo=0, blend=blend, smooth=0.8))


def test_the_wrong_noise_makes_another_map(gaussian):
    """Noise taken for one and a half times as strong: the map is too large by the root of that."""
    _, volume, result, inferer = gaussian
    right, wrong = (
        ErrorMap(StoredNoise(factor * WHITE, False), inferer)(volume, result, nothing) for factor in (1, 1.5)
    )
    assert float((wrong / right).mean()) == pytest.approx(1.5**0.5, rel=0.02)


@pytest.mark.parametrize("told", [1.0, 1.5])
def test_noise_of_halves_stays_as_drawn_noise_does_if_its_power_is_right(gaussian, told):
    """The ratio of both is 1; noise taken for one and a half times as strong makes it less by that, in each part."""
    truth, volume, result, inferer = gaussian
    even, odd = (truth + 2**0.5 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(s)) for s in (7, 8))
    error_map = ErrorMap(StoredNoise(told * WHITE, False), inferer)
    error = error_map(volume, result, nothing)[0, 0]
    compared = error_map.compare(volume, (even - odd) / 2, error, nothing)
    assert compared["error"] < 0.05
    assert abs(compared["ratio"] - 1 / told) < 3 * compared["error"]
    for ratio, uncertainty in zip(compared["ratios"], compared["errors"], strict=True):
        assert abs(ratio - 1 / told) < 4 * uncertainty
        assert uncertainty < 0.2
    assert (compared["ratio"] + 3 * compared["error"] > 0.8) == (told == 1)


def test_a_level_that_is_measured_rights_noise_that_was_taken_for_too_strong(gaussian):
    """Told half as strong again, the ratio of map and halves is right; where the level is kept it is not."""
    _, volume, _, inferer = gaussian
    measured = torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))
    ratios = [
        ErrorMap(StoredNoise(1.5 * WHITE, levels), inferer).compare(volume, measured, measured, nothing)["ratio"]
        for levels in (True, False)
    ]
    assert ratios == pytest.approx([1, 1 / 1.5], abs=0.07)


def test_noise_of_halves_that_is_uneven_is_told_by_part_of_the_map(gaussian):
    """Noise that was taken for even: too little where it is strong, too much where it is weak, right on the whole."""
    _, volume, _, inferer = gaussian
    strength = torch.where(torch.arange(SHAPE[2]) < 32, 0.6, 1.28)
    measured = strength * torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    along = torch.arange(float(SHAPE[2])).expand(SHAPE)
    compared = ErrorMap(StoredNoise(WHITE, False), inferer).compare(volume, measured, along, nothing)
    assert compared["ratio"] == pytest.approx(1, abs=0.1)
    assert max(compared["ratios"][:4]) < 0.6
    assert min(compared["ratios"][4:]) > 1.3


def test_noise_of_which_nothing_stays_has_no_ratio():
    """A result that ignores the volume: infinite, with an infinite error."""
    volume = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(10))
    compared = ErrorMap(StoredNoise(WHITE, False), HaloWindowInferer(SHAPE, halo=0)).compare(
        volume, volume[0, 0], volume[0, 0], nothing
    )
    assert compared["ratio"] == compared["error"] == float("inf")


def test_a_result_that_keeps_all_noise_is_as_wrong_as_the_noise():
    """The volume itself as its result; one that ignores the volume has no error that noise could tell."""
    volume = torch.randn(1, 1, *SHAPE, generator=torch.Generator().manual_seed(3))
    inferer = HaloWindowInferer(SHAPE, halo=0)
    error = ErrorMap(StoredNoise(WHITE, False), inferer)(volume, volume, lambda given: given)
    assert float(error.mean()) == pytest.approx(1, abs=0.02)
    blank = ErrorMap(StoredNoise(WHITE, False), inferer)(volume, nothing(volume), nothing)
    assert float(blank.max()) == 0


def test_noise_that_is_stronger_at_one_side_makes_a_larger_error_there(gaussian):
    """Twice the amplitude of the noise, twice the error; not where the noise was taken for even."""
    inferer = gaussian[3]
    strength = torch.where(torch.arange(SHAPE[2]) < 32, 0.7, 1.4)
    volume = (strength * torch.randn(SHAPE, generator=torch.Generator().manual_seed(4)))[None, None]
    result = inferer(volume, nothing)
    ratio = {}
    for levels in (False, True):
        error = ErrorMap(StoredNoise(WHITE, levels), inferer)(volume, result, nothing)
        ratio[levels] = float(error[..., -12:].mean() / error[..., :12].mean())
    assert ratio[False] == pytest.approx(1, abs=0.05)
    assert ratio[True] > 1.6


def test_the_map_is_one_whatever_the_windows_and_of_its_seed(gaussian):
    """Windows of a network and a filter; the same seed gives the same bits, another one another map."""
    volume = gaussian[1]
    network = BlindSpotNet().eval()
    blend = {"trust": 0.5, "sigma": [1.0] * 3, "gain": 0.5}
    noise, maps = StoredNoise(WHITE, True), []
    for window, seed in ((None, 0), (None, 0), ((16, 32, 24), 0), (None, 1)):
        inferer = HaloWindowInferer(window, blend=blend, precision="fp32")
        with torch.no_grad():
            maps.append(ErrorMap(noise, inferer, passes=1, seed=seed)(volume, inferer(volume, network), network))
    assert torch.equal(maps[0], maps[1])
    assert torch.allclose(maps[0], maps[2], rtol=1e-3)
    assert not torch.allclose(maps[0], maps[3], rtol=1e-2)
    assert not network.training


def test_the_level_of_a_whole_volume_is_that_of_its_slabs():
    """Thin volumes have one slab; a thick one, whose noise grows along Z, the mean power."""
    strength = torch.linspace(0.7, 1.3, 160)[:, None, None]
    volume = strength * torch.randn(160, 48, 48, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(level_plane(volume[:60], WHITE), noise_level(volume[:60], WHITE)[0])
    slabs = [noise_level(volume[first:last], WHITE)[0].square() for first, last in ((0, 80), (80, 160))]
    assert torch.allclose(level_plane(volume, WHITE), (sum(slabs) / 2).sqrt())


def test_noise_that_a_model_keeps_is_checked_by_whoever_reads_it(tmp_path):
    """None where there is none; another shape and a negative power are refused, as for an error map."""
    path = tmp_path / "m.pt"
    torch.save({"model": {}}, path)
    assert Model(path).noise() is None
    for spectrum in (torch.ones(4, 4, 3), -half_spectrum(WHITE)):
        torch.save({"model": {}, "noise": {"spectrum": spectrum, "levels": True}}, path)
        with pytest.raises(InputError, match=r"m.pt: its noise is of shape .* fit a model anew"):
            Model(path).noise()


def test_half_of_a_spectrum_tells_all_of_it():
    """That of a real field; what is not symmetric is lost."""
    whole = smooth_spectrum(torch.randn(32, 40, 48, generator=torch.Generator().manual_seed(6)))
    assert torch.allclose(full_spectrum(half_spectrum(whole)), whole)
    leaning = torch.arange(GRID, dtype=torch.float64).expand(GRID, GRID, GRID)
    assert not torch.allclose(full_spectrum(half_spectrum(leaning)), leaning)


@pytest.mark.parametrize("passes", [0, 17])
def test_too_few_and_too_many_passes_are_refused(passes):
    """One to sixteen."""
    with pytest.raises(SettingError, match="give 1 to 16"):
        ErrorMap(StoredNoise(WHITE, False), HaloWindowInferer(), passes=passes)


def test_a_model_without_noise_is_refused(tmp_path):
    """No file, no noise, noise of another shape; a model that has it gives it back."""
    path = tmp_path / "model.pt"
    with pytest.raises(FileError):
        read_noise(path, NO_ERROR_MAP)
    spectrum = coarse_spectrum()
    for stored in (
        None,
        {},
        {"spectrum": [1.0]},
        {"spectrum": torch.ones(4, 4, 3)},
        {"spectrum": -half_spectrum(WHITE)},
    ):
        torch.save({"model": {}, "noise": stored}, path)
        with pytest.raises(InputError, match="noise"):
            read_noise(path, NO_ERROR_MAP)
    torch.save({"model": {}, "noise": {"spectrum": half_spectrum(spectrum), "levels": True}}, path)
    noise = read_noise(path, NO_ERROR_MAP)
    assert noise.levels
    assert torch.allclose(noise.spectrum, spectrum)
