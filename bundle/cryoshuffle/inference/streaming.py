"""Inference that streams a volume through the network a few planes at a time.

Each layer keeps the planes that its next output still needs, so along Z nothing is computed twice and no window needs
a halo: memory is bounded by the thickness of the pieces, and the result is that of one pass over the whole volume.
Axes are ``B C Z Y X``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.devices import pin_memory, to_device
from cryoshuffle.files.overlap import can_overlap, read_ahead
from cryoshuffle.files.scratch import copy_planes
from cryoshuffle.lattice import merge_sublattices, padding_to_multiple, split_sublattices
from cryoshuffle.layers import DilatedChannelAttentionBlock
from cryoshuffle.memory import trim_memory, trim_near_limit
from cryoshuffle.network import BlindSpotNet, ShuffleUNet, mean_with_before


class _Queue:
    """Planes that wait; the oldest leave first."""

    def __init__(self) -> None:
        self._waiting: deque[Tensor] = deque()

    def __len__(self) -> int:
        return sum(part.shape[2] for part in self._waiting)

    def add(self, x: Tensor) -> None:
        self._waiting.append(x)

    def take(self, count: int) -> Tensor:
        if count > len(self):
            raise ValueError(f"{count} planes asked for, and {len(self)} are waiting")
        parts = []
        while count > 0:
            oldest = self._waiting.popleft()
            n = min(count, oldest.shape[2])
            parts.append(oldest.narrow(2, 0, n))
            if n < oldest.shape[2]:
                rest = oldest.narrow(2, n, oldest.shape[2] - n)
                # A view of a few planes would keep all the others.
                self._waiting.appendleft(rest.clone() if rest.shape[2] < n else rest)
            count -= n
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


class _Gathered:
    """Planes in whole multiples."""

    def __init__(self, multiple: int) -> None:
        self._multiple, self._queue = multiple, _Queue()

    def push(self, x: Tensor | None) -> Tensor | None:
        if x is not None:
            self._queue.add(x)
        count = len(self._queue) // self._multiple * self._multiple
        return self._queue.take(count) if count else None


class _Convolved:
    """A convolution that pads with zeros; each output waits until what lies behind it is there."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self._reach = [k // 2 for k in weight.shape[2:]]
        self._held: Tensor | None = None

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        some, reach = self._held if x is None else x, self._reach[0]
        if some is None:
            return None
        zeros = torch.zeros_like(some[:, :, :1]).expand(-1, -1, reach, -1, -1)
        parts = [zeros if self._held is None else self._held, x, zeros if last else None]
        seen = torch.cat([part for part in parts if part is not None], 2)
        count = seen.shape[2] - 2 * reach
        self._held = seen.narrow(2, max(0, count), min(2 * reach, seen.shape[2])).clone()
        if count <= 0:
            return None
        trim_near_limit()
        return F.conv3d(seen, self._weight, self._bias, padding=[0, *self._reach[1:]])


class _Block:
    """A DCA block."""

    def __init__(self, block: DilatedChannelAttentionBlock) -> None:
        self._block, self._waiting = block, _Queue()
        self._convolved = _Convolved(block.conv.weight, block.conv.bias)

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            self._waiting.add(x)
            x = self._block.norm_conv(x)
        y = self._convolved.push(x, last)
        return None if y is None else self._block.join(self._waiting.take(y.shape[2]), y)


class _Level:
    """The blocks of a level, one behind the other."""

    def __init__(self, level: Any) -> None:
        self._blocks = [_Block(block) for block in level]

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        for block in self._blocks:
            x = block.push(x, last)
        return x


class _Up:
    """The way to the finer level; its box looks back only, so nothing waits."""

    def __init__(self, up: Any) -> None:
        self._up = up
        self._before: Tensor | None = None

    def push(self, x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        x = self._up.widen(x)
        before, kept = self._before, self._up.factor[0] - 1
        if kept:
            first = x[:, :, :1].expand(-1, -1, kept, -1, -1) if before is None else before
            self._before = torch.cat([first, x], 2)[:, :, -kept:].clone()
        return mean_with_before(x, self._up.factor, before)


class _Body:
    """The U-shaped body; skips wait for what comes from below."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._encoder = [_Level(level) for level in body.encoder]
        self._down = [(down, _Gathered(down.factor[0])) for down in body.down]
        self._bottom, self._up = _Level(body.bottom), [_Up(up) for up in body.up]
        self._decoder = [_Level(level) for level in body.decoder]
        self._skips = [_Queue() for _ in body.encoder]

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        x = None if x is None else self._body.enter(x)
        for encode, (down, gathered), skip in zip(self._encoder, self._down, self._skips, strict=True):
            x = encode.push(x, last)
            if x is not None:
                skip.add(x)
            x = gathered.push(x)
            x = None if x is None else down(x)
        x = self._bottom.push(x, last)
        for up, decode, skip in zip(self._up, self._decoder, reversed(self._skips), strict=True):
            x = up.push(x)
            x = decode.push(None if x is None else x + skip.take(x.shape[2]), last)
        return None if x is None else self._body.leave(x)


def can_stream(network: Any) -> bool:
    """Whether a network is one of ours, in evaluation mode: attention that pools a window would need all of it."""
    return isinstance(network, BlindSpotNet) and isinstance(network.body, ShuffleUNet) and not network.training


def with_context(
    pieces: Iterable[tuple[slice, Tensor]], function: Callable[[Tensor], Tensor], reach: int, depth: int
) -> Iterator[tuple[slice, Tensor]]:
    """What a function makes of a volume that comes in pieces, though it looks ``reach`` planes to either side.

    Args:
        pieces: planes of the volume, and the piece, ``(B, C, planes, Y, X)``, each next to the one before, upwards or
            downwards.
        function: of volumes that keeps their shape.
        reach: planes that it looks to either side.
        depth: of the volume, planes.

    Yields:
        as ``pieces``, all planes once.
    """
    held: Tensor | None = None
    upwards, start, stop, first, last = True, 0, 0, 0, 0
    for planes, piece in pieces:
        if held is None:
            upwards, held, start, stop = planes.start == 0, piece, planes.start, planes.stop
            first, last = (0, 0) if upwards else (depth, depth)
        elif upwards:
            held, stop = torch.cat([held, piece], dim=2), planes.stop
        else:
            held, start = torch.cat([piece, held], dim=2), planes.start
        low, high = start + (reach if start > 0 else 0), stop - (reach if stop < depth else 0)
        low, high = (max(low, last), high) if upwards else (low, min(high, first))
        if low < high:
            before, behind = max(start, low - reach), min(stop, high + reach)
            result = function(held[:, :, before - start : behind - start])
            yield slice(low, high), result[:, :, low - before : high - before]
            first, last = low, high
        # Only what the next planes look back to is kept.
        before, behind = (max(start, last - reach), stop) if upwards else (start, min(stop, first + reach))
        held, start, stop = held[:, :, before - start : behind - start], before, behind


class StreamedNetwork:
    """A network that takes a volume in pieces of a few planes each, instead of all at once.

    Args:
        network: a :class:`cryoshuffle.network.BlindSpotNet` with a :class:`cryoshuffle.network.ShuffleUNet`, in
            evaluation mode.
        thickness: planes of a piece; rounded up to whole lattice periods.

    Shape:
        ``(B, in_channels, Z, Y, X) -> (B, C, Z, Y, X)``, any Z, Y, X.

    Invariant:
        The result is that of the network itself, whatever the thickness, but for rounding.

    Raises:
        ValueError: for another network.

    Example:
        >>> network = BlindSpotNet().eval()
        >>> volume = torch.randn(1, 1, 20, 16, 16)
        >>> with torch.no_grad():
        ...     torch.allclose(StreamedNetwork(network, thickness=4)(volume), network(volume), atol=1e-5)
        True
    """

    def __init__(self, network: Any, thickness: int) -> None:
        if not can_stream(network):
            raise ValueError("only a BlindSpotNet around a ShuffleUNet can be streamed, and only in evaluation mode")
        self.network = network
        step = network.period[0]
        self.thickness = -(-thickness // step) * step

    def pieces(
        self,
        x: Tensor,
        mirrored: Sequence[int] = (),
        device: torch.device | str | None = None,
        within: AbstractContextManager[Any] | None = None,
    ) -> Iterator[tuple[slice, Tensor]]:
        """The result piece by piece, as it becomes ready.

        Args:
            x: the volume, ``(B, in_channels, Z, Y, X)``; only a piece of it is copied at a time.
            mirrored: axes (2, 3, 4) along which it is turned round for the network, after padding to whole periods, and
                the result turned back; along Z the last piece then comes first.
            device: that computes; None for that of the volume.
            within: what the network is run in, autocast for instance; None for nothing.

        Yields:
            the planes of the volume that a piece is, and the piece, ``(B, C, planes, Y, X)``.
        """
        z, height, width = x.shape[2:]
        pads = [padding_to_multiple(n, p) for n, p in zip(x.shape[2:], self.network.period, strict=True)]
        network, stride, total = self.network, self.network.stride, z + pads[0]
        stem = _Convolved(network.stem.weight * network.stem.mask, network.stem.bias)
        gathered, body, done = _Gathered(stride[0]), _Body(network.body), 0
        where = torch.device(x.device if device is None else device)

        def read(start: int) -> tuple[int, int, Tensor]:
            stop = min(start + self.thickness, total)
            first, end = (total - stop, total - start) if 2 in mirrored else (start, stop)
            return stop, end, pin_memory(copy_planes(x[:, :, first:end]), where)

        for stop, end, piece in read_ahead(range(0, total, self.thickness), read, can_overlap(x, where)):
            if stop == total:
                # All that the layers hold leaves them now: tensors larger than any before.
                trim_memory()
            piece = to_device(piece, where)
            piece = F.pad(piece, [0, pads[2], 0, pads[1], 0, end - min(end, z)]).flip(tuple(mirrored))
            with within or nullcontext():
                y = gathered.push(stem.push(piece, stop == total))
                y = body.push(None if y is None else split_sublattices(y, stride), stop == total)
            if y is None:
                continue
            y = merge_sublattices(y, stride).flip(tuple(mirrored))
            first, end = done, done + y.shape[2]
            done = end
            if 2 in mirrored:
                first, end = total - end, total - first
            if first < z:
                yield slice(first, min(end, z)), y[:, :, : z - first, :height, :width]

    def __call__(self, x: Tensor) -> Tensor:
        """Run the network."""
        return torch.cat([piece for _, piece in self.pieces(x)], 2)
