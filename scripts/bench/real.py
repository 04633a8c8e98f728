#!/usr/bin/env python3
"""Scores the program on a real, whole tomogram of a cell: EMPIAR-10499, tilt series 00254 (Mycoplasma pneumoniae).

The tilt series (41 images of 10 Å pixels, ±60°, CC0) travels in the source distribution of the package warpylib 1.1.2:

    pip download --no-deps --no-binary :all: warpylib==1.1.2 && tar xzf warpylib-1.1.2.tar.gz
    pip install -e ".[bench]"
    scripts/bench/real.py warpylib-1.1.2/testdata --work work

Makes the tomogram (20 Å voxels, tilt axis y) and its halves, of every other tilt. Denoises the even half and scores it
against the raw odd half, which has noise of its own: correlation, whole and in bands (differences of Gaussians).
A result that keeps the signal is in no band below the raw half.
The slope of the odd half on that result, by band, is 1 for the mean of all signals that the tomogram allows, and more
for a result that is too faint.
The squared difference to the odd half is taken over that of the raw even half, in cubes.
Denoises the whole tomogram and measures two things. The slope of tomogram on result, by band: noise that stays in the
result makes it larger, so it is above 1; negative for structure that the tomogram has not.
The share of the finest detail, by region: above 0 it is copied, below 0 its negative is painted.
Writes docs/data/benchmarks_real.json, a section of docs/explain/benchmarks.md and docs/pictures/benchmark_cell.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from cryoshuffle.files.writing import write_json
from cryoshuffle.noise.linear_filter import convolve, wiener_kernel
from cryoshuffle.noise.spectrum import smooth_cross_spectrum, smooth_spectrum
from cryoshuffle.simulation.tilt_series import ramp_filtered, reconstruct

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.markdown import documents_of, wrapped, write_section
from bench.provenance import ROOT, commit, machine
from bench.report import listed, save_panel

SERIES = "00254"
BEGIN = "<!-- real: begin, written by scripts/bench/real.py -->"
END = "<!-- real: end -->"
PICTURE = "benchmark_cell.png"
PIXEL_ANGSTROM = 10.0
# The middle of the tomogram in voxels of 10 Å, (z, y, x).
FINE_CROP = (128, 256, 256)
BANDS = ((0.7, 1.5), (1.0, 2.0), (1.5, 3.0), (2.0, 5.0))
SLOPE_BANDS = ((0.35, 0.7), (0.7, 1.4), (1.4, 2.8), (2.8, 5.6), (5.6, 11.0))
GAUSSIANS = (
    (0.75,) * 3,
    (1.0,) * 3,
    (1.5,) * 3,
    (2.0,) * 3,
    (1.5, 0.75, 1.0),
    (2, 1, 1.4),
    (2.4, 1.2, 1.7),
    (3, 1.5, 2),
    (4, 2, 2.8),
    (5, 2.5, 3.5),
)
# Side of the cubes that squared differences are compared in, voxels.
CUBE = 64
# Width of the Gaussian over a result for looking at it, voxels.
SMOOTH = 0.8
# Of every fourth tilt: halves of the even half.
QUARTERS = ("even_1", "even_2")
# Of the tomogram of 20 Å, (z, y, x).
REGIONS = {
    "cell": (slice(40, 56), slice(100, 200), slice(100, 200)),
    "ice, right": (slice(40, 56), slice(20, 150), slice(275, 314)),
    "ice, left": (slice(40, 56), slice(180, 300), slice(5, 60)),
    "dense": (slice(40, 56), slice(60, 120), slice(30, 80)),
}


def erase_gold(image: np.ndarray, seed: int) -> np.ndarray:
    """An image whose beads are filled with what lies around them and noise as strong.

    Args:
        image: ``(Y, X)``.
        seed: of the noise.
    """
    smooth = ndimage.gaussian_filter(image, 1.5)
    around = ndimage.median_filter(smooth[::4, ::4], 25).repeat(4, 0).repeat(4, 1)[: image.shape[0], : image.shape[1]]
    dark = smooth - around
    deviation = 1.4826 * np.median(np.abs(dark))
    bead = ndimage.binary_dilation(ndimage.binary_opening(dark < -6 * deviation), iterations=5)
    weight = ndimage.gaussian_filter((~bead).astype(np.float32), 8) + 1e-6
    filled = ndimage.gaussian_filter(np.where(bead, 0, image), 8) / weight
    grain = np.random.default_rng(seed).permutation((image - smooth)[~bead])[: bead.sum()]
    result = image.copy()
    result[bead] = filled[bead] + 1.05 * grain
    return result


def aligned_images(data: Path, binning: int, keep_gold: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The tilt images behind their alignment, and the tilt angles.

    Args:
        data: folder of the test data.
        binning: Fourier-cropped to pixels so many times as large.
        keep_gold: leave the beads in.

    Returns:
        ``(tilt, Y, X)``, and degrees.
    """
    transforms = np.loadtxt(data / "xf_import" / f"{SERIES}.xf")
    angles = torch.from_numpy(np.loadtxt(data / "xf_import" / f"{SERIES}.tlt")).float()
    with mrcfile.open(data / f"{SERIES}.stack.mrc", permissive=True) as mrc:
        stack = np.asarray(mrc.data, dtype=np.float32)
    images = []
    for number, (image, (a, b, c, d, dx, dy)) in enumerate(zip(stack, transforms, strict=True)):
        image = (image - image.mean()) / image.std()
        image = image if keep_gold else erase_gold(image, number)
        image = np.clip(image, *np.percentile(image, (0.02, 99.98)))
        middle = (np.array(image.shape) - 1) / 2
        back = np.linalg.inv(np.array([[d, c], [b, a]]))
        offset = middle - back @ (middle + np.array([dy, dx]))
        images.append(ndimage.affine_transform(image, back, offset, order=3, mode="constant", cval=0.0))
    whole = np.stack(images)
    height, width = (n // binning // 2 * 2 for n in whole.shape[1:])
    spectrum = np.fft.fftshift(np.fft.fft2(whole), axes=(1, 2))
    y, x = (n // 2 for n in whole.shape[1:])
    spectrum = spectrum[:, y - height // 2 : y + height // 2, x - width // 2 : x + width // 2]
    cropped = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2))).real.astype(np.float32)
    return torch.from_numpy(cropped), angles


def reconstruct_leaning(
    images: torch.Tensor, angles_deg: torch.Tensor, depth: int, sirt_iterations: int, lean_deg: float
) -> torch.Tensor:
    """Weighted back-projection into a volume whose tilt axis leans from y towards the beam.

    So programs level a specimen (IMOD's angle of the X axis, the level angles of Warp): each voxel is looked up in
    every image, between pixels along both axes.

    Args:
        images: tilt images.
        angles_deg: of the images, degrees.
        depth: Z of the volume, voxels.
        sirt_iterations: of a SIRT-like filter; 0 for the ramp.
        lean_deg: degrees.

    Shape:
        ``(tilt, Y, X) -> (depth, Y, X)``.
    """
    height, width = images.shape[1:]
    z, y, x = (torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in (depth, height, width))
    cosine, sine = math.cos(math.radians(lean_deg)), math.sin(math.radians(lean_deg))
    row, height_there = y * cosine + z[:, None] * sine, z[:, None] * cosine - y * sine
    volume = torch.zeros(depth, height, width)
    filtered = ramp_filtered(images, sirt_iterations)
    for image, angle in zip(filtered, torch.deg2rad(angles_deg).tolist(), strict=True):
        column = x * math.cos(angle) + height_there[..., None] * math.sin(angle)
        places = torch.stack([2 * column / width, (2 * row / height)[..., None].expand_as(column)], dim=-1)
        volume += F.grid_sample(image[None, None].expand(depth, -1, -1, -1), places, align_corners=False)[:, 0]
    return volume * (math.pi / (2 * len(angles_deg)))


def make(
    data: Path,
    folder: Path,
    binning: int,
    keep_gold: bool,
    crop: Sequence[int] | None = None,
    sirt_iterations: int = 0,
    lying: bool = False,
    turned_deg: float = 0.0,
    lean_deg: float = 0.0,
    tilted_deg: float = 0.0,
) -> None:
    """The tomogram and its halves, as MRC files; does nothing where they are there.

    Args:
        data: folder of the test data.
        folder: for the files.
        binning: of the images; voxels are so many times 10 Å.
        keep_gold: leave the beads in.
        crop: sides (Z, Y, X) of the middle that is kept, voxels; None for all.
        sirt_iterations: of a SIRT-like filter; 0 for the ramp.
        lying: with the tilt axis along Z and the beam along Y, as IMOD writes what is not yet rotated.
        turned_deg: that the volumes are turned about the beam, with cubic splines; what is known then is kept.
        lean_deg: of the tilt axis, from y towards the beam.
        tilted_deg: of the specimen before the series, about the tilt axis, as of a lamella.
    """
    if all((folder / f"{name}.mrc").is_file() for name in ("even", "odd", "full", *QUARTERS)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    images, angles = aligned_images(data, binning, keep_gold)
    back_projected = partial(reconstruct_leaning, lean_deg=lean_deg) if lean_deg else reconstruct
    # Tilted the other way round than the package's simulations are.
    even, odd, *quarters = (
        back_projected(images[first::step], tilted_deg - angles[first::step], 192 // binning, sirt_iterations)
        for first, step in ((0, 2), (1, 2), (0, 4), (2, 4))
    )
    count = len(angles)
    full = ((count + 1) // 2 * even + count // 2 * odd) / count
    for name, volume in zip(("even", "odd", "full", *QUARTERS), (even, odd, full, *quarters), strict=True):
        kept = volume.numpy()
        if turned_deg:
            kept = ndimage.rotate(kept, turned_deg, axes=(1, 2), reshape=False, order=3)
            share = 1 / (math.cos(math.radians(turned_deg)) + abs(math.sin(math.radians(turned_deg))))
            side = int(share * min(kept.shape[1:])) // 2 * 2
            crop = (len(kept), side, side)
        if crop is not None:
            kept = kept[
                tuple(slice((n - side) // 2, (n + side) // 2) for n, side in zip(kept.shape, crop, strict=True))
            ]
        with mrcfile.new(folder / f"{name}.mrc", overwrite=True) as mrc:
            mrc.set_data(np.ascontiguousarray(kept.transpose(1, 0, 2)) if lying else kept)
            mrc.voxel_size = binning * PIXEL_ANGSTROM


def sides(text: str) -> tuple[int, int, int]:
    """Three numbers of voxels, from ``Z,Y,X``."""
    z, y, x = map(int, text.split(","))
    return z, y, x


def read(path: Path, lying: bool = False) -> np.ndarray:
    """A volume, float32; one that lies (:func:`make`) is put upright."""
    volume = np.array(mrcfile.read(path), dtype=np.float32)
    return np.ascontiguousarray(volume.transpose(1, 0, 2)) if lying else volume


def inner(shape: Sequence[int]) -> tuple[slice, ...]:
    """What is scored of a volume: not its outermost tenths."""
    return tuple(slice(n // 10, n - n // 10) for n in shape)


def band_of(volume: np.ndarray, low: float, high: float) -> np.ndarray:
    """A volume between two Gaussians, voxels."""
    return ndimage.gaussian_filter(volume, low) - ndimage.gaussian_filter(volume, high)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the inner parts of two volumes."""
    part = inner(one.shape)
    return float(np.corrcoef(one[part].ravel(), other[part].ravel())[0, 1])


def against_half(result: np.ndarray, half: np.ndarray) -> dict[str, object]:
    """Correlation with a raw half that the result has not seen, whole and in :data:`BANDS`."""
    bands = [round(correlation(band_of(result, *band), band_of(half, *band)), 4) for band in BANDS]
    return {"correlation": round(correlation(result, half), 4), "bands": bands}


def cube_error(result: np.ndarray, even: np.ndarray, odd: np.ndarray) -> float:
    """Mean squared difference of a result to the raw odd half over that of the raw even half; median over cubes.

    Two raw halves differ by the noise of both, which is about equally strong. A result without error differs from the
    odd half by the noise of that half alone, so it has about .5.

    Args:
        result: of the even half, ``(Z, Y, X)``.
        even: the half.
        odd: the other half.
    """
    part = inner(even.shape)
    result, even, odd = (volume[part].astype(np.float64) for volume in (result, even, odd))
    corners = itertools.product(*(range(0, max(1, n - CUBE + 1), CUBE) for n in even.shape))
    ratios = []
    for z, y, x in corners:
        cube = slice(z, z + CUBE), slice(y, y + CUBE), slice(x, x + CUBE)
        ratios.append(np.square(result[cube] - odd[cube]).mean() / np.square(even[cube] - odd[cube]).mean())
    return round(float(np.median(ratios)), 4)


def slopes(tomogram: np.ndarray, result: np.ndarray) -> list[float]:
    """Slope of a tomogram, or a half of it, on a result in :data:`SLOPE_BANDS`, fine to coarse."""
    part, found = inner(tomogram.shape), []
    for band in SLOPE_BANDS:
        noisy, denoised = (band_of(v, *band)[part].astype(np.float64) for v in (tomogram, result))
        found.append(round(float((noisy * denoised).sum() / np.square(denoised).sum()), 2))
    return found


def fine_share(tomogram: np.ndarray, result: np.ndarray, whole: bool = False) -> dict[str, float]:
    """Slope of the result's finest detail on the tomogram's, by region, or of the whole."""
    regions = {"whole": inner(tomogram.shape)} if whole else REGIONS
    noisy, denoised = (v - ndimage.gaussian_filter(v, 0.8) for v in (tomogram, result))
    return {
        name: round(float((noisy[place] * denoised[place]).mean() / np.square(noisy[place]).mean()), 4)
        for name, place in regions.items()
    }


def wiener_with_hindsight(even: np.ndarray, odd: np.ndarray) -> np.ndarray:
    """The even half behind the Wiener filter that both halves tell."""
    one, other = (torch.from_numpy((half - half.mean()) / half.std()) for half in (even, odd))
    total, shared = smooth_spectrum(one), smooth_cross_spectrum(one, other)
    result: np.ndarray = convolve(one, wiener_kernel(total, total - shared)).numpy()
    return result * even.std() + even.mean()


def denoise(source: Path, result: Path, options: Sequence[str], reuse: bool) -> dict[str, Any]:
    """Run the program, or use the result of an earlier run.

    Args:
        source: tomogram.
        result: path of the result; seconds, commit and machine of the run are kept beside it.
        options: of the program.
        reuse: do not run again what has a result and these facts.

    Returns:
        ``seconds``, ``commit`` and ``machine``.
    """
    kept = result.with_suffix(".json")
    if reuse and result.is_file() and kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    began, state = time.monotonic(), {"commit": commit(), "machine": machine()}
    command = [sys.executable, "-m", "cryoshuffle", "denoise", str(source), str(result), "--quiet", "--overwrite"]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    run = {"seconds": round(time.monotonic() - began), **state}
    write_json(run, kept)
    return run


def smooth(source: Path, result: Path) -> Path:
    """The path of the same result with ``--smooth``, from the model of its run."""
    model, out = result.with_name(f"{result.stem}_run") / "model.pt", result.with_name(f"{result.stem}_smooth.mrc")
    command = [sys.executable, "-m", "cryoshuffle", "apply", str(model), str(source), str(out), "--quiet"]
    subprocess.run([*command, "--overwrite", "--smooth", str(SMOOTH)], check=True, stdout=subprocess.DEVNULL)
    return out


def section(findings: Mapping[str, Any]) -> str:
    """The part of the page of benchmarks that shows what is in ``benchmarks_real.json``."""
    lines = [
        BEGIN, "", "## A real tomogram of a cell", "",
        "*Mycoplasma pneumoniae*, EMPIAR-10499 tilt series 00254, 41 tilts, voxels of 20 Å, 96 x 314 x 326.",
        "The even half of the tilts is denoised and scored against the raw odd half, whose noise is its own:",
        "correlation (CC), over all detail and in four bands, fine to coarse. The rows with hindsight know both",
        "halves. Squared difference: to the odd half, over that of the raw even half, median of cubes of at most",
        f"{CUBE} voxels a side; a result without error has about .5. Slopes are those of the odd half on the result,",
        "fine to coarse, in bands of an octave: 1 for the mean of all signals that the tomogram allows, more where a",
        "result is too faint.",
        "s: seconds; empty if the machine had other work. By `scripts/bench/real.py`.",
    ]  # fmt: skip
    for name, one in findings.items():
        machines, commits = (listed(row.get(fact, "") for row in one["rows"]) for fact in ("machine", "commit"))
        lines += [
            "", f"### Beads of {name}", "", f"On {machines}, commit {commits}.", "",
            "| method | CC | " + " | ".join(f"{low} to {high} voxels" for low, high in one["bands_voxels"])
            + " | squared difference | slopes | share of the network | s |",
            "| --- |" + " ---: |" * (5 + len(one["bands_voxels"])),
        ]  # fmt: skip
        for row in one["rows"]:
            title = row["method"] if "seed" not in row else f"`--effort {row['method']}`, seed {row['seed']}"
            cells = [title, f"{row['correlation']:.4f}", *(f"{value:.4f}" for value in row["bands"])]
            cells.append(f"{row['cube_error']:.4f}" if "cube_error" in row else "")
            facts = ["" if row.get(name) is None else str(row[name]) for name in ("trust", "seconds")]
            against = ", ".join(f"{slope:.2f}" for slope in row.get("slopes_of_other_half", []))
            lines.append("| " + " | ".join([*cells, against, *facts]) + " |")
        if not any("slopes" in row for row in one["rows"]):
            continue
        lines += [
            "", "The whole tomogram, denoised. Slopes: of tomogram on result by band, fine to coarse. Noise that stays",
            "in the result makes them larger than 1; below 0 the result has what the tomogram has not. Share: how much",
            "of the finest detail is copied, by region; below 0 the result has its negative.", "",
            "| method | slopes | share |", "| --- | --- | --- |",
        ]  # fmt: skip
        for row in one["rows"]:
            if "slopes" in row:
                shares = ", ".join(f"{place} {share:+.3f}" for place, share in row["fine_share"].items())
                title = f"`--effort {row['method']}`, seed {row['seed']}"
                lines.append(f"| {title} | {', '.join(map(str, row['slopes']))} | {shares} |")
    lines += [
        "",
        f"![Planes of the cell: as reconstructed, behind a Gaussian, denoised, with --smooth](../pictures/{PICTURE})",
        "",
        END,
        "",
    ]
    return wrapped(["\n".join(lines).strip()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Make, denoise, score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder testdata of the package")
    parser.add_argument("--work", type=Path, required=True, help="folder for tomograms and results")
    parser.add_argument("--efforts", default="fast,standard")
    parser.add_argument("--seeds", default="0", help="the whole tomogram is denoised with the first of them")
    parser.add_argument("--keep-gold", action="store_true", help="leave the beads of gold in")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--fine", action="store_true", help="voxels of 10 Å, of the middle 128 x 256 x 256 voxels")
    size.add_argument("--fine-whole", action="store_true", help="voxels of 10 Å, all of them")
    size.add_argument("--coarse", action="store_true", help="voxels of 30 Å")
    parser.add_argument("--sirt", type=int, default=0, help="iterations of a SIRT-like filter in place of the ramp")
    parser.add_argument("--lying", action="store_true", help="with the tilt axis along z, as before a rotation in IMOD")
    parser.add_argument("--turned", type=float, default=0.0, help="degrees that it is turned about the beam")
    parser.add_argument("--leaning", type=float, default=0.0, help="degrees between tilt axis and y, towards the beam")
    parser.add_argument("--tilted", type=float, default=0.0, help="degrees of the specimen before the series")
    parser.add_argument("--part", type=sides, help="Z,Y,X voxels of the middle that are kept")
    parser.add_argument("--quarters", action="store_true", help="also with quarters of the tilts as halves of the half")
    parser.add_argument("--reuse", action="store_true", help="score the results in --work; run only what has none")
    parser.add_argument("--halves-only", action="store_true", help="do not denoise the whole tomogram")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the documents go (default: docs)")
    options = parser.parse_args(arguments)
    if not (options.data / f"{SERIES}.stack.mrc").is_file():
        parser.error(f"{options.data}: has no {SERIES}.stack.mrc, give the folder testdata of warpylib 1.1.2")
    binning = 1 if options.fine or options.fine_whole else 3 if options.coarse else 2
    title = f"gold {'kept' if options.keep_gold else 'erased'}"
    title += "" if binning == 2 else f", {binning * PIXEL_ANGSTROM:.0f} Å"
    title += ", whole field" if options.fine_whole else ""
    title += ", tilt axis along z" if options.lying else ""
    title += f", turned by {options.turned:g} degrees about the beam" if options.turned else ""
    title += f", tilt axis leaning by {options.leaning:g} degrees towards the beam" if options.leaning else ""
    title += f", specimen tilted by {options.tilted:g} degrees" if options.tilted else ""
    title += f", part of {' x '.join(map(str, options.part))} voxels" if options.part else ""
    title += f", SIRT-like filter of {options.sirt} iterations" if options.sirt else ""
    folder = options.work / title.replace(" ", "_").replace(",", "").replace("Å", "A")
    make(
        options.data,
        folder,
        binning,
        options.keep_gold,
        FINE_CROP if options.fine else options.part,
        options.sirt,
        options.lying,
        options.turned,
        options.leaning,
        options.tilted,
    )
    seen = partial(read, lying=options.lying)
    has_no_regions = binning != 2 or bool(options.part or options.turned or options.leaning or options.tilted)
    even, odd, full = (seen(folder / f"{name}.mrc") for name in ("even", "odd", "full"))
    gaussians = [(against_half(ndimage.gaussian_filter(even, s), odd), s) for s in GAUSSIANS]
    _, sigma = max(gaussians, key=lambda pair: pair[0]["correlation"])

    def scores(result: np.ndarray) -> dict[str, object]:
        return {**against_half(result, odd), "cube_error": cube_error(result, even, odd)}

    rows: list[dict[str, object]] = [
        {"method": "raw half", **scores(even)},
        {"method": "best Gaussian, hindsight", "sigma": list(sigma), **scores(ndimage.gaussian_filter(even, sigma))},
        {"method": "Wiener filter, hindsight", **scores(wiener_with_hindsight(even, odd))},
    ]
    for effort in options.efforts.split(","):
        for seed in options.seeds.split(","):
            words = ["--effort", effort, "--seed", seed]
            out = folder / f"{effort}_{seed}_even.mrc"
            run = denoise(folder / "even.mrc", out, words, options.reuse)
            judged = json.loads((out.with_name(f"{out.stem}_run") / "refinement.json").read_text(encoding="utf-8"))
            result = seen(out)
            row: dict[str, Any] = {"method": effort, "seed": int(seed), **run, **scores(result)}
            row["slopes_of_other_half"] = slopes(odd, result)
            if not options.halves_only and seed == options.seeds.split(",")[0]:
                out = folder / f"{effort}_{seed}_full.mrc"
                denoise(folder / "full.mrc", out, words, options.reuse)
                row |= {
                    "slopes": slopes(full, seen(out)),
                    "fine_share": fine_share(full, seen(out), whole=has_no_regions),
                }
            if options.quarters and seed == options.seeds.split(",")[0]:
                told = folder / f"{effort}_{seed}_told.mrc"
                pair = [
                    f"--{name}={folder / quarter}.mrc" for name, quarter in zip(("even", "odd"), QUARTERS, strict=True)
                ]
                run = denoise(folder / "even.mrc", told, [*words, *pair], options.reuse)
                quarters = f"{effort}, noise from quarters of the tilts"
                rows.append(
                    {"method": quarters, **run, **scores(seen(told)), "slopes_of_other_half": slopes(odd, seen(told))}
                )
            rows.append({**row, "weight": round(judged["weight"], 2), "trust": round(judged["trust"], 2)})
            if seed == options.seeds.split(",")[0]:
                smoothed = seen(smooth(folder / "even.mrc", folder / f"{effort}_{seed}_even.mrc"))
                rows.append({"method": f"{effort}, with `--smooth {SMOOTH}`", **scores(smoothed)})
            print(json.dumps(rows[-1]), flush=True)
    _, data, pictures = documents_of(options.docs)
    path = data / "benchmarks_real.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known[title] = {"bands_voxels": BANDS, "slope_bands_voxels": SLOPE_BANDS, "rows": rows}
    write_section(options.docs, "real", section(known), (BEGIN, END), known)
    if title == "gold erased" and not options.halves_only:
        shown = {"as reconstructed": full, "Gaussian": ndimage.gaussian_filter(full, (2, 1, 1.4))}
        best = folder / f"{options.efforts.split(',')[-1]}_{options.seeds.split(',')[0]}_full.mrc"
        shown |= {"denoised": read(best), f"denoised, --smooth {SMOOTH}": read(smooth(folder / "full.mrc", best))}
        save_panel({title: torch.from_numpy(volume) for title, volume in shown.items()}, pictures / PICTURE)
    for row in rows:
        print(f"{row['method']:28s} {row['correlation']:.4f}  {row['bands']}")


if __name__ == "__main__":
    main()
