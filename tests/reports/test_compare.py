from __future__ import annotations

import dataclasses
import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.errors import ReportError
from autobatch.render.compare_content import comparison_document, ratio_text
from autobatch.render.markdown import to_markdown
from autobatch.reports.bench_report import BenchReport
from autobatch.reports.compare import Estimate, Ratio, compare, geometric_mean, ratio
from tests.helpers.bench_reports import cpu_report, failed, gpu_report

GPU, CPU = gpu_report(), cpu_report()

positive = st.floats(1e-9, 1e9)
widths = st.floats(0, 1)
estimates = st.builds(
    lambda value, below, above: Estimate(value=value, low=value * math.exp(-below), high=value * math.exp(above)),
    positive,
    widths,
    widths,
)


def sped_up(report: BenchReport, factor: float, **changes: Any) -> BenchReport:
    """The report of a device that is `factor` times as fast at the same power."""
    cells = []
    for cell in report.cells:
        if cell.throughput is not None:
            points = [
                point
                | {
                    "samples_per_s": point["samples_per_s"] * factor,
                    "step_s": point["step_s"] / factor,
                    "interval_s": [end / factor for end in point["interval_s"]],
                    "joules_per_sample": None if point["watts"] is None else point["joules_per_sample"] / factor,
                }
                for point in cell.throughput["measurements"]
            ]
            cell = dataclasses.replace(cell, throughput={**cell.throughput, "measurements": points})
        cells.append(cell)
    return dataclasses.replace(report, cells=tuple(cells), **changes)


@given(estimates, estimates)
def test_the_inverse_of_a_ratio_is_the_ratio_the_other_way_round(one: Estimate, other: Estimate) -> None:
    there, back = ratio(one, other), ratio(other, one)
    assert there.low is not None
    assert there.high is not None
    assert back.high is not None
    assert there.value == pytest.approx(1 / back.value)
    assert there.low == pytest.approx(1 / back.high)
    assert there.low <= there.value * (1 + 1e-12)
    assert there.value <= there.high * (1 + 1e-12)


@given(positive, positive, widths, widths)
def test_half_widths_add_in_squares(over: float, under: float, one: float, other: float) -> None:
    found = ratio(
        Estimate(value=over, low=over * math.exp(-one), high=over * math.exp(one)),
        Estimate(value=under, low=under * math.exp(-other), high=under * math.exp(other)),
    )
    assert found.low is not None
    assert found.high is not None
    half = math.sqrt(one**2 + other**2)
    assert math.log(found.high / found.value) == pytest.approx(half, abs=1e-9)
    assert math.log(found.value / found.low) == pytest.approx(half, abs=1e-9)


def test_ninety_five_of_a_hundred_intervals_hold_the_true_ratio() -> None:
    chance, held, repeats = random.Random(5), 0, 4000
    sides = ((3.0, 0.02), (2.0, 0.05))
    for _ in range(repeats):
        seen = [value * math.exp(chance.gauss(0, sigma)) for value, sigma in sides]
        over, under = (
            Estimate(value=value, low=value * math.exp(-1.96 * sigma), high=value * math.exp(1.96 * sigma))
            for value, (_, sigma) in zip(seen, sides, strict=True)
        )
        found = ratio(over, under)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.5 <= found.high
    assert 0.94 < held / repeats < 0.96


@given(positive)
def test_a_ratio_of_what_has_no_known_error_has_no_interval(value: float) -> None:
    found = ratio(Estimate(value=value), Estimate(value=1.0, low=0.9, high=1.1))
    assert (found.low, found.high, found.verdict) == (None, None, "unknown")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(None, 1.1, "unknown"), (None, 0.9, "less"), (0.9, None, "unknown"), (1.1, None, "more")],
)
def test_one_end_is_enough_where_one_lies_beyond_it(low: float | None, high: float | None, verdict: str) -> None:
    found = Ratio(value=low or high or 0.0, low=low, high=high)
    assert found.to_json()["verdict"] == verdict
    assert ratio_text(found) == (f"at most {high:.2f}" if high else f"at least {low:.2f}")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.1, "no difference"), (1.0, 1.2, "no difference"), (1.01, 1.2, "more"), (0.5, 0.99, "less")],
)
def test_no_difference_is_where_one_lies_within(low: float, high: float, verdict: str) -> None:
    found = Ratio(value=math.sqrt(low * high), low=low, high=high)
    assert found.verdict == verdict
    assert ("no difference" in ratio_text(found)) == (verdict == "no difference")


@given(st.integers(1, 20), positive, widths)
def test_the_mean_of_equal_ratios_is_that_ratio_with_a_narrower_interval(count: int, value: float, half: float) -> None:
    one = Ratio(value=value, low=value * math.exp(-half), high=value * math.exp(half))
    mean = geometric_mean([one] * count)
    assert mean is not None
    assert mean.high is not None
    assert mean.value == pytest.approx(value)
    assert math.log(mean.high / mean.value) == pytest.approx(half / math.sqrt(count), abs=1e-9)


def test_a_device_compared_with_itself_shows_no_difference_anywhere() -> None:
    (against,) = compare([("a", GPU), ("b", GPU)]).against
    assert len(against.pairs) == sum(cell.outcome == "ok" for cell in GPU.cells)
    for pair in against.pairs:
        for found in (pair.at_recommended, pair.over_common, *pair.at_common.values()):
            assert found is not None
            assert found.value == pytest.approx(1)
            assert found.verdict == "no difference"
        assert pair.energy == Ratio(value=1)
        end = None if pair.model == "perceptron" else 1  # whose largest is where the search stopped, not the memory
        assert pair.largest == Ratio(value=1, low=end, high=end)


def test_a_faster_device_is_told_so_at_each_size_and_in_energy() -> None:
    (against,) = compare([("a", GPU), ("b", sped_up(GPU, 1.5))]).against
    for pair in against.pairs:
        for found in (pair.at_recommended, pair.over_common, *pair.at_common.values()):
            assert found is not None
            assert found.value == pytest.approx(1.5)
            assert found.verdict == "more"
        assert pair.energy is not None
        assert pair.energy.value == pytest.approx(1 / 1.5)
        assert pair.energy.to_json()["verdict"] == "unknown"  # nobody tells the error of a counter


def test_each_side_is_taken_at_its_own_recommended_batch() -> None:
    cell = GPU.cells[0]
    assert cell.throughput is not None
    smaller = dataclasses.replace(cell, throughput={**cell.throughput, "recommended_batch_size": 64})
    (against,) = compare([("a", GPU), ("b", dataclasses.replace(GPU, cells=(smaller,)))]).against
    (pair,) = against.pairs
    speed = {point["batch_size"]: point["samples_per_s"] for point in cell.throughput["measurements"]}
    assert pair.batch_sizes == (1024, 64)
    assert pair.at_recommended is not None
    assert pair.at_recommended.value == pytest.approx(speed[64] / speed[1024])
    assert pair.over_common is not None
    assert pair.over_common.value == pytest.approx(1)


def test_a_missing_interval_or_energy_leaves_a_ratio_without_one() -> None:
    without = [
        point | {"interval_s": None, "joules_per_sample": None}
        for point in GPU.cells[0].throughput["measurements"]  # type: ignore[index]  # it ran
    ]
    cell = dataclasses.replace(GPU.cells[0], throughput={**(GPU.cells[0].throughput or {}), "measurements": without})
    (against,) = compare([("a", GPU), ("b", dataclasses.replace(GPU, cells=(cell,)))]).against
    (pair,) = against.pairs
    assert pair.energy is None
    assert pair.at_recommended is not None
    assert pair.at_recommended.verdict == "unknown"
    assert "interval unknown" in ratio_text(pair.at_recommended)


def test_three_reports_are_each_set_against_the_first() -> None:
    found = compare([("a", GPU), ("b", sped_up(GPU, 2)), ("c", sped_up(GPU, 0.5))])
    assert [other.name for other in found.against] == ["b", "c"]
    ratios = [other.pairs[0].at_recommended for other in found.against]
    assert [one and one.value for one in ratios] == [pytest.approx(2), pytest.approx(0.5)]
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["against"][1]["pairs"][0]["model"] == "resnet50"


def test_what_only_one_ran_and_what_else_differs_is_said() -> None:
    other = dataclasses.replace(
        GPU, cells=GPU.cells[:3], device=dataclasses.replace(GPU.device, torch="2.14.0"), quick=True
    )
    (against,) = compare([("a.json", GPU), ("b.json", other)]).against
    assert "torch is 2.13.0 in a.json and 2.14.0 in b.json" in against.remarks
    assert "b.json is of a quick run" in against.remarks
    assert len(against.remarks) == 2
    (left_out,) = against.left_out
    assert left_out.startswith("only a.json ran vit (bf16), gpt2 (fp32, bf16)")


def test_a_limit_and_software_that_differ_are_told() -> None:
    def limited(limit_bytes: int, largest: int, **changes: Any) -> BenchReport:
        cell = GPU.cells[0]
        found = {**(cell.max_batch or {}), "limit_bytes": limit_bytes, "batch_size": largest}
        device = dataclasses.replace(GPU.device, **changes)
        return dataclasses.replace(GPU, cells=(dataclasses.replace(cell, max_batch=found),), device=device)

    reports = [("a", limited(1 << 30, 64)), ("b", limited(8 << 30, 512, runtime="13.0", python="3.13.1"))]
    (against,) = compare(reports).against
    assert against.pairs[0].largest == Ratio(value=8, low=8, high=8)
    assert against.remarks == (
        "Python is 3.12.3 in a and 3.13.1 in b",
        "the runtime is 12.8 in a and 13.0 in b",
        "the memory that a batch may use is 1 GiB in a and 8 GiB in b",
    )
    drawn = to_markdown(comparison_document(compare(reports)))
    assert "The memory that a batch may use is 1 GiB in a and 8 GiB in b." in drawn


def test_models_of_one_name_from_other_task_files_are_told() -> None:
    def of(source: str | None) -> BenchReport:
        return dataclasses.replace(GPU, cells=tuple(dataclasses.replace(cell, source=source) for cell in GPU.cells[:1]))

    (other, same, unknown) = compare([("a", of("1")), ("b", of("2")), ("c", of("1")), ("d", of(None))]).against
    assert other.remarks == ("resnet50 is of task files with different contents",)
    assert same.remarks == unknown.remarks == ()


def test_a_ceiling_that_differs_is_told_and_bounds_the_ratio_of_the_largest_batches() -> None:
    def up_to(ceiling: int | None, largest: int) -> BenchReport:
        cell = GPU.cells[0]
        found = {**(cell.max_batch or {}), "batch_size": largest, "limited_by": "ceiling" if ceiling else "memory"}
        settings = {"memory_limit_bytes": None, "headroom": 0.05, "max_batch_size": ceiling, "threads": 8}
        return dataclasses.replace(GPU, cells=(dataclasses.replace(cell, max_batch=found),), settings=settings)

    whole, held = up_to(None, 1000), up_to(100, 100)
    (against,) = compare([("a", whole), ("b", held)]).against
    assert against.remarks == ("--max-batch-size is not set in a and 100 in b",)
    assert against.pairs[0].largest == Ratio(value=0.1, low=0.1)
    (against,) = compare([("b", held), ("a", whole)]).against
    assert against.pairs[0].largest == Ratio(value=10, high=10)
    (against,) = compare([("b", held), ("c", held)]).against
    assert against.pairs[0].largest == Ratio(value=1)
    drawn = to_markdown(comparison_document(compare([("b", held), ("c", held)])))
    assert "no difference | unknown | 1.00, interval unknown |" in drawn  # largest batch, J/sample
    assert "| at least 0.10 |" in to_markdown(comparison_document(compare([("a", whole), ("b", held)])))


def test_reports_without_a_common_model_name_what_each_has() -> None:
    lstm = dataclasses.replace(GPU, cells=tuple(cell for cell in GPU.cells if cell.model == "lstm"))
    resnet = dataclasses.replace(GPU, cells=GPU.cells[:1])
    with pytest.raises(ReportError, match=r"a has resnet50 \(fp32\); b has lstm \(fp32, bf16\)"):
        compare([("a", resnet), ("b", lstm)])


def test_what_failed_everywhere_is_not_in_common() -> None:
    broken = dataclasses.replace(GPU, cells=(failed("vit", "fp32", "no"),))
    with pytest.raises(ReportError, match="b has none that ran"):
        compare([("a", GPU), ("b", broken)])


def test_models_of_different_size_are_not_compared() -> None:
    with pytest.raises(ReportError, match="only models of one size are compared: a has full ones, b has small ones"):
        compare([("a", GPU), ("b", CPU)])


def test_the_drawn_comparison_says_no_difference_and_shows_each_model() -> None:
    text = to_markdown(comparison_document(compare([("a.json", GPU), ("b.json", sped_up(GPU, 1.001))])))
    assert "no difference" in text
    assert "the same" in text  # the largest batches
    assert "## b.json against a.json" in text
    assert "resnet50: samples/s, times the first report's" in text
    assert "Of 11 in common, at the recommended batch sizes: 11 without a difference." in text
