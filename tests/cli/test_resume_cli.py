"""`tune --resume`, `runs` and `clean` as a user types them, with real processes and real faults."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import autobatch
from autobatch.cli.app import cli
from autobatch.cli.exits import exit_code
from autobatch.engines import remote
from autobatch.errors import DeviceLost, SettingError
from autobatch.runs.run_folder import read_state
from autobatch.searching import race
from autobatch.searching.budget.account import SegmentInFlight
from autobatch.searching.storage.journal import read_kept
from autobatch.searching.trials import Trial

from ..helpers.processes import PATIENCE_S, on_two_cores, wait_until_gone, wait_until_unmarked
from ..helpers.ready_python import Started, run
from ..helpers.reports import example
from ..helpers.steady import train_time
from .test_cli import MINIMAL, QUICK, ROOT, environment, interrupt_race, refused

pytestmark = pytest.mark.usefixtures("ready_python", "steady_steps")

IN_CODE: dict[str, Any] = {"budget": "600s", "train_time": train_time(40), "device": "cpu"}  # QUICK for `tune`


def autobatch_cli(*arguments: object, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "autobatch", *map(str, arguments)]
    return run(command, cwd=cwd, env=environment(**changes), timeout=1800)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task file of this test's own, in its folder."""
    return Path(shutil.copy(MINIMAL, tmp_path / "model.py"))


def the_run(folder: Path) -> Path:
    (path,) = folder.glob(".autobatch/model/*")
    return path


def test_after_ctrl_c_the_command_that_is_told_goes_on(task: Path, tmp_path: Path) -> None:
    code, stdout, stderr = interrupt_race(tmp_path, 2, "tune", "model.py", *QUICK, "--json")
    assert code == 130, stderr
    assert json.loads(stdout)["interrupted"]
    assert stderr.rstrip().endswith("autobatch: interrupted. Continue with: autobatch tune model.py --resume")
    listed = autobatch_cli("runs", "--json", cwd=tmp_path)
    (found,) = json.loads(listed.stdout)
    assert (found["status"], found["task"], found["trials"]) == ("interrupted", "model", 3)
    assert 0 < found["spent_s"] < found["budget_s"] == 600.0

    kept = read_kept(the_run(tmp_path) / "journal.log")
    assert kept is not None
    done = {(trial.number, step): score for trial in kept.trials for step, score in trial.scores}
    resumed = autobatch_cli("tune", "--resume", "model.py", "--json", "--keep-checkpoints", 1, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "start: resumed, with " in resumed.stderr
    assert not re.search("(memory|profile|range test): ", resumed.stderr)
    report = json.loads(resumed.stdout)
    assert not report["interrupted"]
    scores = {(trial["number"], step): score for trial in report["trials"] for step, score in trial["scores"]}
    assert done.items() <= scores.items()
    run_path = the_run(tmp_path)
    assert json.loads((run_path / "report.json").read_text()) == report
    (checkpoint,) = (run_path / "checkpoints").iterdir()
    assert torch.load(checkpoint, weights_only=True)["model"]["0.weight"].shape == (16, 8)

    assert "leave --resume out to start one" in refused(autobatch_cli("tune", "model.py", "--resume", cwd=tmp_path))
    again = autobatch_cli("tune", "model.py", "--resume", run_path, cwd=tmp_path)
    assert "is finished, and its answer in" in refused(again)
    table = autobatch_cli("runs", cwd=tmp_path).stdout
    assert re.search(r"\.autobatch/model/\S+ +finished", table)
    assert all(len(line) <= 80 for line in table.splitlines())
    cleaned = autobatch_cli("clean", "--finished", cwd=tmp_path)
    assert (cleaned.returncode, cleaned.stdout) == (0, f"deleted {run_path.relative_to(tmp_path)}\n")
    assert not list(tmp_path.glob(".autobatch/*"))
    assert autobatch_cli("clean", "--all", cwd=tmp_path).stdout == "there is nothing to delete\n"


def test_a_run_that_was_terminated_in_mid_race_goes_on(task: Path, tmp_path: Path) -> None:
    """As a cluster ends its jobs, and a system its services."""
    task.write_text(f"{task.read_text()}\n{FAULTY.replace('FAULT', HELD)}")
    command = [sys.executable, "-m", "autobatch", "tune", "model.py", *QUICK, "--json"]
    with open(tmp_path / "stdout", "w") as out, open(tmp_path / "stderr", "w") as err:
        process = Started(command, cwd=tmp_path, env=environment(MARK="terminated-run"), stdout=out, stderr=err)
        while not (tmp_path / "held").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)  # while a rung is sure to be under way
        code = process.wait(timeout=PATIENCE_S)
    stdout, stderr = (tmp_path / "stdout").read_text(), (tmp_path / "stderr").read_text()
    assert code == 130, stderr
    stopped = json.loads(stdout)
    assert stopped["interrupted"]
    assert stderr.rstrip().endswith("autobatch: interrupted. Continue with: autobatch tune model.py --resume")
    assert wait_until_unmarked("terminated-run")
    kept = read_kept(the_run(tmp_path) / "journal.log")
    assert kept is not None
    done = {(trial.number, step): score for trial in kept.trials for step, score in trial.scores}
    assert done
    assert any(trial.state == "running" for trial in kept.trials)  # it was in a rung
    resumed = autobatch_cli("tune", "--resume", "model.py", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert not report["interrupted"]
    assert not any("stopped by the user" in reason for reason in report["why"])
    scores = {(trial["number"], step): score for trial in report["trials"] for step, score in trial["scores"]}
    assert done.items() <= scores.items()
    assert len(scores) > len(done)


def begun(tmp_path: Path, **changes: str) -> Path:
    """The folder of a run that was killed in its race."""
    code, _, stderr = interrupt_race(tmp_path, 1, "tune", "model.py", *QUICK, number=signal.SIGKILL, **changes)
    assert code == -signal.SIGKILL, stderr
    return the_run(tmp_path)


@on_two_cores
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_race_of_two_workers_goes_on_too(task: Path, tmp_path: Path, number: int) -> None:
    code, _, stderr = interrupt_race(tmp_path, 2, "tune", "model.py", *QUICK, "--workers", "2", "--json", number=number)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL), stderr
    kept = read_kept(the_run(tmp_path) / "journal.log")
    assert kept is not None
    done = {(trial.number, step): score for trial in kept.trials for step, score in trial.scores}
    resumed = autobatch_cli("tune", "--resume", "model.py", "--json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert "2 workers each trained a trial at the same time" in report["why"]
    scores = {(trial["number"], step): score for trial in report["trials"] for step, score in trial["scores"]}
    assert done.items() <= scores.items()


def test_what_has_changed_is_said_and_refused(task: Path, tmp_path: Path) -> None:
    path = begun(tmp_path)
    text = task.read_text()
    task.write_text(text.replace("192", "384"))
    message = refused(autobatch_cli("tune", "model.py", "--resume", "--seed", 3, cwd=tmp_path))
    assert "was started under other conditions:\n  model.py has changed\n  seed: 0 then, 3 now\n" in message
    assert message.endswith("Start a new run, or go on all the same with --force\n")
    forced = autobatch_cli("tune", "model.py", "--resume", "--run-dir", path, "-q", "--force", cwd=tmp_path)
    assert forced.returncode == 0, forced.stderr
    report = json.loads((path / "report.json").read_text())
    assert "the run was resumed under other conditions: model.py has changed" in report["warnings"]


def test_a_second_coordinator_is_refused_with_the_firsts_number(task: Path, tmp_path: Path) -> None:
    begun(tmp_path)
    with open(tmp_path / "first", "w") as first:
        process = Started(
            [sys.executable, "-m", "autobatch", "tune", "model.py", "--resume"],
            cwd=tmp_path,
            env=environment(MARK="first-coordinator"),
            stdout=first,
            stderr=first,
        )
        while "resumed, with" not in (tmp_path / "first").read_text():
            assert process.poll() is None
            time.sleep(0.05)
        message = refused(autobatch_cli("tune", "model.py", "--resume", cwd=tmp_path))
        cleaning = refused_in_part(autobatch_cli("clean", the_run(tmp_path), cwd=tmp_path))
        everything = autobatch_cli("clean", "--all", cwd=tmp_path)
        assert process.wait() == 0, (tmp_path / "first").read_text()
    for said in (message, cleaning):
        assert re.search(rf"is under way in process {process.pid} on \S+: two cannot share a folder", said)
    assert everything.stdout == "there is nothing to delete\n"
    assert (the_run(tmp_path) / "report.json").exists()


def refused_in_part(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune", "--resume"], "Missing argument 'MODEL.py'"),
        (["tune", "model.py", "--resume"], "there is no unfinished run of model in .autobatch/model"),
        (["tune", "model.py", "--resume", "nowhere"], "nowhere is not the folder of a run: there is no run.json in it"),
        (["tune", "model.py", "--keep-checkpoints", "-1"], "-1 is not in the range"),
        (["tune", "model.py", "--max-trials", "0"], "0 is not in the range"),
        (["tune", "model.py", "--force"], "force is only for resuming a run"),
        (
            ["tune", "model.py", "--resume", "a", "--run-dir", "b"],
            "resume names the run's folder (a), and so does run_dir",
        ),
        (["clean"], "name the runs to delete, or give --finished or --all"),
        (["clean", "--all", "--finished"], "name the runs to delete, or give --finished or --all"),
        (["clean", "."], ". is not the folder of a run"),
    ],
)
def test_what_cannot_be_resumed_or_deleted_is_refused(
    arguments: list[str], message: str, task: Path, tmp_path: Path
) -> None:
    assert message in refused(autobatch_cli(*arguments, cwd=tmp_path))


@pytest.mark.parametrize("way", ["typed", "exported", "in pyproject.toml"])
def test_where_data_goes_is_given_again_in_any_way(
    way: str, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside --resume other settings only count where they are typed."""

    def tune(task: Path, **settings: object) -> NoReturn:
        raise SettingError(json.dumps({name: settings.get(name) for name in ("storage", "address", "seed")}))

    given = {"storage": "sqlite:///team.db", "address": "auto", "seed": "7"}
    arguments = ["tune", "model.py", "--resume"]
    if way == "typed":
        arguments += [word for name, value in given.items() for word in (f"--{name}", value)]
    elif way == "exported":
        for name, value in given.items():
            monkeypatch.setenv(f"AUTOBATCH_{name.upper()}", value)
    else:
        lines = [f"{name} = {value!r}" for name, value in given.items()]
        (tmp_path / "pyproject.toml").write_text("\n".join(["[tool.autobatch]", *lines]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autobatch.api.tune", tune)
    with pytest.raises(SettingError) as told:
        cli.main(arguments, standalone_mode=False)
    seed = 7 if way == "typed" else None
    assert json.loads(str(told.value)) == {"storage": "sqlite:///team.db", "address": "auto", "seed": seed}


@pytest.mark.parametrize(
    ("lost_device", "code", "words"),
    [
        (False, 130, "autobatch: interrupted. Continue with: autobatch tune model.py --resume"),
        (
            True,
            1,
            "autobatch: ended early because no device was left to train on. The results are kept. Continue with: ",
        ),
    ],
)
def test_why_a_run_ended_early_is_told_by_words_and_code(
    lost_device: bool,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = replace(example(), interrupted=True, lost_device=lost_device)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autobatch.api.tune", lambda *_, **__: report)
    with pytest.raises(SystemExit) as end:
        cli.main(["tune", "model.py", "--json"], standalone_mode=False)
    assert end.value.code == code
    told = capsys.readouterr()
    assert words in told.err
    assert "autobatch tune model.py --resume" in told.err
    assert json.loads(told.out)["lost_device"] == lost_device


def test_without_a_device_from_the_start_it_is_told_how_to_go_on_once_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*_: object, **__: object) -> NoReturn:
        raise DeviceLost("no device was left")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("autobatch.api.tune", tune)
    with pytest.raises(DeviceLost) as told:
        cli.main(["tune", "model.py"], standalone_mode=False)
    assert str(told.value) == ("no device was left. Once there is one, continue with: autobatch tune model.py --resume")
    assert exit_code(told.value) == 1


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
@pytest.mark.parametrize("filled", ["while it runs", "before the checkpoints fit"])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(filled: str, task: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, "4m"):
        size = (4 << 20) - (110 << 10 if filled == "before the checkpoints fit" else 40 << 10)
        ballast = disk / "ballast"
        if filled == "before the checkpoints fit":  # 1024 hidden units and their moments: 150 kB
            task.write_text(task.read_text().replace("16", "1024"))
            ballast.write_bytes(bytes(size))
        command = [sys.executable, "-m", "autobatch", "tune", "model.py", *QUICK, "--run-dir", str(disk / "run")]
        with open(tmp_path / "err", "w") as err:
            process = Started(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=err)
            while "search: trial 0" not in (tmp_path / "err").read_text():
                assert process.poll() is None, (tmp_path / "err").read_text()
                time.sleep(0.02)
            if not ballast.exists():
                with contextlib.suppress(OSError), open(ballast, "wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            code = process.wait()
        told = (tmp_path / "err").read_text().splitlines()[-1]
        assert code == 1, told
        assert re.search(r"cannot be written: No space left on device\. The results are kept: make room, then", told)
        assert told.endswith(f"continue with: autobatch tune model.py --resume {disk / 'run'}")
        ballast.unlink()
        resumed = autobatch_cli("tune", "model.py", "--resume", disk / "run", "--json", "-q", cwd=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        assert len(json.loads(resumed.stdout)["trials"]) >= 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mounts a tmpfs")
def test_a_read_only_disk_is_refused_at_the_start(task: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        result = autobatch_cli("tune", "model.py", "--run-dir", tmp_path / "disk" / "run", cwd=tmp_path)
    assert re.search(r"the run's folder .* cannot be made: Read-only file system", refused(result))


# What the loss of a rate above 2e-3 does; the probes, the timing and the range test begin below it.
FAULTY = """
import os, time

baseline = {"batch_size": 16, "lr": 1e-3}

def optimizer(model, lr):
    model.lr = lr
    return torch.optim.AdamW(model.parameters(), lr)

def loss(model, batch):
    if model.training and getattr(model, "lr", 0) > 2e-3:
        with open("faults", "a") as file:
            file.write(f"{model.lr}\\n")
        FAULT
    return nn.functional.cross_entropy(model(batch[0]), batch[1])
"""


# The first such step waits until it is ended with its process.
HELD = """if not os.path.exists("held"):
            open("held", "x").close()
            time.sleep(600)"""


def only_cut(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[float], bool], *, after_s: float) -> None:
    """Rungs of rates that hang are ended after `after_s`; all others may take what a busy machine takes for them."""
    submit = race.Race._submit

    def submit_with_limit(self: race.Race, trial: Trial, in_flight: SegmentInFlight) -> None:
        monkeypatch.setattr(race, "HANG_LEAST_S", after_s if hangs(trial.config.lr) else 600.0)
        submit(self, trial, in_flight)

    monkeypatch.setattr(race.Race, "_submit", submit_with_limit)


@pytest.mark.parametrize(
    ("fault", "outcome", "attempts"), [("while True: pass", "timeout", 1), ("os._exit(7)", "crashed", 3)]
)
def test_a_configuration_that_hangs_or_dies_is_counted_as_failed_and_never_tried_again(
    fault: str, outcome: str, attempts: int, task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # What dies does so when it has begun, which takes a busy machine longer than a second.
    only_cut(monkeypatch, lambda lr: lr > 2e-3, after_s=1.0 if outcome == "timeout" else 600.0)
    task.write_text(f"{task.read_text()}\n{FAULTY.replace('FAULT', fault)}")
    report = autobatch.tune(task, **IN_CODE, max_trials=6)
    failed = [trial for trial in report.trials if trial["state"] == "failed"]
    assert failed
    assert {trial["outcome"] for trial in failed} == {outcome}
    assert all(trial["lr"] > 2e-3 for trial in failed)
    assert {trial["state"] for trial in report.trials} >= {"complete", "failed"}
    assert len({trial["lr"] for trial in failed}) == len(failed)  # none of them was tried under another number
    tried = (tmp_path / "faults").read_text().split()
    assert {lr: tried.count(lr) for lr in tried} == {str(trial["lr"]): attempts for trial in failed}
    if outcome == "timeout":
        assert all(trial["seconds"] >= 1.0 for trial in failed)
    assert read_state(the_run(tmp_path)).is_finished


# A loader whose worker process waits for ever, as for a file system that has gone, at the first rate of a trial's own.
STUCK = """
import os, time

baseline = {"batch_size": 16, "lr": 1e-3}
loader = {"num_workers": 1}
rate = 0.0

def optimizer(model, lr):
    global rate
    rate = lr
    return torch.optim.AdamW(model.parameters(), lr)

class Data(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        if rate > 1.2e-3 and torch.utils.data.get_worker_info() is not None:
            with open("stuck", "a+") as file:
                file.seek(0)
                is_mine = file.read().split()[:1] in ([], [str(rate)])
                if is_mine:
                    file.write(f"{rate} {os.getpid()}\\n")
            if is_mine:
                time.sleep(600)
        return self.data[index]

_plain = train_data

def train_data():
    return Data(_plain())
"""


def test_a_loader_that_is_stuck_is_cut_and_the_search_goes_on(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # As long as a busy machine may want until the worker of the loader is at work.
    only_cut(monkeypatch, lambda lr: lr > 1.2e-3 and not (tmp_path / "stuck").exists(), after_s=10.0)
    monkeypatch.setattr(remote, "GRACE_S", 0.2)
    task.write_text(f"{task.read_text()}\n{STUCK}")
    report = autobatch.tune(task, **IN_CODE, max_trials=4)
    ((rate, loader),) = [line.split() for line in (tmp_path / "stuck").read_text().splitlines()]  # it was tried once
    (stuck,) = [trial for trial in report.trials if trial["outcome"] == "timeout"]
    assert (stuck["state"], stuck["lr"], stuck["scores"]) == ("failed", float(rate), [])
    assert report.trials[0]["state"] == "complete"
    assert any(trial["scores"] for trial in report.trials[stuck["number"] + 1 :])
    assert wait_until_gone(int(loader))
    assert read_state(the_run(tmp_path)).is_finished


def test_a_task_made_in_code_is_resumed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "tests" / "task_files")
    made = autobatch.load_task(MINIMAL)
    in_code = autobatch.Task(name="code", model=made.model, train_data=made.train_data, val_data=made.val_data)

    def stop(progress: Any) -> None:
        if progress.key == "trial 1":
            raise KeyboardInterrupt

    report = autobatch.tune(in_code, **IN_CODE, max_trials=3, on_progress=stop)
    assert report.interrupted
    report = autobatch.tune(in_code, resume=True)
    assert not report.interrupted
    assert len(report.trials) >= 3
    assert report.budget_s == 600.0


def test_no_process_is_left_after_a_kill(task: Path, tmp_path: Path) -> None:
    begun(tmp_path, MARK="resume-left-behind")
    assert wait_until_unmarked("resume-left-behind")
    assert os.listdir(tmp_path / ".autobatch") == ["model"]
