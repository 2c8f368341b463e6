"""How a race ends: with a result, or with the reason why it has none and what would help."""

from __future__ import annotations

from dataclasses import replace

from ..core.units import format_duration
from ..errors import DeviceError, DeviceLost, NoValidResult
from .budget.advice import enough_s, give_at_least, typed
from .budget.costs import EQUIVALENTS
from .history import History
from .race import Race
from .trials import MIN_STEPS, optimizer_step_s
from .verdict.conclusion import SearchResult, conclude
from .verdict.confirmation import judge
from .verdict.failures import headline


def finished(race: Race) -> SearchResult:
    """The result of a race that ran to its end.

    Raises:
        NoValidResult: every trial failed.
    """
    history, pace = race.history, race.account.paces.correction
    baseline = history.trials[0]
    if baseline.state in ("running", "paused"):
        why = (
            f"the time ran out at step {baseline.steps_done} of {baseline.total_steps} of the baseline: training "
            f"takes {pace:.1f} times what the profile said. {_remedy_for_slow_steps(race)}"
        )
        return replace(_result(race, history), not_compared=why)
    if not any(trial.state == "complete" for trial in history.trials):
        failures = sorted({f"{t.outcome}: {t.message or 'no message'}" for t in history.trials if t.state == "failed"})
        raise NoValidResult(
            f"a race needs a trial that is trained to the end; {len(history.trials)} were started and none was"
            + (f" ({'; '.join(failures)})" if failures else "")
            + f". A full one takes {format_duration(race.costs.full_trial_s * pace)}: mend the task, or give more time"
        )
    return _result(race, history)


def interrupted(race: Race, why: str = "stopped by the user before the end") -> SearchResult:
    """The result of a race that was stopped: the baseline, unless it failed or all reserved fresh seeds had finished.

    Segments under way are not waited for: closing the runners ends them.
    """
    history = race.history
    for trial in history.trials:
        if trial.state == "running":  # the record keeps it in flight, for a resumed run
            stopped = replace(trial, message="interrupted", state="paused" if trial.scores else "dropped")
            history = history.updated(stopped)
    return _result(race, history, why)


def without_device(race: Race, lost: DeviceError) -> SearchResult:
    """The result of a race that has no device left.

    Raises:
        DeviceLost: nothing was trained to the end.
    """
    if not any(trial.state == "complete" for trial in race.history.trials):
        raise DeviceLost(f"no device was left to train on before anything was trained to the end: {lost}")
    ended = interrupted(race, f"ended early, as no device was left to train on: {lost}")
    return replace(ended, lost_device=True)


def _result(race: Race, history: History, stopped: str | None = None) -> SearchResult:
    verdict = judge(history)
    fresh = verdict.finalist_score
    return conclude(
        history,
        verdict,
        baseline=race.baseline.config,
        space=race.candidates.space,
        horizon_s=race.costs.horizon_s,
        equivalents=race.account.equivalents,
        may_win=stopped is None or (fresh is not None and len(fresh.scores) >= race.reserve.of_finalist(history)),
        interrupted=stopped,
        notes=[*race.notes, *_why_stuck(history), *_corrections(race), *race.crew.remarks],
        test_scores=race.test_scores,
    )


def _why_stuck(history: History) -> list[str]:
    """Why the search ended before its time."""
    if not (stuck := history.stuck):
        return []
    return [
        f"the search ended early: {len(stuck)} trials failed at the same point of their training and none got past it, "
        f"the last of them with: {headline(stuck[-1].message)}"
    ]


def _corrections(race: Race) -> list[str]:
    """What the profile was wrong about."""
    return [
        f"a step at batch size {batch} took {off:.2f} times what the profile gave for it beside the baseline's: "
        f"trials begun after this was seen had {'fewer' if off > 1 else 'more'} steps, for the same time"
        for batch, off in race.account.paces.off_by(race.baseline.config.plan.batch_size).items()
    ]


def _remedy_for_slow_steps(race: Race) -> str:
    """What lets the baseline finish, if training is much slower than the profile predicted."""
    pace, full_s = race.account.paces.correction, race.costs.full_trial_s
    if 2 * pace < EQUIVALENTS:
        return give_at_least(enough_s(EQUIVALENTS * pace * full_s, race.began_s), "a budget of ")
    # The length of a trial is a share of the budget by the profile. So it is too long in any budget.
    why = "With any budget it would: a trial is as long as the profile lets it be. See what slows training down"
    left_s = race.ledger.budget_s - race.began_s
    train_time_s = (left_s / (2 * pace) - (full_s - race.costs.horizon_s)) / 2
    if train_time_s < MIN_STEPS * optimizer_step_s(race.baseline.config.plan, race.costs.times):
        return why
    return f"{why}, or give a training time of at most {typed(train_time_s)}"
