"""Handlers of a fit: budget and learning rate, clipping, memory."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer

from cryoshuffle import memory
from cryoshuffle.errors import SettingError
from cryoshuffle.fit.handlers import Budget, ClipGradients, KeptMemory, flat_after
from cryoshuffle.report.log import History, Progress, read_history, time_note


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


def test_time_ends_a_fit_at_the_end_of_an_epoch():
    """The engine stops after the last epoch that fits into the minutes."""
    engine, fit = Engine(lambda engine, batch: None), Fit()
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: fit.spend(20.0))
    Budget(steps=1000, minutes=2.0).watch(fit).attach(engine)
    engine.run([0, 0], max_epochs=50)
    assert engine.state.epoch == 3


@pytest.mark.parametrize(("minutes", "steps", "short"), [(2.0, 50, True), (2.0, 6, False), (9.0, 10, False)])
def test_a_fit_that_ran_out_of_time_says_so(tmp_path, caplog, minutes, steps, short):
    """Once, in the last line of its history and on the console; one that took all its steps does not."""
    engine, fit = Engine(lambda engine, batch: None), Fit()
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: fit.spend(20.0))
    History(Engine(lambda engine, batch: None), str(tmp_path)).attach(engine)
    Budget(steps, minutes).watch(fit).attach(engine)
    Progress(Engine(lambda engine, batch: None), quiet=True).attach(engine)
    engine.run([0, 0], max_epochs=steps // 2)
    lines = read_history(tmp_path)
    assert [bool(line.get("out_of_time")) for line in lines] == [False] * (len(lines) - 1) + [short]
    assert lines[-1]["step"] == (6 if short else steps)
    said = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert said == [f"fitting: cut short by --minutes after step 6 of {steps}, more minutes give it the rest"] * short
    words = f"cut short by --minutes: fitting after step 6 of {steps}; for more, run it again with --overwrite and"
    assert time_note(tmp_path) == (f"{words} more minutes" if short else "")
    assert time_note(tmp_path / "none") == ""


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


def test_memory_is_kept_while_an_engine_runs(allocator_calls):
    """From its start to its end, or to an error, which is raised all the same."""

    def step(engine: Engine, batch: int) -> None:
        allocator_calls.append(("step",))
        if batch:
            raise RuntimeError("no")

    for batch in (0, 1):
        allocator_calls.clear()
        engine = Engine(step)
        KeptMemory(torch.device("cpu")).attach(engine)
        with pytest.raises(RuntimeError, match="no") if batch else contextlib.nullcontext():
            engine.run([batch])
        assert allocator_calls[0][0] == "mallopt"
        assert allocator_calls[-1] == ("trim",)
        assert allocator_calls.count(("step",)) == 1
        assert allocator_calls.count(("trim",)) == 1


def test_a_fit_near_the_limit_gives_back_between_its_steps(allocator_calls, monkeypatch):
    """Each step leaves 128 MiB that are not in use; far from the limit nothing is given back before the end."""

    def resident() -> int:
        return 2**29 + 2**27 * (allocator_calls[-1] == ("step",))

    monkeypatch.setattr(memory, "_resident_bytes", resident)
    for limit_gib, between in ((0.625, 3), (1.0, 0)):
        allocator_calls.clear()
        memory.limit_memory(limit_gib)
        engine = Engine(lambda engine, batch: allocator_calls.append(("step",)))
        KeptMemory(torch.device("cpu")).attach(engine)
        engine.run(range(3))
        assert allocator_calls[2 : 2 + 3 + between] == [("step",), *[("trim",)] * (between > 0)] * 3
        assert allocator_calls.count(("trim",)) == between + 1
