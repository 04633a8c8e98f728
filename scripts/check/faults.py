#!/usr/bin/env python3
"""Runs what no test has the time for: a tomogram larger than the memory, and kills at random moments.

    scripts/check/faults.py memory --gib 2          # peak memory of a whole run on a tomogram of so many GiB
    scripts/check/faults.py memory --gib 8 --windows 4   # the same, with most of the network's work left out
    scripts/check/faults.py kills --count 20        # SIGKILL in fit and denoising, --resume each time

Each writes its finding into ``docs/data/robustness.json`` and ends with 1 if a promise is broken. Takes minutes to
hours and, for a tomogram of n GiB, 4 n GiB of disk in ``--work``. Linux and macOS.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np

from cryoshuffle.files import scratch
from cryoshuffle.files.writing import write_json
from cryoshuffle.inference.mergers import JOURNAL
from cryoshuffle.simulation.tilt_series import simulate

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.provenance import ROOT, commit, machine

FINDINGS = ROOT / "docs" / "data" / "robustness.json"
COMMAND = [sys.executable, "-m", "cryoshuffle", "denoise"]
# The same program, which takes all windows for done once so many are, and says in a file how many that were.
SOME_WINDOWS = """
import json, sys
from pathlib import Path
from cryoshuffle.commands import cli
from cryoshuffle.inference import mergers
count, said = int(sys.argv.pop(1)), Path(sys.argv.pop(1))
is_done, finalize, left_out = mergers.WindowMerger.is_done, mergers.WindowMerger.finalize, []
def enough(self, box):
    done = is_done(self, box)
    if not done and self.folder is not None and len(self.done) >= count:
        left_out.append(box)
        return True
    return done
def finish(self):
    said.write_text(json.dumps([len(self.done), len(self.done) + len(left_out)]))
    return finalize(self)
mergers.WindowMerger.is_done, mergers.WindowMerger.finalize = enough, finish
sys.exit(cli.main())
"""


def write_large(path: Path, side: int) -> None:
    """A cube of copies of one simulated tomogram, written plane by plane."""
    tile = simulate("wbp", (80, 144, 144), 0.061, 0).tomogram.numpy()
    times = -(-side // tile.shape[1])
    with mrcfile.new_mmap(path, (side, side, side), 2, overwrite=True) as mrc:
        scratch.track(mrc.data)
        for z in range(side):
            mrc.data[z] = np.tile(tile[z % len(tile)], (times, times))[:side, :side]
            # The system counts what this process has at its peak for those that it starts, too.
            scratch.release()
        mrc.voxel_size = 10.0


def check_memory(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The peak of the resident memory of a whole run."""
    side = round((options.gib * 2**30 / 4) ** (1 / 3))
    source, out = work / "large.mrc", work / "out.mrc"
    write_large(source, side)
    began = time.monotonic()
    memory = ["--memory", str(options.memory)]
    words, said = [str(source), str(out), "--effort", options.effort, "--quiet", *memory], work / "windows.json"
    command, windows = COMMAND, None
    if options.windows is not None:
        command = [sys.executable, "-c", SOME_WINDOWS, str(options.windows), str(said), "denoise"]
    subprocess.run([*command, *words], check=True)
    if options.windows is not None:
        windows = json.loads(said.read_text(encoding="utf-8"))
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 2**30
    return {
        "tomogram_gib": source.stat().st_size / 2**30,
        "side_voxels": side,
        "effort": options.effort,
        "memory_asked_gib": options.memory,
        "windows_computed_and_there": windows,
        "peak_resident_gib": peak,
        "seconds": time.monotonic() - began,
        "kept": peak <= options.memory,
    }


def check_kills(work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a run killed again and again, beside that of one that was left alone.

    The first half of the kills may come at any time, the second only once the network is applied.
    """
    source, cut = work / "in.mrc", work / "cut.mrc"
    journal = work / "cut_run" / JOURNAL
    write_large(source, 96)
    more = ["--steps", str(options.steps), "--quiet", "--memory", "0.01", "--inference-window", "16,32,32"]
    began = time.monotonic()
    subprocess.run([*COMMAND, str(source), str(work / "whole.mrc"), *more], check=True)
    whole_s = time.monotonic() - began
    draw, early = random.Random(options.seed), False
    moments: list[dict[str, Any]] = []
    while len(moments) < options.count and not cut.exists():
        process = subprocess.Popen([*COMMAND, str(source), str(cut), *more, *(["--resume"] if moments else [])])
        began = time.monotonic()
        wait_s = draw.uniform(0, options.longest * whole_s)
        fitting = len(moments) < options.count // 2
        while process.poll() is None and (time.monotonic() - began < wait_s or not (fitting or journal.exists())):
            time.sleep(0.02)
        if process.poll() is None:
            process.kill()
            process.wait()
            stage = "denoising" if journal.exists() else "fit"
            moments.append({"after_s": round(time.monotonic() - began, 1), "stage": stage})
            early = early or (cut.exists() and not mrcfile.validate(cut))
        elif process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    if not cut.exists():
        subprocess.run([*COMMAND, str(source), str(cut), *more, "--resume"], check=True)
    left = [
        str(path.relative_to(work)) for path in work.rglob("*") if path.name.startswith(".") or "partial" in path.name
    ]
    same = bool(np.array_equal(mrcfile.read(work / "whole.mrc"), mrcfile.read(cut)))
    return {
        "kills": len(moments),
        "kills_while_denoising": sum(one["stage"] == "denoising" for one in moments),
        "moments": moments,
        "seconds_of_a_whole_run": whole_s,
        "same_bits": same,
        "partial_file_under_the_final_name": early,
        "left_behind": left,
        "kept": same and not early and not left,
    }


def write_finding(name: str, found: dict[str, Any]) -> int:
    """Put a finding, with machine and commit, among the others; the exit code is 1 if it says a promise is broken."""
    found |= {"machine": machine(), "commit": commit()}
    known = json.loads(FINDINGS.read_text(encoding="utf-8")) if FINDINGS.is_file() else {}
    write_json({**known, name: found}, FINDINGS)
    print(json.dumps(found, indent=2))
    return 0 if found["kept"] else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one check and write its finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="check", required=True)
    memory = commands.add_parser("memory", help="peak memory of a large tomogram")
    memory.add_argument("--gib", type=float, default=2.0, help="of the tomogram (default: 2)")
    memory.add_argument("--memory", type=float, default=2.0, help="the program may take, GiB (default: 2)")
    memory.add_argument("--windows", type=int, help="compute only so many windows of the result (default: all)")
    memory.add_argument("--effort", default="fast", choices=["fast", "standard"], help="default: fast")
    kills = commands.add_parser("kills", help="SIGKILL at random moments")
    kills.add_argument("--count", type=int, default=20, help="at most (default: 20)")
    kills.add_argument("--steps", type=int, default=120, help="of the fit (default: 120)")
    kills.add_argument("--longest", type=float, default=0.4, help="share of a whole run between kills (default: 0.4)")
    kills.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    for command in (memory, kills):
        command.add_argument("--work", type=Path, help="folder for the tomograms (default: a temporary one)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        found = {memory: check_memory, kills: check_kills}[commands.choices[options.check]](Path(folder), options)
    return write_finding(f"memory, {options.gib:g} GiB" if options.check == "memory" else "kills", found)


if __name__ == "__main__":
    sys.exit(main())
