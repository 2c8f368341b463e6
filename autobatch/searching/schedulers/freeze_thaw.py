"""What to train next, by expected improvement at the end of the schedule: a new configuration, or a paused trial.

The one with the higher expected improvement is trained to its next rung. The surrogate decides once four configurations
have begun: the baseline, the warm starts, and those that lie farthest from them. Those show it where not to look. A few
later ones fill the space too, because a search that only follows its model sometimes ends in a bad corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..history import History
from ..space import SAME_LR, Space, scale
from ..trials import Trial
from . import surrogate
from .base import Budget, Resume, Scheduler, Start, proposal
from .candidates import Candidates
from .observations import observations, place
from .surrogate import Array

# The number of configurations that fill the space before the surrogate decides, including the baseline and the warm
# starts. Tuned on six tables, with 8 full trials: 3, 4 and 6 left .32, .28 and .34 points of regret (standard error
# .03).
FILLERS = 4
# After that, one in this many fills the space too. It makes no difference on those tables; assumed to be safer on
# others.
EXPLORES_EVERY = 7
_RATES = 24  # candidates for the learning rate of each batch size; assumed: over five decades, half an e-fold apart


class FreezeThaw(Scheduler):
    """Resumes or starts the trial that promises more at the end of its schedule.

    Args:
        candidates: what may be tried.
    """

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates

    def suggest(self, history: History, budget: Budget) -> Start | Resume | None:
        ours = self._candidates
        space = ours.runnable
        choice = choose(
            history,
            space or ours.space,
            resumable=[trial for trial in history.trials if trial.state == "paused" and budget.can_finish(trial)],
            may_start=budget.may_start and space is not None and ours.are_wanted(history),
            seed=ours.seed,
        )
        if choice is None:
            return None
        if isinstance(choice, Trial):
            return Resume(trial=choice.number)
        return proposal(ours.config(*choice), history)


def choose(
    history: History,
    space: Space,
    *,
    resumable: Sequence[Trial],
    may_start: bool,
    seed: int,
) -> Trial | tuple[int, float] | None:
    """The paused trial to resume, or the (effective batch size, learning rate) to start; None if there is neither.

    Args:
        history: of the race. Trials under way are assumed to end as predicted.
        space: where to look; its batch sizes are those that can be run.
        resumable: the paused trials that could still be finished.
        may_start: whether a new trial could be finished.
        seed: of the run; the choice depends on it and on the history alone.
    """
    fresh = _candidates(history, space, seed) if may_start else np.empty((0, 3))
    racing = history.racing
    seen = observations(history, space.reference_batch)
    if not seen or (not resumable and not len(fresh)):
        return _at(space, fresh[_farthest(fresh, history, space)]) if len(fresh) else None
    fills = len(racing) % EXPLORES_EVERY == 0
    if len(fresh) and len(racing) < FILLERS:
        return _at(space, fresh[_farthest(fresh, history, space)])

    known = surrogate.fit(seen)
    if len(pending := _pending(history, space)):
        known = known.believing(pending)
    finished = [_place(trial, space) for trial in history.trials if trial.state == "complete"]
    over = np.array(finished or [(o.batch, o.rate, 0.0) for o in seen])
    of_fresh = known.expected_improvement(fresh, over) if len(fresh) else np.zeros(0)
    of_paused = (
        known.expected_improvement(np.array([_place(trial, space) for trial in resumable]), over)
        if resumable
        else np.zeros(0)
    )
    if len(of_paused) and (not len(of_fresh) or of_paused.max() >= of_fresh.max()):
        return resumable[int(of_paused.argmax())]
    if fills:
        return _at(space, fresh[_farthest(fresh, history, space)])
    return _at(space, fresh[int(of_fresh.argmax())])


def _pending(history: History, space: Space) -> Array:
    """(m, 3): where the scores of the segments under way will lie."""
    points = []
    for trial in history.trials:
        if trial.state == "running":
            level = len(trial.scores) if trial.role != "confirmation" else -1
            points.append((*_place(trial, space)[:2], math.log2(history.ladder.shares[level])))
    return np.array(points).reshape(-1, 3)


def _place(trial: Trial, space: Space) -> tuple[float, float, float]:
    """The point of a trial's end in the surrogate's coordinates."""
    return (*place(trial, space.reference_batch), 0.0)


def _snapped(point: Array, space: Space) -> tuple[float, float, float]:
    """The point with its learning rate moved to the closest of those allowed."""
    batch, lr = _at(space, point)
    return math.log2(batch), round(math.log(lr * scale(batch, space.reference_batch)), 9), 0.0


def _at(space: Space, point: Array) -> tuple[int, float]:
    batch = space.nearest(round(2.0 ** float(point[0])))
    return batch, space.lr_at(batch, math.exp(float(point[1])))


def untried(history: History, space: Space, seed: int) -> list[tuple[int, float]]:
    """(effective batch size, learning rate) at every size, with rates evenly over the range, without those that were
    tried.
    """
    return [_at(space, point) for point in _candidates(history, space, seed)]


def _candidates(history: History, space: Space, seed: int) -> Array:
    """(m, 3): every batch size with rates evenly over the range, shifted from choice to choice, without those that were
    tried.
    """
    low, high = math.log(space.lr_low), math.log(space.lr_high)
    # Any stretch of an additive sequence with the golden ratio is spread evenly (Kuipers and Niederreiter 1974).
    shift = (0.5 + (seed + len(history.trials)) * 0.6180339887498949) % 1.0
    rates = low + (high - low) * (np.arange(_RATES) + shift) / _RATES
    points = np.array([(math.log2(size), rate, 0.0) for size in space.effective_batch_sizes for rate in rates])
    if space.lrs:
        points = np.unique([_snapped(point, space) for point in points], axis=0)
    tried = np.array([_place(trial, space)[:2] for trial in history.trials])
    if not len(tried):
        return points
    same_batch = np.abs(points[:, None, 0] - tried[None, :, 0]) < 1e-6
    same_rate = np.abs(points[:, None, 1] - tried[None, :, 1]) <= math.log(SAME_LR)
    return np.asarray(points[~(same_batch & same_rate).any(axis=1)])


def _farthest(points: Array, history: History, space: Space) -> int:
    """The index of the point farthest from everything tried, with lengths as shares of the space."""
    if not history.trials:
        return len(points) // 2
    tried = np.array([_place(trial, space)[:2] for trial in history.trials])
    sizes = space.effective_batch_sizes
    extents = np.array([max(1.0, math.log2(sizes[-1] / sizes[0])), math.log(space.lr_high / space.lr_low)])
    apart = (points[:, None, :2] - tried[None, :, :]) / extents
    return int(np.sqrt((apart * apart).sum(axis=2)).min(axis=1).argmax())
