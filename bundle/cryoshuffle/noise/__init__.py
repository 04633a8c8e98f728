"""The noise of a tomogram: measured, chosen by, whitened, filtered."""

from __future__ import annotations

from cryoshuffle.noise.choice import choose_blind_set
from cryoshuffle.noise.whitening import WhitenNoised

__all__ = ["WhitenNoised", "choose_blind_set"]
