"""The blind-spot network: a masked stem, and any body that sees one sub-lattice per item of the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import (
    BlindSet,
    Lattice,
    Triple,
    as_triple,
    merge_sublattices,
    padding_to_multiple,
    split_sublattices,
    volume_shuffle,
    volume_unshuffle,
)
from cryoshuffle.layers import DilatedChannelAttentionBlock, PointwiseConv3d, SparseMaskedConv3d


class _Down(nn.Module):
    """Volume-unshuffle, then the channels of the next level."""

    def __init__(self, in_channels: int, out_channels: int, factor: Triple) -> None:
        super().__init__()
        self.factor = factor
        self.project = PointwiseConv3d(in_channels * factor[0] * factor[1] * factor[2], out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(volume_unshuffle(x, self.factor))


def mean_with_before(x: Tensor, widths: tuple[int, int, int], before: Tensor | None = None) -> Tensor:
    """Mean over each voxel and those before it along (Z, Y, X), ``widths`` in all.

    Args:
        x: features.
        widths: along (Z, Y, X), voxels.
        before: what comes before ``x`` along Z, ``widths[0] - 1`` planes; None where the first plane is repeated, as is
            the first voxel along the other axes.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``.
    """
    for axis, width in enumerate(widths):
        dim, total = 2 + axis, x
        for k in range(1, width):
            n = x.shape[dim]
            shifted, short = x.narrow(dim, 0, max(0, n - k)), min(k, n)
            first = x.narrow(dim, 0, 1).expand([short if d == dim else s for d, s in enumerate(x.shape)])
            if before is not None and axis == 0:
                first = before.narrow(dim, before.shape[dim] - k, short)
            # In place on the sum: nothing is put together first.
            total = total.clone() if k == 1 else total
            total.narrow(dim, short, n - short).add_(shifted)
            total.narrow(dim, 0, short).add_(first)
        x = total
    return x / (widths[0] * widths[1] * widths[2])


class _MeanWithBefore(torch.autograd.Function):
    """:func:`mean_with_before` with a gradient that needs no more memory than it has itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, widths: tuple[int, int, int]) -> Tensor:
        ctx.widths = widths
        return mean_with_before(x, widths)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        g = gradients[0] / (ctx.widths[0] * ctx.widths[1] * ctx.widths[2])
        for axis, width in enumerate(ctx.widths):
            dim, total = 2 + axis, g
            for k in range(1, width):
                n = g.shape[dim]
                short = min(k, n)
                total = total.clone() if k == 1 else total
                total.narrow(dim, 0, n - short).add_(g.narrow(dim, short, n - short))
                total.narrow(dim, 0, 1).add_(g.narrow(dim, 0, short).sum(dim, keepdim=True))
            g = total
        return g, None


class _Up(nn.Module):
    """Channels for the finer level, volume-shuffle, and a box as wide as the factor.

    The channels that become the voxels of one cell have weights of their own, which leaves a pattern of the cell's
    period on everything. The box has its zeros at just those frequencies (Sugawara, Shiota & Kiya 2019).
    """

    def __init__(self, in_channels: int, out_channels: int, factor: Triple) -> None:
        super().__init__()
        self.factor = factor
        self.project = PointwiseConv3d(in_channels, out_channels * factor[0] * factor[1] * factor[2])

    def forward(self, x: Tensor) -> Tensor:
        return self.box(self.widen(x))

    def box(self, x: Tensor) -> Tensor:
        """The box."""
        if torch.jit.is_scripting():
            return mean_with_before(x, self.factor)
        else:
            boxed: Tensor = _MeanWithBefore.apply(x, self.factor)
            return boxed

    def widen(self, x: Tensor) -> Tensor:
        """All but the box."""
        return volume_shuffle(self.project(x), self.factor)


class _FullPrecisionOutput(nn.Module):
    """The last 1 x 1 x 1 convolution, in float32 also under autocast: a result in bfloat16 would be quantised."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 4, 1)
        if torch.jit.is_scripting():
            # Products and sums are not among the operations that autocast takes to bfloat16.
            y = (y[..., None, :] * self.weight).sum(dim=-1) + self.bias
        else:
            with torch.autocast(x.device.type, enabled=False):
                table = F.linear(y.flatten(0, 3).to(self.weight.dtype), self.weight, self.bias)
            y = table.unflatten(0, y.shape[:4])
        return y.permute(0, 4, 1, 2, 3)


class ShuffleUNet(nn.Module):
    """The paper's U-shaped body: DCA blocks, volume-unshuffle down, volume-shuffle up, added skips.

    It works in sub-lattice coordinates, one sub-lattice per item of the batch.

    Args:
        in_channels: features of the stem.
        out_channels: channels of the result.
        channels: features per level, finest first.
        blocks: DCA blocks per level and side.
        factors: unshuffle factors along (Z, Y, X) between the levels, one number or triple for each.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, out_channels, Z, Y, X)``; sides must be multiples of :attr:`multiple`.

    Raises:
        SettingError: if the number of factors is not one less than the number of levels.

    Source:
        Liu, Kassab, Xu & Ho, arXiv 2411.15248.
    """

    def __init__(
        self,
        in_channels: int = 24,
        out_channels: int = 1,
        channels: Sequence[int] = (24, 40, 64),
        blocks: int = 1,
        factors: Sequence[int | Sequence[int]] = (2, 2),
    ) -> None:
        super().__init__()
        if len(factors) != len(channels) - 1:
            raise SettingError(f"{len(channels)} levels need {len(channels) - 1} unshuffle factors, not {len(factors)}")
        steps = [as_triple(f, "unshuffle factor", smallest=1) for f in factors]
        self._arguments: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "channels": [int(c) for c in channels],
            "blocks": int(blocks),
            "factors": [list(f) for f in steps],
        }

        def level(width: int) -> nn.Sequential:
            return nn.Sequential(*(DilatedChannelAttentionBlock(width) for _ in range(blocks)))

        wide, narrow = list(channels[1:]), list(channels[:-1])
        self.enter = PointwiseConv3d(in_channels, channels[0])
        self.encoder = nn.ModuleList(level(c) for c in narrow)
        self.down = nn.ModuleList(_Down(a, b, f) for a, b, f in zip(narrow, wide, steps, strict=True))
        self.bottom = level(channels[-1])
        self.up = nn.ModuleList(_Up(b, a, f) for a, b, f in reversed(list(zip(narrow, wide, steps, strict=True))))
        self.decoder = nn.ModuleList(level(c) for c in reversed(narrow))
        self.leave = nn.Sequential(
            PointwiseConv3d(channels[0], channels[0]), nn.GELU(), _FullPrecisionOutput(channels[0], out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        x = self.enter(x)
        skips: list[Tensor] = []
        for encode, down in zip(self.encoder, self.down):  # noqa: B905 - TorchScript knows no strict zip
            x = encode(x)
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, decode in zip(self.up, self.decoder):  # noqa: B905
            x = decode(up(x) + skips.pop())
        return self.leave(x)

    def multiple(self) -> Triple:
        """What the sides of the input must be multiples of, along (Z, Y, X)."""
        total = [1, 1, 1]
        for factor in self._arguments["factors"]:
            total = [t * f for t, f in zip(total, factor, strict=True)]
        return total[0], total[1], total[2]

    def receptive_radius(self) -> Triple:
        """How far a prediction sees along (Z, Y, X), in sub-lattice voxels."""
        blocks, radius = self._arguments["blocks"], [self._arguments["blocks"]] * 3
        for factor in reversed(self._arguments["factors"]):
            # Between the levels: the rest of a cell going down, the box going up.
            radius = [r * f + 2 * (f - 1) + 2 * blocks for r, f in zip(radius, factor, strict=True)]
        return radius[0], radius[1], radius[2]

    def config(self) -> dict[str, Any]:
        """A MONAI component config that builds the same body."""
        return {"_target_": "cryoshuffle.network.ShuffleUNet", **self._arguments}


def _refuse_lattice(fitted: str, own: str) -> None:
    raise InputError(
        f"the weights do not fit this lattice (theirs: {fitted}; here: {own}): give the network the blind set and "
        "stride that they were fitted with"
    )


class BlindSpotNet(nn.Module):
    """A J-invariant network: its prediction at v depends on no voxel v + b, b in the blind set.

    The stem is the only layer that sees more than one sub-lattice. Behind it each sub-lattice is an item of the
    batch, so any body is blind, whatever it pools or normalises within an item. Sides that do not divide are
    padded with zeros and cropped again.

    Args:
        lattice: stride and blind set; default: blind plane across y, stride 3.
        body: any module ``(B, stem_channels, Z, Y, X) -> (B, C, Z, Y, X)``, one of MONAI's for instance.
        in_channels: channels of the tomogram.
        stem_channels: features of the stem.
        body_multiple: what the body needs the sides of its input to be multiples of; None asks
            ``body.multiple()`` and takes 1 where the body has no such method.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, C, Z, Y, X)``, any Z, Y, X.

    Invariant:
        The gradient of the output at v with respect to voxel v + b is exactly 0; see
        :func:`cryoshuffle.invariance.measure_leak`.

    Raises:
        SettingError: if the body holds a batch normalisation, whose training statistics mix items of the batch
            and so let a prediction see its own voxel.

    Example:
        >>> import torch
        >>> from monai.networks.nets import SegResNet
        >>> from cryoshuffle.lattice import BlindSet
        >>> body = SegResNet(in_channels=8, out_channels=1, init_filters=8, blocks_down=(1, 1), blocks_up=(1,))
        >>> net = BlindSpotNet(Lattice((2, 2, 2), BlindSet("voxel")), body, stem_channels=8, body_multiple=2)
        >>> net(torch.zeros(1, 1, 9, 10, 11)).shape
        torch.Size([1, 1, 9, 10, 11])
    """

    def __init__(
        self,
        lattice: Lattice | None = None,
        body: nn.Module | None = None,
        in_channels: int = 1,
        stem_channels: int = 24,
        body_multiple: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        lattice = Lattice() if lattice is None else lattice
        body = ShuffleUNet(in_channels=stem_channels) if body is None else body
        for name, module in body.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                raise SettingError(
                    f"the body holds the batch normalisation '{name}', which mixes sub-lattices while training "
                    "and breaks blindness: use instance, group or layer normalisation"
                )
        self.lattice = lattice
        self.stem = SparseMaskedConv3d(lattice, in_channels, stem_channels)
        self.body = body
        self.stride = lattice.stride_zyx
        if body_multiple is None:
            multiple: Callable[[], Triple] | None = getattr(body, "multiple", None)
            body_multiple = 1 if multiple is None else multiple()
        self.body_multiple = as_triple(body_multiple, "body multiple", smallest=1)
        z, y, x = (d * m for d, m in zip(self.stride, self.body_multiple, strict=True))
        self.period: tuple[int, int, int] = (z, y, x)
        self._channels = {"in_channels": in_channels, "stem_channels": stem_channels}

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        z, y, w = x.shape[2], x.shape[3], x.shape[4]
        pad_z = padding_to_multiple(z, self.period[0])
        pad_y = padding_to_multiple(y, self.period[1])
        pad_x = padding_to_multiple(w, self.period[2])
        x = F.pad(x, [0, pad_x, 0, pad_y, 0, pad_z])
        x = split_sublattices(self.stem(x), self.stride)
        x = merge_sublattices(self.body(x), self.stride)
        return x[:, :, :z, :y, :w]

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take weights; those of a whole checkpoint too, as MONAI's export and model zoo hand it over.

        Raises:
            InputError: if they are those of a network of another lattice: the stem has other sides, or the checkpoint
                names a lattice with other taps. Weights alone do not say which taps they were fitted for.
        """
        nested = state_dict.get("model", state_dict)
        # A model of a release has its settings in one entry beside the weights.
        weights = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
        beside = next((value for value in nested.values() if isinstance(value, Mapping)), state_dict)
        lattice, stem = beside.get("lattice"), weights.get("stem.weight")
        if isinstance(stem, Tensor) and stem.shape[2:] != self.stem.weight.shape[2:]:
            stems = (" x ".join(str(side) for side in one.shape[2:]) for one in (stem, self.stem.weight))
            _refuse_lattice(*(f"a stem of {sides} taps" for sides in stems))
        if isinstance(lattice, Mapping):
            blind = {name: value for name, value in lattice["blind_set"].items() if name != "_target_"}
            fitted = Lattice(lattice["stride"], BlindSet(**blind))
            same_taps = bool((fitted.taps() == self.lattice.taps()).all())
            if not same_taps or fitted.stride_zyx != self.lattice.stride_zyx:
                _refuse_lattice(*(f"{one.describe()}, stride {one.stride_zyx}" for one in (fitted, self.lattice)))
        return super().load_state_dict(weights, *args, **kwargs)

    def receptive_radius(self) -> Triple | None:
        """How far a prediction sees along (Z, Y, X), voxels of the full grid; None if the body does not say."""
        radius: Callable[[], Triple] | None = getattr(self.body, "receptive_radius", None)
        if radius is None:
            return None
        stem = [k // 2 for k in self.lattice.kernel_size]
        z, y, x = (r * d + s for r, d, s in zip(radius(), self.stride, stem, strict=True))
        return z, y, x

    def config(self) -> dict[str, Any] | None:
        """A MONAI component config that builds the same network; None if the body does not know its own."""
        body: Callable[[], dict[str, Any]] | None = getattr(self.body, "config", None)
        if body is None:
            return None
        return {
            "_target_": "cryoshuffle.network.BlindSpotNet",
            "lattice": self.lattice.config(),
            "body": body(),
            "body_multiple": list(self.body_multiple),
            **self._channels,
        }


def turn_weights(network: nn.Module, weights: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The weights with which a network does to a volume what it did before to the volume with its axes in an order.

    Args:
        network: that the weights belong to.
        weights: by name.
        order: numbers of the axes, ``volume.permute(order)``, ``(Z, Y, X)``.

    Invariant:
        With the new weights f(volume) is f(volume.permute(order)) with the old ones, its axes put back.

    Raises:
        SettingError: if the network does not treat its axes alike, so that there are no such weights.
    """
    place = [list(order).index(axis) for axis in range(3)]
    cells: dict[str, tuple[nn.Module, int]] = {}
    for name, module in network.named_modules():
        if isinstance(module, (_Down, _Up)):
            if len(set(module.factor)) > 1:
                raise SettingError(f"unshuffle factor {tuple(module.factor)}: a network is turned with equal ones only")
            cells[f"{name}.project"] = module, int(module.factor[0])

    own = network.state_dict()

    def turned(name: str, value: Any) -> Any:
        # Loading tells what does not fit.
        if name not in own or not isinstance(value, Tensor) or value.shape != own[name].shape:
            return value
        module, side = cells.get(name.rpartition(".")[0], (None, 1))
        if isinstance(module, _Down) and value.ndim == 5:
            # Channels of the input are the neighbours in a cell, then the features.
            cell = value.unflatten(1, (side, side, side, -1))
            return cell.permute(0, *(1 + axis for axis in place), 4, 5, 6, 7).reshape(value.shape)
        if isinstance(module, _Up):
            cell = value.unflatten(0, (side, side, side, -1))
            return cell.permute(*place, *range(3, cell.ndim)).reshape(value.shape)
        if value.ndim == 5:
            return value.permute(0, 1, *(2 + axis for axis in place)).contiguous()
        return value

    return {name: turned(name, value) for name, value in weights.items()}


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside a wrapper of torch's that keeps it as ``module`` (``DistributedDataParallel``), or itself."""
    inner = getattr(network, "module", network)
    return inner if isinstance(inner, nn.Module) else network
