"""How far each voxel of a result may be from the truth: what noise of the tomogram's own kind does to it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from monai.networks.utils import eval_mode
from torch import Tensor

from cryoshuffle.boxes import block_sums
from cryoshuffle.errors import SettingError
from cryoshuffle.files import scratch
from cryoshuffle.inference.checkpoints import StoredNoise
from cryoshuffle.inference.inferers import MIRRORED, HaloWindowInferer
from cryoshuffle.noise.fields import draw_field, draw_noise, lay_noise, level_plane
from cryoshuffle.noise.linear_filter import gaussian, gaussian_reach

# What a model without noise means, for the message.
NO_ERROR_MAP = "so there is no error map"
NO_ERROR_OF_SMOOTHED = "an error map is that of the result without --smooth, so leave out one of the two"
PASSES, MOST_PASSES = 4, 16
# Fields that are drawn to compare noise with that was measured, and parts of the map that are looked at by themselves.
DRAWN, PARTS = 2, 8
# Sides of blocks that tell how uncertain a sum is: noise is alike over fewer voxels.
_BLOCK = 16
# Share of a field of noise that is added, and width over which powers are averaged, voxels.
_STEP, _WIDTH = 0.1, 2.0
# Error over the noise that stays: where much stays there is structure, of which as much is lost again; and what is lost
# everywhere. Both were chosen on seven simulated tomograms of one seed.
_LOST, _EVERYWHERE = 1.3, 0.24


def count_passes(mirrors: bool = False, error: str | None = None) -> int:
    """Passes of the network over a volume that its result takes, and its error map where one is asked for.

    Args:
        mirrors: whether eight mirror images are averaged.
        error: path of the error map; None for none.

    Example:
        >>> count_passes(), count_passes(error="error.mrc"), count_passes(mirrors=True, error="error.mrc")
        (1, 5, 40)
    """
    return (len(MIRRORED) if mirrors else 1) * (1 if error is None else 1 + PASSES)


class ErrorMap:
    """The standard error of a denoised volume, voxel by voxel.

    A little noise z of the tomogram's own kind is added and the volume is denoised again. The difference, J z, is the
    noise that stays in the result. Its local power is the variance of the result. By Stein's identity the mean of
    z J z is the squared error of a result that is the mean of what the tomogram may hold. So the power tells where the
    error is, and the identity how large it is on the whole.

    Args:
        noise: of the tomogram.
        inferer: that made the result, with its mixture of network and filter.
        passes: fields of noise, each one inference.
        seed: of the fields.

    Shape:
        ``(1, 1, Z, Y, X)``, the volume and its result, ``-> (1, 1, Z, Y, X)``.

    Units:
        those of the standardised volume. About 95 % of the voxels are within two standard errors of the truth.

    Invariant:
        The map does not depend on the windows, and the same seed gives the same one. Volumes on disk stay there.

    Raises:
        SettingError: if the passes are less than 1 or more than 16, or the inferer smooths its result.

    Source:
        Manor & Michaeli 2024, "On the posterior distribution in denoising"; Stein 1981.
    """

    def __init__(self, noise: StoredNoise, inferer: HaloWindowInferer, passes: int = PASSES, seed: int = 0) -> None:
        if not 1 <= passes <= MOST_PASSES:
            raise SettingError(f"an error map takes {passes} passes: give 1 to {MOST_PASSES}")
        self.noise, self.passes, self.seed = noise, passes, seed
        if inferer.smooth:
            raise SettingError(f"smooth is {inferer.smooth:g} voxels, and {NO_ERROR_OF_SMOOTHED}")
        # An interrupted result is resumed; its error map begins anew. The share of the input that was mixed into the
        # result is no estimate, so it is left out here and counted at the end.
        self.inferer, self.detail = copy.copy(inferer), inferer.detail
        self.inferer.merger, self.inferer.detail = None, 0.0

    def __call__(self, volume: Tensor, result: Tensor, network: Callable[..., Tensor]) -> Tensor:
        """Make the map."""
        noisy, power = (scratch.empty_like(volume, volume.shape) for _ in range(2))
        random = torch.Generator().manual_seed(self.seed)
        level, kept = self._level(volume), 1 - self.detail
        shared = 0.0
        for number in range(1, self.passes + 1) if kept > 0 else ():
            tile = draw_noise(self.noise.spectrum, random).to(volume.device)
            for part in scratch.sections(volume.shape, 2):
                noisy[:, :, part] = volume[:, :, part] + _STEP * self._field(tile, level, volume, part)
            self.inferer.title = f"error map, {number} of {self.passes}"
            again = self._denoise(noisy, network)
            for part in scratch.sections(volume.shape, 2):
                before = (result[:, :, part] - self.detail * volume[:, :, part]) / kept
                change = (again[:, :, part] - before) / _STEP
                power[:, :, part] += change.square() / self.passes
                shared += float((change * self._field(tile, level, volume, part)).sum(dtype=torch.float64))
            del again
        error = self._standard_error(power, noisy, shared / (self.passes * volume.numel())) if kept > 0 else power
        return self._with_detail(error, level) if self.detail else error

    def compare(
        self, volume: Tensor, measured: Tensor, error: Tensor, network: Callable[..., Tensor]
    ) -> dict[str, Any]:
        """How much of noise that was measured stays in the result, over how much stays of the noise that is drawn.

        Both are the mean of z J z, for one field z that is given and for :data:`DRAWN` fields that are drawn. Their
        ratio is 1 for noise of the tomogram's own kind.

        Args:
            volume: a part of the standardised volume, ``(1, 1, Z, Y, X)``.
            measured: its noise but for the sign at each voxel, from halves for instance, ``(Z, Y, X)``.
            error: the map there, ``(Z, Y, X)``.
            network: that made the result.

        Returns:
            ``ratio`` and ``error`` of the whole, and ``ratios`` and ``errors`` where the map is least, and so on, to
            where it is largest, in :data:`PARTS` parts of as many voxels. The errors are standard errors, from blocks
            of the volume.

        Shape:
            that of a part that fits into memory.
        """
        random, level = torch.Generator().manual_seed(self.seed + 1), self._level(volume)
        drawn = [draw_field(self.noise.spectrum, measured.shape, random).to(volume) * level for _ in range(DRAWN)]
        before = self._denoise(volume, network)[0, 0]

        def kept(field: Tensor) -> Tensor:
            change = self._denoise(volume + _STEP * field, network)[0, 0] - before
            return field * change / _STEP

        true = kept(measured.to(volume))
        modelled = torch.stack([kept(field) for field in drawn]).mean(dim=0)
        parts = _parts(error)
        ratios = [_ratio(true, modelled, parts == number) for number in range(PARTS)]
        ratio, own_error = _ratio(true, modelled, torch.ones_like(parts, dtype=torch.bool))
        return {
            "ratio": ratio,
            "error": own_error,
            "ratios": [one for one, _ in ratios],
            "errors": [one for _, one in ratios],
        }

    def _with_detail(self, error: Tensor, level: Tensor) -> Tensor:
        """The error of a result with a share d of the input mixed in: (1 - d^2) error^2 + d^2 noise^2."""
        share = self.detail**2
        noise = share * float(self.noise.spectrum.double().mean()) * level.square()
        for part in scratch.sections(error.shape, 2):
            error[:, :, part] = ((1 - share) * error[:, :, part].square() + noise).sqrt()
        return error

    def _denoise(self, noisy: Tensor, network: Any) -> Tensor:
        # MONAI leaves a function as it is.
        with eval_mode(network):
            return self.inferer(noisy, network)

    def _level(self, volume: Tensor) -> Tensor:
        if not self.noise.levels:
            return volume.new_ones(volume.shape[3:])
        return level_plane(volume[0, 0], self.noise.spectrum).to(volume.device)

    def _field(self, tile: Tensor, level: Tensor, volume: Tensor, part: slice) -> Tensor:
        """Noise of some planes."""
        shape = (part.stop - part.start, *volume.shape[3:])
        return level * lay_noise(tile.roll(-part.start, 0), shape)

    def _standard_error(self, power: Tensor, smooth: Tensor, total: float) -> Tensor:
        """The error from the noise that stays, and the mean of its square; ``smooth`` is overwritten."""
        reach, depth, mean = gaussian_reach(_WIDTH)[0], power.shape[2], 0.0
        z, y, x = (_inside(side) for side in power.shape[2:])
        for part in scratch.sections(power.shape, 2):
            first, last = max(0, part.start - reach), min(depth, part.stop + reach)
            planes = gaussian(power[0, 0, first:last], _WIDTH)[part.start - first : part.stop - first]
            smooth[0, 0, part] = planes / (z[part, None, None] * y[:, None] * x).to(planes)
            mean += float(smooth[0, 0, part].sum(dtype=torch.float64)) / power.numel()
        if mean <= 0:
            return smooth
        scale = max(total, mean) / self._mean_shape(smooth, mean)
        for part in scratch.sections(smooth.shape, 2):
            smooth[:, :, part] = (scale * _shape(smooth[:, :, part], mean)).sqrt()
        return smooth

    @staticmethod
    def _mean_shape(smooth: Tensor, mean: float) -> float:
        parts = scratch.sections(smooth.shape, 2)
        return sum(float(_shape(smooth[:, :, part], mean).sum(dtype=torch.float64)) for part in parts) / smooth.numel()


def _parts(error: Tensor) -> Tensor:
    """The number of the part of a map that each voxel is in, from least to largest."""
    order = error.flatten().argsort(stable=True)
    parts = torch.empty_like(order)
    parts[order] = torch.arange(len(order), device=order.device) * PARTS // len(order)
    return parts.reshape(error.shape)


def _ratio(true: Tensor, modelled: Tensor, where: Tensor) -> tuple[float, float]:
    """The ratio of two sums over some voxels, and its standard error by the scatter of blocks of the volume."""
    sums = [block_sums((values * where).double(), _BLOCK) for values in (true, modelled)]
    total = float(sums[1].sum())
    ratio = float(sums[0].sum()) / total if total > 0 else math.inf
    apart = sums[0] - ratio * sums[1]
    return ratio, float(apart.square().sum().sqrt()) / total if total > 0 else math.inf


def _inside(side: int) -> Tensor:
    """How much of a Gaussian around each voxel of a line lies within the line."""
    reach = gaussian_reach(_WIDTH)[0]
    lengths = (side, 2 * reach + 1)
    line, whole = (gaussian(torch.ones(length, 1, 1), _WIDTH)[:, 0, 0] for length in lengths)
    return line / whole[reach]


def _shape(power: Tensor, mean: float) -> Tensor:
    """The squared error up to a factor, from the noise that stays and its mean."""
    square = power.square()
    return power * (1 + _LOST * square / (square + mean**2)) + _EVERYWHERE * mean
