"""A session in napari without a screen, as a user has it; prints what it saw as JSON.

Usage: napari_session.py TOMOGRAM FOLDER [SCREENSHOT]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
from napari.components import ViewerModel
from napari.qt import get_qapp
from npe2 import PluginManager, PluginManifest

import cryoshuffle
from cryoshuffle.commands.napari import DenoisePanel

FAST = "--steps 6 --window 16,24,16 --no-refine"
ENDLESS = "--steps 100000 --window 16,24,16 --no-refine"


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Let the window work until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        get_qapp().processEvents()
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


def layers(viewer: Any) -> list[dict[str, Any]]:
    """Name, shape and place of the layers, the lowest first."""
    return [
        {
            "name": layer.name,
            "shape": list(layer.data.shape),
            "scale": [float(step) for step in layer.scale],
            "units": [str(unit) for unit in layer.units],
            "visible": layer.visible,
        }
        for layer in viewer.layers
    ]


def main(tomogram: Path, folder: Path, screenshot: Path | None = None) -> dict[str, Any]:
    """Denoise by the widget, stop another run, be refused, and open the first run by its folder."""
    # Without OpenGL there is no window; viewer, reader and widget are the same.
    get_qapp()
    viewer: Any = ViewerModel() if screenshot is None else napari.Viewer()
    manager = PluginManager.instance()
    if "cryoshuffle" not in manager:
        manager.register(PluginManifest.from_file(Path(cryoshuffle.__file__).with_name("napari.yaml")))
    panel = DenoisePanel(viewer)
    if screenshot is not None:
        viewer.window.add_dock_widget(panel.container.native, name="Denoise a tomogram (cryoshuffle)")
    panel.denoise.changed.emit(True)
    unnamed = panel.status.value
    panel.tomogram.value = tomogram
    seen: dict[str, Any] = {"named": str(panel.output.value), "unnamed": unnamed}

    def press(name: str, options: str) -> None:
        panel.output.value, panel.more.value = folder / name, options
        panel.denoise.changed.emit(True)

    press("out.mrc", "--nonsense 3")
    seen["refused"] = panel.status.value
    press("out.mrc", "--help")
    seen["help"] = panel.status.value
    press("out.mrc", FAST)
    seen["locked"] = (panel.denoise.enabled, panel.cancel.enabled)
    values = set()

    def done() -> bool:
        values.add((panel.progress.max, panel.progress.value))
        return panel.denoise.enabled

    wait_for(done)
    seen |= {"bar": sorted(values), "done": panel.status.value, "layers": layers(viewer)}
    if screenshot is not None:
        get_qapp().processEvents()
        viewer.screenshot(str(screenshot), canvas_only=False)
    press("other.mrc", ENDLESS)
    wait_for(lambda: panel.status.value.startswith("fitting"))
    panel.cancel.changed.emit(True)
    wait_for(lambda: panel.denoise.enabled)
    seen |= {"stopped": panel.status.value, "written": (folder / "other.mrc").exists()}
    press("out.mrc", FAST)
    wait_for(lambda: panel.denoise.enabled)
    seen["again"] = panel.status.value
    viewer.layers.clear()
    viewer.open(str(folder / "out_run"), plugin="cryoshuffle")
    return {**seen, "opened": layers(viewer)}


if __name__ == "__main__":
    print(json.dumps(main(*(Path(word) for word in sys.argv[1:]))))
