"""The mean of two halves, as a file."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from phantoms import is_valid_mrc, write_mrc

from cryoshuffle.errors import InputError
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import is_ours
from cryoshuffle.files.mean import save_mean


@pytest.mark.parametrize("largest", [None, 100])
def test_the_mean_has_the_voxels_of_both_halves_and_the_header_of_the_first(tmp_path, monkeypatch, largest):
    """Each voxel is half the sum, in memory or from files; it is no result, and the halves stay as they were."""
    if largest is not None:
        monkeypatch.setattr(scratch, "in_memory_bytes", lambda: largest)
    even, odd = np.random.default_rng(0).standard_normal((2, 5, 7, 11)).astype(np.float32)
    paths = [write_mrc(tmp_path / f"{name}.mrc", half, 8.0) for name, half in (("even", even), ("odd", odd))]
    before = [path.read_bytes() for path in paths]
    save_mean(*paths, tmp_path / "mean.mrc")
    with mrcfile.open(tmp_path / "mean.mrc") as mrc:
        np.testing.assert_allclose(mrc.data, (even + odd) / 2, rtol=1e-6, atol=1e-7)
        assert np.abs(mrc.data - even).max() > 1
        assert float(mrc.voxel_size.x) == 8.0
    assert is_valid_mrc(tmp_path / "mean.mrc")
    assert not is_ours(tmp_path / "mean.mrc")
    assert [path.read_bytes() for path in paths] == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["even.mrc", "mean.mrc", "odd.mrc"]


def test_the_mean_is_the_same_file_each_time(tmp_path):
    """A run that goes on knows its tomogram by the bytes."""
    halves = np.random.default_rng(1).standard_normal((2, 5, 7, 11)).astype(np.float32)
    paths = [write_mrc(tmp_path / f"{name}.mrc", half) for name, half in zip(("even", "odd"), halves, strict=True)]
    for name in ("first.mrc", "second.mrc"):
        save_mean(*paths, tmp_path / name)
    assert (tmp_path / "first.mrc").read_bytes() == (tmp_path / "second.mrc").read_bytes()


def test_halves_of_two_shapes_have_no_mean(tmp_path):
    """The sentence has both files and shapes; nothing is written."""
    even = write_mrc(tmp_path / "even.mrc", np.zeros((5, 7, 11), np.float32))
    odd = write_mrc(tmp_path / "odd.mrc", np.zeros((5, 7, 12), np.float32))
    with pytest.raises(InputError, match=r"even.mrc and .*odd.mrc: have shapes \(5, 7, 11\) and \(5, 7, 12\)"):
        save_mean(even, odd, tmp_path / "mean.mrc")
    assert not (tmp_path / "mean.mrc").exists()
