"""Pictures: three planes before, after, and what was taken away; curves of the noise and of agreement."""

from __future__ import annotations

import base64
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.networks.utils import eval_mode
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from cryoshuffle.devices import is_first_process
from cryoshuffle.errors import FileError
from cryoshuffle.files import scratch
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.writing import written_whole
from cryoshuffle.noise.whitening import undo_whitening
from cryoshuffle.report.charts import TEXT, chart_image, fsc_chart, line_chart

_MARGIN, _TITLE = 8, 16
# About the longest side of a plane in a picture, pixels.
_LARGEST = 512
_COLUMNS = ("before", "after", "residual")


def stretch(plane: np.ndarray, low: float, high: float) -> np.ndarray:
    """A plane as bytes, black where it is ``low`` or less and white where it is ``high`` or more."""
    scaled = (plane - low) / (high - low if high > low else 1.0)
    return (np.clip(scaled, 0, 1) * 255).astype(np.uint8)


def plane_across(volume: Tensor, axis: int, index: int) -> np.ndarray:
    """The plane across an axis of a volume.

    It lies in nearly every page of a volume on disk, so not all of it is read at once.

    Args:
        volume: ``(Z, Y, X)``.
        axis: number of the axis.
        index: along it.
    """
    parts = (volume[part].select(axis, index) for part in scratch.sections(volume.shape, 0))
    return np.concatenate([part.numpy().copy() for part in parts])


def grey_range(planes: Iterable[np.ndarray]) -> tuple[float, float]:
    """Grey values that are black and white: the 0.5th and the 99.5th percentile of some planes."""
    low, high = np.percentile(np.concatenate([plane.ravel() for plane in planes]), (0.5, 99.5))
    return float(low), float(high)


def data_url(content: bytes, kind: str) -> str:
    """The address of a picture in a page, which holds all of it.

    Args:
        content: of its file.
        kind: of file, ``png`` for instance.
    """
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def preview_image(before: Tensor, after: Tensor) -> Image.Image:
    """Draw the central XY, XZ and YZ planes, one row each, before, after and their difference.

    Each column has one grey scale for its three planes, from its 0.5th to its 99.5th percentile; the residual has
    the width of the scale of ``before``, so faint signal in it is not made to look strong.

    Args:
        before: the noisy tomogram.
        after: the denoised one.

    Shape:
        both ``(Z, Y, X)``.

    Returns:
        the picture; its ``info["tiles"]`` tells as JSON where each plane is, ``{"name": [left, top, right, bottom]}``
        in pixels, and goes into the file with it.

    Raises:
        ValueError: if the shapes differ or are not three-dimensional.
    """
    if before.shape != after.shape or before.ndim != 3:
        raise ValueError(f"volumes of shapes {tuple(before.shape)} and {tuple(after.shape)} cannot be compared")
    one, two = before.detach().float().cpu(), after.detach().float().cpu()
    z, y, x = (n // 2 for n in one.shape)
    columns: list[list[np.ndarray]] = [
        [v[z].numpy(), plane_across(v, 1, y), plane_across(v, 2, x).T] for v in (one, two)
    ]
    columns.append([a - b for a, b in zip(*columns, strict=True)])
    scales = [grey_range(planes) for planes in columns[:2]]
    half = (scales[0][1] - scales[0][0]) / 2
    scales.append((-half, half))
    zoom, shrink = max(1, round(_LARGEST / max(one.shape))), max(1, -(-max(one.shape) // _LARGEST))
    tiles = [
        [_tile(plane, *scale, zoom, shrink) for plane in column] for column, scale in zip(columns, scales, strict=True)
    ]
    return _laid_out(tiles, (f"xy, z = {z}", f"xz, y = {y}", f"zy, x = {x}"))


def _tile(plane: np.ndarray, low: float, high: float, zoom: int, shrink: int) -> Image.Image:
    """A plane as a picture, its first axis upwards, enlarged or thinned out."""
    tile = Image.fromarray(np.ascontiguousarray(stretch(plane, low, high)[::-shrink, ::shrink]))
    size = max(1, plane[:, ::shrink].shape[1] * zoom), max(1, plane[::shrink].shape[0] * zoom)
    return tile.resize(size, Image.Resampling.NEAREST)


def _laid_out(tiles: Sequence[Sequence[Image.Image]], names: Sequence[str]) -> Image.Image:
    """Columns of tiles side by side, each tile under its column and its name; see :func:`preview_image`."""
    column_width = max(tile.width for column in tiles for tile in column)
    row_heights = [max(tile.height for tile in row) for row in zip(*tiles, strict=True)]
    width = len(tiles) * (column_width + _MARGIN) + _MARGIN
    height = sum(row_heights) + len(names) * (_TITLE + _MARGIN) + _MARGIN
    picture = Image.new("L", (width, height), 255)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT)
    boxes = {}
    for index, column in enumerate(tiles):
        left, top = _MARGIN + index * (column_width + _MARGIN), _MARGIN
        for name, tile, row_height in zip(names, column, row_heights, strict=True):
            title, first = f"{_COLUMNS[index]}, {name}", top + _TITLE
            pen.text((left, first - 3), title, 0, font, "ls")
            picture.paste(tile, (left, first))
            boxes[title] = [left, first, left + tile.width, first + tile.height]
            top = first + row_height + _MARGIN
    picture.info["tiles"] = json.dumps(boxes)
    return picture


def _save(picture: Image.Image, path: str | os.PathLike[str]) -> Path:
    """Write a picture as a PNG, whole or not at all."""
    path = Path(path)
    notes = PngInfo()
    for name, text in picture.info.items():
        notes.add_text(str(name), str(text))
    with written_whole(path, "the picture ", ending=".png") as partial:
        picture.save(partial, pnginfo=notes)
    return path


def save_preview(before: Tensor, after: Tensor, path: str | os.PathLike[str]) -> Path:
    """Write :func:`preview_image` as a PNG.

    Raises:
        FileError: if the picture cannot be written.
    """
    return _save(preview_image(before, after), path)


def picture_planes(path: str | os.PathLike[str]) -> dict[str, Image.Image]:
    """The planes of a picture that :func:`save_preview` wrote, by name: ``"before, xy, z = 12"`` and so on.

    Raises:
        FileError: if the picture is missing, cannot be read or has none.
    """
    try:
        with Image.open(path) as picture:
            boxes = json.loads(picture.info["tiles"])
            return {name: picture.crop(tuple(box)) for name, box in boxes.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path}: is no picture of a run, run it again ({type(error).__name__})") from error


def save_noise_plot(correlation: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> Path:
    """Draw the autocorrelation of the noise, a curve an axis, as a PNG.

    Args:
        correlation: for each axis, at lags 1, 2, ...
        path: of the picture.

    Raises:
        FileError: if the picture cannot be written.
    """
    curves = {f"along {axis}": [(0.0, 1.0), *enumerate(values, 1)] for axis, values in correlation.items()}
    chart = line_chart("Noise", curves, "lag, voxels", "autocorrelation", reach=(0,))
    return _save(chart_image(chart), path)


def save_fsc_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    path: str | os.PathLike[str],
    voxel_size_angstrom: float | None = None,
    thresholds: Sequence[float] = (0.5,),
) -> Path:
    """Draw Fourier shell correlations over spatial frequency, with the lines they are said to cross, as a PNG.

    Args:
        curves: frequencies (cycles per voxel) and values of each curve, by its name.
        path: of the picture.
        voxel_size_angstrom: to label frequencies in cycles per Å; None labels them in cycles per voxel.
        thresholds: each drawn as a line.

    Raises:
        FileError: if the picture cannot be written.
    """
    return _save(chart_image(fsc_chart("Fourier shells", curves, thresholds, voxel_size_angstrom)), path)


logger = logging.getLogger("cryoshuffle")
PICTURE_NAME = "result.png"
_SIDE = 256
# Longest side of what is shown while a fit runs, voxels.
_WHILE_FITTING = 96


class FitPreview:
    """A picture at intervals while a fit runs: the middle of the first volume, before, after and residual.

    Args:
        volumes: the standardised volumes of the fit, dictionaries with ``image`` of shape ``(1, Z, Y, X)``.
        network: to show, the averaged one say.
        inferer: that runs it.
        output_dir: where ``preview.png`` goes; it is replaced each time.
        interval: epochs between pictures.
        whitening: of the volumes, undone for the picture.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, Any]],
        network: nn.Module,
        inferer: Callable[..., Tensor],
        output_dir: str,
        interval: int = 4,
        whitening: Mapping[str, Any] | None = None,
    ) -> None:
        self.volumes, self.network, self.inferer = volumes, network, inferer
        self.path = Path(output_dir) / "preview.png"
        self.interval = interval
        self.whitening = whitening

    def attach(self, engine: Engine) -> None:
        """Draw every few epochs; of several processes the first does."""
        if is_first_process():
            engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self)

    def __call__(self, engine: Engine) -> None:
        """Draw now."""
        before = central_crop(torch.as_tensor(self.volumes[0]["image"]), _WHILE_FITTING)
        device = next(self.network.parameters()).device
        with eval_mode(self.network):
            after = self.inferer(before[None].to(device), self.network)[0]
        before, after = (undo_whitening(v.cpu(), self.whitening) for v in (before, after))
        save_preview(before[0], after[0], self.path)


class ResultPreview:
    """The picture of a finished tomogram, drawn from what the evaluator read and predicted.

    Args:
        path: of the PNG.
        whitening: of the image, undone for the picture.
    """

    def __init__(self, path: str, whitening: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.whitening = whitening

    def attach(self, engine: Engine) -> None:
        """Draw before the intensities are given back, so that both sides have one scale."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Draw now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        output: Any = engine.state.output
        volumes = [output[key].as_subclass(Tensor)[0] for key in ("image", "pred")]
        if self.whitening is not None and scratch.on_disk(volumes[0]):
            # Undone it would take room for two more.
            volumes = [central_crop(volume, _SIDE) for volume in volumes]
        before, after = (undo_whitening(volume, self.whitening) for volume in volumes)
        save_preview(before[0], after[0], self.path)
        logger.info("picture: %s", self.path)
