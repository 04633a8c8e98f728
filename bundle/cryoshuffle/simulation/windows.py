"""Simulated tomograms of many kinds, no two alike, for a network to begin with before it has seen a tomogram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from weakref import finalize

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from cryoshuffle.boxes import draw_box
from cryoshuffle.errors import SettingError
from cryoshuffle.lattice import as_triple
from cryoshuffle.memory import keep_memory
from cryoshuffle.simulation.phantoms import SMALLEST_SIDE, load_templates, scaled
from cryoshuffle.simulation.tilt_series import CASES, TiltScheme, simulate

_DENSE = 0.05
# Of a process that simulates ahead: what it simulates for.
_served: list[SimulatedWindows] = []
_kept = ExitStack()


@dataclass(frozen=True)
class SimulationRanges:
    """What simulated tomograms differ in; pairs are the smallest and the largest.

    Args:
        cases: kinds of reconstruction, of :data:`cryoshuffle.simulation.tilt_series.CASES`; one that is named more than
            once is drawn that many times as often.
        snr: power of signal over noise, drawn evenly in its logarithm; smoothing raises it.
        voxel_size_angstrom: of the volume, before the case ``binned`` makes it 1.5 times as large.
        cell_voxel_size_angstrom: the same for the case ``insitu``.
        largest_deg: tilts go from minus to plus one of these angles.
        step_deg: between tilts, one of these.
        defocus_angstrom: underfocus.
        sirt_iterations: one of these, for the case ``sirt``.
        mtf_at_nyquist: of the detector; the case ``white`` has none.
        molecules: kinds in one volume.
        sparse: share of volumes in which up to half of the places stay empty.
        turned: share of volumes whose tilt axis is up to ``turned_deg`` off the grid.
        turned_deg: degrees.
        damped: share of volumes that were smoothed after their reconstruction.
        damping: cycles per voxel at which the Gaussian that did it has fallen to 0.6 of the amplitude.
        rotation_deg: of the recorded images, for the case ``insitu``.
        dose: of an image, electrons per Å^2, one of these, for the case ``insitu``.
    """

    cases: Sequence[str] = (*CASES, "insitu", "insitu")
    snr: tuple[float, float] = (0.015, 1.0)
    voxel_size_angstrom: tuple[float, float] = (7.0, 14.0)
    cell_voxel_size_angstrom: tuple[float, float] = (8.0, 24.0)
    largest_deg: Sequence[float] = (54.0, 60.0, 66.0)
    step_deg: Sequence[float] = (2.0, 3.0)
    defocus_angstrom: tuple[float, float] = (15000.0, 50000.0)
    sirt_iterations: Sequence[int] = (5, 10, 20)
    mtf_at_nyquist: tuple[float, float] = (0.3, 1.0)
    molecules: tuple[int, int] = (3, 8)
    sparse: float = 0.4
    turned: float = 0.4
    turned_deg: float = 10.0
    damped: float = 0.4
    damping: tuple[float, float] = (0.2, 0.6)
    rotation_deg: tuple[float, float] = (-10.0, 10.0)
    dose: Sequence[float] = (0.0, 2.0, 3.0)


class SimulatedWindows(Dataset[Mapping[str, Tensor]]):
    """Windows of simulated tomograms and of their truth.

    Window i of epoch e is a function of seed, e and i alone. It comes from one of ``pool`` volumes, of which the
    oldest makes room for a new one after every ``windows_per_volume`` windows. Half of the volumes are dark where
    others are bright, and half have their tilt axis along x in place of y.

    Args:
        templates: folder of molecule densities, MRC, voxels of 10 Å; None takes those of the package.
        length: batches in an epoch.
        window: sides along (Z, Y, X), voxels.
        shape: of the volumes, (Z, Y, X), voxels.
        seed: of everything.
        only: names of densities, without ``.mrc``; None takes all of the folder.
        ranges: what the volumes differ in.
        pool: volumes at a time.
        windows_per_volume: drawn before the oldest volume is replaced.
        workers: processes that simulate ahead of what is needed, so that a GPU need not wait; 0 for none. The windows
            are the same.
        batch_size: windows in a batch.

    Shape:
        ``image`` and ``label``: ``(1, *window)``; the tomogram has mean 0 and deviation 1, the truth its scale.

    Raises:
        FileError, InputError: if there are no densities, or not those named, or one is no volume.
        SettingError: if the window does not fit.
    """

    def __init__(
        self,
        templates: str | None,
        length: int,
        window: Sequence[int] = (48, 48, 48),
        shape: Sequence[int] = (56, 96, 96),
        seed: int = 0,
        only: Sequence[str] | None = None,
        ranges: SimulationRanges | None = None,
        pool: int = 40,
        windows_per_volume: int = 12,
        workers: int = 0,
        batch_size: int = 1,
    ) -> None:
        self.templates, self.only = templates, only
        self.molecules = [_tight(density) for density in load_templates(templates, only)]
        self.window, self.shape = as_triple(window, "window"), as_triple(shape, "shape", smallest=SMALLEST_SIDE)
        if any(w > n for w, n in zip(self.window, self.shape, strict=True)):
            raise SettingError(f"a window of {self.window} does not fit into volumes of {self.shape}: make it smaller")
        if pool < 1 or windows_per_volume < 1:
            raise SettingError(f"pool is {pool}, windows per volume {windows_per_volume}: give at least 1")
        self.length, self.seed = length * batch_size, seed
        self.ranges = SimulationRanges() if ranges is None else ranges
        self.pool, self.windows_per_volume = pool, windows_per_volume
        self.epoch = 0
        self.workers = workers
        self._volumes: dict[int, tuple[Tensor, Tensor]] = {}
        self._ahead: dict[int, Any] = {}
        self._processes: Any = None

    def scored(self, length: int) -> SimulatedWindows:
        """Windows of other volumes, the same at each epoch, to score a network with.

        Args:
            length: how many; few would choose an epoch by chance.
        """
        return SimulatedWindows(
            self.templates, length, self.window, self.shape, self.seed + 1, self.only, self.ranges,
            pool=20, windows_per_volume=1000, workers=self.workers,
        )  # fmt: skip

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose windows are drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Mapping[str, Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(f"window {index} of {self.length}")
        number = self.epoch * self.length + index
        # A RandomState because the windows of a fit are drawn with one.
        seeds = np.random.SeedSequence([self.seed, 0, number]).generate_state(1)
        random = np.random.RandomState(int(seeds[0]))
        oldest = number // self.windows_per_volume
        self._volumes = {n: v for n, v in self._volumes.items() if oldest <= n < oldest + self.pool}
        chosen = oldest + int(random.randint(self.pool))
        if self.workers:
            self._look_ahead(oldest)
        if chosen not in self._volumes:
            ahead = self._ahead.pop(chosen, None)
            volumes = self.simulate(chosen) if ahead is None else ahead.get()
            self._volumes[chosen] = torch.as_tensor(volumes[0]), torch.as_tensor(volumes[1])
        tomogram, truth = self._volumes[chosen]
        box = draw_box(self.shape, self.window, random)
        turned = [axis for axis in range(3) if random.randint(2)]
        return {"image": tomogram[box].flip(turned)[None], "label": truth[box].flip(turned)[None]}

    def _look_ahead(self, oldest: int) -> None:
        """Have the processes simulate what is in the pool and what comes into it next."""
        if self._processes is None:
            self._processes = get_context("fork").Pool(self.workers, _begin, (self,))
            finalize(self, self._processes.terminate)
        self._ahead = {n: result for n, result in self._ahead.items() if n >= oldest}
        for number in range(oldest, oldest + self.pool + 2 * self.workers):
            if number not in self._volumes and number not in self._ahead:
                self._ahead[number] = self._processes.apply_async(_simulate, (number,))

    def simulate(self, number: int) -> tuple[Tensor, Tensor]:
        """One of the volumes.

        Args:
            number: which one.

        Returns:
            Tomogram and truth, ``(Z, Y, X)``, on the scale of the standardised tomogram.
        """
        seeds = np.random.SeedSequence([self.seed, 1, number])
        random = np.random.default_rng(seeds)
        ranges = self.ranges
        case = str(random.choice(list(ranges.cases)))
        snr = math.exp(random.uniform(*np.log(ranges.snr)))
        cell = case == "insitu"
        size = float(random.uniform(*(ranges.cell_voxel_size_angstrom if cell else ranges.voxel_size_angstrom)))
        count = min(int(random.integers(ranges.molecules[0], ranges.molecules[1], endpoint=True)), len(self.molecules))
        some = [self.molecules[i] for i in random.choice(len(self.molecules), count, replace=False)]
        # A little size of their own and a little weight: there are more molecules than templates.
        parts = [scaled(m, 10 / size * float(random.uniform(0.9, 1.1))) * float(random.uniform(0.6, 1)) for m in some]
        if random.random() < ranges.sparse:
            parts += [torch.zeros(8, 8, 8)] * int(random.integers(1, count, endpoint=True))
        scheme = TiltScheme(
            largest_deg=float(random.choice(list(ranges.largest_deg))),
            step_deg=float(random.choice(list(ranges.step_deg))),
            defocus_angstrom=float(random.uniform(*ranges.defocus_angstrom)),
            shift_voxels=0.5 if case in {"aligned", "insitu"} else 0.0,
            sirt_iterations=int(random.choice(list(ranges.sirt_iterations))) if case == "sirt" else 0,
            mtf_at_nyquist=float(random.uniform(*ranges.mtf_at_nyquist)),
            rotation_deg=float(random.uniform(*ranges.rotation_deg)) if cell else 0.0,
            dose=float(random.choice(list(ranges.dose))) if cell else 0.0,
        )
        simulation = simulate(case, self.shape, snr, int(seeds.generate_state(1)[0]), parts, size, scheme)
        tomogram, truth = simulation.tomogram, simulation.truth - simulation.truth.mean()
        if random.random() < ranges.turned:
            angle = float(random.uniform(-ranges.turned_deg, ranges.turned_deg))
            tomogram, truth = _turned(tomogram, angle), _turned(truth, angle)
        if random.random() < ranges.damped:
            at = float(random.uniform(*ranges.damping))
            tomogram, truth = _damped(tomogram, at), _damped(truth, at)
        if random.random() < 0.5 and self.shape[1] == self.shape[2]:
            tomogram, truth = tomogram.transpose(1, 2), truth.transpose(1, 2)
        deviation = tomogram.std() * (1 if random.random() < 0.5 else -1)
        return (tomogram - tomogram.mean()) / deviation, truth / deviation


def _begin(dataset: SimulatedWindows) -> None:
    """At the start of a process that was forked, in which torch may use one thread alone; it keeps its memory."""
    torch.set_num_threads(1)
    _kept.enter_context(keep_memory(torch.device("cpu")))
    _served[:] = [dataset]


def _simulate(number: int) -> tuple[np.ndarray, np.ndarray]:
    """One of the volumes, in such a process; arrays take no shared memory, of which there may be little."""
    tomogram, truth = _served[0].simulate(number)
    return tomogram.numpy(), truth.numpy()


def _tight(density: Tensor) -> Tensor:
    """A density in the smallest box that holds it."""
    inside = (density > _DENSE).nonzero()
    low, high = inside.min(dim=0).values.tolist(), (inside.max(dim=0).values + 1).tolist()
    return density[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]


def _turned(volume: Tensor, degrees: float) -> Tensor:
    """A volume turned in its XY plane about its middle, mirrored at the border."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = volume.shape[1:]
    theta = torch.tensor([[[cos, -sin * y / x, 0.0], [sin * x / y, cos, 0.0]]])
    grid = F.affine_grid(theta, [1, *volume.shape], align_corners=False)
    return F.grid_sample(volume[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)[0]


def _damped(volume: Tensor, at: float) -> Tensor:
    """A volume smoothed by a Gaussian, given in cycles per voxel."""
    z, y = (torch.fft.fftfreq(n) for n in volume.shape[:2])
    squared = z[:, None, None] ** 2 + y[:, None] ** 2 + torch.fft.rfftfreq(volume.shape[2]) ** 2
    return torch.fft.irfftn(torch.fft.rfftn(volume) * torch.exp(-squared / (2 * at**2)), s=volume.shape)
