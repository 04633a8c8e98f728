"""What napari takes from the package: a reader of run folders, and a widget that denoises in a process of its own.

napari and its widgets are imported when it asks for them; ``napari.yaml`` tells it of both.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from cryoshuffle.commands.options import DenoiseCommand
from cryoshuffle.errors import FileError, InputError, UsageError, UserError

PROVENANCE = "provenance.json"
# What a run names in its provenance, and the layer it becomes, the lowest first.
LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("input", {"name": "tomogram"}),
    ("output", {"name": "denoised"}),
    ("residual", {"name": "residual", "visible": False}),
    ("error", {"name": "standard error", "visible": False, "colormap": "magma"}),
)
# Percentiles of the grey values that become black and white, and sections that tell them.
_BLACK, _WHITE, _SECTIONS = 0.5, 99.5, 16
_FIND = "find it"
_INPUT = LAYERS[0][1]["name"]
# What a layer has from its file; the rest of it is the user's.
_OF_THE_FILE = {"scale", "translate", "units", "contrast_limits"}
_POSIX = os.name == "posix"


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[tuple[np.ndarray, dict[str, Any], str]]] | None:
    """The reader of a run, by the contract of napari.

    Args:
        path: folder of a run, or the ``provenance.json`` in it.

    Returns:
        a function that makes layers of the path; None for anything else.
    """
    if not isinstance(path, str):
        return None
    folder = Path(path)
    folder = folder.parent if folder.name == PROVENANCE else folder
    return (lambda path: read_run(folder)) if (folder / PROVENANCE).is_file() else None


def read_run(folder: Path) -> list[tuple[np.ndarray, dict[str, Any], str]]:
    """The volumes of a run as layers of napari, each where its header puts it.

    Args:
        folder: of the run, ``<result>_run``.

    Returns:
        for tomogram, result, residual and standard error, as far as there are files of them: the volume (Z, Y, X), the
        options of its layer with ``scale`` (Å a voxel) and ``translate`` (Å), and the kind of layer.

    Raises:
        FileError: if no volume of the run is where it was, or one cannot be read.
        InputError: if the provenance is none.

    Warns:
        UserWarning: for each volume that is not where it was.
    """
    from cryoshuffle.report.provenance import locate

    try:
        said = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        named = {name: Path(said[name]["path"]) for name, _ in LAYERS if said.get(name)}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{folder / PROVENANCE}: is no record of a run ({error}), open the volumes one by one"
        ) from error
    layers = []
    for name, options in LAYERS:
        if name in named:
            path = locate(named[name], folder)
            if not path.exists():
                warnings.warn(f"{named[name]}: is not there any more, the layer is left out", stacklevel=2)
                continue
            layers.append(_layer(path, options))
    if not layers:
        raise FileError(f"{folder}: none of its volumes is where it was, move them beside the folder")
    return layers


def _layer(path: Path, options: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Any], str]:
    from cryoshuffle.files.formats import load_tomogram
    from cryoshuffle.files.volumes import grid_of

    image = load_tomogram(path, permissive=True)
    volume, (size, origin) = image[0].numpy(), grid_of(image.affine.numpy())
    sections = volume[:: max(1, len(volume) // _SECTIONS)]
    black, white = np.percentile(sections[np.isfinite(sections)], (_BLACK, _WHITE))
    more: dict[str, Any] = {
        "scale": tuple(size.tolist()),
        "translate": tuple(origin.tolist()),
        "units": ("angstrom",) * 3,
        "metadata": {"path": str(path)},
    }
    if black < white:
        more["contrast_limits"] = (float(black), float(white))
    return volume, {**options, **more}, "image"


class DenoiseProcess:
    """``cryoshuffle denoise`` in a process of its own, which ends when this one does.

    Args:
        tomogram: path of the input.
        output: path of the result.
        words: options, as words of the command line.

    Raises:
        FileError: if the process cannot be started.
    """

    def __init__(self, tomogram: str, output: str, words: Sequence[str] = ()) -> None:
        program = [sys.executable, "-m", "cryoshuffle.commands.worker", "denoise", tomogram, output]
        try:
            self._process = subprocess.Popen(
                [*program, "--json-lines", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise FileError(f"{sys.executable}: cannot be started ({error.strerror}), install Python again") from error
        self._input, self._output = cast(IO[str], self._process.stdin), cast(IO[str], self._process.stdout)
        self.is_cancelled = False
        self._sentences: list[str] = []

    def lines(self) -> Iterator[dict[str, Any]]:
        """What the run tells while it lasts: the lines of ``history.jsonl``, and at the end its files by what they are.

        Whoever stops reading stops the run.
        """
        try:
            for line in self._output:
                try:
                    said = json.loads(line)
                except ValueError:
                    said = line.strip()
                if isinstance(said, dict):
                    yield said
                elif said:
                    self._sentences.append(str(said))
        finally:
            self._close_input()
            # What nobody reads would keep the process from its end.
            self._output.read()
            self._output.close()
            self._process.wait()

    def cancel(self) -> None:
        """Ask the run to stop; it keeps what it needs to go on."""
        self.is_cancelled = True
        self._close_input()

    def _close_input(self) -> None:
        """The process takes the end of its input for the end of this one, on every system."""
        with contextlib.suppress(OSError):
            self._input.close()

    def outcome(self) -> str:
        """Why the run did not end well, in a sentence; empty if it did. Waits for its end."""
        code = self._process.wait()
        if code == 0:
            return ""
        if self.is_cancelled:
            return "Stopped. No result was written; Denoise goes on from here."
        return self._sentences[-1] if self._sentences else f"The run ended with exit code {code}."


def split_words(text: str, posix: bool = _POSIX) -> list[str]:
    r"""Options as words, as the command line has them; quotes hold a word with spaces together.

    Args:
        text: of the field.
        posix: whether a backslash protects what follows; on Windows it parts folders.

    Raises:
        ValueError: for quotes that are not closed.

    Example:
        >>> split_words(r'--noise-mask="C:\my data\mask.mrc" --seed 3', posix=False)
        ['--noise-mask=C:\\my data\\mask.mrc', '--seed', '3']
    """
    words = shlex.shlex(text, posix=True)
    words.whitespace_split, words.commenters = True, ""
    if not posix:
        words.escape = ""
    return list(words)


class DenoisePanel:
    """The fields and buttons of the widget, and the run that they start.

    Args:
        viewer: of napari, that gets the layers; None for none.

    Attributes:
        container: the widget of magicgui's that holds them, for napari.
        status: what is going on, as the user reads it.
    """

    def __init__(self, viewer: Any = None) -> None:
        from magicgui import widgets

        options = DenoiseCommand.options()
        self.viewer = viewer
        self.process: DenoiseProcess | None = None
        self._stopped_run: list[str] = []
        self.tomogram = widgets.FileEdit(label="Tomogram", mode="r")
        self.output = widgets.FileEdit(label="Result", mode="w")
        self.effort = widgets.ComboBox(label="Effort", choices=options["effort"].choices, value="standard")
        self.tilt_axis = widgets.ComboBox(label="Tilt axis", choices=[_FIND, *options["tilt_axis"].choices])
        self.residual = widgets.CheckBox(text="Write the residual as well", value=True)
        self.more = widgets.LineEdit(label="More options", tooltip="as on the command line: --minutes 5")
        self.denoise = widgets.PushButton(text="Denoise")
        self.cancel = widgets.PushButton(text="Cancel", enabled=False)
        self.progress = widgets.ProgressBar(min=0, max=1, value=0)
        self.status = widgets.Label(value="")
        fields = [self.tomogram, self.output, self.effort, self.tilt_axis, self.residual, self.more]
        buttons = widgets.Container(widgets=[self.denoise, self.cancel], layout="horizontal", labels=False)
        self.container = widgets.Container(widgets=[*fields, buttons, self.progress, self.status])
        self.status.native.setWordWrap(True)
        # By lambdas, which are kept; of methods only weak references would be.
        self.tomogram.changed.connect(lambda: self._name_output())
        self.denoise.changed.connect(lambda: self.start())
        self.cancel.changed.connect(lambda: self.stop())
        path = None if self.viewer is None else _path_of(self.viewer.layers.selection.active)
        if path is not None:
            self.tomogram.value = path

    def _name_output(self) -> None:
        from cryoshuffle.files.formats import split_suffix

        path = Path(self.tomogram.value)
        name, suffix = split_suffix(path)
        if suffix:
            self.output.value = path.with_name(f"{name}_denoised{suffix}")

    def words(self) -> list[str]:
        """The command line that the fields say, from the input on.

        Raises:
            UsageError: if tomogram or result is not named, or for quotes that are not closed.
        """
        from cryoshuffle.files.formats import split_suffix

        if not all(split_suffix(field.value)[1] for field in (self.tomogram, self.output)):
            raise UsageError("name the tomogram and the result, each with its suffix, .mrc for instance")
        words = [str(self.tomogram.value), str(self.output.value), f"--effort={self.effort.value}"]
        if self.tilt_axis.value != _FIND:
            words.append(f"--tilt-axis={self.tilt_axis.value}")
        if self.residual.value:
            output = Path(self.output.value)
            name, suffix = split_suffix(output)
            words.append(f"--residual={output.with_name(f'{name}_residual{suffix}')}")
        try:
            return words + split_words(self.more.value)
        except ValueError as error:
            raise UsageError(f"{self.more.value}: cannot be read ({error}), close the quotes") from error

    def start(self) -> None:
        """Denoise in a process; the layers of the run are added when it is done."""
        from napari.qt.threading import create_worker

        from cryoshuffle.commands.cli import build_parser
        from cryoshuffle.commands.runs import run_dir

        try:
            words = self.words()
            # What is only said in a terminal, the help for instance, ends the program there.
            with contextlib.redirect_stdout(io.StringIO()):
                options = build_parser().parse_args(["denoise", *words])
            resume = ["--resume"] if words == self._stopped_run else []
            process = self.process = DenoiseProcess(words[0], words[1], [*words[2:], *resume])
        except UserError as error:
            self.status.value = str(error)
            return
        except SystemExit:
            self.status.value = f"{self.more.value}: is for a terminal, leave it out here"
            return

        def work() -> Iterator[dict[str, Any]]:
            yield from process.lines()
            mistake = process.outcome()
            layers = [] if mistake else read_run(run_dir(options.output_dir, options.output))
            return mistake, layers  # type: ignore[return-value]

        def end(result: tuple[str, list[tuple[np.ndarray, dict[str, Any], str]]]) -> None:
            self._stopped_run = words if process.is_cancelled and result[0] else []
            self._end(*result)

        self._begin()
        connect = {"yielded": self._show, "returned": end, "errored": lambda error: self._end(str(error), [])}
        create_worker(work, _connect=connect)

    def stop(self) -> None:
        """Cancel the run."""
        if self.process is not None:
            self.status.value = "Stopping"
            self.process.cancel()

    def _begin(self) -> None:
        self.denoise.enabled, self.cancel.enabled = False, True
        # A bar without an end tells that something is going on.
        self.progress.max = 0
        self.status.value = "Measuring the noise"

    def _show(self, line: Mapping[str, Any]) -> None:
        if "step" not in line or self.process is None or self.process.is_cancelled:
            return
        self.progress.max, self.progress.value = int(line["steps"]), int(line["step"])
        steps = f"step {line['step']} of {line['steps']}"
        self.status.value = f"{line['stage']}: {steps}, about {line['seconds_left']:.0f} s left in this stage"

    def _end(self, mistake: str, layers: Sequence[tuple[np.ndarray, dict[str, Any], str]]) -> None:
        self.denoise.enabled, self.cancel.enabled = True, False
        self.progress.max = 1
        self.progress.value = int(not mistake)
        self.status.value = mistake or "Done. Read report.html in the folder of the run before you trust the result."
        if self.viewer is not None:
            show_layers(self.viewer, layers)


def show_layers(viewer: Any, layers: Sequence[tuple[np.ndarray, dict[str, Any], str]]) -> None:
    """Show the layers of a run; a layer that shows the same file gets the new voxels, place and contrast.

    The tomogram that was denoised has not changed, so a layer of it stays as it is.

    Args:
        viewer: of napari.
        layers: of :func:`read_run`.
    """
    shown: dict[str, list[Any]] = {}
    for layer in viewer.layers:
        path = _path_of(layer)
        if path is not None:
            shown.setdefault(_resolved(path), []).append(layer)
    for volume, options, _ in layers:
        same = shown.get(_resolved(options["metadata"]["path"]), [])
        if options["name"] == _INPUT and same:
            continue
        # One that another reader made in several scales cannot take one array.
        same = [one for one in same if one.ndim == volume.ndim and not getattr(one, "multiscale", False)]
        for layer in same:
            layer.data = volume
            for name in _OF_THE_FILE & options.keys():
                setattr(layer, name, options[name])
        if not same:
            viewer.add_image(volume, **options)


def _resolved(path: str) -> str:
    """One name for a file, however it was named."""
    return os.path.normcase(os.path.realpath(path))


def _path_of(layer: Any) -> str | None:
    """The file that a layer shows, as far as it tells."""
    named = getattr(layer, "metadata", {}).get("path") or getattr(getattr(layer, "source", None), "path", None)
    return None if named is None else str(named)


def denoise_widget() -> Any:
    """The widget for napari's window: it starts ``cryoshuffle denoise``, shows how far it is, and cancels it."""
    from napari import current_viewer

    return DenoisePanel(current_viewer()).container
