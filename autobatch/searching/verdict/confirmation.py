"""Did it really beat the baseline? Fresh seeds for both, and one rule for when to believe the difference.

The best of many noisy scores is too high (on six tables by up to .3 points after Optuna's TPE: docs/search-results.md).
So nothing here reports the score by which a configuration was selected: the finalist is trained again under seeds that
nothing selected. The finalist is also not simply the configuration that scored best. It is the one that would score
best without the luck of its seed, judged by the trials around it (`observations.denoised_scores`). The baseline's own
run to the end is already such an unselected sample, unless nothing scored above it: then that run may have been the
lucky one, and if something came close, the baseline is trained again first.

How often the finalist wins, simulated (`python benchmarks/false_wins.py --races 800`, two seeds reserved and no time
for more). Every candidate is truly better than the baseline by the gain, in standard deviations of a seed:

    gain             -2     -1      0     +1     +2
     3 candidates   0.6%   4.9%    21%    50%    73%
     4              0.4%   5.1%    19%    45%    67%
     8              0.5%   5.2%    19%    45%    68%
    16              0.9%   3.8%    19%    41%    67%

A win at a gain of 0 costs nothing. Those at -1 are differences too small for so few seeds to show.
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

# A lead over the baseline of this many standard deviations of a seed is beyond doubt before any fresh seed. Assumed:
# the best of a hundred equal configurations leads by four such deviations, from its own luck and the baseline's.
CLEAR_LEAD = 6.0

# A lead of at most this many is close: two fresh seeds of the finalist may not settle it. They settle it from two
# standard errors on, which is 2.4 such deviations. The best of a dozen equal configurations leads by 1.6 in the mean.
CLOSE_LEAD = 4.0

# A difference of this many standard errors is settled. A challenger that is at most this far below the baseline's own
# run is close.
SETTLED = 2.0

# A finalist scores "from below" if the baseline's second run was worse than its first, and only then the finalist was
# above it. It must be ahead by this many standard errors, because luck makes that more often than merit. Simulated for
# three to eight configurations that are all as good as the baseline: at 2 it wins in .4 to 1 % of all races, at 2.5 in
# .1 to .4 % (benchmarks/NOTES.md, 2026-11-22).
FROM_BELOW = 2.5

# The report says "beat" of a lead on fresh seeds that is real with this chance by Student's t, and "was ahead" of any
# other. 95 % would be enough for one look at two sides that nothing chose. But a race looks after every seed, and most
# often it is the baseline's own run that was beaten in the search. A lead that was beyond doubt in the search too
# (`CLEAR_LEAD`) has been seen twice, so 95 % are enough for it. Simulated: of races in which nothing is better, 1 to 4
# % say "beat" (benchmarks/null_races.py; benchmarks/false_wins.py --proven).
PROVEN, PROVEN_AGAIN = 0.99, 0.95

# The most seeds for each side, with any budget. Assumed: the standard error of a mean of eight is a third of a seed's
# standard deviation, and a smaller difference matters to nobody.
MOST_SEEDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSummary:
    """The scores of one configuration on seeds that nothing selected.

    Attributes:
        mean: of the scores.
        stderr: standard error of the mean, from the pooled sigma; None if nothing was repeated.
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
    """What the full-length scores show so far.

    Attributes:
        finalist: the configuration that challenges the baseline; None if none scored above it.
        finalist_score: from fresh seeds only; None before the first.
        baseline_score: from all runs of the baseline, or with `from_below` from its fresh seeds only; None if it has
            none.
        difference: the finalist's score minus the baseline's, positive if the finalist is better; None until both have
            one.
        stderr: standard error of the difference.
        sigma: the source of the standard errors; None if nothing was repeated.
        gave_way: configurations that would have been the finalist but failed under a fresh seed.
        passed_over: configurations that scored above the finalist but are too close to where training diverges.
        lucky: the configuration that scored best, if it is not the finalist because those around it scored less.
        from_below: nothing scored above the baseline's own run, and the finalist scored above its fresh seed.
        clear_lead: of the finalist's own score over the baseline's own run, if it is beyond doubt (`CLEAR_LEAD`), and
            no fresh seed of the finalist ended or failed. Otherwise None.
        led_clearly: whether its lead in the search was beyond doubt, with any result under fresh seeds.
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
        """Whether the finalist beat the baseline by more than one standard error. Any finite score beats none.

        With `from_below` it takes `FROM_BELOW` standard errors. If the time was over before the first fresh seed ended,
        a lead beyond doubt is enough: that the finalist is better is then known, but not by how much.
        """
        if self.difference is None or self.stderr is None:
            return self.clear_lead is not None or (self.baseline_score is None and self.finalist_score is not None)
        return self.difference > (FROM_BELOW if self.from_below else 1.0) * self.stderr

    @property
    def probability(self) -> float | None:
        """The chance that the finalist is truly better than the baseline; None if nothing shows what a seed changes.

        By Student's t with the few degrees of freedom of sigma. Before the fresh seeds, either side is taken to lead by
        any given amount with equal chance.
        """
        if self.difference is None or self.stderr is None or self.sigma is None:
            return None
        return chance_below(self.difference / self.stderr, self.sigma.degrees)

    @property
    def is_proven(self) -> bool:
        """Whether the finalist's lead on fresh seeds is too large to be luck, see `PROVEN`."""
        return self.finalist_wins and self.probability is not None and self.probability >= self.proven_from

    @property
    def proven_from(self) -> float:
        """The probability from which the lead is proven."""
        return PROVEN_AGAIN if self.led_clearly else PROVEN

    @property
    def is_settled(self) -> bool:
        """Whether the finalist is proven to be better, or is behind by more than two standard errors."""
        if self.difference is None or self.stderr is None:
            return False
        return self.is_proven or self.difference < -SETTLED * self.stderr


def judge(history: History) -> Verdict:
    """The verdict on a race: which configuration challenges the baseline, and by how much it is better on fresh seeds.

    The standard error of the difference is sigma sqrt(1 / k_finalist + 1 / k_baseline).
    """
    own = history.baseline_scores
    ranked = _challengers(history)
    standing = [trial for trial in ranked if trial.config not in history.broken]
    # A finalist that has a fresh seed stays the finalist. Each of its runs that does not diverge lowers the risk around
    # it, and could otherwise lift a configuration above it that has no fresh seed at all.
    begun = (trial for trial in standing if history.fresh_scores(trial.config))
    finalist = next(begun, standing[0] if standing else None)
    fresh = history.fresh_scores(finalist.config) if finalist else ()
    from_below = finalist is not None and bool(own) and not _is_above(history, finalist, own[0])
    counted = own[1:] if from_below else own

    sigma = None
    if finalist is not None and finalist.final_score is not None and fresh:
        # The score that selected it is biased upwards. In the pooled sigma it can only make sigma larger.
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
    """The configuration to train under a fresh seed next; None once the difference is settled or more seeds would not
    help.

    The reserved seeds go to the finalist. While the difference is then within two standard errors, or fewer than
    `kept_back` seeds have begun, the side with fewer seeds gets the next one. If nothing scored above the baseline's
    own run and the best came close, the first seed goes to the baseline. Runs under way count as seeds. While the
    reserved ones are under way, the answer is None, to wait for them.
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
    """Which side to train under a fresh seed if nothing scored above the baseline's own run; a reserve is kept for
    both.

    The baseline gets one. An idle worker meanwhile trains the best of those below, which is the finalist if the
    baseline's own run was luck: the clock may not allow one after the other.
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
    """The best challenger that is at most two standard errors below the baseline's own run, by the spread of all
    scores.
    """
    own = history.baseline_scores
    sigma = pooled_sigma([], history.full_length, resolution=score_resolution(history))
    if not own or sigma is None:
        return None
    ended = (t for t in history.trials if t.is_challenger and t.state == "complete" and t.config not in history.broken)
    best = max(ended, key=history.last, default=None)
    score = -math.inf if best is None else history.last(best)
    return best if history.oriented(own[0]) - score <= SETTLED * sigma.value * math.sqrt(2) else None


def leads_clearly(history: History) -> bool:
    """Whether the best challenger's score is so far above the baseline's own that one fresh seed is enough."""
    bar = _clear_from(history)
    if bar is None or history.best <= bar:
        return False  # a short cut: every decision calls this
    ranked = _challengers(history)
    return bool(ranked) and _clear_lead(ranked[0], history) is not None


def is_close(history: History) -> bool:
    """Whether something scored above the baseline's own run, but by no more than `CLOSE_LEAD`."""
    own, best = history.baseline_scores, history.best
    if not own or best <= history.oriented(own[0]):
        return False
    bar = _clear_from(history, CLOSE_LEAD)
    return bar is None or best <= bar


def _clear_from(history: History, lead: float = CLEAR_LEAD) -> float | None:
    """The score above which a lead over the baseline's own run is larger than `lead` standard deviations of a seed.

    None if nothing shows what a seed changes. Sigma comes from the spread between configurations alone, and is rather
    too large than too small.
    """
    own = history.baseline_scores
    sigma = pooled_sigma([], history.full_length, resolution=score_resolution(history), farthest=math.inf)
    return history.oriented(own[0]) + lead * sigma.value if own and sigma is not None else None


def _clear_lead(challenger: Trial, history: History) -> float | None:
    """The lead of the challenger's score over the baseline's own run, if it is beyond doubt; otherwise None.

    None too if training may diverge there: one seed cannot show that it does not.
    """
    bar = _clear_from(history)
    if bar is None or challenger.final_score is None or history.last(challenger) <= bar:
        return None
    if divergence_risk(challenger.config, history) > SAFE_RISK:
        return None
    return history.oriented(challenger.final_score - history.baseline_scores[0])


def _challengers(history: History) -> list[Trial]:
    """Full-length trials that scored above the baseline's own run, the most promising first.

    If the baseline has no run, these are all full-length trials. If nothing scored above its run, they are those above
    its first fresh seed. A trial promises its lead over the baseline without the luck of a seed (`denoised_scores`),
    times the chance that its next run does not diverge. The lead is over the worst challenger if that is behind the
    baseline, or if the baseline has no score.
    """
    steady = denoised_scores(history)
    scores = [(history.last(t), t) for t in history.trials if t.is_challenger and t.number in steady]
    own = history.baseline_scores
    if own:
        bar = history.oriented(own[0])
        if len(own) > 1 and not any(score > bar for score, trial in scores if trial.config not in history.broken):
            bar = history.oriented(own[1])
    above = [trial for score, trial in scores if not own or score > bar]
    floors = [trial for trial in history.trials if trial.role == "baseline" and trial.number in steady]
    least = min((steady[trial.number] for trial in [*floors, *above]), default=0.0)

    def worth(trial: Trial) -> float:
        return (steady[trial.number] - least) * (1 - divergence_risk(trial.config, history))

    return sorted(above, key=worth, reverse=True)


def _is_above(history: History, trial: Trial, score: float | None) -> bool:
    """Whether a trial ended with a better score than this one."""
    return trial.final_score is not None and score is not None and history.oriented(trial.final_score - score) > 0


def _summary(scores: tuple[float, ...], sigma: Sigma | None) -> ScoreSummary | None:
    if not scores:
        return None
    stderr = sigma.value / math.sqrt(len(scores)) if sigma else None
    return ScoreSummary(mean=sum(scores) / len(scores), stderr=stderr, scores=scores)
