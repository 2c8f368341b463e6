"""The tables of devices: made from the stored reports, and what is committed is what is made."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import ReportError
from autobatch.reports.bench_report import BenchReport
from tests.helpers.bench_reports import cpu_report, gpu_report
from tests.helpers.pages import Page

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("index")


@pytest.fixture
def folder(tmp_path: Path, index: Any) -> Path:
    """A README.md with a place for the tables, and no report yet."""
    (tmp_path / "README.md").write_text(f"before\n\n{index.BEGIN}\n{index.END}\n\nafter\n")
    (tmp_path / "results").mkdir()
    return tmp_path


def stored(folder: Path, device: str, report: BenchReport) -> Path:
    path = folder / "results" / device / f"{report.created[:10]}.json"
    path.parent.mkdir(exist_ok=True)
    report.save(path)
    return path


def written(index: Any, folder: Path) -> str:
    for path, text in index.outdated(folder):
        path.write_text(text)
    assert list(index.outdated(folder)) == []
    return (folder / "README.md").read_text()


def test_what_is_committed_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, FOLDER / "index.py", "--check"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_stored_report_recommends_only_what_was_run(index: Any) -> None:
    for path, report in index.bench_reports(FOLDER / "results"):
        for cell in (cell for cell in report.cells if cell.outcome == "ok"):
            assert index.recommended_point(cell.throughput) is not None, path
            ran = {probe["batch_size"] for probe in cell.max_batch["probes"] if probe["outcome"] == "ok"}
            assert cell.max_batch["batch_size"] in ran, path


def test_without_a_report_the_table_says_so(index: Any, folder: Path) -> None:
    assert f"before\n\n{index.BEGIN}\n\nNo report is stored yet.\n\n{index.END}\n\nafter\n" == written(index, folder)


def test_each_report_has_a_line_with_links_that_lead_somewhere(index: Any, folder: Path) -> None:
    gpu, cpu = stored(folder, "nvidia-h200", gpu_report()), stored(folder, "amd-epyc", cpu_report())
    lines = [line for line in written(index, folder).splitlines() if line.startswith("|")]
    about, speeds = lines[:4], lines[4:]
    assert about[0] == "| device | date | models | cells | torch | matrix product |"
    assert about[2].startswith("| NVIDIA H200 | 2026-11-22: [JSON](results/nvidia-h200/2026-11-22.json), [Markdown](")
    assert about[2].split(" | ")[2:] == ["full", "11 of 12", "2.13.0", "243 TFLOP/s |"]
    assert about[3].split(" | ")[2:4] == ["small, quick", "6 of 8"]
    assert [line.count("|") for line in speeds] == [10] * 4  # each of the six models has a column
    assert speeds[2].startswith("| NVIDIA H200 | 2026-11-22 | full | ")
    assert "2,768 (bf16)" in speeds[2]
    assert speeds[3].split(" | ")[2] == "small, quick"
    assert " - " in speeds[3]  # not all of them ran there
    for path in (gpu, cpu):
        assert path.with_suffix(".md").read_text().startswith("# ")
        assert Page(path.with_suffix(".html").read_text()).problems == []


def test_devices_come_before_processors_and_the_newest_first(index: Any, folder: Path) -> None:
    stored(folder, "amd-epyc", cpu_report())
    for day in ("2026-11-20", "2026-11-23"):
        stored(folder, "nvidia-h200", gpu_report(created=f"{day}T00:00:00+00:00"))
    text = written(index, folder)
    assert text.index("2026-11-23.json") < text.index("2026-11-20.json") < text.index("amd-epyc")


def test_what_is_outdated_is_told_and_written_anew(index: Any, folder: Path) -> None:
    path = stored(folder, "nvidia-h200", gpu_report())
    written(index, folder)
    path.with_suffix(".html").write_text("edited by hand")
    assert [path.suffix for path, _ in index.outdated(folder)] == [".html"]
    stored(folder, "nvidia-h200", dataclasses.replace(gpu_report(), quick=True))
    assert {path.name for path, _ in index.outdated(folder)} == {"README.md", "2026-11-22.md", "2026-11-22.html"}


def test_other_results_are_left_alone_and_a_bad_report_is_named(index: Any, folder: Path) -> None:
    (folder / "results" / "a").mkdir()
    (folder / "results" / "a" / "other.json").write_text('{"what": "else"}')
    assert "No report is stored yet." in written(index, folder)
    (folder / "results" / "a" / "bad.json").write_text(json.dumps(gpu_report().to_json() | {"schema": 99}))
    with pytest.raises(ReportError, match=r"bad\.json: this version reads bench reports of schema 1"):
        list(index.outdated(folder))


def test_a_readme_without_a_place_for_the_table_is_told(index: Any, folder: Path) -> None:
    (folder / "README.md").write_text("nothing")
    with pytest.raises(ReportError, match="the table goes between them"):
        list(index.outdated(folder))
