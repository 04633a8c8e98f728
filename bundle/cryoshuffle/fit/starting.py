"""The trained weights that a fit begins with, made ready for a volume, and how much of them its model keeps."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cryoshuffle.devices import are_processes_joined
from cryoshuffle.errors import InputError, SettingError, unreadable
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.volumes import images_of
from cryoshuffle.inference.checkpoints import load_plain, load_weights, stored_order
from cryoshuffle.lattice import Lattice
from cryoshuffle.layers import DilatedChannelAttention
from cryoshuffle.network import turn_weights, unwrap

# Voxels that a network in training mode takes at once, in less than 1 GiB.
_AT_ONCE = 700_000
_MIDDLE = 128


def begin_with(
    network: nn.Module, start: str | None, device: torch.device | str = "cpu", order: Sequence[int] = (0, 1, 2)
) -> nn.Module:
    """The network of the second stage with the weights it begins with.

    Args:
        network: one that hides nothing, with random weights.
        start: checkpoint of a network of the same form; None keeps the random weights.
        device: it goes to.
        order: of the axes of the volume, the beam first, as of :func:`cryoshuffle.noise.wedge.beam_first`.

    Raises:
        FileError: if the checkpoint cannot be read.
        InputError: if it is of another network.
        SettingError: if several processes run, or the network cannot be turned.
    """
    if are_processes_joined() and dist.get_world_size() > 1:
        raise SettingError("the second stage runs in one process: leave out refine.yaml, or start one process only")
    if start is None:
        return network.to(device)
    content = load_plain(start)
    own = getattr(network, "lattice", None)
    way_out = "begin without it: --cold-start, in a config warm_start: none"
    if isinstance(own, Lattice) and content.get("lattice") != own.config():
        raise InputError(f"{start}: is a network with a blind spot, and the second stage has none; {way_out}")
    weights = _in_order(network, content, start, order)
    try:
        load_weights(network, weights, start)
    except InputError as error:
        raise InputError(f"{start}: is not of the configured body; {way_out}") from error
    return network.to(device)


def _in_order(network: nn.Module, content: Mapping[str, Any], path: str, order: Sequence[int]) -> Mapping[str, Any]:
    """The weights of a checkpoint for volumes whose axes have this order; its own are for volumes with its own order.

    Simulated tomograms, which starting networks are trained on, have the beam along Z. Where it comes along another
    axis the weights are turned: the missing wedge would lie in a direction that they do not know.

    Args:
        network: that the weights belong to.
        content: of the checkpoint.
        path: of it, for the message.
        order: as of :func:`cryoshuffle.noise.wedge.beam_first`.

    Raises:
        SettingError: if the network cannot be turned.
        InputError: if the checkpoint names no order of axes.
    """
    fitted = stored_order(content, path)
    if fitted == tuple(order):
        return cast(Mapping[str, Any], content["model"])
    upright = turn_weights(network, content["model"], [fitted.index(axis) for axis in range(3)])
    return turn_weights(network, upright, order)


def starting_checkpoint(name: str | None) -> str | None:
    """The checkpoint that the second stage begins with; None for random weights.

    Args:
        name: its path; None or, on MONAI's command line, which drops None, ``none``.
    """
    return None if name in (None, "none") else name


def fingerprint(start: str | None) -> str | None:
    """What tells one starting network from another, wherever it lies; None for none.

    Raises:
        FileError: if it cannot be read.
    """
    if start is None:
        return None
    try:
        return hashlib.sha256(Path(start).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise unreadable(start, error) from error


def update_attention_means(network: nn.Module, volumes: Sequence[Mapping[str, Any]]) -> None:
    """Make the running means of channel attention those of some volumes, for a network that was not fitted to them.

    Args:
        network: whose means are updated.
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)``; of large ones the middle is taken.
    """
    was_training, device = network.training, next(network.parameters()).device
    means = [module for module in network.modules() if isinstance(module, DilatedChannelAttention)]
    momenta = [mean.momentum for mean in means]
    crops = [central_crop(image, _MIDDLE) for image in images_of(volumes)]
    network.train()
    with torch.no_grad():
        for number, part in enumerate((part for crop in crops for part in _halved(crop)), start=1):
            for mean in means:
                mean.momentum = 1 / number
            network(part[None].to(device))
    for mean, momentum in zip(means, momenta, strict=True):
        mean.momentum = momentum
    network.train(was_training)


def interpolate_weights(
    network: nn.Module,
    start: str,
    fit_share: float,
    volumes: Sequence[Mapping[str, Any]],
    order: Sequence[int] = (0, 1, 2),
) -> None:
    """Put a fitted network's weights between those that its fit began with and its own.

    A fit to one tomogram learns some of its noise with its structures, and forgets some of what the starting network
    knows. Weights between the two have less of both errors. Attention means are no weights: they become the volumes'.

    Args:
        network: fitted; it is changed.
        start: checkpoint that the fit began with.
        fit_share: of the fit, 0 to 1; with 1 the network stays as it is, attention means included.
        volumes: dictionaries with ``image`` ``(1, Z, Y, X)`` that it was fitted to.
        order: of their axes, as of :func:`begin_with`.

    Raises:
        FileError, InputError: if the checkpoint cannot be read or is of another network.

    Source:
        Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", CVPR.
    """
    if fit_share == 1:
        return
    begun = copy_with_weights(network, start, order).state_dict()
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.lerp_(begun[name].to(value), 1 - fit_share)
    update_attention_means(network, volumes)


def _halved(volume: Tensor) -> list[Tensor]:
    """A volume ``(1, Z, Y, X)`` in equal parts small enough to go through the network at once."""
    if volume.numel() <= _AT_ONCE:
        return [volume]
    longest = max((3, 2, 1), key=lambda axis: volume.shape[axis])
    return [part for half in torch.chunk(volume, 2, longest) for part in _halved(half)]


def copy_with_weights(network: nn.Module, checkpoint: str, order: Sequence[int] | None = None) -> nn.Module:
    """A copy of a network with the weights of a checkpoint.

    Args:
        network: that is copied.
        checkpoint: of the weights.
        order: of the axes of the volumes it is for, as of :func:`begin_with`; None for weights that were fitted to
            them.

    Raises:
        FileError, InputError: if the checkpoint cannot be read or is not of this network.
    """
    copied = copy.deepcopy(unwrap(network))
    content = load_plain(checkpoint)
    load_weights(
        copied, content["model"] if order is None else _in_order(copied, content, checkpoint, order), checkpoint
    )
    return copied
