"""The commands that the pages show are commands, with options that there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cryoshuffle.commands.cli import build_parser

DOCS = Path(__file__).parent.parent.parent / "docs"
OTHERS = {"--nthreads", "--nv", "--output-type", "--run-names", "--tomo-type"}
PAGES = [
    "../README",
    "index",
    "tutorial",
    "faq",
    "explain/trust",
    *sorted(f"howto/{path.stem}" for path in DOCS.glob("howto/*.md")),
]


def _options() -> set[str]:
    parser = build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    return {option for command in commands.values() for action in command._actions for option in action.option_strings}


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_understood(page):
    """In blocks and within sentences; options named by themselves exist."""
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.DOTALL)
    shown = [line for block in blocks for line in block.splitlines() if line.startswith("cryoshuffle ")]
    named = re.findall(r"`cryoshuffle [a-z]+ (?!--help)[^`]+`", text)
    for line in (*shown, *(words.strip("`") for words in named)):
        build_parser().parse_args(shlex.split(line, comments=True)[1:])
    for option in re.findall(r"`(--[a-z-]+)[ `]", text):
        assert option in _options() | OTHERS, option
