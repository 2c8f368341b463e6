"""One answer from the ranks of a team that took a step, a segment or a range test together, if perhaps not all
finished.

If one rank fails, the others wait for it in a collective until that fails too or their process is ended. So the first
cause counts: an outcome that says what went wrong, then a process that ended, then an error, then a rank that did not
answer, and last a rank that lost the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...core.measurement import LrSweep, Measurement, Outcome
from ...core.segment import SegmentOutcome, SegmentResult, TrainSegment
from ...errors import AutobatchError, RankLost, WorkerDied, WorkerTimeout
from .agreement import among, same_error

_SEGMENTS_WORST_FIRST: tuple[SegmentOutcome, ...] = ("crashed", "oom", "timeout", "diverged", "ok")
_TIMES_WORST_FIRST: tuple[Outcome, ...] = ("crashed", "oom", "over_limit", "nonfinite", "ok")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer of one rank: a value, or an error in its place.

    Attributes:
        is_late: whether it came too late, so that its process was ended.
    """

    value: Any = None
    error: AutobatchError | None = None
    is_late: bool = False

    @property
    def is_good(self) -> bool:
        """Whether the ranks can go on together after it."""
        if self.error is not None:
            return False
        if isinstance(self.value, (Measurement, SegmentResult)):
            return self.value.outcome in ("ok", "diverged", "nonfinite")
        return True


def cause(answers: Sequence[Answer]) -> AutobatchError | None:
    """The first cause among the errors, naming its ranks; None if there is no error."""

    def is_death(error: AutobatchError) -> bool:
        return isinstance(error, WorkerDied) and not isinstance(error, (RankLost, WorkerTimeout))

    kinds: tuple[Callable[[Answer], bool], ...] = (
        lambda answer: answer.error is not None and is_death(answer.error),
        lambda answer: answer.error is not None and not isinstance(answer.error, WorkerDied),
        lambda answer: answer.is_late,
        lambda answer: answer.error is not None,
    )
    for is_one in kinds:
        failed = [rank for rank, answer in enumerate(answers) if is_one(answer)]
        if failed:
            errors = [answers[rank].error for rank in failed]
            named = [(type(error).__name__, str(error)) for error in errors if error is not None]
            return same_error(named, failed, len(answers))
    return None


def joined_segment(segment: TrainSegment, answers: Sequence[Answer]) -> SegmentResult:
    """Rank 0's score and losses, or the failure of the rank with the worst outcome.

    Raises:
        AutobatchError: an error, of the task or its checkpoint, that every segment would have.
    """
    worst = _worst(answers, _SEGMENTS_WORST_FIRST)
    if worst is not None:
        result: SegmentResult = worst[1]
        return replace(result, message=_naming(*worst, len(answers)))
    error = cause(answers)
    if error is None:
        first: SegmentResult = answers[0].value
        return replace(first, train_s=max(answer.value.train_s for answer in answers))
    if not isinstance(error, WorkerDied):
        raise error
    is_hung = isinstance(error, WorkerTimeout) or (isinstance(error, RankLost) and any(one.is_late for one in answers))
    return SegmentResult(segment=segment, outcome="timeout" if is_hung else "crashed", message=str(error))


def joined_times(answers: Sequence[Answer]) -> Measurement | None:
    """The steps of the slowest rank, or the worst outcome; None if there is no answer, and `cause` says why."""
    worst = _worst(answers, _TIMES_WORST_FIRST)
    if worst is not None:
        slowest: Measurement = worst[1]
        return replace(slowest, message=_naming(*worst, len(answers)))
    if any(answer.error is not None for answer in answers):
        return None
    all_of_them: list[Measurement] = [answer.value for answer in answers]
    slowest = max(all_of_them, key=lambda measured: measured.median_step_s)
    return replace(slowest, seconds=max(measured.seconds for measured in all_of_them))


def joined_sweep(answers: Sequence[Answer]) -> LrSweep | None:
    """Rank 0's sweep, or the one that a rank ended early; None if there is no answer, and `cause` says why."""
    sweeps: list[LrSweep] = [answer.value for answer in answers if answer.error is None]
    ended = [sweep for sweep in sweeps if sweep.diverged]
    if ended:
        return ended[0]
    return sweeps[0] if len(sweeps) == len(answers) else None


def _worst(answers: Sequence[Answer], worst_first: Sequence[str]) -> tuple[list[int], Any] | None:
    """The ranks with the worst outcome, and the first one's answer; None if all are ok."""
    outcomes = {rank: answer.value.outcome for rank, answer in enumerate(answers) if answer.error is None}
    worst = min(outcomes.values(), key=worst_first.index, default="ok")
    if worst == "ok":
        return None
    ranks = [rank for rank, outcome in outcomes.items() if outcome == worst]
    return ranks, answers[ranks[0]].value


def _naming(ranks: Sequence[int], result: Measurement | SegmentResult, size: int) -> str | None:
    if len(ranks) == size:
        return result.message
    return f"{among(ranks, size)}: {result.message or result.outcome}"
