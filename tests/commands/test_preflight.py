"""What is looked at before the work begins."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from phantoms import write_mrc

from cryoshuffle.commands import preflight
from cryoshuffle.commands.preflight import check_halves, check_output
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


@pytest.mark.parametrize(
    ("output", "beside", "volumes"),
    [
        ("out.mrc", [], 1),
        ("out.mrc", ["residual.mrc"], 2),
        ("out.mrc", ["residual.mrc", "error.mrc"], 3),
        ("out.mrc.gz", [], 2),
        ("out.mrc.bz2", ["residual.mrc.gz"], 3),
        ("out.nii.gz", [], 1),
        ("out.zarr", [], 8 / 7),
        ("out.zarr", ["residual.zarr"], 16 / 7),
    ],
)
def test_all_outputs_need_room_together(tmp_path, monkeypatch, output, beside, volumes):
    """Packed files beside the plain one, a Zarr with its pyramid; with a little more there is room (control)."""
    tomogram = write_mrc(tmp_path / "in.mrc", np.random.default_rng(0).normal(size=(24, 40, 40)).astype(np.float32))
    size, named = 4 * 24 * 40 * 40, dict(zip(("residual", "error"), (str(tmp_path / b) for b in beside), strict=False))

    def check(free: float) -> None:
        monkeypatch.setattr(preflight, "shutil", SimpleNamespace(disk_usage=lambda place: SimpleNamespace(free=free)))
        check_output(str(tmp_path / output), str(tomogram), **named)

    check(int(volumes * size) + 2)
    with pytest.raises(FileError, match=r"needs [1-9]\d* MiB in .* and 0 MiB are free, make room or choose"):
        check(int(volumes * size) - 2)


def test_each_file_system_needs_room_of_its_own(tmp_path, monkeypatch):
    """What goes to another one is not added up; on one it is (control)."""
    tomogram = write_mrc(tmp_path / "in.mrc", np.random.default_rng(0).normal(size=(24, 40, 40)).astype(np.float32))
    (tmp_path / "other").mkdir()
    usage = SimpleNamespace(free=int(1.5 * 4 * 24 * 40 * 40))
    monkeypatch.setattr(preflight, "shutil", SimpleNamespace(disk_usage=lambda place: usage))
    words = str(tmp_path / "out.mrc"), str(tomogram)
    with pytest.raises(FileError, match="with what goes beside it, and 0 MiB are free"):
        check_output(*words, residual=str(tmp_path / "other" / "residual.mrc"))
    monkeypatch.setattr(preflight, "_file_system", lambda place: place.name)
    check_output(*words, residual=str(tmp_path / "other" / "residual.mrc"))
