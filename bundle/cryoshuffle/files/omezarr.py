"""OME-Zarr as MONAI images: a reader for one level of a pyramid, and a writer of one.

Tomograms of the CryoET Data Portal come as OME-Zarr: a folder with the volume at several scales, each cut into
compressed chunks. The package ``zarr`` does the storage; it is an extra (``pip install ".[zarr]"`` in a checkout, or
``pip install "zarr>=3"``). Only folders are read, nothing is fetched.

Source:
    OME-NGFF 0.4 and 0.5: Moore et al. 2021, Nat. Methods 18, 1496; https://ngff.openmicroscopy.org.
"""

from __future__ import annotations

import math
import operator
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from monai.utils import MetaKeys

import cryoshuffle
from cryoshuffle.boxes import Box, middle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.volumes import (
    LABEL,
    VolumeHeader,
    VolumeReader,
    VolumeWriter,
    affine_of,
    grid_of,
    is_named,
    volume_meta,
    why_unknown,
)
from cryoshuffle.memory import most_memory_bytes

SUFFIXES = (".ome.zarr", ".zarr")
# Versions that are written; the first is read by every reader of the others.
VERSIONS = ("0.4", "0.5")
# What a folder of an array or a group holds.
MARKS = (".zattrs", "zarr.json", ".zgroup")
# The units of length of NGFF, Å.
_METERS = {
    "yocto": -24, "zepto": -21, "atto": -18, "femto": -15, "pico": -12, "nano": -9, "micro": -6, "milli": -3,
    "centi": -2, "deci": -1, "": 0, "hecto": 2, "kilo": 3, "mega": 6, "giga": 9, "tera": 12, "peta": 15, "exa": 18,
    "zetta": 21, "yotta": 24,
}  # fmt: skip
_ANGSTROM = {
    "angstrom": 1.0,
    **{f"{prefix}meter": 10.0 ** (power + 10) for prefix, power in _METERS.items()},
    "inch": 2.54e8,
    "foot": 3.048e9,
    "yard": 9.144e9,
    "mile": 1.609344e13,
    "parsec": 3.0856775814913673e26,
}
# Levels of a pyramid, each of half the size, and the side of a chunk, voxels.
LEVELS, CHUNK = 3, 128
# Chunks that are read however little memory there is, bytes.
_SMALL = 2**28


@dataclass(frozen=True)
class ZarrVolume:
    """One level of an OME-Zarr, open for reading.

    Attributes:
        path: as it was named.
        array: zarr's.
        shape: of the volume, (Z, Y, X).
        voxel_size_zyx: Å; 0 where it is not known.
        origin_zyx: Å.
    """

    path: Path
    array: Any
    shape: tuple[int, int, int]
    voxel_size_zyx: tuple[float, float, float]
    origin_zyx: tuple[float, float, float]

    def read(self, box: Box) -> np.ndarray:
        """Voxels of a part of the volume.

        Raises:
            FileError: if a chunk cannot be read, or its content is damaged.
        """
        lead = (0,) * (self.array.ndim - 3)
        try:
            return np.asarray(self.array[(*lead, *box)])
        except Exception as error:  # each codec has exceptions of its own
            where = ", ".join(f"{axis} {side.start} to {side.stop}" for axis, side in zip("zyx", box, strict=True))
            raise FileError(f"{self.path}: the chunks at {where} cannot be read ({error}), copy it again") from error

    def blocks(self, part: Box | None = None) -> Iterator[Box]:
        """Boxes of whole chunks that cover a part or all, each of about ``scratch.SECTION`` bytes."""
        inner = part or tuple(slice(0, n) for n in self.shape)
        sides = [int(n) for n in self.array.chunks[-3:]]
        for axis in (2, 1, 0):
            most = -(-self.shape[axis] // sides[axis])
            sides[axis] *= min(most, max(1, scratch.SECTION // (4 * math.prod(sides))))
        starts = [range(one.start // step * step, one.stop, step) for one, step in zip(inner, sides, strict=True)]
        for corner in product(*starts):
            z, y, x = (
                slice(max(a, one.start), min(a + step, one.stop))
                for a, step, one in zip(corner, sides, inner, strict=True)
            )
            yield z, y, x


def open_zarr(path: str | os.PathLike[str], look: bool = True) -> ZarrVolume:
    """Open one level of an OME-Zarr.

    Args:
        path: of the folder, for its first and finest level, or of an array inside it (``x.zarr/1``).
        look: at every chunk, whether it is there and whole; without it what the metadata say is taken.

    Raises:
        FileError: if there is no such folder.
        InputError: if it is no OME-Zarr, holds something other than one real volume, or all of it is missing; or if
            the package zarr is.

    Warns:
        UserWarning: if some of its chunks or shards are missing; the format reads them as one value.
    """
    path = Path(path)
    zarr = import_zarr(path)
    if not path.is_dir():
        raise FileError(f"{path}: there is no such folder, check the path")
    try:
        node, multiscale, name = _find_array(path, zarr)
        size, origin = _scales(multiscale, name, node.ndim)
        missing, chunks = _count_missing(node) if look else (0, 1)
        pieces = "chunks" if node.shards is None else "shards"
        dtype, shape = np.dtype(node.dtype), tuple(int(n) for n in node.shape)
        largest = math.prod(int(n) for n in node.chunks) * dtype.itemsize
    except InputError:
        raise
    except Exception as error:  # zarr and its codecs have many
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: is not a valid OME-Zarr ({reason}), copy it again") from error
    if dtype.kind not in "biuf":
        raise InputError(f"{path}: holds values of type {dtype}, a tomogram has real ones")
    if len(shape) < 3 or min(shape[-3:]) < 2 or math.prod(shape[:-3]) != 1:
        raise InputError(f"{path}: has the shape {shape}, give one volume of three dimensions at a time")
    if missing == chunks:
        raise InputError(f"{path}: all of its {chunks} {pieces} are missing, copy it again")
    if largest > max(_SMALL, most_memory_bytes() // 2):
        raise InputError(
            f"{path}: its chunks take {largest / 2**20:.0f} MiB each, too much to read them one by one; "
            "store it with chunks of 256 voxels, or allow for more with --memory"
        )
    if look:
        _refuse_cut_chunks(path, node)
    if missing:
        # Zarr does not store what holds nothing but that value, and does not say so.
        words = f"{missing} of {chunks} {pieces} are missing and read as {float(node.fill_value or 0):g}"
        warnings.warn(f"{path}: {words}; nothing is wrong if that is what they held", stacklevel=1)
    z, y, x = shape[-3:]
    return ZarrVolume(path, node, (z, y, x), (size[0], size[1], size[2]), (origin[0], origin[1], origin[2]))


def read_header(path: str | os.PathLike[str], permissive: bool = False) -> VolumeHeader:
    """What an OME-Zarr tells of its volume by its metadata; no chunk is looked at.

    Args:
        path: see :func:`open_zarr`.
        permissive: of other formats; not needed here.

    Raises:
        FileError, InputError: see :func:`open_zarr`.
    """
    volume = open_zarr(path, look=False)
    return VolumeHeader(volume.shape, affine_of(volume.voxel_size_zyx, volume.origin_zyx))


def _find_array(path: Path, zarr: Any) -> tuple[Any, Mapping[str, Any], str]:
    """The array that a path names, what is said of its image, and its name there."""
    node = zarr.open(store=str(path), mode="r")
    if not isinstance(node, zarr.Group):
        return node, *_around(path, zarr)
    multiscale = _multiscale(node)
    if not multiscale:
        raise InputError(f"{path}: is a Zarr, but no OME-Zarr image; name the array inside it, {path}/NAME")
    name = str(multiscale["datasets"][0]["path"])
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"{path}: says that its voxels are outside it ({name}), do not use it")
    return node[name], multiscale, name


def _count_missing(array: Any) -> tuple[int, int]:
    """How many of the files that hold the voxels are missing, and how many there should be."""
    sides = array.chunks if array.shards is None else array.shards
    grid, place = [-(-n // side) for n, side in zip(array.shape, sides, strict=True)], _place(array)
    stored = set()
    for file in place.rglob("*"):
        key = re.fullmatch(r"(?:c[./])?(\d+(?:[./]\d+)*)", file.relative_to(place).as_posix())
        numbers = [int(part) for part in re.split(r"[./]", key[1])] if key else []
        if len(numbers) == len(grid) and all(map(operator.lt, numbers, grid)) and file.is_file():
            stored.add(tuple(numbers))
    return math.prod(grid) - len(stored), math.prod(grid)


def _place(array: Any) -> Path:
    """The folder of an array."""
    return Path(array.store.root) / array.path


def _refuse_cut_chunks(path: Path, array: Any) -> None:
    """Blosc reads beyond the end of a chunk that was cut short, where it holds noise that could not be compressed."""
    codecs = [type(codec).__name__ for codec in array.compressors]
    if array.shards is not None or not codecs or not codecs[-1].startswith("Blosc"):
        return
    for chunk in _place(array).rglob("*"):
        if chunk.is_file() and not chunk.name.startswith(".") and chunk.name != "zarr.json":
            with chunk.open("rb") as file:
                header = file.read(16)
            if len(header) < 16 or int.from_bytes(header[12:], "little") > chunk.stat().st_size:
                raise InputError(f"{path}: its chunk {chunk} is cut short, copy it again")


def refuse_foreign(path: Path) -> None:
    """Refuse to replace a folder that holds more than levels and marks, labels of others for instance.

    Args:
        path: of the folder; nothing happens where there is none.

    Raises:
        FileError: naming the first of what it holds.
    """
    names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    for name in names:
        if not (name.isdigit() or name in MARKS or name.startswith(".")):
            raise FileError(
                f"{path}: holds {name}, which is no part of a result and would be deleted with it: move it elsewhere, "
                "or choose another name"
            )


def import_zarr(path: str | os.PathLike[str]) -> Any:
    """The package that reads and writes the format.

    Args:
        path: of the volume, for the message.

    Raises:
        InputError: if it is missing or too old.
    """
    try:
        import zarr
    except ImportError as error:
        raise InputError(
            f'{path}: OME-Zarr needs the package zarr and Python 3.11, install it: python -m pip install "zarr>=3"'
        ) from error
    if not hasattr(zarr, "create_group"):
        raise InputError(f"{path}: zarr {zarr.__version__} is too old, install version 3")
    return zarr


def _multiscale(group: Any) -> Mapping[str, Any]:
    """What a group says of its image, in NGFF 0.5 or an earlier one; empty if it has none."""
    attributes = dict(group.attrs)
    multiscales = attributes.get("ome", attributes).get("multiscales") or [{}]
    first: Mapping[str, Any] = multiscales[0]
    return first


def _around(path: Path, zarr: Any) -> tuple[Mapping[str, Any], str]:
    """What the folder around an array says of it, and its name there."""
    for folder in path.parents:
        if not is_named(folder, SUFFIXES, folder=True):
            break
        try:
            multiscale = _multiscale(zarr.open_group(store=str(folder), mode="r"))
        except (FileNotFoundError, ValueError):
            continue
        if multiscale:
            return multiscale, path.relative_to(folder).as_posix()
    return {}, path.name


def _scales(multiscale: Mapping[str, Any], name: str, dimensions: int) -> tuple[list[float], list[float]]:
    """Voxel size and origin of a level along (Z, Y, X), Å; 0 where nothing is said."""
    size, origin = [0.0] * 3, [0.0] * 3
    axes = multiscale.get("axes") or []
    given = [axis.get("unit") if isinstance(axis, dict) else None for axis in axes]
    units = [_ANGSTROM.get(str(unit), 1.0) for unit in given]
    unknown = sorted({"none" if unit is None else f"'{unit}'" for unit in given[-3:] if unit not in _ANGSTROM})
    if unknown and axes:
        words = f"the unit of length is {', '.join(unknown)}, Å is assumed"
        warnings.warn(words, stacklevel=1)
    names = [axis.get("name") if isinstance(axis, dict) else axis for axis in axes]
    if names and [str(one).lower() for one in names[-3:]] != ["z", "y", "x"]:
        raise InputError(f"the axes are {names}, expected z, y, x last")
    units = ([1.0] * dimensions + units)[-3:]
    of_level = [one for one in multiscale.get("datasets", ()) if one["path"] == name]
    for level in (*of_level, multiscale):
        for one in level.get("coordinateTransformations") or ():
            if one.get("type") == "scale":
                factors = [float(value) for value in one["scale"][-3:]]
                size = [f * (s if s else 1.0) for f, s in zip(factors, size, strict=True)]
                origin = [f * o for f, o in zip(factors, origin, strict=True)]
            elif one.get("type") == "translation":
                origin = [o + float(value) for o, value in zip(origin, one["translation"][-3:], strict=True)]
    return [s * u for s, u in zip(size, units, strict=True)], [o * u for o, u in zip(origin, units, strict=True)]


class OmeZarrReader(VolumeReader):
    """Reads one level of an OME-Zarr, versions 0.4 and 0.5.

    Args:
        permissive: of other formats; not needed here.
        folder: where volumes too large for memory are kept while the program runs (:mod:`cryoshuffle.files.scratch`);
            None for memory, however large they are.
        largest: voxels to take along each axis, from the middle; None for all.

    Returns:
        ``get_data`` gives the volume ``(Z, Y, X)`` and a dictionary with ``affine`` (Å, axis codes SAR) and
        ``voxel_size_zyx`` (Å).

    Raises:
        FileError, InputError: see :func:`open_zarr`.

    Warns:
        UserWarning: if the voxel size is not given, or not above 0 along an axis; the affine then takes 1 Å along all.
    """

    suffixes, is_folder = SUFFIXES, True

    def _open(self, path: str | os.PathLike[str]) -> ZarrVolume:
        volume = open_zarr(path)
        if why := why_unknown(volume.voxel_size_zyx):
            words = "has no voxel size" if why == "0" else f"the voxel size is {why}"
            warnings.warn(f"{volume.path}: {words}, 1 Å is assumed along all axes", stacklevel=1)
        return volume

    def _meta(self, volume: ZarrVolume) -> dict[str, Any]:
        return volume_meta(volume.shape, volume.voxel_size_zyx, volume.origin_zyx)

    def _volume(self, volume: ZarrVolume) -> np.ndarray:
        part = middle(volume.shape, self.largest)
        array = scratch.empty_volume([side.stop - side.start for side in part], self.folder)
        for box in volume.blocks(part):
            within = (slice(b.start - a.start, b.stop - a.start) for b, a in zip(box, part, strict=True))
            array[tuple(within)] = volume.read(box)
            scratch.release()
        return array


class OmeZarrWriter(VolumeWriter):
    """Writes one volume as OME-Zarr with a pyramid of means.

    The folder appears under its name only when it is complete. The voxel size is that of the affine, Å.

    Args:
        output_dtype: ``float32``, ``float16``, ``int8``, ``int16`` or ``uint16``; whole numbers are rounded and
            clipped.
        is_result: see :class:`cryoshuffle.files.volumes.VolumeWriter`.
        ome_zarr: version; 0.4 is stored as Zarr 2, as the CryoET Data Portal has it, and 0.5 as Zarr 3.
        options: see :class:`cryoshuffle.files.volumes.VolumeWriter`.

    Raises:
        FileError: if the folder cannot be written; nothing is left behind then.
        InputError: see :class:`cryoshuffle.files.volumes.VolumeWriter`; or if the package zarr is missing, or the
            version is none that is written.
    """

    def __init__(
        self, output_dtype: Any = np.float32, is_result: bool = False, ome_zarr: str = VERSIONS[0], **options: Any
    ) -> None:
        super().__init__(output_dtype, is_result, **options)
        # The command line of MONAI makes a number of it.
        self.version = str(ome_zarr)
        if self.version not in VERSIONS:
            raise InputError(f"OME-Zarr {self.version} is not written: choose one of {', '.join(VERSIONS)}")

    def _write(self, partial: Path, path: Path) -> None:
        refuse_foreign(path)
        older = self.version == "0.4"
        group = import_zarr(path).create_group(str(partial), zarr_format=2 if older else 3)
        multiscales = [self._describe(path.name, self._write_levels(group, _storage(older)))]
        if older:
            attributes: dict[str, Any] = {"multiscales": [{"version": self.version, **multiscales[0]}]}
        else:
            attributes = {"ome": {"version": self.version, "multiscales": multiscales}}
        if self.is_result:
            attributes[LABEL] = {"version": cryoshuffle.__version__, "what": self.content}
        group.attrs.update(attributes)
        # Once more: it may have come while this was written.
        refuse_foreign(path)

    def _write_levels(self, group: Any, storage: Mapping[str, Any]) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = [tuple(self.data_obj.shape)]
        while len(shapes) < LEVELS and min(shapes[-1]) >= 4:
            shapes.append(tuple(-(-n // 2) for n in shapes[-1]))
        for level, shape in enumerate(shapes):
            if level == 1:
                # Before means of the voxels are counted too.
                self._refuse_lost()
            array = group.create_array(
                str(level),
                shape=shape,
                chunks=tuple(min(n, CHUNK) for n in shape),
                dtype=self.output_dtype,
                fill_value=0,
                config={"write_empty_chunks": True},
                **storage,
            )
            for corner in product(*(range(0, n, CHUNK) for n in shape)):
                box = tuple(slice(a, min(a + CHUNK, n)) for a, n in zip(corner, shape, strict=True))
                if level == 0:
                    array[box] = self._as_dtype(np.asarray(self.data_obj[box]))
                else:
                    # Of what was written before: the finer level need not fit into memory.
                    finer = tuple(slice(2 * side.start, 2 * side.stop) for side in box)
                    array[box] = self._as_dtype(_halved(np.asarray(group[str(level - 1)][finer], dtype=np.float32)))
                scratch.release()
        return shapes

    def _describe(self, name: str, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        affine = self.meta.get(MetaKeys.AFFINE)
        size, origin = grid_of(np.eye(4)[[2, 1, 0, 3]] if affine is None else np.asarray(affine, dtype=float))
        levels = []
        for level in range(len(shapes)):
            # A voxel of a coarser level is the mean of finer ones, so its middle lies between theirs.
            shift = origin + size * (2**level - 1) / 2
            scale = {"type": "scale", "scale": [float(s) * 2**level for s in size]}
            moved = [{"type": "translation", "translation": [float(s) for s in shift]}] if shift.any() else []
            levels.append({"path": str(level), "coordinateTransformations": [scale, *moved]})
        return {
            "name": name,
            "axes": [{"name": axis, "type": "space", "unit": "angstrom"} for axis in "zyx"],
            "datasets": levels,
            "type": "mean",
        }


def _storage(older: bool) -> dict[str, Any]:
    """What the array of a level takes, in Zarr 2 or 3; noise hardly compresses, and what is quick costs nothing."""
    if older:
        import numcodecs

        codec: Any = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.SHUFFLE)
        return {"compressors": codec, "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    from zarr.codecs import BloscCodec

    return {"compressors": BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"), "dimension_names": ["z", "y", "x"]}


def _halved(volume: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 x 2 voxels; a last odd one counts twice."""
    z, y, x = (-(-n // 2) for n in volume.shape)
    even = np.pad(volume, [(0, n % 2) for n in volume.shape], mode="edge")
    means: np.ndarray = even.reshape(z, 2, y, 2, x, 2).mean(axis=(1, 3, 5))
    return means
