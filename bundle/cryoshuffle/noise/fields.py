"""Fields of noise with a measured spectrum, as strong from place to place as the noise of a volume is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.files.scratch import SECTION, copy_planes
from cryoshuffle.noise.linear_filter import convolve
from cryoshuffle.noise.spectrum import GRID

_LEVEL_BLOCK = 8
_STRONGEST = 16.0
# Differences of the level that are none yet, and no longer.
_ALIKE = (0.06, 0.1)
# Planes whose level is looked at together, at most and at least; between them as many as take the bytes given last.
_SLAB, _THINNEST, _SLAB_BYTES = 64, 8, 4 * SECTION


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


def draw_field(spectrum: Tensor, shape: Sequence[int], random: torch.Generator) -> Tensor:
    """A field of noise with a given spectrum, as large as it is asked for, which nothing in it repeats.

    Args:
        spectrum: as of :func:`noise_spectrum`.
        shape: of the field, (Z, Y, X), voxels.
        random: where the numbers come from.
    """
    response = torch.fft.fftshift(torch.fft.ifftn(spectrum.double().sqrt()).real).float()[1:, 1:, 1:]
    reach = response.shape[0] // 2
    white = torch.randn([n + 2 * reach for n in shape], generator=random)
    z, y, x = (slice(reach, reach + n) for n in shape)
    return convolve(white, response)[z, y, x]


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
    return float(_fine_spectrum(spectrum).mean())


def fine_voxels(spectrum: Tensor) -> float:
    """How many voxels of noise of a spectrum count as one in the mean of :func:`fine_power`.

    That mean over n voxels has a relative standard error of ``sqrt(2 * voxels / n)``.
    """
    passed = _fine_spectrum(spectrum)
    return float(passed.square().mean() / passed.mean().square())


def _fine_spectrum(spectrum: Tensor) -> Tensor:
    """The spectrum of noise less the mean around each voxel."""
    line = (1 + 2 * torch.cos(2 * math.pi * torch.fft.fftfreq(GRID, dtype=torch.float64))) / 3
    mean = line[:, None, None] * line[:, None] * line
    return spectrum.double() * (1 - mean).square()


def bounded_fine_power(volume: Tensor, expected: float) -> Tensor:
    """:func:`fine_power`, where a bead of gold counts for little: it is no noise.

    Args:
        volume: ``(Z, Y, X)``.
        expected: mean for noise alone, of :func:`fine_power_of_noise`.

    Shape:
        that of ``volume``.
    """
    return fine_power(volume).clamp_(max=_STRONGEST * expected)


def noise_level(volume: Tensor, spectrum: Tensor) -> Tensor:
    """How strong the noise of a volume is from place to place, beside that of its spectrum.

    Noise follows the brightness of the images: it is stronger where the specimen is thick. The finest detail is noise
    but for little, so its power tells, over some 24 voxels along Y and X and the whole of Z: back-projection lays noise
    evenly along the beam. A few percent of difference count as none: dense places have as much more fine detail, and
    interpolation takes as much of it near the border, where coarse noise is as strong as elsewhere.

    Args:
        volume: the tomogram or a window of it, ``(Z, Y, X)``.
        spectrum: of its noise, as of :func:`noise_spectrum`.

    Returns:
        Factor of the amplitude, of the shape of ``volume``, between 0.5 and 2.
    """
    expected = fine_power_of_noise(spectrum)
    power = bounded_fine_power(volume, expected)
    blocks = [min(_LEVEL_BLOCK, n) for n in power.shape]
    # What is missing of the last block along an axis counts for nothing.
    missing = [short for n, block in zip(power.shape, blocks, strict=True) for short in (-n % block, 0)][::-1]

    def over_blocks(values: Tensor) -> Tensor:
        means = F.avg_pool3d(F.pad(values[None, None], missing), blocks)
        return F.avg_pool3d(F.pad(means, (1,) * 6, mode="replicate"), 3, stride=1).mean(dim=2, keepdim=True)

    coarse = over_blocks(power) / over_blocks(torch.ones_like(power))
    level = (coarse / expected).sqrt().clamp(0.5, 2)
    apart = level - 1
    level = 1 + apart * ((apart.abs() - _ALIKE[0]) / (_ALIKE[1] - _ALIKE[0])).clamp(0, 1)
    z, y, x = volume.shape
    # As wide as whole blocks are, so that each value is over its own.
    level = F.interpolate(level, scale_factor=[1.0, *map(float, blocks[1:])], mode="trilinear", align_corners=False)
    return level[0, 0, :, :y, :x].expand(z, y, x).contiguous().to(volume)


def level_plane(volume: Tensor, spectrum: Tensor) -> Tensor:
    """:func:`noise_level` of a whole volume, which may be on disk: the mean over slabs, as power.

    The slabs follow from the shape alone, and are thin where planes are large, so that memory stays bounded.

    Args:
        volume: ``(Z, Y, X)``.
        spectrum: of its noise.

    Returns:
        ``(Y, X)``; the level is the same along Z.
    """
    depth, power = volume.shape[0], torch.zeros(volume.shape[1:])
    thickness = min(_SLAB, max(_THINNEST, _SLAB_BYTES // (4 * math.prod(volume.shape[1:]))))
    count = max(1, round(depth / thickness))
    borders = [depth * number // count for number in range(count + 1)]
    for first, last in pairwise(borders):
        level = noise_level(copy_planes(volume[first:last]).cpu(), spectrum)[0]
        power += level.square() * ((last - first) / depth)
    return power.sqrt()
