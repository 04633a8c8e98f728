"""What a run says before its first bar: on what it works, with what, and for about how long."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Engine, Events
from torch import nn

from cryoshuffle.devices import device_name, device_reason, is_first_process
from cryoshuffle.files.formats import read_header
from cryoshuffle.inference.survival import survival_voxels
from cryoshuffle.lattice import as_triple
from cryoshuffle.noise.choice import BlindPlan
from cryoshuffle.report.log import StagePlace

# Passes through a window: of a step, all three stages and what is scored meanwhile taken together; and of a pass over
# as many voxels of a volume, with the filter. Measured on two cores of an AMD EPYC.
_STEP, _VOLUME = 4.2, 1.4
# Voxels of a volume that noise and comparison with the filter look at, along each axis, and passes over them: of all,
# and where the comparison looks at their middle too. From so many voxels on it does, or where nothing is fitted.
_COMPARED_SIDE, _COMPARED, _COMPARED_MORE, _LARGE = 128, 4, 8, 1_000_000
# The rest, seconds: of any run, and of each voxel that is read, written and pictured.
_REST_S, _VOXEL_S = 6.0, 1e-6
# Passes that tell the pace.
_TIMED = 3
# Steps that a stage takes at least, however few its minutes.
_LEAST_STEPS = 25


@dataclass(frozen=True)
class Pace:
    """How fast a device is.

    Attributes:
        step_s: seconds of a step of the fit.
        voxel_s: seconds of a voxel in a pass of the network over a volume.
        rest_s: seconds of a run that depend on neither.
    """

    step_s: float
    voxel_s: float
    rest_s: float


# GPUs that whole runs were timed on (docs/data/gpu_graph.json; voxels by docs/data/gpu.json).
GPUS = {"NVIDIA H200": Pace(step_s=0.034, voxel_s=1 / 29e6, rest_s=20.0)}


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
    """Says before the first step: tomogram, device and why, tilt axis, effort, and about how long the run takes.

    The pace of a CPU is that of a few passes of the network through an empty window; nothing of the fit is changed by
    it. That of a GPU is known for those in :data:`GPUS`. Of others it is said that the bar tells the time.

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
        passes: of the network over each tomogram behind the fit, see
            :func:`cryoshuffle.inference.error_map.count_passes`.
        tilt_axis: as asked for; None where it is found.
        place: of the first stage; None where there is no other.
        permissive: also take MRC files whose header breaks the standard.
        quiet: say nothing.
        adds_objects: whether a table of what would survive is made at the end.
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
        passes: int = 0,
        tilt_axis: str | None = None,
        place: StagePlace | None = None,
        permissive: bool = False,
        quiet: bool = False,
        adds_objects: bool = False,
    ) -> None:
        self.tomograms, self.measured, self.network, self.device = tomograms, measured, network, device
        self.device_name, self.effort, self.minutes, self.passes = device_name, effort, minutes, passes
        self.tilt_axis, self.permissive, self.quiet = tilt_axis, permissive, quiet
        self.steps, self.stages = (steps, 1) if place is None else (place.total, place.count)
        self.window, self.adds_objects = as_triple(window, "window"), adds_objects

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
        others = f", and {len(self.tomograms) - 1} more" if len(self.tomograms) > 1 else ""
        size = " × ".join(map(str, shapes[0]))
        stages = f" in {self.stages} stages" if self.stages > 1 else ""
        limit = "" if self.minutes is None else f", or what {self.minutes:g} minutes allow of them"
        said = {
            "tomogram": f"{self.tomograms[0]}, {size} voxels (z, y, x){others}",
            "device": f"{device_name(self.device)}: {device_reason(self.device, self.device_name)}",
            "tilt axis": self._axis(),
            "effort": f"{self.effort}, {self.steps} steps{stages}{limit}",
            "time": self._time(shapes),
        }
        return [f"{name + ':':12}{words}" for name, words in said.items()]

    def _axis(self) -> str:
        blind = self.measured.blind_set
        if blind.shape != "plane":
            return f"not needed, the blind spot is a {blind.shape}"
        return f"{blind.axis}, {'as given' if self.tilt_axis is not None else 'found from the noise'}"

    def _time(self, shapes: Sequence[Sequence[int]]) -> str:
        if self.device.type == "cpu":
            return f"{describe_time(self._seconds(shapes, self._measured_pace()))} on this machine as it is now"
        known = GPUS.get(device_name(self.device))
        if known is None:
            return "not known for this GPU; after the first steps the bar tells that of the fit"
        return f"{describe_time(self._seconds(shapes, known))}, as runs on such a GPU took"

    def _measured_pace(self) -> Pace:
        """That of the device as it is now."""
        z, y, x = self.window
        empty, began = torch.zeros(1, 1, z, y, x, device=self.device), 0.0
        # The first pass asks the system for memory.
        for number in range(1 + _TIMED):
            began = time.monotonic() if number == 1 else began
            with torch.no_grad():
                self.network(empty)
        took = (time.monotonic() - began) / _TIMED
        return Pace(_STEP * took, _VOLUME * took / empty.numel(), _REST_S)

    def _seconds(self, shapes: Sequence[Sequence[int]], pace: Pace) -> float:
        """Of the whole run."""
        voxels, looked_at = 0, 0
        for shape in shapes:
            own = math.prod(shape)
            more = _COMPARED_MORE if own >= _LARGE or self.stages == 1 else 0
            voxels += own
            looked_at += (_COMPARED + more) * math.prod(min(side, _COMPARED_SIDE) for side in shape)
            looked_at += survival_voxels(shape) if self.adds_objects else 0
        fit = self.steps * pace.step_s
        if self.minutes is not None:
            least = min(self.steps, _LEAST_STEPS * min(self.stages, 2))
            fit = min(fit, max(60 * self.minutes, least * pace.step_s))
        return fit + (looked_at + self.passes * voxels) * pace.voxel_s + pace.rest_s + voxels * _VOXEL_S
