"""One segment of one trial's training, and its result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .plan import Config

# Work that takes this many times its prediction hangs, but not before the second figure: the first work of a process
# may include compilation. Both assumed.
HANG_FACTOR = 5.0
HANG_LEAST_S = 30.0


# Of `SegmentResult.beside_s`: what a trial had been trained before, and had to be once more.
TRAINING_AGAIN = "training again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSegment:
    """One segment of one trial: train `config` from `start_step` to `until_step` of a schedule of `total_steps`.

    Attributes:
        trial: the number that names the trial's checkpoint.
        start_step: 0, or the `until_step` of the segment before, whose checkpoint is then read.
        until_step: optimizer steps done when the segment ends; at most `total_steps`.
        total_steps: the length of the whole schedule, fixed when the trial starts.
        until_s: seconds of training that `until_step` steps take by the profile; 0 where nobody says. For a runner that
            is told how long to train and not how many steps.
        eval_batch_size: samples in one evaluation batch.
        limit_s: wall seconds after which the segment gives up, outcome "timeout"; None for no limit.
        may_give_up: whether it ends with the outcome "diverged" if the loss rises above its start and stays there.
        fresh: whether it must run in a process that has run nothing before.
    """

    trial: int
    config: Config
    seed: int
    start_step: int
    until_step: int
    total_steps: int
    eval_batch_size: int
    until_s: float = 0.0
    limit_s: float | None = None
    may_give_up: bool = False
    fresh: bool = False


# diverged  the loss was not finite, or stayed above where it began
# timeout   the segment's `limit_s` passed, or the worker hung
# raised    the task raised an exception or exited
SegmentOutcome = Literal["ok", "diverged", "oom", "crashed", "timeout", "raised"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNorms:
    """Norms of the whole gradient before clipping, at those steps of a segment at which they were recorded.

    Attributes:
        median, largest: of the finite ones.
        clipped: the share of those steps with a norm above the task's clip; None for a task that does not clip.
    """

    median: float
    largest: float
    clipped: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult:
    """The result of a segment.

    Attributes:
        score: on the validation data after `until_step` steps; None unless the outcome is "ok".
        grad_norms: of this segment's steps; None if there are none, as on a runner without gradients.
        train_s, eval_s: wall seconds of the optimizer steps, and of the evaluation.
        seconds: wall seconds of everything, checkpoints and start-up of the trial included; not those in which a worker
            was started and loaded the data.
        beside_s: of the other seconds those that are not a checkpoint's, by what they went on.
        is_first: of its process, which warmed up in it: kernels were compiled, caches filled.
        fresh: its process had run nothing before, so that it ran out of memory by itself; False where nobody knows.
        message: the error's own first line, where there was one.
    """

    segment: TrainSegment
    outcome: SegmentOutcome
    score: float | None = None
    grad_norms: GradNorms | None = None
    train_s: float = 0.0
    eval_s: float = 0.0
    seconds: float = 0.0
    beside_s: Mapping[str, float] = field(default_factory=dict)
    is_first: bool = False
    fresh: bool = False
    message: str | None = None

    def __post_init__(self) -> None:
        if (self.outcome == "ok") != (self.score is not None and math.isfinite(self.score)):
            raise ValueError(
                f"a score is finite and there exactly when the outcome is ok: {self.outcome}, {self.score}"
            )
