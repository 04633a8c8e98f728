"""The command ``cryoshuffle``: starts the MONAI workflows of the bundle, holds no science.

Heavy imports wait until there is something to do, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
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
    ReportCommand,
    SimulateCommand,
)
from cryoshuffle.errors import FileError, FitInterruptedError, InputError, UsageError, behind, stop_behind, user_error
from cryoshuffle.signals import listening

if TYPE_CHECKING:
    from cryoshuffle.commands.batch import Outcome
    from cryoshuffle.commands.lists import Item


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        several = (
            "; several tomograms go with cryoshuffle batch" if message.startswith("unrecognized arguments") else ""
        )
        raise UsageError(f"{self.prog}: {message}{several}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """The command line, without anything heavy imported."""
    parser = _Parser(
        prog="cryoshuffle",
        description="Denoise one cryo-electron tomogram from that tomogram alone.",
        epilog="Exit codes: 0 done, 2 a mistake that one sentence explains, 3 stopped by a signal, go on with "
        "--resume, 1 anything else.",
    )
    parser.add_argument("--version", action="version", version=f"cryoshuffle {cryoshuffle.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (command, _) in _COMMANDS.items():
        command.add_to(commands.add_parser(name, help=command.summary, description=command.description))
    return parser


def _denoise(options: DenoiseCommand) -> int:
    from cryoshuffle.commands.runs import run_denoise

    _say_result(options, run_denoise(options))
    return 0


def _fit(options: FitCommand) -> int:
    from cryoshuffle.commands.runs import run_fit

    folder = run_fit(options)
    _say(options.json_lines, checkpoint=options.checkpoint, picture=folder / "preview.png", log=folder / "run.log")
    return 0


def _apply(options: ApplyCommand) -> int:
    from cryoshuffle.commands.runs import run_apply

    _say_result(options, run_apply(options))
    return 0


def _batch(options: BatchCommand) -> int:
    from cryoshuffle.commands.batch import Cluster, command_of, is_done, run_batch
    from cryoshuffle.commands.lists import read_list
    from cryoshuffle.commands.runs import check_run_dir

    folder = Path(options.folder)
    items = read_list(options.inputs, folder)
    words = options.words()
    commands = [command_of(item, words, options.checkpoint) for item in items]
    if options.dry_run:
        _say_plan(options, items, commands)
        return 0
    check_run_dir(folder)
    folder.mkdir(exist_ok=True)
    skipped = 0 if options.overwrite else sum(is_done(*pair) for pair in zip(items, commands, strict=True))

    def tell(outcome: Outcome, count: int, seconds: float) -> None:
        if options.json_lines:
            print(json.dumps(vars(outcome)), flush=True)
        elif not options.quiet:
            took = f" in {outcome.seconds:.0f} s" if outcome.status == "done" else ""
            why = f": {outcome.words}" if outcome.words else ""
            pace = seconds / max(1, count - skipped)
            rest = f", about {pace * (len(items) - count) / 60:.0f} min left" if seconds and count < len(items) else ""
            print(f"[{count}/{len(items)}] {outcome.name}: {outcome.status}{took}{why}{rest}", flush=True)

    cluster = Cluster(options.scheduler, options.slurm, options.workers)
    outcomes = run_batch(items, commands, cluster, options.overwrite, options.memory_gib, tell)
    _say(options.json_lines, **_write_results(options, items, outcomes))
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


def _write_results(options: BatchCommand, items: Sequence[Item], outcomes: Sequence[Outcome]) -> dict[str, Path]:
    """Write what a batch leaves besides the tomograms.

    Returns:
        the paths by what they are.
    """
    from cryoshuffle.commands.lists import write_star
    from cryoshuffle.files.writing import write_json
    from cryoshuffle.report.page import write_index

    folder = Path(options.folder)
    write_json([vars(outcome) for outcome in outcomes], folder / "batch.json")
    rows = [{**vars(outcome), "run": item.folder.name} for outcome, item in zip(outcomes, items, strict=True)]
    paths = {"index": write_index(folder, rows, f"{folder.resolve().name}: {len(items)} tomograms")}
    results = {item.name: item.output for item, outcome in zip(items, outcomes, strict=True) if outcome.is_done}
    for source in options.inputs:
        if source.lower().endswith(".star"):
            paths["star"] = folder / Path(source).name
            write_star(source, paths["star"], results)
    return paths


def _noise(options: NoiseCommand) -> int:
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.files.masks import load_mask
    from cryoshuffle.files.writing import check_new_file, write_json
    from cryoshuffle.noise.choice import BlindPlan, choose_blind
    from cryoshuffle.noise.estimate import LARGEST, noise_from_empty, noise_from_halves, noise_from_volume
    from cryoshuffle.noise.volumes import load_halves, load_volume
    from cryoshuffle.report.pictures import save_noise_plot

    check_run_dir(Path(options.report))
    halves = [half for half in (options.even, options.odd) if half is not None]
    if len(halves) != (2 if options.tomogram is None else 0):
        raise InputError("name either one tomogram, or its halves with --even and --odd")
    if options.noise_mask is not None and options.tomogram is None:
        raise InputError("--noise-mask goes with one tomogram: halves need no empty region")
    folder = Path(options.report)
    if options.tomogram is None:
        estimate = noise_from_halves(*load_halves(halves, options.permissive))
    elif options.noise_mask is None:
        estimate = noise_from_volume(load_volume(options.tomogram, options.permissive, LARGEST))
    else:
        volume = load_volume(options.tomogram, options.permissive, folder=folder)
        estimate = noise_from_empty(volume, load_mask(options.noise_mask, folder, options.tomogram))
    print(f"noise autocorrelation from {estimate.source}, lags in voxels")
    print(estimate.table())
    folder.mkdir(exist_ok=True)
    table, plot = folder / "noise.json", folder / "noise.png"
    for path in (table, plot):
        check_new_file(path, options.overwrite)
    save_noise_plot(estimate.autocorrelation, plot)
    measured = BlindPlan(choose_blind(estimate, options.tilt_axis), estimate)
    blind = measured.blind_set
    if measured.whitening is not None:
        where = "" if options.noise_mask is None else f" --noise-mask {options.noise_mask}"
        chosen = f"auto --tilt-axis {blind.axis}{where} (a plane, whitened along {blind.axis})"
    else:
        chosen = "voxel" if blind.shape == "voxel" else f"plane --tilt-axis {blind.axis} --radius {blind.half_width}"
    print(f"choice:     --blind {chosen}")
    print(f"reason:     {measured.choice.reason}")
    write_json(measured.report(), table)
    _say(table=table, picture=plot)
    return 0


def _simulate(options: SimulateCommand) -> int:
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.simulation.phantoms import load_templates
    from cryoshuffle.simulation.tilt_series import save_simulation, simulate

    check_run_dir(Path(options.output))
    templates = None if options.templates is None else load_templates(options.templates)
    simulation = simulate(
        options.case, options.shape, options.snr, options.seed, templates, options.voxel_size,
        mtf_at_nyquist=options.mtf,
    )  # fmt: skip
    _say(tomogram=save_simulation(simulation, options.output, options.overwrite)[0])
    return 0


def _evaluate(options: EvaluateCommand) -> int:
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.files.writing import check_new_file, write_json
    from cryoshuffle.report.pictures import save_fsc_plot
    from cryoshuffle.scores.evaluation import evaluate_files, fsc_curves, table

    check_run_dir(Path(options.report))
    folder = Path(options.report)
    folder.mkdir(exist_ok=True)
    scores, plot = folder / "evaluation.json", folder / "fsc.png"
    for path in (scores, plot):
        check_new_file(path, options.overwrite)
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
    curves = fsc_curves(report)
    if curves:
        thresholds = sorted({report[name]["threshold"] for name in ("truth", "other_half") if name in report})
        save_fsc_plot(curves, plot, report["voxel_size_angstrom"], thresholds)
    write_json(report, scores)
    _say(False, scores=scores, **({"picture": plot} if curves else {}))
    return 0


def _page(options: ReportCommand) -> int:
    from cryoshuffle.report.page import write_page

    _say(report=write_page(options.folder, options.permissive))
    return 0


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
        parser.read_config(path)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: is not a config that can be read, check its syntax") from error
    if "network_def" not in parser:
        raise InputError(f"{path}: has no network_def, name a config that declares the network")
    if parser.get("blind") == "auto":
        print("the config measures the noise of its tomogram; judged with a blind plane across y in its place")
        parser.update({"blind": "plane", "tilt_axis": "y"})
    network = parser.get_parsed_content("network_def")
    if not isinstance(network, BlindSpotNet):
        raise InputError(f"{path}: its network_def is a {type(network).__name__}, not a BlindSpotNet")
    return network


def _say_result(options: DenoiseCommand | ApplyCommand, folder: Path) -> None:
    beside = {name: path for name in ("residual", "error") if (path := getattr(options, name)) is not None}
    extras = {"report": folder / "report.html", "picture": folder / "result.png", "log": folder / "run.log"}
    _say(options.json_lines, result=options.output, **beside, **extras)


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
    "check": (CheckCommand, _check),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0 when done, 2 for a user's mistake, 1 for anything else.
    """
    try:
        words = vars(build_parser().parse_args(arguments))
    except UsageError as mistake:
        _complain(mistake)
        return 2
    command, run = _COMMANDS[words.pop("command")]
    _set_logging()
    # Not Python's own exception for Ctrl-C: it would end the process by a signal, without our exit code, where an
    # expression of a config runs.
    with listening(_stop):
        try:
            return run(command(**words))
        except BaseException as error:
            return _report(error)


def _stop(number: int, frame: Any) -> None:
    raise FitInterruptedError("stopped; no result was written, what is done so far goes on with --resume")


def _report(error: BaseException) -> int:
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
        _complain("cryoshuffle: out of memory, use a smaller --window or --inference-window, or --device cpu")
        return 2
    raise error


if __name__ == "__main__":
    sys.exit(main())
