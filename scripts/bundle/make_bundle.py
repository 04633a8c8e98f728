#!/usr/bin/env python3
"""Writes the bundle as MONAI's programs take it: one folder, and a zip of it, that need no installation.

    scripts/bundle/make_bundle.py dist                     # dist/cryoshuffle-0.2.0/ and dist/cryoshuffle-0.2.0.zip
    scripts/bundle/make_bundle.py dist --network run/model.pt

In it: LICENSE, configs, docs, models (``model.pt``, ``model.ts``) and the package ``cryoshuffle`` itself, beside them,
where MONAI's programs look. The model is the starting network, trained on simulations, or one that was fitted. Then
the rules of MONAI's model zoo are looked at; a broken one ends with 1.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import load

from cryoshuffle.files.writing import save_whole
from cryoshuffle.inference.checkpoints import BESIDE, load_plain

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 25 * 2**20


def make_bundle(target: Path, network: Path) -> Path:
    """Put the bundle together.

    Args:
        target: folder that the bundle's folder goes to; what is there under its name is replaced.
        network: checkpoint that becomes ``models/model.pt``.

    Returns:
        the bundle's folder.
    """
    metadata = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as temporary:
        made = Path(temporary) / f"cryoshuffle-{metadata['version']}"
        unwanted = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(ROOT / "configs", made / "configs", ignore=unwanted)
        shutil.copytree(ROOT / "bundle" / "cryoshuffle", made / "cryoshuffle", ignore=unwanted)
        site = shutil.ignore_patterns("conf.py", "index.md", "reference", "_build", ".*")
        shutil.copytree(ROOT / "docs", made / "docs", ignore=site)
        shutil.copy(ROOT / "LICENSE", made / "LICENSE")
        (made / "models").mkdir()
        checkpoint = load_plain(network)
        save_whole(_weights_first(checkpoint), made / "models" / "model.pt")
        _write_out(checkpoint["lattice"], made / "configs")
        _monai(made, "ckpt_export", "--filepath", "models/model.ts")
        shutil.rmtree(target / made.name, ignore_errors=True)
        made.rename(target / made.name)
    folder = target / made.name
    for left in folder.rglob("__pycache__"):
        shutil.rmtree(left)
    shutil.make_archive(str(folder), "zip", target, folder.name)
    return folder


def _weights_first(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A model as MONAI's own programs take it: the weights by their names, and all else beside them in one entry.

    Args:
        checkpoint: as :func:`load_plain` gives it, which takes both forms.
    """
    return {**checkpoint["model"], BESIDE: {name: value for name, value in checkpoint.items() if name != "model"}}


def _write_out(lattice: Mapping[str, Any], configs: Path) -> None:
    """Put the lattice of the model into the configs, which look it up in the model: MONAI loads from any folder."""
    inference = configs / "inference.json"
    config = json.loads(inference.read_text(encoding="utf-8"))
    config["blind_set"] = lattice["blind_set"]
    config["lattice"]["stride"] = lattice["stride"]
    inference.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")
    train = configs / "train.json"
    config = json.loads(train.read_text(encoding="utf-8"))
    config["measured"]["absent"] = lattice["blind_set"]
    train.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


def _monai(bundle: Path, command: str, *options: str) -> None:
    """Run one of MONAI's commands in the bundle's folder."""
    where = ["--meta_file", "configs/metadata.json", "--config_file", "configs/inference.json"]
    call = [sys.executable, "-B", "-m", "monai.bundle", command, *where, "--net_id", "network_def", *options]
    done = subprocess.run(call, cwd=bundle, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{bundle.name}: monai.bundle {command} failed: {done.stderr.strip().splitlines()[-1]}")


def broken_rules(bundle: Path) -> list[str]:
    """The rules of MONAI's model zoo that a bundle breaks, each as a sentence; none if it breaks none.

    Args:
        bundle: its folder.
    """
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    found = [
        f"{name} is missing"
        for name in ("LICENSE", "models/model.pt", "docs/README.md")
        if not (bundle / name).is_file()
    ]
    if not list((bundle / "configs").glob("inference.*")):
        found.append("there is no inference config")
    if metadata["version"] not in metadata["changelog"]:
        found.append(f"version {metadata['version']} is not in the changelog")
    large = [one for one in bundle.rglob("*") if one.is_file() and one.stat().st_size > MOST_BYTES]
    found += [f"{one.relative_to(bundle)} has more than 25 MB" for one in large]
    personal = [one for one in bundle.rglob("*") if one.suffix in (".json", ".yaml") and "/home/" in one.read_text()]
    found += [f"{one.relative_to(bundle)} names a home folder" for one in personal]
    for page in sorted((bundle / "docs").rglob("*.md")):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        found += [
            f"{page.relative_to(bundle)} leads to {to}, not there" for to in links if not (page.parent / to).exists()
        ]
    for name in ("monai_version", "pytorch_version", "numpy_version", "required_packages_version"):
        if not metadata.get(name):
            found.append(f"metadata says no {name}")
    wanted = {
        "train.json": ["bundle_root", "device", "dataset_dir", "output_dir", "train", "validate", "val_interval"],
        "inference.json": ["bundle_root", "device", "network_def", "inferer", "output_dir", "dataset", "evaluator"],
    }
    for name, keys in wanted.items():
        config = json.loads((bundle / "configs" / name).read_text(encoding="utf-8"))
        found += [f"{name} has no {key}" for key in keys if key not in config]
    weights = load_plain(bundle / "models" / "model.pt")["model"]
    for workflow in ("train", "inference"):
        network = load(bundle.name, bundle_dir=str(bundle.parent), workflow_type=workflow, device="cpu")
        loaded = network.state_dict()
        missed = [name for name, value in weights.items() if not torch.equal(loaded[name], value)]
        found += [f"monai.bundle.load with {workflow}.json leaves {name} random" for name in missed]
    _monai(bundle, "verify_net_in_out", "--any", "7")
    scripted = torch.jit.load(bundle / "models" / "model.ts")
    if not torch.isfinite(scripted(torch.randn(1, 1, 5, 13, 6))).all():
        found.append("models/model.ts does not run")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the bundle and look at the rules."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="folder it goes to")
    parser.add_argument(
        "--network", type=Path, default=ROOT / "bundle" / "cryoshuffle" / "start.pt",
        help="checkpoint (default: the starting network)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if not options.network.is_file():
        parser.error(f"{options.network}: there is no such checkpoint, make one with cryoshuffle fit")
    bundle = make_bundle(options.target, options.network)
    broken = broken_rules(bundle)
    for sentence in broken:
        print(f"{bundle.name}: {sentence}", file=sys.stderr)
    print(f"bundle:     {bundle}\nzip:        {bundle}.zip")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
