"""The script that waits for a GPU: it runs to its end without one, and a run that is cut off keeps what it has."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigParser
from phantoms import CONFIGS


@pytest.fixture
def check_gpu(load_script):
    return load_script("check.gpu")


@pytest.mark.nightly
def test_every_step_of_the_gpu_check_runs_on_a_cpu(check_gpu, tmp_path):
    """At small sizes, all branches, none with an error."""
    check_gpu.main(["--out", str(tmp_path), "--device", "cpu", "--small", "--minutes", "30"])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: found[name]["complete"] for name in check_gpu.STEPS} == dict.fromkeys(check_gpu.STEPS, True)
    assert found["denoise"]["again"]["beside_first"]["same_bits"] == 1
    assert found["denoise"]["resumed"]["beside_whole"]["same_bits"] == 1
    assert "error" not in (tmp_path / "gpu.json").read_text().replace("_error", "")


def test_steps_without_time_are_named(check_gpu, tmp_path):
    """Nothing is done, and what the machine is was written all the same; an unknown step is a mistake."""
    options = ["--out", str(tmp_path), "--device", "cpu", "--small", "--minutes", "0"]
    check_gpu.main([*options, "--steps", "training,beside"])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert "0 s are left" in found["training"]["left_out"]
    assert "left_out" in found["beside"]
    with pytest.raises(SystemExit):
        check_gpu.main([*options, "--steps", "dance"])


@pytest.mark.parametrize(("device", "steps"), [("cpu", 300), ("mps", 300), ("cuda", 1500)])
def test_the_effort_knows_the_device(device, steps):
    """More steps where they take milliseconds."""
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "train.json"))
    parser["chosen_device"] = f"$__import__('torch').device('{device}')"
    assert parser.get_parsed_content("steps") == steps
