"""The small parts: errors, devices, the window stream, metrics, budget, previews, names registered with MONAI."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from ignite.exceptions import NotComputableError
from monai.data import CacheDataset, MetaTensor, decollate_batch, list_data_collate
from monai.engines import SupervisedTrainer
from monai.networks.layers.factories import Act, Norm
from monai.transforms import Compose
from phantoms import write_mrc
from PIL import Image

import cryoshuffle
from cryoshuffle import devices, memory
from cryoshuffle.commands.cli import main
from cryoshuffle.commands.preflight import check_halves
from cryoshuffle.devices import allow_tf32, choose_device, choose_precision, to_device
from cryoshuffle.errors import FileError, FitInterruptedError, InputError, SettingError, user_error
from cryoshuffle.files.intensity import StandardiseIntensityd
from cryoshuffle.files.scratch import central_crop
from cryoshuffle.files.writing import write_json
from cryoshuffle.fit.checkpoint import is_as_good
from cryoshuffle.fit.data import (
    Epochs,
    WindowDataset,
    choose_preset,
    collate_one,
    forget,
    seed_everything,
)
from cryoshuffle.fit.handlers import Budget, ClipGradients, KeptMemory, flat_after
from cryoshuffle.fit.risk import HeldOutRisk, lower_is_better
from cryoshuffle.fit.transforms import RandLatticeWindowd
from cryoshuffle.inference import inferers
from cryoshuffle.inference.inferers import PrecisionInferer
from cryoshuffle.lattice import (
    BlindSet,
    as_triple,
    merge_sublattices,
    split_sublattices,
    volume_shuffle,
    volume_unshuffle,
)
from cryoshuffle.layers import ChannelLayerNorm, SimpleGate, register_layers
from cryoshuffle.memory import (
    is_out_of_memory,
    keep_memory,
    limit_memory,
    memory_bytes,
    most_memory_bytes,
    trim_memory,
    trim_near_limit,
    window_bytes,
)
from cryoshuffle.network import BlindSpotNet, ShuffleUNet, unwrap
from cryoshuffle.report.pictures import preview_image, save_preview


def test_a_mistake_is_found_behind_any_wrapping():
    """As a cause, as a context, and as text in an exception that kept only a traceback."""
    mistake = InputError("t.mrc: is cut short")
    wrapped = RuntimeError("applying transform")
    wrapped.__cause__ = mistake
    outer = RuntimeError("engine run")
    outer.__context__ = wrapped
    assert user_error(outer) is mistake
    told = RuntimeError("no reader\nTraceback ...\ncryoshuffle.errors.FileError: a.mrc: cannot be read\n")
    found = user_error(told)
    assert isinstance(found, FileError)
    assert str(found) == "a.mrc: cannot be read"
    assert user_error(RuntimeError("a bug")) is None
    assert isinstance(SettingError("x"), ValueError)
    assert isinstance(FileError("x"), OSError)


def test_a_stop_is_a_stop_whatever_it_interrupts(tmp_path, monkeypatch, capsys):
    """Where it comes while a checkpoint is written, what torch says of the torn archive is no mistake of the user's."""

    def stopped(options):
        try:
            try:
                raise FitInterruptedError("stopped; go on with --resume")
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")  # as torch's archive does when it is left half written
        except RuntimeError as error:
            raise FileError("state.pt: the checkpoint cannot be written") from error

    monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", stopped)
    assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == 3
    assert capsys.readouterr().err.strip() == "cryoshuffle: stopped; go on with --resume"
    for error, code in ((FileError("no room"), 2), (MemoryError(), 2)):
        monkeypatch.setattr("cryoshuffle.commands.runs.run_fit", Mock(side_effect=error))
        assert main(["fit", "in.mrc", "--checkpoint", str(tmp_path / "net.pt")]) == code


def test_lattice_messages_quote_the_value():
    """Sizes that do not divide, triples that are none, names that do not exist."""
    x = torch.zeros(1, 2, 4, 5, 6)
    with pytest.raises(ValueError, match=r"\(4, 5, 6\) is not a multiple of the lattice stride \(1, 3, 1\)"):
        split_sublattices(x, (1, 3, 1))
    with pytest.raises(ValueError, match="batch of 1 is not a multiple of the 3"):
        merge_sublattices(x, (1, 3, 1))
    with pytest.raises(ValueError, match=r"stride \(1, 1, 1\) times factor \(1, 2, 1\)"):
        volume_unshuffle(x, (1, 2, 1))
    with pytest.raises(ValueError, match="2 channels"):
        volume_shuffle(x, (1, 3, 1))
    with pytest.raises(ValueError, match="three whole numbers"):
        as_triple([1, 2], "window")
    for wrong in (
        {"shape": "ball"},
        {"axis": "w"},
        {"shape": "voxel", "radius": 1},
        {"radius": (0, 1, 0)},
        {"radius": -1},
    ):
        with pytest.raises(SettingError):
            BlindSet(**wrong)
    with pytest.raises(SettingError, match="3 levels need 2"):
        ShuffleUNet(channels=(4, 4, 4), factors=(2,))


def test_device_and_precision_are_chosen_or_refused():
    """cpu is always there; what is not is said; unknown names are refused."""
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    with pytest.raises(SettingError, match="unknown"):
        choose_device("gpu")
    with pytest.raises(SettingError, match="not available"):
        choose_device("cuda:77")
    with pytest.raises(SettingError, match="choose one of"):
        choose_precision("fp8", torch.device("cpu"))
    assert choose_precision("bf16", torch.device("cpu")) is torch.bfloat16
    assert choose_precision("auto", torch.device("mps")) is torch.float32
    assert choose_precision("tf32", torch.device("cuda")) is torch.float32


def test_libraries_that_are_wrong_or_slow_on_a_gpu_are_told(monkeypatch, caplog):
    """cuDNN 9.8 to 9.12 in bfloat16 gives way to float32, said once; those around it do not. So is torch 2.9."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices, "_told", set())
    device = torch.device("cuda")
    for version, right in ((90702, True), (90800, False), (91200, False), (91300, True), (91900, True)):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        for name in ("auto", "bf16", "bf16"):
            assert choose_precision(name, device) is (torch.bfloat16 if right else torch.float32)
    assert [record.message.split(" is wrong")[0] for record in caplog.records] == ["cuDNN 9.8", "cuDNN 9.12"]
    caplog.clear()
    for version, slow in (("2.9.1+cu128", True), ("2.8.0", False), ("2.11.0+cu130", False)):
        monkeypatch.setattr(torch, "__version__", version)
        assert choose_device("auto").type == "cuda"
        assert bool(caplog.records) == slow
        caplog.clear()


def test_a_gpu_without_memory_leaves_the_work_to_the_cpu():
    """After smaller windows, and only what can be moved there; a CPU has no other place."""
    gpu = [attempt[0].type for attempt in inferers._attempts(torch.device("cuda"), movable=True)]
    assert gpu == ["cuda", "cuda", "cpu"]
    assert len(inferers._attempts(torch.device("cuda"), movable=False)) == 2
    assert [fraction for _, fraction, _ in inferers._attempts(torch.device("cpu"), movable=True)] == [1, 4]


def test_tf32_is_for_the_asking():
    """In convolutions as in products of matrices; every other precision forbids it."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    try:
        for name in ("tf32", "fp32", "tf32", "bf16", "tf32", "auto"):
            allow_tf32(name)
            assert [flag.allow_tf32 for flag in flags] == [name == "tf32"] * 2
        with pytest.raises(SettingError, match="precision is 'tf16'"):
            allow_tf32("tf16")
    finally:
        for flag, was in zip(flags, before, strict=True):
            flag.allow_tf32 = was


def test_nothing_is_copied_on_its_way_to_where_it_is():
    """A view on the CPU stays the view it is."""
    x = torch.arange(24.0).reshape(2, 3, 4)[:, 1:]
    there = to_device(x, "cpu")
    assert there is x


def test_bfloat16_is_used_inside_and_float32_comes_out():
    """Autocast reaches the convolution on the CPU too, and stays within a bfloat16 of the float32 result."""
    net = torch.nn.Conv3d(1, 4, 3, padding=1)
    seen = []
    net.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = torch.randn(1, 1, 6, 6, 6)
    with torch.no_grad():
        low, full = PrecisionInferer("bf16")(x, net), PrecisionInferer("fp32")(x, net)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == torch.float32
    assert (low - full).abs().max() < 0.05


def test_the_window_stream_depends_on_seed_epoch_and_index_alone():
    """Any item can be asked for at any time, and is the same in a second stream."""
    volume = {"image": torch.randn(1, 20, 20, 20)}

    def stream(seed: int) -> WindowDataset:
        return WindowDataset([volume], Compose([RandLatticeWindowd("image", 8, 4)]), length=5, seed=seed)

    first, second, other = stream(0), stream(0), stream(1)
    forward = [first[i]["image"] for i in range(5)]
    backward = [second[i]["image"] for i in reversed(range(5))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    assert not all(torch.equal(a, other[i]["image"]) for i, a in enumerate(forward))
    second.set_epoch(1)
    assert not all(torch.equal(a, second[i]["image"]) for i, a in enumerate(forward))
    assert len(first) == 5
    many = WindowDataset([{"image": torch.full((1, 9, 9, 9), float(i))} for i in range(7)], first.transform, length=3)
    seen = set()
    for epoch in range(7):
        many.set_epoch(epoch)
        seen |= {float(many[i]["image"].mean()) for i in range(3)}
    assert seen == set(map(float, range(7))), "every volume has its turn, however short the epoch"
    with pytest.raises(IndexError):
        first[5]
    seed_everything(0, 1)
    a = torch.rand(1)
    seed_everything(0, 1)
    assert torch.equal(a, torch.rand(1))


@pytest.mark.parametrize(
    ("steps", "epochs", "length"), [(600, 24, 25), (1, 1, 1), (60, 3, 20), (101, 5, 21), (25, 1, 25)]
)
def test_epochs_make_at_least_the_steps(steps, epochs, length):
    """All epochs are of one length, and overshoot by less than one step each."""
    ours = Epochs(steps, 25)
    assert (ours.count, ours.length, ours.steps) == (epochs, length, epochs * length)
    assert 0 <= epochs * length - steps < epochs
    with pytest.raises(SettingError):
        Epochs(0, 25)


def test_the_memory_of_a_container_counts(tmp_path, monkeypatch):
    """The least of what there is and what a container or job may use; "max" and absent files say nothing."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "absent"),))
    whole = memory_bytes(cpu)
    assert whole > 2**20
    for text, expected in (("max\n", whole), ("1048576\n", 2**20), (str(2**60), whole)):
        (tmp_path / "limit").write_text(text)
        monkeypatch.setattr(memory, "LIMITS", (str(tmp_path / "absent"), str(tmp_path / "limit")))
        assert memory_bytes(cpu) == expected


def test_the_memory_of_the_program_follows_from_what_there_is_unless_it_is_said(monkeypatch):
    """A quarter of what there is, at least 2 GiB, at most half; windows get what is left, but never next to nothing."""
    cpu, gib = torch.device("cpu"), 2**30
    try:
        for there, most in ((64, 16), (8, 2), (4, 2), (2, 1)):
            monkeypatch.setattr(memory, "memory_bytes", lambda device, there=there: there * gib)
            assert most_memory_bytes() == most * gib
        limit_memory(3.0)
        assert most_memory_bytes() == 3 * gib
        assert 2.2 * gib < window_bytes(cpu) < 2.4 * gib
        assert window_bytes(cpu) - window_bytes(cpu, gib) == gib
        assert window_bytes(cpu, 5 * gib) == memory.LEAST_WINDOW
        assert window_bytes(torch.device("meta")) == 2 * gib // 4
        with pytest.raises(SettingError, match="memory is 0 GiB: give more than 0"):
            limit_memory(0)
    finally:
        limit_memory(None)


def test_out_of_memory_is_told_from_other_errors():
    """As torch says it on a GPU and on a CPU, and as Python does."""
    said = [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
    assert all(map(is_out_of_memory, [*said, MemoryError()]))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_memory_is_trimmed_only_while_it_is_kept():
    """Either way nothing is lost."""
    x = torch.ones(10)
    trim_memory()
    with keep_memory(torch.device("cpu")):
        trim_memory()
    assert bool((x == 1).all())


def test_memory_near_the_limit_is_given_back_if_it_is_worth_it(monkeypatch, told):
    """Not far from the limit, nor outside of :func:`keep_memory`, nor again before there is something to give; less
    often where the limit cannot be kept."""
    resident, trims = [], []
    memory.limit_memory(1.0)

    def trims_at(mib: int, used: int) -> bool:
        resident.append(mib)
        before = len(trims)
        monkeypatch.setattr(memory, "_resident_bytes", lambda: resident[-1] * 2**20)
        monkeypatch.setattr(memory, "trim_memory", lambda: (trims.append(mib), resident.append(used)))
        trim_near_limit()
        return len(trims) > before

    assert not trims_at(1500, 0)
    with keep_memory(torch.device("cpu")):
        assert [trims_at(mib, 840) for mib in (860, 880, 890, 910, 900)] == [False, True, False, True, False]
        assert [trims_at(mib, 900) for mib in (910, 970, 1150, 1160)] == [True, False, False, True]
    memory.limit_memory(4.0)
    with keep_memory(torch.device("cpu")):
        assert not trims_at(1500, 0)


def test_a_batch_of_one_is_a_view():
    """What MONAI's own collation gives, without its copy; more than one is refused."""
    image = MetaTensor(torch.randn(1, 4, 5, 6), affine=torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0])))
    item = {"image": StandardiseIntensityd("image")({"image": image})["image"], "number": 3}
    batch, usual = collate_one([item]), list_data_collate([item])
    assert torch.equal(batch["image"].as_tensor(), usual["image"].as_tensor())
    assert batch["image"].data_ptr() == item["image"].data_ptr()
    assert batch["image"].is_batch
    assert torch.equal(batch["image"].affine, usual["image"].affine)
    assert torch.equal(batch["number"], usual["number"])
    one, other = (decollate_batch(b)[0]["image"] for b in (batch, usual))
    assert one.applied_operations[0]["class"] == other.applied_operations[0]["class"]
    with pytest.raises(SettingError, match="use a batch size of 1"):
        collate_one([item, item])


def test_volumes_of_a_fit_are_forgotten():
    """Cached datasets and lists alike."""
    cached, listed = CacheDataset([{"image": 1}], Compose([]), progress=False), [{"image": 2}]
    forget([cached, listed])
    assert len(cached) == len(listed) == 0


def test_a_preset_that_is_not_there_is_refused_in_words():
    """The message says what it is called and what there is."""
    presets = {"fast": {"steps": 1}, "best": {"steps": 2}}
    assert choose_preset(presets, "best", "effort") == {"steps": 2}
    with pytest.raises(SettingError, match="effort is 'slow': choose one of fast, best"):
        choose_preset(presets, "slow", "effort")


def test_blind_risk_counts_scored_voxels_only():
    """NaN is left out; batches of any size add up; nothing scored is an error."""
    risk = HeldOutRisk()
    risk.reset()
    with pytest.raises(NotComputableError):
        risk.compute()
    scored = torch.full((1, 2, 2, 2), float("nan"))
    scored[0, 0, 0, 0] = 1.0
    risk.update((torch.full((1, 2, 2, 2), 3.0), scored))
    risk.update(([torch.full((1, 1, 1, 1), 1.0)] * 3, [torch.full((1, 1, 1, 1), 1.0)] * 3))
    assert risk.compute() == 1.0
    assert lower_is_better(0.5, 0.6)
    assert not lower_is_better(0.6, 0.5)


class Fit:
    """Of a fit, what a budget looks at."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.risks: list[float] = []
        self.seconds = seconds

    def elapsed_s(self) -> float:
        return self.seconds

    def spend(self, seconds: float) -> None:
        self.seconds += seconds


def test_the_learning_rate_follows_steps_or_time():
    """Up over the warm-up, down to 0 at the end of the steps, or of the minutes if they end first."""
    budget = Budget(steps=100, warmup=10)
    factors = [budget.learning_rate_factor(i) for i in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) > 0.95
    assert factors[100] == pytest.approx(0.0)
    late = Budget(steps=100, minutes=1.0).watch(Fit(30.0))
    assert late.progress(10) == 0.5
    with pytest.raises(SettingError, match="minutes are 0"):
        Budget(10, 0)


def test_the_pace_of_a_fit_tells_how_far_it_gets():
    """Steps in some minutes, from the steps and seconds so far; before the first step, none."""
    engine = Engine(lambda engine, batch: None)
    budget = Budget(steps=40).watch(Fit(80.0))
    assert budget.steps_within(3) == 0
    budget.attach(engine)
    engine.run([0] * 40)
    assert budget.steps_within(3) == pytest.approx(40 * 180 / 80)


def test_long_gradients_are_shortened_and_short_ones_left():
    """Their direction stays; a norm that is not positive is refused."""
    layer = torch.nn.Linear(2, 1, bias=False)
    clip = ClipGradients(layer, 0.5)
    for gradient, expected in (([3.0, 4.0], [0.3, 0.4]), ([0.03, 0.04], [0.03, 0.04])):
        layer.weight.grad = torch.tensor([gradient])
        clip(Engine(lambda engine, batch: None))
        assert torch.allclose(layer.weight.grad, torch.tensor([expected]), atol=1e-5)
    with pytest.raises(SettingError, match="norm of 0"):
        ClipGradients(layer, 0)


def test_gradients_are_clipped_before_the_optimiser_steps():
    """In MONAI's own trainer: a plain gradient step is no longer than norm times learning rate, without it is."""

    def longest(norm: float) -> float:
        torch.manual_seed(0)
        network = torch.nn.Linear(4, 1)
        before = network.weight.detach().clone()
        trainer = SupervisedTrainer(
            device="cpu", max_epochs=1,
            train_data_loader=[{"image": torch.ones(2, 4), "label": 1e3 * torch.ones(2, 1)}],
            network=network, optimizer=torch.optim.SGD(network.parameters(), lr=1.0), loss_function=torch.nn.MSELoss(),
            train_handlers=[ClipGradients(network, norm)],
        )  # fmt: skip
        trainer.run()
        return float((network.weight.detach() - before).norm())

    assert 0 < longest(0.3) <= 0.3
    assert longest(1e6) > 100


def test_halves_are_looked_at_before_the_work_begins(tmp_path):
    """Missing, of another shape, the same file twice, the tomogram itself; good ones and none pass."""
    paths = {n: str(write_mrc(tmp_path / f"{n}.mrc", np.zeros((8, 9, 10), np.float32))) for n in ("in", "even", "odd")}
    other = str(write_mrc(tmp_path / "other.mrc", np.zeros((8, 9, 11), np.float32)))
    check_halves(None, paths["in"])
    check_halves([paths["even"], paths["odd"]], paths["in"])
    for halves, words in (
        ([paths["even"]], "halves are 1 files"),
        ([paths["even"], str(tmp_path / "no.mrc")], "no such file"),
        ([paths["even"], other], r"other.mrc: is of \(8, 9, 11\) voxels"),
        ([paths["even"], paths["even"]], "named twice"),
        ([paths["in"], paths["odd"]], "named twice"),
    ):
        with pytest.raises((InputError, FileError), match=words):
            check_halves(halves, paths["in"])


def test_time_ends_a_fit_at_the_end_of_an_epoch():
    """The engine stops after the last epoch that fits into the minutes."""
    engine, fit = Engine(lambda engine, batch: None), Fit()
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: fit.spend(20.0))
    Budget(steps=1000, minutes=2.0).watch(fit).attach(engine)
    engine.run([0, 0], max_epochs=50)
    assert engine.state.epoch == 3


def test_the_risk_is_flat_when_some_epochs_gain_nothing():
    """Falling is not flat, nor is a step late on; scatter and rising are, after as many epochs as asked for."""
    falling = [1.0 / (1 + i) for i in range(40)]
    assert flat_after(falling[:10], 4) is None
    assert flat_after([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], 4) is None
    assert flat_after([1.0, 0.5, 0.51, 0.49, 0.5, 0.3, 0.3, 0.3, 0.3, 0.3], 4) == 10
    assert flat_after([0.5, 0.6, 0.7, 0.8, 0.9], 4) == 5
    assert flat_after([0.5, 0.6, 0.7, 0.8], 4) is None
    # The first answer stays when more epochs come.
    assert flat_after([0.5] * 9, 4) == flat_after([0.5] * 30, 4) == 5


def _rates_of_a_fit(gain: float, patience: int | None, epochs_before: int = 0) -> list[float]:
    """Learning rate factors of a fit of 40 epochs of 5 steps, from an interruption on, its risk falling by so much."""
    budget, fit, factors = Budget(steps=200, patience=patience), Fit(), []
    fit.risks = [-gain * i for i in range(epochs_before)]
    engine = Engine(lambda engine, batch: factors.append(budget.learning_rate_factor(engine.state.iteration)))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: fit.risks.append(-gain * len(fit.risks)))

    @engine.on(Events.STARTED)
    def go_on(engine: Engine) -> None:
        engine.state.epoch, engine.state.iteration = epochs_before, 5 * epochs_before

    budget.watch(fit).attach(engine)
    engine.run([0] * 5, max_epochs=40)
    return factors


def test_a_flat_risk_brings_a_fit_to_its_end():
    """A quarter of the steps so far is left to bring the rate down to 0; not if it falls, nor without patience."""
    flat = _rates_of_a_fit(0.0, 8)
    assert len(flat) == 60  # flat after 9 epochs of 5 steps, 12 more in whole epochs
    assert flat[44] > 0.85
    assert flat[-1] == pytest.approx(0.0)
    assert max(abs(b - a) for a, b in itertools.pairwise(flat[15:])) < 0.12
    assert len(_rates_of_a_fit(0.1, 8)) == len(_rates_of_a_fit(0.0, None)) == 200
    for epochs in (3, 9, 11):
        assert _rates_of_a_fit(0.0, 8, epochs) == flat[5 * epochs :]
    with pytest.raises(SettingError, match="patience is 0"):
        Budget(10, patience=0)


def test_layers_are_known_to_monais_factories():
    """By name, once, and computing what they say."""
    register_layers()
    assert Norm["CHANNELLAYER", 3] is ChannelLayerNorm
    assert Act["simplegate"] is SimpleGate
    x = torch.randn(2, 6, 3, 4, 5)
    y = ChannelLayerNorm(6)(x)
    assert torch.allclose(y, torch.nn.functional.layer_norm(x.movedim(1, -1), (6,)).movedim(-1, 1), atol=1e-6)
    assert torch.equal(SimpleGate()(x), x[:, :3] * x[:, 3:])


def test_unwrap_finds_the_network():
    """Behind a wrapper with ``module``, or itself."""
    net = torch.nn.Linear(1, 1)
    assert unwrap(torch.nn.DataParallel(net)) is net
    assert unwrap(net) is net


def test_a_body_that_does_not_know_itself_says_none():
    """Reach and config of a foreign body are unknown, and said to be."""
    net = BlindSpotNet(body=torch.nn.Conv3d(24, 1, 1))
    assert net.receptive_radius() is None
    assert net.config() is None


def test_a_preview_shows_three_planes_before_after_and_residual(tmp_path):
    """The planes through the middle, each voxel a square of equal pixels: what is bright there is bright here."""
    before, after = torch.rand(8, 40, 20), torch.rand(8, 40, 20)
    path = save_preview(before, after, tmp_path / "p.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(float)
    zoom, margin, title = 13, 8, 16
    tops = [margin + title, margin + 2 * title + 40 * zoom + margin, margin + 3 * title + 48 * zoom + 2 * margin]
    for column, volume in enumerate((before, after, before - after)):
        left = margin + column * (20 * zoom + margin)
        for top, plane in zip(tops, (volume[4], volume[:, 20], volume[:, :, 10].T), strict=True):
            height, width = plane.shape
            tile = pixels[top : top + height * zoom, left : left + width * zoom]
            shown = tile[zoom // 2 :: zoom, zoom // 2 :: zoom][::-1]
            assert np.corrcoef(shown.ravel(), plane.numpy().ravel())[0, 1] > 0.95
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    assert preview_image(torch.rand(3, 2000, 1500), torch.rand(3, 2000, 1500)).width < 3 * 600
    with pytest.raises(ValueError, match="cannot be compared"):
        preview_image(before, after[:4])
    with pytest.raises(FileError, match="cannot be written"):
        save_preview(before, after, tmp_path / "no" / "p.png")
    assert central_crop(torch.arange(10).reshape(1, 1, 10), 4).flatten().tolist() == [3, 4, 5, 6]


def test_the_version_is_that_of_the_metadata():
    """One version, read from configs/metadata.json wherever that lies."""
    metadata = json.loads((cryoshuffle.config_dir() / "metadata.json").read_text())
    assert cryoshuffle.__version__ == metadata["version"]
    assert metadata["version"] in metadata["changelog"]
    assert isinstance(cryoshuffle.config_dir(), Path)


def test_help_imports_nothing_heavy():
    """``--help`` and the package itself leave torch and MONAI alone, so that they answer at once."""
    code = (
        "import sys, cryoshuffle.commands.cli as c; c.build_parser().format_help();"
        "print('torch' in sys.modules, 'monai' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_json_is_written_whole_or_not_at_all(tmp_path):
    """What is written is read back; a folder that is missing is one sentence, and nothing is left."""
    write_json({"a": [1, 2]}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]}
    with pytest.raises(FileError, match="cannot be written"):
        write_json({}, tmp_path / "no" / "a.json")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(("risks", "kept"), [
    ([2.760, 2.7510, 2.7513, 2.7511], True),
    ([2.760, 2.7510, 2.7512, 2.7513, 2.7530], False),
    ([2.760], True),
    ([2.760, 2.900], False),
    ([2.760, 2.900, 2.7599], True),
    ([5.0, 0.9, 1.05], False),
    ([2.760, 2.7700, 2.6500, 2.7700, 2.6600], False),
])  # fmt: skip
def test_of_models_that_are_equal_but_for_chance_the_later_is_kept(risks, kept):
    """Half a typical change is chance, a twentieth of the gain at most; more is memorised noise, however bad the first
    epoch was."""
    assert is_as_good(risks) is kept


@pytest.fixture
def told(monkeypatch):
    """What a C library that is not there is told."""
    words: list[tuple[str, ...]] = []

    class Libc:
        def mallopt(self, parameter: int, value: int) -> None:
            words.append(("mallopt", str(parameter), str(value)))

        def malloc_trim(self, pad: int) -> None:
            words.append(("trim",))

    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: Libc())
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory, "_resident_bytes", lambda: 0)
    return words


def test_memory_is_kept_while_a_large_volume_is_denoised_and_given_back(monkeypatch, told):
    """glibc is told to keep it, and told back after an error too; small volumes, GPUs, other systems are let alone."""

    def fail() -> None:
        with memory.keep_memory(torch.device("cpu"), 2**30):
            told.append(("work",))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert told[:2] == [("mallopt", "-4", "0"), ("mallopt", "-1", str(2**31 - 1))]
    assert told[2] == ("work",)
    assert {words[1] for words in told[3:-1]} == {"-4", "-3", "-1"}
    assert told[-1] == ("trim",)
    told.clear()
    for device, size, platform in (("cpu", 2**20, "linux"), ("cuda", 2**30, "linux"), ("cpu", 2**30, "darwin")):
        monkeypatch.setattr(memory.sys, "platform", platform)
        with memory.keep_memory(torch.device(device), size):
            pass
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with memory.keep_memory(torch.device("cpu"), 2**30):
        pass
    assert told == []


def test_memory_that_is_kept_already_is_not_given_back_by_the_inner_one(told):
    """The outermost alone tells."""
    with memory.keep_memory(torch.device("cpu")):
        begun = list(told)
        with memory.keep_memory(torch.device("cpu"), 2**30):
            pass
        assert told == begun
    assert told[-1] == ("trim",)
    told.clear()
    with memory.keep_memory(torch.device("cpu")):
        assert told == begun


def test_memory_is_kept_while_an_engine_runs(told):
    """From its start to its end, or to an error, which is raised all the same."""

    def step(engine: Engine, batch: int) -> None:
        told.append(("step",))
        if batch:
            raise RuntimeError("no")

    for batch in (0, 1):
        told.clear()
        engine = Engine(step)
        KeptMemory(torch.device("cpu")).attach(engine)
        with pytest.raises(RuntimeError, match="no") if batch else contextlib.nullcontext():
            engine.run([batch])
        assert told[0][0] == "mallopt"
        assert told[-1] == ("trim",)
        assert told.count(("step",)) == 1
        assert told.count(("trim",)) == 1


def test_a_fit_near_the_limit_gives_back_between_its_steps(told, monkeypatch):
    """Each step leaves 128 MiB that are not in use; far from the limit nothing is given back before the end."""

    def resident() -> int:
        return 2**29 + 2**27 * (told[-1] == ("step",))

    monkeypatch.setattr(memory, "_resident_bytes", resident)
    for limit_gib, between in ((0.625, 3), (1.0, 0)):
        told.clear()
        memory.limit_memory(limit_gib)
        engine = Engine(lambda engine, batch: told.append(("step",)))
        KeptMemory(torch.device("cpu")).attach(engine)
        engine.run(range(3))
        assert told[2 : 2 + 3 + between] == [("step",), *[("trim",)] * (between > 0)] * 3
        assert told.count(("trim",)) == between + 1
