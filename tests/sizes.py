"""Two sizes of the bundle's network: tiny for what is not about quality, whole with ``CRYOSHUFFLE_FULL=1``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from phantoms import CONFIGS

FULL = os.environ.get("CRYOSHUFFLE_FULL") == "1"
VARIABLE = "CRYOSHUFFLE_CONFIGS"
# As many levels as the whole network has, so the same lattice period and the same windows.
STEM_CHANNELS = 8
CHANNELS = [8, 8, 16]
# Made by tests/tiny/make_start.sh.
TINY_START = Path(__file__).parent / "tiny" / "start.pt"


def suite_configs() -> Path:
    """The folder of configs that runs are started with."""
    return Path(os.environ.get(VARIABLE, CONFIGS))


def suite_start() -> Path:
    """The starting network that goes with :func:`suite_configs`."""
    from cryoshuffle import starting_network

    return TINY_START if VARIABLE in os.environ else starting_network()


def shrink(config: dict[str, Any], start: str) -> dict[str, Any]:
    """A config whose network is the tiny one, beginning with a starting network of that size."""
    if "network_def" in config:
        config["network_def"]["stem_channels"] = STEM_CHANNELS
        config["network_def"]["body"] |= {"in_channels": STEM_CHANNELS, "channels": CHANNELS}
    if "warm_start" in config:
        config["warm_start"] = start
    return config


def write_tiny_configs(folder: Path, start: str = str(TINY_START)) -> Path:
    """The configs of the bundle in a folder that may exist, with the tiny network in place of the whole one.

    Args:
        folder: they go to.
        start: the starting network, as a config names it.
    """
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)
    for name in ("train.json", "inference.json"):
        path = folder / name
        config = shrink(json.loads(path.read_text(encoding="utf-8")), start)
        path.write_text(json.dumps(config, indent=4), encoding="utf-8")
    path = folder / "start.yaml"
    path.write_text(yaml.safe_dump(shrink(yaml.safe_load(path.read_text(encoding="utf-8")), start), sort_keys=False))
    return folder
