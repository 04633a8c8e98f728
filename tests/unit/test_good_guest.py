"""The package inside programs of others: it takes what they give it as they mean it, and leaves them as they were."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from phantoms import small_tomogram
from sizes import suite_start

import cryoshuffle
from cryoshuffle import api
from cryoshuffle.denoising import Denoise
from cryoshuffle.devices import no_autocast
from cryoshuffle.errors import InputError
from cryoshuffle.inputs import refuse_masked, tells_axes
from cryoshuffle.runs import as_words

QUICK = {"refine": False, "steps": 3, "window": (16, 24, 16), "blind": "plane", "tilt_axis": "y"}
# Voxels of 8, 8 and 12 Å along (X, Y, Z), turned by 0.3 about Z.
OBLIQUE = torch.tensor(
    [
        [8 * math.cos(0.3), -8 * math.sin(0.3), 0.0, 5.0],
        [8 * math.sin(0.3), 8 * math.cos(0.3), 0.0, -7.0],
        [0.0, 0.0, 12.0, 3.0],
        [0.0, 0.0, 0.0, 1.0],
    ],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def volume(tmp_path_factory) -> np.ndarray:
    """A noisy ball, (Z, Y, X)."""
    return mrcfile.read(small_tomogram(tmp_path_factory.mktemp("guest") / "in.mrc", (24, 48, 36)))


@pytest.fixture(scope="module")
def denoised(volume) -> np.ndarray:
    """What a few steps make of it."""
    return cryoshuffle.denoise(volume, **QUICK)


@pytest.fixture
def copying(monkeypatch) -> list[Path]:
    """Runs that write what they read; where they read it from."""
    seen: list[Path] = []

    def run(options) -> None:
        seen.append(Path(options.input))
        options.output = Path(options.output)
        options.output.write_bytes(seen[-1].read_bytes())

    monkeypatch.setattr(api, "run_denoise", run)
    return seen


def test_the_identity_tells_no_axes():
    """MONAI gives it to what came without an affine; any other affine tells them, and nothing but an image has one."""
    image = torch.zeros(1, 2, 3, 4)
    assert not tells_axes(MetaTensor(image))
    assert not tells_axes(image)
    assert not tells_axes(image.numpy())
    assert tells_axes(MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))))


def test_an_image_without_an_affine_is_denoised_as_a_tensor(volume):
    """The transform takes it for (Z, Y, X), as ``cryoshuffle.denoise`` does, and gives it back that way."""
    denoise, plain = Denoise(suite_start(), device="cpu"), torch.from_numpy(volume)[None]
    expected = denoise(plain)
    given = MetaTensor(plain)
    assert torch.equal(denoise(given).as_tensor(), expected.as_tensor())
    assert torch.equal(denoise(given).affine, given.affine)
    turned = MetaTensor(plain.permute(0, 3, 2, 1), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    assert torch.equal(denoise(turned).as_tensor().permute(0, 3, 2, 1), expected.as_tensor())


def test_an_oblique_image_without_channel_keeps_its_rotation(volume, denoised, tmp_path):
    """Axes (X, Y, Z) and a rotation: same voxels, same axes and affine back; the NIfTI has the rotation too."""
    given = MetaTensor(torch.from_numpy(volume).permute(2, 1, 0), affine=OBLIQUE)
    out = tmp_path / "out.nii.gz"
    result = cryoshuffle.denoise(given, out, **QUICK)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, OBLIQUE)
    assert np.array_equal(result.as_tensor().permute(2, 1, 0).numpy(), denoised)
    written = nibabel.load(out)
    assert np.array_equal(np.asarray(written.dataobj), denoised)
    in_file_order = OBLIQUE[:, [2, 1, 0, 3]].numpy()
    assert np.allclose(written.affine, in_file_order, atol=1e-5)


def test_an_image_without_channel_keeps_its_shape(volume, copying):
    """With an affine that turns no axis by less than a right angle it goes through MRC, and comes back as it was."""
    affine = torch.diag(torch.tensor([8.0, 8.0, 12.0, 1.0], dtype=torch.float64))
    given = MetaTensor(torch.from_numpy(volume).permute(2, 1, 0), affine=affine)
    result = cryoshuffle.denoise(given)
    assert torch.equal(result.as_tensor(), given.as_tensor())
    assert torch.equal(result.affine, affine)
    assert copying[0].suffix == ".mrc"


def test_masked_voxels_are_refused(volume, copying):
    """A mask would be ignored; one that hides nothing is no mask."""
    whole = np.ma.masked_array(volume, mask=False)
    assert np.array_equal(cryoshuffle.denoise(whole), volume)
    refuse_masked(whole)
    hidden = np.ma.masked_array(volume, mask=volume > np.sort(volume.ravel())[-4])
    words = r"3 voxels of the array are masked: fill them first, as volume\.filled\(volume\.mean\(\)\)"
    for use in (refuse_masked, cryoshuffle.denoise, lambda one: Denoise(suite_start(), device="cpu")(one[None])):
        with pytest.raises(InputError, match=words):
            use(hidden)
    with pytest.raises(InputError, match="3 voxels"):
        cryoshuffle.denoise(volume, mask=hidden)


def test_none_is_the_default_of_every_option():
    """Of ``refine`` too, whose flag says the opposite."""
    assert as_words({"refine": None, "seed": None, "mirrors": None}) == []
    assert as_words({"refine": True}) == []
    assert as_words({"refine": False}) == ["--no-refine"]


def test_an_autocast_of_the_caller_changes_nothing(volume, denoised):
    """The same bits from the function and from the transform; behind them it is on again."""
    transform, plain = Denoise(suite_start(), device="cpu"), torch.from_numpy(volume)[None]
    expected = transform(plain)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(cryoshuffle.denoise(volume, **QUICK), denoised)
        assert torch.equal(transform(plain).as_tensor(), expected.as_tensor())
        with no_autocast():
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu")


def test_threads_take_turns(volume, copying, monkeypatch):
    """Two runs at once would draw from one stream of random numbers; each gives what it gives alone."""
    copy, running, most = api.run_denoise, [], []

    def slow(options) -> None:
        running.append(1)
        most.append(len(running))
        torch.manual_seed(options.seed)
        time.sleep(0.1)
        drawn.append((options.seed, float(torch.rand(1))))
        copy(options)
        running.pop()

    monkeypatch.setattr(api, "run_denoise", slow)
    drawn: list[tuple[int, float]] = []
    threads = [threading.Thread(target=cryoshuffle.denoise, args=(volume,), kwargs={"seed": n}) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1]
    assert sorted(drawn) == [(n, float(torch.rand(1, generator=torch.Generator().manual_seed(n)))) for n in range(3)]
