from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from autobatch.bench_report import SCHEMA, BenchReport, load_report
from autobatch.errors import ReportError
from autobatch.report import Report
from tests.bench_reports import cpu_report, gpu_report
from tests.reports import example

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
        ("cells/0/max_batch/probes/0/batch_size", 0, "item 0 of 'probes' of cell 0 of the report has a batch size of"),
        (f"{POINT}/batch_size", -4, "item 1 of 'measurements' of cell 0 of the report has a batch size of at least 1"),
        (f"{POINT}/samples_per_s", 0, "'samples_per_s' of item 1 of 'measurements' of cell 0 of the report is above"),
        (f"{POINT}/interval_s", "x", "'interval_s' of item 1 of 'measurements' of cell 0 of the report is list"),
        (f"{POINT}/interval_s", [1.0], "is two numbers above zero, in order; found [1.0]"),
        (f"{POINT}/interval_s", [0.0, 1.0], "is two numbers above zero, in order; found [0.0, 1.0]"),
        (f"{POINT}/interval_s", [2.0, 1.0], "is two numbers above zero, in order; found [2.0, 1.0]"),
        (f"{POINT}/phases_s/copy", "x", "'copy' of 'phases_s' of item 1 of 'measurements' of cell 0 of the report is"),
        ("device/kind", "tpu", "'kind' of 'device' of the report is one of"),
    ],
)
def test_what_is_not_a_report_is_refused_with_the_place_and_the_value(path: str, value: Any, message: str) -> None:
    data = json.loads(json.dumps(GPU.to_json()))
    _set(data, path, value)
    with pytest.raises(ReportError, match=re.escape(message)):
        BenchReport.from_json(data)
