"""Laws of OME-Zarr: voxels and scale are those of the file, whoever wrote it, and a damaged one is said so."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, LoadImaged, SaveImaged
from phantoms import write_mrc

from cryoshuffle import memory
from cryoshuffle.commands.preflight import check_output
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files import omezarr, scratch
from cryoshuffle.files.formats import (
    TomogramReader,
    check_new_tomogram,
    find_format,
    is_ours,
    load_tomogram,
    save_tomogram,
    split_suffix,
    tomogram_shape,
)
from cryoshuffle.files.masks import load_mask
from cryoshuffle.files.omezarr import VERSIONS, OmeZarrReader, OmeZarrWriter, open_zarr
from cryoshuffle.files.volumes import volume_meta
from cryoshuffle.files.writing import checksum

zarr: Any = pytest.importorskip("zarr")
AXES = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]


def as_the_portal(path: Path, volume: np.ndarray, size: float = 10.0, **more: Any) -> Path:
    """Three levels of a volume with the metadata of the CryoET Data Portal's tomograms."""
    group = zarr.create_group(str(path), zarr_format=2)
    datasets = []
    for level in range(3):
        part = volume[..., :: 2**level, :: 2**level, :: 2**level]
        array = group.create_array(
            str(level), shape=part.shape, dtype=part.dtype, chunks=(*(1,) * (part.ndim - 3), 16, 16, 16),
            chunk_key_encoding={"name": "v2", "separator": "/"}, config={"write_empty_chunks": True},
        )  # fmt: skip
        array[:] = part
        scale = [1.0] * (volume.ndim - 3) + [size * 2**level] * 3
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name} for name in ("t", "c")][: volume.ndim - 3] + AXES
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets, **more}]
    return path


def noise(shape: tuple[int, ...] = (20, 33, 47)) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def save(image: MetaTensor, path: Path, dtype: str = "float32", version: str = "0.4") -> Path:
    save_tomogram(image, path, dtype, ome_zarr=version)
    return path


def an_image(volume: np.ndarray, size: Any = (10.0, 10.0, 10.0), origin: Any = (0.0, 0.0, 0.0)) -> MetaTensor:
    return MetaTensor(torch.from_numpy(volume)[None], meta=volume_meta(volume.shape, size, origin))


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)], ids=["zyx", "czyx", "tczyx"])
def test_tomograms_of_the_portal_are_read_with_their_scale(tmp_path, lead):
    """The first level by the name of the folder, others by theirs; time and channel of one may come before."""
    volume = noise((*lead, 20, 33, 47))
    path = as_the_portal(tmp_path / "a.zarr", volume, 7.84)
    assert tomogram_shape(path) == (20, 33, 47)
    image = load_tomogram(path)
    assert np.array_equal(image[0].numpy(), volume.reshape(20, 33, 47))
    assert image.meta["voxel_size_zyx"] == [7.84] * 3
    coarse = load_tomogram(path / "1")
    assert np.array_equal(coarse[0].numpy(), volume.reshape(20, 33, 47)[::2, ::2, ::2])
    assert coarse.meta["voxel_size_zyx"] == [2 * 7.84] * 3


def test_the_newer_format_other_units_and_a_common_scale_are_understood(tmp_path):
    """NGFF 0.5 keeps its metadata elsewhere; nanometres become Å; a scale of all levels comes on top of theirs."""
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=3)
    group.create_array("s0", data=noise(), chunks=(16, 16, 16))
    moves = [{"type": "scale", "scale": [1.0, 2.0, 3.0]}, {"type": "translation", "translation": [4.0, 0.0, 0.0]}]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [
            {
                "axes": [{**axis, "unit": "nanometer"} for axis in AXES],
                "datasets": [{"path": "s0", "coordinateTransformations": moves}],
                "coordinateTransformations": [{"type": "scale", "scale": [0.5, 0.5, 0.5]}],
            }
        ],
    }
    volume = open_zarr(tmp_path / "a.zarr")
    assert volume.voxel_size_zyx == (5.0, 10.0, 15.0)
    assert volume.origin_zyx == (20.0, 0.0, 0.0)
    assert np.array_equal(load_tomogram(tmp_path / "a.zarr")[0].numpy(), noise())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "int16", "uint16"])
def test_what_is_written_is_read_again(tmp_path, dtype, version):
    """Odd sizes, anisotropic voxels and an origin; whole numbers are rounded and clipped."""
    volume = 20 * noise((7, 130, 9)) + 110 * (dtype == "uint16")
    image = an_image(volume, (5.0, 4.0, 3.0), (10.0, -20.0, 30.0))
    path = save(image, tmp_path / "out.ome.zarr", dtype, version)
    again = load_tomogram(path)
    kind = np.dtype(dtype)
    expected = volume.astype(kind) if kind.kind == "f" else np.clip(np.rint(volume), *_limits(kind))
    assert open_zarr(path).array.dtype == kind
    assert np.array_equal(again[0].numpy(), expected.astype(np.float32))
    assert np.allclose(again.affine, image.affine)
    assert again.meta["voxel_size_zyx"] == [5.0, 4.0, 3.0]
    older = version == "0.4"
    said = json.loads((path / ".zattrs").read_text()) if older else stored(path)["attributes"]
    assert (said["multiscales"][0] if older else said["ome"])["version"] == version
    assert said["cryoshuffle"]["what"].startswith("denoised")
    assert is_ours(path)
    check_new_tomogram(path, overwrite=True)


def stored(path: Path) -> dict[str, Any]:
    return json.loads((path / "zarr.json").read_text())


def test_the_version_is_chosen_and_the_default_is_what_all_readers_know(tmp_path):
    """Zarr 2 where nothing is said, Zarr 3 for 0.5 with the axes named on each array; others are refused early."""
    save_tomogram(an_image(noise()), tmp_path / "plain.zarr")
    assert not list((tmp_path / "plain.zarr").rglob("zarr.json"))
    path = save(an_image(noise()), tmp_path / "new.zarr", version="0.5")
    assert [stored(one)["zarr_format"] for one in (path, path / "0", path / "2")] == [3, 3, 3]
    assert stored(path / "1")["dimension_names"] == ["z", "y", "x"]
    assert not list(path.rglob(".z*"))
    assert np.array_equal(load_tomogram(path / "1")[0], load_tomogram(tmp_path / "plain.zarr" / "1")[0])
    with pytest.raises(InputError, match=r"OME-Zarr 0\.6 is not written: choose one of 0\.4, 0\.5"):
        check_output(str(tmp_path / "b.zarr"), str(path), ome_zarr="0.6")
    write_mrc(tmp_path / "in.mrc", noise())
    check_output(str(tmp_path / "b.mrc"), str(tmp_path / "in.mrc"), ome_zarr="0.5")
    for name in ("residual", "error"):
        with pytest.raises(InputError, match=r"OME-Zarr 0\.6 is not written"):
            check_output(
                str(tmp_path / "b.mrc"), str(tmp_path / "in.mrc"), ome_zarr="0.6", **{name: str(tmp_path / "r.zarr")}
            )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(20, 33, 47), (7, 130, 9), (3, 5, 4)])
def test_an_independent_validator_finds_the_result_valid(tmp_path, version, shape):
    """Metadata and arrays against the specification of their version; with a level missing they are not (control)."""
    yaozarrs = pytest.importorskip("yaozarrs")
    path = save(an_image(noise(shape), (5.0, 4.0, 3.0), (10.0, -20.0, 30.0)), tmp_path / "a.zarr", version=version)
    said = yaozarrs.validate_zarr_store(str(path)).ome_metadata()
    assert f".v{version.replace('.', '')}." in type(said).__module__
    shutil.rmtree(path / "0")
    with pytest.raises(ValueError, match="0"):
        yaozarrs.validate_zarr_store(str(path))


def test_a_cut_chunk_of_the_newer_version_is_noticed(tmp_path):
    """As for the older one; the whole volume opens (control)."""
    path = save(an_image(noise()), tmp_path / "a.zarr", version="0.5")
    open_zarr(path)
    chunk = next(one for one in (path / "0" / "c").rglob("*") if one.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-5])
    with pytest.raises(InputError, match="is cut short, copy it again"):
        open_zarr(path)


def _limits(kind: np.dtype) -> tuple[int, int]:
    return np.iinfo(kind).min, np.iinfo(kind).max


def test_coarser_levels_are_means_in_their_place(tmp_path):
    """Each half as large, its voxels the means of eight; a ramp has the same values at the same places."""
    z, y, x = np.indices((16, 20, 24), dtype=np.float32)
    path = save(an_image(3 * z + 2 * y + x), tmp_path / "out.zarr")
    for level in ("0", "1", "2"):
        image = load_tomogram(path / level)
        index = torch.stack(torch.meshgrid(*(torch.arange(n) for n in image.shape[1:]), indexing="ij"))
        place = image.affine[:3, :3] @ index.reshape(3, -1).double() + image.affine[:3, 3:]
        expected = (3 * place[2] + 2 * place[1] + place[0]) / 10
        assert torch.allclose(image.as_tensor().flatten().double(), expected, atol=1e-4), level


def test_a_volume_on_disk_is_that_in_memory_and_the_middle_its_middle(tmp_path):
    """Chunk by chunk, whatever of them is taken; the writer too."""
    volume = noise((40, 50, 60))
    path = as_the_portal(tmp_path / "a.zarr", volume)
    boxes = list(open_zarr(path).blocks())
    counted = np.zeros(volume.shape, int)
    for box in boxes:
        counted[box] += 1
    assert (counted == 1).all()
    memory.limit_memory(1e-6)
    data, _ = OmeZarrReader(folder=tmp_path / "run").get_data(open_zarr(path))
    assert scratch.on_disk(torch.from_numpy(data))
    assert np.array_equal(data, volume)
    middle, _ = OmeZarrReader(largest=31).get_data(open_zarr(path))
    assert np.array_equal(middle, volume[4:35, 9:40, 14:45])
    image = MetaTensor(torch.from_numpy(data)[None], meta=volume_meta(data.shape, (10.0,) * 3, (0.0,) * 3))
    assert np.array_equal(load_tomogram(save(image, tmp_path / "b.zarr"))[0].numpy(), volume)


def test_small_chunks_are_read_many_at_a_time(tmp_path, monkeypatch):
    """Blocks are whole chunks of about a section's size, and cover any part once."""
    path = as_the_portal(tmp_path / "a.zarr", noise((40, 50, 60)))
    monkeypatch.setattr(scratch, "SECTION", 4 * 16 * 64 * 64)
    part = (slice(3, 39), slice(1, 50), slice(17, 18))
    counted = np.zeros((40, 50, 60), int)
    for box in open_zarr(path).blocks(part):
        counted[box] += 1
    assert (counted[part] == 1).all()
    assert counted.sum() == counted[part].sum()
    assert len(list(open_zarr(path).blocks())) == 3


def test_monai_knows_the_format_once_the_module_is_imported(tmp_path):
    """LoadImaged and SaveImaged by name; several become channels; MRC goes through and comes back."""
    write_mrc(tmp_path / "in.mrc", noise())
    image = LoadImaged("image", ensure_channel_first=True)({"image": str(tmp_path / "in.mrc")})
    SaveImaged("image", output_dir=tmp_path / "out", output_ext=".zarr", output_postfix="", separate_folder=False,
               resample=False, print_log=False)(image)  # fmt: skip
    again = LoadImage(ensure_channel_first=True)(tmp_path / "out" / "in.zarr")
    assert torch.equal(again.as_tensor(), image["image"].as_tensor())
    assert OmeZarrReader().verify_suffix(tmp_path / "out" / "in.zarr")
    two = LoadImage(OmeZarrReader(), ensure_channel_first=True)([tmp_path / "out" / "in.zarr"] * 2)
    assert two.shape == (2, 20, 33, 47)
    other = as_the_portal(tmp_path / "other.zarr", noise((20, 20, 20)))
    with pytest.raises(InputError, match="cannot be stacked"):
        OmeZarrReader().get_data(OmeZarrReader().read([other, tmp_path / "out" / "in.zarr"]))
    reader = TomogramReader()
    assert all(reader.verify_suffix(name) for name in ("a.mrc", "a.zarr", "a.zarr/0", "a.nii.gz"))
    assert not reader.verify_suffix("a.png")


def test_other_things_are_refused_in_a_sentence(tmp_path, monkeypatch):
    """The sentence names the folder and the way out."""

    def refused(path: Path, words: str, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind, match=words) as caught:
            open_zarr(path)
        assert str(path) in str(caught.value) or words.startswith("the axes")
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.zarr", "there is no such folder", FileError)
    (tmp_path / "empty.zarr").mkdir()
    refused(tmp_path / "empty.zarr", "not a valid OME-Zarr")
    zarr.create_group(str(tmp_path / "group.zarr"), zarr_format=2)
    refused(tmp_path / "group.zarr", "name the array inside it")
    refused(as_the_portal(tmp_path / "two.zarr", noise((2, 20, 20, 20))), "one volume")
    refused(as_the_portal(tmp_path / "flat.zarr", noise((1, 20, 20))), "one volume of three dimensions")
    refused(as_the_portal(tmp_path / "complex.zarr", noise().astype(np.complex64)), "real ones")
    refused(as_the_portal(tmp_path / "axes.zarr", noise(), axes=AXES[::-1]), "the axes are")
    for inside in ("../secret", "/etc"):
        outside = as_the_portal(tmp_path / f"{len(inside)}.zarr", noise())
        said = json.loads((outside / ".zattrs").read_text())
        said["multiscales"][0]["datasets"][0]["path"] = inside
        (outside / ".zattrs").write_text(json.dumps(said))
        refused(outside, "outside it")
    monkeypatch.setattr(omezarr, "_SMALL", 100)
    memory.limit_memory(1e-6)
    refused(as_the_portal(tmp_path / "large.zarr", noise()), "allow for more with --memory")
    monkeypatch.setitem(sys.modules, "zarr", None)
    refused(tmp_path / "large.zarr", 'install "zarr>=3"')


def test_missing_and_damaged_chunks_are_noticed(tmp_path):
    """Missing ones are said, as the format allows them; all missing, or a damaged one, is the end."""
    path = as_the_portal(tmp_path / "a.zarr", noise((32, 32, 32)))
    chunks = sorted(one for one in (path / "0").rglob("*") if one.is_file() and not one.name.startswith("."))
    assert len(chunks) == 8
    before = checksum(path)
    kept = chunks[0].read_bytes()
    chunks[0].write_bytes(kept[:-5])
    assert checksum(path) != before
    with pytest.raises(InputError, match="is cut short, copy it again"):
        open_zarr(path)
    chunks[0].write_bytes(kept[:4] + b"\x01\x01\x01" + kept[7:])
    with pytest.raises(FileError, match=r"chunks at z 0 to 32.*copy it again"):
        OmeZarrReader().get_data(open_zarr(path))
    chunks[0].unlink()
    with pytest.warns(UserWarning, match="1 of 8 chunks are missing and read as 0"):
        open_zarr(path)
    for chunk in chunks[1:]:
        chunk.unlink()
    with pytest.raises(InputError, match="all of its 8 chunks are missing, copy it again"):
        open_zarr(path)


def as_others_do(path: Path, volume: np.ndarray, **options: Any) -> Path:
    """An OME-Zarr 0.5 without the chunks that hold nothing, as Zarr writes it by default."""
    group = zarr.create_group(str(path), zarr_format=3)
    group.create_array("0", shape=volume.shape, dtype=volume.dtype, chunks=(8, 8, 8), fill_value=0, **options)[:] = (
        volume
    )
    axes = [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"]
    level = {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [10.0] * 3}]}
    group.attrs.update({"ome": {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [level]}]}})
    return path


def test_missing_shards_are_noticed(tmp_path):
    """A shard holds many chunks, and is one file; with all of them there nothing is said (control)."""
    path = as_others_do(tmp_path / "a.zarr", noise((24, 40, 40)), shards=(16, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_zarr(path)
    shards = sorted(one for one in (path / "0" / "c").rglob("*") if one.is_file())
    assert len(shards) == 18
    for shard in shards[:8]:
        shard.unlink()
    (path / "0" / "c" / "7").mkdir()
    (path / "0" / "c" / "7" / "notes.txt").touch()
    with pytest.warns(UserWarning, match="8 of 18 shards are missing and read as 0"):
        open_zarr(path)


def test_what_holds_nothing_need_not_be_stored(tmp_path):
    """A mask with one chunk that is not 0, and a tomogram padded with zeros: the voxels are those that were written."""
    mask = np.zeros((24, 40, 40), np.uint8)
    mask[8:16, 16:24, 16:24] = 1
    padded = noise((24, 40, 40))
    padded[:, :, 8:] = 0
    for name, volume in (("mask", mask), ("padded", padded)):
        path = as_others_do(tmp_path / f"{name}.zarr", volume)
        with pytest.warns(UserWarning, match="of 75 chunks are missing and read as 0"):
            assert np.array_equal(load_tomogram(path)[0], volume)
    with pytest.warns(UserWarning, match="74 of 75"):
        assert np.array_equal(load_mask(str(tmp_path / "mask.zarr")), mask)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_metadata_ends_in_a_sentence(tmp_path, seed):
    """Bytes of .zarray and .zattrs changed at random, 40 times: it opens, or one sentence says why not."""
    path, random = as_the_portal(tmp_path / "a.zarr", noise((20, 20, 20))), np.random.default_rng(seed)
    files = [path / ".zattrs", path / "0" / ".zarray", path / ".zgroup"]
    whole = [file.read_bytes() for file in files]
    for _ in range(40):
        for file, content in zip(files, whole, strict=True):
            damaged = bytearray(content)
            for place in random.integers(0, len(damaged), 2):
                damaged[place] = random.choice([*b'0123456789-"{}[],x', *random.integers(0, 256, 4)])
            file.write_bytes(
                damaged[: random.integers(len(damaged) // 2, len(damaged))] if random.random() < 0.2 else damaged
            )
        said = ""
        try:
            OmeZarrReader(largest=20).get_data(open_zarr(path))
        except (InputError, FileError, UserWarning) as error:
            said = str(error)
        assert "\n" not in said


def test_no_voxel_size_is_said(tmp_path):
    """1 Å is taken, as for MRC."""
    path = as_the_portal(tmp_path / "a.zarr", noise())
    (path / ".zattrs").write_text("{}")
    with pytest.warns(UserWarning, match="has no voxel size, 1 Å is assumed"):
        image = load_tomogram(path / "0")
    assert image.affine[0, 2] == 1.0


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """A write that fails leaves what was there; one that does not replaces it; foreign folders are not replaced."""
    path = save(an_image(noise()), tmp_path / "out.zarr")
    before = checksum(path)
    original = OmeZarrWriter._write_levels

    def full(self: OmeZarrWriter, *arguments: Any) -> Any:
        original(self, *arguments)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(OmeZarrWriter, "_write_levels", full)
        writer = OmeZarrWriter()
        writer.set_data_array(noise(), None)
        writer.set_metadata({})
        with pytest.raises(FileError, match=r"out\.zarr: cannot be written \(No space left on device\)"):
            writer.write(path)
    assert checksum(path) == before
    rename = os.replace

    def refuse_the_new(source: Path, target: Path) -> None:
        if Path(target) == path and "before" not in Path(source).name:
            raise OSError(5, "Input/output error")
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(omezarr.os, "replace", refuse_the_new)
        writer = OmeZarrWriter()
        writer.set_data_array(2 * noise(), None)
        writer.set_metadata({})
        with pytest.raises(FileError, match="Input/output error"):
            writer.write(path)
    assert checksum(path) == before, "the old result is back under its name"
    save(an_image(2 * noise()), path)
    assert checksum(path) != before
    assert [one.name for one in tmp_path.iterdir()] == ["out.zarr"]
    with pytest.raises(FileError, match="exists already"):
        check_new_tomogram(path)
    check_new_tomogram(path, overwrite=True)
    (tmp_path / "mine.zarr").mkdir()
    with pytest.raises(FileError, match="is a folder, but no OME-Zarr"):
        check_new_tomogram(tmp_path / "mine.zarr", overwrite=True)
    for tomogram in (path, path / "0"):
        with pytest.raises(FileError, match="is the input itself"):
            check_output(str(path), str(tomogram), overwrite=True)
    with pytest.raises(InputError, match="unknown kind of file"):
        check_output(str(path / "0"), str(path))
    assert find_format(f"{path}/").name == "OME-Zarr"
    assert split_suffix(f"{path}/")[1] == ".zarr"


@pytest.mark.parametrize("name", ["labels", "notes.txt"])
def test_what_others_put_into_a_result_is_not_deleted_with_it(tmp_path, name):
    """Before the work, and where it comes up during the work; levels, marks and hidden files go (control)."""
    path = tmp_path / "a.zarr"
    save_tomogram(an_image(noise()), path)
    (path / ".DS_Store").touch()
    check_new_tomogram(path, overwrite=True)
    save_tomogram(an_image(noise()), path)
    assert not (path / ".DS_Store").exists()
    (path / name).mkdir()
    (path / name / "mine").write_text("kept")
    for refused in (lambda: check_new_tomogram(path, overwrite=True), lambda: save_tomogram(an_image(noise()), path)):
        with pytest.raises(FileError, match=rf"a\.zarr: holds {name}, which .* move it elsewhere, or choose another"):
            refused()
    assert (path / name / "mine").read_text() == "kept"
    assert [one.name for one in tmp_path.iterdir()] == ["a.zarr"]
