"""A run's folder: what it keeps, what a resumed run makes of it, and what it refuses."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from autobatch.core.checkpoints import checkpoint_path, forget_checkpoints, is_whole
from autobatch.core.facts import DeviceInfo
from autobatch.core.files import sync_folder, write_whole
from autobatch.core.json_reader import Reader
from autobatch.core.plan import Plan
from autobatch.core.segment import SegmentResult, TrainSegment
from autobatch.engines.served import RunnerSpec
from autobatch.errors import DeviceError, ReportError, RunError, StorageError
from autobatch.measuring.learning_rate import find_lr_curve
from autobatch.measuring.memory import MaxBatch, find_max_batch_size
from autobatch.measuring.profiling import profile
from autobatch.measuring.taken import Rule
from autobatch.reports.report import Report
from autobatch.runs.conditions import changes, conditions_of_settings, conditions_of_task
from autobatch.runs.run_folder import RunFolder, RunState, holder, read_state
from autobatch.runs.runs import latest_unfinished, remove_run, reopened, run_folders, summary
from autobatch.runs.settings import Earlier, TuneSettings
from autobatch.runs.stage_results import StageResults
from autobatch.searching.budget.ledger import Ledger
from autobatch.searching.storage.central import CentralRecord
from autobatch.searching.storage.journal import StudyRecord, read_kept
from autobatch.simulated.sim import SimRunner, sim_facts
from autobatch.tasks.task_sources import source_hashes
from autobatch.tuning.pipeline import _Tune
from autobatch.tuning.run import run_tune

from ..helpers.reports import example
from ..searching.schedulers.test_optuna_sampler import finished, paused
from ..searching.storage.test_central import studied
from ..searching.storage.test_journal import STATE

CREATED = "2026-01-02T03:04:05+00:00"


def simulated(**changes: Any) -> SimRunner:
    return SimRunner(**({"known": sim_facts(has_test_data=True, train_size=4000)} | changes))


def state_of(**changes: Any) -> RunState:
    settings = TuneSettings(name="simulated", **({"budget_s": 60.0, "max_trials": 4} | changes))
    return RunState(created=CREATED, settings=settings, conditions=conditions_of_settings(settings, {}))


def tuned(folder: RunFolder, state: RunState, runner: SimRunner, force: bool = False) -> Report:
    """As `run_tune` does it, on a simulated device."""
    kept = read_kept(folder.journal) if folder.journal.exists() else None
    ledger = Ledger(state.settings.budget_s, runner.clock, carried=kept.state.charged if kept else state.charged)
    run = _Tune(runner, ledger, lambda _: None, folder, state, kept=kept, force=force)
    report = run.run()
    report.save(folder.report)
    run.finish()
    return report


def started(path: Path, **changes: Any) -> RunFolder:
    """A run that was stopped after its range test."""
    folder = RunFolder.made(path, "simulated")
    runner = simulated()
    folder.save(state_of(**changes))
    run = _Tune(runner, Ledger(60.0, runner.clock), lambda _: None, folder, state_of(**changes))
    facts = runner.facts()
    run.go_on_under(conditions_of_task(facts, runner.device(), 1))
    run.keep(largest=run.largest_batch(facts))
    folder.close()
    return folder


# What is kept


def test_what_the_stages_found_comes_back_to_the_last_bit() -> None:
    runner = simulated(slowdown=1.37)
    largest = find_max_batch_size(runner, Plan(batch_size=1), ceiling=4096, ceiling_is="ceiling")
    curve = find_lr_curve(runner, Plan(batch_size=64))
    largest = MaxBatch(
        int(largest),
        final_probe=largest.final_probe,
        probes=largest.probes,
        limit=largest.limit,
        limited_by="ceiling",
        rule=Rule(multiple_of=6, least=12, most=500),
    )
    found = StageResults(
        largest=largest,
        micro_batch=64,
        curve=profile(runner, Plan(batch_size=1), max_batch=512, budget_s=1 / 3),
        is_swept=True,
        sweep=replace(curve, sweep=replace(curve.sweep, without_schedule=True)),
        eval_s=0.1 + 0.2,
        horizon_s=1 / 7,
    )
    back = StageResults.from_json(Reader(json.loads(json.dumps(found.to_json())), "a test"))
    assert back == found
    assert back.largest is not None
    assert (back.largest.final_probe, back.largest.probes) == (largest.final_probe, largest.probes)
    assert back.largest.rule == largest.rule
    assert back.curve is not None
    assert found.curve is not None
    assert back.curve.step_s(37) == found.curve.step_s(37)
    before = json.loads(json.dumps(found.to_json()))
    del before["sweep"]["without_schedule"], before["largest"]["rule"]  # a run that an earlier version began
    found_before = StageResults.from_json(Reader(before, "a test"))
    assert found_before.sweep == curve
    assert found_before.largest is not None
    assert found_before.largest.rule == Rule()


def test_the_state_of_a_run_comes_back(tmp_path: Path) -> None:
    state = replace(
        state_of(train_time_s=3.5, memory_limit_bytes=1 << 30, earlier=(Earlier.of(example()),)),
        charged={"memory": 0.25, "other": 1.5},
        resumed=2,
        remarks=("a remark",),
    )
    with RunFolder.made(tmp_path / "run", "t") as folder:
        folder.save(state)
        assert read_state(folder.path) == state


def test_a_run_cut_at_any_write_comes_to_the_same_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    moments: list[tuple[Path, dict[int, set[int]], float]] = []
    runner = simulated()
    save, write = RunFolder.save, StudyRecord.save

    def note() -> None:
        copied = tmp_path / f"moment-{len(moments)}"
        shutil.copytree(tmp_path / "whole", copied)
        (copied / "lock").unlink()
        (copied / "checkpoints").mkdir(exist_ok=True)
        for trial, steps in runner.kept.items():  # a simulated device writes none
            for step in steps:
                checkpoint_path(copied / "checkpoints", trial, step).write_bytes(CHECKPOINT)
        moments.append((copied, copy.deepcopy(runner.kept), runner.clock()))

    def saved(folder: RunFolder, state: RunState) -> None:
        save(folder, state)
        note()

    def written(record: StudyRecord, *arguments: Any) -> None:
        write(record, *arguments)
        if len(moments) % 3 == 0:  # between two writes of the state; every line has its own test
            note()

    with monkeypatch.context() as patch, RunFolder.made(tmp_path / "whole", "simulated") as folder:
        patch.setattr(RunFolder, "save", saved)
        patch.setattr(StudyRecord, "save", written)
        folder.save(state_of())
        whole = tuned(folder, state_of(), runner).to_json()
    assert len(moments) >= 8
    assert read_state(moments[-1][0]).is_finished
    for path, checkpoints, cut_s in moments[:-1]:
        again = simulated(kept=copy.deepcopy(checkpoints))
        again.clock.advance(4096.0 + cut_s)  # as far into a tick of the ledger as it was cut
        opened, state = reopened(path, {}, {}, force=False)
        with opened:
            found = tuned(opened, state, again).to_json()
        assert found.pop("ledger")["entries"] == pytest.approx(whole["ledger"]["entries"], abs=1e-4)
        assert found == {key: value for key, value in whole.items() if key != "ledger"}, path


def test_a_finished_run_leaves_no_checkpoint_but_those_asked_for(tmp_path: Path) -> None:
    for keep in (0, 2):
        runner = simulated()
        with RunFolder.made(tmp_path / f"{keep}", "simulated") as folder:
            report = tuned(folder, state_of(keep_checkpoints=keep), runner)
        complete = [trial for trial in report.trials if trial["state"] == "complete"]
        best = sorted(complete, key=lambda trial: -trial["scores"][-1][1])[:keep]
        assert runner.kept == {trial["number"]: {trial["total_steps"]} for trial in best}


def stopped(path: Path, runner: SimRunner, budget_s: float) -> Report:
    """The report of a run that Ctrl-C stopped in its sixth rung."""
    advance, segments = SimRunner.advance, len(runner.segments)

    class Stopped(SimRunner):
        def advance(self, segment: TrainSegment) -> SegmentResult:
            if len(runner.segments) - segments == 5:
                raise KeyboardInterrupt
            return advance(runner, segment)

    held = Stopped(known=runner.known, clock=runner.clock, kept=runner.kept)
    state = state_of(max_trials=None, budget_s=budget_s)
    with RunFolder.made(path, "simulated") as folder:
        folder.save(state)
        report = _Tune(held, Ledger(budget_s, runner.clock), lambda _: None, folder, state).run()
        report.save(folder.report)
    return report


def test_an_interrupted_run_keeps_what_may_be_resumed_and_more_time_gives_more_trials(tmp_path: Path) -> None:
    found = {}
    for budget_s in (30.0, 60.0):
        path, runner = tmp_path / f"{budget_s}", simulated()
        report = stopped(path, runner, 30.0)
        assert report.interrupted
        kept = read_kept(path / "journal.log")
        assert kept is not None
        in_flight = [trial for trial in kept.trials if trial.state == "running"]
        assert len(in_flight) == 1  # in the report it has been given up, in the record it has not
        assert report.trials[in_flight[0].number]["state"] in ("dropped", "paused")
        assert {trial.number for trial in kept.trials if trial.state == "paused"} <= set(runner.kept)
        assert summary(path).status == "interrupted"
        opened, state = reopened(path, {"budget_s": budget_s}, {}, force=False)
        with opened:
            found[budget_s] = tuned(opened, state, runner)
        assert summary(path).status == "finished"
    assert len(found[60.0].trials) > len(found[30.0].trials)
    assert not found[60.0].interrupted
    assert 30.0 < found[60.0].ledger["elapsed_s"] <= 60.0


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"step": 10, "model": {"weight": torch.zeros(3)}}, file)
    return file.getvalue()


CHECKPOINT = checkpoint()


@pytest.mark.parametrize(
    ("of_the_baseline", "of_the_first", "told"),
    [(None, None, "gone"), (0.5, 0.9, "not whole"), (0.99, 0.0, "not whole")],
)
def test_a_trial_whose_checkpoint_is_not_there_is_failed_and_the_baseline_begins_again(
    of_the_baseline: float | None, of_the_first: float | None, told: str, tmp_path: Path
) -> None:
    """Gone, or copied in part."""
    with RunFolder.made(tmp_path / "run", "simulated") as folder:
        runner = simulated()
        run = _Tune(runner, Ledger(60.0, runner.clock), lambda _: None, folder, state_of())
        record = StudyRecord(folder.journal, "simulated", "maximize")
        baseline = replace(paused(0, 0.5), role="baseline")
        for trial in (baseline, paused(1, 0.6), paused(2, 0.7), finished(paused(3, 0.8), 0.8, 0.9)):
            record.save(trial, STATE)
        folder.checkpoints.mkdir()
        for number, share in ((0, of_the_baseline), (1, of_the_first), (2, 1.0)):
            if share is not None:
                path = checkpoint_path(folder.checkpoints, number, 10)
                path.write_bytes(CHECKPOINT[: int(share * len(CHECKPOINT))])
        kept = record.kept()
        assert kept is not None
        trials = run.with_checkpoints(kept).trials
    assert [trial.state for trial in trials] == ["running", "failed", "paused", "complete"]
    assert trials[0].scores == ()
    assert trials[1].message is not None
    assert f"its checkpoint is {told}" in trials[1].message


def test_trials_of_a_task_without_checkpoints_are_not_lost_for_want_of_them(tmp_path: Path) -> None:
    with RunFolder.made(tmp_path / "run", "simulated") as folder:
        runner = SimRunner(known=sim_facts(resumes=False))
        run = _Tune(runner, Ledger(60.0, runner.clock), lambda _: None, folder, state_of())
        record = StudyRecord(folder.journal, "simulated", "maximize")
        for trial in (replace(paused(0, 0.5), role="baseline"), paused(1, 0.6)):
            record.save(trial, STATE)
        kept = record.kept()
        assert kept is not None
        assert run.with_checkpoints(kept) == kept


def test_a_checkpoint_is_whole_to_its_last_byte(tmp_path: Path) -> None:
    path = checkpoint_path(tmp_path, 1, 8)
    assert not is_whole(path)
    for size in range(len(CHECKPOINT)):
        path.write_bytes(CHECKPOINT[:size])
        assert not is_whole(path), size
    path.write_bytes(CHECKPOINT)
    assert is_whole(path)


def test_old_checkpoints_are_forgotten_by_step(tmp_path: Path) -> None:
    for trial, step in ((1, 8), (1, 16), (10, 8), (100001, 8)):
        checkpoint_path(tmp_path, trial, step).touch()
    (tmp_path / "trial-00001-000000032.pt.new").touch()
    forget_checkpoints(tmp_path, 1, before=16)
    assert {path.name for path in tmp_path.iterdir()} == {
        "trial-00001-000000016.pt",
        "trial-00001-000000032.pt.new",
        "trial-00010-000000008.pt",
        "trial-100001-000000008.pt",
    }
    forget_checkpoints(tmp_path, 1)
    assert {path.name[:11] for path in tmp_path.iterdir()} == {"trial-00010", "trial-10000"}


# Conditions


def test_what_has_changed_is_listed_and_refused_unless_forced(tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    changed = simulated(known=sim_facts(has_test_data=True, train_size=8000, precision="bf16"))
    opened, state = reopened(path, {}, {}, force=False)
    with opened, pytest.raises(RunError) as refused:
        tuned(opened, state, changed)
    assert str(refused.value).splitlines()[1:] == [
        "  training samples: 4000 then, 8000 now",
        "  precision: fp32 then, bf16 now",
        "Start a new run, or go on all the same with --force",
    ]
    opened, state = reopened(path, {}, {}, force=True)
    with opened:
        report = tuned(opened, state, changed, force=True)
    assert any(
        warning.startswith("the run was resumed under other conditions: training samples: 4000 then, 8000 now")
        for warning in report.warnings
    )


def test_workers_that_share_a_processor_are_told_by_what_was_typed(tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    opened, state = reopened(path, {"workers": 2}, {}, force=False)
    with opened, pytest.raises(RunError) as refused:
        tuned(opened, state, simulated())
    assert "\n  workers on the processor: 1 then, 2 now\n" in str(refused.value)
    opened, state = reopened(path, {"workers": 1}, {}, force=False)  # what there is by default
    with opened:
        tuned(opened, state, simulated())


def test_a_card_of_the_same_name_with_other_memory_is_another_one() -> None:
    card = DeviceInfo(name="NVIDIA A100", kind="cuda", memory_bytes=40 << 30)
    before = conditions_of_task(sim_facts(), card, 1)
    larger = conditions_of_task(sim_facts(), replace(card, memory_bytes=80 << 30), 1)
    assert changes(before, larger) == ["memory of the device: 40 GiB then, 80 GiB now"]
    assert changes(before, conditions_of_task(sim_facts(), card, 4)) == []  # a card each
    host = DeviceInfo(name="AMD EPYC", kind="cpu", memory_bytes=40 << 30)
    container = replace(host, memory_bytes=8 << 30)
    assert changes(conditions_of_task(sim_facts(), host, 1), conditions_of_task(sim_facts(), container, 1)) == []


def test_threads_are_a_condition_where_they_compute() -> None:
    """Whoever placed a worker, and beside how many others: on a card they only feed it."""
    card = DeviceInfo(name="NVIDIA A100", kind="cuda", memory_bytes=40 << 30, threads=16)
    fewer = conditions_of_task(sim_facts(), replace(card, threads=1), 4)
    before = conditions_of_task(sim_facts(), card, 1)
    assert changes(before, fewer) == []
    assert changes(before | {"threads of a worker": 16}, fewer) == []  # of a run that noted them
    host = DeviceInfo(name="AMD EPYC", kind="cpu", threads=4)
    fewer = conditions_of_task(sim_facts(), replace(host, threads=2), 1)
    assert changes(conditions_of_task(sim_facts(), host, 1), fewer) == ["threads of a worker: 4 then, 2 now"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"direction": "minimize"}, "direction: maximize then, minimize now"),
        ({"peak_lr_fraction": 0.1}, r"peak of the schedule: 0\.0 then, 0\.1 now"),  # its rungs would be others
        ({"is_pausable": False}, "trials can be paused: yes then, no now"),
    ],
)
def test_what_scores_mean_and_where_they_were_taken_cannot_be_forced(
    change: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = started(tmp_path / "run").path
    opened, state = reopened(path, {}, {}, force=True)
    changed = simulated(known=sim_facts(has_test_data=True, train_size=4000, **change))
    with opened, pytest.raises(RunError, match=rf"{said}\nStart a new run$"):
        tuned(opened, state, changed, force=True)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"seed": 1}, "seed: 0 then, 1 now"),
        ({"search": "freeze-thaw"}, "search: auto then, freeze-thaw now"),
        ({"train_time_s": 60.0}, "training time: none then, 1m 00s now"),
        ({"memory_limit_bytes": 1 << 30}, "memory limit: none then, 1 GiB now"),
        ({"headroom": 0.1}, "headroom: 0.05 then, 0.1 now"),
    ],
)
def test_a_setting_that_is_another_is_refused(given: dict[str, Any], line: str, tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    with pytest.raises(RunError, match=line):
        reopened(path, given, {}, force=False)
    opened, state = reopened(path, given, {}, force=True)  # the folder was let go
    opened.close()
    assert [getattr(state.settings, name) for name in given] == list(given.values())


def test_budget_trials_and_checkpoints_may_change(tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    given = {"budget_s": 90.0, "max_trials": 7, "keep_checkpoints": 3}
    opened, state = reopened(path, given, {}, force=False)
    opened.close()
    assert [getattr(state.settings, name) for name in given] == list(given.values())


def test_the_files_of_a_task_are_those_it_imports_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import json\nimport helper\ndef f():\n    from pkg import inner\n")
    (tmp_path / "helper.py").write_text("x = 1\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("")
    (tmp_path / "pkg" / "inner.py").write_text("")
    before = source_hashes(tmp_path / "model.py")
    assert sorted(before) == ["helper.py", "model.py", "pkg/__init__.py", "pkg/inner.py"]
    (tmp_path / "helper.py").write_text("x = 2\n")
    (tmp_path / "other.py").write_text("x = 2\n")
    settings = TuneSettings(name="t")
    now = source_hashes(tmp_path / "model.py")
    assert changes(conditions_of_settings(settings, before), conditions_of_settings(settings, now)) == [
        "helper.py has changed"
    ]
    (tmp_path / "model.py").write_text("import other\n")
    lines = changes(
        conditions_of_settings(settings, now), conditions_of_settings(settings, source_hashes(tmp_path / "model.py"))
    )
    assert "helper.py is imported no longer" in lines
    assert "other.py is new" in lines
    (tmp_path / "model.py").write_text("this is no Python")
    assert list(source_hashes(tmp_path / "model.py")) == ["model.py"]


# One process, one folder


def test_a_folder_is_held_by_one_and_let_go_at_the_end(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    assert holder(folder.path) is None
    opened = RunFolder.opened(folder.path)
    assert holder(folder.path) == f"process {os.getpid()} on {os.uname().nodename}"
    for use in (lambda: RunFolder.opened(folder.path), lambda: remove_run(folder.path)):
        with pytest.raises(RunError, match=rf"is under way in process {os.getpid()} on .*two cannot share a folder"):
            use()
    assert summary(folder.path).status == "running"
    opened.close()
    assert summary(folder.path).status == "interrupted"
    RunFolder.opened(folder.path).close()


def test_a_folder_with_a_run_in_it_takes_no_other(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    with pytest.raises(RunError, match=r"holds a run already: go on with it \(--resume .*\), or name another folder"):
        RunFolder.made(folder.path, "simulated")
    with pytest.raises(RunError, match=r"is not the folder of a run: there is no run\.json in it"):
        RunFolder.opened(tmp_path)


@pytest.mark.parametrize("name", ["report.json", "worker.log", "lock", "checkpoints", "run.json", "journal.log"])
@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to nowhere"])
def test_a_new_run_takes_no_name_that_is_taken(name: str, kind: str, tmp_path: Path) -> None:
    """It would write over the user's file, or be led out of its folder; `clean` would delete what was there."""
    folder, precious = tmp_path / "mine", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("mine")
    if kind == "file":
        (folder / name).write_text("mine")
    elif kind == "folder":
        (folder / name).mkdir()
    else:
        (folder / name).symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    is_a_runs = name in ("run.json", "journal.log") and kind != "link to nowhere"
    told = "holds a run already" if is_a_runs else "is there already, and `autobatch clean` would delete it"
    with pytest.raises(RunError, match=told):
        RunFolder.made(folder, "simulated")
    if kind == "file":
        assert (folder / name).read_text() == "mine"
    assert precious.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()
    assert set(os.listdir(folder)) - {"lock"} == {name} - {"lock"}


def test_a_lock_that_is_not_a_runs_is_left_alone_beside_any_other_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("mine")
    (tmp_path / "lock").write_text("mine")
    with pytest.raises(RunError, match="lock, which is there already"):
        RunFolder.made(tmp_path, "simulated")
    assert (tmp_path / "lock").read_text() == "mine"


@pytest.mark.parametrize("content", ["", "process 17 on somewhere.example\n"])
def test_the_lock_of_a_run_that_was_killed_at_once_is_taken_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(content)
    with RunFolder.made(tmp_path, "simulated") as folder:
        assert holder(folder.path) == f"process {os.getpid()} on {os.uname().nodename}"


def test_every_new_folder_is_on_the_disk_and_one_that_cannot_be_read_needs_not_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home may lie in a folder that its owner may pass through and not list."""
    home, open_file = tmp_path / "home", os.open
    synced: list[Path] = []
    home.mkdir()

    def refusing(path: Any, *arguments: Any, **more: Any) -> int:
        if Path(path) == tmp_path:
            raise PermissionError(13, "Permission denied", str(path))
        return open_file(path, *arguments, **more)

    def noted(folder: Path) -> None:
        synced.append(folder)
        sync_folder(folder)

    monkeypatch.setattr(os, "open", refusing)
    monkeypatch.setattr("autobatch.runs.run_folder.sync_folder", noted)
    RunFolder.made(home / "run", "simulated").close()
    assert synced == [home]
    synced.clear()
    RunFolder.made(tmp_path / "new" / "run", "simulated").close()  # in a folder that may be written and not read
    assert synced == [tmp_path / "new", tmp_path]
    synced.clear()
    monkeypatch.chdir(home)
    RunFolder.made(None, "simulated").close()
    assert synced == [home / ".autobatch" / "simulated", home / ".autobatch", home]


def test_the_latest_unfinished_run_of_this_very_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"there is no unfinished run of simulated in \.autobatch/simulated"):
        latest_unfinished("simulated", None)
    for name, created, is_finished, path in (
        ("a", "2026-01-01", False, None),
        ("b", "2026-01-03", False, None),
        ("c", "2026-01-04", True, None),
        ("d", "2026-01-05", False, "/elsewhere/simulated.py"),
    ):
        with RunFolder.made(Path(".autobatch/simulated") / name, "simulated") as folder:
            folder.save(replace(state_of(), created=created, is_finished=is_finished, path=path))
    assert latest_unfinished("simulated", None) == Path(".autobatch/simulated/b")
    assert latest_unfinished("simulated", Path("/elsewhere/simulated.py")) == Path(".autobatch/simulated/d")
    with pytest.raises(RunError, match=r"is finished, and its answer in .*report\.json: start a new one"):
        reopened(Path(".autobatch/simulated/c"), {}, {}, force=True)


# Cleaning


def test_only_what_a_run_made_is_deleted(tmp_path: Path) -> None:
    path = started(tmp_path / "mine").path
    (path / "checkpoints").mkdir()
    checkpoint_path(path / "checkpoints", 3, 80).touch()
    (path / "thesis.txt").write_text("mine")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "trial-00001-000000008.pt").write_text("not a run's")
    remove_run(path)
    assert [file.name for file in path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RunError, match="is not the folder of a run"):
        remove_run(path)
    other = started(tmp_path / "other").path
    remove_run(other)
    assert not other.exists()


def leave_half_written(path: Path) -> None:
    """What a process leaves that is killed between two lines of `write_whole`, and of Optuna's lock."""

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        for name in ("run.json", "report.json"):
            with pytest.raises(Killed):
                write_whole(path / name, "half")
    lock = JournalFileSymlinkLock(str(path / "journal.log"))
    lock.acquire()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "unlink", killed)
        with pytest.raises(Killed):
            lock.release()
    lock.acquire()
    assert len(list(path.glob("*.partial"))) == 2
    assert len([name for name in os.listdir(path) if name.startswith("journal.log.lock")]) == 2


@pytest.mark.parametrize("way", ["resumed", "removed", "begun anew"])
def test_what_a_kill_left_half_written_is_deleted(way: str, tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    leave_half_written(path)
    mine = ("report.json.partial", "report.json-of-mine.partial", "journal.log.mine")
    for name in mine:
        (path / name).write_text("mine")
    known = {"run.json", "lock"}
    if way == "removed":
        remove_run(path)
        known = set()
    elif way == "resumed":
        reopened(path, {}, {}, force=False)[0].close()
    else:
        (path / "run.json").unlink()
        RunFolder.made(path, "simulated").close()
        known = {"lock"}
    assert set(os.listdir(path)) == {*known, *mine}


def test_a_link_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    treasure = tmp_path / "precious" / "trial-00001-000000008.pt"
    treasure.write_text("not a run's")
    path = started(tmp_path / "home" / "task" / "run").path
    (path / "checkpoints").symlink_to(tmp_path / "precious")
    for use in (remove_run, RunFolder.opened):
        with pytest.raises(RunError, match="checkpoints is a link: the folder of a run holds its own files"):
            use(path)
    (path / "checkpoints").unlink()
    (path / "journal.log").symlink_to(treasure)
    with pytest.raises(RunError, match=r"journal\.log is a link"):
        RunFolder.opened(path)
    (path / "journal.log").unlink()
    (path / "lock").unlink()
    (path / "lock").symlink_to(treasure)
    with pytest.raises(RunError, match="lock is a link"):
        RunFolder.opened(path)
    (path / "lock").unlink()
    (tmp_path / "home" / "task" / "linked").symlink_to(path)
    assert run_folders(tmp_path / "home") == [path]
    with pytest.raises(RunError, match="is not the folder of a run"):
        remove_run(tmp_path / "home" / "task" / "linked")
    assert treasure.read_text() == "not a run's"


# Files are data


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("exploded",)


def read_journal(path: Path) -> object:
    return read_kept(path / "journal.log")


def open_journal(path: Path) -> object:
    return StudyRecord(path / "journal.log", "simulated", "maximize").kept()


@pytest.mark.parametrize(
    ("name", "read"), [("run.json", read_state), ("journal.log", read_journal), ("journal.log", open_journal)]
)
def test_a_file_that_is_something_else_is_refused_and_runs_nothing(
    name: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = started(tmp_path / "run").path
    StudyRecord(path / "journal.log", "simulated", "maximize").save(replace(paused(0, 0.5), role="baseline"), STATE)
    whole = (path / name).read_bytes()
    for content in (
        pickle.dumps(Bomb()) + b"\n",
        b"[]\n",
        b"{}\n",
        b'{"op_code": 99}\n',
        b'{"op_code": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        whole.replace(b'"', b"'"),
        whole[: len(whole) // 2] + b"\x00\n" + whole[len(whole) // 2 :],
        b"\xff\n",
    ):
        (path / name).write_bytes(content)
        assert summary(path).status == "unreadable", content
        with pytest.raises(ReportError):
            read(path)
    assert not (tmp_path / "exploded").exists()


def test_a_folder_does_not_say_where_the_race_is_recorded(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure.db"
    path = started(tmp_path / "run", storage=f"sqlite:///{treasure}", study="theirs").path
    for _ in range(2):
        opened, state = reopened(path, {"budget_s": 70.0}, {}, force=False)
        with opened:
            run = _Tune(simulated(), Ledger(60.0, simulated().clock), lambda _: None, opened, state)
            run.open_central(simulated().facts(), simulated().device())
            assert run.central is None
    opened, state = reopened(path, {}, {}, force=False)
    with opened:
        report = tuned(opened, state, simulated())
    assert not treasure.exists()
    told = [warning for warning in report.warnings if "was not continued" in warning]
    assert len(told) == 1
    assert f"sqlite:///{treasure}" in told[0]
    assert "Give --storage again" in told[0]


def test_a_folder_does_not_say_which_cluster_is_joined(tmp_path: Path) -> None:
    path = started(tmp_path / "run", engine="ray", address="ray://evil:10001").path
    with pytest.raises(RunError, match=r"'ray://evil:10001'.*Give --address again, or --engine local"):
        reopened(path, {}, {}, force=True)
    opened, state = reopened(path, {"address": "auto"}, {}, force=True)  # the folder was let go
    opened.close()
    assert state.settings.address == "auto"
    started(tmp_path / "here", engine="ray")  # one that is started on this machine names none
    opened, state = reopened(tmp_path / "here", {}, {}, force=True)
    opened.close()
    assert (state.settings.engine, state.settings.address) == ("ray", None)


@pytest.mark.parametrize("name", ["trial-00001-000000016.pt", "trial-00001-000000032.pt.new", ".shared-folder"])
def test_a_checkpoint_that_is_a_link_is_refused(name: str, tmp_path: Path) -> None:
    path = started(tmp_path / "run").path
    (path / "checkpoints").mkdir()
    (tmp_path / "treasure").write_text("not a run's")
    (path / "checkpoints" / name).symlink_to(tmp_path / "treasure")
    with pytest.raises(RunError, match="is a link"):
        reopened(path, {}, {}, force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda now: now | {"scores": [[10, "high"]]}, "is int or float; found 'high'"),
        (lambda now: now | {"scores": [[10]]}, "pairs of a step and a score"),
        (lambda now: now | {"scores": [[81, 0.5]]}, "pairs of a step and a score"),
        (lambda now: now | {"state": "../../etc"}, "'state' of .* is one of running, paused"),
        (lambda now: now | {"race": now["race"] | {"spent_s": None}}, "'spent_s'"),
        (lambda now: now | {"race": now["race"] | {"charged": {"x": float("inf")}}}, "finite number"),
        (lambda now: [], "is a JSON object|is dict; found"),
    ],
)
def test_a_record_that_says_what_cannot_be_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "journal.log", "t", "maximize")
    record.save(replace(paused(0, 0.5), role="baseline"), STATE)
    now = record._writer.study.trials[0].user_attrs["now"]
    record._writer.study._storage.set_trial_user_attr(record._writer._ids[0], "now", change(now))
    with pytest.raises(ReportError, match=message):
        read_kept(tmp_path / "journal.log")


def test_numbers_that_are_not_a_runs_are_refused(tmp_path: Path) -> None:
    record = StudyRecord(tmp_path / "journal.log", "t", "maximize")
    record.save(paused(7, 0.5), STATE)
    with pytest.raises(ReportError, match="numbered from 0, the first of them the baseline"):
        record.kept()


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = StudyRecord(tmp_path / "journal.log", "t", "maximize")
    record.save(replace(paused(0, 0.5), role="baseline"), STATE)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    folder = started(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"journal\.log cannot be written: No space left on device"):
            record.save(paused(1, 0.5), STATE)
        with pytest.raises(StorageError, match=r"run\.json cannot be written: No space left on device"):
            folder.save(state_of())
    assert read_state(folder.path).settings.name == "simulated"
    again = StudyRecord(tmp_path / "journal.log", "t", "maximize").kept()
    assert again is not None
    assert len(again.trials) in (1, 2)


def test_a_report_that_has_no_room_is_told_as_a_full_disk_and_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autobatch.tuning.run._opened", lambda *_: simulated())
    spec = RunnerSpec(device="cpu")
    with RunFolder.made(tmp_path / "run", "simulated") as folder:
        folder.report.mkdir()  # nothing can be put there
        with pytest.raises(StorageError, match=r"report\.json cannot be written"):
            run_tune(folder, state_of(), spec, lambda _: None, started_s=None)
    folder.report.rmdir()
    opened, state = reopened(tmp_path / "run", {}, {}, force=False)
    with opened:
        report = run_tune(opened, state, spec, lambda _: None, started_s=None)
    assert Report.load(folder.report) == report
    assert summary(tmp_path / "run").status == "finished"


class Fading(SimRunner):
    """A device that is lost after seven rungs."""

    def advance(self, segment: TrainSegment) -> SegmentResult:
        if len(self.segments) == 7:
            raise DeviceError("GPU is lost")
        return super().advance(segment)


def test_a_run_whose_device_was_lost_says_so_and_can_go_on(tmp_path: Path) -> None:
    with RunFolder.made(tmp_path / "run", "simulated") as folder:
        folder.save(state_of())
        runner = Fading(known=sim_facts(has_test_data=True, train_size=4000))
        report = _Tune(runner, Ledger(60.0, runner.clock), lambda _: None, folder, state_of()).run()
    assert report.interrupted
    assert report.lost_device
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    earlier = {name: value for name, value in report.to_json().items() if name != "lost_device"}
    assert not Report.from_json(earlier).lost_device
    opened, state = reopened(tmp_path / "run", {}, {}, force=False)
    with opened:
        assert not tuned(opened, state, simulated(kept=runner.kept)).lost_device


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_write_waits_for_its_end(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stopped

    url = f"sqlite:///{tmp_path}/studies.db"
    central = CentralRecord(url, "t", "maximize", {})
    record = StudyRecord(tmp_path / "journal.log", "t", "maximize", central=central)
    append = JournalFileBackend.append_logs

    def interrupted(backend: Any, logs: Any) -> None:
        signal.raise_signal(number)
        append(backend, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", interrupted)
    before = signal.signal(number, stop)
    try:
        with pytest.raises(Stopped):
            record.save(replace(paused(0, 0.5), role="baseline"), STATE)
        assert signal.getsignal(number) is stop
    finally:
        signal.signal(number, before)
    kept = read_kept(tmp_path / "journal.log")
    assert kept is not None
    assert kept.trials[0] == replace(paused(0, 0.5), role="baseline")
    assert central.close(30.0) is None
    assert [trial.intermediate_values for trial in studied(url, "t").trials] == [{125: 0.5}]  # which it says it has
