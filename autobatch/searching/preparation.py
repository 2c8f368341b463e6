"""What is fixed before a race: the baseline as it fits in memory, the space around it, and the search."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.facts import TaskFacts
from ..core.plan import Plan
from ..core.units import format_duration
from ..errors import BudgetTooShort
from .budget.advice import enough_s, give_at_least
from .budget.costs import EQUIVALENTS, Costs
from .budget.ledger import Ledger
from .limits import MemoryLimits
from .schedulers.base import Scheduler, Start
from .schedulers.candidates import Candidates
from .schedulers.table import scheduler_for
from .schedulers.warm_starts import WarmStarts, runnable, warm_starts
from .space import space_for
from .trials import MIN_STEPS, SearchSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """All that is fixed before the first trial.

    Attributes:
        baseline: is trained first.
        candidates: the configurations that may be tried.
        scheduler: chooses among them.
        notes: on what was left out.
    """

    baseline: Start
    candidates: Candidates
    scheduler: Scheduler
    notes: tuple[str, ...]


def prepare(
    facts: TaskFacts,
    settings: SearchSettings,
    limits: MemoryLimits,
    costs: Costs,
    *,
    lr_hint: float | None,
    lr_diverged: float | None,
) -> Preparation:
    """Fix the baseline, the space, the warm starts and the search.

    Args:
        facts: the facts of the task.
        settings: of the race.
        limits: what memory should hold.
        costs: modelled seconds of the work.
        lr_hint, lr_diverged: the suggestion of the range test at the knee, and the rate where it diverged.
    """
    baseline = _baseline(facts, limits)
    earlier, not_here = runnable(settings.earlier, limits, costs)
    space = space_for(
        facts,
        costs.times,
        max_batch=limits.max_batch,
        max_micro_batch=limits.max_micro_batch,
        horizon_s=costs.horizon_s,
        baseline=baseline.config,
        lr_hint=lr_hint,
        lr_diverged=lr_diverged,
        earlier=[config for config, _ in earlier],
    )
    candidates = Candidates(
        space=replace(space, lrs=settings.lrs), limits=limits, seed=settings.seed, most_trials=settings.most_trials
    )
    plan = limits.plan_for(space.nearest(space.reference_batch))
    starts = warm_starts(candidates.space, baseline.config, plan, lr_hint, earlier) if plan else earlier
    return Preparation(
        baseline=baseline,
        candidates=candidates,
        scheduler=WarmStarts(candidates, starts, scheduler_for(settings.sampler, candidates)),
        notes=tuple(not_here),
    )


def check_time(plan: Plan, costs: Costs, ledger: Ledger) -> None:
    """Refuse a race whose baseline cannot be trained to the end.

    Raises:
        BudgetTooShort: it would take too few steps, or more time than there is.
    """
    steps = costs.total_steps(plan)
    if steps >= MIN_STEPS and costs.full_trial_s <= ledger.available_s:
        return
    needed_s = enough_s(EQUIVALENTS * costs.full_trial_s * max(1.0, MIN_STEPS / steps), ledger.elapsed_s)
    raise BudgetTooShort(
        f"the baseline takes at least {MIN_STEPS} steps in a full trial that fits the budget; it would take "
        f"{steps} in {format_duration(costs.full_trial_s)}, and {format_duration(ledger.available_s)} remain. "
        f"{give_at_least(needed_s)}"
    )


def _baseline(facts: TaskFacts, limits: MemoryLimits) -> Start:
    """The baseline as it is trained here. Its batch may be split into micro-batches that fit."""
    whose = "your configuration" if facts.baseline_is_users else "the default configuration (assumed)"
    origin = f"{whose}, trained to the end"
    own = facts.baseline.plan
    fitting = limits.as_trained(own, accumulates=facts.accumulates)
    if fitting != own:
        where = " beside gradients that are kept" if own.accumulation_steps > 1 else ""
        how = f"accumulated over {fitting.accumulation_steps} steps of {fitting.batch_size}"
        if fitting.accumulation_steps == 1:
            how = f"trained as one batch of {fitting.batch_size}"
        origin += f"; its batch of {own.batch_size} does not fit{where}, so it is {how}"
    return Start(config=replace(facts.baseline, plan=fitting), origin=origin, role="baseline")
