"""The benchmark on the real tomogram scores what it says: signal in common, faintness, copied and negative noise."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy import ndimage


@pytest.fixture
def real(load_script):
    return load_script("bench.real")


@pytest.fixture
def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smooth signal, and twice the same under noise of its own."""
    random = np.random.default_rng(0)
    signal = ndimage.gaussian_filter(random.standard_normal((40, 48, 44)), 2).astype(np.float32)
    signal /= signal.std()
    return signal, *(signal + 3 * random.standard_normal((2, *signal.shape)).astype(np.float32))


def test_the_signal_scores_best_and_noise_nothing(real, halves):
    """Against a half that neither has seen, whole and in each band."""
    signal, even, odd = halves
    truth, raw, noise = (real.against_half(v, odd) for v in (signal, even, even - signal))
    assert truth["correlation"] > raw["correlation"] > 0.05 > abs(noise["correlation"])
    assert all(one > other for one, other in zip(truth["bands"], raw["bands"], strict=True))
    smooth = ndimage.gaussian_filter(even, 1.5)
    assert real.against_half(real.wiener_with_hindsight(even, odd), odd)["correlation"] > raw["correlation"]
    assert real.against_half(smooth, odd)["correlation"] > raw["correlation"]


def test_the_squared_difference_is_half_for_the_signal_and_more_for_anything_else(real, halves, monkeypatch):
    """1 for the half itself; the signal on another scale, or somewhere else, is no better than it looks (controls)."""
    signal, even, odd = halves
    monkeypatch.setattr(real, "CUBE", 16)
    assert real.cube_error(signal, even, odd) == pytest.approx(0.5, abs=0.02)
    assert real.cube_error(even, even, odd) == 1
    wiener = real.cube_error(real.wiener_with_hindsight(even, odd), even, odd)
    assert 0.5 < wiener < real.cube_error(0 * even, even, odd) < 0.6
    for wrong in (3 * signal, -signal, np.roll(signal, 12, axis=1)):
        assert real.cube_error(wrong, even, odd) > 0.54


def test_a_slope_is_1_for_the_signal_and_more_for_a_fainter_result(real, halves):
    """In the coarse bands, where there is signal; negative where the result is a negative."""
    signal, even, _ = halves
    assert real.slopes(even, signal)[-2] == pytest.approx(1, abs=0.1)
    assert real.slopes(even, 0.5 * signal)[-2] == pytest.approx(2, abs=0.2)
    assert real.slopes(even, -signal)[-2] < -0.9


def test_copied_noise_is_above_0_and_its_negative_below(real, halves, monkeypatch):
    """A twentieth of the noise, either way; region by region."""
    signal, even, _ = halves
    monkeypatch.setattr(real, "REGIONS", {"a": (slice(0, 20),) * 3, "b": (slice(20, 40),) * 3})
    copied, negative = (real.fine_share(even, signal + f * (even - signal)) for f in (0.05, -0.05))
    assert set(copied) == {"a", "b"}
    assert all(share == pytest.approx(0.05, abs=0.02) for share in copied.values())
    assert all(share == pytest.approx(-0.05, abs=0.02) for share in negative.values())


def test_gold_is_filled_with_what_lies_around(real):
    """A bead is gone, what is away from it is untouched, and the grain of what fills it is as strong."""
    random = np.random.default_rng(1)
    image = random.standard_normal((160, 200)).astype(np.float32)
    dark = image.copy()
    dark[60:72, 90:102] -= 12
    erased = real.erase_gold(dark, 0)
    assert abs(erased[60:72, 90:102].mean()) < 0.6
    assert erased[60:72, 90:102].std() == pytest.approx(1, abs=0.25)
    assert np.array_equal(erased[:30], dark[:30])


def test_a_result_is_used_again_only_with_its_facts(real, tmp_path, monkeypatch):
    """Asked to, a run that has left result and facts is not repeated; one without facts is, and so are all unasked."""
    runs = []
    monkeypatch.setattr(real, "commit", lambda: "abc")
    monkeypatch.setattr(real.subprocess, "run", lambda command, **_: runs.append(command))
    result = tmp_path / "fast_0_even.mrc"
    result.touch()
    first = real.denoise(tmp_path / "even.mrc", result, ["--seed", "0"], reuse=True)
    assert (len(runs), first["seconds"]) == (1, 0)
    assert first["commit"] == "abc"
    assert real.denoise(tmp_path / "even.mrc", result, [], reuse=True) == first
    assert len(runs) == 1
    real.denoise(tmp_path / "even.mrc", result, [], reuse=False)
    assert len(runs) == 2


def test_a_folder_without_the_tilt_series_is_refused(real, tmp_path, capsys):
    """In one sentence."""
    with pytest.raises(SystemExit):
        real.main([str(tmp_path), "--work", str(tmp_path)])
    assert "give the folder testdata of warpylib 1.1.2" in capsys.readouterr().err


def test_the_section_shows_what_was_found_and_stays_beside_the_others(real, load_script):
    """Hindsight, efforts, slopes and shares, with machine and commit; what was not run has no row."""
    rows = [
        {"method": "raw half", "correlation": 0.0283, "bands": [0.1, 0.2, 0.3, 0.4]},
        {
            "method": "fast", "seed": 0, "seconds": 40, "machine": "a mill", "commit": "abc",
            "correlation": 0.1, "cube_error": 0.5123, "bands": [0.2, 0.3, 0.4, 0.5],
            "trust": 0.25, "slopes_of_other_half": [1.5, 1.25], "slopes": [1.0, 2.0],
                "fine_share": dict.fromkeys(real.REGIONS, -0.012),
        },
    ]  # fmt: skip
    found = {"gold erased": {"bands_voxels": real.BANDS, "rows": rows}}
    text = real.section(found)
    assert "| raw half | 0.0283 | 0.1000 | 0.2000 | 0.3000 | 0.4000 |  |  |  |  |" in text
    assert "| `--effort fast`, seed 0 | 0.1000 | 0.2000 | 0.3000 | 0.4000 | 0.5000 | 0.5123 | 1.50" in text
    assert "| 0.5123 | 1.50, 1.25 | 0.25 | 40 |" in text
    assert "| `--effort fast`, seed 0 | 1.0, 2.0 | cell -0.012, ice, right -0.012" in text
    assert "On a mill, commit abc." in text
    replace = partial(load_script("bench.markdown").replace_section, begin=real.BEGIN, end=real.END)
    page = replace("# Benchmarks\n\n## Speed\n\nfast\n", text)
    assert "## Speed" in page
    assert replace(page, text) == page
