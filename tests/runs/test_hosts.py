"""Programs that find this one by an entry point: run with the small network where they are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from phantoms import small_tomogram

from cryoshuffle.commands.cli import main
from cryoshuffle.commands.copick import denoise_project
from cryoshuffle.errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"
WORDS = ["--no-refine", "--window", "16,24,16", "--blind", "plane", "--tilt-axis", "y", "--steps", "2"]
JOB = "cryoshuffle.denoise.tomogram"
# In a process of its own: hosts set logging and warnings.
RUN_JOB = """
import sys
from pipeliner.api.manage_project import PipelinerProject
from pipeliner.job_factory import get_job_types
assert [job.PROCESS_NAME for job in get_job_types("cryoshuffle")] == ["cryoshuffle.denoise.tomogram"]
project = PipelinerProject(make_new_project=True)
options = {"_rlnJobTypeLabel": "cryoshuffle.denoise.tomogram", "tomogram": "in.mrc", "other_args": sys.argv[1]}
job = project.run_job(options, run_in_foreground=True)
print([(node.name, node.type) for node in job.output_nodes])
"""


def entry_points() -> dict[str, dict[str, str]]:
    """What the project declares, by group."""
    points: dict[str, dict[str, str]] = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]
    return points


@pytest.fixture
def installed(tmp_path, monkeypatch) -> Path:
    """A folder to work in, with this checkout as it would be installed: its entry points and its command."""
    record = tmp_path / "site" / "cryoshuffle-0.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: cryoshuffle\nVersion: 0\n")
    sections = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
        for group, points in entry_points().items()
    ]
    (record / "entry_points.txt").write_text("\n".join(sections))
    program = tmp_path / "bin" / "cryoshuffle"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cryoshuffle "$@"\n')
    program.chmod(0o755)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    paths = [str(record.parent), str(PROJECT.parent / "bundle"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return work


@pytest.mark.parametrize(
    ("group", "host"), [("ccpem_pipeliner.jobs", "pipeliner"), ("copick.process.commands", "click")]
)
def test_an_entry_point_leads_to_something(group, host):
    """Each gives its object, or says which program is missing; a name that is not there is none."""
    for name, value in entry_points()[group].items():
        point = EntryPoint(name, value, group)
        if find_spec(host) is None:
            with pytest.raises(ImportError, match=host):
                point.load()
        else:
            assert point.load() is point.load()
        with pytest.raises(AttributeError, match="has no attribute 'other'"):
            EntryPoint(name, value.split(":")[0] + ":other", group).load()


@pytest.mark.skipif(find_spec("pipeliner") is None, reason="ccpem-pipeliner is an extra")
def test_the_pipeliner_runs_the_job(installed):
    """It finds it, runs it in a project, and has the result as a node: the bits of the command line."""
    small_tomogram(Path("in.mrc"))
    command = [sys.executable, "-c", RUN_JOB, " ".join(WORDS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "('Cryoshuffle/job001/denoised.mrc', 'Tomogram.mrc.cryoshuffle.denoised')" in done.stdout
    folder = Path("Cryoshuffle/job001")
    assert (folder / "PIPELINER_JOB_EXIT_SUCCESS").is_file(), (folder / "run.err").read_text()
    assert main(["denoise", "in.mrc", "alone.mrc", *WORDS, "--quiet"]) == 0
    np.testing.assert_array_equal(mrcfile.read(folder / "denoised.mrc"), mrcfile.read("alone.mrc"))


@pytest.mark.parametrize(("options", "sentence"), [
    ({"output_type": "wbp"}, "choose another --output-type"),
    ({"words": ["--colour"]}, "there is no option --colour"),
    ({"words": ["--residual", "r.mrc"]}, "--residual goes with one tomogram, and a project has many"),
    ({"words": ["--even", "a.mrc", "--odd", "b.mrc"]}, "--even goes with one tomogram"),
    ({"words": ["--report", "kept"]}, "--report goes with one tomogram"),
])  # fmt: skip
def test_copick_is_not_asked_for_what_no_project_can_have(options, sentence):
    """Refused before copick is imported; what denoises each tomogram is taken, and copick is what is missing then."""
    with pytest.raises(UserError, match=sentence):
        denoise_project("project.json", **options)
    with pytest.raises((ImportError, OSError)):
        denoise_project("no_such_project.json", words=["--effort", "fast"])


@pytest.mark.skipif(find_spec("copick") is None, reason="copick is an extra, and needs zarr 2")
def test_copick_denoises_a_project(installed):
    """The result is a tomogram of the project, with the voxels of the command line; what is done is skipped."""
    import copick

    (installed / "overlay").mkdir()
    settings = {
        "config_type": "filesystem",
        "name": "test",
        "version": "1.0.0",
        "pickable_objects": [],
        "overlay_root": f"local://{installed}/overlay",
        "overlay_fs_args": {"auto_mkdir": True},
    }
    Path("project.json").write_text(json.dumps(settings))
    noisy = mrcfile.read(small_tomogram(Path("in.mrc")))
    root = copick.from_file("project.json")
    root.new_run("TS_1").new_voxel_spacing(10.0).new_tomogram("wbp").from_numpy(noisy)

    def last_line(done: subprocess.CompletedProcess[str]) -> str:
        # Above it copick says its version.
        return done.stdout.splitlines()[-1]

    def process(*words: str) -> subprocess.CompletedProcess[str]:
        program = "from copick.cli.cli import main; main()"
        command = [sys.executable, "-c", program, "process", "cryoshuffle", "--config", "project.json", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = process(*WORDS)
    assert (first.returncode, last_line(first)) == (0, "[1/1] TS_1, 10.0 Å: done"), first.stderr
    assert last_line(process(*WORDS)) == "[1/1] TS_1, 10.0 Å: skipped"
    spacing = copick.from_file("project.json").get_run("TS_1").get_voxel_spacing(10.0)
    assert main(["denoise", "in.mrc", "alone.mrc", *WORDS, "--quiet"]) == 0
    np.testing.assert_array_equal(spacing.get_tomograms("denoised")[0].numpy(), mrcfile.read("alone.mrc"))
    np.testing.assert_array_equal(spacing.get_tomograms("wbp")[0].numpy(), noisy)
    refused = process("--tomo-type", "sirt")
    assert refused.returncode == 1
    assert "has no tomogram of type sirt" in refused.stderr
    for options, sentence in (
        ({"run_names": ["TS_9"]}, "the project has no such run"),
        ({"voxel_size": 5.0}, "has no tomogram of type wbp"),
    ):
        with pytest.raises(UserError, match=sentence):
            denoise_project("project.json", **options)
