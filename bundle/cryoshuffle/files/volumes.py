"""What the formats of volumes have in common: names, headers, metadata, and the frames of a reader and a writer."""

from __future__ import annotations

import bz2
import gzip
import logging
import math
import os
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, TypeGuard

import nibabel
import numpy as np
import torch
from monai.data import ImageReader, ImageWriter, MetaTensor
from monai.transforms import Orientation
from monai.utils import ImageMetaKey, MetaKeys, SpaceKeys

import cryoshuffle
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.writing import real_path, written_whole
from cryoshuffle.host import usual_defaults
from cryoshuffle.lattice import Triple

logger = logging.getLogger("cryoshuffle")

AXIS_CODES = "SAR"
# What tells a result of ours from another volume.
LABEL = "cryoshuffle"
# What a result holds, as its label has it.
DENOISED = "denoised, J-invariant volume shuffle"
DTYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8, "int16": np.int16, "uint16": np.uint16}
# Share of a result's voxels that its type may clip.
_MOST_CLIPPED = 0.001
_UNPACKING: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}


def own_label(content: str) -> bytes:
    """The label of a result of ours, in 80 bytes.

    Args:
        content: what it holds, as :data:`DENOISED`.
    """
    return f"{LABEL} {cryoshuffle.__version__}: {content}".encode()[:80]


def as_names(names: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> list[str | os.PathLike[str]]:
    """One name or several, as MONAI's readers are given them, as a list."""
    return [names] if isinstance(names, (str, os.PathLike)) else list(names)


def is_named(path: str | os.PathLike[str], suffixes: tuple[str, ...], folder: bool = False) -> bool:
    """Whether a path is that of a volume by its name.

    Args:
        path: of a file or folder.
        suffixes: lower case.
        folder: whether the volume is a folder; then a path that leads into one is one too, and a file is none.
    """
    path = Path(path)
    if folder:
        return any(part.lower().endswith(suffixes) for part in path.parts) and not path.is_file()
    return path.name.lower().endswith(suffixes)


def refuse_no_file(path: str | os.PathLike[str]) -> None:
    """Refuse a path that leads to no file.

    Raises:
        FileError: if it is a folder, or nothing is there.
    """
    if Path(path).is_dir():
        raise FileError(f"{path}: is a folder, name the file of one volume in it; a series of images makes no tomogram")
    if not Path(path).is_file():
        raise FileError(f"{path}: there is no such file, check the path")


def open_packed(path: Path) -> IO[bytes]:
    """A file, open for reading; where its name says that it is compressed it is unpacked on the way."""
    opened: IO[bytes] = _UNPACKING.get(path.suffix.lower(), open)(path, "rb")
    return opened


@dataclass(frozen=True)
class VolumeHeader:
    """What a file tells of its volume before the voxels are read.

    Attributes:
        shape: of the array, its axes as the reader gives them.
        affine: from indices of the array to (X, Y, Z), Å.
        notes: sentences to tell before the work.
    """

    shape: Sequence[int]
    affine: np.ndarray
    notes: Sequence[str] = ()

    @property
    def shape_zyx(self) -> Triple:
        """Of the volume, (Z, Y, X)."""
        axes = nibabel.io_orientation(self.affine)[:, 0]
        z, y, x = (int(n) for _, n in sorted(zip(axes, self.shape, strict=True), reverse=True))
        return z, y, x

    def placed(self) -> tuple[np.ndarray, list[bool]]:
        """Where the voxels are.

        Returns:
            the affine of the voxels (X, Y, Z) once all axes run forwards, and for each axis (Z, Y, X) whether the
            stored one runs backwards.
        """
        turns = nibabel.io_orientation(self.affine)
        backwards = [bool(turns[turns[:, 0] == axis, 1] < 0) for axis in (2, 1, 0)]
        return self.affine @ nibabel.orientations.inv_ornt_aff(turns, self.shape), backwards


def affine_of(size_zyx: Sequence[float], origin_zyx: Sequence[float]) -> np.ndarray:
    """The affine of a volume with axes (Z, Y, X), Å.

    Args:
        size_zyx: of a voxel, Å; 1 Å is taken along all axes where one is not above 0, for a part of them would squash
            the volume.
        origin_zyx: of the volume, Å.

    Example:
        >>> affine_of((3.0, 2.0, 1.0), (0.0, 0.0, 7.0)).tolist()
        [[0.0, 0.0, 1.0, 7.0], [0.0, 2.0, 0.0, 0.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
    """
    known = min(size_zyx) > 0
    affine = np.zeros((4, 4))
    for row, axis in enumerate((2, 1, 0)):
        affine[row, axis] = size_zyx[axis] if known else 1.0
        affine[row, 3] = origin_zyx[axis]
    affine[3, 3] = 1.0
    return affine


def why_unknown(size_zyx: Sequence[float]) -> str:
    """What is wrong with a voxel size, in words; empty if nothing is.

    Args:
        size_zyx: as a file says it, Å.

    Example:
        >>> why_unknown((0.0, 0.0, 0.0)), why_unknown((10.0, -10.0, float("nan"))), why_unknown((10.0, 10.0, 10.0))
        ('0', '-10 along y and no number along x', '')
    """
    wrong = [
        (f"{size:g}" if math.isfinite(size) else "no number", axis)
        for size, axis in zip(size_zyx, "zyx", strict=True)
        if not 0 < size < math.inf
    ]
    if len(wrong) == 3 and len({words for words, _ in wrong}) == 1:
        return wrong[0][0]
    return " and ".join(f"{words} along {axis}" for words, axis in wrong)


def grid_of(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel size and origin along (Z, Y, X), Å, of a volume with axes (Z, Y, X).

    Args:
        affine: of the volume, as :func:`affine_of` makes it.

    Example:
        >>> [one.tolist() for one in grid_of(affine_of((3.0, 2.0, 1.0), (0.0, 0.0, 7.0)))]
        [[3.0, 2.0, 1.0], [0.0, 0.0, 7.0]]
    """
    return np.linalg.norm(affine[:3, :3], axis=0), affine[[2, 1, 0], 3]


def volume_meta(shape: Sequence[int], size_zyx: Sequence[float], origin_zyx: Sequence[float]) -> dict[str, Any]:
    """What MONAI keeps with an image, for a volume with axes (Z, Y, X).

    Args:
        shape: of the volume.
        size_zyx: of a voxel, Å; 0 where it is not known, and the affine takes 1 Å.
        origin_zyx: of the volume, Å.
    """
    affine = affine_of(size_zyx, origin_zyx)
    return {
        MetaKeys.AFFINE: affine,
        MetaKeys.ORIGINAL_AFFINE: affine.copy(),
        MetaKeys.SPACE: SpaceKeys.RAS,
        MetaKeys.SPATIAL_SHAPE: np.array(shape),
        "voxel_size_zyx": list(size_zyx),
    }


def voxel_sizes(image: MetaTensor) -> list[float] | None:
    """The voxel size of an image along (Z, Y, X), Å; None where its file does not tell, as a NIfTI."""
    sizes = image.meta.get("voxel_size_zyx")
    return None if sizes is None or min(sizes) <= 0 else [float(size) for size in sizes]


def common_voxel_size(sizes: Sequence[float] | None) -> float | None:
    """The voxel size along all axes, Å; None where it is not known, or differs by more than a hundredth.

    Args:
        sizes: of :func:`voxel_sizes`.
    """
    return sizes[0] if sizes is not None and max(sizes) < 1.01 * min(sizes) else None


def affine_tells_axes(meta: Mapping[str, Any]) -> bool:
    """Whether the affine of an image tells which axis is which; if not, its axes are (Z, Y, X).

    MONAI gives the identity to what came without an affine. It tells nothing, unless a reader found it in a file: a
    reader keeps what it found as ``original_affine``, and MONAI gives that to no other image.

    Args:
        meta: of the image.
    """
    affine = meta.get(MetaKeys.AFFINE)
    if affine is None:
        return False
    affine = torch.as_tensor(affine).cpu().numpy()
    is_identity = affine.shape == (4, 4) and np.allclose(affine, np.eye(4))
    return meta.get(MetaKeys.ORIGINAL_AFFINE) is not None or not is_identity


def tells_axes(volume: object) -> TypeGuard[MetaTensor]:
    """Whether a volume tells which axis is which, see :func:`affine_tells_axes`; if not, its axes are (Z, Y, X).

    Args:
        volume: of any kind; only a ``MetaTensor`` has an affine.
    """
    return isinstance(volume, MetaTensor) and affine_tells_axes(volume.meta)


def refuse_masked(volume: object) -> None:
    """Refuse a masked array of numpy's that hides voxels; one that hides none is an array like any other.

    Args:
        volume: of any kind.

    Raises:
        InputError: if a voxel is masked; the count is named.
    """
    if isinstance(volume, np.ma.MaskedArray) and (hidden := int(np.ma.getmaskarray(volume).sum())):
        raise InputError(f"{hidden} voxels of the array are masked: fill them first, as volume.filled(volume.mean())")


def images_of(volumes: Iterable[Mapping[str, Any]]) -> list[torch.Tensor]:
    """The images of volumes as plain tensors, not copied.

    Args:
        volumes: dictionaries with ``image`` ``(C, Z, Y, X)``.
    """
    return [torch.as_tensor(item["image"]).as_subclass(torch.Tensor) for item in volumes]


def file_of(image: Any) -> str | None:
    """The file an image came from; None for one that does not tell."""
    named = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    return None if named is None else str(named)


class VolumeReader(ImageReader):
    """The frame of a reader: a format opens a file, tells its metadata, and reads its voxels.

    MONAI asks explicit readers in turn and ignores suffixes, so each has to refuse what is not of its format.

    Args:
        permissive: also take files whose header breaks the standard.
        folder: where volumes too large for memory are kept while the program runs (:mod:`cryoshuffle.files.scratch`);
            None for memory, however large they are.
        largest: voxels to take along each axis, from the middle; None for all.

    Raises:
        InputError: from ``get_data``, if volumes of several shapes are to be the channels of one image.
    """

    suffixes: ClassVar[tuple[str, ...]]
    is_folder: ClassVar[bool] = False

    def __init__(
        self, permissive: bool = False, folder: str | os.PathLike[str] | None = None, largest: int | None = None
    ) -> None:
        super().__init__()
        self.permissive, self.folder, self.largest = permissive, folder, largest

    @abstractmethod
    def _open(self, path: str | os.PathLike[str]) -> Any:
        """The file, open."""

    @abstractmethod
    def _meta(self, opened: Any) -> dict[str, Any]:
        """Metadata of an open file, those of :func:`volume_meta` among them."""

    @abstractmethod
    def _volume(self, opened: Any) -> np.ndarray:
        """Voxels of an open file, (Z, Y, X)."""

    def verify_suffix(self, filename: Sequence[str | os.PathLike[str]] | str | os.PathLike[str]) -> bool:
        """Whether all names are those of the format."""
        return all(is_named(name, self.suffixes, self.is_folder) for name in as_names(filename))

    def read(self, data: Sequence[str | os.PathLike[str]] | str | os.PathLike[str], **kwargs: Any) -> list[Any]:
        """Open the files."""
        return [self._open(name) for name in as_names(data)]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """The volume and its metadata; several files become channels, the metadata are those of the first."""
        files = list(img) if isinstance(img, (list, tuple)) else [img]
        metas = [self._meta(file) for file in files]
        shapes = {tuple(int(n) for n in meta[MetaKeys.SPATIAL_SHAPE]) for meta in metas}
        if len(shapes) > 1:
            raise InputError(f"volumes of shapes {sorted(shapes)} cannot be stacked, give volumes of one shape")
        volumes = [self._volume(file) for file in files]
        single = len(volumes) == 1
        metas[0][MetaKeys.ORIGINAL_CHANNEL_DIM] = float("nan") if single else 0
        return volumes[0] if single else np.stack(volumes), metas[0]


def refuse_not_finite(path: str | os.PathLike[str], count: int) -> None:
    """Refuse a result that has voxels which are no numbers.

    Args:
        path: of the file to write.
        count: of them.

    Raises:
        InputError: if there are any.
    """
    if count:
        raise InputError(
            f"{path}: {count} voxels of the result are NaN or Inf, so it is not written: check grey values and network"
        )


class VolumeWriter(ImageWriter):
    """The frame of a writer: it takes one volume, turns it to (Z, Y, X), rounds it, and writes it whole or not at all.

    A format writes its file under a temporary name, from ``data_obj``, ``meta`` and :meth:`_as_dtype`; where
    ``is_result`` says so, :data:`LABEL` has to be within the first bytes of it.

    Args:
        output_dtype: ``float32``, ``float16``, ``int8``, ``int16`` or ``uint16``; whole numbers are rounded and
            clipped.
        is_result: whether the file is labelled as a result of ours; not for what other programs save through MONAI.
        content: what the label says it holds.
        options: other options of MONAI's writers; not needed here.

    Raises:
        InputError: for another type, several channels or fewer than three dimensions; and from ``write``, if more than
            a thousandth of the voxels were clipped, or all became one value, or if voxels of a result, or of what is
            written as whole numbers, are not finite.
        FileError: if the file cannot be written; nothing is left behind then.
    """

    def __init__(
        self, output_dtype: Any = np.float32, is_result: bool = False, content: str = DENOISED, **options: Any
    ) -> None:
        name = np.dtype(np.float32 if output_dtype is None else output_dtype).name
        if name not in DTYPES:
            raise InputError(f"a tomogram cannot be written as {name}: choose one of {', '.join(DTYPES)}")
        super().__init__()
        self.output_dtype = np.dtype(DTYPES[name])
        self.is_result, self.content = is_result, content
        self.meta: dict[str, Any] = {}
        self._clipped, self._not_finite = 0, 0
        self._path: str | os.PathLike[str] = ""
        self._before, self._after = (np.inf, -np.inf), (np.inf, -np.inf)

    @abstractmethod
    def _write(self, partial: Path, path: Path) -> None:
        """Write to a temporary path what is to be at another."""

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take the volume.

        Args:
            data_array: ``(1, Z, Y, X)``, or ``(Z, Y, X)`` where ``channel_dim`` is None.
            channel_dim: which axis is the channel.
            kwargs: other options of MONAI's writers; not needed here.
        """
        array = data_array.detach().cpu().numpy() if isinstance(data_array, torch.Tensor) else np.asarray(data_array)
        if channel_dim is not None and array.ndim > 3:
            if array.shape[channel_dim] != 1:
                raise InputError(f"{array.shape[channel_dim]} channels cannot be written as one volume, save each")
            array = np.squeeze(array, axis=channel_dim)
        if array.ndim != 3:
            raise InputError(f"an array of shape {array.shape} is not a volume and cannot be written as one")
        self.data_obj = array

    def set_metadata(self, meta_dict: Mapping[str, Any] | None, resample: bool = False, **options: Any) -> None:
        """Take the metadata; a volume whose affine orders the axes otherwise is turned to (Z, Y, X).

        The identity orders them only where a reader found it in a file, see :func:`affine_tells_axes`.

        Args:
            meta_dict: as a reader made it.
            resample: not supported; a tomogram keeps its grid.
            options: other options of MONAI's writers; not needed here.
        """
        self.meta = dict(meta_dict or {})
        if not affine_tells_axes(self.meta):
            return
        affine = torch.as_tensor(self.meta[MetaKeys.AFFINE])
        image = MetaTensor(torch.as_tensor(np.ascontiguousarray(self.data_obj))[None], affine=affine)
        with usual_defaults():
            turned = MetaTensor(Orientation(axcodes=AXIS_CODES, labels=None)(image))
        self.data_obj = turned.as_tensor()[0].numpy()
        self.meta[MetaKeys.AFFINE] = np.asarray(turned.affine)

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **kwargs: Any) -> None:
        """Write the volume, whole or not at all."""
        super().write(filename, verbose=verbose)
        self._path = filename
        # What is no number is counted, and makes no noise on its way into means.
        with written_whole(filename, needed=self._bytes_needed()) as partial, np.errstate(invalid="ignore"):
            self._write(partial, real_path(filename))
            self._refuse_lost()

    def _bytes_needed(self) -> int | None:
        """Bytes of the file, where they can be told before."""
        return None

    def _as_dtype(self, data: np.ndarray) -> np.ndarray:
        given = data
        self._not_finite += int(data.size - np.isfinite(data).sum())
        if self.output_dtype != np.float32:
            whole = np.issubdtype(self.output_dtype, np.integer)
            limits: Any = np.iinfo(self.output_dtype.name) if whole else np.finfo(self.output_dtype.name)
            self._clipped += int(((data < limits.min) | (data > limits.max)).sum())
            data = np.clip(np.rint(data) if whole else data, limits.min, limits.max)
        rounded = np.ascontiguousarray(data, dtype=self.output_dtype)
        if rounded.size:
            self._before = min(self._before[0], float(given.min())), max(self._before[1], float(given.max()))
            self._after = min(self._after[0], float(rounded.min())), max(self._after[1], float(rounded.max()))
        return rounded

    def _refuse_lost(self) -> None:
        """Refuse what is no number, or lost its range or contrast to its type; a few clipped voxels are told."""
        if self.is_result or np.issubdtype(self.output_dtype, np.integer):
            refuse_not_finite(self._path, self._not_finite)
        low, high = self._before
        name = self.output_dtype.name
        if self._clipped > _MOST_CLIPPED * np.size(self.data_obj) or (self._after[0] == self._after[1] and low < high):
            raise InputError(f"grey values of {low:.4g} to {high:.4g} do not fit into {name}: write float32")
        if self._clipped:
            logger.warning("%d voxels beyond what %s holds were clipped", self._clipped, name)
