"""Runs of the bundle's workflows from the options of a command; the Python interface takes the same way.

Heavy imports wait until a run begins.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cryoshuffle
from cryoshuffle.commands.options import ApplyCommand, DenoiseCommand, FitCommand, FitOptions, RunCommand, config_value
from cryoshuffle.errors import FileError, FitInterruptedError, InputError, stop_behind

logger = logging.getLogger("cryoshuffle")
Run = TypeVar("Run", DenoiseCommand, ApplyCommand)


def run_dir(report: str | None, result: str) -> Path:
    """The folder of a run.

    Args:
        report: as asked for; None for ``<result>_run`` beside the result.
        result: path of what the run writes.
    """
    if report:
        return Path(report)
    from cryoshuffle.files.formats import split_suffix

    path = Path(result)
    name, suffix = split_suffix(path)
    return path.with_name(f"{name if suffix else path.stem}_run")


def with_output(options: Run) -> Run:
    """A command with the path of its result: beside the input where none is named, in a folder where one is.

    Args:
        options: of the command.

    Raises:
        FileError: for the name of a folder that is not there.
    """
    from cryoshuffle.files.formats import find_format, split_suffix, stem_beside

    output, tomogram = options.output, Path(options.tomogram)
    in_folder = output != "" and Path(output).is_dir() and not split_suffix(output)[1]
    if output and not in_folder:
        if output.endswith(("/", os.sep)) and not split_suffix(output)[1]:
            raise FileError(f"{output}: there is no such folder, make it first")
        return options
    known, stem = find_format(tomogram), stem_beside(tomogram)
    name = f"{stem.name}_denoised{known.result_suffix if known else '.mrc'}"
    return dataclasses.replace(options, output=str((Path(output) if in_folder else stem.parent) / name))


def _file_state(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """What tells a file or folder from another one under its name; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


@contextmanager
def told_if_written(options: DenoiseCommand | ApplyCommand) -> Iterator[None]:
    """Where the block is stopped after the result got its name, say so, and what of the rest is missing.

    Args:
        options: of the command, with the path of its result.

    Raises:
        FitInterruptedError: with those words in place of the ones it came with.
    """
    folder = run_dir(options.output_dir, options.output)
    provenance, page = folder / "provenance.json", folder / "report.html"
    named = {"the residual": options.residual, "the error map": options.error, "the report": page}
    paths = {words: path for words, path in named.items() if path is not None}
    before = {path: _file_state(path) for path in (options.output, provenance, *paths.values())}
    try:
        yield
    except BaseException as error:
        is_new = {path: _file_state(path) not in (None, state) for path, state in before.items()}
        if not isinstance(stop_behind(error), FitInterruptedError) or not is_new[options.output]:
            raise
        missing = [words for words, path in paths.items() if not is_new[path]]
        if not missing:
            words = f"{options.output} is written, and so is {list(paths)[-1]}"
        elif is_new[provenance]:
            words = f"{options.output} is written, its report is not: cryoshuffle report {folder} makes it"
        else:
            listed, verb, it = " and ".join(missing), *(("is", "it") if len(missing) == 1 else ("are", "them"))
            words = (
                f"{options.output} is written, {listed} {verb} not: the same command with --resume --overwrite makes "
                f"{it}" + (", and fits nothing anew" if isinstance(options, DenoiseCommand) else "")
            )
        raise FitInterruptedError(f"stopped; {words}") from error


def _settings(options: RunCommand, folder: Path) -> dict[str, Any]:
    """The options as config settings, with the folder of the run."""
    quiet = {"quiet": True} if options.json_lines else {}
    return {**options.settings(), **quiet, "output_dir": config_value(folder)}


def _fit_settings(options: DenoiseCommand | FitCommand, folder: Path, checkpoint: str | Path) -> dict[str, Any]:
    """The same, of a run that fits a network and writes it to a checkpoint."""
    if not options.refine and (options.cold_start or options.warm_start is not None):
        name = "--cold-start" if options.cold_start else "--warm-start"
        raise InputError(f"{name} is for the second network, and --no-refine leaves it out: leave one out")
    if not options.refine and getattr(options, "error", None) is not None:
        raise InputError("--error needs the noise, which --no-refine does not measure: leave one out")
    if options.warm_start is not None:
        start = Path(options.warm_start).resolve()
        if folder.resolve() in start.parents or start == Path(checkpoint).resolve():
            raise InputError(f"{options.warm_start}: is what this run writes anew, copy it elsewhere first")
    cold = {"warm_start": None} if options.cold_start else {}
    return {**_settings(options, folder), **cold, "checkpoint": config_value(checkpoint)}


def _refine(options: FitOptions) -> list[str]:
    return ["refine.yaml"] if options.refine else []


def _run(configs: Sequence[str], workflow_type: str, settings: dict[str, Any], run_folder: Path) -> None:
    """Run configs of the bundle with settings in place of their own, and leave the host as it is.

    Where the run fails before it writes anything, no empty folder is left.
    """
    from monai.bundle import ConfigWorkflow

    from cryoshuffle.files.locks import unlock_run
    from cryoshuffle.host import undisturbed, unheard

    folder, is_new = cryoshuffle.config_dir(), not run_folder.exists()
    with unheard("monai.bundle.workflows"), warnings.catch_warnings():
        # MONAI says that it leaves logging alone, and that a config is code: these are ours.
        warnings.filterwarnings("ignore", "parsing config_file")
        workflow = ConfigWorkflow(
            config_file=[str(folder / name) for name in configs],
            workflow_type=workflow_type,
            logging_file=False,
            **settings,
        )
    with undisturbed():
        try:
            workflow.initialize()
            workflow.run()
        finally:
            unlock_run()
            if is_new and run_folder.is_dir() and not any(run_folder.iterdir()):
                run_folder.rmdir()
        workflow.finalize()


def _check_noise_options(options: FitOptions) -> None:
    if (options.even is None) != (options.odd is None):
        raise InputError("one half alone tells nothing of the noise: name both with --even and --odd")
    if options.empty is not None and options.even is not None:
        raise InputError("a mask of empty regions goes with a tomogram without halves: leave out --noise-mask")
    if options.empty is not None and options.blind != "auto":
        raise InputError(
            f"--noise-mask says where to measure the noise, --blind {options.blind} measures none: leave one out"
        )


def check_run_dir(folder: Path, way_out: str = "choose another with --report") -> None:
    """Refuse a folder that cannot be written; it is made when the run begins.

    Args:
        folder: of the run.
        way_out: for the message.

    Raises:
        FileError: if it or its parent is no folder, or not writable.
    """
    if not folder.parent.is_dir():
        raise FileError(f"{folder}: there is no folder {folder.parent}, make it first")
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder}: is a file where a folder should be, {way_out}")
    if not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        raise FileError(f"{folder}: the folder cannot be written, {way_out}")


# What a run writes into its folder, but for its log.
_OWN_NAMES = (
    "report.html", "report.json", "result.png", "noise.json", "fit.json", "history.jsonl", "provenance.json",
    "refinement.json", "survival.json", "error_map.json", "model.pt", "blind.pt", "recorrupted.pt", "distilled.pt",
    "state.pt", "state_refine.pt", "state_distil.pt", "preview.png",
)  # fmt: skip
_LOG_BEGINS = " INFO cryoshuffle "


def _has_own_provenance(folder: Path) -> bool:
    """Whether a folder says of its result that this program made it."""
    try:
        content = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and str(content.get("program")).startswith("cryoshuffle ")


def check_own_folder(folder: Path) -> None:
    """Refuse a folder that holds files of the names of ours which no run of ours wrote.

    Args:
        folder: of the run.

    Raises:
        FileError: if it is one, or its log cannot be read.
    """
    named = [name for name in _OWN_NAMES if (folder / name).exists()]
    log = folder / "run.log"
    try:
        is_ours = log.is_file() and _LOG_BEGINS in log.read_text(encoding="utf-8", errors="replace")[:4096]
        # Where the program around a run has turned logging off, the log is empty.
        is_ours = is_ours or _has_own_provenance(folder)
    except OSError as error:
        raise FileError(f"{log}: cannot be read ({error.strerror}), choose another folder with --report") from error
    # On a full disk a log may have got its name and nothing else.
    has_log = log.exists() and log.stat().st_size > 0
    if (named or has_log) and not is_ours:
        raise FileError(
            f"{folder}: holds {(named or [log.name])[0]}, which no run of cryoshuffle wrote: choose another folder "
            "with --report"
        )


def _check_kept(options: RunCommand, result: str) -> None:
    """Refuse to replace what the run reads."""
    from cryoshuffle.commands.preflight import check_kept

    names = {
        "IN": "tomogram", "--even": "even", "--odd": "odd", "--mask": "mask", "--noise-mask": "empty",
        "--warm-start": "warm_start",
    }  # fmt: skip
    if isinstance(options, ApplyCommand):
        names["C"] = "checkpoint"
    inputs = {option: getattr(options, name, None) for option, name in names.items()}
    check_kept(inputs, [result, getattr(options, "residual", None), getattr(options, "error", None)])


def run_denoise(options: DenoiseCommand) -> Path:
    """Fit to a tomogram, then denoise it.

    Args:
        options: those of ``cryoshuffle denoise``.

    Returns:
        the folder of the run.

    Raises:
        UserError: for a mistake; MONAI may have wrapped it, see :func:`cryoshuffle.errors.user_error`.
    """
    from cryoshuffle.fit.checkpoint import FINISHED_NAME

    _check_noise_options(options)
    folder = run_dir(options.output_dir, options.output)
    check_run_dir(folder)
    check_own_folder(folder)
    _check_kept(options, options.output)
    _check_report_of_another(folder, options)
    if (
        options.resume
        and not options.overwrite
        and (folder / FINISHED_NAME).is_file()
        and Path(options.output).exists()
    ):
        raise InputError(
            f"{options.output}: is finished, so there is nothing to resume: add --overwrite to denoise again"
        )
    settings = _fit_settings(options, folder, folder / "model.pt")
    _run(["train.json", "inference.json", "denoise.yaml", *_refine(options)], "train", settings, folder)
    return folder


def run_fit(options: FitCommand) -> Path:
    """Fit a network to one tomogram or several.

    Args:
        options: those of ``cryoshuffle fit``.

    Returns:
        the folder of the run.

    Raises:
        UserError: see :func:`run_denoise`.
    """
    from cryoshuffle.files.writing import check_new_file
    from cryoshuffle.fit.checkpoint import STATE_NAME
    from cryoshuffle.inference.checkpoints import is_model

    _check_noise_options(options)
    if options.even is not None and len(options.tomograms) > 1:
        raise InputError(f"halves go with one tomogram, not with {len(options.tomograms)}: fit them one by one")
    folder = run_dir(options.output_dir, options.checkpoint)
    if Path(options.checkpoint).is_file() and not is_model(options.checkpoint):
        raise FileError(
            f"{options.checkpoint}: exists and is no checkpoint of cryoshuffle, so it is not replaced: choose another "
            "name"
        )
    goes_on = options.resume and (folder / STATE_NAME).is_file()
    check_new_file(options.checkpoint, overwrite=options.overwrite or goes_on)
    check_run_dir(folder)
    check_own_folder(folder)
    _check_kept(options, options.checkpoint)
    settings = {
        "tomogram": config_value(options.tomograms[0]),
        **_fit_settings(options, folder, options.checkpoint),
    }
    _run(["train.json", *_refine(options)], "train", settings, folder)
    return folder


def _check_report_of_another(folder: Path, options: DenoiseCommand | ApplyCommand) -> None:
    """Refuse a folder whose report is that of another result."""
    from cryoshuffle.report.provenance import locate

    try:
        content = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        other = locate(content["output"]["path"], folder)
        is_array = bool(content["output"].get("in_memory"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return
    if not options.overwrite and not is_array and other.exists() and other.resolve() != Path(options.output).resolve():
        raise FileError(f"{folder}: holds the report of {other}, choose another folder with --report")


def run_apply(options: ApplyCommand) -> Path:
    """Denoise a tomogram with a network that was fitted before.

    Args:
        options: those of ``cryoshuffle apply``.

    Returns:
        the folder of the run.

    Raises:
        UserError: see :func:`run_denoise`.
    """
    from cryoshuffle.fit.checkpoint import FINISHED_NAME, STATE_NAME
    from cryoshuffle.inference.checkpoints import Model
    from cryoshuffle.inference.error_map import NO_ERROR_MAP

    folder = run_dir(options.output_dir, options.output)
    model = Model(options.checkpoint)
    network = model.network_config
    check_run_dir(folder)
    check_own_folder(folder)
    _check_kept(options, options.output)
    _check_report_of_another(folder, options)
    if any((folder / name).is_file() for name in (STATE_NAME, FINISHED_NAME)):
        raise FileError(
            f"{folder}: is the folder of a fit, whose report would be replaced: choose another OUT, or another folder "
            "with --report"
        )
    first, whole = Path(options.checkpoint), Path(options.checkpoint).with_name("model.pt")
    if first.name == "blind.pt" and whole.is_file():
        logger.warning("%s: is the network of the first stage alone, the result of the whole fit is %s", first, whole)
    if options.error is not None:
        model.needed_noise(NO_ERROR_MAP)
    _run(["inference.json"], "infer", {**_settings(options, folder), "network_def": network}, folder)
    return folder
