"""What the blind network makes known for the second stage, and the teacher of the third."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from cryoshuffle.errors import SettingError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.volumes import images_of
from cryoshuffle.fit.starting import update_attention_means
from cryoshuffle.inference.checkpoints import load_plain, load_weights
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.network import unwrap
from cryoshuffle.noise.estimate import (
    LARGEST,
    SKEW,
    longest_run,
    noise_from_volume,
    planes_without_beads,
    without_outliers,
)
from cryoshuffle.noise.fields import fine_power, fine_power_of_noise
from cryoshuffle.noise.linear_filter import FilterChoice, choose_linear, shape_for
from cryoshuffle.noise.spectrum import ENOUGH, half_spectrum, noise_spectrum, smooth_spectrum, turned_noise_spectrum
from cryoshuffle.noise.turn import UPRIGHT, Turn
from cryoshuffle.noise.volumes import load_halves, on_one_scale
from cryoshuffle.noise.wedge import beam_first
from cryoshuffle.noise.whitening import undo_whitening

# Least and largest side of the middle that tells the noise, voxels, and its share of the field of view: the best one
# for the real cell in voxels of 10 and of 20 Å. Of a flat volume it is larger.
_SIDE, _LARGEST_SIDE = 128, LARGEST
_SHARE_OF_FIELD = 0.4
_AROUND = 320
# Voxels of the middle that are asked for, and of volumes from which on a fit does not learn what a leaning spectrum
# lacks.
_MANY = 1_000_000
# Of a flat part.
_SIDES = (_SIDE, 192, 256, _AROUND)
# Of the spectrum, relative, as the filter allows for; the second where it is a Wiener filter: on cells, whose signal is
# weak, one that takes the noise for too strong does less harm than one that takes it for too weak.
_SPECTRUM_ERROR, _WEAK_NOISE_ERROR = 0.03, 0.08
_SKEW_ERROR = 5.0
# Share of the finest detail that has to be noise for its strength to tell that of the noise.
_NOISY = 0.85
_LARGEST_ERROR = 0.12
# The same where rays of gold count as signal: the noise is that much too weak, and more.
_RAYS_ERROR = 0.2
# Noise that a volume alone tells, over that of its halves, from which on the halves are believed.
_LESS = 0.8
# Share of the voxels that beads of gold and their surroundings are, from which on their rays are many; and voxels
# beside a bead, along the tilt axis, that still have some of it.
_BEADS = 3e-5
_RIM = 4
LEANS = "the noise leans, so its spectrum is uncertain, and the volume is too small to fit a network to it"
RAYS = "beads of gold were left in, and their rays count as signal, so a network would learn them"


@dataclass(frozen=True)
class ClearParts:
    """The parts of volumes with beads of gold that hold no ray, and the noise as these tell it.

    Attributes:
        axis: number of the tilt axis.
        planes: across it, of each volume.
        spectrum: of their noise.
        levels: as of :class:`NoiseModel`.
    """

    axis: int
    planes: tuple[slice, ...]
    spectrum: Tensor
    levels: bool

    def of(self, images: Sequence[Tensor]) -> list[Tensor]:
        """The parts of the volumes, each ``(C, Z, Y, X)``."""
        return [_planes(image, self.axis, run) for image, run in zip(images, self.planes, strict=True)]


@dataclass(frozen=True)
class NoiseModel:
    """What the second stage needs to know.

    Attributes:
        spectrum: of the noise, as of :func:`cryoshuffle.noise.spectrum.noise_spectrum`.
        linear: the best linear filter for that noise.
        levels: whether the noise is stronger at some places than at others by what the finest detail tells; where that
            holds much signal it does not.
        doubt: why no network may be fitted to noise of this spectrum; empty where one may. Where the noise leans the
            spectrum is less certain, and a small volume, seen over and over again, teaches the network what the
            spectrum lacks. Where beads of gold were left in, their rays count as signal.
        clear: where there are such rays, the parts without; None where there are none, or no such parts.
    """

    spectrum: Tensor
    linear: FilterChoice
    doubt: str = ""
    levels: bool = False
    clear: ClearParts | None = None

    @property
    def reliable(self) -> bool:
        """Whether a network may be fitted."""
        return not self.doubt

    @property
    def weighs_networks(self) -> bool:
        """Whether it tells how good a network is; with rays in the signal the one that keeps them would seem best."""
        return self.doubt != RAYS or self.clear is not None

    def config(self) -> dict[str, Any]:
        """As plain values for the checkpoint; of the spectrum the half that tells all of it."""
        return {"spectrum": half_spectrum(self.spectrum), "levels": self.levels}


def measure_noise_model(
    volumes: Sequence[Mapping[str, Any]],
    network: nn.Module,
    checkpoint: str,
    inferer: Callable[..., Tensor],
    whitening: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
    halves: Sequence[str] | None = None,
    permissive: bool = False,
    start: nn.Module | None = None,
    mask: str | None = None,
    tomogram: str | None = None,
    fill_nan: bool = False,
    folder: str | None = None,
    order: Sequence[int] | None = None,
    turn: Turn = UPRIGHT,
) -> NoiseModel:
    """Measure the noise with a fitted blind network, and choose the linear filter that the next one has to beat.

    A spectrum is known to a few percent, less well where the noise leans (the tilt axis is off the grid); the filter
    allows for that.

    Args:
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)`` as the blind network was fitted to, whitened perhaps.
        network: the blind network; it gets the weights of the checkpoint.
        checkpoint: its model.
        inferer: that runs it over a volume.
        whitening: of the volumes, undone for the noise.
        device: that computes.
        halves: paths of even and odd half of the one volume, whose difference is then the noise.
        permissive: also take MRC files whose header breaks the standard.
        start: the trained network that the second stage begins with; a copy of it, adapted to each volume, tells signal
            that the blind network could not. None for random weights.
        mask: path of the mask that the volume was cropped with, for the halves; None for the whole volume.
        tomogram: path of the volume, which tells which way the axes of the halves run; None where they have its own.
        fill_nan: put the mean of the others where voxels of the halves are not finite.
        folder: where halves too large for memory are kept while they are read; None for memory.
        order: of the axes of the volumes, the beam first; None for that of
            :func:`cryoshuffle.noise.wedge.beam_first`.
        turn: that stands the volumes upright.

    Raises:
        SettingError: if the network is no blind-spot network.
        FileError, InputError: if the checkpoint or a half cannot be read, or the halves are not of the volume.
    """
    core = unwrap(network)
    lattice = getattr(core, "lattice", None)
    if not isinstance(lattice, Lattice) or lattice.blind_set.hides_nothing:
        raise SettingError("the second stage needs a blind-spot network to measure the noise with")
    blind_set = lattice.blind_set
    load_weights(core, load_plain(checkpoint)["model"], checkpoint)
    adapted = None if start is None or blind_set.tilt_axis is None else copy.deepcopy(unwrap(start)).eval()
    both = None if halves is None else load_halves(halves, permissive, mask, tomogram, fill_nan, folder)

    def predict(volume: Tensor) -> Tensor:
        return inferer(volume[None].to(device), core)[0].cpu()

    def explain(volume: Tensor) -> Tensor | None:
        if adapted is None:
            return None
        update_attention_means(adapted, [{"image": volume[None]}])
        return inferer(volume[None, None].to(device), adapted)[0, 0].cpu()

    images = images_of(volumes)
    normal = blind_set.tilt_axis
    if order is None and normal is not None:
        order = beam_first(central_crop(images[0][0], LARGEST), normal)
    facing = order or (0, 1, 2)

    def measure(image: Tensor, halves: tuple[Tensor, Tensor] | None, side: int) -> _VolumeNoise:
        with eval_mode(core):
            return _measure_volume(image, predict, explain, whitening, blind_set, facing, turn, halves, side)

    # Of halves no more than that is read.
    most = _AROUND if both is None else _LARGEST_SIDE
    noises = [measure(image, both, _side_of_middle(image, most)) for image in images]
    spectrum = _mean_spectrum(noises)
    skews = [noise.skew for noise in noises if noise.skew is not None]
    skew = sum(skews) / max(1, len(skews))
    # A fit to fewer voxels learns what a leaning spectrum lacks: measured on 64^3 (it does) and 80 x 144 x 144 (not).
    large = sum(image.numel() for image in images) >= _MANY
    middles = [noise.middle for noise in noises]
    known = _WEAK_NOISE_ERROR if sum(middle.numel() for middle in middles) >= ENOUGH else _SPECTRUM_ERROR
    error = min(_LARGEST_ERROR, known + _SKEW_ERROR * skew)
    doubt = "" if skew <= SKEW or large else LEANS
    clear = None
    if sum(noise.outliers for noise in noises) > _BEADS * sum(noise.voxels for noise in noises):
        doubt, error = RAYS, _RAYS_ERROR
        # Without a starting network there is none to weigh; rays lie in planes across the tilt axis.
        if start is not None and blind_set.tilt_axis is not None and turn.is_none:
            clear = _measure_clear_parts(images, blind_set.tilt_axis, both, measure)
    linear = choose_linear(middles, spectrum, error, shape_for(blind_set, facing))
    return NoiseModel(spectrum, linear, doubt, _has_levels(noises, spectrum), clear)


def _side_of_middle(image: Tensor, most: int = _LARGEST_SIDE) -> int:
    """Side of the middle of a volume ``(1, Z, Y, X)`` that tells noise and filter, voxels.

    Small voxels hold little signal each, so it takes many to tell it from the scatter of the noise. What is far from
    the middle of the field of view is often ice, and says too little of the signal. Of a flat volume more of the field
    is needed for as many voxels, up to a side of ``most``.
    """
    field = sorted(image.shape[1:])[1]
    # Even, so that the middle of the middle of a volume, as halves are read, is the middle of the volume.
    side = min(max(int(_SHARE_OF_FIELD * field) // 2 * 2, _SIDE), _LARGEST_SIDE)
    return _side_of_many(image, range(side, most, 2)) or most


def _side_of_many(image: Tensor, sides: Iterable[int]) -> int | None:
    """The first of some sides, from small to large, whose middle of ``(1, Z, Y, X)`` has many voxels; None if none."""
    return next((side for side in sides if math.prod(min(side, n) for n in image.shape[1:]) >= _MANY), None)


def _mean_spectrum(noises: Sequence[_VolumeNoise]) -> Tensor:
    return torch.stack([noise.spectrum for noise in noises]).mean(dim=0).float()


def _has_levels(noises: Sequence[_VolumeNoise], spectrum: Tensor) -> bool:
    """Whether the finest detail is noise enough to tell how strong that is."""
    fine = sum(float(fine_power(noise.middle).mean()) for noise in noises) / len(noises)
    return fine_power_of_noise(spectrum) > _NOISY * fine


def _measure_clear_parts(
    images: Sequence[Tensor],
    tilt_axis: int,
    halves: tuple[Tensor, Tensor] | None,
    measure: Callable[[Tensor, tuple[Tensor, Tensor] | None, int], _VolumeNoise],
) -> ClearParts | None:
    """What is without rays of gold; None where that is too little."""
    runs, noises = [], []
    for image in images:
        # Of halves only the middle is here; a bead beside it has rays in it.
        seen = image if halves is None else central_crop(image, LARGEST)
        first = (image.shape[1 + tilt_axis] - seen.shape[1 + tilt_axis]) // 2
        clear = planes_without_beads(image[0], tilt_axis, _RIM)[first : first + seen.shape[1 + tilt_axis]]
        run = longest_run(clear)
        runs.append(slice(first + run.start, first + run.stop))
        part, *of_halves = (_planes(volume, tilt_axis, run) for volume in (seen, *(halves or ())))
        side = _side_of_many(part, _SIDES)
        if side is None:
            return None
        noises.append(measure(part, None if halves is None else (of_halves[0], of_halves[1]), side))
    spectrum = _mean_spectrum(noises)
    return ClearParts(tilt_axis, tuple(runs), spectrum, _has_levels(noises, spectrum))


def _planes(volume: Tensor, axis: int, run: slice) -> Tensor:
    """Planes of a volume ``(..., Z, Y, X)`` across an axis."""
    return volume.narrow(axis - 3, run.start, run.stop - run.start)


@dataclass(frozen=True)
class _VolumeNoise:
    """The noise of one volume.

    Attributes:
        middle: of the volume, ``(Z, Y, X)``, not whitened, without outliers.
        spectrum: of the noise.
        skew: how the noise leans; None where that is not asked.
        outliers: voxels of beads of gold and their surroundings.
        voxels: that were searched for them.
    """

    middle: Tensor
    spectrum: Tensor
    skew: float | None = None
    outliers: int = 0
    voxels: int = 0


def _measure_volume(
    image: Tensor,
    predict: Callable[[Tensor], Tensor],
    explain: Callable[[Tensor], Tensor | None],
    whitening: Mapping[str, Any] | None,
    blind_set: BlindSet,
    order: Sequence[int],
    turn: Turn,
    halves: tuple[Tensor, Tensor] | None,
    side: int,
) -> _VolumeNoise:
    """Measure the noise in the middle of a volume.

    Args:
        image: the volume, ``(1, Z, Y, X)``, whitened perhaps.
        predict: what the blind network makes of a part of it.
        explain: what a network that sees everything makes of ``(Z, Y, X)`` without whitening; None where there is none.
        whitening: of the volume.
        blind_set: of the blind network.
        order: of the axes, the beam first.
        turn: that stands the volume upright.
        halves: even and odd, whose difference is the noise; None for none.
        side: of the middle, voxels.
    """
    crop = central_crop(image, turn.widen(side))
    whole, after = (undo_whitening(volume, whitening)[0] for volume in (crop, predict(crop)))
    before, _ = without_outliers(whole)
    middle, of_halves = central_crop(before, side), None
    if halves is not None:
        # Beads are in the halves as they are in the whole.
        even, odd = on_one_scale(central_crop(whole, side), *(central_crop(half, side) for half in halves))
        of_halves = smooth_spectrum(without_outliers(even - odd)[0])
        if blind_set.tilt_axis is None or middle.numel() < ENOUGH:
            return _VolumeNoise(middle, of_halves)
    denoised = explain(before)
    around = undo_whitening(central_crop(image, turn.widen(_AROUND)), whitening)[0]
    around, outliers = without_outliers(around)
    if not turn.is_none:
        spectrum = turned_noise_spectrum(before, turn, blind_set, denoised, around, order)
    else:
        spectrum = noise_spectrum(before, before - after, blind_set, denoised, around, order)
    skew = None
    if of_halves is not None:
        # Halves of tilts differ in signal too, where their planes lie apart.
        spectrum = torch.where(spectrum < _LESS * of_halves, spectrum, of_halves)
    elif blind_set.tilt_axis is not None:
        skew = noise_from_volume(turn.upright(before)).skew[blind_set.axis]
    return _VolumeNoise(middle, spectrum, skew, outliers, around.numel())
