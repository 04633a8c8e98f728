"""The command ``cryoshuffle``: starts the MONAI workflows of the bundle, holds no science.

Heavy imports wait until there is something to do, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import cryoshuffle
from cryoshuffle.errors import FileError, FitInterruptedError, InputError, UsageError, behind, stop_behind, user_error
from cryoshuffle.signals import listening


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one sentence, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        several = (
            "; several tomograms go with cryoshuffle batch" if message.startswith("unrecognized arguments") else ""
        )
        raise UsageError(f"{self.prog}: {message}{several}; see {self.prog} --help")


def _triple(text: str) -> list[int]:
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


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 to 1")
    return value


def _radius(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 0")
    return int(text)


def _add_machine_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps (default: the best there is)")
    group.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "tf32", "bf16"],
        help="bf16 halves memory and is faster where the hardware has it; auto takes it on GPUs alone; tf32 rounds "
        "products on NVIDIA GPUs (default: auto)",
    )
    group.add_argument(
        "--memory",
        type=_positive,
        metavar="GIB",
        help="the most the program may take on the CPU, GiB; volumes too large for it are worked on from files in "
        "--report (default: a quarter of what there is, at least 2)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument(
        "--json-lines",
        action="store_true",
        help="for programs: no bar, a line of JSON an epoch of the fit, and one at the end that names the files",
    )


def _add_file_options(parser: argparse.ArgumentParser, many: bool = False) -> None:
    group = parser.add_argument_group("files")
    group.add_argument("--overwrite", action="store_true", help="replace results of ours, an unfinished fit included")
    group.add_argument("--permissive", action="store_true", help="take MRC files whose header breaks the standard")
    group.add_argument(
        "--fill-nan", action="store_true", help="put the mean of the others where voxels are NaN or Inf, and say where"
    )
    if not many:
        group.add_argument(
            "--report", metavar="DIR", help="folder for report, log and checkpoints (default: beside the result)"
        )


def _add_output_options(parser: argparse.ArgumentParser, window: str, mirrors: str, many: bool = False) -> None:
    parser.add_argument(
        window,
        dest="inference_window",
        type=_triple,
        metavar="Z,Y,X",
        help="part of the volume denoised at a time, voxels; smaller needs less memory, the result is the same "
        "(default: what goes into a quarter of the memory)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file at OUT whatever it is, a raw tomogram too")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "float16", "int8", "int16", "uint16"],
        help="of the result (default: float32, MRC mode 2)",
    )
    if not many:
        parser.add_argument("--residual", metavar="FILE", help="also write what was taken away, IN minus OUT, float32")
    parser.add_argument(
        "--detail",
        type=_share,
        default=0.0,
        metavar="0..1",
        help="share of the noisy tomogram mixed back into the result, noise and all (default: 0)",
    )
    parser.add_argument(
        "--mirrors",
        action="store_true",
        help=f"average over eight mirror images, a little better for eight times the work ({mirrors})",
    )


def _add_fit_options(parser: argparse.ArgumentParser, many: bool = False) -> None:
    blind = parser.add_argument_group("blind spot: what a prediction must not see, to match the noise")
    blind.add_argument(
        "--blind",
        default="auto",
        choices=["auto", "voxel", "plane", "cross", "box"],
        help="auto measures the noise and chooses: voxel for white noise, plane for reconstructions (default: auto)",
    )
    blind.add_argument(
        "--tilt-axis", choices=["z", "y", "x"], help="axis the plane lies across (default: found from the noise)"
    )
    blind.add_argument("--radius", type=_radius, help="half-width of the blind spot, voxels (default: fits the noise)")
    blind.add_argument(
        "--stride", type=_triple, metavar="Z,Y,X", help="lattice stride, voxels (default: fits the blind spot; plane 3)"
    )
    if not many:
        blind.add_argument("--even", help="one half of IN; with --odd the noise is measured in their difference")
        blind.add_argument("--odd", help="the other half")
        blind.add_argument(
            "--empty",
            metavar="MASK",
            help="MRC or NIfTI, not 0 where there is no specimen; the noise is measured there",
        )
    fit = parser.add_argument_group("fit")
    if not many:
        fit.add_argument(
            "--mask",
            help="MRC, NIfTI or Zarr, not 0 where the specimen is, a lamella say; the fit looks there, all is denoised",
        )
    fit.add_argument(
        "--preset",
        default="unbiased",
        choices=["unbiased", "paper"],
        help="weights of the loss terms; paper adds a biased guide (default: unbiased)",
    )
    fit.add_argument(
        "--no-refine",
        dest="refine",
        action="store_false",
        help="stop after the blind network, as the paper does; else a second network, which hides nothing, learns from "
        "the noise that the blind one has found",
    )
    start = fit.add_mutually_exclusive_group()
    start.add_argument(
        "--warm-start",
        metavar="C",
        help="checkpoint that the second network begins with, one that hides nothing, of an earlier fit for instance "
        "(default: the one of the package, which has seen simulated tomograms)",
    )
    start.add_argument("--cold-start", action="store_true", help="begin with random weights")
    fit.add_argument(
        "--effort",
        default="standard",
        choices=["fast", "standard", "best"],
        help="fast: the starting network is not fitted, only the noise is measured; standard: 300 steps; best: 600 "
        "steps, and denoise averages eight mirror images; five times the steps on NVIDIA GPUs (default: standard)",
    )
    fit.add_argument("--steps", type=_count, help="optimiser steps (default: as many as the effort has)")
    fit.add_argument("--minutes", type=_positive, help="stop the fit after so many minutes, if steps do not end first")
    fit.add_argument(
        "--window", type=_triple, default=[48, 48, 48], metavar="Z,Y,X", help="window of a step, voxels (default: 48)"
    )
    fit.add_argument("--seed", type=_radius, default=0, help="the same seed gives the same result (default: 0)")
    if not many:
        fit.add_argument("--resume", action="store_true", help="go on with a run that was interrupted")


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

    denoise = commands.add_parser("denoise", help="fit to this tomogram, then denoise it: the daily command")
    denoise.add_argument(
        "input", metavar="IN", help="tomogram: .mrc .rec .map .st, also .gz .bz2, .zarr, or .nii .nii.gz"
    )
    denoise.add_argument("output", metavar="OUT", help="the denoised tomogram")
    _add_fit_options(denoise)
    _add_output_options(denoise, "--inference-window", mirrors="default: with --effort best")

    fit = commands.add_parser("fit", help="fit a network to one tomogram or several")
    fit.add_argument("inputs", metavar="IN", nargs="+", help="tomograms")
    fit.add_argument("--checkpoint", required=True, metavar="C", help="where the network goes")
    _add_fit_options(fit)

    apply = commands.add_parser("apply", help="denoise a tomogram with a network that was fitted before")
    apply.add_argument("checkpoint", metavar="C", help="the network")
    apply.add_argument("input", metavar="IN", help="tomogram")
    apply.add_argument("output", metavar="OUT", help="the denoised tomogram")
    _add_output_options(apply, "--window", mirrors="default: off")
    apply.add_argument(
        "--resume", action="store_true", help="go on with the last finished window of a run that was interrupted"
    )

    batch = commands.add_parser(
        "batch",
        help="denoise many tomograms, side by side",
        description="Denoise many tomograms, each from itself alone, or with --checkpoint all with one network. What "
        "is finished is skipped, what was interrupted goes on, a failure is tried once more and told at the end.",
    )
    batch.add_argument(
        "inputs",
        metavar="LIST",
        nargs="+",
        help="tomograms, patterns, folders, text files with a tomogram a line, or a tomograms.star of RELION 5",
    )
    batch.add_argument("folder", metavar="OUTDIR", help="folder for the results, their reports and index.html")
    batch.add_argument("--checkpoint", metavar="C", help="apply this network to all instead of fitting one to each")
    where = batch.add_argument_group("cluster")
    where.add_argument("--workers", type=_count, help="runs at once here (default: one a GPU, else one for four cores)")
    place = where.add_mutually_exclusive_group()
    place.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask scheduler that runs already, tcp://...")
    place.add_argument("--slurm", metavar="YAML", help="jobs, and what dask_jobqueue.SLURMCluster takes, in a file")
    where.add_argument("--dry-run", action="store_true", help="print what would be done, and the job script for Slurm")
    _add_fit_options(batch, many=True)
    _add_output_options(batch, "--inference-window", mirrors="default: with --effort best", many=True)
    _add_machine_options(batch)
    _add_file_options(batch, many=True)

    for command in (denoise, fit, apply):
        _add_machine_options(command)
        _add_file_options(command)

    noise = commands.add_parser("noise", help="measure the noise of a tomogram and say which blind spot fits it")
    noise.add_argument("input", metavar="IN", nargs="?", help="tomogram; not needed with --even and --odd")
    noise.add_argument("--even", help="one half; with --odd the difference is the noise")
    noise.add_argument("--odd", help="the other half")
    noise.add_argument("--empty", metavar="MASK", help="MRC or NIfTI, not 0 where there is no specimen; measured there")
    noise.add_argument("--tilt-axis", choices=["z", "y", "x"], help="if known (default: found from the noise)")
    noise.add_argument("--overwrite", action="store_true", help="replace noise.json and noise.png")
    noise.add_argument("--permissive", action="store_true", help="take MRC files whose header breaks the standard")
    noise.add_argument(
        "--report", metavar="DIR", default=".", help="folder for noise.json and noise.png (default: here)"
    )

    simulate = commands.add_parser("simulate", help="make a tomogram whose truth is known")
    simulate.add_argument("output", metavar="OUT", help="folder for tomogram, halves, truth and phantom")
    simulate.add_argument("--case", default="wbp", choices=["white", "wbp", "aligned", "sirt", "binned", "insitu"])
    simulate.add_argument("--shape", type=_triple, default=[80, 144, 144], metavar="Z,Y,X", help="voxels")
    simulate.add_argument("--snr", type=_positive, default=0.1, help="power of signal over noise (default: 0.1)")
    simulate.add_argument(
        "--mtf", type=_share, default=1.0, help="what the detector leaves of the signal at Nyquist (default: 1, all)"
    )
    simulate.add_argument(
        "--voxel-size", type=_positive, default=10.0, metavar="Å", help="of the phantom (default: 10)"
    )
    simulate.add_argument("--seed", type=_radius, default=0, help="the same seed gives the same bits (default: 0)")
    simulate.add_argument("--overwrite", action="store_true", help="replace what is there")
    simulate.add_argument(
        "--templates", metavar="DIR", help="MRC densities of that voxel size (default: those of the package)"
    )

    evaluate = commands.add_parser("evaluate", help="score a denoised tomogram, with or without a truth")
    evaluate.add_argument("result", metavar="RESULT", help="the denoised tomogram")
    evaluate.add_argument("--truth", help="what it should be; gives correlation, PSNR, SSIM and FSC")
    evaluate.add_argument("--noisy", help="what it was denoised from; gives what is left in the residual")
    evaluate.add_argument("--other-half", help="the other half, raw, where RESULT was denoised from one half alone")
    evaluate.add_argument("--window", type=_triple, metavar="Z,Y,X", help="windows to look for seams of, voxels")
    evaluate.add_argument(
        "--stride", type=_triple, metavar="Z,Y,X", help="lattice stride to look for stripes of, voxels"
    )
    evaluate.add_argument("--overwrite", action="store_true", help="replace evaluation.json and fsc.png")
    evaluate.add_argument("--permissive", action="store_true", help="take MRC files whose header breaks the standard")
    evaluate.add_argument("--report", metavar="DIR", default=".", help="folder for evaluation.json and fsc.png")

    report = commands.add_parser("report", help="write the report page of a finished run anew")
    report.add_argument("folder", metavar="RUN", help="folder of the run, <result>_run")
    report.add_argument("--permissive", action="store_true", help="take MRC files whose header breaks the standard")

    check = commands.add_parser("check", help="prove that a network is blind to what it must not see")
    check.add_argument(
        "network", metavar="CHECKPOINT_OR_CONFIG", help="a checkpoint, or a bundle config (which is code)"
    )
    return parser


def _denoise(options: argparse.Namespace) -> int:
    from cryoshuffle.commands.runs import run_denoise

    _say_result(options, run_denoise(options))
    return 0


def _fit(options: argparse.Namespace) -> int:
    from cryoshuffle.commands.runs import run_fit

    folder = run_fit(options)
    _say(options.json_lines, checkpoint=options.checkpoint, picture=folder / "preview.png", log=folder / "run.log")
    return 0


def _apply(options: argparse.Namespace) -> int:
    from cryoshuffle.commands.runs import run_apply

    _say_result(options, run_apply(options))
    return 0


def _shared_words(options: argparse.Namespace) -> list[str]:
    """What all runs of a batch are told: the options that were given."""
    from cryoshuffle.commands.runs import as_words

    own = {"command", "inputs", "folder", "checkpoint", "workers", "scheduler", "slurm", "dry_run"}
    own |= {"overwrite", "memory", "quiet", "json_lines"}
    command = ["denoise", "IN", "OUT"] if options.checkpoint is None else ["apply", "C", "IN", "OUT"]
    usual = vars(build_parser().parse_args(["batch", "IN", "OUT"]))
    given = {name: value for name, value in vars(options).items() if name not in own and value != usual[name]}
    unknown = sorted(set(given) - set(vars(build_parser().parse_args(command))))
    if unknown:
        flag = "--no-refine" if unknown[0] == "refine" else "--" + unknown[0].replace("_", "-")
        raise InputError(f"{flag} is for a fit, and --checkpoint applies a network without one: leave one out")
    for name in ("warm_start",):
        if name in given:
            given[name] = os.path.abspath(given[name])
    if options.checkpoint is not None and "inference_window" in given:
        given["window"] = given.pop("inference_window")
    return as_words(given)


def _batch(options: argparse.Namespace) -> int:
    from cryoshuffle.commands.batch import Cluster, Outcome, command_of, is_done, job_script, run_batch
    from cryoshuffle.commands.lists import read_list, write_star
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.files.writing import write_json
    from cryoshuffle.report.page import write_index

    folder = Path(options.folder)
    items = read_list(options.inputs, folder)
    words = _shared_words(options)
    commands = [command_of(item, words, options.checkpoint) for item in items]
    if options.dry_run:
        for item, command in zip(items, commands, strict=True):
            done = not options.overwrite and is_done(item, command)
            print("done already:" if done else "to do:       ", shlex.join(["cryoshuffle", *command]))
        if options.slurm is not None:
            print(job_script(options.slurm))
        return 0
    check_run_dir(folder)
    folder.mkdir(exist_ok=True)

    def tell(outcome: Outcome, count: int, seconds: float) -> None:
        if options.json_lines:
            print(json.dumps(vars(outcome)), flush=True)
        elif not options.quiet:
            took = f" in {outcome.seconds:.0f} s" if outcome.status == "done" else ""
            why = f": {outcome.words}" if outcome.words else ""
            pace = seconds / max(1, count - skipped)
            left = f", about {pace * (len(items) - count) / 60:.0f} min left" if seconds and count < len(items) else ""
            print(f"[{count}/{len(items)}] {outcome.name}: {outcome.status}{took}{why}{left}", flush=True)

    skipped = 0 if options.overwrite else sum(is_done(*pair) for pair in zip(items, commands, strict=True))
    cluster = Cluster(options.scheduler, options.slurm, options.workers)
    outcomes = run_batch(items, commands, cluster, options.overwrite, options.memory, tell)
    write_json([vars(outcome) for outcome in outcomes], folder / "batch.json")
    rows = [{**vars(outcome), "run": item.folder.name} for outcome, item in zip(outcomes, items, strict=True)]
    made = {"index": write_index(folder, rows, f"{folder.resolve().name}: {len(items)} tomograms")}
    finished = {i.name: i.output for i, o in zip(items, outcomes, strict=True) if o.status in {"done", "skipped"}}
    for source in options.inputs:
        if source.lower().endswith(".star"):
            made["star"] = folder / Path(source).name
            write_star(source, made["star"], finished)
    _say(options.json_lines, **made)
    bad = [outcome for outcome in outcomes if outcome.name not in finished]
    for outcome in bad:
        _complain(f"cryoshuffle: {outcome.name} {outcome.status}: {outcome.words}")
    return 2 if bad else 0


def _noise(options: argparse.Namespace) -> int:
    from cryoshuffle.commands.runs import check_run_dir
    from cryoshuffle.files.masks import load_mask
    from cryoshuffle.files.writing import check_new_file, write_json
    from cryoshuffle.noise.choice import BlindPlan, choose_blind
    from cryoshuffle.noise.estimate import LARGEST, noise_from_empty, noise_from_halves, noise_from_volume
    from cryoshuffle.noise.volumes import load_halves, load_volume
    from cryoshuffle.report.pictures import save_noise_plot

    check_run_dir(Path(options.report))
    if (options.even is None) != (options.odd is None) or (options.even is None) == (options.input is None):
        raise InputError("name either one tomogram, or its halves with --even and --odd")
    if options.empty is not None and options.input is None:
        raise InputError("--empty goes with one tomogram: halves need no empty region")
    folder = Path(options.report)
    if options.empty is not None:
        volume = load_volume(options.input, options.permissive, folder=folder)
        estimate = noise_from_empty(volume, load_mask(options.empty, folder, options.input))
    elif options.input is not None:
        estimate = noise_from_volume(load_volume(options.input, options.permissive, LARGEST))
    else:
        estimate = noise_from_halves(*load_halves((options.even, options.odd), options.permissive))
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
        where = "" if options.empty is None else f" --empty {options.empty}"
        chosen = f"auto --tilt-axis {blind.axis}{where} (a plane, whitened along {blind.axis})"
    else:
        chosen = "voxel" if blind.shape == "voxel" else f"plane --tilt-axis {blind.axis} --radius {blind.half_width}"
    print(f"choice:     --blind {chosen}")
    print(f"reason:     {measured.choice.reason}")
    write_json(measured.report(), table)
    _say(table=table, picture=plot)
    return 0


def _simulate(options: argparse.Namespace) -> int:
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


def _evaluate(options: argparse.Namespace) -> int:
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


def _page(options: argparse.Namespace) -> int:
    from cryoshuffle.report.page import write_page

    _say(report=write_page(options.folder, options.permissive))
    return 0


def _check(options: argparse.Namespace) -> int:
    from cryoshuffle.invariance import measure_leak

    network = _network_of(options.network)
    if network.lattice.blind_set.shape == "none":
        print("the network hides nothing, as all do but that of the first stage: of a run check blind.pt")
        return 1
    blind = True
    for training in (True, False):
        leak = measure_leak(network.train(training))
        blind = blind and leak.is_blind and leak.sees > 0
        found = leak.describe() if leak.sees > 0 else "sees no voxel at all, so it cannot denoise"
        print(f"{'training' if training else 'evaluation'} mode: the network {found}")
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


def _say_result(options: argparse.Namespace, folder: Path) -> None:
    residual = {} if options.residual is None else {"residual": options.residual}
    made = {"report": folder / "report.html", "picture": folder / "result.png", "log": folder / "run.log"}
    _say(options.json_lines, result=options.output, **residual, **made)


def _say(as_json: bool = False, /, **paths: Any) -> None:
    there = {name: str(path) for name, path in paths.items() if Path(path).exists()}
    if as_json:
        print(json.dumps(there))
        return
    for name, path in there.items():
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: without the program's name; None takes those of the process.

    Returns:
        0 when done, 2 for a user's mistake, 1 for anything else.
    """
    try:
        options = build_parser().parse_args(arguments)
    except UsageError as mistake:
        _complain(mistake)
        return 2
    commands = {
        "denoise": _denoise,
        "fit": _fit,
        "apply": _apply,
        "batch": _batch,
        "noise": _noise,
        "simulate": _simulate,
        "evaluate": _evaluate,
        "report": _page,
        "check": _check,
    }
    _set_logging()
    # Not Python's own exception for Ctrl-C: it would end the process by a signal, without our exit code, where an
    # expression of a config runs.
    with listening(_stop):
        try:
            return commands[options.command](options)
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
