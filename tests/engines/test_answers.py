"""What several ranks came to is one answer: the first cause of what went wrong, or the slowest of what went well."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.core.measurement import LrSweep, Measurement
from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentOutcome, SegmentResult, TrainSegment
from autobatch.engines.ranks.answers import Answer, cause, joined_segment, joined_sweep, joined_times
from autobatch.errors import AutobatchError, CheckpointError, RankLost, TaskError, WorkerDied, WorkerTimeout

PLAN = Plan(batch_size=4, ranks=2)
SEGMENT = TrainSegment(
    trial=0,
    config=Config(plan=PLAN, lr=0.1),
    seed=0,
    start_step=0,
    until_step=8,
    total_steps=16,
    eval_batch_size=8,
)
LOST = Answer(error=RankLost("lost the others"))
LATE = Answer(error=RankLost("no answer"), is_late=True)
DEAD = Answer(error=WorkerDied("ended by SIGKILL"))
WRONG = Answer(error=TaskError("a bug of the user's"))


def ran(outcome: SegmentOutcome = "ok", **values: float) -> Answer:
    score = values.pop("score", 0.5) if outcome == "ok" else None
    return Answer(value=SegmentResult(segment=SEGMENT, outcome=outcome, score=score, **values))  # type: ignore[arg-type]


# What is a cause before what follows from it.
IN_ORDER = [ran("oom"), DEAD, WRONG, LATE, LOST]


@given(st.lists(st.sampled_from(range(len(IN_ORDER))), min_size=1, max_size=6))
def test_the_first_cause_is_what_is_told(kinds: list[int]) -> None:
    answers = [IN_ORDER[kind] for kind in kinds]
    first = min(kinds)
    expected = {0: "oom", 1: "crashed", 3: "timeout", 4: "crashed"}
    if first == 2:
        with pytest.raises(TaskError, match="a bug of the user's"):
            joined_segment(SEGMENT, answers)
        return
    result = joined_segment(SEGMENT, answers)
    assert result.outcome == expected[first]
    blamed = [rank for rank, kind in enumerate(kinds) if kind == first]
    if len(blamed) < len(kinds):
        assert (result.message or "").startswith("rank")
        assert all(str(rank) in (result.message or "") for rank in blamed)


def test_a_segment_that_went_well_has_rank_0s_score_and_the_slowest_time() -> None:
    result = joined_segment(SEGMENT, [ran(score=0.7, train_s=1.0), ran(score=0.0, train_s=3.0)])
    assert (result.outcome, result.score, result.train_s) == ("ok", 0.7, 3.0)


@pytest.mark.parametrize(("outcomes", "worst"), [(("ok", "diverged"), "diverged"), (("diverged", "oom"), "oom")])
def test_of_several_outcomes_the_worst_counts(outcomes: tuple[SegmentOutcome, ...], worst: str) -> None:
    assert joined_segment(SEGMENT, [ran(outcome) for outcome in outcomes]).outcome == worst


def test_an_error_of_a_segment_that_no_other_is_spared_is_raised_as_it_is() -> None:
    wrong = Answer(error=CheckpointError("it stands elsewhere"))
    with pytest.raises(CheckpointError, match=r"^it stands elsewhere$"):
        joined_segment(SEGMENT, [wrong, wrong])


def test_the_time_that_ran_out_for_all_is_no_crash() -> None:
    ended = Answer(error=WorkerTimeout("no answer in the time there was"), is_late=True)
    assert joined_segment(SEGMENT, [ended, ended]).outcome == "timeout"
    assert isinstance(cause([ended, ended]), WorkerTimeout)


def test_steps_are_as_slow_as_on_the_slowest_rank() -> None:
    quick = Measurement(plan=PLAN, outcome="ok", step_s=(1.0, 1.1, 1.2), seconds=4.0)
    slow = Measurement(plan=PLAN, outcome="ok", step_s=(1.0, 1.3, 1.4), seconds=3.0)
    joined = joined_times([Answer(value=quick), Answer(value=slow)])
    assert joined is not None
    assert joined.step_s == slow.step_s
    assert joined.seconds == 4.0
    assert joined.samples_per_s == pytest.approx(8 / 1.3)
    refused = Measurement(plan=PLAN, outcome="oom", message="no memory")
    joined = joined_times([LOST, Answer(value=refused)])
    assert joined is not None
    assert (joined.outcome, joined.message) == ("oom", "rank 1: no memory")
    assert joined_times([LOST, Answer(value=slow)]) is None


def test_a_range_test_that_a_rank_gave_up_is_the_groups() -> None:
    whole = LrSweep(plan=PLAN, lrs=(1.0, 2.0), losses=(1.0, 2.0), diverged=False, seconds=1.0)
    ended = LrSweep(plan=PLAN, lrs=(1.0,), losses=(1.0,), diverged=True, seconds=1.0)
    assert joined_sweep([Answer(value=whole), Answer(value=whole)]) is whole
    assert joined_sweep([LATE, Answer(value=ended)]) is ended
    assert joined_sweep([Answer(value=whole), DEAD]) is None


def test_what_went_well_has_no_cause() -> None:
    assert cause([ran(), ran()]) is None
    assert ran().is_good
    assert ran("diverged").is_good
    for bad in IN_ORDER:
        assert not bad.is_good
    assert issubclass(type(cause([DEAD, LOST])), AutobatchError)
