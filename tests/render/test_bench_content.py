"""A bench report as text: what stands on the terminal and in Markdown, and that any report can be drawn."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from autobatch.errors import ReportError
from autobatch.render.bench_content import bench_document, bench_summary
from autobatch.render.document import Chart, Document
from autobatch.render.markdown import to_markdown
from autobatch.render.numbers import percent_text, si_text
from autobatch.render.terminal import print_document
from autobatch.reports.bench_report import BenchReport
from tests.helpers.bench_reports import EPYC, cpu_report, failed, gpu_report, with_measurement
from tests.render.test_page import DOCUMENTS

GPU, CPU = gpu_report(), cpu_report()


def drawn(document: Document, width: int = 200) -> str:
    file = io.StringIO()
    print_document(document, Console(file=file, width=width, color_system=None))
    return file.getvalue()


def row(text: str, *begins: str) -> list[str]:
    """The cells of the overview's row that begins with these."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return next(row for row in rows if tuple(row[: len(begins)]) == begins)


def test_the_overview_has_a_row_for_each_cell_with_what_it_found() -> None:
    text = drawn(bench_document(GPU))
    assert row(text, "model", "computed in") == [
        *("model", "computed in", "largest", "peak", "knee", "fastest", "recommended"),
        *("samples/s", "±", "J/sample", "FLOP/s", "of matmul"),
    ]
    found = row(text, "resnet50", "bf16")
    assert found[:12] == [
        *("resnet50", "bf16", "2533", "133 GiB", "256", "2533", "2048"),
        *("2,768", "1.1%", "227 mJ", "67.8 T", "28%"),
    ]
    assert re.fullmatch("█+[▏▎▍▌▋▊▉]?", found[12])


def test_a_failed_cell_keeps_its_row_and_its_reason() -> None:
    text = drawn(bench_document(GPU))
    assert row(text, "unet", "bf16") == ["unet", "bf16", "failed", *"-" * 9]
    assert "Failed: RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED" in text
    assert "Failed: unet in bf16." in text


def test_a_column_that_knows_nothing_is_left_out() -> None:
    text = drawn(bench_document(CPU))
    assert "J/sample" not in text
    assert "Energy per sample" not in text
    assert row(text, "model")[-2:] == ["FLOP/s", "of matmul"]


def test_compute_modes_are_set_against_the_first() -> None:
    text = drawn(bench_document(GPU))
    assert "bf16 does 2.56 to 2.59 (median 2.57) times the samples/s of fp32 over 5 models." in text
    assert "comes closest to a plain matrix product, with 48% of its FLOP/s" in text


def test_what_a_cell_says_is_told_in_words() -> None:
    report = with_measurement(GPU, 1, remarks=["the card was throttled"])
    cell = report.cells[1]
    assert cell.throughput is not None
    profiled = {**cell.throughput, "remedy": "with num_workers=4 it does 1.8 times as much", "skipped": [7]}
    cells = (report.cells[0], dataclasses.replace(cell, throughput=profiled))
    text = " ".join(to_markdown(bench_document(dataclasses.replace(report, cells=cells))).split())
    for sentence in (
        "Batch 2,533 is the largest that fits in 133 GiB, and the next larger size failed.",
        "Speed saturates at batch 256: the smallest with 80 % of the highest samples/s.",
        "Batch 2048 is the smallest within 2 % of the highest samples/s.",
        "left out in turn, is predicted from the others within 2.1% of its undisturbed time.",
        "Its loss differs from that of fp32 by 0.031% in the first step and by at most 0.24% in 20 steps.",
        "With num_workers=4 it does 1.8 times as much",
        "In doubt at batch 16, 32, 64, 128, 176, 256, 360, 512, 1024, 2048, 2533: the card was throttled.",
        "Not timed, for lack of time: 7.",
    ):
        assert sentence in text, sentence


def test_what_the_check_of_a_task_found_is_told_once_a_model() -> None:
    cells = tuple(
        dataclasses.replace(cell, throughput={**(cell.throughput or {}), "warnings": ["two <of> three"]})
        for cell in GPU.cells[:2]
    )
    report = dataclasses.replace(GPU, cells=(*cells, *GPU.cells[2:]))
    for document in (bench_document(report), bench_summary(report)):
        assert drawn(document).count("- resnet50: two <of> three") == 1
    assert BenchReport.from_json(report.to_json()) == report
    broken = report.to_json()
    broken["cells"][0]["throughput"]["warnings"] = "text"
    with pytest.raises(ReportError, match="'warnings' of "):
        BenchReport.from_json(broken)


def test_a_loss_differs_by_so_much_whatever_the_sign() -> None:
    difference = {"steps": 10, "first": -3.1e-4, "largest": -2.4e-3}
    cell = dataclasses.replace(GPU.cells[1], loss_difference=difference)
    text = " ".join(to_markdown(bench_document(dataclasses.replace(GPU, cells=(cell,)))).split())
    assert "from that of fp32 by 0.031% in the first step and by at most 0.24% in 10 steps." in text


def test_a_loss_that_diverged_or_is_not_compared_is_told_and_older_reports_tell_neither() -> None:
    diverged = {"steps": 2, "diverged_at": 3, "message": None}
    unknown = {"steps": 0, "diverged_at": None, "message": "the task tells no loss"}
    cells = (
        dataclasses.replace(GPU.cells[1], losses=diverged),
        dataclasses.replace(GPU.cells[3], losses=unknown, loss_difference=None),
        GPU.cells[5],
    )
    report = dataclasses.replace(GPU, cells=cells)
    text = " ".join(to_markdown(bench_document(BenchReport.from_json(report.to_json()))).split())
    assert text.count("The loss diverged at step 3.") == 1
    assert "The loss diverged in the first steps: resnet50 in bf16." in text
    assert text.count("The loss is not compared: the task tells no loss.") == 1


@pytest.mark.parametrize(
    ("limited_by", "told"),
    [
        ("ceiling", "and no larger one was to be tried"),
        ("dataset", "and the data is too small for a larger one to be worth trying"),
        ("a word of later", "a word of later"),
    ],
)
def test_a_largest_batch_that_memory_did_not_set_is_no_largest(limited_by: str, told: str) -> None:
    cell = GPU.cells[1]
    found = {**(cell.max_batch or {}), "limited_by": limited_by, "proved": False}
    document = bench_document(dataclasses.replace(GPU, cells=(dataclasses.replace(cell, max_batch=found),)))
    assert row(drawn(document), "resnet50", "bf16")[2] == "2533 or more"
    text = " ".join(to_markdown(document).split())
    assert f"Batch 2,533 fits{',' if told.startswith('and') else ';'} {told}." in text
    assert "at batch 2533, the largest that was tried." in text


def test_the_phases_of_a_step_are_shares_of_it() -> None:
    assert row(drawn(bench_document(GPU)), "fp32", "1024") == ["fp32", "1024", "0.95 s", "2%", "31%", "58%", "9%"]


def test_optional_keys_may_be_missing() -> None:
    cell = GPU.cells[0]
    assert cell.throughput is not None
    later = ("objective", "recommended", "fit", "remedy")
    points = [{k: v for k, v in p.items() if k != "interval_s"} for p in cell.throughput["measurements"]]
    old = {k: v for k, v in cell.throughput.items() if k not in later} | {"measurements": points}
    report = dataclasses.replace(GPU, cells=(dataclasses.replace(cell, throughput=old),))
    text = drawn(bench_document(BenchReport.from_json(report.to_json())))
    assert row(text, "model")[7:9] == ["samples/s", "J/sample"]
    assert "left out in turn" not in text


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize("width", [20, 80])
def test_any_report_is_drawn_within_the_terminal_and_as_valid_tables(name: str, width: int) -> None:
    lines = drawn(DOCUMENTS[name], width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    blocks = [block.splitlines() for block in to_markdown(DOCUMENTS[name]).split("\n\n") if block.startswith("|")]
    for block in blocks:
        counts = {len(re.split(r"(?<!\\)\|", line)) for line in block}
        assert len(counts) == 1


def test_each_chart_carries_its_values_as_a_table() -> None:
    charts = [part for section in DOCUMENTS["gpu"].sections for part in section.parts if isinstance(part, Chart)]
    assert len(charts) == 18
    for chart in charts:
        sizes = {point.x for series in chart.series for point in series.points}
        assert {int(row[0]) for row in chart.table.rows} >= sizes
        assert chart.table.caption
        assert chart.finding


def test_an_empty_report_and_one_of_failures_say_so() -> None:
    assert "0 models" in drawn(bench_document(dataclasses.replace(GPU, cells=())))
    broken = dataclasses.replace(CPU, device=EPYC, cells=(failed("vit", "fp32", "no room"),))
    text = drawn(bench_document(broken))
    assert "Failed: vit in fp32." in text
    assert "Failed: no room" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (si_text(25_557_032, ""), "25.6 M"),
        (si_text(0.2304, "J"), "230 mJ"),
        (si_text(5.21e13, "FLOP/s"), "52.1 TFLOP/s"),
        (si_text(999.7, "J"), "1 kJ"),
        (si_text(0, "J"), "0 J"),
        (si_text(5e-13, "J"), "0.0005 nJ"),
        (si_text(1e22, ""), "1e+04 E"),
        (percent_text(0.01), "1.0%"),
        (percent_text(0.00031), "0.031%"),
        (percent_text(0.123), "12%"),
    ],
)
def test_numbers_are_written_as_people_read_them(text: str, expected: str) -> None:
    assert text == expected
