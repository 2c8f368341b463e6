"""Did it really beat the baseline? Fresh seeds for both, and one rule that says when to believe the difference.

The best of many noisy scores is too high by 0.2 to 0.3 points (measured), so nothing here reports the score that a
configuration was selected by: the finalist is trained again under seeds that nothing selected. The baseline's own run
to the end is such a sample already.

How often the finalist wins, simulated (`race` in tests/test_confirmation.py, 1,500 races a figure). Every candidate is
truly better than the baseline by the gain, in standard deviations of a seed; the best of them is the finalist:

    gain                                          -2     -1      0     +1     +2     +4
    6 candidates, 2 seeds reserved, 2 to spare   0.3%   2.9%    20%    53%    84%   100%
    6 candidates, 2 seeds reserved                1 %   5.6%    20%    45%    70%    98%
    2 candidates, 1 seed reserved                 2 %    10%    29%    50%    72%    92%

A win at a gain of 0 costs nothing. Those at -1 are what the reserve is too small to tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ..plan import Config, Direction
from .stability import SAFE_RISK, divergence_risk
from .trials import Trial, oriented

# The weight, in degrees of freedom, of the spread between configurations beside that between seeds. Assumed: two fresh
# seeds alone leave one or two degrees, at which a lucky pair of equal scores would pass for certainty.
SPREAD_WEIGHT = 2

# The spread is taken over the better third of the full-length scores, at least three of them. Assumed.
SPREAD_LEAST = 3

# A lead over the baseline of so many standard deviations of a seed is beyond doubt before any fresh seed. Assumed: the
# best of a hundred equal configurations leads by four such, its own luck and the baseline's together.
CLEAR_LEAD = 6.0

# A configuration that failed under so many fresh seeds in a row is tried no more. Assumed: a hang may be the machine's.
MOST_FAILURES = 3

# Seeds that each side gets at most, however much budget is left. Assumed: the standard error of a mean of eight is a
# third of a seed's standard deviation, and what is smaller than that matters to nobody.
MOST_SEEDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """The scores of one configuration on seeds that nothing selected.

    Attributes:
        mean: of the scores.
        stderr: standard error of the mean, from the pooled sigma; None where nothing was repeated.
        scores: one for each seed.
    """

    mean: float
    stderr: float | None
    scores: tuple[float, ...]

    def to_json(self) -> dict[str, object]:
        """The summary as plain data."""
        return {"mean": self.mean, "stderr": self.stderr, "scores": list(self.scores)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigma:
    """The standard deviation of a full-length score between seeds, and where it comes from.

    Attributes:
        value: in units of the score.
        repeats: degrees of freedom from repeated configurations.
        spread_of: full-length scores of different configurations whose spread was pooled in; 0 for none.
    """

    value: float
    repeats: int
    spread_of: int

    @property
    def source(self) -> str:
        """In words, what the figure was pooled from."""
        text = f"{self.repeats} degrees of freedom from configurations run under several seeds"
        if self.spread_of:
            text += (
                f", and the spread of the best {self.spread_of} full-length scores"
                f" (weight {SPREAD_WEIGHT} degrees, assumed)"
            )
        return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the full-length scores say so far.

    Attributes:
        finalist: the configuration that challenges the baseline; None where none scored above it.
        finalist_score: on fresh seeds only; None before the first.
        baseline_score: all of the baseline's own; None where it has none.
        difference: finalist less baseline, positive when the finalist is better; None until both have a score.
        stderr: standard error of the difference.
        sigma: what the standard errors rest on; None where nothing was repeated.
        gave_way: configurations that would have been the finalist but failed under a fresh seed.
        passed_over: configurations that scored above the finalist, too close to where training diverges.
    """

    finalist: Config | None
    finalist_score: ScoreSummary | None
    baseline_score: ScoreSummary | None
    difference: float | None
    stderr: float | None
    sigma: Sigma | None
    gave_way: tuple[Config, ...]
    passed_over: tuple[Config, ...] = ()

    @property
    def finalist_wins(self) -> bool:
        """Whether the finalist beat the baseline by more than one standard error; anything finite beats nothing."""
        if self.difference is None or self.stderr is None:
            return self.baseline_score is None and self.finalist_score is not None
        return self.difference > self.stderr

    @property
    def is_settled(self) -> bool:
        """Whether the difference is beyond two standard errors, either way."""
        return self.difference is not None and self.stderr is not None and abs(self.difference) > 2 * self.stderr


def judge(trials: Sequence[Trial], direction: Direction) -> Verdict:
    """The verdict on a race: who challenges the baseline, and by how much it is better on fresh seeds.

    The standard error of the difference is sigma sqrt(1 / k_finalist + 1 / k_baseline).
    """
    baseline = next((trial.config for trial in trials if trial.role == "baseline"), None)
    own = tuple(
        score
        for trial in trials
        if trial.config == baseline and trial.role in ("baseline", "confirmation")
        if (score := trial.final_score) is not None
    )
    fresh_runs = [trial for trial in trials if trial.role == "confirmation"]
    broken = {trial.config for trial in fresh_runs if _is_its_own_fault(trial) or _keeps_failing(trial, fresh_runs)}
    ranked = _challengers(trials, direction)
    standing = [trial for trial in ranked if trial.config not in broken]
    # Who has begun under fresh seeds stays the finalist. Each of its runs that does not diverge lowers the risk around
    # it, and another might pass it that was run under no fresh seed at all.
    begun = (trial for trial in standing if _fresh_scores(trials, trial.config))
    finalist = next(begun, standing[0] if standing else None)
    fresh = _fresh_scores(trials, finalist.config) if finalist else ()

    sigma = None
    if finalist is not None and finalist.final_score is not None and fresh:
        # The score it was selected by is biased upwards; pooled in here, it can only widen sigma.
        sigma = pooled_sigma([own, (finalist.final_score, *fresh)], _full_length(trials), direction)
    difference = stderr = None
    if fresh and own and sigma is not None:
        difference = oriented(sum(fresh) / len(fresh) - sum(own) / len(own), direction)
        stderr = sigma.value * math.sqrt(1 / len(fresh) + 1 / len(own))
    return Verdict(
        finalist=finalist.config if finalist else None,
        finalist_score=_summary(fresh, sigma),
        baseline_score=_summary(own, sigma),
        difference=difference,
        stderr=stderr,
        sigma=sigma,
        gave_way=tuple(trial.config for trial in ranked if trial.config in broken),
        passed_over=tuple(trial.config for trial in standing if _is_above(trial, finalist, direction)),
    )


def next_seed_for(trials: Sequence[Trial], direction: Direction, reserved: int) -> Config | None:
    """The configuration to train under a fresh seed next; None once it is settled or no more seeds would help.

    The reserved ones go to the finalist. While the difference is then within two standard errors, whoever has fewer
    seeds gets the next. Runs under way count as seeds, and where the reserved ones are, they are waited for: None.
    """
    verdict = judge(trials, direction)
    if verdict.finalist is None:
        return None
    baseline = next(trial.config for trial in trials if trial.role == "baseline")
    under_way = [t.config for t in trials if t.role == "confirmation" and t.state == "running"]
    known = len(verdict.finalist_score.scores) if verdict.finalist_score else 0
    of_finalist = known + under_way.count(verdict.finalist)
    of_baseline = len(verdict.baseline_score.scores) if verdict.baseline_score else 0
    if of_finalist < reserved:
        return verdict.finalist
    if known < reserved or verdict.is_settled or not of_baseline:
        return None
    of_baseline += under_way.count(baseline)
    fails = any(t.role == "confirmation" and t.config == baseline and t.state == "failed" for t in trials)
    if of_baseline < of_finalist and of_baseline < MOST_SEEDS and not fails:
        return baseline
    return verdict.finalist if of_finalist < MOST_SEEDS else None


def leads_clearly(trials: Sequence[Trial], direction: Direction) -> bool:
    """Whether the best challenger's score is so far above the baseline's own that one fresh seed is enough to tell.

    Not where training may diverge: that takes more than one seed to find out. Sigma then rests on the spread between
    configurations alone, which can only make it too large.
    """
    ranked = _challengers(trials, direction)
    own = _baselines_own(trials)
    sigma = pooled_sigma([], _full_length(trials), direction)
    if not ranked or own is None or sigma is None or (best := ranked[0].final_score) is None:
        return False
    is_safe = divergence_risk(ranked[0].config, trials) <= SAFE_RISK
    return is_safe and oriented(best - own, direction) > CLEAR_LEAD * sigma.value


def pooled_sigma(
    repeats: Sequence[Sequence[float]], full_length: Sequence[float], direction: Direction
) -> Sigma | None:
    """The seed-to-seed standard deviation, pooled over repeated configurations and the spread of the better ones.

    Args:
        repeats: scores of one configuration each, under different seeds.
        full_length: one score for each configuration trained to the end, the baseline left out. Were they all equally
            good, the spread of the better third would be that of a truncated normal, which is corrected for; as they
            differ in quality too, the figure is an upper estimate of sigma. Not used where fewer than `SPREAD_LEAST`
            are there.

    Returns:
        None where nothing was repeated and too few configurations were trained to the end.
    """
    degrees = sum(max(0, len(scores) - 1) for scores in repeats)
    squares = sum(_squares(scores) for scores in repeats)
    best = sorted(full_length, key=lambda score: -oriented(score, direction))
    best = best[: max(SPREAD_LEAST, math.ceil(len(best) / 3))]
    weight = SPREAD_WEIGHT if len(best) >= SPREAD_LEAST else 0
    if degrees + weight == 0:
        return None
    spread = _squares(best) / (len(best) - 1) / variance_of_the_top(len(best) / len(full_length)) if weight else 0.0
    value = math.sqrt((squares + weight * spread) / (degrees + weight))
    return Sigma(value=value, repeats=degrees, spread_of=len(best) if weight else 0)


def variance_of_the_top(share: float) -> float:
    """The variance of the best `share` of a normal sample, as a part of the whole sample's.

    1 + a h - h^2 with a the quantile where the top begins and h = density(a) / share, for a normal distribution
    truncated from below (Johnson, Kotz and Balakrishnan 1994, section 13.10).
    """
    if share >= 1:
        return 1.0
    normal = NormalDist()
    begins = normal.inv_cdf(1 - share)
    hazard = normal.pdf(begins) / share
    return 1 + begins * hazard - hazard**2


def _challengers(trials: Sequence[Trial], direction: Direction) -> list[Trial]:
    """Full-length trials that scored above the baseline's own run, all of them where it has none: those first that are
    worth most.

    That is what they are ahead of the baseline, times the chance that the next run does not diverge; without a
    baseline's score, ahead of the worst of them.
    """
    found = [
        (oriented(trial.final_score, direction), trial)
        for trial in trials
        if trial.role in ("warm start", "search") and trial.final_score is not None
    ]
    own = _baselines_own(trials)
    bar = min((score for score, _ in found), default=0.0) if own is None else oriented(own, direction)
    worth = [
        ((score - bar) * (1 - divergence_risk(trial.config, trials)), trial)
        for score, trial in found
        if own is None or score > bar
    ]
    return [trial for _, trial in sorted(worth, key=lambda pair: -pair[0])]


def _baselines_own(trials: Sequence[Trial]) -> float | None:
    """The score of the baseline's own run to the end; None where it has none."""
    return next((trial.final_score for trial in trials if trial.role == "baseline"), None)


def _is_above(trial: Trial, other: Trial | None, direction: Direction) -> bool:
    if other is None or trial.final_score is None or other.final_score is None:
        return False
    return oriented(trial.final_score - other.final_score, direction) > 0


def _full_length(trials: Sequence[Trial]) -> list[float]:
    """The full-length score that each configuration but the baseline was judged by in the search."""
    return [t.final_score for t in trials if t.role in ("warm start", "search") and t.final_score is not None]


def _fresh_scores(trials: Sequence[Trial], config: Config) -> tuple[float, ...]:
    return tuple(
        trial.final_score
        for trial in trials
        if trial.role == "confirmation" and trial.config == config and trial.final_score is not None
    )


def _is_its_own_fault(trial: Trial) -> bool:
    """A trial that ran out of the run's time says nothing against its configuration."""
    return trial.state == "failed" and trial.outcome != "timeout"


def _keeps_failing(trial: Trial, fresh_runs: Sequence[Trial]) -> bool:
    """Whether the last `MOST_FAILURES` fresh seeds of its configuration all failed, whatever they failed of."""
    last = [other.state for other in fresh_runs if other.config == trial.config][-MOST_FAILURES:]
    return last == ["failed"] * MOST_FAILURES


def _summary(scores: tuple[float, ...], sigma: Sigma | None) -> ScoreSummary | None:
    if not scores:
        return None
    stderr = sigma.value / math.sqrt(len(scores)) if sigma else None
    return ScoreSummary(mean=sum(scores) / len(scores), stderr=stderr, scores=scores)


def _squares(scores: Sequence[float]) -> float:
    """The sum of squared deviations from the mean."""
    if not scores:
        return 0.0
    mean = sum(scores) / len(scores)
    return sum((score - mean) ** 2 for score in scores)
