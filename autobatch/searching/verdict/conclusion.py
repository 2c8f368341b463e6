"""The result of a race: the choice, its scores on seeds that nothing selected, and the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core.plan import Config
from ...core.units import format_duration, format_lr, format_probability
from ..history import History
from ..space import Space
from ..trials import Trial
from .confirmation import CLEAR_LEAD, ScoreSummary, Verdict
from .failures import headline
from .seed_noise import Sigma


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The result of a race.

    Attributes:
        history: all its trials.
        horizon_s: seconds of training in a full trial. The answer holds at this horizon.
        space: where the search looked.
        equivalents: full trials that the time paid for.
        finalist: the configuration that challenged the baseline; None if nothing scored above it.
        chosen: the finalist, if it won on fresh seeds, or if its lead is beyond doubt and there was no time for fresh
            seeds, or if the baseline failed. Otherwise the baseline.
        chose_baseline: whether the baseline was chosen.
        score: of the chosen configuration, on seeds that nothing selected; None if it has none.
        baseline, finalist_score: the same for both sides of the comparison.
        sigma: the seed-to-seed standard deviation behind the standard errors, and its source.
        probability: the chance that the finalist is truly better than the baseline, by its fresh seeds; None if they
            cannot show it.
        is_proven: the probability is so high that the report says "beat". A choice that is not proven is as good as the
            baseline.
        why: the reasons for the choice, one sentence each.
        interrupted: whether the race was stopped before its end, by the user or because no device was left.
        test_score, baseline_test_score: on the test data, from one run each; None if the task has none.
        lost_device: whether the race ended because no device was left.
        not_compared: why the time ended before the baseline was trained to the end, and what would be enough; None if
            it was.
    """

    history: History
    horizon_s: float
    space: Space
    equivalents: float
    finalist: Config | None
    chosen: Config
    chose_baseline: bool
    score: ScoreSummary | None
    baseline: ScoreSummary | None
    finalist_score: ScoreSummary | None
    sigma: Sigma | None
    why: tuple[str, ...]
    interrupted: bool
    probability: float | None = None
    is_proven: bool = False
    test_score: float | None = None
    baseline_test_score: float | None = None
    lost_device: bool = False
    not_compared: str | None = None

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, in the order in which they were started."""
        return self.history.trials


def conclude(
    history: History,
    verdict: Verdict,
    *,
    baseline: Config,
    space: Space,
    horizon_s: float,
    equivalents: float,
    may_win: bool = True,
    interrupted: str | None = None,
    notes: Sequence[str] = (),
    test_scores: tuple[float | None, float | None] = (None, None),
) -> SearchResult:
    """The result of a race.

    Args:
        history: of the race.
        verdict: on the full-length scores.
        baseline: the baseline as it was trained.
        space, horizon_s, equivalents: as in `SearchResult`.
        may_win: False if the race was stopped before the finalist had its reserved seeds.
        interrupted: why the race was stopped; None if it was not.
        notes: further reasons.
        test_scores: of the chosen configuration and of the baseline.
    """
    trials = history.trials
    baseline_failed = any(trial.role == "baseline" and trial.state == "failed" for trial in trials)
    finalist = verdict.finalist
    # Anything that trains to the end is better than a baseline that does not.
    wins = finalist is not None and (baseline_failed or (may_win and verdict.finalist_wins))
    reasons = [
        f"{len(trials)} trial{'s' if len(trials) > 1 else ''} of up to {format_duration(horizon_s)} of training each, "
        "over effective batch sizes "
        f"{space.effective_batch_sizes[0]} to {space.effective_batch_sizes[-1]} and learning rates "
        f"{format_lr(space.lr_low)} to {format_lr(space.lr_high)} at batch {space.reference_batch}"
    ]
    if interrupted is not None:
        reasons.append(interrupted)
    if baseline_failed:
        first = trials[0]
        reasons.append(f"the baseline itself failed ({first.outcome}: {headline(first.message)})")
    reasons += [
        f"{_named(config)} scored best once and failed under a fresh seed, so it gave way"
        for config in verdict.gave_way
    ]
    reasons += [
        f"{_named(config)} scored higher once and was passed over: trainings around it diverged or failed"
        for config in verdict.passed_over
    ]
    if verdict.lucky is not None:
        reasons.append(f"{_named(verdict.lucky)} scored best once; by the trials around it, that was a lucky seed")
    failed = [
        trial for trial in history.confirmations if _is_baseline_again(trial, history) and trial.state == "failed"
    ]
    if failed:
        reasons.append(
            f"the baseline failed under a fresh seed ({failed[0].outcome}: {headline(failed[0].message)}); its "
            "score is of the seeds under which it came to the end"
        )
    if verdict.from_below and finalist is not None:
        reasons.append(
            f"nothing scored above the baseline's first run, but {_named(finalist)} came close and the baseline scored "
            "lower under a fresh seed, so both are compared on fresh seeds alone"
        )
    reasons.append(_comparison(verdict, wins, may_win, history))
    if verdict.sigma is not None:
        reasons.append(f"a seed changes the score by {verdict.sigma.value:.2g}, from {verdict.sigma.source}")
    return SearchResult(
        history=history,
        horizon_s=horizon_s,
        space=space,
        equivalents=equivalents,
        finalist=finalist,
        chosen=finalist if finalist is not None and wins else baseline,
        chose_baseline=not wins,
        score=verdict.finalist_score if wins else verdict.baseline_score,
        baseline=verdict.baseline_score,
        finalist_score=verdict.finalist_score,
        sigma=verdict.sigma,
        why=(*reasons, *notes),
        interrupted=interrupted is not None,
        probability=verdict.probability,
        is_proven=wins and verdict.is_proven,
        test_score=test_scores[0],
        baseline_test_score=test_scores[1],
    )


def _comparison(verdict: Verdict, wins: bool, may_win: bool, history: History) -> str:
    """The verdict as a sentence."""
    if verdict.finalist is None:
        if all(trial.final_score is None for trial in history.trials):
            return "nothing was trained to the end, so nothing beat it"
        others = [trial for trial in history.trials if trial.role != "baseline"]
        if others and all(trial.state == "failed" for trial in others):
            return "nothing else came to its end: all other trials failed, so nothing was compared with the baseline"
        if verdict.baseline_score is None and verdict.gave_way:
            return "all that was trained to the end failed under a fresh seed, so there is nothing to put in its place"
        again = any(t.final_score is not None and _is_baseline_again(t, history) for t in history.confirmations)
        close = ", which was trained again under a fresh seed because something came close" if again else ""
        return f"nothing else scored above the baseline{close}"
    who = _named(verdict.finalist)
    if verdict.difference is None or verdict.stderr is None:
        if wins and verdict.clear_lead is not None:
            return (
                f"{who} was ahead of the baseline by {verdict.clear_lead:.4g} in the search, "
                f"over {CLEAR_LEAD:.0f} times what a seed changes: it is chosen, though no time was left for a fresh "
                "seed, and so without a score of its own"
            )
        state = "there is nothing to compare it with" if wins else "it was not confirmed, so the baseline stays"
        return f"{who} did best, and {state}"
    if verdict.difference > 0:
        what = f"{'beat' if wins and verdict.is_proven else 'was ahead of'} the baseline by {verdict.difference:.4g}"
    elif verdict.difference < 0:
        what = f"fell behind the baseline by {-verdict.difference:.4g}"
    else:
        what = "scored as much as the baseline"
    if wins and verdict.is_proven:
        end = ": it is chosen"
    elif wins and verdict.probability is not None:
        end = (
            f", which is not proven: it is better with a probability of {format_probability(verdict.probability)}, and "
            f'"beat" takes {format_probability(verdict.proven_from)}; it is chosen as being as good'
        )
    elif not may_win:
        end = ", when the run ended before all reserved seeds had spoken: the baseline stays"
    elif verdict.difference > 0:
        end = ": not enough, the baseline stays"
    else:
        end = ": the baseline stays"
    return f"on fresh seeds {who} {what}, standard error {verdict.stderr:.2g}{end}"


def _is_baseline_again(confirmation: Trial, history: History) -> bool:
    """Whether it is the baseline under a fresh seed."""
    return history.baseline is not None and history.baseline.config == confirmation.config


def _named(config: Config) -> str:
    return f"batch {config.plan.effective_batch_size} at {format_lr(config.lr)}"
