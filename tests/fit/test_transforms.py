"""The transforms: array and dictionary form, what they keep, what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd

from cryoshuffle.errors import InputError
from cryoshuffle.files import intensity, scratch
from cryoshuffle.files.intensity import (
    FillNotFinite,
    FillNotFinited,
    StandardiseIntensity,
    StandardiseIntensityd,
    mean_and_deviation,
)
from cryoshuffle.fit import transforms
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.transforms import (
    CropHeldOut,
    CropHeldOutd,
    RandLatticeFlip,
    RandLatticeFlipd,
    RandLatticeWindow,
    RandLatticeWindowd,
)


@settings(max_examples=30, deadline=None)
@given(exponent=st.integers(-6, 6), offset=st.floats(-100, 100))
def test_standardising_is_undone(exponent, offset):
    """Mean 0, standard deviation 1 for any gain and offset; the inverse brings the values back."""
    gain = 10.0**exponent
    values = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 6, 7, 8))).float() * gain + offset * gain
    transform = StandardiseIntensity()
    standard = transform(values)
    assert abs(float(standard.mean())) < 1e-4
    assert abs(float(standard.double().std(correction=0)) - 1) < 1e-4
    assert torch.allclose(transform.inverse(standard).as_tensor(), values, rtol=1e-4, atol=1e-5 * gain)


def test_the_inverse_scales_what_the_network_made_of_it():
    """MONAI's Invertd gives a prediction the mean and scale of the image it was made from."""
    forward = Compose([StandardiseIntensityd("image")])
    image = MetaTensor(torch.randn(1, 5, 5, 5) * 3 + 7)
    data = forward({"image": image})
    data["pred"] = MetaTensor(torch.zeros(1, 5, 5, 5))
    result = Invertd("pred", forward, "image", nearest_interp=False)(data)
    assert torch.allclose(result["pred"].as_tensor(), image.mean().as_tensor().expand(1, 5, 5, 5), atol=1e-5)


def test_bad_voxels_are_counted_and_the_first_is_named():
    """NaN and Inf are refused with their number and first place; a constant volume is refused too."""
    values = torch.zeros(1, 4, 5, 6)
    values[0, 1, 2, 3] = float("nan")
    values[0, 3, 4, 5] = float("inf")
    with pytest.raises(ValueError, match=r"2 voxels are NaN or Inf, the first at \(z, y, x\) = \(1, 2, 3\)"):
        StandardiseIntensity()(MetaTensor(values, meta={"filename_or_obj": "t.mrc"}))
    for bad in (float("inf"), -float("inf")):
        values[0, 1, 2, 3] = bad
        with pytest.raises(ValueError, match=r"2 voxels are NaN or Inf, the first at \(z, y, x\) = \(1, 2, 3\)"):
            StandardiseIntensity()(MetaTensor(values, meta={"filename_or_obj": "t.mrc"}))
    with pytest.raises(ValueError, match=r"t.mrc: all voxels are 3, there is nothing"):
        StandardiseIntensity()(MetaTensor(torch.full((1, 4, 4, 4), 3.0), meta={"filename_or_obj": "t.mrc"}))


@pytest.mark.parametrize("section", [2**9, 2**24])
def test_mean_and_deviation_are_those_of_the_whole_whatever_the_sections(monkeypatch, section):
    """Of a volume whose planes differ much; the mean of the deviations of its planes is another number."""
    monkeypatch.setattr(scratch, "SECTION", section)
    values = torch.randn(1, 9, 8, 7, generator=torch.Generator().manual_seed(0)) + 10 * torch.arange(9.0)[:, None, None]
    mean, deviation = mean_and_deviation(values)
    assert mean == pytest.approx(float(values.double().mean()), rel=1e-12)
    assert deviation == pytest.approx(float(values.double().std(correction=0)), rel=1e-12)
    assert deviation > 5 * float(values[0].double().std(dim=(1, 2)).mean())


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_one_image_again_and_again_is_told_beyond_the_first_section(monkeypatch, axis):
    """Equal planes across an axis are refused; one that differs at the far end is enough to be taken."""
    monkeypatch.setattr(scratch, "SECTION", 2**9)
    plane = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)).narrow(axis, 0, 1)
    values = plane.repeat_interleave(8, axis)
    with pytest.raises(ValueError, match=f"across {'zyx'[axis - 1]} are equal"):
        StandardiseIntensity()(MetaTensor(values))
    values[0, -1, -1, -1] += 1
    StandardiseIntensity()(MetaTensor(values))


def test_a_window_is_a_part_of_the_volume_outside_the_slab():
    """Every window is a contiguous part that does not reach into the held-out slab."""
    volume = torch.arange(8 * 40 * 12).reshape(1, 8, 40, 12).float()
    slab = HeldOutSlab(0.25, gap=2)
    transform = RandLatticeWindow(12, (4, 6, 4), slab).set_random_state(seed=0)
    starts = set()
    for _ in range(50):
        window = transform(volume)
        assert window.shape == (1, 8, 12, 12)
        first = int(window[0, 0, 0, 0])
        start = np.unravel_index(first, (8, 40, 12))
        part = tuple(slice(int(s), int(s) + n) for s, n in zip(start, window.shape[1:], strict=True))
        assert torch.equal(window[0], volume[0][part])
        assert part[1].stop <= 40 - 10 - 2
        starts.add(int(start[1]))
    assert len(starts) > 10


def test_dictionary_forms_treat_all_keys_alike():
    """Two keys get the same window and the same flip; aliases exist."""
    volume = torch.randn(1, 12, 12, 12)
    data = {"image": volume, "label": volume.clone()}
    chain = Compose([RandLatticeWindowd(["image", "label"], 8, 4), RandLatticeFlipd(["image", "label"], 2)])
    chain.set_random_state(seed=3)
    results = [chain(data) for _ in range(8)]
    assert all(torch.equal(r["image"], r["label"]) for r in results)
    assert len({float(r["image"].flatten()[0]) for r in results}) > 1
    for name in ("StandardiseIntensity", "RandLatticeWindow", "RandLatticeFlip", "CropHeldOut"):
        place = transforms if hasattr(transforms, f"{name}D") else intensity
        assert getattr(place, f"{name}D") is getattr(place, f"{name}Dict") is getattr(place, f"{name}d")


def test_flips_reach_all_eight_and_nothing_else():
    """Only flips along whole axes: rotations and transpositions would turn tilt axis and wedge."""
    volume = torch.arange(64.0).reshape(1, 4, 4, 4)
    flips = {
        tuple(torch.flip(volume, [a + 1 for a in range(3) if bits >> a & 1]).flatten().tolist()) for bits in range(8)
    }
    transform = RandLatticeFlip(2).set_random_state(seed=0)
    drawn = {tuple(transform(volume).flatten().tolist()) for _ in range(100)}
    assert drawn == flips
    with pytest.raises(ValueError, match="not a multiple of the lattice stride"):
        RandLatticeFlip(3)(volume)


def test_the_held_out_crop_scores_the_slab_only():
    """What is NaN is not scored: the context, and the outermost planes; the rest of the slab is."""
    volume = torch.randn(1, 10, 40, 12)
    slab = HeldOutSlab(0.2, context=5, largest=8)
    crop, scored = CropHeldOut(slab)(volume)
    assert crop.shape == (1, 10, 13, 12)
    assert torch.isnan(scored).sum() == crop.numel() - 8 * 6 * 8
    assert torch.equal(scored[0, 1:9, 5:-2, 2:10], volume[0, 1:9, 32:-2, 2:10])
    data = CropHeldOutd("image", slab)({"image": volume})
    assert torch.equal(data["image"], crop)
    assert torch.equal(torch.isnan(data["label"]), torch.isnan(scored))


def test_voxels_that_are_not_finite_are_filled_and_listed(caplog, monkeypatch):
    """The mean of the others; what is finite stays as it is, the image given too; without leave nothing is done."""
    monkeypatch.setattr(scratch, "SECTION", 400)
    values = torch.randn(1, 6, 7, 8)
    values[0, 2, 3, 4], values[0, 4, 3, 5], values[0, 4, 1, 5] = float("nan"), float("inf"), -float("inf")
    bad = ~torch.isfinite(values)
    image = MetaTensor(values.clone(), meta={"filename_or_obj": "t.mrc"})
    filled = FillNotFinited("image")({"image": image})["image"]
    assert torch.equal(filled[~bad].as_tensor(), values[~bad])
    assert torch.allclose(filled[bad].as_tensor(), values[~bad].mean())
    assert not bool(torch.isfinite(image).all())
    assert "t.mrc: 3 voxels are NaN or Inf, in z 2 to 4, y 1 to 3, x 4 to 5; the mean of the others" in caplog.text
    assert FillNotFinite(False)(image) is image
    finite = MetaTensor(torch.ones(1, 2, 2, 2))
    assert torch.equal(FillNotFinite()(finite).as_tensor(), finite.as_tensor())
    with pytest.raises(InputError, match="8 voxels are NaN or Inf"):
        StandardiseIntensity()(FillNotFinite()(MetaTensor(torch.full((1, 2, 2, 2), float("nan")))))


def test_a_held_out_slab_of_padding_is_told(caplog):
    """Once, with the axis and the way out; one that is worth something is not (control)."""
    volume, weights = torch.randn(1, 16, 80, 24), torch.ones(2, 10, 3)
    crop = CropHeldOut(HeldOutSlab(0.1))
    crop(volume, weights)
    assert not caplog.text
    weights[:, 9:] = 0
    for _ in range(2):
        crop(volume, weights)
    assert caplog.text.count("the last planes across y, held out to judge the fit, are padding") == 1
