"""Slices of a tomogram for a page: before, after, what was taken away, and the standard error in colour."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram, tomogram_shape
from cryoshuffle.files.intensity import FillNotFinite, mean_and_deviation
from cryoshuffle.files.volumes import voxel_sizes
from cryoshuffle.report.pictures import data_url, grey_range, plane_across, stretch

# XY slices in a page by their longest side, voxels; longest side of one in pixels.
_SLICES, LARGEST = ((400, 15), (700, 11), (math.inf, 9)), 1024
# Bytes of all pictures of a kind, before they are written as text. Noise takes many, and the result is looked at most.
_BYTES = {"before": 600_000, "after": 750_000, "residual": 600_000, "error": 200_000}
# How pictures are made smaller until they fit: by how much they shrink, and quality of the WebP; None for lossless.
_SIZES = (
    (1.0, None), (1.0, 90), (1.0, 75), (1.0, 60), (1.0, 45), (1.0, 30), (1.25, 30), (1.6, 30), (2.0, 30), (2.5, 30),
    (3.0, 30), (4.0, 30),
)  # fmt: skip
# From small to large errors, ever less transparent; apart for the colour-blind too (Okabe & Ito 2008).
ERROR_COLOURS = ("#0072B226", "#F0E44280", "#D55E00CC")
_ROUND = (1, 2, 5)


@dataclass(frozen=True)
class Slice:
    """One slice in a page.

    Attributes:
        name: where it lies, ``z = 40``.
        pictures: addresses of its pictures with their content: ``before``, ``after``, ``residual``, perhaps ``error``.
    """

    name: str
    pictures: dict[str, str]


@dataclass(frozen=True)
class SliceStack:
    """Parallel slices, shown one at a time.

    Attributes:
        name: of their plane: ``xy``, ``xz``, ``yz``; its first letter runs to the right.
        height: of a slice, voxels.
        width: of a slice, voxels.
        span: width of a slice in ``unit``.
        unit: ``nm``, or ``voxels`` where the voxel size is not known.
        slices: in order.
    """

    name: str
    height: int
    width: int
    span: float
    unit: str
    slices: tuple[Slice, ...]

    @property
    def bar(self) -> tuple[str, float]:
        """Text of a scale bar, and its length in percent of the width: a round number, at most a fifth."""
        most = self.span / 5
        power = 10.0 ** math.floor(math.log10(most))
        length = max(factor * power for factor in _ROUND if factor * power <= most * (1 + 1e-9))
        return f"{length:g} {self.unit}", 100 * length / self.span


@dataclass(frozen=True)
class ShownSlices:
    """What a page shows of a tomogram.

    Attributes:
        stacks: XY slices through the whole of it, and the middle slice across each other axis.
        deviation: standard deviation of the whole tomogram, grey values.
        shrink: voxels along an edge of a pixel of the tomogram, which is their mean.
        errors: least and largest standard error that a colour stands for, grey values; None without errors.
    """

    stacks: tuple[SliceStack, ...]
    deviation: float
    shrink: float
    errors: tuple[float, float] | None


def _positions(side: int, longest: int) -> list[int]:
    """Slices spread evenly over an axis, the middle one among them; fewer if they are large."""
    count = min(side, next(number for most, number in _SLICES if longest <= most))
    return sorted({(2 * i + 1) * side // (2 * count) for i in range(count)})


def _shrunk(plane: np.ndarray, factor: float) -> np.ndarray:
    """A plane with fewer pixels, each the mean of what it stands for."""
    if factor <= 1:
        return plane
    height, width = (max(1, round(side / factor)) for side in plane.shape[:2])
    return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BOX))


def _cut(volume: Tensor) -> dict[str, dict[str, np.ndarray]]:
    """Planes of a volume by name of their plane and place, the first row uppermost, at most :data:`LARGEST` wide."""
    z, y, x = volume.shape
    planes: dict[str, dict[str, np.ndarray]] = {"xy": {}, "xz": {}, "yz": {}}
    for place in _positions(z, max(y, x)):
        planes["xy"][f"z = {place}"] = volume[place].numpy().copy()
        scratch.release()
    planes["xz"][f"y = {y // 2}"] = plane_across(volume, 1, y // 2)
    planes["yz"][f"x = {x // 2}"] = plane_across(volume, 2, x // 2)
    return {
        name: {
            place: _shrunk(np.ascontiguousarray(plane[::-1]), max(plane.shape) / LARGEST)
            for place, plane in stack.items()
        }
        for name, stack in planes.items()
    }


def _coloured(grey: np.ndarray) -> np.ndarray:
    """A picture of errors: a colour for each step from the least to the largest."""
    rgba = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5, 7)] for colour in ERROR_COLOURS])
    steps = np.linspace(0, 255, len(rgba))
    table = np.stack([np.interp(np.arange(256), steps, channel) for channel in rgba.T], axis=1)
    colours: np.ndarray = table.astype(np.uint8)[grey]
    return colours


def _webp(picture: np.ndarray, shrink: float, quality: int | None) -> bytes:
    """A picture as a file."""
    kind = {"lossless": True} if quality is None else {"quality": quality}
    with io.BytesIO() as held:
        Image.fromarray(_shrunk(picture, shrink)).save(held, "WEBP", method=4, **kind)
        return held.getvalue()


def _size_that_fits(picture: np.ndarray, pixels: int, most: int) -> tuple[float, int | None]:
    """The finest of :data:`_SIZES` in which all pictures of a kind take at most a number of bytes.

    Args:
        picture: the middle slice, by which the others are judged.
        pixels: of all.
        most: bytes.
    """
    share = picture.shape[0] * picture.shape[1] / pixels
    for shrink, quality in _SIZES[:-1]:
        if len(_webp(picture, shrink, quality)) <= share * most:
            return shrink, quality
    return _SIZES[-1]


def read_slices(
    tomogram: str,
    result: str,
    error: str | None = None,
    permissive: bool = False,
    fill_nan: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> ShownSlices:
    """Cut what a page shows out of a tomogram and its result, one volume after another.

    Tomogram, result and residual have a grey scale each, the same for all slices; that of the residual is as wide as
    that of the tomogram, so faint signal in it is not made to look strong.

    Args:
        tomogram: path of it.
        result: path of what was made of it.
        error: path of the standard errors of the result, grey values; None for none.
        permissive: also take MRC files whose header breaks the standard.
        fill_nan: put the mean of the others where voxels of the tomogram are not finite.
        folder: where volumes too large for memory are kept meanwhile; None for memory.

    Raises:
        FileError, InputError: if a file is missing, cannot be read, or is not the size of the tomogram.
    """
    shape = tomogram_shape(tomogram, permissive)
    for path in (result, error):
        if path is not None and tomogram_shape(path, permissive) != shape:
            raise InputError(f"{path}: is not of the size of {tomogram}, name the tomogram it was made from")
    image: Any = FillNotFinite(fill_nan)(load_tomogram(tomogram, permissive, folder))
    sizes, values = voxel_sizes(image), image.as_tensor()
    deviation = mean_and_deviation(values)[1]
    planes = {"before": _cut(values[0])}
    del image, values
    for name, path in (("after", result), ("error", error)):
        if path is not None:
            planes[name] = _cut(load_tomogram(path, permissive, folder, beside=tomogram).as_tensor()[0])
    planes["residual"] = {
        name: {place: plane - planes["after"][name][place] for place, plane in stack.items()}
        for name, stack in planes["before"].items()
    }
    limits = {
        name: grey_range(plane[::2, ::2] for stack in cut.values() for plane in stack.values())
        for name, cut in planes.items()
    }
    half = (limits["before"][1] - limits["before"][0]) / 2
    limits["residual"] = (-half, half)
    pictures, shrinks = {}, {}
    for kind, cut in planes.items():
        pictures[kind], shrinks[kind] = _draw(kind, cut, limits[kind])
    sides = {"xy": shape[1:], "xz": (shape[0], shape[2]), "yz": (shape[0], shape[1])}
    across = {"xy": 2, "xz": 2, "yz": 1}
    stacks = []
    for name, (height, width) in sides.items():
        span = float(width) if sizes is None else width * sizes[across[name]] / 10
        slices = tuple(
            Slice(place, {kind: drawn[name][place] for kind, drawn in pictures.items()})
            for place in planes["before"][name]
        )
        stacks.append(SliceStack(name, height, width, span, "voxels" if sizes is None else "nm", slices))
    shrink = max(1.0, max(shape) / LARGEST) * max(shrinks["before"], shrinks["residual"])
    return ShownSlices(tuple(stacks), deviation, shrink, limits.get("error"))


def _draw(
    kind: str, planes: Mapping[str, Mapping[str, np.ndarray]], limits: tuple[float, float]
) -> tuple[dict[str, dict[str, str]], float]:
    """Addresses with the content of the pictures of a kind, and how much they were shrunk to fit into a page."""

    def drawn(plane: np.ndarray) -> np.ndarray:
        grey = stretch(plane, *limits)
        return _coloured(grey) if kind == "error" else grey

    stack = list(planes["xy"].values())
    pixels = sum(plane.size for cut in planes.values() for plane in cut.values())
    shrink, quality = _size_that_fits(drawn(stack[len(stack) // 2]), pixels, _BYTES[kind])

    def address(plane: np.ndarray) -> str:
        return data_url(_webp(drawn(plane), shrink, quality), "webp")

    return {name: {place: address(plane) for place, plane in cut.items()} for name, cut in planes.items()}, shrink
