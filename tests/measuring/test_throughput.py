from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.measurement import Measurement
from autobatch.core.plan import Plan
from autobatch.errors import NoValidResult
from autobatch.measuring.profiling import profile
from autobatch.measuring.taken import Rule
from autobatch.measuring.throughput import ThroughputCurve
from autobatch.render.document import Paragraph, Table
from autobatch.render.evidence import throughput_section
from autobatch.simulated.sim import SimRunner

cheap = settings(max_examples=60)


def timed(size: int, *step_s: float, **changes: Any) -> Measurement:
    return Measurement(plan=Plan(batch_size=size), outcome="ok", step_s=step_s, seconds=sum(step_s), **changes)


def curve(*points: tuple[int, float]) -> ThroughputCurve:
    return ThroughputCurve(measurements=tuple(timed(size, seconds) for size, seconds in points))


curves = st.dictionaries(st.integers(1, 2000), st.floats(1e-4, 10), min_size=1, max_size=8).map(
    lambda points: curve(*points.items())
)


@cheap
@given(measured=curves, one=st.integers(1, 5000), other=st.integers(1, 5000))
def test_a_larger_batch_never_takes_less_time_however_noisy_the_clock(
    measured: ThroughputCurve, one: int, other: int
) -> None:
    small, large = sorted((one, other))
    assert 0 < measured.step_s(small) <= measured.step_s(large) * (1 + 1e-9)


@cheap
@given(measured=curves)
def test_the_knee_is_the_smallest_measured_size_with_most_of_the_speed(measured: ThroughputCurve) -> None:
    sizes = [m.plan.batch_size for m in measured.timed]
    enough = 0.8 * max(measured.samples_per_s(size) for size in sizes)
    assert measured.knee_batch_size == min(size for size in sizes if measured.samples_per_s(size) >= enough)
    assert measured.knee_batch_size <= measured.fastest


@cheap
@given(points=st.dictionaries(st.integers(1, 50), st.integers(1, 40), min_size=1, max_size=6))
def test_the_fit_is_the_nearest_curve_that_never_falls(points: dict[int, int]) -> None:
    """Against the minimax formula of isotonic regression: the obvious slow reference."""
    sizes = sorted(points)
    values = [points[size] for size in sizes]

    def mean(start: int, end: int) -> float:
        return sum(values[start : end + 1]) / (end + 1 - start)

    count = len(values)
    fitted = curve(*((size, float(points[size])) for size in sizes))
    for i, size in enumerate(sizes):
        expected = max(min(mean(start, end) for end in range(i, count)) for start in range(i + 1))
        assert fitted.step_s(size) == pytest.approx(expected)


def test_a_hiccup_is_shared_out_by_its_repeats_and_not_carried_upwards() -> None:
    measured = ThroughputCurve(measurements=(timed(8, 5.0), timed(16, 1.0, 1.0, 1.0), timed(32, 3.0)))
    assert measured.step_s(8) == measured.step_s(16) == 2.0
    assert measured.step_s(32) == 3.0


def test_steps_interpolate_and_extrapolate_along_the_line() -> None:
    measured = curve((8, 1.0), (16, 2.0), (32, 3.0))
    assert measured.step_s(12) == pytest.approx(1.5)
    assert measured.step_s(48) == pytest.approx(4.0)
    assert measured.step_s(4) == pytest.approx(0.5)
    assert curve((8, 1.0), (16, 1.2)).step_s(1) == pytest.approx(0.825)


def test_a_single_level_errs_on_the_slow_side() -> None:
    measured = curve((8, 1.0))
    assert (measured.step_s(4), measured.step_s(16)) == (1.0, 2.0)
    assert curve((8, 1.0), (16, 1.0)).step_s(32) == 2.0


def visited(batch_size: int, *visits_s: float) -> Measurement:
    steps = tuple(seconds for seconds in visits_s for _ in range(4))
    return Measurement(plan=Plan(batch_size=batch_size), outcome="ok", step_s=steps, visits_s=visits_s)


def test_sizes_are_compared_by_the_moments_at_which_little_else_went_on() -> None:
    restless = ThroughputCurve(measurements=(visited(8, 0.10, 0.11, 0.10), visited(16, 0.25, 0.18, 0.24)))
    assert restless.fastest == 16  # by the medians it is the slower one
    assert restless.step_s(16) / restless.step_s(8) == pytest.approx(1.8)
    spent_s = sum(sum(m.step_s) for m in restless.measurements)
    assert sum(4 * 3 * restless.step_s(size) for size in (8, 16)) == pytest.approx(spent_s)  # stalls are paid for
    lucky = visited(8, 0.05, *(0.1 for _ in range(7)))
    assert lucky.undisturbed_step_s == 0.1


def test_medians_compare_sizes_and_the_mean_prices_them() -> None:
    stalled = ThroughputCurve(measurements=(timed(8, 1.0, 1.0, 99.0), timed(16, 2.0, 2.0, 2.0)))
    assert stalled.step_s(16) / stalled.step_s(8) == pytest.approx(2.0)
    assert 3 * stalled.step_s(8) + 3 * stalled.step_s(16) == pytest.approx(101 + 6)


@cheap
@given(measured=curves, effective=st.integers(1, 3000), limit=st.integers(1, 3000), micro=st.integers(0, 3000))
def test_a_plan_keeps_the_effective_batch_within_memory(
    measured: ThroughputCurve, effective: int, limit: int, micro: int
) -> None:
    plan = measured.plan_for(effective, limit, "bf16", micro)
    if plan is None:
        assert effective > limit
        assert micro == 0
        return
    assert plan.effective_batch_size == effective
    assert plan.batch_size <= limit
    assert plan.precision == "bf16"
    assert (plan.accumulation_steps == 1) == (effective <= limit)
    if plan.accumulation_steps > 1:
        most = min(limit, micro)
        assert plan.batch_size <= most
        costs = [measured.step_s(b) * (effective // b) for b in range(1, most + 1) if effective % b == 0]
        assert measured.step_s(plan.batch_size) * plan.accumulation_steps == pytest.approx(min(costs))


@cheap
@given(st.integers(1, 6), st.integers(1, 3000), st.integers(1, 300), st.integers(0, 300))
def test_a_plan_of_several_processes_is_as_large_in_all_of_them_together(
    ranks: int, effective: int, limit: int, micro: int
) -> None:
    one = curve((8, 1.0), (64, 2.0))
    several = ThroughputCurve(measurements=tuple(replace(m, plan=replace(m.plan, ranks=ranks)) for m in one.timed))
    assert several.samples_per_s(32) == pytest.approx(ranks * one.samples_per_s(32))
    plan = several.plan_for(effective, limit, "fp32", micro)
    alone = one.plan_for(effective // ranks, limit, "fp32", micro) if effective >= ranks else None
    if effective % ranks or alone is None:
        assert plan is None
    else:
        assert plan == replace(alone, ranks=ranks)
        assert plan.effective_batch_size == effective


def test_accumulation_takes_the_fastest_divisor_and_not_the_largest() -> None:
    measured = curve((32, 1.0), (48, 4.0))  # 48 fits, but memory traffic makes it slow
    assert measured.plan_for(96, 48, "fp32") == Plan(batch_size=32, accumulation_steps=3)
    assert measured.plan_for(96, 0, "fp32") is None


@cheap
@given(
    effective=st.integers(1, 3000),
    limit=st.integers(1, 300),
    micro=st.integers(0, 300),
    rule=st.builds(Rule, multiple_of=st.integers(1, 12), power_of_two=st.booleans(), least=st.integers(1, 20)),
)
def test_a_plan_has_no_micro_batch_that_the_task_does_not_take(
    effective: int, limit: int, micro: int, rule: Rule
) -> None:
    measured = replace(curve((8, 1.0), (64, 2.0)), rule=rule)
    plan = measured.plan_for(effective, limit, "fp32", micro)
    most = min(limit, micro)
    possible = [effective] if effective <= limit else [d for d in range(1, most + 1) if effective % d == 0]
    if plan is None:
        assert not any(map(rule.takes, possible))
    else:
        assert plan.effective_batch_size == effective
        assert plan.batch_size in possible
        assert rule.takes(plan.batch_size)


def test_of_a_task_that_takes_multiples_powers_of_two_of_them_are_timed() -> None:
    class Sixes(SimRunner):
        def time(self, plan: Plan, **options: Any) -> Measurement:
            assert plan.batch_size % 6 == 0
            return SimRunner.time(self, plan, **options)

    rule = Rule(multiple_of=6)
    measured = profile(Sixes(), Plan(batch_size=1), max_batch=198, budget_s=2.0, include=[18], rule=rule)
    assert [m.plan.batch_size for m in measured.measurements] == [12, 18, 24, 48, 96, 192, 198]


def test_a_curve_without_times_is_refused() -> None:
    failed = Measurement(plan=Plan(batch_size=8), outcome="oom")
    with pytest.raises(ValueError, match="at least one of them timed; got 8: oom"):
        ThroughputCurve(measurements=(failed,))
    with pytest.raises(ValueError, match="one measurement for each size"):
        ThroughputCurve(measurements=(timed(8, 1.0), timed(8, 2.0)))


def test_a_profile_covers_the_powers_of_two_the_largest_and_what_is_included() -> None:
    runner = SimRunner()
    measured = profile(runner, Plan(batch_size=1), max_batch=100, budget_s=10.0, include=[24, 500, 16])
    assert [m.plan.batch_size for m in measured.measurements] == [8, 16, 24, 32, 64, 100]
    assert measured.skipped == ()
    for size in (8, 24, 100):
        assert measured.step_s(size) == pytest.approx(runner.step_s(size))
    assert measured.step_s(150) == pytest.approx(runner.step_s(150))


def test_a_largest_batch_below_the_smallest_power_is_profiled_from_one() -> None:
    measured = profile(SimRunner(), Plan(batch_size=1), max_batch=5, budget_s=1.0)
    assert [m.plan.batch_size for m in measured.measurements] == [1, 2, 4, 5]


def test_a_profile_stops_when_its_time_is_spent_and_says_what_it_left_out() -> None:
    runner = SimRunner(step_s=lambda batch: 1.0)
    seen: list[Measurement] = []
    measured = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=7.0, include=[32], on_measurement=seen.append)
    assert [m.plan.batch_size for m in seen] == [32, 8]  # the fewest steps of 16 would outlast the time twice
    assert measured.skipped == (16, 64)
    assert runner.clock() == 6.0
    assert not measured.saturates
    assert measured.describe_knee().startswith("samples/s may still rise beyond batch 32,")


def test_what_was_not_timed_is_no_matter_where_speed_had_stopped_to_rise() -> None:
    timed_sizes = tuple(timed(size, seconds) for size, seconds in ((8, 1.0), (16, 1.1), (64, 5.0)))
    measured = ThroughputCurve(measurements=timed_sizes, skipped=(4, 32))
    assert (measured.fastest, measured.knee_batch_size) == (16, 16)
    assert measured.describe_knee() == "speed saturates at batch 16: the smallest with 80 % of the highest samples/s"


def test_no_knee_is_claimed_where_larger_sizes_were_not_timed() -> None:
    """Though the largest that was is not the fastest: two sizes may lie so by chance."""
    timed_sizes = tuple(timed(size, seconds) for size, seconds in ((8, 1.0), (16, 1.1), (24, 1.2), (32, 1.7)))
    measured = ThroughputCurve(measurements=timed_sizes, skipped=(64,))
    assert measured.fastest == 24
    assert not measured.saturates
    assert measured.describe_knee() == (
        "samples/s may still rise beyond batch 32, the largest that there was time to measure"
    )
    assert measured.to_json()["saturates"] is False


@given(
    st.dictionaries(
        st.integers(1, 512),
        st.lists(st.floats(1e-3, 10), min_size=1, max_size=9),
        min_size=1,
        max_size=12,
    )
)
def test_the_row_of_the_fastest_size_has_the_highest_speed_and_that_of_the_headline(
    visits: dict[int, list[float]],
) -> None:
    """However restless the machine: the median of a size's steps is one thing, and its undisturbed time another."""
    measured = ThroughputCurve(
        measurements=tuple(timed(size, *seconds, visits_s=tuple(seconds)) for size, seconds in visits.items())
    )
    found = measured.to_json()
    rows = {point["batch_size"]: point["undisturbed_samples_per_s"] for point in found["measurements"]}
    fastest = rows[found["fastest_batch_size"]]
    assert fastest == pytest.approx(max(rows.values()))
    assert all(rows[size] < 0.8 * fastest * (1 + 1e-9) for size in rows if size < found["knee_batch_size"])
    section = throughput_section(found)
    text = section.parts[0]
    table = next(part for part in section.parts if isinstance(part, Table))
    assert isinstance(text, Paragraph)
    speeds = {row[0]: row[1] for row in table.rows}
    assert f"Fastest at batch {found['fastest_batch_size']}: {speeds[str(found['fastest_batch_size'])]}" in text.text


@pytest.mark.parametrize("budget_s", [0.2, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("step_s", [0.01, 0.05])
def test_what_was_looked_at_later_is_not_told_as_left_out(budget_s: float, step_s: float) -> None:
    runner = SimRunner(step_s=lambda batch: step_s + 1e-4 * batch)
    measured = profile(runner, Plan(batch_size=1), max_batch=64, budget_s=budget_s, refine=True)
    assert not {*measured.skipped} & {m.plan.batch_size for m in measured.measurements}


def test_time_that_quick_sizes_leave_goes_to_slow_ones() -> None:
    measured = profile(SimRunner(step_s=lambda batch: batch * 0.001), Plan(batch_size=1), max_batch=64, budget_s=2.0)
    assert len(measured.measurements[-1].step_s) > 0.5 / 0.064


def test_a_profile_times_one_micro_batch_whatever_the_plan() -> None:
    measured = profile(SimRunner(), Plan(batch_size=9, accumulation_steps=4, precision="fp16"), max_batch=8, budget_s=1)
    assert [m.plan for m in measured.measurements] == [Plan(batch_size=8, precision="fp16")]


@dataclass(slots=True, kw_only=True)
class Failing(SimRunner):
    """Runs out of memory when more than `most` samples are timed."""

    most: int

    def time(
        self, plan: Plan, *, budget_s: float, loader: Mapping[str, Any] | None = None, parts: bool = True
    ) -> Measurement:
        measured = SimRunner.time(self, plan, budget_s=budget_s)
        if plan.batch_size <= self.most:
            return measured
        return replace(measured, outcome="oom", step_s=(), message="simulated")


def test_sizes_that_fail_are_kept_as_evidence_but_not_read() -> None:
    measured = profile(Failing(most=16), Plan(batch_size=1), max_batch=64, budget_s=1.0)
    assert [m.outcome for m in measured.measurements] == ["ok", "ok", "oom", "oom"]
    assert measured.fastest == 16
    assert measured.to_json()["measurements"][-1]["samples_per_s"] is None


def test_a_profile_in_which_nothing_runs_says_what_happened() -> None:
    with pytest.raises(NoValidResult, match="8: oom simulated; 16: oom simulated"):
        profile(Failing(most=0), Plan(batch_size=1), max_batch=16, budget_s=1.0)


@pytest.mark.parametrize(("loader_share", "starved"), [(0.1, False), (0.6, True)])
def test_starvation_by_the_loader_is_told_in_one_sentence(loader_share: float, starved: bool) -> None:
    measured = profile(SimRunner(loader_share=loader_share), Plan(batch_size=1), max_batch=64, budget_s=1.0)
    assert measured.wait_share == pytest.approx(loader_share)
    assert measured.loader_bound == starved
    sentence = measured.describe_starvation()
    if starved:
        assert sentence is not None
        assert "waits for data 60% of the time" in sentence
        assert sentence.count(". ") == 0
    else:
        assert sentence is None


def test_without_compute_times_nothing_is_said_about_the_loader() -> None:
    measured = curve((8, 1.0))
    assert measured.wait_share is None
    assert not measured.loader_bound
    assert measured.describe_starvation() is None


def test_json_parses_and_holds_what_was_read() -> None:
    measured = profile(SimRunner(), Plan(batch_size=1), max_batch=4096, budget_s=5.0)
    told = json.loads(json.dumps(measured.to_json()))
    assert told["knee_batch_size"] == measured.knee_batch_size
    assert told["fastest_batch_size"] == 4096
    assert told["measurements"][0]["batch_size"] == 8
    assert told["measurements"][0]["repeats"] == 60  # three visits of 20 steps, after which the median is known


def test_a_machine_that_was_slow_is_not_taken_for_a_starved_one() -> None:
    """Steps took twice what their compute alone took later, but the loader alone takes next to nothing."""
    slow = ThroughputCurve(measurements=(timed(8, 1.0, compute_s=(0.5,), loader_s=(1e-6,)),))
    assert slow.wait_share == 0.5
    assert not slow.loader_bound
    starved = ThroughputCurve(measurements=(timed(8, 1.0, compute_s=(0.5,), loader_s=(0.5,)),))
    assert starved.loader_bound
