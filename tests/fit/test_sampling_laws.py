"""Laws of where a fit looks: an even volume as ever, not at padding, vacuum and gold, and inside the mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import REAL_TOMOGRAM, write_mrc

from cryoshuffle.commands.preflight import check_mask
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.masks import BLOCK, MARGIN, mask_region, mask_weights
from cryoshuffle.fit.sampling import FitRegiond, HeldOutSlab, draw_by_worth, robust_weights
from cryoshuffle.fit.transforms import CropHeldOutd, RandLatticeWindowd
from cryoshuffle.noise.linear_filter import gaussian
from cryoshuffle.noise.volumes import load_volume

SHAPE = (40, 96, 80)


def noisy(seed: int = 0) -> torch.Tensor:
    return torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(seed))


def drawn(item: dict[str, torch.Tensor], count: int = 200, side: int = 16) -> torch.Tensor:
    """Windows of a volume, one after the other."""
    transform = RandLatticeWindowd("image", side, 4)
    transform.set_random_state(seed=0)
    return torch.stack([transform(item)["image"] for _ in range(count)])


def test_an_even_volume_is_drawn_from_as_without(tmp_path):
    """Bit for bit: noise, and a real tomogram. Nothing is left in what is collated."""
    for volume in (noisy(), StandardiseIntensity()(load_tomogram(REAL_TOMOGRAM)).as_tensor()):
        item = FitRegiond("image")({"image": volume})
        assert set(item) == {"image"}
        assert torch.equal(drawn(item), drawn({"image": volume}))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_padding_is_hardly_drawn(share):
    """Constant voxels, the larger part even; without weights they come as often as there are of them."""
    volume = noisy()
    end = round(share * SHAPE[1] / BLOCK) * BLOCK
    volume[:, :, :end] = 0.3
    item = FitRegiond("image")({"image": volume})
    weights = item["weights"]
    assert weights.shape == (5, 12, 10)
    assert float(weights[:, : end // BLOCK].max()) == 0
    assert float(weights[:, end // BLOCK :].min()) == 1
    constant = [float((windows == 0.3).float().mean()) for windows in (drawn(item), drawn({"image": volume}))]
    assert constant[0] < 0.5 * constant[1]
    assert constant[0] < 0.3
    assert "weights" not in RandLatticeWindowd("image", 16, 4)(item)


def test_vacuum_weighs_little_and_gold_neither(tmp_path):
    """Vacuum that fills most of the volume does not make specimen look like gold; contrast of 3 is no gold."""
    volume = noisy()
    torch.manual_seed(0)
    volume[:, :, :72] *= 0.05
    volume[:, :, 80:, :40] += 3 * (torch.rand(16, 40) > 0.5)
    volume[0, 16:24, 88:96, 72:80] += 60 * torch.randn(8, 8, 8)
    weights = robust_weights(volume)
    assert float(weights[:, :9].max()) < 0.1
    assert float(weights[2, 11, 9]) < 0.03
    specimen = weights[:, 9:].clone()
    specimen[2, -1, 9] = 1
    assert float(specimen.min()) == 1
    assert torch.equal(robust_weights(torch.ones(1, 8, 8, 8)), torch.ones(1, 1, 1))


def test_windows_are_drawn_as_often_as_they_are_worth():
    """Half the worth, half as often; where nothing is worth much the best is taken."""
    weights = torch.ones(1, 1, 8)
    weights[..., :4] = 0.5
    random = np.random.RandomState(0)
    starts = np.array([draw_by_worth((8, 8, 64), (8, 8, 8), random, weights)[2].start for _ in range(4000)])
    ratio = (starts <= 24).sum() / (starts >= 32).sum()
    assert abs(ratio - 0.5 * 25 / 25) < 0.08
    weights[:] = 0
    weights[..., 5] = 1e-9
    box = draw_by_worth((8, 8, 64), (8, 8, 8), random, weights)
    assert box[2].start in range(33, 48)


def masked(tmp_path: Path, name: str = "mask.mrc") -> tuple[Path, np.ndarray]:
    """A tilted sheet, as a lamella is."""
    z, y, _ = np.indices(SHAPE)
    mask = np.abs(z - 12 - y / 8) < 8
    mask[:, :, :20] = False
    return write_mrc(tmp_path / name, mask.astype(np.int8)), mask


def test_a_mask_decides_where_a_fit_looks(tmp_path):
    """Windows hold specimen, and the slab that is scored does; where there is no mask less than half is."""
    path, mask = masked(tmp_path)
    volume = noisy()
    volume[0][~torch.from_numpy(mask)] += 100
    item = FitRegiond("image", mask=str(path), robust=False)({"image": volume})
    assert item["image"].shape[3] < SHAPE[2]
    inside = (drawn(item) < 50).float().mean(dim=(1, 2, 3, 4))
    outside = (drawn({"image": volume}) < 50).float().mean(dim=(1, 2, 3, 4))
    assert float(inside.min()) > 0
    assert float(inside.mean()) > 1.4 * float(outside.mean())
    scored = CropHeldOutd("image", HeldOutSlab())(item)
    assert set(scored) == {"image", "label"}
    label = scored["label"][~torch.isnan(scored["label"])]
    assert len(label) > 500
    assert float((label < 50).float().mean()) > 0.6


@pytest.mark.parametrize(
    "thin",
    [(slice(17, 19), slice(50, 52), slice(70, 80)), (slice(0, 1),) * 3, (slice(39, 40), slice(95, 96), slice(79, 80))],
)
def test_the_box_around_a_mask_holds_it_and_is_not_too_thin(tmp_path, thin):
    """Whole blocks from the start of the volume, at least as thick as a fit needs, or as the volume is."""
    mask = np.zeros(SHAPE, np.float32)
    mask[thin] = 1
    weights = mask_weights(str(write_mrc(tmp_path / "mask.mrc", mask)))
    region = mask_region(weights, SHAPE)
    assert mask[region].sum() == mask.sum()
    for side, n in zip(region, SHAPE, strict=True):
        assert side.start % BLOCK == 0
        assert 0 <= side.start < side.stop <= n
        assert side.stop - side.start >= min(MARGIN, n)
    item = FitRegiond("image", mask=str(tmp_path / "mask.mrc"))({"image": noisy()})
    assert item["image"].shape[1:] == mask[region].shape
    assert item["weights"].shape == tuple(-(-n // BLOCK) for n in mask[region].shape)
    assert float(item["weights"].sum()) == pytest.approx(mask.sum() / BLOCK**3)


def test_the_noise_is_measured_where_the_mask_is(tmp_path):
    """The middle of the box around it; without a mask the middle of the volume."""
    volume = noisy()[0].numpy()
    mask = np.zeros(SHAPE, np.float32)
    mask[:, 64:, 8:] = 1
    tomogram, path = write_mrc(tmp_path / "in.mrc", volume), write_mrc(tmp_path / "mask.mrc", mask)
    measured = load_volume(str(tomogram), largest=16, mask=str(path))
    there = volume[12:28, 56:72, 36:52]
    assert np.corrcoef(measured.numpy().ravel(), there.ravel())[0, 1] > 0.99
    elsewhere = load_volume(str(tomogram), largest=16)
    assert np.corrcoef(elsewhere.numpy().ravel(), there.ravel())[0, 1] < 0.5


def test_masks_that_cannot_be_are_refused(tmp_path, caplog):
    """Another shape, nothing inside, several tomograms, a mask of padding."""
    path, mask = masked(tmp_path)
    tomogram = write_mrc(tmp_path / "in.mrc", noisy()[0].numpy())
    check_mask(str(path), [str(tomogram)])
    check_mask(None, [])
    with pytest.raises(InputError, match="goes with one tomogram"):
        check_mask(str(path), [str(tomogram)] * 2)
    other = write_mrc(tmp_path / "other.mrc", np.ones((8, 8, 9), np.int8))
    with pytest.raises(InputError, match="the tomogram of"):
        check_mask(str(other), [str(tomogram)])
    caplog.clear()
    for refused in (
        lambda: FitRegiond("image", mask=str(other))({"image": noisy()}),
        lambda: load_volume(str(tomogram), mask=str(other)),
    ):
        with pytest.raises(InputError, match="the tomogram of"):
            refused()
    assert "everywhere" not in caplog.text
    with pytest.raises(InputError, match="0 everywhere"):
        mask_weights(str(write_mrc(tmp_path / "zero.mrc", np.zeros(SHAPE, np.int8))))
    padded = noisy()
    padded[0][torch.from_numpy(mask)] = 0
    blocks = np.zeros(SHAPE, np.int8)
    blocks[:8, :8, :8] = 1
    padded[0, :8, :8, :8] = 0
    with pytest.raises(InputError, match="constant there"):
        FitRegiond("image", mask=str(write_mrc(tmp_path / "b.mrc", blocks)))({"image": padded})


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_weaker_noise_at_the_border_misleads_the_risk(seed):
    """As interpolation leaves it in the outermost planes: there the recorrupted risk is far too kind to a filter that
    smooths too much. Without these planes it is much less so."""
    random = torch.Generator().manual_seed(seed)
    shape, strength = (64, 96, 80), 0.7
    signal = 8 * gaussian(torch.randn(shape, generator=random), 2.0)
    noise, drawn = (torch.randn(shape, generator=random) for _ in range(2))
    noise[:, -4:] *= 0.65
    volume = signal + noise

    def too_kind(border: int) -> float:
        scored = HeldOutSlab(border=border).scored(shape).keep
        off = []
        for width in (1.2, 1.8):
            both = [(gaussian(volume + strength * z, width), volume - z / strength) for z in (drawn, -drawn)]
            squares = [(result - target).square() - (result - signal).square() for result, target in both]
            off.append(float(torch.stack(squares)[(slice(None), *scored)].mean()))
        return off[0] - off[1]

    assert too_kind(0) > 0.008
    assert abs(too_kind(4)) < 0.6 * too_kind(0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"fraction": 0.0}, "fraction is 0.0"),
        ({"fraction": 0.6}, "fraction is 0.6"),
        ({"gap": -1}, "gap of the held-out slab is -1"),
        ({"context": -2}, "context of the held-out slab is -2"),
        ({"border": -4}, "border of the held-out slab is -4"),
    ],
)
def test_a_held_out_slab_that_cannot_be_is_refused(wrong, words):
    """A share that is none or most of the volume, and numbers of voxels below 0; the least of them are taken
    (control)."""
    with pytest.raises(SettingError, match=words):
        HeldOutSlab(**wrong)
    HeldOutSlab(fraction=0.5, gap=0, context=0, border=0)
