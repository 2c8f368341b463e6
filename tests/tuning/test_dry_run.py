"""`--dry-run`: the numbers of the run, from a task that was opened; and what it says of them."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from autobatch.core.plan import Config, Plan
from autobatch.render.dry_run_content import dry_run_document
from autobatch.render.terminal import print_document
from autobatch.searching.budget.costs import horizon_s
from autobatch.searching.budget.ledger import Ledger
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tuning import pipeline, shares, stages
from autobatch.tuning.dry_run import DryRun, dry_run_of

MIB = 1 << 20


def planned(budget_s: float = 600.0, runner: SimRunner | None = None, **changes: Any) -> DryRun:
    runner = runner or SimRunner()
    settings: dict[str, Any] = {"train_time_s": None, "search": "auto", "seed": 0, "max_trials": None}
    return dry_run_of(runner, Ledger(budget_s, runner.clock), **settings | changes)


def shown(plan: DryRun) -> str:
    file = StringIO()
    print_document(dry_run_document(plan.to_json()), Console(file=file, width=80))
    assert all(len(line) <= 80 for line in file.getvalue().splitlines())
    return file.getvalue()


@given(st.floats(60, 1e6))
def test_the_stages_share_the_whole_budget(budget_s: float) -> None:
    plan = planned(budget_s)
    assert sum(stage.seconds for stage in plan.stages) == pytest.approx(budget_s, rel=1e-6)
    by_name = {stage.stage: stage.seconds for stage in plan.stages}
    left_s = budget_s - by_name["start-up"] - by_name["report"]
    for stage, share in (("memory", shares.memory_s), ("profile", shares.profile_s), ("range test", shares.sweep_s)):
        assert by_name[stage] == pytest.approx(share(left_s), rel=1e-4)
        left_s -= by_name[stage]


def test_the_horizon_is_that_of_the_race() -> None:
    plan = planned(600.0)
    race_s = next(stage.seconds for stage in plan.stages if stage.stage == "race")
    assert plan.step_s is not None
    assert plan.horizon_s == horizon_s(race_s, None, eval_s=plan.eval_s or 0.0, baseline_step_s=plan.step_s)
    assert plan.full_trials == pytest.approx(16)
    assert plan.fresh_seeds == 2
    assert planned(600.0, train_time_s=3.0).horizon_s == 3.0


def test_a_budget_that_compares_nothing_says_so_and_which_would() -> None:
    plan = planned(0.5)
    assert (plan.horizon_s, plan.full_trials, plan.fresh_seeds) == (None, None, None)
    (note,) = (note for note in plan.notes if "nothing would be compared" in note)
    needed = note.rpartition("Give at least ")[2]
    assert planned(float(needed.removesuffix("s"))).horizon_s is not None
    assert "nothing would be compared, only measured" in " ".join(shown(plan).split())


def test_what_is_given_to_a_stage_is_what_the_run_gives_it() -> None:
    assert vars(pipeline)["memory_s"] is shares.memory_s
    assert vars(pipeline)["profile_s"] is shares.profile_s
    assert vars(stages)["sweep_s"] is shares.sweep_s


def test_a_baseline_that_does_not_fit_leaves_t_open() -> None:
    runner = SimRunner(capacity_bytes=250 * MIB)
    plan = planned(600.0, runner)
    assert (plan.step_s, plan.horizon_s, plan.full_trials) == (None, None, None)
    assert "A batch of 32 did not run" in shown(plan)


def test_validation_data_without_a_length_is_not_timed() -> None:
    plan = planned(600.0, SimRunner(known=sim_facts(val_size=None)))
    assert plan.eval_s is None
    assert plan.horizon_s is not None
    assert "The validation data has no length" in " ".join(shown(plan).split())


def test_a_baseline_that_accumulates_takes_as_many_times_as_long() -> None:
    once = planned(600.0).step_s
    four = Config(plan=Plan(batch_size=32, accumulation_steps=4), lr=1e-3)
    many = planned(600.0, SimRunner(known=sim_facts(baseline=four))).step_s
    assert once is not None
    assert many == pytest.approx(4 * once, rel=0.5)


def test_it_says_what_would_run_and_what_that_buys() -> None:
    told = shown(planned(600.0, train_time_s=36_000.0, seed=7, max_trials=1, search="tpe"))
    text = " ".join(told.split())
    assert "search tpe, seed 7, at most 1 configuration" in text
    assert "baseline batch_size 32, accumulation_steps 1, lr 0.001, fp32" in text
    assert "some 16 full trainings of that length, 2 of them on a fresh seed each." in text
    assert "That is shorter than your training of 10h 00m: the report extrapolates." in text
    for stage in ("start-up", "memory", "profile", "range test", "race", "report"):
        assert f"\n  {stage} " in told
