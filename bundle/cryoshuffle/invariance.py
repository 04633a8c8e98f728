"""The theorem as an instrument: how much a prediction changes with the voxels it must not see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import Lattice, Triple

# Of the test volume.
_SEED = 0


@dataclass(frozen=True)
class Leak:
    """What :func:`measure_leak` found.

    Attributes:
        gradient: largest ``|d f(v) / d x(v + b)|`` summed over the predictions v of a sub-lattice with random signs
            and weights of about 1, b hidden; exactly 0 for a blind network.
        bump: largest change of a prediction when every voxel hidden from it is bumped; exactly 0 for a blind network.
        voxel: v of the worst pair, (Z, Y, X).
        offset: b of the worst pair, (Z, Y, X).
        sees: largest gradient with respect to a voxel that is not hidden; 0 means that the network sees nothing.
        pairs: how many pairs of a prediction and a voxel hidden from it were covered.
    """

    gradient: float
    bump: float
    voxel: Triple
    offset: Triple
    sees: float
    pairs: int

    @property
    def is_blind(self) -> bool:
        """Whether nothing leaks, exactly."""
        return self.gradient == 0.0 and self.bump == 0.0

    def describe(self) -> str:
        """The finding in a few words."""
        if self.is_blind:
            return f"is blind: gradient and bump are exactly 0 over {self.pairs} pairs of voxels"
        return (
            f"leaks: the prediction at voxel {self.voxel} changes with the hidden voxel at offset {self.offset} "
            f"(gradient {self.gradient:.3g}, bump {self.bump:.3g})"
        )


def measure_leak(
    network: nn.Module,
    lattice: Lattice | None = None,
    shape: Sequence[int] | None = None,
) -> Leak:
    """Measure whether a network is blind, by exact gradient and by finite bump, for every pair of voxels at once.

    What is hidden from a prediction are all voxels whose offset has the residue of an offset in the blind set; the
    blind set itself is among them. For each sub-lattice one gradient of a random sum of its predictions, and one
    pass with all voxels hidden from it bumped, cover all pairs, borders and corners included.

    A copy of the network is taken to the CPU in double precision, where a masked path contributes exactly 0.
    Residual scales that are still 0 are opened, so that a fresh network is judged by all of its paths. The copy
    keeps the mode of the network: in training mode it is judged with its training statistics.

    Args:
        network: with one input and one output channel; not changed.
        lattice: the lattice and blind set the network claims; None takes ``network.lattice``.
        shape: of the test volume (Z, Y, X), voxels; None takes two periods and a remainder, so that padding counts.

    Returns:
        The worst pair; ``is_blind`` is exact equality with 0, not a tolerance.

    Raises:
        SettingError: if no lattice is given and the network has none.
        InputError: if a prediction or a gradient is not finite, so that nothing is proven.

    Example:
        >>> from cryoshuffle.network import BlindSpotNet
        >>> measure_leak(BlindSpotNet()).is_blind
        True
    """
    claimed = lattice if lattice is not None else getattr(network, "lattice", None)
    if not isinstance(claimed, Lattice):
        raise SettingError("the network has no lattice: say which blind set it claims")
    if shape is None:
        period = getattr(network, "period", claimed.stride_zyx)
        shape = [2 * p + 1 if p > 1 else 5 for p in period]
    generator = torch.Generator().manual_seed(_SEED)
    judged = _open_scales(copy.deepcopy(network).to("cpu").double())
    volume = torch.randn((1, 1, *shape), generator=generator, dtype=torch.float64).requires_grad_()
    predict = _repeatable(judged)
    residues = _residues(shape, claimed)
    blind = claimed.blind_set.residues(claimed.stride_zyx)
    prediction = predict(volume)
    if not bool(torch.isfinite(prediction).all()):
        raise InputError(
            "the network predicts NaN or Inf, so it cannot be judged: its weights are damaged, fit it again"
        )
    weights = torch.randn(prediction.shape, generator=generator, dtype=torch.float64)
    gradient, bump, sees, pairs = 0.0, 0.0, 0.0, 0
    worst: tuple[Triple, Triple] = ((0, 0, 0), (0, 0, 0))
    for residue in np.ndindex(claimed.stride_zyx):
        predicted = _having(residues, [residue], claimed)[None, None]
        hidden = _having(residues, [_add(residue, b) for b in blind], claimed)[None, None]
        pairs += int(predicted.sum()) * int(hidden.sum())
        slope = torch.autograd.grad((prediction * weights * predicted).sum(), volume, retain_graph=True)[0].abs()
        sees = max(sees, float((slope * ~hidden).max()))
        with torch.no_grad():
            kick = 1e3 * torch.randn(volume.shape, generator=generator, dtype=torch.float64) * hidden
            change = ((predict(volume + kick) - prediction).abs() * predicted).max()
        leaks = (float((slope * hidden).max()), float(change))
        if not (math.isfinite(sum(leaks)) and bool(torch.isfinite(slope).all())):
            raise InputError("a gradient of the network is NaN or Inf, so it cannot be judged: check its body")
        if max(leaks) > max(gradient, bump):
            gradient, bump = leaks
            worst = _worst_pair(predict, volume.detach(), predicted, hidden, slope, claimed)
    return Leak(gradient=gradient, bump=bump, voxel=worst[0], offset=worst[1], sees=sees, pairs=pairs)


def _add(a: Sequence[int], b: Sequence[int]) -> Triple:
    z, y, x = (i + j for i, j in zip(a, b, strict=True))
    return z, y, x


def _residues(shape: Sequence[int], lattice: Lattice) -> Tensor:
    """The number of each voxel's sub-lattice, (Z, Y, X)."""
    stride = lattice.stride_zyx
    z, y, x = (torch.arange(n) % d for n, d in zip(shape, stride, strict=True))
    return (z[:, None, None] * stride[1] + y[:, None]) * stride[2] + x


def _having(residues: Tensor, wanted: Sequence[Triple], lattice: Lattice) -> Tensor:
    """Which voxels are on one of the wanted sub-lattices."""
    dz, dy, dx = lattice.stride_zyx
    numbers = [((z % dz) * dy + y % dy) * dx + x % dx for z, y, x in wanted]
    return torch.isin(residues, torch.tensor(numbers))


def _repeatable(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network with its buffers and random numbers the same at every call."""

    def predict(volume: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            result: Tensor = torch.func.functional_call(network, buffers, (volume,))
        return result

    return predict


def _worst_pair(
    predict: Callable[[Tensor], Tensor],
    volume: Tensor,
    predicted: Tensor,
    hidden: Tensor,
    slope: Tensor,
    lattice: Lattice,
) -> tuple[Triple, Triple]:
    """The prediction that changes most with the hidden voxel of the largest gradient, one in the blind set if any."""
    suspects = slope * hidden if bool((slope * hidden).any()) else hidden.double()
    place = [int(i) for i in np.unravel_index(int(suspects.argmax()), suspects.shape)[2:]]
    bumped = volume.clone()
    bumped[0, 0, place[0], place[1], place[2]] += 1e3
    with torch.no_grad():
        change = ((predict(bumped) - predict(volume)).abs() * predicted)[0, 0].numpy()
    # A blind set is symmetric, so the voxels hidden from `place` are those that `place` is hidden from.
    own = change * lattice.blind_set.mask(change.shape, place)
    z, y, x = np.unravel_index(int(np.argmax(own if own.any() else change)), change.shape)
    voxel = (int(z), int(y), int(x))
    return voxel, _add(place, [-v for v in voxel])


def _open_scales(network: nn.Module) -> nn.Module:
    """Give residual scales that are still exactly 0 the value 1: a closed path would hide a leak."""
    for name, parameter in network.named_parameters():
        if name.endswith("_scale") and not bool(parameter.any()):
            nn.init.ones_(parameter)
    return network
