"""Read, write, read: data and header survive."""

from __future__ import annotations

import bz2
import gzip
import itertools
import os
import resource
import time
from pathlib import Path
from typing import Any

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, get_track_meta, set_track_meta
from monai.transforms import LoadImage, LoadImaged, Orientation, SaveImage, SaveImaged, Spacing, SpatialCrop
from mrcfile.dtypes import HEADER_DTYPE
from phantoms import REAL_TOMOGRAM, is_valid_mrc, small_tomogram, write_mrc
from sizes import FULL, suite_start

from cryoshuffle.commands.cli import main
from cryoshuffle.errors import FileError, InputError, UserError, plainly
from cryoshuffle.files import scratch
from cryoshuffle.files import writing as outputs
from cryoshuffle.files.formats import (
    TomogramReader,
    image_writer,
    is_ours,
    load_tomogram,
    register_formats,
    save_tomogram,
    tomogram_shape,
)
from cryoshuffle.files.masks import load_mask
from cryoshuffle.files.mrc import MrcReader, MrcWriter, open_mrc, voxel_size_zyx

MADE_NEW = {"mode", "dmin", "dmax", "dmean", "rms", "machst", "nlabl", "label"}
DTYPES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def round_trip(source: Path, result: Path, **options: object) -> None:
    reader, writer = MrcReader(), MrcWriter(**options)
    data, meta = reader.get_data(reader.read(str(source)))
    writer.set_data_array(data, channel_dim=None)
    writer.set_metadata(meta)
    writer.write(result)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(sorted(DTYPES)),
    order=st.sampled_from("<>"),
    axes=st.sampled_from(list(itertools.permutations((1, 2, 3)))),
    start=st.tuples(*[st.integers(-50, 50)] * 3),
    origin=st.tuples(*[st.integers(-5000, 5000)] * 3),
    size=st.tuples(*[st.floats(0.5, 30, width=32)] * 3),
    labels=st.integers(0, 10),
    extended=st.binary(min_size=0, max_size=64),
    space_group=st.sampled_from([0, 1]),
)
def test_header_and_data_survive(tmp_path, mode, order, axes, start, origin, size, labels, extended, space_group):
    """Every field that the data do not decide is equal; data too; one label of ours is added; the result validates."""
    source, result = tmp_path / "in.mrc", tmp_path / "out.mrc"
    data = (np.random.default_rng(0).integers(0, 100, (3, 4, 5))).astype(np.dtype(DTYPES[mode]).newbyteorder(order))
    with mrcfile.new(source, overwrite=True) as mrc:
        mrc.set_data(data)
        mrc.set_volume()
        if extended:
            mrc.set_extended_header(np.frombuffer(extended, dtype="V1"))
            mrc.header.exttyp = b"SERI"
        mrc.voxel_size = size
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = axes
        mrc.header.nxstart, mrc.header.nystart, mrc.header.nzstart = start
        mrc.header.origin.x, mrc.header.origin.y, mrc.header.origin.z = origin
        mrc.header.ispg = space_group
        mrc.header.nlabl = labels
        for i in range(10):
            mrc.header.label[i] = f"label {i}".encode() if i < labels else b""
    round_trip(source, result, is_result=True)
    assert is_valid_mrc(result)
    with mrcfile.open(source) as before, mrcfile.open(result) as after:
        assert np.array_equal(before.data.astype(np.float32), after.data)
        for name in HEADER_DTYPE.names:
            if name not in MADE_NEW:
                assert before.header[name].tolist() == after.header[name].tolist(), name
        assert before.extended_header.tobytes() == after.extended_header.tobytes()
        kept = min(labels, 9)
        assert after.get_labels()[:kept] == before.get_labels()[:kept]
        assert after.get_labels()[kept].startswith("cryoshuffle ")
        assert int(after.header.mode) == 2
        assert np.isclose(after.header.dmean, after.data.mean())


def test_a_writer_that_copies_nothing_fails_the_law(tmp_path):
    """Negative control: voxels alone, as mrcfile writes them by default, lose voxel size, origin, start and labels."""
    source, result = tmp_path / "in.mrc", tmp_path / "out.mrc"
    with mrcfile.new(source) as mrc:
        mrc.set_data(np.zeros((3, 4, 5), np.float32))
        mrc.voxel_size = 7.0
        mrc.header.nxstart, mrc.header.origin.x = 5, 50.0
    mrcfile.write(result, mrcfile.read(source))
    with mrcfile.open(source) as before, mrcfile.open(result) as after:
        lost = [n for n in HEADER_DTYPE.names if before.header[n].tolist() != after.header[n].tolist()]
    assert {"cella", "origin", "nxstart"} <= set(lost)


@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_in_memory_the_axes_are_z_y_x(tmp_path, axes):
    """Whatever order a file declares, index (z, y, x) in memory is the voxel with those coordinates."""
    volume = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    # Stored axis i (sections, rows, columns) runs along axis number `axes` reversed: 1 = x, 2 = y, 3 = z.
    stored = volume.transpose([3 - a for a in axes[::-1]])
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(np.ascontiguousarray(stored))
        mrc.voxel_size = 1.0
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = axes
    data, meta = MrcReader().get_data(MrcReader().read(tmp_path / "in.mrc"))
    assert np.array_equal(data, volume)
    assert list(meta["spatial_shape"]) == [2, 3, 4]
    assert tomogram_shape(tmp_path / "in.mrc") == (2, 3, 4)


@pytest.mark.parametrize("suffix", [".mrc", ".rec", ".map", ".st", ".mrc.gz", ".rec.bz2"])
def test_plain_monai_loads_and_saves_every_suffix(tmp_path, suffix):
    """Once the module is imported, LoadImaged and SaveImaged know MRC by the name of the file."""
    plain = write_mrc(tmp_path / "plain.mrc", np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32), 7.5)
    packed = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(suffix).suffix)
    source = tmp_path / f"source{suffix}"
    source.write_bytes(packed(plain.read_bytes()) if packed else plain.read_bytes())
    image = LoadImaged("image", ensure_channel_first=True)({"image": str(source)})
    assert image["image"].shape == (1, 3, 4, 5)
    saver = SaveImaged(
        "image", output_dir=tmp_path, output_ext=suffix, output_postfix="out", resample=False, separate_folder=False,
        print_log=False,
    )  # fmt: skip
    saver(image)
    with mrcfile.open(next(p for p in tmp_path.iterdir() if "out" in p.name)) as mrc:
        assert np.array_equal(mrc.data, image["image"][0])
        assert np.isclose(mrc.voxel_size.x, 7.5)


def test_the_affine_says_angstrom_and_axis_codes(tmp_path):
    """Index (z, y, x) goes to (x, y, z) in Å, origin included."""
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(np.zeros((2, 3, 4), np.float32))
        mrc.voxel_size = (1.0, 2.0, 3.0)
        mrc.header.origin.x = 100.0
    affine = LoadImage(ensure_channel_first=True)(tmp_path / "in.mrc").affine.numpy()
    assert (affine @ [1, 1, 1, 1]).tolist() == [101.0, 2.0, 3.0, 1.0]
    assert nibabel.aff2axcodes(affine) == ("S", "A", "R")


def test_a_nifti_becomes_mrc_with_its_axes_in_place(tmp_path):
    """An x, y, z NIfTI is turned to (Z, Y, X); voxel size and origin follow."""
    volume = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    affine = np.diag([1.5, 2.5, 3.5, 1.0])
    affine[:3, 3] = 10, 20, 30
    nibabel.save(nibabel.Nifti1Image(volume, affine), tmp_path / "in.nii.gz")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "in.nii.gz")
    out = tmp_path / "out.mrc"
    save_tomogram(image, out)
    with mrcfile.open(out) as mrc:
        assert np.array_equal(mrc.data, volume.transpose(2, 1, 0))
        assert voxel_size_zyx(mrc.header) == (3.5, 2.5, 1.5)
        assert mrc.header.origin.tolist() == (10.0, 20.0, 30.0)


@pytest.mark.parametrize("suffix", [".mrc", ".zarr", ".nii"])
def test_the_identity_tells_the_axes_only_where_a_file_had_it(tmp_path, suffix):
    """A NIfTI of Python's has x, y, z and the identity; a tensor without a file is (Z, Y, X) (control)."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    volume = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "in.nii")
    image = LoadImage(ensure_channel_first=True)(tmp_path / "in.nii")
    save_tomogram(image, tmp_path / f"out{suffix}")
    written = load_tomogram(tmp_path / f"out{suffix}")
    assert np.array_equal(written[0].numpy(), volume.transpose(2, 1, 0))
    assert np.allclose(written.affine, np.eye(4)[[2, 1, 0, 3]].T)
    plain = MetaTensor(image.as_tensor())
    assert np.array_equal(plain.affine, image.affine)
    save_tomogram(plain, tmp_path / f"plain{suffix}")
    axcodes = None if suffix == ".nii" else "SAR"
    assert np.array_equal(load_tomogram(tmp_path / f"plain{suffix}", axcodes=axcodes)[0].numpy(), volume)


def test_written_bytes_are_signed_whatever_the_input_had(tmp_path):
    """IMOD's stamp is kept and its flag set, so that -3 comes back as -3."""
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(np.full((2, 2, 2), 200, np.uint8).view(np.int8))
        mrc.voxel_size = 1.0
        extra = bytearray(84)
        extra[40:44] = (1146047817).to_bytes(4, "little")
        mrc.header.extra2 = bytes(extra)
    reader, writer = MrcReader(), MrcWriter(output_dtype="int8")
    _, meta = reader.get_data(reader.read(tmp_path / "in.mrc"))
    writer.set_data_array(np.full((2, 2, 2), -3.0), channel_dim=None)
    writer.set_metadata(meta)
    writer.write(tmp_path / "out.mrc")
    data, _ = reader.get_data(reader.read(tmp_path / "out.mrc"))
    assert (data == -3).all()


def test_values_beyond_float16_are_refused(tmp_path):
    """Not written as infinity."""
    writer = MrcWriter(output_dtype="float16")
    writer.set_data_array(np.full((2, 2, 2), 1e6), channel_dim=None)
    with pytest.raises(ValueError, match="do not fit into float16"):
        writer.write(tmp_path / "out.mrc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["int8", "int16", "uint16", "float16"])
def test_other_types_are_rounded_and_clipped(tmp_path, name):
    """Whole numbers are rounded, not truncated, and do not wrap around."""
    writer = MrcWriter(output_dtype=name)
    values = np.tile(np.float32([0.6, 1.4, 3.0, 4.0]), (20, 10, 10))
    values[0, 0, :3] = -1e6, -0.6, 1e6
    writer.set_data_array(values, channel_dim=None)
    writer.write(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert mrc.data.dtype == np.dtype(name)
        limits = np.finfo(name) if name == "float16" else np.iinfo(name)
        first = mrc.data[0, 0].tolist()
        assert (first[0], first[2]) == (limits.min, limits.max)
        if name != "float16":
            assert first[1] == max(-1, limits.min)
            assert first[3:6] == [4, 1, 1]


def test_imods_unsigned_bytes_are_read_unsigned(tmp_path):
    """IMOD's stamp without the signed flag: 200 stays 200; without the stamp it is -56, as the standard says."""
    for stamp, expected in ((1146047817, 200.0), (0, -56.0)):
        with mrcfile.new(tmp_path / "in.mrc", overwrite=True) as mrc:
            mrc.set_data(np.full((2, 2, 2), 200, np.uint8).view(np.int8))
            mrc.voxel_size = 1.0
            extra = bytearray(84)
            extra[40:44] = int(stamp).to_bytes(4, "little")
            mrc.header.extra2 = bytes(extra)
        data, _ = MrcReader().get_data(MrcReader().read(tmp_path / "in.mrc"))
        assert (data == expected).all()


def test_several_files_become_channels(tmp_path):
    """As MONAI asks of a reader; different shapes are refused."""
    a = write_mrc(tmp_path / "a.mrc", np.zeros((2, 3, 4), np.float32))
    b = write_mrc(tmp_path / "b.mrc", np.ones((2, 3, 4), np.float32))
    c = write_mrc(tmp_path / "c.mrc", np.ones((2, 3, 5), np.float32))
    assert LoadImage(ensure_channel_first=True)([a, b]).shape == (2, 2, 3, 4)
    reader = MrcReader()
    with pytest.raises(ValueError, match="cannot be stacked"):
        reader.get_data(reader.read([a, c]))


def test_the_real_tomogram_is_read_as_mrcfile_reads_it():
    """Against mrcfile itself."""
    image = LoadImage(reader=MrcReader)(REAL_TOMOGRAM)
    with open_mrc(REAL_TOMOGRAM) as mrc:
        assert np.array_equal(image.numpy(), mrc.data.astype(np.float32))
    assert np.allclose(image.meta["voxel_size_zyx"], 10.52)


def test_registering_twice_changes_nothing():
    """Import order and repeated imports do not matter."""
    from monai.data.image_writer import resolve_writer

    before = tuple(resolve_writer("mrc"))
    register_formats()
    assert next(iter(resolve_writer("mrc"))) is MrcWriter
    assert before[0] is MrcWriter


def _damaged(whole: bytes, random: np.random.Generator) -> bytes:
    """A file with some bytes of its header changed, or an end too many or too few."""
    content = bytearray(whole)
    kind = random.integers(4)
    if kind == 0:
        for place in random.integers(0, 256, random.integers(1, 9)):
            content[place] = random.integers(256)
    elif kind == 1:
        word = 4 * int(random.integers(0, 56))
        value = (0, -1, 1, 65536, 2**20, 2**31 - 1, -(2**31))[random.integers(7)]
        content[word : word + 4] = value.to_bytes(4, "little", signed=True)
    elif kind == 2:
        del content[random.integers(len(content)) :]
    else:
        for place in random.integers(0, 1024, random.integers(1, 5)):
            content[place] = random.integers(256)
        content += bytes(int(random.integers(5000)))
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("suffix", "count"), [(".mrc", 10_000 if FULL else 1000), (".mrc.gz", 1000), (".mrc.bz2", 1000)]
)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path, suffix, count):
    """Neither another error nor a hang, nor memory for what a header merely claims."""
    random = np.random.default_rng(0)
    whole = write_mrc(tmp_path / "whole.mrc", random.standard_normal((6, 7, 8)).astype(np.float32)).read_bytes()
    packed = {".gz": lambda c: gzip.compress(c, 1), ".bz2": bz2.compress}.get(Path(suffix).suffix, bytes)
    path, readers = tmp_path / f"damaged{suffix}", (MrcReader(), MrcReader(permissive=True))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused: list[str] = []
    for number in range(count):
        path.write_bytes(packed(_damaged(whole, random)))
        reader = readers[number % 2]
        try:
            volume, _ = reader.get_data(reader.read(path))
        except UserError as error:
            refused.append(str(error))
        else:
            assert volume.nbytes < 10 * len(whole)
    assert all(str(path) in said and "\n" not in said and len(said) < 500 for said in refused)
    assert count / 4 < len(refused) < 3 * count / 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most < 2**18, "KiB"


@pytest.mark.parametrize("suffix", [".mrc.gz", ".mrc.bz2"])
def test_a_large_compressed_file_is_unpacked_to_disk(tmp_path, suffix, monkeypatch):
    """The same voxels, nothing left behind; the room is looked at first; one cut short is refused."""
    monkeypatch.setattr(scratch, "in_memory_bytes", lambda: 1000)
    volume = np.random.default_rng(0).standard_normal((12, 13, 14)).astype(np.float32)
    whole = write_mrc(tmp_path / "whole.mrc", volume).read_bytes()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}[Path(suffix).suffix]
    path, folder = tmp_path / f"in{suffix}", tmp_path / "run"
    path.write_bytes(pack(whole))
    reader = MrcReader(folder=folder)
    found, _ = reader.get_data(reader.read(path))
    assert np.array_equal(found, volume)
    assert list(folder.iterdir()) == []
    path.write_bytes(pack(whole[:-100]))
    with pytest.raises(InputError, match=r"is cut short .*copy it again"):
        reader.read(path)

    def full(number: int, start: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(FileError, match=r"to be unpacked .*make room"):
        reader.read(path)
    assert list(folder.iterdir()) == []


def test_a_file_is_written_section_by_section_with_the_statistics_of_the_whole(tmp_path, monkeypatch):
    """Whatever the sections, of values on a large offset too."""
    volume = (1e5 + np.random.default_rng(0).standard_normal((9, 10, 11))).astype(np.float32)
    monkeypatch.setattr(scratch, "SECTION", 1000)
    writer = MrcWriter()
    writer.set_data_array(volume, channel_dim=None)
    writer.set_metadata(None)
    writer.write(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert np.array_equal(mrc.data, volume)
        exact = volume.astype(np.float64)
        assert float(mrc.header.dmin) == exact.min()
        assert float(mrc.header.dmax) == exact.max()
        assert float(mrc.header.dmean) == pytest.approx(exact.mean(), rel=1e-7)
        assert float(mrc.header.rms) == pytest.approx(exact.std(), rel=1e-5)


def test_a_file_that_is_cut_or_fails_while_it_is_read_is_named(tmp_path, monkeypatch):
    """A memory map of such a file would end the program by a signal."""
    path = write_mrc(tmp_path / "in.mrc", np.zeros((8, 9, 10), np.float32))
    reader = MrcReader()
    files = reader.read(path)
    with path.open("r+b") as file:
        file.truncate(1500)
    with pytest.raises(FileError, match=r"in\.mrc: was cut short while it was read, at section 0"):
        reader.get_data(files)
    write_mrc(path, np.zeros((8, 9, 10), np.float32))
    files = reader.read(path)

    def failing(*args: object, **kwargs: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np, "fromfile", failing)
    with pytest.raises(FileError, match=r"in\.mrc: cannot be read from section 0 on \(Input/output error\)"):
        reader.get_data(files)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_shape_of_a_nifti_is_that_of_the_image_whichever_way_its_axes_run(tmp_path, order):
    """What the header tells is what is loaded; an affine that is no number, one sentence."""
    affine = np.eye(4)
    affine[:3, :3] = np.diag([2.0, -3.0, 4.0])[:, order]
    path = tmp_path / "in.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 12, 16), np.float32), affine), path)
    shape = tomogram_shape(path)
    assert shape == tuple(load_tomogram(path).shape[1:])
    assert sorted(shape) == [8, 12, 16]
    with path.open("r+b") as file:
        file.seek(280)  # srow_x, the first row of the affine
        file.write(np.full(4, np.nan, np.float32).tobytes())
    with pytest.raises(InputError, match="not a valid NIfTI"):
        tomogram_shape(path)


@pytest.fixture
def opened(monkeypatch):
    """Paths that are opened to be read."""
    paths: list[Path] = []
    usual = Path.open

    def watched(self: Path, *args: Any, **kwargs: Any) -> Any:
        paths.append(self)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", watched)
    monkeypatch.setattr(outputs, "_known", {})
    return paths


def rewrite(path: Path) -> None:
    """Another content of the same size, with the times of the one before."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [
    rewrite,
    lambda path: path.write_bytes(b"longer than before"),
    lambda path: path.with_name("new").write_bytes(b"behind") and path.with_name("new").rename(path),
])  # fmt: skip
@pytest.mark.parametrize("folder", [False, True])
def test_a_checksum_is_taken_once_and_anew_of_what_has_changed(tmp_path, monkeypatch, opened, folder, change):
    """However little of it the system shows; a file of a folder is as good as one by itself."""
    monkeypatch.setattr(outputs, "SETTLED_S", -3600.0)
    path = tmp_path / "one" / "a.bin"
    path.parent.mkdir()
    whole = path.parent if folder else path
    path.write_bytes(b"before")
    opened.clear()
    first = outputs.checksum(whole)
    assert [outputs.checksum(whole) for _ in range(3)] == [first] * 3
    assert len(opened) == 1
    time.sleep(0.05)
    change(path)
    opened.clear()
    assert outputs.checksum(whole) != first
    assert len(opened) == 1


def test_a_checksum_of_a_folder_knows_its_names(tmp_path, monkeypatch):
    """A file that is renamed, or one without content that is added, makes it another one."""
    monkeypatch.setattr(outputs, "SETTLED_S", -3600.0)
    (tmp_path / "a").write_bytes(b"content")
    found = [outputs.checksum(tmp_path)]
    (tmp_path / "a").rename(tmp_path / "b")
    found.append(outputs.checksum(tmp_path))
    (tmp_path / "c").touch()
    found.append(outputs.checksum(tmp_path))
    assert len(set(found)) == 3


def test_a_settled_file_is_one_that_was_not_changed_in_the_last_seconds(tmp_path, monkeypatch, opened):
    """Nor one from the future, of a server whose clock is ahead."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"content")
    now = time.time()
    for later, times in ((60.0, 1), (-60.0, 2), (1.0, 2)):
        opened.clear()
        outputs._known.clear()
        monkeypatch.setattr(outputs.time, "time", lambda later=later: now + later)
        assert outputs.checksum(path) == outputs.checksum(path)
        assert len(opened) == times


@pytest.mark.parametrize("content", [b"", b"some words", b"some words " * 1000])
def test_a_file_that_is_none_is_not_called_cut_short(tmp_path, content):
    """Empty or text, it has no stamp of an MRC file; a file with it that ends too early is cut short (control)."""
    (tmp_path / "text.mrc").write_bytes(content)
    with pytest.raises(InputError, match=r"text\.mrc: is (no|not a valid) MRC file .*check what it is"):
        tomogram_shape(tmp_path / "text.mrc")
    with mrcfile.new(tmp_path / "torn.mrc") as mrc:
        mrc.set_data(np.zeros((4, 5, 6), np.float32))
    for length in (600, 1200):
        (tmp_path / "short.mrc").write_bytes((tmp_path / "torn.mrc").read_bytes()[:length])
        with pytest.raises(InputError, match="is cut short"):
            tomogram_shape(tmp_path / "short.mrc")


@pytest.mark.parametrize("suffix", [".mrc", ".mrc.gz", ".mrc.bz2"])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("longer", ["extended header", "sections"])
def test_a_file_that_is_longer_than_its_header_says_is_refused(tmp_path, monkeypatch, suffix, large, longer):
    """An extended header that the header does not name shifts all voxels, a count of sections too low drops some; read
    permissively it is said. The file with a true header is read without a word (control)."""
    if large:
        monkeypatch.setattr(scratch, "in_memory_bytes", lambda: 1000)
    pack = {".gz": gzip.compress, ".bz2": bz2.compress}.get(Path(suffix).suffix, bytes)
    whole = bytearray(write_mrc(tmp_path / "whole.mrc", np.ones((8, 9, 10), np.float32)).read_bytes())
    (tmp_path / f"true{suffix}").write_bytes(pack(bytes(whole)))
    if longer == "sections":
        whole[8:12] = (4).to_bytes(4, "little")
    else:
        whole[1024:1024] = bytes(1024)
    path, folder = tmp_path / f"longer{suffix}", tmp_path / "run"
    path.write_bytes(pack(bytes(whole)))
    with pytest.raises(InputError, match=r"longer\.mrc.*: is longer than its header says .*add --permissive"):
        load_tomogram(path, folder=folder)
    with pytest.warns(UserWarning, match=r"longer\.mrc.*: is longer than its header says"):
        load_tomogram(path, True, folder)
    assert load_tomogram(tmp_path / f"true{suffix}", folder=folder).shape == (1, 8, 9, 10)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize(("change", "size", "origin"), [
    (SpatialCrop(roi_start=(1, 2, 3), roi_end=(7, 8, 9)), 7.5, (122.5, 15.0, 7.5)),
    (Spacing((15.0, 15.0, 15.0)), 15.0, (100.0, 0.0, 0.0)),
    (Orientation("RAS", labels=None), 7.5, (100.0, 0.0, 0.0)),
])  # fmt: skip
def test_what_monai_crops_or_resamples_is_written_with_its_own_grid(tmp_path, change, size, origin, moved):
    """Voxel size and origin are those of the affine, and the start of the cell is no longer that of the input. What
    is only turned keeps all of its header (control)."""
    path = write_mrc(tmp_path / "in.mrc", np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32), 7.5)
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.origin.x, mrc.header.nxstart = 100.0, 5
    image = LoadImage(ensure_channel_first=True)(path)
    changed = change(image) if moved else image
    save_tomogram(changed, tmp_path / "out.mrc")
    turned = Orientation("SAR", labels=None)(changed)
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert np.array_equal(mrc.data, turned[0])
        assert np.allclose(voxel_size_zyx(mrc.header), size if moved else 7.5)
        assert np.allclose(mrc.header.origin.tolist(), origin if moved else (100.0, 0.0, 0.0))
        kept = not moved or isinstance(change, Orientation)
        assert int(mrc.header.nxstart) == (5 if kept else 0)
    assert np.allclose(load_tomogram(tmp_path / "out.mrc").affine, turned.affine)


@pytest.mark.parametrize("suffix", [".mrc", ".zarr", ".nii.gz"])
@pytest.mark.parametrize("of_ours", [False, True])
def test_what_monai_saves_is_no_result_of_ours(tmp_path, suffix, of_ours):
    """A segmentation, of a result of ours too, is none that --overwrite may replace or a batch leaves out; what the
    bundle's own writer writes is (control)."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    image = MetaTensor(torch.rand(1, 4, 5, 6))
    save_tomogram(image, tmp_path / "in.mrc", is_result=of_ours)
    assert is_ours(tmp_path / "in.mrc") == of_ours
    options: dict[str, Any] = {"output_ext": suffix, "separate_folder": False, "print_log": False, "resample": False}
    loaded = LoadImage(ensure_channel_first=True)(tmp_path / "in.mrc")
    SaveImage(tmp_path, "seg", **options)(loaded)
    assert not is_ours(tmp_path / f"in_seg{suffix}")
    writer = image_writer(f"a{suffix}", is_result=True)
    SaveImage(tmp_path, "result", writer=writer, **options)(loaded)
    assert is_ours(tmp_path / f"in_result{suffix}")


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(("dtype", "words"), [
    (np.complex64, "holds complex values"), (np.complex128, "holds complex values"), (RGB, "holds values of type RGB"),
    (np.float64, None), (np.uint8, None),
])  # fmt: skip
def test_a_nifti_of_other_than_real_values_is_refused(tmp_path, dtype, words):
    """As an MRC or Zarr is: its real part would be another volume. Real values are read (control)."""
    path = tmp_path / "in.nii"
    nibabel.Nifti1Image(np.ones((4, 5, 6), dtype), np.eye(4)).to_filename(path)
    if words is None:
        assert load_tomogram(path).shape == (1, 6, 5, 4)
        return
    for refused in (tomogram_shape, load_tomogram, LoadImage(reader=TomogramReader)):
        with pytest.raises(Exception, match=rf"in\.nii: {words}") as error, plainly():
            refused(path)
        assert isinstance(error.value, InputError)


@pytest.mark.parametrize("suffix", [".mrc", ".mrc.gz", ".zarr", ".nii", ".nii.gz"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_result_that_is_no_number_is_not_written(tmp_path, suffix, value):
    """Nothing has the final name then, and what had it keeps it. A volume that is no result may hold such voxels, as
    floating-point numbers only (control)."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    image, path = MetaTensor(torch.rand(1, 8, 9, 10)), tmp_path / f"a{suffix}"
    image[0, 1, 2, :2] = value
    with pytest.raises(InputError, match=rf"a\{suffix}: 2 voxels of the result are NaN or Inf.*not written"):
        save_tomogram(image, path)
    assert list(tmp_path.iterdir()) == []
    save_tomogram(image, path, is_result=False)
    assert int((~np.isfinite(load_tomogram(path).numpy())).sum()) == 2
    if not suffix.startswith(".nii"):
        with pytest.raises(InputError, match="2 voxels"):
            save_tomogram(image, tmp_path / f"b{suffix}", "int16", is_result=False)


@pytest.fixture
def untracked():
    """The host has told MONAI to keep no metadata."""
    set_track_meta(False)
    yield
    set_track_meta(True)


@pytest.mark.parametrize("suffix", [".mrc", ".nii"])
def test_a_host_that_keeps_no_metadata_changes_no_axes(tmp_path, untracked, suffix):
    """Reading and writing need the affine; what the host has asked for is as before behind them."""
    volume = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    affine = np.diag([1.5, 2.5, 3.5, 1.0])
    nibabel.save(nibabel.Nifti1Image(volume.T, affine), tmp_path / "in.nii")
    image = load_tomogram(tmp_path / "in.nii")
    assert isinstance(image, MetaTensor)
    assert np.array_equal(image[0], volume)
    axes = MetaTensor(torch.from_numpy(volume.T.copy())[None], affine=affine)
    save_tomogram(axes, tmp_path / f"out{suffix}")
    assert np.array_equal(load_tomogram(tmp_path / f"out{suffix}")[0], volume)
    assert not get_track_meta()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("mode", "output"), [(2, "float32"), (2, "int8"), (6, "int16")])
def test_a_result_keeps_the_byte_order_that_its_extended_header_is_in(tmp_path, order, mode, output):
    """Nobody but the program that wrote them knows which bytes of an extended header are one number. So the bytes are
    left as they are, IMOD's stamp too, and the stamp of the machine says how to read them."""
    numbers, kind = np.arange(1, 101, dtype=f"{order}i2"), np.dtype(DTYPES[mode]).newbyteorder(order)
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(np.arange(60).reshape(3, 4, 5).astype(kind))
        mrc.set_volume()
        mrc.voxel_size = 7.0
        mrc.set_extended_header(numbers.view("V1"))
        mrc.header.exttyp = b"SERI"
        extra = bytearray(84)
        extra[40:48] = np.array([1146047817, 0], f"{order}i4").tobytes()
        mrc.header.extra2 = bytes(extra)
    round_trip(tmp_path / "in.mrc", tmp_path / "out.mrc", output_dtype=output)
    assert is_valid_mrc(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as after:
        assert after.header["nx"].dtype == np.dtype(f"{order}i4")
        assert np.array_equal(np.frombuffer(after.extended_header.tobytes(), f"{order}i2"), numbers)
        stamp, flags = np.frombuffer(after.header.extra2.tobytes()[40:48], f"{order}i4")
        assert (stamp, flags & 1) == (1146047817, 1)
        assert np.array_equal(after.data, np.arange(60).reshape(3, 4, 5))
        assert after.data.dtype == np.dtype(output).newbyteorder(order)
        assert float(after.header.dmax) == 59
        assert np.isclose(after.voxel_size.x, 7.0)
    assert np.array_equal(load_tomogram(tmp_path / "out.mrc")[0], np.arange(60).reshape(3, 4, 5))


@pytest.mark.parametrize(("cell", "words"), [
    ((100.0, 80.0, 0.0), "is 0 along z"),
    ((-100.0, 80.0, 60.0), "is -10 along x"),
    ((np.nan, -80.0, 60.0), "is -10 along y and no number along x"),
    ((0.0, 0.0, 0.0), "is 0"),
    ((100.0, 80.0, 60.0), None),
])  # fmt: skip
def test_a_voxel_size_that_is_known_in_part_makes_no_squashed_volume(tmp_path, cell, words):
    """1 Å along all axes, in other formats too; the note names axis and value. One that is known is kept (control)."""
    path = write_mrc(tmp_path / "in.mrc", np.ones((6, 8, 10), np.float32))
    with mrcfile.open(path, "r+") as mrc:
        mrc.header.cella = cell
    if words is None:
        image = load_tomogram(path)
    else:
        with pytest.warns(UserWarning, match=rf"in\.mrc: the voxel size {words}, 1 Å is assumed along all axes;"):
            image = load_tomogram(path)
    assert np.allclose(image.affine[[2, 1, 0], [0, 1, 2]], 10.0 if words is None else 1.0)
    save_tomogram(image, tmp_path / "out.nii")
    assert np.allclose(nibabel.load(tmp_path / "out.nii").header.get_zooms(), 10.0 if words is None else 1.0)
    save_tomogram(image, tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert np.allclose(mrc.header.cella.tolist(), cell, equal_nan=True)


@pytest.mark.parametrize("suffix", [".mrc", ".mrc.gz", ".zarr", ".nii", ".nii.gz", ".NII.GZ"])
@pytest.mark.parametrize("letter", ["x", "層"])
def test_a_name_that_the_system_takes_is_written(tmp_path, suffix, letter):
    """What is written until it is whole has a longer name of its own, which has to fit as well."""
    if suffix == ".zarr":
        pytest.importorskip("zarr")
    count = (255 - len(suffix)) // len(letter.encode())
    path = tmp_path / (count * letter + suffix)
    image = MetaTensor(torch.rand(1, 4, 5, 6))
    for _ in range(2):
        save_tomogram(image, path)
    assert np.allclose(np.sort(load_tomogram(path).numpy().ravel()), np.sort(image.numpy().ravel()))
    assert list(tmp_path.iterdir()) == [path]
    neighbour = path.with_name(count * letter)
    assert outputs.partial_path(path) != outputs.partial_path(neighbour)


def test_a_name_that_begins_with_a_tilde_is_that_of_a_file(tmp_path, monkeypatch):
    """MONAI would take it for somebody's home; our checks do not, and nor does a run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    small_tomogram(tmp_path / "~tomo.mrc", (24, 40, 40))
    (tmp_path / "~").mkdir()
    os.link("~tomo.mrc", "~/x.mrc")
    plain = load_tomogram(tmp_path / "~tomo.mrc")
    for name in ("~tomo.mrc", "~/x.mrc"):
        assert torch.equal(load_tomogram(name), plain)
    model = str(suite_start())
    for name in ("~tomo.mrc", "~/x.mrc"):
        assert main(["apply", model, name, "~out.mrc", "--quiet", "--overwrite"]) == 0
    assert (tmp_path / "~out.mrc").exists()
    assert main(["fit", "~/x.mrc", "--checkpoint", "~c.pt", "--quiet", "--no-refine", "--steps", "2"]) == 0


@pytest.mark.filterwarnings("ignore:Data array contains NaN")
def test_a_mask_without_numbers_is_said_to_be_that(tmp_path):
    """One that is 0 everywhere is another mistake (control)."""
    for name, value, words in (("nan", np.nan, "has no voxel that is a number"), ("zero", 0.0, "is 0 everywhere")):
        path = write_mrc(tmp_path / f"{name}.mrc", np.full((6, 8, 10), value, np.float32))
        with pytest.raises(InputError, match=rf"{name}\.mrc: {words}, a mask is not 0 where the specimen is"):
            load_mask(str(path))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_may_have_axes_of_one_behind_its_three(tmp_path, suffix):
    """As a Zarr may have them before: some programs write a time or channel of one. Two are refused (control)."""
    volume = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    nibabel.Nifti1Image(volume, np.eye(4)).to_filename(tmp_path / f"three{suffix}")
    plain = load_tomogram(tmp_path / f"three{suffix}")
    for name, axes in (("four", 1), ("five", 2)):
        path = tmp_path / f"{name}{suffix}"
        nibabel.Nifti1Image(volume.reshape(4, 5, 6, *[1] * axes), np.eye(4)).to_filename(path)
        assert tomogram_shape(path) == (6, 5, 4)
        image = load_tomogram(path)
        assert torch.equal(image.as_tensor(), plain.as_tensor())
        save_tomogram(image, tmp_path / f"out{suffix}")
        assert torch.equal(load_tomogram(tmp_path / f"out{suffix}").as_tensor(), plain.as_tensor())
    nibabel.Nifti1Image(np.stack([volume] * 2, -1), np.eye(4)).to_filename(tmp_path / f"two{suffix}")
    with pytest.raises(InputError, match=r"has 4 dimensions .* a tomogram needs three"):
        load_tomogram(tmp_path / f"two{suffix}")


def test_a_nifti_whose_affine_is_flat_is_refused_in_words(tmp_path):
    """Not in those of numpy."""
    path = tmp_path / "in.nii"
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)).to_filename(path)
    with path.open("r+b") as file:
        file.seek(312)  # srow_z, the third row of the affine
        file.write(bytes(16))
    words = r"in\.nii: is not a valid NIfTI file \(its affine gives the voxels no volume or is no number\), check"
    with pytest.raises(InputError, match=words):
        tomogram_shape(path)
