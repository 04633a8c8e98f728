"""What a result was made of: checksums, settings, noise and times, and that its input stayed the same meanwhile."""

from __future__ import annotations

import atexit
import errno
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
from cryoshuffle.noise import Measured
from cryoshuffle.outputs import checksum, write_json

_LOCK = ".lock"
# Locks that this process holds, by path.
_held: dict[Path, int] = {}


def checksums(paths: Sequence[str | os.PathLike[str]] | None) -> list[str]:
    """:func:`cryoshuffle.outputs.checksum` of several files; none for None."""
    return [checksum(path) for path in paths or ()]


def _state(path: str | os.PathLike[str]) -> tuple[int, ...]:
    try:
        found, within = os.stat(path), Path(path)
        files = [one.stat() for one in within.rglob("*")] if within.is_dir() else []
    except OSError as error:
        raise FileError(f"{path}: is gone, it was there when the run began; start again") from error
    sizes, newest = sum(one.st_size for one in files), max((one.st_mtime_ns for one in files), default=0)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, len(files), sizes, newest


class Beginning:
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

    Raises:
        FileError: from the engine, if the input was replaced or changed since the beginning.
    """

    def __init__(
        self,
        path: str,
        beginning: Beginning,
        output: str,
        settings: Mapping[str, Any],
        measured: Measured | None = None,
        checkpoint: str | None = None,
        device: torch.device | str = "cpu",
        residual: str | None = None,
    ) -> None:
        self.residual = residual
        self.path, self.beginning, self.output = Path(path), beginning, output
        self.settings, self.measured, self.checkpoint = dict(settings), measured, checkpoint
        self.device = torch.device(device)

    def attach(self, engine: Engine) -> None:
        """Look at the input before the result is written, and write when it is."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._check)
        engine.add_event_handler(Events.COMPLETED, self)

    def _check(self, engine: Engine) -> None:
        self.beginning.check()

    def __call__(self, engine: Engine) -> None:
        """Write now."""
        began, ended = (
            time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) for seconds in (self.beginning.time, time.time())
        )
        files = {"output": self.output, "residual": self.residual, "network": self.checkpoint}
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
                "input": {"path": str(self.beginning.tomogram), "sha256": checksum(self.beginning.tomogram)},
                **{
                    name: None if file is None else {"path": str(file), "sha256": checksum(file)}
                    for name, file in files.items()
                },
                "settings": {name: _plain(value) for name, value in self.settings.items()},
                "window_zyx": None if window is None else list(window),
                "noise": None if self.measured is None else self.measured.report(),
            },
            self.path,
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (int, float, bool, str, type(None))) else str(value)


def hold(folder: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> None:
    """Keep other runs out of a folder, and from a result, as long as this process lives, or until :func:`let_go`.

    The system forgets the locks when the process ends, however it ends. Systems and file systems without such locks are
    left as they are. Of several processes of one run the first holds them.

    Args:
        folder: of the run; made if it is not there.
        output: path of the result; beside it lies a hidden, empty file while it is held. None for none.

    Raises:
        FileError: if another run holds one of them.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    path = Path(folder).resolve()
    path.mkdir(parents=True, exist_ok=True)
    if not _lock(path):
        raise FileError(f"{folder}: another run is at work there, wait for it or choose another folder with --report")
    if output is not None:
        beside = Path(output).resolve()
        if not _lock(beside.with_name(f".{beside.name}{_LOCK}")):
            raise FileError(f"{output}: another run is about to write it, wait for it or choose another name")


def _lock(path: Path) -> bool:
    """Lock a folder, or a file that is made for it; False if another process has it."""
    try:
        import fcntl
    except ImportError:
        return True
    while path not in _held:
        try:
            number = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
        except OSError:
            return True
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.stat(path)
        except FileNotFoundError:
            found = None
        except OSError as error:
            os.close(number)
            return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        if found is not None and os.path.samestat(found, os.fstat(number)):
            _held[path] = number
        else:
            # Whoever held it took it away meanwhile.
            os.close(number)
    return True


def let_go() -> None:
    """Let other runs at what was held."""
    while _held:
        path, number = _held.popitem()
        if path.name.endswith(_LOCK):
            path.unlink(missing_ok=True)
        os.close(number)


# MONAI's command line ends without its finalize where a run failed.
atexit.register(let_go)
