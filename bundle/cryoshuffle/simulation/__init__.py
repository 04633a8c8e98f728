"""Simulated tomograms whose truth is known."""

from __future__ import annotations

from cryoshuffle.simulation.windows import SimulatedWindows

__all__ = ["SimulatedWindows"]
