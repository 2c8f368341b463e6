"""What is told to give more of: given exactly that, on the same machine, it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.facts import TaskFacts
from autobatch.core.measurement import Measurement
from autobatch.core.plan import Config, Plan
from autobatch.core.units import parse_duration
from autobatch.engines.served import RunnerSpec
from autobatch.errors import BudgetTooShort, WorkerTimeout
from autobatch.render.content import report_document
from autobatch.render.markdown import to_markdown
from autobatch.reports.report import Report
from autobatch.runs.run_folder import RunFolder, RunState, read_state
from autobatch.runs.settings import TuneSettings
from autobatch.searching.budget.advice import enough_s, give_at_least, typed
from autobatch.searching.budget.costs import EQUIVALENTS, LEAST_EQUIVALENTS, Costs, horizon_s, ladder_for
from autobatch.searching.budget.ledger import Ledger, report_reserve_s
from autobatch.searching.trials import DEFAULT_LADDER, MIN_STEPS, Trial
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tuning import run as tuning
from autobatch.tuning.pipeline import _Tune
from autobatch.tuning.stages import throughput_of


class Machine(SimRunner):
    """Starts up in `start_s` seconds, and each probe in a process that takes `probe_s` to start."""

    start_s = 0.0
    probe_s = 0.0

    def facts(self) -> TaskFacts:
        started, self.start_s = self.start_s, 0.0
        self.clock.advance(started)
        return SimRunner.facts(self)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        self.clock.advance(self.probe_s)
        return SimRunner.probe(self, plan, final=final)


def tuned(make: Callable[[], SimRunner], folder: Path, budget_s: float, train_time_s: float | None = None) -> Report:
    runner = make()
    given_ = TuneSettings(name="t", budget_s=budget_s, train_time_s=train_time_s, max_trials=1)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=given_)
    with RunFolder.made(folder / f"{budget_s}", "t") as made:
        return _Tune(runner, Ledger(budget_s, clock=runner.clock), lambda _: None, made, state).run()


def advised_s(message: str) -> float:
    found = re.search(r"Give (?:a budget of )?at least (\S+?)(?:\.|$)", message)
    assert found is not None, message
    return parse_duration(found[1])


@settings(max_examples=30)
@given(
    fixed_ms=st.floats(0.5, 200),
    sample_ms=st.floats(0.001, 20),
    eval_s=st.floats(0, 3),
    start_s=st.floats(0, 20),
    probe_s=st.floats(0, 2),
    own=st.sampled_from([1, 32, 256]),
    budget_s=st.floats(1, 100),
    room_for=st.sampled_from([20, 1 << 20]),
    jitter=st.floats(0.9, 1.13),
)
def test_a_budget_that_was_advised_is_enough(
    fixed_ms: float,
    sample_ms: float,
    eval_s: float,
    start_s: float,
    probe_s: float,
    own: int,
    budget_s: float,
    room_for: int,
    jitter: float,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    def machine(pace: float) -> Callable[[], SimRunner]:
        def make() -> SimRunner:
            made = Machine(
                known=sim_facts(baseline=Config(plan=Plan(batch_size=own), lr=1e-3)),
                step_s=lambda batch: pace * (fixed_ms + sample_ms * batch) / 1000,
                eval_s=eval_s,
                peak_bytes=lambda batch: batch,
                capacity_bytes=room_for,
                headroom=0.0,
            )
            made.start_s, made.probe_s = start_s, probe_s
            return made

        return make

    folder = tmp_path_factory.mktemp("t")
    report = tuned(machine(1.0), folder, budget_s)
    if report.not_compared is not None:
        needed_s = advised_s(report.not_compared)
        assert needed_s > budget_s
        assert tuned(machine(jitter), folder, needed_s).not_compared is None


def slow_machine(slowdown: float) -> SimRunner:
    return SimRunner(slowdown=slowdown, step_s=lambda batch: 0.002, eval_s=0.0)


def test_training_that_takes_many_times_its_profile_is_told_that_a_budget_does_not_mend_it(tmp_path: Path) -> None:
    why = tuned(lambda: slow_machine(30.0), tmp_path, 60.0).not_compared
    assert why is not None
    assert "takes 30.0 times what the profile said. With any budget it" in why
    found = re.search(r"give a training time of at most (\S+)$", why)
    assert found is not None, why
    report = tuned(lambda: slow_machine(30.0), tmp_path / "again", 60.0, parse_duration(found[1]))
    assert report.baseline is not None


def test_training_that_takes_a_few_times_its_profile_comes_to_its_end(tmp_path: Path) -> None:
    assert tuned(lambda: slow_machine(10.0), tmp_path, 60.0).baseline is not None


def test_a_training_time_that_was_advised_is_enough() -> None:
    with pytest.raises(
        BudgetTooShort, match=r"fewer than 32 steps of the baseline\. Give a training time of at"
    ) as told:
        horizon_s(1000, 1.0, eval_s=0, baseline_step_s=0.1)
    given_s = parse_duration(str(told.value).rsplit(" ", 1)[1])
    assert horizon_s(1000, given_s, eval_s=0, baseline_step_s=0.11) == given_s


@given(st.floats(0.001, 1e6))
def test_an_advice_is_rounded_up_and_can_be_typed(seconds: float) -> None:
    assert seconds <= parse_duration(typed(seconds)) <= max(1.0, 1.0 + 1.15 * seconds)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1s"), (61, "1m01s"), (119.5, "2m"), (121, "2m05s"), (1201, "21m"), (4000, "1h07m"), (7201, "2h10m")],
)
def test_an_advice_is_written_as_a_budget_is_typed(seconds: float, text: str) -> None:
    assert give_at_least(seconds) == f"Give at least {text}"


@given(work_s=st.floats(1, 1e5), spent_s=st.floats(0, 1e3))
def test_what_is_enough_leaves_the_work_its_time(work_s: float, spent_s: float) -> None:
    needed_s = enough_s(work_s, spent_s)
    assert 0.87 * (needed_s - report_reserve_s(needed_s)) - spent_s >= 1.2 * work_s
    assert needed_s < 1.5 * (work_s + spent_s) + 2  # it does not grow fourfold


class Stuck(SimRunner):
    """The time for everything ends in the call that is named."""

    stuck = ""
    ended_s = 0.0

    def _end(self, name: str) -> None:
        if name == self.stuck:
            self.clock.advance(self.ended_s)
            raise WorkerTimeout(f"{name} took longer than the {self.ended_s:.1f} s it had; its worker was ended")

    def facts(self) -> TaskFacts:
        self._end("facts")
        return SimRunner.facts(self)

    def probe(self, plan: Plan, *, final: bool = False) -> Measurement:
        if plan.batch_size > 2:
            self._end("probe")
        return SimRunner.probe(self, plan, final=final)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        self._end("time")
        return SimRunner.time(self, plan, budget_s=budget_s, loader=loader, parts=parts)

    def time_evaluation(self, batch_size: int) -> float:
        self._end("time_evaluation")
        return SimRunner.time_evaluation(self, batch_size)


def run_that_ends_in(stuck: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: object) -> Report:
    """A `tune` whose time ends in that call."""
    runner = Stuck(known=sim_facts(**changes), step_s=lambda batch: 0.1 * batch)
    runner.stuck, runner.ended_s = stuck, 5.0
    monkeypatch.setattr(tuning, "_opened", lambda *_: runner)
    state = RunState(created="2026-01-02T03:04:05+00:00", settings=TuneSettings(name="t", budget_s=60.0))
    with RunFolder.made(folder, "t") as made:
        return tuning.run_tune(made, state, RunnerSpec(path=Path("t.py")), lambda _: None, started_s=None)


def test_a_budget_that_ends_before_anything_was_measured_says_what_did_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BudgetTooShort) as error:
        run_that_ends_in("facts", tmp_path / "run", monkeypatch)
    message = str(error.value)
    what = r"opening and checking the task \(model\(\), train_data\(\), val_data\(\), a step and an evaluation\)"
    assert re.search(
        rf"ended before anything was measured: .*not known how long {what} takes.*whether it ends", message
    )
    assert "at least" not in message
    assert f"What the task printed is in {tmp_path / 'run' / 'worker.log'}" in message


def test_where_steps_are_too_slow_for_the_budget_it_is_told_which_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BudgetTooShort) as error:  # 0.2 s for two samples, 3.2 s for the baseline's 32
        run_that_ends_in("probe", tmp_path / "run", monkeypatch)
    assert advised_s(str(error.value).partition(". What the task printed")[0]) > LEAST_EQUIVALENTS * MIN_STEPS * 3.2


# A budget that is too short to compare anything: what was measured is the answer.


@pytest.mark.parametrize(
    ("stuck", "what"),
    [
        ("time", "timing a step"),
        ("time_evaluation", r"an evaluation on val_data\(\), which has no length and may not end,"),
    ],
)
def test_a_budget_that_ends_in_a_later_stage_reports_the_earlier_ones(
    stuck: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = run_that_ends_in(stuck, tmp_path / "run", monkeypatch, val_size=None)
    assert report.not_compared is not None
    assert re.match("the budget ended before anything could be compared: ", report.not_compared)
    if stuck == "time_evaluation":
        assert re.search(rf"not known how long {what} takes.*whether it ends", report.not_compared)
    assert report.max_batch["batch_size"] > 0
    assert (report.throughput is None) == (stuck == "time")
    assert Report.from_json(report.to_json()) == report
    assert not read_state(tmp_path / "run").is_finished  # with more time it goes on


def slow_steps() -> SimRunner:
    return SimRunner(step_s=lambda batch: 0.5 + 0.001 * batch, eval_s=0.0)


def test_a_short_budget_reports_its_measurements_and_what_a_longer_one_would_add(tmp_path: Path) -> None:
    report = tuned(slow_steps, tmp_path, 30.0)
    assert report.trials == ()
    assert (report.score, report.baseline, report.horizon_s) == (None, None, None)
    assert report.chose_baseline
    assert report.throughput is not None
    assert report.not_compared is not None
    assert "a comparison takes 3 trials of at least 32 baseline steps" in report.not_compared
    assert Report.from_json(report.to_json()) == report
    shown = to_markdown(report_document(report))
    assert "The budget was too short to compare anything" in shown
    assert "A comparison takes 3 trials" in shown
    assert "Largest batch" in shown
    assert "Trials" not in shown
    assert "Where it holds" not in shown


@pytest.mark.parametrize("trials", [3, 5, 11])
def test_a_budget_for_fewer_trials_has_fewer_of_them(trials: int) -> None:
    least_s = MIN_STEPS * 0.1 + 3 * 0.5
    assert horizon_s(trials * least_s, None, eval_s=0.5, baseline_step_s=0.1) == MIN_STEPS * 0.1
    assert horizon_s(2 * EQUIVALENTS * least_s, None, eval_s=0.5, baseline_step_s=0.1) > MIN_STEPS * 0.1


def test_with_more_time_a_run_that_was_too_short_goes_on_from_its_measurements(tmp_path: Path) -> None:
    with RunFolder.made(tmp_path / "run", "t") as made:
        settings = TuneSettings(name="t", budget_s=30.0)
        state = RunState(created="2026-01-02T03:04:05+00:00", settings=settings)
        first = slow_steps()
        short = _Tune(first, Ledger(30.0, clock=first.clock), lambda _: None, made, state).run()
        assert short.not_compared is not None
        budget_s = advised_s(short.not_compared)
        kept = read_state(made.path)
        kept = replace(kept, resumed=1, settings=replace(settings, budget_s=budget_s))
        runner = slow_steps()
        ledger = Ledger(budget_s, clock=runner.clock, carried=kept.charged)
        report = _Tune(runner, ledger, lambda _: None, made, kept).run()
    assert report.not_compared is None
    assert report.baseline is not None
    assert len(report.trials) >= 2
    assert report.max_batch == short.max_batch
    assert report.throughput == short.throughput
    assert ledger.elapsed_s <= budget_s


@given(
    st.floats(1, 1e5),
    st.floats(0, 10),
    st.floats(0, 10),
    st.booleans(),
    st.sampled_from([1, 4]),
    st.none() | st.floats(0.1, 1e4),
)
def test_rungs_are_worth_what_they_cost_or_there_is_one(
    remaining_s: float, eval_s: float, rung_s: float, resumes: bool, at_once: int, train_time_s: float | None
) -> None:
    ladder = ladder_for(remaining_s, train_time_s, eval_s=eval_s, rung_s=rung_s, resumes=resumes, at_once=at_once)
    assert ladder.shares[-1] == 1.0
    assert set(ladder.shares) <= set(DEFAULT_LADDER.shares)
    if rung_s == 0:
        assert ladder == DEFAULT_LADDER
    if len(ladder.shares) > 1 and rung_s:
        rungs, repeats = len(ladder.shares), ladder.repeats(resumes=resumes)
        of = {"eval_s": eval_s, "baseline_step_s": 0.0, "rungs": rungs, "repeats": repeats, "at_once": at_once}
        assert ladder.shares[0] * horizon_s(remaining_s, train_time_s, **of) >= rung_s  # type: ignore[arg-type]


@given(st.booleans(), st.integers(32, 4096), st.sampled_from([(1.0,), (0.5, 1.0), (0.125, 0.5, 1.0)]))
def test_what_a_trial_costs_is_the_sum_of_its_segments(resumes: bool, steps: int, shares: tuple[float, ...]) -> None:
    ladder = type(DEFAULT_LADDER)(shares=shares)
    runner = SimRunner()
    config = runner.facts().baseline
    times = throughput_of(runner, config.plan, 64, budget_s=1.0)
    costs = Costs(times=times, ladder=ladder, horizon_s=1.0, eval_s=0.25, resumes=resumes)
    trial = Trial(number=0, config=config, seed=0, total_steps=steps, role="search", origin="")
    total_s = 0.0
    for level in range(len(shares)):
        until = ladder.until(level, steps)
        assert costs.finish_s(trial) == pytest.approx(costs.segment_s(trial, until) + _rest_s(costs, trial, level))
        total_s += costs.segment_s(trial, until)
        trial = replace(trial, scores=(*trial.scores, (until, 0.5)))
    again = sum(ladder.until(level, steps) for level in range(len(shares) - 1)) / steps
    step_s = costs.steps_s(config.plan, steps)
    assert total_s == pytest.approx((1 + (0 if resumes else again)) * step_s + len(shares) * 0.25)


def _rest_s(costs: Costs, trial: Trial, level: int) -> float:
    """What follows a rung."""
    trial = replace(trial, scores=(*trial.scores, (costs.ladder.until(level, trial.total_steps), 0.5)))
    return 0.0 if level == len(costs.ladder.shares) - 1 else costs.finish_s(trial)


def test_a_time_that_ends_before_the_first_score_is_too_short() -> None:
    with pytest.raises(BudgetTooShort, match=r"is over before the first score, which the baseline took 5\.00 s to"):
        horizon_s(1000, 3.0, eval_s=0, baseline_step_s=0.001, least_s=5.0)
    with pytest.raises(BudgetTooShort, match=r"takes 3 trials of the 5\.00 s that the baseline took to its first"):
        horizon_s(14, None, eval_s=0, baseline_step_s=0.001, least_s=5.0)
    assert horizon_s(15, None, eval_s=0, baseline_step_s=0.001, least_s=5.0) == 5.0
    assert horizon_s(160, None, eval_s=0, baseline_step_s=0.001, least_s=5.0) == 10.0


def test_where_beginning_a_trial_costs_much_fewer_of_them_train_for_as_long() -> None:
    dear: dict[str, Any] = {"eval_s": 4.0, "baseline_step_s": 0.001, "rung_s": 4.0, "rungs": 1}
    assert horizon_s(80, None, **dear) == 4.0  # ten of 4 s each, and not sixteen of 1
    assert horizon_s(20, None, **dear) == 0.032  # not even three of 4 s: what a comparison takes at least
    assert horizon_s(160, None, **dear) == 6.0
