"""Shared settings of the tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_for_small_work(request):
    """Small tensors on several threads mostly wait for each other; whole runs keep the threads of the machine."""
    if "golden" in str(request.node.path):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
