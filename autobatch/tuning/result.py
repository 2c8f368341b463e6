"""The report of a run, made from the results of its stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..core.facts import DeviceInfo, TaskFacts
from ..core.words import limit_sentence
from ..measuring.learning_rate import LrCurve
from ..measuring.memory import MaxBatch
from ..measuring.throughput import ThroughputCurve
from ..reports.report import Report
from ..runs.run_folder import RunState
from ..searching.budget.ledger import Ledger
from ..searching.verdict.failures import failed_trials
from ..searching.verdict.stability import norms_out_of_line

if TYPE_CHECKING:
    from ..searching.search import SearchResult


def report_of(
    state: RunState,
    *,
    facts: TaskFacts,
    device: DeviceInfo,
    largest: MaxBatch,
    curve: ThroughputCurve,
    sweep: LrCurve | None,
    result: SearchResult,
    ledger: Ledger,
    workers: int,
    remarks: Iterable[str],
) -> Report:
    """Make the report of a run.

    Args:
        state: the state of the run.
        facts: the facts of the task.
        device: the device of the run.
        largest, curve, sweep, result: the results of the stages, in order.
        ledger: the time spent so far.
        workers: how many workers trained trials at the same time.
        remarks: more warnings, which do not follow from the other arguments.
    """
    # The race may have split the baseline into micro-batches because it does not fit.
    raced = result.history.baseline
    return Report(
        task=facts.name,
        created=state.created,
        command=state.settings.command,
        version=__version__,
        device=device,
        direction=facts.direction,
        budget_s=state.settings.budget_s,
        horizon_s=result.horizon_s,
        train_time_s=state.settings.train_time_s,
        config=result.chosen,
        chose_baseline=result.chose_baseline,
        baseline_plan=raced.config if raced else facts.baseline,
        baseline_is_users=facts.baseline_is_users,
        probability=result.probability,
        is_proven=result.is_proven,
        score=result.score,
        baseline=result.baseline,
        test_score=result.test_score,
        test_baseline=result.baseline_test_score,
        max_batch=largest.to_json(),
        throughput=curve.to_json(),
        learning_rate=sweep.to_json() if sweep else None,
        trials=tuple(trial.to_json() for trial in result.trials),
        ledger=ledger.to_json(),
        why=(*result.why, *_why(largest, curve, workers)),
        warnings=(*_warnings(state, facts, largest, curve, result), *remarks),
        interrupted=result.interrupted,
        lost_device=result.lost_device,
        long_run=_beyond(result, state.settings.train_time_s),
        seed=state.settings.seed,
    )


def _why(largest: MaxBatch, curve: ThroughputCurve, workers: int) -> Iterable[str]:
    if workers > 1:
        yield f"{workers} workers each trained a trial at the same time"
    yield limit_sentence(largest.limited_by, str(int(largest)), largest.limit.budget_bytes)
    yield curve.describe_knee()


def _warnings(
    state: RunState, facts: TaskFacts, largest: MaxBatch, curve: ThroughputCurve, result: SearchResult
) -> Iterable[str]:
    yield from (*facts.warnings, *facts.assumptions, *largest.assumed)
    if (starved := curve.describe_starvation()) is not None:
        yield starved
    for earlier in state.settings.earlier:
        if earlier.task != facts.name:
            yield f"{earlier.origin} is from another task, {earlier.task}"
    if (norms := norms_out_of_line(result.chosen, result.history)) is not None:
        yield norms
    yield from failed_trials(result.history)
    yield from state.remarks


def _beyond(result: SearchResult, train_time_s: float | None) -> dict[str, Any] | None:
    """What the race predicts for the user's training if it is longer than T; None otherwise."""
    from ..searching.verdict.long_run import look_ahead

    # Within a hundredth the horizons are the same, because T is a whole number of optimizer steps.
    if train_time_s is None or result.horizon_s >= 0.99 * train_time_s:
        return None
    return look_ahead(result, train_time_s).to_json()
