"""Particle picking by acryo: template matching, Laplacian and difference of Gaussians.

Source:
    acryo, https://github.com/hanjinliu/acryo, BSD-3: ``acryo.pick``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from acryo.pick import DoGPicker, LoGPicker, ZNCCTemplateMatcher
from scipy import ndimage
from scipy.spatial.transform import Rotation
from torch.nn.functional import avg_pool3d

from bench.detection import TEMPLATE
from cryoshuffle.simulation.phantoms import TEMPLATE_ANGSTROM, load_templates, scaled
from cryoshuffle.simulation.tilt_series import TiltScheme, apply_ctf, project, reconstruct

# Templates are matched in voxels of at least this size: finer detail is below the first zero of the transfer function.
MATCHED_ANGSTROM = 20.0
BOX_ANGSTROM = 280.0
# Of Gaussians, by the size of the molecules.
SIGMAS_ANGSTROM = (20.0, 30.0, 40.0, 50.0, 60.0)
_WIDER = 1.6
_CLOSEST_ANGSTROM = 100.0
# Not its default: a border plane of noise, repeated outwards, looks like an object.
_BOUNDARY = "reflect"

Picks = tuple[np.ndarray, np.ndarray]


class TemplateBank(ZNCCTemplateMatcher):
    """A template matcher with templates that are turned already.

    Args:
        templates: of one shape each.
        rotations: of the templates.
    """

    def __init__(self, templates: list[np.ndarray], rotations: Rotation) -> None:
        super().__init__(templates[0], rotations)
        self._bank = templates

    def get_params_and_depth(self, scale: float) -> tuple[dict[str, Any], tuple[int, ...]]:
        """The templates, and how far chunks of the volume overlap, voxels."""
        return {"templates": self._bank}, tuple(-(-n // 2) for n in self._bank[0].shape)


def binning(voxel_size_angstrom: float) -> int:
    """Voxels along each axis that are averaged before templates are matched."""
    return max(1, round(MATCHED_ANGSTROM / voxel_size_angstrom))


def binned(volume: np.ndarray, factor: int) -> np.ndarray:
    """Means of cubes of voxels; what is over at the end is cut off."""
    return avg_pool3d(torch.from_numpy(np.ascontiguousarray(volume))[None, None], factor)[0, 0].numpy()


def make_bank(density: np.ndarray, voxel_size_angstrom: float, rotations: int, tilts_step_deg: float) -> TemplateBank:
    """Templates in random rotations, each as microscope and reconstruction show it, the missing wedge as well.

    Args:
        density: of the molecule, in voxels of that size.
        voxel_size_angstrom: of the tomogram.
        rotations: how many; the same number gives the same.
        tilts_step_deg: of the tilt series that each is seen by.
    """
    turns = Rotation.from_quat(np.random.default_rng(0).normal(size=(rotations, 4)))
    factor = binning(voxel_size_angstrom)
    side = factor * round(BOX_ANGSTROM / voxel_size_angstrom / factor)
    scheme = TiltScheme(step_deg=tilts_step_deg)
    angles = scheme.angles_deg()
    middle, box = (np.array(density.shape) - 1) / 2, np.full(3, (side - 1) / 2)
    templates = []
    for turn in turns.as_matrix():
        turned = ndimage.affine_transform(density, turn, middle - turn @ box, (side,) * 3, order=1)
        images = apply_ctf(project(torch.from_numpy(turned), angles), scheme, voxel_size_angstrom)
        templates.append(binned(reconstruct(images, angles, side).numpy(), factor))
    return TemplateBank(templates, turns)


def match_templates(volume: np.ndarray, bank: TemplateBank, voxel_size_angstrom: float) -> Picks:
    """Positions (z, y, x), voxels, and scores by zero-normalised cross-correlation."""
    factor = binning(voxel_size_angstrom)
    closest = _CLOSEST_ANGSTROM / voxel_size_angstrom / factor
    molecules = bank.pick_molecules(binned(volume, factor), min_distance=closest, min_score=0.0, boundary=_BOUNDARY)
    return np.asarray(molecules.pos) * factor + (factor - 1) / 2, _scores(molecules)


def pick_log(volume: np.ndarray, sigma: float) -> Picks:
    """Positions (z, y, x) and scores by the Laplacian of a Gaussian of that width, voxels."""
    molecules = LoGPicker(sigma).pick_molecules(volume, boundary=_BOUNDARY)
    return np.asarray(molecules.pos), _scores(molecules)


def pick_dog(volume: np.ndarray, sigma: float) -> Picks:
    """Positions (z, y, x) and scores by the difference of Gaussians of that width and a wider one, voxels."""
    molecules = DoGPicker(sigma, _WIDER * sigma).pick_molecules(volume, boundary=_BOUNDARY)
    return np.asarray(molecules.pos), _scores(molecules)


def _scores(molecules: Any) -> np.ndarray:
    return molecules.features["score"].to_numpy().astype(np.float64)


def ribosome(voxel_size_angstrom: float) -> np.ndarray:
    """The density of the molecule that is matched."""
    return scaled(load_templates()[TEMPLATE], TEMPLATE_ANGSTROM / voxel_size_angstrom).numpy()
