"""What Optuna's samplers are shown, and what they propose."""

from __future__ import annotations

import math
from dataclasses import replace

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from autobatch.core.plan import Config, Direction, Plan
from autobatch.searching.schedulers.optuna_sampler import propose
from autobatch.searching.space import Space
from autobatch.searching.trials import Trial

from ...helpers.histories import history

SPACE = Space(effective_batch_sizes=(32, 64, 128, 256), lr_low=1e-5, lr_high=1e-1, reference_batch=128)


def paused(number: int, score: float, batch: int = 64, lr: float = 1e-3) -> Trial:
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=batch), lr=lr),
        seed=number,
        total_steps=80,
        role="search",
        origin="a test",
        state="paused",
        scores=((10, score),),
    )


def finished(trial: Trial, *scores: float) -> Trial:
    return replace(trial, state="complete", scores=(trial.scores[0], *zip((40, 80), scores, strict=True)))


def race(count: int) -> list[Trial]:
    """A baseline and `count` trials whose score rises with the learning rate."""
    baseline = replace(finished(paused(0, 0.1), 0.2, 0.3), role="baseline")
    searched = [paused(n, n / 40, batch=32 * 2 ** (n % 4), lr=1e-4 * 1.3**n) for n in range(1, count + 1)]
    return [baseline, *searched]


class Watcher(optuna.samplers.RandomSampler):
    """A sampler that keeps what it was shown."""

    seen: tuple[optuna.trial.FrozenTrial, ...] = ()

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        self.seen = tuple(t for t in study.get_trials() if t.number != trial.number)


def shown(trials: list[Trial], direction: Direction = "maximize") -> tuple[optuna.trial.FrozenTrial, ...]:
    watcher = Watcher(seed=0)
    propose(history(trials, direction), SPACE, seed=0, sampler=watcher)
    return watcher.seen


@settings(max_examples=10)
@given(st.integers(0, 20), st.integers(0, 2**31))
def test_a_proposal_lies_in_the_space_and_is_a_function_of_what_was_seen(count: int, seed: int) -> None:
    trials = race(count)
    batch, lr = propose(history(trials), SPACE, seed=seed)
    assert (batch, lr) == propose(history(trials), SPACE, seed=seed)
    assert batch in SPACE.effective_batch_sizes
    assert SPACE.lr_low * 0.999 <= lr * math.sqrt(128 / batch) <= SPACE.lr_high * 1.001


def test_minimizing_proposes_what_maximizing_the_negative_does() -> None:
    trials = race(16)
    mirrored = [replace(t, scores=tuple((step, -score) for step, score in t.scores)) for t in trials]
    assert propose(history(trials), SPACE, seed=3) == propose(history(mirrored, "minimize"), SPACE, seed=3)


def test_proposals_follow_the_scores() -> None:
    """Trials at three high rates scored best, so that most proposals lie in the upper half of the space."""
    trials = [paused(n, 0.9 if n % 5 == 0 else 0.1, lr=3e-2 if n % 5 == 0 else 1e-4 * 1.1**n) for n in range(24)]
    rates = [propose(history(trials), SPACE, seed=seed)[1] for seed in range(10)]
    assert sum(rate > 3e-3 for rate in rates) >= 7


def test_a_paused_trial_is_shown_as_pruned_at_its_rung() -> None:
    (trial,) = shown([paused(0, 0.7, batch=32, lr=1e-3)])
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {125: 0.7}
    assert trial.params == {"batch": 0, "lr": pytest.approx(2e-3)}


def test_a_failed_trial_is_shown_with_the_worst_score_so_far() -> None:
    failed = replace(paused(2, 0.0), state="failed", scores=(), outcome="diverged")
    assert shown([paused(0, 0.7), paused(1, 0.4), failed])[-1].intermediate_values == {125: 0.4}
    assert shown([paused(0, 0.7), paused(1, 0.4), failed], "minimize")[-1].intermediate_values == {125: 0.7}


def test_what_is_under_way_elsewhere_is_shown_as_nothing_to_go_after() -> None:
    """Else workers that ask at once are told the same, and train what cannot be told apart."""
    under_way = replace(paused(2, 0.0), state="running", scores=())
    (*_, last) = shown([paused(0, 0.7), paused(1, 0.4), under_way])
    assert (last.state, last.intermediate_values) == (TrialState.PRUNED, {125: 0.4})
    promoted = replace(paused(2, 0.6), state="running")
    assert shown([paused(0, 0.7), promoted])[-1].intermediate_values == {125: 0.6}


def test_a_baseline_that_halving_would_have_stopped_is_not_shown_as_complete() -> None:
    baseline, *others = race(8)
    assert shown([baseline, *others])[0].state == TrialState.PRUNED
    best = replace(finished(paused(0, 0.9), 0.95, 0.99), role="baseline")
    promoted = replace(others[0], scores=((10, 0.2), (40, 0.5)))
    assert shown([best, promoted, *others[1:]])[0].state == TrialState.COMPLETE


def test_confirmations_are_not_shown() -> None:
    assert len(shown([*race(3), replace(finished(paused(4, 0.1), 0.2, 0.3), role="confirmation")])) == 4


def test_a_configuration_outside_the_space_is_shown_at_its_edge() -> None:
    (trial,) = shown([paused(0, 0.7, batch=2048, lr=100.0)])
    assert trial.params == {"batch": 3, "lr": SPACE.lr_high}
