"""The contract of every search: what a race may rely on, whichever decides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Plan
from autobatch.errors import SettingError
from autobatch.searching.history import History
from autobatch.searching.schedulers import table
from autobatch.searching.schedulers.base import Budget, Resume, Scheduler, Start
from autobatch.searching.schedulers.candidates import MOST_FAILURES, Candidates
from autobatch.searching.schedulers.halving import Halving
from autobatch.searching.schedulers.switch import Switch
from autobatch.searching.schedulers.table import SEARCHES, scheduler_for
from autobatch.searching.schedulers.warm_starts import WarmStarts
from autobatch.searching.space import same_config
from autobatch.searching.trials import Trial

from ...helpers.histories import history
from ..test_search import race
from .test_candidates import SIZES, candidates, costs

WARM = (Config(plan=Plan(batch_size=32), lr=2e-3), "the report of June")
STEPS = (10, 40, 80)
FULL_S = 80.0  # a step takes a second

# Every search there is: those of the table, and those that are put together of others.
MAKERS: dict[str, Callable[[Candidates], Scheduler]] = {
    **{name: lambda ours, name=name: scheduler_for(name, ours) for name in SEARCHES},  # type: ignore[misc]
    "a sampler of Optuna's": lambda ours: scheduler_for(optuna.samplers.RandomSampler(seed=1), ours),
    "warm starts": lambda ours: WarmStarts(ours, [WARM], Halving(ours)),
    "a switch": lambda ours: Switch(Halving(ours), WarmStarts(ours, [WARM], Halving(ours)), 2.0),
}
every = pytest.mark.parametrize("name", MAKERS)


def trial(number: int, size: int, lr: float, state: str, scores: tuple[float, ...]) -> Trial:
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=size), lr=lr),
        seed=number,
        total_steps=STEPS[-1],
        role="search" if number else "baseline",
        origin="a test",
        state=state,  # type: ignore[arg-type]
        scores=tuple(zip(STEPS, scores, strict=False)),
        outcome="diverged" if state == "failed" else "ok",
    )


RUNGS = {"paused": (1, 2), "complete": (3, 3), "running": (0, 2), "dropped": (1, 2), "failed": (0, 2)}


@st.composite
def histories(draw: st.DrawFn) -> History:
    """A baseline that came to its end, and trials in every state."""
    trials = [trial(0, 32, 1e-3, "complete", (0.25, 0.5, 0.75))]
    for number in range(1, 1 + draw(st.integers(0, 7))):
        state = draw(st.sampled_from(sorted(RUNGS)))
        scores = draw(st.lists(st.floats(0, 1, width=16), min_size=RUNGS[state][0], max_size=RUNGS[state][1]))
        lr = 10 ** (-4 + 3 * ((0.3 + number * 0.618) % 1.0))
        trials.append(trial(number, draw(st.sampled_from(SIZES)), lr, state, tuple(scores)))
    return history(trials)


def budget(left_s: float, spent_s: float = 0.0) -> Budget:
    return Budget(costs=costs(FULL_S), left_s=left_s, spent_s=spent_s)


budgets = st.builds(budget, st.floats(-10, 200), st.sampled_from([0.0, 50 * FULL_S]))


@every
@settings(max_examples=15, deadline=None)
@given(seen=histories(), time=budgets, seed=st.integers(0, 100))
def test_a_suggestion_can_be_run_and_depends_on_nothing_else(name: str, seen: History, time: Budget, seed: int) -> None:
    ours = candidates(seed=seed, max_batch=32)
    found = MAKERS[name](ours).suggest(seen, time)
    assert found == MAKERS[name](candidates(seed=seed, max_batch=32)).suggest(seen, time)
    if isinstance(found, Start):
        assert time.may_start
        assert found.role in ("search", "warm start")
        assert found.origin
        assert ours.limits.holds(found.config.plan)
        assert found.config not in [one.config for one in seen.trials]
        running = [one.config for one in seen.trials if one.state == "running"]
        assert found.role == "warm start" or not any(same_config(found.config, other) for other in running)
    elif isinstance(found, Resume):
        paused = seen.trials[found.trial]
        assert paused.state == "paused"
        assert time.can_finish(paused)
    else:
        assert not any(one.state == "paused" and time.can_finish(one) for one in seen.trials)


@every
@settings(max_examples=8, deadline=None)
@given(seen=histories(), seed=st.integers(0, 100))
def test_the_direction_of_the_score_changes_no_suggestion(name: str, seen: History, seed: int) -> None:
    if name == "a sampler of Optuna's":
        return  # a sampler may do what it likes with the direction
    mirrored = [replace(t, scores=tuple((step, -score) for step, score in t.scores)) for t in seen.trials]
    up, down = (
        MAKERS[name](candidates(seed=seed)).suggest(one, budget(150.0)) for one in (seen, history(mirrored, "minimize"))
    )
    assert up == down


@every
def test_there_is_nothing_to_do_without_time(name: str) -> None:
    seen = history([trial(0, 32, 1e-3, "complete", (0.1, 0.2, 0.3)), trial(1, 16, 1e-3, "paused", (0.5,))])
    assert MAKERS[name](candidates()).suggest(seen, budget(1.0)) is None


@every
def test_no_more_is_started_than_is_wanted_and_nothing_after_failures_alone(name: str) -> None:
    first = trial(0, 32, 1e-3, "complete", (0.1, 0.2, 0.3))
    failed = [trial(n, 16, 1e-3 * (n + 1), "failed", ()) for n in range(1, 1 + MOST_FAILURES)]
    begun = replace(failed[0], config=WARM[0], role="warm start")
    assert isinstance(MAKERS[name](candidates(most_trials=2)).suggest(history([first]), budget(150.0)), Start)
    assert MAKERS[name](candidates(most_trials=2)).suggest(history([first, begun]), budget(150.0)) is None
    assert MAKERS[name](candidates()).suggest(history([first, begun, *failed[1:]]), budget(150.0)) is None


@every
def test_what_memory_does_not_hold_is_not_started(name: str) -> None:
    ours = candidates()
    scheduler = MAKERS[name](ours)
    ours.limits.lower_below(Plan(batch_size=32))
    seen = [trial(0, 32, 1e-3, "complete", (0.1, 0.2, 0.3))]
    for number in range(1, 5):
        found = scheduler.suggest(history(seen), budget(85.0))
        assert isinstance(found, Start)
        assert found.config.plan.batch_size == 16
        seen.append(trial(number, 16, found.config.lr, "complete", (0.1, 0.2, 0.1 * number)))
    ours.limits.lower_below(Plan(batch_size=16))
    assert scheduler.suggest(history(seen), budget(85.0)) is None


def test_warm_starts_come_first_once_each_and_in_order() -> None:
    ours = candidates()
    second = (Config(plan=Plan(batch_size=64), lr=1e-2), "the report of July")
    scheduler = WarmStarts(ours, [WARM, second], Halving(ours))
    seen = [trial(0, 32, 1e-3, "complete", (0.1, 0.2, 0.3))]
    for config, origin in (WARM, second):
        found = scheduler.suggest(history(seen), budget(150.0))
        assert found == Start(config=config, origin=origin, role="warm start")
        begun = trial(len(seen), config.plan.batch_size, config.lr, "complete", (0.1, 0.2, 0.3))
        seen.append(replace(begun, role="warm start"))
    found = scheduler.suggest(history(seen), budget(150.0))
    assert isinstance(found, Start)
    assert found.role == "search"


@pytest.mark.parametrize(("spent", "decides"), [(0.0, "first"), (3.9, "first"), (4.0, "then"), (9.0, "then")])
def test_a_switch_goes_over_after_so_many_full_trials(spent: float, decides: str) -> None:
    class Says(Scheduler):
        def __init__(self, word: str) -> None:
            self.word = word

        def suggest(self, history: History, budget: Budget) -> Start:
            return Start(config=WARM[0], origin=self.word)

    time = budget(150.0, spent * costs(FULL_S).full_trial_s)
    found = Switch(Says("first"), Says("then"), 4.0).suggest(history([]), time)
    assert isinstance(found, Start)
    assert found.origin == decides


def test_an_unknown_search_is_named_with_those_there_are() -> None:
    with pytest.raises(SettingError, match=rf"one of {', '.join(SEARCHES)}, or an optuna\.\S+; found 'gp'"):
        scheduler_for("gp", candidates())


def test_a_new_search_is_a_file_and_a_line_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A race runs it by its name and knows nothing else of it."""
    module: Any = ModuleType("autobatch.searching.schedulers.descent")

    class Descent(Scheduler):
        def __init__(self, ours: Candidates) -> None:
            self.ours = ours

        def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
            for paused in (one for one in history.trials if one.state == "paused" and budget.can_finish(one)):
                return Resume(trial=paused.number)
            lr = 1e-2 / len(history.trials)
            size = self.ours.space.effective_batch_sizes[0]
            return Start(config=self.ours.config(size, lr), origin="less again") if budget.may_start else None

    module.Descent = Descent
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(table.SEARCHES, "descent", "descent:Descent")
    result = race(sampler="descent").result
    searched = [one for one in result.trials if one.role == "search"]
    assert len(searched) > 3
    assert {one.origin for one in searched} == {"less again"}
    assert [one.config.lr for one in searched] == sorted((one.config.lr for one in searched), reverse=True)
    assert all(one.state == "complete" for one in searched)
