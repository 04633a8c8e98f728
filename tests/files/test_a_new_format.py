"""A new format of tomograms is a reader, a writer, ``read_header`` and one row: everything else then knows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from phantoms import small_tomogram

from cryoshuffle.commands.cli import main
from cryoshuffle.commands.lists import read_list
from cryoshuffle.commands.preflight import check_inputs, check_output
from cryoshuffle.commands.runs import run_dir
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files import formats
from cryoshuffle.files.volumes import VolumeHeader, VolumeReader, VolumeWriter, affine_of, volume_meta

SIZE, ORIGIN = (10.0, 10.0, 10.0), (0.0, 0.0, 0.0)


def read_header(path: Path, permissive: bool = False) -> VolumeHeader:
    """Shape and a note; NumPy's own header tells the shape."""
    try:
        volume = np.load(path, mmap_mode="r")
    except ValueError as error:
        raise InputError(f"{path}: is no NumPy array ({error}), check the file") from error
    return VolumeHeader(volume.shape, affine_of(SIZE, ORIGIN), ["has no voxel size, 10 Å are taken"])


class NumpyReader(VolumeReader):
    """Reads what ``np.save`` wrote."""

    suffixes = (".npy",)

    def _open(self, path):
        return np.load(path)

    def _meta(self, opened):
        return volume_meta(opened.shape, SIZE, ORIGIN)

    def _volume(self, opened):
        return opened.astype(np.float32)


class NumpyWriter(VolumeWriter):
    """Writes what ``np.load`` reads."""

    def _write(self, partial, path):
        with partial.open("wb") as file:
            np.save(file, self._as_dtype(self.data_obj))


ROW = formats.VolumeFormat(
    "NumPy array", (".npy",), ".npy", NumpyReader, NumpyWriter, read_header, dtypes=("float32", "int16")
)


@pytest.fixture
def numpy_format(monkeypatch):
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, ROW))


@pytest.fixture
def tomogram(tmp_path, numpy_format):
    image = formats.load_tomogram(small_tomogram(tmp_path / "in.mrc", (24, 48, 36)))
    formats.save_tomogram(image, tmp_path / "in.npy", is_result=False)
    return tmp_path / "in.npy"


def test_without_its_row_a_format_is_unknown(tmp_path):
    """Negative control."""
    np.save(tmp_path / "in.npy", np.zeros((4, 5, 6), np.float32))
    with pytest.raises(InputError, match="unknown kind of file"):
        formats.load_tomogram(tmp_path / "in.npy")
    with pytest.raises(InputError, match="unknown kind of file"):
        formats.image_writer(tmp_path / "out.npy")


def test_a_format_of_one_row_is_read_and_written(tmp_path, tomogram):
    """Voxels, shape and scale; by the reader of the configs too."""
    image = formats.load_tomogram(tomogram)
    assert np.array_equal(image[0].numpy(), formats.load_tomogram(tmp_path / "in.mrc")[0].numpy())
    assert formats.tomogram_shape(tomogram) == (24, 48, 36)
    assert image.pixdim.tolist() == [10.0] * 3
    assert formats.TomogramReader().verify_suffix([tomogram, "b.NPY"])
    formats.save_tomogram(image, tmp_path / "again.mrc")
    assert np.array_equal(formats.load_tomogram(tmp_path / "again.mrc")[0].numpy(), image[0].numpy())


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path, tomogram, monkeypatch):
    """The format does nothing for it."""
    before = tomogram.read_bytes()

    def full(self, partial, path):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(NumpyWriter, "_write", full)
    with pytest.raises(FileError, match=r"in\.npy: cannot be written \(No space left on device\), make room"):
        formats.save_tomogram(formats.load_tomogram(tomogram), tomogram)
    assert tomogram.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mrc", "in.npy"]


def test_the_checks_before_a_run_know_it(tmp_path, tomogram, caplog):
    """Its notes are told, its types are the only ones, what exists is not replaced, and folders of runs have names."""
    check_inputs([str(tomogram)], (1, 2, 1))
    assert f"{tomogram}: has no voxel size, 10 Å are taken" in caplog.text
    out = str(tmp_path / "out.npy")
    check_output(out, str(tomogram))
    with pytest.raises(InputError, match="a NumPy array is written as float32, int16, not as int8"):
        check_output(out, str(tomogram), dtype="int8")
    with pytest.raises(FileError, match="is no result of cryoshuffle"):
        check_output(str(tomogram), str(tmp_path / "in.mrc"), overwrite=True)
    (tmp_path / "bad.npy").write_bytes(b"none")
    with pytest.raises(InputError, match=r"bad\.npy: is no NumPy array"):
        check_inputs([str(tmp_path / "bad.npy")], (1, 2, 1))
    with pytest.raises(FileError, match=r"gone\.npy: there is no such file"):
        check_inputs([str(tmp_path / "gone.npy")], (1, 2, 1))
    assert run_dir(None, out) == tmp_path / "out_run"
    (item,) = read_list([str(tomogram)], tmp_path / "results")
    assert Path(item.output).name == "in.npy"


def test_a_missing_package_is_told_before_the_run(tmp_path, tomogram, monkeypatch):
    """Not when the result is to be written, after the fit."""

    def missing(path):
        raise InputError(f"{path}: needs the package none, install it")

    row = formats.VolumeFormat(
        ROW.name, ROW.suffixes, ".npy", NumpyReader, NumpyWriter, read_header, check_extra=missing
    )
    monkeypatch.setattr(formats, "FORMATS", (row,))
    with pytest.raises(InputError, match=r"out\.npy: needs the package none"):
        check_output(str(tmp_path / "out.npy"), str(tomogram))


def test_the_command_denoises_it(tmp_path, tomogram):
    """From the format to the format, with a residual; the same voxels as from MRC to MRC."""
    words = ["--no-refine", "--steps", "3", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y", "--quiet"]
    for kind in ("mrc", "npy"):
        out, residual = tmp_path / kind / f"out.{kind}", tmp_path / kind / f"residual.{kind}"
        out.parent.mkdir()
        assert main(["denoise", str(tmp_path / f"in.{kind}"), str(out), "--residual", str(residual), *words]) == 0
    for name in ("out", "residual"):
        one, other = (formats.load_tomogram(tmp_path / kind / f"{name}.{kind}")[0].numpy() for kind in ("mrc", "npy"))
        assert np.array_equal(one, other)
