"""cryoshuffle: denoise one cryo-electron tomogram from that tomogram alone.

The package is the code behind a MONAI bundle. Importing it costs nothing; ``import cryoshuffle.files.mrc`` makes MRC
files known to MONAI's ``LoadImage`` and ``SaveImage``, ``import cryoshuffle.layers`` the layers to its factories.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryoshuffle.api import denoise


def config_dir() -> Path:
    """The folder of the bundle's configs: in the wheel, in the released bundle, or in a checkout.

    The environment variable ``CRYOSHUFFLE_CONFIGS`` names another folder. Only the tests set it, for configs of a tiny
    network; a config is code, so name no folder that you do not trust.

    Raises:
        FileNotFoundError: if the installation is damaged and has none.
    """
    if named := os.environ.get("CRYOSHUFFLE_CONFIGS"):
        return Path(named)
    here = Path(__file__).resolve().parent
    for place in (here / "configs", here.parent / "configs", here.parent.parent / "configs"):
        if (place / "metadata.json").is_file():
            return place
    raise FileNotFoundError(f"no configs beside {here}: install cryoshuffle again")


def starting_network() -> Path:
    """The checkpoint of the package that the second stage of a fit begins with."""
    return Path(__file__).resolve().parent / "start.pt"


def __getattr__(name: str) -> Any:
    if name == "denoise":
        # Not before it is asked for: it brings torch and MONAI.
        from cryoshuffle.api import denoise

        return denoise
    if name == "__version__":
        return str(json.loads((config_dir() / "metadata.json").read_text(encoding="utf-8"))["version"])
    raise AttributeError(f"module 'cryoshuffle' has no attribute '{name}'")


__all__ = ["config_dir", "denoise", "starting_network"]
