"""Which model of a fit is kept."""

from __future__ import annotations

import pytest

from cryoshuffle.fit.checkpoint import is_as_good


@pytest.mark.parametrize(("risks", "kept"), [
    ([2.760, 2.7510, 2.7513, 2.7511], True),
    ([2.760, 2.7510, 2.7512, 2.7513, 2.7530], False),
    ([2.760], True),
    ([2.760, 2.900], False),
    ([2.760, 2.900, 2.7599], True),
    ([5.0, 0.9, 1.05], False),
    ([2.760, 2.7700, 2.6500, 2.7700, 2.6600], False),
])  # fmt: skip
def test_of_models_that_are_equal_but_for_chance_the_later_is_kept(risks, kept):
    """Half a typical change is chance, a twentieth of the gain at most; more is memorised noise, however bad the first
    epoch was."""
    assert is_as_good(risks) is kept
