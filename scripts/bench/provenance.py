"""Where numbers come from: checkout, commit, machine and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]


def machine() -> str:
    """Processor, cores and memory, in one line."""
    model = platform.processor() or platform.machine()
    cpus = Path("/proc/cpuinfo")
    if cpus.is_file():
        named = [s.partition(":")[2].strip() for s in cpus.read_text().splitlines() if s.startswith("model name")]
        model = named[0] if named else model
    text = f"{model}, {os.cpu_count()} cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        text += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text


def commit(root: Path = ROOT) -> str:
    """The commit of a checkout, and whether the code differs from it; empty outside a checkout."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    try:
        name, changes = (
            git("rev-parse", "--short", "HEAD"),
            git("status", "--porcelain", "bundle", "configs", "scripts"),
        )
    except OSError:
        return ""
    return f"{name} + changes" if name and changes else name


def own_versions() -> str:
    """Python and what our own methods stand on."""
    names = ("cryoshuffle", "torch", "monai")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])
