"""Sphinx: the documentation site, from these pages, the docstrings and the configs."""

import contextlib
import importlib.util
import io
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bundle"))

project = "cryoshuffle"
author = "the cryoshuffle developers"
release = json.loads((ROOT / "configs" / "metadata.json").read_text(encoding="utf-8"))["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Buttons that copy a command; without them the site is the same.
if importlib.util.find_spec("sphinx_copybutton") is not None:
    extensions.append("sphinx_copybutton")
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"cryoshuffle {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
# The address of the repository, which the checkout does not know: REPOSITORY=https://... sphinx-build docs site
if repository := os.environ.get("REPOSITORY"):
    link = {"name": "Repository", "url": repository, "html": "Repository", "class": ""}
    html_theme_options = {"footer_icons": [link]}
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_custom_sections = ["Shape", "Units", "Invariant", "Source"]


def _write(path: Path, text: str) -> None:
    """Only what changed, so that Sphinx reads only that anew."""
    path.parent.mkdir(exist_ok=True)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _reference(app: object) -> None:
    """The pages of the reference: commands as they explain themselves, modules by their docstrings, configs."""
    from cryoshuffle.commands.cli import build_parser

    folder = ROOT / "docs" / "reference"
    parser = build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    text = ["# Commands\n", "What `cryoshuffle COMMAND --help` says.\n"]
    for name, command in commands.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            command.print_help(said)
        text.append(f"## {name}\n\n```text\n{said.getvalue()}```\n")
    _write(folder / "commands.md", "\n".join(text))
    text = ["# Modules\n"]
    for path in sorted((ROOT / "bundle" / "cryoshuffle").rglob("*.py")):
        parts = path.relative_to(ROOT / "bundle").with_suffix("").parts
        if path.stem == "__main__" or (path.stem == "__init__" and len(parts) > 2):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        text.append(f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n")
    _write(folder / "modules.md", "\n".join(text))
    text = ["# Configs\n", "The knobs are the keys at the top of the first two; the others change them.\n"]
    for path in sorted((ROOT / "configs").glob("*.[jy]*"), key=lambda p: (p.suffix, p.name)):
        kind = "json" if path.suffix == ".json" else "yaml"
        text.append(f"## {path.name}\n\n```{{literalinclude}} ../../configs/{path.name}\n:language: {kind}\n```\n")
    _write(folder / "configs.md", "\n".join(text))


def setup(app: object) -> None:
    """Called by Sphinx."""
    app.connect("builder-inited", _reference)  # type: ignore[attr-defined]
