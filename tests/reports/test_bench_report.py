from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.errors import ReportError
from autobatch.render.bench_content import bench_document
from autobatch.render.compare_content import comparison_document
from autobatch.render.html import to_html
from autobatch.render.markdown import to_markdown
from autobatch.reports.bench_report import SCHEMA, BenchReport, load_report
from autobatch.reports.compare import compare
from autobatch.reports.report import Report
from tests.helpers.bench_reports import cpu_report, gpu_report
from tests.helpers.pages import Page
from tests.helpers.reports import example

GPU, CPU = gpu_report(), cpu_report()


@pytest.mark.parametrize("report", [GPU, CPU], ids=["gpu", "cpu"])
def test_a_stored_report_is_the_one_that_was_saved(report: BenchReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert BenchReport.load(tmp_path / "report.json").to_json() == report.to_json()


def test_either_kind_is_read_for_what_it_is(tmp_path: Path) -> None:
    GPU.save(tmp_path / "bench.json")
    example().save(tmp_path / "tune.json")
    assert isinstance(load_report(tmp_path / "bench.json"), BenchReport)
    assert isinstance(load_report(tmp_path / "tune.json"), Report)


def _set(data: Any, path: str, value: Any) -> None:
    *outer, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in outer:
        data = data[key]
    data[last] = value


POINT = "cells/0/throughput/measurements/1"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", SCHEMA + 1, f"reads bench reports of schema {SCHEMA}; this one has schema {SCHEMA + 1}"),
        ("size", "huge", "'size' of the report is one of small, full; found 'huge'"),
        ("cells", {}, "'cells' of the report is list; found {}"),
        ("cells/0", 3, "item 0 of 'cells' of the report is dict; found 3"),
        ("cells/0/outcome", "maybe", "'outcome' of cell 0 of the report is one of ok, failed"),
        ("cells/0/throughput", None, "'throughput' of cell 0 of the report is a JSON object; found NoneType"),
        ("cells/0/flops_per_s", float("nan"), "'flops_per_s' of cell 0 of the report is a finite number; found nan"),
        ("cells/0/throughput/recommended_batch_size", None, "'recommended_batch_size' of"),
        ("cells/0/throughput/recommended", 3, "'recommended' of cell 0 of the report is str; found 3"),
        ("cells/0/throughput/fit", {"largest_residual": "x"}, "'largest_residual' of 'fit' of cell 0 of the report is"),
        (
            "cells/0/max_batch/probes/0/batch_size",
            0,
            "'batch_size' of item 0 of 'probes' of cell 0 of the report is a",
        ),
        (f"{POINT}/batch_size", -4, "'batch_size' of item 1 of 'measurements' of cell 0 of the report is above zero"),
        (f"{POINT}/samples_per_s", 0, "'samples_per_s' of item 1 of 'measurements' of cell 0 of the report is above z"),
        (f"{POINT}/interval_s", "x", "'interval_s' of item 1 of 'measurements' of cell 0 of the report is list"),
        (f"{POINT}/interval_s", [1.0], "is two numbers in order; found [1.0]"),
        (
            f"{POINT}/interval_s",
            [0.0, 1.0],
            "0 of 'interval_s' of item 1 of 'measurements' of cell 0 of the report i",
        ),
        (f"{POINT}/interval_s", [2.0, 1.0], "is two numbers in order; found [2.0, 1.0]"),
        (f"{POINT}/phases_s/copy", "x", "'copy' of 'phases_s' of item 1 of 'measurements' of cell 0 of the report is"),
        ("device/kind", "tpu", "'kind' of 'device' of the report is one of"),
    ],
)
def test_what_is_not_a_report_is_refused_with_the_place_and_the_value(path: str, value: Any, message: str) -> None:
    data = json.loads(json.dumps(GPU.to_json()))
    _set(data, path, value)
    with pytest.raises(ReportError, match=re.escape(message)):
        BenchReport.from_json(data)


# Two cells are enough for every place that there is in a report.
SMALL = json.dumps(dataclasses.replace(GPU, cells=(GPU.cells[1], GPU.cells[7])).to_json())


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


PLACES = list(places(json.loads(SMALL)))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
others = st.none() | st.booleans() | st.text(max_size=5) | st.sampled_from(([], {}, [1.0, 2.0]))
anything: st.SearchStrategy[Any] = numbers | others


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(PLACES), anything), min_size=1, max_size=3))
def test_what_is_not_refused_can_be_drawn_and_compared(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    data = json.loads(SMALL)
    for path, value in changes:
        with contextlib.suppress(LookupError, TypeError):  # an earlier change took the place away
            _set(data, "/".join(map(str, path)), value)
    try:
        report = BenchReport.from_json(data)
    except ReportError:
        return
    document = bench_document(report)
    assert to_markdown(document)
    assert Page(to_html(document)).problems == []
    try:
        comparison = compare([("a", GPU), ("b", report)])
    except ReportError:
        return
    json.dumps(comparison.to_json(), allow_nan=False)
    assert Page(to_html(comparison_document(comparison))).problems == []
