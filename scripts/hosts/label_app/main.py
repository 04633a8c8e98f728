"""A MONAI Label app that gives a denoised image back, not a label map.

Two models: ``cryoshuffle`` applies the network of the bundle in ``model/cryoshuffle``; ``cryoshuffle_fit`` fits to the
volume first, in as many minutes as are asked for. MRC files come back as MRC with their header. Started by
``scripts/hosts/check_label.sh``; ``docs/howto/monai.md`` says how to use it from 3D Slicer.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import monailabel
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.tasks.infer.bundle import BundleInferTask

logger = logging.getLogger(__name__)


def result_path(image: str, wanted: str | None) -> Path:
    """A new file for a result, of the kind that is asked for, or of that of the image."""
    from cryoshuffle.files.formats import FORMATS, format_of, split_suffix

    # A name of no format has no suffix, and is refused by the last.
    suffix = wanted or split_suffix(image)[1] or format_of(image).result_suffix
    # It comes over the network, so it must be one that is known, and one file.
    if not any(suffix in one.suffixes and not one.is_folder for one in FORMATS):
        raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, f"no result of the kind '{suffix}' can be sent")
    return Path(tempfile.mkdtemp(prefix="cryoshuffle_")) / f"denoised{suffix}"


class ApplyTask(BundleInferTask):
    """Applies the network of the bundle; what it gives is written as it is, with the header of the image."""

    def __init__(self, bundle: Path, conf: Mapping[str, str]) -> None:
        super().__init__(str(bundle), conf, type=InferType.OTHERS, add_post_restore=False)

    def writer(self, data: Mapping[str, Any], extension: str | None = None, dtype: Any = None) -> tuple[str, dict]:
        """Write the prediction under a name of its own."""
        from cryoshuffle.files.formats import save_tomogram

        path = result_path(data["image_path"], extension or data.get("result_extension"))
        save_tomogram(data["pred"], path)
        return str(path), {}


class FitTask(InferTask):
    """Fits to the volume that is asked for, and denoises it."""

    def __init__(self, bundle: Path) -> None:
        self.bundle = bundle
        super().__init__(
            type=InferType.OTHERS,
            labels={},
            dimension=3,
            description="Fits to this one tomogram, then denoises it: minutes, not seconds",
            config={"effort": ["standard", "fast", "best"], "minutes": 5.0},
        )

    def is_valid(self) -> bool:
        """Nothing has to be there but the volume."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict]:
        """Run the command of the package on the image of a request."""
        wanted = {**self.config(), **request}
        effort = wanted["effort"] if isinstance(wanted["effort"], str) else wanted["effort"][0]
        path = result_path(wanted["image"], wanted.get("result_extension"))
        device = {} if str(wanted.get("device", "")) in ("", "None") else {"--device": str(wanted["device"])}
        options = {"--effort": effort, "--minutes": str(wanted["minutes"]), **device}
        command = [sys.executable, "-m", "cryoshuffle", "denoise", str(wanted["image"]), str(path), "--quiet"]
        command += [word for pair in options.items() for word in pair]
        logger.info("running %s", " ".join(command))
        where = os.pathsep.join([str(self.bundle), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": where}
        )
        if done.returncode:
            said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise MONAILabelException(MONAILabelError.INFERENCE_ERROR, said)
        return str(path), {}


class MyApp(MONAILabelApp):
    """The app, as MONAI Label looks for it."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.bundle = Path(app_dir) / "model" / "cryoshuffle"
        # The bundle carries the package; an installed one is found the same way.
        sys.path.append(str(self.bundle))
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="cryoshuffle",
            description="Denoises cryo-electron tomograms",
            version=monailabel.__version__,
        )

    def init_infers(self) -> dict[str, InferTask]:
        """The two models."""
        return {"cryoshuffle": ApplyTask(self.bundle, self.conf), "cryoshuffle_fit": FitTask(self.bundle)}

    def init_trainers(self) -> dict[str, Any]:
        """None: MONAI Label trains on labelled images only."""
        return {}
