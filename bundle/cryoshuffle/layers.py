"""The layers of the paper, and what MONAI's layer factories need to build them by name.

Importing this module registers ``Norm["CHANNELLAYER"]`` and ``Act["SIMPLEGATE"]`` with MONAI.
Axes are ``B C Z Y X``. All layers but the stem see one sub-lattice per item of the batch.
"""

from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Act, Norm
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cryoshuffle.lattice import Lattice, stem_mask


class SparseMaskedConv3d(nn.Module):
    """Sparse centrally masked convolution: the stem, the only layer that mixes sub-lattices.

    The mask follows from the lattice and multiplies the weight in ``forward``, so that optimiser, averaging,
    autocast and compilation cannot open a tap. Borders are padded with zeros: reflection would bring a hidden
    voxel back.

    Args:
        lattice: stride and blind set.
        in_channels: channels of the tomogram.
        out_channels: features.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, out_channels, Z, Y, X)``.

    Invariant:
        The output at v depends on no voxel v + o whose residue is a residue of the blind set.
    """

    mask: torch.Tensor

    def __init__(self, lattice: Lattice, in_channels: int, out_channels: int) -> None:
        super().__init__()
        kernel = lattice.kernel_size
        self.padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("mask", stem_mask(lattice), persistent=False)
        fan_in = in_channels * int(lattice.taps().sum())
        nn.init.normal_(self.weight, std=(2.0 / fan_in) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return F.conv3d(x, self.weight * self.mask, self.bias, padding=self.padding)


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each voxel on its own; mixes no voxels, so it is always blind.

    Args:
        num_features: channels.
        eps: added to the variance.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``; fastest when channels are last in memory.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        y = F.layer_norm(x.permute(0, 2, 3, 4, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 4, 1, 2, 3)


class PointwiseConv3d(nn.Conv3d):
    """Convolution of 1 x 1 x 1 as a product of matrices, perhaps of features that channels scale before or behind it.

    The parameters are those of :class:`torch.nn.Conv3d`. Factors multiply the small weights instead of the features,
    which is the same. Where channels are last in memory nothing is copied.

    Args:
        in_channels: of the input.
        out_channels: of the output.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, out_channels, Z, Y, X)``, channels last in memory.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor, before: Tensor | None = None, behind: Tensor | None = None) -> Tensor:
        """The convolution of ``x * before``, times ``behind``.

        Args:
            x: features.
            before: factors of the input's channels, ``(B, in_channels)`` or ``(1, in_channels)``.
            behind: factors of the output's channels, ``(out_channels,)``.
        """
        weight, bias = self.weight.flatten(1), self.bias
        if behind is not None:
            weight = weight * behind[:, None]
            bias = None if bias is None else bias * behind
        y = x.permute(0, 2, 3, 4, 1).flatten(1, 3)
        if before is not None and before.shape[0] > 1:
            y = torch.bmm(y, (weight[None] * before[:, None]).transpose(1, 2))
            y = y if bias is None else y + bias
        else:
            weight = weight if before is None else weight * before
            # As a table of voxels: products with more axes are done in ways that depend on who wants a gradient.
            y = F.linear(y.flatten(0, 1), weight, bias)
        return y.reshape(x.shape[0], x.shape[2], x.shape[3], x.shape[4], -1).permute(0, 4, 1, 2, 3)


class _Gated(torch.autograd.Function):
    """The gate, with a gradient that is written where it belongs instead of put together from two halves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        a, b = x.chunk(2, dim=1)
        return a * b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,), g = ctx.saved_tensors, gradients[0]
        a, b = x.chunk(2, dim=1)
        result, half = torch.empty_like(x), a.shape[1]
        torch.mul(g, b, out=result[:, :half])
        torch.mul(g, a, out=result[:, half:])
        return result


class SimpleGate(nn.Module):
    """The first half of the channels times the second half.

    Shape:
        ``(B, 2 C, Z, Y, X) -> (B, C, Z, Y, X)``.

    Source:
        Chen et al. 2022, "Simple Baselines for Image Restoration", section 3.4.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if torch.jit.is_scripting():
            a, b = x.chunk(2, dim=1)
            return a * b
        else:
            gated: Tensor = _Gated.apply(x)
            return gated


class DilatedChannelAttention(nn.Module):
    """Channel attention that pools each sub-lattice on its own.

    On the full grid this is a pooling with the dilation of the lattice; with one sub-lattice per item of the
    batch it is the mean over an item. While training the mean is the window's, and a running mean of it is kept;
    in evaluation the running mean, a statistic of the whole volume, takes its place, so that the result does not
    depend on how the volume was cut into windows.

    Args:
        channels: of the features.
        momentum: share of the newest window in the running mean.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``.
    """

    running_mean: torch.Tensor

    def __init__(self, channels: int, momentum: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Linear(channels, channels)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))

    def factors(self, x: Tensor) -> Tensor:
        """What each channel of ``x`` is to be multiplied by, ``(B, C)``, or ``(1, C)`` in evaluation."""
        if self.training:
            mean = x.mean(dim=(2, 3, 4))
            with torch.no_grad():
                self.running_mean.lerp_(mean.detach().mean(dim=0).to(self.running_mean.dtype), self.momentum)
        else:
            mean = self.running_mean[None].to(x.dtype)
        return 2.0 * torch.sigmoid(self.weight(mean))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x * self.factors(x)[:, :, None, None, None]


class DilatedChannelAttentionBlock(nn.Module):
    """The DCA block: gated convolution with attention, then a gated feed-forward layer, each on a residual path.

    The residual scales are learned and start at 0: a new block is the identity. In sub-lattice coordinates the
    paper's dilated convolution is a dense one. Attention and residual scales multiply the small weights of the
    1 x 1 x 1 convolutions instead of the features, which is the same.

    Args:
        channels: of the features.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``, fastest when channels are last in memory; sees one voxel further than
        its input on every side.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_conv = Norm["CHANNELLAYER", 3](channels)
        self.conv = nn.Conv3d(channels, 2 * channels, 3, padding=1)
        self.gate = Act["SIMPLEGATE"]()
        self.attention = DilatedChannelAttention(channels)
        self.conv_out = PointwiseConv3d(channels, channels)
        self.conv_scale = nn.Parameter(torch.zeros(channels))
        self.norm_feed_forward = Norm["CHANNELLAYER", 3](channels)
        self.feed_forward = PointwiseConv3d(channels, 2 * channels)
        self.feed_forward_out = PointwiseConv3d(channels, channels)
        self.feed_forward_scale = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.join(x, self.conv(self.norm_conv(x)))

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """What follows the 3 x 3 x 3 convolution, voxel by voxel.

        Args:
            x: input of the block.
            y: its convolution, ``(B, 2 C, Z, Y, X)``.
        """
        y = self.gate(y)
        x = x + self.conv_out(y, self.attention.factors(y), self.conv_scale)
        y = self.gate(self.feed_forward(self.norm_feed_forward(x)))
        return x + self.feed_forward_out(y, None, self.feed_forward_scale)


def register_layers() -> None:
    """Make the layers known to MONAI's factories, once: ``Norm["CHANNELLAYER"]`` and ``Act["SIMPLEGATE"]``."""
    if "CHANNELLAYER" not in Norm.names:
        Norm.add_factory_callable("channellayer", lambda dim: ChannelLayerNorm)
    if "SIMPLEGATE" not in Act.names:
        Act.add_factory_callable("simplegate", lambda: SimpleGate)


register_layers()
