"""What a run says before its first bar: on what it works, with what, and for about how long."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events
from torch import nn

from cryoshuffle.devices import device_name, device_reason, is_first_process
from cryoshuffle.files.formats import read_header
from cryoshuffle.inference.inferers import MIRRORED
from cryoshuffle.lattice import as_triple
from cryoshuffle.noise.choice import BlindPlan
from cryoshuffle.report.log import StagePlace

# Times of a pass through a window: of a step, all three stages and what is scored meanwhile taken together; of the
# volume's windows, for the comparison with the filter, the result and each further mirror image. Seconds for the rest.
# Measured on two cores of an AMD EPYC with 36 x 206 x 94 voxels.
_STEP, _COMPARED, _DENOISED, _REST_S = 4.2, 3.6, 1.4, 8.0


def describe_time(seconds: float) -> str:
    """A time that is not known well, in words.

    Example:
        >>> describe_time(34), describe_time(170), describe_time(9000)
        ('about 30 s', 'about 3 min', 'about 2.5 h')
    """
    if seconds < 95:
        return f"about {max(1, round(seconds / 10)) * 10} s"
    return f"about {seconds / 60:.0f} min" if seconds < 95 * 60 else f"about {seconds / 3600:.1f} h"


class RunOpening:
    """Says before the first step: tomogram, device and why, tilt axis, effort, and on a CPU about how long it takes.

    The pace is that of one pass of the network through an empty window; nothing of the fit is changed by it.

    Args:
        tomograms: paths.
        measured: noise and blind set of the run.
        network: in evaluation mode, for its pace.
        device: that computes.
        device_name: as asked for.
        effort: its name.
        steps: of the whole fit.
        window: of a step along (Z, Y, X), voxels.
        minutes: that the fit may take; None for no limit.
        mirrors: whether eight mirror images are averaged.
        tilt_axis: as asked for; None where it is found.
        place: of the first stage; None where there is no other.
        permissive: also take MRC files whose header breaks the standard.
        quiet: say nothing.
    """

    def __init__(
        self,
        tomograms: Sequence[str],
        measured: BlindPlan,
        network: nn.Module,
        device: torch.device,
        device_name: str,
        effort: str,
        steps: int,
        window: Sequence[int] | int,
        minutes: float | None = None,
        mirrors: bool = False,
        tilt_axis: str | None = None,
        place: StagePlace | None = None,
        permissive: bool = False,
        quiet: bool = False,
    ) -> None:
        self.tomograms, self.measured, self.network, self.device = tomograms, measured, network, device
        self.device_name, self.effort, self.minutes, self.mirrors = device_name, effort, minutes, mirrors
        self.tilt_axis, self.permissive, self.quiet = tilt_axis, permissive, quiet
        self.steps, self.stages = (steps, 1) if place is None else (place.total, place.count)
        self.window = as_triple(window, "window")

    def attach(self, engine: Engine) -> None:
        """Say it at the start of the engine; of several processes the first does."""
        if not self.quiet and is_first_process():
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Say it now."""
        if sys.stderr is not None:
            print("\n".join(self.lines()), file=sys.stderr, flush=True)

    def lines(self) -> list[str]:
        """What is said, a line each."""
        shapes = [read_header(tomogram, self.permissive).shape_zyx for tomogram in self.tomograms]
        more = f", and {len(self.tomograms) - 1} more" if len(self.tomograms) > 1 else ""
        size = " × ".join(map(str, shapes[0]))
        stages = f" in {self.stages} stages" if self.stages > 1 else ""
        said = {
            "tomogram": f"{self.tomograms[0]}, {size} voxels (z, y, x){more}",
            "device": f"{device_name(self.device)}: {device_reason(self.device, self.device_name)}",
            "tilt axis": self._axis(),
            "effort": f"{self.effort}, {self.steps} steps{stages}",
        }
        if self.device.type == "cpu":
            voxels = sum(map(math.prod, shapes))
            said["time"] = f"{describe_time(self._seconds(voxels))} on this machine as it is now"
        return [f"{name + ':':12}{words}" for name, words in said.items()]

    def _axis(self) -> str:
        blind = self.measured.blind_set
        if blind.shape != "plane":
            return f"not needed, the blind spot is a {blind.shape}"
        return f"{blind.axis}, {'as given' if self.tilt_axis is not None else 'found from the noise'}"

    def _seconds(self, voxels: int) -> float:
        """Of the whole run."""
        z, y, x = self.window
        empty, took = torch.zeros(1, 1, z, y, x, device=self.device), 0.0
        # The first pass asks the system for memory.
        for _ in range(2):
            began = time.monotonic()
            with torch.no_grad():
                self.network(empty)
            took = time.monotonic() - began
        fit = self.steps * _STEP * took
        if self.minutes is not None:
            fit = min(fit, 60 * self.minutes)
        windows = voxels / empty.numel()
        return fit + _REST_S + windows * took * (_COMPARED + _DENOISED * (len(MIRRORED) if self.mirrors else 1))
