"""Fitting noise is not rewarded: argmin of the blind risk is argmin of the true error, edge term included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.transforms import SobelGradients
from phantoms import membranes_and_blobs, with_white_noise

from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.losses import TERMS, EdgeGuidedLoss, sublattice_gradients

LATTICE = Lattice((2, 2, 2), BlindSet("voxel"))


def gaussian(sigma: float, blind: bool) -> torch.Tensor:
    """A normalised kernel; the blind one is 0 at every offset whose residue is that of the centre."""
    axis = torch.arange(-4, 5, dtype=torch.float64)
    kernel = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = kernel[:, None, None] * kernel[:, None] * kernel
    if blind:
        even = axis % 2 == 0
        kernel[even[:, None, None] & even[:, None] & even] = 0
    return (kernel / kernel.sum())[None, None]


SIGMAS = (0.5, 0.7, 0.9, 1.2, 1.6, 2.2, 3.0)


@pytest.fixture(scope="module")
def volumes() -> tuple[torch.Tensor, torch.Tensor]:
    truth = membranes_and_blobs(48)
    noisy = with_white_noise(truth, snr=0.25)
    return tuple(torch.from_numpy(v).double()[None, None] for v in (truth, noisy))


def filtered(noisy: torch.Tensor, blind: bool) -> list[torch.Tensor]:
    return [F.conv3d(noisy, gaussian(s, blind), padding=4) for s in SIGMAS]


def argmin(values: list[float]) -> int:
    return int(np.argmin(values))


def mse(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean())


def test_blind_risk_chooses_what_the_true_error_chooses(volumes):
    """Over blind filters the smallest risk is the smallest error, and risk - error is the noise power for all."""
    truth, noisy = volumes
    estimates = filtered(noisy, blind=True)
    risk = [mse(e, noisy) for e in estimates]
    error = [mse(e, truth) for e in estimates]
    assert 0 < argmin(error) < len(SIGMAS) - 1
    assert argmin(risk) == argmin(error)
    assert np.ptp(np.subtract(risk, error)) < 0.02 * np.mean(np.subtract(risk, error))


def test_seeing_the_voxel_breaks_the_choice(volumes):
    """Negative control: over filters that see their own voxel the risk chooses the one that copies the noise."""
    truth, noisy = volumes
    estimates = filtered(noisy, blind=False)
    assert argmin([mse(e, noisy) for e in estimates]) == 0
    assert argmin([mse(e, truth) for e in estimates]) > 1


def test_the_edge_term_chooses_what_the_true_edges_choose(volumes):
    """The edge term within sub-lattices ranks blind filters as the error of the true gradients does."""
    truth, noisy = volumes
    estimates = filtered(noisy, blind=True)
    target, true = sublattice_gradients(noisy, LATTICE), sublattice_gradients(truth, LATTICE)
    risk = [mse(sublattice_gradients(e, LATTICE), target) for e in estimates]
    error = [mse(sublattice_gradients(e, LATTICE), true) for e in estimates]
    assert argmin(risk) == argmin(error)
    offset = np.subtract(risk, error)
    assert np.ptp(offset) < 0.03 * offset.mean()


def test_ordinary_gradients_reward_copied_noise(volumes):
    """Negative control: a Sobel on the full grid mixes in noise that was seen, and is off by far more."""
    truth, noisy = volumes
    estimates = filtered(noisy, blind=True)

    def gradients(v: torch.Tensor) -> torch.Tensor:
        return SobelGradients(3, dtype=v.dtype)(v[0])

    offset = np.subtract(
        [mse(gradients(e), gradients(noisy)) for e in estimates],
        [mse(gradients(e), gradients(truth)) for e in estimates],
    )
    assert np.ptp(offset) > 0.1 * offset.mean()


def test_gradients_of_a_ramp_are_one():
    """A ramp of 1 per sub-lattice voxel has gradient 1 along its axis and 0 across."""
    ramp = torch.arange(24.0, dtype=torch.float64)[:, None, None].expand(24, 12, 12)[None, None]
    z, y, x = sublattice_gradients(ramp, Lattice((3, 2, 2), BlindSet("voxel")))
    assert torch.allclose(z[:, 1:-1], torch.full_like(z[:, 1:-1], 3.0))
    assert not y.any()
    assert not x.any()


def test_gradients_never_mix_residues():
    """A bump on one voxel changes gradients of its own sub-lattice only."""
    x = torch.zeros(1, 1, 8, 8, 8)
    x[0, 0, 2, 3, 4] = 1.0
    touched = sublattice_gradients(x, LATTICE).abs().sum(dim=(0, 2, 3, 4))
    residue = (2 % 2 * 2 + 3 % 2) * 2 + 4 % 2
    assert torch.nonzero(touched).flatten().tolist() == [residue]


def test_every_term_is_differentiable_and_logged():
    """Each term alone gives a finite gradient, and its value is kept unweighted."""
    tomogram = torch.randn(1, 1, 8, 8, 8)
    for term in TERMS:
        prediction = torch.randn(1, 1, 8, 8, 8, requires_grad=True)
        loss = EdgeGuidedLoss(LATTICE, {term: 2.0})
        value = loss(prediction, tomogram)
        value.backward()
        assert prediction.grad is not None
        assert torch.isfinite(prediction.grad).all()
        assert prediction.grad.abs().max() > 0
        assert list(loss.terms) == [term]
        assert torch.isclose(value.detach(), 2 * loss.terms[term])


def test_the_loss_is_the_weighted_sum_of_its_terms():
    """Weights multiply terms; a term of weight 0 is not computed."""
    prediction, tomogram = torch.randn(1, 1, 8, 8, 8), torch.randn(1, 1, 8, 8, 8)
    weights = {"fidelity": 0.8, "guide": 0.5, "edge": 0.05, "smoothness": 0.0}
    loss = EdgeGuidedLoss(LATTICE, weights)
    total = loss(prediction, tomogram)
    assert set(loss.terms) == {"fidelity", "guide", "edge"}
    assert torch.isclose(total, sum(weights[n] * t for n, t in loss.terms.items()))


def test_smoothness_spares_edges():
    """A step far above the edge contrast costs less than the same change made in small steps."""
    step = torch.zeros(1, 1, 4, 4, 20)
    step[..., 10:] = 1.0
    ramp = torch.linspace(0, 1, 20).expand(1, 1, 4, 4, 20).contiguous()
    loss = EdgeGuidedLoss(LATTICE, {"smoothness": 1.0})
    assert loss(step, step) < 0.2 * loss(ramp, ramp)


def test_bad_weights_are_refused_in_words():
    """An unknown term, a negative weight, no weight at all."""
    for weights, words in (
        ({"sharpness": 1}, "sharpness"),
        ({"edge": -1}, "negative"),
        ({"edge": 0}, "all loss terms"),
    ):
        with pytest.raises(ValueError, match=words):
            EdgeGuidedLoss(LATTICE, weights)
