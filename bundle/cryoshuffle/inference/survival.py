"""What a denoiser leaves of an object: objects of known shape are added to a tomogram, which is denoised once more."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from cryoshuffle.boxes import Box, box_between, middle
from cryoshuffle.errors import InputError
from cryoshuffle.files.scratch import copy_planes
from cryoshuffle.inference.checkpoints import StoredNoise
from cryoshuffle.inference.inferers import HaloWindowInferer
from cryoshuffle.lattice import AXES
from cryoshuffle.noise.fields import draw_field
from cryoshuffle.noise.linear_filter import convolve

# What a model without noise means, for the message.
NO_SURVIVAL = "in units of which --survival adds objects"
# The middle of a tomogram that objects are added to, at most, along the beam and across it, voxels, and its sides at
# least.
CROP, SMALLEST = (48, 128, 128), 32
# Heights of an object over the standard deviation of the noise of a voxel.
CONTRASTS = (0.25, 0.5, 1.0)
_BLOBS_NM = (5.0, 10.0, 20.0)
_FILAMENT_NM = (7.0, 40.0)
# What a voxel is taken for where its size is not known: then sizes are told in voxels.
_UNKNOWN_NM = 1.0
# Voxels between objects, and to the borders of the crop; copies of one kind, at least; voxels across an object.
_GAP, _BORDER, _FEWEST, _THINNEST = 12, 8, 4, 2.0
# Part of the diameter over which an object fades out.
_EDGE = 0.25


@dataclass(frozen=True)
class Probe:
    """An object that is added to a tomogram.

    Attributes:
        name: for people.
        shape: from 0 to 1, (Z, Y, X).
        diameter: at half its height, voxels.
    """

    name: str
    shape: Tensor
    diameter: float


def blob(diameter: float) -> Tensor:
    """A soft sphere.

    Args:
        diameter: at half its height, voxels.

    Shape:
        ``(n, n, n)``, n odd; 1 in the middle, 0 at the faces.
    """
    line = _line(diameter, diameter)
    return _fading((line[:, None, None].square() + line[:, None].square() + line.square()).sqrt(), diameter, diameter)


def filament(diameter: float, length: float, axis: int) -> Tensor:
    """A soft, straight cylinder.

    Args:
        diameter: at half its height, voxels.
        length: at half its height, voxels.
        axis: along which it runs, 0 to 2 for z, y and x.

    Shape:
        ``(Z, Y, X)``, all odd.
    """
    across, along = _line(diameter, diameter), _line(length, diameter)
    disc = _fading((across[:, None].square() + across.square()).sqrt(), diameter, diameter)
    return (disc[..., None] * _fading(along.abs(), length, diameter)).movedim(-1, axis)


def _width(diameter: float) -> float:
    """Over which an object fades out."""
    return max(1.0, _EDGE * diameter)


def _line(length: float, diameter: float) -> Tensor:
    reach = math.ceil((length + _width(diameter)) / 2)
    return torch.arange(-reach, reach + 1, dtype=torch.float32)


def _fading(distance: Tensor, length: float, diameter: float) -> Tensor:
    """1 inside, 0 outside, linear between."""
    return (0.5 - (distance - length / 2) / _width(diameter)).clamp(0, 1)


def probes(voxel_size_angstrom: float | None, beam: int = 0) -> list[Probe]:
    """The objects that are added: blobs of three sizes, and a filament in two directions across the beam.

    Args:
        voxel_size_angstrom: of the tomogram; None where it is not known, sizes are then told in voxels.
        beam: number of the axis of the beam.
    """
    nm, unit = (_UNKNOWN_NM, "voxels") if voxel_size_angstrom is None else (voxel_size_angstrom / 10, "nm")
    across, along = _FILAMENT_NM
    words = f"{across:g} × {along:g} {unit}"
    blobs = [Probe(f"blob, {size:g} {unit}", blob(size / nm), size / nm) for size in _BLOBS_NM]
    filaments = [
        Probe(f"filament along {name}, {words}", filament(across / nm, along / nm, axis), across / nm)
        for axis, name in enumerate(AXES)
        if axis != beam
    ]
    return [*blobs, *filaments]


def is_large_enough(shape: Sequence[int]) -> bool:
    """Whether objects can be added to a tomogram of a shape (Z, Y, X)."""
    return min(shape) >= SMALLEST


def survival_voxels(shape: Sequence[int]) -> int:
    """How many voxels a measurement denoises, at most.

    Args:
        shape: of the tomogram, (Z, Y, X).
    """
    if not is_large_enough(shape):
        return 0
    kinds = len(_BLOBS_NM) + 2
    return (2 + kinds * len(CONTRASTS)) * math.prod(part.stop - part.start for part in _crop_box(shape))


def _crop_box(shape: Sequence[int], beam: int = 0) -> Box:
    thick, wide = CROP[0], CROP[1]
    z, y, x = (middle(shape, thick if axis == beam else wide)[axis] for axis in range(3))
    return z, y, x


def places(size: Sequence[int], room: Sequence[int], random: torch.Generator) -> list[Box]:
    """Where objects lie: on a lattice, apart from each other and from the borders.

    Args:
        size: of an object, (Z, Y, X), voxels.
        room: shape of the crop.
        random: of the place of the lattice within the crop.
    """
    starts = []
    for own, side in zip(size, room, strict=True):
        free, pitch = side - 2 * _BORDER, own + _GAP
        count = (free + _GAP) // pitch
        if count < 1:
            return []
        slack = free + _GAP - count * pitch
        first = _BORDER + int(torch.randint(slack + 1, (1,), generator=random))
        starts.append([first + number * pitch for number in range(count)])
    return [
        box_between(corner, [a + n for a, n in zip(corner, size, strict=True)]) for corner in itertools.product(*starts)
    ]


class Survival:
    """What is left of objects of known shape, when they are added to a tomogram and it is denoised once more.

    An object s of a known contrast is added to the tomogram y, and the denoiser f runs again. The share that comes back
    is ``<f(y + s) - f(y), s> / <s, s>``, with its standard error over the copies. A faint object may still stand out,
    so the projection of what came back is compared with the spread of the same projection over the denoised tomogram
    without it, less the mean around the object, so that a slow background does not count. The same ratio is given for
    the tomogram itself. Last, noise alone is denoised: its projection is the contrast that noise pretends to have.

    Half of the copies are brighter than what is around them and half are darker. Mirror images are not averaged, and
    the noise is taken for as strong as its mean.

    Args:
        noise: of the tomogram.
        inferer: that made the result, with its mixture of network and filter.
        seed: of places and noise.

    Invariant:
        The same seed gives the same bits. For a linear filter the share is that of its kernel, at any contrast. The
        inferer and the volume stay as they are. Beyond the crop nothing is read.
    """

    def __init__(self, noise: StoredNoise, inferer: HaloWindowInferer, seed: int = 0) -> None:
        self.noise, self.seed = noise, seed
        self.inferer = copy.copy(inferer)
        self.inferer.merger, self.inferer.mirrors, self.inferer.progress = None, False, False

    @staticmethod
    def crop(volume: Tensor, beam: int = 0) -> tuple[Box, Tensor]:
        """The part of a tomogram that is needed, and where it lies.

        Args:
            volume: ``(1, 1, Z, Y, X)``, perhaps on disk.
            beam: number of the axis of the beam.

        Raises:
            InputError: if the tomogram is too small.
        """
        shape = tuple(volume.shape[2:])
        if not is_large_enough(shape):
            raise InputError(
                f"a tomogram of {' × '.join(map(str, shape))} voxels is too small to add objects to: it takes "
                f"{SMALLEST} along each axis"
            )
        box = _crop_box(shape, beam)
        return box, copy_planes(volume[(slice(None), slice(None), *box)]).clone()

    def __call__(
        self, volume: Tensor, network: Callable[..., Tensor], voxel_size_angstrom: float | None = None
    ) -> dict[str, Any]:
        """Measure.

        Args:
            volume: standardised, ``(1, 1, Z, Y, X)``; its crop will do, which then is all of it.
            network: that made the result.
            voxel_size_angstrom: None where it is not known.

        Returns:
            ``crop`` with its ``start`` and ``shape``, ``contrasts``, ``noise_deviation`` of the standardised volume,
            ``voxel_size_angstrom``, ``objects``, and ``too_small`` and ``too_large``, the names of those that were left
            out. Each object has a ``name``, its number of ``copies``, ``noise_alone`` and its ``noise_alone_error``,
            and for each contrast ``share``, ``share_error``, ``stands_out``, ``stands_out_error`` and
            ``stood_out`` of the tomogram.

        Raises:
            InputError: if the volume is too small.
        """
        beam = self.noise.order[0]
        box, given = self.crop(volume, beam)
        room, tomogram = tuple(given.shape[2:]), given[0, 0]
        random = torch.Generator().manual_seed(self.seed)
        deviation = float(self.noise.spectrum.double().mean().sqrt())
        result: dict[str, Any] = {
            "crop": {"start": [part.start for part in box], "shape": list(room)},
            "contrasts": list(CONTRASTS),
            "noise_deviation": deviation,
            "voxel_size_angstrom": voxel_size_angstrom,
            "objects": [],
            "too_small": [],
            "too_large": [],
        }
        alone = draw_field(self.noise.spectrum, room, random).to(tomogram)
        denoise = self._denoiser(network)
        before, noise = denoise(tomogram), denoise(alone)
        for probe in probes(voxel_size_angstrom, beam):
            if probe.diameter < _THINNEST:
                result["too_small"].append(probe.name)
                continue
            where = places(probe.shape.shape, room, random)
            if len(where) < _FEWEST:
                result["too_large"].append(probe.name)
                continue
            added = _Added(probe, where, tomogram, before, noise, deviation)
            result["objects"].append(added.measure(denoise))
        return result

    def _denoiser(self, network: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def denoise(volume: Tensor) -> Tensor:
            with torch.no_grad():
                if not isinstance(network, nn.Module):
                    return self.inferer(volume[None, None], network)[0, 0]
                with eval_mode(network):
                    return self.inferer(volume[None, None], network)[0, 0]

        return denoise


@dataclass(frozen=True)
class _Added:
    """Copies of an object in a tomogram.

    Attributes:
        probe: the object.
        places: of its copies.
        tomogram: without them.
        before: what it is denoised to.
        noise: denoised noise alone.
        deviation: of the noise of a voxel.
    """

    probe: Probe
    places: Sequence[Box]
    tomogram: Tensor
    before: Tensor
    noise: Tensor
    deviation: float

    @property
    def _shape(self) -> Tensor:
        return self.probe.shape.to(self.tomogram)

    @property
    def _signs(self) -> Tensor:
        """Bright and dark in turn."""
        return torch.tensor([1.0 - 2.0 * (number % 2) for number in range(len(self.places))])

    def measure(self, denoise: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What comes back of the copies, at each contrast."""
        spread, noisy_spread = (float(self._everywhere(volume).std()) for volume in (self.before, self.tomogram))
        rows = [self._row(contrast, denoise, spread, noisy_spread) for contrast in CONTRASTS]
        return {"name": self.probe.name, "copies": len(self.places), **self._noise_alone(), "rows": rows}

    def _row(
        self, contrast: float, denoise: Callable[[Tensor], Tensor], spread: float, noisy_spread: float
    ) -> dict[str, float]:
        """The same at one contrast, beside how much the projection varies where nothing was added."""
        height, volume = contrast * self.deviation, self.tomogram.clone()
        for place, sign in zip(self.places, self._signs.tolist(), strict=True):
            volume[place] += sign * height * self._shape
        change = denoise(volume) - self.before
        share, share_error = _mean_and_error(self._projections(change, self._shape) / height)
        signal, signal_error = _mean_and_error(self._projections(change, _less_mean(self._shape)))
        return {
            "contrast": contrast,
            "share": share,
            "share_error": share_error,
            "stands_out": signal / spread if spread > 0 else 0.0,
            "stands_out_error": signal_error / spread if spread > 0 else 0.0,
            "stood_out": height / noisy_spread if noisy_spread > 0 else 0.0,
        }

    def _noise_alone(self) -> dict[str, float]:
        """The contrast that noise pretends to have, root mean square, from the corners of the crop."""
        power = self._everywhere(self.noise).square() / self.deviation**2
        parts = [power]
        for axis in range(3):
            parts = [half for part in parts for half in part.chunk(2, axis)]
        mean, error = _mean_and_error(torch.stack([part.mean() for part in parts]))
        rms = math.sqrt(mean)
        return {"noise_alone": rms, "noise_alone_error": error / (2 * rms) if rms > 0 else 0.0}

    def _projections(self, volume: Tensor, shape: Tensor) -> Tensor:
        """On the copies, in units of the shape."""
        sums = torch.stack([(volume[place] * shape).sum(dtype=torch.float64) for place in self.places]).cpu()
        return sums * self._signs / float(shape.square().sum(dtype=torch.float64))

    def _everywhere(self, volume: Tensor) -> Tensor:
        """The projection at each place where the object could lie, less the mean around it."""
        shape = _less_mean(self._shape)
        shape = shape / shape.square().sum()
        projections = convolve(volume, shape.flip(0, 1, 2))
        reach = [n // 2 + _BORDER for n in shape.shape]
        z, y, x = (slice(a, n - a) for a, n in zip(reach, volume.shape, strict=True))
        return projections[z, y, x]


def _less_mean(shape: Tensor) -> Tensor:
    return shape - shape.mean()


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of independent values, and its standard error."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
