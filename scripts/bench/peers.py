#!/usr/bin/env python3
"""Runs one peer on one tomogram, through the peer's public interface; ``quality.py`` starts it.

It runs in the virtual environment of the peer (``peers_setup`` makes them), so it imports numpy, mrcfile and
that peer, nothing of cryoshuffle. All files are MRC. The tomogram is expected standardised: mean 0, deviation 1.

    DIR/classic/bin/python scripts/bench/peers.py tv --tomogram in.mrc --output out.mrc --strength 2
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mrcfile
import numpy as np

N2V_PATCH, N2V_BATCH = (16, 32, 32), 8
N2V_TILE, N2V_OVERLAP = (64, 96, 96), (32, 48, 48)
CRYOCARE_PATCH, CRYOCARE_BATCH = 32, 4


def read(path: str | Path) -> np.ndarray:
    """A volume (Z, Y, X) as float32."""
    with mrcfile.open(path, permissive=True) as mrc:
        return np.array(mrc.data, dtype=np.float32)


def write(volume: np.ndarray, like: str, path: str) -> None:
    """Write a volume with the voxel size of another file."""
    with mrcfile.open(like, permissive=True, header_only=True) as mrc:
        voxel_size = mrc.voxel_size.copy()
    with mrcfile.new(path, overwrite=True) as mrc:
        mrc.set_data(np.ascontiguousarray(volume, dtype=np.float32))
        mrc.set_volume()
        mrc.voxel_size = voxel_size


def total_variation(options: argparse.Namespace) -> np.ndarray:
    """scikit-image, Chambolle's total variation; the strength is its weight."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(read(options.tomogram), weight=options.strength, max_num_iter=200)


def non_local_means(options: argparse.Namespace) -> np.ndarray:
    """scikit-image, non-local means in its fast mode; the strength is h over the deviation of the tomogram."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(
        read(options.tomogram), patch_size=5, patch_distance=6, h=options.strength, fast_mode=True, preserve_range=True
    )


def diffusion(options: argparse.Namespace) -> np.ndarray:
    """SimpleITK, curvature anisotropic diffusion, 20 steps; the strength is its conductance."""
    import SimpleITK as Sitk

    image = Sitk.GetImageFromArray(read(options.tomogram))
    smooth = Sitk.CurvatureAnisotropicDiffusion(
        image, timeStep=0.0625, conductanceParameter=options.strength, numberOfIterations=20
    )
    return Sitk.GetArrayFromImage(smooth)


def block_matching(options: argparse.Namespace) -> np.ndarray:
    """BM4D for white noise; the strength is sigma over the deviation of the tomogram."""
    from bm4d import bm4d

    return bm4d(read(options.tomogram), options.strength)


def block_matching_alone(options: argparse.Namespace) -> np.ndarray:
    """BM4D for white noise, with the sigma that scikit-image estimates from the finest wavelets."""
    from bm4d import bm4d
    from skimage.restoration import estimate_sigma

    volume = read(options.tomogram)
    return bm4d(volume, float(estimate_sigma(volume)))


def topaz(options: argparse.Namespace) -> np.ndarray:
    """Topaz Denoise 3-D with a pretrained model and its default patches."""
    with tempfile.TemporaryDirectory(dir=Path(options.output).parent) as folder:
        command = ["topaz", "denoise3d", "--model", options.model, "--device", str(options.gpu), "-o", folder]
        call([*command, options.tomogram])
        return read(next(Path(folder).glob("*.mrc")))


def noise2void(options: argparse.Namespace) -> np.ndarray:
    """CAREamics, Noise2Void in 3-D with its default network and the batch that its normalisation asks for."""
    from careamics import CAREamist
    from careamics.config.factories import create_advanced_n2v_config

    volume = read(options.tomogram)
    config = create_advanced_n2v_config(
        experiment_name="n2v",
        data_type="array",
        axes="ZYX",
        patch_size=[min(side, n // 16 * 8) for side, n in zip(N2V_PATCH, volume.shape, strict=True)],
        batch_size=N2V_BATCH,
        # An epoch is one pass over patches that do not overlap; the steps decide when it ends.
        num_epochs=options.steps,
        n_val_patches=2,
        num_workers=0,
        trainer_params={"max_steps": options.steps, "enable_progress_bar": False},
        seed=options.seed + 1,  # it wants more than 0
    )
    with tempfile.TemporaryDirectory(dir=Path(options.output).parent) as folder:
        careamist = CAREamist(config, work_dir=folder)
        careamist.train(train_data=volume)
        predictions, _ = careamist.predict(pred_data=volume, tile_size=N2V_TILE, tile_overlap=N2V_OVERLAP)
    return np.asarray(predictions[0]).reshape(volume.shape)


def cryocare(options: argparse.Namespace) -> np.ndarray:
    """CryoCARE from even and odd half, with the network and the learning rate its documentation gives."""
    # Every axis must be longer than twice the patch, and a patch a multiple of 8.
    side = min(CRYOCARE_PATCH, (min(read(options.even).shape) - 1) // 2 // 8 * 8)
    # An epoch ends with a validation, which should not take the time.
    epochs = max(1, options.steps // 100)
    even, odd = (str(Path(path).resolve()) for path in (options.even, options.odd))
    with tempfile.TemporaryDirectory(dir=Path(options.output).resolve().parent) as folder:
        configs = {
            "extract_train_data": {
                "even": [even],
                "odd": [odd],
                "patch_shape": [side] * 3,
                "num_slices": 1200,
                "split": 0.9,
                "tilt_axis": "Y",
                "n_normalization_samples": 500,
                "path": f"{folder}/data",
            },
            "train": {
                "train_data": f"{folder}/data",
                "epochs": epochs,
                "steps_per_epoch": math.ceil(options.steps / epochs),
                "batch_size": CRYOCARE_BATCH,
                "unet_kern_size": 3,
                "unet_n_depth": 3,
                "unet_n_first": 16,
                "learning_rate": 0.0004,
                "model_name": "model",
                "path": folder,
                "gpu_id": max(0, options.gpu),
            },
            "predict": {
                "path": f"{folder}/model.tar.gz",
                "even": even,
                "odd": odd,
                "n_tiles": [1, 1, 1],
                "output": f"{folder}/denoised",
                "gpu_id": max(0, options.gpu),
            },
        }
        for name, config in configs.items():
            path = Path(folder) / f"{name}.json"
            path.write_text(json.dumps(config), encoding="utf-8")
            call([f"cryoCARE_{name}.py", "--conf", str(path)])
        return read(next((Path(folder) / "denoised").glob("*.mrc")))


def call(command: list[str]) -> None:
    """Run a program of this virtual environment; what it says last is the reason if it fails."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run([sys.executable, str(program), *command[1:]], check=False, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        sys.exit(said[-1] if said else f"{command[0]} ended with code {done.returncode}")


PEERS: dict[str, Callable[[argparse.Namespace], np.ndarray]] = {
    "tv": total_variation,
    "nlm": non_local_means,
    "diffusion": diffusion,
    "bm4d": block_matching,
    "bm4d-alone": block_matching_alone,
    "topaz": topaz,
    "n2v": noise2void,
    "cryocare": cryocare,
}


def main() -> None:
    """Read, denoise, write."""
    parser = argparse.ArgumentParser(description="Run one peer on one tomogram.")
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("--tomogram", required=True, help="MRC, standardised")
    parser.add_argument("--even", help="MRC, for cryocare")
    parser.add_argument("--odd", help="MRC, for cryocare")
    parser.add_argument("--output", required=True, help="MRC")
    parser.add_argument("--strength", type=float, help="main strength of a classical peer")
    parser.add_argument("--model", help="pretrained model of topaz")
    parser.add_argument("--steps", type=int, default=600, help="of n2v and cryocare (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="of n2v and cryocare (default: 0)")
    parser.add_argument("--gpu", type=int, default=-1, help="number of the GPU, -1 for the CPU (default: -1)")
    options = parser.parse_args()
    if options.gpu < 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    write(PEERS[options.peer](options), options.tomogram, options.output)


if __name__ == "__main__":
    main()
