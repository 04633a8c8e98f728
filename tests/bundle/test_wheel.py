"""The wheel works where the checkout is not, and beside other bundles."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

from phantoms import small_tomogram
from sizes import VARIABLE

ROOT = Path(__file__).parent.parent.parent


def test_the_wheel_holds_the_package_the_configs_and_the_licence(wheel):
    """And nothing that could collide with another bundle."""
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"cryoshuffle"}
    configs = {p.name for p in (ROOT / "configs").iterdir()}
    assert {n.removeprefix("cryoshuffle/configs/") for n in names if n.startswith("cryoshuffle/configs/")} == configs
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert "cryoshuffle/start.pt" in names
    page = {"base.html", "index.html", "macros.html", "page.css", "page.html", "page.js"}
    assert {f"cryoshuffle/report/{name}" for name in page} <= set(names)
    assert "cryoshuffle/simulation/templates/README.md" in names, "the notice of the molecules"


def test_the_wheel_runs_outside_the_checkout_beside_a_decoy(wheel, tmp_path):
    """Unpacked alone, another bundle's ``scripts`` and ``bundle`` imported first, it fits by its own configs."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    decoy = tmp_path / "decoy"
    for name in ("scripts", "bundle", "configs"):
        (decoy / name).mkdir(parents=True)
        (decoy / name / "__init__.py").write_text("owner = 'decoy'\n")
    tomogram = small_tomogram(tmp_path / "in.mrc")
    code = f"""
import os, sys
os.environ.pop({VARIABLE!r}, None)
sys.path[:0] = [{str(site)!r}, {str(decoy)!r}]
import bundle, scripts, configs
import cryoshuffle
assert cryoshuffle.__file__.startswith({str(site)!r}), cryoshuffle.__file__
assert str(cryoshuffle.config_dir()).startswith({str(site)!r})
from cryoshuffle.commands.cli import main
code = main(["denoise", {str(tomogram)!r}, "out.mrc", "--steps", "2", "--window", "12", "--quiet"])
assert (bundle.owner, scripts.owner, configs.owner) == ("decoy",) * 3
sys.exit(code)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.mrc").exists()
