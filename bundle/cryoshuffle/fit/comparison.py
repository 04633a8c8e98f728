"""The last word of a fit: how far its network is trusted beside the best linear filter."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cryoshuffle.boxes import block_sums
from cryoshuffle.files.scratch import central_crop, copy_planes
from cryoshuffle.files.volumes import images_of
from cryoshuffle.files.writing import save_whole, write_json
from cryoshuffle.fit.noise_model import NoiseModel
from cryoshuffle.fit.sampling import HeldOutSlab
from cryoshuffle.fit.starting import copy_with_weights, interpolate_weights, update_attention_means
from cryoshuffle.inference.checkpoints import load_plain
from cryoshuffle.memory import window_bytes
from cryoshuffle.noise.fields import draw_noise, lay_noise, noise_level
from cryoshuffle.noise.linear_filter import BAND_EDGES, FilterChoice, bands, convolve, prediction_kernel
from cryoshuffle.report.log import RunLog

logger = logging.getLogger("cryoshuffle")
DOUBT = 2.0
SURE = 4.0
MOSTLY = 0.5
# Share of a network whose weight is too large: of a real cell .2 to .6 are alike in all bands, and the less the better
# in the coarsest detail.
EXCESSIVE = 1 / 3
# Weights that are no excess yet, and a whole one. A network that is too timid has more than 1 too: simulated molecules
# have up to 1.15, simulated cells 1.4; the real cell had 1.7 with noise that was wrong.
EXCESS = (1.5, 1.7)
# Sides of blocks of voxels that tell chance, the largest of which there are enough: coarse detail is alike over many.
_BLOCKS, _ENOUGH_BLOCKS = (16, 8, 4), 64
_SIDE = 96
# Voxels around what is compared by band, for the coarsest Gaussian to see.
_MARGIN = 16
_SEED = 1
# Bytes that a comparison takes for each voxel of each draw.
_COMPARED = 192


@dataclass(frozen=True)
class Weight:
    """Weight of the network in the mixture with the filter that has the smallest recorrupted risk.

    Attributes:
        value: less than 0 or more than 1 is possible.
        error: its standard error.
    """

    value: float
    error: float

    def _beyond_chance(self, distance: float) -> float:
        return min(1.0, max(0.0, (distance / self.error - DOUBT) / (SURE - DOUBT))) if self.error > 0 else 0.0

    @property
    def share(self) -> float:
        """The weight, at least nothing and at most all, and nothing while that may be chance."""
        return min(1.0, max(0.0, self.value)) * self._beyond_chance(self.value)

    @property
    def most(self) -> float:
        """The most that the network may have of the result.

        A network that is a little timid has a weight above 1. One well above 1 says that the noise it was judged with
        is not the tomogram's. Then the filter keeps two thirds of the result.
        """
        excess = min(1.0, max(0.0, (self.value - EXCESS[0]) / (EXCESS[1] - EXCESS[0])))
        return 1.0 - (1.0 - EXCESSIVE) * excess * self._beyond_chance(self.value - 1)

    @property
    def trust(self) -> float:
        """How much of the result is the network's, where nothing but this weight tells."""
        return min(self.most, self.share)

    @property
    def is_excessive(self) -> bool:
        """Whether more of the network is asked for than there is, by more than chance."""
        return self.value > EXCESS[0] and self.value - 1 > DOUBT * self.error > 0


@dataclass(frozen=True)
class FilterComparison:
    """Network against linear filter.

    Attributes:
        linear: the filter.
        weight: of the network, over all detail, on voxels held out of the fit.
        bands: weights by band of detail (:func:`cryoshuffle.noise.linear_filter.bands`), the least of several places;
            empty where the volume is too small to tell.
        nonlinear: the same of what of the network's result is not linear in the tomogram, added to the filter.
        linear_part: kernel of the rest, which is linear in it; None where there are no bands.
        fitted: whether the network was fitted to the volume, or only had its attention means updated on it.
        doubt: why no network was fitted; empty where one was, or was not wanted.
        trusted: whether the noise tells how good a network is; where it does not, the filter is all of the result.
        middle: weight of the network, over all detail, in the middle of the volume; None where only one place was
            compared. An excess counts where both places have it: at the border of a volume tilts are missing, so the
            noise there is weaker.
    """

    linear: FilterChoice
    weight: Weight
    bands: tuple[Weight, ...] = ()
    nonlinear: tuple[Weight, ...] = ()
    linear_part: Tensor | None = None
    fitted: bool = True
    doubt: str = ""
    trusted: bool = True
    middle: Weight | None = None

    @property
    def linear_shares(self) -> list[float]:
        """The share of each band, fine to coarse, in which the network takes the filter's place; empty if no bands."""
        return self._at_most(_shares(self.bands))

    @property
    def shares(self) -> list[float]:
        """The network's share of each band, fine to coarse; empty where there are no bands.

        It is at least that of its nonlinear part. What a network has learnt to do as a filter is wrong where the noise
        is not what it was trained with. The mean of all signals that a tomogram allows is the Wiener filter and a part
        that is correlated with no voxel. So the filter may keep its place beside the network's nonlinear part.

        Not in the finest detail, which is nearly all noise: what a network keeps of it differs from place to place, and
        without what is linear in that over the whole volume, the negative of the noise is left where it keeps least.
        """
        if not self.nonlinear:
            return self.linear_shares
        added = self._at_most(_shares(self.nonlinear))
        return [max(both) for both in zip([0.0, *added[1:]], self.linear_shares, strict=True)]

    @property
    def _least(self) -> Weight:
        """Of the weights over all detail the one that asks for less."""
        known = (self.weight,) if self.middle is None else (self.weight, self.middle)
        return min(known, key=lambda weight: weight.value)

    def _at_most(self, shares: Sequence[float]) -> list[float]:
        most = self._least.most if self.trusted else 0.0
        return [most * share for share in shares]

    @property
    def trust(self) -> float:
        """How much of the result is the network's, the mean over the bands where there are any."""
        if not self.trusted:
            return 0.0
        return sum(self.shares) / len(self.bands) if self.bands else self.weight.trust

    @property
    def is_excessive(self) -> bool:
        """Whether more of the network is asked for than there is, by more than chance.

        Not by the finest band: it is nearly all noise, and its share is no more than that of the next.
        """
        return self.trusted and any(weight.is_excessive for weight in (self._least, *self.bands[1:]))

    def blend(self) -> dict[str, Any]:
        """As plain values for the inferer and the checkpoint."""
        mixture = {"trust": self.shares or self.trust, **self.linear.config()}
        if self.shares != self.linear_shares:
            mixture |= {"linear_trust": self.linear_shares, "linear_part": self.linear_part}
        return mixture

    def config(self) -> dict[str, Any]:
        """As plain values for a JSON file."""
        return {
            "trust": self.trust,
            "sigma": list(self.linear.sigma),
            "gain": self.linear.gain,
            "filter": self.linear.describe(),
            "weight": self.weight.value,
            "error": self.weight.error,
            "middle_weight": None if self.middle is None else self.middle.value,
            "middle_error": None if self.middle is None else self.middle.error,
            "excessive": self.is_excessive,
            "fitted": self.fitted,
            "doubt": self.doubt,
            "trusted": self.trusted,
            "bands": [
                {
                    "weight": band.value,
                    "error": band.error,
                    "nonlinear_weight": rest.value,
                    "nonlinear_error": rest.error,
                    "linear_trust": linear,
                    "trust": share,
                }
                for band, rest, linear, share in zip(
                    self.bands, self.nonlinear or self.bands, self.linear_shares, self.shares, strict=True
                )
            ],
        }

    def describe(self) -> str:
        """In one sentence, for log and report."""
        if not self.trusted:
            return f"{self.doubt}: the result is all the best linear filter's ({self.linear.describe()})"
        network = "network" if self.fitted else "starting network, which was not fitted to the volume,"
        share = f"{1 - self.trust:.0%} of the result is" if self.trust > 0 else "the result is all"
        of_filter = f"{share} the filter's ({self.linear.describe()})"
        where = " on voxels held out of the fit" if self.fitted else ""
        weight = f"best weight of the network{where} {self.weight.value:.2f} ± {self.weight.error:.2f}"
        if self.middle is not None:
            weight += f", in the middle {self.middle.value:.2f} ± {self.middle.error:.2f}"
        if self.bands:
            shares = ", ".join(f"{share:.0%}" for share in self.shares)
            weight = f"share of the network by band of detail, fine to coarse, {shares}; {weight}"
        if self.is_excessive:
            return (
                f"more than all of the {network} is asked for, so the noise is not quite known: {of_filter}; {weight}"
            )
        if self.trust >= MOSTLY:
            before = f"{self.doubt}; " if self.doubt else ""
            return f"{before}the {network} carries the result: {of_filter}; {weight}"
        if self.doubt:
            why = self.doubt
        elif self.fitted:
            why = "the volume is too small or too noisy, or the fit too short, to trust the network alone"
        else:
            why = (
                "the volume is too noisy, or too unlike the simulations, to trust the starting network alone, which "
                "was not fitted to the volume"
            )
        return f"{why}: {of_filter}; {weight}"


def _shares(weights: Sequence[Weight]) -> list[float]:
    """The share of each band, fine to coarse.

    The finest detail holds the least signal, so there chance and an error of the noise have most to say: it gets no
    more than what is next to it.
    """
    shares = [weight.share for weight in weights]
    return [min(shares[:2]), *shares[1:]] if shares else []


class _Comparison:
    """Sums over blocks of voxels from which the weight of the network follows."""

    def __init__(self) -> None:
        self._products: list[Tensor] = []
        self._squares: list[Tensor] = []

    def add(self, apart: Sequence[Tensor], residuals: Sequence[Tensor]) -> None:
        """Add one place: network less filter, and target less filter, for each field of noise."""
        product = torch.stack([(a.double() * b) for a, b in zip(apart, residuals, strict=True)]).sum(dim=0)
        square = torch.stack([a.double().square() for a in apart]).sum(dim=0)
        self._products.append(_block_sums(product))
        self._squares.append(_block_sums(square))

    def weight(self) -> Weight:
        """Slope of a line through the origin, and its standard error from the scatter of the blocks."""
        products, squares = torch.cat(self._products), torch.cat(self._squares)
        total = float(squares.sum())
        if total <= 0 or len(products) < 2:
            return Weight(0.0, 0.0)
        slope = float(products.sum()) / total
        return Weight(slope, float((products - slope * squares).std()) * len(products) ** 0.5 / total)


def _block_sums(values: Tensor) -> Tensor:
    """Sums over the largest blocks of which there are enough in ``(Z, Y, X)``."""
    side = next((s for s in _BLOCKS if math.prod(n // s for n in values.shape) >= _ENOUGH_BLOCKS), _BLOCKS[-1])
    return block_sums(values, side)


def _places(image: Tensor, held_out: HeldOutSlab | None, by_band: bool) -> list[tuple[Tensor, tuple[slice, ...]]]:
    """Parts of a volume, each ``(Z, Y, X)``, and the voxels of each to compare; what no fit has seen comes first."""
    places: list[tuple[Tensor, tuple[slice, ...]]] = []
    if held_out is not None:
        scored = held_out.scored(image.shape[1:])
        places.append((copy_planes(image[(slice(None), *scored.read)])[0], scored.core))
    if by_band:
        part = central_crop(image, _SIDE + 2 * _MARGIN)[0]
        places.append((part, tuple(slice(_MARGIN, n - _MARGIN) if n > 4 * _MARGIN else slice(n) for n in part.shape)))
    return places or [(central_crop(image, _SIDE)[0], (slice(None),) * 3)]


def _where_to_compare(device: torch.device, drawn: int) -> torch.device:
    """The GPU, if the compared voxels of all draws fit there and it knows double precision; else the CPU."""
    fits = device.type == "cuda" and _COMPARED * drawn < window_bytes(device)
    return device if fits else torch.device("cpu")


@dataclass
class _Recorruption:
    """Draws noise for a place, adds it and takes it away, and tells what network and filter make of that.

    Attributes:
        noise: of the volume, and the filter.
        denoise: runs the network over ``(1, 1, Z, Y, X)``.
        device: of the network.
        strength: of the recorruption.
        draws: fields of noise.
        random: where the noise comes from.
    """

    noise: NoiseModel
    denoise: Callable[[Tensor], Tensor]
    device: torch.device
    strength: float
    draws: int
    random: torch.Generator

    def draw(self, part: Tensor, where: torch.device) -> _Drawn:
        """Each field of noise with either sign, kept on a device."""
        level = noise_level(part, self.noise.spectrum) if self.noise.levels else 1.0
        here, drawn = part.to(where), _Drawn([], [], [], [])
        for _ in range(self.draws):
            field = level * lay_noise(draw_noise(self.noise.spectrum, self.random), part.shape)
            for signed in (field, -field):
                given = (part + self.strength * signed).to(where)
                with torch.no_grad():
                    drawn.denoised.append(self.denoise(given[None, None].to(self.device))[0, 0].to(where))
                linear = self.noise.linear(given)
                drawn.given.append(given)
                drawn.filtered.append(linear)
                drawn.residuals.append(here - signed.to(where) / self.strength - linear)
        return drawn


@dataclass
class _Drawn:
    """A place with each field of noise.

    Attributes:
        given: to network and filter.
        denoised: by the network.
        filtered: by the filter.
        residuals: target less filtered.
    """

    given: list[Tensor]
    denoised: list[Tensor]
    filtered: list[Tensor]
    residuals: list[Tensor]

    def apart(self) -> list[Tensor]:
        """Network less filter."""
        return [a - b for a, b in zip(self.denoised, self.filtered, strict=True)]

    def linear_part(self) -> Tensor:
        """The kernel of what is linear in the network's result."""
        # Fields of either sign: their mean is the place itself.
        denoised, given = (torch.stack(ones).mean(dim=0) for ones in (self.denoised, self.given))
        return prediction_kernel(denoised.cpu(), given.cpu())

    def nonlinear(self, linear_part: Tensor) -> list[Tensor]:
        """The network's result without what is linear in it."""
        return [a - convolve(b, linear_part) for a, b in zip(self.denoised, self.given, strict=True)]


def _least_weights(places: Sequence[Sequence[_Comparison]]) -> tuple[Weight, ...]:
    """Of each band the least weight of all places."""
    per_place = [[comparison.weight() for comparison in place] for place in places]
    return tuple(min(band, key=lambda weight: weight.value) for band in zip(*per_place, strict=True))


def _in_bands(volumes: Sequence[Tensor], core: tuple[slice, ...]) -> list[list[Tensor]]:
    """Of each band a list of the volumes' middles."""
    split = [[band[core] for band in bands(volume)] for volume in volumes]
    return [list(band) for band in zip(*split, strict=True)]


def _weigh(images: Sequence[Tensor], recorruption: _Recorruption, held_out: HeldOutSlab | None) -> FilterComparison:
    """Network against filter, over all detail and, where the filter knows frequencies, by band."""
    noise = recorruption.noise
    by_band = noise.linear.kernel is not None
    wholes = [_Comparison() for _ in range(1 if held_out is None else 2)]
    kernels = []
    # By kind of weight, place, and band.
    kinds = [[[_Comparison() for _ in BAND_EDGES] for _ in wholes] for _ in range(2)]
    for image in images:
        parts = _places(image, held_out, by_band)
        voxels = sum(part.numel() for part, _ in parts)
        where = _where_to_compare(recorruption.device, recorruption.draws * voxels)
        drawn = [recorruption.draw(part, where) for part, _ in parts]
        if by_band:
            # The last place is the middle of the volume.
            kernels.append(drawn[-1].linear_part())
        for number, (one, (_, core)) in enumerate(zip(drawn, parts, strict=True)):
            apart = one.apart()
            wholes[number].add([a[core] for a in apart], [b[core] for b in one.residuals])
            if not by_band:
                continue
            residuals = _in_bands(one.residuals, core)
            for kind, differences in zip(kinds, (apart, one.nonlinear(kernels[-1])), strict=True):
                for comparison, *band in zip(kind[number], _in_bands(differences, core), residuals, strict=True):
                    comparison.add(*band)
    how: dict[str, Any] = {
        "fitted": held_out is not None,
        "doubt": noise.doubt,
        "trusted": noise.weighs_networks,
    }
    if not by_band:
        return FilterComparison(noise.linear, wholes[0].weight(), **how)
    how["middle"] = wholes[1].weight() if len(wholes) > 1 else None
    replacing, adding = (_least_weights(kind) for kind in kinds)
    linear_part = torch.stack(kernels).mean(dim=0)
    return FilterComparison(noise.linear, wholes[0].weight(), replacing, adding, linear_part, **how)


def compare_with_filter(
    volumes: Sequence[Mapping[str, Any]],
    network: nn.Module,
    checkpoint: str,
    noise: NoiseModel,
    inferer: Callable[..., Tensor],
    held_out: HeldOutSlab | None,
    output: str,
    output_dir: str,
    start: str | None = None,
    fit_share: float = 1.0,
    order: Sequence[int] = (0, 1, 2),
    strength: float = 0.1,
    draws: int = 4,
    device: torch.device | str = "cpu",
) -> FilterComparison:
    """Weigh a finished network against the linear filter, and write the model with the verdict.

    Both get the same recorrupted slab, on which no step was trained, and are compared with its recorrupted target. As
    the noise of the two is independent, the mean squared difference is the true error and a constant, for every
    mixture of the two alike. The best mixture is a line fitted by least squares, over blocks of voxels for its error.
    The same is done for the filter with the network's nonlinear part added to it.
    The recorruption is weak, so that both are weighed at nearly the noise they will be used at, and each field of
    noise is added once and taken away once, so that the strong noise this puts into the targets mostly cancels.

    Args:
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)``, not whitened.
        network: that the weights belong to; it is not changed.
        checkpoint: model to be compared.
        noise: of the volumes, and the filter.
        inferer: that runs the network over a volume.
        held_out: slab of each volume that no step of the fit was trained on; None for a network that was not fitted to
            the volumes at all: its attention means are updated on them
            (:func:`cryoshuffle.fit.starting.update_attention_means`), and it is compared on their middle.
        output: where the model with the verdict goes.
        output_dir: of the run; gets ``refinement.json``.
        start: checkpoint that the fit began with; None for random weights.
        fit_share: of the fit in the model, 0 to 1 (:func:`cryoshuffle.fit.starting.interpolate_weights`).
        order: of the axes of the volumes, as of :func:`cryoshuffle.noise.wedge.beam_first`.
        strength: of the recorruption.
        draws: fields of noise, averaged.
        device: that computes.

    Raises:
        FileError, InputError: if a checkpoint cannot be read or the model cannot be written.
    """
    candidate = copy_with_weights(network, checkpoint, order if held_out is None else None).to(device).eval()
    if held_out is None:
        update_attention_means(candidate, volumes)
    elif start is not None:
        interpolate_weights(candidate, start, fit_share, volumes, order)
    # Not the noise that the epochs were chosen with.
    random = torch.Generator().manual_seed(_SEED)
    images, known = images_of(volumes), noise
    if noise.clear is not None:
        # Where beads of gold were left in, only places without their rays tell.
        images = noise.clear.of(images)
        known = replace(noise, spectrum=noise.clear.spectrum, levels=noise.clear.levels)
    recorruption = _Recorruption(
        known, lambda volume: inferer(volume, candidate), torch.device(device), strength, draws, random
    )
    verdict = _weigh(images, recorruption, held_out)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.cpu() for name, value in candidate.state_dict().items()}
    content = {"model": weights, "blend": verdict.blend(), "noise": noise.config(), "order": list(order)}
    save_whole({**load_plain(checkpoint), **content}, output)
    write_json({**verdict.config(), "levels": noise.levels}, Path(output_dir) / "refinement.json")
    with RunLog(output_dir):
        log = logger.info if verdict.trust >= MOSTLY and not verdict.is_excessive else logger.warning
        log("%s: %s", verdict.describe(), output)
    return verdict
