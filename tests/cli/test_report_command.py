"""`autobatch report` as a user types it: one report, several, a page, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.reports.bench_report import BenchReport
from tests.helpers.bench_reports import cpu_report, gpu_report
from tests.helpers.pages import Page
from tests.helpers.reports import example

from .test_cli import autobatch, refused

pytestmark = pytest.mark.usefixtures("ready_python")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    gpu = gpu_report()
    gpu.save(tmp_path / "a.json")
    later = dataclasses.replace(gpu, created="2026-12-01T00:00:00+00:00", cells=gpu.cells[:4], planned=4)
    later.save(tmp_path / "b.json")
    cpu_report().save(tmp_path / "cpu.json")
    example().save(tmp_path / "tune.json")
    return tmp_path


def test_a_bench_report_is_shown_as_text_json_markdown_and_a_page(folder: Path) -> None:
    shown = autobatch("report", "a.json", "--html", "a.html", "--output", "copy.json", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("NVIDIA H200\nautobatch bench, full size, 2026-11-22\n")
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    assert json.loads((folder / "copy.json").read_text()) == json.loads((folder / "a.json").read_text())
    page = Page((folder / "a.html").read_text())
    assert page.problems == []
    assert [tag for tag, _ in page.tags].count("figure") == 18
    markdown = autobatch("report", "a.json", "--markdown", cwd=folder)
    assert markdown.stdout.startswith("# NVIDIA H200\n")
    assert "| resnet50 | fp32 | 1469 |" in markdown.stdout


def test_a_tune_report_has_a_page_too(folder: Path) -> None:
    shown = autobatch("report", "tune.json", "--html", "tune.html", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    page = Page((folder / "tune.html").read_text())
    assert page.problems == []
    assert "digits" in page.words


def test_reports_are_compared_as_text_json_markdown_and_a_page(folder: Path) -> None:
    shown = autobatch("report", "a.json", "b.json", "--html", "ab.html", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    assert "Of 4 in common, at the recommended batch sizes: 4 without a difference." in shown.stdout
    assert "no difference" in shown.stdout
    assert Page((folder / "ab.html").read_text()).problems == []
    found = json.loads(autobatch("report", "a.json", "b.json", "--json", cwd=folder).stdout)
    assert (found["kind"], found["schema"], found["first"]["name"]) == ("bench comparison", 1, "a.json")
    (other,) = found["against"]
    assert other["pairs"][0]["samples_per_s_at_recommended"]["verdict"] == "no difference"
    three = autobatch("report", "a.json", "b.json", "a.json", "--markdown", cwd=folder)
    assert three.stdout.count("## b.json against a.json") == 1
    assert three.stdout.count("## a.json against a.json") == 1


def other_models(report: BenchReport) -> BenchReport:
    return dataclasses.replace(report, cells=tuple(cell for cell in report.cells if cell.model == "lstm"))


def nan_in_a_cell(text: str) -> str:
    return text.replace('"flops_per_sample": 24500000000.0', '"flops_per_sample": NaN', 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda text: text.replace('"schema": 1', '"schema": 7', 1), "reads bench reports of schema 1; this one has"),
        (lambda text: text[: len(text) // 2], "bad.json is not whole JSON"),
        (nan_in_a_cell, "bad.json: a report holds finite numbers; found NaN"),
        (lambda text: text.replace("24500000000.0", "1e999", 1), "'flops_per_sample' of cell 0 of the report is a fin"),
        (lambda text: text.replace('"kind": "bench"', '"kind": "toast"', 1), "it is of kind 'toast'"),
        (lambda text: "", "bad.json is not whole JSON"),
    ],
    ids=["another schema", "truncated", "NaN", "infinite", "another kind", "empty"],
)
def test_a_bad_report_is_refused_alone_and_beside_a_good_one(
    folder: Path, make: Callable[[str], str], message: str
) -> None:
    text = (folder / "a.json").read_text()
    assert make(text) != text
    (folder / "bad.json").write_text(make(text))
    for files in (["bad.json"], ["a.json", "bad.json"]):
        said = refused(autobatch("report", *files, cwd=folder))
        assert message in said
        assert "bad.json" in said


def test_devices_without_a_common_model_are_told_what_each_has(folder: Path) -> None:
    other_models(gpu_report()).save(folder / "lstm.json")
    dataclasses.replace(gpu_report(), cells=gpu_report().cells[:1]).save(folder / "resnet.json")
    message = refused(autobatch("report", "resnet.json", "lstm.json", cwd=folder))
    assert "none in common: resnet.json has resnet50 (fp32); lstm.json has lstm (fp32, bf16)" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.json", "tune.json"], 'only reports of "autobatch bench" are compared; of "autobatch tune": tune.json'),
        (["tune.json", "tune.json"], 'only reports of "autobatch bench" are compared'),
        (["a.json", "cpu.json"], "only models of one size are compared: a.json has full ones, cpu.json has small ones"),
        (["a.json", "gone.json"], "gone.json cannot be read: No such file or directory"),
        (["."], ". cannot be read: Is a directory"),
        (["a.json", "."], ". cannot be read: Is a directory"),
        (["a.json", "--html", "."], "it is a folder; name a file"),
        (["a.json", "--html", "missing/page.html"], "there is no folder"),
        ([], "Missing argument 'REPORT.json...'"),
    ],
)
def test_what_cannot_be_shown_or_compared_is_refused(folder: Path, arguments: list[str], message: str) -> None:
    assert message in refused(autobatch("report", *arguments, cwd=folder))


def test_a_task_called_like_markup_is_text_on_its_page(folder: Path) -> None:
    name = '<script>alert("x")</script>'
    dataclasses.replace(example(), task=name).save(folder / "evil.json")
    shown = autobatch("report", "evil.json", "--html", "evil.html", cwd=folder)
    assert shown.returncode == 0, shown.stderr
    page = Page((folder / "evil.html").read_text())
    assert page.problems == []
    assert "script" not in {tag for tag, _ in page.tags}
    assert name in page.words
