"""A central record: the same trials as the journal, whatever becomes of the database; a password that nobody sees."""

from __future__ import annotations

import io
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote

import optuna
import pytest
import sqlalchemy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from autobatch import api
from autobatch.cli.app import main
from autobatch.core.plan import Config, Plan
from autobatch.errors import SettingError
from autobatch.searching.search import StudyRecord, Trial
from autobatch.searching.storage import central
from autobatch.searching.storage.central import CentralRecord
from autobatch.searching.storage.url import HIDDEN, check_url, shown_url, shown_words, without_secrets

from ...cli.test_cli import QUICK, environment, refused
from ...cli.test_resume_cli import autobatch_cli, task, the_run
from ...helpers.postgres import PASSWORD, QUOTED, Server, programs, running
from ...helpers.ready_python import Started
from ...helpers.steady import IS_FORKED, Held
from ..test_search import race, sampled

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
    clear = not set(user + secret) & set("@/?#")
    assert shown == f"postgresql+psycopg://{HIDDEN}" + (f"@host:{HIDDEN}/db" if clear else "")
    assert shown_words(["tune", "--storage", url, f"--storage={url}"]) == [
        "tune",
        "--storage",
        shown,
        f"--storage={shown}",
    ]
    if clear:
        assert without_secrets(f'"{secret}" in "{url}"', url).endswith(f' "{shown}"')
        assert without_secrets(f"<{secret}>", url) == f"<{HIDDEN}>"
    else:
        assert secret not in without_secrets(f'could not connect to "{url}": <{secret}> is wrong', url)
    if "@" in user + secret:
        with pytest.raises(SettingError, match="is written %40") as error:
            check_url(url)
        assert secret not in str(error.value)
    else:
        check_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///studies.db", "sqlite:///studies.db"),
        ("sqlite:////home/me/old-studies/1.db", "sqlite:////home/me/old-studies/1.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://[::1]:5432/db", "postgresql://[::1]:***/db"),
        ("postgresql://me@host/db", "postgresql://***@host/db"),
        ("postgresql://me:pw@host/db?sslkey=abc&password=def", "postgresql://***@host/db?***"),
        ("postgresql://me:p@ss:w/rd@host/db", "postgresql://***"),
        ("postgresql://me@corp:secret@host/db", "postgresql://***"),
        ("postgresql://me:my secret@host/db", "postgresql://***@host/db"),
        ("postgresql://me:pw", "postgresql://***"),
        ("postgresql://me:123456/db", "postgresql://me:***/db"),
        ("me:pw@host/db", "***"),
        ("plain words", "***"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    assert shown_url(url) == shown


# A secret that no message has by chance, and no host of hexadecimal digits.
cores = st.text("0123456789uvwxyz", min_size=8, max_size=12).filter(lambda core: not core.isdigit()).map("z".__add__)
around = st.text("ab:/@?&=#;%+,. '\\\"[]{}é\n*-", max_size=8)
after_a_colon = st.builds(  # one that begins no `://`
    lambda before, odd, core, after: (core, f"{before}:{odd}{core}{after}"),
    around,
    st.sampled_from(["", "%40", "[", "?", "p"]),
    cores,
    around,
)
before_an_at = st.builds(
    lambda scheme, before, core, after, host: (core, f"{scheme}{before}{core}{after}@{host}"),
    st.sampled_from(["", "postgresql://", "sqlite:///", "//", "post gresql://"]),
    around,
    cores,
    around,
    around,
)
as_mistyped = st.builds(
    lambda shape, core: (core, shape.format(core)),
    st.sampled_from(
        [
            "postgresql+psycopg://me:{}@127.0.0.1:1/db",
            "postgresql://{}@host/db",
            "postgresql://me:first:{}@host/db",
            "postgresql://me@host:5432:{}/db",
            "postgresql://me@host/db:{}",
            "postgresql://me@host/db?password={}",
            "postgresql://me@host/db?{}",
            "postgresql://me@host/db?sslmode=require&password=p@{}",
            "postgresql://host:5432/db?password=p@{}",
            "postgresql://me@host/db;password={}",
            "postgresql://me@host/db#{}",
            "postgresql://me@host/db password={}",
            "postgresql://me/{}@host/db",
            "postgresql://me:p@ss{}@host/db",
            "postgresql:me:{}@host/db",
            "postgresql:/me:{}@host/db",
            "mysql+pymysql://me:p?{}@host/db",
            "mysql-pymysql://me:{}@host/db",
            "host=db user=me password={}",
            "me/{}@host",
            "{}",
        ]
    ),
    cores,
)
urls = st.one_of(after_a_colon, before_an_at, as_mistyped)


@given(pair=urls, name=st.sampled_from(["a.py", "postgresql://me@host/db"]))
def test_a_secret_is_not_shown_whatever_the_shape_of_the_url(pair: tuple[str, str], name: str) -> None:
    core, url = pair
    told = [shown_url(url), *shown_words(["tune", name, "--storage", url, f"--storage={url}"])]
    told.append(without_secrets(f"{url} {url!r} {unquote(url)!r} {re.split('[:/@]', url)}", url))
    with suppress(SettingError):
        check_url(url)
        try:
            told.append(without_secrets(repr(sqlalchemy.make_url(url)._asdict()), url))
        except (SQLAlchemyError, ValueError) as error:
            told.append(without_secrets(f"{error}", url))
    assert not [text for text in told if core in text]


class Loud:
    """A database whose driver quotes all that it is given."""

    def __init__(self, url: str, **settings: object) -> None:
        parts = sqlalchemy.make_url(url)._asdict()
        raise RuntimeError(f"{url} {url!r} cannot be used: {parts} {settings}\n{parts}")


def tried(storage: str | None, **_: object) -> Any:
    assert storage is not None
    CentralRecord(storage, "a race", "maximize", {"url": shown_url(storage)})


Where = Literal["flag", "flag=", "variable", "file"]


@given(pair=urls, where=st.sampled_from(get_args(Where)), debug=st.booleans())
@settings(max_examples=60)
@example(pair=("z1234567u", "postgresql://me:a:z1234567u@host/db"), where="flag", debug=True)
def test_a_secret_after_storage_is_in_no_output(pair: tuple[str, str], where: Where, debug: bool) -> None:
    """All that `tune` does until a worker would start, and a driver that quotes the URL."""
    core, url = pair
    words = {"flag": ["--storage", url], "flag=": [f"--storage={url}"]}.get(where, [])
    out, err = io.StringIO(), io.StringIO()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder = Path(name)
        (folder / "model.py").write_text("")
        if where == "file":
            (folder / "pyproject.toml").write_text(f"[tool.autobatch]\nstorage = {json.dumps(url)}\n")
        if where == "variable":
            patch.setenv("AUTOBATCH_STORAGE", url)
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["autobatch", "tune", "model.py", *words, *["--debug"] * debug])
        patch.setattr(central, "RDBStorage", Loud)
        patch.setattr(api, "run_tune", lambda *args, storage, **more: tried(storage))
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2, err.getvalue()
        written = [path.read_text() for path in folder.glob(".autobatch/**/*") if path.is_file()]
    assert not [text for text in (out.getvalue(), err.getvalue(), *written) if core in text]


@pytest.mark.parametrize(
    "words",
    [
        ["tune", "model.py", "--storage", "postgresql://me:first", "hunter22@host/db"],  # a space in it, unquoted
        ["tune", "--storage", "postgresql://me:1234", "hunter22@host/db"],
        ["tune", "model.py", "--storage=", "postgresql://me:hunter22@host/db"],
        ["tune", "model.py", "\N{EM DASH}storage", "postgresql://me:hunter22@host/db"],
        ["tune", "--storage=", "postgresql://me:hunter22@host/db"],
    ],
)
def test_a_url_that_became_several_words_is_not_quoted(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["autobatch", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert "hunter22" not in told
    assert "one word" in told or words[2] == "\N{EM DASH}storage"


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


@pytest.mark.parametrize("url", ["nonsense", "me:hidden@host/db", "postgresql:me:hidden@host/db"])
def test_what_is_no_url_is_a_wrong_setting(url: str) -> None:
    with pytest.raises(SettingError, match="has no scheme") as error:
        CentralRecord(url, "a race", "maximize", {})
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("url", ["nosuch://me:hidden@host/db", "postgresql+nosuch://me:hidden@host/db"])
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


@pytest.mark.usefixtures("ready_python", "steady_steps")
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


@pytest.mark.usefixtures("ready_python", "steady_steps")
@pytest.mark.skipif(not IS_FORKED, reason="trials are held")
def test_a_database_that_goes_away_in_mid_run_loses_nothing(server: Server, task: Path, tmp_path: Path) -> None:
    """It is stopped in the first trial after the baseline, and started again when another one has been trained."""
    given = [*QUICK, "--storage", server.url, "--json"]
    held = Held(tmp_path, (1, 3))
    command = [sys.executable, "-m", "autobatch", "tune", "model.py", *given]
    stopped = started = False
    with open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        process = Started(command, cwd=tmp_path, env=environment(**held.environment), stdout=out, stderr=err)
        try:
            while process.poll() is None and not started:
                if not stopped and held.begun(1).exists():
                    server.stop()
                    stopped = True
                    held.let_go(1)
                elif stopped and held.begun(3).exists():
                    assert re.search("search: trial 2: [^:\n]*: ", (tmp_path / "err").read_text())
                    server.start()
                    started = True
                    held.let_go(3)
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
