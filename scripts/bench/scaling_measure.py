"""Counts how often a run reads its tomogram, and times what a disk and one core make of it: what the plan stands on."""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch

from cryoshuffle.commands.cli import main as cryoshuffle
from cryoshuffle.files import scratch
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.intensity import StandardiseIntensity
from cryoshuffle.files.writing import SETTLED_S, checksum
from cryoshuffle.memory import limit_memory

GIB = 2**30
WAYS = {"fit": "a fit to each", "apply": "one network for all"}
# What is counted, in sizes of the tomogram.
COUNTED = {
    "file_reads": "read from files",
    "loads": "of that, to load it",
    "scratch_passes": "gone over in volumes on disk",
}
Json = dict[str, Any]


def _read_by_process() -> int:
    """Bytes this process has read so far, of files and of what the system had of them in memory."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


@contextlib.contextmanager
def _counted(count: dict[str, int]) -> Iterator[None]:
    """Count the bytes that are loaded and standardised, and those that go by section by section in volumes on disk."""
    sections, standardise = scratch.sections, StandardiseIntensity.__call__

    def counting(shape: Sequence[int], dim: int = 1) -> Iterator[slice]:
        plane = 4 * math.prod(shape) // max(1, shape[dim])
        for part in sections(shape, dim):
            count["scratch_passes"] += plane * (part.stop - part.start)
            yield part

    def counting_too(self: StandardiseIntensity, image: Any) -> Any:
        count["loads"] += 4 * math.prod(image.shape)
        return standardise(self, image)

    scratch.sections, StandardiseIntensity.__call__ = counting, counting_too
    try:
        yield
    finally:
        scratch.sections, StandardiseIntensity.__call__ = sections, standardise


def count_passes(work: Path) -> Json:
    """How often a run reads files, loads its tomogram, and goes over volumes on disk: what a larger tomogram adds.

    Returns:
        ``file_reads``, loads included, ``loads`` and ``scratch_passes`` by way, in sizes of the tomogram.
    """
    found: dict[str, list[dict[str, int]]] = {way: [] for way in WAYS}
    fit = ["--steps", "4", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y"]
    within = "32,48,48"
    # The first is to load all libraries. What looks at the middle of a volume only is the same for the other two.
    for number, planes in enumerate((32, 256, 512)):
        source, network = work / f"count_{number}.mrc", work / f"fit_{number}_run" / "model.pt"
        with mrcfile.new(source) as mrc:
            mrc.set_data(np.random.default_rng(0).standard_normal((planes, 48, 48)).astype(np.float32))
            mrc.set_volume()
            mrc.voxel_size = 10.0
        # What was changed a moment ago is read for its checksum each time.
        time.sleep(2 * SETTLED_S)
        for way, words in {
            "fit": ["denoise", *fit, "--inference-window", within],
            "apply": ["apply", str(network), "--window", within],
        }.items():
            count = {"size": 4 * planes * 48 * 48, "loads": 0, "scratch_passes": 0, "file_reads": -_read_by_process()}
            out = [str(source), str(work / f"{way}_{number}.mrc"), "--quiet", "--memory", "0.004"]
            with _counted(count), contextlib.redirect_stdout(io.StringIO()):
                code = cryoshuffle([*words, *out])
            if code:
                raise RuntimeError(f"the run that counts ended with {code}")
            count["file_reads"] += _read_by_process()
            found[way].append(count)
    limit_memory()
    counted: Json = {}
    for name in COUNTED:
        counted[name] = {w: (c[2][name] - c[1][name]) / (c[2]["size"] - c[1]["size"]) for w, c in found.items()}
    return counted


def _evict(path: Path) -> None:
    """Make the system forget what it has of a file in memory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def measure_rates(work: Path, mib: int) -> Json:
    """Rates of the disk, and of what the node's processor does with each volume, on a volume on disk.

    The disk by wall clock; the processor by the seconds that it was at work for this process.
    """
    shape, rates = (mib, 512, 512), {}
    size_gib = 4 * math.prod(shape) / GIB

    def timed(name: str, act: Callable[[], Any], clock: Callable[[], float] = time.process_time) -> Any:
        began = clock()
        result = act()
        rates[name] = clock() - began
        return result

    raw = work / "raw"
    plane = np.random.default_rng(0).standard_normal(shape[1:]).astype(np.float32)

    def write_raw() -> None:
        volume = torch.from_numpy(scratch.empty_volume(shape, work, raw))
        for part in scratch.sections(shape, 0):
            volume[part] = torch.from_numpy(plane)
        scratch.flush(volume)

    def read_raw() -> None:
        with raw.open("rb") as file:
            while file.read(scratch.SECTION):
                pass

    timed("write", write_raw, time.monotonic)
    _evict(raw)
    timed("read", read_raw, time.monotonic)
    raw.unlink()
    source, copy = work / "volume.mrc", work / "copy.mrc"
    with mrcfile.new_mmap(source, shape, 2) as mrc:
        for z in range(shape[0]):
            mrc.data[z] = plane * (1 + z / shape[0])
        mrc.voxel_size = 10.0
    limit_memory(size_gib)
    standardise = StandardiseIntensity()
    image = timed("load", lambda: standardise(load_tomogram(source, folder=work)))

    def write_result() -> None:
        save_tomogram(standardise.inverse(image), copy)

    timed("finish", write_result)
    timed("checksum", lambda: checksum(source))
    limit_memory()
    return {
        "disk_write_gib_per_s": size_gib / rates["write"],
        "disk_read_gib_per_s": size_gib / rates["read"],
        "load_s_per_gib": rates["load"] / size_gib,
        "finish_s_per_gib": rates["finish"] / size_gib,
        "checksum_s_per_gib": rates["checksum"] / size_gib,
        "volume_gib": size_gib,
        "threads": torch.get_num_threads(),
    }
