"""What the figures of a run are drawn from: every trial, the choice, what failed, the budget."""

from __future__ import annotations

import dataclasses
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.render.document import Table
from autobatch.render.evidence import throughput_summary
from autobatch.render.figures import legend_of, picture_of
from autobatch.render.html import to_html
from autobatch.render.markdown import to_markdown
from autobatch.render.numbers import speed_text
from autobatch.render.page_content import page_document
from autobatch.render.run_charts import (
    confirmation_figure,
    landscape_chart,
    ledger_figure,
    memory_chart,
    range_test_chart,
    score_chart,
    throughput_chart,
)
from autobatch.reports.report import Report
from autobatch.searching.verdict.confirmation import ScoreSummary
from tests.helpers.pages import Page
from tests.helpers.reports import CHOSEN, YOURS, example, horizon_of, raced, throughput_of

RACED = raced()


def places(report: Report) -> set[tuple[float, float]]:
    """Where the landscape has a point."""
    return {(point.x, point.value) for series in landscape_chart(report).series for point in series.points}


@pytest.mark.parametrize("report", [example(), RACED], ids=["example", "raced"])
def test_each_score_of_each_trial_is_a_point(report: Report) -> None:
    chart = score_chart(report, horizon_of(report))
    assert sum(len(one.points) for one in chart.series) == sum(len(trial["scores"]) for trial in report.trials)
    assert max(point.x for one in chart.series for point in one.points) == pytest.approx(horizon_of(report))
    assert len(chart.table.rows) == len(report.trials)


def test_the_choice_and_what_it_is_against_stand_out() -> None:
    chart = score_chart(example(), horizon_of(example()))
    assert [one.name for one in chart.series if not one.is_faint] == ["yours", "this", "this", "this", "this"]
    assert {one.name for one in chart.series if one.is_faint} == {"others"}
    legend = [words for _, words in legend_of(chart)]
    assert legend == ["others", "yours", "this"]


def test_the_landscape_has_every_pair_and_marks_the_two_that_matter() -> None:
    report = example()
    tried = {(t["batch_size"] * t["accumulation_steps"], t["lr"]) for t in report.trials if t["role"] != "confirmation"}
    assert places(report) == tried
    chart = landscape_chart(report)
    assert chart.is_log
    marks = {word: series.points[0] for series in chart.series for word, _ in series.marks}
    assert (marks["chosen"].x, marks["chosen"].value) == (256, CHOSEN.lr)
    assert (marks["yours"].x, marks["yours"].value) == (32, YOURS.lr)
    (failed,) = [series for series in chart.series if series.name == "failed"]
    assert [(point.x, point.value, point.note) for point in failed.points] == [(512, 3.0, "diverged")]
    assert len([words for _, words in legend_of(chart)]) == len({words for _, words in legend_of(chart)})


def test_in_a_group_the_better_is_the_stronger() -> None:
    for direction in ("maximize", "minimize"):
        report = dataclasses.replace(RACED, direction=direction)
        groups = [one for one in landscape_chart(report).series if one.name.startswith("trained to")]
        assert len(groups) == 3
        for group in groups:
            scored = sorted((point.weight, float(point.note.split()[0])) for point in group.points)
            assert [score for _, score in scored] == sorted((s for _, s in scored), reverse=direction == "minimize")


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_one_score_far_off_does_not_flatten_the_others(direction: Any) -> None:
    trials = list(example().trials)
    far = 1e12 if direction == "minimize" else -1e12
    trials[5] = {**trials[5], "scores": [[100, far]]}
    chart = score_chart(dataclasses.replace(example(), trials=tuple(trials), direction=direction), 3.5)
    assert chart.within is not None
    assert chart.within[1] - chart.within[0] < 1
    assert "Scores far behind the others are drawn at the edge." in chart.finding


def test_throughput_and_memory_mark_the_choice() -> None:
    report = example()
    (speed,) = throughput_chart(report, throughput_of(report)).series
    assert dict(speed.marks) == {"knee": throughput_of(report)["knee_batch_size"], "chosen": 128, "yours": 32}
    (memory,) = memory_chart(report).series
    assert ("largest", report.max_batch["batch_size"]) in memory.marks
    assert memory_chart(report).level == ("limit", report.max_batch["limit_bytes"])


def test_the_intervals_are_those_of_the_standard_errors() -> None:
    figure = confirmation_figure(example())
    assert figure is not None
    this, yours = figure.estimates
    assert (this.name, yours.name) == ("this", "yours")
    assert this.low == pytest.approx(0.97183 - 1.96 * 0.0021)
    assert this.high == pytest.approx(0.97183 + 1.96 * 0.0021)
    assert this.singles == (0.97, 0.972, 0.974)
    once = ScoreSummary(mean=0.9, stderr=None, scores=(0.9,))
    single = confirmation_figure(dataclasses.replace(example(), score=None, baseline=once))
    assert single is not None
    assert [one.name for one in single.estimates] == ["yours"]
    assert "there is no interval" in single.finding
    assert "This has no score on fresh seeds." in single.finding
    assert confirmation_figure(dataclasses.replace(example(), score=None, baseline=None)) is None


def test_the_bar_is_the_ledger() -> None:
    figure = ledger_figure(RACED)
    assert sum(seconds for _, seconds in figure.parts) == pytest.approx(RACED.ledger["elapsed_s"])
    assert figure.whole == RACED.budget_s
    root = ElementTree.fromstring(picture_of(figure, "a"))
    widths = [float(rect.get("width", "0")) for rect in root.iter("rect") if rect.get("class") != "whole"]
    assert len(widths) == len(figure.parts)
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) <= 359


def test_more_parts_than_colours_are_put_together() -> None:
    entries = {f"part {number}": 10.0 - number for number in range(10)}
    report = dataclasses.replace(example(), ledger={"budget_s": 60.0, "elapsed_s": 55.0, "entries": entries})
    figure = ledger_figure(report)
    assert [name for name, _ in figure.parts] == [*(f"part {number}" for number in range(7)), "the rest"]
    assert sum(seconds for _, seconds in figure.parts) == sum(entries.values())
    assert len(figure.table.rows) == 10


def test_the_chart_of_speeds_says_what_the_table_says() -> None:
    report = example()
    assert report.throughput is not None
    plain = report.throughput["measurements"]
    fitted = [{**point, "undisturbed_samples_per_s": 2 * point["samples_per_s"]} for point in plain]
    found = {**report.throughput, "measurements": fitted}
    (series,) = throughput_chart(report, found).series
    assert [point.value for point in series.points] == [2 * point["samples_per_s"] for point in plain]
    rows = throughput_summary(found, {})[0]
    assert isinstance(rows, Table)
    assert [row[1] for row in rows.rows] == [speed_text(point.value) for point in series.points]
    old = [{key: value for key, value in point.items() if key != "undisturbed_samples_per_s"} for point in plain]
    (series,) = throughput_chart(report, {**found, "measurements": old}).series
    assert [point.value for point in series.points] == [point["samples_per_s"] for point in plain]


def test_without_a_range_test_there_is_no_chart_of_one() -> None:
    assert range_test_chart(dataclasses.replace(example(), learning_rate=None)) is None
    found = range_test_chart(example())
    assert found is not None
    assert [one.name for one in found.series] == ["smoothed loss", "suggested"]


numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=40)
@given(
    scores=st.lists(st.lists(numbers, max_size=3), max_size=6),
    lrs=st.lists(st.floats(-1.0, 1e38), min_size=6, max_size=6),
    sizes=st.lists(st.integers(-1, 2**40), min_size=6, max_size=6),
    direction=st.sampled_from(["maximize", "minimize"]),
    mean=numbers,
    horizon_s=st.floats(1e-6, 1e9),
)
def test_whatever_a_report_holds_its_page_is_drawn(
    scores: list[list[float]], lrs: list[float], sizes: list[int], direction: Any, mean: float, horizon_s: float
) -> None:
    report = example()
    trials = []
    for found, lr, size in zip(scores, lrs, sizes, strict=False):
        steps = [[100 * (step + 1), score] for step, score in enumerate(found)]
        trials.append({**report.trials[2], "scores": steps, "lr": lr, "batch_size": size, "state": "paused"})
    odd = dataclasses.replace(
        report,
        trials=tuple(trials),
        direction=direction,
        horizon_s=horizon_s,
        score=ScoreSummary(mean=mean, stderr=abs(mean), scores=(mean, -mean)),
        throughput={**throughput_of(report), "measurements": throughput_of(report)["measurements"][:1]},
    )
    document = page_document(odd)
    page = to_html(document)
    assert Page(page).problems == []
    assert not {"nan", "inf", "-inf"} & {word.strip("\"',") for word in page.replace("=", " ").split()}
    assert to_markdown(document)
