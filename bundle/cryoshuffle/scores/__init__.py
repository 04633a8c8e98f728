"""Numbers that say how good a result is."""

from __future__ import annotations

__all__ = []
