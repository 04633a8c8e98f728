"""What the blind network makes known for the second stage, and the teacher of the third."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cryoshuffle.errors import SettingError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.fit.starting import update_attention_means
from cryoshuffle.inference.checkpoints import load_plain, load_weights
from cryoshuffle.lattice import Lattice
from cryoshuffle.network import unwrap
from cryoshuffle.noise.estimate import SKEW, noise_from_volume, without_outliers
from cryoshuffle.noise.fields import fine_power, fine_power_of_noise
from cryoshuffle.noise.linear_filter import FilterChoice, choose_linear, shape_for
from cryoshuffle.noise.spectrum import half_spectrum, noise_spectrum, smooth_spectrum
from cryoshuffle.noise.volumes import load_halves, on_one_scale
from cryoshuffle.noise.whitening import undo_whitening

_SIDE = 128
_AROUND = 320
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
    """

    spectrum: Tensor
    linear: FilterChoice
    doubt: str = ""
    levels: bool = False

    @property
    def reliable(self) -> bool:
        """Whether a network may be fitted."""
        return not self.doubt

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
    if not isinstance(lattice, Lattice) or lattice.blind_set.hides_nothing:
        raise SettingError("the second stage needs a blind-spot network to measure the noise with")
    load_weights(core, load_plain(checkpoint)["model"], checkpoint)
    was_training = core.training
    core.eval()
    settled = None if start is None or lattice.blind_set.tilt_axis is None else copy.deepcopy(unwrap(start)).eval()
    spectra, crops, skews = [], [], []
    beads = seen = 0
    for item in volumes:
        crop = central_crop(torch.as_tensor(item["image"]).as_subclass(Tensor), _SIDE)
        with torch.no_grad():
            after = inferer(crop[None].to(device), core)[0].cpu()
        before, after = (undo_whitening(volume, whitening)[0] for volume in (crop, after))
        before, _ = without_outliers(before)
        crops.append(before)
        half_spectrum = None
        if halves is not None:
            both = load_halves(halves, permissive, mask, tomogram)
            even, odd = on_one_scale(before, *(central_crop(half, _SIDE) for half in both))
            half_spectrum = smooth_spectrum(even - odd)
            if lattice.blind_set.tilt_axis is None or before.numel() < ENOUGH:
                spectra.append(half_spectrum)
                continue
        denoised = None
        if settled is not None:
            update_attention_means(settled, [{"image": before[None]}])
            with torch.no_grad():
                denoised = inferer(before[None, None].to(device), settled)[0, 0].cpu()
        around = undo_whitening(central_crop(torch.as_tensor(item["image"]).as_subclass(Tensor), _AROUND), whitening)[0]
        around, outliers = without_outliers(around)
        beads, seen = beads + outliers, seen + around.numel()
        spectrum = noise_spectrum(before, before - after, lattice.blind_set, denoised, around)
        if half_spectrum is not None:
            # Halves of tilts differ in signal too, where their planes lie apart.
            spectra.append(torch.where(spectrum < _LESS * half_spectrum, spectrum, half_spectrum))
            continue
        spectra.append(spectrum)
        if lattice.blind_set.tilt_axis is not None:
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
    return NoiseModel(spectrum, linear, doubt, levels=fine_power_of_noise(spectrum) > _NOISY * fine)
