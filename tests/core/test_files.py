"""What outlives a loss of power: contents before the name that stands for them, that name before what it is for."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from optuna.storages.journal import JournalFileBackend

from autobatch import Plan
from autobatch.core.checkpoints import checkpoint_path
from autobatch.core.files import write_json, write_whole
from autobatch.core.plan import Config
from autobatch.core.segment import TrainSegment
from autobatch.devices import open_device
from autobatch.searching.storage.journal import StudyRecord
from autobatch.worker.torch_runner import TorchRunner
from autobatch.worker.trial_state import save_trainer

from ..searching.schedulers.test_optuna_sampler import paused
from ..searching.storage.test_journal import STATE
from ..worker.test_training import task, trainer

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc which file a descriptor is of")

Calls = list[tuple[str, ...]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the kernel is asked for that counts when power is lost: ("sync", path) and ("rename", from, to)."""
    found: Calls = []
    sync, rename = os.fsync, os.replace

    def syncing(descriptor: int) -> None:
        found.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        sync(descriptor)

    def renaming(old: str | Path, new: str | Path) -> None:
        found.append(("rename", str(old), str(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", renaming)
    return found


def whole(partial: str, path: Path) -> Calls:
    """A file that is written under another name first, in the order that a crash at any moment does no harm to."""
    return [("sync", partial), ("rename", partial, str(path)), ("sync", str(path.parent))]


@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_synced_before_it_has_its_name_and_the_name_before_it_is_said_to_be_there(
    there: bool, calls: Calls, tmp_path: Path
) -> None:
    path = tmp_path / "report.json"
    if there:
        path.write_text("old")
    write_whole(path, "new")
    partial = calls[0][1]
    assert partial != str(path)
    assert calls == whole(partial, path)
    calls.clear()
    write_json(path, {"a": 1})
    assert calls == whole(calls[0][1], path)


def test_a_checkpoint_too_and_its_new_folder(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "new" / "trial.pt"
    save_trainer(trainer(task(), Plan(batch_size=8)), path)
    assert calls == [("sync", str(tmp_path)), *whole(f"{path}.partial", path)]


def test_a_segment_that_has_ended_has_its_checkpoint_on_the_disk(calls: Calls, tmp_path: Path) -> None:
    runner = TorchRunner(task(), open_device("cpu"), checkpoints=tmp_path)
    config = Config(plan=Plan(batch_size=8), lr=1e-2)
    segment = TrainSegment(trial=3, config=config, seed=1, start_step=0, until_step=4, total_steps=4, eval_batch_size=8)
    try:
        assert runner.advance(segment).outcome == "ok"
    finally:
        runner.close()
    path = checkpoint_path(tmp_path, 3, 4)
    saved = whole(f"{path}.new.partial", path.with_suffix(".pt.new"))
    assert calls == [*saved, ("rename", f"{path}.new", str(path)), ("sync", str(tmp_path))]


def test_each_line_of_a_journal_is_synced_and_so_is_its_name(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, lines = JournalFileBackend.append_logs, 0

    def counted(backend: JournalFileBackend, logs: list[dict[str, object]]) -> None:
        nonlocal lines
        lines += 1
        append(backend, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", counted)
    path = tmp_path / "journal.log"
    record = StudyRecord(path, "t", "maximize")
    assert ("sync", str(tmp_path)) in calls[1:]  # behind the first line
    record.save(paused(0, 0.5), STATE)
    assert lines > 1
    assert calls.count(("sync", str(path))) == lines
    assert calls[-1] == ("sync", str(path))
