"""Every way into the bundle that docs/howto/monai.md names, run as it stands there, in the released bundle's folder."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import sqlite3
import subprocess
import sys
import types
import zipfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow, load
from onnx.reference import ReferenceEvaluator
from phantoms import small_tomogram
from sizes import FULL, TINY_START, write_tiny_configs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cryoshuffle.files.formats import load_tomogram
from cryoshuffle.files.writing import save_whole
from cryoshuffle.inference.checkpoints import load_network

ROOT = Path(__file__).parent.parent.parent
# In place of the file that MONAI would fetch; what the metadata must have is tested beside the configs.
SCHEMA = {"type": "object", "required": ["version", "monai_version", "network_data_format"]}
SMALL = ["--steps", "4", "--window", "[16,24,16]", "--quiet", "True"]


def entry_points() -> list[tuple[str, str, str]]:
    text = (
        (ROOT / "docs" / "howto" / "monai.md").read_text(encoding="utf-8").split("## Every way in")[1].split("\n## ")[0]
    )
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [(what, *(cell.strip("`") for cell in cells)) for what, *cells in rows[2:]]


@pytest.fixture(scope="module")
def bundle(make_once, tmp_path_factory) -> Path:
    """The released bundle with a tomogram beside its configs, and the schema that MONAI would fetch.

    It is made of a checkout with the tiny network, in the long run of this one.
    """

    def release(folder: Path) -> None:
        checkout = ROOT
        if not FULL:
            checkout = folder / "checkout"
            unwanted = shutil.ignore_patterns("__pycache__", "_build", "reference")
            for name in ("bundle", "configs", "docs", "scripts"):
                shutil.copytree(ROOT / name, checkout / name, ignore=unwanted)
            shutil.copy(ROOT / "LICENSE", checkout)
            write_tiny_configs(checkout / "configs", start="$@bundle_root + '/cryoshuffle/start.pt'")
            shutil.copy(TINY_START, checkout / "bundle" / "cryoshuffle" / "start.pt")
        command = [sys.executable, str(checkout / "scripts" / "bundle" / "make_bundle.py"), str(folder / "dist")]
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr

    dist = shutil.copytree(make_once("released", release) / "dist", tmp_path_factory.mktemp("released") / "dist")
    bundle = next(path for path in dist.iterdir() if path.is_dir())
    small_tomogram(bundle / "in.mrc")
    (bundle / "eval").mkdir()
    (bundle / "eval" / "schema.json").write_text(json.dumps(SCHEMA))
    return bundle


@pytest.fixture(autouse=True)
def _configs_of_the_bundle(whole_network):
    """The bundle's own configs are what runs, tiny or not, also in processes that are started."""


def test_the_table_is_there():
    """All commands of MONAI's that serve one network, and the hosts."""
    commands = " ".join(command for _, command, _ in entry_points())
    for name in ("run ", "run_workflow", "verify_metadata", "verify_net_in_out", "ckpt_export", "load(", "torchrun"):
        assert name in commands, name
    assert "create_workflow" in commands


@pytest.mark.filterwarnings("ignore:No hash value provided")
@pytest.mark.parametrize(
    ("what", "command", "leaves"),
    # What two processes fit is tested with the workflows by each run of the suite.
    [pytest.param(*row, marks=pytest.mark.nightly if "torchrun" in row[1] else []) for row in entry_points()],
    ids=[row[0] for row in entry_points()],
)
def test_an_entry_point_does_what_it_says(what, command, leaves, bundle, monkeypatch):
    """Run in the bundle's folder, without changing a word; fits are shortened by options behind."""
    monkeypatch.chdir(bundle)
    # What the bundle carries, not what is installed.
    monkeypatch.syspath_prepend(str(bundle))
    for row in entry_points():
        # Another worker may have had the row that makes what this one reads.
        if row[2] and row[0] != what and f" {row[2]} " in command and not (bundle / row[2]).exists():
            run_row(*row, bundle, monkeypatch)
    run_row(what, command, leaves, bundle, monkeypatch)


def run_row(what: str, command: str, leaves: str, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command)
    short = SMALL if "train.json" in command else []
    if words[0].startswith("scripts/"):
        script = ROOT / words[0]
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)
        return
    if words[0] == "torchrun":
        call = [sys.executable, "-m", "torch.distributed.run", *words[1:], *short]
        done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    elif "onnx_export" in words or "mlflow" in words:
        # Their packages warn, and MLflow leaves its handlers in the log of the process.
        quiet = {**os.environ, "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true"}
        done = subprocess.run([sys.executable, *words[1:], *short], capture_output=True, text=True, env=quiet)
        assert done.returncode == 0, done.stderr
    elif words[:2] == ["python", "-c"]:
        exec(compile(words[2], what, "exec"), {})
    else:
        assert words[:3] == ["python", "-m", "monai.bundle"], words
        monkeypatch.setattr(sys, "argv", ["monai.bundle", *words[3:], *short])
        runpy.run_module("monai.bundle", run_name="__main__")
    if leaves:
        assert (bundle / leaves).is_file(), leaves
    if "mlflow" in words:
        with closing(sqlite3.connect(bundle / leaves)) as kept:
            names = {name for (name,) in kept.execute("select key from metrics")}
        assert {"train_loss", "loss_fidelity", "risk"} <= names
    if "--tensorboard" in words:
        events = EventAccumulator(str(bundle / "watched")).Reload()
        assert {"Loss", "loss_fidelity", "risk"} <= {name.split("/")[-1] for name in events.Tags()["scalars"]}


def decoy_bundle(folder: Path) -> Path:
    """Another bundle, whose config takes its parts from packages of its own called ``scripts`` and ``bundle``."""
    for name in ("scripts", "bundle"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("")
        (folder / name / "parts.py").write_text(f"class Part:\n    owner = 'decoy, {name}'\n")
    (folder / "configs").mkdir()
    parts = {name: {"_target_": f"{name}.parts.Part"} for name in ("scripts", "bundle")}
    (folder / "configs" / "inference.json").write_text(json.dumps({**parts, "run": ["$[@scripts, @bundle]"]}))
    return folder


def test_a_pipeline_of_others_takes_the_bundle_in(bundle, tmp_path, monkeypatch):
    """The example of the page: denoise, then segment, in one config; a second bundle in the process runs on."""
    decoy = decoy_bundle(tmp_path / "decoy")
    for name in ("scripts", "bundle"):
        for module in (name, f"{name}.parts"):
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))  # so that it is forgotten at the end
            del sys.modules[module]
    monkeypatch.syspath_prepend(str(decoy))

    def decoy_parts() -> list[str]:
        workflow = create_workflow(config_file=str(decoy / "configs" / "inference.json"), workflow_type="infer")
        ((*parts,),) = workflow.run()
        return [part.owner for part in parts]

    assert decoy_parts() == ["decoy, scripts", "decoy, bundle"]
    owners = [sys.modules["scripts.parts"], sys.modules["bundle.parts"]]
    text = (ROOT / "docs" / "howto" / "monai.md").read_text(encoding="utf-8")
    (bundle / "segment.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[-1])
    monkeypatch.chdir(bundle)
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", "segment.yaml"])
    runpy.run_module("monai.bundle", run_name="__main__")
    labels, volume = (load_tomogram(bundle / name)[0] for name in ("labels.nii.gz", "in.mrc"))
    assert labels.shape == volume.shape
    assert set(torch.unique(labels).tolist()) <= {0.0, 1.0}
    assert decoy_parts() == ["decoy, scripts", "decoy, bundle"]
    assert owners == [sys.modules["scripts.parts"], sys.modules["bundle.parts"]]


def test_the_bundle_needs_no_installation(bundle, tmp_path):
    """Python without the package finds the one in the folder; the zip holds the same files."""
    code = (
        "import sys; sys.path = [p for p in sys.path if 'cryoshuffle' not in p and not p.endswith('/bundle')]; "
        "sys.path.insert(0, ''); import cryoshuffle; print(cryoshuffle.__file__, cryoshuffle.config_dir())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=bundle, capture_output=True, text=True, check=True).stdout
    assert said.split() == [str(bundle / "cryoshuffle" / "__init__.py"), str(bundle / "configs")]
    names = zipfile.ZipFile(f"{bundle}.zip").namelist()
    inside = {name.split("/", 1)[1] for name in names if not name.endswith("/")}
    assert {
        "LICENSE",
        "configs/inference.json",
        "models/model.pt",
        "models/model.ts",
        "cryoshuffle/commands/cli.py",
    } <= inside
    assert not [name for name in inside if "pycache" in name or re.search(r"/\.", name)]


def test_the_exported_network_is_the_one_of_the_checkpoint(bundle):
    """The same output; its metadata and config are in the archive."""
    sys.path.insert(0, str(bundle))
    from monai.data import load_net_with_metadata

    from cryoshuffle.inference.checkpoints import load_network

    exported, metadata, files = load_net_with_metadata(
        str(bundle / "models" / "model.ts"), more_extra_files=("inference.json",)
    )
    x = torch.randn(1, 1, 7, 13, 10)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), load_network(bundle / "models" / "model.pt")(x), rtol=0, atol=1e-5)
    assert metadata["name"] == "cryoshuffle"
    assert "network_def" in json.loads(files["inference.json"])


SHAPES = ((1, 1, 13, 26, 11), (2, 1, 8, 12, 8), (1, 1, 5, 7, 30))


def stays_blind(network: Any, exported: Any, shapes: Sequence[tuple[int, ...]] = SHAPES) -> None:
    """The same output at sizes it has not seen; a plane that changes does not change its own prediction."""
    for shape in shapes:
        x = torch.randn(shape)
        changed = x.clone()
        changed[..., 6, :] = torch.randn(shape[0], 1, shape[2], shape[4])
        with torch.no_grad():
            torch.testing.assert_close(exported(x), network(x), rtol=0, atol=1e-5)
            before, after = exported(x), exported(changed)
        assert torch.equal(before[..., 6, :], after[..., 6, :])
        assert not torch.equal(before[..., 5, :], after[..., 5, :])


@pytest.fixture
def blind_network() -> torch.nn.Module:
    """The network of the configs; in the default suite two levels of it, as PyTorch takes long to trace it."""
    parser = ConfigParser()
    parser.read_config(ROOT / "configs" / "inference.json")
    if not FULL:
        parser.update({"network_def#stem_channels": 8, "network_def#body#in_channels": 8})
        parser.update({"network_def#body#channels": [8, 16], "network_def#body#factors": [2]})
    network = parser.get_parsed_content("network_def").eval()
    assert network.lattice.blind_set.shape == "plane"
    return network


@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript.*")
def test_a_network_exported_to_onnx_is_the_same_and_still_blind(blind_network):
    """For its one size."""
    shape = (1, 1, 8, 12, 8)
    program = torch.onnx.export(blind_network, (torch.randn(shape),), dynamo=True)
    model = program.model_proto
    given, evaluator = model.graph.input[0].name, ReferenceEvaluator(model)
    stays_blind(blind_network, lambda x: torch.from_numpy(evaluator.run(None, {given: x.numpy()})[0]), [shape])


def test_a_scripted_network_is_the_same_and_still_blind(blind_network):
    """TorchScript, for every size."""
    stays_blind(blind_network, torch.jit.script(blind_network))


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec:FutureWarning")
def test_an_exported_network_is_the_same_and_still_blind(blind_network, tmp_path, monkeypatch):
    """By ``torch.export``, as the page has it."""
    network = blind_network
    (tmp_path / "models").mkdir()
    save_whole({"model": network.state_dict(), "network_def": network.config()}, tmp_path / "models" / "model.pt")
    text = (ROOT / "docs" / "howto" / "monai.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0], "monai.md", "exec"), names)
    assert names["denoised"].shape == (1, 1, 40, 60, 50)
    stays_blind(network, names["module"])


@pytest.mark.parametrize("workflow", ["train", "inference"])
def test_monai_loads_the_network_of_a_release_from_any_folder(bundle, tmp_path, monkeypatch, workflow):
    """With the defaults of its call, from a folder where nothing lies: all weights, of the same network. With the
    lattice looked up in a model that is not there, they are random (control). Nothing is left in that folder."""
    monkeypatch.chdir(tmp_path)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    options = {"bundle_dir": str(bundle.parent), "workflow_type": workflow, "device": "cpu"}
    loaded = load(bundle.name, **options).state_dict()
    assert set(loaded) == set(weights) - {"cryoshuffle"}
    assert all(torch.equal(loaded[name], weights[name]) for name in loaded)
    assert list(tmp_path.iterdir()) == []
    assert load_network(bundle / "models" / "model.pt").lattice.blind_set.shape == "none"
    scripted, metadata, _ = load(bundle.name, bundle_dir=str(bundle.parent), load_ts_module=True, device="cpu")
    assert scripted(torch.randn(1, 1, 8, 8, 8)).shape == (1, 1, 8, 8, 8)
    assert metadata["name"]
    if workflow == "inference":
        shutil.copytree(bundle, tmp_path / "before")
        config = json.loads((ROOT / "configs" / "inference.json").read_text())
        own = json.loads((bundle / "configs" / "inference.json").read_text())
        own["blind_set"], own["lattice"] = config["blind_set"], config["lattice"]
        (tmp_path / "before" / "configs" / "inference.json").write_text(json.dumps(own))
        other = load("before", **{**options, "bundle_dir": str(tmp_path)}).state_dict()
        assert not torch.equal(other["stem.weight"], weights["stem.weight"])


def test_a_broken_rule_of_the_zoo_is_named(bundle, tmp_path, monkeypatch, load_script):
    """Without a licence, with a file that is too large, with another version, with a link to what is not there."""
    make_bundle = load_script("bundle.make_bundle")
    monkeypatch.setattr(make_bundle, "_monai", lambda *arguments: None)
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    assert make_bundle.broken_rules(broken) == []
    (broken / "LICENSE").unlink()
    metadata = json.loads((broken / "configs" / "metadata.json").read_text())
    (broken / "configs" / "metadata.json").write_text(json.dumps({**metadata, "version": "9.9.9", "numpy_version": ""}))
    (broken / "docs" / "explain" / "benchmarks.md").unlink()
    with (broken / "large.bin").open("wb") as file:
        file.truncate(make_bundle.MOST_BYTES + 1)
    said = " ".join(make_bundle.broken_rules(broken))
    for words in (
        "LICENSE is missing",
        "9.9.9 is not in the changelog",
        "large.bin has more",
        "no numpy_version",
        "docs/README.md leads to explain/benchmarks.md",
    ):
        assert words in said
