"""The race for the best validation score at equal training time, on any `Runner`.

The baseline is trained to the end first. From then on a scheduler says what to train next: a new trial, or a paused
one, from its checkpoint (schedulers/table.py lists all schedulers). The last part of the time goes to fresh seeds for
the finalist and the baseline.

Decisions use scores and *modelled* cost, which comes from the profile. So the same profile and the same scores give the
same race, as long as one segment is trained at a time and the profile is right about the ratios of the step times.
Several workers train several segments at once, and an idle one takes the next. The clock limits the race: nothing
starts that is predicted to end too late.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.facts import TaskFacts
from ..core.runner import Runner
from ..errors import DeviceError
from .budget.account import Account
from .budget.costs import Costs
from .budget.costs import horizon_s as horizon_s
from .budget.ledger import Ledger
from .crew import Alone, Crew
from .ending import finished, interrupted, without_device
from .history import History
from .limits import MemoryLimits
from .preparation import prepare
from .race import Race
from .space import Space as Space
from .storage.journal import Kept as Kept
from .storage.journal import StudyRecord as StudyRecord
from .trials import IN_ONE_GO
from .trials import Event as Event
from .trials import Ladder as Ladder
from .trials import SearchSettings as SearchSettings
from .trials import StepTimes as StepTimes
from .trials import Trial as Trial
from .verdict.conclusion import SearchResult as SearchResult
from .verdict.confirmation import ScoreSummary as ScoreSummary


def search(
    runner: Runner,
    ledger: Ledger,
    times: StepTimes,
    *,
    max_batch: int,
    max_micro_batch: int | None = None,
    horizon_s: float,
    eval_s: float,
    eval_batch_size: int,
    lr_hint: float | None = None,
    lr_diverged: float | None = None,
    settings: SearchSettings | None = None,
    record: StudyRecord | None = None,
    kept: Kept | None = None,
    on_event: Callable[[Event], None] | None = None,
    crew: Crew | None = None,
) -> SearchResult:
    """The best configuration that the rest of the ledger's budget allows. The budget is never overrun.

    Args:
        runner: trains and evaluates.
        ledger: is charged for everything done here.
        times: the throughput profile, by which all costs are compared.
        max_batch: the most samples that fit in one forward and backward pass.
        max_micro_batch: the same when gradients are kept from one pass to the next, for steps that accumulate; by
            default `max_batch`.
        horizon_s: seconds of training of a full trial, by the profile.
        eval_s, eval_batch_size: seconds and batch size of one evaluation of the validation data.
        lr_hint, lr_diverged: the suggestion of the range test at the knee, and the rate where it diverged.
        settings: of the race.
        record: where every trial is written.
        kept: the record of an earlier process of this run, which the race continues.
        on_event: called when a segment starts and when it ends.
        crew: trains the segments, on devices of the profile's kind; by default `runner`, one segment after the other.

    Raises:
        BudgetTooShort: the baseline could not be trained to the end at this horizon.
        NoValidResult: the time ran out before the baseline was trained, or every trial failed.
        DeviceLost: no device was left before anything was trained to the end.
    """
    settings = settings or SearchSettings()
    facts = runner.facts()
    if max_micro_batch is None:
        max_micro_batch = max_batch
    costs = Costs(
        times=times,
        ladder=_ladder(facts, settings, kept),
        horizon_s=horizon_s,
        eval_s=eval_s,
        resumes=facts.resumes,
    )
    crew = crew or Alone(runner)
    limits = MemoryLimits(
        times=times,
        precision=facts.precision,
        max_batch=max_batch,
        max_micro_batch=max_micro_batch if facts.accumulates else 0,
    )
    prepared = prepare(facts, settings, limits, costs, lr_hint=lr_hint, lr_diverged=lr_diverged)
    race = Race(
        runner=runner,
        crew=crew,
        ledger=ledger,
        limits=limits,
        account=Account(ledger=ledger, costs=costs, crew=crew, profile=times),
        eval_batch_size=eval_batch_size,
        settings=settings,
        record=record,
        on_event=on_event,
        baseline=prepared.baseline,
        candidates=prepared.candidates,
        scheduler=prepared.scheduler,
        history=History(direction=facts.direction, ladder=costs.ladder),
        notes=list(prepared.notes),
    )
    race.begin(kept)
    try:
        race.run()
    except KeyboardInterrupt:
        return interrupted(race)
    except DeviceError as lost:
        return without_device(race, lost)
    return finished(race)


def _ladder(facts: TaskFacts, settings: SearchSettings, kept: Kept | None) -> Ladder:
    """The rungs of each trial: the end alone, where a trial that was paused would go on without its state."""
    began_in_rungs = kept is not None and any(trial.steps_done % trial.total_steps for trial in kept.trials)
    if facts.is_pausable or began_in_rungs:  # by a version that paused them all the same
        return settings.ladder.beyond(facts.peak_lr_fraction)
    return IN_ONE_GO
