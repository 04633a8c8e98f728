"""How a tomogram whose tilt axis is off the grid stands upright, and what its noise is as it lies.

Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.noise.axes import between, line_along


@dataclass(frozen=True)
class Turn:
    """A turn about the beam, and then one towards it, that lay the tilt axis along an axis of the grid.

    Attributes:
        beam: number of its axis.
        normal: number of the axis that is nearest to the tilt axis.
        degrees: from that axis to the tilt axis, towards the third one.
        lean: of the tilt axis towards the beam, degrees.
    """

    beam: int
    normal: int
    degrees: float
    lean: float = 0.0

    @property
    def is_none(self) -> bool:
        """Whether nothing is turned."""
        return not (self.degrees or self.lean)

    @property
    def _third(self) -> int:
        return 3 - self.beam - self.normal

    def widen(self, side: int) -> int:
        """Side of the cube that has to be turned for a middle of a side to be known afterwards, voxels.

        Even for an even side, so that the two have one middle.
        """
        for degrees in (self.lean, self.degrees):
            if degrees:
                radians = math.radians(degrees)
                side += 2 * math.ceil(side * (math.cos(radians) + abs(math.sin(radians)) - 1) / 2 + 1)
        return side

    def upright(self, volume: Tensor) -> Tensor:
        """The middle of a volume, turned, as far as it is known.

        Shears by shifts in the Fourier domain, three for each turn: white noise stays white, and nothing is damped.

        Args:
            volume: ``(Z, Y, X)``.

        Shape:
            less along the axes between which it is turned, by :meth:`widen`.

        Source:
            Paeth 1986, "A fast algorithm for general raster rotation"; Unser, Thevenaz & Yaroslavsky 1995,
            "Convolution-based interpolation for fast, high-quality rotation of images".
        """
        if self.is_none:
            return volume
        values = _turned(volume.float(), self.normal, self._third, self.degrees)
        return _turned(values, self.normal, self.beam, self.lean).contiguous()

    def as_given(self, spectrum: Tensor) -> Tensor:
        """The power spectrum of a volume, from that of the volume turned upright; what lies in corners is not known.

        Shape:
            ``(G, G, G)``, zero frequency first.
        """
        if self.is_none:
            return spectrum
        order = (self.beam, self.normal, self._third)
        side = spectrum.shape[0]
        # From -0.5 to 0.5, both ends included.
        centred = F.pad(torch.fft.fftshift(spectrum.permute(order))[None, None], (0, 1) * 3, mode="circular")
        line = torch.linspace(-1, 1, side + 1, dtype=spectrum.dtype)[:side]
        ahead, along, across = torch.meshgrid(line, line, line, indexing="ij")
        along, across = between(along, across, self.degrees)
        along, ahead = between(along, ahead, self.lean)
        grid = torch.stack([across, along, ahead], dim=-1)[None]
        turned = F.grid_sample(centred, grid, padding_mode="border", align_corners=True)[0, 0]
        return torch.fft.ifftshift(turned).movedim((0, 1, 2), order).contiguous()


UPRIGHT = Turn(0, 1, 0.0)


def _turned(volume: Tensor, one: int, other: int, degrees: float) -> Tensor:
    """The middle of a volume after a direction between two of its axes has been laid along the first of them."""
    if not degrees:
        return volume
    radians = math.radians(degrees)
    for axis, across, slope in (
        (one, other, -math.tan(radians / 2)),
        (other, one, math.sin(radians)),
        (one, other, -math.tan(radians / 2)),
    ):
        volume = _sheared(volume, axis, across, slope)
    cosine, sine = math.cos(radians), abs(math.sin(radians))
    first, second = volume.shape[one], volume.shape[other]
    share = min(first / (first * cosine + second * sine), second / (first * sine + second * cosine))
    for axis, side in ((one, first), (other, second)):
        kept = min(side, 2 * (int(share * side) // 2) + side % 2)
        volume = volume.narrow(axis, (side - kept) // 2, kept)
    return volume


def _sheared(volume: Tensor, axis: int, across: int, slope: float) -> Tensor:
    """What lies at ``u + slope * v``, where u counts along an axis and v along the one across it, from the middle."""
    side, other = volume.shape[axis], volume.shape[across]
    shift = slope * (torch.arange(other, dtype=torch.float32) - (other - 1) / 2)
    wave = 2 * math.pi * torch.fft.rfftfreq(side)
    phase = torch.polar(torch.ones(1), line_along(wave, axis) * line_along(shift, across))
    return torch.fft.irfft(torch.fft.rfft(volume, dim=axis) * phase, n=side, dim=axis)
