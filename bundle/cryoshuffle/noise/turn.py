"""How a tomogram whose tilt axis is off the grid stands upright, and what its noise is as it lies.

Axes are (Z, Y, X).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.noise.axes import line_along


@dataclass(frozen=True)
class Turn:
    """A turn about the beam that lays the tilt axis along an axis of the grid.

    Attributes:
        beam: number of its axis.
        normal: number of the axis that is nearest to the tilt axis.
        degrees: from that axis to the tilt axis, towards the third one.
    """

    beam: int
    normal: int
    degrees: float

    @property
    def _radians(self) -> float:
        return math.radians(self.degrees)

    def widen(self, side: int) -> int:
        """Side of the cube that has to be turned for a middle of a side to be known afterwards, voxels.

        Even for an even side, so that the two have one middle.
        """
        if not self.degrees:
            return side
        return side + 2 * math.ceil(side * (math.cos(self._radians) + abs(math.sin(self._radians)) - 1) / 2 + 1)

    def upright(self, volume: Tensor) -> Tensor:
        """The middle of a volume, turned, as far as it is known.

        Three shears by shifts in the Fourier domain: white noise stays white, and nothing is damped.

        Args:
            volume: ``(Z, Y, X)``.

        Shape:
            less along tilt axis and third axis, by :meth:`widen`.

        Source:
            Paeth 1986, "A fast algorithm for general raster rotation"; Unser, Thevenaz & Yaroslavsky 1995,
            "Convolution-based interpolation for fast, high-quality rotation of images".
        """
        if not self.degrees:
            return volume
        third = 3 - self.beam - self.normal
        order = (self.beam, self.normal, third)
        values = volume.permute(order)
        values = _sheared(values, 1, -math.tan(self._radians / 2))
        values = _sheared(values, 2, math.sin(self._radians))
        values = _sheared(values, 1, -math.tan(self._radians / 2))
        cosine, sine = math.cos(self._radians), abs(math.sin(self._radians))
        one, two = values.shape[1:]
        share = min(one / (one * cosine + two * sine), two / (one * sine + two * cosine))
        kept = [min(side, 2 * (int(share * side) // 2) + side % 2) for side in (one, two)]
        first, second = ((side - keep) // 2 for side, keep in zip((one, two), kept, strict=True))
        values = values[:, first : first + kept[0], second : second + kept[1]]
        return values.movedim((0, 1, 2), order).contiguous()

    def as_given(self, spectrum: Tensor) -> Tensor:
        """The power spectrum of a volume, from that of the volume turned upright; what lies in corners is not known.

        Shape:
            ``(G, G, G)``, zero frequency first.
        """
        if not self.degrees:
            return spectrum
        order = (self.beam, self.normal, 3 - self.beam - self.normal)
        side = spectrum.shape[0]
        # From -0.5 to 0.5, both ends included.
        centred = F.pad(torch.fft.fftshift(spectrum.permute(order))[:, None], (0, 1, 0, 1), mode="circular")
        line = torch.linspace(-1, 1, side + 1, dtype=spectrum.dtype)[:side]
        one, two = line[:, None].expand(side, side), line.expand(side, side)
        cosine, sine = math.cos(self._radians), math.sin(self._radians)
        along, across = one * cosine + two * sine, two * cosine - one * sine
        grid = torch.stack([across, along], dim=-1).expand(side, side, side, 2)
        turned = F.grid_sample(centred, grid, padding_mode="border", align_corners=True)[:, 0]
        return torch.fft.ifftshift(turned).movedim((0, 1, 2), order).contiguous()


UPRIGHT = Turn(0, 1, 0.0)


def _sheared(volume: Tensor, axis: int, slope: float) -> Tensor:
    """What lies at ``u + slope * v``, where u counts along an axis (1 or 2) and v along the other, from the middle."""
    side, other = volume.shape[axis], volume.shape[3 - axis]
    shift = slope * (torch.arange(other, dtype=torch.float32) - (other - 1) / 2)
    wave = 2 * math.pi * torch.fft.rfftfreq(side)
    phase = torch.polar(torch.ones(1), line_along(wave, axis) * line_along(shift, 3 - axis))
    return torch.fft.irfft(torch.fft.rfft(volume.float(), dim=axis) * phase, n=side, dim=axis)
