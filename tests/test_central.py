"""A central record: the same trials as the journal, whatever becomes of the database; a password that nobody sees."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from autobatch.errors import SettingError
from autobatch.plan import Config, Plan
from autobatch.searching.central import CentralRecord
from autobatch.searching.search import StudyRecord, Trial
from autobatch.searching.storage_url import HIDDEN, check_url, shown_url, without_secrets

from .postgres import PASSWORD, QUOTED, Server, programs, running
from .ready_python import Started
from .test_cli import environment, refused
from .test_resume_cli import QUICK, autobatch_cli, task, the_run
from .test_search import race, sampled

__all__ = ["task"]  # a fixture


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg")
    if programs() is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    with running() as one:
        yield one


@dataclass(frozen=True)
class Seen:
    """What a dashboard shows of a study."""

    trials: list[FrozenTrial]
    user_attrs: dict[str, Any]
    metric_names: list[str] | None

    def told(self) -> list[tuple[Any, ...]]:
        return [
            (t.state, t.params, t.intermediate_values, t.value, {k: v for k, v in t.user_attrs.items() if k != "now"})
            for t in self.trials
        ]


def seen(storage: optuna.storages.BaseStorage, name: str) -> Seen:
    study = optuna.load_study(study_name=name, storage=storage)
    return Seen(study.get_trials(), study.user_attrs, study.metric_names)


@contextmanager
def opened(url: str) -> Iterator[optuna.storages.RDBStorage]:
    storage = optuna.storages.RDBStorage(url)
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def studied(url: str, name: str) -> Seen:
    with opened(url) as storage:
        return seen(storage, name)


# What is shown

users = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"], exclude_characters=":/"), max_size=5)
secrets = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S", "Zs"]), min_size=6, max_size=20)


@given(user=users, secret=secrets)
def test_no_password_is_ever_shown(user: str, secret: str) -> None:
    url = f"postgresql+psycopg://{user}:{secret}@host:5432/db"
    shown = shown_url(url)
    assert shown == f"postgresql+psycopg://{user}:{HIDDEN}@host:5432/db"
    assert shown_url(shown) == shown
    assert shown_url(f"--storage={url}") == f"--storage={shown}"
    assert without_secrets(f'could not connect to "{url}"', url) == f'could not connect to "{shown}"'
    assert without_secrets(f"<{secret}> is wrong", url) == f"<{HIDDEN}> is wrong"
    if "@" in secret:
        with pytest.raises(SettingError, match="is written %40") as error:
            check_url(url)
        assert secret not in str(error.value)
    else:
        check_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///studies.db", "sqlite:///studies.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:pw@host/db?sslkey=abc&password=def", "postgresql://me:***@host/db?***"),
        ("postgresql://me:p@ss:w/rd@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@corp:secret@host/db", "postgresql://me@corp:***@host/db"),
        ("postgresql://me:my secret@host/db", "postgresql://me:***@host/db"),
        ("plain words", "plain words"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert shown_url(url) == shown


# What is written


def test_it_holds_what_the_journal_holds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    central = CentralRecord(url, "a race", "maximize", {"device": "a formula"})
    record = StudyRecord(tmp_path / "journal", "a race", "maximize", central=central)
    race(record=record, **sampled())
    assert central.close(30.0) is None
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal")))
    study = studied(url, "a race")
    assert study.told() == seen(journal, "a race").told()
    assert study.user_attrs["device"] == "a formula"
    assert study.metric_names == ["score"]


def trial(number: int, state: Any = "running") -> Trial:
    return Trial(
        number=number,
        config=Config(plan=Plan(batch_size=8), lr=1e-3),
        seed=number,
        total_steps=16,
        role="search",
        origin="made up",
        state=state,
        scores=((2, 0.5),) if state == "paused" else (),
    )


def test_one_that_is_gone_on_with_has_no_trial_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    for state in ("running", "paused", "paused"):
        central = CentralRecord(url, "a race", "minimize", {})
        central.note(trial(0, state))
        assert central.close(30.0) is None
    (only,) = studied(url, "a race").trials
    assert only.intermediate_values == {125: 0.5}


def test_a_database_that_is_not_there_is_told_without_the_password() -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql+psycopg://me:{QUOTED}@127.0.0.1:1/db"
    with pytest.raises(SettingError) as error:
        CentralRecord(url, "a race", "maximize", {})
    told = str(error.value)
    assert told.startswith(f"the central record {shown_url(url)} cannot be opened: ")
    assert "refused" in told
    assert QUOTED not in told
    assert PASSWORD not in told


@pytest.mark.parametrize("url", ["nonsense", "nosuch://me:hidden@host/db", "postgresql+nosuch://me:hidden@host/db"])
def test_what_is_no_database_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingError, match="a central record is a database's URL whose driver is installed") as error:
        CentralRecord(url, "a race", "maximize", {})
    assert "hidden" not in str(error.value)


def test_a_database_that_goes_away_for_a_while_loses_nothing(server: Server) -> None:
    central = CentralRecord(server.url, "an outage", "maximize", {})
    for number in range(3):
        central.note(trial(number))
    deadline = time.monotonic() + 60
    while len(studied(server.url, "an outage").trials) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    server.stop()
    try:
        for number in range(6):
            central.note(trial(number, "paused"))  # nobody waits for it
        time.sleep(1.5)
    finally:
        server.start()
    central.note(trial(2, "dropped"))
    assert central.close(60.0) is None
    found = studied(server.url, "an outage").trials
    assert [one.user_attrs["trial"] for one in found] == [*range(6)]
    assert [one.intermediate_values for one in found[:2]] == [{125: 0.5}] * 2
    assert found[2].state == TrialState.PRUNED


def test_a_trial_that_was_added_twice_counts_once(tmp_path: Path) -> None:
    """As after a commit whose answer was lost: Optuna tries again by itself."""
    url = f"sqlite:///{tmp_path}/studies.db"
    central = CentralRecord(url, "a race", "maximize", {})
    central.note(trial(0))
    assert central.close(30.0) is None
    with opened(url) as storage:
        study = optuna.load_study(study_name="a race", storage=storage)
        study.add_trial(study.get_trials()[0])
    central = CentralRecord(url, "a race", "maximize", {})
    central.note(trial(0, "paused"))
    assert central.close(30.0) is None
    assert [one.state for one in studied(url, "a race").trials] == [TrialState.RUNNING, TrialState.FAIL]
    assert studied(url, "a race").trials[0].intermediate_values == {125: 0.5}


def test_a_database_that_comes_back_without_its_latest_gets_it_again(server: Server) -> None:
    central = CentralRecord(server.url, "a backup", "maximize", {})
    central.note(trial(0))
    deadline = time.monotonic() + 60
    while not studied(server.url, "a backup").trials and time.monotonic() < deadline:
        time.sleep(0.1)
    with opened(server.url) as storage:
        optuna.delete_study(study_name="a backup", storage=storage)
    central.note(trial(1))
    assert central.close(60.0) is None
    assert [one.user_attrs["trial"] for one in studied(server.url, "a backup").trials] == [0, 1]


def test_one_that_stays_away_is_told_what_it_lacks(server: Server) -> None:
    central = CentralRecord(server.url, "a loss", "maximize", {})
    server.stop()
    try:
        central.note(trial(0))
        central.note(trial(1))
        missing = central.close(1.0)
    finally:
        server.start()
    assert missing is not None
    assert missing.startswith(f"the central record {shown_url(server.url)} lacks the latest of 2 trials (")
    assert PASSWORD not in missing
    assert QUOTED not in missing


# As a user types it


@pytest.mark.usefixtures("ready_python")
def test_a_team_sees_the_run_and_nobody_the_password(server: Server, task: Path, tmp_path: Path) -> None:
    done = autobatch_cli("tune", "model.py", *QUICK, "--storage", server.url, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    study = studied(server.url, json.loads((the_run(tmp_path) / "run.json").read_text())["settings"]["study"])
    assert len(study.trials) == len(report["trials"])
    assert all(one.state.is_finished() for one in study.trials)
    assert f"also recorded in {shown_url(server.url)}" in done.stderr
    assert HIDDEN in report["command"]
    written = [path.read_bytes() for path in the_run(tmp_path).rglob("*") if path.is_file()]
    for text in (done.stdout.encode(), done.stderr.encode(), *written):
        assert PASSWORD.encode() not in text
        assert QUOTED.encode() not in text


@pytest.mark.usefixtures("ready_python")
def test_a_database_that_goes_away_in_mid_run_loses_nothing(server: Server, task: Path, tmp_path: Path) -> None:
    """It is stopped in the first trial after the baseline, and started again when another one has ended."""
    given = [*QUICK, "--max-trials", "7", "--storage", server.url, "--json"]
    command = [sys.executable, "-m", "autobatch", "tune", "model.py", *given]
    stopped = started = False
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        process = Started(command, cwd=tmp_path, env=environment(), stdout=out, stderr=err)
        try:
            while process.poll() is None and not started:
                said = (tmp_path / "err").read_text()
                if not stopped and "search: trial 1" in said:
                    server.stop()
                    stopped = True
                elif stopped and re.search("search: trial 2: [^:\n]*: ", said):
                    server.start()
                    started = True
                time.sleep(0.02)
            code = process.wait(timeout=120)
        finally:
            process.kill()
            if stopped and not started:
                server.start()
    assert code == 0, (tmp_path / "err").read_text()
    assert started
    report = json.loads((tmp_path / "out").read_text())
    assert not any("central record" in warning for warning in report["warnings"])
    path = the_run(tmp_path)
    there = studied(server.url, json.loads((path / "run.json").read_text())["settings"]["study"])
    storage = optuna.storages.journal.JournalFileBackend(str(path / "journal.log"))
    here = seen(optuna.storages.JournalStorage(storage), "model")
    assert len(here.trials) == len(report["trials"])
    assert [one for one in here.told() if one not in there.told()] == []


@pytest.mark.usefixtures("ready_python")
def test_a_wrong_password_is_told_before_the_work(server: Server, task: Path, tmp_path: Path) -> None:
    url = server.url.replace(QUOTED, "guessed")
    message = refused(autobatch_cli("tune", "model.py", *QUICK, "--storage", url, cwd=tmp_path))
    assert "cannot be opened" in message
    assert "password authentication failed" in message
    assert "guessed" not in message
