"""What the surrogate is told of a race, and what it makes of the scores."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from autobatch.core.plan import Config, Direction, Plan
from autobatch.searching.schedulers.observations import denoised_scores, observations
from autobatch.searching.trials import Ladder, Role, State, Trial
from autobatch.searching.verdict.confirmation import judge

from ...helpers.histories import history


def trial(
    number: int, lr: float, *scores: float, role: Role = "search", batch: int = 64, state: State | None = None
) -> Trial:
    """A trial with these scores at the first rungs; complete with three, failed with none unless said."""
    ended: State = "failed" if not scores else "complete" if len(scores) == 3 or role == "confirmation" else "paused"
    outcome: Literal["ok", "diverged"] = "diverged" if (state or ended) == "failed" else "ok"
    steps = (100,) if role == "confirmation" else (12, 50, 100)
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=batch), lr=lr),
        seed=number,
        total_steps=100,
        role=role,
        origin="a test",
        state=state or ended,
        scores=tuple(zip(steps, scores, strict=False)),
        outcome=outcome,
    )


def test_each_score_is_seen_at_its_rung_and_a_failure_at_the_one_it_did_not_reach() -> None:
    trials = [
        trial(0, 0.01, 0.2, 0.4, 0.6, role="baseline"),
        trial(1, 0.02, 0.3),
        trial(2, 0.04),
        trial(3, 0.03, 0.1, state="failed"),
        trial(4, 0.01, 0.7, role="confirmation", batch=128),
    ]
    seen = observations(history(trials), 64)
    assert [(o.share, o.score) for o in seen] == [
        *((1 / 8, 0.2), (1 / 2, 0.4), (1.0, 0.6)),
        (1 / 8, 0.3),
        (1 / 8, 0.1),  # the worst seen
        *((1 / 8, 0.1), (1 / 2, 0.1)),
        (1.0, 0.7),
    ]
    assert seen[0].rate == math.log(0.01)
    assert seen[-1].batch == 7.0
    assert seen[-1].rate == pytest.approx(math.log(0.01) - 0.5 * math.log(2))


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_whoever_was_lucky_is_pulled_back_in_either_direction(direction: Direction) -> None:
    """Rates that are about as good, one of which had a lucky seed at the end only."""
    sign = 1 if direction == "maximize" else -1
    noise = np.array([0.0, -0.005, 0.029, -0.005, 0.0, 0.005, -0.005, 0.005, 0.003])
    rates = 0.1 * 1.2 ** np.arange(9)
    truth = 0.8 + 0.004 * np.arange(9)
    trials = [
        trial(0, 0.001, sign * 0.1, sign * 0.3, sign * 0.4, role="baseline"),
        *(
            trial(n, float(lr), sign * 0.4, sign * (t - 0.1), sign * (t + e))
            for n, (lr, t, e) in enumerate(zip(rates, truth, noise, strict=True), start=1)
        ),
    ]
    assert trials[3].final_score == max((t.final_score or 0.0 for t in trials), key=lambda score: sign * score)
    freed = denoised_scores(history(trials, direction))
    assert set(freed) == set(range(10))
    of_rates = np.array([freed[n] for n in range(1, 10)])
    assert (of_rates - truth).std() < 0.7 * noise.std()
    verdict = judge(history(trials, direction))
    assert verdict.finalist is not None
    assert verdict.finalist.lr > rates[2]
    assert verdict.lucky == trials[3].config
    assert verdict.passed_over == ()


def test_only_what_the_search_trained_to_its_end_has_such_a_score() -> None:
    trials = [
        trial(0, 0.01, 0.2, 0.4, 0.6, role="baseline"),
        trial(1, 0.02, 0.3),
        trial(2, 0.04),
        trial(3, 0.03, 0.3, 0.5, 0.7),
        trial(4, 0.03, 0.1, role="confirmation"),
    ]
    assert set(denoised_scores(history(trials))) == {0, 3}
    assert denoised_scores(history(trials[1:3])) == {}
    assert denoised_scores(history(trials)) == denoised_scores(history(trials[:-1]))


def test_of_very_many_trials_those_that_scored_best_are_enough() -> None:
    rates = np.geomspace(1e-3, 1.0, 200)
    trials = [trial(0, 0.0005, 0.0, 0.1, 0.2, role="baseline")]
    for number, lr in enumerate(rates, start=1):
        end = 0.9 - 0.05 * math.log(lr / 0.1) ** 2
        trials.append(trial(number, float(lr), end - 0.3, end - 0.1, end))
    freed = denoised_scores(history(trials))
    assert len(freed) == 64
    assert 0 in freed
    best = max(trials, key=lambda t: t.final_score or 0.0)
    assert freed[best.number] == pytest.approx(best.final_score, abs=0.01)
    verdict = judge(history(trials))
    assert verdict.finalist is not None
    assert verdict.finalist.lr == pytest.approx(0.1, rel=0.3)


def test_a_ladder_without_its_first_rung_puts_the_scores_where_they_are() -> None:
    two = trial(0, 0.01, 0.4, 0.6, role="baseline", state="complete")
    seen = observations(history([two], ladder=Ladder(shares=(1 / 2, 1.0))), 64)
    assert [o.share for o in seen] == [1 / 2, 1.0]
