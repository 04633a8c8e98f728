"""The mean of two halves of a tomogram, where there is no tomogram of all images."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from monai.data import MetaTensor

from cryoshuffle.errors import InputError
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.scratch import empty_volume, sections


def save_mean(
    even: str | os.PathLike[str],
    odd: str | os.PathLike[str],
    path: str | os.PathLike[str],
    permissive: bool = False,
) -> None:
    """Write the mean of two halves as a tomogram, with the header of the first.

    Args:
        even: path of one half.
        odd: path of the other.
        path: of the tomogram; volumes too large for memory are kept in files beside it meanwhile.
        permissive: also take MRC files whose header breaks the standard.

    Shape:
        both halves ``(Z, Y, X)``, and so is their mean.

    Units:
        grey values of the halves.

    Raises:
        FileError: if a half cannot be read, or the tomogram cannot be written.
        InputError: if a half is no volume, or their shapes differ.
    """
    folder = Path(path).parent
    first, second = (load_tomogram(half, permissive, folder, beside=even) for half in (even, odd))
    if first.shape != second.shape:
        shapes = " and ".join(str(tuple(half.shape[1:])) for half in (first, second))
        raise InputError(f"{even} and {odd}: have shapes {shapes}, so they are not halves of one tomogram")
    mean = torch.from_numpy(empty_volume(first.shape, folder))
    for part in sections(first.shape):
        mean[:, part] = (first.as_tensor()[:, part].float() + second.as_tensor()[:, part].float()) / 2
    save_tomogram(MetaTensor(mean, meta=first.meta), path, is_result=False)
