"""When a difference on fresh seeds is believed, and how often that goes wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.plan import Config, Direction, Plan, RungOutcome
from autobatch.searching.confirmation import (
    MOST_SEEDS,
    Verdict,
    judge,
    leads_clearly,
    next_seed_for,
    pooled_sigma,
    variance_of_the_top,
)
from autobatch.searching.trials import Role, Trial


def config(number: int) -> Config:
    return Config(plan=Plan(batch_size=32), lr=1e-3 * (1 + number))


def trial(number: int, of: Config, role: Role, score: float | None, outcome: RungOutcome = "diverged") -> Trial:
    """A trial trained to the end, or one that failed with `outcome`."""
    state: Literal["complete", "failed"] = "failed" if score is None else "complete"
    return Trial(
        number=number,
        config=of,
        seed=number,
        total_steps=100,
        role=role,
        origin="a test",
        state=state,
        scores=() if score is None else ((100, score),),
        outcome=outcome if score is None else "ok",
    )


def searched(baseline: float | None, *others: float) -> list[Trial]:
    """The trials of a search, before anything is confirmed."""
    return [
        trial(0, config(0), "baseline", baseline),
        *(trial(n, config(n), "search", score) for n, score in enumerate(others, start=1)),
    ]


def confirmed(trials: list[Trial], of: Config, *scores: float | None) -> list[Trial]:
    return trials + [trial(len(trials) + n, of, "confirmation", score) for n, score in enumerate(scores)]


def race(rng: random.Random, gain: float, candidates: int = 6, reserved: int = 2, extra: int = 2) -> Verdict:
    """A race whose seeds have a standard deviation of 1 and whose candidates are all better by `gain`."""
    trials = searched(rng.gauss(0, 1), *(rng.gauss(gain, 1) for _ in range(candidates)))
    for _ in range(reserved + extra):
        chosen = next_seed_for(trials, "maximize", reserved)
        if chosen is None:
            break
        trials = confirmed(trials, chosen, rng.gauss(0 if chosen == config(0) else gain, 1))
    return judge(trials, "maximize")


@pytest.mark.parametrize(("gain", "least", "most"), [(-2, 0, 0.02), (-1, 0, 0.07), (0, 0.1, 0.27), (4, 0.98, 1)])
def test_the_finalist_wins_as_often_as_its_gain_deserves(gain: float, least: float, most: float) -> None:
    wins = sum(race(random.Random(f"{gain} {number}"), gain).finalist_wins for number in range(400))
    assert least <= wins / 400 <= most


def test_only_fresh_seeds_are_reported() -> None:
    verdict = judge(confirmed(searched(0.5, 0.9, 0.6), config(1), 0.7, 0.72), "maximize")
    assert verdict.finalist == config(1)
    assert verdict.finalist_score is not None
    assert verdict.finalist_score.scores == (0.7, 0.72)
    assert verdict.finalist_score.mean == pytest.approx(0.71)
    assert verdict.difference == pytest.approx(0.21)


def test_the_standard_error_counts_the_seeds_of_both_sides() -> None:
    trials = confirmed(confirmed(searched(0.5, 0.9), config(1), 0.7, 0.8), config(0), 0.6)
    verdict = judge(trials, "maximize")
    assert verdict.sigma is not None
    assert verdict.stderr == pytest.approx(verdict.sigma.value * math.sqrt(1 / 2 + 1 / 2))
    assert verdict.baseline_score is not None
    assert verdict.baseline_score.scores == (0.5, 0.6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7), st.lists(st.floats(-1, 1), min_size=1, max_size=3))
def test_minimizing_mirrors_maximizing(scores: list[float], fresh: list[float]) -> None:
    def ask(direction: Direction, sign: int) -> Verdict:
        trials = searched(*(sign * score for score in scores))
        finalist = judge(trials, direction).finalist
        return judge(confirmed(trials, finalist, *(sign * s for s in fresh)) if finalist else trials, direction)

    up, down = ask("maximize", 1), ask("minimize", -1)
    assert up.finalist == down.finalist
    assert up.finalist_wins == down.finalist_wins
    assert up.difference == (down.difference if down.difference is None else pytest.approx(down.difference))


def test_a_baseline_that_nothing_scored_above_needs_no_confirmation() -> None:
    trials = searched(0.9, 0.8, 0.7)
    assert judge(trials, "maximize").finalist is None
    assert not judge(trials, "maximize").finalist_wins
    assert next_seed_for(trials, "maximize", 2) is None


def test_the_reserved_seeds_go_to_the_finalist() -> None:
    trials = searched(0.5, 0.9, 0.6)
    assert next_seed_for(trials, "maximize", 2) == config(1)
    assert next_seed_for(confirmed(trials, config(1), 0.9), "maximize", 2) == config(1)


def test_a_clear_difference_needs_no_more_seeds() -> None:
    trials = confirmed(searched(0.1, 0.9, 0.89, 0.88), config(1), 0.9, 0.89)
    assert judge(trials, "maximize").is_settled
    assert next_seed_for(trials, "maximize", 2) is None


def test_a_close_difference_gets_more_seeds_on_the_side_that_has_fewer() -> None:
    trials = confirmed(searched(0.5, 0.6), config(1), 0.45, 0.56)
    assert next_seed_for(trials, "maximize", 2) == config(0)
    trials = confirmed(trials, config(0), 0.51)
    assert next_seed_for(trials, "maximize", 2) == config(1)


def test_seeds_come_to_an_end_however_close_it_stays() -> None:
    trials = searched(0.5, 0.6)
    for _ in range(100):
        chosen = next_seed_for(trials, "maximize", 2)
        if chosen is None:
            break
        trials = confirmed(trials, chosen, 0.5 + 0.1 * (sum(t.config == chosen for t in trials) % 2))
    assert sum(t.config == config(0) for t in trials) <= MOST_SEEDS
    assert sum(t.role == "confirmation" and t.config == config(1) for t in trials) == MOST_SEEDS


def test_a_lead_is_clear_where_it_dwarfs_what_a_seed_changes() -> None:
    assert leads_clearly(searched(0.1, 0.90, 0.89, 0.91), "maximize")
    assert leads_clearly(searched(-0.1, -0.90, -0.89, -0.91), "minimize")
    assert not leads_clearly(searched(0.87, 0.90, 0.89, 0.91), "maximize")
    assert not leads_clearly(searched(0.1, 0.90), "maximize")  # nothing tells what a seed changes
    assert not leads_clearly(searched(0.95, 0.90, 0.89, 0.91), "maximize")
    assert not leads_clearly(searched(None, 0.90, 0.89, 0.91), "maximize")


def test_equal_configurations_hardly_ever_lead_clearly() -> None:
    rng = random.Random(0)
    races = [searched(rng.gauss(0, 1), *(rng.gauss(0, 1) for _ in range(12))) for _ in range(2000)]
    assert sum(leads_clearly(trials, "maximize") for trials in races) / len(races) <= 0.05


@pytest.mark.parametrize("outcome", ["diverged", "oom", "crashed"])
def test_a_finalist_that_fails_on_a_fresh_seed_gives_way_to_the_runner_up(outcome: RungOutcome) -> None:
    trials = searched(0.5, 0.9, 0.6)
    trials.append(trial(3, config(1), "confirmation", None, outcome))
    verdict = judge(trials, "maximize")
    assert verdict.finalist == config(2)
    assert verdict.gave_way == (config(1),)
    assert next_seed_for(trials, "maximize", 2) == config(2)


def test_running_out_of_time_says_nothing_against_a_finalist() -> None:
    trials = searched(0.5, 0.9, 0.6)
    trials.append(trial(3, config(1), "confirmation", None, "timeout"))
    assert judge(trials, "maximize").finalist == config(1)


def test_anything_finite_beats_a_baseline_that_failed() -> None:
    trials = searched(None, 0.2)
    assert next_seed_for(trials, "maximize", 1) == config(1)
    trials = confirmed(trials, config(1), 0.15)
    assert judge(trials, "maximize").finalist_wins
    assert next_seed_for(trials, "maximize", 1) is None


def test_sigma_is_the_pooled_one_where_only_repeats_are_there() -> None:
    sigma = pooled_sigma([[1.0, 3.0], [5.0, 5.0, 8.0]], [], "maximize")
    assert sigma is not None
    assert sigma.value == pytest.approx(math.sqrt((2 + 6) / 3))
    assert (sigma.repeats, sigma.spread_of) == (3, 0)
    assert "3 degrees of freedom" in sigma.source


def test_sigma_is_unknown_where_nothing_was_repeated() -> None:
    assert pooled_sigma([[1.0], []], [0.5, 0.6], "maximize") is None


def test_the_spread_of_equal_configurations_estimates_the_noise_of_a_seed() -> None:
    rng = random.Random(0)
    draws = [pooled_sigma([], [rng.gauss(0, 1) for _ in range(12)], "maximize") for _ in range(2000)]
    mean_square = sum(sigma.value**2 for sigma in draws if sigma) / len(draws)
    # A finite sample's top third is a little wider than the normal's: the estimate errs upwards, as it should.
    assert 0.9 <= mean_square <= 1.5


def test_the_top_of_a_normal_sample_is_narrower_than_the_whole() -> None:
    assert variance_of_the_top(1.0) == 1.0
    assert variance_of_the_top(0.5) == pytest.approx(1 - 2 / math.pi)  # the half-normal distribution
    assert variance_of_the_top(0.1) < variance_of_the_top(1 / 3) < variance_of_the_top(0.5)


def test_a_baseline_that_fails_under_a_fresh_seed_is_not_asked_again() -> None:
    trials = confirmed(searched(0.5, 0.6), config(1), 0.45, 0.56)
    trials.append(replace(trial(9, config(0), "confirmation", None), number=4))
    assert next_seed_for(trials, "maximize", 2) == config(1)
