"""What is said of a training that is longer than what was compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Direction, Plan
from autobatch.searching.space import Space
from autobatch.searching.trials import Ladder, Trial
from autobatch.searching.verdict.conclusion import SearchResult
from autobatch.searching.verdict.confirmation import ScoreSummary
from autobatch.searching.verdict.long_run import lead_growth, look_ahead, lr_trend, rank_stability
from autobatch.searching.verdict.seed_noise import Sigma

from ...helpers.histories import history

LADDER = Ladder()
SPACE = Space(effective_batch_sizes=(32, 64, 128), lr_low=1e-4, lr_high=1.0, reference_batch=64)
STEPS = (100, 400, 800)


def a_trial(number: int, config: Config, scores: tuple[float, ...], **changes: Any) -> Trial:
    """A trial with a score at each of the first rungs; complete with three."""
    made = Trial(
        number=number,
        config=config,
        seed=number,
        total_steps=STEPS[-1],
        role="search" if number else "baseline",
        origin="a test",
        state="complete" if len(scores) == 3 else "paused",
        scores=tuple(zip(STEPS, scores, strict=False)),
    )
    return replace(made, **changes)


def raced(fall: float = 0.0, direction: Direction = "maximize", count: int = 24) -> tuple[Trial, ...]:
    """Trials over rates from 1e-3 to 0.3; the best one is 0.02 at T, and falls by `fall` e-folds for each doubling.

    All reach T/8, every other T/2, every fourth T.
    """
    found = []
    for number in range(count):
        lr = 10 ** (-3 + 2.5 * ((0.2 + number * 0.6180339887498949) % 1.0))
        rungs = 3 if number % 4 == 0 else 2 if number % 2 == 0 else 1
        scores = [
            0.9 - 0.1 * (1 - share) - 0.02 * (math.log(lr / 0.02) - fall * math.log2(share)) ** 2
            for share in LADDER.shares[:rungs]
        ]
        config = Config(plan=Plan(batch_size=64), lr=lr)
        found.append(a_trial(number, config, tuple(history((), direction).oriented(score) for score in scores)))
    return tuple(found)


def result(
    trials: tuple[Trial, ...], chosen: Trial, sigma: float = 0.003, direction: Direction = "maximize"
) -> SearchResult:
    """What a race of these trials came to."""
    first = trials[0].final_score
    fresh = chosen.final_score
    assert first is not None
    assert fresh is not None
    return SearchResult(
        history=history(trials, direction),
        horizon_s=60.0,
        space=SPACE,
        equivalents=16.0,
        finalist=chosen.config,
        chosen=chosen.config,
        chose_baseline=False,
        score=ScoreSummary(mean=fresh, stderr=sigma / math.sqrt(2), scores=(fresh, fresh)),
        baseline=ScoreSummary(mean=first, stderr=sigma, scores=(first,)),
        finalist_score=None,
        sigma=Sigma(value=sigma, repeats=2, spread_of=0),
        why=(),
        interrupted=False,
    )


# The order of the trials

scores = st.lists(st.floats(0, 1, width=16), min_size=3, max_size=3).map(tuple)


@settings(max_examples=50)
@given(st.lists(scores, min_size=2, max_size=8))
def test_the_share_of_pairs_that_keep_their_order_does_not_depend_on_the_direction(found: list[Any]) -> None:
    configs = [Config(plan=Plan(batch_size=64), lr=0.01 * (1 + number)) for number in range(len(found))]
    up = rank_stability(history([a_trial(n, configs[n], one) for n, one in enumerate(found)]))
    down = [a_trial(n, configs[n], tuple(-score for score in one)) for n, one in enumerate(found)]
    assert up == rank_stability(history(down, "minimize"))
    assert [(one.early, one.late) for one in up] == [(1 / 8, 1 / 2), (1 / 8, 1.0), (1 / 2, 1.0)]
    assert all(0 <= one.kept <= 1 and one.pairs == len(found) * (len(found) - 1) // 2 for one in up)


def test_kept_and_turned_orders_are_told_apart_and_confirmations_do_not_count() -> None:
    config = Config(plan=Plan(batch_size=64), lr=0.01)
    trials = [a_trial(n, config, (n / 10, n / 10, -n / 10)) for n in range(4)]
    trials += [a_trial(4, config, (0.9, 0.9, 0.9), role="confirmation"), a_trial(5, config, (0.5,))]
    early, _, late = rank_stability(history(trials))
    assert (early.kept, early.pairs, early.trials) == (1.0, 6, 4)
    assert (late.kept, late.pairs) == (0.0, 6)
    assert rank_stability(history(trials[:1])) == ()


# The lead


def growth(before: float, after: float, sigma: float = 0.001) -> tuple[float, float]:
    config = Config(plan=Plan(batch_size=64), lr=0.01)
    ahead, behind = (a_trial(n, config, (0.5, 0.5 + n * before, 0.5 + n * after)) for n in (1, 0))
    return lead_growth(history((ahead, behind)), ahead, behind, sigma)


def test_a_lead_goes_on_as_it_did_in_part_and_never_grows() -> None:
    fast, slow, level, up = (growth(before, 0.1) for before in (1.6, 0.2, 0.1, 0.01))
    assert -math.log(16) < fast[0] < slow[0] < level[0] < 0
    assert up[0] == 0
    assert fast[1] == pytest.approx(slow[1], rel=0.01)
    by_noise = growth(1.6, 0.1, sigma=0.02)
    assert fast[0] < by_noise[0] < 0  # the less is known, the less is taken over
    assert by_noise[1] > fast[1]


def test_of_a_lead_that_noise_could_be_or_that_changed_sides_nothing_is_taken_over() -> None:
    unknown = growth(0.002, 0.001)
    assert unknown == growth(-0.2, 0.1) == growth(0.001, 0.002)
    assert unknown[0] < 0
    assert unknown[1] > growth(0.2, 0.1)[1]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_forecast_is_less_sure_the_further_it_goes(direction: Direction) -> None:
    trials = raced(direction=direction)
    best = max((t for t in trials[1:] if t.state == "complete"), key=history(trials, direction).last)
    race = result(trials, best, direction=direction)
    near, far = (look_ahead(race, 60.0 * times) for times in (2, 16))
    assert [one.against for one in near.forecasts] == ["baseline", "runner-up"]
    assert [one.is_picked for one in near.forecasts] == [False, True]
    for soon, late in zip(near.forecasts, far.forecasts, strict=True):
        assert soon.lead == late.lead > 0
        assert late.high - late.low > soon.high - soon.low
        assert soon.low < soon.expected < soon.high
        assert 0.5 <= late.ahead <= soon.ahead <= 1
    assert near == look_ahead(race, 120.0)


def test_of_a_race_that_nothing_was_repeated_in_sigma_is_the_spread_and_without_that_there_is_no_forecast() -> None:
    trials = raced()
    best = max((t for t in trials[1:] if t.state == "complete"), key=lambda t: t.scores[-1][1])
    assert look_ahead(replace(result(trials, best), sigma=None), 240.0).forecasts
    pair = (trials[0], best)
    assert look_ahead(replace(result(pair, best), sigma=None), 240.0).forecasts == ()


def test_a_finalist_that_did_not_win_is_compared_by_its_fresh_seeds() -> None:
    trials = raced()
    best = max((t for t in trials[1:] if t.state == "complete"), key=lambda t: t.scores[-1][1])
    fresh = ScoreSummary(mean=0.5, stderr=0.002, scores=(0.49, 0.51))
    race = result(trials, best)
    kept = replace(race, chosen=trials[0].config, chose_baseline=True, score=race.baseline, finalist_score=fresh)
    (only,) = look_ahead(kept, 240.0).forecasts
    assert (only.against, only.lr, only.is_picked) == ("runner-up", best.config.lr, False)
    assert race.baseline is not None
    assert only.lead == pytest.approx(race.baseline.mean - 0.5)


def turned(trials: tuple[Trial, ...], count: int) -> tuple[Trial, ...]:
    """The first complete trials, those that were ahead at T/2 being behind at T, and all others as they were at T/2."""
    full = [trial for trial in trials if trial.state == "complete"][:count]
    ends = sorted((trial.scores[-1][1] for trial in full), reverse=True)
    by_half = sorted(full, key=lambda trial: trial.scores[1][1])
    new = {t.number: replace(t, scores=(*t.scores[:2], (STEPS[2], e))) for t, e in zip(by_half, ends, strict=True)}
    return tuple(new[trial.number] for trial in full)


@pytest.mark.parametrize(("count", "is_said"), [(3, True), (4, False), (6, False)])
def test_no_lead_is_said_of_later_where_the_order_turned_before_the_end(count: int, is_said: bool) -> None:
    trials = turned(raced(), count)
    best = max(trials[1:], key=lambda t: t.scores[-1][1])
    found = look_ahead(result(trials, best), 240.0)
    last = found.stability[-1]
    assert (last.early, last.late, last.kept, last.pairs) == (1 / 2, 1.0, 0.0, count * (count - 1) // 2)
    assert bool(found.forecasts) == is_said


def test_a_runner_up_that_is_likely_to_diverge_is_none() -> None:
    trials = raced()
    best, second, *_ = sorted((t for t in trials[1:] if t.state == "complete"), key=lambda t: -t.scores[-1][1])
    beside = Config(plan=Plan(batch_size=64), lr=second.config.lr * 0.999)
    broken = a_trial(len(trials), beside, (), state="failed", outcome="diverged")
    plain = look_ahead(result(trials, best), 240.0).forecasts[1]
    warned = look_ahead(result((*trials, broken), best), 240.0).forecasts
    assert plain.lr == second.config.lr
    assert all(one.lr != second.config.lr for one in warned)


# The learning rate


def test_a_best_rate_that_falls_with_time_is_followed_some_of_the_way() -> None:
    chosen = Config(plan=Plan(batch_size=64), lr=0.02)
    falling = lr_trend(history(raced(fall=-0.3)), SPACE, chosen, 2.0)
    assert falling.measured is not None
    assert -0.45 < falling.measured < -0.15
    assert falling.measured < falling.slope < 0
    assert 0.02 * math.exp(-0.6 * 1.2) < falling.lr < 0.02
    assert falling.low < falling.lr < falling.high
    assert [share for share, _ in falling.rungs] == list(LADDER.shares)


@pytest.mark.parametrize("fall", [0.0, 0.3])
def test_no_rate_is_suggested_above_the_one_that_was_run(fall: float) -> None:
    chosen = Config(plan=Plan(batch_size=64), lr=0.02)
    trend = lr_trend(history(raced(fall=fall)), SPACE, chosen, 3.0)
    assert 0.02 * 0.8 < trend.lr <= 0.02
    assert trend.high > 0.02


def test_a_few_trials_leave_the_rate_as_it_is_and_the_interval_widens_with_time() -> None:
    chosen = Config(plan=Plan(batch_size=128), lr=0.02)
    near, far = (lr_trend(history(raced(count=2)), SPACE, chosen, d) for d in (1.0, 4.0))
    assert near.measured is None
    assert near.lr == far.lr == pytest.approx(0.02)
    assert near.slope == 0
    assert far.high / far.low > near.high / near.low


def test_the_unit_and_the_direction_of_the_score_change_nothing() -> None:
    chosen = Config(plan=Plan(batch_size=64), lr=0.02)
    up = lr_trend(history(raced(fall=-0.3)), SPACE, chosen, 2.0)
    down = lr_trend(history(raced(fall=-0.3, direction="minimize"), "minimize"), SPACE, chosen, 2.0)
    assert up.lr == pytest.approx(down.lr)


def test_all_of_it_is_plain_data() -> None:
    trials = raced()
    best = max((t for t in trials[1:] if t.state == "complete"), key=lambda t: t.scores[-1][1])
    data = look_ahead(result(trials, best), 240.0).to_json()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
