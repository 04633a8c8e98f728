"""Laws of real noise: the ramp, the planes of the tilts, a strength that differs from place to place."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from phantoms import REAL_CELL, write_mrc

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.fit.recorruption import RandRecorruptd
from cryoshuffle.inference import inferers
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.streaming import with_context
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import BlindSpotNet, ShuffleUNet
from cryoshuffle.noise import linear_filter as filters
from cryoshuffle.noise import spectrum as recorruption
from cryoshuffle.noise.choice import choose_blind_set
from cryoshuffle.noise.fields import fine_power, fine_power_of_noise, noise_level
from cryoshuffle.noise.linear_filter import (
    BAND_EDGES,
    band_kernel,
    bands,
    choose_filter,
    choose_linear,
    convolve,
    gaussian,
    prediction_kernel,
    shape_for,
    wiener_kernel,
)
from cryoshuffle.noise.ramp import (
    excess_beyond_anchor,
    hold_to_ramp,
    missed_noise,
    most_signal,
    ramp_slope,
    sirt_corner,
    sirt_share,
    tilt_overlap,
    undo_sirt,
)
from cryoshuffle.noise.spectrum import GRID, filter_power, noise_spectrum, smooth_spectrum
from cryoshuffle.noise.volumes import load_volume
from cryoshuffle.noise.wedge import beam_first, find_beam
from cryoshuffle.scores.metrics import correlation
from cryoshuffle.simulation.tilt_series import TiltScheme, reconstruct, simulate

FREQUENCY = torch.fft.fftfreq(GRID, dtype=torch.float64)
RADIUS = (FREQUENCY[:, None].square() + FREQUENCY.square()).sqrt()
WHOLE = (RADIUS.square() + FREQUENCY[:, None, None].square()).sqrt()


def standard(volume: torch.Tensor) -> torch.Tensor:
    return (volume - volume.mean()) / volume.std()


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1)])
def test_the_noise_is_the_same_whichever_way_the_volume_lies(order):
    """Tilt axis along Z and beam along Y or X, as IMOD and AreTomo may write it: the spectrum is that of the usual
    volume, turned. It is another one if the plane lies across another axis (control)."""
    made = simulate("wbp", (112, 96, 104), 0.1, seed=0)
    tomogram, residual = standard(made.tomogram), standard(made.noise)
    usual = noise_spectrum(tomogram, residual, BlindSet("plane", "y"))
    lying, left = (volume.permute([order.index(axis) for axis in range(3)]) for volume in (tomogram, residual))
    assert beam_first(lying, 0) == order
    assert torch.allclose(noise_spectrum(lying, left, BlindSet("plane", "z")).permute(order), usual, rtol=1e-3)
    told = noise_spectrum(lying, left, BlindSet("plane", "z"), order=order)
    # Not to the bit, which depends on where in memory the values lie.
    assert torch.allclose(told, noise_spectrum(lying, left, BlindSet("plane", "z")), rtol=1e-9)
    assert not torch.allclose(told, noise_spectrum(lying, left, BlindSet("plane", "z"), order=order[::-1]), rtol=0.1)
    wrong = noise_spectrum(lying, left, BlindSet("plane", "y")).permute(order)
    assert float((wrong / usual).log().abs().mean()) > 0.15


def test_the_beam_comes_along_the_missing_wedge_or_the_shorter_side():
    """The wedge tells it where that side is the longer one; noise without a wedge leaves it to the sides."""
    made = simulate("wbp", (64, 48, 48), 0.1, seed=0).tomogram
    assert find_beam(made, 1) == 0
    assert find_beam(made.transpose(0, 2), 1) == 2
    for shape, beam in (((24, 48, 32), 2), ((24, 32, 48), 1)):
        assert find_beam(torch.randn(shape), 0) == beam


def test_the_ramp_next_to_the_axis_is_blurred_with_the_empty_wedge_beside_it():
    """Noise of the ramp, with a floor of signal over it, is held to the noise; blurred as where there is no wedge it is
    a quarter too much (control)."""
    shape = (96, 128, 128)
    z, x = torch.fft.fftfreq(shape[0])[:, None, None], torch.fft.fftfreq(shape[2])
    direction = (torch.rad2deg(torch.atan2(z.expand(shape), x.expand(shape))) + 90) % 180 - 90
    ramp = (z.square() + x.square()).sqrt() * (direction.abs() < 60)
    white = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    measured = smooth_spectrum(torch.fft.ifftn(torch.fft.fftn(white) * ramp.sqrt()).real).mean(dim=1)
    held = hold_to_ramp(measured + 0.05 * (RADIUS < 0.1))
    tilted = torch.rad2deg(torch.atan2(FREQUENCY[:, None].expand_as(RADIUS), FREQUENCY.expand_as(RADIUS)))
    near = (RADIUS < 0.05) & (((tilted + 90) % 180 - 90).abs() < 50)
    assert float(held[near].mean() / measured[near].mean()) == pytest.approx(1, abs=0.1)
    everywhere = torch.fft.ifftn(torch.fft.fftn(white) * (z.square() + x.square()).pow(0.25)).real
    control = smooth_spectrum(everywhere).mean(dim=1)
    assert float(control[near].mean() / measured[near].mean()) > 1.2


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


def made_of(power: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """A field with a given power spectrum."""
    white = torch.randn(power.shape, generator=torch.Generator().manual_seed(seed))
    return torch.fft.ifftn(torch.fft.fftn(white) * power.float().sqrt()).real


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
def test_the_slope_of_the_ramp_is_read_off_below_signal(floor):
    """Noise of slope 8 that fades along the axis, on it a floor of signal that ends where planes part, both along Y.

    The slope is right within three of its errors, or 15 %. Held to it the power is the noise's next to the axis; held
    to what the anchor tells, with the signal there, it is not (control).
    """
    z, y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (96, 160, 160))
    radius = (z[:, None, None].square() + x.square()).sqrt()
    fading = 1.5 - 2 * y.abs()[None, :, None]
    signal = floor * (1 - (radius - 0.12).clamp(0, 0.2) / 0.2) * torch.ones_like(fading)
    volume = made_of(8 * radius * fading + signal)
    frequency = torch.fft.fftfreq(GRID, dtype=torch.float64).abs()
    shape = (1.5 - 2 * frequency)[:, None, None].expand(GRID, GRID, GRID)
    slope, error = ramp_slope(volume, 1, 0, shape)
    assert slope == pytest.approx(8, abs=max(3 * error, 1.2))
    if floor == 1.0:
        power = smooth_spectrum(volume).mean(dim=1)
        near = (RADIUS > 0.03) & (RADIUS < 0.1)
        noise = float(smooth_spectrum(made_of(8 * radius * fading)).mean(dim=1)[near].mean())
        assert 0.9 * noise < float(hold_to_ramp(power, slope)[near].mean()) < 1.25 * noise
        assert float(hold_to_ramp(power)[near].mean()) > 1.5 * noise


@pytest.mark.parametrize(("share", "factor"), [(0.7, 1 / 0.7 - 0.05), (0.97, 1.0), (1.2, 1.0)])
def test_what_a_measurement_misses_of_pure_noise_is_its_error(share, factor):
    """Beyond what two of the same noise differ by; one that is too large is for others to mend."""
    ramp = 10 * RADIUS
    assert missed_noise(ramp, share * ramp) == pytest.approx(factor, abs=1e-6)
    signal = torch.exp(-0.5 * (RADIUS / 0.03).square())
    assert missed_noise(ramp + signal, share * ramp) == pytest.approx(factor, abs=0.01)


def test_noise_that_fades_sooner_next_to_the_axis_is_not_taken_for_less(monkeypatch):
    """Images that were binned lose noise with the spatial frequency next to the axis, and by interpolation far from it.

    Without a look at what the finest detail misses there, more of the noise is called signal (control).
    """
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    z, y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (96, 128, 128))
    radius = (z[:, None, None].square() + x.square()).sqrt()
    along = y.abs()[None, :, None]
    near = (1 - (radius - 0.15) / 0.1).clamp(0, 1)
    fading = torch.exp(-(along / 0.6).square()) * (1 - 0.5 * near * ((along - 0.38) / 0.08).clamp(0, 1))
    volume = standard(made_of(8 * radius * fading))
    total = smooth_spectrum(volume)
    across = RADIUS[:, None].expand(GRID, GRID, GRID)
    part = (across > 0.06) & (across < 0.12) & (FREQUENCY.abs()[:, None] < 0.2)

    def noise() -> float:
        return float(noise_spectrum(volume, 2 * volume, BlindSet("plane", "y"))[part].mean() / total[part].mean())

    mended = noise()
    monkeypatch.setattr(recorruption, "missed_noise", lambda *arguments: 1.0)
    assert 0.83 < mended < 1.05
    assert noise() < mended - 0.03


def planes_of_noise(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted back-projection of noisy images of a signal that is coarse across the tilt axis, and its noise."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(41, 96, 160, generator=random)
    noise = reconstruct(images, torch.arange(-60.0, 61.0, 3.0), 72)
    signal = gaussian(torch.randn(noise.shape, generator=random), (2.0, 0.3, 2.0))
    return noise + 0.12 * float(noise.std()) * signal / signal.std(), noise


@pytest.mark.parametrize("corner", [0.005, 0.01, 0.02])
def test_a_filter_changes_noise_and_signal_alike(monkeypatch, corner):
    """The share of the noise next to the tilt axis is the same behind a SIRT-like filter whose corner is known, and
    hardly more with the corner that is found, a quarter of it at least; without a look for the filter nearly all of the
    signal is taken for noise (control). Isotropy, which is not asked behind a filter, is left out before it too."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    monkeypatch.setattr(recorruption, "_most_signal", lambda *arguments: torch.tensor(math.inf, dtype=torch.float64))
    volume = planes_of_noise()[0]
    one, two = (torch.fft.fftfreq(n) for n in (volume.shape[0], volume.shape[2]))
    radius = (one[:, None].square() + two.square()).sqrt()[:, None]
    filtered = torch.fft.ifft2(torch.fft.fft2(volume, dim=(0, 2)) * sirt_share(radius, corner), dim=(0, 2)).real
    assert math.isinf(sirt_corner(volume, 1, 0))
    assert corner / 4 < sirt_corner(filtered, 1, 0) < 1.1 * corner
    assert torch.allclose(undo_sirt(filtered, 1, corner), volume, atol=1e-3 * float(volume.std()))
    part = ((RADIUS > 0.03) & (RADIUS < 0.1))[:, None].expand(GRID, GRID, GRID)

    def share(noisy: torch.Tensor) -> float:
        noise = noise_spectrum(standard(noisy), standard(noisy), BlindSet("plane", "y"))
        return float((noise / smooth_spectrum(standard(noisy)))[part].mean())

    expected, seen = share(volume), share(filtered)
    assert expected < 0.6
    monkeypatch.setattr(recorruption, "sirt_corner", lambda *arguments: corner)
    assert share(filtered) == pytest.approx(expected, rel=0.01)
    monkeypatch.setattr(recorruption, "sirt_corner", lambda *arguments: math.inf)
    assert share(filtered) > 0.9
    assert 0.98 * expected < seen < 0.5 * (expected + share(filtered))


def test_isotropy_is_not_asked_behind_a_filter_that_was_divided_out(monkeypatch):
    """Were no signal allowed by it, the noise would be the same there; behind a ramp it would be more (control)."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    volume = standard(planes_of_noise()[0])
    near = ((RADIUS > 0.03) & (RADIUS < 0.08))[:, None].expand(GRID, GRID, GRID)
    for corner, same in ((0.01, True), (math.inf, False)):
        monkeypatch.setattr(recorruption, "sirt_corner", lambda *arguments, corner=corner: corner)
        levels = []
        for most in (math.inf, 0.0):
            signal = torch.tensor(most, dtype=torch.float64)
            monkeypatch.setattr(recorruption, "_most_signal", lambda *arguments, signal=signal: signal)
            levels.append(float(noise_spectrum(volume, volume, BlindSet("plane", "y"))[near].mean()))
        assert (levels[0] == levels[1]) == same


def test_no_ramp_is_taken_for_a_sirt_like_filter():
    """Damped by interpolation, or cut off by a window of Hamming, or white."""
    z, y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (72, 96, 160))
    radius = ((z[:, None, None].square() + x.square()).sqrt() * torch.ones_like(y)[:, None]).clamp(max=0.5)
    hamming = 0.54 + 0.46 * torch.cos(2 * math.pi * radius)
    for factor in (1 - 3 * radius.square(), hamming, 1 / radius.clamp(min=1e-3).sqrt()):
        assert math.isinf(sirt_corner(made_of(radius * factor.square()), 1, 0))
    assert math.isinf(sirt_corner(torch.randn(8, 8, 8), 1, 0))


def test_signal_of_large_voxels_is_told_beyond_the_anchor():
    """Over a ramp of slope 6 that interpolation damps; a ramp alone, and one that is a fifth too low, are left."""
    ramp = 6 * RADIUS * (1 - 1.9 * RADIUS.square()).square()
    signal = 0.6 * torch.exp(-0.5 * (RADIUS / 0.2).square())
    beyond = (RADIUS > 0.15) & (RADIUS < 0.17)
    sure, held = excess_beyond_anchor(ramp + signal, 6.0)
    assert float(sure[beyond].mean()) > 0.5
    assert float(held[beyond].mean() / ramp[beyond].mean()) < 1.25
    assert float((ramp + signal)[beyond].mean() / ramp[beyond].mean()) > 1.35
    assert bool((held <= ramp + signal).all())
    for power, slope in ((ramp, 6.0), (1.2 * ramp, 6.0), (1 / (RADIUS + 0.05), 6.0)):
        sure, held = excess_beyond_anchor(power, slope)
        assert float(sure.max()) < 0.05
        assert torch.allclose(held, power, rtol=0.02)


def test_what_isotropy_does_not_allow_is_not_all_noise(monkeypatch):
    """Next to the tilt axis, were no signal allowed, the noise would be a fifth more at most, and further out all that
    there is; with no such limit it would be all next to the axis too (control)."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    volume = standard(planes_of_noise()[0])
    near = ((RADIUS > 0.03) & (RADIUS < 0.08))[:, None].expand(GRID, GRID, GRID)

    def taken(most: float) -> float:
        monkeypatch.setattr(recorruption, "_most_signal", lambda *arguments: torch.tensor(most, dtype=torch.float64))
        return float(noise_spectrum(volume, volume, BlindSet("plane", "y"))[near].mean())

    assert taken(0.0) == pytest.approx(1.2 * taken(math.inf), rel=0.1)
    monkeypatch.setattr(recorruption, "_MOST_ADDED", math.inf)
    assert taken(0.0) == pytest.approx(float(smooth_spectrum(volume)[near].mean()), rel=0.02)
    assert taken(0.0) > 1.5 * taken(math.inf)


def test_a_few_voxels_tell_no_slope():
    assert ramp_slope(torch.randn(8, 8, 8), 1, 0) == (float("inf"), float("inf"))
    assert len(most_signal(torch.randn(8, 8, 8), 1, 0)[0]) < 2


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_the_most_that_the_signal_can_have_is_read_off_next_to_the_axis(offset):
    """It is the signal's, 20 % off on the mean of all frequencies, though elsewhere noise has several times as much;
    noise that does not vanish at the axis counts as signal (control)."""
    z, y, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (96, 160, 160))
    radius = (z[:, None, None].square() + x.square()).sqrt()
    whole = (radius.square() + y[:, None].square()).sqrt()
    noise = made_of((8 * radius + offset) * torch.exp(-(whole / 0.3).square()), 1)
    frequencies, most = most_signal(noise + made_of(4 * torch.exp(-whole / 0.1), 2), 1, 0)
    assert float(frequencies[0]) > 0.1
    assert bool((frequencies[1:] > frequencies[:-1]).all())
    signal = 4 * torch.exp(-frequencies / 0.1)
    ratio = float((most / signal).mean())
    assert 0.8 < ratio < 1.2 if offset == 0.0 else ratio > 1.4


def test_signal_is_no_more_than_it_is_next_to_the_axis(monkeypatch):
    """Of a cell in small voxels, whose images lose noise with the spatial frequency: what high frequencies along the
    axis tell of the noise is a sixth too little (control), and what the axis leaves for the signal mends it."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    made = simulate("insitu", (64, 112, 112), 0.02)
    volume, true = standard(made.tomogram), smooth_spectrum(made.noise / made.tomogram.std())
    part = (WHOLE > 0.12) & (WHOLE < 0.25)
    part = part.movedim(0, 1)

    def found() -> float:
        return float(noise_spectrum(volume, volume, BlindSet("plane", "y"))[part].mean() / true[part].mean())

    assert found() == pytest.approx(1, abs=0.08)
    monkeypatch.setattr(recorruption, "most_signal", lambda *arguments: (torch.zeros(0), torch.zeros(0)))
    assert found() < 0.88


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
    # Another rule has its say on the same signal.
    monkeypatch.setattr(recorruption, "most_signal", lambda *arguments: (torch.zeros(0), torch.zeros(0)))
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


@pytest.mark.parametrize("side", [56, 57, 60, 63])
def test_a_step_of_the_noise_is_where_it_is(side):
    """Along each axis of the plane, however the side is divided into blocks; a plane that is left over counts as one,
    not as a block."""
    noise = torch.randn(48, 96, side, generator=torch.Generator().manual_seed(0))
    noise[:, :, side - 20 :] *= 1.5
    for volume, axis in ((noise, 2), (noise.transpose(1, 2), 1)):
        level = noise_level(volume, torch.ones(GRID, GRID, GRID))
        assert level.shape == volume.shape
        line = level[0].mean(dim=2 - axis)
        crossing = int((line > (line.max() + line.min()) / 2).nonzero()[0])
        assert abs(crossing - (side - 20)) <= 1


def test_a_plane_that_is_left_over_counts_as_one():
    """Not as the block of planes that it begins."""
    noise = torch.randn(41, 64, 64, generator=torch.Generator().manual_seed(0))
    noise[40] *= 4
    assert float(noise_level(noise, torch.ones(GRID, GRID, GRID)).mean()) < 1.25


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
    """Made of the spectra of tomogram and noise, in correlation with the truth, and as strong as it; with the spectrum
    of white noise it does not."""
    made = simulate(case, (64, 96, 96), snr=0.06 if case == "wbp" else 0.19)
    volume, noise = standard(made.tomogram), made.noise / made.tomogram.std()

    def correlation(result: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([result.flatten(), made.truth.flatten()]))[0, 1])

    spectrum = smooth_spectrum(noise)
    result, truth = convolve(volume, wiener_kernel(smooth_spectrum(volume), spectrum)), made.truth / made.tomogram.std()
    assert float((result * truth).sum() / result.square().sum()) == pytest.approx(1, abs=0.12)
    best = correlation(choose_filter([volume], spectrum, shape=shape_for(BlindSet("plane", "y")))(volume))
    assert correlation(convolve(volume, wiener_kernel(smooth_spectrum(volume), spectrum))) > best + 0.01
    white = torch.full_like(spectrum, float(spectrum.mean()))
    assert correlation(convolve(volume, wiener_kernel(smooth_spectrum(volume), white))) < best


def test_a_small_part_of_a_real_cell_tells_the_noise_of_the_whole(monkeypatch):
    """64 voxels a side, next to the tilt axis, where most of the power is the cell's: without what tells them apart it
    counts as noise (control)."""
    whole = standard(load_volume(str(REAL_CELL)))
    near = ((RADIUS < 0.08) & (WHOLE < 0.3)).movedim(0, 1)

    def noise(volume: torch.Tensor) -> float:
        return float(noise_spectrum(volume, volume, BlindSet("plane", "y"))[near].sum())

    part, known = central_crop(whole, 64), noise(whole)
    assert noise(part) == pytest.approx(known, rel=0.15)
    monkeypatch.setattr(recorruption, "ENOUGH", part.numel() + 1)
    assert noise(part) > 2 * known


def test_small_volumes_keep_the_gaussian():
    """Their spectra are chance; the filter of large ones says what it is and travels as plain values and a tensor."""
    volume = standard(simulate("wbp", (48, 64, 64), snr=0.1).tomogram)
    spectrum = noise_spectrum(volume, volume, BlindSet("plane", "y"))
    small = choose_linear([volume[:24, :40, :40]], spectrum)
    assert small.kernel is None
    assert "Gaussian" in small.describe()
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


def test_what_is_linear_in_a_result_is_told_from_the_rest():
    """Of a filter its kernel, and nothing beside it; of a filter and a square the filter. The rest is correlated with
    no voxel near by; with half the kernel it would be (negative control)."""
    volume = gaussian(torch.randn(64, 72, 80, generator=torch.Generator().manual_seed(3)), 0.7)
    volume = volume / volume.std()
    filtered = gaussian(volume, (1.0, 1.5, 2.0))
    square = 0.3 * (volume.square() - 1)
    kernel = prediction_kernel(filtered, volume)
    inner = (slice(16, -16),) * 3
    assert float((convolve(volume, kernel) - filtered)[inner].square().mean()) < 0.01 * float(filtered.var())
    kernel = prediction_kernel(filtered + square, volume)
    for share, most in ((1.0, 0.03), (0.5, None)):
        rest = (filtered + square - share * convolve(volume, kernel))[inner]
        shifts = [tuple(slice(16 + o * (a == axis), n - 16 + o * (a == axis)) for a, n in enumerate(volume.shape))
                  for axis in range(3) for o in (-2, -1, 0, 1, 2)]  # fmt: skip
        largest = max(abs(correlation(rest, volume[shift])) for shift in shifts)
        assert largest < most if most else largest > 0.15


def test_the_bands_and_what_is_coarser_are_the_volume():
    """Their sum, and the kernel of all bands in full; each share of the kernel is that of its band."""
    volume = torch.randn(24, 30, 28, generator=torch.Generator().manual_seed(0))
    parts = bands(volume)
    assert len(parts) == len(BAND_EDGES)
    assert torch.allclose(sum(parts), volume - gaussian(volume, BAND_EDGES[-1]), atol=1e-5)
    shares = (0.2, 0.9, 0.0, 0.5)
    expected = sum(share * part for share, part in zip(shares, parts, strict=True))
    assert torch.allclose(convolve(volume, band_kernel(shares)), expected, atol=1e-5)
    with pytest.raises(SettingError, match="give 4, fine to coarse"):
        band_kernel([1.0, 0.5])


@pytest.mark.parametrize("downwards", [False, True])
def test_pieces_with_context_are_the_whole(downwards):
    """Whatever their thickness, upwards and downwards; without context they would not be (control)."""
    volume = torch.randn(1, 1, 40, 6, 7, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(9, 3, 3, generator=torch.Generator().manual_seed(1))

    def function(part: torch.Tensor) -> torch.Tensor:
        return convolve(part[0, 0], kernel)[None, None]

    for thickness in (3, 7, 16, 40):
        pieces = [slice(start, min(start + thickness, 40)) for start in range(0, 40, thickness)]
        given = [(planes, volume[:, :, planes]) for planes in (reversed(pieces) if downwards else pieces)]
        for reach, right in ((4, True), (0, thickness == 40)):
            result = torch.zeros_like(volume)
            for planes, part in with_context(given, function, reach, 40):
                result[:, :, planes] += part
            assert torch.allclose(result, function(volume), atol=1e-4) == right


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("mirrors", [False, True])
def test_network_and_filter_share_by_band_whatever_the_window(monkeypatch, mirrors, beside):
    """In one window, in many, in planes one after another; what is coarser than all bands is the filter's."""
    torch.manual_seed(0)
    body = ShuffleUNet(in_channels=4, channels=(4, 6), factors=(2,))
    net = BlindSpotNet(Lattice((1, 2, 1), BlindSet("plane", "y")), body, stem_channels=4).eval()
    volume = torch.randn(1, 1, 40, 36, 44, generator=torch.Generator().manual_seed(0))
    kernel = torch.randn(9, 9, 9, generator=torch.Generator().manual_seed(1)) / 27
    shares = [0.2, 0.9, 0.0, 0.5]
    blend = {"trust": shares, "sigma": [1.0, 1.0, 1.0], "gain": 1.0, "kernel": kernel}
    replacing, part = [0.2, 0.4, 0.0, 0.1], torch.randn(11, 5, 7, generator=torch.Generator().manual_seed(2)) / 27
    if beside:
        blend |= {"linear_trust": replacing, "linear_part": part}
    with torch.no_grad():
        network = HaloWindowInferer(precision="fp32", mirrors=mirrors)(volume, net)[0, 0]
        linear = convolve(volume[0, 0], kernel)
        expected = linear + sum(share * band for share, band in zip(shares, bands(network - linear), strict=True))
        if beside:
            # Where the filter keeps its place, the network is added without what is linear in it.
            kept = [share - less for share, less in zip(shares, replacing, strict=True)]
            apart = linear - convolve(volume[0, 0], part)
            expected = expected + sum(share * band for share, band in zip(kept, bands(apart), strict=True))
        for window in (None, (8, 12, 20), (40, 16, 44), None):
            result = HaloWindowInferer(window, precision="fp32", blend=blend, mirrors=mirrors)(volume, net)[0, 0]
            assert torch.allclose(result, expected, atol=1e-4)
            # The last is streamed.
            monkeypatch.setattr(inferers, "WHOLE", 0)
    assert not torch.allclose(linear, expected, atol=1e-2)


def low_passed(volume: torch.Tensor, width: float) -> torch.Tensor:
    """Behind a Gaussian in Fourier space, ``width`` in cycles per voxel."""
    k = [torch.fft.fftfreq(n) for n in volume.shape]
    squared = k[0][:, None, None].square() + k[1][:, None].square() + k[2].square()
    return torch.fft.ifftn(torch.fft.fftn(volume) * torch.exp(-squared / (2 * width**2))).real


@pytest.mark.parametrize("axis", ["y", "x"])
def test_what_a_filter_has_left_is_told_from_the_spectrum(axis):
    """By frequency, within a factor of 2.5 while it takes away all but a hundredth; where there was no filter nothing
    is said (control)."""
    made = simulate("wbp", (64, 96, 96), snr=0.06)
    volume = made.tomogram if axis == "y" else made.tomogram.transpose(1, 2)
    normal = "zyx".index(axis)
    assert bool((filter_power(smooth_spectrum(volume), normal) == 1).all())
    passed = filter_power(smooth_spectrum(low_passed(volume, 0.2)), normal)
    frequency = torch.fft.fftfreq(GRID, dtype=torch.float64)
    radius = (frequency[:, None, None].square() + frequency[:, None].square() + frequency.square()).sqrt()
    ratios = []
    for low in (0.15, 0.25, 0.35, 0.45):
        shell = (radius > low) & (radius < low + 0.04)
        expected = torch.exp(-radius[shell].square() / 0.2**2).mean()
        ratios.append(float(passed[shell].mean() / expected))
    # Interpolation has damped fine detail too.
    assert max(ratios) / min(ratios) < 2.5
    assert float(passed.min()) < 0.02


def test_the_noise_of_a_filtered_volume_is_known(monkeypatch):
    """To 35 % in every band, and the linear filter for it brings the volume nearer to the truth; were the filter not
    told, it would not be known (control)."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    monkeypatch.setattr(filters, "ENOUGH", 0)
    made = simulate("wbp", (64, 96, 96), snr=0.06)
    deviation = low_passed(made.tomogram, 0.2).std()
    volume, true, truth = (low_passed(v, 0.2) / deviation for v in (made.tomogram, made.noise, made.truth))
    volume = volume - volume.mean()

    def ratios() -> list[float]:
        found, known = noise_spectrum(volume, volume, BlindSet("plane", "y")), smooth_spectrum(true)
        return [
            float(found[part].mean() / known[part].mean())
            for low, high in ((0.05, 0.1), (0.1, 0.15), (0.15, 0.25), (0.25, 0.4))
            for part in [(low <= WHOLE) & (high > WHOLE)]
        ]

    assert ratios() == pytest.approx([1.0] * 4, abs=0.35)
    spectrum = noise_spectrum(volume, volume, BlindSet("plane", "y"))

    def correlation(result: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([result.flatten(), truth.flatten()]))[0, 1])

    assert correlation(choose_linear([volume], spectrum, 0.03)(volume)) > correlation(volume) + 0.1
    monkeypatch.setattr(recorruption, "filter_power", lambda spectrum, *more: torch.ones_like(spectrum))
    monkeypatch.setattr(recorruption, "sirt_corner", lambda *arguments: math.inf)
    assert min(ratios()) < 0.5


@pytest.mark.parametrize("width", [0.17, 0.2])
def test_a_filter_is_known_where_signal_hides_it_too(monkeypatch, width):
    """To a tenth from the origin on; taken for none there it is a quarter or more off (control). More of the noise is
    then known for noise where the signal is."""
    monkeypatch.setattr(recorruption, "ENOUGH", 0)
    z, x = (torch.fft.fftfreq(n, dtype=torch.float64) for n in (96, 112))
    across = (z[:, None, None].square() + x.square()).sqrt()
    empty = z[:, None, None].abs() > across * math.sin(math.radians(60))
    noise = made_of((across * ~empty).expand(96, 112, 112).clamp(min=1e-4))
    volume = standard(low_passed(noise, width))
    hidden = WHOLE < 0.12

    def apart() -> float:
        passed = filter_power(smooth_spectrum(volume), 1) * torch.exp(WHOLE.square() / width**2)
        return float((passed / passed[0, 0, 0]).log()[hidden].abs().max())

    def share() -> float:
        known = noise_spectrum(volume, volume, BlindSet("plane", "y"))
        return float(known[hidden].sum() / smooth_spectrum(volume)[hidden].sum())

    extrapolated = share()
    assert apart() < 0.1
    monkeypatch.setattr(recorruption, "_to_origin", lambda passed, known: passed)
    assert apart() > 0.25
    assert share() < extrapolated - 0.03


def test_a_volume_without_fine_detail_is_refused_with_a_way_out(tmp_path):
    """Nothing that could tell its noise is left; binned by 2, which the sentence advises, it is taken."""
    made = simulate("wbp", (64, 96, 96), snr=0.06)
    smooth = low_passed(made.tomogram, 0.1)
    write_mrc(tmp_path / "smooth.mrc", smooth.numpy())
    with pytest.raises(InputError, match="bin it by 2") as caught:
        choose_blind_set([str(tmp_path / "smooth.mrc")], tilt_axis="y")
    assert "smooth.mrc" in str(caught.value)
    write_mrc(tmp_path / "binned.mrc", smooth[::2, ::2, ::2].contiguous().numpy())
    assert choose_blind_set([str(tmp_path / "binned.mrc")], tilt_axis="y").blind_set.axis == "y"


def test_doubt_takes_detail_and_not_strength(monkeypatch):
    """Noise that is taken for a tenth stronger costs the faintest detail; what is kept has the strength of the truth,
    within a tenth. A filter for the stronger noise alone would make it fainter (control)."""
    monkeypatch.setattr(filters, "ENOUGH", 0)
    z, y, x = (torch.fft.fftfreq(64, dtype=torch.float64) for _ in range(3))
    whole = (z[:, None, None].square() + y[:, None].square() + x.square()).sqrt()
    signal = made_of(3.0 * torch.exp(-whole / 0.15), 1)
    volume, spectrum = signal + made_of(torch.ones_like(whole), 2), torch.ones(GRID, GRID, GRID)

    def slope(kernel: torch.Tensor) -> float:
        result = convolve(volume, kernel)
        return float((signal * result).sum() / result.square().sum())

    chosen = choose_linear([volume], spectrum, error=0.1).kernel
    assert chosen is not None
    assert slope(chosen) == pytest.approx(1, abs=0.1)
    assert slope(wiener_kernel(smooth_spectrum(volume), 1.1 * spectrum)) > 1.15
