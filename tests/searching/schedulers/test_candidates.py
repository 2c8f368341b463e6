"""What a race may still try: on a grid every cell before it ends, and nothing twice at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan, Precision
from autobatch.searching.budget.costs import Costs
from autobatch.searching.limits import MemoryLimits
from autobatch.searching.schedulers.base import Budget, Start
from autobatch.searching.schedulers.candidates import Candidates
from autobatch.searching.schedulers.halving import Halving
from autobatch.searching.schedulers.warm_starts import runnable
from autobatch.searching.space import Space, same_config
from autobatch.searching.trials import Ladder, Trial

from ...helpers.histories import history

SIZES = (16, 32, 64)


class Times:
    """A profile of which only the plans are asked for."""

    knee_batch_size = 32

    def step_s(self, batch_size: int) -> float:
        return 1.0

    def plan_for(self, effective_batch: int, max_batch: int, precision: Precision, max_micro_batch: int) -> Plan | None:
        return Plan(batch_size=effective_batch) if effective_batch <= max_batch else None


def costs(horizon_s: float) -> Costs:
    return Costs(times=Times(), ladder=Ladder(), horizon_s=horizon_s, eval_s=1.0)


def candidates(lrs: tuple[float, ...] = (), max_batch: int = 64, **changes: Any) -> Candidates:
    return Candidates(
        space=Space(effective_batch_sizes=SIZES, lr_low=1e-4, lr_high=1e-1, reference_batch=32, lrs=lrs),
        limits=MemoryLimits(times=Times(), precision="fp32", max_batch=max_batch, max_micro_batch=max_batch),
        **changes,
    )


def new(ours: Candidates, trials: Iterable[Trial]) -> Config | None:
    """What successive halving would start, where nothing can be promoted."""
    found = Halving(ours).suggest(history(trials), Budget(costs=costs(8.0), left_s=11.0))
    return found.config if isinstance(found, Start) else None


def tried(number: int, config: Config, state: str = "paused") -> Trial:
    return Trial(
        number=number,
        config=config,
        seed=number,
        total_steps=80,
        role="search",
        origin="a test",
        state=state,  # type: ignore[arg-type]
        scores=((10, config.lr),) if state == "paused" else (),
    )


@settings(max_examples=5)
@given(st.integers(0, 1000))
def test_on_a_grid_every_cell_is_tried_before_the_end(seed: int) -> None:
    lrs = (1e-3, 3e-3, 1e-2)
    ours = candidates(lrs, seed=seed)
    trials: list[Trial] = []
    while (config := new(ours, trials)) is not None:
        assert config not in [trial.config for trial in trials]
        trials.append(tried(len(trials), config))
        assert not ours.is_exhausted
    assert {(t.config.plan.batch_size, t.config.lr) for t in trials} == {(size, lr) for size in SIZES for lr in lrs}
    assert ours.is_exhausted


def test_sizes_that_no_longer_fit_are_not_proposed() -> None:
    ours = candidates(max_batch=32)
    assert {new(ours, [tried(0, Config(plan=Plan(batch_size=16), lr=n * 1e-3))]) is None for n in (1, 2)} == {False}
    found = [new(ours, [tried(n, Config(plan=Plan(batch_size=16), lr=1e-3)) for n in range(count)]) for count in (3, 7)]
    assert all(config is not None and config.plan.batch_size <= 32 for config in found)
    ours.limits.lower_below(Plan(batch_size=16))
    assert new(ours, []) is None


@settings(max_examples=4)
@given(st.integers(0, 1000))
def test_workers_that_ask_at_once_get_what_can_be_told_apart(seed: int) -> None:
    ours = candidates(seed=seed)
    trials = [tried(n, Config(plan=Plan(batch_size=SIZES[n % 3]), lr=1e-3 * 1.1**n)) for n in range(12)]
    for _ in range(48):
        config = new(ours, trials)
        assert config is not None
        trials.append(tried(len(trials), config, "running"))
    under_way = [trial.config for trial in trials if trial.state == "running"]
    assert not any(same_config(a, b) for n, a in enumerate(under_way) for b in under_way[:n])


def test_ten_failures_in_a_row_or_too_many_trials_end_the_candidates() -> None:
    failed = [tried(n, Config(plan=Plan(batch_size=16), lr=1e-3 * (n + 1)), "failed") for n in range(10)]
    assert new(candidates(), failed[:9]) is not None
    assert new(candidates(), failed) is None
    assert new(candidates(most_trials=5), failed[:5]) is None


@pytest.mark.parametrize(("max_batch", "fits"), [(64, True), (32, False)])
def test_what_an_earlier_run_found_is_tried_where_it_fits(max_batch: int, fits: bool) -> None:
    earlier = Config(plan=Plan(batch_size=16, accumulation_steps=4), lr=1e-3)
    starts, notes = runnable([(earlier, "the report of June")], candidates(max_batch=max_batch).limits, costs(100.0))
    if fits:
        assert starts == [(Config(plan=Plan(batch_size=64), lr=1e-3), "the report of June")]
        assert notes == []
    else:
        assert (starts, notes) == ([], ["the report of June was not tried: batch 64 does not fit here"])


@pytest.mark.parametrize(("horizon_s", "steps"), [(32.5, None), (31.5, "31 steps"), (1.5, "1 step"), (0.1, "1 step")])
def test_what_an_earlier_run_found_is_left_out_where_too_few_steps_fit(horizon_s: float, steps: str | None) -> None:
    earlier = (Config(plan=Plan(batch_size=64), lr=1e-3), "the report of June")  # a step takes a second
    starts, notes = runnable([earlier], candidates().limits, costs(horizon_s))
    if steps is None:
        assert (starts, notes) == ([earlier], [])
    else:
        note = f"the report of June was not tried: batch 64 takes no more than {steps} in a full trial here"
        assert (starts, notes) == ([], [note])


@given(st.integers(1, 64), st.integers(1, 4))
def test_what_ran_out_of_memory_is_not_thought_to_fit(size: int, accumulation_steps: int) -> None:
    limits = MemoryLimits(times=Times(), precision="fp32", max_batch=64, max_micro_batch=64)
    plan = Plan(batch_size=size, accumulation_steps=accumulation_steps)
    assert limits.holds(plan)
    limits.lower_below(plan)
    assert not limits.holds(plan)
    assert limits.holds(Plan(batch_size=64)) == (accumulation_steps > 1)  # gradients are kept beside it
    assert size == 1 or limits.holds(replace(plan, batch_size=size - 1))
