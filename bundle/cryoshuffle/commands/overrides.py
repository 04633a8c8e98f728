"""Overrides on MONAI's command line: a name that no config knows is refused, where MONAI would ignore it."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, create_workflow, run, run_workflow
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import optional_import

import cryoshuffle
from cryoshuffle.errors import SettingError

# What the first word of the command line ends with where MONAI runs a bundle.
_PROGRAMS = ("monai/bundle/__main__.py", "monai.bundle")
_OWN = {
    name for one in (run, run_workflow, create_workflow, ConfigWorkflow) for name in inspect.signature(one).parameters
}
# What MONAI's command line reads a value with.
_read_value, _ = optional_import("fire.parser", name="DefaultParseValue")


def check_overrides(words: Sequence[str] | None = None) -> None:
    """Refuse overrides on MONAI's command line, or in its ``args_file``, that no config knows.

    Known is what a given config has or refers to, what a config of the package has, and what MONAI takes itself. Of a
    nested name (``train#trainer``) the first part is looked at. Nothing is looked at where ``python -m monai.bundle``
    is not what runs.

    Args:
        words: the command line, program first; None for that of the process.

    Raises:
        SettingError: for the first unknown name; the nearest that is known is named.
    """
    words = sys.argv if words is None else words
    if not Path(words[0]).as_posix().endswith(_PROGRAMS):
        return
    options = _options(words[1:])
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    if "config_file" not in options:
        return
    content = ConfigParser.load_config_files(options["config_file"])
    named = {_first_part(name) for name in (*content, *_tracking_names(options.get("tracking")))} | _OWN
    referred = {ConfigParser.meta_key, *re.findall(r"[@%]#?(\w+)", f"{content} {options}")}
    unknown = [name for name in map(_first_part, options) if name not in named | referred]
    if not unknown:
        return
    # One file of arguments may serve a fit and what comes after it.
    named |= _shipped_names()
    for name in unknown:
        if name not in named:
            nearest = difflib.get_close_matches(name, sorted(named), n=1, cutoff=0.0)[0]
            raise SettingError(f"'{name}' is a name that no config knows: use '{nearest}', or leave it out")


def _options(words: Sequence[str]) -> dict[str, Any]:
    """Values by name, as MONAI's command line reads them; True for a name without a value."""
    options: dict[str, Any] = {}
    for word, after in zip(words, [*words[1:], "--"], strict=True):
        if word == "--":  # what follows is for the command line itself
            break
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
            bare = not given and after.startswith("--")
            options[name.replace("-", "_")] = True if bare else _read_value(value if given else after)
    return options


def _first_part(name: str) -> str:
    """The first part of a nested name; ``+`` before it merges lists."""
    return re.split("#|::", name.removeprefix("+"))[0]


def _shipped_names() -> set[str]:
    """The names at the top of the configs that the package comes with."""
    paths = [path for path in cryoshuffle.config_dir().iterdir() if path.suffix in (".json", ".yaml")]
    contents = [ConfigParser.load_config_file(path) for path in paths if path.stem != "metadata"]
    return {_first_part(name) for content in contents for name in content}


def _tracking_names(tracking: Any) -> set[str]:
    """The names that MONAI's tracking of experiments adds to a config."""
    if tracking is None:
        return set()
    settings: Any = tracking if isinstance(tracking, dict) else DEFAULT_EXP_MGMT_SETTINGS.get(tracking)
    settings = ConfigParser.load_config_files(tracking) if settings is None else settings
    return set(settings["configs"])
