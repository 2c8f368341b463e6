from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.core.facts import DeviceInfo, DeviceKind
from autobatch.core.files import check_writable, load_json, write_whole
from autobatch.core.plan import LEAST_LR, MOST_LR, Config, Plan
from autobatch.errors import ReportError
from autobatch.reports.report import SCHEMA, Report
from autobatch.searching.verdict.confirmation import ScoreSummary
from tests.helpers.reports import LONG_RUN, example

KINDS = ", ".join(get_args(DeviceKind))

EXAMPLE = example(long_run=LONG_RUN)

finite = st.floats(allow_nan=False, allow_infinity=False)
maybe = st.none() | finite
configs = st.builds(
    Config,
    plan=st.builds(
        Plan,
        batch_size=st.integers(1, 10**6),
        accumulation_steps=st.integers(1, 64),
        precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    ),
    lr=st.floats(LEAST_LR, MOST_LR),
)
summaries = st.none() | st.builds(
    ScoreSummary, mean=finite, stderr=maybe, scores=st.lists(finite, max_size=4).map(tuple)
)
sentences = st.lists(st.text(max_size=40), max_size=3).map(tuple)
counts = st.none() | st.integers(0, 2**60)
devices = st.builds(
    DeviceInfo,
    name=st.text(),
    kind=st.sampled_from(["cuda", "rocm", "mps", "cpu"]),
    index=counts,
    memory_bytes=counts,
    driver=st.none() | st.text(),
    power_limit_w=maybe,
    notes=sentences,
)
fields: dict[str, st.SearchStrategy[Any]] = {
    "task": st.text(),
    "command": st.text(),
    "device": devices,
    "direction": st.sampled_from(["maximize", "minimize"]),
    "budget_s": finite,
    "train_time_s": maybe,
    "config": configs,
    "baseline_plan": configs,
    "chose_baseline": st.booleans(),
    "baseline_is_users": st.booleans(),
    "probability": st.none() | st.floats(0, 1),
    "is_proven": st.none() | st.booleans(),
    "score": summaries,
    "baseline": summaries,
    "test_score": maybe,
    "test_baseline": maybe,
    "learning_rate": st.sampled_from([None, EXAMPLE.learning_rate]),
    "trials": st.sampled_from([EXAMPLE.trials, EXAMPLE.trials[:1], ()]),
    "why": sentences,
    "warnings": sentences,
    "interrupted": st.booleans(),
    "long_run": st.sampled_from([None, LONG_RUN]),
}
reports = st.fixed_dictionaries(fields).map(lambda changes: dataclasses.replace(EXAMPLE, **changes))


@settings(max_examples=30)
@given(reports)
def test_a_report_survives_json(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json(), allow_nan=False))) == report


def test_a_stored_report_is_the_one_that_was_saved(tmp_path: Path) -> None:
    EXAMPLE.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == EXAMPLE
    assert os.listdir(tmp_path) == ["report.json"]


def test_a_plan_of_several_processes_survives_json_and_an_older_report_is_of_one() -> None:
    several = Config(plan=Plan(batch_size=16, ranks=4), lr=0.1)
    stored = example(config=several).to_json()
    assert Report.from_json(stored).config == several
    assert stored["plan"]["effective_batch_size"] == 64
    del stored["plan"]["ranks"]
    assert Report.from_json(stored).config.plan == Plan(batch_size=16)


def test_json_holds_what_scripts_rely_on() -> None:
    data = EXAMPLE.to_json()
    assert data["schema"] == SCHEMA
    assert data["plan"] == {
        "batch_size": 128,
        "accumulation_steps": 2,
        "ranks": 1,
        "effective_batch_size": 256,
        "lr": 0.00345,
        "precision": "fp32",
    }
    mean, scores = 0.97183, [0.97, 0.972, 0.974]
    assert data["score"] == {"mean": mean, "stderr": 0.0021, "scores": scores, "test": None, "search": None}
    assert {"horizon_s", "baseline", "max_batch", "throughput", "trials", "ledger", "device", "why"} <= set(data)


def test_scores_that_are_whole_numbers_are_scores() -> None:
    data = json.loads(json.dumps(EXAMPLE.to_json()))
    data["score"] |= {"mean": 1, "scores": [1, 1.0]}
    score = Report.from_json(data).score
    assert score == ScoreSummary(mean=1.0, stderr=0.0021, scores=(1.0, 1.0))


def _set(data: Any, path: str, value: Any) -> None:
    *outer, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    for key in outer:
        data = data[key]
    data[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", SCHEMA + 1, f"reads reports of schema {SCHEMA}; this one has schema {SCHEMA + 1}"),
        ("schema", True, "'schema' of the report is int; found True"),
        ("task", None, "'task' of the report is str; found None"),
        ("direction", "up", "'direction' of the report is one of maximize, minimize; found 'up'"),
        ("budget_s", "60", "'budget_s' of the report is int or float; found '60'"),
        ("budget_s", float("inf"), "'budget_s' of the report is a finite number; found inf"),
        ("budget_s", 10**400, "'budget_s' of the report is a finite number; found 1000"),
        ("plan", [], "'plan' of the report is dict; found []"),
        (
            "plan/batch_size",
            0,
            "'plan' of the report cannot be: batch_size, accumulation_steps and ranks are at least 1",
        ),
        ("plan/precision", "int8", "'precision' of 'plan' of the report is one of fp32, tf32, bf16, fp16; found 'int"),
        ("score/scores", [1.0, "x"], "item 1 of 'scores' of 'score' of the report is int or float; found 'x'"),
        (
            "device/kind",
            "tpu",
            f"'kind' of 'device' of the report is one of {KINDS}; found 'tpu'",
        ),
        ("device/memory_bytes", 1.5, "'memory_bytes' of 'device' of the report is int or null; found 1.5"),
        ("why", "because", "'why' of the report is list; found 'because'"),
        ("why", [1], "item 0 of 'why' of the report is str; found 1"),
        ("max_batch/probes/0", 3, "item 0 of 'probes' of 'max_batch' of the report is a JSON object; found int"),
        ("learning_rate", 3, "'learning_rate' of the report is a JSON object; found int"),
        ("throughput/measurements/1/samples_per_s", "fast", "is int or float or null; found 'fast'"),
        ("throughput/measurements/0/undisturbed_step_s", "", "is int or float or null; found ''"),
        ("trials/0/scores", [[1]], "trial 0 of the report has steps, and scores as pairs"),
        ("trials/0/total_steps", 0, "trial 0 of the report has steps"),
        ("long_run", 3, "'long_run' of the report is a JSON object; found int"),
        ("long_run/lr/lr", None, "'lr' of 'lr' of 'long_run' of the report is int or float; found None"),
        ("long_run/lr/rungs", [[0.5]], "the rungs of 'long_run' of the report are shares above 0"),
        ("long_run/stability/0/early", 0, "the rungs of 'long_run' of the report are shares above 0"),
        ("long_run/horizon_s", 0, "the times of 'long_run' of the report are above 0"),
        ("ledger/entries", {"training": None}, "'training' of 'entries' of 'ledger' of the report is int or float"),
    ],
)
def test_what_is_not_a_report_is_refused_with_the_place_and_the_value(path: str, value: Any, message: str) -> None:
    data = json.loads(json.dumps(EXAMPLE.to_json()))
    _set(data, path, value)
    with pytest.raises(ReportError, match=re.escape(message)):
        Report.from_json(data)


@pytest.mark.parametrize("key", ["schema", "task", "plan", "max_batch", "trials", "learning_rate", "interrupted"])
def test_a_missing_key_is_named(key: str) -> None:
    data = EXAMPLE.to_json()
    del data[key]
    with pytest.raises(ReportError, match=f"the report has no '{key}'"):
        Report.from_json(data)


def test_a_report_from_before_there_was_a_long_run_loads() -> None:
    data = EXAMPLE.to_json()
    del data["long_run"]
    assert Report.from_json(data) == dataclasses.replace(EXAMPLE, long_run=None)


def test_a_list_is_no_report() -> None:
    with pytest.raises(ReportError, match="the report is a JSON object; found list"):
        Report.from_json([])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"schema": 1,', "is not whole JSON: .* at line 1"),
        (b"", "is not whole JSON"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b'{"budget_s": NaN}', "a report holds finite numbers; found NaN"),
        (b"1" * 5000, "is not a report: Exceeds the limit"),
        (b"[" * 200_000, "is not a report: maximum recursion"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(content)
    with pytest.raises(ReportError, match=message):
        load_json(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"gone\.json cannot be read: No such file or directory"):
        Report.load(tmp_path / "gone.json")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    file.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert os.listdir(tmp_path) == ["report.md"]
    assert file.read_text() == "old"


def test_writing_follows_a_link_and_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"


def test_what_is_no_ordinary_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        check_writable(pipe)
        write_whole(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_a_path_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="it is a folder; name a file"):
        check_writable(tmp_path)
    with pytest.raises(ReportError, match=r"there is no folder .*missing"):
        check_writable(tmp_path / "missing" / "report.json")
    with pytest.raises(ReportError, match="cannot be written: No such file or directory"):
        write_whole(tmp_path / "missing" / "report.json", "text")


def test_a_read_only_file_is_told_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anything
    with pytest.raises(ReportError, match="the file is read-only"):
        check_writable(file)


def test_checking_a_path_leaves_nothing_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "report.json")
    assert os.listdir(tmp_path) == []


def test_a_report_from_before_probabilities_is_read_and_one_that_is_none_refused() -> None:
    data = EXAMPLE.to_json()
    old = {key: value for key, value in data.items() if key not in ("probability", "proven")}
    assert (Report.from_json(old).probability, Report.from_json(old).is_proven) == (None, None)
    with pytest.raises(ReportError, match="'probability' of the report lies between 0 and 1; found 7"):
        Report.from_json(data | {"probability": 7})
    with pytest.raises(ReportError, match="proven"):
        Report.from_json(data | {"proven": "yes"})
