"""What the blind network makes known for the second stage, and the teacher of the third."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cryoshuffle.checkpoints import load_plain, load_weights
from cryoshuffle.errors import FileError, InputError, SettingError
from cryoshuffle.filters import FilterChoice, choose_linear, shape_for
from cryoshuffle.lattice import Lattice
from cryoshuffle.layers import DilatedChannelAttention
from cryoshuffle.network import unwrap
from cryoshuffle.noise import SKEW, load_halves, noise_from_volume, on_one_scale, without_outliers
from cryoshuffle.preview import central_crop
from cryoshuffle.recorruption import (
    draw_noise,
    fine_power,
    fine_power_of_noise,
    lay_noise,
    noise_level,
    noise_spectrum,
    smooth_spectrum,
)
from cryoshuffle.whitening import undo_whitening

_SIDE = 128
_AROUND = 320
# Voxels that a network in training mode takes at once, in less than 1 GiB.
_AT_ONCE = 700_000
# Of the spectrum, relative, as the filter allows for; the second where it is a Wiener filter: on cells, whose signal is
# weak, one that takes the noise for too strong does less harm than one that takes it for too weak.
_SPECTRUM_ERROR, _WEAK_NOISE_ERROR = 0.03, 0.08
_SKEW_ERROR = 5.0
# Share of the finest detail that has to be noise for its strength to tell that of the noise.
_NOISY = 0.85
_LARGEST_ERROR = 0.12
# Noise that a volume alone tells, over that of its halves, from which on the halves are believed.
_LESS = 0.8
# Voxels below which a fit learns what a leaning spectrum lacks: measured on 64^3 (it does) and 80 x 144 x 144 (not).
ENOUGH = 1_000_000


# Share of the voxels that beads of gold and their surroundings are, from which on their rays are many.
_BEADS = 3e-5
LEANS = "the noise leans, so its spectrum is uncertain, and the volume is too small to fit a network to it"
RAYS = "beads of gold were left in, and their rays count as signal, so no network is fitted to the noise"


@dataclass(frozen=True)
class Refinement:
    """What the second stage needs to know.

    Attributes:
        spectrum: of the noise, as of :func:`cryoshuffle.recorruption.noise_spectrum`.
        linear: the best linear filter for that noise.
        levels: whether the noise is stronger at some places than at others by what the finest detail tells; where that
            holds much signal it does not.
        doubt: why no network may be fitted to noise of this spectrum; empty where one may. Where the noise leans the
            spectrum is less certain, and a small volume, seen over and over again, teaches the network what the
            spectrum lacks. Where beads of gold were left in, their rays count as signal.
    """

    spectrum: Tensor
    linear: FilterChoice
    doubt: str = ""
    levels: bool = False

    @property
    def reliable(self) -> bool:
        """Whether a network may be fitted."""
        return not self.doubt


def measure_refinement(
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
) -> Refinement:
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
        start: the trained network that the second stage begins with; a copy of it, settled on each volume, tells signal
            that the blind network could not. None for random weights.
        mask: path of the mask that the volume was cropped with, for the halves; None for the whole volume.
        tomogram: path of the volume, which tells which way the axes of the halves run; None where they have its own.

    Raises:
        SettingError: if the network is no blind-spot network.
        FileError, InputError: if the checkpoint or a half cannot be read, or the halves are not of the volume.
    """
    core = unwrap(network)
    lattice = getattr(core, "lattice", None)
    if not isinstance(lattice, Lattice) or lattice.blind_set.shape == "none":
        raise SettingError("the second stage needs a blind-spot network to measure the noise with")
    load_weights(core, load_plain(checkpoint)["model"], checkpoint)
    was_training = core.training
    core.eval()
    settled = None if start is None or lattice.blind_set.shape != "plane" else copy.deepcopy(unwrap(start)).eval()
    spectra, crops, skews = [], [], []
    beads = seen = 0
    for item in volumes:
        crop = central_crop(torch.as_tensor(item["image"]).as_subclass(Tensor), _SIDE)
        with torch.no_grad():
            after = inferer(crop[None].to(device), core)[0].cpu()
        before, after = (undo_whitening(volume, whitening)[0] for volume in (crop, after))
        before, _ = without_outliers(before)
        crops.append(before)
        told = None
        if halves is not None:
            both = load_halves(halves, permissive, mask, tomogram)
            even, odd = on_one_scale(before, *(central_crop(half, _SIDE) for half in both))
            told = smooth_spectrum(even - odd)
            if lattice.blind_set.shape != "plane" or before.numel() < ENOUGH:
                spectra.append(told)
                continue
        denoised = None
        if settled is not None:
            settle(settled, [{"image": before[None]}])
            with torch.no_grad():
                denoised = inferer(before[None, None].to(device), settled)[0, 0].cpu()
        around = undo_whitening(central_crop(torch.as_tensor(item["image"]).as_subclass(Tensor), _AROUND), whitening)[0]
        around, outliers = without_outliers(around)
        beads, seen = beads + outliers, seen + around.numel()
        spectrum = noise_spectrum(before, before - after, lattice.blind_set, denoised, around)
        if told is not None:
            # Halves of tilts differ in signal too, where their planes lie apart.
            spectra.append(torch.where(spectrum < _LESS * told, spectrum, told))
            continue
        spectra.append(spectrum)
        if lattice.blind_set.shape == "plane":
            skews.append(noise_from_volume(before).skew[lattice.blind_set.axis])
    core.train(was_training)
    spectrum = torch.stack(spectra).mean(dim=0).float()
    skew = sum(skews) / max(1, len(skews))
    large = sum(torch.as_tensor(item["image"]).numel() for item in volumes) >= ENOUGH
    error = min(_LARGEST_ERROR, (_WEAK_NOISE_ERROR if large else _SPECTRUM_ERROR) + _SKEW_ERROR * skew)
    doubt = "" if skew <= SKEW or large else LEANS
    if beads > _BEADS * seen:
        doubt = RAYS
    linear = choose_linear(crops, spectrum, error, shape_for(lattice.blind_set))
    fine = sum(float(fine_power(crop).mean()) for crop in crops) / len(crops)
    return Refinement(spectrum, linear, doubt, levels=fine_power_of_noise(spectrum) > _NOISY * fine)


def begin_with(network: nn.Module, start: str | None, device: torch.device | str = "cpu") -> nn.Module:
    """The network of the second stage with the weights it begins with.

    Args:
        network: one that hides nothing, with random weights.
        start: checkpoint of a network of the same form; None keeps the random weights.
        device: it goes to.

    Raises:
        FileError: if the checkpoint cannot be read.
        InputError: if it is of another network.
        SettingError: if several processes run.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise SettingError("the second stage runs in one process: leave out refine.yaml, or start one process only")
    if start is None:
        return network.to(device)
    content = load_plain(start)
    own = getattr(network, "lattice", None)
    way_out = "begin without it: --cold-start, in a config warm_start: none"
    if isinstance(own, Lattice) and content.get("lattice") != own.config():
        raise InputError(f"{start}: is a network with a blind spot, and the second stage has none; {way_out}")
    try:
        load_weights(network, content["model"], start)
    except InputError as error:
        raise InputError(f"{start}: is not of the configured body; {way_out}") from error
    return network.to(device)


def fingerprint(start: str | None) -> str | None:
    """What tells one starting network from another, wherever it lies; None for none.

    Raises:
        FileError: if it cannot be read.
    """
    if start is None:
        return None
    try:
        return hashlib.sha256(Path(start).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise FileError(
            f"{start}: cannot be read ({error.strerror or error}), check the file and its rights"
        ) from error


def settle(network: nn.Module, volumes: Sequence[Mapping[str, Any]]) -> None:
    """Make the running means of channel attention those of some volumes, for a network that was not fitted to them.

    Args:
        network: to settle.
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)``; of large ones the middle is taken.
    """
    was_training, device = network.training, next(network.parameters()).device
    means = [module for module in network.modules() if isinstance(module, DilatedChannelAttention)]
    momenta = [mean.momentum for mean in means]
    crops = [central_crop(torch.as_tensor(item["image"]).as_subclass(Tensor), _SIDE) for item in volumes]
    network.train()
    with torch.no_grad():
        for number, part in enumerate((part for crop in crops for part in _halved(crop)), start=1):
            for mean in means:
                mean.momentum = 1 / number
            network(part[None].to(device))
    for mean, momentum in zip(means, momenta, strict=True):
        mean.momentum = momentum
    network.train(was_training)


def _halved(volume: Tensor) -> list[Tensor]:
    """A volume ``(1, Z, Y, X)`` in equal parts small enough to go through the network at once."""
    if volume.numel() <= _AT_ONCE:
        return [volume]
    longest = max((3, 2, 1), key=lambda axis: volume.shape[axis])
    return [part for half in torch.chunk(volume, 2, longest) for part in _halved(half)]


def copy_with_weights(network: nn.Module, checkpoint: str) -> nn.Module:
    """A copy of a network with the weights of a checkpoint.

    Raises:
        FileError, InputError: if the checkpoint cannot be read or is not of this network.
    """
    copied = copy.deepcopy(unwrap(network))
    load_weights(copied, load_plain(checkpoint)["model"], checkpoint)
    return copied


class Distillation:
    """Batches for the last stage: the tomogram itself, and what the teacher makes of it over several recorruptions.

    A network trained on recorrupted input is best averaged over draws of the noise, and over mirror images; one that
    has learnt the average needs a single pass, over the tomogram as it is. Used as ``prepare_batch`` of MONAI's
    engines.

    Args:
        teacher: the network of the second stage.
        spectrum: of the noise.
        inferer: that runs the teacher.
        strength: of the recorruption.
        draws: averaged.
        fixed: draw the same noise each time, for a score that can be compared.
        levels: make the noise as strong as the volume's is at each place.

    Shape:
        batch with ``image`` and ``label`` of ``(B, 1, Z, Y, X) -> (B, 1, Z, Y, X)`` twice; voxels that are NaN in
        ``label`` are NaN in the target.
    """

    def __init__(
        self,
        teacher: nn.Module,
        spectrum: Tensor,
        inferer: Callable[..., Tensor],
        strength: float = 1.0,
        draws: int = 2,
        fixed: bool = False,
        levels: bool = False,
    ) -> None:
        self.teacher = teacher.eval()
        self.spectrum, self.inferer, self.strength = spectrum, inferer, strength
        self.draws, self.fixed, self.levels = draws, fixed, levels
        self._known: dict[tuple[float, ...], Tensor] = {}

    def __call__(
        self,
        batch: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor]:
        """Make the pair."""
        image, label = (
            torch.as_tensor(batch[key]).as_subclass(Tensor).to(device, non_blocking=non_blocking)
            for key in ("image", "label")
        )
        if not self.fixed:
            return image, self._target(image, label, int(torch.randint(2**31, (1,))))
        # What is drawn is always the same, so it is worth keeping.
        key = (*image.shape, float(image.double().sum()), float(image.flatten()[0]))
        if key not in self._known:
            self._known[key] = self._target(image, label, 0)
        return image, self._known[key]

    def _target(self, image: Tensor, label: Tensor, seed: int) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        target = torch.zeros_like(image)
        level: Tensor | float = 1.0
        if self.levels:
            level = torch.stack([noise_level(one[0].cpu(), self.spectrum)[None] for one in image]).to(image.device)
        for _ in range(self.draws):
            noise = level * lay_noise(draw_noise(self.spectrum, random), image.shape[2:]).to(image.device)
            mirrored = [2 + axis for axis in range(3) if int(torch.randint(2, (1,), generator=random))]
            with torch.no_grad():
                one = self.inferer((image + self.strength * noise).flip(mirrored), self.teacher)
            target += one.flip(mirrored) / self.draws
        return torch.where(torch.isnan(label), label, target)
