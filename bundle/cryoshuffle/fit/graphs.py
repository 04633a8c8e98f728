"""The network of a training step as one CUDA graph, instead of hundreds of small kernels launched one by one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from cryoshuffle.inference.inferers import PrecisionInferer
from cryoshuffle.network import BlindSpotNet, ShuffleUNet

logger = logging.getLogger("cryoshuffle")


class _Alone(nn.Module):
    """A module around the network: what is captured changes a module, and the network itself is to be copied later."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.network(x)
        return result


class GraphedInferer(PrecisionInferer):
    """Runs a network on its input as it is; the steps of a fit on an NVIDIA GPU replay a graph of it.

    The windows of a fit are so small that launching the kernels of a step takes several times as long as they run. The
    first step captures forward and backward pass, for its shape; the others replay them. Whatever cannot be captured
    runs as it is, and it is said once.

    Args:
        precision: ``auto``, ``fp32``, ``tf32`` or ``bf16``; see :func:`cryoshuffle.devices.choose_precision`.

    Shape:
        ``(B, C, Z, Y, X) -> (B, C, Z, Y, X)``, float32.

    Invariant:
        The result, and what the step does to the network, is that of :class:`PrecisionInferer`.
    """

    def __init__(self, precision: str = "auto") -> None:
        super().__init__(precision)
        self._captured: dict[tuple[int, tuple[int, ...]], Callable[[Tensor], Tensor] | None] = {}

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run the network."""
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if not self._may_capture(plain, network) or args or kwargs:
            return super().__call__(plain, network, *args, **kwargs)
        key = id(network), tuple(plain.shape)
        if key not in self._captured:
            self._captured[key] = self._capture(plain, network)
        replay = self._captured[key]
        return super().__call__(plain, network) if replay is None else replay(plain).float()

    def _may_capture(self, plain: Tensor, network: Any) -> bool:
        """Whether this is a step of a fit on CUDA, of a network that does the same each time."""
        known = isinstance(network, BlindSpotNet) and isinstance(network.body, ShuffleUNet) and network.training
        return known and plain.device.type == "cuda" and torch.is_grad_enabled()

    def _capture(self, plain: Tensor, network: Any) -> Callable[[Tensor], Tensor] | None:
        # Warming up runs the network, which counts what it sees.
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        captured: Any = None
        try:
            with self.autocast(plain.device, cached=False), torch.cuda.device(plain.device), warnings.catch_warnings():
                # Of weights that something has run before; what is captured runs on a stream of its own.
                warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")
                captured = torch.cuda.make_graphed_callables(_Alone(network).train(), (plain.detach().clone(),))
        except RuntimeError as error:
            logger.warning("the steps run without a CUDA graph, which is slower: %s", str(error).splitlines()[0])
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        result: Callable[[Tensor], Tensor] | None = captured
        return result
