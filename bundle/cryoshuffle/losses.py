"""The edge-guided multi-term loss: structural fidelity against smoothness, without breaking blindness.

A term that compares the prediction with the noisy tomogram is unbiased only if the noise in its target at v is
noise the prediction at v did not see. Hence gradients are taken between voxels of one sub-lattice: all of them
are hidden from all predictions they are compared with.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from monai.data import MetaTensor
from monai.networks.layers import GaussianFilter
from torch import Tensor, nn

from cryoshuffle.errors import InputError, SettingError
from cryoshuffle.lattice import Lattice, split_sublattices

TERMS = ("fidelity", "guide", "edge", "smoothness")


def sublattice_gradients(x: Tensor, lattice: Lattice) -> Tensor:
    """Sobel gradients within each sub-lattice, along all three axes.

    Args:
        x: volumes on the full grid; sides beyond the last whole lattice stride are left out.
        lattice: whose residues are kept apart.

    Shape:
        ``(B, C, Z, Y, X) -> (3, B * n * C, Z / dz, Y / dy, X / dx)``, n sub-lattices, derivatives along Z, Y, X.

    Units:
        Change per sub-lattice voxel: a ramp of 1 per sub-lattice voxel has gradient 1.

    Invariant:
        No value mixes voxels of two residues.
    """
    z, y, w = ((side // d) * d for side, d in zip(x.shape[2:], lattice.stride_zyx, strict=True))
    parts = split_sublattices(x[:, :, :z, :y, :w], lattice.stride_zyx).flatten(0, 1)
    rise_z, even_z = _rise_and_mean(parts, 1)
    rise_y, even_y = _rise_and_mean(even_z, 2)
    along_z = _rise_and_mean(_rise_and_mean(rise_z, 2)[1], 3)[1]
    rise_x, _ = _rise_and_mean(even_y, 3)
    return torch.stack([along_z, _rise_and_mean(rise_y, 3)[1], rise_x])


def _rise_and_mean(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Half the difference of a voxel's neighbours along an axis, and the mean 1:2:1; the border is repeated.

    Nothing but slices of the volume itself: a kernel made anew at each step would keep a GPU waiting for it.
    """
    n = x.shape[dim]
    below = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
    above = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
    return (above - below) / 2, (below + above) / 4 + x / 2


def _refuse_unlike(prediction: Tensor, other: Tensor, name: str) -> None:
    """Refuse two volumes that torch would stretch to one shape."""
    if prediction.shape != other.shape:
        raise InputError(
            f"the {name} has shape {tuple(other.shape)} and the prediction {tuple(prediction.shape)}: give two of one "
            "shape"
        )


class EdgeGuidedLoss(nn.Module):
    """Weighted sum of fidelity, guide, edge and smoothness.

    ==============  ============================================================================  ========
    term            what it is                                                                    unbiased
    ==============  ============================================================================  ========
    ``fidelity``    mean squared difference to the noisy tomogram                                 yes
    ``guide``       mean squared difference to the Gaussian-filtered noisy tomogram               **no**
    ``edge``        mean squared difference of the gradients within each sub-lattice              yes
    ``smoothness``  total variation of the prediction, weighted down where it has edges           yes
    ==============  ============================================================================  ========

    After each call :attr:`terms` holds every term by itself, unweighted.

    Args:
        lattice: of the network; the edge term keeps its residues apart.
        weights: weight of each term; a term left out has weight 0 and is not computed.
        guide_sigma: width of the guide's Gaussian, voxels.
        edge_contrast: gradient per voxel, in units of the normalised tomogram, at which smoothness counts half.

    Shape:
        prediction and tomogram ``(B, C, Z, Y, X)``, result a scalar.

    Raises:
        SettingError: for a term that does not exist, or a negative weight, or no weight above 0.
        InputError: if prediction and tomogram differ in shape; both are named.

    Source:
        Terms after Liu, Kassab, Xu & Ho, arXiv 2411.15248; the restriction to sub-lattices is ours.
    """

    def __init__(
        self,
        lattice: Lattice,
        weights: Mapping[str, float],
        guide_sigma: float = 1.0,
        edge_contrast: float = 0.1,
    ) -> None:
        super().__init__()
        for name, weight in weights.items():
            if name not in TERMS:
                raise SettingError(f"loss term '{name}' does not exist: choose among {', '.join(TERMS)}")
            if weight < 0:
                raise SettingError(f"weight of loss term '{name}' is {weight}: it must not be negative")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise SettingError("all loss terms have weight 0: give at least one a weight above 0")
        self.lattice = lattice
        self.edge_contrast = edge_contrast
        self.gaussian = GaussianFilter(3, guide_sigma)
        self.terms: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, tomogram: Tensor) -> Tensor:
        """See the class."""
        _refuse_unlike(prediction, tomogram, "tomogram")
        prediction = (prediction.as_tensor() if isinstance(prediction, MetaTensor) else prediction).float()
        tomogram = (tomogram.as_tensor() if isinstance(tomogram, MetaTensor) else tomogram).to(prediction)
        terms = {name: getattr(self, f"_{name}")(prediction, tomogram) for name in self.weights}
        self.terms = {name: term.detach() for name, term in terms.items()}
        return torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()

    def _fidelity(self, prediction: Tensor, tomogram: Tensor) -> Tensor:
        return (prediction - tomogram).square().mean()

    def _guide(self, prediction: Tensor, tomogram: Tensor) -> Tensor:
        return (prediction - self.gaussian(tomogram)).square().mean()

    def _edge(self, prediction: Tensor, tomogram: Tensor) -> Tensor:
        return sublattice_gradients(prediction - tomogram, self.lattice).square().mean()

    def _smoothness(self, prediction: Tensor, tomogram: Tensor) -> Tensor:
        steps = [torch.diff(prediction, dim=dim).abs() for dim in (2, 3, 4) if prediction.shape[dim] > 1]
        weighted = [step / (1 + (step.detach() / self.edge_contrast).square()) for step in steps]
        return torch.stack([step.mean() for step in weighted]).sum() if weighted else prediction.new_zeros(())


class RelativeError(nn.Module):
    """Mean squared error of each item over the power of its truth, so that faint and strong signals count alike.

    Only for simulations: it needs a truth.

    Args:
        floor: power that is added to the truth's, in units of the normalised tomogram; keeps empty items from counting
            without bound.

    Shape:
        prediction and truth ``(B, C, Z, Y, X)``, result a scalar.

    Raises:
        SettingError: if the floor is not positive.
        InputError: if prediction and truth differ in shape; both are named.
    """

    def __init__(self, floor: float = 0.003) -> None:
        super().__init__()
        if not floor > 0:
            raise SettingError(f"floor is {floor}: give more than 0")
        self.floor = floor
        self.terms: dict[str, Tensor] = {}

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """See the class."""
        _refuse_unlike(prediction, truth, "truth")
        error = (prediction.float() - truth).square().flatten(1).mean(dim=1)
        relative = (error / (truth.square().flatten(1).mean(dim=1) + self.floor)).mean()
        self.terms = {"error": relative.detach()}
        return relative
