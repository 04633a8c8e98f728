"""Processes that time what they are asked for, each with one number of threads."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from cryoshuffle.memory import keep_memory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.methods import NotRunError
from bench.subject import Subject, make_work
from bench.timing import peak_mib, timed

WARM_SIDE = 128
# What a config that cannot run on a device raises.
CANNOT = (RuntimeError, TypeError, ValueError, MemoryError)


@dataclass(frozen=True)
class Place:
    """Where work is done: a column of the tables.

    Attributes:
        device: ``cpu``, ``cuda`` or ``mps``.
        threads: of the process.
    """

    device: str
    threads: int

    @property
    def name(self) -> str:
        """In the tables."""
        if self.device != "cpu":
            return self.device.upper()
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """What tells a program its number of threads."""
    return {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}


class Worker:
    """A process with one number of threads that times what it is asked for; it starts when it is first asked.

    Args:
        place: where it works.
        log: file for all that it says.
        least_s: shortest warm-up and repetition, seconds.
    """

    def __init__(self, place: Place, log: Path, least_s: float) -> None:
        self.place, self.log, self.least_s = place, log, least_s
        self._process: subprocess.Popen[str] | None = None
        self._said: IO[str] | None = None

    def ask(self, subject: Subject) -> dict[str, Any]:
        """Time a subject once.

        Returns:
            ``seconds``, and by how many ``mib`` the memory of the process has grown since its start, at its peak.

        Raises:
            NotRunError: if the machine cannot do it, or the process ended.
        """
        if self.place.device == "cpu" and self.place.threads > cores():
            raise NotRunError(f"{self.place.name} asked for, cores there: {cores()}")
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asdict(subject)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            raise NotRunError(f"the process ended with code {code}" + (", out of memory perhaps" if code > 128 else ""))
        answer = json.loads(line)
        if "reason" in answer:
            raise NotRunError(answer["reason"])
        return answer

    def time(self, subject: Subject) -> dict[str, Any]:
        """The ``seconds`` of :meth:`ask` alone: the memory of a process that does many things tells nothing."""
        return {"seconds": self.ask(subject)["seconds"]}

    def _start(self) -> subprocess.Popen[str]:
        self._said = self.log.open("a", encoding="utf-8")
        # A program begins with the peak memory of what it was started by: that is to be a shell, not this process.
        command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, str(Path(__file__).resolve())]
        command += [self.place.device, str(self.place.threads), str(self.least_s)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **environment(self.place.threads)},
            start_new_session=True,
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.__exit__(None, None, None)
            self._process = None
        if self._said is not None:
            self._said.close()
            self._said = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.close()


def serve(device_name: str, threads: int, least_s: float) -> None:
    """Time what the parent asks for, a line of JSON each, until there is nothing more to read.

    The first time that a subject is asked for, it is warmed up for ``least_s``; a repetition lasts that long too.
    """
    # Libraries may print: the answers keep the way out for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch.set_num_threads(threads)
    device = torch.device(device_name)
    # Linux can forget the peak of loading the libraries.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    before = peak_mib(device)
    ready: dict[Subject, tuple[Callable[[], object], int]] = {}
    kept = contextlib.ExitStack()
    for line in sys.stdin:
        asked = {name: tuple(v) if isinstance(v, list) else v for name, v in json.loads(line).items()}
        subject = Subject(**asked)
        try:
            if not ready:
                kept.enter_context(keep_memory(device))  # as a fit does, and inference of a large volume
            if subject not in ready:
                ready[subject] = warm_up(subject, device, least_s)
            work, calls = ready[subject]
            seconds = timed(work, device, calls)
            after = peak_mib(device)
            grown = None if before is None or after is None else after - before
            answer: dict[str, Any] = {"seconds": seconds, "mib": grown}
        except CANNOT as error:
            answer = {"reason": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)


def warm_up(subject: Subject, device: torch.device, least_s: float) -> tuple[Callable[[], object], int]:
    """The work of a subject, and how many calls make a repetition; a large volume is warmed up on a part of it."""
    work = make_work(subject, device)
    warm = work
    if subject.task == "volume" and max(subject.shape) > WARM_SIDE:
        warm = make_work(replace(subject, shape=tuple(min(n, WARM_SIDE) for n in subject.shape)), device)
    spent = [timed(warm, device)]
    while sum(spent) < least_s:
        spent.append(timed(warm, device))
    return work, max(1, math.ceil(least_s / spent[-1]))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
