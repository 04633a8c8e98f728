"""The paper's formulation of our network, dilated on the full grid: what ours must equal, and is timed beside."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryoshuffle.lattice import Lattice, padding_to_multiple, volume_shuffle, volume_unshuffle
from cryoshuffle.layers import ChannelLayerNorm, DilatedChannelAttention, DilatedChannelAttentionBlock
from cryoshuffle.network import BlindSpotNet, ShuffleUNet


class DilatedFormulation(BlindSpotNet):
    """The paper's formulation out of our own layers: dilated on the full grid, no sub-lattice is split off.

    It has the weights of :class:`cryoshuffle.network.BlindSpotNet` under the same names, with
    :class:`cryoshuffle.network.ShuffleUNet` as body. ``dilation`` is the lattice stride.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, 1, Z, Y, X)``, any Z, Y, X.

    Invariant:
        The output is that of ``BlindSpotNet`` with the same weights.

    Source:
        Liu, Kassab, Xu & Ho, arXiv 2411.15248.
    """

    def __init__(self, lattice: Lattice, body: ShuffleUNet, **more: Any) -> None:
        super().__init__(lattice, body, **more)
        self.dilation = self.stride

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        z, y, w = x.shape[2:]
        pads = [padding_to_multiple(n, p) for n, p in zip((z, y, w), self.period, strict=True)]
        x = F.pad(x, [0, pads[2], 0, pads[1], 0, pads[0]])
        body, skips = self.body, []
        x = self._pointwise(body.enter, self.stem(x))
        for level, down in zip(body.encoder, body.down, strict=True):
            x = self._level(level, x)
            skips.append(x)
            x = self._pointwise(down.project, volume_unshuffle(x, down.factor, self.dilation))
        x = self._level(body.bottom, x)
        for up, level in zip(body.up, body.decoder, strict=True):
            x = volume_shuffle(self._pointwise(up.project, x), up.factor, self.dilation)
            for axis in range(3):
                x = _box(x, 2 + axis, up.factor[axis], self.dilation[axis])
            x = self._level(level, x + skips.pop())
        return self._leave(x)[:, :, :z, :y, :w]

    def _pointwise(self, layer: nn.Conv3d, x: Tensor) -> Tensor:
        return layer(x)

    def _norm(self, layer: ChannelLayerNorm, x: Tensor) -> Tensor:
        return layer(x)

    def _gate(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        return block.gate(x)

    def _leave(self, x: Tensor) -> Tensor:
        return self.body.leave(x)

    def _level(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = self._block(block, x)
        return x

    def _block(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        conv, normal = block.conv, self._norm(block.norm_conv, x)
        y = F.conv3d(normal, conv.weight, conv.bias, padding=self.dilation, dilation=self.dilation)
        y = self._pointwise(block.conv_out, self._attention(block.attention, self._gate(block, y)))
        x = x + y * block.conv_scale[None, :, None, None, None]
        y = self._gate(block, self._pointwise(block.feed_forward, self._norm(block.norm_feed_forward, x)))
        return x + self._pointwise(block.feed_forward_out, y) * block.feed_forward_scale[None, :, None, None, None]

    def _attention(self, layer: DilatedChannelAttention, x: Tensor) -> Tensor:
        """Pools the voxels of each residue; in evaluation the running mean serves all residues."""
        weight = layer.weight.weight[:, :, None, None, None]
        if not layer.training:
            mean = layer.running_mean[None, :, None, None, None].to(x.dtype)
            return x * (2.0 * torch.sigmoid(F.conv3d(mean, weight, layer.weight.bias)))
        dz, dy, dx = self.dilation
        parts = x.unflatten(4, (-1, dx)).unflatten(3, (-1, dy)).unflatten(2, (-1, dz))
        mean = parts.mean(dim=(2, 4, 6))
        with torch.no_grad():
            seen = mean.detach().mean(dim=(0, 2, 3, 4)).to(layer.running_mean.dtype)
            layer.running_mean.lerp_(seen, layer.momentum)
        scale = 2.0 * torch.sigmoid(F.conv3d(mean, weight, layer.weight.bias))
        parts = parts * scale[:, :, None, :, None, :, None]
        return parts.flatten(6, 7).flatten(4, 5).flatten(2, 3)


class PlainFormulation(DilatedFormulation):
    """The paper's formulation as torch's own layers give it: convolutions, normalisation and gate without our code.

    Shape and invariant are those of :class:`DilatedFormulation`.
    """

    def _pointwise(self, layer: nn.Conv3d, x: Tensor) -> Tensor:
        return F.conv3d(x, layer.weight, layer.bias)

    def _norm(self, layer: ChannelLayerNorm, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        weight, bias = (p[None, :, None, None, None] for p in (layer.weight, layer.bias))
        return (x - mean) * torch.rsqrt(variance + layer.eps) * weight + bias

    def _gate(self, block: DilatedChannelAttentionBlock, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a * b

    def _leave(self, x: Tensor) -> Tensor:
        first, activation, last = self.body.leave
        x = activation(self._pointwise(first, x))
        return F.conv3d(x, last.weight[:, :, None, None, None], last.bias)


FORMULATIONS = {"sub-lattices": BlindSpotNet, "dilated": DilatedFormulation, "plain": PlainFormulation}


def _box(x: Tensor, dim: int, width: int, step: int) -> Tensor:
    """Mean over each voxel and those of its residue before it, ``width`` in all; the first is repeated there."""
    if width == 1:
        return x
    n = x.shape[dim]
    padded = torch.cat([x.narrow(dim, 0, step)] * (width - 1) + [x], dim)
    mean = padded.narrow(dim, 0, n)
    for k in range(1, width):
        mean = mean + padded.narrow(dim, k * step, n)
    return mean / width
