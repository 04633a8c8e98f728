"""The numbers of a page: where their files are read."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from phantoms import small_tomogram, write_mrc

from cryoshuffle.files import mrc, scratch
from cryoshuffle.report.measurement import measure


@pytest.mark.parametrize("folder", ["run", None])
def test_a_large_compressed_file_is_measured_from_the_disk(tmp_path, monkeypatch, folder):
    """Tomogram and halves are unpacked in the folder of the run; without one in memory (control). The numbers are
    those of the files as they were."""
    plain = small_tomogram(tmp_path / "in.mrc")
    packed = tmp_path / "in.mrc.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    out = write_mrc(tmp_path / "out.mrc", (0.5 * mrcfile.read(plain)).astype(np.float32))
    unpacked, unpack = [], mrc._unpack

    def spy(path: Path, size: int, place: Path, permissive: bool) -> Any:
        unpacked.append((path.name, place.name))
        return unpack(path, size, place, permissive)

    monkeypatch.setattr(scratch, "in_memory_bytes", lambda: 1000)
    monkeypatch.setattr(mrc, "_unpack", spy)
    place = None if folder is None else tmp_path / folder
    halves = [str(packed), str(packed)]
    found = measure(str(packed), str(out), (1, 1, 1), halves=halves, folder=place)
    assert unpacked == ([] if folder is None else [("in.mrc.gz", "run")] * 3)
    expected = measure(str(plain), str(out), (1, 1, 1))
    assert found["kept"] == expected["kept"]
