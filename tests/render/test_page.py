"""The page without a browser: well-formed, self-contained, safe, and readable in both colour schemes."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.facts import DeviceInfo
from autobatch.render.bench_content import bench_document
from autobatch.render.compare_content import comparison_document
from autobatch.render.content import report_document
from autobatch.render.document import Code, Column, Document, Facts, Paragraph, Section, Table
from autobatch.render.drawing import COLORS
from autobatch.render.html import to_html
from autobatch.render.page_content import page_document
from autobatch.reports.bench_report import BenchReport
from autobatch.reports.compare import compare
from autobatch.reports.report import Report
from tests.helpers.bench_reports import MODELS, cell, cpu_report, failed, gpu_report, with_measurement
from tests.helpers.pages import Page
from tests.helpers.reports import example, raced, throughput_of

GPU, CPU = gpu_report(), cpu_report()
ATTACK = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)></style></title></svg>]]>{{ 7*7 }}&amp;\x00\x1b[2J\u202e"
)


def page(document: Document) -> Page:
    return Page(to_html(document))


def hostile() -> BenchReport:
    """The report in which every text from outside is one that would do harm."""
    report = gpu_report()
    first, second = report.cells[:2]
    assert first.throughput is not None
    assert first.max_batch is not None
    points = [
        point | {"remarks": [ATTACK], "phases_s": {ATTACK: 0.1}, "outcome": ATTACK}
        for point in first.throughput["measurements"]
    ]
    texts = dict.fromkeys(("knee", "recommended", "starvation", "remedy", "objective"), ATTACK)
    attacked = dataclasses.replace(
        first,
        model=ATTACK,
        compute_mode=ATTACK,
        throughput={**first.throughput, **texts, "measurements": points},
        max_batch={**first.max_batch, "assumed": [ATTACK], "limited_by": ATTACK},
    )
    return dataclasses.replace(
        report,
        cells=(attacked, dataclasses.replace(second, model=ATTACK), failed("vit", ATTACK, ATTACK)),
        created=ATTACK,
        command=ATTACK,
        version=ATTACK,
        objective=ATTACK,
        warnings=(ATTACK,),
        device=DeviceInfo(name=ATTACK, kind="cuda", driver=ATTACK, torch=ATTACK, notes=(ATTACK,)),
    )


def many_models() -> BenchReport:
    """Twenty models, each in two ways."""
    names = list(MODELS)
    cells = [
        dataclasses.replace(cell(names[i % 6], compute_mode, memory_bytes=24 << 30, watts=300.0), model=f"model {i}")
        for i in range(20)
        for compute_mode in ("fp32", "bf16")
    ]
    return dataclasses.replace(GPU, cells=tuple(cells), planned=40)


def one_point() -> BenchReport:
    found = CPU.cells[0].throughput
    assert found is not None
    one = {**found, "measurements": found["measurements"][-1:], "recommended_batch_size": 76, "knee_batch_size": 76}
    return dataclasses.replace(CPU, cells=(dataclasses.replace(CPU.cells[0], throughput=one),))


def only_failures() -> BenchReport:
    return dataclasses.replace(GPU, cells=tuple(failed(name, "fp32", "out of memory") for name in MODELS))


def hostile_run() -> Report:
    """The run in which every text from outside is one that would do harm."""
    report = example()
    texts = dict.fromkeys(("role", "state", "outcome", "origin", "message"), ATTACK)
    return dataclasses.replace(
        report,
        task=ATTACK,
        created=ATTACK,
        command=ATTACK,
        why=(ATTACK,),
        warnings=(ATTACK,),
        ledger={**report.ledger, "entries": {ATTACK: 1.0}},
        max_batch={**report.max_batch, "limited_by": ATTACK, "assumed": [ATTACK]},
        throughput={**throughput_of(report), "knee": ATTACK, "starvation": ATTACK},
        trials=(report.trials[0], *({**trial, **texts} for trial in report.trials[1:])),
    )


def without_an_answer() -> Report:
    """A run that was stopped before anything was trained to the end, of which nothing was measured but one batch."""
    report = example()
    return dataclasses.replace(
        report,
        config=report.baseline_plan,
        chose_baseline=True,
        score=None,
        baseline=None,
        learning_rate=None,
        trials=(),
        ledger={"budget_s": 1.0, "elapsed_s": 0.0, "entries": {}},
        max_batch={**report.max_batch, "probes": [], "limit_bytes": None, "peak_bytes": None},
        throughput={**throughput_of(report), "measurements": []},
    )


def not_compared(**changes: Any) -> Report:
    """A run whose budget ended before a comparison, and perhaps before its profile."""
    why = "a comparison takes 3 trials of at least 32 baseline steps. Give at least 4m05s"
    return dataclasses.replace(without_an_answer(), not_compared=why, horizon_s=None, **changes)


DOCUMENTS: dict[str, Document] = {
    "gpu": bench_document(GPU),
    "cpu": bench_document(CPU),
    "four arms": bench_document(gpu_report(("fp32", "tf32", "bf16", "bf16+channels_last"))),
    "twenty models": bench_document(many_models()),
    "one point": bench_document(one_point()),
    "only failures": bench_document(only_failures()),
    "nothing yet": bench_document(dataclasses.replace(GPU, cells=())),
    "no intervals": bench_document(with_measurement(GPU, 0, interval_s=None, joules_per_sample=None, phases_s={})),
    "nothing timed": bench_document(with_measurement(GPU, 0, outcome="oom", samples_per_s=None, step_s=None)),
    "hostile": bench_document(hostile()),
    "tune on a terminal": report_document(example()),
    "tune": page_document(example()),
    "race": page_document(raced()),
    "hostile tune": page_document(hostile_run()),
    "tune without an answer": page_document(without_an_answer()),
    "nothing compared": page_document(not_compared()),
    "nothing profiled": page_document(not_compared(throughput=None)),
    "nothing profiled, on a terminal": report_document(not_compared(throughput=None)),
    "comparison": comparison_document(compare([("a.json", GPU), ("b.json", GPU), ("<c>", GPU)])),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_is_well_formed(name: str) -> None:
    found = page(DOCUMENTS[name])
    assert found.problems == []
    assert found.text.startswith("<!DOCTYPE html>\n<html lang=")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_page_asks_for_nothing_and_runs_nothing(name: str) -> None:
    found = page(DOCUMENTS[name])
    assert set(found.addresses) == {"data:,"}  # the icon, for which a browser would ask otherwise
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "object", "embed", "form", "base", "use"}
    assert not [name for _, known in found.tags for name in known if name.startswith("on")]
    assert not re.search(r"url\(|@import|expression\(|</", found.style)
    (policy,) = [known["content"] for _, known in found.tags if known.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@pytest.mark.parametrize(
    "text",
    [
        "<p><b>x</p></b><h1>a</h1>",
        '<h1 id="a">a</h1><p id="a">',
        "<h1>a</h1><h3>b</h3>",
        '<h1>a</h1><p aria-labelledby="b"></p>',
        '<h1>a</h1><a href="#b"></a>',
        "<h1>a</h1><table><tr><td></td></tr><tr><td></td><td></td></tr></table>",
        "<p>a</p>",
        "<h1>a</h1><div />",
    ],
)
def test_that_check_can_fail(text: str) -> None:
    assert Page(text).problems


def test_every_text_of_the_users_is_shown_as_text() -> None:
    found = page(DOCUMENTS["hostile"])
    words = " ".join(found.words)
    shown = ATTACK.replace("\x00", "\\x00").replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    # Title and heading of the page, its name in the sections' list and over its section, modes, notes, warnings, ...
    assert words.count(shown) > 30
    assert "{{ 7*7 }}" in words
    assert "49" not in re.findall(r"\b49\b", words)
    assert not set(found.text) & {"\x00", "\x1b", "\u202e"}


@settings(max_examples=40)
@given(st.text(), st.text())
def test_no_text_whatever_becomes_markup(one: str, other: str) -> None:
    made = Document(
        title=one,
        subtitle=other,
        sections=(
            Section(
                title=other,
                parts=(
                    Paragraph(text=one),
                    Facts(rows=((one, other),)),
                    Table(columns=(Column(title=one), Column(title=other)), rows=((one, other),), caption=other),
                ),
            ),
        ),
    )
    harmless = dataclasses.replace(made, title="a", subtitle="b", sections=())
    found = page(made)
    assert found.problems == []
    ours = {
        "h2",
        "section",
        "p",
        "dl",
        "div",
        "dt",
        "dd",
        "table",
        "caption",
        "span",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in page(harmless).tags} | ours


def test_every_part_of_a_tune_report_is_on_its_page() -> None:
    report = example()
    found = page(DOCUMENTS["tune"])
    words = " ".join(" ".join(found.words).split())
    assert "batch_size = 128 accumulation_steps = 2 lr = 0.00345" in words
    assert "This beat your configuration on fresh seeds." in words
    for sentence in report.why:
        assert sentence in words
    bars = [known for tag, known in found.tags if tag == "span" and "style" in known]
    spent = [seconds for seconds in report.ledger["entries"].values() if seconds > 0]
    assert len(bars) == len(throughput_of(report)["measurements"]) + len(spent)


def test_code_stands_line_by_line() -> None:
    made = Document(title="a", sections=(Section(title="b", parts=(Code(lines=("x = 1", "y = 2")),)),))
    assert "<code>x = 1\ny = 2\n</code>" in to_html(made)


def test_each_chart_has_a_name_a_finding_and_a_table() -> None:
    found = page(DOCUMENTS["gpu"])
    charts = [known for tag, known in found.tags if tag == "svg" and known.get("role") == "img"]
    tables = [tag for tag, _ in found.tags if tag == "details"]
    assert len(charts) == len(tables) == 18  # throughput, memory and energy of six models
    assert all(len((known["aria-labelledby"] or "").split()) == 2 for known in charts)


def test_tables_can_be_scrolled_by_keyboard_and_read_by_ear() -> None:
    found = page(DOCUMENTS["cpu"])
    regions = [known for _, known in found.tags if known.get("class") == "scroll"]
    tables = [tag for tag, _ in found.tags if tag == "table"]
    assert len(regions) == len(tables) == [tag for tag, _ in found.tags].count("caption")
    assert all(known["tabindex"] == "0" and known["role"] == "region" for known in regions)
    assert {known.get("scope") for tag, known in found.tags if tag == "th"} == {"row", "col"}


def test_the_page_says_where_when_and_how_it_was_measured() -> None:
    words = " ".join(" ".join(page(DOCUMENTS["gpu"]).words).split())
    for said in (
        "NVIDIA H200",
        "2026-11-22T09:30:00+00:00",
        "autobatch bench --precisions fp32 bf16",
        "torch 2.13.0",
        "driver 580.95.05",
        "700 W",
        "another process used 2.10 GiB of the card during gpt2 fp32",
        "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
        "How it was measured",
    ):
        assert said in words


def test_the_unfinished_and_the_quick_are_told_so() -> None:
    words = " ".join(page(DOCUMENTS["cpu"]).words)
    assert "The run was stopped before its end: this report has 7 of 8 cells." in words
    assert "Each got little time" in words
    assert "J/sample" not in words


# -- colours


def tokens(style: str) -> dict[str, dict[str, str]]:
    """Each colour scheme's tokens; what the dark one does not set is the light one's."""
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for block in (
            style.partition("@media")[0],
            style.partition("prefers-color-scheme: dark")[2].partition("* {")[0],
        )
    )
    return {"light": light, "dark": light | dark}


def luminance(color: str) -> float:
    """Relative luminance in [0, 1], as WCAG 2.2 defines it."""
    channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


STYLE = page(DOCUMENTS["nothing yet"]).style


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("text", ["text", "muted", "link", *(f"series-{number}" for number in range(COLORS))])
@pytest.mark.parametrize("ground", ["ground", "raised"])
def test_text_stands_out_from_what_is_behind_it(scheme: str, text: str, ground: str) -> None:
    known = tokens(STYLE)[scheme]
    assert contrast(known[text], known[ground]) >= 4.5  # WCAG 2.2, 1.4.3 (AA)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_bars_stand_out_too_and_the_schemes_differ(scheme: str) -> None:
    known = tokens(STYLE)[scheme]
    assert contrast(known["bar"], known["ground"]) >= 3  # WCAG 2.2, 1.4.11
    assert tokens(STYLE)["light"] != tokens(STYLE)["dark"]


def test_every_colour_is_a_token_of_the_scheme() -> None:
    rules = STYLE.partition("* {")[2]
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgb\(|hsl\(", rules)
    used = set(re.findall(r"var\(--([\w-]+)\)", rules))
    assert used == set(tokens(STYLE)["light"]) == set(tokens(STYLE)["dark"])


def test_contrast_is_computed_as_the_standard_says() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def test_the_same_report_makes_the_same_page() -> None:
    stored: Any = GPU.to_json()
    assert to_html(bench_document(BenchReport.from_json(stored))) == to_html(bench_document(GPU))
