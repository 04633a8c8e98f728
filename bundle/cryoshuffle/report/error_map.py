"""The error map of a result, made when that is written, and written as a volume of its own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from torch import Tensor

from cryoshuffle.errors import FitInterruptedError, InputError, stop_behind
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import save_tomogram
from cryoshuffle.files.intensity import IS_SPREAD
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.writing import write_json
from cryoshuffle.inference.checkpoints import StoredNoise, read_noise
from cryoshuffle.inference.error_map import NO_ERROR_MAP, ErrorMap
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.noise.volumes import load_volume, on_one_scale

logger = logging.getLogger("cryoshuffle")
CONTENT = "standard error of the denoised volume"
COMPARISON_NAME = "error_map.json"
# The middle of a map that is compared with the halves, at most.
_SIDE = 128


class ErrorMapWriter:
    """Makes :class:`cryoshuffle.inference.error_map.ErrorMap` of a result that is written, and writes it too.

    It takes several passes of the network, so the result is not put at risk: it has its name before they begin, and
    where they end early that is said.

    Args:
        path: of the map; float32, whatever the type of the result. None for none.
        checkpoint: the model, which knows the noise.
        inferer: that makes the result.
        transform: from the file to what the inferer is given; it is undone for the map.
        output: path of the result, for messages.
        seed: of the noise that is added.
        halves: paths of even and odd half of the tomogram, whose difference the map is compared with; None for none.
        tomogram: path of the tomogram, which tells which way the axes of the halves run.
        comparison: path of the JSON file of that comparison; an older one is removed. None for none.
        permissive: also take halves whose header breaks the standard.
        options: of the writer, see :func:`cryoshuffle.files.image_writer`.

    Units:
        grey values of the tomogram.

    Raises:
        InputError: from the engine, if the model keeps no noise.
        FileError: from the engine, if the map cannot be written.
        FitInterruptedError: from the engine, if a signal comes while the map is made.
    """

    def __init__(
        self,
        path: str | None,
        checkpoint: str,
        inferer: HaloWindowInferer,
        transform: Compose,
        output: str,
        seed: int = 0,
        halves: Sequence[str] | None = None,
        tomogram: str | None = None,
        comparison: str | None = None,
        permissive: bool = False,
        **options: Any,
    ) -> None:
        self.path, self.checkpoint, self.inferer, self.transform = path or "", checkpoint, inferer, transform
        self.output, self.seed, self.options = output, seed, options
        self.halves, self.tomogram, self.permissive = halves, tomogram, permissive
        self.comparison = None if comparison is None else Path(comparison)
        self._noise: StoredNoise | None = None
        self._kept: Any = None

    def attach(self, engine: Engine) -> None:
        """Make the map at the end, if it is asked for."""
        engine.add_event_handler(Events.STARTED, self.forget)
        if self.path:
            engine.add_event_handler(Events.STARTED, self.read)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.keep)
            engine.add_event_handler(Events.COMPLETED, self)

    def forget(self, engine: Engine) -> None:
        """Remove the comparison of another map."""
        if self.comparison is not None:
            self.comparison.unlink(missing_ok=True)

    def read(self, engine: Engine) -> None:
        """Read the noise, before there is anything to lose."""
        self._noise = read_noise(self.checkpoint, NO_ERROR_MAP)

    def keep(self, engine: Engine) -> None:
        """Keep volume and result as the inferer has them; grey values of one on disk are given back in place."""
        output: Any = engine.state.output
        result = output["pred"].as_subclass(Tensor)
        copy = scratch.empty_like(result, result.shape) if scratch.on_disk(result) else result
        for part in scratch.sections(result.shape, 2) if copy is not result else ():
            copy[:, :, part] = result[:, :, part]
        self._kept = output["image"], copy

    def __call__(self, engine: Any) -> None:
        """Make and write the map now."""
        with self._result_is_there():
            began = time.monotonic()
            undone: Any = self.transform.inverse({"image": self._make(engine.network)})
            save_tomogram(undone["image"], self.path, content=CONTENT, **self.options)
            logger.info("error map took %.1f s: %s", time.monotonic() - began, self.path)

    def _make(self, network: Any) -> MetaTensor:
        """The map, ``(1, Z, Y, X)``, as what the transform makes of a file."""
        noise = self._noise if self._noise is not None else read_noise(self.checkpoint, NO_ERROR_MAP)
        (image, result), self._kept = self._kept, None
        one, error_map = image[0], ErrorMap(noise, self.inferer, seed=self.seed)
        with torch.no_grad():
            volume = image.as_subclass(Tensor)
            error = error_map(volume, result, network)
            if self.halves is not None and self.comparison is not None:
                write_json(self._compare(error_map, volume, error, network), self.comparison)
        return MetaTensor(error[0], meta={**one.meta, IS_SPREAD: True}, applied_operations=one.applied_operations)

    def _compare(
        self, error_map: ErrorMap, volume: Tensor, error: Tensor, network: Callable[..., Tensor]
    ) -> dict[str, Any]:
        """What :meth:`cryoshuffle.inference.error_map.ErrorMap.compare` says of the middle; or why it says nothing."""
        part, own_error = (central_crop(values, _SIDE) for values in (volume, error[0, 0]))
        try:
            even, odd = (
                load_volume(half, self.permissive, _SIDE, fill_nan=True, beside=self.tomogram)
                for half in self.halves or ()
            )
            even, odd = on_one_scale(part[0, 0].cpu(), even, odd)
        except InputError as mistake:
            return {"not_measured": str(mistake)}
        compared = error_map.compare(part, even - odd, own_error, network)
        if not all(map(math.isfinite, (*compared["ratios"], *compared["errors"]))):
            return {"not_measured": "too little noise stays in the result"}
        return compared

    @contextmanager
    def _result_is_there(self) -> Iterator[None]:
        """Say so where the map is not made."""
        try:
            yield
        except BaseException as error:
            # Whoever stops a run by a signal has it said by the command.
            if not isinstance(stop_behind(error), FitInterruptedError):
                logger.warning(
                    "%s is written, the error map and the report are not: the same command with --resume --overwrite "
                    "makes them, and fits nothing anew",
                    self.output,
                )
            raise
