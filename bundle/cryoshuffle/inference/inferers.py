"""Inferers: one window at the chosen precision, and a whole volume by windows with a halo."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from cryoshuffle.boxes import round_up
from cryoshuffle.devices import choose_precision, pin_memory, to_device
from cryoshuffle.errors import SettingError
from cryoshuffle.files import scratch
from cryoshuffle.files.overlap import WriteBehind, can_overlap, read_ahead
from cryoshuffle.inference.mergers import WindowMerger
from cryoshuffle.inference.streaming import StreamedNetwork, can_stream, with_context
from cryoshuffle.inference.windows import Window, choose_pieces, choose_window, cut_windows
from cryoshuffle.lattice import Triple, as_triple, padding_to_multiple
from cryoshuffle.memory import is_out_of_memory, keep_memory, trim_memory, window_bytes
from cryoshuffle.network import unwrap
from cryoshuffle.noise.linear_filter import (
    band_kernel,
    convolve_channels,
    filter_reach,
    filtered,
    gaussian_reach,
    smoothed,
)

logger = logging.getLogger("cryoshuffle")
# What a voxel of a window takes in the package's network, bytes (measured: up to 1350), and where it is streamed (up to
# 1850, and 2450 behind a thousand planes, for what the layers free leaves gaps); planes that the layers of a streamed
# window hold, and that leave them with its last piece.
BYTES_PER_VOXEL, STREAMED_BYTES, HELD = 1900, 2600, 16
# Copies of a volume that memory holds before its result is written.
COPIES = 4
# A volume with more voxels is faster when it is streamed, even if it is not too large.
WHOLE = 2_500_000
# Largest width of a Gaussian over the result, voxels; with a larger one there would be nothing left of the network's.
MOST_SMOOTH = 4.0
# The features of a voxel in one of its layers.
FEATURE_BYTES = 96
# The volume as it is, and its seven mirror images, by axes of the batch.
MIRRORED = tuple(axes for count in range(4) for axes in combinations((2, 3, 4), count))


class PrecisionInferer(Inferer):
    """Runs a network on its input as it is, under autocast where bfloat16 pays.

    MONAI's own ``amp`` knows CUDA only; this serves CPU and CUDA alike, for the fit too.

    Args:
        precision: ``auto``, ``fp32``, ``tf32`` or ``bf16``; see :func:`cryoshuffle.devices.choose_precision`.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``, float32.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the network."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        with self.autocast(plain.device):
            result = network(plain, *args, **kwargs)
        return result.float() if result.dtype in (torch.bfloat16, torch.float16) else result

    def autocast(self, device: torch.device, cached: bool = True) -> torch.autocast:
        """What the network is run in on a device; ``cached`` keeps the rounded weights for as long as that lasts."""
        dtype = choose_precision(self.precision, device)
        return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32, cache_enabled=cached)


def _attempts(device: torch.device, movable: bool) -> list[tuple[torch.device, int, str]]:
    """Where to compute, with which fraction of the memory, and what to say before, until the memory suffices."""
    attempts = [(device, 1, ""), (device, 4, "with windows of a quarter of the size")]
    if device.type == "cuda" and movable:
        attempts.append((torch.device("cpu"), 1, "on the CPU, which takes longer"))
    return attempts


def _slabs(volume: Tensor, thickness: int) -> Iterator[tuple[slice, Tensor]]:
    """Planes of a volume, and what lies there, a few at a time."""
    for start in range(0, volume.shape[2], thickness):
        planes = slice(start, min(start + thickness, volume.shape[2]))
        yield planes, scratch.copy_planes(volume[:, :, planes])


class HaloWindowInferer(PrecisionInferer):
    """A whole volume window by window, each with a halo of context that is thrown away.

    Windows start on multiples of the lattice period and the halo reaches as far as the network sees, so in
    evaluation mode the result does not depend on the window. Memory on the device is bounded by the window. The
    package's own network needs no halo along Z: where the volume is large it is streamed
    (:class:`cryoshuffle.inference.streaming.StreamedNetwork`), with the same result.

    Args:
        window: side of the part kept of each window, along (Z, Y, X), voxels; None takes the whole volume, or what
            makes for the least work of all that goes into :func:`cryoshuffle.memory.window_bytes` with a network as
            wide as the package's own; that one takes large volumes in pieces of about a million voxels. Where the
            volume is streamed the first is the thickness of the pieces.
        halo: context on every side, voxels; None takes what the network sees (``receptive_radius()``). With a halo of
            its own nothing is streamed.
        precision: ``auto``, ``fp32``, ``tf32`` or ``bf16``.
        device: that computes; None takes the device of the volume. The result is where the volume is.
        quiet: show no bar with voxels per second and the time left.
        blend: ``trust`` in the network, the rest goes to a linear filter, ``kernel``, or a Gaussian of ``sigma``
            voxels along (Z, Y, X) times ``gain``, which carries the result where a volume was too small or too noisy
            for a network; None for the network alone. Trust is one share, or one for each band of detail
            (:func:`cryoshuffle.noise.linear_filter.bands`); what is coarser than all bands is then the filter's.
            Where the filter gives place to less of the network, by band ``linear_trust``, the rest of the network is
            added without what is linear in it, which the kernel ``linear_part`` takes from the input.
        detail: share of the input mixed back into the result, 0 to 1.
        mirrors: average the predictions from the eight mirror images of each window, eight times the work. They are
            mirrored after padding to whole lattice periods, so the result is still that of any window.
        merger: makes what the results of a volume on disk (:mod:`cryoshuffle.files.scratch`) come together in, from
            their shape, one with a journal for instance; the network has to return as many channels as it is given
            then. None for one without.
        smooth: width of a Gaussian over the result, without the input in it, voxels; 0 for none.

    Memory that does not suffice is not the end: windows of a quarter of the size are tried once, then, where it is that
    of a GPU, the CPU; both are said. Windows that a volume was last cut into are kept as ``used_window``, (Z, Y, X),
    voxels.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C', Z, Y, X)``, float32, any size.

    Raises:
        SettingError: if no halo is given and the network does not know how far it sees, if detail is not a share, or
            smooth is below 0 or above :data:`MOST_SMOOTH`.
    """

    def __init__(
        self,
        window: Sequence[int] | int | None = None,
        halo: Sequence[int] | int | None = None,
        precision: str = "auto",
        device: torch.device | str | None = None,
        quiet: bool = True,
        blend: Mapping[str, Any] | None = None,
        detail: float = 0.0,
        mirrors: bool = False,
        merger: Callable[..., WindowMerger] | None = None,
        smooth: float = 0.0,
    ) -> None:
        super().__init__(precision)
        self.mirrors = mirrors
        self.merger = merger
        self.used_window: Triple | None = None
        if not 0 <= detail <= 1:
            raise SettingError(f"detail is {detail}: give 0 for the denoised volume, up to 1 for the noisy one")
        if not 0 <= smooth <= MOST_SMOOTH:
            raise SettingError(f"smooth is {smooth}: give 0 for no smoothing, up to {MOST_SMOOTH:g} voxels")
        self.detail, self.smooth = detail, smooth
        self.use_blend(blend)
        self.window = None if window is None else as_triple(window, "window", smallest=1)
        self.halo = None if halo is None else as_triple(halo, "halo")
        self.device = device
        self.progress, self.title = not quiet, "denoising"

    def use_blend(self, blend: Mapping[str, Any] | None) -> None:
        """Mix network and linear filter as a model says from now on; None for the network alone."""
        by_band = blend is not None and isinstance(blend["trust"], Sequence)
        self.blend = None if blend is None or (not by_band and blend["trust"] >= 1) else dict(blend)
        self.bands = band_kernel(blend["trust"]) if blend is not None and by_band else None
        self.linear_bands, self.added_bands = self.bands, None
        if blend is not None and "linear_trust" in blend:
            self.linear_bands = band_kernel(blend["linear_trust"])
            added = [a - b for a, b in zip(blend["trust"], blend["linear_trust"], strict=True)]
            self.added_bands = band_kernel(added)

    def _halo(self, network: Any) -> Triple:
        halo = self.halo
        if halo is None:
            radius = network.receptive_radius() if hasattr(network, "receptive_radius") else None
            if radius is None:
                raise SettingError("the network does not know how far it sees: set the halo of the inferer")
            halo = as_triple(radius, "halo")
        if self.blend is not None:
            reach = filter_reach(self.blend)
            halo = max(halo[0], reach[0]), max(halo[1], reach[1]), max(halo[2], reach[2])
        more = self._share_reach()
        return halo[0] + more, halo[1] + more, halo[2] + more

    def _share_reach(self) -> int:
        """How far what makes the shares of network and filter looks to either side, voxels."""
        of_bands = 0 if self.bands is None else self.bands.shape[0] // 2
        return of_bands + (gaussian_reach(self.smooth)[0] if self.smooth else 0)

    def _smoothed(self, part: Tensor) -> Tensor:
        return smoothed(part, self.smooth) if self.smooth else part

    def _predict(
        self, crop: Tensor, network: Callable[..., Tensor], period: Triple, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not self.mirrors:
            return super().__call__(crop, network, *args, **kwargs)
        z, y, x = crop.shape[2:]
        pads = [padding_to_multiple(n, p) for n, p in zip((z, y, x), period, strict=True)]
        padded = F.pad(crop, [0, pads[2], 0, pads[1], 0, pads[0]])
        total = super().__call__(padded, network, *args, **kwargs)
        for mirrored in MIRRORED[1:]:
            total = total + super().__call__(padded.flip(mirrored), network, *args, **kwargs).flip(mirrored)
        return total[:, :, :z, :y, :x] / len(MIRRORED)

    def _plan(
        self, shape: Sequence[int], halo: Triple, period: Triple, most: int, core: Any, smaller: bool = False
    ) -> tuple[Triple, int]:
        """The window, and the thickness of the pieces in which it is streamed; 0 for all at once."""
        if self.window is not None and not smaller:
            z, y, x = self.window
            stream = self.halo is None and shape[0] > z and can_stream(core)
            return ((shape[0], y, x), z) if stream else (self.window, 0)
        if math.prod(shape) > min(most, WHOLE) and can_stream(core):
            return choose_pieces(shape, halo, period, most * BYTES_PER_VOXEL // STREAMED_BYTES, HELD)
        return choose_window(shape, halo, period, most), 0

    def _predicted(
        self, crop: Tensor, network: Callable[..., Tensor], core: Any, thickness: int, device: torch.device
    ) -> Iterator[tuple[slice, Tensor]]:
        """Planes of a window, and what the network makes of them, piece by piece; mirror images are to be added up."""
        if not thickness:
            period = as_triple(getattr(core, "period", 1), "lattice period", smallest=1)
            yield slice(0, crop.shape[2]), self._network_share(self._predict(to_device(crop, device), network, period))
            return
        streamed, passes = StreamedNetwork(core, thickness), MIRRORED if self.mirrors else MIRRORED[:1]
        for mirrored in passes:
            pieces = streamed.pieces(crop, mirrored, device, self.autocast(device))
            if reach := self._share_reach():
                pieces = with_context(pieces, self._network_share, reach, crop.shape[2])
            for planes, piece in pieces:
                yield planes, piece / len(passes)

    def _network_share(self, part: Tensor) -> Tensor:
        """What is the network's of a part of its result."""
        return self._smoothed(part if self.bands is None else convolve_channels(part, self.bands))

    def _filter_share(self, seen: Tensor, blend: Mapping[str, Any]) -> Tensor:
        """What is the filter's of a part of the result, less what the network's share has too much of it."""
        smooth = torch.stack([filtered(one, blend)[None] for one in seen[:, 0]])
        if self.linear_bands is not None:
            smooth = smooth - convolve_channels(smooth, self.linear_bands)
        if self.added_bands is not None:
            linear = convolve_channels(seen[:, :1], blend["linear_part"])
            smooth = smooth - convolve_channels(linear, self.added_bands)
        return self._smoothed(smooth)

    def _filtered(self, crop: Tensor, thickness: int, device: torch.device) -> Iterator[tuple[slice, Tensor]]:
        """Planes of a window, and what the filter makes of them."""
        if self.blend is None:
            return
        reach, depth = filter_reach(self.blend)[0] + self._share_reach(), crop.shape[2]

        def read(start: int) -> tuple[int, int, Tensor]:
            first = max(0, start - reach)
            seen = scratch.copy_planes(crop[:, :, first : start + thickness + reach])
            return start, first, pin_memory(seen, device)

        for start, first, seen in read_ahead(range(0, depth, thickness), read, can_overlap(crop, device)):
            stop = min(start + thickness, depth)
            smooth = self._filter_share(to_device(seen, device), self.blend)
            yield slice(start, stop), smooth[:, :, start - first : stop - first]

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the network over the volume."""
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        core = unwrap(network) if isinstance(network, nn.Module) else network
        device = volume.device if self.device is None else torch.device(self.device)
        held = 0 if scratch.on_disk(volume) else COPIES * volume.element_size() * volume.numel()
        run = partial(network, *args, **kwargs) if args or kwargs else network
        merger: WindowMerger | None = None
        if self.merger is not None and scratch.on_disk(volume):
            merger = self.merger(tuple(volume.shape))
        bar = tqdm(
            total=math.prod(volume.shape[2:]),
            desc=self.title,
            unit="voxel",
            unit_scale=True,
            disable=not self.progress or sys.stderr is None,
        )
        with bar, keep_memory(device, FEATURE_BYTES * volume[0, 0].numel()):
            if scratch.on_disk(volume):
                trim_memory()  # of what a fit around this keeps; in memory there is room for both
            attempts = _attempts(device, movable=isinstance(network, nn.Module))
            for number, (where, fraction, words) in enumerate(attempts):
                if number:
                    # Not before the exception is gone, which holds all that took the memory.
                    logger.warning("out of memory on %s: once more %s", device, words)
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                    bar.reset()
                if where != device and isinstance(core, nn.Module):
                    core.to(where)
                most = window_bytes(where, held) // (BYTES_PER_VOXEL * len(volume)) // fraction
                enough = True
                try:
                    merger = self._merge(volume, run, core, where, most, merger, bar, smaller=number > 0)
                except (RuntimeError, MemoryError) as error:
                    if number + 1 == len(attempts) or not is_out_of_memory(error):
                        raise
                    enough = False
                finally:
                    if where != device and isinstance(core, nn.Module):
                        core.to(device)
                if enough:
                    break
        if merger is None:
            raise SettingError(f"a volume of shape {tuple(volume.shape)} has no voxels")
        result = merger.finalize()
        # MONAI's Invertd undoes transforms on images that carry their metadata only.
        return MetaTensor(result).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else result

    def _merge(
        self,
        volume: Tensor,
        run: Callable[..., Tensor],
        core: Any,
        device: torch.device,
        most: int,
        merger: WindowMerger | None,
        bar: tqdm[Any],
        smaller: bool = False,
    ) -> WindowMerger | None:
        """What all windows give, in a merger; None for a volume without any."""
        period = as_triple(getattr(core, "period", 1), "lattice period", smallest=1)
        halo, shape = self._halo(core), volume.shape[2:]
        window, thickness = self._plan(shape, halo, period, most, core, smaller)
        z, y, x = (round_up(side, step) for side, step in zip(window, period, strict=True))
        self.used_window = z, y, x
        done = 0
        for cut in cut_windows(shape, window, halo, period):
            voxels = math.prod(side.stop - side.start for side in cut.keep)
            if merger is None or not merger.is_done(cut.keep):
                crop = volume[(slice(None), slice(None), *cut.read)]
                summands = self._summands(crop, run, core, thickness, device)
                merger = self._merge_window(volume, cut, summands, merger, device, bar)
                if done + voxels < math.prod(shape):
                    trim_memory()
            done += voxels
            bar.update(done - bar.n)
        return merger

    def _merge_window(
        self,
        volume: Tensor,
        cut: Window,
        summands: Generator[tuple[float, slice, Tensor, float], None, None],
        merger: WindowMerger | None,
        device: torch.device,
        bar: tqdm[Any],
    ) -> WindowMerger:
        """Add up the parts of a window, each while the next is computed, and mark the window."""
        rows, area = cut.core[0], math.prod(side.stop - side.start for side in cut.keep[1:])
        if merger is not None:
            merger.begin(cut.keep)
        with closing(summands), WriteBehind(can_overlap(volume, device)) as writer:
            for share, planes, part, advances in summands:
                first, last = max(planes.start, rows.start), min(planes.stop, rows.stop)
                kept = part[(slice(None), slice(None), slice(first - planes.start, last - planes.start), *cut.core[1:])]
                if merger is None:
                    merger = self._merger_like(volume, part)
                start = cut.keep[0].start + first - rows.start, cut.keep[1].start, cut.keep[2].start
                writer.put(partial(merger.aggregate, share * kept, start))
                bar.update((last - first) * area * advances)
        assert merger is not None
        merger.mark(cut.keep)
        return merger

    def _summands(
        self, crop: Tensor, run: Callable[..., Tensor], core: Any, thickness: int, device: torch.device
    ) -> Generator[tuple[float, slice, Tensor, float], None, None]:
        """The result of a window in parts to be added up: those of network and filter, and the window itself.

        Yields:
            the share of a part, its planes, the part, and how far its planes are a step of the bar, from 0 to 1.
        """
        # With bands both parts are shared out already.
        network_share, filter_share = 1.0, 1.0
        if self.bands is not None:
            network_share = float(bool(self.bands.count_nonzero()))
        elif self.blend is not None:
            network_share, filter_share = float(self.blend["trust"]), 1.0 - float(self.blend["trust"])
        depth = crop.shape[2]
        step = 0.0 if not thickness else 1 / len(MIRRORED) if self.mirrors else 1.0
        for parts, share, advances in (
            (self._predicted(crop, run, core, thickness, device), (1 - self.detail) * network_share, step),
            (self._filtered(crop, thickness or max(1, depth), device), (1 - self.detail) * filter_share, 0.0),
            (_slabs(crop, thickness or max(1, depth)), self.detail, 0.0),
        ):
            for planes, part in parts if share else ():
                yield share, planes, part, advances

    def _merger_like(self, volume: Tensor, part: Tensor) -> WindowMerger:
        """A merger for results that have as many channels as one of their parts."""
        shape = (*part.shape[:2], *volume.shape[2:])
        values = scratch.empty_like(volume, shape, part.dtype)
        return WindowMerger(shape, dtype=part.dtype, device=volume.device, values=values)
