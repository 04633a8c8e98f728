"""The command ``cryoshuffle``: starts the MONAI workflows of the bundle, holds no science.

Heavy imports wait until there is something to do, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import logging
import re
import shlex
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import cryoshuffle
from cryoshuffle.commands.options import (
    ApplyCommand,
    BatchCommand,
    CheckCommand,
    Command,
    DenoiseCommand,
    EvaluateCommand,
    FitCommand,
    NoiseCommand,
    RelionJobCommand,
    RelionShimCommand,
    ReportCommand,
    SimulateCommand,
)
from cryoshuffle.errors import (
    FileError,
    FitInterruptedError,
    InputError,
    UsageError,
    UserError,
    behind,
    stop_behind,
    user_error,
)
from cryoshuffle.signals import listening, readers_may_go

if TYPE_CHECKING:
    from cryoshuffle.commands.batch import Outcome
    from cryoshuffle.commands.lists import Item
    from cryoshuffle.noise.estimate import NoiseEstimate


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one sentence, without the usage before it; its help begins with examples.

    Args:
        examples: command lines.
        options: of :class:`argparse.ArgumentParser`.
    """

    def __init__(self, *, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(**options)
        self.examples = examples

    def format_help(self) -> str:
        """The examples, then what argparse says."""
        lines = "".join(f"  {example}\n" for example in self.examples)
        return f"examples:\n{lines}\n{super().format_help()}"

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but a command takes what follows its options, and refuses what it does not know.

        Before Python 3.13 argparse takes a last word that may be left out for left out where an option stands before
        it.
        """
        words = sys.argv[1:] if args is None else [*args]
        if self._subparsers is not None:
            return super().parse_known_args(words, namespace)
        for word in words[: words.index("--") if "--" in words else None]:
            if word.startswith("--") and not any(flag.startswith(word.partition("=")[0]) for flag in self._flags):
                self._refuse_option(word.partition("=")[0])
        namespace, rest = super().parse_known_args(words, namespace)
        rest = rest[1:] if rest[:1] == ["--"] else rest
        for action in self._actions:
            free = action.nargs == "?" and getattr(namespace, action.dest) == action.default
            if free and rest and not rest[0].startswith("-"):
                setattr(namespace, action.dest, rest.pop(0))
        if rest and rest[0].startswith("-"):
            self._refuse_option(rest[0])
        if rest:
            many = any(action.nargs in ("+", "*") for action in self._actions)
            way = "put all names side by side" if many else "several tomograms go with cryoshuffle batch"
            self.error(f"{rest[0]} is a word too many; {way}")
        return namespace, []

    @property
    def _flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings]

    def _refuse_option(self, flag: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings if action.help != argparse.SUPPRESS]
        nearest = difflib.get_close_matches(flag, known, n=1)
        self.error(f"there is no option {flag}{f', did you mean {nearest[0]}' if nearest else ''}")

    def error(self, message: str) -> NoReturn:
        wrong = re.match("argument COMMAND: invalid choice: '(.*?)'", message)
        if wrong is not None:
            nearest = difflib.get_close_matches(wrong[1], list(_COMMANDS), n=1)
            # A file in the place of the command.
            nearest += ["denoise"] if re.search(r"[./]", wrong[1]) else []
            message = f"there is no command {wrong[1]}{f', did you mean cryoshuffle {nearest[0]}' if nearest else ''}"
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The command line, without anything heavy imported."""
    parser = _Parser(
        prog="cryoshuffle",
        usage="cryoshuffle COMMAND ...",
        description="Denoise one cryo-electron tomogram from that tomogram alone.",
        epilog="cryoshuffle COMMAND --help says what a command takes. Exit codes: 0 done, 2 a mistake that one "
        "sentence explains, 3 stopped by a signal, 1 anything else.",
        examples=(DenoiseCommand.examples[0], BatchCommand.examples[0]),
    )
    parser.add_argument("-V", "--version", action="version", version=f"cryoshuffle {cryoshuffle.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (command, _) in _COMMANDS.items():
        own: Any = {
            "prog": f"cryoshuffle {name}",
            "usage": f"cryoshuffle {name} {command.usage()}",
            "description": command.description or f"{command.summary[0].upper()}{command.summary[1:]}.",
            "examples": command.examples,
        }
        command.add_to(commands.add_parser(name, help=command.summary, **own))
    return parser


def _denoise(options: DenoiseCommand) -> int:
    from cryoshuffle.commands.runs import run_denoise, told_if_written, with_output

    options = with_output(options)
    with told_if_written(options):
        _say_result(options, run_denoise(options))
    return 0


def _fit(options: FitCommand) -> int:
    from cryoshuffle.commands.runs import run_fit

    folder = run_fit(options)
    _say(options.json_lines, checkpoint=options.checkpoint, picture=folder / "preview.png", log=folder / "run.log")
    if not options.json_lines:
        _say_time(folder)
    return 0


def _apply(options: ApplyCommand) -> int:
    from cryoshuffle.commands.runs import run_apply, told_if_written, with_output

    options = with_output(options)
    with told_if_written(options):
        _say_result(options, run_apply(options))
    return 0


def _batch(options: BatchCommand) -> int:
    from cryoshuffle.commands.batch import Cluster, check_index, command_of, is_done, run_batch
    from cryoshuffle.commands.lists import read_list, star_targets
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.report.page import read_verdict

    folder = Path(options.folder)
    items = read_list(options.inputs, folder)
    runs = {item.name: item.folder for item in items}
    words = options.words()
    commands = [command_of(item, words, options.checkpoint) for item in items]
    if options.dry_run:
        _say_plan(options, items, commands)
        return 0
    check_run_dir(folder)
    check_index(folder, items)
    stars = star_targets(options.inputs, folder)
    folder.mkdir(exist_ok=True)
    skipped = 0 if options.overwrite else sum(is_done(*pair) for pair in zip(items, commands, strict=True))

    def tell(outcome: Outcome, count: int, seconds: float) -> None:
        if options.json_lines:
            print(json.dumps(vars(outcome)), flush=True)
        elif not options.quiet:
            took = f" in {outcome.seconds:.0f} s" if outcome.status == "done" else ""
            word = read_verdict(runs[outcome.name]).partition(".")[0] if outcome.status == "done" else ""
            took += f", verdict {word}" if word else ""
            why = f": {outcome.words}" if outcome.words else ""
            pace = seconds / max(1, count - skipped)
            rest = f", about {pace * (len(items) - count) / 60:.0f} min left" if seconds and count < len(items) else ""
            print(f"[{count}/{len(items)}] {outcome.name}: {outcome.status}{took}{why}{rest}", flush=True)

    cluster = Cluster(options.scheduler, options.slurm, options.workers, options.cores)
    outcomes = run_batch(items, commands, cluster, options.overwrite, options.memory_gib, tell)
    _say(options.json_lines, **_write_results(folder, items, outcomes, stars))
    bad = [outcome for outcome in outcomes if not outcome.is_done]
    for outcome in bad:
        _complain(f"cryoshuffle: {outcome.name} {outcome.status}: {outcome.words}")
    return 2 if bad else 0


def _say_plan(options: BatchCommand, items: Sequence[Item], commands: Sequence[Sequence[str]]) -> None:
    from cryoshuffle.commands.batch import is_done, job_script

    for item, command in zip(items, commands, strict=True):
        done = not options.overwrite and is_done(item, command)
        print("done already:" if done else "to do:       ", shlex.join(["cryoshuffle", *command]))
    if options.slurm is not None:
        print(job_script(options.slurm))


def _write_results(
    folder: Path, items: Sequence[Item], outcomes: Sequence[Outcome], stars: Mapping[str, Path]
) -> dict[str, Path]:
    """Write what a batch leaves besides the tomograms.

    Args:
        folder: of the results.
        items: of the batch.
        outcomes: one for each.
        stars: of :func:`cryoshuffle.commands.lists.star_targets`.

    Returns:
        the paths by what they are.
    """
    from cryoshuffle.commands.lists import write_star
    from cryoshuffle.files.writing import write_json
    from cryoshuffle.report.page import write_index

    write_json([vars(outcome) for outcome in outcomes], folder / "batch.json")
    results = {item.name: item.output for item, outcome in zip(items, outcomes, strict=True) if outcome.is_done}
    # What comes next in a workflow needs these first.
    paths = {}
    for source, target in stars.items():
        paths["star"] = target
        write_star(source, target, results)
    rows = [{**vars(outcome), "run": item.folder.name} for outcome, item in zip(outcomes, items, strict=True)]
    return {"index": write_index(folder, rows, f"{folder.resolve().name}: {len(items)} tomograms"), **paths}


def _noise(options: NoiseCommand) -> int:
    from cryoshuffle.files.writing import write_json
    from cryoshuffle.noise.choice import BlindPlan, choose_blind
    from cryoshuffle.report.pictures import save_noise_plot

    paths = _new_files(options.report, options.overwrite, "autocorrelation", table="noise.json", picture="noise.png")
    estimate = _measure_noise(options)
    measured = options.tomogram or f"{options.even} and {options.odd}"
    print(f"noise autocorrelation of {measured}, from {estimate.source}, lags in voxels")
    print(estimate.table())
    plan = BlindPlan(choose_blind(estimate, options.tilt_axis), estimate)
    blind = plan.blind_set
    if plan.whitening is not None:
        where = "" if options.noise_mask is None else f" --noise-mask {options.noise_mask}"
        chosen = f"auto --tilt-axis {blind.axis}{where} (a plane, whitened along {blind.axis})"
    else:
        chosen = "voxel" if blind.shape == "voxel" else f"plane --tilt-axis {blind.axis} --radius {blind.half_width}"
    print(f"choice:     --blind {chosen}")
    print(f"reason:     {plan.choice.reason}")
    if plan.contradiction:
        print(f"but:        {plan.contradiction}, so make sure of it")
    if paths:
        paths["table"].parent.mkdir(exist_ok=True)
        save_noise_plot(estimate.autocorrelation, paths["picture"])
        write_json(plan.report(), paths["table"])
    _say(**paths)
    return 0


def _measure_noise(options: NoiseCommand) -> NoiseEstimate:
    """The noise of a tomogram, of its empty region, or of its halves.

    Raises:
        InputError: if neither one tomogram nor two halves are named, or a mask with halves.
    """
    from cryoshuffle.files.masks import load_mask
    from cryoshuffle.noise.estimate import LARGEST, noise_from_empty, noise_from_halves, noise_from_volume
    from cryoshuffle.noise.volumes import load_halves, load_volume

    halves = [half for half in (options.even, options.odd) if half is not None]
    if len(halves) != (2 if options.tomogram is None else 0):
        raise InputError("name either one tomogram, or its halves with --even and --odd")
    if options.noise_mask is not None and options.tomogram is None:
        raise InputError("--noise-mask goes with one tomogram: halves need no empty region")
    if options.tomogram is None:
        return noise_from_halves(*load_halves(halves, options.permissive, fill_nan=options.fill_nan))
    if options.noise_mask is None:
        return noise_from_volume(load_volume(options.tomogram, options.permissive, LARGEST, fill_nan=options.fill_nan))
    # Volumes too large for memory lie there while they are read.
    report = None if options.report is None else Path(options.report)
    place = report.parent if report is not None and not report.is_dir() else report
    with tempfile.TemporaryDirectory(dir=place) as folder:
        volume = load_volume(options.tomogram, options.permissive, folder=folder, fill_nan=options.fill_nan)
        return noise_from_empty(volume, load_mask(options.noise_mask, folder, options.tomogram))


def _new_files(report: str | None, overwrite: bool, mark: str, **names: str) -> dict[str, Path]:
    """The files that a command leaves in the folder of its report; none where no folder is asked for.

    Args:
        report: the folder.
        overwrite: whether to replace what the same command wrote before.
        mark: a key of the table of numbers, which is the first file; without it the files are not ours.
        names: of the files by what they are.

    Raises:
        FileError: if one is there and not to be replaced, or cannot be written.
    """
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.files.writing import check_new_file

    if report is None:
        return {}
    folder = Path(report)
    check_run_dir(folder)
    existing = [name for name in names.values() if (folder / name).exists()]
    if existing and not _holds(folder / next(iter(names.values())), mark):
        raise FileError(
            f"{folder / existing[0]}: was not written by this command, so it is not replaced: choose another folder "
            "with --report"
        )
    for name in existing:
        check_new_file(folder / name, overwrite)
    return {what: folder / name for what, name in names.items()}


def _holds(path: Path, key: str) -> bool:
    """Whether a file is a table in JSON with this key."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and key in content


def _simulate(options: SimulateCommand) -> int:
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.simulation.phantoms import load_templates
    from cryoshuffle.simulation.tilt_series import check_simulation, save_simulation, simulate

    check_run_dir(Path(options.output), "choose another")
    check_simulation(options.output, options.case, options.overwrite, options.force)
    templates = None if options.templates is None else load_templates(options.templates)
    simulation = simulate(
        options.case, options.shape, options.snr, options.seed, templates, options.voxel_size,
        mtf_at_nyquist=options.mtf,
    )  # fmt: skip
    for path in save_simulation(simulation, options.output, options.overwrite, options.force):
        print(f"{path.stem + ':':12}{path}")
    return 0


def _evaluate(options: EvaluateCommand) -> int:
    from cryoshuffle.files.writing import write_json
    from cryoshuffle.report.pictures import save_fsc_plot
    from cryoshuffle.scores.evaluation import evaluate_files, fsc_curves, table

    if options.survival is not None and options.noisy is None:
        raise InputError("--survival adds objects to the tomogram that was denoised: name it with --noisy")
    paths = _new_files(options.report, options.overwrite, "sha256", scores="evaluation.json", picture="fsc.png")
    report = evaluate_files(
        options.result,
        truth=options.truth,
        noisy=options.noisy,
        other_half=options.other_half,
        window=options.window,
        stride=options.stride,
        permissive=options.permissive,
    )
    print(table(report))
    if options.survival is not None:
        from cryoshuffle.report.survival import survival_of_files, survival_table

        survival = survival_of_files(str(options.survival), str(options.noisy), options.permissive)
        print(f"\n{survival_table(survival)}")
        report["survival"] = survival
    curves = fsc_curves(report)
    if not curves:
        paths.pop("picture", None)
    if paths:
        paths["scores"].parent.mkdir(exist_ok=True)
        write_json(report, paths["scores"])
    if "picture" in paths:
        thresholds = sorted({report[name]["threshold"] for name in ("truth", "other_half") if name in report})
        save_fsc_plot(curves, paths["picture"], report["voxel_size_angstrom"], thresholds)
    _say(**paths)
    return 0


def _page(options: ReportCommand) -> int:
    from cryoshuffle.report.page import read_verdict, write_page

    _refuse_fit(Path(options.folder))
    _say(report=write_page(options.folder, options.permissive))
    _say_time(options.folder)
    print(f"{'verdict:':12}{read_verdict(options.folder)}")
    return 0


def _refuse_fit(folder: Path) -> None:
    """Refuse a folder whose fit is not finished, or has no result yet."""
    from cryoshuffle.inference.checkpoints import load_plain
    from cryoshuffle.report.provenance import PROVENANCE_NAME

    states = sorted(folder.glob("state*.pt"))
    try:
        is_finished = all(load_plain(path).get("finished") for path in states)
    except UserError:
        is_finished = False
    if not is_finished:
        raise InputError(
            f"{folder}: holds an unfinished fit, so its files are of two runs: finish it with --resume, then write its "
            "report"
        )
    if states and not (folder / PROVENANCE_NAME).is_file():
        raise InputError(
            f"{folder}: holds a fit and no result, so there is nothing to report on: denoise with its network by "
            "cryoshuffle apply, or finish a denoise with --resume"
        )


def _relion_shim(options: RelionShimCommand) -> int:
    from cryoshuffle.commands.relion import write_shim

    _say(options.json_lines, **write_shim(options.folder, options.words()))
    return 0


def _relion_job(options: RelionJobCommand) -> int:
    from cryoshuffle.commands.relion import run_external

    inputs = [*options.inputs, *([] if options.in_mics is None else [options.in_mics])]
    stars = [Path(one).name for one in inputs if one.lower().endswith(".star")]
    return run_external(Path(options.folder), lambda: _batch(dataclasses.replace(options, inputs=inputs)), stars)


def _check(options: CheckCommand) -> int:
    from cryoshuffle.invariance import measure_leak

    network = _network_of(options.network)
    if network.lattice.blind_set.hides_nothing:
        print("the network hides nothing, as all do but that of the first stage: of a run check blind.pt")
        return 1
    blind = True
    for training in (True, False):
        leak = measure_leak(network.train(training))
        blind = blind and leak.is_blind and leak.sees > 0
        verdict = leak.describe() if leak.sees > 0 else "sees no voxel at all, so it cannot denoise"
        print(f"{'training' if training else 'evaluation'} mode: the network {verdict}")
    print(f"blind set: {network.lattice.describe()}, stride {network.lattice.stride_zyx}")
    return 0 if blind else 1


def _network_of(path: str) -> Any:
    if Path(path).is_dir():
        networks = [Path(path) / name for name in ("blind.pt", "model.pt")]
        inside = next((str(one) for one in networks if one.is_file()), None)
        way_out = "name a checkpoint or a config" if inside is None else f"name the network in it: {inside}"
        raise FileError(f"{path}: is a folder, {way_out}")
    if not path.lower().endswith((".json", ".yaml", ".yml")):
        from cryoshuffle.inference.checkpoints import load_network

        return load_network(path)
    import yaml
    from monai.bundle import ConfigParser

    from cryoshuffle.network import BlindSpotNet

    if not Path(path).is_file():
        raise FileError(f"{path}: there is no such config, check the path")
    parser = ConfigParser()
    try:
        content: Any = ConfigParser.load_config_file(path)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is not a config that can be read, check its syntax") from error
    # An overlay cannot be read without the config that it changes, so it is looked at as it stands.
    if not isinstance(content, dict) or "network_def" not in content:
        raise InputError(f"{path}: has no network_def, name a config that declares the network")
    try:
        parser.read_config(content)
        if parser.get("blind") == "auto":
            print("the config measures the noise of its tomogram; judged with a blind plane across y in its place")
            parser.update({"blind": "plane", "tilt_axis": "y"})
        network = parser.get_parsed_content("network_def")
    except Exception as error:  # a config is code, which can fail in any way
        if user_error(error) is not None:
            raise
        # MONAI says where it was, in several lines, and keeps what went wrong behind.
        first = (isinstance(error, RuntimeError) and error.__cause__) or error
        reason = (str(first).strip() or type(first).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{path}: its network_def cannot be made ({reason}), check it") from error
    if not isinstance(network, BlindSpotNet):
        raise InputError(f"{path}: its network_def is a {type(network).__name__}, not a BlindSpotNet")
    return network


def _say_result(options: DenoiseCommand | ApplyCommand, folder: Path) -> None:
    from cryoshuffle.report.page import read_verdict

    beside = {name: path for name in ("residual", "error") if (path := getattr(options, name)) is not None}
    extras = {"report": folder / "report.html", "picture": folder / "result.png", "log": folder / "run.log"}
    _say(options.json_lines, result=options.output, **beside, **extras)
    if not options.json_lines:
        size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) / 1e6
        network = folder / "model.pt"
        more = f", and the network for cryoshuffle apply {network}" if network.is_file() else ""
        print(f"{'folder:':12}{folder} has report, log and checksums{more}; {size:.0f} MB")
        _say_time(folder)
        print(f"{'verdict:':12}{read_verdict(folder)}")


def _say_time(folder: str | Path) -> None:
    from cryoshuffle.report.log import time_note

    note = time_note(folder)
    if note:
        print(f"{'fit:':12}{note}")


def _say(as_json: bool = False, /, **paths: Any) -> None:
    outputs = {name: str(path) for name, path in paths.items() if Path(path).exists()}
    if as_json:
        print(json.dumps(outputs))
        return
    for name, path in outputs.items():
        print(f"{name + ':':12}{path}")


def _set_logging() -> None:
    """Our own notes only; what MONAI and Ignite say of the same errors would but repeat them."""
    warnings.filterwarnings("ignore", module="monai|ignite|torch")
    warnings.filterwarnings("default", module="cryoshuffle")
    console = logging.StreamHandler()
    console.setLevel(logging.WARNING)
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        # A tomogram is read more than once, and what is said of it each time is told once.
        words = record.getMessage()
        if words in said:
            return False
        said.add(words)
        return True

    console.addFilter(is_new)
    logging.basicConfig(handlers=[console], format="cryoshuffle: note: %(message)s")
    for name in ("monai", "ignite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.showwarning = lambda message, *rest, **more: _complain(f"cryoshuffle: note: {message}")


def _complain(words: object) -> None:
    # Where a program has no such stream, print would take the other one, which is for results.
    if sys.stderr is not None:
        print(words, file=sys.stderr)


_COMMANDS: dict[str, tuple[type[Command], Callable[..., int]]] = {
    "denoise": (DenoiseCommand, _denoise),
    "fit": (FitCommand, _fit),
    "apply": (ApplyCommand, _apply),
    "batch": (BatchCommand, _batch),
    "noise": (NoiseCommand, _noise),
    "simulate": (SimulateCommand, _simulate),
    "evaluate": (EvaluateCommand, _evaluate),
    "report": (ReportCommand, _page),
    "relion-shim": (RelionShimCommand, _relion_shim),
    "relion-job": (RelionJobCommand, _relion_job),
    "check": (CheckCommand, _check),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0 when done, 2 for a user's mistake, 1 for anything else.
    """
    parser = build_parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help()
        return 0
    try:
        words = vars(parser.parse_args(arguments))
    except UsageError as mistake:
        _complain(mistake)
        return 2
    command, run = _COMMANDS[words.pop("command")]
    # Not Python's own exception for Ctrl-C: it would end the process by a signal, without our exit code, where an
    # expression of a config runs.
    with readers_may_go(), listening(partial(_stop, command)):
        _set_logging()
        try:
            code = run(command(**words))
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
        except BaseException as error:
            return _report(error, command)


def _stop(command: type[Command], number: int, frame: Any) -> None:
    way_on = "start again"
    if command.of_many:
        way_on = "the same command goes on"
    elif "resume" in command.options():
        way_on = "what is done so far goes on with --resume"
    raise FitInterruptedError(f"stopped; no result was written, {way_on}")


def _use_less_memory(command: type[Command]) -> str:
    """What a command can do about too little memory: its own options, if it has such."""
    options = command.options()
    # That of evaluate names windows that are there already.
    window = ["window"] if "steps" in options else []
    flags = [options[name].flag for name in (*window, "inference_window", "memory_gib") if name in options]
    if not flags:
        return "crop the tomogram, or take a machine with more"
    return f"use a smaller {', '.join(flags[:-1])} or {flags[-1]}, or --device cpu"


def _report(error: BaseException, command: type[Command]) -> int:
    stop = stop_behind(error)
    if stop is not None:
        _complain(f"\ncryoshuffle: {str(stop) or 'stopped'}")
        return 3
    mistake = user_error(error)
    if mistake is not None:
        _complain(f"cryoshuffle: {mistake}")
        return 2
    from cryoshuffle.memory import is_out_of_memory

    if any(is_out_of_memory(one) for one in behind(error)):
        _complain(f"cryoshuffle: out of memory, {_use_less_memory(command)}")
        return 2
    raise error


if __name__ == "__main__":
    sys.exit(main())
