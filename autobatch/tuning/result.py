"""The report of a run, made from the results of its stages: of all of them, or of those there was time for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..core.facts import DeviceInfo, TaskFacts
from ..core.plan import Config
from ..core.segment import TRAINING_AGAIN
from ..core.units import format_duration
from ..core.words import limit_sentence
from ..measuring.memory import MaxBatch
from ..measuring.throughput import ThroughputCurve
from ..reports.report import Report
from ..runs.run_folder import RunState
from ..runs.settings import TuneSettings
from ..searching.budget.ledger import Ledger
from ..searching.limits import MemoryLimits
from ..searching.verdict.failures import failed_trials
from ..searching.verdict.stability import norms_out_of_line
from ..tasks.command import filled_in

if TYPE_CHECKING:
    from ..searching.search import SearchResult


def compared_report(measured: Report, result: SearchResult, facts: TaskFacts) -> Report:
    """The report of a run whose race came to a result.

    Args:
        measured: the report of the stages before the race, by `measured_report`.
        result: of the race.
        facts: the facts of the task.
    """
    # The race may have split the baseline into micro-batches because it does not fit.
    raced = result.history.baseline
    is_repeated = not facts.has_seeds and _repeats_are_equal(result)
    return replace(
        measured,
        horizon_s=result.horizon_s,
        config=result.chosen,
        chose_baseline=result.chose_baseline,
        baseline_plan=raced.config if raced else facts.baseline,
        probability=None if is_repeated else result.probability,
        is_proven=result.is_proven and not is_repeated,
        score=result.score,
        baseline=result.baseline,
        test_score=result.test_score,
        test_baseline=result.baseline_test_score,
        trials=tuple(trial.to_json() for trial in result.trials),
        why=(*result.why, *measured.why),
        warnings=(*measured.warnings, *_warnings_of(result, facts)),
        interrupted=result.interrupted,
        lost_device=result.lost_device,
        long_run=_beyond(result, measured.train_time_s),
        not_compared=result.not_compared,
        typed=None if facts.typed is None else filled_in(facts.typed, result.chosen),
    )


def measured_report(
    state: RunState,
    *,
    facts: TaskFacts,
    device: DeviceInfo,
    largest: MaxBatch,
    ledger: Ledger,
    workers: int,
    remarks: Iterable[str] = (),
    not_compared: str | None = None,
) -> Report:
    """The report of a run by its measurements alone, which recommends the baseline.

    Args:
        state: the state of the run, with what its stages found.
        facts: the facts of the task.
        device: the device of the run.
        largest: the largest micro-batch.
        ledger: the time spent so far.
        workers: how many workers trained trials at the same time.
        remarks: more warnings, which do not follow from the other arguments.
        not_compared: why there was no time for a race.
    """
    found = state.results
    curve = None if found.curve is None else replace(found.curve, rule=largest.rule)
    baseline = facts.baseline
    if curve is not None:
        baseline = baseline_that_fits(facts, curve, largest, found.micro_batch)
    return Report(
        task=facts.name,
        created=state.created,
        command=state.settings.command,
        version=__version__,
        device=device,
        direction=facts.direction,
        budget_s=state.settings.budget_s,
        horizon_s=found.horizon_s,
        train_time_s=train_time_of(state.settings, facts),
        config=baseline,
        chose_baseline=True,
        baseline_plan=baseline,
        baseline_is_users=facts.baseline_is_users,
        score=None,
        baseline=None,
        test_score=None,
        test_baseline=None,
        max_batch=largest.to_json(),
        throughput=None if curve is None else curve.to_json(),
        learning_rate=found.sweep.to_json() if found.sweep else None,
        trials=(),
        ledger=ledger.to_json(),
        why=tuple(_why(facts, largest, curve, workers)),
        warnings=(*_warnings(state, facts, largest, curve, ledger), *remarks),
        seed=state.settings.seed,
        not_compared=not_compared,
        has_seeds=facts.has_seeds,
        typed=None if facts.typed is None else filled_in(facts.typed, baseline),
    )


def train_time_of(settings: TuneSettings, facts: TaskFacts) -> float | None:
    """Seconds that the user's real training takes; its own length where that cannot be chosen. None where unknown."""
    known = [seconds for seconds in (settings.train_time_s, facts.own_length_s) if seconds is not None]
    return min(known, default=None)


def baseline_that_fits(facts: TaskFacts, curve: ThroughputCurve, largest: MaxBatch, micro_batch: int | None) -> Config:
    """The baseline as it can be trained here: in micro-batches, where its batch does not fit as one."""
    limits = MemoryLimits(
        times=curve,
        precision=facts.precision,
        max_batch=int(largest),
        max_micro_batch=(micro_batch or 0) if facts.accumulates else 0,
    )
    own = facts.baseline
    return replace(own, plan=limits.as_trained(own.plan, accumulates=facts.accumulates))


def _why(facts: TaskFacts, largest: MaxBatch, curve: ThroughputCurve | None, workers: int) -> Iterable[str]:
    if workers > 1:
        yield f"{workers} workers each trained a trial at the same time"
    yield limit_sentence(largest.limited_by, str(int(largest)), largest.limit.budget_bytes)
    if curve is not None:
        yield curve.describe_knee()
    if (without := facts.without.get("range test")) is not None:
        yield f"the range test was left out: {without}"


def _warnings(
    state: RunState, facts: TaskFacts, largest: MaxBatch, curve: ThroughputCurve | None, ledger: Ledger
) -> Iterable[str]:
    yield from (*facts.warnings, *facts.assumptions, *largest.assumed)
    if (again_s := ledger.entries().get(TRAINING_AGAIN, 0.0)) > 0:
        yield (
            f"trials that were promoted began again from nothing: {format_duration(again_s)} went on what had been "
            "trained before, which {checkpoint} in the command would save"
        )
    if curve is not None and (starved := curve.describe_starvation()) is not None:
        yield starved
    for earlier in state.settings.earlier:
        if earlier.task != facts.name:
            yield f"{earlier.origin} is from another task, {earlier.task}"
    yield from state.remarks


def _warnings_of(result: SearchResult, facts: TaskFacts) -> Iterable[str]:
    """What the race itself has to warn of."""
    if not facts.has_seeds and _repeats_are_equal(result):
        yield (
            "each configuration scored exactly the same when it was run again: the script's seed is fixed, and nothing "
            "says how much another one changes the score. Put {seed} into the command"
        )
    if (norms := norms_out_of_line(result.chosen, result.history)) is not None:
        yield norms
    yield from failed_trials(result.history)


def _repeats_are_equal(result: SearchResult) -> bool:
    """Whether whatever was run several times to its end gave the same score each time, as where a seed is fixed."""
    scores: dict[Config, list[float]] = {}
    for trial in result.trials:
        if trial.final_score is not None:
            scores.setdefault(trial.config, []).append(trial.final_score)
    repeated = [found for found in scores.values() if len(found) > 1]
    return bool(repeated) and all(len(set(found)) == 1 for found in repeated)


def _beyond(result: SearchResult, train_time_s: float | None) -> dict[str, Any] | None:
    """What the race predicts for the user's training if it is longer than T; None otherwise."""
    from ..searching.verdict.long_run import look_ahead

    # Within a hundredth the horizons are the same, because T is a whole number of optimizer steps.
    if train_time_s is None or result.horizon_s >= 0.99 * train_time_s:
        return None
    return look_ahead(result, train_time_s).to_json()
