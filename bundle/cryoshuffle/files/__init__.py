"""Files in and out: formats, readers and writers, scratch space, grey values, masks, locks."""

from __future__ import annotations

from cryoshuffle.files.formats import (
    ExactPath,
    TomogramReader,
    image_writer,
    load_tomogram,
    save_tomogram,
)
from cryoshuffle.files.intensity import FillNotFinited, StandardiseIntensityd
from cryoshuffle.files.locks import lock_run, unlock_run
from cryoshuffle.files.mrc import MrcReader, MrcWriter
from cryoshuffle.files.omezarr import OmeZarrReader, OmeZarrWriter

__all__ = [
    "ExactPath",
    "FillNotFinited",
    "MrcReader",
    "MrcWriter",
    "OmeZarrReader",
    "OmeZarrWriter",
    "StandardiseIntensityd",
    "TomogramReader",
    "image_writer",
    "load_tomogram",
    "lock_run",
    "save_tomogram",
    "unlock_run",
]
