"""What is in a simulated specimen: molecules, membranes, filaments, a crowded cell in thinner ice, beads of gold.

Axes are (Z, Y, X); the beam comes along z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cryoshuffle.errors import FileError, InputError
from cryoshuffle.lattice import as_triple

TEMPLATES = Path(__file__).parent / "templates"
# Of a simulated volume, voxels.
SMALLEST_SIDE = 16
TEMPLATE_ANGSTROM = 10.0
# A cell is crowded: this much of it is in molecules that are drawn, and more in smaller ones that are not.
_OCCUPIED = 0.25
_CYTOSOL = 0.1
_GOLD = 10.0
_GOLD_RADIUS_ANGSTROM = 50.0
_LEAFLET_ANGSTROM = 18.0
_LEAFLET_WIDTH_ANGSTROM = 8.0
# Where a density is a molecule's body, for its size.
_BODY = 0.3


@dataclass(frozen=True)
class Particle:
    """A molecule in a specimen.

    Attributes:
        template: number of its density, in the order of :func:`load_templates`.
        position_zyx: of the middle of that density, voxels.
        rotation: 3 x 3 by rows; takes a direction (z, y, x) of the density to that in the specimen.
        scale: its size by that of the density.
        radius: of a ball of its volume, voxels.
    """

    template: int
    position_zyx: tuple[float, float, float]
    rotation: tuple[tuple[float, float, float], ...]
    scale: float
    radius: float


@dataclass(frozen=True)
class Specimen:
    """What was put into a volume.

    Attributes:
        density: (Z, Y, X), 0 in the ice, about 1 in protein.
        membrane: True within a bilayer, (Z, Y, X).
        particles: the molecules; those that were cut off at the border are there as well.
    """

    density: Tensor
    membrane: Tensor
    particles: tuple[Particle, ...]


def load_templates(folder: str | Path | None = None, only: Sequence[str] | None = None) -> list[Tensor]:
    """Molecule densities, each scaled to a maximum of 1.

    Args:
        folder: of MRC files at the voxel size of the phantom; None takes the four of the package (10 Å).
        only: names of files, without ``.mrc``; None takes all.

    Raises:
        FileError: if the folder is missing or holds no MRC file, or not one that is named.
        InputError: if one is not three-dimensional or has no positive value.
    """
    place = TEMPLATES if folder is None else Path(folder)
    paths = sorted(place.glob("*.mrc")) if place.is_dir() else []
    if not paths:
        raise FileError(f"{place}: is no folder with MRC densities, choose another")
    if only is not None:
        lacking = sorted(set(only) - {path.stem for path in paths})
        if lacking:
            raise FileError(f"{place}: has no density {lacking[0]}.mrc, choose the folder that has it")
        paths = [path for path in paths if path.stem in only]
    templates = []
    for path in paths:
        with mrcfile.open(path, permissive=True) as mrc:
            density = torch.from_numpy(np.asarray(mrc.data, dtype=np.float32).copy())
        if density.ndim != 3 or not float(density.max()) > 0:
            raise InputError(f"{path}: is no volume with positive density, leave it out")
        templates.append((density / density.max()).clamp(min=0))
    return templates


def make_phantom(
    shape: Sequence[int],
    seed: int = 0,
    templates: Sequence[Tensor] | None = None,
) -> Specimen:
    """A crowded piece of cell: molecules in random places and orientations, vesicles with bilayers, a filament.

    Args:
        shape: (Z, Y, X), voxels of 10 Å for the densities of the package.
        seed: of places and orientations.
        templates: molecule densities; None takes those of the package.
    """
    z, y, x = as_triple(shape, "phantom shape", smallest=SMALLEST_SIDE)
    random = torch.Generator().manual_seed(seed)
    molecules = load_templates() if templates is None else list(templates)
    volume, membrane = torch.zeros(z, y, x), torch.zeros(z, y, x, dtype=torch.bool)
    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (z, y, x)), indexing="ij")

    def uniform(low: float, high: float, count: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random)

    sides = torch.tensor([z, y, x], dtype=torch.float32)
    for _ in range(max(1, z * y * x // 700_000)):
        centre, radius = uniform(0.2, 0.8, 3) * sides, float(uniform(0.12, 0.3)) * min(y, x)
        distance = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)).sqrt() - radius
        for leaflet in (-1.8, 1.8):
            volume += 0.6 * torch.exp(-((distance - leaflet) ** 2) / (2 * 0.8**2))
        membrane |= distance.abs() <= 1.8 + 0.8
    start, direction = uniform(0.2, 0.8, 3) * sides, F.normalize(uniform(-1, 1, 3) * torch.tensor([0.2, 1, 1]), dim=0)
    offsets = [g - c for g, c in zip(grid, start, strict=True)]
    along = sum(o * d for o, d in zip(offsets, direction, strict=True))
    across = sum((o - along * d) ** 2 for o, d in zip(offsets, direction, strict=True))
    volume += 0.7 * torch.exp(-across / (2 * 2.0**2))
    particles = []
    for index in range(max(4, z * y * x // 15_000)):
        number, rotation = index % len(molecules), _draw_rotation(random)
        molecule = _rotated(molecules[number], rotation)
        corner = [
            int(torch.randint(-n // 2, s - n // 2, (1,), generator=random))
            for n, s in zip(molecule.shape, (z, y, x), strict=True)
        ]
        _add_inside(volume, molecule, corner)
        particles.append(_particle(number, molecules[number], rotation, corner, 1.0))
    return Specimen(volume.clamp(max=1.5), membrane, tuple(particles))


@dataclass(frozen=True)
class Cell(Specimen):
    """The edge of a cell in thinner ice; its density is higher in gold.

    Attributes:
        thickness: of ice and cell along the beam, (Y, X), voxels.
    """

    thickness: Tensor


def scaled(density: Tensor, factor: float) -> Tensor:
    """A density with smaller voxels, more of them, or larger ones; its middle stays the middle.

    Args:
        density: (Z, Y, X).
        factor: voxels after by voxels before, along each axis.
    """
    sides = [max(2, math.ceil(n * factor)) for n in density.shape]
    # Sides are whole and the factor is not: what a side has too much lies beyond the density, half at each end.
    reach = [side / (n * factor) for side, n in zip(reversed(sides), reversed(density.shape), strict=True)]
    return _resampled(density, torch.diag(torch.tensor(reach)), sides)


def make_cell(
    shape: Sequence[int],
    seed: int = 0,
    templates: Sequence[Tensor] | None = None,
    voxel_size_angstrom: float = TEMPLATE_ANGSTROM,
) -> Cell:
    """The edge of a cell, crowded with molecules of many sizes, in ice that is thinner beside it.

    Args:
        shape: (Z, Y, X), voxels.
        seed: of everything.
        templates: molecule densities in voxels of that size; None takes those of the package.
        voxel_size_angstrom: of the volume.
    """
    z, y, x = as_triple(shape, "phantom shape", smallest=SMALLEST_SIDE)
    random = torch.Generator().manual_seed(seed)
    if templates is None:
        templates = [scaled(molecule, TEMPLATE_ANGSTROM / voxel_size_angstrom) for molecule in load_templates()]

    grid = torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in (z, y, x)), indexing="ij")
    outside, thickness = _cell_edge(grid, random)
    leaflet, width = (a / voxel_size_angstrom for a in (_LEAFLET_ANGSTROM, _LEAFLET_WIDTH_ANGSTROM))
    volume = _CYTOSOL * torch.sigmoid(-(outside + 2 * leaflet))
    for side in (-leaflet, leaflet):
        volume += 0.7 * torch.exp(-((outside + leaflet + side) ** 2) / (2 * max(0.5, width) ** 2))
    membrane = (outside + leaflet).abs() <= leaflet + max(0.5, width)
    particles = _crowd(volume, outside < -3 * leaflet, templates, random)
    volume = volume.clamp(max=1.5)
    bead = _GOLD_RADIUS_ANGSTROM / voxel_size_angstrom
    for _ in range(max(1, round(y * x / (40 * bead) ** 2))):
        at = [_uniform(random, 0.1, 0.9) * y, _uniform(random, 0.1, 0.9) * x]
        top = (z - 1) / 2 + float(thickness[int(at[0]), int(at[1])]) / 2
        distance = torch.stack([g - c for g, c in zip(grid, (top, *at), strict=True)]).norm(dim=0)
        volume = torch.maximum(volume, _GOLD * torch.sigmoid(2 * (bead - distance)))
    return Cell(volume, membrane, tuple(particles), thickness)


def _uniform(random: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=random))


def _cell_edge(grid: Sequence[Tensor], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distance from the surface of a cell, less than 0 inside, (Z, Y, X), and thickness of cell and ice, (Y, X)."""
    z, y, x = grid[0].shape
    # The cell is part of a large, flat body whose middle lies beside the volume, at any side of it.
    angle, radius = _uniform(random, 0, 2 * math.pi), _uniform(random, 0.8, 1.3) * max(y, x)
    into = _uniform(random, -0.05, 0.25) * min(y, x)
    middle = [y / 2 + (radius - into) * math.sin(angle), x / 2 + (radius - into) * math.cos(angle)]
    height, ice = _uniform(random, 0.6, 0.8) * z, _uniform(random, 0.3, 0.45) * z
    flat = ((grid[1][0] - middle[0]).square() + (grid[2][0] - middle[1]).square()).sqrt()
    # From the rim inwards the cell rises like the edge of a drop.
    inwards = (radius - flat).clamp(min=0)
    half = 0.5 * height * (1 - torch.exp(-inwards / (0.3 * height)))
    outside = torch.maximum((grid[0] - (z - 1) / 2).abs() - half, (flat - radius).expand(z, y, x))
    return outside, torch.maximum(2 * half, torch.tensor(ice))


def _crowd(volume: Tensor, inside: Tensor, templates: Sequence[Tensor], random: torch.Generator) -> list[Particle]:
    """Add molecules to a volume in place, until they occupy their share of where they may be."""
    places = inside.nonzero()
    remaining = _OCCUPIED * len(places)
    sizes = [float((template > _BODY).sum()) for template in templates]
    particles = []
    while remaining > 0 and len(places):
        number = int(torch.randint(len(templates), (1,), generator=random))
        # More of them are small than there are templates for.
        small = _uniform(random, 0, 1) >= 0.4
        factor = _uniform(random, 0.35, 0.7) if small else _uniform(random, 0.8, 1.0)
        density, rotation = scaled(templates[number], factor), _draw_rotation(random)
        molecule = _rotated(density, rotation)
        place = places[int(torch.randint(len(places), (1,), generator=random))].tolist()
        corner = [p - n // 2 for p, n in zip(place, molecule.shape, strict=True)]
        _add_inside(volume, molecule, corner)
        particles.append(_particle(number, density, rotation, corner, factor))
        remaining -= max(20.0, sizes[number] * factor**3)
    return particles


def _draw_rotation(random: torch.Generator) -> Tensor:
    """A rotation that takes a direction (x, y, z) of the specimen to that in a molecule."""
    matrix, upper = torch.linalg.qr(torch.randn(3, 3, generator=random))
    # Only with the signs of R is each rotation as likely as any other (Mezzadri 2007, arXiv:math-ph/0609050).
    matrix = matrix * torch.sign(torch.diagonal(upper))
    return matrix * torch.sign(torch.det(matrix))


def _box_side(shape: Sequence[int]) -> int:
    """Of the cube that holds a density however it is turned, voxels."""
    return int(np.ceil(np.linalg.norm(shape)))


def _particle(number: int, density: Tensor, matrix: Tensor, corner: Sequence[int], scale: float) -> Particle:
    """The record of a molecule, whose box has been added at a corner."""
    side = _box_side(density.shape)
    rotation = matrix.T.flip(0, 1)
    # An odd margin puts the middle of the density half a voxel before that of its box.
    offset = rotation @ torch.tensor([(side - n) // 2 - (side - n) / 2 for n in density.shape])
    z, y, x = (c + (side - 1) / 2 + float(o) for c, o in zip(corner, offset, strict=True))
    radius = (float((density > _BODY).sum()) * 3 / (4 * math.pi)) ** (1 / 3)
    rows = tuple((float(a), float(b), float(c)) for a, b, c in rotation)
    return Particle(number, (z, y, x), rows, scale, radius)


def _rotated(molecule: Tensor, matrix: Tensor) -> Tensor:
    """A density turned about the middle of a box that holds it."""
    side = _box_side(molecule.shape)
    pad = [p for n in reversed(molecule.shape) for p in ((side - n) // 2, side - n - (side - n) // 2)]
    return _resampled(F.pad(molecule, pad), matrix, [side] * 3)


def _resampled(density: Tensor, matrix: Tensor, sides: Sequence[int]) -> Tensor:
    """A density in a box of other sides, voxels.

    A matrix takes a place (x, y, z) in the new box to one in the density. Both count from the middle, in half sides.
    """
    theta = torch.cat([matrix, torch.zeros(3, 1)], dim=1)[None]
    places = F.affine_grid(theta, [1, 1, *sides], align_corners=False)
    return F.grid_sample(density[None, None], places, align_corners=False)[0, 0]


def _add_inside(volume: Tensor, part: Tensor, corner: Sequence[int]) -> None:
    """Add a part at a corner that may lie outside; what does not fit is cut off."""
    here = tuple(slice(max(0, c), min(s, c + n)) for c, n, s in zip(corner, part.shape, volume.shape, strict=True))
    source = tuple(slice(h.start - c, h.stop - c) for h, c in zip(here, corner, strict=True))
    volume[here] += part[source]
