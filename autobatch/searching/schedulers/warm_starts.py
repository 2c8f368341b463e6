"""What is tried before the search begins: the choices of earlier runs, and the baseline in a few variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...core.plan import Config, Plan
from ..budget.costs import Costs
from ..history import History
from ..limits import MemoryLimits
from ..space import Space, rounded_lr, same_config, scale
from ..trials import MIN_STEPS
from .base import Budget, Resume, Scheduler, Start
from .candidates import Candidates

Reasoned = tuple[Config, str]  # what to try, and the reason in one sentence


class WarmStarts(Scheduler):
    """Starts configurations that are known beforehand, once each and in order. Then another search decides.

    Args:
        candidates: how many may be tried, and what memory holds.
        starts: what to try.
        then: the search that follows.
    """

    def __init__(self, candidates: Candidates, starts: Sequence[Reasoned], then: Scheduler) -> None:
        self._candidates, self._starts, self._then = candidates, tuple(starts), then

    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        if budget.may_start and self._candidates.has_room(history):
            begun = {trial.config for trial in history.trials if trial.role == "warm start"}
            for config, origin in self._starts:
                if config not in begun and self._candidates.limits.holds(config.plan):
                    return Start(config=config, origin=origin, role="warm start")
        return self._then.suggest(history, budget)


def warm_starts(
    space: Space, baseline: Config, plan: Plan, lr_hint: float | None, earlier: Sequence[tuple[Config, str]] = ()
) -> list[tuple[Config, str]]:
    """What to try first, with reasons: choices of earlier runs, the scaled baseline, the range test's suggestion.

    The baseline is scaled to `plan`, and the range test's suggestion is for it. One that is too close to the baseline,
    or to one before it, is left out.

    Args:
        space: the space to search; `lr_hint` is the learning rate at its reference batch.
        baseline: the user's configuration.
        plan: at the knee of the throughput curve, or the closest that can be run.
        lr_hint: None without a range test.
        earlier: choices of earlier runs, with the run of each.
    """
    batch = plan.effective_batch_size
    lr = baseline.lr * scale(baseline.plan.effective_batch_size, batch)
    scaled = f"the baseline scaled to the knee of the throughput curve, batch {batch}"
    candidates = [*earlier, (Config(plan=plan, lr=rounded_lr(lr)), scaled)]
    if lr_hint is not None:
        suggested = Config(plan=plan, lr=rounded_lr(space.lr_at(batch, lr_hint)))
        candidates.append((suggested, f"what the range test suggests, at the knee, batch {batch}"))
    starts: list[tuple[Config, str]] = []
    for config, origin in candidates:
        if not any(same_config(config, other) for other in (baseline, *(start for start, _ in starts))):
            starts.append((config, origin))
    return starts


def runnable(earlier: Sequence[Reasoned], limits: MemoryLimits, costs: Costs) -> tuple[list[Reasoned], list[str]]:
    """The choices of earlier runs that can be run here, and a note on each that cannot."""
    starts, notes = [], []
    for config, origin in earlier:
        batch = config.plan.effective_batch_size
        plan = limits.plan_for(batch)
        if plan is None:
            notes.append(f"{origin} was not tried: batch {batch} does not fit here")
        elif (steps := costs.total_steps(plan)) < MIN_STEPS:
            took = f"{steps} step{'s' if steps > 1 else ''}"
            notes.append(f"{origin} was not tried: batch {batch} takes no more than {took} in a full trial here")
        else:
            starts.append((replace(config, plan=plan), origin))
    return starts, notes
