"""The race, on formulas: equal time, never over budget, never worse than the baseline, whatever goes wrong."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.plan import Config, Direction, Plan, Precision
from autobatch.core.segment import GradNorms, SegmentResult, TrainSegment
from autobatch.errors import BudgetTooShort, CheckpointError, NoValidResult, SettingError, TaskError
from autobatch.measuring.profiling import profile
from autobatch.searching.budget.costs import EQUIVALENTS, LEAST_EQUIVALENTS
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.crew import Crew
from autobatch.searching.schedulers.promotion import paused_best_first, promotable
from autobatch.searching.schedulers.warm_starts import warm_starts
from autobatch.searching.search import (
    Event,
    Kept,
    Ladder,
    SearchResult,
    SearchSettings,
    StudyRecord,
    Trial,
    horizon_s,
    search,
)
from autobatch.searching.space import Space, same_config, space_for
from autobatch.searching.trials import MIN_STEPS, total_steps
from autobatch.simulated.sim import Landscape, SimRunner, VirtualClock, sim_facts

from ..helpers.histories import history
from ..helpers.sim_crew import SimCrew

EVAL_BATCH = 256


@dataclass(frozen=True)
class Profile:
    """A throughput profile that is right about a simulated runner's steps."""

    runner: SimRunner
    knee_batch_size: int = 256

    def step_s(self, batch_size: int) -> float:
        return self.runner.step_s(batch_size)

    def plan_for(
        self, effective_batch: int, max_batch: int, precision: Precision = "fp32", max_micro_batch: int | None = None
    ) -> Plan | None:
        if effective_batch <= max_batch:
            return Plan(batch_size=effective_batch, precision=precision)
        most = max_batch if max_micro_batch is None else max_micro_batch
        size = max((b for b in range(1, most + 1) if effective_batch % b == 0), default=None)
        if size is None:
            return None
        return Plan(batch_size=size, accumulation_steps=effective_batch // size, precision=precision)


@dataclass(frozen=True)
class Run:
    """A finished race and what it ran on."""

    runner: SimRunner
    ledger: Ledger
    result: SearchResult


def race(
    runner: SimRunner | None = None,
    *,
    budget_s: float = 60.0,
    train_time_s: float | None = None,
    max_batch: int = 2048,
    max_micro_batch: int | None = None,
    lr_hint: float | None = 1e-3,
    lr_diverged: float | None = None,
    record: StudyRecord | None = None,
    on_event: Callable[[Event], None] | None = None,
    crew: Crew | None = None,
    kept: Kept | None = None,
    **changes: Any,
) -> Run:
    """A race on a simulated runner, with settings as the product takes them."""
    runner = runner or SimRunner()
    ledger = Ledger(budget_s, runner.clock, carried=kept.state.charged if kept else None)
    profile = Profile(runner)
    baseline = runner.known.baseline.plan
    horizon = horizon_s(
        ledger.available_s,
        train_time_s,
        eval_s=runner.eval_s,
        baseline_step_s=baseline.accumulation_steps * runner.step_s(baseline.batch_size),
        at_once=crew.size if crew else 1,
    )
    result = search(
        runner,
        ledger,
        profile,
        max_batch=max_batch,
        max_micro_batch=max_micro_batch,
        horizon_s=horizon,
        eval_s=runner.eval_s,
        eval_batch_size=EVAL_BATCH,
        lr_hint=lr_hint,
        lr_diverged=lr_diverged,
        settings=SearchSettings(**changes),
        record=record,
        kept=kept,
        on_event=on_event,
        crew=crew,
    )
    return Run(runner, ledger, result)


def sampled() -> dict[str, Any]:
    """Few trials, each a random draw: for tests that are not about the sampler."""
    return {"sampler": optuna.samplers.RandomSampler(seed=0), "most_trials": 14}


@functools.cache
def plain() -> Run:
    """A race in which nothing is out of the ordinary, run once for all tests that only look."""
    return race(SimRunner(known=sim_facts(has_test_data=True)))


def fault(
    outcome: Any, when: Callable[[TrainSegment], bool], seconds: float = 0.1
) -> Callable[[TrainSegment], SegmentResult | None]:
    def faults(segment: TrainSegment) -> SegmentResult | None:
        return (
            SegmentResult(segment=segment, outcome=outcome, seconds=seconds, message="made up")
            if when(segment)
            else None
        )

    return faults


def in_one_go(segment: TrainSegment) -> bool:
    """Whether it is a whole training, as that under a fresh seed is and a trial of the search is not."""
    return segment.start_step == 0 and segment.until_step == segment.total_steps


# What always holds


@settings(max_examples=15)
@given(
    budget_s=st.floats(30, 600),
    slowdown=st.floats(0.7, 3),
    per_step_s=st.floats(1e-4, 5e-3),
    per_sample_s=st.floats(1e-6, 5e-5),
    eval_s=st.floats(0, 0.2),
)
def test_the_budget_is_never_overrun_and_the_baseline_always_finishes(
    budget_s: float, slowdown: float, per_step_s: float, per_sample_s: float, eval_s: float
) -> None:
    runner = SimRunner(slowdown=slowdown, eval_s=eval_s, step_s=lambda batch: per_step_s + per_sample_s * batch)
    run = race(runner, budget_s=budget_s, **sampled())
    assert run.ledger.elapsed_s <= budget_s
    assert run.result.trials[0].role == "baseline"
    assert run.result.trials[0].state == "complete"
    profile = Profile(runner)
    for trial in run.result.trials:
        if trial.state == "complete":
            step_s = trial.config.plan.accumulation_steps * profile.step_s(trial.config.plan.batch_size)
            assert 0 <= run.result.horizon_s - trial.total_steps * step_s <= step_s * (1 + 1e-6)
    assert not runner.kept


def test_the_same_seed_gives_the_same_race_and_another_seed_another() -> None:
    one, same, other = (race(seed=seed, most_trials=16).result for seed in (1, 1, 2))
    assert one == same
    assert [t.config for t in one.trials] != [t.config for t in other.trials]


def test_freeze_thaw_keeps_the_same_promises() -> None:
    """In budget, the baseline to the end, the same for the same seed, nothing twice, and close to the best there is."""
    one, same = (race(sampler="freeze-thaw", most_trials=20) for _ in range(2))
    assert one.result == same.result
    assert one.ledger.elapsed_s <= 60.0
    assert not one.runner.kept
    trials = one.result.trials
    assert (trials[0].role, trials[0].state) == ("baseline", "complete")
    searched = [t for t in trials if t.role == "search"]
    assert {t.state for t in searched} >= {"dropped", "complete"}
    assert not any(same_config(a.config, b.config) for a in searched for b in searched if a.number < b.number)
    truth = replace(Landscape(), noise=0.0)(one.result.chosen, 1.0, 0)
    assert truth is not None
    assert Landscape().best_score - truth <= 0.01  # the baseline lies 0.036 below


def test_minimizing_mirrors_maximizing() -> None:
    up = race(SimRunner(known=sim_facts(direction="maximize")), most_trials=16).result
    down = race(SimRunner(known=sim_facts(direction="minimize")), most_trials=16).result
    assert [t.config for t in up.trials] == [t.config for t in down.trials]
    assert [[-s for _, s in t.scores] for t in up.trials] == [[s for _, s in t.scores] for t in down.trials]
    assert up.chosen == down.chosen


def test_a_slow_profile_changes_no_choice_until_the_time_runs_out() -> None:
    right, wrong = plain().result.trials, race(SimRunner(slowdown=1.5)).result.trials
    searched = [t.config for t in wrong if t.role != "confirmation"]
    assert len(searched) < len(right)
    assert [t.config for t in right][: len(searched) - 2] == searched[:-2]


def test_the_search_begins_with_freeze_thaw_and_goes_over_to_tpe(monkeypatch: pytest.MonkeyPatch) -> None:
    def tried(sampler: str) -> list[Config]:
        return [trial.config for trial in race(sampler=sampler, budget_s=40.0).result.trials]

    assert tried("auto") == tried("freeze-thaw")  # 16 full trials
    monkeypatch.setattr("autobatch.searching.schedulers.switch.THAWS", 4.0)
    short, frozen = tried("auto"), tried("freeze-thaw")
    assert short[:5] == frozen[:5]
    assert short != frozen
    monkeypatch.setattr("autobatch.searching.schedulers.switch.THAWS", 0.0)
    assert tried("auto") == tried("tpe")


@pytest.mark.parametrize("off", [0.7, 1.5])
def test_a_size_that_the_profile_is_wrong_about_is_compared_after_the_same_time(off: float) -> None:
    class Wrong(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            self.slowdown = off if segment.config.plan.batch_size == 256 else 1.0
            return super().advance(segment)

    known = sim_facts(baseline=Config(plan=Plan(batch_size=512), lr=1e-3))  # a size that is tried again and again
    run = race(Wrong(known=known, landscape=Landscape(noise=0.001)), budget_s=600.0, sampler="tpe")
    runner, result = run.runner, run.result

    def really_s(trial: Trial) -> float:
        batch_size = trial.config.plan.batch_size
        return trial.total_steps * runner.step_s(batch_size) * (off if batch_size == 256 else 1.0)

    def mean_s(trials: Sequence[Trial], *, is_off: bool) -> float:
        return fmean(really_s(trial) for trial in trials if (trial.config.plan.batch_size == 256) is is_off)

    early, late = result.trials[:5], result.trials[-12:]
    assert mean_s(early, is_off=True) / mean_s(early, is_off=False) == pytest.approx(off, rel=0.01)
    assert mean_s(late, is_off=True) / mean_s(late, is_off=False) == pytest.approx(1.0, rel=0.06)
    for trial in result.trials:  # what has begun keeps its schedule
        assert {segment.total_steps for segment in runner.segments if segment.trial == trial.number} <= {
            trial.total_steps
        }
    said = [why for why in result.why if "times what the profile gave" in why]
    assert said
    assert all(("had fewer steps" in why) == (float(why.split()[7]) > 1) for why in said)


@pytest.mark.parametrize("slowdown", [1.5, 3.0])
@pytest.mark.parametrize("at_s", [18.0, 30.0])
def test_a_machine_that_becomes_slower_has_time_left_for_the_fresh_seeds(slowdown: float, at_s: float) -> None:
    class Slows(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            self.slowdown = slowdown if self.clock.now_s > at_s else 1.0
            return super().advance(segment)

    for seed in range(4):
        runner = Slows(known=sim_facts(baseline=Config(plan=Plan(batch_size=256), lr=1e-4)))
        run = race(runner, seed=seed, **sampled() | {"most_trials": 200})
        assert run.result.finalist_score is not None
        assert not run.result.chose_baseline


def test_a_reserve_that_a_segment_has_nibbled_at_is_still_tried() -> None:
    """The paces of late would not pay for the whole of a fresh seed, that of all does; nothing else would use it."""
    paces = random.Random(26)

    class Restless(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            self.slowdown = paces.uniform(0.9, 1.3)
            return super().advance(segment)

    result = race(Restless(), sampler="tpe", seed=26).result
    assert result.finalist is not None
    assert result.finalist_score is not None


@pytest.mark.parametrize("baseline_lr", [1e-4, 1e-3, 3e-3])
def test_nobody_ends_up_worse_than_they_began(baseline_lr: float) -> None:
    """Over six seeds: never by more than the noise of a seed, wherever the baseline stands."""
    landscape = Landscape(noise=0.003)
    baseline = Config(plan=Plan(batch_size=256), lr=baseline_lr)
    quiet = replace(landscape, noise=0.0)
    before = quiet(baseline, 1.0, 0)
    for seed in range(6):
        runner = SimRunner(known=sim_facts(baseline=baseline), landscape=landscape)
        after = quiet(race(runner, seed=seed, **sampled()).result.chosen, 1.0, 0)
        assert before is not None
        assert after is not None
        assert after >= before - landscape.noise


def test_a_bad_baseline_is_beaten_and_the_reasons_say_by_how_much() -> None:
    result = plain().result
    assert not result.chose_baseline
    assert result.chosen == result.finalist
    assert result.score is not None
    assert result.baseline is not None
    assert result.score.mean > result.baseline.mean
    assert result.score == result.finalist_score
    fresh = [t.final_score for t in result.trials if t.role == "confirmation" and t.config == result.chosen]
    assert list(result.score.scores) == fresh
    assert any("beat the baseline by" in reason for reason in result.why)


def test_a_baseline_at_the_optimum_stays() -> None:
    best = Config(plan=Plan(batch_size=256), lr=3e-3)
    result = race(SimRunner(known=sim_facts(baseline=best), landscape=Landscape(noise=0.0)), **sampled()).result
    assert result.chose_baseline
    assert result.chosen == best
    assert any("nothing else scored above the baseline" in reason for reason in result.why)


# The order of things


def test_the_baseline_comes_first_and_to_the_end_then_the_warm_starts() -> None:
    run = plain()
    assert [segment.trial for segment in run.runner.segments[:5]] == [0, 0, 0, 1, 2]
    assert [t.role for t in run.result.trials[:4]] == ["baseline", "warm start", "warm start", "search"]
    assert run.result.trials[1].config.plan.effective_batch_size == 256


def test_segments_resume_where_they_stopped_and_keep_their_schedule() -> None:
    run = plain()
    for trial in run.result.trials:
        segments = [segment for segment in run.runner.segments if segment.trial == trial.number]
        assert [segment.start_step for segment in segments] == [0, *(segment.until_step for segment in segments[:-1])]
        assert {segment.total_steps for segment in segments} == {trial.total_steps}
        assert {segment.seed for segment in segments} == {trial.seed}


def test_no_two_trials_share_a_seed_and_no_configuration_is_tried_twice() -> None:
    trials = plain().result.trials
    assert len({trial.seed for trial in trials}) == len(trials)
    searched = [trial.config for trial in trials if trial.role != "confirmation"]
    assert len(set(searched)) == len(searched)


def test_rungs_inside_the_warm_up_are_left_out() -> None:
    run = race(SimRunner(known=sim_facts(peak_lr_fraction=0.1)), **sampled())
    assert [segment.until_step / segment.total_steps for segment in run.runner.segments[:2]] == pytest.approx(
        [0.5, 1.0], abs=0.02
    )


UNPAUSED = sim_facts(is_pausable=False)


@pytest.mark.parametrize("sampler", ["auto", "tpe", "freeze-thaw"])
def test_trials_that_a_pause_would_change_are_trained_in_one_go(sampler: str) -> None:
    run = race(SimRunner(known=UNPAUSED), sampler=sampler, most_trials=20)
    assert {(segment.start_step, segment.until_step == segment.total_steps) for segment in run.runner.segments} == {
        (0, True)
    }
    assert len(run.result.trials) > 5
    assert {trial.state for trial in run.result.trials} <= {"complete", "failed"}  # some diverge


def test_a_race_that_began_in_rungs_goes_on_in_rungs(tmp_path: Path) -> None:
    runner = SimRunner()

    def stop(event: Event) -> None:
        if sum(bool(segment.start_step) for segment in runner.segments) > 3:
            raise KeyboardInterrupt

    race(runner, record=journal_of(tmp_path), on_event=stop, **sampled())
    kept = journal_of(tmp_path).kept()
    assert kept is not None
    again = SimRunner(known=UNPAUSED, kept=runner.kept, clock=VirtualClock(1000.0))
    result = race(again, record=journal_of(tmp_path), kept=kept, **sampled()).result
    assert any(segment.start_step for segment in again.segments)
    assert result.trials[0].state == "complete"


def test_the_paused_checkpoints_are_bounded() -> None:
    most = 0

    def watch(event: Event) -> None:
        nonlocal most
        most = max(most, len(runner.kept))

    runner = SimRunner()
    race(runner, most_paused=3, on_event=watch, **sampled())
    # Three paused ones, the trial in hand, and the baseline and its challenger for their test scores.
    assert most <= 3 + 1 + 3


def test_time_is_charged_to_what_it_went_to() -> None:
    run = plain()
    entries = run.ledger.entries()
    evaluated = sum(len(trial.scores) for trial in run.result.trials)
    assert entries["evaluation"] == pytest.approx(evaluated * run.runner.eval_s, rel=0.01)
    assert entries["training"] > entries["confirmation"] > 0
    assert sum(entries.values()) == run.ledger.elapsed_s


def test_events_tell_what_starts_and_what_came_of_it() -> None:
    events: list[Event] = []
    run = race(on_event=events.append, **sampled())
    kinds = [event.kind for event in events]
    assert kinds.count("segment started") == kinds.count("segment finished") == len(run.runner.segments)
    assert kinds.count("confirming") == 1
    assert all(event.predicted_s > 0 for event in events if event.kind == "segment started")


def test_the_record_holds_every_trial(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "journal.log", "sim", "maximize")
    result = race(record=record, budget_s=30.0, **(sampled() | {"most_trials": 5})).result
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log")))
    study = optuna.load_study(study_name="sim", storage=storage)
    assert len(study.trials) == len(result.trials)
    ends = {"complete": "COMPLETE", "dropped": "PRUNED"}
    for kept, trial in zip(study.trials, result.trials, strict=True):
        assert trial.state == "failed" or kept.state.name == ends[trial.state]
        assert kept.params["lr"] == pytest.approx(trial.config.lr)


@pytest.mark.parametrize(("lr", "fresh_seeds"), [(2e-3, 4), (1e-5, 1)])
def test_more_fresh_seeds_are_kept_back_for_a_close_lead_and_fewer_for_a_clear_one(lr: float, fresh_seeds: int) -> None:
    """With the time for sixteen full trials; the third seed of a close one is the baseline's, which had one so far.

    What is close has to be found while there is time to keep: under some seeds nothing is trained to its end before.
    """
    baseline = Config(plan=Plan(batch_size=128), lr=lr)
    runner = SimRunner(known=sim_facts(baseline=baseline), landscape=Landscape(noise=0.01))
    result = race(runner, seed=2, sampler=optuna.samplers.RandomSampler(seed=0)).result
    again = [trial.config for trial in result.trials if trial.role == "confirmation"]
    assert again == [result.finalist, result.finalist, baseline, result.finalist][:fresh_seeds]


# What can go wrong


def test_a_finalist_that_hangs_under_three_fresh_seeds_in_a_row_is_tried_no_more() -> None:
    baseline = sim_facts().baseline

    def hangs(segment: TrainSegment) -> bool:
        return segment.config != baseline and in_one_go(segment)

    run = race(SimRunner(faults=fault("timeout", hangs)), budget_s=150.0, **sampled() | {"most_trials": 8})
    fresh = [trial.config for trial in run.result.trials if trial.role == "confirmation" and trial.config != baseline]
    assert len(fresh) >= 6
    assert {fresh.count(config) for config in fresh[:6]} == {3}
    assert max(fresh.count(config) for config in fresh) == 3
    assert run.result.chose_baseline


@pytest.mark.parametrize(("lr", "wins"), [(1e-5, True), (1e-3, False)])
def test_where_no_time_is_left_for_a_fresh_seed_a_lead_beyond_doubt_is_enough(lr: float, wins: bool) -> None:
    """A machine that becomes so slow at the end that the first fresh seed outlasts the time."""
    baseline = Config(plan=Plan(batch_size=32), lr=lr)

    def outlasts(segment: TrainSegment) -> SegmentResult | None:
        assert segment.limit_s is not None
        is_fresh = segment.config != baseline and in_one_go(segment)
        return SegmentResult(segment=segment, outcome="timeout", seconds=segment.limit_s) if is_fresh else None

    result = race(SimRunner(known=sim_facts(baseline=baseline), faults=outlasts), **sampled()).result
    assert not any(trial.role == "confirmation" and trial.scores for trial in result.trials)
    assert result.chose_baseline == (not wins)
    reasons = " ".join(result.why)
    if wins:
        assert result.chosen == result.finalist
        assert result.score is None
        assert "times what a seed changes: it is chosen, though no time was left for a fresh seed" in reasons
    else:
        assert "it was not confirmed, so the baseline stays" in reasons


@pytest.mark.parametrize("outcome", ["diverged", "oom", "crashed", "timeout"])
def test_a_trial_that_fails_ends_and_the_race_goes_on(outcome: str) -> None:
    run = race(SimRunner(faults=fault(outcome, lambda segment: segment.trial % 3 == 2)), **sampled())
    failed = [trial for trial in run.result.trials if trial.number % 3 == 2]
    assert failed
    assert {trial.state for trial in failed} == {"failed"}
    assert {(trial.outcome, trial.message) for trial in failed} == {(outcome, "made up")}
    assert run.result.trials[0].state == "complete"
    assert run.ledger.elapsed_s <= 60


def test_what_ran_out_of_memory_is_not_asked_of_again() -> None:
    run = race(SimRunner(faults=fault("oom", lambda segment: segment.config.plan.batch_size >= 256)), **sampled())
    first = next(t.number for t in run.result.trials if t.outcome == "oom")
    assert all(t.config.plan.batch_size < 256 for t in run.result.trials[first + 1 :])
    assert any("ran out of memory" in reason for reason in run.result.why)


@pytest.mark.parametrize("where", ["the first rung", "a later rung", "the baseline"])
def test_what_a_worker_kept_of_other_work_costs_an_attempt_and_no_batch(where: str) -> None:
    """It runs out of memory where others were trained before, and not in a process of its own."""
    number = 0 if where == "the baseline" else 1

    def is_full(segment: TrainSegment) -> bool:
        return segment.trial == number and (segment.start_step > 0) == (where == "a later rung") and not segment.fresh

    calm, run = race(**sampled()), race(SimRunner(faults=fault("oom", is_full, seconds=0.01)), **sampled())
    tried = [segment for segment in run.runner.segments if segment.trial == number]
    twice = [segment for segment in tried if [other.until_step for other in tried].count(segment.until_step) == 2]
    assert [segment.fresh for segment in twice] == [False, True] * (len(twice) // 2)
    assert twice
    assert all(not segment.fresh for segment in tried if segment not in twice)  # only what had run out
    assert [trial.config for trial in run.result.trials[:10]] == [trial.config for trial in calm.result.trials[:10]]
    assert run.result.trials[number].scores == calm.result.trials[number].scores
    assert not any("ran out of memory" in reason for reason in run.result.why)
    assert run.result.trials[number].outcome == "ok"


def test_what_ran_out_of_memory_by_itself_is_believed() -> None:
    """At once of a process that had run nothing else, and of any other once it has happened in such a one too."""

    def full(segment: TrainSegment, fresh: bool) -> SegmentResult | None:
        if segment.trial != 2:
            return None
        return SegmentResult(
            segment=segment, outcome="oom", seconds=0.01, message="made up", fresh=fresh or segment.fresh
        )

    for fresh, attempts in ((True, [False]), (False, [False, True])):
        run = race(SimRunner(faults=functools.partial(full, fresh=fresh)), **sampled())
        assert [segment.fresh for segment in run.runner.segments if segment.trial == 2] == attempts
        assert (run.result.trials[2].state, run.result.trials[2].outcome) == ("failed", "oom")
        size = run.result.trials[2].config.plan.batch_size
        assert any(f"batch size {size} ran out of memory" in reason for reason in run.result.why)
        later = [trial for trial in run.result.trials[3:] if trial.role == "search"]
        assert later
        assert all(trial.config.plan.batch_size < size for trial in later)


def test_a_segment_that_crashes_before_it_runs_out_of_memory_still_gets_a_process_of_its_own() -> None:
    outcomes = iter(["crashed", "crashed", "oom"])

    def faults(segment: TrainSegment) -> SegmentResult | None:
        outcome: Any = next(outcomes, None) if segment.trial == 2 else None
        return (
            None
            if outcome is None
            else SegmentResult(segment=segment, outcome=outcome, seconds=0.01, message="made up")
        )

    run = race(SimRunner(faults=faults), **sampled())
    first = [segment.fresh for segment in run.runner.segments if segment.trial == 2][:4]
    assert first == [False, False, False, True]
    assert run.result.trials[2].outcome == "ok"


def test_a_segment_may_take_five_times_its_prediction_half_a_minute_at_least_and_never_more_than_is_left() -> None:
    """Nor, in the search, what is kept for the fresh seeds."""
    predicted: list[tuple[float, float]] = []

    def watch(event: Event) -> None:
        if event.kind == "segment started":
            predicted.append((event.predicted_s, event.elapsed_s))

    budget_s, kinds = 400.0, set[str]()
    run = race(SimRunner(slowdown=1.5), budget_s=budget_s, on_event=watch, **sampled() | {"most_trials": 40})
    assert len(predicted) == len(run.runner.segments)
    for (predicted_s, elapsed_s), segment in zip(predicted, run.runner.segments, strict=True):
        left_s = budget_s - 1.0 - elapsed_s  # a second is kept back for the report
        at_most_s = min(left_s, max(5 * predicted_s, 30.0))
        assert segment.limit_s is not None
        if run.result.trials[segment.trial].is_challenger and segment.limit_s < at_most_s - 1e-3:
            seed_s = (run.result.horizon_s + run.runner.eval_s) * 1.5  # at the pace that everything has
            most_s = [max(left_s - 1.1 * seeds * seed_s, 1.1 * predicted_s) for seeds in (1, 2)]
            assert any(segment.limit_s == pytest.approx(most, rel=0.02) for most in most_s)
            kinds.add("beside the reserve")
            continue
        assert segment.limit_s == pytest.approx(at_most_s, abs=1e-3)
        kinds.add("left" if left_s < max(5 * predicted_s, 30.0) else "least" if predicted_s < 6.0 else "prediction")
    assert kinds == {"prediction", "least", "left", "beside the reserve"}
    first = run.runner.segments[0]
    assert predicted[0][0] == pytest.approx(first.until_step * run.runner.step_s(32) + run.runner.eval_s)


def test_a_crashed_segment_is_run_again_from_its_checkpoint_three_times_at_most() -> None:
    attempts: list[TrainSegment] = []

    def crash(segment: TrainSegment) -> bool:
        if segment.trial == 1 and segment.start_step > 0:
            attempts.append(segment)
            return True
        return False

    result = race(SimRunner(faults=fault("crashed", crash)), **sampled()).result
    assert len(attempts) == 3
    assert result.trials[1].state == "failed"
    once = iter([True])
    mended = race(
        SimRunner(faults=fault("crashed", lambda segment: segment.trial == 0 and next(once, False))), **sampled()
    ).result
    assert mended.trials[0].state == "complete"


def test_anything_that_trains_beats_a_baseline_that_does_not() -> None:
    result = race(SimRunner(faults=fault("diverged", lambda segment: segment.trial == 0)), **sampled()).result
    assert not result.chose_baseline
    assert result.baseline is None
    assert result.score is not None
    assert any("the baseline itself failed (diverged: made up)" in reason for reason in result.why)


def test_one_that_does_not_is_not_the_answer_of_a_race_that_was_stopped() -> None:
    runner = SimRunner()

    def faults(segment: TrainSegment) -> SegmentResult | None:
        if segment.trial and in_one_go(segment):
            raise KeyboardInterrupt
        return fault("diverged", lambda segment: segment.trial == 0)(segment)

    runner.faults = faults
    result = race(runner, **sampled()).result
    assert result.interrupted
    assert not result.chose_baseline
    assert result.chosen == result.finalist
    assert any("there is nothing to compare it with" in reason for reason in result.why)


def test_where_nothing_lasts_under_a_fresh_seed_it_is_not_said_to_have_scored_below_the_baseline() -> None:
    def fails(segment: TrainSegment) -> bool:
        return segment.trial == 0 or in_one_go(segment)

    result = race(SimRunner(faults=fault("diverged", fails)), most_trials=3).result
    assert result.chose_baseline
    assert any(reason.startswith("all that was trained to the end failed under a fresh seed") for reason in result.why)
    assert not any("scored above the baseline" in reason for reason in result.why)


@pytest.mark.parametrize(
    ("accumulates", "expected"), [(True, Plan(batch_size=32, accumulation_steps=8)), (False, None)]
)
def test_a_baseline_that_accumulates_more_than_fits_beside_gradients_accumulates_less(
    accumulates: bool, expected: Plan | None
) -> None:
    own = Plan(batch_size=64, accumulation_steps=4)
    known = sim_facts(baseline=Config(plan=own, lr=1e-3), accumulates=accumulates)
    first = race(SimRunner(known=known), max_batch=100, max_micro_batch=32, **sampled()).result.trials[0]
    assert first.config.plan == (expected or own)
    said = "its batch of 64 does not fit beside gradients that are kept, so it is accumulated over 8 steps of 32"
    assert (said in first.origin) == accumulates


def test_a_baseline_that_accumulates_what_fits_as_one_batch_and_no_other_way_is_trained_as_one() -> None:
    known = sim_facts(baseline=Config(plan=Plan(batch_size=64, accumulation_steps=4), lr=1e-3))
    first = race(SimRunner(known=known), max_batch=300, max_micro_batch=32, **sampled()).result.trials[0]
    assert first.config.plan == Plan(batch_size=256)
    assert first.origin.endswith("does not fit beside gradients that are kept, so it is trained as one batch of 256")


def journal_of(folder: Path) -> StudyRecord:
    return StudyRecord(folder / "journal.log", "task", "maximize")


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("level", [0, 1])
def test_a_baseline_that_ran_out_of_time_is_trained_to_the_end_when_there_is_more(
    level: int, size: int, tmp_path: Path
) -> None:
    """Nothing may win uncompared because the clock, and no fault of the baseline, ended its training."""
    runner = SimRunner()

    def slow(segment: TrainSegment) -> SegmentResult | None:
        runner.slowdown = 1.0
        if segment.trial or (segment.start_step > 0) != (level > 0) or runner.clock.now_s > 60.0:
            return None
        assert segment.limit_s is not None
        return SegmentResult(segment=segment, outcome="timeout", seconds=segment.limit_s)

    runner.faults = slow
    crew = SimCrew(runner, runner.clock, size)
    short = race(runner, budget_s=25.0, crew=crew, record=journal_of(tmp_path), **sampled()).result
    assert "the time ran out" in str(short.not_compared)
    assert (short.chose_baseline, short.score, short.baseline) == (True, None, None)
    kept = journal_of(tmp_path).kept()
    assert kept is not None
    assert (kept.trials[0].state, kept.trials[0].outcome) == ("paused", "timeout")
    assert len(kept.trials[0].scores) == level

    again = SimRunner(kept=runner.kept, clock=VirtualClock(1000.0))
    record = journal_of(tmp_path)
    result = race(again, budget_s=120.0, crew=SimCrew(again, again.clock, size), record=record, kept=kept).result
    assert result.trials[0].state == "complete"
    assert result.baseline is not None
    assert result.not_compared is None
    assert not any("the baseline itself failed" in reason for reason in result.why)


def test_a_baseline_that_hangs_once_is_trained_again_and_failed_when_it_hangs_twice() -> None:
    attempts: list[TrainSegment] = []

    def hangs(times: int) -> Callable[[TrainSegment], bool]:
        def when(segment: TrainSegment) -> bool:
            if segment.trial == 0 and len(attempts) < times:
                attempts.append(segment)
                return True
            return False

        return when

    mended = race(SimRunner(faults=fault("timeout", hangs(1))), budget_s=150.0, **sampled()).result
    assert mended.trials[0].state == "complete"
    assert mended.baseline is not None
    attempts.clear()
    failed = race(SimRunner(faults=fault("timeout", hangs(9))), budget_s=150.0, **sampled()).result
    assert len(attempts) == 2
    assert failed.trials[0].state == "failed"


def test_a_task_that_gives_up_by_itself_costs_the_trial_unless_it_is_the_baseline() -> None:
    def gives_up(trial: int) -> Callable[[TrainSegment], SegmentResult | None]:
        def fault(segment: TrainSegment) -> SegmentResult | None:
            if segment.trial == trial:
                raise TaskError("the user's code raised SystemExit: the loss is nan")
            return None

        return fault

    trials = race(SimRunner(faults=gives_up(2)), **sampled()).result.trials
    assert (trials[2].outcome, trials[2].state) == ("raised", "failed")
    assert "the loss is nan" in str(trials[2].message)
    assert len(trials) > 3
    with pytest.raises(TaskError, match="the loss is nan"):
        race(SimRunner(faults=gives_up(0)), **sampled())


def test_a_race_in_which_everything_fails_says_what_was_said() -> None:
    with pytest.raises(NoValidResult, match=r"none was \(diverged: made up\)"):
        race(SimRunner(faults=fault("diverged", lambda segment: True, seconds=0.0)), **sampled())


def test_a_profile_far_too_fast_is_told_from_a_bad_task() -> None:
    result = race(SimRunner(slowdown=40.0)).result
    assert "times what the profile said" in str(result.not_compared)


def test_a_finalist_that_fails_under_a_fresh_seed_gives_way() -> None:
    calm = race(**sampled()).result
    first = next(t for t in calm.trials if t.role == "confirmation")
    run = race(SimRunner(faults=fault("diverged", lambda segment: segment.trial == first.number)), **sampled())
    assert run.result.chosen != first.config
    assert any("failed under a fresh seed" in reason for reason in run.result.why)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_fresh_seed_that_fails_at_once_leaves_its_time_to_the_next_best(seed: int) -> None:
    """The model has charged it in full; what the clock has left of that pays for the runner-up's."""
    baseline = sim_facts().baseline
    failed: list[Config] = []

    def fails(segment: TrainSegment) -> bool:
        fresh = segment.config != baseline and in_one_go(segment)
        if fresh and segment.config not in failed and len(failed) < 2:
            failed.append(segment.config)
        return fresh and segment.config in failed

    sampler = optuna.samplers.RandomSampler(seed=seed)
    run = race(SimRunner(faults=fault("diverged", fails, seconds=0.05)), sampler=sampler, most_trials=200, seed=seed)
    assert len(failed) == 2
    assert run.result.finalist_score is not None
    assert run.result.finalist not in failed
    assert run.ledger.elapsed_s <= 60


@pytest.mark.parametrize("search", ["freeze-thaw", "tpe"])
@pytest.mark.parametrize("most", [1, 2, 3, 4, 6])
def test_no_more_configurations_are_tried_than_asked_for(most: int, search: str) -> None:
    """Your own and the warm starts are among them."""
    tried = [
        trial.role for trial in race(most_trials=most, sampler=search).result.trials if trial.role != "confirmation"
    ]
    assert len(tried) == most
    assert tried[:3] == ["baseline", "warm start", "warm start"][:most]


@pytest.mark.parametrize("at", [1, 2, 3, 4, 9, 20, "first seed", "last reserved seed", "seed beyond"])
def test_an_interrupt_leaves_the_baseline_unless_the_seeds_had_spoken(at: int | str) -> None:
    seeds = [number for number, segment in enumerate(race(**sampled()).runner.segments, 1) if in_one_go(segment)]
    stop = {"first seed": seeds[0], "last reserved seed": seeds[1], "seed beyond": seeds[2]}.get(str(at), at)
    runner = SimRunner()

    def interrupt(segment: TrainSegment) -> None:
        if len(runner.segments) == stop:
            raise KeyboardInterrupt

    runner.faults = interrupt
    result = race(runner, **sampled()).result
    assert result.interrupted
    assert result.chose_baseline == (at != "seed beyond")
    assert (result.chosen == runner.known.baseline) == result.chose_baseline
    assert (result.baseline is None) == (stop in (1, 2, 3))
    assert all(trial.state != "running" for trial in result.trials)
    assert any("stopped by the user" in reason for reason in result.why)
    assert not any("not enough" in reason for reason in result.why)


def test_test_data_is_scored_once_for_each_side() -> None:
    run = plain()
    assert run.result.test_score is not None
    assert run.result.baseline_test_score is not None
    assert run.result.test_score > run.result.baseline_test_score
    assert race(**sampled()).result.test_score is None


@pytest.mark.parametrize("error", [TaskError("labels out of range"), CheckpointError("it is torn: out of range")])
def test_a_test_that_fails_costs_its_score_and_nothing_else(error: Exception) -> None:
    class Untestable(SimRunner):
        def test_score(self, segment: TrainSegment) -> float | None:
            raise error

    run = race(Untestable(known=sim_facts(has_test_data=True)), **sampled())
    assert run.result.score is not None
    assert run.result.test_score is None
    assert any("out of range" in line for line in run.result.why)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_the_test_data_takes_no_time_from_the_fresh_seeds(seed: int) -> None:
    """What scoring it takes is kept back beside them, not found to be missing when their turn comes."""
    run = race(SimRunner(known=sim_facts(has_test_data=True), eval_s=0.05), budget_s=40, seed=seed)
    assert any(trial.role == "confirmation" and trial.state == "complete" for trial in run.result.trials)
    assert run.result.baseline_test_score is not None


def test_a_trial_that_uses_up_the_time_leaves_enough_for_the_test() -> None:
    def hangs(segment: TrainSegment) -> SegmentResult | None:
        assert segment.limit_s is not None
        return (
            SegmentResult(segment=segment, outcome="timeout", seconds=segment.limit_s) if in_one_go(segment) else None
        )

    runner = SimRunner(known=sim_facts(has_test_data=True), faults=hangs)
    run = race(runner, **sampled())
    assert any(trial.role == "confirmation" and trial.outcome == "timeout" for trial in run.result.trials)
    assert run.ledger.available_s < 4 * runner.eval_s  # it did use up the time
    assert run.result.baseline_test_score is not None


def test_a_baseline_that_does_not_fit_is_accumulated() -> None:
    big = Config(plan=Plan(batch_size=512), lr=1e-3)
    result = race(SimRunner(known=sim_facts(baseline=big)), max_batch=100, **sampled()).result
    assert result.trials[0].config.plan == Plan(batch_size=64, accumulation_steps=8)
    assert "does not fit" in result.trials[0].origin
    assert all(trial.config.plan.batch_size <= 100 for trial in result.trials)


# The norms of the gradient


class Steps(SimRunner):
    """A runner whose gradients grow with the learning rate and from rung to rung."""

    def advance(self, segment: TrainSegment) -> SegmentResult:
        norm = segment.config.lr * segment.until_step
        return replace(SimRunner.advance(self, segment), grad_norms=GradNorms(median=norm, largest=2 * norm))


def test_a_trial_keeps_the_norms_of_each_segment() -> None:
    for trial in race(Steps(), **sampled()).result.trials:
        assert [norms.median for norms in trial.grad_norms][: len(trial.scores)] == [
            trial.config.lr * step for step, _ in trial.scores
        ]
        assert len(trial.grad_norms) == len(trial.scores) + (trial.state == "failed")
        assert trial.to_json()["grad_norms"] == [
            {"median": n.median, "largest": n.largest, "clipped": None} for n in trial.grad_norms
        ]


# The horizon


@given(st.floats(1e-4, 0.5), st.floats(0, 5), st.floats(1, 1e5))
def test_the_horizon_is_a_sixteenth_or_as_short_as_may_be_and_too_short_a_budget_says_what_would_do(
    step_s: float, eval_s: float, remaining_s: float
) -> None:
    def ask(seconds: float) -> float:
        return horizon_s(seconds, None, eval_s=eval_s, baseline_step_s=step_s)

    least_s = MIN_STEPS * step_s + 3 * eval_s  # of a trial
    if remaining_s < LEAST_EQUIVALENTS * least_s * 0.999:
        with pytest.raises(BudgetTooShort, match="Give at least"):
            ask(remaining_s)
    elif remaining_s > EQUIVALENTS * least_s * 1.001:
        horizon = ask(remaining_s)
        assert EQUIVALENTS * (horizon + 3 * eval_s) == pytest.approx(remaining_s)
        assert horizon >= MIN_STEPS * step_s * 0.999
    elif LEAST_EQUIVALENTS * least_s * 1.001 < remaining_s < EQUIVALENTS * least_s * 0.999:
        assert ask(remaining_s) == MIN_STEPS * step_s


def test_a_training_time_that_is_shorter_is_the_horizon() -> None:
    assert horizon_s(1000, 5.0, eval_s=0, baseline_step_s=0.01) == 5.0
    assert horizon_s(1000, 500.0, eval_s=0, baseline_step_s=0.01) == 62.5
    with pytest.raises(BudgetTooShort, match=r"Give a training time of at least 4s"):
        horizon_s(1000, 1.0, eval_s=0, baseline_step_s=0.1)


def test_a_horizon_at_which_the_baseline_hardly_moves_is_refused() -> None:
    runner = SimRunner()
    with pytest.raises(BudgetTooShort, match="at least 32 steps"):
        search(
            runner,
            Ledger(60, runner.clock),
            Profile(runner),
            max_batch=64,
            horizon_s=0.01,
            eval_s=0.0,
            eval_batch_size=EVAL_BATCH,
        )


# The space, the ladder and the promotions


def space_at(
    knee: int,
    *,
    baseline: int = 32,
    train_size: int | None = 50_000,
    max_batch: int = 1 << 14,
    micro: int | None = None,
    horizon_s: float = 50.0,
) -> Space:
    """The space of a simulated task with its knee there."""
    config = Config(plan=Plan(batch_size=baseline), lr=1e-3)
    return space_for(
        sim_facts(train_size=train_size, baseline=config),
        Profile(SimRunner(), knee_batch_size=knee),
        max_batch=max_batch,
        max_micro_batch=max_batch if micro is None else micro,
        horizon_s=horizon_s,
        baseline=config,
    )


@pytest.mark.parametrize(
    ("knee", "sizes"),
    [
        (1, (1, 2, 4)),
        (2, (1, 2, 4, 8)),
        (4, (1, 2, 4, 8, 16)),
        (8, (2, 4, 8, 16, 32)),
        (16, (4, 8, 16, 32, 64)),
        (32, (8, 16, 32, 64, 128)),
        (64, (8, 16, 32, 64, 128, 256)),
        (256, (32, 64, 128, 256, 512, 1024)),
    ],
)
def test_the_sizes_around_a_knee(knee: int, sizes: tuple[int, ...]) -> None:
    assert space_at(knee, baseline=knee).effective_batch_sizes == sizes


def test_the_space_reaches_to_the_size_that_the_user_trains_with() -> None:
    assert space_at(1024, baseline=48).effective_batch_sizes == (64, 128, 256, 512, 1024, 2048, 4096)
    assert space_at(1024, baseline=1).effective_batch_sizes[:3] == (1, 2, 4)
    assert space_at(4, baseline=64).effective_batch_sizes == (1, 2, 4, 8, 16, 32, 64)
    assert space_at(4, baseline=64, train_size=100).effective_batch_sizes == (1, 2, 4, 8, 16, 32, 64)


def test_a_space_too_small_to_search_takes_in_what_lies_around_the_baseline() -> None:
    # The knee is far above what the data allow; three sizes are enough.
    assert space_at(512, train_size=300).effective_batch_sizes == (16, 32)
    assert space_at(512, train_size=800).effective_batch_sizes == (16, 32, 64)
    assert space_at(512, train_size=800, baseline=64).effective_batch_sizes == (32, 64)
    # The knee is far below; 32 is more than the user has, and then 16.
    assert space_at(2, train_size=40, baseline=24).effective_batch_sizes == (1, 2, 4, 8, 16)
    assert space_at(2, train_size=24, baseline=12).effective_batch_sizes == (1, 2, 4, 8)
    # Memory: what does not fit is accumulated, or else is not there.
    assert space_at(1, max_batch=2).effective_batch_sizes == (1, 2, 4, 8, 16, 32)
    assert space_at(1, max_batch=2, micro=0).effective_batch_sizes == (1, 2)
    assert space_at(64, train_size=100, baseline=1).effective_batch_sizes == (1, 2, 4, 8)
    # In a horizon of 0.1 s there are 32 steps of no more than some 56 samples.
    assert space_at(512, horizon_s=0.1).effective_batch_sizes == (16, 32)
    # Nothing can be run: the baseline alone is left.
    assert space_at(512, horizon_s=1e-3).effective_batch_sizes == (32,)


@given(
    st.integers(0, 12).map(lambda exponent: 2**exponent),
    st.integers(8, 100_000),
    st.integers(1, 4096),
    st.integers(0, 4096),
    st.integers(1, 512),
)
def test_the_space_always_holds_something_that_can_be_run(
    knee: int, train_size: int, max_batch: int, micro: int, baseline: int
) -> None:
    micro = min(micro, max_batch)
    times = Profile(SimRunner(), knee_batch_size=knee)
    space = space_at(knee, train_size=train_size, max_batch=max_batch, micro=micro, baseline=baseline, horizon_s=5.0)
    assert space.lr_low < 1e-3 * (knee / baseline) ** 0.5 < space.lr_high
    sizes = set(space.effective_batch_sizes)
    assert list(space.effective_batch_sizes) == sorted(sizes)

    def can_run(size: int) -> bool:
        plan = times.plan_for(size, max_batch, "fp32", micro)
        return plan is not None and total_steps(plan, times, 5.0) >= MIN_STEPS

    assert sizes == {baseline} or all(can_run(size) and size & (size - 1) == 0 for size in sizes)
    # Where the best batch was measured to be, with room in the data for eight steps an epoch, nothing is left out.
    measured = {size for size in (2**exponent for exponent in range(15)) if knee <= 4 * size <= 8 * knee}
    assert {size for size in measured if 8 * size <= train_size and can_run(size)} <= sizes
    # Nor are the user's own, and all up or down to it.
    own = min((2**exponent for exponent in range(15)), key=lambda size: abs(math.log(size / baseline)))
    if sizes != {baseline}:
        between = {size for size in (2**exponent for exponent in range(15)) if sorted((own, size, knee))[1] == size}
        assert {size for size in between if can_run(size) and (size <= baseline or 8 * size <= train_size)} <= sizes
    # Few sizes are those that there are: around the baseline there is none to add.
    if len(sizes) < 3 and sizes != {baseline}:
        around = {size for size in (own // 2, own, 2 * own) if size and (size <= baseline or 8 * size <= train_size)}
        assert {size for size in around if can_run(size)} <= sizes


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_the_space_of_several_processes_is_of_batches_that_all_of_them_share(ranks: int) -> None:
    plan = Plan(batch_size=1, ranks=ranks)
    runner = SimRunner()
    curve = profile(runner, Plan(batch_size=1), max_batch=512, budget_s=5.0)
    times = replace(curve, measurements=tuple(replace(m, plan=replace(m.plan, ranks=ranks)) for m in curve.timed))
    baseline = Config(plan=replace(plan, batch_size=32), lr=1e-3)
    facts = replace(sim_facts(), baseline=baseline)
    space = space_for(facts, times, max_batch=512, max_micro_batch=512, horizon_s=50.0, baseline=baseline)
    assert space.reference_batch == ranks * curve.knee_batch_size
    assert len(space.effective_batch_sizes) > 1
    for size in space.effective_batch_sizes:
        found = times.plan_for(size, 512, "fp32", 512)
        assert found is not None
        assert found.ranks == ranks
        assert found.batch_size & (found.batch_size - 1) == 0


def test_the_range_test_cuts_the_learning_rates_off_above() -> None:
    baseline = Config(plan=Plan(batch_size=256), lr=1e-3)
    around = functools.partial(
        space_for,
        sim_facts(),
        Profile(SimRunner()),
        max_batch=999,
        max_micro_batch=999,
        horizon_s=5,
        baseline=baseline,
    )
    assert around(lr_hint=2e-3, lr_diverged=0.05).lr_high == 0.05
    assert around(lr_hint=2e-3, lr_diverged=1e-4).lr_high == 4e-3  # what it suggests itself stays inside
    assert around(lr_hint=2e-3).lr_high == pytest.approx(0.2)


def test_a_range_test_that_suggests_nothing_cuts_nothing_off() -> None:
    """A baseline ten times too low, and a test that a bad batch ended at once: what is right is still found."""
    runner = SimRunner(known=sim_facts(baseline=Config(plan=Plan(batch_size=256), lr=3e-4)))
    run = race(runner, lr_hint=None, lr_diverged=2e-7, budget_s=120.0)
    assert run.result.space.lr_high == pytest.approx(3e-2)
    assert run.result.chosen.lr * (256 / run.result.chosen.plan.effective_batch_size) ** 0.5 > 1e-3


def test_warm_starts_that_cannot_be_told_apart_are_one() -> None:
    runner = SimRunner()
    baseline = Config(plan=Plan(batch_size=256), lr=1e-3)
    space = space_for(sim_facts(), Profile(runner), max_batch=999, max_micro_batch=999, horizon_s=5, baseline=baseline)
    assert warm_starts(space, baseline, Plan(batch_size=256), None) == []
    assert warm_starts(space, baseline, Plan(batch_size=256), 1.05e-3) == []
    ((config, origin),) = warm_starts(space, baseline, Plan(batch_size=256), 1e-2)
    assert config.lr == 1e-2
    assert "range test" in origin
    assert not same_config(config, baseline)


def test_what_an_earlier_run_found_lies_in_the_space_and_comes_first_where_it_fits() -> None:
    fits, too_large = (Config(plan=Plan(batch_size=size), lr=7.0) for size in (64, 4096))
    run = race(earlier=((fits, "the small one"), (too_large, "the large one")), max_batch=512, **sampled())
    assert run.result.trials[1].config == fits
    assert run.result.trials[1].origin == "the small one"
    assert run.result.space.lr_low < run.result.space.scaled_lr(fits) <= run.result.space.lr_high
    accumulated = [t for t in run.result.trials if t.origin == "the large one"]
    assert [t.config.plan.effective_batch_size for t in accumulated] == [4096]
    whole = race(
        SimRunner(known=sim_facts(accumulates=False)), earlier=((too_large, "it"),), max_batch=512, **sampled()
    )
    assert not any(t.origin == "it" for t in whole.result.trials)
    assert "it was not tried: batch 4096 does not fit here" in whole.result.why


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.25, 1.0), (0.3, 1.0)])
def test_a_ladder_rises_in_sixteenths_to_the_end(shares: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="rungs"):
        Ladder(shares=shares)


def paused(number: int, *scores: float) -> Trial:
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=32), lr=1e-3 * (1 + number)),
        seed=number,
        total_steps=80,
        role="search",
        origin="a test",
        state="paused",
        scores=tuple(zip((10, 40), scores, strict=False)),
    )


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_one_in_eta_goes_on_and_the_highest_rung_first(direction: Direction, sign: int) -> None:
    first = [paused(n, sign * n / 10) for n in range(8)]
    assert [t.number for t in promotable(history(first[:3], direction))] == []
    assert [t.number for t in promotable(history(first[:4], direction))] == [3]
    assert [t.number for t in promotable(history(first, direction))] == [7, 6]
    second = [paused(n, sign * n / 10, sign * n / 10) if n in (6, 7) else t for n, t in enumerate(first)]
    assert [t.number for t in promotable(history(second, direction))] == [7]


def test_a_trial_that_failed_takes_a_place_at_its_rung() -> None:
    trials = [paused(0, 0.1), paused(1, 0.2), paused(2, 0.3)]
    failed = replace(paused(3), state="failed", outcome="diverged")
    assert [t.number for t in promotable(history([*trials, failed]))] == [2]


def test_a_trial_that_failed_takes_no_place_at_a_rung_that_it_was_not_on_the_way_to() -> None:
    """Of eight that diverged before their first score none was to be compared at the second."""
    early = [replace(paused(n), state="failed", outcome="diverged") for n in range(8)]
    rest = [paused(8, 0.1), paused(9, 0.2, 0.3)]
    assert 9 not in [trial.number for trial in promotable(history([*early, *rest]))]
    later = [replace(paused(n, 0.1), state="failed", outcome="diverged") for n in range(8)]
    assert 9 in [trial.number for trial in promotable(history([*later, *rest]))]


def test_a_trial_is_plain_data() -> None:
    trial = replace(paused(3, 0.5), config=Config(plan=Plan(batch_size=16, accumulation_steps=2), lr=0.1))
    data = trial.to_json()
    assert data["effective_batch_size"] == 32
    assert data["scores"] == [[10, 0.5]]
    assert data["state"] == "paused"


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_baseline_set_aside_before_its_first_score_comes_last_of_those_that_wait(direction: Direction) -> None:
    waiting = [paused(0), paused(1, 0.2), paused(2, 0.1, 0.4), paused(3, 0.3)]
    best_first = [2, 3, 1, 0] if direction == "maximize" else [2, 1, 3, 0]
    assert [trial.number for trial in paused_best_first(history(waiting, direction))] == best_first


class Restarted(SimRunner):
    """Says of some rungs that they were the first of a process and took long; by the clock they did not."""

    def advance(self, segment: TrainSegment) -> SegmentResult:
        result = SimRunner.advance(self, segment)
        warms_up = len(self.segments) in (1, 5, 6, 12)
        return replace(result, is_first=True, seconds=40 * result.seconds) if warms_up else result


def test_the_first_segment_of_a_process_says_nothing_of_the_pace() -> None:
    restarted, undisturbed = Restarted(), SimRunner()
    race(restarted, **sampled())
    race(undisturbed, **sampled())
    assert len(undisturbed.segments) > 12
    assert [segment.until_step for segment in restarted.segments] == [
        segment.until_step for segment in undisturbed.segments
    ]
    limits = [[segment.limit_s for segment in runner.segments[2:]] for runner in (restarted, undisturbed)]
    assert limits[0] == limits[1]
