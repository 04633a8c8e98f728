"""The command line by itself: how it ends, and how fast it answers."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from phantoms import small_tomogram, write_mrc

import cryoshuffle
from cryoshuffle.commands.cli import _COMMANDS, build_parser, main
from cryoshuffle.commands.options import ApplyCommand, DenoiseCommand
from cryoshuffle.commands.runs import with_output
from cryoshuffle.devices import choose_device
from cryoshuffle.errors import FileError, FitInterruptedError, SettingError


def test_a_stop_is_a_stop_whatever_it_interrupts(tmp_path, monkeypatch, capsys):
    """Where it comes while a checkpoint is written, what torch says of the torn archive is no mistake of the user's."""

    def stopped(options):
        try:
            try:
                raise FitInterruptedError("stopped; go on with --resume")
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")  # as torch's archive does when it is left half written
        except RuntimeError as error:
            raise FileError("state.pt: the checkpoint cannot be written") from error

    monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", stopped)
    assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == 3
    assert capsys.readouterr().err.strip() == "cryoshuffle: stopped; go on with --resume"
    for error, code in ((FileError("no room"), 2), (MemoryError(), 2)):
        monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", Mock(side_effect=error))
        assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == code


def test_help_imports_nothing_heavy():
    """``--help`` and the package itself leave torch and MONAI alone, so that they answer at once."""
    code = (
        "import sys, cryoshuffle.commands.cli as c; c.build_parser().format_help();"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_without_a_command_the_help_is_printed(capsys):
    """To stdout, with exit code 0."""
    assert main([]) == 0
    said = capsys.readouterr()
    assert said.out == build_parser().format_help()
    assert said.err == ""


@pytest.mark.parametrize("name", _COMMANDS)
def test_a_help_begins_with_two_examples_that_are_understood_and_ends_with_experts(name, capsys):
    """As a command line each; an example with an option that there is not is not understood (control)."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    said = capsys.readouterr().out
    first, *examples, blank = said.splitlines()[:4]
    assert (first, blank) == ("examples:", "")
    for example in examples:
        program, command, *words = shlex.split(example)
        assert (program, command) == ("cryoshuffle", name)
        assert build_parser().parse_args([command, *words]).command == name
        with pytest.raises(cryoshuffle.errors.UsageError):
            build_parser().parse_args([command, *words, "--no-such-option"])
    titles = [line for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    experts = [title.startswith("for experts") for title in titles]
    assert experts == sorted(experts)
    assert any(experts) == (name in {"denoise", "fit", "apply", "batch", "relion-job", "relion-shim"})


@pytest.mark.parametrize(("words", "sentence"), [
    (["denoise", "in.mrc", "--tilt-axs", "y"], "denoise: there is no option --tilt-axs, did you mean --tilt-axis; "),
    (["noise", "--colour", "in.mrc"], "noise: there is no option --colour; see cryoshuffle noise --help"),
    (["apply", "c.pt", "in.mrc", "-q"], "apply: there is no option -q; see cryoshuffle apply --help"),
    (["denoise", "a.mrc", "b.mrc", "c.mrc"], "denoise: c.mrc is a word too many; several tomograms go with "),
    (["batch", "a", "b", "--effort", "fast", "out"], "batch: out is a word too many; put all names side by side; "),
    (["denois", "in.mrc"], "cryoshuffle: there is no command denois, did you mean cryoshuffle denoise; see "),
    (["in.mrc", "out.mrc"], "there is no command in.mrc, did you mean cryoshuffle denoise; see cryoshuffle --help"),
    (["frobnicate"], "cryoshuffle: there is no command frobnicate; see cryoshuffle --help"),
])  # fmt: skip
def test_what_is_unknown_is_named_with_the_right_help_and_what_is_near(words, sentence, capsys):
    """In one line."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_version_case_and_places_of_words_are_as_people_write_them(capsys):
    """``-V``; upper-case axes; the last word behind options, also where it may be left out; flags cut short."""
    with pytest.raises(SystemExit):
        main(["-V"])
    assert capsys.readouterr().out == f"cryoshuffle {cryoshuffle.__version__}\n"
    parse = build_parser().parse_args
    expected = parse(["denoise", "in.mrc", "out.mrc", "--tilt-axis", "y", "--effort", "fast"])
    assert expected == parse(["denoise", "in.mrc", "--tilt-axis=Y", "--eff", "Fast", "out.mrc"])
    assert expected == parse(["denoise", "--tilt-axis", "Y", "in.mrc", "--effort", "fast", "--", "out.mrc"])
    assert parse(["denoise", "in.mrc", "--tilt-axis", "y", "--effort", "fast"]).output == ""
    assert main(["denoise", "in.mrc", "--tilt-axis", "W"]) == 2


def test_a_gpu_is_whichever_there_is(monkeypatch):
    """NVIDIA's before the Mac's; without one it is refused."""
    available = {"cuda": False, "mps": False}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available["cuda"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available["mps"])
    with pytest.raises(SettingError, match="device 'gpu' is not available"):
        choose_device("gpu")
    available["mps"] = True
    assert choose_device("GPU").type == "mps"
    available["cuda"] = True
    assert (choose_device("gpu").type, choose_device("gpu:1"), choose_device("CUDA:1").index) == (
        "cuda", torch.device("cuda", 1), 1,
    )  # fmt: skip


def test_a_result_has_a_name_and_a_place_where_none_is_given(tmp_path):
    """Beside the input, or in a folder; the name of a file stays, and that of a volume that is a folder."""

    def output(command, tomogram: str, name: str) -> str:
        words = {"checkpoint": "c.pt"} if command is ApplyCommand else {}
        return with_output(command(tomogram=tomogram, output=name, **words)).output

    for command in (DenoiseCommand, ApplyCommand):
        for tomogram, result in (("a/in.rec.gz", "in_denoised.mrc"), ("in.nii", "in_denoised.nii.gz")):
            assert output(command, tomogram, "") == str(Path(tomogram).with_name(result))
            assert output(command, tomogram, str(tmp_path)) == str(tmp_path / result)
        # Of a level no part of the volume that it is a level of.
        for tomogram, result in (
            ("a/raw.zarr", "raw_denoised.zarr"), ("a/raw.ome.zarr/0", "raw_0_denoised.zarr"),
            ("a/raw.zarr/0/", "raw_0_denoised.zarr"), ("a/raw.zarr/lab.zarr/1", "raw_lab.zarr_1_denoised.zarr"),
            ("a/raw.zarr/in.mrc", "raw.zarr/in_denoised.mrc"),
        ):  # fmt: skip
            assert output(command, tomogram, "") == str(Path("a") / result)
            assert output(command, tomogram, str(tmp_path)) == str(tmp_path / Path(result).name)
    (tmp_path / "old.zarr").mkdir()
    for name in ("out.mrc", str(tmp_path / "old.zarr"), "new.zarr/"):
        assert output(DenoiseCommand, "in.mrc", name) == name
    with pytest.raises(FileError, match="no such folder"):
        output(DenoiseCommand, "in.mrc", str(tmp_path / "missing") + "/")


def test_noise_and_evaluate_write_nothing_unless_a_report_is_asked_for(tmp_path, monkeypatch, capsys):
    """They print alike. A report that is there is refused before the work, and a mistake leaves no folder."""
    tomogram = small_tomogram(tmp_path / "in.mrc", (24, 72, 72))
    ice = np.zeros((24, 72, 72), np.int8)
    ice[:, :48] = 1
    mask = write_mrc(tmp_path / "ice.mrc", ice)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for words, files in (
        (["noise", str(tomogram), "--tilt-axis", "y"], {"noise.json", "noise.png"}),
        (["noise", str(tomogram), "--tilt-axis", "y", "--noise-mask", str(mask)], {"noise.json", "noise.png"}),
        (["evaluate", str(tomogram), "--truth", str(tomogram)], {"evaluation.json", "fsc.png"}),
    ):
        assert main(words) == 0
        printed = capsys.readouterr().out
        assert list(Path().iterdir()) == []
        report = tmp_path / f"report{len(list(tmp_path.iterdir()))}"
        assert main([*words, "--report", str(report)]) == 0
        assert capsys.readouterr().out.startswith(printed)
        assert {path.name for path in report.iterdir()} == files
        with monkeypatch.context() as patch:
            patch.setattr("cryoshuffle.commands.cli._measure_noise", Mock(side_effect=AssertionError("work")))
            patch.setattr("cryoshuffle.scores.evaluation.evaluate_files", Mock(side_effect=AssertionError("work")))
            assert main([*words, "--report", str(report)]) == 2
        assert "exists already, add --overwrite" in capsys.readouterr().err
        assert main([words[0], "missing.mrc", "--report", "none"]) == 2
    assert list(Path().iterdir()) == []


def test_noise_puts_what_it_needs_into_a_report_that_is_there(tmp_path, monkeypatch):
    """Not beside it, where it may not write; a new report has nothing in it, so its parent is the place then."""
    tomogram = small_tomogram(tmp_path / "in.mrc", (24, 72, 72))
    mask = write_mrc(tmp_path / "ice.mrc", np.ones((24, 72, 72), np.int8))
    (tmp_path / "report").mkdir()
    folder_in = Mock(side_effect=tempfile.TemporaryDirectory)
    monkeypatch.setattr("cryoshuffle.commands.cli.tempfile", Mock(TemporaryDirectory=folder_in))
    for report in ("report", "new"):
        words = ["--noise-mask", str(mask), "--report", str(tmp_path / report)]
        assert main(["noise", str(tomogram), "--tilt-axis", "y", *words]) == 0
    assert [call.kwargs["dir"] for call in folder_in.call_args_list] == [tmp_path / "report", tmp_path]


def test_a_simulation_is_not_made_where_it_cannot_be_written(tmp_path, monkeypatch, capsys):
    """A file of others is refused before the work; with --force it is not, nor where another case has no such file."""
    work = Mock(side_effect=FileError("work"))
    monkeypatch.setattr("cryoshuffle.simulation.tilt_series.simulate", work)
    (tmp_path / "even_tilts.mrc").touch()
    for words, sentence in (
        (["--case", "insitu"], "add --force"), (["--case", "insitu", "--overwrite"], "add --force"),
        (["--case", "insitu", "--force"], "work"), ([], "work"),
    ):  # fmt: skip
        assert main(["simulate", str(tmp_path), *words]) == 2
        assert sentence in capsys.readouterr().err
    assert work.call_count == 2


def test_a_simulation_names_no_option_that_it_has_not(tmp_path, capsys):
    """A file in the place of its folder is told without ``--report``, which commands with a report name (control)."""
    (tmp_path / "file").touch()
    assert main(["simulate", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.strip().endswith("is a file where a folder should be, choose another")
    tomogram = small_tomogram(tmp_path / "in.mrc")
    assert main(["noise", str(tomogram), "--report", str(tmp_path / "file")]) == 2
    assert "choose another with --report" in capsys.readouterr().err


def test_the_network_of_the_first_stage_is_told(tmp_path, monkeypatch, caplog):
    """Where that of the whole fit lies beside it; of that one nothing is said (control)."""
    monkeypatch.setattr("cryoshuffle.commands.runs._run", Mock(side_effect=FileError("work")))
    monkeypatch.setattr("cryoshuffle.inference.checkpoints.Model.network_config", {})
    tomogram = small_tomogram(tmp_path / "in.mrc")
    for name, told in (("blind.pt", False), ("model.pt", False), ("blind.pt", True)):
        torch.save({"model": {}}, tmp_path / name)
        assert main(["apply", str(tmp_path / name), str(tomogram), str(tmp_path / "out.mrc")]) == 2
        assert ("is the network of the first stage" in caplog.text) == told


@pytest.mark.parametrize(
    ("words", "way_out"),
    [
        (["denoise", "in.mrc"], "use a smaller --window, --inference-window or --memory, or --device cpu"),
        (["apply", "c.pt", "in.mrc"], "use a smaller --window or --memory, or --device cpu"),
        (["fit", "in.mrc", "--checkpoint", "c.pt"], "use a smaller --window or --memory, or --device cpu"),
        (["noise", "in.mrc"], "crop the tomogram, or take a machine with more"),
        (["evaluate", "out.mrc"], "crop the tomogram, or take a machine with more"),
        (["report", "out_run"], "crop the tomogram, or take a machine with more"),
    ],
)
def test_too_little_memory_is_met_by_options_that_the_command_has(words, way_out, monkeypatch, capsys):
    """And by no others."""
    monkeypatch.setitem(_COMMANDS, words[0], (_COMMANDS[words[0]][0], Mock(side_effect=MemoryError())))
    assert main(words) == 2
    assert capsys.readouterr().err.strip() == f"cryoshuffle: out of memory, {way_out}"


@pytest.mark.parametrize(("words", "way_on"), [
    (["simulate", "phantom"], "start again"), (["noise", "in.mrc"], "start again"),
    (["batch", "data", "out"], "the same command goes on"),
    (["denoise", "in.mrc"], "what is done so far goes on with --resume"),
    (["apply", "c.pt", "in.mrc"], "what is done so far goes on with --resume"),
])  # fmt: skip
def test_a_stop_promises_what_the_command_has(words, way_on, monkeypatch, capsys):
    """``--resume`` only where there is that option."""

    def run(command) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setitem(_COMMANDS, words[0], (_COMMANDS[words[0]][0], run))
    assert main(words) == 3
    assert capsys.readouterr().err.strip() == f"cryoshuffle: stopped; no result was written, {way_on}"
