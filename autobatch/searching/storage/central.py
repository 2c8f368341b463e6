"""A database beside a run's own journal, so that a team sees the run in optuna-dashboard while it goes on.

The journal on this machine's disk is what a run is resumed from; the database holds a copy for others, written by a
thread of its own. Where it goes away, the race does not wait for it: what was to be written is kept, and tried again
until the database is back. A run that ends before that says what is missing there.

What the URL says beside scheme, host and database goes to the database alone: whatever is shown, logged or kept has
been through `shown_url`, and what a driver says through `without_secrets`.
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

# Between two tries to reach a database that is away: twice as long each time, up to the second figure. Assumed: it is
# noticed within seconds that it is back, and a server that starts again is not pressed.
_PAUSE_S, _PAUSE_MOST_S = 0.25, 5.0
# A connection that is not there within this is not to be had. Assumed; it holds up nobody but the thread that writes.
_CONNECT_S = 5
# Drivers that take that limit by libpq's and MySQL's word; SQLite has no connection to wait for.
_LIMITED = {"psycopg", "psycopg2", "pymysql", "mysqldb"}


class CentralRecord:
    """The copy of one race in a database.

    Args:
        url: SQLAlchemy's, "postgresql+psycopg://user:password@host/database"; any database that Optuna can use.
        name: of the study in it; one that is there already is gone on with.
        direction: of the scores.
        attributes: of the study, for whoever looks at it.
        must_open: whether a database that cannot be reached now is an error, and not one that is away for a while.

    Raises:
        SettingError: the URL is none, its driver is not installed, or the database cannot be opened.
    """

    def __init__(
        self, url: str, name: str, direction: Direction, attributes: Mapping[str, str], *, must_open: bool = True
    ) -> None:
        check_url(url)
        self._url, self._name, self._direction, self._attributes = url, name, direction, dict(attributes)
        self.shown = shown_url(url)
        self._writer: StudyWriter | None = None
        self._storage: RDBStorage | None = None
        self._known: dict[int, Trial] = {}  # the latest of each
        self._to_write: set[int] = set()  # those that the database does not have
        self._trouble: str | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        try:
            parsed = sqlalchemy.make_url(url)
            parsed.get_dialect().import_dbapi()
        except Exception as error:  # noqa: BLE001  # a driver may raise anything, and all of it may quote the URL
            raise SettingError(
                "a central record is a database's URL whose driver is installed, such as "
                "postgresql+psycopg://user@host/database with `pip install psycopg[binary]`; found "
                f"{self.shown}: {self._told(error)}"
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
        """Have the database brought up to date with `trial`; returns at once."""
        with self._changed:
            self._known[trial.number] = trial
            self._to_write.add(trial.number)
            self._changed.notify()

    def close(self, patience_s: float) -> str | None:
        """None where the database has everything; otherwise, after so many seconds, a sentence on what is missing."""
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
                    with self._changed:  # it may have come back without the latest trials
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
        # A connection that has died meanwhile is noticed before it is used. Optuna formats the URL: braces are doubled.
        with quiet():
            self._storage = RDBStorage(
                self._url.replace("{", "{{").replace("}", "}}"),
                engine_kwargs={"pool_pre_ping": True, "connect_args": dict(self._limit)},
            )
            self._writer = StudyWriter(self._storage, self._name, self._direction)
            for name, value in self._attributes.items():
                self._writer.study.set_user_attr(name, value)

    def _drop(self, error: Exception) -> None:
        """Forget the connection: the next try begins anew, with what the database then has."""
        self._trouble = self._told(error)
        self._hang_up()

    def _hang_up(self) -> None:
        storage, self._writer, self._storage = self._storage, None, None
        if storage is not None:
            with suppress(Exception):  # it is given up, and a traceback of the thread would quote the URL
                storage.engine.dispose()

    def _told(self, error: Exception) -> str:
        """The first line of what a driver says, without what is not shown of the URL."""
        cause = error.__cause__ or error  # Optuna's own words say less than what they stand for
        # Before it is cut: a secret may go on in the next line.
        told = without_secrets(str(cause), self._url).strip() or type(cause).__name__
        return re.sub(r"^\(\S+\)\s*", "", told.splitlines()[0])
