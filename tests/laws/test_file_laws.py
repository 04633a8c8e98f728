"""Read, write, read: data and header survive."""

from __future__ import annotations

import bz2
import gzip
import itertools
from pathlib import Path

import mrcfile
import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from monai.transforms import LoadImage, LoadImaged, SaveImage, SaveImaged
from mrcfile.dtypes import HEADER_DTYPE
from phantoms import REAL_TOMOGRAM, is_valid_mrc, write_mrc

import cryoshuffle.mrc
from cryoshuffle.mrc import MrcReader, MrcWriter, open_mrc, voxel_size_zyx
from cryoshuffle.outputs import ExactPath, image_suffix, image_writer

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
        for i in range(labels):
            mrc.header.label[i] = f"label {i}".encode()
    round_trip(source, result)
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
    SaveImage(
        writer=image_writer(out), output_ext=image_suffix(out), folder_layout=ExactPath(out), resample=False,
        print_log=False,
    )(image)  # fmt: skip
    with mrcfile.open(out) as mrc:
        assert np.array_equal(mrc.data, volume.transpose(2, 1, 0))
        assert voxel_size_zyx(mrc.header) == (3.5, 2.5, 1.5)
        assert mrc.header.origin.tolist() == (10.0, 20.0, 30.0)


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
    with pytest.raises(ValueError, match="65504"):
        writer.write(tmp_path / "out.mrc")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["int8", "int16", "uint16", "float16"])
def test_other_types_are_rounded_and_clipped(tmp_path, name):
    """Whole numbers are rounded, not truncated, and do not wrap around."""
    writer = MrcWriter(output_dtype=name)
    writer.set_data_array(np.array([[[-1e6, -0.6, 0.4]], [[0.6, 3.0, 1e6]]], np.float32), channel_dim=None)
    if name == "float16":
        writer.data_obj = np.clip(writer.data_obj, -6e4, 6e4)
    writer.write(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        assert mrc.data.dtype == np.dtype(name)
        if name != "float16":
            limits = np.iinfo(name)
            assert mrc.data.ravel().tolist() == [limits.min, max(-1, limits.min), 0, 1, 3, limits.max]


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
    cryoshuffle.mrc.register_mrc()
    assert next(iter(resolve_writer("mrc"))) is MrcWriter
    assert before[0] is MrcWriter
