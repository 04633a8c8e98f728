"""What a result was made of: checksums, settings, noise and times, and that its input stayed the same meanwhile."""

from __future__ import annotations

import atexit
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents

import cryoshuffle
from cryoshuffle.errors import FileError
from cryoshuffle.files.locks import unlock_run
from cryoshuffle.files.writing import as_plain, checksum, write_json
from cryoshuffle.noise.choice import BlindPlan

PROVENANCE_NAME = "provenance.json"
# A file in a temporary folder, whose volumes are arrays of the program around a run.
IN_MEMORY_NAME = ".in_memory"
# Settings that are paths.
_PATHS = ("tomogram", "output", "residual", "error", "checkpoint", "halves", "empty", "mask", "warm_start")


def locate(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Path:
    """A file that the provenance of a run names.

    Args:
        path: as it is named. A relative one, of version 0.1.0, counts from where the run was started: that is looked
            for above the folder of the run before it is the working directory.
        folder: of the run. What was moved with it is in it, or in a folder above it, up to the third.
    """
    place, name = Path(os.path.abspath(folder)), Path(path).name
    # What is named from the root stays so.
    places = [above / path for above in place.parents] + [near / name for near in (place, *place.parents[:3])]
    return next((one for one in places if one.exists()), Path(path))


def recorded_run(folder: str | os.PathLike[str]) -> tuple[Path, Mapping[str, Any]]:
    """The network of a run and its settings, as its provenance has them.

    Args:
        folder: of the run. Without provenance the network is its ``model.pt``, and there are no settings.
    """
    own = Path(folder) / "model.pt"
    try:
        content = json.loads((Path(folder) / PROVENANCE_NAME).read_text(encoding="utf-8"))
        network, settings = locate(content["network"]["path"], folder), dict(content["settings"])
    except (OSError, ValueError, LookupError, TypeError):
        return own, {}
    return own if own.exists() else network, settings


def checksums(paths: Sequence[str | os.PathLike[str]], mask: str | os.PathLike[str] | None = None) -> list[str]:
    """:func:`cryoshuffle.files.writing.checksum` of tomograms, and of their mask if there is one."""
    return [checksum(path) for path in (*paths, *([] if mask is None else [mask]))]


def _state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    try:
        status, within = os.stat(path), Path(path)
        files = [one.stat() for one in within.rglob("*")] if within.is_dir() else []
    except OSError as error:
        raise FileError(f"{path}: is gone, it was there when the run began; start again") from error
    sizes, newest = sum(one.st_size for one in files), max((one.st_mtime_ns for one in files), default=0)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, len(files), sizes, newest


class InputSnapshot:
    """When a run began, and the state its input was in.

    Args:
        tomogram: path of the input.

    Raises:
        FileError: if it is not there.
    """

    def __init__(self, tomogram: str) -> None:
        self.tomogram, self.time = tomogram, time.time()
        self._state = _state(tomogram)

    def check(self) -> None:
        """Refuse an input that is not what it was.

        Raises:
            FileError: if it was replaced or changed.
        """
        if _state(self.tomogram) != self._state:
            raise FileError(
                f"{self.tomogram}: was changed while it was being denoised, nothing was written; start again"
            )


class Provenance:
    """Writes down what a result was made of, and refuses one whose input changed while it was made.

    Args:
        path: of the JSON file.
        beginning: of the run.
        output: path of the result.
        settings: of the run, plain values.
        measured: noise and blind set; None where they came with the checkpoint.
        checkpoint: path of the network.
        device: that computed.
        residual: path of what was taken away; None if it was not asked for.
        error: path of the error map; None if it was not asked for.

    Raises:
        FileError: from the engine, if the input was replaced or changed since the beginning.
    """

    def __init__(
        self,
        path: str,
        beginning: InputSnapshot,
        output: str,
        settings: Mapping[str, Any],
        measured: BlindPlan | None = None,
        checkpoint: str | None = None,
        device: torch.device | str = "cpu",
        residual: str | None = None,
        error: str | None = None,
    ) -> None:
        # Whoever reads them may have another working directory.
        self.files = {
            name: None if file is None else os.path.abspath(file)
            for name, file in {
                "input": beginning.tomogram, "output": output, "residual": residual, "error": error,
                "network": checkpoint,
            }.items()
        }  # fmt: skip
        self.settings = {name: _absolute(one) if name in _PATHS else one for name, one in settings.items()}
        self.path, self.beginning, self.measured = Path(path), beginning, measured
        self.device = torch.device(device)

    def attach(self, engine: Engine) -> None:
        """Look at the input, and remove what is of another result, before this one is written; write when it is."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self)

    def _check(self, engine: Engine) -> None:
        self.beginning.check()
        self.path.unlink(missing_ok=True)

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        began, ended = (
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) for seconds in (self.beginning.time, time.time())
        )
        window = getattr(getattr(engine, "inferer", None), "used_window", None)
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None
        write_json(
            {
                "program": f"cryoshuffle {cryoshuffle.__version__}",
                "python": platform.python_version(),
                "torch": torch.__version__,
                "device": str(self.device) if gpu is None else f"{self.device}, {gpu}",
                "began": began,
                "ended": ended,
                **{name: None if file is None else _named(file) for name, file in self.files.items()},
                "settings": {name: as_plain(value) for name, value in self.settings.items()},
                "window_zyx": None if window is None else list(window),
                "noise": None if self.measured is None else self.measured.report(),
            },
            self.path,
        )


def _named(file: str) -> dict[str, Any]:
    """Path and checksum of a file; one that stands for an array says so, as it is gone when the run is over."""
    in_memory = {"in_memory": True} if Path(file).with_name(IN_MEMORY_NAME).exists() else {}
    return {"path": file, "sha256": checksum(file), **in_memory}


def _absolute(value: Any) -> Any:
    """A path, or those of a list, from the root."""
    if isinstance(value, (list, tuple)):
        return [_absolute(one) for one in value]
    return os.path.abspath(value) if isinstance(value, (str, os.PathLike)) and str(value) else value


# MONAI's command line ends without its finalize where a run failed.
atexit.register(unlock_run)
