"""Tomograms of other kinds, residuals and masks through the command line, as a user has them."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation
from phantoms import small_tomogram, write_mrc
from sizes import suite_start

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import InputError
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.writing import checksum
from cryoshuffle.inference.transform import Denoise, Denoised


def copy_as(tomogram: Path, path: Path) -> Path:
    """The same voxels in another kind of file."""
    save_tomogram(load_tomogram(tomogram), path)
    return path


def voxels(path: Path) -> np.ndarray:
    return load_tomogram(path)[0].numpy()


@pytest.mark.parametrize("memory", [[], ["--memory", "0.0001"]], ids=["in memory", "on disk"])
def test_the_kind_of_file_changes_nothing(tmp_path, fitted, memory):
    """OME-Zarr and MRC, in and out: the same voxels and voxel size; the residual adds up; provenance names all."""
    pytest.importorskip("zarr")
    tomogram, checkpoint = fitted
    source = copy_as(tomogram, tmp_path / "in.zarr")
    more = ["--window", "24,48,48", "--quiet", *memory]
    assert main(["apply", str(checkpoint), str(tomogram), str(tmp_path / "a.mrc"), *more]) == 0
    residual = tmp_path / "residual.mrc"
    command = ["apply", str(checkpoint), f"{source}/", f"{tmp_path / 'b.zarr'}/", *more, "--residual", str(residual)]
    assert main(command) == 0
    assert np.array_equal(voxels(tmp_path / "a.mrc"), voxels(tmp_path / "b.zarr"))
    assert load_tomogram(tmp_path / "b.zarr").meta["voxel_size_zyx"] == [10.0] * 3
    assert np.allclose(voxels(residual) + voxels(tmp_path / "b.zarr"), voxels(tomogram), atol=1e-4)
    assert np.abs(voxels(residual)).mean() > 1
    written = json.loads((tmp_path / "b_run" / "provenance.json").read_text())
    assert written["input"]["sha256"] == checksum(source)
    assert written["output"]["sha256"] == checksum(tmp_path / "b.zarr")
    assert written["residual"] == {"path": str(residual), "sha256": checksum(residual)}
    assert main(["apply", str(checkpoint), f"{source}/0", str(tmp_path / "c.mrc"), *more]) == 0
    assert np.array_equal(voxels(tmp_path / "a.mrc"), voxels(tmp_path / "c.mrc"))


def test_the_newer_ome_zarr_is_written_where_it_is_asked_for(tmp_path, fitted):
    """Result and residual, from the command line; without the option the older one (control)."""
    pytest.importorskip("zarr")
    tomogram, checkpoint = fitted
    for name, option in (("a", ["--ome-zarr", "0.5", "--residual", str(tmp_path / "r.zarr")]), ("b", [])):
        command = ["apply", str(checkpoint), str(tomogram), str(tmp_path / f"{name}.zarr"), "--quiet", *option]
        assert main(command) == 0
    assert [(tmp_path / f"{name}.zarr" / "zarr.json").is_file() for name in "arb"] == [True, True, False]
    assert np.array_equal(voxels(tmp_path / "a.zarr"), voxels(tmp_path / "b.zarr"))
    written = json.loads((tmp_path / "a_run" / "provenance.json").read_text())
    assert written["settings"]["ome_zarr"] == "0.5"


def test_a_residual_has_the_grid_of_its_input(tmp_path, fitted):
    """A NIfTI whose axes run otherwise gives a residual whose axes do; whole numbers out, float residual."""
    _, checkpoint = fitted
    affine = torch.diag(torch.tensor([-2.0, -2.0, 3.0, 1.0], dtype=torch.float64))
    values = torch.from_numpy(np.random.default_rng(0).normal(100, 10, (1, 36, 40, 24)).astype(np.float32))
    source, out, residual = (tmp_path / name for name in ("in.nii.gz", "out.mrc", "residual.nii.gz"))
    save_tomogram(MetaTensor(values, affine=affine), source)
    command = ["apply", str(checkpoint), str(source), str(out), "--quiet", "--dtype", "int16"]
    assert main([*command, "--residual", str(residual)]) == 0
    given, left = (load_tomogram(path, axcodes=None) for path in (source, residual))
    assert torch.allclose(left.affine, given.affine)
    assert left.shape == given.shape
    assert np.allclose(voxels(residual) + voxels(out), voxels(source), atol=1e-4)


@pytest.mark.parametrize("shape_xyz", [(32, 32, 32), (40, 32, 24)], ids=["cube", "box"])
def test_a_nifti_with_the_identity_keeps_its_axes(tmp_path, shape_xyz):
    """Its x stays x in all formats, and the residual adds up; the transform does the same to what MONAI loaded.

    Control: the same voxels without a file are (Z, Y, X), and the network sees another volume.
    """
    pytest.importorskip("zarr")
    source = tmp_path / "in.nii"
    noise = np.random.default_rng(0).standard_normal(shape_xyz)
    ramp = np.arange(shape_xyz[0], dtype=np.float32)[:, None, None] + noise.astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(ramp, np.eye(4)), source)
    given = voxels(source)
    assert np.array_equal(given, ramp.transpose(2, 1, 0))
    results = []
    for suffix in (".mrc", ".zarr", ".nii"):
        out, residual = tmp_path / f"to_{suffix[1:]}{suffix}", tmp_path / f"residual{suffix}"
        command = ["apply", str(suite_start()), str(source), str(out), "--quiet", "--device", "cpu"]
        assert main([*command, "--residual", str(residual)]) == 0
        results.append(voxels(out))
        assert results[-1].shape == shape_xyz[::-1]
        profiles = [results[-1].mean(axis=others) for others in ((1, 2), (0, 2), (0, 1))]
        assert np.argmax([np.ptp(profile) for profile in profiles]) == 2
        assert np.allclose(voxels(residual) + results[-1], given, atol=1e-4)
    assert all(np.array_equal(result, results[0]) for result in results)
    image, denoise = LoadImage(ensure_channel_first=True)(source), Denoise(suite_start(), device="cpu")
    assert np.array_equal(denoise(image)[0].numpy().transpose(2, 1, 0), results[0])
    plain = denoise(MetaTensor(image.as_tensor()))
    assert not np.allclose(plain[0].numpy().transpose(2, 1, 0), results[0], atol=1e-4)


def test_an_mrc_becomes_a_nifti_with_the_same_voxels_and_a_page(tmp_path, fitted):
    """The axes of the two files run the other way round; the report compares them all the same."""
    tomogram, checkpoint = fitted
    for name in ("a.mrc", "b.nii.gz"):
        assert main(["apply", str(checkpoint), str(tomogram), str(tmp_path / name), "--quiet"]) == 0
    assert np.array_equal(voxels(tmp_path / "a.mrc"), voxels(tmp_path / "b.nii.gz"))
    of_mrc, of_nifti = (json.loads((tmp_path / f"{name}_run" / "report.json").read_text()) for name in "ab")
    assert of_mrc["numbers"] == of_nifti["numbers"]


def test_the_transform_does_what_the_command_does(tmp_path, fitted):
    """The same bits, whichever way the axes run, and for a plain array of (Z, Y, X); the rest of the image stays."""
    tomogram, checkpoint = fitted
    assert main(["apply", str(checkpoint), str(tomogram), str(tmp_path / "a.mrc"), "--quiet"]) == 0
    expected, image = voxels(tmp_path / "a.mrc"), load_tomogram(tomogram)
    transform = Denoised("image", checkpoint, device="cpu")
    made = transform({"image": image, "other": 1})
    assert made["other"] == 1
    assert np.array_equal(made["image"][0].numpy(), expected)
    assert torch.equal(made["image"].affine, image.affine)
    turned = Orientation("RPI", labels=None)(image)
    back = Orientation("SAR", labels=None)(transform({"image": turned})["image"])
    assert np.array_equal(back[0].numpy(), expected)
    assert np.array_equal(transform({"image": image.numpy()})["image"][0].numpy(), expected)
    assert len(Denoise(checkpoint)(turned).applied_operations) == len(turned.applied_operations)
    with pytest.raises(InputError, match="not one volume"):
        transform({"image": torch.zeros(2, 8, 8, 8)})


def test_residuals_that_cannot_be_written_are_refused_first(tmp_path, fitted, capsys):
    """The result itself, a file that exists, the input."""
    tomogram, checkpoint = fitted
    out, there = tmp_path / "out.mrc", tmp_path / "there.mrc"
    there.write_bytes(b"mine")
    for residual, words in (
        (out, "choose two names"),
        (there, "no result of cryoshuffle"),
        (tomogram, "is the input itself"),
    ):
        command = ["apply", str(checkpoint), str(tomogram), str(out), "--quiet", "--residual", str(residual)]
        assert main(command) == 2
        assert words in capsys.readouterr().err
    assert not out.exists()


def test_a_mask_goes_through_all_stages(tmp_path, capsys):
    """The fit looks there and says so, everything is denoised; another mask is noticed by --resume."""
    values = mrcfile.read(small_tomogram(tmp_path / "small.mrc", (24, 100, 80)))
    values[:, :30] = 100
    tomogram, mask = write_mrc(tmp_path / "in.mrc", values), np.zeros(values.shape, np.int8)
    mask[4:20, 34:98, 6:70] = 1
    path, out = write_mrc(tmp_path / "mask.mrc", mask), tmp_path / "out.mrc"
    command = ["denoise", str(tomogram), str(out), "--quiet", "--steps", "8", "--window", "24", "--mask", str(path)]
    assert main(command) == 0
    log = (tmp_path / "out_run" / "run.log").read_text()
    assert "the fit looks at" in log
    assert "of the volume, as the mask says" in log
    result = mrcfile.read(out)
    assert result.shape == values.shape
    assert bool(np.isfinite(result).all())
    settings = json.loads((tmp_path / "out_run" / "provenance.json").read_text())["settings"]
    assert settings["mask"] == str(path)
    fit = ["fit", str(tomogram), "--checkpoint", str(tmp_path / "net.pt"), *command[3:]]
    assert main(fit) == 0
    mask[10] = 0
    write_mrc(path, mask)
    capsys.readouterr()
    assert main([*fit, "--resume", "--overwrite"]) == 2
    assert "the tomogram or its mask has changed" in capsys.readouterr().err
    other = write_mrc(tmp_path / "other.mrc", mask[:, :, 1:])
    assert main([*command[:-1], str(other), "--overwrite"]) == 2
    assert "give a mask of its voxels" in capsys.readouterr().err


def test_padding_is_noticed_without_a_mask(tmp_path):
    """Half of the volume constant: windows avoid it, and the log says how much of it there is."""
    values = mrcfile.read(small_tomogram(tmp_path / "small.mrc", (24, 112, 48)))
    values[:, :48] = 100
    tomogram = write_mrc(tmp_path / "in.mrc", values)
    command = ["fit", str(tomogram), "--checkpoint", str(tmp_path / "c.pt"), "--quiet", "--steps", "8"]
    assert main([*command, "--window", "24"]) == 0
    assert "43% of the volume is nearly constant" in (tmp_path / "c_run" / "run.log").read_text()
