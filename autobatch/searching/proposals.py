"""What a race has not tried yet: first what is known beforehand, then what its sampler proposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ..core.plan import Config
from .costs import Costs
from .freeze_thaw import choose, untried
from .history import History
from .ledger import Ledger
from .limits import MemoryLimits
from .study import propose
from .trials import MIN_STEPS, SAME_LR, SearchSettings, Space, Trial, rounded_lr, same_config

# Failed trials in a row after which nothing new is tried: the fault is then not in the configurations. Assumed.
MOST_FAILURES = 10

# Proposals asked for in one place before the space counts as exhausted. Assumed.
MOST_REPEATS = 8

Start = tuple[Config, str]  # what to try, and why in one sentence


def runnable(earlier: Sequence[Start], limits: MemoryLimits, costs: Costs) -> tuple[list[Start], list[str]]:
    """What earlier runs found, as it can be run here; and a note on each that cannot."""
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


@dataclass(slots=True, kw_only=True)
class Proposals:
    """The configurations to come.

    Attributes:
        space: where the sampler looks.
        limits, settings, ledger: the race's own.
        waiting: what is tried before anything is sampled, in this order.
        is_exhausted: all that can be proposed was tried.
    """

    space: Space
    limits: MemoryLimits
    settings: SearchSettings
    ledger: Ledger
    waiting: list[Start] = field(default_factory=list)
    is_exhausted: bool = False

    def keep_what_fits(self) -> None:
        """Forget what memory is not thought to hold any more."""
        self.waiting = [(config, origin) for config, origin in self.waiting if self.limits.holds(config.plan)]

    def known(self, history: History) -> Start | None:
        """What comes next of that which is known beforehand; None once all of it, or as much as may be, was tried."""
        return self.waiting.pop(0) if self.waiting and not self._are_enough(history) else None

    def sampled(self, history: History) -> Config | None:
        """A configuration that was not tried before; None where there is none to be had."""
        sizes = self._sizes()
        if self.is_exhausted or self._is_hopeless(history) or not sizes:
            return None
        tried = {trial.config for trial in history.trials}
        under_way = [trial.config for trial in history.trials if trial.state == "running"]
        with self.ledger.charge("deciding"):
            for repeat in range(MOST_REPEATS):
                batch, lr = propose(
                    history,
                    replace(self.space, effective_batch_sizes=sizes),
                    seed=self.settings.seed * MOST_REPEATS + repeat,
                    sampler="tpe" if self.settings.sampler == "auto" else self.settings.sampler,
                )
                config = self._config(batch, lr)
                if config not in tried and not any(same_config(config, other) for other in under_way):
                    return config
            left = self._left(history, sizes)
        self.is_exhausted = not left
        return min(left, key=partial(_distance, config), default=None)

    def chosen(self, history: History, resumable: list[Trial], *, may_start: bool) -> Trial | Config | None:
        """What freeze-thaw would train next, one of `resumable` or something new; None where there is neither."""
        sizes = self._sizes()
        with self.ledger.charge("deciding"):
            choice = choose(
                history,
                replace(self.space, effective_batch_sizes=sizes or self.space.effective_batch_sizes),
                resumable=resumable,
                may_start=may_start and bool(sizes) and not self._is_hopeless(history),
                seed=self.settings.seed,
            )
        return choice if choice is None or isinstance(choice, Trial) else self._config(*choice)

    def _left(self, history: History, sizes: tuple[int, ...]) -> list[Config]:
        """What was not tried: of a grid all cells, else what can be told apart from all that was."""
        if not self.space.lrs:
            space = replace(self.space, effective_batch_sizes=sizes)
            return [self._config(*place) for place in untried(history, space, self.settings.seed)]
        low, high = self.space.lr_low / SAME_LR, self.space.lr_high * SAME_LR
        cells = (self._config(size, lr) for size in sizes for lr in self.space.lrs)
        tried = {trial.config for trial in history.trials}
        return [cell for cell in cells if low <= self.space.scaled_lr(cell) <= high and cell not in tried]

    def _config(self, batch: int, lr: float) -> Config:
        plan = self.limits.plan_for(batch)
        assert plan is not None  # only sizes that can be run are asked for
        return Config(plan=plan, lr=rounded_lr(lr))

    def _sizes(self) -> tuple[int, ...]:
        """The batch sizes of the space that can be run."""
        return tuple(size for size in self.space.effective_batch_sizes if self.limits.plan_for(size) is not None)

    def _is_hopeless(self, history: History) -> bool:
        """Whether nothing new is to be tried."""
        recent = [trial.state for trial in history.trials[-MOST_FAILURES:]]
        failing = len(recent) == MOST_FAILURES and set(recent) == {"failed"}
        return failing or self._are_enough(history)

    def _are_enough(self, history: History) -> bool:
        """Whether as many configurations were tried as were asked for."""
        most = self.settings.most_trials
        return most is not None and len(history.trials) >= most


def _distance(one: Config, other: Config) -> float:
    """Between two configurations: doublings of the batch and e-folds of the learning rate, which matter about alike."""
    doublings = math.log2(one.plan.effective_batch_size / other.plan.effective_batch_size)
    return math.hypot(doublings, math.log(one.lr / other.lr))
