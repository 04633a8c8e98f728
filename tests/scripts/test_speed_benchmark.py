"""The speed benchmark compares like with like, and says what was measured and what could not be."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from ignite.handlers import EMAHandler
from torch import nn

from cryoshuffle.lattice import Lattice

ROOT = Path(__file__).parent.parent.parent
TINY = ["--window", "12", "--inference-window", "8,24,8", "--volume", "16,24,24", "--matmul", "32", "--largest", "16"]
TINY += ["--repeats", "1", "--process-repeats", "1", "--least-seconds", "0", "--precisions", "fp32", "--device", "cpu"]


@pytest.fixture
def speed(load_script):
    return load_script("bench.speed")


@pytest.fixture
def subjects(load_script):
    return load_script("bench.subject")


@pytest.fixture
def tables(load_script):
    return load_script("bench.speed_tables")


@pytest.fixture
def markdown(load_script):
    return load_script("bench.markdown")


@pytest.fixture
def measures(load_script):
    return load_script("bench.speed_measures")


@pytest.fixture
def beside_peers(load_script):
    return load_script("bench.speed_peers")


@pytest.fixture
def workers(load_script):
    return load_script("bench.worker")


@pytest.fixture
def turns(load_script):
    return load_script("bench.turns")


def test_networks_are_those_of_the_config(subjects):
    """The default subject is what train.json declares; the dilated one has weights of the same shapes."""
    subject = subjects.Subject("training", (12, 12, 12))
    ours = subjects.build_network(subject)
    assert ours.body.config()["channels"] == subjects.CONFIG["network_def"]["body"]["channels"]
    assert ours.lattice == Lattice()
    for channels in (subjects.CHANNELS, subjects.PAPER_CHANNELS):
        pair = [
            subjects.Subject("training", (12, 12, 12), formulation=f, channels=channels)
            for f in ("sub-lattices", "dilated")
        ]
        shapes = [{n: p.shape for n, p in subjects.build_network(s).state_dict().items()} for s in pair]
        assert shapes[0] == shapes[1]


def test_a_step_moves_weights_and_averages(subjects, monkeypatch):
    """One step of the benchmark is a whole step: every weight behind an open path moves, the average follows."""
    kept = []

    def averaging(*arguments, **more):
        kept.append(EMAHandler(*arguments, **more))
        return kept[0]

    monkeypatch.setattr(subjects, "EMAHandler", averaging)
    network = subjects.build_network(subjects.Subject("training", (12, 12, 12)))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    step = subjects.training_step(network, torch.randn(1, 1, 12, 12, 12), "fp32")
    for _ in range(2):
        step()
    assert all(not torch.equal(p, before[name]) for name, p in network.named_parameters())
    averaged = dict(kept[0].ema_model.named_parameters())
    assert all(not torch.equal(p, before[name]) for name, p in averaged.items())
    assert all(not torch.equal(p, averaged[name]) for name, p in network.named_parameters())


def test_operations_are_counted_without_the_padding(subjects):
    """Against the direct count: pairs of an output voxel and a tap whose input voxel exists."""
    convolution = subjects.Subject("convolution", (2, 4, 1, 5), channels=(16, 32), kernel=3)
    ones = torch.nn.functional.conv3d(torch.ones(2, 1, 4, 1, 5), torch.ones(1, 1, 3, 3, 3), padding=1)
    assert convolution.work == 2 * 16 * 32 * int(ones.sum())
    assert subjects.Subject("matmul", (8, 8)).work == 2 * 8**3
    assert subjects.Subject("volume", (3, 4, 5)).work == 60


def test_each_convolution_of_the_body_is_found_as_often_as_it_is_there(subjects):
    """Those with at least 16 channels, on the grid of the sub-lattices."""
    found = subjects.convolutions((12, 12, 12), "fp32")
    body = subjects.build_network(subjects.Subject("training", (12, 12, 12))).body
    assert sum(c.count for c in found) == sum(isinstance(m, nn.Conv3d) for m in body.modules())
    blocks = [c for c in found if c.kernel == 3]
    assert {c.channels: c.shape for c in blocks} == {
        (24, 48): (3, 12, 4, 12),
        (40, 80): (3, 6, 2, 6),
        (64, 128): (3, 3, 1, 3),
    }


@pytest.mark.nightly
def test_all_parts_are_measured_resumed_and_reported(speed, tmp_path, capsys):
    """Other sections stay, what is finished is not measured again, what could not be is told, without paths."""
    report = sys.modules["bench.report"]
    quality = f"{report.BEGIN}\n\n## Quality\n\ngood\n\n{report.END}\n"
    page = tmp_path / "explain" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text(f"# Benchmarks\n\n{quality}", encoding="utf-8")
    arguments = [*TINY, "--work", str(tmp_path / "work"), "--docs", str(tmp_path), "--threads", "1,4096"]
    speed.main(arguments)
    said = capsys.readouterr().out
    assert "topaz: no --peers given" in said
    measured = ["rates_training", "paper_window", "matmul_fp32", "memory", "start", "cube_16"]
    assert all(f"{name}: measured" in said for name in measured)
    text = page.read_text(encoding="utf-8")
    assert quality in text
    assert "4096 threads asked for" in text
    written = json.loads((tmp_path / "data" / "benchmarks_speed.json").read_text(encoding="utf-8"))
    assert str(tmp_path) not in text + json.dumps(written)
    assert str(ROOT) not in text + json.dumps(written)
    rows = [row for unit in written["results"] for row in unit.get("rows", ())]
    assert {row["task"] for row in rows} == {*speed.TASKS, "matmul", "convolution", "help", "first step"}
    assert not [row for row in rows if row["place"] == "1 thread" and not row["seconds"]]
    assert all("cores there" in row["reason"] for row in rows if row["place"] != "1 thread")
    assert all(row["mib"][0] > 0 for unit in written["results"] if unit["unit"] == "memory" for row in unit["rows"])

    speed.main(arguments)
    assert ": measured" not in capsys.readouterr().out
    assert page.read_text(encoding="utf-8") == text
    page.unlink()
    speed.main([*arguments, "--report-only"])
    assert text.partition(speed.BEGIN)[2] == page.read_text(encoding="utf-8").partition(speed.BEGIN)[2]
    with pytest.raises(SystemExit, match="was begun with window"):
        speed.main([*arguments, "--window", "24"])


class _Steady:
    """In the place of a worker: all takes two seconds."""

    def __init__(self, place):
        self.place = place

    def time(self, subject):
        return {"seconds": 2.0}


@pytest.fixture
def beside(workers, turns, monkeypatch, tmp_path):
    """A bench whose peers are there and take known times: 5 s, half a second a step, 10 s a patch."""
    methods, shape = sys.modules["bench.methods"], (128, 16, 100)
    calls = []

    def call(command, log, job):
        log.write_text("Epoch 0:   0%|    | 0/6 [00:00<?, ?it/s]\rEpoch 0: 100%|##| 6/6", encoding="utf-8")
        calls.append(command)
        if "n2v" in command:
            return 5 + 0.5 * int(command[command.index("--steps") + 1])
        return 5 + 10 * (1 if "patch.mrc" in command[command.index("--tomogram") + 1] else 4)

    monkeypatch.setattr(methods, "call", call)
    monkeypatch.setattr(methods, "peer_python", lambda method, peers: Path("python"))
    monkeypatch.setattr(methods, "peer_version", lambda method, peers: f"{method.package} 1.0")
    monkeypatch.setattr(turns, "prepare", lambda folder, *rest: folder.mkdir(exist_ok=True))
    monkeypatch.setattr(methods, "read", lambda path: torch.zeros(shape))
    settings = {"volume": shape, "window": (48,) * 3, "inference_window": (96, 192, 96)}
    settings |= {"peer_epochs": 3, "process_repeats": 2}
    places = [workers.Place("cpu", 1), workers.Place("cpu", 2)]
    bench = turns.Bench(settings, places, [_Steady(p) for p in places], tmp_path, tmp_path, 30, 64)
    return bench, calls


def test_the_start_of_a_peer_does_not_count(speed, tables, beside_peers, beside):
    """Noise2Void: seconds and voxels of the steps between two runs; Topaz: those of all patches; threads as asked."""
    bench, calls = beside
    unit = speed.measure(bench, "peers", "n2v", lambda: beside_peers.beside_noise2void(bench))
    mine, _, theirs, other = unit["rows"]
    assert mine["work"] == 48**3
    # 128 x 16 x 100 voxels are 50 patches of 16 x 8 x 32, two are kept for validation; batches of 8.
    assert theirs["work"] == 3 * 48 * 16 * 8 * 32
    assert theirs["seconds"] == [9.0, 9.0]
    warm_up, *counted = calls
    assert warm_up[-4:-2] == ["--steps", "1"]
    assert [command[1] for command in counted[::2]] == ["OMP_NUM_THREADS=1", "OMP_NUM_THREADS=2"] * 2
    assert other["place"] == "2 threads"
    assert "careamics 1.0" in unit["version"]
    assert beside_peers.beside_topaz(bench)[2]["seconds"] == [40.0, 40.0]
    results = tables.Results([unit], ["1 thread"])
    faster = (48**3 / 2) / (3 * 48 * 16 * 8 * 32 / 9)
    assert results.ratio(("n2v", {"task": "training"}), ("n2v", {"task": "n2v"}), "1 thread") == f"{faster:.2f}"


def test_a_peer_that_counts_otherwise_is_told_and_tried_again(
    speed, tables, beside_peers, beside, monkeypatch, tmp_path
):
    """If Noise2Void takes other steps an epoch than counted on, there is a reason in the place of a number."""
    bench, _ = beside
    monkeypatch.setattr(beside_peers, "noise2void_epoch", lambda shape: (7, 1000))
    unit = speed.measure(bench, "peers", "n2v", lambda: beside_peers.beside_noise2void(bench))
    path = tmp_path / "n2v.json"
    path.write_text(json.dumps(unit), encoding="utf-8")
    assert unit["rows"][2]["reason"] == "an epoch has 6 steps where 7 were counted on"
    assert not speed.finished(path)
    results = tables.Results([unit], ["1 thread"])
    assert results.best("n2v", task="n2v", place="1 thread") == f"not run: {unit['rows'][2]['reason']}"


def test_a_process_that_ends_is_a_reason(subjects, measures, workers, monkeypatch, tmp_path):
    """A worker that dies, and a program that ends before it says what it was started for."""
    methods = sys.modules["bench.methods"]
    failing = [sys.executable, "-c", "import sys; sys.exit('OSError: no /some/where/file')"]
    with pytest.raises(methods.NotRunError, match=r"^OSError: no file$"):
        measures.until_said(failing, b"fitting:")
    saying = [sys.executable, "-c", "import sys, time; print('fitting: 0', file=sys.stderr); time.sleep(60)"]
    assert measures.until_said(saying, b"fitting:") > 0
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with (
        workers.Worker(workers.Place("cpu", 1), tmp_path / "log", 0.0) as worker,
        pytest.raises(methods.NotRunError, match="ended with code 1"),
    ):
        worker.ask(subjects.Subject("matmul", (8, 8)))


def test_numbers_and_reasons_fit_into_a_table(markdown, measures):
    """Three digits without an exponent; a bar in a reason does not end its cell."""
    assert [markdown.number(v) for v in (1234.5, 98.76, 0.01234)] == ["1,234", "98.8", "0.0123"]
    lines = markdown.table(["a", "b"], [["x", "not run: 1 | 2"]], 1).splitlines()
    assert lines == ["| a | b |", "| --- | ---: |", "| x | not run: 1 / 2 |"]
    assert measures.cube_sides(300) == [64, 128, 256, 300]
    assert measures.cube_sides(16) == [16]


def test_what_does_not_exist_is_refused(speed, capsys):
    """A mistake is said in a sentence."""
    for wrong, word in ((["--parts", "all"], "no part 'all'"), (["--precisions", "fp8"], "no precision 'fp8'")):
        with pytest.raises(SystemExit):
            speed.main(wrong)
        assert word in capsys.readouterr().err


def test_a_profile_shares_out_the_time_of_a_step(load_script, capsys):
    """Each operation has one kind, the kinds add up to all; a device that is not there is one sentence."""
    script = load_script("bench.profile_step")
    named = {"aten::mkldnn_convolution": "convolutions", "aten::native_layer_norm": "layer normalisation"}
    named |= {"aten::copy_": "copies and changes of layout", "aten::mul": "element by element", "aten::rand": "other"}
    assert {name: script.kind_of(name) for name in named} == named
    for task in ("training", "window"):
        script.main(["--task", task, "--shape", "12,12,12", "--steps", "1", "--device", "cpu", "--dearest", "3"])
        said = capsys.readouterr().out
        assert ("preparing its batch" in said) == (task == "training")
        kinds, operations = (part.splitlines()[2:] for part in said.strip().split("\n\n")[-2:])
        assert len(operations) == 3
        assert sum(int(row.split("|")[3].strip(" %")) for row in kinds) == pytest.approx(100, abs=len(kinds))
        assert any(row.startswith("| convolutions |") for row in kinds)
    with pytest.raises(SystemExit) as left:
        script.main(["--device", "abacus"])
    assert left.value.code == 2
    assert "abacus" in capsys.readouterr().err
