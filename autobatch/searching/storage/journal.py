"""The record of a run: an Optuna study in a journal file, from which a stopped run is resumed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from ...core.codec import config_from_json, norms_from_json
from ...core.files import sync_folder
from ...core.json_reader import NUMBER, TEXT_OR_NULL, Reader
from ...core.plan import Direction
from ...core.segment import SegmentOutcome
from ...errors import ReportError, StorageError
from ..schedulers.optuna_sampler import quiet
from ..trials import Role, State, Trial
from .central import CentralRecord
from .race_state import RaceState
from .study_writer import StudyWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a record holds of a race: its trials in the order of their numbers, and the rest of its state."""

    trials: tuple[Trial, ...]
    state: RaceState


class StudyRecord:
    """The durable record of a run: the study that `StudyWriter` writes, in a file that optuna-dashboard opens.

    The attribute `now` holds a whole trial and the race's state in one line of the journal. A resumed run reads only
    that. The other attributes are for dashboards, and are brought up to date when the race continues.

    Args:
        path: the journal file, which is created with its folder if it is missing. No other process may be writing to
            it.
        name: of the study, if it is created.
        direction: whether a higher or a lower score is better.
        central: gets a copy of every trial.

    Raises:
        StorageError: the journal cannot be written. Every method may raise it.
        ReportError: the file is no journal.
    """

    def __init__(
        self,
        path: Path,
        name: str,
        direction: Direction,
        central: CentralRecord | None = None,
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._central = path, central
        _cut_torn_line(path)
        # A process killed while it writes leaves Optuna's own lock, which the next one would wait 30 s for (measured).
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        with quiet(), self._stored(), _reading(path):
            storage = JournalStorage(JournalFileBackend(str(path)))
            there = storage.get_all_studies()  # a task may have been renamed since; the run is the same
            self._writer = StudyWriter(storage, there[0].study_name if there else name, direction)
            sync_folder(path.parent)  # Optuna synchronises each line, but not the name of the file

    def kept(self) -> Kept | None:
        """What the journal holds of a race; None before the first trial.

        Raises:
            ReportError: it holds something else.
        """
        return _kept(self._writer.study, self._path)

    def save(self, trial: Trial, state: RaceState) -> None:
        """Bring the record of `trial` up to date.

        The record is on the disk when this returns: every line of the journal is synchronised.
        """
        with _held_back(), quiet(), self._stored():
            self._writer.write(trial, {"race": state.to_json()})
            if self._central is not None:  # before a signal that was held back takes effect
                self._central.note(trial)

    def end(self, state: RaceState) -> None:
        """Record that the race is over."""
        with _held_back(), quiet(), self._stored():
            self._writer.study.set_user_attr("race", state.to_json())

    @contextmanager
    def _stored(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None


def read_kept(path: Path) -> Kept | None:
    """What the journal at `path` holds of a race; None before the first trial. Another process may be writing to it.

    Raises:
        ReportError: there is no journal, or it holds something else.
    """
    if not path.is_file():
        raise ReportError(f"{path} cannot be read: there is no such file")
    with quiet(), _reading(path):
        try:
            study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))
        except (KeyError, ValueError) as error:
            if not path.read_bytes().count(b"\n"):
                return None  # nothing has been written yet
            raise ReportError(f"{path} is no journal of a run: {error}") from None
        return _kept(study, path)


def _kept(study: optuna.Study, path: Path) -> Kept | None:
    ours = [trial for trial in study.get_trials(deepcopy=False) if "trial" in trial.user_attrs]
    trials = [(_trial(Reader(t.params | t.user_attrs, f"trial {t.number} of {path}")), t.user_attrs) for t in ours]
    trials.sort(key=lambda pair: pair[0].number)
    if not trials:
        return None
    if [trial.number for trial, _ in trials] != list(range(len(trials))) or trials[0][0].role != "baseline":
        raise ReportError(f"{path} holds trials numbered from 0, the first of them the baseline; it does not")
    races = [Reader(attributes["now"], f"a trial of {path}").inside("race") for _, attributes in trials]
    if "race" in study.user_attrs:
        races.append(Reader(study.user_attrs["race"], f"the race of {path}"))
    states = [RaceState.from_json(race) for race in races]
    return Kept(trials=tuple(trial for trial, _ in trials), state=max(states, key=lambda state: state.count))


def _trial(reader: Reader) -> Trial:
    now = reader.inside("now")
    scores = now.get("scores", [[NUMBER]])
    total_steps = reader.get("total_steps", int)
    if any(len(score) != 2 or not isinstance(score[0], int) or not 0 < score[0] <= total_steps for score in scores):
        raise ReportError(f"the scores of a trial are pairs of a step and a score; found {scores!r:.80}")
    reader.get("ranks", int)  # `config_from_json` takes 1 for a file without it; every journal has it
    return Trial(
        number=reader.get("trial", int),
        config=config_from_json(reader),
        seed=reader.get("seed", int),
        total_steps=total_steps,
        role=reader.one_of("role", Role),
        origin=reader.get("origin", str),
        state=now.one_of("state", State),
        scores=tuple((step, float(score)) for step, score in scores),
        outcome=now.one_of("outcome", SegmentOutcome),
        message=now.get("message", TEXT_OR_NULL),
        grad_norms=tuple(
            norms_from_json(Reader(norms, "the norms of a rung")) for norms in now.get("grad_norms", [dict])
        ),
        seconds=now.number("seconds"),
        predicted_s=now.number("predicted_s"),
    )


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back Ctrl-C, SIGTERM and SIGHUP until the block is done.

    If they interrupt a write, they leave Optuna's lock on the journal in a state in which Optuna takes the file for
    lost.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread handles signals
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = {number: handler for number, handler in handlers.items() if handler is not None}  # None: not set by Python
    for number in ours:
        signal.signal(number, lambda caught, frame: came.append(caught))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for caught in dict.fromkeys(came):
            signal.raise_signal(caught)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn Optuna's errors about a file that is no journal into a `ReportError`."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError, RecursionError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{path} is no journal of a run: {type(error).__name__}: {error}") from None


def _cut_torn_line(path: Path) -> None:
    """Cut a journal back to its last whole line.

    A process killed while it writes leaves half a line. Optuna 5 accepts that on the first load and appends to it,
    after which every load fails (measured). So it must go before the file is opened.
    """
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with path.open("r+b") as journal:
            journal.truncate(whole)
