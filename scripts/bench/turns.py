"""Rows of the speed benchmark, and how they are measured: in turns, so that a machine that slows down slows all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.methods import NotRunError
from bench.quality import SNR, prepare
from bench.subject import Subject
from bench.worker import Place, Worker, cores

Row = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """What all parts need to know.

    Attributes:
        settings: that the results of a work folder have in common.
        places: columns of the tables.
        crew: a worker for each place.
        work: folder of what is kept.
        peers: folder of the peers' environments.
        cap_minutes: no run of a peer may take longer, and a cube is not repeated beyond.
        largest: side of the largest cube.
    """

    settings: Mapping[str, Any]
    places: Sequence[Place]
    crew: Sequence[Worker]
    work: Path
    peers: Path | None
    cap_minutes: float
    largest: int

    @property
    def strongest(self) -> list[Place]:
        """The most threads that the machine has cores for, and an accelerator.

        Raises:
            NotRunError: if there is neither.
        """
        fits = [p for p in self.places if p.device == "cpu" and p.threads <= cores()]
        found = sorted(fits, key=lambda p: p.threads)[-1:] + [p for p in self.places if p.device != "cpu"]
        if not found:
            raise NotRunError(f"more threads asked for than there are cores: {cores()}")
        return found

    def fresh(self, place: Place) -> Worker:
        """A worker that has done nothing yet, for the sake of its memory; its first repetition is not lengthened."""
        return Worker(place, self.work / "worker.log", 0.0)

    def tomogram(self) -> Path:
        """A simulated tomogram."""
        prepare(self.work / "volume", "wbp", self.settings["volume"], SNR["wbp"], 0)
        return self.work / "volume" / "tomogram.mrc"


def in_turns(subjects: Sequence[Subject], crew: Sequence[Worker], repeats: int) -> list[Row]:
    """Time subjects at all places: a repetition is one round through all of them."""
    rows = [row_of(subject, worker.place) for subject in subjects for worker in crew]
    for _ in range(repeats):
        for row, (subject, worker) in zip(rows, ((s, w) for s in subjects for w in crew), strict=True):
            repeat(row, partial(worker.time, subject))
    return rows


def row_of(subject: Subject, place: Place) -> Row:
    """A row without a measurement yet."""
    return {**asdict(subject), "work": subject.work, "place": place.name, "seconds": []}


def repeat(row: Row, measure: Callable[[], Mapping[str, Any]]) -> None:
    """Add one repetition to a row; what cannot be done is told by its reason and not tried again."""
    if "reason" in row:
        return
    try:
        found = measure()
    except NotRunError as error:
        row["reason"] = str(error)
        return
    for name, value in found.items():
        row.setdefault(name, []).append(value)
