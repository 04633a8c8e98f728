"""What is looked at before the work begins."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import write_mrc

from cryoshuffle.commands.preflight import check_halves
from cryoshuffle.errors import FileError, InputError


def test_halves_are_looked_at_before_the_work_begins(tmp_path):
    """Missing, of another shape, the same file twice, the tomogram itself; good ones and none pass."""
    paths = {n: str(write_mrc(tmp_path / f"{n}.mrc", np.zeros((8, 9, 10), np.float32))) for n in ("in", "even", "odd")}
    other = str(write_mrc(tmp_path / "other.mrc", np.zeros((8, 9, 11), np.float32)))
    check_halves(None, paths["in"])
    check_halves([paths["even"], paths["odd"]], paths["in"])
    for halves, words in (
        ([paths["even"]], "halves are 1 files"),
        ([paths["even"], str(tmp_path / "no.mrc")], "no such file"),
        ([paths["even"], other], r"other.mrc: is of \(8, 9, 11\) voxels"),
        ([paths["even"], paths["even"]], "named twice"),
        ([paths["in"], paths["odd"]], "named twice"),
    ):
        with pytest.raises((InputError, FileError), match=words):
            check_halves(halves, paths["in"])


def test_both_halves_are_of_the_tomogram(tmp_path):
    """One of another place is refused, though the mean of both is like the tomogram; good ones pass (control)."""
    random = np.random.default_rng(0)
    even, odd, other = (random.normal(size=(24, 24, 24)).astype(np.float32) for _ in range(3))
    volumes = {"in": (even + odd) / 2, "even": even, "odd": odd, "other": other, "copy": (even + odd) / 2}
    paths = {name: str(write_mrc(tmp_path / f"{name}.mrc", volume)) for name, volume in volumes.items()}
    check_halves([paths["even"], paths["odd"]], paths["in"])
    with pytest.raises(InputError, match=r"other.mrc: correlates with .*in.mrc by -?0.0\d, the other half by 1.00"):
        check_halves([paths["copy"], paths["other"]], paths["in"])
