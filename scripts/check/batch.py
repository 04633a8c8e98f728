#!/usr/bin/env python3
"""Denoises many small tomograms as one batch while things go wrong, and each of them alone for comparison.

    scripts/check/batch.py --count 24 --workers 2

One tomogram is corrupt, and one process is killed when half of the others are done. Promised are results with
the bits of single runs, one sentence for the corrupt one, and a second call that only tries the corrupt one again, or,
with that one gone, does nothing in seconds. Writes its finding into ``docs/data/robustness.json`` and ends with 1 if a
promise is broken. Takes half a minute a tomogram. Linux and macOS.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import psutil

from cryoshuffle.simulation.tilt_series import simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from check.faults import write_finding

PROGRAM = [sys.executable, "-m", "cryoshuffle"]
# The blind network alone: what the result is then does not depend on how much the filter gets.
FIT = ["--no-refine", "--window", "24,24,24"]
SHAPE = (24, 48, 48)
# A call that does nothing takes less, most of it the start of Python.
NOTHING_S = 60.0


def write_tomograms(folder: Path, count: int) -> Path:
    """Simulated tomograms, each of its own seed, and behind them one that is torn.

    Returns:
        the path of the torn one.
    """
    folder.mkdir()
    for seed in range(count - 1):
        with mrcfile.new(folder / f"{seed:03}.mrc") as mrc:
            mrc.set_data(simulate("wbp", SHAPE, 0.061, seed).tomogram.numpy())
            mrc.set_volume()
            mrc.voxel_size = 10.0
    torn = folder / "torn.mrc"
    torn.write_bytes((folder / "000.mrc").read_bytes()[:5000])
    return torn


def fit_under_way(batch: int, out: Path) -> tuple[str, psutil.Process] | None:
    """A tomogram whose network is being fitted, and the process that does so."""
    for process in psutil.Process(batch).children(recursive=True):
        try:
            command = process.cmdline()
            if "cryoshuffle.commands.worker" not in command:
                continue
            name = Path(command[-1]).stem
            log = out / f"{name}_run" / "run.log"
            if log.is_file() and "the network is blind" in log.read_text() and not Path(command[-1]).exists():
                return name, process
        except psutil.NoSuchProcess:
            continue
    return None


def run_and_kill(command: Sequence[str], out: Path, after: int, environment: dict[str, str]) -> dict[str, Any]:
    """A batch of which one process is killed in the middle of a fit, once so many results are there."""
    began, killed = time.monotonic(), None
    with tempfile.TemporaryFile("w+") as said:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said, env=environment) as batch:
            while batch.poll() is None:
                if (
                    killed is None
                    and len(list(out.glob("*.mrc"))) >= after
                    and (found := fit_under_way(batch.pid, out))
                ):
                    killed, process = found
                    process.kill()
                time.sleep(0.05)
        said.seek(0)
        lines = said.read().splitlines()
    return {
        "seconds": time.monotonic() - began,
        "exit_code": batch.returncode,
        "worker_killed_while_denoising": killed,
        "said_in_the_end": lines,
    }


def call_again(command: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """The same batch once more."""
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return {
        "seconds": time.monotonic() - began,
        "exit_code": done.returncode,
        "skipped": done.stdout.count("skipped"),
        "said_in_the_end": done.stderr.splitlines(),
    }


def check_batch(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What became of a batch, and of each of its tomograms alone."""
    data, out = work / "data", work / "out"
    torn = write_tomograms(data, options.count)
    more = [*FIT, "--steps", str(options.steps)]
    threads = max(1, (os.cpu_count() or 1) // options.workers)
    # Bits depend on the number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    command = [*PROGRAM, "batch", str(data), str(out), "--workers", str(options.workers), *more]
    good = [path.name for path in sorted(data.glob("*.mrc")) if path != torn]
    batch = run_and_kill(command, out, len(good) // 2, environment)

    def times() -> list[int]:
        return [(out / name).stat().st_mtime_ns for name in good if (out / name).exists()]

    written = times()
    again = call_again(command, environment)
    torn.unlink()
    rest = call_again(command, environment)
    untouched = times() == written

    same, bits = [], set()
    for name in good:
        alone = work / "alone" / name
        alone.parent.mkdir(exist_ok=True)
        single = [*PROGRAM, "denoise", str(data / name), str(alone), "--quiet", *more]
        subprocess.run(single, check=True, stdout=subprocess.DEVNULL, env=environment)
        if (out / name).exists():
            result = mrcfile.read(out / name)
            bits.add(result.tobytes())
            same += [name] * np.array_equal(result, mrcfile.read(alone))
    one_sentence = all(
        len(call["said_in_the_end"]) == 1 and call["said_in_the_end"][0].startswith("cryoshuffle: torn failed: ")
        for call in (batch, again)
    )
    for call in (batch, again):
        call["said_in_the_end"] = [line.replace(f"{work}{os.sep}", "") for line in call["said_in_the_end"]]
    return {
        "tomograms": options.count,
        "shape": list(SHAPE),
        "options": more,
        "workers": options.workers,
        "threads_of_each": threads,
        "batch": batch,
        "same_bits_as_alone": len(same),
        "different_results": len(bits),
        "second_call": again,
        "call_without_the_corrupt_one": rest,
        "results_untouched_by_them": untouched,
        "kept": batch["worker_killed_while_denoising"] is not None
        and len(same) == len(bits) == len(good)
        and one_sentence
        and (batch["exit_code"], again["exit_code"], rest["exit_code"]) == (2, 2, 0)
        and again["skipped"] == rest["skipped"] == len(good)
        and untouched
        and rest["seconds"] < NOTHING_S,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check and write its finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=24, help="tomograms, the corrupt one among them (default: 24)")
    parser.add_argument("--workers", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--steps", type=int, default=12, help="of each fit (default: 12)")
    parser.add_argument("--work", type=Path, help="folder for the tomograms (default: a temporary one)")
    options = parser.parse_args(arguments)
    if options.count < 3 or options.workers < 1:
        parser.error("give at least 3 tomograms, one of which is corrupt, and a worker")
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = check_batch(Path(folder).resolve(), options)
    return write_finding("batch", found)


if __name__ == "__main__":
    sys.exit(main())
