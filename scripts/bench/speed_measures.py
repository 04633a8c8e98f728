"""What the speed benchmark measures of the program: rates, the paper's formulation, convolutions, memory, start."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from bench import methods
from bench.methods import Job, NotRunError
from bench.provenance import ROOT
from bench.subject import CHANNELS, MEMORY, PAPER_CHANNELS, Subject, convolutions
from bench.turns import Bench, Row, in_turns, repeat, row_of
from bench.worker import Worker, environment

SMALLEST_CUBE = 64


def rates(bench: Bench, task: str) -> list[Row]:
    """Part ``rates``: one task by network, precision and memory format."""
    shape = {"training": "window", "window": "inference_window", "volume": "volume"}[task]
    subjects = [
        Subject(task, bench.settings[shape], network, precision=precision, memory=memory)
        for network in ("blind", "open")
        for precision in bench.settings["precisions"]
        for memory in MEMORY
    ]
    return in_turns(subjects, bench.crew, bench.settings["repeats"])


def beside_paper(bench: Bench, task: str) -> list[Row]:
    """Part ``paper``: the dilated formulations in both memory formats, ours as the config has it."""
    shape = bench.settings["window" if task == "training" else "inference_window"]
    ours = [Subject(task, shape, channels=channels) for channels in (CHANNELS, PAPER_CHANNELS)]
    dilated = [
        Subject(task, shape, network, formulation, channels, memory=memory)
        for formulation in ("plain", "dilated")
        for network, channels in (("blind", CHANNELS), ("blind", PAPER_CHANNELS), ("voxel", PAPER_CHANNELS))
        for memory in MEMORY
    ]
    return in_turns([*ours, *dilated], bench.crew, bench.settings["repeats"])


def beside_matmul(bench: Bench, precision: str) -> list[Row]:
    """Part ``matmul``: a product of matrices and the convolutions of the body."""
    product = Subject("matmul", (bench.settings["matmul"],) * 2, "", "", (), precision)
    subjects = [product, *convolutions(bench.settings["window"], precision)]
    return in_turns(subjects, bench.crew, bench.settings["repeats"])


def memory(bench: Bench) -> list[Row]:
    """Part ``process``: peak memory of a step and of a window, each repetition in a process of its own."""
    cells = [
        (Subject(task, bench.settings[shape], network, precision=precision), place)
        for task, shape, network in (("training", "window", "blind"), ("window", "inference_window", "open"))
        for precision in bench.settings["precisions"]
        for place in bench.strongest
    ]
    rows = [row_of(*cell) for cell in cells]
    for _ in range(bench.settings["process_repeats"]):
        for row, (subject, place) in zip(rows, cells, strict=True):
            with bench.fresh(place) as worker:
                repeat(row, partial(worker.ask, subject))
    return rows


def start_up(bench: Bench) -> list[Row]:
    """Part ``process``: from the start of the program to its help, and to the first step of a fit."""
    place = bench.strongest[-1]
    told = [f"{name}={value}" for name, value in environment(place.threads).items()]
    program = ["env", *told, sys.executable, "-m", "cryoshuffle"]
    tomogram = bench.tomogram()
    folder = tomogram.parent / "start_run"
    fit = ["denoise", str(tomogram), str(tomogram.parent / "start.mrc"), "--report", str(folder), "--overwrite"]
    fit += ["--tilt-axis", "y", "--device", place.device]
    job = Job(tomogram.parent, 0, 0, 0, 60 * bench.cap_minutes, place.device, None)

    def help_shown() -> dict[str, Any]:
        return {"seconds": methods.call([*program, "--help"], tomogram.parent / "help.log", job)}

    def step_begun() -> dict[str, Any]:
        shutil.rmtree(folder, ignore_errors=True)
        return {"seconds": until_said([*program, *fit], b"fitting:")}

    rows: list[Row] = [{"task": task, "place": place.name, "seconds": []} for task in ("help", "first step")]
    with contextlib.suppress(NotRunError):
        help_shown()
    for _ in range(bench.settings["process_repeats"]):
        repeat(rows[0], help_shown)
        repeat(rows[1], step_begun)
    return rows


def until_said(command: Sequence[str], word: bytes) -> float:
    """Seconds from the start of a program until it says a word as an error or on its bar; it is ended then.

    Raises:
        NotRunError: if it ends without the word.
    """
    begin = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = b""
        try:
            while word not in said:
                more = os.read(process.stderr.fileno(), 4096)
                if not more:
                    lines = said.decode(errors="replace").strip().splitlines()
                    raise NotRunError(lines[-1] if lines else "it ended without a word")
                said += more
            return time.monotonic() - begin
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def cube_sides(largest: int) -> list[int]:
    """Sides of the cubes: doubled from the smallest up to the largest."""
    sides = [SMALLEST_CUBE << k for k in range(20)]
    return [*(side for side in sides if side < largest), largest]


def cube(bench: Bench, side: int) -> list[Row]:
    """Part ``cubes``: inference of one size, in a process of its own."""
    precision = bench.settings["precisions"][0]
    subject = Subject("volume", (side,) * 3, "open", precision=precision)
    rows = []
    for place in bench.strongest:
        row = row_of(subject, place)
        with Worker(place, bench.work / "worker.log", bench.settings["least_seconds"]) as worker:
            while len(row["seconds"]) < bench.settings["process_repeats"] and "reason" not in row:
                repeat(row, partial(worker.ask, subject))
                if sum(row["seconds"]) > 60 * bench.cap_minutes:
                    break
        rows.append(row)
    return rows
