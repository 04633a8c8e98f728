"""Laws of real noise: the ramp, the planes of the tilts, a strength that differs from place to place."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cryoshuffle import filters, recorruption
from cryoshuffle.filters import choose_filter, choose_linear, convolve, shape_for, wiener_kernel
from cryoshuffle.inferers import HaloWindowInferer
from cryoshuffle.lattice import BlindSet
from cryoshuffle.ramp import hold_to_ramp, quietest_section, tilt_overlap
from cryoshuffle.recorruption import (
    GRID,
    RandRecorruptd,
    fine_power,
    fine_power_of_noise,
    noise_level,
    noise_spectrum,
    smooth_spectrum,
)
from cryoshuffle.simulation import TiltScheme, simulate

FREQUENCY = torch.fft.fftfreq(GRID, dtype=torch.float64)
RADIUS = (FREQUENCY[:, None].square() + FREQUENCY.square()).sqrt()


def standard(volume: torch.Tensor) -> torch.Tensor:
    return (volume - volume.mean()) / volume.std()


def test_what_lies_over_the_ramp_next_to_the_axis_is_signal():
    """A floor of signal that ends where the planes part is taken off; beyond the anchor nothing changes."""
    ramp = 10 * RADIUS
    floor = 0.4 * torch.exp(-0.5 * (RADIUS / 0.06).square())
    held = hold_to_ramp(ramp + floor)
    near = (RADIUS > 0.03) & (RADIUS < 0.1)
    assert float((ramp + floor)[near].mean() / ramp[near].mean()) > 1.25
    assert 0.95 < float(held[near].mean() / ramp[near].mean()) < 1.15
    assert torch.equal(held[RADIUS > 0.2], (ramp + floor)[RADIUS > 0.2])
    assert bool((held <= ramp + floor).all())


@pytest.mark.parametrize(
    "power",
    [10 * RADIUS + 0.01, 1 / (RADIUS + 0.05), torch.ones_like(RADIUS)],
    ids=["a ramp alone", "a SIRT-like filter", "white"],
)
def test_noise_that_holds_no_signal_is_left_as_it_is(power):
    """A ramp needs no holding, and where there is none nothing is held to it."""
    assert torch.allclose(hold_to_ramp(power)[RADIUS > 0.02], power[RADIUS > 0.02], rtol=0.02)


def test_the_quietest_sections_hold_noise_alone():
    """A specimen in the middle third of the sections changes nothing, nor does padding, nor noise that grows with z."""
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(60, 96, 96, generator=random)
    expected = quietest_section(noise, 1, 0)
    assert expected == pytest.approx(1, rel=0.1)
    # Coarse across the tilt axis, fine along it.
    lines = torch.randn(20, 96, 1, generator=random).expand(20, 96, 96) * torch.cos(
        0.06 * 2 * torch.pi * torch.arange(96)
    )
    specimen = noise.clone()
    specimen[20:40] += lines
    middle = quietest_section(specimen[20:40], 1, 0)
    assert middle > 2 * expected
    assert quietest_section(specimen, 1, 0) == pytest.approx(expected, rel=0.1)
    padded = torch.cat([torch.zeros(12, 96, 96), specimen])
    assert quietest_section(padded, 1, 0) == pytest.approx(expected, rel=0.1)
    uneven = specimen * torch.linspace(0.9, 1.1, 60)[:, None, None]
    assert quietest_section(uneven, 1, 0) == pytest.approx(expected, rel=0.1)


def test_tilts_overlap_next_to_the_axis_and_part_sooner_the_wider_their_step():
    """Steps of 3 and of 12 degrees: the radius at which half of the overlap is gone is about four times as far."""
    radii = {}
    for step in (3.0, 12.0):
        made = simulate("wbp", (64, 96, 96), snr=0.05, scheme=TiltScheme(step_deg=step))
        overlap = tilt_overlap(made.tomogram, 1, GRID)
        assert overlap[0, 0] == 1
        along = overlap[0, : GRID // 2]
        assert bool((along[1:] <= along[:-1] + 1e-6).all())
        radii[step] = float((along > 0.5).sum()) / GRID
    assert radii[12.0] < 0.2
    assert radii[3.0] > 2 * radii[12.0]


def test_white_noise_has_no_planes():
    """All directions are alike, so nothing is taken for planes that lie apart (control)."""
    volume = torch.randn(64, 96, 96, generator=torch.Generator().manual_seed(0))
    assert float(tilt_overlap(volume, 1, GRID).min()) > 0.8


def test_what_no_other_tilt_confirms_counts_as_noise(monkeypatch):
    """Far from the axis, where planes of 12 degrees lie apart, weak signal is noise; next to it signal stays.

    Were the planes taken to overlap everywhere, it would not be so (control).
    """
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    volume = standard(simulate("wbp", (64, 96, 96), snr=0.05, scheme=TiltScheme(step_deg=12.0)).tomogram)
    total, across = smooth_spectrum(volume), RADIUS[:, None, :].expand(GRID, GRID, GRID)

    def signal() -> torch.Tensor:
        noise = noise_spectrum(volume, volume, BlindSet("plane", "y"))
        return ((total - noise) / total).clamp(min=0)

    share = signal()
    monkeypatch.setattr(recorruption, "tilt_overlap", lambda *arguments: torch.ones(GRID, GRID, dtype=torch.float64))
    far = (across > 0.25) & (across < 0.45)
    assert float(share[far].mean()) < 0.5 * float(signal()[far].mean())
    assert float(share[(across < 0.06) & (FREQUENCY.abs()[None, :, None] < 0.06)].mean()) > 0.3


def uneven_noise(shape: tuple[int, int, int] = (48, 48, 96)) -> tuple[torch.Tensor, torch.Tensor]:
    """White noise whose right half is 1.4 times as strong, and its spectrum."""
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    noise[..., shape[2] // 2 :] *= 1.4
    return noise, torch.full((GRID, GRID, GRID), float(noise.square().mean()))


def test_the_level_of_the_noise_is_that_of_each_place():
    """To 5 %, away from the step; the fine power of noise is that of its spectrum."""
    noise, spectrum = uneven_noise()
    level = noise_level(noise, spectrum)
    left, right = level[..., 8:32].mean(), level[..., 64:88].mean()
    assert float(right / left) == pytest.approx(1.4, rel=0.05)
    assert float(fine_power(noise).mean()) == pytest.approx(fine_power_of_noise(spectrum), rel=0.02)
    assert float(noise_level(10 * noise, spectrum).max()) == 2


def test_a_bead_of_gold_is_no_noise():
    """Its surroundings are no louder for it, to a tenth."""
    noise, spectrum = uneven_noise()
    before = noise_level(noise, spectrum)
    noise[20:24, 20:24, 20:24] = 40
    assert float((noise_level(noise, spectrum) / before).max()) < 1.3
    assert float((noise_level(noise, spectrum) / before).mean()) < 1.02


@pytest.mark.parametrize(("levels", "uncorrelated"), [(True, True), (False, False)])
def test_recorruption_at_the_level_of_each_place_leaves_no_noise_in_common(levels, uncorrelated):
    """Noise of input and target is uncorrelated on either side; with one level for all it is not (control)."""
    noise, spectrum = uneven_noise()
    transform = RandRecorruptd(["image", "label"], spectrum, 0.7, levels=levels)
    transform.set_random_state(0)
    shared = torch.zeros(2)
    for _ in range(8):
        pair = transform({"image": noise[None], "label": noise[None]})
        product = (pair["image"] * pair["label"])[0] / noise.var()
        shared += torch.stack([product[..., 8:40].mean(), product[..., 56:88].mean()]) / 8
    assert bool((shared.abs() < 0.06).all()) == uncorrelated


def test_a_convolution_by_transforms_is_a_convolution():
    """Against torch's own, on sides that are prime."""
    random = torch.Generator().manual_seed(0)
    volume, kernel = torch.randn(17, 23, 19, generator=random), torch.randn(5, 7, 3, generator=random)
    expected = F.conv3d(volume[None, None], kernel.flip(0, 1, 2)[None, None], padding=(2, 3, 1))[0, 0]
    assert torch.allclose(convolve(volume, kernel), expected, atol=1e-4)


@pytest.mark.parametrize("case", ["wbp", "sirt"])
def test_the_wiener_filter_beats_every_gaussian_of_the_family(case):
    """Made of the spectra of tomogram and noise, correlation with the truth; with the spectrum of white noise not."""
    made = simulate(case, (64, 96, 96), snr=0.06 if case == "wbp" else 0.19)
    volume, noise = standard(made.tomogram), made.noise / made.tomogram.std()

    def correlation(result: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([result.flatten(), made.truth.flatten()]))[0, 1])

    spectrum = smooth_spectrum(noise)
    best = correlation(choose_filter([volume], spectrum, shape=shape_for(BlindSet("plane", "y")))(volume))
    assert correlation(convolve(volume, wiener_kernel(smooth_spectrum(volume), spectrum))) > best + 0.01
    white = torch.full_like(spectrum, float(spectrum.mean()))
    assert correlation(convolve(volume, wiener_kernel(smooth_spectrum(volume), white))) < best


def test_small_volumes_keep_the_gaussian(monkeypatch):
    """Their spectra are chance; the filter of large ones says what it is and travels as plain values and a tensor."""
    volume = standard(simulate("wbp", (48, 64, 64), snr=0.1).tomogram)
    spectrum = noise_spectrum(volume, volume, BlindSet("plane", "y"))
    small = choose_linear([volume], spectrum)
    assert small.kernel is None
    assert "Gaussian" in small.describe()
    monkeypatch.setattr(filters, "ENOUGH", volume.numel())
    large = choose_linear([volume], spectrum)
    assert "Wiener" in large.describe()
    assert torch.equal(large(volume), convolve(volume, large.config()["kernel"]))


def test_a_kernel_gives_the_same_result_whatever_the_window():
    """In one window, in many, in planes one after another; the network is not asked where it is not trusted."""
    volume = torch.randn(1, 1, 40, 36, 44, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(1)) / 27
    blend = {"trust": 0.0, "sigma": [1.0, 1.0, 1.0], "gain": 1.0, "kernel": kernel}

    def refuse(x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("asked")

    results = [HaloWindowInferer(window, halo=2, blend=blend)(volume, refuse) for window in (8, (40, 12, 20), 64)]
    assert torch.allclose(results[0][0, 0], convolve(volume[0, 0], kernel), atol=1e-4)
    for other in results[1:]:
        assert torch.allclose(results[0], other, atol=1e-4)
