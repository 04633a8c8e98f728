"""What the blind network makes known for the second stage: the noise, and how far to trust a network at all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from cryoshuffle.checkpoints import load_plain, load_weights
from cryoshuffle.errors import SettingError
from cryoshuffle.filters import FilterChoice, choose_filter, masked_gaussian
from cryoshuffle.lattice import Lattice
from cryoshuffle.network import unwrap
from cryoshuffle.preview import central_crop
from cryoshuffle.recorruption import draw_noise, lay_noise, noise_spectrum
from cryoshuffle.whitening import undo_whitening
from cryoshuffle.windows import HeldOutSlab

_SIDE = 128
_SURE = 2.0
_BLOCK = 4


@dataclass(frozen=True)
class Refinement:
    """What the second stage needs to know.

    Attributes:
        spectrum: of the noise, as of :func:`cryoshuffle.recorruption.noise_spectrum`.
        linear: the best blind linear filter.
        lead: of the blind network over that filter in blind risk, on the held-out slab, in standard errors of blocks of
            voxels.
        explained: share of the variance of those voxels that network and filter explain, in this order.
    """

    spectrum: Tensor
    linear: FilterChoice
    lead: float
    explained: tuple[float, float]

    @property
    def trust(self) -> float:
        """How much of the result is the network's: none where the filter is as good, all where it is surely worse."""
        return min(1.0, max(0.0, self.lead / _SURE))

    def blend(self) -> dict[str, float]:
        """As plain values for the inferer and the checkpoint."""
        return {"trust": self.trust, "sigma": self.linear.sigma, "gain": self.linear.gain}

    def describe(self) -> str:
        """In one sentence, for log and report."""
        net, linear = self.explained
        words = (
            f"on voxels held out of the fit the blind network explains {net:.2%} of the variance, the best linear "
            f"filter (Gaussian, {self.linear.sigma:g} voxels) {linear:.2%}"
        )
        if self.trust == 1:
            return f"{words}: the network carries the result"
        share = f"{1 - self.trust:.0%} of the result is" if self.trust > 0 else "the result is all"
        return f"{words}: the volume is too small or too noisy to trust the network alone, {share} the filter's"


def measure_refinement(
    volumes: Sequence[Mapping[str, Any]],
    network: nn.Module,
    checkpoint: str,
    inferer: Callable[..., Tensor],
    held_out: HeldOutSlab,
    whitening: Mapping[str, Any] | None = None,
    device: torch.device | str = "cpu",
) -> Refinement:
    """Measure the noise with a fitted blind network, and weigh the network against the best linear filter.

    Args:
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)`` as the blind network was fitted to, whitened perhaps.
        network: the blind network; it gets the weights of the checkpoint.
        checkpoint: its model.
        inferer: that runs it over a volume.
        held_out: slab of each volume that the fit did not see.
        whitening: of the volumes, undone for the noise.
        device: that computes.

    Raises:
        SettingError: if the network is no blind-spot network, or several processes run.
        FileError, InputError: if the checkpoint cannot be read.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise SettingError("the second stage runs in one process: leave out refine.yaml, or start one process only")
    core = unwrap(network)
    lattice = getattr(core, "lattice", None)
    if not isinstance(lattice, Lattice) or lattice.blind_set.shape == "none":
        raise SettingError("the second stage needs a blind-spot network to measure the noise with")
    load_weights(core, load_plain(checkpoint)["model"], checkpoint)
    was_training = core.training
    core.eval()

    def predict(volume: Tensor) -> Tensor:
        with torch.no_grad():
            return inferer(volume[None].to(device), core)[0].cpu()

    spectra, choices, blocks, sums = [], [], [], torch.zeros(3, dtype=torch.float64)
    for item in volumes:
        image = torch.as_tensor(item["image"])
        image = image.as_subclass(Tensor)
        crop = central_crop(image, _SIDE)
        before, after = (undo_whitening(v, whitening)[0] for v in (crop, predict(crop)))
        spectra.append(noise_spectrum(before, before - after, lattice.blind_set))
        seen = central_crop(image[(slice(None), *held_out.fit_region(image.shape[1:]))], _SIDE)
        choices.append(choose_filter(seen[0], lattice.blind_set))
        window = held_out.scored(image.shape[1:])
        part = image[(slice(None), *window.read)]
        smooth = choices[-1].gain * masked_gaussian(part[0], choices[-1].sigma, lattice.blind_set)
        truth, net, linear = (v[window.core].double() for v in (part[0], predict(part)[0], smooth))
        worse = (truth - linear).square() - (truth - net).square()
        sides = [min(_BLOCK, n) for n in worse.shape]
        blocks.append(F.avg_pool3d(worse[None], sides).flatten())
        sums += torch.stack([(truth - net).square().sum(), (truth - linear).square().sum(), truth.square().sum()])
    core.train(was_training)
    net_risk, linear_risk, power = sums.tolist()
    lead = torch.cat(blocks)
    error = float(lead.std()) / len(lead) ** 0.5 if len(lead) > 1 else 0.0
    middle = sorted(choices, key=lambda choice: choice.sigma)[len(choices) // 2]
    return Refinement(
        torch.stack(spectra).mean(dim=0).float(),
        middle,
        float(lead.mean()) / error if error > 0 else 0.0,
        (1 - net_risk / power, 1 - linear_risk / power),
    )


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

    A network trained on recorrupted input is best averaged over draws of the noise; one that has learnt the average
    needs a single pass, over the tomogram as it is. Used as ``prepare_batch`` of MONAI's engines.

    Args:
        teacher: the network of the second stage.
        spectrum: of the noise.
        inferer: that runs the teacher.
        strength: of the recorruption.
        draws: averaged.
        fixed: draw the same noise each time, for a score that can be compared.

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
    ) -> None:
        self.teacher = teacher.eval()
        self.spectrum, self.inferer, self.strength = spectrum, inferer, strength
        self.draws, self.fixed = draws, fixed
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
        for _ in range(self.draws):
            noise = lay_noise(draw_noise(self.spectrum, random), (0, 0, 0), image.shape[2:]).to(image.device)
            with torch.no_grad():
                target += self.inferer(image + self.strength * noise, self.teacher) / self.draws
        return torch.where(torch.isnan(label), label, target)
