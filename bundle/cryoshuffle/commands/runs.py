"""Runs of the bundle's workflows from options as the command line has them; the Python interface takes the same way.

Heavy imports wait until a run begins.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cryoshuffle
from cryoshuffle.errors import FileError, InputError


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of the command line; those that are None or False are left out.

    ``refine=False`` is ``--no-refine``; None is the default of every option.

    Args:
        options: values by name, as the parsed command line has them.
    """
    words = []
    for name, value in options.items():
        flag = "--" + name.replace("_", "-")
        if name == "refine":
            flag, value = "--no-refine", value is not None and not value
        if value is None or value is False:
            continue
        if value is True:
            words.append(flag)
        elif isinstance(value, (str, os.PathLike)) or not isinstance(value, Sequence):
            words.append(f"{flag}={value}")
        else:
            words.append(f"{flag}={','.join(str(part) for part in value)}")
    return words


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


def _plain(path: str | Path) -> str:
    """A path as a config value: characters that mean something in MONAI's configs are escaped in an expression."""
    text = str(path)
    if not any(character in text for character in "#@$%"):
        return text
    escaped = "".join(c if c.isalnum() or c in "/._- " else f"\\U{ord(c):08x}" for c in text)
    return f"$'{escaped}'"


def _fit_settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "blind": options.blind,
        "tilt_axis": options.tilt_axis,
        "radius": options.radius,
        "stride": options.stride,
        "preset": options.preset,
        "effort": options.effort,
        **({} if options.steps is None else {"steps": options.steps}),
        "minutes": options.minutes,
        "window": options.window,
        "seed": options.seed,
        "resume": options.resume,
        "halves": None if options.even is None else [_plain(options.even), _plain(options.odd)],
        "empty": None if options.empty is None else _plain(options.empty),
        "mask": None if options.mask is None else _plain(options.mask),
        **_start(options, folder),
    }


def _start(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the second network begins with, where it is not the config's own."""
    if not options.refine and (options.cold_start or options.warm_start is not None):
        name = "--cold-start" if options.cold_start else "--warm-start"
        raise InputError(f"{name} is for the second network, and --no-refine leaves it out: leave one out")
    if options.warm_start is None:
        return {"warm_start": None} if options.cold_start else {}
    own = folder.resolve()
    start = Path(options.warm_start).resolve()
    if own in start.parents or start == Path(getattr(options, "checkpoint", None) or own).resolve():
        raise InputError(f"{options.warm_start}: is what this run writes anew, copy it elsewhere first")
    return {"warm_start": _plain(options.warm_start)}


def _refine(options: argparse.Namespace) -> list[str]:
    return ["refine.yaml"] if options.refine else []


def _output_settings(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "tomogram": _plain(options.input),
        "output": _plain(options.output),
        "output_dtype": options.dtype,
        "residual": None if options.residual is None else _plain(options.residual),
        "inference_window": options.inference_window,
        "detail": options.detail,
        "force": options.force,
        **({"mirrors": True} if options.mirrors else {}),
    }


def _shared_settings(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    return {
        "output_dir": _plain(folder),
        "device_name": options.device,
        "memory_gib": options.memory,
        "precision": options.precision,
        "overwrite": options.overwrite,
        "permissive": options.permissive,
        "fill_nan": options.fill_nan,
        "quiet": options.quiet or options.json_lines,
        "json_lines": options.json_lines,
    }


def _run(configs: Sequence[str], workflow_type: str, settings: dict[str, Any]) -> None:
    """Run configs of the bundle with settings in place of their own, and leave the host as it is."""
    from monai.bundle import ConfigWorkflow

    from cryoshuffle.files.locks import unlock_run
    from cryoshuffle.host import undisturbed, unheard

    folder = cryoshuffle.config_dir()
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
        workflow.finalize()


def _check_noise_options(options: argparse.Namespace) -> None:
    if (options.even is None) != (options.odd is None):
        raise InputError("one half alone tells nothing of the noise: name both with --even and --odd")
    if options.empty is not None and options.even is not None:
        raise InputError("a mask of empty regions goes with a tomogram without halves: leave out --empty")
    if options.empty is not None and options.blind != "auto":
        raise InputError(
            f"--empty says where to measure the noise, --blind {options.blind} measures none: leave one out"
        )


def check_run_dir(folder: Path) -> None:
    """Refuse a folder that cannot be written; it is made when the run begins.

    Raises:
        FileError: if it or its parent is no folder, or not writable.
    """
    if not folder.parent.is_dir():
        raise FileError(f"{folder}: there is no folder {folder.parent}, make it first")
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder}: is a file where the folder of the run should be, choose another with --report")
    if not os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        raise FileError(f"{folder}: the folder cannot be written, choose another with --report")


def run_denoise(options: argparse.Namespace) -> Path:
    """Fit to a tomogram, then denoise it.

    Args:
        options: those of ``cryoshuffle denoise``.

    Returns:
        the folder of the run.

    Raises:
        UserError: for a mistake; MONAI may have wrapped it, see :func:`cryoshuffle.errors.user_error`.
    """
    _check_noise_options(options)
    folder = run_dir(options.report, options.output)
    check_run_dir(folder)
    settings = {
        **_output_settings(options),
        "checkpoint": _plain(folder / "model.pt"),
        **_fit_settings(options, folder),
        **_shared_settings(options, folder),
    }
    _run(["train.json", "inference.json", "denoise.yaml", *_refine(options)], "train", settings)
    return folder


def run_fit(options: argparse.Namespace) -> Path:
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

    _check_noise_options(options)
    if options.even is not None and len(options.inputs) > 1:
        raise InputError(f"halves go with one tomogram, not with {len(options.inputs)}: fit them one by one")
    folder = run_dir(options.report, options.checkpoint)
    goes_on = options.resume and (folder / STATE_NAME).is_file()
    check_new_file(options.checkpoint, overwrite=options.overwrite or goes_on)
    check_run_dir(folder)
    settings = {
        "tomogram": _plain(options.inputs[0]),
        "tomograms": [_plain(path) for path in options.inputs],
        "checkpoint": _plain(options.checkpoint),
        **_fit_settings(options, folder),
        **_shared_settings(options, folder),
    }
    _run(["train.json", *_refine(options)], "train", settings)
    return folder


def run_apply(options: argparse.Namespace) -> Path:
    """Denoise a tomogram with a network that was fitted before.

    Args:
        options: those of ``cryoshuffle apply``.

    Returns:
        the folder of the run.

    Raises:
        UserError: see :func:`run_denoise`.
    """
    from cryoshuffle.inference.checkpoints import load_plain, network_config

    folder = run_dir(options.report, options.output)
    network = network_config(load_plain(options.checkpoint), options.checkpoint)
    check_run_dir(folder)
    settings = {
        **_output_settings(options),
        "checkpoint": _plain(options.checkpoint),
        "network_def": network,
        "resume": options.resume,
        **_shared_settings(options, folder),
    }
    _run(["inference.json"], "infer", settings)
    return folder
