"""What is odd about the inputs is told in one sentence before the fit, or read right."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from phantoms import write_mrc

from cryoshuffle.cli import main
from cryoshuffle.evaluation import evaluate_files
from cryoshuffle.inputs import load_beside, load_tomogram
from cryoshuffle.mrc import read_affine
from cryoshuffle.noise import load_halves, load_mask
from cryoshuffle.sampling import FitRegiond, mask_weights

SHAPE = (16, 21, 24)
VOLUME = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
MASK = np.zeros(SHAPE, np.uint8)
MASK[:, :9, 13:] = 1


def itk_nifti(path, volume, translation=(0.0, 0.0, 0.0), size=10.0):
    """As ITK writes an MRC: voxels (X, Y, Z), x and y against it."""
    affine = np.diag([-size, -size, size, 1.0])
    affine[:3, 3] = translation
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(volume.T), affine), path)
    return str(path)


@pytest.fixture
def raw(tmp_path):
    return str(write_mrc(tmp_path / "raw.mrc", VOLUME))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_mask_that_itk_made_of_the_tomogram_is_not_mirrored(tmp_path, raw, suffix):
    """For the noise and for the windows of a fit; voxels are taken index by index, and that is told."""
    path = itk_nifti(tmp_path / f"mask{suffix}", MASK)
    with pytest.warns(UserWarning, match="x and y run against .*raw.mrc.* index by index"):
        mask = load_mask(path, tomogram=raw)
    assert np.array_equal(mask.numpy(), MASK)
    assert not np.array_equal(load_mask(path).numpy(), MASK)
    plain = str(write_mrc(tmp_path / "mask.mrc", MASK.astype(np.int8)))
    with pytest.warns(UserWarning, match="index by index"):
        weights = mask_weights(path, tomogram=raw)
    assert torch.equal(weights, mask_weights(plain))
    image = {"image": load_tomogram(raw)}
    with pytest.warns(UserWarning, match="index by index"):
        cropped = FitRegiond("image", path)(image)
    expected = FitRegiond("image", plain)(image)
    assert torch.equal(cropped["image"], expected["image"])
    assert torch.equal(cropped["weights"], expected["weights"])


def test_a_mask_whose_affine_agrees_is_followed_without_a_word(tmp_path, raw):
    """Mirrored in the file and at the same places; and both mirrored, whatever the origin."""
    translation = (10.0 * (SHAPE[2] - 1), 10.0 * (SHAPE[1] - 1), 0.0)
    mirrored = itk_nifti(tmp_path / "same.nii", MASK[:, ::-1, ::-1], translation)
    assert np.array_equal(load_mask(mirrored, tomogram=raw).numpy(), MASK)
    tomogram = itk_nifti(tmp_path / "tomogram.nii", VOLUME)
    both = load_mask(itk_nifti(tmp_path / "both.nii", MASK, (70.0, 0.0, 0.0)), tomogram=tomogram)
    assert np.array_equal(both.numpy(), MASK[:, ::-1, ::-1])
    assert np.array_equal(load_tomogram(tomogram).numpy()[0], VOLUME[:, ::-1, ::-1])


def test_an_mrc_mask_of_a_nifti_tomogram_is_turned_with_it(tmp_path):
    """The other way round."""
    tomogram = itk_nifti(tmp_path / "tomogram.nii", VOLUME)
    mask = str(write_mrc(tmp_path / "mask.mrc", MASK.astype(np.int8)))
    with pytest.warns(UserWarning, match="index by index"):
        assert np.array_equal(load_mask(mask, tomogram=tomogram).numpy(), MASK[:, ::-1, ::-1])


def test_one_axis_alone_is_told_and_a_crop_is_the_same(tmp_path, raw):
    """Also where the middle is not the same from both sides."""
    affine = np.diag([10.0, -10.0, 10.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(np.ascontiguousarray(VOLUME.T), affine), tmp_path / "half.nii")
    with pytest.warns(UserWarning, match=": y runs against"):
        image = load_beside(tmp_path / "half.nii", raw, largest=12)
    assert np.array_equal(image.numpy()[0], VOLUME)


def test_halves_and_truth_that_itk_made_are_not_mirrored(tmp_path, raw):
    """The halves of a tomogram, halves alone, and what a result is scored against."""
    second = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    even, odd = (itk_nifti(tmp_path / f"{n}.nii", v) for n, v in (("even", VOLUME), ("odd", second)))
    with pytest.warns(UserWarning, match="index by index"):
        first, other = load_halves((even, odd), tomogram=raw)
    for found, given in ((first, VOLUME), (other, second)):
        assert np.allclose(found.numpy(), (given - given.mean()) / given.std(), atol=1e-5)
    mixed = str(write_mrc(tmp_path / "odd.mrc", second))
    with pytest.warns(UserWarning, match="index by index"):
        _, other = load_halves((raw, itk_nifti(tmp_path / "odd2.nii", second)))
    assert torch.equal(other, load_halves((raw, mixed))[1])
    with pytest.warns(UserWarning, match="index by index"):
        report = evaluate_files(raw, truth=even)
    assert report["truth"]["correlation"] == pytest.approx(1)


def test_the_noise_in_an_empty_region_is_that_of_the_region(tmp_path, capsys):
    """By the command: a mask as MRC and as ITK's NIfTI say the same."""
    shape = (24, 48, 48)
    tomogram = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    empty = np.zeros(shape, np.int8)
    empty[:, :, :24] = 1
    tomogram[:, :, 24:] = 9 * np.repeat(tomogram[:, :, 24::4], 4, axis=2)
    path = str(write_mrc(tmp_path / "tomogram.mrc", tomogram))
    said = []
    for mask in (str(write_mrc(tmp_path / "empty.mrc", empty)), itk_nifti(tmp_path / "empty.nii", empty)):
        (tmp_path / "noise").mkdir(exist_ok=True)
        assert main(["noise", path, "--empty", mask, "--report", str(tmp_path / "noise"), "--overwrite"]) == 0
        out, err = capsys.readouterr()
        said.append(out)
        assert ("index by index" in err) == mask.endswith(".nii")
    assert said[0] == said[1]
    assert "--blind voxel" in said[0]


def test_the_affine_of_an_mrc_is_told_by_its_header(tmp_path, raw):
    """As the reader has it."""
    assert np.array_equal(read_affine(raw), np.asarray(load_tomogram(raw, axcodes=None).affine))
