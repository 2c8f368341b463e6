"""When a difference on fresh seeds is believed, and how often that goes wrong."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.plan import Config, Direction, Plan
from autobatch.core.segment import SegmentOutcome
from autobatch.searching.trials import Role, Trial
from autobatch.searching.verdict.confirmation import (
    MOST_SEEDS,
    PROVEN,
    PROVEN_AGAIN,
    Verdict,
    is_close,
    judge,
    leads_clearly,
    next_seed_for,
)

from ...helpers.histories import history


def config(number: int) -> Config:
    return Config(plan=Plan(batch_size=32), lr=1e-3 * (1 + number))


def trial(number: int, of: Config, role: Role, score: float | None, outcome: SegmentOutcome = "diverged") -> Trial:
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
        chosen = next_seed_for(history(trials), reserved)
        if chosen is None:
            break
        trials = confirmed(trials, chosen, rng.gauss(0 if chosen == config(0) else gain, 1))
    return judge(history(trials))


@pytest.mark.parametrize(("gain", "least", "most"), [(-2, 0, 0.02), (-1, 0, 0.07), (0, 0.1, 0.27), (4, 0.98, 1)])
def test_the_finalist_wins_as_often_as_its_gain_deserves(gain: float, least: float, most: float) -> None:
    wins = sum(race(random.Random(f"{gain} {number}"), gain).finalist_wins for number in range(400))
    assert least <= wins / 400 <= most


def test_only_fresh_seeds_are_reported() -> None:
    verdict = judge(history(confirmed(searched(0.5, 0.9, 0.6), config(1), 0.7, 0.72)))
    assert verdict.finalist == config(1)
    assert verdict.finalist_score is not None
    assert verdict.finalist_score.scores == (0.7, 0.72)
    assert verdict.finalist_score.mean == pytest.approx(0.71)
    assert verdict.difference == pytest.approx(0.21)


def test_the_standard_error_counts_the_seeds_of_both_sides() -> None:
    trials = confirmed(confirmed(searched(0.5, 0.9), config(1), 0.7, 0.8), config(0), 0.6)
    verdict = judge(history(trials))
    assert verdict.sigma is not None
    assert verdict.stderr == pytest.approx(verdict.sigma.value * math.sqrt(1 / 2 + 1 / 2))
    assert verdict.baseline_score is not None
    assert verdict.baseline_score.scores == (0.5, 0.6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=7), st.lists(st.floats(-1, 1), min_size=1, max_size=3))
def test_minimizing_mirrors_maximizing(scores: list[float], fresh: list[float]) -> None:
    def ask(direction: Direction, sign: int) -> Verdict:
        trials = searched(*(sign * score for score in scores))
        finalist = judge(history(trials, direction)).finalist
        return judge(
            history(confirmed(trials, finalist, *(sign * s for s in fresh)) if finalist else trials, direction)
        )

    up, down = ask("maximize", 1), ask("minimize", -1)
    assert up.finalist == down.finalist
    assert up.finalist_wins == down.finalist_wins
    assert up.difference == (down.difference if down.difference is None else pytest.approx(down.difference))


def test_a_baseline_that_nothing_scored_above_needs_no_confirmation() -> None:
    trials = searched(0.9, 0.8, 0.7)
    assert judge(history(trials)).finalist is None
    assert not judge(history(trials)).finalist_wins
    assert next_seed_for(history(trials), 2) is None


def test_the_reserved_seeds_go_to_the_finalist() -> None:
    trials = searched(0.5, 0.9, 0.6)
    assert next_seed_for(history(trials), 2) == config(1)
    assert next_seed_for(history(confirmed(trials, config(1), 0.9)), 2) == config(1)


def test_a_clear_difference_needs_no_more_seeds() -> None:
    trials = confirmed(searched(0.1, 0.9, 0.89, 0.88), config(1), 0.9, 0.89)
    assert judge(history(trials)).is_settled
    assert next_seed_for(history(trials), 2) is None


def test_a_lead_that_is_not_proven_gets_more_seeds_and_one_that_is_behind_none() -> None:
    """Two standard errors of few degrees of freedom are not certainty; time that is left goes to more."""
    ahead = confirmed(searched(0.90, 0.9013, 0.9010, 0.9008), config(1), 0.9016, 0.9010)
    verdict = judge(history(ahead))
    assert verdict.difference is not None
    assert verdict.stderr is not None
    assert verdict.difference > 2 * verdict.stderr
    assert verdict.finalist_wins
    assert not verdict.is_proven
    assert next_seed_for(history(ahead), 2) == config(0)
    behind = confirmed(searched(0.900, 0.901, 0.9005, 0.9003), config(1), 0.7, 0.7)
    assert judge(history(behind)).is_settled
    assert next_seed_for(history(behind), 2) is None


def test_what_is_said_to_beat_the_baseline_does_so_by_luck_in_one_null_race_of_twenty() -> None:
    """And what is recommended does not suffer: the rule that recommends is another one."""
    verdicts = [race(random.Random(f"null {number}"), 0) for number in range(400)]
    assert sum(verdict.is_proven for verdict in verdicts) <= 0.05 * 400
    better = [race(random.Random(f"better {number}"), 2) for number in range(200)]
    assert sum(verdict.finalist_wins for verdict in better) >= 0.79 * 200
    assert sum(verdict.is_proven for verdict in better) > sum(verdict.is_proven for verdict in verdicts)


@given(st.floats(0.1, 3), st.integers(1, 6), st.integers(0, 4))
def test_more_is_only_ever_proven_of_what_is_recommended(lead: float, fresh: int, again: int) -> None:
    trials = confirmed(searched(0.0, 1.2, 1.0, 0.9), config(1), *(lead + 0.1 * (n % 2) for n in range(fresh)))
    verdict = judge(history(confirmed(trials, config(0), *(0.1 * (n % 2) for n in range(again)))))
    assert verdict.probability is not None
    assert 0 <= verdict.probability <= 1
    assert verdict.finalist_wins or not verdict.is_proven


def test_what_led_the_search_beyond_doubt_needs_less_to_be_proven() -> None:
    """It was seen twice: before any fresh seed, and under them."""
    twice = judge(history(confirmed(searched(0.80, 0.90, 0.89, 0.88), config(1), 0.86, 0.85)))
    assert twice.probability is not None
    assert PROVEN_AGAIN <= twice.probability < PROVEN
    assert twice.led_clearly
    assert twice.is_proven
    assert not replace(twice, led_clearly=False).is_proven


def test_seeds_that_were_kept_back_are_trained_though_the_first_settle_it() -> None:
    trials = confirmed(searched(0.1, 0.9, 0.89, 0.88), config(1), 0.9, 0.89)
    assert next_seed_for(history(trials), 2, kept_back=4) == config(0)
    trials = confirmed(trials, config(0), 0.11)
    assert next_seed_for(history(trials), 2, kept_back=4) == config(1)
    assert next_seed_for(history(confirmed(trials, config(1), 0.91)), 2, kept_back=4) is None


def test_a_close_difference_gets_more_seeds_on_the_side_that_has_fewer() -> None:
    trials = confirmed(searched(0.5, 0.6), config(1), 0.45, 0.56)
    assert next_seed_for(history(trials), 2) == config(0)
    trials = confirmed(trials, config(0), 0.51)
    assert next_seed_for(history(trials), 2) == config(1)


def test_seeds_come_to_an_end_however_close_it_stays() -> None:
    trials = searched(0.5, 0.6)
    for _ in range(100):
        chosen = next_seed_for(history(trials), 2)
        if chosen is None:
            break
        trials = confirmed(trials, chosen, 0.5 + 0.1 * (sum(t.config == chosen for t in trials) % 2))
    assert sum(t.config == config(0) for t in trials) <= MOST_SEEDS
    assert sum(t.role == "confirmation" and t.config == config(1) for t in trials) == MOST_SEEDS


def test_a_lead_is_clear_where_it_dwarfs_what_a_seed_changes() -> None:
    assert leads_clearly(history(searched(0.1, 0.90, 0.89, 0.91)))
    assert leads_clearly(history(searched(-0.1, -0.90, -0.89, -0.91), "minimize"))
    assert not leads_clearly(history(searched(0.87, 0.90, 0.89, 0.91)))
    assert not leads_clearly(history(searched(0.1, 0.90)))  # nothing tells what a seed changes
    assert not leads_clearly(history(searched(0.95, 0.90, 0.89, 0.91)))
    assert not leads_clearly(history(searched(None, 0.90, 0.89, 0.91)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("baseline", "close"),
    [
        (0.87, True),
        (0.85, False),  # five standard deviations: two seeds settle it
        (0.10, False),
        (0.95, False),  # nothing is ahead
        (None, False),
    ],
)
def test_a_lead_is_close_where_two_fresh_seeds_may_not_settle_it(
    baseline: float | None, close: bool, sign: int
) -> None:
    own = None if baseline is None else sign * baseline
    trials = searched(own, *(sign * score for score in (0.90, 0.89, 0.91)))
    assert is_close(history(trials, "maximize" if sign > 0 else "minimize")) == close


def test_a_lead_is_close_where_nothing_tells_what_a_seed_changes() -> None:
    assert is_close(history(searched(0.50, 0.90)))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_no_lead_is_both_close_and_clear(scores: list[float]) -> None:
    trials = searched(*scores)
    assert not (is_close(history(trials)) and leads_clearly(history(trials)))


def test_a_lead_beyond_doubt_wins_without_a_fresh_seed_and_no_longer_once_there_is_one() -> None:
    far_ahead = searched(0.1, 0.90, 0.89, 0.91)
    verdict = judge(history(far_ahead))
    assert verdict.finalist_wins
    assert verdict.clear_lead == pytest.approx(0.81)
    assert verdict.finalist_score is None
    assert not judge(history(searched(0.87, 0.90, 0.89, 0.91))).finalist_wins
    fell_back = judge(history(confirmed(far_ahead, config(3), 0.05)))
    assert fell_back.finalist == config(3)
    assert fell_back.clear_lead is None
    assert not fell_back.finalist_wins
    hung = [*far_ahead, trial(4, config(3), "confirmation", None, "timeout")]
    assert judge(history(hung)).finalist == config(3)  # a hang may be the machine's
    assert not judge(history(hung)).finalist_wins


def test_equal_configurations_hardly_ever_lead_clearly() -> None:
    rng = random.Random(0)
    races = [searched(rng.gauss(0, 1), *(rng.gauss(0, 1) for _ in range(12))) for _ in range(2000)]
    assert sum(leads_clearly(history(trials)) for trials in races) / len(races) <= 0.05


@pytest.mark.parametrize("outcome", ["diverged", "oom", "crashed"])
def test_a_finalist_that_fails_on_a_fresh_seed_gives_way_to_the_runner_up(outcome: SegmentOutcome) -> None:
    trials = searched(0.5, 0.9, 0.6)
    trials.append(trial(3, config(1), "confirmation", None, outcome))
    verdict = judge(history(trials))
    assert verdict.finalist == config(2)
    assert verdict.gave_way == (config(1),)
    assert next_seed_for(history(trials), 2) == config(2)


def test_running_out_of_time_says_nothing_against_a_finalist() -> None:
    trials = searched(0.5, 0.9, 0.6)
    trials.append(trial(3, config(1), "confirmation", None, "timeout"))
    assert judge(history(trials)).finalist == config(1)


def test_anything_finite_beats_a_baseline_that_failed() -> None:
    trials = searched(None, 0.2)
    assert next_seed_for(history(trials), 1) == config(1)
    trials = confirmed(trials, config(1), 0.15)
    assert judge(history(trials)).finalist_wins
    assert next_seed_for(history(trials), 1) is None


def test_a_baseline_that_fails_under_a_fresh_seed_is_not_asked_again() -> None:
    trials = confirmed(searched(0.5, 0.6), config(1), 0.45, 0.56)
    trials.append(replace(trial(9, config(0), "confirmation", None), number=4))
    assert next_seed_for(history(trials), 2) == config(1)


# One bad score, and scores that tie


@pytest.mark.parametrize(("direction", "sign", "bad"), [("maximize", 1, 0.60), ("minimize", -1, -1e6)])
def test_one_bad_score_does_not_veto_what_every_fresh_seed_confirms(
    direction: Direction, sign: int, bad: float
) -> None:
    trials = confirmed(searched(sign * 0.80, sign * 0.95, sign * 0.94, sign * bad), config(1), sign * 0.95)
    verdict = judge(history(trials, direction))
    assert verdict.finalist_wins
    assert verdict.sigma is not None
    assert verdict.sigma.value < 0.06
    more = confirmed(confirmed(trials, config(0), sign * 0.79), config(1), sign * 0.96)
    assert judge(history(more, direction)).is_settled


def test_scores_that_tie_are_no_certainty() -> None:
    """Fifty samples: one of them more is no clear lead, and one seed that ties does not settle it."""
    trials = searched(0.96, 0.98, 0.98, 0.98)
    assert not leads_clearly(history(trials))
    trials = confirmed(trials, config(1), 0.98)
    verdict = judge(history(trials))
    assert not verdict.is_settled
    assert not verdict.finalist_wins
    assert verdict.sigma is not None
    assert verdict.sigma.value == pytest.approx(0.02)
    assert next_seed_for(history(trials), 1) is not None
    far = confirmed(searched(0.70, 0.98, 0.98, 0.96), config(1), 0.98)
    assert judge(history(far)).is_settled


# Close from below


def test_a_baseline_that_something_came_close_to_is_trained_again_and_then_challenged() -> None:
    trials = searched(1.0, 0.99, 0.95, 0.90)
    assert next_seed_for(history(trials), 2) == config(0)
    again = confirmed(trials, config(0), 0.5)
    assert next_seed_for(history(again), 2) == config(1)
    verdict = judge(history(confirmed(again, config(1), 0.98)))
    assert verdict.from_below
    assert verdict.finalist == config(1)
    assert verdict.baseline_score is not None
    assert verdict.baseline_score.scores == (0.5,)  # the first run was the best of all, and may be so by luck
    assert verdict.difference == pytest.approx(0.48)
    assert verdict.stderr is not None
    assert verdict.difference is not None
    assert 2 * verdict.stderr < verdict.difference < 2.5 * verdict.stderr
    assert not verdict.finalist_wins  # luck let it in, so it has to be ahead by more
    assert next_seed_for(history(confirmed(again, config(1), 0.98)), 2) == config(1)
    assert judge(history(confirmed(again, config(1), 1.05))).finalist_wins


def test_a_baseline_that_is_as_good_again_ends_it() -> None:
    trials = confirmed(searched(1.0, 0.99, 0.95, 0.90), config(0), 0.995)
    verdict = judge(history(trials))
    assert verdict.finalist is None
    assert not verdict.from_below
    assert verdict.baseline_score is not None
    assert verdict.baseline_score.scores == (1.0, 0.995)
    assert next_seed_for(history(trials), 2) is None


@pytest.mark.parametrize(("scores", "reserved"), [((1.0, 0.99, 0.95, 0.90), 1), ((1.0, 0.5, 0.49, 0.48), 2)])
def test_what_is_far_below_or_cannot_be_confirmed_costs_the_baseline_no_seed(
    scores: tuple[float, ...], reserved: int
) -> None:
    assert next_seed_for(history(searched(*scores)), reserved) is None


def test_two_workers_train_the_baseline_again_and_who_came_close_at_once() -> None:
    trials = searched(1.0, 0.99, 0.95, 0.90)
    trials.append(replace(trial(4, config(0), "confirmation", 0.5), state="running", scores=()))
    assert next_seed_for(history(trials), 2) == config(1)
    trials.append(replace(trial(5, config(1), "confirmation", 0.98), state="running", scores=()))
    assert next_seed_for(history(trials), 2) is None
    trials[5] = trial(5, config(1), "confirmation", 1.05)
    assert judge(history(trials)).finalist is None
    trials[4] = trial(4, config(0), "confirmation", 0.5)
    assert judge(history(trials)).finalist_wins


def test_a_baseline_that_fails_when_it_is_trained_again_stays() -> None:
    trials = confirmed(searched(1.0, 0.99, 0.95, 0.90), config(0), None)
    assert judge(history(trials)).finalist is None
    assert next_seed_for(history(trials), 2) is None


@given(st.floats(-1, 1), st.lists(st.floats(-1, 1), min_size=3, max_size=8), st.lists(st.floats(-1, 1), max_size=6))
def test_a_finalist_from_below_stays_one_whatever_comes(first: float, others: list[float], later: list[float]) -> None:
    """Else a lucky second seed of the baseline's would leave what was trained under fresh seeds without a verdict."""
    trials = searched(max([first, *others]), *others)
    finalist = None
    for score in later:
        chosen = next_seed_for(history(trials), 2)
        if chosen is None:
            break
        trials = confirmed(trials, chosen, score)
        now = judge(history(trials)).finalist
        assert finalist is None or now == finalist
        finalist = now if chosen != config(0) else finalist
