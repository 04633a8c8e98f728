"""The preview of a run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from cryoshuffle.errors import FileError
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.report.pictures import preview_image, save_preview


def test_a_preview_shows_three_planes_before_after_and_residual(tmp_path):
    """The planes through the middle, each voxel a square of equal pixels: what is bright there is bright here."""
    before, after = torch.rand(8, 40, 20), torch.rand(8, 40, 20)
    path = save_preview(before, after, tmp_path / "p.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(float)
    zoom, margin, title = 13, 8, 16
    tops = [margin + title, margin + 2 * title + 40 * zoom + margin, margin + 3 * title + 48 * zoom + 2 * margin]
    for column, volume in enumerate((before, after, before - after)):
        left = margin + column * (20 * zoom + margin)
        for top, plane in zip(tops, (volume[4], volume[:, 20], volume[:, :, 10].T), strict=True):
            height, width = plane.shape
            tile = pixels[top : top + height * zoom, left : left + width * zoom]
            shown = tile[zoom // 2 :: zoom, zoom // 2 :: zoom][::-1]
            assert np.corrcoef(shown.ravel(), plane.numpy().ravel())[0, 1] > 0.95
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert preview_image(torch.rand(3, 2000, 1500), torch.rand(3, 2000, 1500)).width < 3 * 600
    with pytest.raises(ValueError, match="cannot be compared"):
        preview_image(before, after[:4])
    with pytest.raises(FileError, match="cannot be written"):
        save_preview(before, after, tmp_path / "no" / "p.png")
    assert central_crop(torch.arange(10).reshape(1, 1, 10), 4).flatten().tolist() == [3, 4, 5, 6]
