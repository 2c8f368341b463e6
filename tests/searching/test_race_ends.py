"""What ends a race before its time, and what no rung may take of the time for fresh seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from autobatch.core.plan import Config, Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.errors import TaskError
from autobatch.searching.history import MOST_ERRORS, History
from autobatch.searching.trials import Trial
from autobatch.simulated.sim import SimRunner, sim_facts

from .test_search import race, sampled

MESSAGE = "training failed: RuntimeError: the size of tensor a must match"


def trial(number: int, *, scores: int = 0, outcome: str = "ok") -> Trial:
    state = "failed" if outcome != "ok" else "complete" if scores == 3 else "paused"
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=32), lr=1e-3 * (number + 1)),
        seed=number,
        total_steps=64,
        role="search" if number else "baseline",
        origin="a test",
        scores=tuple((8 * (segment + 1), 0.5) for segment in range(scores)),
        state=state,  # type: ignore[arg-type]
        outcome=outcome,  # type: ignore[arg-type]
        message=None if outcome == "ok" else MESSAGE,
    )


def history(*rivals: tuple[int, str]) -> History:
    """A baseline that is complete, and trials of so many scores and this outcome."""
    trials = [trial(0, scores=3)]
    trials += [trial(number + 1, scores=scores, outcome=outcome) for number, (scores, outcome) in enumerate(rivals)]
    return History(trials=tuple(trials), direction="maximize")


@pytest.mark.parametrize("outcome", ["raised", "crashed"])
@pytest.mark.parametrize("scores", [0, 1, 2])
def test_a_race_is_stuck_where_errors_end_all_that_come_to_a_segment(scores: int, outcome: str) -> None:
    waiting = [(scores, "ok")] * 20
    failed = [(scores, outcome)] * MOST_ERRORS
    assert len(history(*waiting, *failed).stuck) == MOST_ERRORS
    assert not history(*waiting, *failed[1:]).stuck
    assert not history(*waiting, *failed, (scores + 1, "ok")).stuck  # one got past it
    assert not history(*waiting, *[(scores, "diverged")] * MOST_ERRORS).stuck


@pytest.mark.parametrize(
    "raises",
    [
        lambda segment: True,
        lambda segment: segment.start_step > 0,  # as where nothing can be resumed
    ],
)
@pytest.mark.parametrize("sampler", ["auto", "tpe", "freeze-thaw"])
def test_a_race_in_which_every_trial_raises_ends_early_with_the_message(
    raises: Callable[[TrainSegment], bool], sampler: str
) -> None:
    class Raising(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            if segment.trial and raises(segment):
                raise TaskError(MESSAGE)
            return SimRunner.advance(self, segment)

    run = race(Raising(), budget_s=300.0, sampler=sampler)
    raised = [one for one in run.result.trials if one.outcome == "raised"]
    assert len(raised) == MOST_ERRORS
    assert run.result.chose_baseline
    with pytest.raises(AssertionError, match=rf"ended early: {MOST_ERRORS} trials failed at the same point.*{MESSAGE}"):
        raise AssertionError(" ".join(run.result.why))


def test_a_race_in_which_some_raise_goes_on() -> None:
    class Raising(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            if segment.trial % 3:
                raise TaskError(MESSAGE)
            return SimRunner.advance(self, segment)

    result = race(Raising(), budget_s=200.0).result
    assert sum(one.outcome == "raised" for one in result.trials) > MOST_ERRORS
    assert not any("ended early" in why for why in result.why)


def last_rung_hangs(after_s: float, by: float) -> type[SimRunner]:
    class Slows(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            is_search = segment.trial > 0 and not (
                segment.start_step == 0 and segment.until_step == segment.total_steps
            )
            self.slowdown = by if is_search and self.clock.now_s > after_s else 1.0
            return SimRunner.advance(self, segment)

    return Slows


@pytest.mark.parametrize("after_s", [30.0, 40.0, 48.0])
@pytest.mark.parametrize("by", [1.2, 1000.0])
@pytest.mark.parametrize("search", [{"sampler": "auto"}, sampled() | {"most_trials": 200}])
def test_a_segment_that_outlasts_its_time_leaves_the_reserve_to_the_fresh_seeds(
    after_s: float, by: float, search: dict[str, Any]
) -> None:
    known = sim_facts(baseline=Config(plan=Plan(batch_size=256), lr=1e-4))
    run = race(last_rung_hangs(after_s, by)(known=known), **search)
    assert run.result.finalist is not None
    assert run.result.finalist_score is not None
    assert run.result.finalist_score.scores
    assert run.ledger.elapsed_s <= 60.0


def test_what_was_cut_for_the_fresh_seeds_did_not_fail() -> None:
    known = sim_facts(baseline=Config(plan=Plan(batch_size=256), lr=1e-4))
    result = race(last_rung_hangs(40.0, 1000.0)(known=known)).result
    cut = [one for one in result.trials if one.outcome == "timeout"]
    assert cut
    assert {one.state for one in cut} == {"dropped"}
