"""Devices and precisions: what there is, is chosen; what there is not, or is wrong, is said."""

from __future__ import annotations

import pytest
import torch

from cryoshuffle import devices
from cryoshuffle.devices import allow_tf32, choose_device, choose_precision, to_device
from cryoshuffle.errors import SettingError


def test_device_and_precision_are_chosen_or_refused():
    """cpu is always there; what is not is said; unknown names are refused."""
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(SettingError, match="unknown"):
        choose_device("tpu7")
    with pytest.raises(SettingError, match="not available"):
        choose_device("cuda:77")
    with pytest.raises(SettingError, match="choose one of"):
        choose_precision("fp8", torch.device("cpu"))
    assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
    assert choose_precision("auto", torch.device("mps")) is torch.float32
    assert choose_precision("tf32", torch.device("cuda")) is torch.float32


def test_libraries_that_are_wrong_or_slow_on_a_gpu_are_told(monkeypatch, caplog):
    """cuDNN 9.8 to 9.12 in bfloat16 gives way to float32, said once; those around it do not. So is torch 2.9."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_told", set())
    device = torch.device("cuda")
    for version, right in ((90702, True), (90800, False), (91200, False), (91300, True), (91900, True)):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        for name in ("auto", "bf16", "bf16"):
            assert choose_precision(name, device) is (torch.bfloat16 if right else torch.float32)
    assert [record.message.split(" is wrong")[0] for record in caplog.records] == ["cuDNN 9.8", "cuDNN 9.12"]
    caplog.clear()
    for version, slow in (("2.9.1+cu128", True), ("2.8.0", False), ("2.11.0+cu130", False)):
        monkeypatch.setattr(torch, "__version__", version)
        assert choose_device("auto").type == "cuda"
        assert bool(caplog.records) == slow
        caplog.clear()


def test_tf32_is_for_the_asking():
    """In convolutions as in products of matrices; every other precision forbids it."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for name in ("tf32", "fp32", "tf32", "bf16", "tf32", "auto"):
            allow_tf32(name)
            assert [flag.allow_tf32 for flag in flags] == [name == "tf32"] * 2
        with pytest.raises(SettingError, match="precision is 'tf16'"):
            allow_tf32("tf16")
    finally:
        for flag, was in zip(flags, before, strict=True):
            flag.allow_tf32 = was


def test_nothing_is_copied_on_its_way_to_where_it_is():
    """A view on the CPU stays the view it is."""
    x = torch.arange(24.0).reshape(2, 3, 4)[:, 1:]
    there = to_device(x, "cpu")
    assert there is x
