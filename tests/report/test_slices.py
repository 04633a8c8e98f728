"""Slices in a page: which, how large, with what scale bar, and that all of them fit."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from phantoms import write_mrc
from PIL import Image

from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.report import slices
from cryoshuffle.report.slices import SliceStack, read_slices


def _picture(address: str) -> np.ndarray:
    kind, content = address.split(",", 1)
    assert kind == "data:image/webp;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


@pytest.fixture
def paths(tmp_path) -> dict[str, str]:
    """A tomogram of ramps with a mark, a result that is half as strong, and errors that grow along x."""
    volume = np.random.default_rng(0).standard_normal((20, 40, 60)).astype(np.float32)
    volume[10, 5, 50] = 9.0
    errors = np.broadcast_to(np.linspace(1, 2, 60, dtype=np.float32), volume.shape).copy()
    names = {"tomogram": volume, "result": 0.5 * volume, "error": errors}
    return {name: str(write_mrc(tmp_path / f"{name}.mrc", one)) for name, one in names.items()}


@pytest.mark.parametrize("on_disk", [False, True])
def test_slices_show_what_the_volumes_hold(paths, tmp_path, monkeypatch, on_disk):
    """The middle XY slice among them, its first row lowest; the residual on the scale of the tomogram; also on disk."""
    if on_disk:
        monkeypatch.setattr(scratch, "in_memory_bytes", lambda: 0)
    shown = read_slices(**paths, folder=tmp_path)
    xy, xz, yz = shown.stacks
    assert [(one.name, one.height, one.width, len(one.slices)) for one in shown.stacks] == [
        ("xy", 40, 60, 15),
        ("xz", 20, 60, 1),
        ("yz", 20, 40, 1),
    ]
    (middle,) = [one for one in xy.slices if one.name == "z = 10"]
    pictures = {name: _picture(address) for name, address in middle.pictures.items()}
    assert {name: one.shape[:2] for name, one in pictures.items()} == dict.fromkeys(pictures, (40, 60))
    grey = pictures["before"][..., 0].astype(int)
    assert grey[40 - 1 - 5, 50] == 255
    # Half of what was taken is as far from the grey middle as half of the tomogram.
    away = pictures["residual"][..., 0].astype(int) - 127
    assert np.corrcoef(grey.ravel() - 127, away.ravel())[0, 1] > 0.99
    assert away.std() == pytest.approx(0.5 * grey.std(), rel=0.05)
    assert pictures["error"].shape == (40, 60, 4)
    assert pictures["error"][0, 0, 3] < pictures["error"][0, -1, 3], "small errors are nearly transparent"
    assert shown.errors == pytest.approx((1, 2), abs=0.02)
    assert shown.deviation == pytest.approx(mrcfile.read(paths["tomogram"]).std(), rel=1e-4)
    assert shown.shrink == 1
    assert set(xz.slices[0].pictures) == set(yz.slices[0].pictures) == {"before", "after", "residual", "error"}


def test_without_errors_there_are_none_and_another_size_is_refused(paths, tmp_path):
    shown = read_slices(paths["tomogram"], paths["result"])
    assert shown.errors is None
    assert all("error" not in one.pictures for stack in shown.stacks for one in stack.slices)
    small = str(write_mrc(tmp_path / "small.mrc", np.zeros((4, 4, 4), np.float32)))
    for given in ((small, None), (paths["result"], small)):
        with pytest.raises(InputError, match=r"small.mrc: is not of the size of"):
            read_slices(paths["tomogram"], *given)


@pytest.mark.parametrize(
    ("span", "unit", "words"), [(288.0, "nm", "50 nm"), (1000.0, "nm", "200 nm"), (144.0, "voxels", "20 voxels")]
)
def test_a_scale_bar_is_a_round_number_and_as_long_as_it_says(span, unit, words):
    """At most a fifth of the width, and more than half of that."""
    text, percent = SliceStack("xy", 10, 10, span, unit, ()).bar
    assert text == words
    assert percent == pytest.approx(100 * float(words.split()[0]) / span)
    assert 8 <= percent <= 20


def test_the_span_is_that_of_the_voxels(paths, tmp_path):
    """60 voxels of the header's size; where the file tells none, as NIfTI does not, voxels."""
    xy, _, yz = read_slices(paths["tomogram"], paths["result"]).stacks
    size = float(mrcfile.open(paths["tomogram"], header_only=True).voxel_size.x)
    assert (xy.span, xy.unit) == (pytest.approx(60 * size / 10), "nm")
    assert yz.span == pytest.approx(40 * size / 10)
    plain = [str(tmp_path / f"{name}.nii") for name in ("tomogram", "result")]
    for path in plain:
        save_tomogram(load_tomogram(paths[Path(path).stem]), path, is_result=False)
    xy = read_slices(*plain).stacks[0]
    assert (xy.span, xy.unit) == (60, "voxels")


def test_large_noisy_slices_fit_into_a_page(tmp_path):
    """1000 x 1000 voxels of white noise, the worst there is: fewer slices, coarser where it has to be, and told so."""
    volume = np.random.default_rng(1).standard_normal((10, 1000, 1000)).astype(np.float32)
    paths = [str(write_mrc(tmp_path / f"{i}.mrc", one)) for i, one in enumerate((volume, 0.3 * volume))]
    shown = read_slices(*paths)
    taken = sum(len(picture) for stack in shown.stacks for one in stack.slices for picture in one.pictures.values())
    assert 1_000_000 < taken < 2_800_000
    assert len(shown.stacks[0].slices) == 9
    assert shown.shrink > 1


def test_a_quality_is_chosen_by_the_bytes_there_are():
    """The finest that fits; with next to no room the coarsest."""
    grey = np.random.default_rng(2).integers(0, 255, (64, 64)).astype(np.uint8)
    assert slices._size_that_fits(grey, grey.size, 10**6) == (1.0, None)
    shrink, quality = slices._size_that_fits(grey, grey.size, 2500)
    assert (shrink, quality) != (1.0, None)
    assert len(slices._webp(grey, shrink, quality)) <= 2500
    assert slices._size_that_fits(grey, grey.size, 1) == slices._SIZES[-1]
