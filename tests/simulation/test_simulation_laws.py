"""The simulation obeys what it claims: linearity, SNR, the projection theorem, and what each case does to the noise."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
import torch
from scipy import ndimage

from cryoshuffle.errors import FileError
from cryoshuffle.simulation.phantoms import (
    Particle,
    _draw_rotation,
    load_templates,
    make_cell,
    make_phantom,
    scaled,
)
from cryoshuffle.simulation.tilt_series import (
    CASES,
    TiltScheme,
    align,
    apply_ctf,
    apply_damage,
    apply_mtf,
    brightness,
    load_particles,
    project,
    reconstruct,
    save_simulation,
    simulate,
    turn,
)

SHAPE = (24, 32, 40)


@pytest.mark.parametrize("case", CASES)
def test_snr_is_met_and_halves_have_noise_of_their_own(case):
    """Tomogram = mean of halves = truth + noise; power ratio as asked for; the halves' noise is not correlated."""
    s = simulate(case, SHAPE, snr=0.2, seed=3)
    assert torch.allclose((s.even + s.odd) / 2, s.tomogram, atol=1e-4)
    assert torch.allclose(s.truth + s.noise, s.tomogram, atol=1e-5)
    assert float(s.truth.var() / s.noise.var()) == pytest.approx(0.2, rel=1e-4)
    even, odd = (s.even - s.truth).flatten(), (s.odd - s.truth).flatten()
    assert abs(float(torch.corrcoef(torch.stack([even, odd]))[0, 1])) < 0.05
    assert s.tomogram.shape == s.phantom.shape == SHAPE


def test_the_detector_damps_the_signal_and_not_the_noise():
    """At Nyquist as much is left as asked for, at frequency 0 everything; the noise stays white across the tilt axis'
    plane as it was; an ideal detector changes nothing."""
    impulse = torch.zeros(1, 32, 32)
    impulse[0, 0, 0] = 1
    damped = torch.fft.rfft2(apply_mtf(impulse, TiltScheme(mtf_at_nyquist=0.3))).abs()[0]
    assert float(damped[0, 0]) == pytest.approx(1, abs=1e-5)
    assert float(damped[16, 0]) == pytest.approx(0.3, abs=1e-5)
    assert apply_mtf(impulse, TiltScheme()) is impulse
    ideal, real = simulate("wbp", SHAPE, snr=0.2, seed=3), simulate("wbp", SHAPE, snr=0.2, seed=3, mtf_at_nyquist=0.2)
    assert float(torch.corrcoef(torch.stack([ideal.noise.flatten(), real.noise.flatten()]))[0, 1]) > 0.999

    def fine(volume: torch.Tensor) -> float:
        power = torch.fft.fftn(volume).abs().square()
        return float(power[:, 12:21].mean() / power.mean())

    assert fine(real.truth) < 0.5 * fine(ideal.truth)


def test_at_zero_tilt_a_projection_is_the_sum_along_the_beam():
    """The image at 0 degrees is the sum over z, whatever the volume."""
    volume = torch.rand(20, 8, 30)
    assert torch.allclose(project(volume, torch.zeros(1))[0], volume.sum(dim=0), rtol=1e-3)


def test_projections_and_back_projection_agree_on_where_things_are():
    """A ball off the centre comes back at its place; with the angles reversed it does not (negative control)."""
    z, y, x = np.indices((32, 12, 64))
    ball = torch.from_numpy(((z - 22) ** 2 + (y - 6) ** 2 + (x - 20) ** 2 < 16).astype(np.float32))
    angles = TiltScheme().angles_deg()
    images = project(ball, angles)
    right, wrong = reconstruct(images, angles, 32), reconstruct(images, -angles, 32)
    peak = np.unravel_index(int(right.argmax()), right.shape)
    assert np.abs(np.subtract(peak, (22, 6, 20))).max() <= 3
    inside = ball > 0
    assert right[inside].mean() > 5 * wrong[inside].mean().abs()


def test_reconstruction_keeps_the_scale_of_small_objects():
    """The weights make a back-projected ball about as dense as the ball, its wedge aside."""
    z, y, x = np.indices((40, 8, 64))
    ball = torch.from_numpy(((z - 20) ** 2 + (x - 32) ** 2 < 30).astype(np.float32) + 0 * y.astype(np.float32))
    result = reconstruct(
        project(ball, TiltScheme(largest_deg=88, step_deg=2).angles_deg()),
        TiltScheme(largest_deg=88, step_deg=2).angles_deg(),
        40,
    )
    assert float(result[18:23, :, 30:35].mean()) == pytest.approx(1, abs=0.3)


def test_sub_pixel_alignment_correlates_neighbours_and_whole_pixels_do_not():
    """Half a pixel of linear interpolation gives white noise the autocorrelation 0.5 at lag 1; a whole pixel none."""
    images = torch.randn(1, 200, 200)

    def along_y(v: torch.Tensor) -> float:
        return float((v[:, 1:] * v[:, :-1]).mean() / v.square().mean())

    assert along_y(align(images, torch.tensor([[0.5, 0.0]]))) == pytest.approx(0.5, abs=0.03)
    assert along_y(align(images, torch.tensor([[1.0, 0.0]]))) == pytest.approx(0.0, abs=0.03)


def test_the_microscope_makes_phase_contrast():
    """No defocus leaves images alone; defocus takes low frequencies down and turns contrast beyond its first zero."""
    image = torch.zeros(1, 64, 64)
    image[0, 32, 32] = 1.0
    assert apply_ctf(image, TiltScheme(defocus_angstrom=0), 10.0) is image
    scheme = TiltScheme(defocus_angstrom=50000)
    transfer = torch.fft.rfft2(apply_ctf(image, scheme, 10.0)) / torch.fft.rfft2(image)
    along = transfer.real[0, 0]
    assert float(along[0]) == pytest.approx(scheme.amplitude_contrast, abs=1e-3)
    assert float(along.max()) > 0.9
    assert float(along.min()) < -0.9


def test_phantoms_differ_by_seed_and_hold_what_they_should():
    """Density from ice to protein, molecules among it; bad settings are refused in words."""
    a, b = make_phantom(SHAPE, 0), make_phantom(SHAPE, 1)
    assert not torch.equal(a.density, b.density)
    assert 0 <= float(a.density.min()) < 0.05
    assert 0.5 < float(a.density.max()) <= 1.5
    assert len(load_templates()) == 4
    assert all(float(t.max()) == 1.0 for t in load_templates())
    for arguments, words in (
        ({"case": "fog"}, "choose one of"),
        ({"snr": 0}, "more than 0"),
        ({"shape": (4, 4, 4)}, "16"),
    ):
        with pytest.raises(ValueError, match=words):
            simulate(**arguments)
    with pytest.raises(ValueError, match="no tilt series"):
        TiltScheme(largest_deg=95)
    with pytest.raises(ValueError, match="MTF at Nyquist is 0"):
        TiltScheme(mtf_at_nyquist=0)


def test_turned_images_are_turned_back():
    """What is smooth comes back, whatever angle and shift; turned twice the same way it does not (control)."""
    y, x = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    images = torch.stack([torch.sin(y / 5) * torch.cos(x / 7), torch.sin(x / 6)])
    shifts = torch.tensor([[0.4, -2.3], [1.7, 0.2]])
    turned = turn(images, 4.3, shifts)
    inner = (slice(None), slice(12, -12), slice(12, -12))
    assert float((turned - images)[inner].abs().max()) > 0.2
    assert float((turn(turned, 4.3, shifts, back=True) - images)[inner].abs().max()) < 0.02
    assert float((turn(turned, 4.3, shifts) - images)[inner].abs().max()) > 0.2


def test_alignment_by_cubic_interpolation_correlates_noise_along_the_tilt_axis():
    """A little, and not at all where nothing is turned or shifted by part of a pixel."""
    noise = torch.randn(4, 200, 200, generator=torch.Generator().manual_seed(0))
    shifts = torch.zeros(4, 2)

    def along(images: torch.Tensor, lag: int) -> float:
        inner = images[:, 20:-20, 20:-20]
        return float((inner[:, lag:] * inner[:, :-lag]).mean() / inner.square().mean())

    assert 0.03 < along(turn(noise, 4.3, shifts), 1) < 0.5
    assert abs(along(turn(noise, 0.0, shifts), 1)) < 0.02
    assert abs(along(turn(noise, 0.0, shifts + 1), 1)) < 0.02


def test_less_light_comes_through_what_is_thicker():
    """By the law of absorption, and at 60 degrees as through twice the thickness."""
    thickness = torch.full((4, 40), 50.0)
    thickness[:, :20] = 100.0
    bright = brightness(thickness, torch.tensor([0.0, 60.0]), 10.0)
    assert torch.allclose(bright[0, :, 5], bright[0, :, 30].square())
    assert torch.allclose(bright[1, :, 30], bright[0, :, 30].square())


def test_fine_detail_fades_with_the_dose():
    """Less of it is left in images recorded later, at larger tilts; without a dose nothing changes."""
    impulse = torch.zeros(41, 32, 32)
    impulse[:, 16, 16] = 1
    scheme = TiltScheme(dose=3.0)
    left = torch.fft.rfft2(apply_damage(impulse, scheme, 10.0)).abs()
    assert float(left[20, 0, 16]) > float(left[30, 0, 16]) > float(left[40, 0, 16])
    assert float(left[40, 0, 2]) > 0.5 > float(left[40, 0, 16])
    assert apply_damage(impulse, TiltScheme(), 10.0) is impulse


def test_a_cell_is_crowded_and_thicker_than_the_ice_and_gold_lies_on_it():
    """In voxels of 10 and of 20 Å; the noise is weaker where fewer electrons come through."""
    for size in (10.0, 20.0):
        cell = make_cell((48, 96, 96), 0, voxel_size_angstrom=size)
        inside = cell.thickness > cell.thickness.min() + 4
        assert 0.05 < float(inside.float().mean()) < 0.95
        middle = cell.density[20:28]
        assert float(middle[:, inside].mean()) > 3 * float(middle[:, ~inside].mean())
        assert 5 < float(cell.density.max()) <= 10
    made = simulate("insitu", (48, 96, 96), 0.1, 0, voxel_size_angstrom=30.0)
    thickness = make_cell((48, 96, 96), 0, voxel_size_angstrom=30.0).thickness
    thin, thick = thickness <= thickness.quantile(0.2), thickness >= thickness.quantile(0.8)
    assert float(made.noise[20:28][:, thin].var()) > 1.03 * float(made.noise[20:28][:, thick].var())


def test_tilt_halves_share_the_signal_where_their_planes_overlap():
    """Their mean, weighted by the count of tilts, is the tomogram; fine detail they share less than frame halves do."""
    made = simulate("insitu", (48, 96, 96), 50.0, 1)
    assert torch.allclose((21 * made.even_tilts + 20 * made.odd_tilts) / 41, made.tomogram, atol=1e-5)

    def shared(one: torch.Tensor, other: torch.Tensor) -> float:
        fine = [v - torch.nn.functional.avg_pool3d(v[None, None], 5, 1, 2)[0, 0] for v in (one, other)]
        return float(torch.corrcoef(torch.stack([v.flatten() for v in fine]))[0, 1])

    assert shared(made.even, made.odd) > 0.85
    assert shared(made.even_tilts, made.odd_tilts) < 0.75


def _pointed(side: int) -> torch.Tensor:
    """A density that no rotation but the identity leaves as it is: a body, and arms of three weights along the axes."""
    density = torch.zeros(side, side - 2, side + 1)
    z, y, x = ((n - 1) // 2 for n in density.shape)
    density[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2] = 1
    density[z + 4, y, x], density[z, y + 4, x], density[z, y, x + 5] = 0.9, 0.7, 0.5
    return density


def _explained(
    specimen_density: torch.Tensor, particle: Particle, template: torch.Tensor, turned: bool = True
) -> float:
    """Correlation of a specimen with a template that is put where its particle is recorded."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in specimen_density.shape), indexing="ij"), axis=-1)
    rotation = np.array(particle.rotation) if turned else np.array(particle.rotation).T
    middle = (np.array(template.shape) - 1) / 2
    source = (grid - particle.position_zyx) @ rotation / particle.scale + middle
    expected = ndimage.map_coordinates(template.numpy(), source.transpose(3, 0, 1, 2), order=1, mode="grid-constant")
    return float(np.corrcoef(expected.ravel(), specimen_density.numpy().ravel())[0, 1])


@pytest.mark.parametrize("side", [11, 12])
def test_a_particle_lies_where_and_as_it_is_recorded(side):
    """A template that is put there and turned so is the molecule; turned the other way round it is not (control)."""
    template, empty = _pointed(side), torch.zeros(8, 8, 8)
    scores = []
    for seed in range(40):
        # The last of five molecules is the only one whose template is not empty.
        both = [make_phantom((40, 44, 48), seed, [*[empty] * 4, last]) for last in (empty, template)]
        difference = both[1].density - both[0].density
        particle = both[1].particles[-1]
        assert particle.template == 4
        if all(9 < p < n - 10 for p, n in zip(particle.position_zyx, difference.shape, strict=True)):
            scores.append([_explained(difference, particle, template, turned) for turned in (True, False)])
    assert len(scores) >= 2
    right, wrong = np.transpose(scores)
    assert right.min() > 0.999
    # By chance one of them is nearly a half turn, which is the same either way.
    assert np.median(wrong) < 0.97


@pytest.mark.parametrize("factor", [0.35, 0.47, 0.83, 1.6])
def test_a_scaled_density_has_the_same_scale_along_each_axis_and_keeps_its_middle(factor):
    """Two bodies are as far apart as the factor says, also where that leaves no whole side."""
    shape, offset = (29, 32, 35), np.array([5.0, -6.0, 7.0])
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"), axis=-1)
    for sign in (1, -1):
        body = np.exp(-((grid - sign * offset) ** 2).sum(axis=-1) / (2 * 2.0**2))
        after = scaled(torch.from_numpy(body).float(), factor).numpy()
        places = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in after.shape), indexing="ij"), axis=-1)
        middle = (places * after[..., None]).sum(axis=(0, 1, 2)) / after.sum()
        assert np.abs(middle - sign * factor * offset).max() < 0.03


def test_a_molecule_is_turned_any_way_with_equal_chance():
    """Angles of uniform rotations: a share of 1/2 - 1/pi lies below a right angle, the mean cosine is -1/2.

    Control: the orthogonal part of a Gaussian matrix without the signs of the triangular one has none below it.
    """

    def cosines(draw) -> np.ndarray:
        random = torch.Generator().manual_seed(0)
        return np.array([(float(draw(random).trace()) - 1) / 2 for _ in range(3000)])

    def without_signs(random: torch.Generator) -> torch.Tensor:
        matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=random))
        return matrix * torch.sign(torch.det(matrix))

    def fits(angles: np.ndarray) -> bool:
        return abs((angles > 0).mean() - (0.5 - 1 / np.pi)) < 0.03 and abs(angles.mean() + 0.5) < 0.03

    assert fits(cosines(_draw_rotation))
    assert not fits(cosines(without_signs))


def test_membranes_and_particles_are_recorded_on_the_grid_of_the_tomogram(tmp_path):
    """Density is higher where they are than where the record of another seed has them (control), for each case."""
    for case in ("white", "binned", "insitu"):
        one, other = (simulate(case, (48, 80, 80), 0.1, seed, voxel_size_angstrom=20.0) for seed in (1, 2))
        density = one.phantom.clamp(max=1.5)
        assert one.membrane.shape == density.shape
        assert 0.001 < float(one.membrane.float().mean()) < 0.2
        assert float(density[one.membrane].mean()) > 1.3 * float(density[other.membrane].mean())
        middles = [tuple(torch.tensor(p.position_zyx).round().int().tolist()) for p in one.particles]
        kept = [m for m in middles if all(0 <= i < n for i, n in zip(m, density.shape, strict=True))]
        assert len(kept) >= 0.9 * len(middles)
        assert float(torch.stack([density[m] for m in kept]).mean()) > 2 * float(density.mean())
        save_simulation(one, tmp_path / case)
        assert load_particles(tmp_path / case / "particles.csv") == list(one.particles)
        assert np.array_equal(mrcfile.read(tmp_path / case / "membrane.mrc"), one.membrane.numpy())


def test_a_table_that_is_none_of_particles_is_refused(tmp_path):
    """In one sentence with its name: not there, other columns, a line that is too short."""
    save_simulation(simulate("white", (16, 16, 16), 0.1), tmp_path / "made")
    table = tmp_path / "made" / "particles.csv"
    whole = table.read_text(encoding="utf-8")
    for text in ("", "a,b\n1,2\n", whole + "1,2\n", whole + "x\n"):
        table.write_text(text, encoding="utf-8")
        with pytest.raises(FileError, match=r"particles\.csv: .*name a particles\.csv"):
            load_particles(table)
    with pytest.raises(FileError, match=r"none\.csv: cannot be read"):
        load_particles(tmp_path / "none.csv")


@pytest.mark.parametrize("name", ["tomogram.mrc", "even.mrc", "particles.csv", "simulation.json"])
def test_a_simulation_replaces_files_of_simulations_alone(tmp_path, name):
    """Its own files are replaced; one of others under such a name is not, beside a record or not, unless forced."""
    made = simulate("white", (16, 16, 16), 0.1)
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    save_simulation(made, beside)
    save_simulation(made, beside, overwrite=True)
    alone.mkdir()
    for folder in (alone, beside):
        (folder / name).write_bytes(b"raw")
        with pytest.raises(FileError, match=r"exists and is no file of a simulation.*add --force"):
            save_simulation(made, folder, overwrite=True)
        assert (folder / name).read_bytes() == b"raw"
        save_simulation(made, folder, force=True)
        assert (folder / name).read_bytes() != b"raw"
        with pytest.raises(FileError, match="exists already, add --overwrite"):
            save_simulation(made, folder)
