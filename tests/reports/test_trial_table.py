"""The trials of a report as a table of pandas and as runs of TensorBoard; and what is said where those are missing."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import ReportError, SettingError
from autobatch.reports.report import Report
from autobatch.reports.tensorboard import HPARAMS, SCORE, check_tensorboard, write_hparams
from autobatch.reports.trial_table import COLUMNS, rows_of
from tests.helpers.reports import CHOSEN, example, horizon_of


def test_a_row_for_each_trial_with_every_column() -> None:
    report = example()
    rows = rows_of(report)
    assert len(rows) == len(report.trials)
    assert all(set(row) == set(COLUMNS) for row in rows)
    chosen = rows[1]
    assert (chosen["batch_size"], chosen["accumulation_steps"], chosen["effective_batch_size"]) == (128, 2, 256)
    assert (chosen["score"], chosen["steps"], chosen["trained_s"]) == (0.975, 800, horizon_of(report))
    assert [row["trial"] for row in rows if row["chosen"]] == [1, 12, 13, 14]
    assert rows[2]["trained_s"] == pytest.approx(horizon_of(report) / 8)
    assert (rows[11]["score"], rows[11]["outcome"], rows[11]["steps"]) == (None, "diverged", 0)


def test_a_report_of_before_lacks_keys_and_has_a_table_all_the_same() -> None:
    old = [
        {k: v for k, v in trial.items() if k not in ("number", "ranks", "seed", "seconds")}
        for trial in example().trials
    ]
    rows = rows_of(dataclasses.replace(example(), trials=tuple(old)))
    assert [row["trial"] for row in rows] == list(range(len(old)))
    assert {(row["ranks"], row["seed"], row["seconds"]) for row in rows} == {(1, None, None)}


@pytest.mark.parametrize(("key", "value"), [("number", "../x"), ("seed", 0.5), ("seconds", "1"), ("message", 3)])
def test_a_trial_whose_facts_are_of_another_kind_is_refused(key: str, value: object) -> None:
    stored = example().to_json()
    stored["trials"][2][key] = value
    with pytest.raises(ReportError, match=f"'{key}' of item 2 of 'trials' of the report"):
        Report.from_json(stored)


def test_the_data_frame_has_types_that_know_of_missing_values() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    frame = example().to_dataframe()
    assert list(frame.columns) == list(COLUMNS)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == COLUMNS
    assert frame["score"].isna().tolist() == [row["score"] is None for row in rows_of(example())]
    best = frame[(frame["role"] == "search") & (frame["state"] == "complete")].sort_values("score").iloc[-1]
    assert (best["batch_size"], best["lr"]) == (CHOSEN.plan.batch_size, CHOSEN.lr)
    assert frame["lr"].max() == 3.0
    nothing = dataclasses.replace(example(), trials=()).to_dataframe()
    assert (len(nothing), list(nothing.columns)) == (0, list(COLUMNS))
    assert isinstance(frame, pandas.DataFrame)


@pytest.mark.parametrize("package", ["pandas", "tensorboard"])
def test_without_the_package_the_message_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    if package == "pandas":
        with pytest.raises(ImportError, match="to_dataframe needs pandas, which is not installed: pip install pandas"):
            example().to_dataframe()
    else:
        with pytest.raises(SettingError, match="--tensorboard needs a package that is not installed: pip install tens"):
            check_tensorboard(tmp_path)


def read(folder: Path) -> dict[str, Any]:
    """What TensorBoard's own reader finds in one run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    found = EventAccumulator(str(folder)).Reload()
    data = found.PluginTagToContent("hparams")
    began = metadata.parse_session_start_info_plugin_data(data[metadata.SESSION_START_INFO_TAG])
    ended = metadata.parse_session_end_info_plugin_data(data[metadata.SESSION_END_INFO_TAG])
    values = {name: value.number_value or value.string_value for name, value in began.hparams.items()}
    scores = [(e.step, e.value) for e in found.Scalars(SCORE)] if SCORE in found.Tags()["scalars"] else []
    return {"hparams": values, "status": ended.status, "scores": scores}


def test_tensorboard_reads_each_trial_with_its_settings_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard")
    from tensorboard.plugins.hparams import api_pb2

    report = example()
    for _ in range(2):  # a report that is written again replaces what it wrote
        run = write_hparams(report, tmp_path / "runs")
    assert [place.name for place in sorted(run.iterdir())] == [f"trial-{n:04d}" for n in range(len(report.trials))]
    assert all(len(list(place.iterdir())) == 1 for place in run.iterdir())
    chosen = read(run / "trial-0001")
    assert set(chosen["hparams"]) == set(HPARAMS)
    assert (chosen["hparams"]["effective_batch_size"], chosen["hparams"]["lr"]) == (256, CHOSEN.lr)
    assert [step for step, _ in chosen["scores"]] == [100, 400, 800]
    assert [score for _, score in chosen["scores"]] == pytest.approx([0.92, 0.95, 0.975])
    assert chosen["status"] == api_pb2.STATUS_SUCCESS
    failed = read(run / "trial-0011")
    assert (failed["status"], failed["scores"]) == (api_pb2.STATUS_FAILURE, [])


def test_a_task_called_like_a_path_stays_in_the_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed: pip install tensorboard")
    run = write_hparams(dataclasses.replace(example(), task="../../up/x"), tmp_path / "runs")
    assert run.parent == tmp_path / "runs"
    assert run.is_dir()
