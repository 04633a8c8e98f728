"""A MONAI Deploy application: reads tomograms, denoises each with a network that was fitted before, writes them.

    python scripts/hosts/deploy_app/app.py -i FOLDER -o FOLDER -m model.pt

Every MRC and NIfTI in the input is denoised to ``<name>_denoised`` of the same kind, float32. The model is a checkpoint
of the package, or a folder with one in it. Packaging: ``docs/howto/monai.md``.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import (
    Application,
    ExecutionContext,
    Fragment,
    InputContext,
    Operator,
    OperatorSpec,
    OutputContext,
)

from cryoshuffle.errors import InputError, user_error
from cryoshuffle.files.formats import FORMATS, find_format, load_tomogram, save_tomogram, split_suffix
from cryoshuffle.inference import Denoise

logger = logging.getLogger(__name__)


def tomograms(folder: Path) -> list[Path]:
    """The tomograms in a folder, or the one that a path names."""
    paths = [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if find_format(path) is not None)
    if not paths:
        known = ", ".join(suffix for one in FORMATS for suffix in one.suffixes)
        raise InputError(f"{folder}: holds no tomogram, expected names that end in {known}")
    return paths


def checkpoint(path: Path) -> Path:
    """The checkpoint that a path names, or the one in a folder."""
    found = [path] if path.is_file() else sorted(path.rglob("*.pt"))
    if len(found) != 1:
        raise InputError(f"{path}: holds {len(found)} checkpoints (*.pt), name the one to use")
    return found[0]


class LoadTomogram(Operator):
    """Reads one tomogram each time it is asked, with its metadata."""

    def __init__(self, fragment: Fragment, *args: Any, paths: list[Path], **kwargs: Any) -> None:
        self.left = list(paths)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """One port."""
        spec.output("image")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Read the next one."""
        path = self.left.pop(0)
        op_output.emit({"image": load_tomogram(path, axcodes=None), "path": path}, "image")


class DenoiseTomogram(Operator):
    """Denoises what comes, as ``cryoshuffle apply`` does."""

    def __init__(self, fragment: Fragment, *args: Any, model: Path, **kwargs: Any) -> None:
        self.denoise = Denoise(model)
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """One port in, one out."""
        spec.input("image")
        spec.output("image")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Denoise what came."""
        data = op_input.receive("image")
        op_output.emit({**data, "image": self.denoise(data["image"])}, "image")


class WriteTomogram(Operator):
    """Writes what comes under the name it came from."""

    def __init__(self, fragment: Fragment, *args: Any, folder: Path, **kwargs: Any) -> None:
        self.folder = folder
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: OperatorSpec) -> None:
        """One port."""
        spec.input("image")

    def compute(self, op_input: InputContext, op_output: OutputContext, context: ExecutionContext) -> None:
        """Write what came."""
        data = op_input.receive("image")
        name, suffix = split_suffix(data["path"])
        path = self.folder / f"{name}_denoised{suffix}"
        save_tomogram(data["image"], path)
        logger.info("denoised: %s", path)


class DenoiseApp(Application):
    """Read, denoise, write."""

    def compose(self) -> None:
        """Put the operators together."""
        context = Application.init_app_context(self.argv)
        paths, folder = tomograms(Path(context.input_path)), Path(context.output_path)
        folder.mkdir(parents=True, exist_ok=True)
        load = LoadTomogram(self, CountCondition(self, len(paths)), paths=paths, name="load")
        denoise = DenoiseTomogram(self, model=checkpoint(Path(context.model_path)), name="denoise")
        write = WriteTomogram(self, folder=folder, name="write")
        self.add_flow(load, denoise, {("image", "image")})
        self.add_flow(denoise, write, {("image", "image")})


if __name__ == "__main__":
    try:
        DenoiseApp().run()
    except Exception as error:
        mistake = user_error(error)
        if mistake is None:
            raise
        print(f"deploy_app: {mistake}", file=sys.stderr)
        sys.exit(2)
