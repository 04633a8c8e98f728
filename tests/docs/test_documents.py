"""The documents hold together: no dead link, no placeholder, no key or test that does not exist."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path

import pytest

from cryoshuffle.commands.options import DenoiseCommand

ROOT = Path(__file__).parent.parent.parent
# All but the pages that Sphinx is given by docs/conf.py.
SITE = sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name not in {"reference", "_build"})
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *SITE]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere_and_nothing_is_left_to_fill_in(page):
    """Relative links exist, their anchors too; no placeholders."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"@@|TODO|TBD|FIXME|XXX", text)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_page_is_at_most_120_columns_wide(page):
    """Tables and code keep their lines."""
    code = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.startswith("```")
        assert code or line.startswith("|") or len(line) <= 120, f"{page.name}:{number}"


def test_the_method_table_names_modules_keys_and_tests_that_exist():
    """Each row of paper term, module, config key and proof can be followed."""
    config = json.loads((ROOT / "configs" / "train.json").read_text())
    table = (
        (ROOT / "docs" / "explain" / "method.md")
        .read_text(encoding="utf-8")
        .split("## Paper, symbol")[1]
        .split("\n## ")[0]
    )
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    for term, _, module, keys, proof in rows:
        source = re.findall(r"`(\w+)\.(\w+)", module)
        for name, thing in source:
            (path,) = (ROOT / "bundle" / "cryoshuffle").rglob(f"{name}.py")
            assert thing in path.read_text(), term
        for key in re.findall(r"`([\w#]+)`", keys):
            node = config
            for part in key.split("#"):
                assert part in node, key
                node = node[part]
        for test in re.findall(r"(test_\w+\.py)", proof):
            assert list((ROOT / "tests").rglob(test)), test


def test_the_page_of_options_is_what_the_options_say():
    """It is written from their fields; every option of the help has its row."""
    path = ROOT / "scripts" / "bundle" / "options_page.py"
    specification = importlib.util.spec_from_file_location("options_page", path)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    written = (ROOT / "docs" / "howto" / "options.md").read_text(encoding="utf-8")
    assert script.page() == written
    for one in DenoiseCommand.options().values():
        assert one.is_positional or f"| `{one.flag}" in written


def _sentences() -> str:
    """All texts of the program, those of more than one piece as one, with a mark for each value."""
    texts = []
    for path in (ROOT / "bundle" / "cryoshuffle").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_the_messages_that_are_explained_are_messages_of_the_program():
    """Each row begins with words of one; words that no message has are none of them (control)."""
    page = (ROOT / "docs" / "howto" / "messages.md").read_text(encoding="utf-8")
    explained, sentences = re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE), _sentences()
    assert len(explained) > 20
    assert [words for words in explained if words not in sentences] == []
    assert "is a wrong tomogram" not in sentences
