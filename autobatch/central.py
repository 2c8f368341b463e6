"""A database beside a run's own journal, so that a team sees the run in optuna-dashboard while it goes on.

The journal on this machine's disk is what a run is resumed from; the database holds a copy for others, written by a
thread of its own. Where it goes away, the race does not wait for it: what was to be written is kept, and tried again
until the database is back. A run that ends before that says what is missing there.

A password in the URL goes to the database alone: whatever is shown, logged or kept has been through `shown_url`.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.exc import SQLAlchemyError

from .errors import SettingError, StorageError
from .plan import Direction
from .storage_url import shown_url, without_secrets
from .study import quiet
from .study_writer import StudyWriter
from .trials import Trial

# Between two tries to reach a database that is away: twice as long each time, up to the second figure. Assumed: it is
# noticed within seconds that it is back, and a server that starts again is not pressed.
_PAUSE_S, _PAUSE_MOST_S = 0.25, 5.0
# A connection that is not there within this is not to be had. Assumed; it holds up nobody but the thread that writes.
_CONNECT_S = 5
# What a driver calls that limit: libpq's and MySQL's word. SQLite has no connection to wait for.
_LIMITS = {"postgresql": "connect_timeout", "mysql": "connect_timeout", "mariadb": "connect_timeout"}
_FAULTS = (SQLAlchemyError, StorageInternalError, OSError)


class CentralRecord:
    """The copy of one race in a database.

    Args:
        url: SQLAlchemy's, "postgresql+psycopg://user:password@host/database"; any database that Optuna can use.
        name: of the study in it; one that is there already is gone on with.
        direction: of the scores.
        attributes: of the study, for whoever looks at it.
        must_open: whether a database that cannot be reached now is an error, and not one that is away for a while.

    Raises:
        SettingError: the URL is none, or its driver is not installed.
        StorageError: the database cannot be opened.
    """

    def __init__(
        self, url: str, name: str, direction: Direction, attributes: Mapping[str, str], *, must_open: bool = True
    ) -> None:
        self._url, self._name, self._direction, self._attributes = url, name, direction, dict(attributes)
        self.shown = shown_url(url)
        self._writer: StudyWriter | None = None
        self._storage: RDBStorage | None = None
        self._to_write: dict[int, Trial] = {}  # the latest of each trial that the database does not have
        self._trouble: str | None = None
        self._is_closing = False
        self._changed = threading.Condition()
        try:
            self._open()
        except _FAULTS as error:
            self._drop(error)
            if must_open:
                raise StorageError(
                    f"the central record {self.shown} cannot be opened: {self._trouble}. Check that it runs and lets "
                    "you in, or leave --storage out: the run's own folder has everything"
                ) from None
        self._thread = threading.Thread(target=self._run, name="autobatch-central", daemon=True)
        self._thread.start()

    def note(self, trial: Trial) -> None:
        """Have the database brought up to date with `trial`; returns at once."""
        with self._changed:
            self._to_write[trial.number] = trial
            self._changed.notify()

    def close(self, patience_s: float) -> str | None:
        """None where the database has everything; else, after so many seconds, a sentence on what is missing."""
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
                trial = self._to_write[number]
            try:
                if self._writer is None:
                    self._open()
                assert self._writer is not None
                with quiet():
                    self._writer.write(trial, {})
            except _FAULTS as error:
                self._drop(error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                continue
            pause_s = _PAUSE_S
            with self._changed:
                if self._to_write.get(number) is trial:
                    del self._to_write[number]
        if self._storage is not None:
            self._storage.engine.dispose()

    def _open(self) -> None:
        try:
            parsed = sqlalchemy.make_url(self._url)
            dialect = parsed.get_backend_name()
            limit = {_LIMITS[dialect]: _CONNECT_S} if dialect in _LIMITS else {}
            # A connection that has died meanwhile is noticed before it is used.
            with quiet():
                self._storage = RDBStorage(self._url, engine_kwargs={"pool_pre_ping": True, "connect_args": limit})
                self._writer = StudyWriter(self._storage, self._name, self._direction)
                for name, value in self._attributes.items():
                    self._writer.study.set_user_attr(name, value)
        except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError, ImportError, ValueError) as error:
            raise SettingError(
                f"a central record is a database's URL whose driver is installed, such as "
                f"postgresql+psycopg://user@host/database with `pip install psycopg[binary]`; found {self.shown}: "
                f"{without_secrets(str(error), self._url)}"
            ) from None

    def _drop(self, error: Exception) -> None:
        """Forget the connection: the next try begins anew, with what the database then has."""
        first = str(error).strip().splitlines() or [type(error).__name__]
        self._trouble = without_secrets(re.sub(r"^\(\S+\)\s*", "", first[0]), self._url)
        self._writer = None
        if self._storage is not None:
            self._storage.engine.dispose()
            self._storage = None
