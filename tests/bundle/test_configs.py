"""The bundle's configs: what MONAI asks of them, and what we promise in them."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pydoc import locate
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from monai.bundle import ConfigParser, create_workflow, verify_net_in_out
from monai.bundle.config_item import ComponentLocator
from monai.inferers import SimpleInferer
from monai.transforms import Compose
from phantoms import CONFIGS, REAL_TOMOGRAM

from cryoshuffle.fit.checkpoint import FitCheckpoint
from cryoshuffle.fit.data import WindowDataset
from cryoshuffle.fit.stages import FitStage, StageSettings
from cryoshuffle.lattice import BlindSet, Lattice
from cryoshuffle.losses import TERMS, EdgeGuidedLoss

OVERLAYS = sorted(CONFIGS.glob("*.yaml"))
ROOTS = ("train", "inference")
# The fields MONAI's schema of 2024-07-25 requires, condensed; the whole schema is behind the URL in the metadata.
TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {"spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}}},
}
SCHEMA = {
    "type": "object",
    "required": [
        "schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version", "task",
        "description", "authors", "copyright", "network_data_format", "changelog",
    ],
    "properties": {
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {k: {"type": "object", "additionalProperties": TENSOR} for k in ("inputs", "outputs")},
        },
        "changelog": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    path = CONFIGS / name
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def components(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node] if "_target_" in node else []
        return own + [c for value in node.values() for c in components(value)]
    return [c for value in node for c in components(value)] if isinstance(node, list) else []


@pytest.mark.parametrize("root", ROOTS)
def test_monai_finds_every_property_it_requires(root, tmp_path):
    """``check_properties`` of the workflow type has nothing to say."""
    workflow = create_workflow(
        config_file=str(CONFIGS / f"{root}.json"),
        workflow_type=root,
        tomogram=str(REAL_TOMOGRAM),
        output=str(tmp_path / "out.mrc"),
    )
    assert workflow.check_properties() == []


def test_keys_that_both_roots_have_are_equal():
    """The two self-contained configs cannot drift apart: what they share is the same, but for their own work."""
    train, inference = (load(f"{root}.json") for root in ROOTS)
    # A fit takes its blind set from the noise, inference from the model.
    own = {"run", "blind_set", "whitening", "lattice"}
    shared = set(train) & set(inference) - own
    assert {"network_def", "network", "device", "seed", "precision", "checkpoint", "halo"} <= shared
    assert {key: train[key] for key in shared} == {key: inference[key] for key in shared}
    *reading, whitening = inference["preprocessing"]["transforms"]
    *reads, region, whitens, _ = train["train"]["reading"]["transforms"]
    assert region == "@train#region"
    assert [*reads, whitens] == [*reading, {**whitening, "whitening": "@whitening"}]
    assert inference["inference_whitening"] == "@whitening"


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*") if p.suffix in (".json", ".yaml")))
def test_every_component_exists_and_takes_its_arguments(name):
    """Each ``_target_`` is there and its arguments bind, those of overlays included."""
    table = ComponentLocator()
    found = components(load(name))
    assert found or name in ("metadata.json", "smoke.yaml")
    for component in found:
        target = component["_target_"]
        thing = locate(target if "." in target else table.get_component_module_name(target) + f".{target}")
        assert thing is not None, target
        arguments = {k: v for k, v in component.items() if not re.fullmatch("_.*_", k)}
        signature = inspect.signature(thing)
        # What is called later gets the rest then.
        (signature.bind_partial if component.get("_mode_") == "callable" else signature.bind)(**arguments)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.name)
def test_overlays_are_thin_named_and_explain_themselves(path):
    """Under 40 lines but for whole fits, a header that gives the command, no positions in lists."""
    text = path.read_text()
    longest = {"refine.yaml": 95, "start.yaml": 135}
    assert len(text.splitlines()) < longest.get(path.name, 40)
    assert text.startswith("# ")
    assert "-m monai.bundle run" in text
    assert not any(re.search(r"#\d|::\d", key) for key in yaml.safe_load(text))


@pytest.mark.parametrize("name", sorted(p.name for p in CONFIGS.glob("*") if p.suffix in (".json", ".yaml")))
def test_expressions_may_choose_but_never_compute(name):
    """A path put together, an attribute, a call of what is there: no condition, comparison, loop or arithmetic."""

    def computes(expression: str) -> bool:
        tree = ast.parse(re.sub(r"@\w+(#\w+|::\w+)*", "x", expression[1:]))
        banned = (ast.IfExp, ast.BoolOp, ast.Compare, ast.UnaryOp, ast.Lambda, ast.comprehension, ast.DictComp)
        return any(
            isinstance(node, banned) or (isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add))
            for node in ast.walk(tree)
        )

    def expressions(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [e for value in node.values() for e in expressions(value)]
        if isinstance(node, list):
            return [e for value in node for e in expressions(value)]
        return [node] if isinstance(node, str) and node.startswith("$") else []

    assert [one for one in expressions(load(name)) if computes(one)] == []
    assert computes("$@fits and @distilled")
    assert computes("$0.5 * @learning_rate")
    assert not computes("$@run_folder + '/blind.pt'")


def dropped(overlay: dict[str, Any]) -> set[str]:
    """What an overlay takes from a root: a list that it replaces, or of ``run`` the checks, and the lock of a fit."""
    lost = {"initialize", "finalize", "fit_checks", "result_checks", "handlers"} & set(overlay)
    if "run" in overlay:
        steps = " ".join(step if isinstance(step, str) else step["_target_"] for step in overlay["run"])
        needed = {"@fit_checks"} | ({"lock_run"} if "@fit.run()" in steps else set())
        needed |= {"@result_checks"} if "$@evaluator.run()" in steps else set()
        lost |= {step for step in needed if step not in steps}
    return lost


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda p: p.name)
def test_no_overlay_drops_what_a_root_does_before_and_after_a_run(path):
    """An overlay adds to the lists of a root; one that replaces ``run`` has the root's checks in it, and the lock."""
    assert path.name == "start.yaml" or dropped(load(path.name)) == set()  # that one stands alone
    assert "@fit_checks" in load("train.json")["run"]
    assert "@result_checks" in load("inference.json")["run"]


def test_an_overlay_that_drops_checks_is_noticed():
    """A list replaced, and a run without checks and lock."""
    assert dropped({"initialize": [], "run": ["$@fit.run()"]}) == {"initialize", "@fit_checks", "lock_run"}
    assert dropped({"run": ["@fit_checks", "$@evaluator.run()"]}) == {"@result_checks"}
    assert dropped({"run": ["@fit_checks", "@result_checks", "$@evaluator.run()"]}) == set()


def test_later_stages_are_handled_as_the_reference_stage_declares():
    """The handlers of ``train.json`` and those of a stage in Python are the same ones in the same order.

    Only the first stage proves blindness, reports the noise, says what is to come, and can be watched in TensorBoard.
    """
    network = torch.nn.Conv3d(1, 1, 1)
    common = StageSettings("run", torch.device("cpu"), SimpleInferer(), SimpleInferer(), {})
    volumes = [{"image": torch.zeros(1, 8, 8, 8)}]
    loss = EdgeGuidedLoss(Lattice(blind_set=BlindSet("none")), {"fidelity": 1.0})
    stage = FitStage("refining", common, network, loss, volumes, [], [], 0.001, 4, None, "model.pt", "state.pt")
    scheduler = torch.optim.lr_scheduler.LambdaLR(torch.optim.SGD(network.parameters()), lambda step: 1.0)
    evaluator, checkpoint = stage._evaluator(network), FitCheckpoint.__new__(FitCheckpoint)
    dataset = WindowDataset(volumes, Compose([]), 1)
    own = [type(handler).__name__ for handler in stage._handlers(dataset, scheduler, network, evaluator, checkpoint)]
    declared = [handler["_target_"].split(".")[-1] for handler in load("train.json")["train"]["handlers"]]
    first_only = {"BlindnessGuard", "NoiseReport", "RunOpening", "ListedOutput", "TensorBoardLog"}
    assert [name for name in declared if name not in first_only] == own


def test_the_metadata_has_what_monai_requires():
    """Against the required fields and types of MONAI's metadata schema; without a field it fails."""
    metadata = load("metadata.json")
    jsonschema.validate(metadata, SCHEMA)
    del metadata["task"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(metadata, SCHEMA)


def test_the_network_is_what_the_metadata_promises():
    """MONAI feeds it the shape and type declared, and checks what comes out."""
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=str(CONFIGS / "inference.json"),
        any=7,
        device="cpu",
    )


def test_the_configured_network_scripts_to_the_same_function():
    """TorchScript, which today's MONAI hosts load, gives the same output, to the last bits."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    network = parser.get_parsed_content("network_def").eval()
    x = torch.randn(1, 1, 5, 13, 6)
    with torch.no_grad():
        scripted, plain = torch.jit.script(network)(x), network(x)
    assert plain.std() > 0.01
    torch.testing.assert_close(scripted, plain, rtol=0, atol=1e-6)


def test_presets_use_known_terms_and_the_default_has_no_biased_one():
    """``unbiased`` has no guide; ``paper`` has all four terms."""
    config = load("train.json")
    assert set(config["loss_weights"]["paper"]) == set(TERMS)
    assert "guide" not in config["loss_weights"][config["preset"]]


@pytest.mark.parametrize("body", ["BasicUNet", "SegResNet", "UNet"])
def test_another_body_is_a_matter_of_config(body):
    """A MONAI network takes the place of ours by overriding the body alone."""
    bodies = {
        "BasicUNet": {"spatial_dims": 3, "in_channels": 24, "out_channels": 1, "features": [4, 4, 4, 4, 4, 4]},
        "SegResNet": {"in_channels": 24, "out_channels": 1, "init_filters": 8},
        "UNet": {
            "spatial_dims": 3,
            "in_channels": 24,
            "out_channels": 1,
            "channels": [4, 8, 8],
            "strides": [2, 2],
        },
    }
    parser = ConfigParser()
    parser.read_config(CONFIGS / "train.json")
    parser.update({"blind": "plane", "tilt_axis": "y"})
    parser["network_def#body"] = {"_target_": body, **bodies[body]}
    parser["network_def#body_multiple"] = 16
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 33, 40, 20)).shape == (1, 1, 33, 40, 20)
