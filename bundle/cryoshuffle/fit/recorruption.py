"""Windows with more noise added and taken away: training pairs from one noisy volume."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, convert_to_tensor
from torch import Tensor

from cryoshuffle.errors import SettingError
from cryoshuffle.noise.spectrum import GRID

_LEVEL_BLOCK = 8
_STRONGEST = 16.0
# Differences of the level that are none yet, and no longer.
_ALIKE = (0.06, 0.1)


def draw_noise(spectrum: Tensor, random: torch.Generator) -> Tensor:
    """A field of noise with a given spectrum, periodic, so that it can be laid over any volume.

    Args:
        spectrum: as of :func:`noise_spectrum`.
        random: where the numbers come from.

    Shape:
        that of ``spectrum``, float32.
    """
    white = torch.randn(spectrum.shape, generator=random)
    return torch.fft.ifftn(torch.fft.fftn(white) * spectrum.float().sqrt()).real


def lay_noise(tile: Tensor, shape: Sequence[int]) -> Tensor:
    """A periodic field laid over a window, as often as it takes.

    Args:
        tile: of :func:`draw_noise`.
        shape: of the window, (Z, Y, X), voxels.
    """
    for axis, side in enumerate(shape):
        tile = tile.index_select(axis, torch.arange(int(side), device=tile.device) % tile.shape[axis])
    return tile


def fine_power(volume: Tensor) -> Tensor:
    """How strong the finest detail of a volume is at each place: a voxel less the mean around it, squared.

    Args:
        volume: ``(Z, Y, X)``.

    Shape:
        that of ``volume``.
    """
    padded = F.pad(volume[None, None].float(), (1,) * 6, mode="replicate")
    return (volume - F.avg_pool3d(padded, 3, stride=1)[0, 0]).square()


def fine_power_of_noise(spectrum: Tensor) -> float:
    """The mean of :func:`fine_power` over noise of a spectrum."""
    line = (1 + 2 * torch.cos(2 * math.pi * torch.fft.fftfreq(GRID, dtype=torch.float64))) / 3
    mean = line[:, None, None] * line[:, None] * line
    return float((spectrum.double() * (1 - mean).square()).mean())


def noise_level(volume: Tensor, spectrum: Tensor) -> Tensor:
    """How strong the noise of a volume is from place to place, beside that of its spectrum.

    Noise follows the brightness of the images: it is stronger where the specimen is thick. The finest detail is noise
    but for little, so its power tells, over some 24 voxels along Y and X and the whole of Z: back-projection lays noise
    evenly along the beam. A few percent of difference count as none, as dense places have as much more fine detail.

    Args:
        volume: the tomogram or a window of it, ``(Z, Y, X)``.
        spectrum: of its noise, as of :func:`noise_spectrum`.

    Returns:
        Factor of the amplitude, of the shape of ``volume``, between 0.5 and 2.
    """
    expected = fine_power_of_noise(spectrum)
    # A bead of gold is no noise.
    power = fine_power(volume).clamp(max=_STRONGEST * expected)
    blocks = [min(_LEVEL_BLOCK, n) for n in power.shape]
    coarse = F.avg_pool3d(power[None, None], blocks, ceil_mode=True, count_include_pad=False)
    coarse = F.avg_pool3d(F.pad(coarse, (1,) * 6, mode="replicate"), 3, stride=1)
    level = (coarse.mean(dim=2, keepdim=True) / expected).sqrt().clamp(0.5, 2)
    apart = level - 1
    level = 1 + apart * ((apart.abs() - _ALIKE[0]) / (_ALIKE[1] - _ALIKE[0])).clamp(0, 1)
    return F.interpolate(level, size=volume.shape, mode="trilinear", align_corners=False)[0, 0].to(volume)


class RandRecorruptd(Randomizable, MapTransform):
    """Adds noise of the tomogram's own kind to the input, and takes it from the target.

    Args:
        keys: the input and the target, in this order; both hold the same noisy window.
        spectrum: of the noise, as of :func:`noise_spectrum`.
        strength: a in ``x + a z`` and ``x - z / a``.
        fixed: draw the same noise each time, for a risk that can be compared.
        levels: make the noise as strong as the volume's is at each place (:func:`noise_level`).

    Invariant:
        If the spectrum is that of the noise in x, the noise in input and target is uncorrelated.

    Raises:
        SettingError: if there are not two keys, or the strength is not positive.

    Source:
        Pang et al. 2021, "Recorrupted-to-Recorrupted".
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection,
        spectrum: Tensor,
        strength: float = 1.0,
        fixed: bool = False,
        levels: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys)
        if len(self.keys) != 2:
            raise SettingError(f"recorruption has keys {self.keys}: name the input and the target")
        if not strength > 0:
            raise SettingError(f"recorruption strength is {strength}: give more than 0")
        self.spectrum = spectrum
        self.strength = strength
        self.fixed = fixed
        self.levels = levels

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, Any]:
        """Recorrupt a window."""
        result: dict[Hashable, Any] = dict(data)
        seed = 0 if self.fixed else int(self.R.randint(2**31))
        random = torch.Generator().manual_seed(seed)
        tile = draw_noise(self.spectrum, random)
        given, target = (convert_to_tensor(result[key]) for key in self.keys)
        noise = lay_noise(tile, given.shape[1:])[None]
        if self.levels:
            noise = noise * noise_level(given[0], self.spectrum)
        result[self.keys[0]] = given + self.strength * noise
        result[self.keys[1]] = target - noise / self.strength
        return result


RandRecorruptD = RandRecorruptDict = RandRecorruptd
