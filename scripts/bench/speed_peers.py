"""Training of Noise2Void and inference of Topaz, timed as programs beside ours, without their start."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import methods, peers
from bench.methods import Job, NotRunError
from bench.subject import Subject
from bench.turns import Bench, Row, repeat, row_of
from bench.worker import Place, environment

# Of the peers, as they come or as ``peers.py`` sets them up.
TOPAZ_PATCH, N2V_VALIDATION, SMALLEST_PATCH = 96, 2, 8


def run_peer(bench: Bench, key: str, place: Place, tomogram: Path, *more: str) -> float:
    """Wall time of a peer's program, seconds.

    Raises:
        NotRunError: if it is absent, fails or takes too long.
    """
    method = next(m for m in methods.METHODS if m.key == key)
    told = [f"{name}={value}" for name, value in environment(place.threads).items()]
    command = ["env", *told, str(methods.peer_python(method, bench.peers)), str(Path(__file__).with_name("peers.py"))]
    command += [key, "--tomogram", str(tomogram), "--output", str(tomogram.parent / f"{key}.mrc"), *more]
    command += ["--gpu", "-1" if place.device == "cpu" else "0"]
    job = Job(tomogram.parent, 0, 0, 0, 60 * bench.cap_minutes, place.device, bench.peers)
    return methods.call(command, tomogram.parent / f"{key}.log", job)


def check_peer(bench: Bench, key: str) -> str:
    """The version of a peer.

    Raises:
        NotRunError: if it is absent.
    """
    return methods.peer_version(next(m for m in methods.METHODS if m.key == key), bench.peers)


def noise2void_epoch(shape: Sequence[int]) -> tuple[int, int]:
    """Steps and voxels of an epoch of Noise2Void as ``peers.py`` sets it up.

    An epoch has as many patches as would fill the volume, less those of the validation; its last batch may be smaller.

    Raises:
        NotRunError: if the volume is too small.
    """
    if min(shape) < 2 * SMALLEST_PATCH:
        raise NotRunError(f"a volume of {tuple(shape)} is too small for Noise2Void: give a larger --volume")
    patch = [min(side, n // 16 * 8) for side, n in zip(peers.N2V_PATCH, shape, strict=True)]
    patches = math.ceil(math.prod(shape) / math.prod(patch)) - N2V_VALIDATION
    return math.ceil(patches / peers.N2V_BATCH), patches * math.prod(patch)


def beside_noise2void(bench: Bench) -> list[Row]:
    """Part ``peers``: training of Noise2Void, as the difference of a longer and a shorter run, and ours."""
    check_peer(bench, "n2v")
    tomogram, epochs = bench.tomogram(), bench.settings["peer_epochs"]
    steps, voxels = noise2void_epoch(bench.settings["volume"])

    def difference(place: Place) -> dict[str, Any]:
        runs = [run_peer(bench, "n2v", place, tomogram, "--steps", str(n * steps)) for n in (1, 1 + epochs)]
        said = (tomogram.parent / "n2v.log").read_text(errors="replace")
        shown = re.search(r"Epoch 0: [^\n\r]*?\b0/(\d+)", said)
        if shown and int(shown[1]) != steps:
            raise NotRunError(f"an epoch has {shown[1]} steps where {steps} were counted on")
        return {"seconds": runs[1] - runs[0], "runs": runs}

    ours = Subject("training", bench.settings["window"])
    # What it reads for the first time takes longer.
    run_peer(bench, "n2v", bench.strongest[0], tomogram, "--steps", "1")
    return beside_peer(bench, ours, {"task": "n2v", "work": epochs * voxels}, difference)


def beside_topaz(bench: Bench) -> list[Row]:
    """Part ``peers``: inference of Topaz, its start taken off by a volume of a single patch, and ours."""
    check_peer(bench, "topaz")
    tomogram, shape = bench.tomogram(), bench.settings["volume"]
    patches = math.prod(math.ceil(n / TOPAZ_PATCH) for n in shape)
    if patches == 1:
        raise NotRunError("the volume is a single patch of Topaz: give a larger --volume")
    small = tomogram.with_name("patch.mrc")
    methods.write(methods.read(tomogram)[:TOPAZ_PATCH, :TOPAZ_PATCH, :TOPAZ_PATCH], small)

    def difference(place: Place) -> dict[str, Any]:
        runs = [run_peer(bench, "topaz", place, path, "--model", "unet-3d-10a") for path in (small, tomogram)]
        return {"seconds": (runs[1] - runs[0]) * patches / (patches - 1), "runs": runs}

    ours = Subject("volume", shape, "open")
    run_peer(bench, "topaz", bench.strongest[0], small, "--model", "unet-3d-10a")
    return beside_peer(bench, ours, {"task": "topaz", "work": math.prod(shape)}, difference)


def beside_peer(
    bench: Bench, ours: Subject, peer: Mapping[str, Any], measure: Callable[[Place], dict[str, Any]]
) -> list[Row]:
    """Ours and a peer in turns, at all places."""
    mine = [row_of(ours, place) for place in bench.places]
    theirs: list[Row] = [{**peer, "place": place.name, "seconds": []} for place in bench.places]
    for _ in range(bench.settings["process_repeats"]):
        for row, other, worker in zip(mine, theirs, bench.crew, strict=True):
            repeat(row, partial(worker.time, ours))
            if "reason" in row or worker.place.device == "mps":
                # The machine cannot do it: nothing to try again.
                other |= {"reason": row.get("reason", "peers are run on CPUs and on CUDA"), "final": True}
            repeat(other, partial(measure, worker.place))
    for row in theirs:
        if "reason" not in row and median(row["seconds"]) <= 0:
            row["reason"] = "the runs differ by less than their start does: give a larger --volume or --peer-epochs"
    return [*mine, *theirs]
