"""What lies where a result goes is not lost, and what a result would lose is told before the work."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import warnings
from contextlib import nullcontext
from unittest.mock import Mock

import mrcfile
import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import SaveImage
from phantoms import write_mrc

from cryoshuffle.commands.batch import check_index
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.lists import read_list, write_star
from cryoshuffle.commands.preflight import check_dtype, check_inputs, check_output, check_single
from cryoshuffle.commands.runs import check_own_folder
from cryoshuffle.errors import FileError, InputError
from cryoshuffle.files.formats import is_ours, load_tomogram
from cryoshuffle.files.masks import load_mask, mask_weights
from cryoshuffle.files.mrc import MrcWriter
from cryoshuffle.files.nifti import NiftiWriter
from cryoshuffle.files.omezarr import OmeZarrWriter, open_zarr
from cryoshuffle.report.log import RunLog

VOLUME = np.random.default_rng(0).normal(size=(16, 20, 24)).astype(np.float32)
WRITERS = {"a.mrc": MrcWriter, "a.mrc.gz": MrcWriter, "a.nii": NiftiWriter, "a.nii.gz": NiftiWriter}


def write(writer, path, volume=VOLUME, **options):
    """As a result is written."""
    one = writer(is_result=True, **options)
    one.set_data_array(volume[None], channel_dim=0)
    one.set_metadata({}, resample=False)
    one.write(str(path))
    return path


@pytest.fixture
def raw(tmp_path):
    return write_mrc(tmp_path / "raw.mrc", VOLUME)


@pytest.mark.parametrize("name", [*WRITERS, "a.zarr"])
def test_overwrite_replaces_results_of_ours_alone(tmp_path, raw, name):
    """A result is replaced; a raw file of the same kind is not, unless --force says so."""
    if name == "a.zarr":
        zarr = pytest.importorskip("zarr")
        ours = write(OmeZarrWriter, tmp_path / name)
        foreign = tmp_path / "foreign.zarr"
        zarr.create_group(str(foreign), zarr_format=2)
    else:
        ours = write(WRITERS[name], tmp_path / name)
        foreign = tmp_path / f"foreign{name[1:]}"
        if name.startswith("a.nii"):
            nibabel.save(nibabel.Nifti1Image(VOLUME, np.eye(4)), foreign)
        else:
            shutil.copy(raw, tmp_path / "plain.mrc")
            with mrcfile.new(foreign, compression="gzip" if name.endswith("gz") else None) as mrc:
                mrc.set_data(VOLUME)
    assert is_ours(ours)
    assert not is_ours(foreign)
    with pytest.raises(FileError, match="exists already, add --overwrite"):
        check_output(str(ours), str(raw))
    check_output(str(ours), str(raw), overwrite=True)
    for overwrite in (False, True):
        with pytest.raises(FileError, match="no result of cryoshuffle"):
            check_output(str(foreign), str(raw), overwrite=overwrite)
    check_output(str(foreign), str(raw), force=True)


def test_a_fit_replaces_checkpoints_of_ours_alone(tmp_path, raw, monkeypatch, capsys):
    """A raw tomogram in the place of the checkpoint is kept, with --resume too; a checkpoint of any version is not."""
    work = Mock(side_effect=FileError("work"))
    monkeypatch.setattr("cryoshuffle.commands.runs._run", work)
    before = raw.read_bytes()
    other = write_mrc(tmp_path / "in.mrc", VOLUME)
    for words in (["--overwrite"], ["--resume"], []):
        assert main(["fit", str(other), "--checkpoint", str(raw), *words]) == 2
        assert f"{raw}: exists and is no checkpoint of cryoshuffle" in capsys.readouterr().err
    assert raw.read_bytes() == before
    assert not work.called
    model = tmp_path / "c.pt"
    torch.save({"model": {}, "settings": {}, "format": 1}, model)
    for words, sentence in (([], "add --overwrite"), (["--overwrite"], "work")):
        assert main(["fit", str(other), "--checkpoint", str(model), *words]) == 2
        assert sentence in capsys.readouterr().err


def test_a_pattern_that_expands_to_two_tomograms_loses_neither(tmp_path, raw, capsys):
    """Nor to three; the sentence names batch."""
    other = write_mrc(tmp_path / "raw2.mrc", VOLUME + 1)
    before = other.read_bytes()
    for words in (["denoise", str(raw), str(other)], ["denoise", str(raw), str(other), str(raw)]):
        assert main([*words, "--overwrite"]) == 2
        assert "cryoshuffle batch" in capsys.readouterr().err
    assert other.read_bytes() == before


@pytest.mark.parametrize("option", ["--even", "--odd", "--mask", "--noise-mask", "--warm-start"])
@pytest.mark.parametrize("place", ["OUT", "--residual", "--error"])
def test_what_a_run_reads_is_not_replaced(tmp_path, raw, monkeypatch, capsys, option, place):
    """Not by --force either, nor under the name of a link; another file at OUT is (control)."""
    work = Mock(side_effect=FileError("work"))
    monkeypatch.setattr("cryoshuffle.commands.runs._run", work)
    kept, other = (write_mrc(tmp_path / name, VOLUME + 1) for name in ("kept.mrc", "other.mrc"))
    (tmp_path / "link.mrc").symlink_to(kept)
    given = [option, str(kept)]
    if option in ("--even", "--odd"):
        given += ["--odd" if option == "--even" else "--even", str(other)]
    for name, sentence in (
        ("kept.mrc", "is read by this run"),
        ("link.mrc", "is read by this run"),
        ("new.mrc", "work"),
    ):
        target = str(tmp_path / name)
        names = [target] if place == "OUT" else [str(tmp_path / "out.mrc"), place, target]
        assert main(["denoise", str(raw), *names, *given, "--force"]) == 2
        assert sentence in capsys.readouterr().err
    assert np.array_equal(mrcfile.read(kept), VOLUME + 1)


def test_the_network_that_is_applied_is_not_replaced(tmp_path, raw, monkeypatch, capsys):
    """By its residual; what is forced at OUT is OUT alone, so a foreign residual is refused."""
    monkeypatch.setattr("cryoshuffle.commands.runs._run", Mock(side_effect=FileError("work")))
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.load_plain", lambda path: {})
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.Model.network_config", {})
    model = write_mrc(tmp_path / "model.mrc", VOLUME)
    assert main(["apply", str(model), str(raw), str(tmp_path / "o.mrc"), "--residual", str(model), "--force"]) == 2
    assert "is read by this run (C)" in capsys.readouterr().err
    assert main(["apply", str(model), str(raw), str(model), "--force"]) == 2
    assert "is read by this run (C)" in capsys.readouterr().err
    with pytest.raises(FileError, match="no result of cryoshuffle"):
        check_output(str(tmp_path / "o.mrc"), str(raw), residual=str(model), force=True)


@pytest.mark.parametrize("name", ["report.html", "model.pt", "run.log"])
def test_files_of_others_in_the_folder_of_a_run_are_kept(tmp_path, raw, monkeypatch, capsys, name):
    """A folder that no run of ours wrote is refused before the work; one with our log, or none of our names, is not."""
    monkeypatch.setattr("cryoshuffle.commands.runs._run", Mock(side_effect=FileError("work")))
    folder = tmp_path / "out_run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    command = ["denoise", str(raw), str(tmp_path / "out.mrc")]
    assert main(command) == 2
    assert "work" in capsys.readouterr().err
    # All that a full disk has left of a run.
    (folder / "run.log").touch()
    assert main(command) == 2
    assert "work" in capsys.readouterr().err
    (folder / name).write_text("mine")
    assert main([*command, "--overwrite"]) == 2
    assert f"holds {name}, which no run of cryoshuffle wrote" in capsys.readouterr().err
    (folder / "run.log").write_text("2026-11-27 13:31:09,589 INFO cryoshuffle 0.2.0, torch 2.13.0, 2 threads\n")
    assert main(command) == 2
    assert "work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "is_ours"), [('{"program": "cryoshuffle 0.2.0"}', True), ('{"program": "other"}', False), ("[]", False)]
)
def test_a_folder_whose_provenance_is_ours_is_ours(tmp_path, content, is_ours):
    """Where the log is empty, as where a host has turned logging off; that of another program is not (control)."""
    (tmp_path / "run.log").touch()
    (tmp_path / "report.html").touch()
    (tmp_path / "provenance.json").write_text(content)
    with nullcontext() if is_ours else pytest.raises(FileError, match="which no run of cryoshuffle wrote"):
        check_own_folder(tmp_path)


def test_the_log_tells_whose_it_is_where_a_host_turned_logging_off(tmp_path):
    """Its first line alone; with logging it has the others too (control)."""
    for name, level, lines in (("off", logging.INFO, 1), ("on", logging.NOTSET, 2)):
        engine = Engine(lambda engine, batch: None)
        RunLog(str(tmp_path / name)).attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: logging.getLogger("cryoshuffle").info("a step"))
        logging.disable(level)
        try:
            engine.run([0])
        finally:
            logging.disable(logging.NOTSET)
        written = (tmp_path / name / "run.log").read_text()
        assert " INFO cryoshuffle " in written.splitlines()[0]
        assert len(written.splitlines()) == lines
        check_own_folder(tmp_path / name)


@pytest.mark.parametrize("words", [["apply", "model.pt"], ["denoise"]], ids=["apply", "denoise"])
def test_the_report_of_another_result_is_kept(tmp_path, raw, monkeypatch, capsys, words):
    """A run in the folder of another one is refused, unless that result is gone or --overwrite is said."""
    monkeypatch.setattr("cryoshuffle.commands.runs._run", Mock(side_effect=FileError("work")))
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.load_plain", lambda path: {})
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.Model.network_config", {})
    folder, first = tmp_path / "first_run", write_mrc(tmp_path / "first.mrc", VOLUME)
    folder.mkdir()
    (folder / "run.log").write_text("2026-11-27 13:31:09,589 INFO cryoshuffle 0.2.0, torch 2.13.0, 2 threads\n")
    (folder / "provenance.json").write_text(json.dumps({"output": {"path": str(first)}}))
    command = [*words, str(raw), str(tmp_path / "second.mrc"), "--report", str(folder)]
    for more, sentence in (([], f"holds the report of {first}"), (["--overwrite"], "work")):
        assert main([*command, *more]) == 2
        assert sentence in capsys.readouterr().err
    first.unlink()
    assert main(command) == 2
    assert "work" in capsys.readouterr().err


def test_a_page_of_others_in_the_folder_of_a_batch_is_kept(tmp_path, raw, capsys):
    """The index of a batch takes its place only where a batch wrote it."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "index.html").write_text("mine")
    for words in ([], ["--overwrite"]):
        assert main(["batch", str(raw), str(folder), *words]) == 2
        assert "index.html: exists and no batch wrote it" in capsys.readouterr().err
    assert (folder / "index.html").read_text() == "mine"
    items = read_list([str(raw)], folder)
    check_index(tmp_path / "nowhere", items)
    (folder / "index.html").write_text('<meta name="generator" content="cryoshuffle">')
    check_index(folder, items)
    (folder / "index.html").write_text("of an earlier version")
    items[0].folder.mkdir()
    (items[0].folder / "batch.json").write_text("{}")
    check_index(folder, items)


def test_a_folder_of_two_runs_gets_no_report(tmp_path, capsys):
    """A fit that was begun over a finished one has left files of both: neither verdict would be right."""
    (tmp_path / "state.pt").write_bytes(b"")
    assert main(["report", str(tmp_path)]) == 2
    assert "holds an unfinished fit" in capsys.readouterr().err


def test_a_reader_that_stops_reading_gets_no_traceback(tmp_path):
    """As ``| head -1`` does: all is on the disk, and nothing is complained of."""
    command = [sys.executable, "-m", "cryoshuffle", "simulate", str(tmp_path / "s"), "--shape", "16,32,32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        run.stdout.close()
        complained = run.stderr.read()
    assert (run.returncode, complained) == (0, "")
    assert (tmp_path / "s" / "tomogram.mrc").is_file()


@pytest.mark.parametrize("name", WRITERS)
def test_a_link_is_written_through(tmp_path, name):
    """Its target has the result, and it is still a link."""
    target, link = tmp_path / "elsewhere" / name, tmp_path / name
    target.parent.mkdir()
    link.symlink_to(target)
    write(WRITERS[name], link)
    assert link.is_symlink()
    assert target.is_file()
    assert not target.is_symlink()
    write(WRITERS[name], link)
    assert sorted(path.name for path in target.parent.iterdir()) == [name]


@pytest.mark.parametrize(("values", "dtype", "words"), [
    (VOLUME * 50 + 60000, "int16", "beyond what int16 holds"),
    (VOLUME * 0.01, "int8", "too coarse"),
    (VOLUME * 1e-12, "float16", "too coarse"),
    (VOLUME * 1e5, "float16", "beyond what float16 holds"),
    (VOLUME * 0.01 + 1000, "float16", "too coarse"),
    (VOLUME * 5 - 50, "uint16", "beyond what uint16 holds"),
])  # fmt: skip
def test_a_type_that_cannot_hold_the_grey_values_is_refused_before_the_work(tmp_path, values, dtype, words):
    """And by the writer itself; one that can is taken."""
    path = str(write_mrc(tmp_path / "in.mrc", values.astype(np.float32)))
    with pytest.raises(InputError, match=words):
        check_output(str(tmp_path / "out.mrc"), path, dtype=dtype)
    if not (dtype == "float16" and words == "too coarse" and values.max() > 1):
        with pytest.raises(InputError, match="do not fit into"):
            write(MrcWriter, tmp_path / "direct.mrc", values, output_dtype=dtype)
        assert not (tmp_path / "direct.mrc").exists()
    for good in ("int16", "float16"):
        check_dtype(good, str(write_mrc(tmp_path / "good.mrc", (VOLUME * 100).astype(np.float32))))


def test_a_few_clipped_voxels_are_told(tmp_path, caplog):
    hot = VOLUME * 20
    hot[0, 0, 0] = 1e6
    write(MrcWriter, tmp_path / "hot.mrc", hot, output_dtype="int16")
    assert "1 voxels beyond what int16 holds were clipped" in caplog.text


def test_two_images_for_one_name_are_refused():
    check_single([{"image": "a.mrc"}])
    with pytest.raises(InputError, match="names 2 images"):
        check_single([{"image": "a.mrc"}, {"image": "b.mrc"}])


@pytest.mark.parametrize(
    ("least", "most", "unsigned"), [(0, 255, True), (0, 128, True), (-3, 120, False), (0, 100, False)]
)
def test_bytes_are_unsigned_where_the_statistics_say_so(tmp_path, least, most, unsigned):
    """By IMOD's rule, with a note; the note is left out where nothing is decided by it."""
    values = np.linspace(0, 255, 16 * 20 * 24).reshape(16, 20, 24).astype(np.uint8)
    with mrcfile.new(tmp_path / "u8.mrc") as mrc:
        mrc.set_data(values.view(np.int8))
        mrc.voxel_size = 10.0
        mrc.header.dmin, mrc.header.dmax = least, most
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        there = load_tomogram(str(tmp_path / "u8.mrc")).numpy()[0]
    assert np.array_equal(there, (values if unsigned else values.view(np.int8)).astype(np.float32))
    assert any("read as 0 to 255" in str(one.message) for one in noted) == unsigned


def test_importing_the_package_leaves_monai_its_writers(tmp_path):
    """In a process of its own: a NIfTI and a PNG are written by MONAI's own."""
    program = (
        "import torch, cryoshuffle.files.mrc, cryoshuffle.files.omezarr; from monai.transforms import SaveImage;"
        f"SaveImage(output_dir={str(tmp_path)!r}, output_ext='.nii.gz', print_log=False)(torch.rand(1, 4, 5, 6))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    assert list(tmp_path.rglob("*.nii.gz"))
    SaveImage(output_dir=tmp_path, output_ext=".mrc", print_log=False)(MetaTensor(torch.rand(1, 8, 8, 8)))
    assert list(tmp_path.rglob("*.mrc"))


@pytest.mark.parametrize(("count", "texts"), [(2, 10), (11, 3), (-1, 3), (0, 0), (10, 10)])
def test_labels_are_kept_whatever_their_count_says(tmp_path, count, texts):
    """The result is valid, has the texts but a tenth, and ours behind them."""
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(VOLUME)
        mrc.voxel_size = 10.0
        for place in range(10):
            mrc.header.label[place] = f"text {place}".encode() if place < texts else b""
        mrc.header.nlabl = count
    image = load_tomogram(str(tmp_path / "in.mrc"), permissive=True)
    writer = MrcWriter(is_result=True)
    writer.set_data_array(image, 0)
    writer.set_metadata(image.meta)
    writer.write(tmp_path / "out.mrc")
    assert mrcfile.validate(tmp_path / "out.mrc")
    with mrcfile.open(tmp_path / "out.mrc") as mrc:
        labels = mrc.get_labels()
    assert labels[:-1] == [f"text {place}" for place in range(min(texts, 9))]
    assert labels[-1].startswith("cryoshuffle")


@pytest.mark.parametrize(("field", "axis"), [("origin", "x"), ("cella", "y")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_headers_that_are_no_numbers_are_told_and_written(tmp_path, field, axis, value):
    """Before the work; the voxels are those of the file."""
    with mrcfile.new(tmp_path / "in.mrc") as mrc:
        mrc.set_data(VOLUME)
        mrc.voxel_size = 10.0
        mrc.header[field][axis] = value
    with pytest.warns(UserWarning, match="no number"):
        image = load_tomogram(str(tmp_path / "in.mrc"))
    assert np.isfinite(np.asarray(image.affine)).all()
    writer = MrcWriter()
    writer.set_data_array(image, 0)
    writer.set_metadata(image.meta)
    writer.write(tmp_path / "out.mrc")
    assert np.array_equal(mrcfile.read(tmp_path / "out.mrc"), VOLUME)


@pytest.mark.parametrize(("unit", "size", "expected"), [
    ("picometer", 1000.0, 10.0), ("meter", 1e-9, 10.0), ("nanometer", 1.0, 10.0), ("foot", 1e-9, 3.048),
    ("nm", 1.0, 1.0), (None, 7.0, 7.0),
])  # fmt: skip
def test_units_of_length_convert_or_are_told(tmp_path, unit, size, expected):
    """All of NGFF; one that it does not know, or none, is told and taken for angstrom."""
    zarr = pytest.importorskip("zarr")
    group = zarr.create_group(str(tmp_path / "in.zarr"), zarr_format=2)
    group.create_array("0", shape=VOLUME.shape, chunks=VOLUME.shape, dtype="f4")[...] = VOLUME
    axes = [{"name": axis, "type": "space", **({"unit": unit} if unit else {})} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [size] * 3}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        found = open_zarr(tmp_path / "in.zarr").voxel_size_zyx
    assert found == pytest.approx([expected] * 3)
    assert any("unit of length" in str(one.message) for one in noted) == (unit in {"nm", None})


def test_results_and_stacks_of_images_are_told_before_the_fit(tmp_path, raw, caplog):
    """As a tomogram that was denoised before, and as a tilt series perhaps; a volume says nothing (control)."""
    check_inputs([str(raw)], (1, 2, 1))
    assert caplog.text == ""
    check_inputs([str(write(MrcWriter, tmp_path / "done.mrc"))], (1, 2, 1))
    assert "was denoised by cryoshuffle before" in caplog.text
    with mrcfile.new(tmp_path / "series.st") as mrc:
        mrc.set_data(VOLUME)
        mrc.set_image_stack()
        mrc.voxel_size = 10.0
    check_inputs([str(tmp_path / "series.st")], (1, 2, 1))
    assert "a tilt series perhaps" in caplog.text


STAR = """
data_general

_rlnTomoSubTomosAre2DStacks    1
_rlnPixel    1.23456789012

data_global

loop_
_rlnTomoName #1
_rlnDefocus #2
_rlnTomoReconstructedTomogram #3
_rlnTomoReconstructedTomogramHalf1 #4
_rlnTomoReconstructedTomogramHalf2 #5
00255 12345.678901234 tomograms/a.mrc None None
1e5 0.5 tomograms/b.mrc tomograms/b1.mrc tomograms/b2.mrc
"""


def test_star_files_keep_what_we_do_not_change(tmp_path, monkeypatch):
    """Names of digits, decimals, other blocks; a half that is None is none; paths are the project's own."""
    pytest.importorskip("starfile")
    project, other = tmp_path / "one", tmp_path / "two"
    for place in (project, other):
        (place / "tomograms").mkdir(parents=True)
        for name in ("a", "b", "b1", "b2"):
            write_mrc(place / "tomograms" / f"{name}.mrc", VOLUME)
    (project / "job").mkdir()
    (project / "job" / "tomograms.star").write_text(STAR)
    monkeypatch.chdir(other)
    source = str(project / "job" / "tomograms.star")
    first, second = read_list([source], tmp_path / "out")
    assert (first.name, second.name) == ("00255", "1e5")
    assert first.tomogram == str(project / "tomograms" / "a.mrc")
    assert (first.even, first.odd) == (None, None)
    assert second.even == str(project / "tomograms" / "b1.mrc")
    write_star(source, tmp_path / "written.star", {"00255": "x.mrc", "1e5": "y.mrc"})
    words = (tmp_path / "written.star").read_text().split()
    for value in ("00255", "1e5", "12345.678901234", "1.23456789012", "data_general", "x.mrc", "y.mrc"):
        assert value in words
    write_mrc(project / "job" / "a.mrc", VOLUME)
    (project / "job" / "tomograms").mkdir()
    write_mrc(project / "job" / "tomograms" / "a.mrc", VOLUME)
    with pytest.raises(InputError, match="is there 2 times"):
        read_list([source], tmp_path / "out")


@pytest.fixture
def star(tmp_path, monkeypatch):
    """A star file of two tomograms in the folder of a job, and runs that work in no time."""
    pytest.importorskip("starfile")
    (tmp_path / "job" / "tomograms").mkdir(parents=True)
    for name in ("a", "b", "b1", "b2"):
        write_mrc(tmp_path / "job" / "tomograms" / f"{name}.mrc", VOLUME)
    path = tmp_path / "job" / "tomograms.star"
    path.write_text(STAR)
    monkeypatch.setattr("cryoshuffle.commands.batch._run", lambda command, surroundings: (0, ""))
    return path


def test_a_star_file_that_is_read_is_not_replaced(tmp_path, star, capsys):
    """Nor through a link, with --overwrite too, and nothing is run; into another folder it is written (control)."""
    (tmp_path / "linked").symlink_to(star.parent)
    for folder in (star.parent, tmp_path / "linked"):
        for words in ([], ["--overwrite"]):
            assert main(["batch", str(star), str(folder), *words]) == 2
            said = capsys.readouterr().err
            assert f"{folder / star.name}: is read by this batch" in said
            assert said.count("\n") == 1
    assert star.read_text() == STAR
    assert sorted(path.name for path in star.parent.iterdir()) == ["tomograms", "tomograms.star"]
    assert main(["batch", str(star), str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / star.name).read_text() != STAR


def test_two_star_files_of_one_name_are_two_batches(tmp_path, star, capsys):
    """One would replace the other; of two names they are one batch (control)."""
    (tmp_path / "job2").mkdir()
    for name in ("tomograms.star", "more.star"):
        text = STAR.replace("00255", "c").replace("1e5", "d")
        (tmp_path / "job2" / name).write_text(text.replace("tomograms/", f"{star.parent}/tomograms/"))
    assert main(["batch", str(star), str(tmp_path / "job2" / star.name), str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out' / star.name}, and so would {star}: make two batches" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["batch", str(star), str(tmp_path / "job2" / "more.star"), str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").glob("*.star")} == {"tomograms.star", "more.star"}


@pytest.mark.parametrize(("name", "mine"), [
    ("tomograms.star", STAR), ("batch.json", "mine"), ("batch.json", '{"command": [], "done": true}'),
])  # fmt: skip
def test_files_of_others_in_the_folder_of_a_batch_are_kept(tmp_path, star, name, mine, capsys):
    """Also where the same batch was run before; what a batch wrote gives way to its next run (control)."""
    folder = tmp_path / "out"
    for _ in range(2):
        assert main(["batch", str(star), str(folder)]) == 0
    capsys.readouterr()
    (folder / name).write_text(mine)
    for words in ([], ["--overwrite"]):
        assert main(["batch", str(star), str(folder), *words]) == 2
        said = capsys.readouterr().err
        assert said == f"cryoshuffle: {folder / name}: exists and no batch wrote it, choose another folder\n"
    assert (folder / name).read_text() == mine


def test_a_text_list_with_a_byte_order_mark_is_read(tmp_path, raw):
    (tmp_path / "list.txt").write_bytes("\ufeffraw.mrc\n".encode())
    (item,) = read_list([str(tmp_path / "list.txt")], tmp_path / "out")
    assert item.tomogram == str(raw)


HALF = np.arange(24) >= 12


@pytest.mark.parametrize(("outside", "inside", "told"), [
    (0, 1, ""), (-128, -127, ""), (np.nan, 1, ""), (0, 255, ""), (0, -1, ""), (0, 3, ""), (2, 5, ""), (0, "labels", ""),
    (0, "soft", "above half"), (1, 1, "marks all"),
])  # fmt: skip
def test_masks_of_any_two_values_are_understood_and_others_told(tmp_path, caplog, outside, inside, told):
    """Right voxel by voxel, for the noise and for the windows of a fit."""
    values = np.full(VOLUME.shape, outside, np.float32)
    values[..., HALF] = {"labels": 2, "soft": 0.9}.get(inside, inside)
    if inside == "labels":
        values[0, :, HALF] = 7
    if inside == "soft":
        values[..., 11], values[..., 12] = 0.2, 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = str(write_mrc(tmp_path / "mask.mrc", values))
    expected = np.broadcast_to(HALF if told != "marks all" else HALF | True, VOLUME.shape)
    assert np.array_equal(load_mask(path).numpy(), expected)
    assert float(mask_weights(path)[..., -1].min()) > 0.9
    assert told in caplog.text if told else caplog.text == ""


def test_volumes_that_are_no_masks_are_refused(tmp_path):
    for values, words in ((VOLUME, "a mask has two"), (np.zeros_like(VOLUME), "is 0 everywhere")):
        with pytest.raises(InputError, match=words):
            load_mask(str(write_mrc(tmp_path / "mask.mrc", values)))


@pytest.mark.parametrize(
    ("words", "name"),
    [(["noise"], "noise.json"), (["noise"], "noise.png"), (["evaluate"], "evaluation.json"), (["evaluate"], "fsc.png")],
)
def test_a_report_replaces_what_its_command_wrote_alone(tmp_path, raw, words, name, capsys):
    """A file of the user's own with a name of ours is kept; our own is replaced."""
    words = [*words, str(raw), *(["--truth", str(raw)] if words == ["evaluate"] else [])]
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / name).write_text('{"mine": 1}')
    assert main([*words, "--report", str(folder), "--overwrite"]) == 2
    assert f"{folder / name}: was not written by this command" in capsys.readouterr().err
    assert (folder / name).read_text() == '{"mine": 1}'
    own = tmp_path / "own"
    assert main([*words, "--report", str(own)]) == 0
    before = (own / name).stat().st_mtime_ns
    assert main([*words, "--report", str(own)]) == 2
    assert main([*words, "--report", str(own), "--overwrite"]) == 0
    assert (own / name).stat().st_mtime_ns > before


def test_scores_beside_another_tomogram_are_told(tmp_path, raw, caplog):
    """A result is like what it was made from; beside its own tomogram nothing is said (control)."""
    other = write_mrc(tmp_path / "other.mrc", np.random.default_rng(1).normal(size=VOLUME.shape).astype(np.float32))
    result = write_mrc(tmp_path / "result.mrc", VOLUME * 0.3)
    assert main(["evaluate", str(result), "--noisy", str(raw)]) == 0
    assert "in common" not in caplog.text
    assert main(["evaluate", str(result), "--noisy", str(other)]) == 0
    assert f"{other}: has next to nothing in common with {result}" in caplog.text


@pytest.mark.parametrize("name", ["error_map.json", "recorrupted.pt", "state.pt", "preview.png", "report.html"])
def test_no_file_of_others_in_the_folder_of_a_run_is_replaced(tmp_path, raw, name, capsys):
    """A run that would write a file of that name refuses the folder."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / name).write_text("mine")
    words = ["denoise", str(raw), str(tmp_path / "out.mrc"), "--report", str(folder), "--overwrite"]
    assert main(words) == 2
    assert f"{folder}: holds {name}, which no run of cryoshuffle wrote" in capsys.readouterr().err
    assert (folder / name).read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.parametrize("name", ["fit.json", "state.pt"])
def test_apply_leaves_the_report_of_a_fit(tmp_path, raw, monkeypatch, name, capsys):
    """Finished or not, with --overwrite too; where there is no fit the work begins (control)."""
    monkeypatch.setattr("cryoshuffle.commands.runs._run", Mock(side_effect=FileError("work")))
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.load_plain", lambda path: {})
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.Model.network_config", {})
    folder = tmp_path / "out_run"
    folder.mkdir()
    (folder / "run.log").write_text("2026-11-27 13:31:09,589 INFO cryoshuffle 0.2.0, torch 2.13.0, 2 threads\n")
    command = ["apply", "model.pt", str(raw), str(tmp_path / "out.mrc"), "--overwrite"]
    assert main(command) == 2
    assert "work" in capsys.readouterr().err
    (folder / name).write_text("{}")
    assert main(command) == 2
    assert f"{folder}: is the folder of a fit" in capsys.readouterr().err


def test_a_half_of_the_tomogram_itself_scores_nothing(tmp_path, caplog):
    """Noise that half and tomogram have in common is told; that of halves is not in common (control)."""
    random = np.random.default_rng(2)
    signal = np.add.outer(
        np.add.outer(*(np.sin(np.arange(n) / 3) for n in VOLUME.shape[:2])), np.arange(VOLUME.shape[2]) / 9
    )
    even, odd = (signal / signal.std() + random.normal(size=VOLUME.shape) for _ in range(2))
    paths = {
        name: str(write_mrc(tmp_path / f"{name}.mrc", volume.astype(np.float32)))
        for name, volume in {"even": even, "odd": odd, "both": (even + odd) / 2, "result": signal}.items()
    }
    assert main(["evaluate", paths["result"], "--noisy", paths["even"], "--other-half", paths["odd"]]) == 0
    assert "noise in common" not in caplog.text
    assert main(["evaluate", paths["result"], "--noisy", paths["both"], "--other-half", paths["odd"]]) == 0
    assert f"{paths['odd']}: has noise in common with {paths['both']}" in caplog.text
