#!/usr/bin/env python3
"""Draws docs/pictures/noise.png: how the noise of reconstructions is correlated, and what whitening changes.

Usage: scripts/bench/figure_noise.py [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from cryoshuffle.noise.estimate import noise_from_halves
from cryoshuffle.noise.spectrum import smooth_spectrum
from cryoshuffle.noise.whitening import WhitenNoise
from cryoshuffle.simulation.tilt_series import simulate

REACH, ZOOM, MARGIN, TITLE = 4, 22, 26, 34


def neighbours(noise: torch.Tensor) -> np.ndarray:
    """Correlation of a voxel with those up to REACH away, (Z, Y, X)."""
    lags = torch.fft.ifftn(smooth_spectrum(noise, reach=16)).real
    near = torch.arange(-REACH, REACH + 1) % lags.shape[0]
    lags = lags[near][:, near][:, :, near]
    return (lags / lags[REACH, REACH, REACH]).numpy()


def panel(values: np.ndarray, title: str, words: str, row: int | None) -> Image.Image:
    """Correlations as colours: red above 0, blue below, white at 0; the blind plane is framed."""
    side = len(values) * ZOOM
    picture = Image.new("RGB", (side + MARGIN, side + 2 * TITLE), "white")
    pen = ImageDraw.Draw(picture)
    pen.text((0, 4), title, fill="black")
    pen.text((0, TITLE + side + 4), words, fill="black")
    for (i, j), value in np.ndenumerate(values):
        fade = int(255 * (1 - min(1.0, abs(value) / 0.5)))
        colour = (255, fade, fade) if value > 0 else (fade, fade, 255)
        box = (j * ZOOM, TITLE + i * ZOOM, (j + 1) * ZOOM - 2, TITLE + (i + 1) * ZOOM - 2)
        pen.rectangle(box, fill="black" if (i, j) == (REACH, REACH) else colour)
    if row is not None:
        pen.rectangle((-2, TITLE + row * ZOOM - 2, side - 1, TITLE + (row + 1) * ZOOM - 1), outline="black", width=2)
    return picture


def main(out: Path) -> None:
    """Make the figure."""
    plain = simulate("wbp", (64, 112, 96), seed=0).noise
    aligned = simulate("aligned", (64, 112, 96), seed=0).noise
    along = noise_from_halves(aligned, torch.zeros_like(aligned)).autocorrelation["y"]
    white = WhitenNoise("y", along)(aligned[None]).as_tensor()[0]
    one, two, three = (neighbours(v) for v in (plain, aligned, white))
    panels = [
        panel(one[:, REACH], "in the plane across the tilt axis", "across: x, down: z", None),
        panel(one[REACH], "along the tilt axis y", "across: x, down: y; framed: hidden", REACH),
        panel(two[REACH], "the same, images aligned", "neighbours along y share noise", REACH),
        panel(three[REACH], "the same, whitened along y", "next to nothing is left to learn", REACH),
    ]
    picture = Image.new("RGB", (sum(p.width for p in panels), panels[0].height), "white")
    left = 0
    for part in panels:
        picture.paste(part, (left, 0))
        left += part.width
    picture.save(out)
    print(out)


if __name__ == "__main__":
    main(
        Path(sys.argv[1])
        if len(sys.argv) > 1
        else Path(__file__).resolve().parents[2] / "docs" / "pictures" / "noise.png"
    )
