"""Inferers: one window at the chosen precision, and a whole volume by windows with a halo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from cryoshuffle.devices import choose_precision, memory_bytes
from cryoshuffle.errors import SettingError
from cryoshuffle.filters import gaussian, gaussian_reach
from cryoshuffle.lattice import Triple, as_triple, padding_to_multiple
from cryoshuffle.network import unwrap
from cryoshuffle.windows import choose_window, cut_windows

# Of the device's memory a window may take one part in so many; what a voxel of it takes in the package's network,
# measured: 800.
SHARE, BYTES_PER_VOXEL = 4, 1000


class PrecisionInferer(Inferer):
    """Runs a network on its input as it is, under autocast where bfloat16 pays.

    MONAI's own ``amp`` knows CUDA only; this serves CPU and CUDA alike, for the fit too.

    Args:
        precision: ``auto``, ``fp32`` or ``bf16``; see :func:`cryoshuffle.devices.choose_precision`.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``, float32.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__()
        self.precision = precision

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the network."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        dtype = choose_precision(self.precision, plain.device)
        with torch.autocast(plain.device.type, dtype=dtype, enabled=dtype != torch.float32):
            result = network(plain, *args, **kwargs)
        return result.float() if result.dtype in (torch.bfloat16, torch.float16) else result


class HaloWindowInferer(PrecisionInferer):
    """A whole volume window by window, each with a halo of context that is thrown away.

    Windows start on multiples of the lattice period and the halo reaches as far as the network sees, so in
    evaluation mode the result does not depend on the window. Memory on the device is bounded by the window.

    Args:
        window: side of the part kept of each window, along (Z, Y, X), voxels; None takes the largest that goes into a
            quarter of the device's memory with a network as wide as the package's own.
        halo: context on every side, voxels; None takes what the network sees (``receptive_radius()``).
        precision: ``auto``, ``fp32`` or ``bf16``.
        device: that computes; None takes the device of the volume. The result is where the volume is.
        progress: show a bar with the time left.
        blend: ``trust`` in the network, the rest goes to a Gaussian of ``sigma`` voxels times ``gain``, which carries
            the result where a volume was too small or too noisy for a network; None for the network alone.
        detail: share of the input mixed back into the result, 0 to 1.
        mirrors: average the predictions from the eight mirror images of each window, eight times the work. They are
            mirrored after padding to whole lattice periods, so the result is still that of any window.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C', Z, Y, X)``, float32, any size.

    Raises:
        SettingError: if no halo is given and the network does not know how far it sees, or if detail is not a share.
    """

    def __init__(
        self,
        window: Sequence[int] | int | None = None,
        halo: Sequence[int] | int | None = None,
        precision: str = "auto",
        device: torch.device | str | None = None,
        progress: bool = False,
        blend: Mapping[str, float] | None = None,
        detail: float = 0.0,
        mirrors: bool = False,
    ) -> None:
        super().__init__(precision)
        self.mirrors = mirrors
        if not 0 <= detail <= 1:
            raise SettingError(f"detail is {detail}: give 0 for the denoised volume, up to 1 for the noisy one")
        self.detail = detail
        self.blend = None if blend is None or blend["trust"] >= 1 else dict(blend)
        self.window = None if window is None else as_triple(window, "window", smallest=1)
        self.halo = None if halo is None else as_triple(halo, "halo")
        self.device = device
        self.progress = progress

    def _halo(self, network: Any) -> Triple:
        halo = self.halo
        if halo is None:
            radius = network.receptive_radius() if hasattr(network, "receptive_radius") else None
            if radius is None:
                raise SettingError("the network does not know how far it sees: set the halo of the inferer")
            halo = as_triple(radius, "halo")
        reach = 0 if self.blend is None else gaussian_reach(self.blend["sigma"])
        return max(halo[0], reach), max(halo[1], reach), max(halo[2], reach)

    def _predict(
        self, crop: Tensor, network: Callable[..., Tensor], period: Triple, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not self.mirrors:
            return super().__call__(crop, network, *args, **kwargs)
        z, y, x = crop.shape[2:]
        pads = [padding_to_multiple(n, p) for n, p in zip((z, y, x), period, strict=True)]
        padded = F.pad(crop, [0, pads[2], 0, pads[1], 0, pads[0]])
        total = super().__call__(padded, network, *args, **kwargs)
        for mirrored in (axes for count in (1, 2, 3) for axes in combinations((2, 3, 4), count)):
            total = total + super().__call__(padded.flip(mirrored), network, *args, **kwargs).flip(mirrored)
        return total[:, :, :z, :y, :x] / 8

    def _mix(self, part: Tensor, crop: Tensor, blend: Mapping[str, float]) -> Tensor:
        smooth = torch.stack([gaussian(volume, blend["sigma"])[None] for volume in crop[:, 0]])
        return blend["trust"] * part + (1 - blend["trust"]) * blend["gain"] * smooth

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the network over the volume."""
        volume = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        core = unwrap(network) if isinstance(network, nn.Module) else network
        period = as_triple(getattr(core, "period", 1), "lattice period", smallest=1)
        device = volume.device if self.device is None else torch.device(self.device)
        halo, window = self._halo(core), self.window
        if window is None:
            most = memory_bytes(device) // (SHARE * BYTES_PER_VOXEL * len(volume))
            window = choose_window(volume.shape[2:], halo, period, most)
        windows = list(cut_windows(volume.shape[2:], window, halo, period))
        result: Tensor | None = None
        for cut in tqdm(windows, desc="denoising", unit="window", disable=not self.progress):
            crop = volume[(slice(None), slice(None), *cut.read)].to(device, non_blocking=True)
            part = self._predict(crop, network, period, *args, **kwargs)
            if self.blend is not None:
                part = self._mix(part, crop, self.blend)
            if self.detail:
                part = torch.lerp(part, crop.to(part.dtype), self.detail)
            part = part[(slice(None), slice(None), *cut.core)]
            if result is None:
                result = volume.new_empty((part.shape[0], part.shape[1], *volume.shape[2:]), dtype=part.dtype)
            result[(slice(None), slice(None), *cut.keep)] = part.to(result.device)
        if result is None:
            raise SettingError(f"a volume of shape {tuple(volume.shape)} has no voxels")
        # MONAI's Invertd undoes transforms on images that carry their metadata only.
        return MetaTensor(result).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else result
