"""Jobs of RELION 5 that run this program: the Denoise job in place of cryoCARE, and the External job.

The Denoise job calls three executables of cryoCARE, each with ``--conf`` and a JSON file that the job has written. It
takes what they leave: a model from the training, and a tomogram for each even half from the prediction. Run as a
program, this module is those three.

Source:
    The files and their keys are those that RELION 5 writes and looks for: ``tomography_python_programs/denoise`` in its
    source, and ``External job-type`` in its documentation.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shlex
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryoshuffle.errors import FileError, FitInterruptedError, InputError, UserError, stop_behind
from cryoshuffle.signals import listening, readers_may_go

TOOLS = {
    "extract": "cryoCARE_extract_train_data.py",
    "train": "cryoCARE_train.py",
    "predict": "cryoCARE_predict.py",
}
EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED = (f"RELION_JOB_EXIT_{word}" for word in ("SUCCESS", "FAILURE", "ABORTED"))
ABORT_NOW = "RELION_JOB_ABORT_NOW"
OUTPUT_NODES = "RELION_OUTPUT_NODES.star"
_TOMOGRAMS_NODE = "TomogramGroupMetadata.star.relion"
_MARK = "# Written by cryoshuffle relion-shim."
_POLL_S = 2.0
_NO_MODEL = (
    "There is no network in this file. cryoshuffle stands in for cryoCARE: it denoises each tomogram from itself, "
    "in the prediction part of the job. RELION asks for a model there, and this file is what to give it.\n"
)


def write_shim(folder: str | os.PathLike[str], words: Sequence[str] = ()) -> dict[str, Path]:
    """Write the three executables that a Denoise job of RELION 5 calls.

    Args:
        folder: that they go to, for the job's path of cryoCARE executables; made if it is not there.
        words: options of ``cryoshuffle denoise`` for all tomograms.

    Returns:
        their paths, by the keys of :data:`TOOLS`.

    Raises:
        FileError: if a file of that name is not one of ours, or cannot be written.
    """
    folder = Path(folder)
    try:
        for path in (folder / name for name in TOOLS.values()):
            if path.is_dir() or (path.exists() and _MARK not in path.read_text(encoding="utf-8", errors="replace")):
                raise FileError(f"{path}: is not one that cryoshuffle wrote, choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        return {tool: _write_tool(folder / name, tool, words) for tool, name in TOOLS.items()}
    except FileError:
        raise
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror or error}), choose another folder") from error


def _write_tool(path: Path, tool: str, words: Sequence[str]) -> Path:
    from cryoshuffle.files.writing import written_whole

    options = words if tool == "predict" else ()
    command = shlex.join([sys.executable, "-m", "cryoshuffle.commands.relion", tool, *options])
    with written_whole(path) as partial:
        partial.write_text(f'#!/bin/sh\n{_MARK}\nexec {command} "$@"\n', encoding="utf-8")
        partial.chmod(0o755)
    return path


def run_tool(tool: str, conf: str | os.PathLike[str], words: Sequence[str] = ()) -> int:
    """Do what an executable of cryoCARE is called for.

    Args:
        tool: a key of :data:`TOOLS`.
        conf: path of the JSON file of the job.
        words: options of ``cryoshuffle denoise``.

    Returns:
        0, or 2 if a tomogram could not be denoised.

    Raises:
        FileError, InputError: if the file of the job, or a half, cannot be used.
    """
    settings = _read_conf(Path(conf))
    if tool == "extract":
        print("cryoshuffle: nothing is extracted, each tomogram is denoised from itself when the job predicts")
        return 0
    if tool == "train":
        model = write_model(settings, conf)
        print(f"cryoshuffle: nothing is trained here, each tomogram is denoised from itself when the job predicts; "
              f"{model} is for the job alone, it has no network in it")  # fmt: skip
        return 0
    return _predict(settings, conf, words)


def _read_conf(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path}: cannot be read as JSON ({error}), give the file of a Denoise job") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: holds no settings by name, give the file of a Denoise job")
    return settings


def _setting(settings: Mapping[str, Any], name: str, conf: str | os.PathLike[str]) -> Any:
    if settings.get(name) in (None, ""):
        raise InputError(f"{conf}: has no {name}, give the file that a Denoise job of RELION 5 has written")
    return settings[name]


def write_model(settings: Mapping[str, Any], conf: str | os.PathLike[str]) -> Path:
    """Write the archive that RELION looks for after the training; a text in it says that it holds no network.

    Args:
        settings: ``path``, folder of the job, and ``model_name``.
        conf: path of the file they are from, for messages.

    Raises:
        InputError: if a setting is missing.
        FileError: if it cannot be written.
    """
    from cryoshuffle.files.writing import written_whole

    folder, name = (str(_setting(settings, key, conf)) for key in ("path", "model_name"))
    model, text = Path(folder) / f"{name}.tar.gz", _NO_MODEL.encode()
    with written_whole(model) as partial, tarfile.open(partial, "w:gz") as archive:
        entry = tarfile.TarInfo(f"{name}/README.txt")
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    return model


def pairs_of(settings: Mapping[str, Any], conf: str | os.PathLike[str]) -> list[Any]:
    """The tomograms of a prediction, as items of a batch.

    Args:
        settings: ``even`` and ``odd``, a path or a list of them, and ``output``, folder of the results, which have the
            names of the even halves.
        conf: path of the file they are from, for messages.

    Raises:
        InputError: if a setting is missing, the lists are empty or differ in length, or two even halves have one name.
    """
    from cryoshuffle.commands.lists import Item
    from cryoshuffle.files.formats import split_suffix

    even, odd = (_setting(settings, key, conf) for key in ("even", "odd"))
    evens, odds = ([one] if isinstance(one, str) else [str(path) for path in one] for one in (even, odd))
    folder = Path(str(_setting(settings, "output", conf))).absolute()
    if len(evens) != len(odds):
        raise InputError(f"{conf}: names {len(evens)} even halves and {len(odds)} odd ones, give as many of each")
    if not evens:
        raise InputError(f"{conf}: names no halves, give the file that a Denoise job of RELION 5 has written")
    items: dict[str, Item] = {}
    for one, other in zip(map(os.path.abspath, evens), map(os.path.abspath, odds), strict=True):
        name = split_suffix(one)[0]
        mean = folder / f"{name}_run" / "mean.mrc"
        if name in items:
            raise InputError(f"{conf}: {one} and {items[name].even} have one name, and their results would too")
        items[name] = Item(name, str(mean), str(folder / Path(one).name), one, other, is_mean=True)
    return list(items.values())


def _predict(settings: Mapping[str, Any], conf: str | os.PathLike[str], words: Sequence[str]) -> int:
    from cryoshuffle.commands.batch import command_of, is_done, run_item

    items = pairs_of(settings, conf)
    if settings.get("path"):
        print(f"cryoshuffle: {settings['path']} is not used, each tomogram is denoised from itself", flush=True)
    Path(items[0].output).parent.mkdir(parents=True, exist_ok=True)
    device = _device_words(settings, words)
    failed = 0
    for number, item in enumerate(items, 1):
        command = command_of(item, words)
        anew = False
        try:
            is_done(item, command)
        except UserError:
            # Of other halves or options than now. RELION says whether such a file gives way.
            anew = str(settings.get("overwrite", False)).lower() == "true"
        outcome = run_item(vars(item), command, device, overwrite=anew)
        failed += not outcome.is_done
        why = f": {outcome.words}" if outcome.words else ""
        print(f"[{number}/{len(items)}] {item.name}: {outcome.status} in {outcome.seconds:.0f} s{why}", flush=True)
        if outcome.status == "stopped":
            return 3
    return 2 if failed else 0


def _device_words(settings: Mapping[str, Any], words: Sequence[str]) -> list[str]:
    """The option for the GPU that the job names, the first of several; none where the machine has not got it."""
    from torch.cuda import device_count

    gpu = settings.get("gpu_id")
    first = gpu[0] if isinstance(gpu, list) and gpu else gpu
    if not str(first).isdigit() or any(word.startswith("--device") for word in words):
        return []
    if int(str(first)) >= device_count():
        print(f"cryoshuffle: there is no GPU {first} here, the best device there is runs instead", flush=True)
        return []
    return [f"--device=cuda:{first}"]


def run_external(folder: Path, run: Callable[[], int], results: Sequence[str] = ()) -> int:
    """Run an External job of RELION: leave the files that it waits for, and stop when it asks for that.

    Args:
        folder: of the job.
        run: does the work, and returns an exit code.
        results: names of ``tomograms.star`` files that the run writes into the folder; they become nodes of RELION's
            pipeline.

    Returns:
        the exit code.

    Raises:
        FileError: if there is a file where the folder should be.
    """
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder}: is a file where the folder of the job should be, choose another with --o")
    for name in (EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED, ABORT_NOW):
        (folder / name).unlink(missing_ok=True)
    mark = EXIT_FAILURE
    try:
        with _stopped_by(folder / ABORT_NOW):
            code = run()
        mark = EXIT_SUCCESS if code == 0 else EXIT_FAILURE
    except BaseException as error:
        mark = EXIT_ABORTED if stop_behind(error) else EXIT_FAILURE
        raise
    finally:
        if folder.is_dir():
            _write_nodes(folder, [name for name in results if (folder / name).is_file()])
            (folder / ABORT_NOW).unlink(missing_ok=True)
            (folder / mark).touch()
    return code


def _write_nodes(folder: Path, names: Sequence[str]) -> None:
    """Tell RELION's pipeline of files; it counts paths from the folder of the project, where it starts the job."""
    from cryoshuffle.files.writing import write_text

    if names:
        lines = ["data_output_nodes", "loop_", "_rlnPipeLineNodeName #1", "_rlnPipeLineNodeTypeLabel #2"]
        write_text("\n".join([*lines, *(f"{folder / name} {_TOMOGRAMS_NODE}" for name in names)]) + "\n",
                   folder / OUTPUT_NODES)  # fmt: skip


@contextmanager
def _stopped_by(request: Path) -> Iterator[None]:
    """While this lasts, a file that appears asks this process to stop, as SIGTERM does."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_POLL_S):
            if request.exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the executables.

    Args:
        arguments: the tool, options of ``cryoshuffle denoise``, and ``--conf``; None takes those of the process.

    Returns:
        0 when done, 2 for a mistake that one sentence explains, 3 when stopped by a signal.
    """
    parser = argparse.ArgumentParser(prog="cryoCARE, by cryoshuffle", allow_abbrev=False)
    parser.add_argument("tool", choices=list(TOOLS))
    parser.add_argument("--conf", required=True)
    known, words = parser.parse_known_args(arguments)
    with readers_may_go(), listening(_stop):
        try:
            return run_tool(known.tool, known.conf, words)
        except UserError as mistake:
            print(f"cryoshuffle: {mistake}", file=sys.stderr)
            return 2
        except FitInterruptedError as stop:
            print(f"cryoshuffle: {stop}", file=sys.stderr)
            return 3


def _stop(number: int, frame: Any) -> None:
    raise FitInterruptedError("stopped; the job goes on from here when it is run again")


if __name__ == "__main__":
    sys.exit(main())
