"""The stream of windows that a fit learns from, the same for the same seed wherever it is taken up."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, list_data_collate
from monai.transforms import Compose
from torch.utils.data import Dataset

from cryoshuffle.errors import InputError, SettingError


class WindowDataset(Dataset[Mapping[str, Any]]):
    """One epoch of random windows from a few volumes that stay in memory.

    Window ``i`` of epoch ``e`` is a function of seed, e and i alone: an interrupted fit goes on with the windows
    it would have seen, and several processes draw different ones.

    Args:
        data: the volumes, each a dictionary; windows are drawn from them in turn. With ``reading`` what it reads them
            from, as MONAI's datalists name it.
        transform: random transforms from a volume to a window.
        length: batches in an epoch.
        seed: of all windows.
        reading: transforms from an item of ``data`` to a volume, done once; None where they are volumes already.
        batch_size: windows in a batch.
        processes: that each take batches of their own.

    Attributes:
        volumes: that windows are drawn from.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Compose,
        length: int,
        seed: int = 0,
        reading: Compose | None = None,
        batch_size: int = 1,
        processes: int = 1,
    ) -> None:
        self.volumes = data if reading is None else CacheDataset(data, reading, copy_cache=False, progress=False)
        self.transform = transform
        self.length = length * batch_size * processes
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose windows are drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(f"window {index} of {self.length}")
        seeds = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
        self.transform.set_random_state(seed=int(seeds[0]))
        window: Mapping[str, Any] = self.transform(
            dict(self.volumes[(self.epoch * self.length + index) % len(self.volumes)])
        )
        return window


def image_paths(data: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths that a datalist names.

    Args:
        data: dictionaries, each with a path under ``image``.

    Raises:
        InputError: if one has no path there.
    """
    for number, item in enumerate(data):
        if not isinstance(item, Mapping) or not isinstance(item.get("image"), (str, os.PathLike)):
            raise InputError(f"item {number} of the datalist is {item!r:.99}: give {{'image': path of a tomogram}}")
    return [os.fspath(item["image"]) for item in data]


def as_datalist(paths: Sequence[str]) -> list[dict[str, str]]:
    """Paths as MONAI's datalists name them.

    Args:
        paths: of tomograms.
    """
    return [{"image": path} for path in paths]


def choose_preset(presets: Mapping[str, Mapping[str, Any]], name: str, what: str = "preset") -> Mapping[str, Any]:
    """The values of a named preset.

    Args:
        presets: values by preset name, as the config lists them.
        name: the preset wanted.
        what: it is called, for the message.

    Raises:
        SettingError: if there is no preset of that name.
    """
    if name not in presets:
        raise SettingError(f"{what} is '{name}': choose one of {', '.join(presets)}")
    return presets[name]


@dataclass(frozen=True)
class Effort:
    """How much work a fit is worth.

    Attributes:
        steps: of the whole fit.
        only_settle: apply the starting network without fitting it.
        mirrors: average over mirror images.
    """

    steps: int
    only_settle: bool = False
    mirrors: bool = False


def choose_effort(efforts: Mapping[str, Mapping[str, Any]], name: str, device: torch.device) -> Effort:
    """The effort of a name, for a device: a GPU takes more steps in the same time.

    Args:
        efforts: values by name, as the config lists them; ``steps_cuda`` in place of ``steps`` on CUDA.
        name: the effort wanted.
        device: that computes.

    Raises:
        SettingError: if there is no effort of that name.
    """
    values = choose_preset(efforts, name, "effort")
    steps = values["steps_cuda" if device.type == "cuda" else "steps"]
    return Effort(steps, values["only_settle"], values["mirrors"])


@dataclass(frozen=True)
class Epochs:
    """The epochs of a fit; one ends with a risk, a checkpoint and perhaps a preview.

    Args:
        wanted: optimiser steps asked for.
        steps_per_epoch: about how many of them make an epoch.

    Raises:
        SettingError: if either is less than 1.
    """

    wanted: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if self.wanted < 1 or self.steps_per_epoch < 1:
            raise SettingError(f"steps are {self.wanted}, {self.steps_per_epoch} in an epoch: give at least 1")

    @property
    def count(self) -> int:
        """How many epochs."""
        return math.ceil(self.wanted / self.steps_per_epoch)

    @property
    def length(self) -> int:
        """Steps of each, so that all are of one length and make at least the steps wanted."""
        return math.ceil(self.wanted / self.count)

    @property
    def steps(self) -> int:
        """Steps of all."""
        return self.count * self.length


def collate_one(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A batch of one item whose images are views of the item's, not copies; a volume on disk stays there.

    Args:
        batch: one dictionary, as MONAI's transforms leave it.

    Raises:
        SettingError: for more than one.
    """
    if len(batch) != 1:
        raise SettingError(f"a batch of {len(batch)} volumes cannot be made without copies: use a batch size of 1")
    item = dict(batch[0])
    images = {key: value for key, value in item.items() if isinstance(value, MetaTensor)}
    # MONAI collates what belongs to the images, of images without voxels.
    for key, image in images.items():
        item[key] = MetaTensor(torch.empty(0), meta=image.meta, applied_operations=image.applied_operations)
    result: dict[str, Any] = list_data_collate([item])
    for key, image in images.items():
        batched = MetaTensor(image.as_tensor()[None]).copy_meta_from(result[key])
        batched.is_batch = True
        result[key] = batched
    return result


def forget(held: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Let go of the volumes of a fit that is over, in memory or on disk, before its result needs the room.

    Args:
        held: MONAI's cached datasets, and lists.
    """
    for volumes in held:
        if isinstance(volumes, CacheDataset):
            volumes.set_data([])
        elif isinstance(volumes, list):
            volumes.clear()
    gc.collect()


def seed_everything(seed: int, epoch: int) -> None:
    """Seed torch for an epoch, for bodies that draw random numbers themselves (dropout)."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))
