"""Where the results of windows come together: in memory, or in a file beside a journal of what is done.

The merger keeps MONAI's contract (``aggregate``, ``finalize``), so ``monai.inferers.PatchInferer`` can use it too.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.inferers import Merger
from torch import Tensor

from cryoshuffle.boxes import Box, box_between
from cryoshuffle.errors import InputError, SettingError, named_changes
from cryoshuffle.files import scratch
from cryoshuffle.files.writing import checksum, write_json

logger = logging.getLogger("cryoshuffle")
JOURNAL, VALUES = "denoising.json", "denoising.values"


class WindowMerger(Merger):
    """Adds up what windows give.

    Windows whose result is whole can be marked, and are then not computed again: not after a retry, and, where there is
    a folder, not after the program was killed either. The values are in a file there, the journal says which windows
    are done and of what. Both are removed when the result is handed over, or kept until it is written.

    Args:
        merged_shape: ``(B, C, Z, Y, X)`` of the result.
        cropped_shape: not used; the result is not cropped.
        device: of the result.
        dtype: of the result; in a file always float32.
        folder: for values and journal; None for memory.
        identity: what the result is made of, by name, as plain values; an unfinished result of something else is not
            resumed.
        files: paths, by name, of what it is made of; their checksums become part of the identity where there is a
            folder.
        resume: go on with an unfinished result in the folder, if there is one.
        overwrite: begin again although there is one.
        keep: whether values and journal stay in the folder when the result is handed over, which is a copy then. A
            :class:`WindowCleaner` removes them: writing a result can fail as well.
        values: of zeros, to add to where there is no folder; None makes them.

    Raises:
        SettingError: if there is an unfinished result and neither resume nor overwrite is asked for, or if it is of
            something else; the message names what has changed.
        InputError: if the journal is damaged, or the values that it is of are missing or of another size.
        FileError: if there is no room.
    """

    def __init__(
        self,
        merged_shape: Sequence[int],
        cropped_shape: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        folder: str | Path | None = None,
        identity: Mapping[str, Any] | None = None,
        files: Mapping[str, str] | None = None,
        resume: bool = False,
        overwrite: bool = False,
        keep: bool = False,
        values: Tensor | None = None,
    ) -> None:
        super().__init__(merged_shape, cropped_shape, device)
        self.identity = {**(identity or {}), "shape": [int(n) for n in merged_shape]}
        self.done: set[tuple[int, ...]] = set()
        self.folder = None if folder is None else Path(folder)
        if self.folder is None:
            self._values = torch.zeros(tuple(merged_shape), dtype=dtype, device=device) if values is None else values
            return
        self.identity.update({name: checksum(file) for name, file in (files or {}).items()})
        self._journal, path = self.folder / JOURNAL, self.folder / VALUES
        may_go_on = self._journal.exists() and (resume or not overwrite)
        if not may_go_on or not self._take_up(resume, overwrite):
            drop_windows(self.folder)
        self._values = torch.from_numpy(scratch.empty_volume(merged_shape, self.folder, path))
        # Room for it is taken now, not when all the work is done.
        self._copy = torch.from_numpy(scratch.empty_volume(merged_shape, self.folder)) if keep else None
        self._write()

    def _take_up(self, resume: bool, overwrite: bool) -> bool:
        """Whether what is there is gone on with; not where it is of something else and may be replaced."""
        try:
            journal = json.loads(self._journal.read_text(encoding="utf-8"))
            before, done = dict(journal["identity"]), {tuple(int(n) for n in box) for box in journal["done"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._journal}: is damaged, add --overwrite to begin again") from error
        if not resume:
            raise SettingError(
                f"{self.folder}: holds an unfinished result, add --resume to go on with it or --overwrite to begin "
                "again"
            )
        changed = named_changes(before, self.identity)
        if changed and overwrite:
            logger.info("the result was begun with something else (%s), and is begun again", changed)
            return False
        if changed:
            raise SettingError(
                f"{self._journal}: the result was begun with something else ({changed}), use that again or begin it "
                "again with --resume --overwrite, which keeps a fit"
            )
        lost = self._why_lost(done)
        if lost and not overwrite:
            raise InputError(f"{lost}: begin it again with --resume --overwrite, which keeps a fit")
        if lost:
            logger.info("%s: the result is begun again", lost)
            return False
        self.done = done
        logger.info("going on with a result of which %d windows are done", len(done))
        return True

    def _why_lost(self, done: set[tuple[int, ...]]) -> str:
        """What is wrong with the values of windows that are done, in words; empty if nothing is."""
        path, size = self._journal.with_name(VALUES), 4 * math.prod(self.identity["shape"])
        length = path.stat().st_size if path.is_file() else None
        if not done or length == size:
            return ""
        state = "is missing" if length is None else f"has {length} bytes"
        return f"{path}: {state}, and the {len(done)} windows that are done need {size} bytes"

    def _write(self) -> None:
        write_json({"identity": self.identity, "done": sorted(self.done)}, self._journal)

    def aggregate(self, values: Tensor, location: Sequence[int]) -> None:
        """Add the values of a window, or of a part of one, to what is there.

        Args:
            values: ``(B, C, z, y, x)``.
            location: of their first voxel, (Z, Y, X).
        """
        stop = [a + n for a, n in zip(location, values.shape[2:], strict=True)]
        target = self._values[(slice(None), slice(None), *box_between(location, stop))]
        values = values.to(target.device)
        learns = values.requires_grad or target.requires_grad
        if scratch.on_disk(target) and values.dtype == target.dtype and not learns:
            # By one core: this may be a thread of its own, and should not take them from the network.
            target.numpy()[...] += values.numpy()
        else:
            target.add_(values)
        scratch.release()

    def is_done(self, box: Box) -> bool:
        """Whether a window was marked."""
        return _plain(box) in self.done

    def begin(self, box: Box) -> None:
        """Clear a window that is not done: half a result may be left of it.

        Windows that were cut in another way and overlap it are no longer done.
        """
        overlapping = {done for done in self.done if _overlap(done, _plain(box))}
        if overlapping:
            self.done -= overlapping
            if self.folder is not None:
                self._write()
        where = self._values[(slice(None), slice(None), *box)]
        for part in scratch.sections(where.shape, 2):
            where[:, :, part].zero_()

    def mark(self, box: Box) -> None:
        """Say that the result of a window is whole."""
        self.done.add(_plain(box))
        if self.folder is not None:
            scratch.flush(self._values)
            self._write()

    def finalize(self) -> Tensor:
        """The result; the file loses its name, and vanishes with the last tensor over it, or is kept and copied."""
        if self.folder is None:
            return self._values
        if self._copy is None:
            drop_windows(self.folder)
        else:
            # Whoever is given the result undoes transforms in place.
            for part in scratch.sections(self._values.shape, 2):
                self._copy[:, :, part] = self._values[:, :, part]
            self._values = self._copy
        self.folder = None
        return self._values

    def get_output(self) -> Tensor:
        """The same as :meth:`finalize`."""
        return self.finalize()


def drop_windows(folder: str | Path) -> None:
    """Remove values and journal of a result; the journal first, which would call zeros a result.

    Args:
        folder: of both; nothing happens where they are not.
    """
    for name in (JOURNAL, VALUES):
        (Path(folder) / name).unlink(missing_ok=True)


class WindowCleaner:
    """Handler: removes the windows that a :class:`WindowMerger` keeps, once the result is written.

    Args:
        folder: of values and journal.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def attach(self, engine: Engine) -> None:
        """Behind the postprocessing, which writes the result."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine | None = None) -> None:
        """Remove them now."""
        drop_windows(self.folder)


def _overlap(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two boxes, first and last voxel along each axis in turn, share a voxel."""
    sides = zip(one[::2], one[1::2], other[::2], other[1::2], strict=True)
    return all(max(a, c) < min(b, d) for a, b, c, d in sides)


def _plain(box: Box) -> tuple[int, ...]:
    return tuple(int(n) for side in box for n in (side.start, side.stop))
