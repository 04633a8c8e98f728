"""Denoising from Python: the same bits as the command line, for every kind of volume, and nothing else touched."""

from __future__ import annotations

import random

import mrcfile
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from phantoms import small_tomogram

import cryoshuffle
from cryoshuffle import memory
from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FileError, InputError, UserError

QUICK = {"refine": False, "steps": 3, "window": (16, 24, 16), "blind": "plane", "tilt_axis": "y"}
WORDS = ["--no-refine", "--steps", "3", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]


@pytest.fixture(scope="module")
def by_command(tmp_path_factory):
    """A tomogram on disk and what the command line makes of it."""
    folder = tmp_path_factory.mktemp("api")
    tomogram = small_tomogram(folder / "in.mrc", (24, 48, 36))
    assert main(["denoise", str(tomogram), str(folder / "out.mrc"), "--quiet", *WORDS]) == 0
    return tomogram, mrcfile.read(folder / "out.mrc")


def test_an_array_gives_what_the_command_gives_and_the_caller_keeps_his_random_numbers(by_command):
    """Bit for bit; random states, seeds, rounding and the memory limit are as before."""
    tomogram, expected = by_command
    memory.limit_memory(3.0)

    def draws() -> tuple[float, ...]:
        random.seed(5), np.random.seed(6), torch.manual_seed(7)
        if ran:
            result.append(cryoshuffle.denoise(volume, **QUICK))
        return random.random(), float(np.random.rand()), float(torch.rand(1)), memory.limit_memory(3.0)

    volume = mrcfile.read(tomogram)
    result: list[np.ndarray] = []
    ran = False
    undisturbed = draws()
    ran = True
    assert draws() == undisturbed
    assert type(result[0]) is np.ndarray
    assert result[0].dtype == np.float32
    assert np.array_equal(result[0], expected)
    assert np.array_equal(volume, mrcfile.read(tomogram)), "what was given is not written to"


def test_the_page_of_an_array_has_no_commands_that_cannot_run(by_command, tmp_path, capsys):
    """Nor can it be made anew, which is a sentence; the page of a file names where its other looks go (control)."""
    tomogram, _ = by_command
    cryoshuffle.denoise(mrcfile.read(tomogram), report=tmp_path / "array", survival=False, **QUICK)
    cryoshuffle.denoise(tomogram, report=tmp_path / "file", survival=False, **QUICK)
    pages = {name: (tmp_path / name / "report.html").read_text(encoding="utf-8") for name in ("array", "file")}
    assert "cryoshuffle apply" not in pages["array"]
    assert "The tomogram was an array: " in pages["array"]
    command = f"cryoshuffle apply {tmp_path / 'file' / 'model.pt'} {tomogram} {tomogram.with_name('smooth_in.mrc')} "
    assert command in pages["file"]
    assert "was an array" not in pages["file"]
    for name, what in (("array", "tomogram"), ("file", "result")):
        capsys.readouterr()
        assert main(["report", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert f"{tmp_path / name}: its {what} was an array in memory, so its report cannot be made anew" in said
        assert said.count("\n") == 1
        assert (tmp_path / name / "report.html").read_text(encoding="utf-8") == pages[name]


def test_tensors_keep_their_kind_shape_and_axes(by_command, tmp_path):
    """A tensor with a channel; an image whose axes are (X, Y, Z) comes back as (X, Y, Z), its file is (Z, Y, X)."""
    tomogram, expected = by_command
    volume = torch.from_numpy(mrcfile.read(tomogram))
    given = volume.to(torch.float64)[None]
    denoised = cryoshuffle.denoise(given, **QUICK)
    assert type(denoised) is torch.Tensor
    assert torch.equal(denoised[0], torch.from_numpy(expected))

    plain = cryoshuffle.denoise(MetaTensor(volume), **QUICK)
    assert isinstance(plain, MetaTensor)
    assert torch.equal(plain.as_tensor(), denoised[0])

    turned = MetaTensor(volume.permute(2, 1, 0)[None], affine=torch.diag(torch.tensor([8.0, 8.0, 12.0, 1.0])))
    image = cryoshuffle.denoise(turned, tmp_path / "out.mrc", report=tmp_path / "kept", **QUICK)
    assert isinstance(image, MetaTensor)
    assert torch.equal(image.as_tensor()[0].permute(2, 1, 0), denoised[0])
    assert torch.equal(image.affine, turned.affine)
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert np.array_equal(mrc.data, expected)
        assert mrc.voxel_size.tolist() == (8.0, 8.0, 12.0)
    assert (tmp_path / "kept" / "result.png").is_file()


def test_a_path_gives_an_image_and_masks_may_be_arrays(by_command):
    """Nothing is left beside the input."""
    tomogram, expected = by_command
    before = sorted(tomogram.parent.iterdir())
    whole = np.ones(expected.shape, bool)
    image = cryoshuffle.denoise(tomogram, mask=whole, **QUICK)
    assert tuple(image.pixdim) == (10.0, 10.0, 10.0)
    assert torch.equal(image.as_tensor()[0], torch.from_numpy(expected))
    assert sorted(tomogram.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("volume", "options", "kind", "words"),
    [
        (np.zeros((2, 8, 8, 8)), {}, InputError, "is not one volume, give"),
        (np.zeros((8, 8, 8), complex), {}, InputError, "give real numbers"),
        (np.full((24, 48, 36), np.nan), {"effort": "fast"}, InputError, "fill"),
        ("missing.mrc", {}, FileError, "there is no such file"),
        (np.zeros((8, 8, 8)), {"even": np.zeros((8, 8, 8))}, InputError, "name both"),
        (np.zeros((8, 8, 8)), {"effort": "quick"}, UserError, "invalid choice: 'quick'"),
        (np.zeros((8, 8, 8)), {"speed": 3}, UserError, "speed: cryoshuffle.denoise has no such option"),
    ],
)
def test_a_mistake_is_the_sentence_of_the_command_line(volume, options, kind, words, capfd):
    """Raised, not printed."""
    with pytest.raises(kind, match=words):
        cryoshuffle.denoise(volume, **options)
    said = capfd.readouterr()
    assert not said.out
    assert "Traceback" not in said.err
