"""What can be known to go wrong is said before the work begins, not after."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoshuffle.boxes import fit_window
from cryoshuffle.errors import FileError, InputError, SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import (
    check_new_tomogram,
    format_of,
    image_writer,
    is_ours,
    load_tomogram,
    read_header,
    tomogram_shape,
)
from cryoshuffle.files.masks import check_mask_shape
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.inference.error_map import NO_ERROR_OF_SMOOTHED
from cryoshuffle.lattice import Triple

logger = logging.getLogger("cryoshuffle")

# Voxels along each axis that tell the grey values; deviations that they reach to either side; and steps of a type that
# the deviation of the noise has to be for a result, which is smoother, to be more than a few steps.
_LOOKED_AT = 128
_SPREAD = 4.0
_STEPS = 4.0
# Ends of names of files that are written plain first.
_PACKED = (".gz", ".bz2")
# Correlation of a tomogram with the mean of its halves: near 1 if it is their mean, less if it was filtered.
_BELONG = 0.3
# Correlation of one half with the tomogram over that of the other; both have half of the images.
_ALIKE = 0.5


def check_inputs(
    tomograms: Sequence[str],
    period: Triple,
    permissive: bool = False,
    held_out: HeldOutSlab | None = None,
    window: int | Sequence[int] | None = None,
) -> None:
    """Refuse tomograms that cannot be denoised on a lattice of this period.

    Args:
        tomograms: paths.
        period: of the lattice along (Z, Y, X), voxels.
        permissive: also take MRC files whose header breaks the standard.
        held_out: slab that a fit leaves out; what remains must hold a period.
        window: of a step of the fit along (Z, Y, X), voxels; None for as large as the tomogram.

    Raises:
        FileError: for a missing or unreadable file.
        InputError: for one that is no tomogram, or is shorter than a period, or a window that is.
    """
    if not tomograms:
        raise InputError("no tomogram is given, name at least one")
    for tomogram in tomograms:
        if Path(tomogram).exists() and is_ours(tomogram):
            logger.warning("%s: was denoised by cryoshuffle before: name the tomogram that it was made from", tomogram)
        try:
            header = read_header(tomogram, permissive)
            for note in header.notes:
                logger.warning("%s: %s", tomogram, note)
            shape: Sequence[int] = header.shape_zyx
            fit_window(2**31 - 1, shape, period)
            if held_out is not None:
                shape = [part.stop - part.start for part in held_out.fit_region(shape)]
                fit_window(2**31 - 1, shape, period)
            if window is not None:
                fit_window(window, shape, period)
        except InputError as error:
            text = str(error)
            raise InputError(text if str(tomogram) in text else f"{tomogram}: {text}") from error


def check_halves(halves: Sequence[str] | None, tomogram: str, permissive: bool = False) -> None:
    """Refuse halves that cannot be those of a tomogram, as far as names, headers and their middle tell.

    Args:
        halves: paths of the even and the odd one; None for none.
        tomogram: path.
        permissive: also take MRC files whose header breaks the standard.

    Raises:
        FileError: for a missing or unreadable file.
        InputError: if there are not two, both are one file or the tomogram itself, or a shape is not the tomogram's; or
            their mean does not correlate with it, or one of them much less than the other.
    """
    if halves is None:
        return
    if len(halves) != 2:
        raise InputError(f"halves are {len(halves)} files: name the even and the odd one")
    shape = tomogram_shape(tomogram, permissive)
    for half in halves:
        if tomogram_shape(half, permissive) != shape:
            raise InputError(
                f"{half}: is of {tomogram_shape(half, permissive)} voxels, the tomogram of {shape}; "
                "name the halves it was made from"
            )
    for one, other in ((halves[0], halves[1]), (halves[0], tomogram), (halves[1], tomogram)):
        if Path(one).samefile(other):
            raise InputError(f"{one}: is named twice, even half, odd half and tomogram are three files")
    correlation, *each = _correlations_of_halves(halves, tomogram, permissive)
    if correlation < _BELONG:
        raise InputError(
            f"{halves[0]}: its mean with {halves[1]} correlates with {tomogram} by {correlation:.2f}, halves do by "
            f"more than {_BELONG}: name the two that the tomogram was made from"
        )
    if min(each) < _ALIKE * max(each):
        raise InputError(
            f"{halves[each.index(min(each))]}: correlates with {tomogram} by {min(each):.2f}, the other half by "
            f"{max(each):.2f}: name the two that the tomogram was made from"
        )


def _correlations_of_halves(halves: Sequence[str], tomogram: str, permissive: bool) -> list[float]:
    """Correlation of the mean of two halves, and of each, with their tomogram in the middle; 1 where it is constant."""
    # One after the other: a compressed file is unpacked whole.
    whole, even, odd = (
        central_crop(
            load_tomogram(path, permissive, largest=_LOOKED_AT, beside=tomogram).as_tensor()[0], _LOOKED_AT
        ).double()
        for path in (tomogram, *halves)
    )
    finite = whole.isfinite() & even.isfinite() & odd.isfinite()
    correlations = []
    for one in ((even + odd) / 2, even, odd):
        pair = torch.stack([whole[finite], one[finite]])
        pair = pair - pair.mean(dim=1, keepdim=True)
        power = float(pair.square().sum(dim=1).prod())
        correlations.append(float(pair.prod(dim=0).sum()) / power**0.5 if power > 0 else 1.0)
    return correlations


def check_mask(mask: str | None, tomograms: Sequence[str], permissive: bool = False) -> None:
    """Refuse a mask that cannot be one of a tomogram, as far as names and headers tell.

    Args:
        mask: path; None for none.
        tomograms: paths.
        permissive: also take MRC files whose header breaks the standard.

    Raises:
        FileError: for a missing or unreadable file.
        InputError: if there are several tomograms, or the mask is of another shape.
    """
    if mask is None:
        return
    if len(tomograms) > 1:
        raise InputError(f"{mask}: a mask goes with one tomogram, not with {len(tomograms)}: fit them one by one")
    check_mask_shape(mask, tomogram_shape(mask, True), tomogram_shape(tomograms[0], permissive))


def check_output(
    output: str,
    tomogram: str,
    overwrite: bool = False,
    dtype: str = "float32",
    permissive: bool = False,
    folder: str | None = None,
    residual: str | None = None,
    error: str | None = None,
    force: bool = False,
    ome_zarr: str = "0.4",
    smooth: float = 0.0,
) -> None:
    """Refuse an output that exists, is the input, or cannot be written where it is asked for.

    Args:
        output: path of the result.
        tomogram: path of the input, for the room the result needs.
        overwrite: allow an output that exists, if it is a result of ours.
        dtype: of the result.
        permissive: also take an input whose header breaks the standard.
        folder: of the run, which takes a volume too large for memory three to six times while it runs; None for none.
            It is made when the run begins, so the output may lie in it before it is there.
        residual: path of what is taken away, looked at in the same way; None for none.
        error: path of the error map, looked at in the same way; None for none.
        force: allow one that exists whatever it is.
        ome_zarr: version of the format, where it is that.
        smooth: width of a Gaussian over the result, voxels.

    Raises:
        FileError: in each of those cases.
        SettingError: for an error map of a result that is smoothed.
        InputError: for a name of no format, one whose package is missing, or a type or version that the format has not.
    """
    if error is not None and smooth:
        raise SettingError(f"{error}: {NO_ERROR_OF_SMOOTHED}")
    path = Path(output)
    _check_format(path, dtype, ome_zarr)
    _check_place(path, Path(tomogram), overwrite, folder, force)
    named = {path.resolve(): "the result"}
    for beside, content in ((residual, "the residual"), (error, "the error map")):
        if beside is None:
            continue
        other = named.setdefault(Path(beside).resolve(), content)
        if other != content:
            raise FileError(f"{beside}: is named for {other} and for {content}, choose two names")
        # What is forced is the result alone.
        _check_format(Path(beside), "float32", ome_zarr)
        _check_place(Path(beside), Path(tomogram), overwrite, folder, force=False)
    check_dtype(dtype, tomogram, permissive)
    voxels = math.prod(tomogram_shape(tomogram, permissive))
    # Volumes on disk at once. Image, prediction and the windows that it is made of stay to the end. The page reads one
    # volume at a time beside them, a residual two. An error map takes four: the prediction as it was before it got grey
    # values, noisy input, power, and the prediction from that input.
    copies = 7 if error is not None else 5 if residual is not None else 4
    sizes = {path: np.dtype(dtype).itemsize * voxels}
    sizes |= {Path(beside): 4 * voxels for beside in (residual, error) if beside is not None}
    _check_room(sizes, voxels, folder, copies)


def check_kept(inputs: Mapping[str, str | None], outputs: Sequence[str | None]) -> None:
    """Refuse to write what a run reads, however it is asked for.

    Args:
        inputs: paths by the option that names them; None for what is not given.
        outputs: paths of what is written; None for what is not.

    Raises:
        FileError: if an output is an input or a folder around it.
    """
    for output in (Path(one) for one in outputs if one is not None and Path(one).exists()):
        for option, named in inputs.items():
            source = Path(named) if named else None
            if source is None or not source.exists():
                continue
            if output.samefile(source) or output.resolve() in source.resolve().parents:
                words = "is the input itself" if option == "IN" else f"is read by this run ({option})"
                raise FileError(f"{output}: {words}, choose another name for the result")


def _check_format(path: Path, dtype: str, ome_zarr: str) -> None:
    """Refuse a name of no format, or a type or version that the format has not."""
    wanted = format_of(path)
    if dtype not in wanted.dtypes:
        raise InputError(
            f"{path}: a {wanted.name} is written as {', '.join(wanted.dtypes)}, not as {dtype}; leave the type out or "
            "write MRC"
        )
    if wanted.check_extra is not None:
        wanted.check_extra(path)
    image_writer(path, ome_zarr=ome_zarr)(output_dtype=dtype)


def _check_place(path: Path, source: Path, overwrite: bool, folder: str | None, force: bool) -> None:
    """Refuse a path that is the input, holds what is not to be replaced, or cannot be written."""
    check_kept({"IN": str(source)}, [str(path)])
    if path.exists() and (format_of(path).is_folder or not path.is_dir()) and not force and not is_ours(path):
        raise FileError(
            f"{path}: exists and is no result of cryoshuffle, so it is not replaced: choose another name, or for "
            "OUT add --force; several tomograms go with cryoshuffle batch"
        )
    if folder is None or path.parent.exists() or path.parent.resolve() != Path(folder).resolve():
        check_new_tomogram(path, overwrite or force)
    elif not os.access(_nearest(path.parent), os.W_OK):
        raise FileError(f"{path}: the folder {_nearest(path.parent)} cannot be written, choose another")


def _check_room(sizes: Mapping[Path, int], voxels: int, folder: str | None, copies: int) -> None:
    """Refuse outputs, or copies of the volume on disk in the folder of the run, that have no room together.

    Args:
        sizes: bytes of the voxels of each output, by its path.
        voxels: of the tomogram.
        folder: of the run; None for none.
        copies: of the volume in float32 at once, where it is too large for memory.
    """
    places: dict[int, Path] = {}
    needed: dict[Path, int] = {}
    more: dict[Path, int] = {}

    def place_of(near: Path) -> Path:
        near = _nearest(near)
        return places.setdefault(_file_system(near), near)

    for path, size in sizes.items():
        place, is_folder = place_of(path.parent), format_of(path).is_folder
        # A level of a pyramid has an eighth of the voxels of the finer one.
        needed[place] = needed.get(place, 0) + (size * 8 // 7 if is_folder else size)
        # One after another lies there plain while it is packed; nibabel packs what it writes at once.
        is_packed = path.suffix.lower() in _PACKED and not path.name.lower().endswith(".nii.gz")
        more[place] = max(more.get(place, 0), size if is_packed else 0)
    if folder is not None and 4 * voxels > scratch.in_memory_bytes():
        place = place_of(Path(folder))
        needed[place] = needed.get(place, 0) + 4 * copies * voxels
    for place, own in needed.items():
        most, free = own + more.get(place, 0), shutil.disk_usage(place).free
        if most > free:
            raise FileError(
                f"{next(iter(sizes))}: needs {math.ceil(most / 2**20)} MiB in {place}"
                f"{', with what goes beside it,' if len(sizes) > 1 else ''} and {free // 2**20} MiB are free, make "
                "room or choose another folder"
            )


def _file_system(place: Path) -> int:
    return place.stat().st_dev


def _nearest(folder: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(place for place in (folder, *folder.absolute().parents) if place.is_dir())


def check_single(data: Sequence[Any]) -> None:
    """Refuse several images where there is one name for the result.

    Args:
        data: what a config's dataset is given.

    Raises:
        InputError: if there is not one.
    """
    if len(data) != 1:
        raise InputError(
            f"dataset#data names {len(data)} images and output one result: run once for each, with an output of its own"
        )


def check_dtype(dtype: str, tomogram: str, permissive: bool = False) -> None:
    """Refuse a type of result that cannot hold the grey values of a tomogram.

    Args:
        dtype: of the result, which is on the tomogram's grey scale.
        tomogram: path of the input; its middle is looked at.
        permissive: also take an input whose header breaks the standard.

    Raises:
        InputError: if values would be clipped, or their differences rounded away.
    """
    if dtype == "float32":
        return
    middle = load_tomogram(tomogram, permissive, largest=_LOOKED_AT).as_tensor().double()
    middle = middle[middle.isfinite()]
    mean, deviation = float(middle.mean()), float(middle.std())
    least, most = mean - _SPREAD * deviation, mean + _SPREAD * deviation
    limits: Any = np.finfo(dtype) if dtype == "float16" else np.iinfo(dtype)
    low, high = float(limits.min), float(limits.max)
    step = max(abs(mean) * 2.0**-11, 2.0**-24) if dtype == "float16" else 1.0
    if least < low or most > high:
        raise InputError(
            f"{tomogram}: has grey values of about {mean:.4g} ± {deviation:.2g}, beyond what {dtype} holds "
            f"({low:g} to {high:g}): leave the type out, or scale the tomogram first"
        )
    if deviation < _STEPS * step:
        raise InputError(
            f"{tomogram}: has grey values of about {mean:.4g} ± {deviation:.2g}, and {dtype} has steps of {step:.2g} "
            "there, too coarse for them: leave the type out, or scale the tomogram first"
        )
