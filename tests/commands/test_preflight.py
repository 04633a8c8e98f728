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
