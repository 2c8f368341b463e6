"""The record of a run: a study that Optuna opens by itself, and that a torn line does not spoil."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from autobatch.core.plan import Config, Plan
from autobatch.searching.schedulers.optuna_sampler import propose
from autobatch.searching.storage.journal import StudyRecord, read_kept
from autobatch.searching.storage.race_state import RaceState

from ...helpers.histories import history
from ..schedulers.test_optuna_sampler import SPACE, finished, paused, race

STATE = RaceState(count=1, allotment_s=60.0, spent_s=3.5, max_batch=256, max_micro_batch=128)


def test_optuna_says_nothing_and_keeps_its_verbosity(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = optuna.logging.get_verbosity()
    propose(history(race(3)), SPACE, seed=0)
    StudyRecord(tmp_path / "journal.log", "quiet", "maximize").save(paused(0, 0.1), STATE)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == before
    assert logging.getLogger("optuna").level == before


def reload(path: Path, name: str = "digits") -> optuna.Study:
    """The study as anybody opens it."""
    return optuna.load_study(study_name=name, storage=JournalStorage(JournalFileBackend(str(path))))


def test_the_record_opens_with_optuna_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "journal.log"
    record = StudyRecord(path, "digits", "maximize")
    plan = Plan(batch_size=32, accumulation_steps=4)
    first = replace(paused(0, 0.5), config=Config(plan=plan, lr=2e-3))
    record.save(replace(first, state="running", scores=()), STATE)
    record.save(first, STATE)
    record.save(paused(1, 0.6), STATE)
    record.save(finished(first, 0.7, 0.8), STATE)
    record.save(replace(paused(2, 0.1), state="dropped"), STATE)
    record.save(replace(paused(3, 0.1), state="failed", outcome="diverged", message="the loss is not finite"), STATE)
    record.save(replace(paused(4, 0.1), state="failed", scores=(), outcome="oom", message="out of memory"), STATE)
    study = reload(path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "RUNNING", "PRUNED", "PRUNED", "FAIL"]
    assert study.metric_names == ["score"]
    assert study.best_value == 0.8
    best: dict[str, Any] = study.best_params
    assert best == {"batch_size": 32, "accumulation_steps": 4, "effective_batch_size": 128, "lr": pytest.approx(2e-3)}
    assert study.trials[0].intermediate_values == {125: 0.5, 500: 0.7, 1000: 0.8}
    assert study.trials[1].user_attrs["state"] == "paused"
    assert study.trials[4].user_attrs["message"] == "out of memory"


def test_a_record_that_is_opened_again_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    StudyRecord(path, "digits", "minimize").save(paused(0, 0.5), STATE)
    record = StudyRecord(path, "digits", "minimize")
    record.save(paused(0, 0.5), STATE)
    record.save(finished(paused(0, 0.5), 0.4, 0.3), STATE)
    record.save(finished(paused(0, 0.5), 0.4, 0.3), STATE)
    study = reload(path)
    assert len(study.trials) == 1
    assert study.best_value == 0.3


def test_a_record_stays_one_where_its_task_is_called_something_else_by_now(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    for name, trial in zip(("before", "now"), race(1), strict=True):
        StudyRecord(path, name, "maximize").save(trial, STATE)
    kept = read_kept(path)
    assert kept is not None
    assert [trial.number for trial in kept.trials] == [0, 1]


def test_half_a_line_at_the_end_of_a_record_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    StudyRecord(path, "digits", "maximize").save(paused(0, 0.5), STATE)
    with path.open("ab") as journal:
        journal.write(b'{"op_code":5,"wor')
    record = StudyRecord(path, "digits", "maximize")
    record.save(paused(1, 0.6), STATE)
    assert [trial.intermediate_values for trial in reload(path).trials] == [{125: 0.5}, {125: 0.6}]
