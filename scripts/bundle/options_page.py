#!/usr/bin/env python3
"""Writes docs/howto/options.md: the options of `cryoshuffle denoise`, from the fields that declare them.

Usage: scripts/bundle/options_page.py
"""

from __future__ import annotations

from pathlib import Path

from cryoshuffle.commands.options import DenoiseCommand, Option

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "options.md"
HEAD = """# Options

What `cryoshuffle denoise` takes besides the tomogram and the result. `cryoshuffle.denoise` has the same options as
keywords, with underscores for dashes; `--no-refine` is `refine=False`, `--no-survival` is `survival=False`. This page
is written by `scripts/bundle/options_page.py`.
"""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("%%", "%")


def _row(one: Option) -> str:
    value = one.metavar or "{" + ",".join(one.choices) + "}" if one.metavar or one.choices else one.name.upper()
    values = "" if one.is_switch else f" {value}"
    config = f"`{one.part_of or one.name}`" if one.in_config else ""
    return f"| `{_cell(one.flag + values)}` | {_cell(one.help or '')} | {config} |"


def page() -> str:
    """The page, a table for each group of the help."""
    parts = [HEAD]
    for group, members in DenoiseCommand.groups().items():
        title, lines = group or "result", [_row(one) for one in members if not one.is_positional]
        head = [
            f"## {title[0].upper()}{title[1:]}",
            "",
            "| option | what it does | config key |",
            "| --- | --- | --- |",
        ]
        parts.append("\n".join([*head, *lines, ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
