"""Memory: how much the program may take, and when it is given back."""

from __future__ import annotations

import pytest
import torch

from cryoshuffle import memory
from cryoshuffle.errors import SettingError
from cryoshuffle.memory import (
    is_out_of_memory,
    keep_memory,
    limit_memory,
    memory_bytes,
    most_memory_bytes,
    trim_memory,
    trim_near_limit,
    window_bytes,
)


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A folder that stands for that of the system, without a limit, and a file that says where this process is."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "self")
    monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)
    return tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("own", "limit", "counts"),
    [
        (None, "memory.max", True),
        (None, "memory/memory.limit_in_bytes", True),
        ("0::/slurm/job_1/step_0", "memory.max", True),
        ("0::/slurm/job_1/step_0", "slurm/job_1/memory.max", True),
        ("0::/slurm/job_1/step_0", "slurm/job_1/step_0/memory.max", True),
        ("0::/slurm/job_1/step_0", "slurm/job_2/memory.max", False),
        ("9:cpu,memory:/slurm/job_1\n0::/", "memory/slurm/job_1/memory.limit_in_bytes", True),
        ("9:cpu:/slurm/job_1\n0::/", "memory/slurm/job_1/memory.limit_in_bytes", False),
    ],
)
def test_the_memory_of_a_container_or_job_counts(groups, own, limit, counts):
    """The least of what there is and what its groups may use, up to the root; "max" says nothing, nor do others."""
    cpu = torch.device("cpu")
    whole = memory_bytes(cpu)
    assert whole > 2**20
    (groups / limit).parent.mkdir(parents=True, exist_ok=True)
    if own is not None:
        (groups.parent / "self").write_text(f"{own}\n")
    for text, expected in (("max\n", whole), ("1048576\n", 2**20 if counts else whole), (str(2**60), whole)):
        (groups / limit).write_text(text)
        assert memory_bytes(cpu) == expected


def test_the_memory_of_a_slurm_job_counts(groups, monkeypatch):
    """In MiB; 0 stands for all (control)."""
    whole = memory_bytes(torch.device("cpu"))
    for text, expected in (("64", 64 * 2**20), ("0", whole), ("", whole)):
        monkeypatch.setenv("SLURM_MEM_PER_NODE", text)
        assert memory_bytes(torch.device("cpu")) == expected


def test_the_memory_of_the_program_follows_from_what_there_is_unless_it_is_said(monkeypatch):
    """A quarter of what there is, at least 2 GiB, at most half; windows get what is left, but never next to nothing."""
    cpu, gib = torch.device("cpu"), 2**30
    try:
        for there, most in ((64, 16), (8, 2), (4, 2), (2, 1)):
            monkeypatch.setattr(memory, "memory_bytes", lambda device, there=there: there * gib)
            assert most_memory_bytes() == most * gib
        limit_memory(3.0)
        assert most_memory_bytes() == 3 * gib
        assert 2.2 * gib < window_bytes(cpu) < 2.4 * gib
        assert window_bytes(cpu) - window_bytes(cpu, gib) == gib
        assert window_bytes(cpu, 5 * gib) == memory.LEAST_WINDOW
        assert window_bytes(torch.device("meta")) == 2 * gib // 4
        with pytest.raises(SettingError, match="memory is 0 GiB: give more than 0"):
            limit_memory(0)
    finally:
        limit_memory(None)


def test_out_of_memory_is_told_from_other_errors():
    """As torch says it on a GPU and on a CPU, and as Python does."""
    said = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    assert all(map(is_out_of_memory, [*said, MemoryError()]))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_memory_is_trimmed_only_while_it_is_kept():
    """Either way nothing is lost."""
    x = torch.ones(10)
    trim_memory()
    with keep_memory(torch.device("cpu")):
        trim_memory()
    assert bool((x == 1).all())


def test_memory_near_the_limit_is_given_back_if_it_is_worth_it(monkeypatch, allocator_calls):
    """Not far from the limit, nor outside of :func:`keep_memory`, nor again before there is something to give; less
    often where the limit cannot be kept."""
    resident, trims = [], []
    memory.limit_memory(1.0)

    def trims_at(mib: int, used: int) -> bool:
        resident.append(mib)
        before = len(trims)
        monkeypatch.setattr(memory, "_resident_bytes", lambda: resident[-1] * 2**20)
        monkeypatch.setattr(memory, "trim_memory", lambda: (trims.append(mib), resident.append(used)))
        trim_near_limit()
        return len(trims) > before

    assert not trims_at(1500, 0)
    with keep_memory(torch.device("cpu")):
        assert [trims_at(mib, 840) for mib in (860, 880, 890, 910, 900)] == [False, True, False, True, False]
        assert [trims_at(mib, 900) for mib in (910, 970, 1150, 1160)] == [True, False, False, True]
    memory.limit_memory(4.0)
    with keep_memory(torch.device("cpu")):
        assert not trims_at(1500, 0)


def test_memory_is_kept_while_a_large_volume_is_denoised_and_given_back(monkeypatch, allocator_calls):
    """glibc is told to keep it, and told back after an error too; small volumes, GPUs, other systems are let alone."""

    def fail() -> None:
        with memory.keep_memory(torch.device("cpu"), 2**30):
            allocator_calls.append(("work",))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert allocator_calls[:2] == [("mallopt", "-4", "0"), ("mallopt", "-1", str(2**31 - 1))]
    assert allocator_calls[2] == ("work",)
    assert {words[1] for words in allocator_calls[3:-1]} == {"-4", "-3", "-1"}
    assert allocator_calls[-1] == ("trim",)
    allocator_calls.clear()
    for device, size, platform in (("cpu", 2**20, "linux"), ("cuda", 2**30, "linux"), ("cpu", 2**30, "darwin")):
        monkeypatch.setattr(memory.sys, "platform", platform)
        with memory.keep_memory(torch.device(device), size):
            pass
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with memory.keep_memory(torch.device("cpu"), 2**30):
        pass
    assert allocator_calls == []


def test_memory_that_is_kept_already_is_not_given_back_by_the_inner_one(allocator_calls):
    """The outermost alone tells."""
    with memory.keep_memory(torch.device("cpu")):
        begun = list(allocator_calls)
        with memory.keep_memory(torch.device("cpu"), 2**30):
            pass
        assert allocator_calls == begun
    assert allocator_calls[-1] == ("trim",)
    allocator_calls.clear()
    with memory.keep_memory(torch.device("cpu")):
        assert allocator_calls == begun
