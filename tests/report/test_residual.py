"""The residual as a file: what it holds, and that it says so itself."""

from __future__ import annotations

from types import SimpleNamespace

import mrcfile
import numpy as np
import torch
from monai.data import MetaTensor

from cryoshuffle.files.formats import save_tomogram
from cryoshuffle.report.residual import CONTENT, ResidualWriter


def test_a_residual_is_no_result_by_its_label(tmp_path):
    """It adds up to the tomogram with the result, and has another label than that; the result has it not (control)."""
    noisy, denoised = torch.randn(2, 1, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    save_tomogram(MetaTensor(noisy), tmp_path / "in.mrc", is_result=False)
    save_tomogram(MetaTensor(denoised), tmp_path / "out.mrc")
    paths = [str(tmp_path / name) for name in ("residual.mrc", "in.mrc", "out.mrc")]
    ResidualWriter(*paths)(SimpleNamespace())
    volumes, labels = [], []
    for path in paths:
        with mrcfile.open(path) as mrc:
            volumes.append(mrc.data.copy())
            labels.append(" ".join(mrc.get_labels()))
    assert np.allclose(volumes[0] + volumes[2], volumes[1], atol=1e-6)
    assert [CONTENT in one for one in labels] == [True, False, False]
    assert ["cryoshuffle" in one for one in labels] == [True, False, True]
    assert "volume shuffle" not in labels[0]
