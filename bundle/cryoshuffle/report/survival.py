"""The table of what would be left of objects of known shape, beside the result of a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import Tensor

from cryoshuffle.boxes import Box
from cryoshuffle.errors import InputError
from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.intensity import FillNotFinite, StandardiseIntensity
from cryoshuffle.files.volumes import common_voxel_size, voxel_sizes
from cryoshuffle.files.writing import checksum, write_json
from cryoshuffle.inference.checkpoints import Model, StoredNoise, read_noise
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.inference.survival import NO_SURVIVAL, Survival
from cryoshuffle.report.provenance import recorded_run

logger = logging.getLogger("cryoshuffle")
SURVIVAL_NAME = "survival.json"
HEAD = ("object", "contrast", "comes back", "stands out", "stood out", "noise alone")


def survival_of_files(model: str, noisy: str, permissive: bool = False) -> dict[str, Any]:
    """:class:`cryoshuffle.inference.survival.Survival` of a model and a tomogram in files.

    Args:
        model: path of the model, or of the folder of a run, whose ``detail`` and ``smooth`` then count too.
        noisy: path of the tomogram.
        permissive: also take MRC files whose header breaks the standard.

    Raises:
        FileError: for a file that is missing or cannot be read.
        InputError: for a model that keeps no noise, or a tomogram that is too small.
    """
    path, recorded = recorded_run(model) if Path(model).is_dir() else (Path(model), {})
    fitted = Model(path)
    noise, settings, network = fitted.needed_noise(NO_SURVIVAL), fitted.settings(), fitted.network()
    fitted_to = fitted.content.get("settings", {}).get("content", [])
    if fitted_to and checksum(noisy) not in fitted_to:
        logger.warning("%s: was fitted to another tomogram than %s, so it may not have made the result", path, noisy)
    image: Any = FillNotFinite()(load_tomogram(noisy, permissive))
    volume = StandardiseIntensity()(image).as_tensor()[None]
    detail, smooth = (float(recorded.get(name) or 0.0) for name in ("detail", "smooth"))
    inferer = HaloWindowInferer(blend=settings.blend, detail=detail, smooth=smooth)
    return Survival(noise, inferer)(volume, network, common_voxel_size(voxel_sizes(image)))


def survival_rows(survival: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The table for people, a row for each object and contrast, under :data:`HEAD`; none if nothing was measured.

    Args:
        survival: of :class:`cryoshuffle.inference.survival.Survival`, or ``not_measured``.
    """
    return [
        (
            f"{one['name']} ({one['copies']} copies)",
            f"{row['contrast']:g}",
            f"{row['share']:.0%} ± {row['share_error']:.0%}",
            f"{row['stands_out']:.1f} ± {row['stands_out_error']:.1f}",
            f"{row['stood_out']:.1f}",
            f"{one['noise_alone']:.3f} ± {one['noise_alone_error']:.3f}",
        )
        for one in survival.get("objects", [])
        for row in one["rows"]
    ]


def survival_words(survival: Mapping[str, Any]) -> str:
    """Where objects were added, and which were left out; nothing if nothing was measured.

    Args:
        survival: of :class:`cryoshuffle.inference.survival.Survival`, or ``not_measured``.
    """
    if "crop" not in survival:
        return ""
    start, shape = survival["crop"]["start"], survival["crop"]["shape"]
    where = ", ".join(f"{axis} = {a} to {a + n}" for axis, a, n in zip("zyx", start, shape, strict=True))
    words = f"Objects were added at {where}."
    for key, why in (("too_small", "is thinner than 2 voxels"), ("too_large", "has no room there")):
        words += "".join(f" Left out: {name}, which {why}." for name in survival[key])
    return words


def survival_table(survival: Mapping[str, Any]) -> str:
    """:func:`survival_rows` and :func:`survival_words` as text.

    Args:
        survival: of :class:`cryoshuffle.inference.survival.Survival`.
    """
    rows = [HEAD, *survival_rows(survival)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["   ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, survival_words(survival)])


class SurvivalTable:
    """Measures what would be left of objects of known shape, when the result of a run is written.

    Args:
        path: of the JSON file that it writes.
        checkpoint: the model, which knows the noise.
        inferer: that makes the result.
        wanted: whether to measure; an older file is removed in any case.
        seed: of places and noise.

    Invariant:
        The result is written before, and is the same with and without.
    """

    def __init__(
        self, path: str, checkpoint: str, inferer: HaloWindowInferer, wanted: bool = True, seed: int = 0
    ) -> None:
        self.path, self.checkpoint, self.inferer = Path(path), checkpoint, inferer
        self.wanted, self.seed = wanted, seed
        self._kept: tuple[StoredNoise, Box, Tensor, float | None] | None = None
        self._why_not = ""

    def attach(self, engine: Engine) -> None:
        """Keep the crop before the grey values are given back, and measure at the end."""
        engine.add_event_handler(Events.STARTED, self.forget)
        if self.wanted:
            engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.keep)
            # Before the record of the run is written and its page.
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def forget(self, engine: Engine) -> None:
        """Remove the table of another result."""
        self.path.unlink(missing_ok=True)

    def keep(self, engine: Any) -> None:
        """Keep the part of the tomogram that is needed, or say why there is none."""
        image: Any = engine.state.output["image"]
        try:
            noise = read_noise(self.checkpoint, NO_SURVIVAL)
            box, crop = Survival.crop(image.as_subclass(Tensor), noise.order[0])
        except InputError as error:
            self._why_not = str(error)
            return
        self._kept = noise, box, crop, common_voxel_size(voxel_sizes(image[0]))

    def __call__(self, engine: Any) -> None:
        """Measure now."""
        kept, self._kept = self._kept, None
        try:
            if kept is None:
                raise InputError(self._why_not)
            noise, box, crop, voxel_size = kept
            if self.inferer.progress and sys.stderr is not None:
                print("the result is written; measuring what would survive, and writing the report", file=sys.stderr)
            survival = Survival(noise, self.inferer, self.seed)(crop, engine.network, voxel_size)
        except InputError as error:
            write_json({"not_measured": str(error)}, self.path)
            return
        survival["crop"]["start"] = [part.start for part in box]
        write_json(survival, self.path)
        logger.info("what would survive: %s", self.path)
