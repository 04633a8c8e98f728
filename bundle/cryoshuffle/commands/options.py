"""The options of the commands, a field each: parsers, keywords, words for other processes and config settings.

A field has the name of the config key that it sets; where the command line has another word, the field names its flag.
Nothing heavy is imported, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import partial
from typing import Any, ClassVar, Literal

from cryoshuffle.errors import InputError, UsageError


def triple(text: str) -> list[int]:
    """``3`` or ``1,3,1`` as a list along (Z, Y, X)."""
    try:
        numbers = [int(part) for part in text.replace("x", ",").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not one whole number or three, like 48 or 1,3,1 (z,y,x)")
    return numbers


def _numbers(accepts: Callable[[float], bool], kind: str) -> Callable[[str], float]:
    """A reader of numbers that refuses others than it accepts."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not accepts(number):
            raise argparse.ArgumentTypeError(f"'{text}' is not {kind}")
        return number

    return read


def _whole_numbers(least: int, kind: str) -> Callable[[str], int]:
    """The same for whole numbers."""

    def read(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"'{text}' is not {kind}")
        return int(text)

    return read


positive = _numbers(lambda number: 0 < number < math.inf, "a number above 0")
share = _numbers(lambda number: 0 <= number <= 1, "a number from 0 to 1")
smoothing = _numbers(lambda number: 0 <= number <= 4, "a number of voxels from 0 to 4")
count = _whole_numbers(1, "a whole number above 0")
whole = _whole_numbers(0, "a whole number of at least 0")


@dataclass(frozen=True)
class Option:
    """How the value of a field is given.

    Attributes:
        help: what ``--help`` says of it.
        default: of the field; ``MISSING`` where it must be given. A truth value makes a flag without a value.
        name: of the field.
        given_flag: where it is not the name with dashes; a flag of what is on by default turns it off.
        former_flag: that it had before; still taken, not in the help.
        parse: makes the value of a word, or raises ``argparse.ArgumentTypeError`` with the sentence to say;
            None where the word is the value.
        choices: the words it may be; empty for any.
        metavar: of its value in the help.
        nargs: of a positional argument, as argparse has it.
        group: title of its group in the help; empty for none.
        one_of: name of a set of options, of which only one may be given.
        file: whether the value is a path, or a volume, for which Python has arrays too.
        in_config: whether it sets a config key.
        part_of: config key of the list that it is an entry of; empty where it sets a key of its own name.
        one_tomogram: whether it makes no sense for several.
    """

    help: str | None
    default: Any
    name: str = ""
    given_flag: str = ""
    former_flag: str = ""
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    nargs: str | None = None
    group: str = ""
    one_of: str = ""
    file: Literal["", "path", "volume"] = ""
    in_config: bool = True
    part_of: str = ""
    one_tomogram: bool = False

    @property
    def is_switch(self) -> bool:
        """Whether its flag has no value."""
        return isinstance(self.default, bool)

    @property
    def is_positional(self) -> bool:
        """Whether it is given by its place."""
        return not self.given_flag and (self.default is MISSING or self.nargs is not None)

    @property
    def flag(self) -> str:
        """The word of the command line that gives it."""
        return self.given_flag or "--" + self.name.replace("_", "-")

    @property
    def usage(self) -> str:
        """How it stands in the first line of the help."""
        value = self.metavar or self.name.upper()
        if not self.is_positional:
            return f"{self.flag} {value}"
        return {"?": f"[{value}]", "+": f"{value}..."}.get(self.nargs or "", value)

    @property
    def keyword(self) -> str:
        """Its name in Python."""
        return self.name if self.default is True else _as_keyword(self.flag)

    def read(self, word: str) -> Any:
        """The value of a word; of words to choose from, upper case is lower case.

        Raises:
            argparse.ArgumentTypeError: if it has none.
        """
        choices = ("True", "False") if self.is_switch else self.choices or (word,)
        word = next((choice for choice in choices if choice.lower() == word.lower()), word)
        if word not in choices:
            raise argparse.ArgumentTypeError(f"invalid choice: {word!r} (choose from {', '.join(map(repr, choices))})")
        if self.is_switch:
            return word == "True"
        return word if self.parse is None else self.parse(word)

    def convert(self, value: Any) -> Any:
        """The value of the field for one given in Python; None is the default.

        Raises:
            UsageError: for the values that the command line refuses, with the same sentence.
        """
        if value is None:
            return self.default
        try:
            return self.read(_as_word(value))
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{self.keyword}: {error}") from error

    def word(self, value: Any) -> str:
        """A value that is not the default, as a word of the command line."""
        return self.flag if self.is_switch else f"{self.flag}={_as_word(value)}"

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add it to a parser, or a group of one."""
        how: dict[str, Any] = {"help": self.help}
        if self.is_switch:
            how["action"] = "store_false" if self.default else "store_true"
        else:
            how |= {"type": self.read, "choices": self.choices or None, "metavar": self.metavar, "nargs": self.nargs}
        if self.is_positional:
            default = {} if self.default is MISSING else {"default": self.default}
            parser.add_argument(self.name, **how, **default)
            return
        how |= {"dest": self.name} | ({"required": True} if self.default is MISSING else {"default": self.default})
        parser.add_argument(self.flag, **how)
        if self.former_flag:
            parser.add_argument(self.former_flag, **{**how, "help": argparse.SUPPRESS, "default": argparse.SUPPRESS})


def _as_keyword(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _as_word(value: Any) -> str:
    plain = isinstance(value, (str, os.PathLike)) or not isinstance(value, Sequence)
    return str(value) if plain else ",".join(str(part) for part in value)


def option(default: Any, help: str | None, **how: Any) -> Any:
    """A field that is an option.

    Args:
        default: its value where it is not given.
        help: what ``--help`` says of it.
        how: see :class:`Option`.
    """
    metadata = {"option": Option(help, default, **how)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def required(help: str, **how: Any) -> Any:
    """A field that must be given: by its place, or by its flag if it names one; see :func:`option`."""
    return dataclasses.field(metadata={"option": Option(help, MISSING, **how)})


def config_value(value: Any) -> Any:
    """A value as MONAI's configs take it: characters that mean something there are escaped in an expression."""
    if isinstance(value, (list, tuple)):
        return [config_value(part) for part in value]
    if not isinstance(value, (str, os.PathLike)):
        return value
    text = str(value)
    if not any(character in text for character in "#@$%"):
        return text
    escaped = "".join(c if c.isalnum() or c in "/._- " else f"\\U{ord(c):08x}" for c in text)
    return f"$'{escaped}'"


# The groups of the help in their order; what has none comes first.
_NOISE, _FIT, _CLUSTER, _MACHINE, _FILES = "noise", "fit", "cluster", "machine", "files"
_BLIND = "for experts, blind spot: what a prediction must not see, to match the noise"
_EXPERT_FIT, _EXPERT = "for experts, fit", "for experts, the rest"
_GROUPS = ("", _NOISE, _FIT, _CLUSTER, _MACHINE, _FILES, _BLIND, _EXPERT_FIT, _EXPERT)


class Command:
    """A command: its fields are its options.

    Attributes:
        summary: of ``cryoshuffle --help``.
        examples: two command lines, the first of its help.
        description: of its own help; None for the summary.
        of_many: whether it is for many tomograms, and so lacks the options that only one can have.
    """

    summary: ClassVar[str]
    examples: ClassVar[tuple[str, str]]
    description: ClassVar[str | None] = None
    of_many: ClassVar[bool] = False

    @classmethod
    def options(cls) -> dict[str, Option]:
        """The options by the names of their fields: first the class's own."""
        named: dict[str, Option] = {}
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]
        for field in sorted(fields, key=lambda field: field.name not in cls.__annotations__):
            one: Option = dataclasses.replace(field.metadata["option"], name=field.name)
            if not (cls.of_many and one.one_tomogram):
                named[field.name] = one
        return named

    @classmethod
    def keywords(cls) -> dict[str, Option]:
        """The options by their names in Python, former ones too."""
        options = [one for one in cls.options().values() if not one.is_positional]
        former = {_as_keyword(one.former_flag): one for one in options if one.former_flag}
        return {one.keyword: one for one in options} | former

    @classmethod
    def groups(cls) -> dict[str, list[Option]]:
        """The options by the titles of their groups, in the order of the help; those without a group first."""
        options = cls.options().values()
        groups = {title: [one for one in options if one.group == title] for title in _GROUPS}
        return {title: members for title, members in groups.items() if members}

    @classmethod
    def usage(cls) -> str:
        """What must be given, and what may be by its place."""
        needed = [one.usage for one in cls.options().values() if one.is_positional or one.default is MISSING]
        return " ".join([*needed, "[options]"])

    @classmethod
    def add_to(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser, in their groups."""
        places: dict[str, argparse._ActionsContainer] = {}
        for title, members in cls.groups().items():
            group = parser.add_argument_group(title) if title else parser
            for one in members:
                if one.one_of and one.one_of not in places:
                    places[one.one_of] = group.add_mutually_exclusive_group()
                one.add_to(places[one.one_of] if one.one_of else group)

    @classmethod
    def read_keywords(cls, keywords: Mapping[str, Any]) -> dict[str, Any]:
        """The values of fields for keywords of Python.

        Args:
            keywords: values by names that :meth:`keywords` has.

        Raises:
            UsageError: for a value that the command line refuses, two names of one option, or two of which only one
                may be given.
        """
        values: dict[str, Any] = {}
        given: dict[str, Option] = {}
        known = cls.keywords()
        for keyword, value in keywords.items():
            one = known[keyword]
            if one.name in values:
                raise UsageError(f"{one.keyword}: is given twice, by its former name too: leave one out")
            values[one.name] = one.convert(value)
            if one.one_of and values[one.name] != one.default:
                other = given.setdefault(one.one_of, one)
                if other is not one:
                    raise UsageError(f"{one.flag}: not allowed with argument {other.flag}")
        return values

    def settings(self) -> dict[str, Any]:
        """The config settings of the options that are not at their defaults, which are those of the configs."""
        settings: dict[str, Any] = {}
        for name, one in self.options().items():
            value = getattr(self, name)
            if not one.in_config or value == one.default:
                continue
            if one.part_of:
                settings.setdefault(one.part_of, []).append(config_value(value))
            else:
                settings[name] = config_value(value)
        return settings


_PERMISSIVE = "take MRC files whose header breaks the standard"
_MIRRORS = "average over eight mirror images, a little better for eight times the work (default: {})"
_FILL_NAN = "put the mean of the others where voxels are NaN or Inf, and say where"
# What a batch is told itself, and not each of its runs.
_OF_BATCH = {"overwrite", "memory_gib", "quiet", "json_lines"}
_TILT_AXES = ("z", "y", "x")
_in_noise = partial(option, group=_NOISE)
_in_blind = partial(option, group=_BLIND)
_in_fit = partial(option, group=_FIT)
_in_expert_fit = partial(option, group=_EXPERT_FIT)
_in_cluster = partial(option, group=_CLUSTER, in_config=False)
_in_machine = partial(option, group=_MACHINE)
_in_files = partial(option, group=_FILES)
_in_expert = partial(option, group=_EXPERT)
_inference_window = partial(_in_expert, None, parse=triple, metavar="Z,Y,X", help=
    "part of the volume denoised at a time, voxels; smaller needs less memory, the result is the same (default: what "
    "goes into a quarter of the memory)")  # fmt: skip

_output = partial(option, "", nargs="?", metavar="OUT", help=
    "the denoised tomogram, or a folder for it (default: IN_denoised beside the input)")  # fmt: skip


# A table: the value of a field in its first line, what the help says of it in the next. The order is that of the help.
# fmt: off
@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a network is fitted."""

    blind: str = _in_blind("auto", choices=("auto", "voxel", "plane", "cross", "box"), help=
        "auto measures the noise and chooses: voxel for white noise, plane for reconstructions (default: auto)")
    tilt_axis: str | None = _in_noise(None, choices=_TILT_AXES, help=
        "the tilt axis, which the blind plane lies across (default: found from the noise)")
    radius: int | None = _in_blind(None, parse=whole, help=
        "half-width of the blind spot, voxels (default: fits the noise)")
    stride: Sequence[int] | None = _in_blind(None, parse=triple, metavar="Z,Y,X", help=
        "lattice stride, voxels (default: fits the blind spot; plane 3)")
    even: str | None = _in_noise(None, file="volume", part_of="halves", one_tomogram=True, help=
        "one half of IN; with --odd the noise is measured in their difference")
    odd: str | None = _in_noise(None, file="volume", part_of="halves", one_tomogram=True, help="the other half")
    empty: str | None = _in_noise(
        None, given_flag="--noise-mask", former_flag="--empty", metavar="MASK", file="volume", one_tomogram=True, help=
        "MRC or NIfTI, not 0 where there is no specimen; the noise is measured there")
    mask: str | None = _in_fit(None, file="volume", one_tomogram=True, help=
        "MRC, NIfTI or Zarr, not 0 where the specimen is, a lamella say; the fit looks there, all is denoised")
    preset: str = _in_expert_fit("unbiased", choices=("unbiased", "paper"), help=
        "weights of the loss terms; paper adds a biased guide (default: unbiased)")
    refine: bool = _in_expert_fit(True, given_flag="--no-refine", in_config=False, help=
        "stop after the blind network, as the paper does; by default a second network, which hides nothing, learns "
        "with the noise that the blind one has measured")
    warm_start: str | None = _in_expert_fit(None, file="path", metavar="C", one_of="start", help=
        "model.pt of an earlier fit, with which the second network begins, not blind.pt (default: the starting network "
        "of the package, trained on simulated tomograms)")
    cold_start: bool = _in_expert_fit(False, in_config=False, one_of="start", help=
        "the second network begins with random weights")
    effort: str = _in_fit("standard", choices=("fast", "standard", "best"), help=
        "fast: no fit, the noise is measured and the starting network applied; standard: a fit of 300 steps; best: one "
        "of 600, and eight mirror images are averaged; standard and best take five times the steps on NVIDIA GPUs "
        "(default: standard)")
    steps: int | None = _in_expert_fit(None, parse=count, help=
        "optimiser steps (default: as many as the effort has); --effort fast takes an eighth of them, to measure the "
        "noise")
    minutes: float | None = _in_fit(None, parse=positive, help=
        "end the fit after so many minutes if its steps are not done; each stage takes about 25 steps even so, and the "
        "denoising comes on top")
    window: Sequence[int] = _in_expert_fit([48, 48, 48], parse=triple, metavar="Z,Y,X", help=
        "window of a step, voxels (default: 48)")
    seed: int = _in_expert_fit(0, parse=whole, help="the same seed gives the same result (default: 0)")
    resume: bool = _in_fit(False, one_tomogram=True, help=
        "go on with a run that was interrupted, with the same options; --minutes may be others")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How a tomogram is denoised by a network, and written."""

    inference_window: Sequence[int] | None = _inference_window()
    force: bool = option(False, "replace a file at OUT whatever it is, unless the run reads it")
    output_dtype: str = option(
        "float32", given_flag="--dtype", choices=("float32", "float16", "int8", "int16", "uint16"), help=
        "of the result (default: float32, MRC mode 2)")
    ome_zarr: str = option("0.4", choices=("0.4", "0.5"), help=
        "version of a result whose name ends in .zarr; 0.5 is Zarr 3, which older readers do not know (default: 0.4)")
    residual: str | None = option(None, file="path", metavar="FILE", one_tomogram=True, help=
        "also write what was taken away, IN minus OUT, float32")
    error: str | None = option(None, file="path", metavar="FILE", one_tomogram=True, help=
        "also write the standard error of each voxel of OUT, float32; the denoising then takes five times as "
        "long")
    detail: float = option(0.0, parse=share, metavar="0..1", help=
        "share of the noisy tomogram mixed back into the result, noise and all (default: 0)")
    smooth: float = option(0.0, parse=smoothing, metavar="0..4", help=
        "width of a Gaussian over the result, voxels, for looking at it: where fine lines or grain disturb, try 0.8 "
        "(default: 0)")
    mirrors: bool = _in_expert(False, _MIRRORS.format("with --effort best"))


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What the report of a fit is to hold."""

    survival: bool = _in_files(True, given_flag="--no-survival", help=
        "leave out the table of what would be left of small objects, which takes 20 s on two cores")


@dataclass(frozen=True, kw_only=True)
class ApplyOutputOptions(OutputOptions):
    """The same where there is no fit: no effort chooses mirrors, and no other window has the plain name."""

    inference_window: Sequence[int] | None = _inference_window(given_flag="--window")
    mirrors: bool = _in_expert(False, _MIRRORS.format("off"))
    resume: bool = option(False, "go on with the last finished window of a run that was interrupted")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """What a run may take of the machine, and how much it says."""

    device_name: str = _in_machine("auto", given_flag="--device", metavar="DEVICE", help=
        "auto, cpu, gpu, or one of several, cuda:1 (default: the best there is)")
    precision: str = _in_expert("auto", choices=("auto", "fp32", "tf32", "bf16"), help=
        "bf16 halves memory and is faster where the hardware has it; auto takes it on GPUs alone; tf32 rounds products "
        "on NVIDIA GPUs (default: auto)")
    memory_gib: float | None = _in_machine(None, given_flag="--memory", parse=positive, metavar="GIB", help=
        "the most memory the program may take, that of a GPU apart, GiB; volumes too large for it are kept in files in "
        "the folder of the run (default: a quarter of what there is, at least 2; for all runs of a batch here half)")
    quiet: bool = _in_machine(False, "no lines at the beginning and no progress bar")
    json_lines: bool = _in_expert(False,
        "for programs: no bar, a line of JSON for each epoch of the fit, in a batch for each tomogram, and one at "
        "the end that names the files")


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """How files are treated."""

    overwrite: bool = _in_files(False, "replace results of cryoshuffle, an unfinished fit included")
    permissive: bool = _in_expert(False, _PERMISSIVE)
    fill_nan: bool = _in_files(False, _FILL_NAN)
    output_dir: str | None = _in_files(
        None, given_flag="--report", metavar="DIR", file="path", one_tomogram=True, help=
        "folder for report, log and checkpoints (default: beside the result, <result>_run)")


@dataclass(frozen=True, kw_only=True)
class RunCommand(Command, FileOptions, MachineOptions):
    """A run of the bundle."""


@dataclass(frozen=True, kw_only=True)
class DenoiseCommand(RunCommand, ReportOptions, OutputOptions, FitOptions):
    """``cryoshuffle denoise``."""

    summary = "fit to this tomogram, then denoise it: the daily command"
    examples = (
        "cryoshuffle denoise in.mrc out.mrc",
        "cryoshuffle denoise in.mrc --tilt-axis y --effort fast")
    tomogram: str = required("tomogram: .mrc .rec .map .st, also .gz .bz2, .zarr, or .nii .nii.gz", metavar="IN")
    output: str = _output()


@dataclass(frozen=True, kw_only=True)
class FitCommand(RunCommand, FitOptions):
    """``cryoshuffle fit``."""

    summary = "fit a network to one tomogram or several"
    examples = (
        "cryoshuffle fit one.mrc two.mrc --checkpoint session.pt",
        "cryoshuffle fit one.mrc --checkpoint one.pt --minutes 5")
    tomograms: Sequence[str] = required("tomograms", metavar="IN", nargs="+")
    checkpoint: str = required("where the network goes", given_flag="--checkpoint", metavar="C")


@dataclass(frozen=True, kw_only=True)
class ApplyCommand(RunCommand, ApplyOutputOptions):
    """``cryoshuffle apply``."""

    summary = "denoise a tomogram with a network that was fitted before"
    examples = (
        "cryoshuffle apply session.pt in.mrc out.mrc",
        "cryoshuffle apply out_run/model.pt in.mrc more.mrc --detail 0.1")
    checkpoint: str = required("the network", metavar="C")
    tomogram: str = required("tomogram", metavar="IN")
    output: str = _output()


@dataclass(frozen=True, kw_only=True)
class BatchCommand(RunCommand, ReportOptions, OutputOptions, FitOptions):
    """``cryoshuffle batch``."""

    summary = "denoise many tomograms, side by side"
    examples = (
        "cryoshuffle batch session out",
        "cryoshuffle batch 'tomo/*.mrc' out --checkpoint session.pt")
    description = (
        "Denoise many tomograms, each from itself alone, or with --checkpoint all with one network. What is finished "
        "is skipped, what was interrupted goes on, a failure is tried once more and told at the end.")
    of_many = True
    inputs: Sequence[str] = required(metavar="LIST", nargs="+", help=
        "tomograms, patterns, folders, text files with a tomogram a line, or a tomograms.star of RELION 5")
    folder: str = required("folder for the results, their reports and index.html", metavar="OUTDIR")
    checkpoint: str | None = option(None, "apply this network to all instead of fitting one to each", metavar="C")
    workers: int | None = _in_cluster(None, parse=count, help=
        "runs at once here (default: one a GPU, else one for four cores)")
    cores: int | None = _in_cluster(None, parse=count, metavar="N", help=
        "cores of this machine for all runs together (default: all)")
    scheduler: str | None = _in_cluster(None, metavar="ADDRESS", one_of="place", help=
        "of a Dask scheduler that runs already, tcp://...")
    slurm: str | None = _in_cluster(None, metavar="YAML", one_of="place", help=
        "jobs, and what dask_jobqueue.SLURMCluster takes, in a file")
    dry_run: bool = _in_cluster(False, "print what would be done, and the job script for Slurm")

    def words(self) -> list[str]:
        """The options that were given for all runs, as words of their command line.

        Raises:
            InputError: for an option of fits where a checkpoint is applied.
        """
        return _run_words(self, self.checkpoint)


@dataclass(frozen=True, kw_only=True)
class RelionJobCommand(BatchCommand):
    """``cryoshuffle relion-job``."""

    summary = "the batch as an External job of RELION"
    description = (
        "What an External job of RELION 5 calls: cryoshuffle batch, and then the files that RELION waits for.")
    examples = (
        "cryoshuffle relion-job --in_mics Tomograms/job010/tomograms.star --o External/job011/ --j 8",
        "cryoshuffle relion-job tomograms.star --o External/job011/ --effort fast")
    inputs: Sequence[str] = option([], metavar="LIST", nargs="*", help="as for cryoshuffle batch")
    in_mics: str | None = option(None, given_flag="--in_mics", metavar="LIST", help=
        "one more list, a tomograms.star that was given to the job as its input micrographs")
    folder: str = required("folder of the job", given_flag="--o", metavar="DIR")
    cores: int | None = _in_cluster(None, given_flag="--j", parse=count, help=
        "cores of this machine for all runs together (default: all)")


@dataclass(frozen=True, kw_only=True)
class RelionShimCommand(RunCommand, ReportOptions, OutputOptions, FitOptions):
    """``cryoshuffle relion-shim``."""

    summary = "executables for the Denoise job of RELION 5"
    description = (
        "Write executables with the names of cryoCARE's. A Denoise job of RELION 5 that is given their folder denoises "
        "each tomogram from itself, with the options that are given here.")
    examples = (
        "cryoshuffle relion-shim cryocare_bin",
        "cryoshuffle relion-shim cryocare_bin --effort fast --tilt-axis y")
    of_many = True
    folder: str = required("folder for the executables", metavar="DIR")
    overwrite: bool = _in_files(False, "not here: RELION decides what a job replaces")

    def words(self) -> list[str]:
        """The options that were given for all runs, as words of their command line.

        Raises:
            InputError: for ``--overwrite``, which RELION decides.
        """
        if self.overwrite:
            raise InputError("--overwrite is what RELION says to each run of the job: leave it out here")
        memory = [] if self.memory_gib is None else [f"--memory={self.memory_gib:g}"]
        return [*_run_words(self, None), *memory]


def _run_words(command: Command, checkpoint: str | None) -> list[str]:
    """The options of a command for many tomograms, as words of the command line of each."""
    of_fits = DenoiseCommand.options()
    accepted = of_fits if checkpoint is None else ApplyCommand.options()
    words = []
    for name, one in command.options().items():
        value = getattr(command, name)
        if name in _OF_BATCH or name not in of_fits or value == one.default:
            continue
        if name not in accepted:
            raise InputError(f"{one.flag} is for a fit, and --checkpoint applies a network without one: leave one out")
        words.append(accepted[name].word(os.path.abspath(value) if one.file else value))
    return words


@dataclass(frozen=True, kw_only=True)
class NoiseCommand(Command):
    """``cryoshuffle noise``."""

    summary = "measure the noise of a tomogram and say which blind spot fits it"
    examples = ("cryoshuffle noise in.mrc", "cryoshuffle noise --even even.mrc --odd odd.mrc --report noise")
    tomogram: str | None = option(None, "tomogram; not needed with --even and --odd", metavar="IN", nargs="?")
    even: str | None = option(None, "one half; with --odd the difference is the noise")
    odd: str | None = option(None, "the other half")
    noise_mask: str | None = option(None, former_flag="--empty", metavar="MASK", help=
        "MRC or NIfTI, not 0 where there is no specimen; measured there")
    tilt_axis: str | None = option(None, "if known (default: found from the noise)", choices=_TILT_AXES)
    overwrite: bool = option(False, "replace noise.json and noise.png")
    permissive: bool = option(False, _PERMISSIVE)
    fill_nan: bool = option(False, _FILL_NAN)
    report: str | None = option(None, "folder for noise.json and noise.png (default: none is written)", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class SimulateCommand(Command):
    """``cryoshuffle simulate``."""

    summary = "make a tomogram whose truth is known"
    examples = (
        "cryoshuffle simulate phantom",
        "cryoshuffle simulate cell --case insitu --snr 0.05")
    output: str = required("folder for tomogram, halves, truth, phantom, particles and membrane", metavar="OUT")
    case: str = option("wbp", choices=("white", "wbp", "aligned", "sirt", "binned", "insitu"), help=
        "white: white noise; wbp: weighted back-projection; aligned: that of resampled tilt images; sirt: with a "
        "SIRT-like filter; binned: of voxels 1.5 times as large; insitu: the edge of a cell (default: wbp)")
    shape: Sequence[int] = option([80, 144, 144], "voxels (default: 80,144,144)", parse=triple, metavar="Z,Y,X")
    snr: float = option(0.1, "power of signal over noise (default: 0.1)", parse=positive)
    mtf: float = option(1.0, "what the detector leaves of the signal at Nyquist (default: 1, all)", parse=share)
    voxel_size: float = option(10.0, "of the phantom (default: 10)", parse=positive, metavar="Å")
    seed: int = option(0, "the same seed gives the same bits (default: 0)", parse=whole)
    overwrite: bool = option(False, "replace a simulation of cryoshuffle")
    force: bool = option(False, "replace files in the folder whatever they are, raw tomograms too")
    templates: str | None = option(None, metavar="DIR", help=
        "MRC densities of that voxel size (default: those of the package)")


@dataclass(frozen=True, kw_only=True)
class EvaluateCommand(Command):
    """``cryoshuffle evaluate``."""

    summary = "score a denoised tomogram, with or without a truth"
    examples = (
        "cryoshuffle evaluate out.mrc --noisy in.mrc",
        "cryoshuffle evaluate out.mrc --truth truth.mrc --report scores")
    result: str = required("the denoised tomogram", metavar="RESULT")
    truth: str | None = option(None, "what it should be; gives correlation, PSNR, SSIM and FSC")
    noisy: str | None = option(None, "what it was denoised from; gives what is left in the residual")
    other_half: str | None = option(None, "the other half, raw, where RESULT was denoised from one half alone")
    survival: str | None = option(None, metavar="MODEL", help=
        "network that made RESULT, or the folder of its run: adds objects of known shape to the tomogram of --noisy "
        "and says how much of each comes back")
    window: Sequence[int] | None = option(None, "windows to look for seams of, voxels", parse=triple, metavar="Z,Y,X")
    stride: Sequence[int] | None = option(None, parse=triple, metavar="Z,Y,X", help=
        "lattice stride to look for stripes of, voxels")
    overwrite: bool = option(False, "replace evaluation.json and fsc.png")
    permissive: bool = option(False, _PERMISSIVE)
    report: str | None = option(None, metavar="DIR", help=
        "folder for evaluation.json and fsc.png (default: none is written)")


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Command):
    """``cryoshuffle report``."""

    summary = "write the report page of a finished run anew"
    examples = (
        "cryoshuffle report out_run",
        "cryoshuffle report old_run --permissive")
    folder: str = required("folder of the run, <result>_run", metavar="RUN")
    permissive: bool = option(False, _PERMISSIVE)


@dataclass(frozen=True, kw_only=True)
class CheckCommand(Command):
    """``cryoshuffle check``."""

    summary = "prove that a network is blind to what it must not see"
    examples = (
        "cryoshuffle check out_run/blind.pt",
        "cryoshuffle check configs/train.json")
    network: str = required("a checkpoint, or a bundle config (which is code)", metavar="CHECKPOINT_OR_CONFIG")
