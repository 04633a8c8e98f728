"""``cryoshuffle.denoise``: the daily command for volumes that are in memory, in notebooks and other programs."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from cryoshuffle.commands.options import DenoiseCommand
from cryoshuffle.commands.runs import run_denoise
from cryoshuffle.errors import InputError, UsageError, UserError, user_error
from cryoshuffle.files.formats import load_tomogram, save_tomogram
from cryoshuffle.files.volumes import AXIS_CODES, affine_of, refuse_masked, tells_axes
from cryoshuffle.report.provenance import IN_MEMORY_NAME

Array = TypeVar("Array", np.ndarray, Tensor, MetaTensor)
PathLike: TypeAlias = "str | os.PathLike[str]"
Volume: TypeAlias = "np.ndarray | Tensor | MetaTensor | str | os.PathLike[str]"
_OPTIONS = DenoiseCommand.keywords()
_FLAGS = {option.flag: option for option in _OPTIONS.values()}
_VOLUMES = [keyword for keyword, option in _OPTIONS.items() if option.file == "volume"]
# What the files of a run's own folder are in words, and an option in a sentence.
_IN_MEMORY = {
    "tomogram": "the array",
    **{name: f"the array {name}" for name in _VOLUMES},
    "denoised": "the result",
    "error": "the error map",
    "run": "the folder of the run",
}
_OPTION = re.compile(r"(--[a-z][a-z-]*)( \w+)?")
# MONAI undoes a turn by the object that did it.
_TURN = Orientation(AXIS_CODES, labels=None)
# Random numbers and their seeds are the process's: runs of several threads take turns.
_ONE_RUN = threading.RLock()


class DenoiseOptions(TypedDict, total=False):
    """The options of ``cryoshuffle denoise``, with the names, the meaning and the defaults they have there.

    ``even``, ``odd``, ``noise_mask`` and ``mask`` may be volumes in memory. ``refine=False`` is ``--no-refine``.
    Without ``report`` the default of ``survival`` is False.
    """

    blind: Literal["auto", "voxel", "plane", "cross", "box"]
    tilt_axis: Literal["z", "y", "x"]
    radius: int
    stride: int | Sequence[int]
    even: Volume
    odd: Volume
    noise_mask: Volume
    mask: Volume
    preset: Literal["unbiased", "paper"]
    refine: bool
    warm_start: PathLike
    cold_start: bool
    effort: Literal["fast", "standard", "best"]
    steps: int
    minutes: float
    window: int | Sequence[int]
    seed: int
    resume: bool
    inference_window: int | Sequence[int]
    force: bool
    dtype: Literal["float32", "float16", "int8", "int16", "uint16"]
    ome_zarr: Literal["0.4", "0.5"]
    residual: PathLike
    detail: float
    smooth: float
    mirrors: bool
    survival: bool
    device: str
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    memory: float
    quiet: bool
    json_lines: bool
    overwrite: bool
    permissive: bool
    fill_nan: bool
    report: PathLike


@overload
def denoise(
    tomogram: Array,
    output: PathLike | None = ...,
    *,
    voxel_size_angstrom: float = ...,
    error: Literal[False] = ...,
    **options: Unpack[DenoiseOptions],
) -> Array: ...


@overload
def denoise(
    tomogram: PathLike,
    output: PathLike | None = ...,
    *,
    voxel_size_angstrom: float = ...,
    error: Literal[False] = ...,
    **options: Unpack[DenoiseOptions],
) -> MetaTensor: ...


@overload
def denoise(
    tomogram: Array,
    output: PathLike | None = ...,
    *,
    voxel_size_angstrom: float = ...,
    error: Literal[True] | PathLike,
    **options: Unpack[DenoiseOptions],
) -> tuple[Array, Array]: ...


@overload
def denoise(
    tomogram: PathLike,
    output: PathLike | None = ...,
    *,
    voxel_size_angstrom: float = ...,
    error: Literal[True] | PathLike,
    **options: Unpack[DenoiseOptions],
) -> tuple[MetaTensor, MetaTensor]: ...


def denoise(
    tomogram: Volume,
    output: PathLike | None = None,
    *,
    voxel_size_angstrom: float = 1.0,
    error: bool | PathLike = False,
    **options: Unpack[DenoiseOptions],
) -> Any:
    """Fit to this tomogram, then denoise it: ``cryoshuffle denoise`` for a volume in memory, or a file.

    The same workflow runs, so the same numbers come out. The state of the caller is left as it is, however the run ends
    (:func:`cryoshuffle.host.undisturbed`), and an autocast of the caller's changes nothing. Calls from several threads
    wait for each other. To denoise with a network that was fitted before, see
    :class:`cryoshuffle.inference.transform.Denoise`.

    Args:
        tomogram: the noisy volume, or the path of one.
        output: path to write the result to as well; its suffix says what it becomes. None for none.
        voxel_size_angstrom: of what has no affine of its own; it goes into the header of what is written, the denoising
            does not depend on it.
        error: whether to return the standard error of each voxel as well, or the path to write it to besides that.
        options: see :class:`DenoiseOptions`. Without ``quiet=False`` no progress is shown. Picture, log, network and
            provenance are kept where ``report`` names a folder.

    Returns:
        the denoised volume, of the kind, shape and device it was given as, float32; of a path a ``MetaTensor``
        ``(1, Z, Y, X)``. With ``error`` a tuple of it and its standard error, which is of the same kind.

    Shape:
        ``(Z, Y, X)``, ``(1, Z, Y, X)`` or ``(Z, Y, X, 1)``; the axes of a ``MetaTensor`` may be in any order that
        its affine tells; the identity tells none, unless a file had it. A rotation in the affine goes into the header
        of what is written as NIfTI; other formats have no place for one.

    Units:
        grey values in, the same grey values out; voxel size in Å.

    Raises:
        UserError: for what the command line ends with exit code 2 for; the same sentence, with keywords for options;
            and for a masked array that hides voxels.

    Example:
        >>> import cryoshuffle
        >>> denoised = cryoshuffle.denoise(volume, effort="fast", tilt_axis="y")  # doctest: +SKIP
    """
    with _ONE_RUN, tempfile.TemporaryDirectory(prefix="cryoshuffle_") as temporary:
        folder = Path(temporary)
        (folder / IN_MEMORY_NAME).touch()
        given = _on_disk(tomogram, folder / "tomogram.mrc", voxel_size_angstrom)
        result = folder / "denoised.mrc" if output is None else Path(output)
        # A table that goes into a temporary folder is for nobody.
        named: dict[str, Any] = {"quiet": True, "report": folder / "run", "survival": "report" in options, **options}
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise UsageError(
                f"{unknown[0]}: cryoshuffle.denoise has no such option, see help(cryoshuffle.api.DenoiseOptions)"
            )
        for name in _VOLUMES:
            if named.get(name) is not None:
                named[name] = _on_disk(named[name], folder / f"{name}.mrc", voxel_size_angstrom)
        wanted = error is not None and error is not False
        if wanted:
            named["error"] = folder / "error.mrc" if error is True else error
        try:
            values = DenoiseCommand.read_keywords(named)
            run_denoise(DenoiseCommand(tomogram=str(given), output=str(result), **values))
        except Exception as error:
            mistake = user_error(error)
            if mistake is None:
                raise
            raise _in_python(mistake, folder) from error
        written = [load_tomogram(path) for path in (result, named.get("error")) if path is not None]
    volumes = tuple(_like(tomogram, volume) for volume in written)
    return volumes if wanted else volumes[0]


def _in_python(mistake: UserError, folder: Path) -> UserError:
    """A sentence of the command line in the words of Python: keywords for options, no files that only the run had.

    Args:
        mistake: what was raised.
        folder: that the volumes in memory were written to.
    """
    text = str(mistake)
    for name, words in _IN_MEMORY.items():
        text = re.sub(rf"{re.escape(str(folder / name))}(\.\w+)?", words, text)
    text = re.sub(rf"{re.escape(str(folder))}\S*", "the temporary folder", text)
    return type(mistake)(_OPTION.sub(_as_keyword, text))


def _as_keyword(match: re.Match[str]) -> str:
    """An option of the command line as Python has it, its value perhaps; one that Python has not is left."""
    flag, word = match[1], match[2] or ""
    if flag not in _FLAGS:
        return match[0]
    option, value = _FLAGS[flag], word.strip()
    if option.is_switch:
        return f"{option.keyword}={not option.default}{word}"
    is_value = value in option.choices or match[0] == "--device cpu"
    return f'{option.keyword}="{value}"' if is_value else option.keyword + word


def _on_disk(volume: Volume, path: Path, voxel_size: float) -> Path:
    """The path of a volume; what is in memory is written first."""
    if isinstance(volume, (str, os.PathLike)):
        return Path(volume)
    if tells_axes(volume):
        # A NIfTI keeps which way the axes run, for what goes with it.
        path, affine = path.with_suffix(".nii"), volume.affine.cpu().numpy()
    else:
        affine = affine_of([voxel_size] * 3, [0.0] * 3)
    image = MetaTensor(torch.from_numpy(_as_array(volume))[None], affine=torch.from_numpy(affine))
    with warnings.catch_warnings():
        # Of statistics with voxels that are no numbers; those are told by the run.
        warnings.simplefilter("ignore")
        save_tomogram(image, path, is_result=False)
    return path


def _sides(shape: Sequence[int]) -> Sequence[int]:
    """The shape of a volume without its channel, first or last."""
    if len(shape) == 4 and shape[0] == 1:
        return shape[1:]
    return shape[:-1] if len(shape) == 4 and shape[-1] == 1 else shape


def _as_array(volume: Any) -> np.ndarray:
    """What was given as an array without its channel, float32."""
    refuse_masked(volume)
    if not hasattr(volume, "__array__"):
        raise InputError(
            f"a volume given as {type(volume).__name__} is not one: give a NumPy array, a tensor, or the path of a file"
        )
    if isinstance(volume, Tensor):
        # NumPy has no bfloat16.
        plain = volume.detach().as_subclass(Tensor).cpu()
        array = (plain.float() if plain.is_floating_point() else plain).numpy()
    else:
        array = np.asarray(volume)
    if np.iscomplexobj(array) or array.dtype.kind not in "fiub":
        raise InputError(f"a volume of {array.dtype} is none of grey values, give real numbers")
    shape, array = array.shape, array.reshape(_sides(array.shape))
    if array.ndim != 3:
        raise InputError(f"an array of shape {shape} is not one volume, give (Z, Y, X), (1, Z, Y, X) or (Z, Y, X, 1)")
    if array.size == 0:
        raise InputError(f"an array of shape {shape} has no voxels, give a volume that has")
    return np.ascontiguousarray(array, dtype=np.float32)


def _like(given: Volume, denoised: MetaTensor) -> np.ndarray | Tensor | MetaTensor:
    """The result as the kind of what was given."""
    if isinstance(given, (str, os.PathLike)):
        return denoised
    plain = denoised.as_tensor()
    if tells_axes(given):
        one = given.as_tensor().reshape(1, *_sides(given.shape))
        turned: Any = _TURN(MetaTensor(one, meta=given.meta, applied_operations=given.applied_operations))
        volume = MetaTensor(plain.to(given.device), meta=turned.meta, applied_operations=turned.applied_operations)
        back: Any = _TURN.inverse(volume)
        result: MetaTensor = back.reshape(given.shape)
        return result
    if isinstance(given, Tensor):
        same = plain.reshape(given.shape).to(given.device)
        return MetaTensor(same, meta=given.meta) if isinstance(given, MetaTensor) else same
    array: np.ndarray = plain.numpy().reshape(given.shape)
    return array
