"""Laws of what would survive: a filter's share is that of its kernel, zeros leave nothing, and noise alone counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cryoshuffle.errors import FileError, InputError
from cryoshuffle.inference import survival
from cryoshuffle.inference.checkpoints import StoredNoise, read_noise, stored_order
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.survival import (
    CONTRASTS,
    NO_SURVIVAL,
    Survival,
    blob,
    filament,
    is_large_enough,
    places,
    probes,
    survival_voxels,
)
from cryoshuffle.lattice import AXES
from cryoshuffle.network import BlindSpotNet
from cryoshuffle.noise.fields import draw_field
from cryoshuffle.noise.linear_filter import convolve, gaussian
from cryoshuffle.noise.spectrum import GRID, half_spectrum, smooth_spectrum

SHAPE = (48, 96, 96)
WHITE = StoredNoise(torch.full((GRID, GRID, GRID), 0.81), False)


@pytest.fixture(scope="module")
def tomogram() -> Tensor:
    """White noise of the strength that is told, and a ramp beneath it."""
    noise = 0.9 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    return (noise + torch.linspace(-1, 1, SHAPE[1])[:, None])[None, None]


def measured(volume: Tensor, network, seed: int = 0, **options) -> dict:
    """The table of a denoiser that is a function of a volume."""
    inferer = HaloWindowInferer(SHAPE, halo=0, **options)
    return Survival(WHITE, inferer, seed)(volume, network, 10.0)


def rows(table: dict, key: str) -> list[list[float]]:
    """One number of all objects and contrasts."""
    return [[row[key] for row in one["rows"]] for one in table["objects"]]


def smoothed(volume: Tensor) -> Tensor:
    """A linear filter, after which a contrast is halved at most by its gain."""
    return 0.9 * gaussian(volume[0, 0], 1.5)[None, None]


def test_the_identity_leaves_all_and_stands_out_as_before(tomogram):
    """Share 1 without error; the projections of both sides are the same; noise alone is that of the tomogram."""
    table = measured(tomogram, lambda volume: volume)
    assert len(table["objects"]) >= 4
    assert torch.allclose(torch.tensor(rows(table, "share")), torch.tensor(1.0), atol=1e-5)
    assert max(max(errors) for errors in rows(table, "share_error")) < 1e-5
    assert torch.allclose(torch.tensor(rows(table, "stands_out")), torch.tensor(rows(table, "stood_out")), rtol=1e-4)
    for one, probe in zip(table["objects"], probes(10.0), strict=False):
        power = float((probe.shape - probe.shape.mean()).square().sum())
        assert one["noise_alone"] == pytest.approx(power**-0.5, rel=0.25), one["name"]


def test_zeros_leave_nothing(tomogram):
    """Of any object, and of noise; nothing stands out of nothing."""
    table = measured(tomogram, torch.zeros_like)
    for key in ("share", "share_error", "stands_out"):
        assert max(max(values) for values in rows(table, key)) == 0
    assert max(one["noise_alone"] for one in table["objects"]) == 0


def test_the_share_of_a_linear_filter_is_that_of_its_kernel(tomogram):
    """At any contrast and place: <k * s, s> / <s, s>, but for rounding; another kernel has another share."""
    table = measured(tomogram, smoothed)
    for one, probe in zip(table["objects"], probes(10.0), strict=False):
        assert one["name"] == probe.name
        shape = torch.nn.functional.pad(probe.shape, (8,) * 6)
        expected = float((0.9 * gaussian(shape, 1.5) * shape).sum() / shape.square().sum())
        for row in one["rows"]:
            assert row["share"] == pytest.approx(expected, abs=1e-3)
            assert row["share_error"] < 1e-3
        sharper = float((0.9 * gaussian(shape, 1.0) * shape).sum() / shape.square().sum())
        assert abs(sharper - expected) > 0.01
    contrast = [[value / c for value, c in zip(values, CONTRASTS, strict=True)] for values in rows(table, "stands_out")]
    assert all(max(values) - min(values) < 1e-3 * max(values) for values in contrast)


def test_shares_rise_with_size_and_noise_alone_falls(tomogram):
    """Behind a low-pass filter: the larger a blob the more of it is left."""
    blobs = [one for one in measured(tomogram, smoothed)["objects"] if one["name"].startswith("blob")]
    shares, alone = [one["rows"][0]["share"] for one in blobs], [one["noise_alone"] for one in blobs]
    assert shares == sorted(shares)
    assert shares[-1] - shares[0] > 0.2
    assert alone == sorted(alone, reverse=True)


def test_a_denoiser_that_keeps_what_is_bright_keeps_more_of_high_contrast():
    """A threshold on empty ground: nothing of what is below it; a filter has one share for all contrasts."""
    empty = torch.zeros(1, 1, *SHAPE)
    table = measured(empty, lambda volume: torch.where(volume.abs() > 0.5, volume, torch.zeros_like(volume)))
    for faint, middle, strong in rows(table, "share"):
        assert faint == middle == 0
        assert strong > 0.8


def test_a_denoiser_that_invents_structure_gives_it_to_noise(tomogram):
    """Blobs that are in no data: nothing of an object comes back, and noise alone pretends to have a contrast."""
    invented = torch.zeros(SHAPE)
    for place in places((9, 9, 9), SHAPE, torch.Generator().manual_seed(2)):
        invented[place] += 2 * blob(5.0)
    table = measured(tomogram, lambda volume: invented[None, None].expand_as(volume))
    assert max(max(abs(share) for share in shares) for shares in rows(table, "share")) == 0
    honest = measured(tomogram, lambda volume: torch.zeros_like(volume))
    assert table["objects"][0]["noise_alone"] > 0.05 > honest["objects"][0]["noise_alone"]


def test_input_that_is_mixed_in_counts(tomogram):
    """With ``--detail`` a share of each object comes back though the denoiser leaves nothing."""
    table = measured(tomogram, torch.zeros_like, detail=0.25)
    assert torch.allclose(torch.tensor(rows(table, "share")), torch.tensor(0.25), atol=1e-5)


def test_the_same_seed_gives_the_same_bits_and_nothing_else_changes(tomogram):
    """Another seed another table; the volume, the inferer and the random numbers of the process stay."""
    network, before = BlindSpotNet(), tomogram.clone()
    inferer, state = HaloWindowInferer(precision="fp32", mirrors=True, quiet=False), torch.get_rng_state()
    tables = [Survival(WHITE, inferer, seed)(tomogram[..., :48, :48], network) for seed in (0, 0, 1)]
    assert tables[0] == tables[1] != tables[2]
    assert torch.equal(tomogram, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert (inferer.mirrors, inferer.progress, inferer.used_window) == (True, True, None)
    assert network.training


def test_objects_keep_apart_and_from_the_borders():
    """Boxes of one kind do not come nearer than the gap; a second seed moves them; what has no room has no place."""
    for size in ((9, 9, 9), (11, 43, 11), (15, 15, 15)):
        boxes = places(size, SHAPE, torch.Generator().manual_seed(3))
        assert len(boxes) == len({tuple(part.start for part in box) for box in boxes})
        for box in boxes:
            assert all(part.start >= 8 and part.stop <= n - 8 for part, n in zip(box, SHAPE, strict=True))
        filled = torch.zeros(SHAPE)
        for box in boxes:
            wide = tuple(slice(part.start - 6, part.stop + 6) for part in box)
            filled[wide] += 1
        assert filled.max() == 1
        assert boxes != places(size, SHAPE, torch.Generator().manual_seed(4))
    assert places((40, 9, 9), SHAPE, torch.Generator().manual_seed(3)) == []


def test_objects_are_as_large_as_they_are_called():
    """A blob has the volume of its sphere, a filament that of its cylinder, within the softness of their edge."""
    assert float(blob(12.0).sum()) == pytest.approx(math.pi / 6 * 12**3, rel=0.1)
    for axis in range(3):
        one = filament(7.0, 40.0, axis)
        assert one.shape[axis] == max(one.shape)
        assert float(one.sum()) == pytest.approx(math.pi / 4 * 7**2 * 40, rel=0.1)
        assert (float(one.min()), float(one.max())) == (0, 1)


def test_what_is_too_small_or_too_large_is_left_out(tomogram):
    """Named, and without a row: blobs under two voxels in coarse voxels, what has no room in fine ones."""
    survey = Survival(WHITE, HaloWindowInferer(SHAPE, halo=0))
    coarse, fine, unknown = (survey(tomogram, torch.zeros_like, size) for size in (40.0, 3.0, None))
    assert "blob, 5 nm" in coarse["too_small"]
    assert "blob, 20 nm" in fine["too_large"]
    assert unknown["objects"][0]["name"] == "blob, 5 voxels"
    for table in (coarse, fine, unknown):
        names = [one["name"] for one in table["objects"]] + table["too_small"] + table["too_large"]
        assert len(names) == 5


def test_a_small_tomogram_is_refused_and_a_large_one_cropped():
    """Sides of 32 at least; of more than the crop the middle is taken, so the work has a bound."""
    assert is_large_enough((32, 32, 32))
    assert not is_large_enough((24, 96, 96))
    with pytest.raises(InputError, match="24 × 96 × 96 voxels is too small"):
        Survival.crop(torch.zeros(1, 1, 24, 96, 96))
    box, crop = Survival.crop(torch.zeros(1, 1, 60, 200, 90))
    assert tuple(crop.shape) == (1, 1, 48, 128, 90)
    assert [part.start for part in box] == [6, 36, 0]
    assert survival_voxels((24, 96, 96)) == 0
    assert survival_voxels((500, 5000, 5000)) == survival_voxels(survival.CROP) == 17 * math.prod(survival.CROP)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ([1, 0, 2], None), (None, None), ([1, 1, 2], "does not name each axis once"), ([0, 1], "not enough values"),
        ("zyx", "invalid literal"),
    ],
)  # fmt: skip
def test_the_order_of_a_model_is_one_of_three_axes(order, words):
    """Upright where an older one names none; else refused in a sentence."""
    content = {} if order is None else {"order": order}
    if words is None:
        assert stored_order(content, "net.pt") == ((0, 1, 2) if order is None else tuple(order))
        return
    with pytest.raises(InputError, match=rf"net.pt: its order is not as a fit wrote it \(.*{words}"):
        stored_order(content, "net.pt")


@pytest.mark.parametrize("beam", [0, 1, 2])
def test_the_table_is_the_same_whichever_way_a_tomogram_lies(beam):
    """The crop is thin along the beam, filaments lie across it, and there are as many copies as upright."""
    order = [beam, *(axis for axis in range(3) if axis != beam)]
    volume = torch.zeros(1, 1, *(torch.Size((60, 140, 150))[order.index(axis)] for axis in range(3)))
    _, crop = Survival.crop(volume, beam)
    assert [crop.shape[2 + axis] for axis in order] == [48, 128, 128]
    names = [probe.name for probe in probes(10.0, beam)]
    assert [name for name in names if "filament" in name] == [
        f"filament along {AXES[axis]}, 7 × 40 nm" for axis in order[1:]
    ]
    survey = Survival(replace(WHITE, order=tuple(order)), HaloWindowInferer(SHAPE, halo=0))
    table = survey(crop, lambda given: given, 10.0)
    upright = Survival(WHITE, HaloWindowInferer(SHAPE, halo=0))(torch.zeros(1, 1, 48, 128, 128), lambda x: x, 10.0)
    assert [one["copies"] for one in table["objects"]] == [one["copies"] for one in upright["objects"]]


def test_a_drawn_field_has_its_spectrum_and_does_not_repeat():
    """Power at each frequency, as far as it is measured, within chance; a tile would repeat after 64 voxels."""
    line = torch.fft.fftfreq(GRID)
    power = torch.exp(-(line[:, None, None] ** 2 + line[:, None] ** 2 + line**2) / (2 * 0.15**2)) + 0.05
    field = draw_field(power, (96, 96, 96), torch.Generator().manual_seed(5))
    assert float(field.var()) == pytest.approx(float(power.mean()), rel=0.03)
    found = smooth_spectrum(field)
    inner = gaussian(power, 2.0)[8:-8, 8:-8, 8:-8].mean()
    assert float(gaussian(found.float(), 2.0)[8:-8, 8:-8, 8:-8].mean()) == pytest.approx(float(inner), rel=0.1)
    assert abs(float((field[:32] * field[64:]).mean())) < 0.02
    assert torch.equal(field, draw_field(power, (96, 96, 96), torch.Generator().manual_seed(5)))


def test_a_projection_at_each_place_is_the_one_on_each_copy(tomogram):
    """Correlation by Fourier transform, against a sum over one box."""
    probe = probes(10.0)[0]
    shape = probe.shape - probe.shape.mean()
    everywhere = convolve(tomogram[0, 0], shape.flip(0, 1, 2))
    box = places(shape.shape, SHAPE, torch.Generator().manual_seed(6))[0]
    middle = tuple(part.start + n // 2 for part, n in zip(box, shape.shape, strict=True))
    assert float(everywhere[middle]) == pytest.approx(float((tomogram[0, 0][box] * shape).sum()), abs=1e-3)


def test_a_model_without_noise_is_refused(tmp_path):
    """By the name of what needs it; a model that has it gives it back."""
    path = tmp_path / "model.pt"
    with pytest.raises(FileError):
        read_noise(path, NO_SURVIVAL)
    torch.save({"model": {}}, path)
    with pytest.raises(InputError, match="--survival adds objects"):
        read_noise(path, NO_SURVIVAL)
    torch.save({"model": {}, "noise": {"spectrum": half_spectrum(WHITE.spectrum), "levels": True}}, path)
    assert torch.allclose(read_noise(path, NO_SURVIVAL).spectrum, WHITE.spectrum)
