#!/usr/bin/env python3
"""Draws docs/pictures/real_noise.png: the noise of a real cell next to the tilt axis, and what is made of it.

The even half of the tomogram of scripts/bench/real.py, which makes it. Power of what is fine along the tilt axis, by
the distance from it: of the half, of half the difference of the halves, and of the noise as it is estimated from the
even half alone, before and behind the steps of docs/explain/method.md.

Usage: scripts/bench/figure_real_noise.py WORK/erased [OUT]
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from cryoshuffle.files.scratch import central_crop
from cryoshuffle.lattice import BlindSet
from cryoshuffle.noise import spectrum as recorruption
from cryoshuffle.noise.spectrum import GRID, noise_spectrum, smooth_spectrum

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.real import read

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 620, 360, 60, 50, 20
FARTHEST, FINE, TILTED = 0.3, 0.3, 50.0
COLOURS = ((0, 0, 0), (220, 40, 40), (150, 150, 150), (30, 90, 220))


def profile(spectrum: torch.Tensor) -> list[tuple[float, float]]:
    """Mean power of what is fine along y, by the distance from the y axis, cycles per voxel."""
    k = torch.fft.fftfreq(GRID, dtype=torch.float64)
    radius = (k[:, None].square() + k.square()).sqrt()
    direction = torch.rad2deg(torch.atan2(k[:, None].expand_as(radius), k.expand_as(radius)))
    tilted = ((direction + 90) % 180 - 90).abs() < TILTED
    power = spectrum[:, k.abs() > FINE].mean(dim=1)
    points = []
    for step in range(round(FARTHEST * 50)):
        ring = tilted & (radius >= step / 50) & (radius < (step + 1) / 50)
        points.append((float(radius[ring].mean()), float(power[ring].mean())))
    return points


def main(folder: Path, out: Path) -> None:
    """Make the figure."""
    even, odd = (torch.from_numpy(read(folder / f"{name}.mrc")) for name in ("even", "odd"))
    deviation = even.std()
    even, apart = (even - even.mean()) / deviation, (even - odd) / (math.sqrt(2) * deviation)
    crop = central_crop(even[None], 128)[0]
    blind = BlindSet("plane", "y")
    now = noise_spectrum(crop, crop, blind, None, even)
    recorruption.ENOUGH = even.numel() + 1  # as for a volume too small for what is fitted here
    before = noise_spectrum(crop, crop, blind)
    curves = {
        "the half": profile(smooth_spectrum(crop)),
        "half the difference of the halves": profile(smooth_spectrum(central_crop(apart[None], 128)[0])),
        "noise, from high frequencies alone (0.1.0)": profile(before),
        "noise, from the even half alone (now)": profile(now),
    }
    most = 1.1 * max(y for points in curves.values() for _, y in points)
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(picture)

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / FARTHEST * (WIDTH - LEFT - 20), HEIGHT - BOTTOM - y / most * (HEIGHT - BOTTOM - TOP)

    pen.line([place(0, most), place(0, 0), place(FARTHEST, 0)], fill="black")
    for tick in (0.1, 0.2, 0.3):
        x, y = place(tick, 0)
        pen.line([(x, y), (x, y + 4)], fill="black")
        pen.text((x - 8, y + 8), f"{tick:g}", fill="black")
    pen.text((LEFT, HEIGHT - 18), "distance from the tilt axis, cycles per voxel of 2 nm", fill="black")
    pen.text((4, 4), "power, fine along the axis", fill="black")
    for row, ((name, points), colour) in enumerate(zip(curves.items(), COLOURS, strict=True)):
        pen.line([place(*point) for point in points], fill=colour, width=2)
        y = HEIGHT - BOTTOM - 20 * (len(curves) - row)
        pen.line([(WIDTH - 320, y + 6), (WIDTH - 296, y + 6)], fill=colour, width=3)
        pen.text((WIDTH - 288, y), name, fill="black")
    picture.save(out)
    print(out)


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        Path(sys.argv[2])
        if len(sys.argv) > 2
        else Path(__file__).resolve().parents[2] / "docs" / "pictures" / "real_noise.png",
    )
