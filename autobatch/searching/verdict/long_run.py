"""What a search at T says about a training that is longer than T: about the ranking, the lead, and the learning rate.

There are three answers, each with how sure it is. The stability of the ranking from rung to rung is counted. The lead
of the choice is extrapolated from its lead at the last two rungs: a lead changes by a factor per doubling of the time,
which is that between these rungs, shrunk towards what leads were measured to do. The learning rate follows the trend of
the best rate over the rungs, taken from the surrogate and shrunk towards no change. How good all three are was measured
on trainings for T and 4 T (benchmarks/NOTES.md). The surrogate's own forecast of the lead is not used, since its 90 %
interval held the truth in 50 to 74 % of cases.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from ...core.plan import Config
from ..history import History
from ..schedulers import surrogate
from ..schedulers.observations import observations
from ..schedulers.surrogate import Array, Observation
from ..space import Space
from ..trials import Trial
from .conclusion import SearchResult
from .confirmation import ScoreSummary
from .seed_noise import pooled_sigma, score_resolution
from .stability import SAFE_RISK, divergence_risk

# The share of truths that an interval should hold, and the quantiles that bound it.
CONFIDENCE = 0.9
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

# What a doubling of the time changes. Measured, in round figures, on trainings for T and 4 T (benchmarks/NOTES.md): the
# logarithm of the lead over the baseline changed by -0.97, -0.9, -0.66, -0.6 and 0 on five tables, as the baseline
# catches up, and the best learning rate moved by -0.5 to +0.4 e-folds.
_GROWTH_MEAN, _GROWTH_SD = -0.5, 0.5  # of the logarithm of the factor by which a lead changes
_GROWTH_MOST = 0.25  # the most; assumed: otherwise a bound of the interval multiplies with every doubling
_GROWTH_CHANGE = 0.7  # standard deviation around the value over the last rungs
_SLOPE_SD = 0.3  # of the natural logarithm of the best learning rate, around no change
_SLOPE_CHANGE = 0.2  # standard deviation around the value over the rungs
# Standard deviations that are assumed after a look at the same tables.
_DRIFT = 1.0  # per doubling: of the difference between two equal configurations, in standard deviations of a seed
_LR_BASIN = 0.5  # at T itself: how far the chosen rate is from the best one, in e-folds

# The chance that the order at T says nothing about the order later. Measured, in round figures: where longer training
# began to fit noise in the labels, every order was turned. That is one of the tables above and those trained for 4 T.
_TURNED = 0.1

# If only this share of the pairs or less kept its order between the last two rungs, there is no forecast of the lead.
# Measured on 150 searches: there were three such, all where longer training overfits, and one of two leads over the
# baseline was still there later; where over three quarters kept their order, 99 % of the leads were. The least number
# of pairs, that of four trials, is assumed.
_KEPT_LEAST = 0.5
_PAIRS_LEAST = 6

_DRAWS = 2000
_GRID = 41  # learning rates to compare at each rung
_SCORES_LEAST = 3  # a rung with fewer scores has no best learning rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How well the order of the trials at one rung was kept at a later one.

    Attributes:
        early, late: the two rungs, as shares of the schedule.
        trials: the number of trials with a score at both.
        pairs: the number of pairs of those trials.
        kept: the share of pairs in the same order at both. A tie at one counts as half; Kendall's tau is 2 kept - 1.
    """

    early: float
    late: float
    trials: int
    pairs: int
    kept: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The extrapolated lead of the choice over another configuration after the long training.

    Attributes:
        against: "baseline" or "runner-up".
        batch_size, lr: the effective batch size and the learning rate of the other.
        lead: at T; positive where the choice is better, in units of the score.
        expected, low, high: the median and the bounds of the interval after the long training.
        ahead: the chance that the choice is then better.
        is_picked: whether the other was picked by its only score. That score is then rather too high, and the lead too
            small (benchmarks/NOTES.md).
    """

    against: str
    batch_size: int
    lr: float
    lead: float
    expected: float
    low: float
    high: float
    ahead: float
    is_picked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LrTrend:
    """The learning rate for the long training, at the batch size of the choice.

    Attributes:
        lr, low, high: the suggestion and the bounds of its interval.
        slope: of the natural logarithm of the best rate, per doubling of the time, after shrinking towards 0.
        measured, stderr: the slope as measured over the rungs; None if too few trials reached them.
        rungs: the (share of the schedule, best rate there) pairs behind it.
    """

    lr: float
    low: float
    high: float
    slope: float
    measured: float | None
    stderr: float | None
    rungs: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LongRun:
    """The outlook on a training of `train_time_s` after a search at `horizon_s`.

    Attributes:
        confidence: the share of truths that each interval should hold.
        forecasts: of the leads; empty if the order of the trials turned between the last two rungs.
    """

    horizon_s: float
    train_time_s: float
    confidence: float
    stability: tuple[Stability, ...]
    forecasts: tuple[Forecast, ...]
    lr: LrTrend

    def to_json(self) -> dict[str, Any]:
        """The outlook as plain JSON values."""
        plain = asdict(self)
        return plain | {
            "stability": list(plain["stability"]),
            "forecasts": list(plain["forecasts"]),
            "lr": plain["lr"] | {"rungs": [list(rung) for rung in self.lr.rungs]},
        }


def look_ahead(result: SearchResult, train_time_s: float) -> LongRun:
    """The outlook on a training of `train_time_s` seconds, longer than the trials of the race.

    Args:
        result: of the race.
        train_time_s: above `result.horizon_s`.
    """
    doublings = math.log2(train_time_s / result.horizon_s)
    stability = rank_stability(result.history)
    return LongRun(
        horizon_s=result.horizon_s,
        train_time_s=train_time_s,
        confidence=CONFIDENCE,
        stability=stability,
        forecasts=() if _has_turned(stability) else tuple(_forecasts(result, doublings)),
        lr=lr_trend(result.history, result.space, result.chosen, doublings),
    )


def rank_stability(history: History) -> tuple[Stability, ...]:
    """For every two rungs that at least two trials reached: how well their order was kept.

    Trials go on because they did well. So those that reached a late rung are closer to each other than all trials are,
    and their order is less stable.
    """
    stabilities = []
    shares = history.ladder.shares
    for early, late in combinations(range(len(shares)), 2):
        reached = [trial for trial in history.racing if len(trial.scores) > late]
        pairs = [
            (
                history.oriented(one.scores[early][1] - other.scores[early][1]),
                history.oriented(one.scores[late][1] - other.scores[late][1]),
            )
            for one, other in combinations(reached, 2)
        ]
        if pairs:
            kept = sum(1.0 if first * second > 0 else 0.5 if first * second == 0 else 0.0 for first, second in pairs)
            stabilities.append(
                Stability(
                    early=shares[early],
                    late=shares[late],
                    trials=len(reached),
                    pairs=len(pairs),
                    kept=kept / len(pairs),
                )
            )
    return tuple(stabilities)


def _has_turned(stability: Sequence[Stability]) -> bool:
    """Whether at least half of the order was lost between the last two rungs."""
    last = max(stability, key=lambda one: (one.late, one.early), default=None)
    return last is not None and last.pairs >= _PAIRS_LEAST and last.kept <= _KEPT_LEAST


def _forecasts(result: SearchResult, doublings: float) -> list[Forecast]:
    """The lead of the choice over the baseline, and over the best other configuration that was trained to the end."""
    history = result.history
    full = [trial for trial in history.racing if trial.final_score is not None]
    ends = [history.last(trial) for trial in full]
    sigma = result.sigma or pooled_sigma([], ends, resolution=score_resolution(history))
    chosen = next((trial for trial in full if trial.config == result.chosen), None)
    if chosen is None or sigma is None:
        return []
    others = sorted(
        (t for t in full if t.config != result.chosen and (t.role == "baseline" or _is_safe(t.config, history))),
        key=lambda trial: -history.last(trial),
    )
    against = [("baseline", next((trial for trial in others if trial.role == "baseline"), None))]
    against.append(("runner-up", next((trial for trial in others if trial.role != "baseline"), None)))
    forecasts = []
    for name, other in against:
        if other is None:
            continue
        ours, theirs = result.score, result.baseline if name == "baseline" else None
        if name == "runner-up" and other.config == result.finalist:  # the baseline was kept
            theirs = result.finalist_score
        lead = history.oriented(_mean(ours, chosen) - _mean(theirs, other))
        seeds = 1 / _seeds(ours) + 1 / _seeds(theirs)
        growth, growth_sd = lead_growth(history, chosen, other, sigma.value)
        drawn = _leads(lead, sigma.value * math.sqrt(seeds), growth, growth_sd, sigma.value, doublings)
        low, expected, high = (float(value) for value in np.quantile(drawn, (_TAILS[0], 0.5, _TAILS[1])))
        forecasts.append(
            Forecast(
                against=name,
                batch_size=other.config.plan.effective_batch_size,
                lr=other.config.lr,
                lead=lead,
                expected=expected,
                low=low,
                high=high,
                ahead=float((drawn > 0).mean()),
                is_picked=name == "runner-up" and theirs is None,
            )
        )
    return forecasts


def lead_growth(history: History, one: Trial, other: Trial, sigma: float) -> tuple[float, float]:
    """The change of the logarithm of one trial's lead over another per doubling, and its standard deviation.

    It is the change between the last two rungs, shrunk towards what leads do, and never above 0: leads that grew up to
    T went on growing in hardly any table. If the lead was not clear (more than two standard errors) at both rungs, it
    is what leads do.

    Args:
        history: of the race of both.
        one, other: both trained to the end.
        sigma: standard deviation of a score between seeds.
    """
    if min(len(one.scores), len(other.scores)) < 2:
        return _GROWTH_MEAN, _GROWTH_SD
    before, after = (history.oriented(one.scores[at][1] - other.scores[at][1]) for at in (-2, -1))
    stderr = sigma * math.sqrt(2)
    if before * after <= 0 or min(abs(before), abs(after)) <= 2 * stderr:
        return _GROWTH_MEAN, _GROWTH_SD
    span = math.log2(one.scores[-1][0] / one.scores[-2][0])
    measured = math.log(after / before) / span
    variance = ((stderr / before) ** 2 + (stderr / after) ** 2) / span**2 + _GROWTH_CHANGE**2
    growth, growth_sd = _shrunk(measured, variance, _GROWTH_MEAN, _GROWTH_SD)
    return min(0.0, growth), growth_sd


def _leads(lead: float, stderr: float, growth: float, growth_sd: float, sigma: float, doublings: float) -> Array:
    """Draws of the lead after this many doublings; a pure function of the arguments."""
    generator = np.random.default_rng(0)
    normal = generator.standard_normal((3, _DRAWS))
    factor = np.exp(doublings * np.minimum(growth + growth_sd * normal[1], _GROWTH_MOST))
    factor *= np.where(generator.random(_DRAWS) < _TURNED / 2, -1.0, 1.0)
    drift = _DRIFT * sigma * math.sqrt(doublings) * normal[2]
    return np.asarray((lead + stderr * normal[0]) * factor + drift)


def lr_trend(history: History, space: Space, chosen: Config, doublings: float) -> LrTrend:
    """The learning rate for a training that is longer by this many doublings, at the batch size of `chosen`.

    At each rung with enough scores, draws of the surrogate give its best rate. A line through them over the logarithm
    of the time gives a slope for each draw, and the spread of the slopes is their uncertainty. No rate above the one
    that ran is suggested: it was not shown to be stable, and a training that diverges loses everything.
    """
    measured = stderr = None
    bests: list[tuple[float, float]] = []
    seen = observations(history, space.reference_batch)
    shares = [share for share in history.ladder.shares if sum(o.share == share for o in seen) >= _SCORES_LEAST]
    if shares:
        batch = chosen.plan.effective_batch_size
        drawn = _best_rates(seen, shares, math.log2(batch))  # (draws, shares), at the reference batch
        at_batch = space.scaled_lr(chosen) / chosen.lr
        bests = [
            (share, math.exp(float(mean)) / at_batch) for share, mean in zip(shares, drawn.mean(axis=0), strict=True)
        ]
        if len(shares) > 1:
            slopes = np.polyfit(np.log2(shares), drawn.T, 1)[0]
            measured, stderr = float(slopes.mean()), float(slopes.std())
    slope, slope_sd = 0.0, _SLOPE_SD
    if measured is not None and stderr is not None:
        slope, slope_sd = _shrunk(measured, stderr**2 + _SLOPE_CHANGE**2, 0.0, _SLOPE_SD)
        slope = min(0.0, slope)
    width = NormalDist().inv_cdf(_TAILS[1]) * math.hypot(doublings * slope_sd, _LR_BASIN)
    centre = math.log(chosen.lr) + doublings * slope
    return LrTrend(
        lr=math.exp(centre),
        low=math.exp(centre - width),
        high=math.exp(centre + width),
        slope=slope,
        measured=measured,
        stderr=stderr,
        rungs=tuple(bests),
    )


def _best_rates(seen: tuple[Observation, ...], shares: Sequence[float], batch: float) -> Array:
    """Draws of the logarithm of the best rate at each rung, between the lowest and the highest that was tried."""
    grid = np.linspace(min(o.rate for o in seen), max(o.rate for o in seen), _GRID)
    points = np.array([(batch, rate, math.log2(share)) for share in shares for rate in grid])
    values = surrogate.fit(seen).draw(points, count=_DRAWS // 10, seed=0)
    return np.asarray(grid[values.reshape(-1, len(shares), _GRID).argmax(axis=2)])


def _shrunk(measured: float, variance: float, mean: float, sd: float) -> tuple[float, float]:
    """Mean and standard deviation of a measured value with this variance, under a normal prior."""
    weight = sd**2 / (sd**2 + variance)
    return mean + weight * (measured - mean), sd * math.sqrt(1 - weight)


def _is_safe(config: Config, history: History) -> bool:
    """Whether training around a configuration is stable. A lead over one that diverges is no figure."""
    return divergence_risk(config, history) <= SAFE_RISK


def _mean(scores: ScoreSummary | None, trial: Trial) -> float:
    return trial.scores[-1][1] if scores is None else scores.mean


def _seeds(scores: ScoreSummary | None) -> int:
    return 1 if scores is None else len(scores.scores)
