"""A database beside a run's own journal, so that other people see the run in optuna-dashboard while it goes on.

A run is resumed from the journal on this machine's disk. The database holds a copy for others, written by its own
thread. If the database goes away, the race does not wait for it: what is still to write is kept, and tried again until
the database is back. A run that ends before that reports what is missing there.

Only the database gets the parts of the URL beside scheme, host and database. Everything that is shown, logged or kept
has been through `shown_url`, and the messages of drivers through `without_secrets`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import sqlalchemy
from optuna.storages import RDBStorage

from ...core.plan import Direction
from ...errors import SettingError
from ..schedulers.optuna_sampler import quiet
from ..trials import Trial
from .study_writer import StudyWriter
from .url import check_url, shown_url, without_secrets

# The pause between two attempts to reach a database that is away: it doubles each time, up to the second figure.
# Assumed: its return is noticed within seconds, and a server that restarts is not flooded.
_PAUSE_S, _PAUSE_MOST_S = 0.25, 5.0
# The time limit for a connection. Assumed; it holds up only the writing thread.
_CONNECT_S = 5
# Drivers that take that limit under libpq's and MySQL's name; SQLite has no connection to wait for.
_LIMITED = {"psycopg", "psycopg2", "pymysql", "mysqldb"}


class CentralRecord:
    """The copy of one race in a database.

    Args:
        url: in SQLAlchemy's form, "postgresql+psycopg://user:password@host/database"; any database that Optuna can use.
        name: of the study in it. A study of that name is continued.
        direction: whether a higher or a lower score is better.
        attributes: of the study, for people who look at it.
        must_open: whether a database that cannot be reached now is an error, rather than one that is away for a while.

    Raises:
        SettingError: the URL is malformed, its driver is not installed, or the database cannot be opened.
    """

    def __init__(
        self, url: str, name: str, direction: Direction, attributes: Mapping[str, str], *, must_open: bool = True
    ) -> None:
        check_url(url)
        self._url, self._name, self._direction, self._attributes = url, name, direction, dict(attributes)
        self.shown = shown_url(url)
        self._writer: StudyWriter | None = None
        self._storage: RDBStorage | None = None
        self._known: dict[int, Trial] = {}  # the latest state of each trial
        self._to_write: set[int] = set()  # the trials that the database lacks
        self._trouble: str | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        try:
            parsed = sqlalchemy.make_url(url)
            parsed.get_dialect().import_dbapi()
        except Exception as error:  # noqa: BLE001  # a driver may raise anything, and its message may quote the URL
            raise SettingError(
                "a central record is a database's URL whose driver is installed, such as "
                "postgresql+psycopg://user@host/database with `pip install psycopg[binary]`; found "
                f"{self.shown}: {self._error_text(error)}"
            ) from None
        self._limit = {"connect_timeout": _CONNECT_S} if parsed.get_driver_name() in _LIMITED else {}
        try:
            self._open()
        except Exception as error:  # noqa: BLE001  # as above
            self._drop(error)
            if must_open:
                raise SettingError(
                    f"the central record {self.shown} cannot be opened: {self._trouble}. Check that it runs and lets "
                    "you in, or leave --storage out: the run's own folder has everything"
                ) from None
        self._thread = threading.Thread(target=self._run, name="autobatch-central", daemon=True)
        self._thread.start()

    def note(self, trial: Trial) -> None:
        """Bring the database up to date with `trial`, in the thread; returns at once."""
        with self._changed:
            self._known[trial.number] = trial
            self._to_write.add(trial.number)
            self._changed.notify()

    def close(self, patience_s: float) -> str | None:
        """None if the database has everything; otherwise, after this many seconds, a sentence on what is missing."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(max(0.0, patience_s))
        with self._changed:
            missing = len(self._to_write)
        if not missing:
            return None
        noun = "trial" if missing == 1 else "trials"
        return (
            f"the central record {self.shown} lacks the latest of {missing} {noun} ({self._trouble or 'it is slow'}); "
            "the journal in the run's folder has everything, and optuna.copy_study brings it over"
        )

    # In the thread

    def _run(self) -> None:
        pause_s = _PAUSE_S
        while True:
            with self._changed:
                while not self._to_write and not self._is_closing:
                    self._changed.wait()
                if not self._to_write:
                    break
                number = min(self._to_write)
                trial = self._known[number]
            try:
                if self._writer is None:
                    self._open()
                    with self._changed:  # the database may be back without the latest trials
                        self._to_write.update(self._known)
                    continue
                with quiet():
                    self._writer.write(trial, {})
            except Exception as error:  # noqa: BLE001  # any error concerns the copy and not the race
                self._drop(error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                continue
            pause_s = _PAUSE_S
            with self._changed:
                if self._known[number] is trial:
                    self._to_write.discard(number)
        self._hang_up()

    def _open(self) -> None:
        # A dead connection is noticed before it is used. Optuna formats the URL, so braces are doubled.
        with quiet():
            self._storage = RDBStorage(
                self._url.replace("{", "{{").replace("}", "}}"),
                engine_kwargs={"pool_pre_ping": True, "connect_args": dict(self._limit)},
            )
            self._writer = StudyWriter(self._storage, self._name, self._direction)
            for name, value in self._attributes.items():
                self._writer.study.set_user_attr(name, value)

    def _drop(self, error: Exception) -> None:
        """Forget the connection. The next attempt starts again from what the database then has."""
        self._trouble = self._error_text(error)
        self._hang_up()

    def _hang_up(self) -> None:
        storage, self._writer, self._storage = self._storage, None, None
        if storage is not None:
            with suppress(Exception):  # the connection is lost anyway, and a traceback would quote the URL
                storage.engine.dispose()

    def _error_text(self, error: Exception) -> str:
        """The first line of a driver's message, without the hidden parts of the URL."""
        cause = error.__cause__ or error  # Optuna's own message says less than its cause
        # Before the message is cut: a secret may continue in the next line.
        text = without_secrets(str(cause), self._url).strip() or type(cause).__name__
        return re.sub(r"^\(\S+\)\s*", "", text.splitlines()[0])
