"""Did it really beat the baseline? Fresh seeds for both, and one rule that says when to believe the difference.

The best of many noisy scores is too high (on six tables by up to .3 points after Optuna's TPE: docs/search-results.md),
so nothing here reports the score that a configuration was selected by: the finalist is trained again under seeds that
nothing selected. Nor is the finalist simply the one that scored best: it is the one that would without its seed's luck,
as far as the trials around it tell (`observations.denoised_scores`). The baseline's own run to the end is such a sample
already, unless nothing scored above it: then that run may have been the lucky one, and where something came close the
baseline is trained again first.

How often the finalist wins, simulated (`python benchmarks/false_wins.py --races 800`, two seeds reserved and no time
for more). Every candidate is truly better than the baseline by the gain, in standard deviations of a seed:

    gain             -2     -1      0     +1     +2
     3 candidates   0.6%   4.9%    21%    50%    73%
     4              0.4%   5.1%    19%    45%    67%
     8              0.5%   5.2%    19%    45%    68%
    16              0.9%   3.8%    19%    41%    67%

A win at a gain of 0 costs nothing. Those at -1 are differences that so small a reserve cannot show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...core.plan import Config
from ..history import History
from ..schedulers.observations import denoised_scores
from ..trials import Trial
from .seed_noise import Sigma, chance_below, pooled_sigma, score_resolution
from .stability import SAFE_RISK, divergence_risk

# A lead over the baseline of so many standard deviations of a seed is beyond doubt before any fresh seed. Assumed: the
# best of a hundred equal configurations leads by four such, its own luck and the baseline's together.
CLEAR_LEAD = 6.0

# A lead of no more than so many is close: two fresh seeds of the finalist may well not settle it. They do from two
# standard errors on, 2.4 such deviations, and the best of a dozen equal configurations leads by 1.6 in the mean.
CLOSE_LEAD = 4.0

# A difference of so many standard errors is settled. A challenger that is no farther below the baseline's own run is
# close.
SETTLED = 2.0

# So many standard errors a finalist from below has to be ahead, which was let in because the baseline's second run was
# worse than its first: luck makes that more often than merit. Simulated for three to eight equal configurations as good
# as the baseline: at 2 it wins in .4 to 1 % of all races, at 2.5 in .1 to .4 % (benchmarks/NOTES.md, 2026-11-22).
FROM_BELOW = 2.5

# "Beat" is said of a lead on fresh seeds that is real with this chance by Student's t; of any other that it is ahead.
# 95 % would do for one look at two sides that nothing chose; but a race looks after every seed, and it is most often
# the baseline's own run that was beaten in the search. What led the search beyond doubt too (`CLEAR_LEAD`) has been
# seen twice, and there 95 % do. Simulated: of races in which nothing is better 1 to 4 % end in that word
# (benchmarks/null_races.py; benchmarks/false_wins.py --proven).
PROVEN, PROVEN_AGAIN = 0.99, 0.95

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
class Verdict:
    """What the full-length scores say so far.

    Attributes:
        finalist: the configuration that challenges the baseline; None where none scored above it.
        finalist_score: on fresh seeds only; None before the first.
        baseline_score: all of the baseline's own, or `from_below` those on fresh seeds; None where it has none.
        difference: finalist less baseline, positive when the finalist is better; None until both have a score.
        stderr: standard error of the difference.
        sigma: what the standard errors rest on; None where nothing was repeated.
        gave_way: configurations that would have been the finalist but failed under a fresh seed.
        passed_over: configurations that scored above the finalist, too close to where training diverges.
        lucky: the configuration that scored best, where it is not the finalist because those around it scored less.
        from_below: nothing scored above the baseline's own run, and the finalist did above its fresh seed.
        clear_lead: of the finalist's own score over the baseline's own run, where it is beyond doubt (`CLEAR_LEAD`) and
            it was trained under no fresh seed to the end, nor failed under one; None otherwise.
        led_clearly: its lead in the search was beyond doubt, whatever came of it under fresh seeds.
    """

    finalist: Config | None
    finalist_score: ScoreSummary | None
    baseline_score: ScoreSummary | None
    difference: float | None
    stderr: float | None
    sigma: Sigma | None
    gave_way: tuple[Config, ...]
    passed_over: tuple[Config, ...] = ()
    lucky: Config | None = None
    from_below: bool = False
    clear_lead: float | None = None
    led_clearly: bool = False

    @property
    def finalist_wins(self) -> bool:
        """Whether the finalist beat the baseline by more than one standard error; anything finite beats nothing.

        By `FROM_BELOW` of them where it was let in from below. Where the time was over before a fresh seed could speak,
        a lead beyond doubt is enough: what it beat the baseline by is then not known, but that it did.
        """
        if self.difference is None or self.stderr is None:
            return self.clear_lead is not None or (self.baseline_score is None and self.finalist_score is not None)
        return self.difference > (FROM_BELOW if self.from_below else 1.0) * self.stderr

    @property
    def probability(self) -> float | None:
        """The chance that the finalist is truly better than the baseline; None where nothing tells what a seed changes.

        By Student's t with the few degrees of freedom that sigma rests on, where before the fresh seeds a lead of any
        size was as likely as the same one of the baseline's.
        """
        if self.difference is None or self.stderr is None or self.sigma is None:
            return None
        return chance_below(self.difference / self.stderr, self.sigma.degrees)

    @property
    def is_proven(self) -> bool:
        """Whether the finalist's lead on fresh seeds is more than luck makes in one null race of twenty."""
        return self.finalist_wins and self.probability is not None and self.probability >= self.proven_from

    @property
    def proven_from(self) -> float:
        """The probability from which on it is."""
        return PROVEN_AGAIN if self.led_clearly else PROVEN

    @property
    def is_settled(self) -> bool:
        """Whether the finalist is proven to be better, or is behind by more than two standard errors."""
        if self.difference is None or self.stderr is None:
            return False
        return self.is_proven or self.difference < -SETTLED * self.stderr


def judge(history: History) -> Verdict:
    """The verdict on a race: who challenges the baseline, and by how much it is better on fresh seeds.

    The standard error of the difference is sigma sqrt(1 / k_finalist + 1 / k_baseline).
    """
    own = history.baseline_scores
    ranked = _challengers(history)
    standing = [trial for trial in ranked if trial.config not in history.broken]
    # Who has begun under fresh seeds stays the finalist. Each of its runs that does not diverge lowers the risk around
    # it, and another might pass it that was run under no fresh seed at all.
    begun = (trial for trial in standing if history.fresh_scores(trial.config))
    finalist = next(begun, standing[0] if standing else None)
    fresh = history.fresh_scores(finalist.config) if finalist else ()
    from_below = finalist is not None and bool(own) and not _is_above(history, finalist, own[0])
    counted = own[1:] if from_below else own

    sigma = None
    if finalist is not None and finalist.final_score is not None and fresh:
        # The score it was selected by is biased upwards; pooled in here, it can only widen sigma.
        repeats = [own, (finalist.final_score, *fresh)]
        sigma = pooled_sigma(repeats, history.full_length, resolution=score_resolution(history))
    difference = stderr = None
    if fresh and counted and sigma is not None:
        difference = history.oriented(sum(fresh) / len(fresh) - sum(counted) / len(counted))
        stderr = sigma.value * math.sqrt(1 / len(fresh) + 1 / len(counted))
    to_pass = finalist.final_score if finalist else None
    above = [trial for trial in standing if _is_above(history, trial, to_pass)]
    best = max(above, key=history.last, default=None)
    clear_lead = _clear_lead(finalist, history) if finalist else None
    risk = max(SAFE_RISK, divergence_risk(finalist.config, history)) if finalist else SAFE_RISK
    passed_over = tuple(trial.config for trial in above if divergence_risk(trial.config, history) > risk)
    return Verdict(
        finalist=finalist.config if finalist else None,
        finalist_score=_summary(fresh, sigma),
        baseline_score=_summary(counted, sigma),
        difference=difference,
        stderr=stderr,
        sigma=sigma,
        gave_way=tuple(trial.config for trial in ranked if trial.config in history.broken),
        passed_over=passed_over,
        lucky=best.config if best is not None and best.config not in passed_over else None,
        from_below=from_below,
        clear_lead=None if finalist is None or fresh or history.has_failed_again(finalist.config) else clear_lead,
        led_clearly=clear_lead is not None,
    )


def next_seed_for(history: History, reserved: int, *, kept_back: int = 0) -> Config | None:
    """The configuration to train under a fresh seed next; None once it is settled or no more seeds would help.

    The reserved ones go to the finalist. While the difference is then within two standard errors, or fewer than
    `kept_back` were begun, whoever has fewer seeds gets the next. Where nothing scored above the baseline's own run and
    the best came close, the first goes to the baseline. Runs under way count as seeds, and where the reserved ones are,
    they are waited for: None.
    """
    verdict = judge(history)
    assert history.baseline is not None  # it begins the race
    baseline = history.baseline.config
    under_way = [trial.config for trial in history.confirmations if trial.state == "running"]
    if verdict.finalist is None:
        return _next_from_below(history, baseline, reserved)
    known = len(verdict.finalist_score.scores) if verdict.finalist_score else 0
    of_finalist = known + under_way.count(verdict.finalist)
    of_baseline = len(verdict.baseline_score.scores) if verdict.baseline_score else 0
    if of_finalist < reserved:
        return verdict.finalist
    begun = len(history.confirmations)
    if known < reserved or not of_baseline or (verdict.is_settled and begun >= kept_back):
        return None
    of_baseline += under_way.count(baseline)
    if of_baseline < of_finalist and of_baseline < MOST_SEEDS and not history.has_failed_again(baseline):
        return baseline
    return verdict.finalist if of_finalist < MOST_SEEDS else None


def _next_from_below(history: History, baseline: Config, reserved: int) -> Config | None:
    """Whom to train under a fresh seed where nothing scored above the baseline's own run, with a reserve for both.

    The baseline once. Whoever is idle meanwhile trains the best of those below, which is the finalist if the baseline's
    own run was luck: by the clock there may be no time for one after the other.
    """
    closest = _closest_below(history)
    if closest is None or reserved < 2:
        return None
    again = [trial.state for trial in history.confirmations if trial.config == baseline]
    if not again:
        return baseline
    begun = sum(trial.config == closest.config for trial in history.confirmations)
    return closest.config if "running" in again and begun < reserved - 1 else None


def _closest_below(history: History) -> Trial | None:
    """The best challenger within two standard errors below the baseline's own run, by the spread between all."""
    own = history.baseline_scores
    sigma = pooled_sigma([], history.full_length, resolution=score_resolution(history))
    if not own or sigma is None:
        return None
    found = (t for t in history.trials if t.is_challenger and t.state == "complete" and t.config not in history.broken)
    best = max(found, key=history.last, default=None)
    score = -math.inf if best is None else history.last(best)
    return best if history.oriented(own[0]) - score <= SETTLED * sigma.value * math.sqrt(2) else None


def leads_clearly(history: History) -> bool:
    """Whether the best challenger's score is so far above the baseline's own that one fresh seed is enough."""
    bar = _clear_from(history)
    if bar is None or history.best <= bar:
        return False  # this is quick, and every decision comes by here
    ranked = _challengers(history)
    return bool(ranked) and _clear_lead(ranked[0], history) is not None


def is_close(history: History) -> bool:
    """Whether something scored above the baseline's own run, but nothing by what two fresh seeds settle."""
    own, best = history.baseline_scores, history.best
    if not own or best <= history.oriented(own[0]):
        return False
    bar = _clear_from(history, CLOSE_LEAD)
    return bar is None or best <= bar


def _clear_from(history: History, lead: float = CLEAR_LEAD) -> float | None:
    """The score above which a lead over the baseline's own run is beyond doubt, or larger than `lead` standard
    deviations of a seed; None where nothing shows what a seed changes.

    Sigma rests on the spread between configurations alone: it is rather too large than too small.
    """
    own = history.baseline_scores
    sigma = pooled_sigma([], history.full_length, resolution=score_resolution(history), farthest=math.inf)
    return history.oriented(own[0]) + lead * sigma.value if own and sigma is not None else None


def _clear_lead(challenger: Trial, history: History) -> float | None:
    """What the challenger's score is ahead of the baseline's own run by, where that is beyond doubt; None where not.

    Nor where training may diverge: that takes more than one seed to find out.
    """
    bar = _clear_from(history)
    if bar is None or challenger.final_score is None or history.last(challenger) <= bar:
        return None
    if divergence_risk(challenger.config, history) > SAFE_RISK:
        return None
    return history.oriented(challenger.final_score - history.baseline_scores[0])


def _challengers(history: History) -> list[Trial]:
    """Full-length trials that scored above the baseline's own run, all of them where it has none: those first that are
    worth most. Where none did, those above its first fresh seed.

    That is what they are ahead of the baseline without the luck of a seed (`denoised_scores`), times the chance that
    the next run does not diverge; ahead of the worst of them where that is behind the baseline, or the baseline has no
    score.
    """
    steady = denoised_scores(history)
    found = [(history.last(t), t) for t in history.trials if t.is_challenger and t.number in steady]
    own = history.baseline_scores
    if own:
        bar = history.oriented(own[0])
        if len(own) > 1 and not any(score > bar for score, trial in found if trial.config not in history.broken):
            bar = history.oriented(own[1])
    above = [trial for score, trial in found if not own or score > bar]
    floors = [trial for trial in history.trials if trial.role == "baseline" and trial.number in steady]
    least = min((steady[trial.number] for trial in [*floors, *above]), default=0.0)

    def worth(trial: Trial) -> float:
        return (steady[trial.number] - least) * (1 - divergence_risk(trial.config, history))

    return sorted(above, key=worth, reverse=True)


def _is_above(history: History, trial: Trial, score: float | None) -> bool:
    """Whether a trial came to its end with a better score than this one."""
    return trial.final_score is not None and score is not None and history.oriented(trial.final_score - score) > 0


def _summary(scores: tuple[float, ...], sigma: Sigma | None) -> ScoreSummary | None:
    if not scores:
        return None
    stderr = sigma.value / math.sqrt(len(scores)) if sigma else None
    return ScoreSummary(mean=sum(scores) / len(scores), stderr=stderr, scores=scores)
