"""Which failures of a segment are tried again, and which say something about its trial."""

from __future__ import annotations

from concurrent.futures import Future

from ..core.segment import SegmentResult, TrainSegment
from ..errors import CheckpointError, TaskError
from .trials import Role

# A segment whose worker died runs again from its checkpoint, but not after this many deaths in a row. Assumed.
MOST_ATTEMPTS = 3

# A baseline that hangs runs once more: nothing can be compared without it, and a hang may be the machine's fault.
# Assumed.
BASELINE_HANGS = 2


def attempts(result: SegmentResult, role: Role) -> int:
    """How many times a segment with this result is attempted."""
    if result.outcome == "timeout" and role == "baseline":
        return BASELINE_HANGS
    if result.outcome == "oom" and not (result.fresh or result.segment.fresh):
        # Memory that the process kept from earlier work may be the cause. So it is tried once more, in a fresh process.
        return MOST_ATTEMPTS + 1
    return MOST_ATTEMPTS if result.outcome == "crashed" else 1


def outcome(segment: TrainSegment, done: Future[SegmentResult], role: Role) -> SegmentResult:
    """The result of a segment. An error that concerns only its trial becomes a result."""
    try:
        return done.result()
    except CheckpointError as error:
        return SegmentResult(segment=segment, outcome="crashed", message=str(error))
    except TaskError as error:
        if role == "baseline":
            raise
        # The task trains with the user's settings and fails with these: many tasks raise when the loss diverges.
        return SegmentResult(segment=segment, outcome="raised", message=str(error))
