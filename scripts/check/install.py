#!/usr/bin/env python3
"""Installs wheel and sdist as a user would, in a fresh environment for each Python, and denoises with them.

    scripts/check/install.py python3.10 python3.13          # each with the newest packages that pip finds
    scripts/check/install.py --minimum python3.10           # the oldest that pyproject.toml allows
    scripts/check/install.py --pin torch==2.13.0 python3.12

Both are built once, the wheel from the sdist. In each environment the wheel is tried, with the first Python the sdist
too: version, a simulated tomogram, a short run of all three stages, and whether its result opens. Writes what it found
into ``docs/data/install.json`` and into the table of ``docs/howto/install.md``, ends with a line a Python, and with 1
if one failed. The default PyTorch of Linux takes about 7 GB of disk for as long as its environment is tried.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryoshuffle.files.writing import write_json, write_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.provenance import ROOT, commit, machine

FINDINGS = ROOT / "docs" / "data" / "install.json"
PAGE = ROOT / "docs" / "howto" / "install.md"
BEGIN, END = "<!-- install: begin, written by scripts/check/install.py -->\n", "<!-- install: end -->\n"
PACKAGES = ("torch", "monai", "numpy")
# In the environment itself, from a folder that is not the checkout.
OPEN = """
import json, mrcfile, numpy, cryoshuffle, platform, sys
from importlib.metadata import version
assert cryoshuffle.__file__.startswith(sys.prefix), cryoshuffle.__file__
before, after = mrcfile.read("in/tomogram.mrc"), mrcfile.read("out.mrc")
assert mrcfile.validate("out.mrc") and after.shape == before.shape, after.shape
assert numpy.isfinite(after).all() and 0 < after.std() < before.std(), after.std()
print(json.dumps({"python": platform.python_version(), **{name: version(name) for name in %r}}))
"""


class FailedError(Exception):
    """A step failed; what it said last."""


def call(*command: str | Path, cwd: Path) -> str:
    """What a command prints; it sees neither the checkout nor the caller's packages.

    Raises:
        FailedError: if it cannot be started or does not end with 0.
    """
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise FailedError(f"{Path(command[0]).name}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit {done.returncode}").splitlines()
        # pip begins with what it did not even look at, and has its reason next; other programs end with theirs.
        refused = [line for line in said if line.startswith("ERROR:") and "Ignored the following" not in line]
        raise FailedError(refused[0] if refused else said[-1])
    return done.stdout


def build(work: Path) -> tuple[Path, Path]:
    """The wheel and the sdist of the checkout."""
    call(sys.executable, "-m", "venv", "builder", cwd=work)
    python = work / "builder" / "bin" / "python"
    call(python, "-m", "pip", "install", "--quiet", "build", cwd=work)
    call(python, "-m", "build", "--outdir", work / "dist", ROOT, cwd=work)
    return next((work / "dist").glob("*.whl")), next((work / "dist").glob("*.tar.gz"))


def oldest(pyproject: str) -> list[str]:
    """The lower bounds of the dependencies in a ``pyproject.toml``, as pins for pip."""
    listed = re.findall(r"^dependencies = \[\n(.*?)^\]", pyproject, re.MULTILINE | re.DOTALL)[0]
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\w.]+)"', listed)]


def try_out(python: Path, work: Path) -> dict[str, str]:
    """Use what is installed; the versions of what it stands on.

    Raises:
        FailedError: if a step fails.
    """
    program = python.parent / "cryoshuffle"
    call(program, "--version", cwd=work)
    call(program, "simulate", "in", "--shape", "32,48,48", cwd=work)
    few = ["--steps", "6", "--window", "16", "--quiet"]
    call(program, "denoise", "in/tomogram.mrc", "out.mrc", *few, cwd=work)
    said = call(python, "-c", OPEN % (PACKAGES,), cwd=work).splitlines()
    found: dict[str, str] = json.loads(said[-1])
    return found


def version_of(interpreter: str) -> str:
    """The version of a Python.

    Raises:
        FailedError: if it cannot be run.
    """
    return call(interpreter, "-c", "import platform; print(platform.python_version())", cwd=ROOT).strip()


def check(interpreter: str, built: Sequence[Path], pins: Sequence[str], work: Path) -> dict[str, Any]:
    """Install each of ``built`` in one fresh environment, and use it; what was found."""
    place, wanted = work / "venv", work / "pins.txt"
    wanted.write_text("\n".join(pins) + "\n", encoding="utf-8")
    constraint = ["--constraint", str(wanted)] if pins else []
    try:
        call(interpreter, "-m", "venv", place, cwd=work)
        python = place / "bin" / "python"
        for index, package in enumerate(built):
            again = ["--force-reinstall", "--no-deps"] if index else constraint
            call(python, "-m", "pip", "install", "--quiet", *again, package, cwd=work)
            tried = work / f"tried{index}"
            tried.mkdir()
            found = try_out(python, tried)
        kinds = ["sdist" if package.suffix == ".gz" else "wheel" for package in built]
        return {**found, "installed": " and ".join(kinds), "ok": True}
    except FailedError as error:
        return {"python": version_of(interpreter), "ok": False, "why": str(error)}
    finally:
        for leftover in (place, *work.glob("tried*")):
            shutil.rmtree(leftover, ignore_errors=True)


def line(found: Mapping[str, Any]) -> str:
    """One line for people."""
    if not found["ok"]:
        return f"Python {found['python']}: FAILED: {found['why']}"
    versions = ", ".join(f"{name} {found[name]}" for name in PACKAGES)
    return f"Python {found['python']}, {versions}, {found['installed']}: OK"


def read() -> dict[str, Any]:
    """What was found so far."""
    known: dict[str, Any] = json.loads(FINDINGS.read_text(encoding="utf-8")) if FINDINGS.is_file() else {}
    return known


def table(findings: Mapping[str, Mapping[str, Any]]) -> str:
    """All that was found, as Markdown; nothing of nothing."""
    if not findings:
        return ""
    places = dict.fromkeys(f"{found['machine']}, commit {found['commit']}" for found in findings.values())
    head = "Tried by `scripts/check/install.py` on " + "; ".join(places) + ":\n"
    rows = [head, "| Python | PyTorch | MONAI | NumPy | packages | installed from | |", "| --- " * 7 + "|"]
    for found in findings.values():
        versions = [str(found.get(name, "")) for name in ("python", *PACKAGES)]
        ending = "works" if found["ok"] else f"fails: {found['why']}"
        rows.append(f"| {' | '.join(versions)} | {found['packages']} | {found.get('installed', '')} | {ending} |")
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check each interpreter, and write down what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", nargs="*", default=[sys.executable], metavar="PYTHON", help="default: this one")
    parser.add_argument("--minimum", action="store_true", help="with the oldest packages that are allowed")
    parser.add_argument("--pin", action="append", default=[], metavar="NAME==VERSION", help="of a package")
    parser.add_argument("--work", type=Path, help="folder for the environments (default: a temporary one)")
    options = parser.parse_args(arguments)
    pins = [*(oldest((ROOT / "pyproject.toml").read_text(encoding="utf-8")) if options.minimum else []), *options.pin]
    packages = ", ".join(["oldest allowed"] * options.minimum + options.pin) or "newest found"
    try:
        for interpreter in options.interpreters:
            version_of(interpreter)
    except FailedError as error:
        parser.error(f"{error}; name a Python that runs")
    made_at, lines, failed = {"machine": machine(), "commit": commit()}, [], False
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        work = Path(folder)
        wheel, sdist = build(work)
        for index, interpreter in enumerate(options.interpreters):
            found = check(interpreter, [wheel] if index else [wheel, sdist], pins, work)
            found |= {"packages": packages, **made_at}
            known = read()
            series = ".".join(found["python"].split(".")[:2])
            known[f"{series}, {packages}"] = found
            ordered = dict(sorted(known.items(), key=lambda item: [int(n) for n in item[0].split(",")[0].split(".")]))
            write_json(ordered, FINDINGS)
            before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
            write_text(f"{before}{BEGIN}{table(ordered)}{END}{rest.partition(END)[2]}", PAGE)
            lines.append(line(found))
            failed = failed or not found["ok"]
    print("\n".join(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
