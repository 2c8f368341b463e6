"""Which sizes are timed, what is recommended, and what helps a loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.measurement import Measurement
from autobatch.core.medians import median_interval
from autobatch.core.plan import Plan
from autobatch.errors import NoValidResult, TaskError
from autobatch.measuring.profiling import find_remedy, profile
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.simulated.sim import SimRunner, sim_facts


def saturating(fixed_s: float, full: float) -> Callable[[int], float]:
    """Step time of a device that has `fixed_s` of overhead and does a tile of 8 samples in `full` seconds."""
    return lambda batch: max(fixed_s, full * -(-batch // 8))


@settings(max_examples=60, deadline=None)
@given(fixed_s=st.floats(1e-3, 0.1), full=st.floats(1e-4, 1e-2), max_batch=st.integers(1, 700))
def test_the_recommended_size_is_nearly_the_best_of_all_sizes(fixed_s: float, full: float, max_batch: int) -> None:
    step_s = saturating(fixed_s, full)
    curve = profile(SimRunner(step_s=step_s), Plan(batch_size=1), max_batch=max_batch, budget_s=1e3, refine=True)
    best = max(size / step_s(size) for size in range(1, max_batch + 1))
    assert curve.recommended / step_s(curve.recommended) >= 0.98 * best
    assert curve.recommended <= max_batch


def test_a_closer_look_goes_to_the_neighbours_of_the_knee_and_the_best() -> None:
    step_s = saturating(0.02, 0.001)  # full speed from 160 on
    curve = profile(SimRunner(step_s=step_s), Plan(batch_size=1), max_batch=1000, budget_s=1e3, refine=True)
    sizes = [m.plan.batch_size for m in curve.timed]
    coarse = {1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512, 1000}
    assert coarse <= set(sizes)
    between = [size for size in sizes if size not in coarse]
    assert between
    assert all(size % 8 == 0 for size in between)
    assert all(64 < size < 512 for size in between)
    assert curve.recommended / 1000 == pytest.approx(0.16, abs=0.01)


def test_without_it_the_sizes_are_those_of_the_powers() -> None:
    curve = profile(SimRunner(), Plan(batch_size=1), max_batch=100, budget_s=10.0)
    assert [m.plan.batch_size for m in curve.timed] == [8, 16, 32, 64, 100]


def test_a_closer_look_ends_with_the_budget() -> None:
    runner = SimRunner(step_s=lambda batch: 0.5)
    curve = profile(runner, Plan(batch_size=1), max_batch=4096, budget_s=10.0, refine=True)
    assert runner.clock() < 10.0 + 20 * 0.5
    assert curve.skipped


def with_energy(size: int, step_s: float, joules: float | None) -> Measurement:
    return Measurement(plan=Plan(batch_size=size), outcome="ok", step_s=(step_s,) * 6, joules=joules, seconds=1.0)


def energetic(objective: Any) -> ThroughputCurve:
    """Fastest at 64, least energy at 16; 32 is the best of both."""
    measured = (with_energy(16, 0.016, 16.0), with_energy(32, 0.022, 33.0), with_energy(64, 0.040, 90.0))
    return ThroughputCurve(measurements=measured, objective=objective)


@pytest.mark.parametrize(("objective", "size"), [("throughput", 64), ("energy", 16), ("balanced", 32)])
def test_the_objective_says_which_size_is_recommended(objective: str, size: int) -> None:
    curve = energetic(objective)
    assert curve.recommended == size
    assert str(size) in curve.describe_recommended()
    assert curve.to_json()["recommended_batch_size"] == size


def test_an_objective_that_needs_energy_is_refused_where_there_is_none() -> None:
    measured = (with_energy(8, 0.1, None),)
    with pytest.raises(NoValidResult, match="needs the energy of a step"):
        _ = ThroughputCurve(measurements=measured, objective="energy").recommended
    assert ThroughputCurve(measurements=measured).recommended == 8


def test_the_fit_tells_how_far_off_it_is_at_a_size_it_has_not_seen() -> None:
    straight = ThroughputCurve(measurements=tuple(with_energy(b, 0.01 + 0.001 * b, None) for b in (8, 16, 32, 64)))
    assert straight.residuals() == pytest.approx({16: 0.0, 32: 0.0})
    bent = ThroughputCurve(measurements=tuple(with_energy(b, t, None) for b, t in ((8, 1.0), (16, 1.0), (24, 2.0))))
    assert bent.residuals() == pytest.approx({16: 0.5})


@dataclass(slots=True, kw_only=True)
class Starved(SimRunner):
    """A loader that costs `loading_s` a batch, less with more workers; workers beyond `useful` change nothing."""

    loading_s: float = 0.05
    useful: int = 4
    pinned_s: float = 0.0
    asked: list[Mapping[str, Any] | None] = field(default_factory=list)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        self.asked.append(loader)
        settings = dict(self.known.loader or {}) | dict(loader or {})
        workers = min(self.useful, settings["num_workers"])
        step = max(0.01, self.loading_s / max(1, workers)) + (0.0 if settings["pin_memory"] else self.pinned_s)
        self.clock.advance(20 * step)
        return Measurement(
            plan=plan,
            outcome="ok",
            step_s=tuple(step * (1 + 0.001 * (i % 3)) for i in range(20)),
            compute_s=(0.01,) * 20,
            seconds=20 * step,
        )


def starved(num_workers: int = 0, **changes: Any) -> tuple[Starved, ThroughputCurve]:
    facts = sim_facts(loader={"num_workers": num_workers, "pin_memory": False})
    runner = Starved(known=facts, **changes)
    return runner, profile(runner, Plan(batch_size=1), max_batch=64, budget_s=1.0)


def test_workers_that_were_measured_to_help_are_told() -> None:
    runner, curve = starved()
    assert curve.loader_bound
    found = find_remedy(runner, curve, cores=8, pins_memory=False, budget_s=1.0).remedy
    assert found is not None
    assert found.loader == {"num_workers": 4}
    assert found.before == {"num_workers": 0}
    assert found.samples_per_s == pytest.approx(4 * found.samples_per_s_before, rel=0.01)
    assert "With num_workers=4 (now 0) in `loader`" in found.describe()


def test_pinned_memory_is_tried_with_the_best_workers_on_cuda_alone() -> None:
    runner, curve = starved(pinned_s=0.02)
    found = find_remedy(runner, curve, cores=4, pins_memory=True, budget_s=1.0).remedy
    assert found is not None
    assert found.loader == {"num_workers": 4, "pin_memory": True}
    assert not any(asked and "pin_memory" in asked for asked in starved(pinned_s=0.02)[0].asked)


def test_what_does_not_help_is_not_told() -> None:
    runner, curve = starved(num_workers=4)
    assert find_remedy(runner, curve, cores=8, pins_memory=False, budget_s=1.0).remedy is None


def test_a_machine_that_has_become_faster_is_no_remedy() -> None:
    """Everything is quicker from the fourth measurement on, whatever the loader."""

    class Waking(Starved):
        def time(
            self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
        ) -> Measurement:
            measured = Starved.time(self, plan, budget_s=budget_s, loader=None)
            factor = 1.0 if len(self.asked) < 8 else 0.3
            return replace(measured, step_s=tuple(factor * seconds for seconds in measured.step_s))

    runner = Waking(known=sim_facts(loader={"num_workers": 0, "pin_memory": False}))
    curve = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=1.0)
    assert len(runner.asked) < 8
    assert find_remedy(runner, curve, cores=8, pins_memory=False, budget_s=1.0).remedy is None


def test_a_task_with_its_own_loader_is_left_alone() -> None:
    runner, curve = starved()
    runner.known = sim_facts(loader=None)
    asked = len(runner.asked)
    assert find_remedy(runner, curve, cores=8, pins_memory=False, budget_s=1.0) is curve
    assert len(runner.asked) == asked


def test_a_size_whose_fewest_steps_outlast_the_budget_is_left_out() -> None:
    runner = SimRunner(step_s=lambda batch: 0.01 * batch)
    curve = profile(runner, Plan(batch_size=1), max_batch=4096, budget_s=20.0, refine=True)
    assert 4096 in curve.skipped
    assert runner.clock() < 30.0
    assert curve.timed[-1].plan.batch_size >= 64


@dataclass(slots=True, kw_only=True)
class Normed(SimRunner):
    """Refuses to train on one sample, as batch norm does; slower by half from its `tires_after`th timing on."""

    tires_after: int = 10_000
    timings: int = 0

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        if plan.batch_size == 1:
            raise TaskError("expected more than 1 value per channel when training")
        self.timings += 1
        measured = SimRunner.time(self, plan, budget_s=budget_s)
        factor = 1.5 if self.timings > self.tires_after else 1.0
        return replace(measured, step_s=tuple(factor * seconds for seconds in measured.step_s))


def test_a_model_that_cannot_take_one_sample_is_profiled_all_the_same() -> None:
    curve = profile(Normed(), Plan(batch_size=1), max_batch=64, budget_s=100.0, refine=True)
    assert curve.timed[0].plan.batch_size == 2
    assert profile(SimRunner(), Plan(batch_size=1), max_batch=64, budget_s=100.0, refine=True).timed[0].plan == Plan(
        batch_size=1
    )


def test_the_multiple_of_eight_below_a_largest_size_that_is_none_is_timed() -> None:
    """Without it the largest would stand alone among sizes that tensor cores are not made for."""
    curve = profile(SimRunner(), Plan(batch_size=1), max_batch=1003, budget_s=1e3, refine=True)
    assert {1000, 1003} <= {m.plan.batch_size for m in curve.timed}


@dataclass(slots=True, kw_only=True)
class Paired(SimRunner):
    """A loss over neighbours: it takes `of` samples or a multiple of that, and at some sizes fails in later timings."""

    of: int = 2
    fails_again: int = 0
    asked: list[int] = field(default_factory=list)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        self.asked.append(plan.batch_size)
        if plan.batch_size % self.of or (
            plan.batch_size == self.fails_again and self.asked[:-1].count(self.fails_again)
        ):
            raise TaskError(f"{plan.batch_size} samples cannot be paired")
        return SimRunner.time(self, plan, budget_s=budget_s)


@settings(max_examples=40, deadline=None)
@given(
    of=st.integers(2, 5),
    pairs=st.integers(1, 300),
    fixed_s=st.floats(1e-3, 0.1),
    refine=st.booleans(),
    own=st.booleans(),
)
def test_sizes_that_nobody_asked_for_and_the_task_cannot_take_are_left_out(
    of: int, pairs: int, fixed_s: float, refine: bool, own: bool
) -> None:
    runner = Paired(of=of, step_s=saturating(fixed_s, 0.001))
    include = [of] if own else []
    plan = Plan(batch_size=1)
    curve = profile(runner, plan, max_batch=of * pairs, budget_s=1e3, include=include, refine=refine)
    timed = {m.plan.batch_size for m in curve.timed}
    assert timed == {size for size in runner.asked if size % of == 0}
    assert of * pairs in timed
    refused = [size for size in runner.asked if size % of]
    assert len(refused) == len(set(refused))  # each is tried once
    assert not {*curve.skipped} & {*refused}  # they were not left out for want of time


@pytest.mark.parametrize("refine", [False, True])
def test_a_size_that_was_asked_for_or_has_run_is_not_left_out_quietly(refine: bool) -> None:
    def profiled(runner: Paired, max_batch: int, *include: int) -> ThroughputCurve:
        plan = Plan(batch_size=1)
        return profile(runner, plan, max_batch=max_batch, budget_s=1e3, include=include, refine=refine)

    with pytest.raises(TaskError, match="3 samples cannot be paired"):
        profiled(Paired(), 64, 3)
    with pytest.raises(TaskError, match="63 samples cannot be paired"):  # a memory probe has run it
        profiled(Paired(), 63)
    with pytest.raises(TaskError, match="63 samples cannot be paired"):  # the task fails at every size
        profiled(Paired(of=1000), 63)
    with pytest.raises(TaskError, match="16 samples cannot be paired"):
        profiled(Paired(fails_again=16), 64)


def test_every_size_is_visited_again_and_visits_that_differ_are_told_and_widen_the_interval() -> None:
    once = profile(Normed(), Plan(batch_size=1), max_batch=64, budget_s=100.0, refine=True)
    number = len(once.timed)
    tired = profile(Normed(tires_after=number), Plan(batch_size=1), max_batch=64, budget_s=100.0, refine=True)
    assert all(len(m.step_s) == 60 for m in once.timed)  # three visits of 20 steps
    assert all(m.remarks == () for m in once.timed)
    for m in tired.timed:
        assert m.remarks == ("visits differed by 50%",)
        assert set(m.step_s) == {min(m.step_s), 1.5 * min(m.step_s)}
        assert len(m.step_s) > 60  # not settled after three: it is visited on
        assert m.visits_s[0] == min(m.step_s)
    low, high = median_interval([1.0] * 20 + [1.5] * 20) or (0.0, 0.0)
    assert (low, high) == (1.0, 1.5)


@pytest.mark.parametrize("budget_s", [3.0, 30.0])
def test_the_energy_of_the_sizes_that_matter_is_measured_first(budget_s: float) -> None:
    runner = SimRunner(step_s=saturating(0.02, 0.001), watts=lambda batch: 100.0 + batch)
    curve = profile(runner, Plan(batch_size=1), max_batch=1000, budget_s=budget_s, refine=True)
    told = {m.plan.batch_size: m for m in curve.timed if m.joules is not None}
    assert curve.recommended in told
    assert len(told) >= (12 if budget_s == 30 else 1)
    for size, measured in told.items():
        assert measured.watts == 100.0 + size
        assert measured.joules == pytest.approx((100.0 + size) * saturating(0.02, 0.001)(size))
    assert runner.clock() < 1.3 * budget_s


def test_an_objective_of_energy_is_judged_in_a_short_profile_too_and_says_by_how_many_sizes() -> None:
    runner = SimRunner(step_s=saturating(0.02, 0.001), watts=lambda batch: 100.0)
    curve = profile(runner, Plan(batch_size=1), max_batch=1000, budget_s=3.0, refine=True, objective="energy")
    without = [m for m in curve.timed if m.joules is None]
    assert without
    assert curve.recommended not in {m.plan.batch_size for m in without}
    number = len(curve.timed) - len(without)
    assert curve.describe_recommended().endswith(f"of {number} sizes whose energy there was time to measure")


def test_a_device_without_a_counter_costs_no_time_for_it() -> None:
    with_none, with_some = SimRunner(), SimRunner(watts=lambda batch: 1.0)
    asked = [
        sum(len(m.step_s) for m in profile(r, Plan(batch_size=1), max_batch=64, budget_s=1.0, refine=True).timed)
        for r in (with_none, with_some)
    ]
    assert asked[0] >= asked[1]


def test_a_loader_that_cannot_be_changed_is_no_reason_to_lose_the_profile() -> None:
    class Unreadable(Starved):
        def time(
            self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
        ) -> Measurement:
            if loader:
                raise TaskError("this data cannot be read in another process")
            return Starved.time(self, plan, budget_s=budget_s)

    runner = Unreadable(known=sim_facts(loader={"num_workers": 0, "pin_memory": False}))
    curve = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=1.0)
    assert curve.loader_bound
    assert find_remedy(runner, curve, cores=8, pins_memory=True, budget_s=1.0) is curve


def test_a_machine_that_fails_while_a_remedy_is_sought_leaves_the_profile() -> None:
    class Failing(Starved):
        def time(
            self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
        ) -> Measurement:
            measured = Starved.time(self, plan, budget_s=budget_s, loader=loader)
            failed = Measurement(plan=plan, outcome="crashed", message="killed")
            return failed if len(self.asked) > 1 and not loader else measured

    runner = Failing(known=sim_facts(loader={"num_workers": 0, "pin_memory": False}))
    curve = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=1.0)
    assert find_remedy(runner, curve, cores=8, pins_memory=False, budget_s=1.0) is curve


def test_further_visits_time_whole_steps_alone() -> None:
    asked: list[tuple[int, bool]] = []

    class Watched(SimRunner):
        def time(
            self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
        ) -> Measurement:
            asked.append((plan.batch_size, parts))
            return SimRunner.time(self, plan, budget_s=budget_s)

    profile(Watched(), Plan(batch_size=1), max_batch=64, budget_s=5.0, refine=True)
    first = [parts for index, (size, parts) in enumerate(asked) if size not in {s for s, _ in asked[:index]}]
    assert all(first)
    assert sum(parts for _, parts in asked) == len(first) < len(asked)


@dataclass(slots=True, kw_only=True)
class Restless(SimRunner):
    """A machine that takes twice as long from `slow_from` to `slow_until`, and half a percent longer each time."""

    slow_from: float = 0.0
    slow_until: float = 0.0
    seen: list[int] = field(default_factory=list)

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        self.seen.append(plan.batch_size)
        is_slow = self.slow_from <= self.clock() < self.slow_until
        step = self.step_s(plan.batch_size) * (2.0 if is_slow else 1.0) * (1 + 0.005 * len(self.seen))
        repeats = max(6, int(budget_s / step))
        self.clock.advance(repeats * step)
        return Measurement(plan=plan, outcome="ok", step_s=(step,) * repeats, seconds=repeats * step)


def test_every_size_is_visited_there_and_back_in_a_short_profile_too() -> None:
    runner = Restless(step_s=saturating(0.004, 0.0001))
    curve = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=8.0, include=[24])
    upwards = [8, 16, 24, 32, 64]
    assert runner.seen[:15] == [24, 8, 16, 32, 64, *reversed(upwards), *upwards]
    assert all(3 <= len(m.visits_s) <= 5 for m in curve.timed)
    assert runner.clock() == pytest.approx(8.0, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(begins=st.floats(0.0, 1.0), share=st.floats(0.0, 0.3))
def test_a_slow_moment_changes_no_step_time_beside_another(begins: float, share: float) -> None:
    step_s = saturating(0.004, 0.0001)
    runner = Restless(step_s=step_s, slow_from=8.0 * begins, slow_until=8.0 * (begins + share))
    curve = profile(runner, Plan(batch_size=1), max_batch=256, budget_s=8.0)
    ratios = [curve.step_s(size) / step_s(size) for size in (8, 16, 32, 64, 128, 256)]
    assert max(ratios) < 1.1 * min(ratios)


def test_a_size_is_seen_once_before_another_is_seen_again() -> None:
    runner = Restless(step_s=lambda batch: 0.02 * batch)
    curve = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=14.5)
    assert runner.seen == [8, 16, 32, 64]  # 14.4 s of the fewest steps, more than a fourth of the time
    assert curve.skipped == ()


def test_a_size_whose_fewest_steps_would_outlast_the_time_twice_is_left_out() -> None:
    runner = Restless(step_s=lambda batch: 0.02 * batch)
    curve = profile(runner, Plan(batch_size=1), max_batch=1024, budget_s=5.0, include=[8])
    assert max(runner.seen) <= 32  # the next has steps of 1.28 s
    assert curve.skipped[-1] == 1024
    assert runner.clock.now_s < 10.0
