"""napari: a run becomes layers in their place, and the widget's process says how far it is and stops in time."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mrcfile
import numpy as np
import pytest
import yaml
from phantoms import small_tomogram, write_mrc

import cryoshuffle
from cryoshuffle.commands.napari import DenoiseProcess, denoise_widget, get_reader, read_run, show_layers, split_words
from cryoshuffle.errors import FileError, InputError

ROOT = Path(__file__).parent.parent.parent
MANIFEST = Path(cryoshuffle.__file__).with_name("napari.yaml")
SHORT = ["--steps=4", "--window=16,24,16", "--no-refine"]


def a_run(folder: Path, **files: str | None) -> Path:
    """The folder of a run as far as napari looks at it, with volumes of 4 x 5 x 6 voxels beside it."""
    said: dict[str, object] = {"program": "cryoshuffle"}
    for seed, (kind, name) in enumerate(files.items()):
        if name is not None:
            volume = np.random.default_rng(seed).standard_normal((4, 5, 6)).astype(np.float32)
            write_mrc(folder / name, volume, 8.0)
            with mrcfile.open(folder / name, "r+") as mrc:
                mrc.voxel_size = (6.0, 7.0, 8.0)
        said[kind] = None if name is None else {"path": str(folder / name), "sha256": ""}
    (run := folder / "out_run").mkdir()
    (run / "provenance.json").write_text(json.dumps(said))
    return run


def test_a_run_becomes_layers_in_their_place(tmp_path):
    """Each volume with its own voxels, sides of a voxel as (Z, Y, X), and the input lowest; all that there are."""
    run = a_run(tmp_path, output="out.mrc", input="in.mrc", error="error.mrc", residual="residual.mrc")
    layers = get_reader(str(run))(str(run))
    assert [options["name"] for _, options, _ in layers] == ["tomogram", "denoised", "residual", "standard error"]
    assert [options.get("visible", True) for _, options, _ in layers] == [True, True, False, False]
    for (volume, options, kind), name in zip(layers, ("in", "out", "residual", "error"), strict=True):
        assert np.array_equal(volume, mrcfile.read(tmp_path / f"{name}.mrc"))
        assert options["scale"] == (8.0, 7.0, 6.0)
        assert options["units"] == ("angstrom",) * 3
        assert kind == "image"
    assert len(get_reader(str(run / "provenance.json"))("")) == 4


class StubViewer:
    """As much of napari's viewer as layers need."""

    def __init__(self) -> None:
        self.layers: list[SimpleNamespace] = []

    def add_image(self, volume: np.ndarray, **options: Any) -> None:
        self.layers.append(SimpleNamespace(data=volume, ndim=volume.ndim, **options))


def test_a_second_run_shows_its_own_voxels(tmp_path, monkeypatch):
    """Result, residual and error of the same names are replaced in their layers, with contrast and place.

    Control: the layer of the tomogram, a layer of another file, and what the user chose for a layer stay.
    """
    run = a_run(tmp_path, input="in.mrc", output="out.mrc", residual="residual.mrc", error="error.mrc")
    viewer = StubViewer()
    viewer.add_image(np.zeros((4, 5, 6)), name="other", metadata={"path": str(tmp_path / "other.mrc")})
    viewer.add_image(np.zeros((4, 5, 6)), name="drawn", metadata={})
    show_layers(viewer, read_run(run))
    before = [layer.data for layer in viewer.layers]
    assert len(before) == 6
    second = {}
    for name, place in (("in", 2), ("out", 3), ("residual", 4), ("error", 5)):
        second[place] = np.random.default_rng(9 + place).normal(100, 1, (4, 5, 7)).astype(np.float32)
        write_mrc(tmp_path / f"{name}.mrc", second[place], 9.0)
        viewer.layers[place].visible = True
    # The same files by other names: relative to the folder, and through a link.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    viewer.layers[3].metadata = {"path": "out.mrc"}
    viewer.layers[4].metadata = {}
    viewer.layers[4].source = SimpleNamespace(path=str(tmp_path / "link" / "residual.mrc"))
    show_layers(viewer, read_run(run))
    assert len(viewer.layers) == 6
    for place, layer in enumerate(viewer.layers):
        if place < 3:
            assert layer.data is before[place]
            continue
        assert np.array_equal(layer.data, second[place])
        assert np.abs(np.subtract(layer.contrast_limits, 100)).max() < 5
        assert layer.scale == (9.0, 9.0, 9.0)
        assert layer.visible


def test_a_layer_in_several_scales_is_not_overwritten(tmp_path):
    """One of another reader cannot take one array; the volume gets a layer of its own."""
    run = a_run(tmp_path, output="out.mrc")
    viewer = StubViewer()
    scales = [np.zeros((4, 5, 6)), np.zeros((2, 3, 3))]
    path = {"path": str(tmp_path / "out.mrc")}
    viewer.layers.append(SimpleNamespace(data=scales, ndim=3, multiscale=True, metadata=path))
    show_layers(viewer, read_run(run))
    assert viewer.layers[0].data is scales
    assert np.array_equal(viewer.layers[1].data, mrcfile.read(tmp_path / "out.mrc"))


def test_what_is_not_there_is_left_out(tmp_path):
    """No residual was asked for; a folder that was moved with its volumes is read; a lost volume is said."""
    run = a_run(tmp_path, input="in.mrc", output="out.mrc", residual=None)
    assert [options["name"] for _, options, _ in read_run(run)] == ["tomogram", "denoised"]
    (moved := tmp_path / "moved").mkdir()
    for path in (run, tmp_path / "in.mrc", tmp_path / "out.mrc"):
        path.rename(moved / path.name)
    assert len(read_run(moved / "out_run")) == 2
    (moved / "in.mrc").unlink()
    with pytest.warns(UserWarning, match=r"in\.mrc: is not there any more"):
        assert len(read_run(moved / "out_run")) == 1
    (moved / "out.mrc").unlink()
    with pytest.warns(UserWarning, match="is not there"), pytest.raises(FileError, match="move them beside the folder"):
        read_run(moved / "out_run")


def test_what_is_no_run_is_left_to_other_readers(tmp_path):
    """Folders without provenance, files, several paths; a damaged record is said in a sentence."""
    (tmp_path / "other_run").mkdir()
    for path in (str(tmp_path / "other_run"), str(tmp_path / "a.mrc"), [str(tmp_path)]):
        assert get_reader(path) is None
    for text in ("{", "[]", '{"input": 3}', '{"output": {"sha256": ""}}'):
        (tmp_path / "other_run" / "provenance.json").write_text(text)
        with pytest.raises(InputError, match="is no record of a run"):
            read_run(tmp_path / "other_run")


def test_a_process_tells_how_far_it_is_and_what_it_wrote(tmp_path):
    """Steps that grow to their number, then the files; a second time the sentence of the command line says why not."""
    tomogram, output = small_tomogram(tmp_path / "in.mrc"), tmp_path / "out.mrc"
    process = DenoiseProcess(str(tomogram), str(output), SHORT)
    lines = list(process.lines())
    steps = [line["step"] for line in lines if "step" in line]
    assert steps == sorted(steps)
    assert steps[-1] == 4
    assert lines[-1]["result"] == str(output)
    assert process.outcome() == ""
    again = DenoiseProcess(str(tomogram), str(output), SHORT)
    assert list(again.lines()) == []
    assert again.outcome().startswith(f"cryoshuffle: {output}: exists already")
    assert len(read_run(tmp_path / "out_run")) == 2


def test_a_process_stops_when_it_is_cancelled_and_when_nobody_reads(tmp_path):
    """Nothing under the name of the result; it goes on with --resume. One whose reader goes away does not stay."""
    tomogram, output = small_tomogram(tmp_path / "in.mrc"), tmp_path / "out.mrc"
    endless = ["--steps=100000", *SHORT[1:]]
    process = DenoiseProcess(str(tomogram), str(output), endless)
    lines = process.lines()
    next(lines)
    process.cancel()
    list(lines)
    assert process.outcome() == "Stopped. No result was written; Denoise goes on from here."
    assert not output.exists()
    resumed = DenoiseProcess(str(tomogram), str(output), [*endless, "--resume"])
    lines = resumed.lines()
    assert next(lines)["step"] > 0
    lines.close()
    assert resumed.outcome() != ""
    assert not output.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"--noise-mask C:\data\mask.mrc", ["--noise-mask", r"C:\data\mask.mrc"]),
        (r'--noise-mask "C:\my data\mask.mrc" --seed 3', ["--noise-mask", r"C:\my data\mask.mrc", "--seed", "3"]),
        (r"--noise-mask='C:\my data\new.mrc'", [r"--noise-mask=C:\my data\new.mrc"]),
        (r'--report "\\server\share\"', ["--report", "\\\\server\\share\\"]),
        ("--seed 3 # 4", ["--seed", "3", "#", "4"]),
        ("", []),
    ],
)
def test_options_keep_the_backslashes_of_windows(text, words):
    """Quotes go wherever they stand in a word; elsewhere the words are those of a shell (control)."""
    assert split_words(text, posix=False) == words
    for other in (text.replace("\\", "/"), r"--report my\ run", r"--noise-mask C:\data\mask.mrc"):
        assert split_words(other, posix=True) == shlex.split(other)
    assert split_words(r"C:\data", posix=True) == ["C:data"]
    for posix in (True, False):
        with pytest.raises(ValueError, match="closing"):
            split_words('--report "my run', posix=posix)


def test_the_manifest_names_what_there_is():
    """Commands are importable, contributions name commands, and the package says where the manifest lies."""
    said = yaml.safe_load(MANIFEST.read_text())
    commands = {one["id"]: one["python_name"] for one in said["contributions"]["commands"]}
    places = {name: getattr(importlib.import_module(name.partition(":")[0]), name.partition(":")[2]) for name in
              commands.values()}  # fmt: skip
    assert set(places.values()) == {get_reader, denoise_widget}
    for kind in ("readers", "widgets"):
        assert {one["command"] for one in said["contributions"][kind]} <= set(commands)
    assert 'cryoshuffle = "cryoshuffle:napari.yaml"' in (ROOT / "pyproject.toml").read_text()


def test_napari_takes_the_manifest():
    """By its own reader of manifests; one with a key that it does not know is refused (control)."""
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    assert [one.display_name for one in manifest.contributions.widgets] == ["Denoise a tomogram"]
    manifest.validate_imports()
    said = yaml.safe_load(MANIFEST.read_text())
    said["contributions"]["readers"][0]["pattern"] = "*"
    with pytest.raises(ValueError, match="pattern"):
        npe2.PluginManifest(**said)


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="needs napari")
def test_a_session_in_napari(tmp_path):
    """Widget and reader in a window without a screen: denoise, a refusal, a stop, and the folder opened again."""
    tomogram = small_tomogram(tmp_path / "in.mrc")
    script = Path(__file__).with_name("napari_session.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tomogram), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "QT_QPA_PLATFORM": "offscreen", "NAPARI_CONFIG": str(tmp_path / "settings.yaml")},
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["named"] == str(tmp_path / "in_denoised.mrc")
    assert seen["unnamed"].startswith("name the tomogram and the result")
    assert "--nonsense" in seen["refused"]
    assert "is for a terminal" in seen["help"]
    assert seen["locked"] == [False, True]
    assert [6, 6] in seen["bar"]
    assert seen["done"].startswith("Done.")
    expected = ["tomogram", "denoised", "residual"]
    for layers in (seen["layers"], seen["opened"]):
        assert [layer["name"] for layer in layers] == expected
        assert {tuple(layer["scale"]) for layer in layers} == {(10.0, 10.0, 10.0)}
        assert {tuple(layer["units"]) for layer in layers} == {("angstrom",) * 3}
        assert [layer["visible"] for layer in layers] == [True, True, False]
    assert seen["stopped"].startswith("Stopped.")
    assert not seen["written"]
    assert "out.mrc: exists already" in seen["again"]
