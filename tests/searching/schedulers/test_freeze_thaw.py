"""What the freeze-thaw search does next, on trials made up for it and on a whole race."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autobatch.core.plan import Config, Direction, Plan
from autobatch.searching.schedulers.freeze_thaw import FILLERS, choose
from autobatch.searching.space import Space, same_config
from autobatch.searching.trials import Trial

from ...helpers.histories import history

SPACE = Space(effective_batch_sizes=(32, 64, 128, 256), lr_low=1e-5, lr_high=1e-1, reference_batch=128)


def trial(number: int, batch: int, lr: float, *scores: float) -> Trial:
    """A trial with these scores at its first rungs."""
    steps = (10, 40, 80)
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=batch), lr=lr),
        seed=number,
        total_steps=80,
        role="baseline" if number == 0 else "search",
        origin="a test",
        state="complete" if len(scores) == len(steps) else "paused",
        scores=tuple(zip(steps, scores, strict=False)),
    )


def race() -> list[Trial]:
    """A baseline, and trials over the learning rate of which the middle one is best by far."""
    lrs = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-2, 3e-5)
    scores = (0.1, 0.5, 0.9, 0.5, 0.1, 0.3, 0.3)
    return [trial(0, 32, 3e-5, 0.2, 0.25, 0.3), *(trial(1 + i, 128, lr, scores[i]) for i, lr in enumerate(lrs))]


def next_of(trials: list[Trial], direction: Direction = "maximize", **changes: Any) -> object:
    known: dict[str, Any] = {
        "resumable": [t for t in trials if t.state == "paused"],
        "may_start": True,
        "seed": 0,
    }
    return choose(history(trials, direction), SPACE, **(known | changes))


def test_the_best_paused_trial_goes_on_where_nothing_may_start() -> None:
    chosen = next_of(race(), may_start=False)
    assert isinstance(chosen, Trial)
    assert chosen.number == 3


def test_there_is_nothing_to_do_where_nothing_may_start_or_resume() -> None:
    assert next_of(race(), may_start=False, resumable=[]) is None


def test_the_first_configurations_fill_the_space() -> None:
    trials = [trial(0, 32, 1e-4, 0.2, 0.25, 0.3)]
    while len(trials) < FILLERS:
        chosen = next_of(trials)
        assert isinstance(chosen, tuple)
        trials.append(trial(len(trials), *chosen, 0.5))
    assert len({t.config.plan.batch_size for t in trials}) >= 3
    rates = sorted(SPACE.scaled_lr(t.config) for t in trials)
    assert rates[-1] / rates[0] >= 1e2  # of the four decades that there are


@pytest.mark.parametrize("count", range(FILLERS, FILLERS + 4))
def test_nothing_is_proposed_twice_or_out_of_bounds(count: int) -> None:
    trials = race()[: count + 1]
    for _ in range(8):
        chosen = next_of(trials, resumable=[])
        assert isinstance(chosen, tuple)
        batch, lr = chosen
        config = Config(plan=Plan(batch_size=batch), lr=lr)
        assert batch in SPACE.effective_batch_sizes
        assert SPACE.lr_low <= SPACE.scaled_lr(config) <= SPACE.lr_high * (1 + 1e-9)
        assert not any(same_config(config, t.config) for t in trials)
        trials.append(trial(len(trials), batch, lr, 0.4))


def test_minimizing_mirrors_maximizing() -> None:
    mirrored = [replace(t, scores=tuple((step, -score) for step, score in t.scores)) for t in race()]
    cases: list[dict[str, Any]] = [{}, {"may_start": False}, {"resumable": []}]
    for changes in cases:
        one, other = next_of(race(), **changes), next_of(mirrored, "minimize", **changes)
        assert (one.number if isinstance(one, Trial) else one) == (other.number if isinstance(other, Trial) else other)


def test_a_rate_at_which_training_blew_up_is_kept_away_from() -> None:
    """With the best rate's neighbour diverged, what is proposed lies on the other side."""
    trials = race()
    trials[4] = replace(trials[4], state="failed", outcome="diverged", scores=())
    trials[6] = replace(trials[6], state="failed", outcome="diverged", scores=())
    chosen = next_of(trials, resumable=[])
    assert isinstance(chosen, tuple)
    assert SPACE.scaled_lr(Config(plan=Plan(batch_size=chosen[0]), lr=chosen[1])) < 1e-2
