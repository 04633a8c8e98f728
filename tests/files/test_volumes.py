"""What volumes of all formats have in common."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

import cryoshuffle
from cryoshuffle.errors import FileError, unreadable
from cryoshuffle.files.intensity import StandardiseIntensityd
from cryoshuffle.files.volumes import DENOISED, common_voxel_size, own_label, voxel_sizes
from cryoshuffle.noise import WhitenNoised


@pytest.mark.parametrize(
    ("sizes", "known", "common"),
    [
        (None, None, None),
        ((0.0, 0.0, 0.0), None, None),
        ((8.0, 8.0, 0.0), None, None),
        ((8.0, 8.0, 8.05), [8.0, 8.0, 8.05], 8.0),
        ((8.0, 8.0, 8.2), [8.0, 8.0, 8.2], None),
    ],
)
def test_a_voxel_size_is_told_where_it_is_known(sizes, known, common):
    """A size of 0 is none, and sizes that differ by more than a hundredth are not one size."""
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={} if sizes is None else {"voxel_size_zyx": sizes})
    assert voxel_sizes(image) == known
    assert common_voxel_size(voxel_sizes(image)) == common


def test_a_label_has_80_bytes_at_most():
    """Name and version first, so that a long content is what is cut."""
    assert own_label(DENOISED).startswith(f"cryoshuffle {cryoshuffle.__version__}: denoised".encode())
    assert len(own_label("x" * 100)) == 80


def test_a_missing_key_is_refused():
    """Also where there is nothing to do for it, as with a whitening that is none; allowed, it is left out."""
    for transform in (StandardiseIntensityd("other"), WhitenNoised("other", None)):
        with pytest.raises(KeyError, match="other"):
            transform({"image": torch.rand(1, 4, 4, 4)})
    assert set(WhitenNoised("other", None, allow_missing_keys=True)({"image": 1})) == {"image"}


def test_a_file_that_is_not_to_be_read_is_named():
    """With the reason of the system, or the error itself where there is none."""
    error = unreadable("a.mrc", PermissionError(13, "Permission denied"))
    assert isinstance(error, FileError)
    assert str(error) == "a.mrc: cannot be read (Permission denied), check the file and its rights"
    assert "(cut off)" in str(unreadable("a.mrc", OSError("cut off")))
