"""Which failures of a segment are tried again, and which say something about its trial."""

from __future__ import annotations

from concurrent.futures import Future

from ..core.segment import SegmentResult, TrainSegment
from ..errors import CheckpointError, TaskError
from .trials import Role

# A segment whose worker died is run again from its checkpoint; after this many deaths in a row never. Assumed.
MOST_ATTEMPTS = 3

# A baseline that hangs is run once more: nothing can be compared without it, and a hang may be the machine's. Assumed.
BASELINE_HANGS = 2


def attempts(result: SegmentResult, role: Role) -> int:
    """How often a segment with this result is trained."""
    if result.outcome == "timeout" and role == "baseline":
        return BASELINE_HANGS
    if result.outcome == "oom" and not (result.fresh or result.segment.fresh):
        # Memory that its process kept from other work may be the cause: once more, in a process without that.
        return MOST_ATTEMPTS + 1
    return MOST_ATTEMPTS if result.outcome == "crashed" else 1


def outcome(segment: TrainSegment, done: Future[SegmentResult], role: Role) -> SegmentResult:
    """The result of a segment, where an error in it concerns its trial alone."""
    try:
        return done.result()
    except CheckpointError as error:
        return SegmentResult(segment=segment, outcome="crashed", message=str(error))
    except TaskError as error:
        if role == "baseline":
            raise
        # The task trains with the user's settings, and gives up with these: many do when the loss blows up.
        return SegmentResult(segment=segment, outcome="raised", message=str(error))
