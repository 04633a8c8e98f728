"""The error map of a result, made beside it and written as a volume of its own."""

from __future__ import annotations

import logging
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from torch import Tensor

from cryoshuffle.files.formats import save_tomogram
from cryoshuffle.files.intensity import IS_SPREAD
from cryoshuffle.inference.checkpoints import StoredNoise
from cryoshuffle.inference.error_map import PASSES, ErrorMap, read_noise
from cryoshuffle.inference.inferers import HaloWindowInferer

logger = logging.getLogger("cryoshuffle")
CONTENT = "standard error of the denoised volume"


class ErrorMapWriter:
    """Makes :class:`cryoshuffle.inference.error_map.ErrorMap` of a result, and writes it when the result is written.

    Args:
        path: of the map; float32, whatever the type of the result. None for none.
        checkpoint: the model, which knows the noise.
        inferer: that makes the result.
        transform: from the file to what the inferer is given; it is undone for the map.
        passes: of inference.
        seed: of the noise that is added.
        options: of the writer, see :func:`cryoshuffle.files.image_writer`.

    Units:
        grey values of the tomogram.

    Raises:
        InputError: from the engine, if the model keeps no noise.
        FileError: from the engine, if the map cannot be written.
    """

    def __init__(
        self,
        path: str | None,
        checkpoint: str,
        inferer: HaloWindowInferer,
        transform: Compose,
        passes: int = PASSES,
        seed: int = 0,
        **options: Any,
    ) -> None:
        self.path, self.checkpoint, self.inferer, self.transform = path or "", checkpoint, inferer, transform
        self.passes, self.seed, self.options = passes, seed, options
        self._noise: StoredNoise | None = None
        self._map: MetaTensor | None = None

    def attach(self, engine: Engine) -> None:
        """Make the map before the grey values of the result are given back, and write it at the end, if asked for."""
        if self.path:
            engine.add_event_handler(Events.STARTED, self.read)
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.measure)
            engine.add_event_handler(Events.COMPLETED, self)

    def read(self, engine: Engine) -> None:
        """Read the noise, before there is anything to lose."""
        self._noise = read_noise(self.checkpoint)

    def measure(self, engine: Any) -> None:
        """Make the map now."""
        noise = self._noise if self._noise is not None else read_noise(self.checkpoint)
        output: Any = engine.state.output
        image: Any = output["image"]
        volume, result = (output[key].as_subclass(Tensor) for key in ("image", "pred"))
        error_map = ErrorMap(noise, self.inferer, self.passes, self.seed)
        with torch.no_grad():
            error = error_map(volume, result, engine.network)
        one: Any = image[0]
        self._map = MetaTensor(error[0], meta={**one.meta, IS_SPREAD: True}, applied_operations=one.applied_operations)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        undone: Any = self.transform.inverse({"image": self._map})
        self._map = None
        save_tomogram(undone["image"], self.path, content=CONTENT, **self.options)
        logger.info("error map: %s", self.path)
