"""Reports from anywhere: a value of a wrong type is told, whichever it is, and a large one is drawn in linear time."""

from __future__ import annotations

import copy
import cProfile
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from autobatch.errors import ReportError
from autobatch.render.bench_content import bench_document
from autobatch.render.content import report_document
from autobatch.render.document import Bullets, Document, Facts, Paragraph, Part, Section, visible
from autobatch.render.html import to_html
from autobatch.render.markdown import to_markdown
from autobatch.render.terminal import print_document
from autobatch.reports.bench_report import BenchReport
from autobatch.reports.report import Report

from ..helpers.bench_reports import gpu_report
from ..helpers.reports import LONG_RUN, example

Path = tuple[str | int, ...]
OF_TUNE: Any = json.loads(json.dumps(example(long_run=LONG_RUN).to_json()))
OF_BENCH: Any = json.loads(json.dumps(gpu_report().to_json()))


def paths(value: Any, at: Path = ()) -> Iterator[Path]:
    """Where something stands in a report; of a list its first item."""
    if at:
        yield at
    for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
        yield from paths(value[key], (*at, key))


def replaced(data: Any, at: Path, value: Any) -> Any:
    changed = copy.deepcopy(data)
    inner = changed
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return changed


def draw(document: Document) -> str:
    file = io.StringIO()
    print_document(document, Console(file=file, width=80))
    to_markdown(document)
    to_html(document)
    return file.getvalue()


def shown(data: Any) -> str:
    return draw(
        bench_document(BenchReport.from_json(data)) if "kind" in data else report_document(Report.from_json(data))
    )


values: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, "", "\x1b[31m[red]", [], {}, [[]], [None], {"a": None}, 10**400, 1e308, -1e308, 5e-324]
    ),
    st.integers(-2, 2),
    st.floats(allow_nan=False, allow_infinity=False),
    st.lists(st.integers(0, 2) | st.text(max_size=3), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(0, 2) | st.none(), max_size=2),
)


@settings(max_examples=150)
@given(
    changed=st.one_of(
        st.tuples(st.just(OF_TUNE), st.sampled_from([*paths(OF_TUNE)])),
        st.tuples(st.just(OF_BENCH), st.sampled_from([*paths(OF_BENCH)])),
    ),
    value=values,
)
def test_whatever_stands_in_a_report_it_is_shown_or_refused(changed: tuple[Any, Path], value: Any) -> None:
    data, at = changed
    try:
        text = shown(replaced(data, at, value))
    except ReportError:
        return
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [
        (("max_batch", "allocated_bytes"), "x", "'allocated_bytes' of 'max_batch' of the report is int or float"),
        (("throughput", "remedy"), 3, "'remedy' of 'throughput' of the report is str or null; found 3"),
        (("throughput", "measurements", 0, "remarks"), None, "'remarks' of item 0 of 'measurements' .* is list"),
        (("throughput", "measurements", 0, "phases_s"), {"load": "x"}, "'load' of 'phases_s' of item 0"),
        (("throughput", "ranks"), None, "'ranks' of 'throughput' of the report is int; found None"),
        (("learning_rate", "ranks"), {}, "'ranks' of 'learning_rate' of the report is int; found {}"),
        (("trials", 0, "ranks"), "x", "'ranks' of item 0 of 'trials' of the report is int; found 'x'"),
        (("trials", 0, "scores"), [], "trial 0 of the report is complete, and has no score"),
        (("long_run", "lr", "slope"), 1e308, "'slope' of 'lr' of 'long_run' of the report is at most 100"),
        (("long_run", "forecasts", 0, "is_picked"), "x", "'is_picked' of item 0 of 'forecasts' .* is bool; found 'x'"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_told_with_its_place(at: Path, value: Any, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        Report.from_json(replaced(OF_TUNE, at, value))


GROWN: dict[str, Callable[[int], Any]] = {
    "sentences": lambda n: {"warnings": ["a few words " * 8] * n},
    "one sentence": lambda n: {"warnings": ["a few words " * 8 * n]},
    "one word": lambda n: {"warnings": ["w" * 100 * n]},
    "control characters": lambda n: {"warnings": ["\x1b" * 20 * n]},
    "reasons": lambda n: {"why": ["a few words " * 8] * n},
    "a ledger": lambda n: {"ledger": OF_TUNE["ledger"] | {"entries": {f"stage {i}": 1.0 for i in range(n)}}},
    "trials": lambda n: {"trials": OF_TUNE["trials"] + [OF_TUNE["trials"][3] | {"number": 99 + i} for i in range(n)]},
    "scores": lambda n: {"score": OF_TUNE["score"] | {"scores": [0.5] * n}},
    "a name": lambda n: {"task": "n" * 100 * n},
}


@pytest.mark.parametrize("kind", GROWN)
def test_a_report_is_drawn_in_linear_time(kind: str) -> None:
    """In function calls, which no other process makes slower."""

    def calls(n: int) -> int:
        data = OF_TUNE | GROWN[kind](n)
        profile = cProfile.Profile()
        profile.runcall(shown, data)
        return sum(entry.callcount for entry in profile.getstats())

    shown(OF_TUNE)  # templates are compiled once
    once, twice, thrice = calls(200), calls(400), calls(600)
    assert thrice - twice <= 1.2 * (twice - once) + 1000


words = st.text(st.sampled_from("ab -\u00e9\u4e16\U0001f600"), max_size=60)


@given(text=words, items=st.lists(words, min_size=1, max_size=3), width=st.integers(8, 30))
def test_wrapped_text_fits_and_loses_nothing(text: str, items: list[str], width: int) -> None:
    parts: tuple[Part, ...] = (
        Paragraph(text=text),
        Bullets(items=tuple(items)),
        Facts(rows=tuple((item, text) for item in items)),
    )
    for part in parts:
        file = io.StringIO()
        print_document(
            Document(title="t", sections=(Section(title="s", parts=(part,)),)), Console(file=file, width=width)
        )
        lines = file.getvalue().splitlines()
        assert max(map(cell_len, lines)) <= width
        if isinstance(part, Paragraph):
            kept = "".join("".join(lines[3:]).split())
            assert kept == "".join(visible(text).split())
