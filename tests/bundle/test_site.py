"""What stands around the program: the documentation site, completion in a shell, the container's recipe."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = Path(sys.executable).parent


class Links(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.anchors |= {values["id"]} if values.get("id") else set()
        self.addresses += [values[name] for name in ("href", "src") if values.get(name)]


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(tmp_path):
    """Every command, public module and config has its place; a link that leads nowhere fails the build (control)."""
    project = tmp_path / "project"
    for name in ("docs", "configs", "bundle"):
        shutil.copytree(
            ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__", "_build", "reference")
        )
    built = build(project / "docs", tmp_path / "site")
    assert built.returncode == 0, built.stderr
    pages = {}
    for path in (tmp_path / "site").rglob("*.html"):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    assert {path.stem for path in pages} >= {path.stem for path in (ROOT / "docs").rglob("*.md")}
    for path, page in pages.items():
        for address in page.addresses:
            if re.match(r"[a-z]+:", address):
                continue
            file, _, anchor = address.partition("#")
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            assert target.is_file(), f"{path.name} leads to {address}"
            assert not anchor or target not in pages or anchor in pages[target].anchors, f"{path.name}: {address}"
    reference = (tmp_path / "site" / "reference" / "modules.html").read_text(encoding="utf-8")
    for path in (ROOT / "bundle" / "cryoshuffle").glob("[a-z]*.py"):
        assert f'id="module-cryoshuffle.{path.stem}"' in reference, path.stem
    commands = (tmp_path / "site" / "reference" / "commands.html").read_text(encoding="utf-8")
    assert 'id="denoise"' in commands
    assert "--tilt-axis" in commands

    with (project / "docs" / "explain" / "trust.md").open("a") as page:
        page.write("\n[nowhere](not_there.md)\n")
    broken = build(project / "docs", tmp_path / "site")
    assert broken.returncode != 0
    assert "not_there" in broken.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["den"], {"denoise"}),
        (["denoise", "in.mrc", "out.mrc", "--tilt"], {"--tilt-axis"}),
        (["denoise", "in.mrc", "out.mrc", "--tilt-axis", ""], {"z", "y", "x"}),
    ],
)
def test_a_shell_completes_commands_options_and_choices(tmp_path, words, expected):
    """By the way of docs/howto/install.md."""
    page = (ROOT / "docs" / "howto" / "install.md").read_text(encoding="utf-8")
    shown = re.search(r"^(shtab .*) >.*$", page, flags=re.MULTILINE)
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}
    made = subprocess.run(shown[1], shell=True, capture_output=True, text=True, check=True, env=environment)
    (tmp_path / "completion").write_text(made.stdout)
    array = " ".join(f"'{word}'" for word in ["cryoshuffle", *words])
    script = f"source completion; COMP_WORDS=({array}); COMP_CWORD={len(words)}; _shtab_cryoshuffle; "
    said = subprocess.run(
        ["bash", "-c", script + 'printf "%s\\n" "${COMPREPLY[@]}"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(said.stdout.split()) == expected


def test_the_recipe_of_the_container_is_sound(tmp_path):
    """By hadolint; one that runs as root from an unnamed version is complained of (control)."""
    linter = str(SCRIPTS / "hadolint")
    done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN cd /tmp\n")
    control = subprocess.run([linter, str(tmp_path / "Dockerfile")], capture_output=True, text=True, check=False)
    assert control.returncode != 0
    assert "DL3007" in control.stdout
