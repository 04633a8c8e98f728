"""Tomograms with a known truth: phantom, tilt series, noise, reconstruction, and the halves of it.

Everything behind the phantom is linear, so signal and noise are carried through the reconstruction apart and the
signal-to-noise ratio is met exactly. The tilt axis is y; the beam comes along z. Axes are (Z, Y, X), of tilt images
(tilt, Y, X).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import Tensor

from cryoshuffle.errors import FileError, SettingError
from cryoshuffle.files.formats import save_tomogram
from cryoshuffle.files.volumes import affine_of
from cryoshuffle.files.writing import check_new_file, checksum, write_json, write_text
from cryoshuffle.lattice import Triple, as_triple
from cryoshuffle.simulation.phantoms import (
    SMALLEST_SIDE,
    TEMPLATE_ANGSTROM,
    Cell,
    Particle,
    load_templates,
    make_cell,
    make_phantom,
    scaled,
)

CASES = ("white", "wbp", "aligned", "sirt", "binned", "insitu")
# Volumes of a simulation by their attributes, those of the case insitu alone, and what it was made with.
_NAMES, _TILT_NAMES = ("tomogram", "even", "odd", "truth", "phantom", "membrane"), ("even_tilts", "odd_tilts")
_RECORD, _PARTICLES = "simulation.json", "particles.csv"
# Path of electrons through ice after which a third of them is left, and how much of a wave an angstrom of protein
# turns back, at 300 kV (twice 2.2 V of inner potential beyond the ice's).
_FREE_PATH_ANGSTROM = 3500.0
_CONTRAST_PER_ANGSTROM = 0.0029
_IN_SITU = {"rotation_deg": 4.3, "dose": 3.0}
# Of particles.csv.
_COLUMNS = (
    "template", "z", "y", "x", "radius", "scale",
    "zz", "zy", "zx", "yz", "yy", "yx", "xz", "xy", "xx",
)  # fmt: skip


@dataclass(frozen=True)
class TiltScheme:
    """How a tilt series is recorded and reconstructed.

    Args:
        largest_deg: tilts go from minus to plus this angle, degrees.
        step_deg: between tilts, degrees.
        defocus_angstrom: underfocus; 0 for no contrast transfer function.
        voltage_kv: of the microscope.
        amplitude_contrast: share of amplitude contrast.
        shift_voxels: images are recorded with random sub-pixel shifts up to this size and aligned again by linear
            interpolation, which correlates neighbouring pixels; 0 for none.
        sirt_iterations: weight of a SIRT-like filter, as a number of iterations; 0 for the plain ramp.
        mtf_at_nyquist: what the detector leaves of the signal's amplitude at 0.5 cycles per voxel, a Gaussian in
            between; its noise stays white, as that of counting detectors is. 1 for an ideal one.
        rotation_deg: images are recorded turned by this angle, and turned back by cubic interpolation with the shifts;
            0 for not turned, then the shifts are undone by linear interpolation.
        dose: of an image, electrons per Å^2, from the smallest tilt to the largest: fine detail fades with it, and the
            images are weighted by what is left. 0 for no damage and no weights.

    Raises:
        SettingError: for angles that are no tilt series, or an MTF not between 0 and 1.
    """

    largest_deg: float = 60.0
    step_deg: float = 3.0
    defocus_angstrom: float = 30000.0
    voltage_kv: float = 300.0
    amplitude_contrast: float = 0.07
    shift_voxels: float = 0.0
    sirt_iterations: int = 0
    mtf_at_nyquist: float = 1.0
    rotation_deg: float = 0.0
    dose: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.largest_deg < 90 or not 0 < self.step_deg <= self.largest_deg:
            raise SettingError(
                f"tilts of ±{self.largest_deg} degrees in steps of {self.step_deg} are no tilt series: "
                "give 0 < step <= largest < 90"
            )
        if not 0 < self.mtf_at_nyquist <= 1:
            raise SettingError(f"MTF at Nyquist is {self.mtf_at_nyquist}: give more than 0, up to 1")

    def angles_deg(self) -> Tensor:
        """The tilt angles, degrees."""
        count = round(2 * self.largest_deg / self.step_deg) + 1
        return torch.linspace(-self.largest_deg, self.largest_deg, count)


@dataclass(frozen=True)
class Simulation:
    """A simulated tomogram and all that is true of it; volumes are (Z, Y, X), float32.

    Attributes:
        tomogram: with noise, the mean of the halves.
        even: one half; its noise is independent of the other's.
        odd: the other half.
        truth: the reconstruction without noise, what a denoiser can reach.
        phantom: what was in the specimen.
        voxel_size_angstrom: of all volumes.
        case: which of :data:`CASES`.
        snr: power of the truth over power of the noise in the tomogram.
        seed: of everything.
        noise: of the tomogram.
        membrane: True within a bilayer.
        particles: the molecules; positions and radii in voxels of the tomogram.
        mtf_at_nyquist: of the detector.
        even_tilts: reconstruction of every other tilt image, in the case ``insitu``.
        odd_tilts: of the others.
    """

    tomogram: Tensor
    even: Tensor
    odd: Tensor
    truth: Tensor
    phantom: Tensor
    voxel_size_angstrom: float
    case: str
    snr: float
    seed: int
    noise: Tensor = field(repr=False)
    membrane: Tensor = field(repr=False)
    particles: tuple[Particle, ...] = field(repr=False)
    mtf_at_nyquist: float = 1.0
    even_tilts: Tensor | None = field(default=None, repr=False)
    odd_tilts: Tensor | None = field(default=None, repr=False)


def project(volume: Tensor, angles_deg: Tensor) -> Tensor:
    """Sums along the beam of a volume tilted about y.

    Shape:
        ``(Z, Y, X) -> (tilt, Y, X)``.
    """
    z, y, x = volume.shape
    depth = z + x
    images = []
    for angle in torch.deg2rad(angles_deg).tolist():
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        # Where in (x, z) of the specimen a point of the tilted frame lies, in grid_sample's units of half a side.
        theta = torch.tensor([[[cos, -sin * depth / x, 0.0], [sin * x / z, cos * depth / z, 0.0]]])
        grid = F.affine_grid(theta, [1, y, depth, x], align_corners=False)
        images.append(F.grid_sample(volume.permute(1, 0, 2)[None], grid, align_corners=False)[0].sum(dim=1))
    return torch.stack(images)


def _frequencies(shape: Sequence[int]) -> Tensor:
    """Spatial frequency of each coefficient of a real 2-D transform, cycles per voxel, (Y, X // 2 + 1)."""
    ky, kx = torch.fft.fftfreq(shape[-2]), torch.fft.rfftfreq(shape[-1])
    return (ky[:, None] ** 2 + kx**2).sqrt()


def apply_ctf(images: Tensor, scheme: TiltScheme, voxel_size_angstrom: float) -> Tensor:
    """Images as the microscope transfers them: weak phase contrast and a little amplitude contrast, protein bright.

    Shape:
        ``(tilt, Y, X) -> (tilt, Y, X)``.

    Source:
        Erickson & Klug 1971; spherical aberration is left out, it does not matter at these resolutions.
    """
    if scheme.defocus_angstrom == 0:
        return images
    volt = scheme.voltage_kv * 1e3
    wavelength = 12.2639 / (volt + 0.97845e-6 * volt**2) ** 0.5
    k = _frequencies(images.shape) / voxel_size_angstrom
    phase = np.pi * wavelength * scheme.defocus_angstrom * k**2
    amplitude = scheme.amplitude_contrast
    transfer = (1 - amplitude**2) ** 0.5 * torch.sin(phase) + amplitude * torch.cos(phase)
    return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=images.shape[-2:])


def apply_mtf(images: Tensor, scheme: TiltScheme) -> Tensor:
    """Images as the detector records them, fine detail damped.

    Shape:
        ``(tilt, Y, X) -> (tilt, Y, X)``.
    """
    if scheme.mtf_at_nyquist == 1:
        return images
    transfer = scheme.mtf_at_nyquist ** (2 * _frequencies(images.shape)).square()
    return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=images.shape[-2:])


def align(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift each image by a part of a pixel with linear interpolation, as alignment before reconstruction does.

    Args:
        images: ``(tilt, Y, X)``.
        shifts: along (Y, X), ``(tilt, 2)``, voxels; borders wrap around.

    Shape:
        ``(tilt, Y, X) -> (tilt, Y, X)``.
    """
    result = []
    for image, (sy, sx) in zip(images, shifts.tolist(), strict=True):
        for dim, shift in ((0, sy), (1, sx)):
            whole = int(np.floor(shift))
            part = shift - whole
            image = (1 - part) * image.roll(whole, dim) + part * image.roll(whole + 1, dim)
        result.append(image)
    return torch.stack(result)


def apply_damage(images: Tensor, scheme: TiltScheme, voxel_size_angstrom: float) -> Tensor:
    """Images with fine detail faded by the dose that the specimen had before, or weighted by what is left of it.

    Shape:
        ``(tilt, Y, X) -> (tilt, Y, X)``, in the order of the angles.

    Source:
        Grant & Grigorieff 2015, critical dose.
    """
    if scheme.dose == 0:
        return images
    before = torch.empty(len(images))
    before[scheme.angles_deg().abs().argsort(stable=True)] = scheme.dose * torch.arange(
        len(images), dtype=torch.float32
    )
    k = _frequencies(images.shape).clamp(min=1e-4) / voxel_size_angstrom
    critical = 0.245 * k**-1.665 + 2.81
    weights = torch.exp(-(before[:, None, None] + scheme.dose / 2) / (2 * critical))
    return torch.fft.irfft2(torch.fft.rfft2(images) * weights, s=images.shape[-2:])


def turn(images: Tensor, degrees: float, shifts: Tensor, back: bool = False) -> Tensor:
    """Turn images about their middle and shift them, by cubic interpolation; what comes from outside is 0.

    Args:
        images: ``(tilt, Y, X)``.
        degrees: by which they are turned.
        shifts: along (Y, X), ``(tilt, 2)``, voxels.
        back: undo it.

    Shape:
        ``(tilt, Y, X) -> (tilt, Y, X)``.
    """
    cos, sin = float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))
    # Where a pixel comes from, (X, Y), from the middle.
    source = torch.eye(3).repeat(len(images), 1, 1)
    source[:, :2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    source[:, :2, 2] = shifts.flip(1)
    if back:
        source = torch.linalg.inv(source)
    y, x = images.shape[1:]
    halves = torch.tensor([x / 2, y / 2, 1.0])
    theta = source[:, :2] * halves / halves[:2, None]
    grid = F.affine_grid(theta, [len(images), 1, y, x], align_corners=False)
    return F.grid_sample(images[:, None], grid, mode="bicubic", align_corners=False)[:, 0]


def brightness(thickness: Tensor, angles_deg: Tensor, voxel_size_angstrom: float) -> Tensor:
    """What share of the electrons comes through a slab, at each pixel of its tilt images.

    Args:
        thickness: of the slab, (Y, X), voxels; beside the volume it goes on as at the border.
        angles_deg: tilts about y.
        voxel_size_angstrom: of the thickness.

    Shape:
        ``(tilt, Y, X)``.
    """
    x = thickness.shape[1]
    place = torch.arange(x) - (x - 1) / 2
    through = []
    for cos in torch.cos(torch.deg2rad(angles_deg)).tolist():
        pixels = (place / cos + (x - 1) / 2).round().long().clamp(0, x - 1)
        through.append(torch.exp(-thickness[:, pixels] / cos * voxel_size_angstrom / _FREE_PATH_ANGSTROM))
    return torch.stack(through)


def _record_cell(
    cell: Cell, scheme: TiltScheme, voxel_size_angstrom: float, random: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Aligned images of a cell: without noise, and two of noise alone, ``(tilt, Y, X)`` each."""
    angles = scheme.angles_deg()
    shifts = (2 * torch.rand(len(angles), 2, generator=random) - 1) * scheme.shift_voxels
    waves = apply_ctf(project(cell.density, angles), scheme, voxel_size_angstrom)
    waves = apply_mtf(apply_damage(waves, scheme, voxel_size_angstrom), scheme)
    bright = brightness(cell.thickness, angles, voxel_size_angstrom)
    mean = bright.mean(dim=(1, 2), keepdim=True)
    # Protein is bright here, so where fewer electrons come through is bright too. An image is scaled to its noise.
    signal = (mean - bright + bright * waves * _CONTRAST_PER_ANGSTROM * voxel_size_angstrom) / mean.sqrt()

    def aligned(recorded: Tensor) -> Tensor:
        return turn(apply_damage(recorded, scheme, voxel_size_angstrom), scheme.rotation_deg, shifts)

    recorded = turn(signal, scheme.rotation_deg, shifts, back=True)
    strength = turn((bright / mean).sqrt(), scheme.rotation_deg, shifts, back=True).clamp(min=0.1)
    return aligned(recorded), [aligned(strength * torch.randn(recorded.shape, generator=random)) for _ in range(2)]


def _shift_exactly(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift each image without interpolation, in Fourier space."""
    ky, kx = torch.fft.fftfreq(images.shape[-2]), torch.fft.rfftfreq(images.shape[-1])
    turns = shifts[:, 0, None, None] * ky[:, None] + shifts[:, 1, None, None] * kx
    return torch.fft.irfft2(torch.fft.rfft2(images) * torch.exp(-2j * torch.pi * turns), s=images.shape[-2:])


def ramp_filtered(images: Tensor, sirt_iterations: int = 0) -> Tensor:
    """Tilt images weighted for back-projection about y.

    Args:
        images: tilt images.
        sirt_iterations: 0 for the ramp; n for the ramp times ``1 - (1 - k0 / k)^n``, which is what n Landweber
            iterations leave of it (k0 the lowest frequency).

    Shape:
        ``(tilt, Y, X)``, as given.
    """
    x = images.shape[-1]
    k = torch.fft.rfftfreq(2 * x)
    ramp = 2 * k
    if sirt_iterations:
        ramp = ramp * (1 - (1 - k[1] / k.clamp(min=float(k[1]))) ** sirt_iterations)
    return torch.fft.irfft(torch.fft.rfft(images, n=2 * x) * ramp, n=2 * x)[..., :x]


def reconstruct(images: Tensor, angles_deg: Tensor, depth: int, sirt_iterations: int = 0) -> Tensor:
    """Weighted back-projection about y.

    Args:
        images: tilt images.
        angles_deg: of the images, degrees.
        depth: Z of the volume, voxels.
        sirt_iterations: as of :func:`ramp_filtered`.

    Shape:
        ``(tilt, Y, X) -> (depth, Y, X)``.
    """
    x = images.shape[-1]
    zs = torch.arange(depth, dtype=torch.float32)[:, None] - (depth - 1) / 2
    xs = torch.arange(x, dtype=torch.float32) - (x - 1) / 2
    volume = torch.zeros(images.shape[-2], depth, x)
    filtered = ramp_filtered(images, sirt_iterations)
    for image, angle in zip(filtered, torch.deg2rad(angles_deg).tolist(), strict=True):
        place = xs * float(np.cos(angle)) + zs * float(np.sin(angle)) + (x - 1) / 2
        left = place.floor().long()
        part = place - left
        inside = (left >= 0) & (left < x - 1)
        left = left.clamp(0, x - 2)
        volume += ((1 - part) * image[:, left] + part * image[:, left + 1]) * inside
    return volume.permute(1, 0, 2).contiguous() * (np.pi / (2 * len(angles_deg)))


def _fourier_crop(volume: Tensor, shape: Triple) -> Tensor:
    """A volume on a coarser grid, without what the coarser grid cannot hold."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(volume))
    low = [n // 2 - m // 2 for n, m in zip(volume.shape, shape, strict=True)]
    part = spectrum[tuple(slice(a, a + m) for a, m in zip(low, shape, strict=True))]
    scale = float(np.prod(shape)) / volume.numel()
    return torch.fft.ifftn(torch.fft.ifftshift(part)).real.float() * scale


def _coarser(membrane: Tensor, particles: Sequence[Particle], shape: Triple) -> tuple[Tensor, tuple[Particle, ...]]:
    """Membrane and particles on the coarser grid of :func:`_fourier_crop`, whose first voxel is that of the finer."""
    factors = [m / n for n, m in zip(membrane.shape, shape, strict=True)]
    nearest = [
        (torch.arange(m) / f).round().long().clamp(max=n - 1)
        for m, f, n in zip(shape, factors, membrane.shape, strict=True)
    ]
    kept = membrane[nearest[0][:, None, None], nearest[1][:, None], nearest[2]]
    moved = []
    for particle in particles:
        z, y, x = (p * f for p, f in zip(particle.position_zyx, factors, strict=True))
        moved.append(replace(particle, position_zyx=(z, y, x), radius=particle.radius * factors[2]))
    return kept, tuple(moved)


def simulate(
    case: str = "wbp",
    shape: Sequence[int] = (80, 144, 144),
    snr: float = 0.1,
    seed: int = 0,
    templates: Sequence[Tensor] | None = None,
    voxel_size_angstrom: float = 10.0,
    scheme: TiltScheme | None = None,
    mtf_at_nyquist: float = 1.0,
) -> Simulation:
    """A tomogram with a known truth.

    ===========  ==================================================================================
    ``white``    white noise on the phantom; no tilt series
    ``wbp``      weighted back-projection of a tilt series with white noise on its images
    ``aligned``  the same, the images shifted by parts of a pixel and aligned by linear interpolation
    ``sirt``     back-projection with a SIRT-like filter
    ``binned``   back-projection on a grid finer by half, Fourier-cropped to the shape: voxels of 1.5 times the size
    ``insitu``   the edge of a crowded cell in thinner ice, with beads of gold: images as bright as they are thin,
                 Poisson-like noise, damage and weights by dose, turned by cubic interpolation for the alignment
    ===========  ==================================================================================

    Noise grows with the tilt as the specimen gets thicker: its variance is that of 1 / cos(tilt). The halves have noise
    of their own (frames split in two), and the tomogram is their mean. The case ``insitu`` has halves of every other
    tilt as well.

    Args:
        case: one of the six.
        shape: (Z, Y, X), voxels.
        snr: power of the truth over power of the noise in the tomogram.
        seed: the same seed gives the same bits.
        templates: molecule densities, in voxels of the phantom; None takes those of the package.
        voxel_size_angstrom: of the phantom.
        scheme: of the tilt series; None takes ±60 degrees in steps of 3.
        mtf_at_nyquist: of the detector, where no scheme is given.

    Raises:
        SettingError: for an unknown case, an SNR that is not positive, or an MTF for the case white.
    """
    if case not in CASES:
        raise SettingError(f"case is '{case}': choose one of {', '.join(CASES)}")
    if not snr > 0:
        raise SettingError(f"SNR is {snr}: give more than 0")
    if case == "white" and mtf_at_nyquist < 1:
        raise SettingError(f"MTF is {mtf_at_nyquist}: the case white has no detector, leave it out")
    sides = as_triple(shape, "shape", smallest=SMALLEST_SIDE)
    scheme = scheme if scheme is not None else TiltScheme(
        shift_voxels=0.5 if case in {"aligned", "insitu"} else 0.0, sirt_iterations=10 if case == "sirt" else 0,
        mtf_at_nyquist=mtf_at_nyquist, **(_IN_SITU if case == "insitu" else {}),
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed + 1)
    if case == "insitu":
        return _simulate_cell(sides, snr, seed, templates, voxel_size_angstrom, scheme, random)
    finer = as_triple([round(1.5 * n) for n in sides], "shape") if case == "binned" else sides
    if templates is None and voxel_size_angstrom != TEMPLATE_ANGSTROM:
        templates = [scaled(molecule, TEMPLATE_ANGSTROM / voxel_size_angstrom) for molecule in load_templates()]
    specimen = make_phantom(finer, seed, templates)
    phantom, membrane, particles = specimen.density, specimen.membrane, specimen.particles
    if case == "white":
        truth, halves = phantom - phantom.mean(), [torch.randn(sides, generator=random) for _ in range(2)]
    else:
        truth, halves = _reconstruct_phantom(phantom, scheme, voxel_size_angstrom, sides, random)
    if finer != sides:
        phantom = _fourier_crop(phantom, sides)
        membrane, particles = _coarser(membrane, particles, sides)
    return _with_noise(
        truth,
        halves,
        _noise_scale(truth, halves, snr),
        phantom=phantom,
        membrane=membrane,
        particles=particles,
        voxel_size_angstrom=voxel_size_angstrom * finer[2] / sides[2],
        case=case,
        snr=snr,
        seed=seed,
        mtf_at_nyquist=scheme.mtf_at_nyquist,
    )


def _noise_scale(truth: Tensor, halves: Sequence[Tensor], snr: float) -> float:
    """Factor of the noise, of which each half has its own, for a signal-to-noise ratio of the tomogram."""
    noise = (halves[0] + halves[1]) / 2
    return float((truth.var() / (noise.var() * snr)).sqrt())


def _with_noise(truth: Tensor, halves: Sequence[Tensor], scale: float, **known: Any) -> Simulation:
    """A simulation from its truth, the noise of its halves, the factor of that, and its other attributes."""
    noise = (halves[0] + halves[1]) / 2
    even, odd = (truth + scale * half for half in halves)
    return Simulation(tomogram=truth + scale * noise, even=even, odd=odd, truth=truth, noise=scale * noise, **known)


def _reconstruct_phantom(
    phantom: Tensor, scheme: TiltScheme, voxel_size_angstrom: float, shape: Triple, random: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """A phantom without noise, and two volumes of noise alone, of the shape of the tomogram, behind a tilt series."""
    angles = scheme.angles_deg()
    images = apply_mtf(apply_ctf(project(phantom, angles), scheme, voxel_size_angstrom), scheme)
    thickness = (1 / torch.cos(torch.deg2rad(angles))).sqrt()[:, None, None]
    shifts = (2 * torch.rand(len(angles), 2, generator=random) - 1) * scheme.shift_voxels

    def finish(series: Tensor) -> Tensor:
        volume = reconstruct(align(series, shifts), angles, len(phantom), scheme.sirt_iterations)
        return _fourier_crop(volume, shape) if volume.shape != shape else volume

    truth = finish(_shift_exactly(images, -shifts))
    return truth, [finish(thickness * torch.randn(images.shape, generator=random)) for _ in range(2)]


def _simulate_cell(
    shape: Triple,
    snr: float,
    seed: int,
    templates: Sequence[Tensor] | None,
    voxel_size_angstrom: float,
    scheme: TiltScheme,
    random: torch.Generator,
) -> Simulation:
    """The case ``insitu`` of :func:`simulate`."""
    cell = make_cell(shape, seed, templates, voxel_size_angstrom)
    signal, noises = _record_cell(cell, scheme, voxel_size_angstrom, random)
    angles, every = scheme.angles_deg(), slice(None)

    def finish(images: Tensor, some: slice = every) -> Tensor:
        return reconstruct(images[some], angles[some], shape[0], scheme.sirt_iterations)

    truth, halves = finish(signal), [finish(noise) for noise in noises]
    scale = _noise_scale(truth, halves, snr)
    images = signal + scale * (noises[0] + noises[1]) / 2
    return _with_noise(
        truth,
        halves,
        scale,
        phantom=cell.density,
        membrane=cell.membrane,
        particles=cell.particles,
        voxel_size_angstrom=voxel_size_angstrom,
        case="insitu",
        snr=snr,
        seed=seed,
        mtf_at_nyquist=scheme.mtf_at_nyquist,
        even_tilts=finish(images, slice(0, None, 2)),
        odd_tilts=finish(images, slice(1, None, 2)),
    )


def _paths(folder: str | Path, names: Sequence[str]) -> list[Path]:
    return [Path(folder) / f"{name}.mrc" for name in names]


def _checksums(folder: Path) -> dict[str, str]:
    """Checksums of the files of the simulation in a folder by their names; none where the folder tells of none."""
    try:
        files = json.loads((folder / _RECORD).read_text(encoding="utf-8"))["files"]
        return {str(name): str(one) for name, one in files.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def simulation_files(folder: str | Path) -> dict[str, Path]:
    """The files of the simulation in a folder, by what they are in :class:`Simulation`; none where there is none.

    Args:
        folder: that :func:`save_simulation` may have written.
    """
    return {Path(name).stem: Path(folder) / name for name in _checksums(Path(folder)) if name != _PARTICLES}


def check_simulation(folder: str | Path, case: str, overwrite: bool = False, force: bool = False) -> None:
    """Refuse a folder that :func:`save_simulation` would refuse, before the work.

    Args:
        folder: of the files.
        case: one of :data:`CASES`.
        overwrite: replace files of a simulation that are as they were written.
        force: replace files whatever they are.

    Raises:
        FileError: if they cannot be written, are there already, or are no files of a simulation.
    """
    place = Path(folder)
    volumes, known = _paths(place, _NAMES if case != "insitu" else (*_NAMES, *_TILT_NAMES)), _checksums(place)
    for path in (*volumes, place / _PARTICLES, place / _RECORD):
        if not place.exists():
            continue
        is_own = bool(known) if path.name == _RECORD else path.is_file() and known.get(path.name) == checksum(path)
        if path.exists() and not is_own and not force:
            raise FileError(
                f"{path}: exists and is no file of a simulation as cryoshuffle wrote it, so it is not replaced: choose "
                "another folder, or add --force"
            )
        check_new_file(path, overwrite or force)


def save_simulation(
    simulation: Simulation, folder: str | Path, overwrite: bool = False, force: bool = False
) -> list[Path]:
    """Write a simulation: volumes as MRC files, particles as ``particles.csv``, settings as ``simulation.json``.

    The settings come last, with the checksums of the other files, which tell them from files of others.

    A line of ``particles.csv`` is a particle: the number of its template, position, radius, scale and the rows of its
    rotation, as in :class:`cryoshuffle.simulation.phantoms.Particle`. ``membrane.mrc`` is 1 within a bilayer, else 0.

    Args:
        simulation: to write.
        folder: made if it is not there.
        overwrite: replace files of a simulation that are as they were written.
        force: replace files whatever they are.

    Returns:
        The files, the tomogram first.

    Raises:
        FileError: if they cannot be written, are there already, or are no files of a simulation.
    """
    place = Path(folder)
    names = [*_NAMES, *(name for name in _TILT_NAMES if getattr(simulation, name) is not None)]
    paths = _paths(place, names)
    check_simulation(place, simulation.case, overwrite, force)
    try:
        place.mkdir(exist_ok=True)
        affine = torch.from_numpy(affine_of([simulation.voxel_size_angstrom] * 3, [0.0] * 3))
        for name, path in zip(names, paths, strict=True):
            volume = MetaTensor(getattr(simulation, name)[None].float(), affine=affine)
            save_tomogram(volume, path, "int8" if name == "membrane" else "float32", is_result=False)
        lines = [",".join(_COLUMNS), *(",".join(map(str, _row(particle))) for particle in simulation.particles)]
        write_text("\n".join(lines) + "\n", place / _PARTICLES)
        settings = {
            name: getattr(simulation, name) for name in ("case", "snr", "seed", "voxel_size_angstrom", "mtf_at_nyquist")
        }
        files = {path.name: checksum(path) for path in (*paths, place / _PARTICLES)}
        write_json({**settings, "files": files}, place / _RECORD)
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{place}: cannot be written ({error.strerror or error}), choose another folder") from error
    return paths


def _row(particle: Particle) -> tuple[float, ...]:
    """A particle in the order of the columns of ``particles.csv``."""
    rotation = (value for row in particle.rotation for value in row)
    return (particle.template, *particle.position_zyx, particle.radius, particle.scale, *rotation)


def load_particles(path: str | Path) -> list[Particle]:
    """The particles that :func:`save_simulation` has recorded.

    Args:
        path: of ``particles.csv``.

    Raises:
        FileError: if it cannot be read, or is no such table.
    """
    try:
        head, *lines = Path(path).read_text(encoding="utf-8").splitlines() or [""]
        rows = [[float(cell) for cell in line.split(",")] for line in lines]
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as a table of particles, name a particles.csv") from error
    if head != ",".join(_COLUMNS) or any(len(row) != len(_COLUMNS) for row in rows):
        raise FileError(f"{path}: has not the columns of a table of particles, name a particles.csv")
    return [
        Particle(int(number), (z, y, x), ((a, b, c), (d, e, f), (g, h, i)), scale, radius)
        for number, z, y, x, radius, scale, a, b, c, d, e, f, g, h, i in rows
    ]
