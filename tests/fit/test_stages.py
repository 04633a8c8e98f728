"""How a fit shares out its steps and minutes, and which stages it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cryoshuffle.errors import SettingError
from cryoshuffle.fit.data import Effort, choose_effort
from cryoshuffle.fit.stages import RefinedFit, StepPlan
from cryoshuffle.fit.starting import starting_checkpoint


@pytest.mark.parametrize("steps", [1, 5, 40, 300, 1500])
@pytest.mark.parametrize("start", [None, "start.pt"])
def test_stages_take_all_steps_and_no_more(steps, start):
    """Together they take what was asked for, but for stages that get at least one; so do the minutes."""
    plan = StepPlan(steps, 10.0, start)
    for distils in (False, True):
        parts = [plan.blind_steps, plan.recorrupted_steps(distils), *([plan.distilled_steps] if distils else [])]
        assert sum(parts) == max(steps, len(parts))
        minutes = [plan.blind_minutes, plan.recorrupted_minutes(distils), *([plan.distilled_minutes] * distils)]
        assert sum(minutes) == pytest.approx(10.0)


def test_a_short_second_stage_is_not_distilled():
    """From 50 steps on, 300 from random weights; the pace of the first stage counts where minutes are given."""
    assert StepPlan(300, None, "start.pt").distils(lambda minutes: 0)
    assert not StepPlan(60, None, "start.pt").distils(lambda minutes: 1e9)
    assert not StepPlan(400).distils(lambda minutes: 1e9)
    assert StepPlan(500).distils(lambda minutes: 1e9)
    assert StepPlan(500, distil_after=1000).distils(lambda minutes: 1e9) is False
    timed = StepPlan(300, 10.0, "start.pt")
    assert timed.distils(lambda minutes: 20 * minutes)
    assert not timed.distils(lambda minutes: 5 * minutes)
    assert StepPlan(300).blind_minutes is None


def fit(
    monkeypatch: pytest.MonkeyPatch,
    reliable: bool = True,
    start: str | None = "start.pt",
    minutes: float | None = None,
    **more: Any,
) -> list[str]:
    """What a fit runs, in order, and what is compared."""
    ran: list[str] = []
    for stage in ("recorrupted", "distilled"):
        run = SimpleNamespace(run=lambda stage=stage: ran.append(stage) or f"{stage}.pt")
        monkeypatch.setattr(RefinedFit, f"_{stage}_stage", lambda self, *given, run=run: run)
    whole = RefinedFit(
        trainer=SimpleNamespace(run=lambda: ran.append("blind")),
        # The clock runs while noise is measured, and no step is done.
        budget=SimpleNamespace(steps_within=lambda minutes: (20 if ran == ["blind"] else 2) * minutes),
        plan=StepPlan(300, minutes, start),
        common=SimpleNamespace(seed=0),
        volumes=[{"image": torch.zeros(1, 4, 4, 4)}],
        whitening=None,
        measure=lambda start: ran.append(f"measured with {start}") or SimpleNamespace(
            reliable=reliable, weighs_networks=reliable, doubt="beads"
        ),
        compare=lambda checkpoint, held_out, start, fit_share, **given: ran.append(
            f"{checkpoint} {held_out}" + (f" {fit_share} from {start}" if fit_share < 1 else "")
        ),
        network="network", loss=None, distilled_loss=None, windows=[], recorrupt=None, flips=None, held_out="slab",
        learning_rate=0.004, strength=0.7, draws=2, **more,
    )  # fmt: skip
    whole.run()
    whole.forget()
    assert whole.volumes == []
    return ran


def test_a_fit_runs_its_stages_in_order(monkeypatch):
    """Blind, measured, recorrupted, distilled, compared on what no step has seen."""
    assert fit(monkeypatch) == ["blind", "measured with network", "recorrupted", "distilled", "distilled.pt slab"]
    assert fit(monkeypatch, start=None) == ["blind", "measured with None", "recorrupted", "recorrupted.pt slab"]


def test_a_fit_that_nothing_will_weigh_is_told_of_before_it(monkeypatch, caplog):
    """From random weights with beads left in; not with a starting network, which is taken, nor without beads."""
    assert "recorrupted" in fit(monkeypatch, start=None, reliable=False)
    assert "beads; whatever is fitted, the result will be the linear filter's" in caplog.text
    caplog.clear()
    assert "recorrupted" not in fit(monkeypatch, reliable=False)
    fit(monkeypatch, start=None)
    assert not caplog.text


def test_a_stage_that_minutes_leave_out_is_told_of(monkeypatch, caplog):
    """Where they allow too few steps before it; not where they suffice, nor where steps alone leave it out."""
    for minutes, start, runs, told in (
        (2.0, "start.pt", False, True),
        (20.0, "start.pt", True, False),
        (None, "start.pt", True, False),
        (2.0, None, False, False),
    ):
        caplog.clear()
        assert ("distilled" in fit(monkeypatch, start=start, minutes=minutes)) == runs
        assert ("the third stage, distilling, is left out: --minutes allow less than 50 steps" in caplog.text) == told


def test_a_network_is_not_fitted_to_noise_that_is_not_known(monkeypatch):
    """Then, and with little effort, the starting network is compared; without one there is nothing to fall back to."""
    assert fit(monkeypatch, reliable=False) == ["blind", "measured with network", "start.pt None"]
    assert fit(monkeypatch, only_settle=True) == ["blind", "measured with network", "start.pt None"]
    assert fit(monkeypatch, reliable=False, start=None)[2] == "recorrupted"


def test_the_model_lies_between_the_starting_network_and_the_fitted_one(monkeypatch):
    """As far from the start as is asked for; the share is refused before anything runs if it means nothing."""
    assert fit(monkeypatch, fit_share=0.75)[-1] == "distilled.pt slab 0.75 from start.pt"
    for wrong in (-0.1, 1.5):
        with pytest.raises(SettingError, match=f"fit_share {wrong}: give a number from 0"):
            fit(monkeypatch, fit_share=wrong)


def test_an_effort_is_more_steps_on_a_gpu():
    """By name and device; an unknown name is refused."""
    efforts = {"standard": {"steps": 3, "steps_cuda": 15, "only_settle": False, "mirrors": True}}
    assert choose_effort(efforts, "standard", torch.device("cpu")) == Effort(3, False, True)
    assert choose_effort(efforts, "standard", torch.device("cuda")).steps == 15
    with pytest.raises(SettingError, match="effort is 'slow'"):
        choose_effort(efforts, "slow", torch.device("cpu"))


def test_the_word_none_is_random_weights():
    """MONAI's command line has no other way to say it."""
    assert starting_checkpoint("none") is starting_checkpoint(None) is None
    assert starting_checkpoint("start.pt") == "start.pt"
