"""An option has one place, a field of a dataclass: flags, keywords, words for batches and settings come from there."""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from monai.bundle import ConfigParser

import cryoshuffle
from cryoshuffle.api import DenoiseOptions
from cryoshuffle.commands.cli import build_parser
from cryoshuffle.commands.options import (
    ApplyCommand,
    BatchCommand,
    Command,
    DenoiseCommand,
    FitCommand,
    FitOptions,
    OutputOptions,
    config_value,
    option,
    whole,
)
from cryoshuffle.errors import InputError, UsageError

PATHS = {"tomogram": "in.mrc", "output": "out.mrc"}
# Values that differ from all defaults, as words.
OTHER = {
    "blind": "plane", "tilt_axis": "x", "radius": "2", "stride": "1,4,1", "even": "e.mrc", "odd": "o.mrc",
    "empty": "m.mrc", "mask": "m.mrc", "preset": "paper", "warm_start": "a.pt", "effort": "best", "steps": "7",
    "minutes": "1.5", "window": "24", "seed": "3", "inference_window": "32,48,48", "output_dtype": "int16",
    "residual": "r.mrc", "error": "e.mrc", "detail": "0.25", "smooth": "0.5", "device_name": "cpu", "precision": "fp32",
    "memory_gib": "3", "output_dir": "run", "ome_zarr": "0.5",
}  # fmt: skip
# What a record of a run is not told: how it was begun, and where it says how it went. Device and folder have entries
# of their own; refine and cold_start are told by the start and the measurements.
UNRECORDED = {
    "refine", "cold_start", "resume", "force", "device_name", "quiet", "json_lines", "overwrite", "permissive",
    "output_dir", "even", "odd",
}  # fmt: skip


def parsed(command: type[Command], words: Sequence[str]) -> Command:
    """A command as the words of its command line say."""
    parser = argparse.ArgumentParser()
    command.add_to(parser)
    return command(**vars(parser.parse_args(words)))


def config(*names: str) -> ConfigParser:
    """Configs of the bundle, one on top of the other, not evaluated."""
    parser = ConfigParser()
    parser.read_config([str(cryoshuffle.config_dir() / name) for name in names])
    return parser


def changed(command: type[Command]) -> Command:
    """A command of which each option has another value than its default."""
    values = {
        name: not one.default if one.is_switch else one.read(OTHER[name])
        for name, one in command.options().items()
        if not one.is_positional
    }
    return command(**PATHS, **values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WiderCommand(DenoiseCommand):
    """``denoise`` with one option more."""

    margin: int = option(3, "voxels around the volume", given_flag="--edge-margin", parse=whole)


def test_a_new_option_is_one_field():
    """The field alone brings the flag, the keyword, the word for a batch's process and the config setting."""
    assert parsed(WiderCommand, ["in.mrc", "out.mrc"]).margin == 3
    command = parsed(WiderCommand, ["in.mrc", "out.mrc", "--edge-margin", "5"])
    assert command.margin == 5
    assert WiderCommand.read_keywords({"edge_margin": 5}) == {"margin": 5}
    assert command.settings() == {**PATHS, "margin": 5}
    assert WiderCommand.options()["margin"].word(5) == "--edge-margin=5"
    parser = argparse.ArgumentParser()
    WiderCommand.add_to(parser)
    assert "voxels around the volume" in parser.format_help()
    assert "margin" not in DenoiseCommand.options()


def test_type_checkers_know_the_options_of_python():
    """The TypedDict has the keywords of ``denoise``, former names left out, each with the type of its field."""

    def kind(name: str) -> str:
        one = DenoiseCommand.options()[name]
        if one.choices:
            return f"Literal[{', '.join(map(repr, one.choices))}]"
        plain = DenoiseCommand.__dataclass_fields__[name].type.removesuffix(" | None")
        named = {"Sequence[int]": "int | Sequence[int]"}
        return {"path": "PathLike", "volume": "Volume"}.get(one.file) or named.get(plain, plain)

    # Whether an error map is asked for decides what is returned, so the signature itself has it.
    named = {name: one for name, one in DenoiseCommand.options().items() if not one.is_positional and name != "error"}
    options = {one.keyword: name for name, one in named.items()}
    known = {keyword: hint.__forward_arg__ for keyword, hint in DenoiseOptions.__annotations__.items()}
    assert known == {keyword: kind(name) for keyword, name in options.items()}
    assert list(known) == list(options), "in the order of the fields"


def test_python_and_the_command_line_read_alike():
    """Each option as a keyword is what it is as a word; None is its default, also of ``refine``, which is on."""
    for name, one in DenoiseCommand.options().items():
        if one.is_positional:
            continue
        word = one.flag if one.is_switch else f"{one.flag}={OTHER[name]}"
        value = not one.default if one.is_switch else OTHER[name]
        command = parsed(DenoiseCommand, ["in.mrc", "out.mrc", word])
        assert DenoiseCommand(**PATHS, **DenoiseCommand.read_keywords({one.keyword: value})) == command
        assert getattr(command, name) != one.default
        assert DenoiseCommand.read_keywords({one.keyword: None}) == {name: one.default}
    assert DenoiseCommand.read_keywords({"refine": np.False_, "window": (16, 24, 16), "steps": 4}) == {
        "refine": False, "window": [16, 24, 16], "steps": 4,
    }  # fmt: skip


@pytest.mark.parametrize(("keywords", "words"), [
    ({"steps": 0}, "steps: '0' is not a whole number above 0"),
    ({"minutes": -1}, "minutes: '-1' is not a number above"),
    ({"stride": (1, 2)}, "stride: '1,2' is not one whole number or three"),
    ({"blind": "ball"}, "blind: invalid choice: 'ball' .choose from 'auto', 'voxel', 'plane', 'cross', 'box'."),
    ({"overwrite": "yes"}, "overwrite: invalid choice: 'yes' .choose from 'True', 'False'."),
    ({"warm_start": "a.pt", "cold_start": True}, "--cold-start: not allowed with argument --warm-start"),
    ({"noise_mask": "a.mrc", "empty": "b.mrc"}, "noise_mask: is given twice"),
])  # fmt: skip
def test_keywords_are_checked_as_words_are(keywords, words):
    """With the sentence of the command line."""
    with pytest.raises(UsageError, match=words):
        DenoiseCommand.read_keywords(keywords)


@pytest.mark.parametrize("command", ["denoise", "fit", "noise"])
def test_the_former_name_of_the_noise_mask_is_taken(command, capsys):
    """``--empty`` is ``--noise-mask``; the help knows the new name alone."""
    paths = {"denoise": ["in.mrc", "out.mrc"], "fit": ["in.mrc", "--checkpoint", "c.pt"], "noise": ["in.mrc"]}[command]
    parse = build_parser().parse_args
    for flag in ("--noise-mask", "--empty"):
        assert parse([command, *paths, flag, "mask.mrc"]) == parse([command, *paths, "--noise-mask", "mask.mrc"])
    with pytest.raises(SystemExit):
        parse([command, "--help"])
    said = capsys.readouterr().out
    assert "--noise-mask MASK" in said
    assert "--empty" not in said
    assert DenoiseCommand.read_keywords({"empty": "m.mrc"}) == DenoiseCommand.read_keywords({"noise_mask": "m.mrc"})


@pytest.mark.parametrize(("command", "names"), [
    (DenoiseCommand, ("train.json", "inference.json")), (FitCommand, ("train.json",)),
    (ApplyCommand, ("inference.json",)),
])  # fmt: skip
def test_an_option_is_a_knob_with_the_same_default(command, names):
    """So what is not given is not set. What the effort has, and the starting network, only the config knows."""
    knobs = config(*names)
    for name, one in command.options().items():
        key = one.part_of or name
        if not one.in_config or one.default is dataclasses.MISSING:
            continue
        assert key in knobs, key
        if name not in {"steps", "warm_start", "output_dir", "output"}:
            assert knobs[key] == one.default, key


def test_settings_are_what_differs_from_the_defaults():
    """Nothing without options; with all of them, each is set under its name, paths escaped, halves as a list."""
    assert DenoiseCommand(**PATHS).settings() == PATHS
    command = changed(DenoiseCommand)
    settings = command.settings()
    for name, one in DenoiseCommand.options().items():
        if one.in_config and not one.part_of:
            assert settings.pop(name) == getattr(command, name)
    assert settings == {"halves": ["e.mrc", "o.mrc"]}
    odd = "TS @1#2 $x%.mrc"
    fit = FitCommand(tomograms=[odd, "b.mrc"], checkpoint="c.pt", mask=odd).settings()
    assert fit["tomograms"] == [config_value(odd), "b.mrc"]
    assert fit["mask"].startswith("$'")
    assert eval(fit["mask"][1:]) == odd


def test_the_record_of_a_run_has_every_option_that_changes_its_result():
    """Of fit and output, by the names of the fields."""
    provenance = set(config("train.json", "inference.json", "denoise.yaml")["provenance"])
    fields = {field.name for group in (FitOptions, OutputOptions) for field in dataclasses.fields(group)}
    assert fields - UNRECORDED <= provenance
    assert "halves" in provenance
    assert set(DenoiseCommand.options()) - UNRECORDED <= provenance


def test_a_batch_passes_on_what_was_given():
    """As words that its processes read back to the same values; what is the batch's own is not among them."""
    batch = parsed(BatchCommand, [
        "*.mrc", "out", "--no-refine", "--steps", "4", "--window", "16,24,16", "--dtype", "int8",
        "--warm-start", "a.pt", "--memory", "3", "--overwrite", "--workers", "2", "--quiet",
    ])  # fmt: skip
    words = batch.words()
    assert words == [
        "--no-refine", f"--warm-start={os.path.abspath('a.pt')}", "--steps=4", "--window=16,24,16", "--dtype=int8",
    ]  # fmt: skip
    run = parsed(DenoiseCommand, [*words, "in.mrc", "out.mrc"])
    assert (run.refine, run.steps, run.window, run.output_dtype) == (False, 4, [16, 24, 16], "int8")
    applied = parsed(BatchCommand, ["*.mrc", "out", "--checkpoint", "c.pt", "--inference-window", "24"])
    assert applied.words() == ["--window=24,24,24"]
    with pytest.raises(InputError, match="--no-refine is for a fit, and --checkpoint applies a network without one"):
        dataclasses.replace(applied, refine=False).words()
    assert not {"even", "odd", "empty", "mask", "resume", "residual", "error", "output_dir"} & set(
        BatchCommand.options()
    )


def test_help_needs_no_torch():
    """``cryoshuffle denoise --help`` as a program of its own."""
    code = (
        "import sys\nfrom cryoshuffle.commands.cli import main\n"
        "try:\n    main(['denoise', '--help'])\nexcept SystemExit:\n"
        "    print(sorted({'torch', 'monai', 'numpy'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
