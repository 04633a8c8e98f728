"""Where and in which precision a network is applied."""

from __future__ import annotations

import torch

from cryoshuffle.inference import inferers
from cryoshuffle.inference.inferers import PrecisionInferer


def test_a_gpu_without_memory_leaves_the_work_to_the_cpu():
    """After smaller windows, and only what can be moved there; a CPU has no other place."""
    gpu = [attempt[0].type for attempt in inferers._attempts(torch.device("cuda"), movable=True)]
    assert gpu == ["cuda", "cuda", "cpu"]
    assert len(inferers._attempts(torch.device("cuda"), movable=False)) == 2
    assert [fraction for _, fraction, _ in inferers._attempts(torch.device("cpu"), movable=True)] == [1, 4]


def test_bfloat16_is_used_inside_and_float32_comes_out():
    """Autocast reaches the convolution on the CPU too, and stays within a bfloat16 of the float32 result."""
    net = torch.nn.Conv3d(1, 4, 3, padding=1)
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = torch.randn(1, 1, 6, 6, 6)
    with torch.no_grad():
        low, full = PrecisionInferer("bf16")(x, net), PrecisionInferer("fp32")(x, net)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == torch.float32
    assert (low - full).abs().max() < 0.05
