"""Lines of values, laid along an axis, falling to the borders, and read between their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoshuffle.noise.axes import interpolated, line_along, tapered


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_line_multiplies_the_planes_across_its_axis(axis):
    """Each plane across the axis is multiplied by the value of its place; along another axis it would not be."""
    volume, line = torch.rand(4, 4, 4), torch.arange(4.0)
    product = volume * line_along(line, axis)
    for place in range(4):
        assert torch.equal(product.select(axis, place), volume.select(axis, place) * place)
    assert not torch.equal(product, volume * line_along(line, (axis + 1) % 3))


def test_a_line_is_read_between_its_values():
    """As numpy reads it, the ends included but for the thousandth that keeps the last step inside."""
    line = torch.rand(7, dtype=torch.float64)
    places = torch.linspace(-1, 7, 50, dtype=torch.float64).reshape(5, 10)
    expected = np.interp(places.numpy(), np.arange(7), line.numpy())
    assert np.allclose(interpolated(line, places).numpy(), expected, atol=2e-3)
    assert not np.allclose(interpolated(line, places.flip(0)).numpy(), expected, atol=2e-3)


def test_a_tapered_volume_vanishes_at_its_borders_alone():
    """An offset leaves nothing, a wave in the middle stays, one at the border does not."""
    assert not tapered(torch.full((9, 11, 13), 3.0))[0].any()
    middle, border = torch.zeros(2, 9, 11, 13)
    middle[4, 5, 6] = border[0, 0, 0] = 1.0
    values, tapers = tapered(middle)
    assert values[4, 5, 6] > 0.99
    assert float(tapered(border)[0].abs().max()) < 0.01
    assert [len(taper) for taper in tapers] == [9, 11, 13]
