"""Tables and paragraphs of Markdown, the section of a page that a program writes, and where pages stand."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cryoshuffle.files.writing import write_json, write_text


def number(value: float) -> str:
    """Three digits, without an exponent.

    Example:
        >>> number(1234.5), number(98.76), number(0.01234)
        ('1,234', '98.8', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A table of Markdown whose first ``names`` columns are text."""
    lines = [head, ["---" if i < names else "---:" for i in range(len(head))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def wrapped(parts: Iterable[str]) -> str:
    """Blocks of Markdown as text of at most 120 columns; tables keep their lines and inline code stays on one line.

    Args:
        parts: paragraphs, lists of one line an item, headings, tables and markers.
    """
    blocks = []
    for block in "\n\n".join(parts).split("\n\n"):
        lines = block.split("\n") if block.startswith(("|", "#", "<!--", "- ")) else [" ".join(block.split("\n"))]
        blocks.append("\n".join(line if line.startswith(("|", "#", "<!--")) else _fold(line) for line in lines))
    return "\n\n".join(blocks) + "\n"


def _fold(line: str) -> str:
    """A paragraph or an item of a list, wrapped."""
    kept = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), line)
    indent = "  " if line.startswith("- ") else ""
    folded = textwrap.fill(kept, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return folded.replace("\0", " ")


def replace_section(document: str, section: str, begin: str, end: str) -> str:
    """A document with its own section exchanged, or added at the end; all else stays.

    Args:
        document: as it is.
        section: with its markers.
        begin: marker in front of the section.
        end: marker behind it.

    Raises:
        ValueError: if only one of the markers is there, or they are in the wrong order.
    """
    if begin not in document and end not in document:
        start = document.rstrip("\n") or "# Benchmarks"
        return f"{start}\n\n{section}"
    before, first, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"the document must hold '{begin}' and behind it '{end}', or neither: mend or remove them")
    return before + section.rstrip("\n") + after


def documents_of(docs: Path) -> tuple[Path, Path, Path]:
    """The page of benchmarks, the folder of raw numbers and the folder of pictures; their folders are made.

    Args:
        docs: folder of the documents.
    """
    page, data, pictures = docs / "explain" / "benchmarks.md", docs / "data", docs / "pictures"
    for folder in (page.parent, data, pictures):
        folder.mkdir(parents=True, exist_ok=True)
    return page, data, pictures


def write_section(docs: Path, name: str, section: str, markers: tuple[str, str], content: Any) -> None:
    """Write a section of the page of benchmarks and the raw numbers behind it, each file whole, or neither.

    Args:
        docs: folder of the documents.
        name: of the benchmark, in ``benchmarks_<name>.json``.
        section: with its markers.
        markers: in front of the section and behind it.
        content: of the raw numbers, plain values.

    Raises:
        SystemExit: if the page has only one of the markers, or in the wrong order; nothing is written then.
    """
    page, data, _ = documents_of(docs)
    document = page.read_text(encoding="utf-8") if page.is_file() else ""
    try:
        changed = replace_section(document, section, *markers)
    except ValueError as error:
        sys.exit(f"{page}: {error}")
    write_text(changed, page)
    write_json(content, data / f"benchmarks_{name}.json")
    print(f"documents: {page}")
