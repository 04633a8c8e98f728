"""Which way a tomogram lies, by its missing wedge, and its noise where the tilt axis is off the grid; with controls."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import pytest
import torch
from phantoms import turned_about_z, write_mrc
from torch import Tensor

from cryoshuffle.lattice import AXES
from cryoshuffle.noise.choice import choose_blind_set
from cryoshuffle.noise.estimate import wedge_of
from cryoshuffle.noise.spectrum import GRID, smooth_spectrum
from cryoshuffle.noise.turn import UPRIGHT, Turn
from cryoshuffle.noise.wedge import Wedge, mean_wedge
from cryoshuffle.simulation.tilt_series import simulate

ORDERS = list(itertools.permutations(range(3)))


@lru_cache
def _tomogram() -> Tensor:
    return simulate("aligned", (64, 112, 112), 0.1, seed=0).tomogram


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("degrees", [0.0, 4.0, -30.0])
def test_the_wedge_tells_tilt_axis_beam_and_turn(order, degrees):
    """Whichever way the volume lies; to a degree."""
    volume = turned_about_z(_tomogram(), degrees)[:, 16:-16, 16:-16]
    wedge = wedge_of(volume.permute(order))
    assert wedge is not None
    assert (wedge.axis, wedge.beam) == (AXES[order.index(1)], AXES[order.index(0)])
    upright = wedge_of(volume)
    assert upright is not None
    assert abs(upright.turned_deg) == pytest.approx(abs(degrees), abs=1)
    # Counted towards the third axis, so however the axes are named it is the same.
    assert wedge.turned_deg == pytest.approx(upright.turned_deg, abs=0.7)
    assert wedge.is_off_grid == (degrees != 0)


@pytest.mark.parametrize("order", ORDERS[::2])
@pytest.mark.parametrize("degrees", [3.0, -5.0])
def test_the_wedge_tells_how_far_the_tilt_axis_leans_towards_the_beam(order, degrees):
    """To half a degree; upright it is none, and turned the other way twice as far (control)."""
    straight = _tomogram()
    for lean in (0.0, degrees):
        volume = Turn(0, 1, 0.0, -lean).upright(straight)
        wedge = wedge_of(volume.permute(order))
        assert wedge is not None
        assert (wedge.axis, wedge.beam) == (AXES[order.index(1)], AXES[order.index(0)])
        assert wedge.lean_deg == pytest.approx(lean, abs=0.5)
        assert wedge.turned_deg == pytest.approx(0, abs=1)
        assert wedge.is_off_grid == (lean != 0)
    beam, normal = order.index(0), order.index(1)
    for turn, remaining in (
        (Turn(beam, normal, 0.0, wedge.lean_deg), 0),
        (Turn(beam, normal, 0.0, -wedge.lean_deg), 2 * degrees),
    ):
        seen = wedge_of(turn.upright(volume.permute(order)))
        assert seen is not None
        assert seen.lean_deg == pytest.approx(remaining, abs=1.5)


@pytest.mark.parametrize("degrees", [10.0, -15.0])
def test_the_wedge_is_known_where_the_specimen_was_tilted_before_the_series(degrees, monkeypatch):
    """Its middle is beside the beam then, as of a lamella; the tilt axis is on the grid all the same. Around the beam
    alone none shows (control)."""
    about_the_tilt_axis = Turn(1, 0, degrees)
    tilted = about_the_tilt_axis.upright(_tomogram())
    wedge = wedge_of(tilted)
    assert wedge is not None
    assert (wedge.axis, wedge.beam) == ("y", "z")
    assert not wedge.is_off_grid
    monkeypatch.setattr("cryoshuffle.noise.wedge._BESIDE_DEG", (0.0,))
    assert wedge_of(tilted) is None


def test_a_turn_stands_a_volume_upright():
    """Turned there and back it is what it was; the tilt axis is on the grid then, and the other way it is twice off."""
    volume = _tomogram()
    turned = Turn(0, 1, -20.0).upright(volume)
    back = Turn(0, 1, 20.0).upright(turned)
    size = back.shape
    middle = volume[:, (112 - size[1]) // 2 :, (112 - size[2]) // 2 :][:, : size[1], : size[2]]
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert float((back - middle)[inner].std() / middle[inner].std()) < 0.1
    wedge = wedge_of(turned)
    assert wedge is not None
    assert wedge.turned_deg == pytest.approx(20, abs=1)
    known = Turn(0, 1, wedge.turned_deg)
    for turn, left in ((known, 0), (Turn(0, 1, -wedge.turned_deg), 40)):
        seen = wedge_of(turn.upright(turned))
        assert seen is not None
        assert abs(seen.turned_deg) == pytest.approx(left, abs=1.5)
    assert UPRIGHT.upright(volume) is volume


@pytest.mark.parametrize("degrees", [3.0, 30.0, -45.0])
def test_a_turn_leaves_white_noise_white(degrees):
    """Its power and that of fine detail; interpolation damps it (control)."""
    white = torch.randn(16, 128, 128, generator=torch.Generator().manual_seed(0))
    for turn, thin in ((Turn(0, 1, degrees), 0), (Turn(1, 2, degrees), 1), (Turn(1, 0, 0.0, degrees), 2)):
        spectrum = smooth_spectrum(turn.upright(white.movedim(0, thin)), 6)
        assert float(spectrum.mean()) == pytest.approx(1, abs=0.03)
        fine = spectrum.movedim(thin, 0)[:, GRID // 4 : GRID // 2 - 8, : GRID // 8]
        assert float(fine.mean()) == pytest.approx(1, abs=0.05)
    assert float(turned_about_z(white, degrees)[:, 24:-24, 24:-24].var()) < 0.9


@pytest.mark.parametrize("normal", [1, 2])
def test_a_part_that_is_turned_is_as_wide_as_was_asked(normal):
    """Cut out of a part that is wider by as much as is lost, for any angle."""
    for degrees in (0.0, 2.0, 30.0, -45.0):
        turn = Turn(0, normal, degrees)
        wide = turn.widen(64)
        assert wide % 2 == 0
        assert min(turn.upright(torch.zeros(4, wide, wide)).shape[1:]) >= 64
        assert wide <= 64 * math.sqrt(2) + 4
        both = Turn(0, normal, degrees, 6.0)
        wide = both.widen(64)
        assert wide % 2 == 0
        assert min(both.upright(torch.zeros(wide, wide, wide)).shape) >= 64


@pytest.mark.parametrize(("beam", "normal"), [(0, 1), (0, 2), (1, 0)])
@pytest.mark.parametrize(("degrees", "lean"), [(25.0, 0.0), (0.0, 12.0), (-20.0, -10.0)])
def test_the_spectrum_of_an_upright_volume_is_turned_as_it_is(beam, normal, degrees, lean):
    """That of a pattern turned upright, turned as given, is the pattern's; unturned it is not (control)."""
    third = 3 - beam - normal
    noise = torch.randn(96, 112, 112, generator=torch.Generator().manual_seed(1)).movedim(0, beam)
    lines = [
        torch.fft.fftfreq(side).reshape([-1 if axis == one else 1 for axis in range(3)])
        for one, side in enumerate(noise.shape)
    ]
    one, two = math.radians(degrees), math.radians(lean)
    along = lines[normal] * math.cos(one) + lines[third] * math.sin(one)
    along = along * math.cos(two) + lines[beam] * math.sin(two)
    # White but for one direction, which is the tilt axis's: upright it lies along the normal.
    pattern = torch.fft.ifftn(torch.fft.fftn(noise) * torch.exp(-0.5 * (along / 0.08) ** 2)).real
    turn = Turn(beam, normal, degrees, lean)
    upright, known = smooth_spectrum(turn.upright(pattern)), smooth_spectrum(pattern)

    def apart(spectrum: Tensor) -> float:
        return float((spectrum - known).abs().mean() / known.mean())

    assert apart(turn.as_given(upright)) < 0.3 < apart(upright)
    assert apart(upright) > 2 * apart(turn.as_given(upright))
    assert torch.equal(Turn(beam, normal, 0.0).as_given(upright), upright)


def test_tomograms_of_one_kind_have_one_wedge():
    """The mean of the angles; none where one lies another way or shows none."""
    one, two = Wedge("y", "z", 4.0, 1.0), Wedge("y", "z", 6.0, 2.0)
    assert mean_wedge([one, two]) == Wedge("y", "z", 5.0, 1.5)
    assert mean_wedge([one, Wedge("x", "z", 4.0)]) is mean_wedge([one, None]) is mean_wedge([]) is None


def test_a_plan_knows_how_a_tomogram_was_turned(tmp_path):
    """The axis is not asked for, whatever the noise says; one that is given counts, and upright there is no turn."""
    straight = _tomogram()
    for degrees, lean, name in ((25.0, 0.0, "turned"), (0.0, 0.0, "straight"), (0.0, 6.0, "leaning")):
        volume = Turn(0, 1, 0.0, -lean).upright(turned_about_z(straight, degrees)[:, 16:-16, 16:-16])
        path = str(write_mrc(tmp_path / f"{name}.mrc", volume.numpy()))
        for blind, axis in (("auto", None), ("auto", "y"), ("plane", "y")):
            plan = choose_blind_set([path], blind, axis)
            assert plan.blind_set.axis == "y"
            assert abs(plan.turn.degrees) == pytest.approx(degrees, abs=1)
            assert plan.turn.lean == pytest.approx(lean, abs=0.7)
            assert plan.report()["turned_deg"] == plan.turn.degrees
            assert plan.report()["lean_deg"] == plan.turn.lean
            assert plan.turn.is_none == (name == "straight")
            assert ("degrees off" in plan.choice.reason) == (name != "straight" and blind == "auto")
        assert choose_blind_set([path], "auto", "x").turn.is_none
