"""What was taken away from a tomogram, as a volume of its own: where signal shows in it, look twice."""

from __future__ import annotations

import logging
import os
from typing import Any

import nibabel
from ignite.engine import Engine, Events

from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.intensity import FillNotFinite

logger = logging.getLogger("cryoshuffle")
CONTENT = "tomogram minus the denoised volume"


class ResidualWriter:
    """Writes the tomogram minus the result, when the result is written; the two files add up to the tomogram.

    Args:
        path: of the residual; float32, whatever the type of the result. None for none.
        tomogram: path of the input.
        output: path of the result.
        permissive: also take an input whose header breaks the standard.
        fill_nan: put the mean of the others where voxels of the tomogram are not finite, as for the result.
        folder: where volumes too large for memory are kept; None for memory.
        options: of its writer, see :func:`cryoshuffle.files.image_writer`.

    Raises:
        FileError: from the engine, if the residual cannot be written.
    """

    def __init__(
        self,
        path: str | None,
        tomogram: str,
        output: str,
        permissive: bool = False,
        fill_nan: bool = False,
        folder: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        self.path, self.tomogram, self.output = path or "", tomogram, output
        self.permissive, self.fill, self.folder = permissive, FillNotFinite(fill_nan), folder
        self.options = options

    def attach(self, engine: Engine) -> None:
        """Write at the end, if it is asked for."""
        if self.path:
            engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        noisy: Any = self.fill(load_tomogram(self.tomogram, self.permissive, self.folder, axcodes=None))
        axcodes = "".join(str(code) for code in nibabel.aff2axcodes(noisy.affine))
        values = noisy.as_tensor()
        denoised = load_tomogram(self.output, folder=self.folder, axcodes=axcodes).as_tensor()
        for part in scratch.sections(values.shape):
            values[:, part].sub_(denoised[:, part])
        save_tomogram(noisy, self.path, content=CONTENT, **self.options)
        logger.info("residual: %s", self.path)
