"""The error map as a user asks for it: on the command line, and from Python."""

from __future__ import annotations

import json
import signal

import mrcfile
import numpy as np
import pytest
import torch
from phantoms import small_tomogram, write_mrc

import cryoshuffle
from cryoshuffle.commands.cli import main
from cryoshuffle.files.formats import is_ours, load_tomogram, save_tomogram
from cryoshuffle.inference.error_map import ErrorMap
from cryoshuffle.inference.inferers import HaloWindowInferer


def test_apply_writes_the_map_beside_the_result(tmp_path, fitted, capsys):
    """On the grey scale, with header and label of its own; on disk the same; the result is as without."""
    tomogram, model = fitted
    out, error = tmp_path / "out.mrc", tmp_path / "error.mrc"
    more = ["--window", "24,48,48", "--quiet"]
    assert main(["apply", str(model), str(tomogram), str(tmp_path / "plain.mrc"), *more]) == 0
    assert main(["apply", str(model), str(tomogram), str(out), "--error", str(error), *more]) == 0
    assert f"error:      {error}" in capsys.readouterr().out
    assert np.array_equal(mrcfile.read(out), mrcfile.read(tmp_path / "plain.mrc"))
    values, noisy = mrcfile.read(error), mrcfile.read(tomogram)
    assert values.min() > 0
    assert 0.01 * noisy.std() < values.mean() < noisy.std()
    with mrcfile.open(error) as mrc:
        assert mrc.voxel_size.x == pytest.approx(10)
        assert any("standard error" in label for label in mrc.get_labels())
    assert is_ours(error)
    written = json.loads((tmp_path / "out_run" / "provenance.json").read_text())
    assert written["error"]["path"] == str(error)
    again = [str(tmp_path / "b.mrc"), "--error", str(tmp_path / "b_error.mrc"), "--memory", "0.0001"]
    assert main(["apply", str(model), str(tomogram), *again, *more]) == 0
    assert np.allclose(mrcfile.read(tmp_path / "b_error.mrc"), values, rtol=1e-3)


def test_the_map_has_the_scale_of_the_tomogram_and_not_its_offset(tmp_path, fitted):
    """Grey values three times as large around another mean: the map is three times as large; axes of a NIfTI kept."""
    tomogram, model = fitted
    image = load_tomogram(tomogram)
    (scaled := image.clone()).mul_(3).add_(500)
    save_tomogram(scaled, tmp_path / "scaled.nii.gz")
    maps = []
    for source, name in ((tomogram, "a.mrc"), (tmp_path / "scaled.nii.gz", "b.nii.gz")):
        out = tmp_path / f"out_{name}"
        assert main(["apply", str(model), str(source), str(out), "--error", str(tmp_path / name), "--quiet"]) == 0
        maps.append(load_tomogram(tmp_path / name).numpy())
    assert np.allclose(maps[1], 3 * maps[0], rtol=0.02)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--error", "{out}"], "named for the result and for the error map"),
        (
            ["--error", "{folder}/same.mrc", "--residual", "{folder}/same.mrc"],
            "named for the residual and for the error",
        ),
        (["--error", "{folder}/no/error.mrc"], "no folder"),
        (["--error", "{tomogram}"], "is the input itself"),
    ],
)
def test_maps_that_cannot_be_written_are_refused_first(tmp_path, fitted, capsys, more, words):
    """Nothing is written."""
    tomogram, model = fitted
    out = tmp_path / "out.mrc"
    named = [word.format(out=out, folder=tmp_path, tomogram=tomogram) for word in more]
    assert main(["apply", str(model), str(tomogram), str(out), "--quiet", *named]) == 2
    assert words in capsys.readouterr().err
    assert not out.exists()


def test_models_and_fits_without_noise_are_refused_first(tmp_path, fitted, capsys):
    """A model that keeps no noise; a fit that measures none."""
    tomogram, model = fitted
    checkpoint = torch.load(model, weights_only=True)
    del checkpoint["noise"]
    torch.save(checkpoint, tmp_path / "old.pt")
    ending = [str(tmp_path / "out.mrc"), "--error", str(tmp_path / "error.mrc")]
    assert main(["apply", str(tmp_path / "old.pt"), str(tomogram), *ending]) == 2
    assert "does not know the noise" in capsys.readouterr().err
    assert main(["denoise", str(tomogram), *ending, "--no-refine"]) == 2
    assert "--no-refine does not measure" in capsys.readouterr().err
    assert not (tmp_path / "out.mrc").exists()


def test_a_map_is_compared_with_the_halves_that_were_given(tmp_path):
    """Beside the map, in the table and the findings; the next run without a map has none of it."""
    halves = [small_tomogram(tmp_path / f"{name}.mrc", (24, 48, 48), n) for n, name in enumerate(("even", "odd"))]
    tomogram = write_mrc(tmp_path / "in.mrc", np.mean([mrcfile.read(half) for half in halves], axis=0))
    words = ["denoise", str(tomogram), str(tmp_path / "out.mrc"), "--even", str(halves[0]), "--odd", str(halves[1])]
    quick = ["--effort", "fast", "--quiet", "--no-survival", "--overwrite"]
    assert main([*words, *quick, "--error", str(tmp_path / "error.mrc")]) == 0
    compared = json.loads((tmp_path / "out_run" / "error_map.json").read_text())
    assert compared["ratio"] == pytest.approx(1, abs=0.75)
    assert len(compared["ratios"]) == len(compared["errors"]) == 8
    report = json.loads((tmp_path / "out_run" / "report.json").read_text())
    assert report["numbers"]["error_map"] == compared
    assert sum(one["subject"] == "map" for one in report["findings"]) == 1
    assert "noise of the halves in the result" in (tmp_path / "out_run" / "report.html").read_text()
    assert main([*words, *quick]) == 0
    assert not (tmp_path / "out_run" / "error_map.json").exists()
    report = json.loads((tmp_path / "out_run" / "report.json").read_text())
    assert "error_map" not in report["numbers"]


def test_python_returns_both(tmp_path):
    """An array and its errors, of one shape; the file that was asked for; a single volume without."""
    small_tomogram(tmp_path / "in.mrc", (24, 48, 48))
    volume = mrcfile.read(tmp_path / "in.mrc")
    result, error = cryoshuffle.denoise(volume, effort="fast", error=True)
    assert isinstance(error, np.ndarray)
    assert result.shape == error.shape == volume.shape
    assert error.min() > 0
    alone = cryoshuffle.denoise(volume, effort="fast")
    assert np.array_equal(alone, result)
    _, written = cryoshuffle.denoise(volume, effort="fast", error=tmp_path / "error.mrc")
    assert np.array_equal(written, mrcfile.read(tmp_path / "error.mrc"))


def stop_in_the_map(patch: pytest.MonkeyPatch, error: BaseException | None, run: int = 2) -> None:
    """In a pass of the map an error is raised, or a SIGTERM comes where there is none."""
    original, runs = ErrorMap._denoise, iter(range(1, 100))

    def denoise(self, noisy, network):
        if next(runs) == run:
            if error is not None:
                raise error
            signal.raise_signal(signal.SIGTERM)
        return original(self, noisy, network)

    patch.setattr(ErrorMap, "_denoise", denoise)


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_run_that_ends_in_the_map_leaves_its_result(tmp_path, fitted, monkeypatch, capsys, caplog, on_disk):
    """The bits of a run without a map, whole, under the name of the result; the sentence says how to go on."""
    tomogram, model = fitted
    out, error = tmp_path / "out.mrc", tmp_path / "error.mrc"
    more = ["--window", "24,48,48", "--quiet", *(["--memory", "0.0001"] if on_disk else [])]
    assert main(["apply", str(model), str(tomogram), str(tmp_path / "plain.mrc"), *more]) == 0
    words = ["apply", str(model), str(tomogram), str(out), "--error", str(error)]
    with monkeypatch.context() as patch:
        stop_in_the_map(patch, None)
        assert main([*words, *more]) == 3
    said = capsys.readouterr().err
    assert f"stopped; {out} is written, the error map and the report are not: " in said
    assert "no result was written" not in said
    assert np.array_equal(mrcfile.read(out), mrcfile.read(tmp_path / "plain.mrc"))
    assert not error.exists()
    with monkeypatch.context() as patch:
        stop_in_the_map(patch, MemoryError())
        assert main([*words, *more, "--resume", "--overwrite"]) == 2
    assert caplog.text.count(f"{out} is written, the error map and the report are not: ") == 1
    assert "out of memory" in capsys.readouterr().err
    assert main([*words, *more, "--resume", "--overwrite"]) == 0
    assert np.array_equal(mrcfile.read(out), mrcfile.read(tmp_path / "plain.mrc"))
    assert error.exists()


def test_a_run_that_ends_before_the_map_promises_no_result(tmp_path, fitted, monkeypatch, capsys):
    """The control: a SIGTERM while the result itself is made leaves none, and nothing is said of one."""
    tomogram, model = fitted
    original = HaloWindowInferer._merge

    def merge(self, *args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(HaloWindowInferer, "_merge", merge)
    out = tmp_path / "out.mrc"
    assert main(["apply", str(model), str(tomogram), str(out), "--error", str(tmp_path / "e.mrc"), "--quiet"]) == 3
    assert "no result was written" in capsys.readouterr().err
    assert not out.exists()


def test_a_fit_is_not_repeated_for_its_map(tmp_path, monkeypatch, capsys):
    """A denoise that stops in the map goes on as its sentence says: no step anew, the bits of a run that did not."""
    source = small_tomogram(tmp_path / "in.mrc", (24, 48, 48))

    def words(name: str) -> list[str]:
        result = [str(source), str(tmp_path / f"{name}.mrc"), "--error", str(tmp_path / f"{name}_error.mrc")]
        return ["denoise", *result, "--steps", "8", "--window", "24", "--tilt-axis", "y", "--quiet"]

    assert main(words("whole")) == 0
    with monkeypatch.context() as patch:
        stop_in_the_map(patch, None)
        assert main(words("cut")) == 3
    assert "--resume --overwrite" in capsys.readouterr().err
    history = (tmp_path / "cut_run" / "history.jsonl").read_text()
    assert main([*words("cut"), "--resume", "--overwrite"]) == 0
    assert (tmp_path / "cut_run" / "history.jsonl").read_text() == history
    for name in ("", "_error"):
        whole, cut = (mrcfile.read(tmp_path / f"{run}{name}.mrc") for run in ("whole", "cut"))
        assert np.array_equal(whole, cut)
    assert (tmp_path / "cut_run" / "report.html").exists()
