"""Laws of the power of the residual beside that of the measured noise, with results that are wrong in known ways."""

from __future__ import annotations

import math

import pytest
import torch

from cryoshuffle.noise.linear_filter import band_noise, bands, convolve, gaussian, wiener_kernel
from cryoshuffle.noise.spectrum import GRID, full_spectrum
from cryoshuffle.scores.artefacts import beside_noise, residual_levels

SHAPE = (72, 104, 112)


@pytest.fixture(scope="module")
def spectrum() -> torch.Tensor:
    """Of noise that is correlated across y, as back-projection makes it."""
    k = torch.fft.fftfreq(GRID, dtype=torch.float64)
    across = (k[:, None, None].square() + k.square()).sqrt().expand(GRID, GRID, GRID)
    power = (0.05 + across) * torch.exp(-3 * across)
    return power / power.mean()


@pytest.fixture(scope="module")
def noise(spectrum) -> torch.Tensor:
    return _field(spectrum, 0)


def _field(spectrum: torch.Tensor, seed: int) -> torch.Tensor:
    white = torch.randn(spectrum.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    field = torch.fft.ifftn(torch.fft.fftn(white) * spectrum.sqrt()).real.float()
    return field.repeat(2, 2, 2)[: SHAPE[0], : SHAPE[1], : SHAPE[2]]


def _signal() -> torch.Tensor:
    rough = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    smooth = gaussian(rough, 3.0)
    return smooth / smooth.std()


def test_the_half_of_a_spectrum_tells_all_of_it(spectrum):
    """Of any real field; a half that is mirrored along one axis alone is another spectrum."""
    field = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    power = torch.fft.fftn(field).abs().square()
    torch.testing.assert_close(full_spectrum(power[..., :5]), power)
    assert torch.equal(full_spectrum(spectrum[..., : GRID // 2 + 1]), spectrum)
    plain = torch.cat([power[..., :5], power[..., 1:4].flip(-1)], dim=-1)
    assert not torch.allclose(plain, power)


def test_noise_has_the_power_of_its_spectrum_in_each_band(noise, spectrum):
    """Within four of the standard errors that are said; noise that is half as strong again has not."""
    inner = tuple(slice(18, n - 18) for n in SHAPE)
    for band, (power, voxels) in zip(bands(noise), band_noise(spectrum), strict=True):
        part = band[inner]
        ratio, error = float(part.square().mean()) / power, math.sqrt(2 * voxels / part.numel())
        assert abs(ratio - 1) < 4 * error
        assert abs(1.5 * ratio - 1) > 4 * error or error > 0.1


def test_what_takes_all_noise_and_nothing_else_leaves_the_power_of_the_noise(noise, spectrum):
    """Or a little less; beside a spectrum that is too strong or too weak each ratio tells by how much."""
    signal = _signal()
    for kept in (0.0, 0.03):
        power = beside_noise(signal + noise, signal + kept * noise, spectrum)["power"]
        for ratio, error in zip(power["ratios"], power["errors"], strict=True):
            assert abs(ratio - (1 - kept) ** 2) < 4 * error
    right = beside_noise(signal + noise, signal, spectrum)["power"]["ratios"]
    for factor in (1.5, 0.67):
        wrong = beside_noise(signal + noise, signal, factor * spectrum)["power"]["ratios"]
        assert wrong == pytest.approx([ratio / factor for ratio in right])


def test_what_takes_all_detail_leaves_more_than_the_noise(noise, spectrum):
    """Where the signal is, in the coarse bands; the finest detail of a smooth signal is no more than noise anyway."""
    signal = _signal()
    smoothed = beside_noise(signal + noise, gaussian(signal + noise, 12.0), spectrum)["power"]
    assert max(smoothed["ratios"]) > 2
    assert smoothed["ratios"][0] == pytest.approx(1, abs=0.05)


def _signal_spectrum() -> torch.Tensor:
    """Of a signal that is as strong as the noise in detail of about 3 voxels, and stronger in coarser."""
    k = torch.fft.fftfreq(GRID, dtype=torch.float64).square()
    return 20 * torch.exp(-150 * (k[:, None, None] + k[:, None] + k))


def test_as_much_noise_is_removed_as_there_is(noise, spectrum):
    """By the truth and by a Wiener filter alike, in each band, though the filter loses signal and keeps noise."""
    spectra = _signal_spectrum()
    signal = _field(spectra, 1)
    tomogram = signal + noise
    filtered = convolve(tomogram, wiener_kernel(spectra + spectrum, spectrum))
    assert float((filtered - signal).square().mean()) < 0.6 * float(signal.square().mean())
    for result in (signal, filtered):
        removed = beside_noise(tomogram, result, spectrum)["removed"]
        for ratio, error in zip(removed["ratios"], removed["errors"], strict=True):
            assert abs(ratio - 1) < 0.05 + 4 * error


def test_what_takes_signal_or_leaves_noise_removes_more_or_less_than_the_noise(noise, spectrum):
    """In the bands where it does; a wrong spectrum shows in all of them."""
    signal = _field(_signal_spectrum(), 1)
    tomogram = signal + noise
    right = beside_noise(tomogram, signal, spectrum)["removed"]["ratios"]
    kept = beside_noise(tomogram, signal + 0.3 * noise, spectrum)["removed"]["ratios"]
    assert max(kept[:3]) < 0.85
    faint = beside_noise(tomogram, 0.5 * signal, spectrum)["removed"]["ratios"]
    assert faint[3] > 1.5
    assert faint[0] == pytest.approx(right[0], abs=0.02)
    assert beside_noise(tomogram, 1.5 * signal, spectrum)["removed"]["ratios"][3] < 0.5
    for factor in (1.5, 0.67):
        wrong = beside_noise(tomogram, signal, factor * spectrum)["removed"]["ratios"]
        assert wrong == pytest.approx([ratio / factor for ratio in right])


def test_noise_that_differs_from_place_to_place_is_seen_beside_what_was_modelled(noise, spectrum):
    """Along y: not where its level was modelled, else by its power. Along z, which no level follows: in both cases."""
    signal, everywhere = _signal(), torch.ones(SHAPE)
    across, along = everywhere.clone(), everywhere.clone()
    across[:, :35] = 1.3
    along[:36] = 1.3
    for strength, levels, expected in (
        (everywhere, True, 1.0),
        (everywhere, False, 1.0),
        (across, True, 1.0),
        (across, False, 1.69),
        (along, True, 1.69 / 1.345),
        (along, False, 1.69),
    ):
        regions = residual_levels(signal + strength * noise, signal, spectrum, levels)
        assert max(regions["ratios"]) == pytest.approx(expected, abs=0.08), (levels, expected)
        assert len(regions["ratios"]) == len(regions["places"]) == 2 * 3 * 3


def test_a_level_that_was_not_modelled_is_seen(noise, spectrum):
    """Noise 5 % stronger than its spectrum: :func:`level_plane` counts that as none. Beyond 10 % it follows."""
    signal = _signal()
    for strength, expected in ((1.0, 1.0), (1.05, 1.05**2), (0.95, 0.95**2), (1.3, 1.0)):
        for levels in (True, False):
            regions = residual_levels(signal + strength * noise, signal, spectrum, levels)
            wanted = expected if levels else strength**2
            assert regions["ratios"] == pytest.approx([wanted] * len(regions["ratios"]), rel=0.04), (strength, levels)


def test_errors_of_regions_are_those_that_chance_gives(noise, spectrum):
    """Ratios of noise alone are within four standard errors, and not all within a fourth of one."""
    signal = _signal()
    regions = residual_levels(signal + noise, signal, spectrum, levels=False)
    apart = [abs(ratio - 1) / error for ratio, error in zip(regions["ratios"], regions["errors"], strict=True)]
    assert 0.25 < max(apart) < 4


def test_a_region_is_named_by_its_middle(noise, spectrum):
    """Noise that is left in one corner makes the residual weak there, and only there."""
    signal = _signal()
    result = signal.clone()
    result[36:, :34, 75:] += noise[36:, :34, 75:]
    regions = residual_levels(signal + noise, result, spectrum, levels=True)
    weakest = regions["ratios"].index(min(regions["ratios"]))
    assert min(regions["ratios"]) < 0.2
    z, y, x = regions["places"][weakest]
    assert z > 36
    assert y < 34
    assert x > 75
    assert sorted(regions["ratios"])[1] > 0.9


def test_a_bead_is_no_noise(noise, spectrum):
    """A few voxels of gold that were kept, or taken, change no region by much."""
    signal = _signal()
    gold = torch.zeros(SHAPE)
    gold[20:23, 20:23, 20:23] = 60.0
    for kept in (0.0, 1.0):
        ratios = residual_levels(signal + noise + gold, signal + kept * gold, spectrum, levels=True)["ratios"]
        assert max(abs(ratio - 1) for ratio in ratios) < 0.1
