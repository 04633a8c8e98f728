"""The package inside programs of others: it takes what they give it as they mean it, and leaves them as they were."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor, set_track_meta
from monai.transforms import Compose, Flip, Invertd, LoadImage, Orientation, SpatialCrop
from phantoms import CONFIGS, small_tomogram
from sizes import suite_start

import cryoshuffle
from cryoshuffle import api
from cryoshuffle.commands.overrides import check_overrides
from cryoshuffle.devices import no_autocast
from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.intensity import StandardiseIntensity, StandardiseIntensityd
from cryoshuffle.files.volumes import refuse_masked, tells_axes
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.transforms import RandLatticeFlip, RandLatticeFlipd, RandLatticeWindow, RandLatticeWindowd
from cryoshuffle.inference.checkpoints import load_weights
from cryoshuffle.inference.transform import Denoise
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.losses import EdgeGuidedLoss, RelativeError
from cryoshuffle.network import BlindSpotNet, ShuffleUNet

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
        seen.append(Path(options.tomogram))
        Path(options.output).write_bytes(seen[-1].read_bytes())

    monkeypatch.setattr(api, "run_denoise", run)
    return seen


def test_the_identity_tells_no_axes(tmp_path):
    """MONAI gives it to what came without an affine; any other affine tells them, and the identity of a file does."""
    image = torch.zeros(1, 2, 3, 4)
    assert not tells_axes(MetaTensor(image))
    assert not tells_axes(image)
    assert not tells_axes(image.numpy())
    assert tells_axes(MetaTensor(image, affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0]))))
    nibabel.save(nibabel.Nifti1Image(image[0].numpy(), np.eye(4)), tmp_path / "in.nii")
    read = LoadImage(ensure_channel_first=True)(tmp_path / "in.nii")
    assert torch.equal(read.affine, MetaTensor(image).affine)
    assert tells_axes(read)
    assert tells_axes(Orientation("SAR", labels=None)(read))
    assert not tells_axes(MetaTensor(read.as_tensor()))
    np.save(tmp_path / "in.npy", image[0].numpy())
    assert not tells_axes(LoadImage(ensure_channel_first=True)(tmp_path / "in.npy"))


def test_an_image_with_the_identity_of_its_file_comes_back_as_it_was(tmp_path, monkeypatch):
    """The run reads it as x, y, z, and the result has the axes of what was given; without a file it is (Z, Y, X)."""
    volume = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "in.nii")
    given = LoadImage(ensure_channel_first=True)(tmp_path / "in.nii")
    shapes: list[tuple[int, ...]] = []

    def copy(options) -> None:
        tomogram = load_tomogram(options.tomogram)
        shapes.append(tuple(tomogram.shape[1:]))
        save_tomogram(tomogram, options.output)

    monkeypatch.setattr(api, "run_denoise", copy)
    result = cryoshuffle.denoise(given)
    plain = cryoshuffle.denoise(MetaTensor(given.as_tensor()))
    assert shapes == [(3, 4, 5), (5, 4, 3)]
    for image in (result, plain):
        assert torch.equal(image.as_tensor(), given.as_tensor())


def test_an_image_without_an_affine_is_denoised_as_a_tensor(volume):
    """The transform takes it for (Z, Y, X), as ``cryoshuffle.denoise`` does, and gives it back that way."""
    denoise, plain = Denoise(suite_start(), device="cpu"), torch.from_numpy(volume)[None]
    expected = denoise(plain)
    given = MetaTensor(plain)
    assert torch.equal(denoise(given).as_tensor(), expected.as_tensor())
    assert torch.equal(denoise(given).affine, given.affine)
    turned = MetaTensor(plain.permute(0, 3, 2, 1), affine=torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])))
    assert torch.equal(denoise(turned).as_tensor().permute(0, 3, 2, 1), expected.as_tensor())


def test_what_was_given_by_place_keeps_its_meaning():
    """An option that is new comes last: the sixth is ``mirrors``, as before there was ``smooth``."""
    by_place = Denoise(suite_start(), "cpu", None, "auto", 0.0, True).inferer
    by_name = Denoise(suite_start(), device="cpu", mirrors=True).inferer
    assert (by_place.mirrors, by_place.smooth) == (by_name.mirrors, by_name.smooth) == (True, 0.0)
    assert Denoise(suite_start(), device="cpu", smooth=1.0).inferer.smooth == 1.0


def test_an_oblique_image_without_channel_keeps_its_rotation(volume, denoised, tmp_path):
    """Axes (X, Y, Z) and a rotation: same voxels, same axes and affine back; the NIfTI has the rotation too."""
    given = MetaTensor(torch.from_numpy(volume).permute(2, 1, 0), affine=OBLIQUE)
    out = tmp_path / "out.nii.gz"
    result = cryoshuffle.denoise(given, out, **QUICK)
    assert isinstance(result, MetaTensor)
    assert torch.equal(result.affine, OBLIQUE)
    assert np.array_equal(result.as_tensor().permute(2, 1, 0).numpy(), denoised)
    written = nibabel.load(out)
    assert np.array_equal(np.asarray(written.dataobj).transpose(2, 1, 0), denoised)
    assert np.allclose(written.affine, OBLIQUE.numpy(), atol=1e-5)


def test_an_image_without_channel_keeps_its_shape(volume, denoised):
    """With an affine that turns no axis by less than a right angle it comes back as it was, denoised."""
    affine = torch.diag(torch.tensor([8.0, 8.0, 12.0, 1.0], dtype=torch.float64))
    result = cryoshuffle.denoise(MetaTensor(torch.from_numpy(volume).permute(2, 1, 0), affine=affine), **QUICK)
    assert np.array_equal(result.as_tensor().permute(2, 1, 0).numpy(), denoised)
    assert torch.equal(result.affine, affine)


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


# Each voxel is its own number, so that a window tells where it was cut.
NUMBERED = torch.arange(8 * 20 * 12.0).reshape(1, 8, 20, 12)


def places(image: MetaTensor) -> torch.Tensor:
    """Where the voxels of an image lie, Å, by its affine: (n, 3)."""
    indices = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in image.shape[1:]))
    return indices @ image.affine[:3, :3].T + image.affine[:3, 3]


@pytest.mark.parametrize("held_out", [None, HeldOutSlab(0.25, gap=2)], ids=["whole", "held out"])
def test_windows_and_flips_say_where_they_lie(held_out):
    """Every voxel has the place in the affine that it had in the volume, as with MONAI's own; seeds mean the same."""
    image = MetaTensor(NUMBERED.clone(), affine=OBLIQUE)
    place = places(image)
    window = RandLatticeWindow((4, 8, 8), (2, 4, 4), held_out).set_random_state(seed=1)
    flip = RandLatticeFlip(2).set_random_state(seed=2)
    plain_window = RandLatticeWindow((4, 8, 8), (2, 4, 4), held_out).set_random_state(seed=1)
    plain_flip = RandLatticeFlip(2).set_random_state(seed=2)
    flips = set()
    for _ in range(30):
        cut = window(image)
        assert isinstance(cut, MetaTensor)
        start = np.unravel_index(int(cut.flatten()[0]), NUMBERED.shape[1:])
        crop = SpatialCrop(roi_start=start, roi_end=[a + n for a, n in zip(start, cut.shape[1:], strict=True)])
        assert torch.equal(crop(image).affine, cut.affine)
        made = flip(cut)
        assert isinstance(made, MetaTensor)
        assert torch.allclose(places(made), place[made.as_tensor().flatten().long()])
        axes = made.applied_operations[-1]["extra_info"]["axes"]
        assert torch.equal(Flip(axes)(cut).affine, made.affine)
        flips.add(tuple(axes))
        plain = plain_flip(plain_window(NUMBERED))
        assert type(plain) is torch.Tensor
        assert torch.equal(plain, made.as_tensor())
    assert len(flips) == 8
    assert not image.applied_operations


def test_nothing_is_noted_where_monai_is_told_so():
    """With MONAI's switch off a flip gives a plain tensor, as MONAI's does."""
    image = MetaTensor(NUMBERED, affine=OBLIQUE)
    set_track_meta(False)
    try:
        cut = RandLatticeWindow((4, 8, 8), (2, 4, 4)).set_random_state(seed=1)(image)
        flipped = RandLatticeFlip(2, prob=1.0)(cut)
    finally:
        set_track_meta(True)
    assert type(flipped) is torch.Tensor
    plain = RandLatticeWindow((4, 8, 8), (2, 4, 4)).set_random_state(seed=1)(NUMBERED)
    assert torch.equal(flipped, plain.flip(1, 2, 3))


def test_invertd_puts_a_window_back():
    """A prediction from a flipped window comes back to the voxels it was made from, 0 around, with their affine."""
    steps = [RandLatticeWindowd("image", (4, 8, 8), (2, 4, 4)), RandLatticeFlipd("image", 2, prob=0.7)]
    chain = Compose(steps).set_random_state(seed=5)
    for _ in range(8):
        image = MetaTensor(NUMBERED + 1, affine=OBLIQUE)
        data = chain({"image": image})
        seen = torch.isin(image.as_tensor(), data["image"].as_tensor())
        data["pred"] = MetaTensor(2 * data["image"].as_tensor())
        back = Invertd("pred", chain, "image", nearest_interp=False)(data)["pred"]
        assert torch.equal(back.as_tensor(), torch.where(seen, 2 * image.as_tensor(), 0.0))
        assert torch.allclose(back.affine, OBLIQUE)
        whole = chain.inverse({"image": data["image"]})["image"]
        assert torch.equal(whole.as_tensor(), torch.where(seen, image.as_tensor(), 0.0))
        assert not whole.applied_operations


@pytest.mark.parametrize(
    ("loss", "name"),
    [(EdgeGuidedLoss(Lattice(), {"fidelity": 1.0}), "tomogram"), (RelativeError(), "truth")],
    ids=["edge-guided", "relative"],
)
def test_losses_refuse_volumes_of_two_shapes(loss, name):
    """Torch would stretch one to the other and give a number."""
    words = rf"the {name} has shape \(2, 1, 6, 9, 1\) and the prediction \(2, 1, 6, 9, 6\)"
    with pytest.raises(ValueError, match=words):
        loss(torch.zeros(2, 1, 6, 9, 6), torch.zeros(2, 1, 6, 9, 1))
    with pytest.raises(ValueError, match="give two of one shape"):
        loss(torch.zeros(2, 1, 6, 9, 6), torch.zeros(1, 1, 6, 9, 6))
    assert float(loss(torch.full((2, 1, 6, 9, 6), 2.0), torch.ones(2, 1, 6, 9, 6))) == pytest.approx(1.0, rel=0.01)


def test_labels_are_not_scaled_as_grey_values_are():
    """A tomogram of whole numbers is standardised; a mask is not, and labels are not undone."""
    counts = torch.arange(64, dtype=torch.int16).reshape(1, 4, 4, 4)
    chain = Compose([StandardiseIntensityd("image")])
    data = chain({"image": MetaTensor(counts)})
    assert torch.allclose(data["image"].as_tensor(), (counts - 31.5) / counts.double().std(correction=0), atol=1e-6)
    for dtype in (torch.int64, torch.uint8, torch.bool):
        data["pred"] = MetaTensor((data["image"].as_tensor() > 0).to(dtype))
        with pytest.raises((InputError, RuntimeError)) as caught:
            Invertd("pred", chain, "image")(data)
        errors = [caught.value, caught.value.__cause__]
        assert any(f"an image of {dtype} holds labels, not grey values" in str(error) for error in errors)
    with pytest.raises(InputError, match="is a mask, not an image of grey values"):
        StandardiseIntensity()(counts > 3)


PROGRAM = "/somewhere/monai/bundle/__main__.py"
TRAIN, INFERENCE, DENOISE = (str(CONFIGS / name) for name in ("train.json", "inference.json", "denoise.yaml"))


def words(*more: str, configs: str = INFERENCE) -> list[str]:
    """A command line of MONAI's."""
    return [PROGRAM, "run", "--config_file", configs, *more]


@pytest.mark.parametrize(
    ("given", "name", "nearest"),
    [
        (words("--tomogram", "in.mrc", "--detial", "0.3"), "detial", "detail"),
        (words("--stepz=3", configs=TRAIN), "stepz", "steps"),
        (words("--evaluatr#amp", "True"), "evaluatr", "evaluator"),
        (words("--trian::trainer::max_epochs", "3", configs=f"['{TRAIN}']"), "trian", "train"),
        (words("--mirorrs", "--quiet", configs=f"['{TRAIN}','{INFERENCE}','{DENOISE}']"), "mirorrs", "mirrors"),
        (words("--trackin", "mlflow"), "trackin", "tracking"),
        (
            [PROGRAM, "run_workflow", "--config_file", INFERENCE, "--worklow_type", "infer"],
            "worklow_type",
            "workflow_type",
        ),
        (words("--tracking", "mlflow", "--experiment_nam", "mine"), "experiment_nam", "experiment_name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_override_that_no_config_knows_is_told_with_the_nearest(given, name, nearest):
    """MONAI would take it and ignore it."""
    with pytest.raises(
        SettingError, match=f"^'{name}' is a name that no config knows: use '{nearest}', or leave it out$"
    ):
        check_overrides(given)


def test_overrides_that_a_config_knows_pass(tmp_path):
    """MONAI's own, nested ones, those of configs that are put on top, and those that a config only refers to."""
    own = tmp_path / "own.yaml"
    own.write_text("mine: 3\n+handlers: []\ninference_window: '$@edge'\n")
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"config_file": [TRAIN], "steps": 4, "run_id": "run"}))
    both = f"['{INFERENCE}','{own}']"
    for given in (
        words("--detail", "-0.5", "--evaluator#amp", "True", "--inferer::window", "[1,2,3]", "--+handlers", "[]"),
        words("--mine", "4", "--edge=5", "--output-dir", "out", "--quiet", configs=both),
        words(
            "--args_file",
            str(arguments),
            "--meta_file",
            "m.json",
            "--logging_file",
            "l.conf",
            "--init_id",
            "initialize",
        ),
        words("--final_id", "finalize", "--workflow_type", "infer", "--_meta_#version", "1", "--", "--trace"),
        words("--tracking", "mlflow", "--experiment_name", "mine", "--run_name", "first"),
        words("--mirrors", "$not @other", "--other", "True"),
        [PROGRAM, "run", "--args_file", str(arguments), "--minutes", "2"],
        [PROGRAM, "ckpt_export", "--net_id", "network_def"],
        ["cryoshuffle", "--config_file", INFERENCE, "--detial", "1"],
    ):
        check_overrides(given)
    check_overrides()


def test_monai_stops_before_the_work_and_says_it(tmp_path):
    """The whole command, its override in a file of arguments; nothing is read or written."""
    arguments = tmp_path / "arguments.json"
    given = {"config_file": INFERENCE, "tomogram": "missing.mrc", "output_dir": str(tmp_path / "run"), "detial": 0.3}
    arguments.write_text(json.dumps(given))
    command = [sys.executable, "-m", "monai.bundle", "run", "--args_file", str(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "SettingError: 'detial' is a name that no config knows: use 'detail', or leave it out" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["arguments.json"]


@pytest.mark.parametrize("name", ["train.json", "inference.json", "start.yaml"])
def test_every_config_that_says_how_a_run_begins_looks_at_the_overrides(name):
    """First of all, but for how a mistake is told."""
    text = (CONFIGS / name).read_text()
    first, second = text.split("initialize", 1)[1].split("_target_", 3)[1:3]
    assert "cryoshuffle.errors.tell_last" in first
    assert "cryoshuffle.commands.check_overrides" in second


def network(blind_set: BlindSet, stride: int | None = None) -> BlindSpotNet:
    """A small network with a blind set."""
    return BlindSpotNet(Lattice(stride, blind_set), ShuffleUNet(4, channels=(4, 4), factors=(2,)), stem_channels=4)


def checkpoint(net: BlindSpotNet) -> dict[str, Any]:
    """A whole checkpoint, as a fit leaves it."""
    return {"model": net.state_dict(), "lattice": net.lattice.config()}


def test_weights_of_another_lattice_are_refused():
    """By the sides of the stem, and where a whole checkpoint is given by its taps and its stride too."""
    plane, cross, voxel = (
        network(BlindSet(shape, radius=r)) for shape, r in (("plane", 0), ("cross", 1), ("voxel", 0))
    )
    sides = r"theirs: a stem of 3 x 5 x 3 taps; here: a stem of 3 x 3 x 3 taps"
    way_out = r": give the network the blind set and stride that they were fitted with$"
    for given in (plane.state_dict(), checkpoint(plane)):
        for strict in (True, False):
            with pytest.raises(InputError, match=rf"^the weights do not fit this lattice \({sides}\){way_out}"):
                voxel.load_state_dict(given, strict=strict)
    taps = r"\(theirs: cross, half-widths \(1, 1, 1\), stride \(2, 2, 2\); here: voxel, stride \(2, 2, 2\)\)"
    with pytest.raises(InputError, match=taps + way_out):
        voxel.load_state_dict(checkpoint(cross))
    coarse, fine = network(BlindSet("none"), 2), network(BlindSet("none"), 1)
    with pytest.raises(InputError, match=r"nothing, stride \(2, 2, 2\); here: nothing, stride \(1, 1, 1\)"):
        fine.load_state_dict(checkpoint(coarse))
    with pytest.raises(InputError, match=r"^c\.pt: the weights do not fit this lattice"):
        load_weights(voxel, plane.state_dict(), "c.pt")


def test_weights_of_the_same_lattice_are_taken():
    """A cross of half-width 0 is a voxel, whatever it is called; weights alone name no taps."""
    voxel = network(BlindSet("voxel"))
    for other in (network(BlindSet("voxel", axis="x")), network(BlindSet("cross"))):
        voxel.load_state_dict(checkpoint(other))
        assert torch.equal(voxel.stem.weight, other.stem.weight)
        voxel.load_state_dict({"model": other.state_dict(), "lattice": None})
    assert not any("mask" in name for name in voxel.state_dict())
