"""The documentation is true: each command of its pages runs as it stands there."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from phantoms import REAL_TOMOGRAM, small_tomogram, write_mrc

from cryoshuffle.commands.cli import main

ROOT = Path(__file__).parent.parent.parent
COMMANDS = "```bash\ncryoshuffle "
PAGES = [
    "tutorial",
    *sorted(f"howto/{p.stem}" for p in (ROOT / "docs/howto").glob("*.md") if COMMANDS in p.read_text()),
]
# Behind the words of a page: a fit of seconds.
SHORT = ["--steps=4", "--window=16,24,16", "--no-refine", "--quiet"]
# What SHORT leaves out, so that the first network can begin another fit.
FULL = [option for option in SHORT if option != "--no-refine"]
# The commands of the other pages are parsed by each run of the suite (test_documented_commands), run by the long one.
ALWAYS = {"tutorial", "howto/batch"}
HALVES = ("even", "odd")
STAR = "data_global\n\nloop_\n_rlnTomoName #1\n_rlnTomoReconstructedTomogram #2\nTS_01 in.mrc\nTS_02 even.mrc\n"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def files(folder: Path, lines: Sequence[str], network: Path) -> None:
    """What the commands of a page suppose to lie in the working directory."""
    if any("--checkpoint session.pt" in line and " batch " in line for line in lines):
        shutil.copy(network, folder / "session.pt")
    shutil.copy(REAL_TOMOGRAM, folder / "microtubule.mrc")
    halves = [mrcfile.read(small_tomogram(folder / f"{name}.mrc", (24, 60, 48), i)) for i, name in enumerate(HALVES)]
    write_mrc(folder / "in.mrc", (halves[0] + halves[1]) / 2)
    small_tomogram(folder / "next.mrc", (24, 60, 48), 2)
    (folder / "session").mkdir()
    for seed, name in enumerate("ab"):
        if name == "a" or any(f"session/{name}.mrc" in line for line in lines):
            small_tomogram(folder / "session" / f"{name}.mrc", seed=seed)
    ice = np.zeros(mrcfile.read(folder / "in.mrc").shape, np.int8)
    ice[:, :24] = 1
    write_mrc(folder / "ice.mrc", ice)
    (folder / "tomograms.star").write_text(STAR)
    for block in blocks("howto/batch", "yaml"):
        (folder / "slurm.yaml").write_text(block)


def parts(page: str) -> list[list[str]]:
    """The commands of a page in pieces that need nothing of each other; most pages are one."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [[line] for line in lines] if page == "howto/batch" else [lines]


@pytest.mark.parametrize(
    ("page", "part"),
    [
        pytest.param(page, part, marks=[] if page in ALWAYS else pytest.mark.nightly)
        for page in PAGES
        for part in range(len(parts(page)))
    ],
)
def test_the_commands_of_a_page_run(page, part, tmp_path, fitted, monkeypatch, capsys):
    """In their order, in one folder; fits are shortened by options behind."""
    lines = parts(page)[part]
    files(tmp_path, lines, fitted[1])
    monkeypatch.chdir(tmp_path)
    assert lines or blocks(page, "python")
    warm = any("--warm-start" in line for line in lines)
    for line in lines:
        program, command, *words = shlex.split(line)
        assert program == "cryoshuffle"
        shorten = command in {"denoise", "fit", "batch"} and "--checkpoint" not in words
        shorten = shorten or command == "fit"
        short = (FULL if warm else SHORT) if shorten else []
        assert main([command, *words, *short]) == 0, f"{line}\n{capsys.readouterr().err}"
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
