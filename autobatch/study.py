"""Optuna, and nowhere else: proposals from its samplers, and the record of a run in its journal storage.

The search keeps its own trials; Optuna is asked what to try next and told what happened. So a sampler is replaced by
passing another `optuna.samplers.BaseSampler`, and the record opens in optuna-dashboard as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from .errors import ReportError, SettingError, StorageError
from .files import sync_folder
from .plan import Config, Direction, GradNorms, Plan, Precision, RungOutcome
from .race_state import RaceState
from .shapes import NUMBER, TEXT_OR_NULL, Reader
from .trials import Ladder, Role, Space, State, Trial, oriented, promotable

# Upper end of the recorded integer parameters, so that every trial of every run shares one distribution. Assumed to be
# above any batch size in samples.
_MOST_SAMPLES = 1 << 24

# What changes of a trial while it is in the race.
_CHANGING = ("state", "scores", "outcome", "message", "grad_norms", "seconds", "predicted_s")

_RECORDED: dict[str, BaseDistribution] = {
    "batch_size": IntDistribution(1, _MOST_SAMPLES, log=True),
    "accumulation_steps": IntDistribution(1, _MOST_SAMPLES, log=True),
    "effective_batch_size": IntDistribution(1, _MOST_SAMPLES, log=True),
    "lr": FloatDistribution(1e-12, 1e6, log=True),
}


def propose(
    trials: Sequence[Trial],
    space: Space,
    *,
    direction: Direction,
    seed: int,
    ladder: Ladder | None = None,
    sampler: str | BaseSampler = "tpe",
) -> tuple[int, float]:
    """The (effective batch size, learning rate) to try next: a pure function of what was seen and the seed.

    The sampler sees the index of the batch size and the learning rate carried over to the reference batch, where the
    best rates of all batch sizes lie close together. A trial trained to the end is COMPLETE. One that is paused,
    running or dropped is PRUNED with its rung scores: TPE ranks PRUNED trials by (last step, value) behind the
    complete ones, while it would take RUNNING ones for bad (`constant_liar`). One that failed is PRUNED at the first
    rung with the worst score so far, since what is told NaN or FAIL is hidden from samplers, and a COMPLETE trial with
    a bad score would rank before every paused one. The baseline runs to the end whatever it scores, so it is shown
    only up to the rung where halving would have stopped it: else its neighborhood would pass for good.

    Args:
        trials: all so far, in the order of their numbers; confirmations are left out.
        space: where to look.
        direction: of the scores.
        seed: of the run; the draw depends on it and on how many trials there are.
        ladder: the rungs; by default T/8, T/2, T.
        sampler: "tpe", or any Optuna sampler, whose own state then takes the place of the seed.

    Raises:
        SettingError: an unknown name of a sampler.
    """
    if isinstance(sampler, str):
        if sampler != "tpe":
            raise SettingError(f'a search is "tpe", "freeze-thaw" or an optuna.samplers.BaseSampler; found {sampler!r}')
        sampler = TPESampler(seed=(seed * 10_007 + len(trials)) % 2**32)
    ladder = ladder or Ladder()
    sizes = space.effective_batch_sizes
    box: dict[str, BaseDistribution] = {
        "batch": IntDistribution(0, len(sizes) - 1),
        "lr": FloatDistribution(space.lr_low, space.lr_high, log=True),
    }
    racing = [trial for trial in trials if trial.role != "confirmation"]
    seen = [oriented(score, direction) for trial in racing for _, score in trial.scores]
    worst = oriented(min(seen, default=0.0), direction)
    with _quiet():
        study = optuna.create_study(direction=direction, sampler=sampler)
        for trial in racing:
            if trial.scores or trial.state == "failed":
                params = {
                    "batch": sizes.index(space.nearest(trial.config.plan.effective_batch_size)),
                    "lr": min(max(space.scaled_lr(trial.config), space.lr_low), space.lr_high),
                }
                study.add_trial(_as_seen(trial, racing, ladder, direction, worst, params, box))
        asked = study.ask(box)
    batch = sizes[asked.params["batch"]]
    return batch, space.lr_at(batch, asked.params["lr"])


def _as_seen(
    trial: Trial,
    racing: Sequence[Trial],
    ladder: Ladder,
    direction: Direction,
    worst: float,
    params: dict[str, int | float],
    box: dict[str, BaseDistribution],
) -> FrozenTrial:
    """A trial as the sampler is to see it."""
    levels = len(trial.scores)
    if trial.role == "baseline":
        levels = _stopped_by_halving(trial, racing, ladder, direction)
    if trial.state == "complete" and levels == len(trial.scores):
        return optuna.trial.create_trial(value=trial.final_score, params=params, distributions=box)
    curve = {_step_of(ladder, level): trial.scores[level][1] for level in range(levels)}
    if trial.state == "failed":
        curve = {_step_of(ladder, 0): worst}
    return optuna.trial.create_trial(
        state=TrialState.PRUNED, params=params, distributions=box, intermediate_values=curve
    )


def _stopped_by_halving(trial: Trial, racing: Sequence[Trial], ladder: Ladder, direction: Direction) -> int:
    """How many rungs of a trial successive halving would have paid for."""
    for level in range(1, len(trial.scores)):
        as_paused = Trial(
            number=trial.number,
            config=trial.config,
            seed=trial.seed,
            total_steps=trial.total_steps,
            role=trial.role,
            origin=trial.origin,
            state="paused",
            scores=trial.scores[:level],
        )
        others = [as_paused if other.number == trial.number else other for other in racing]
        if as_paused not in promotable(others, ladder, direction):
            return level
    return len(trial.scores)


def _step_of(ladder: Ladder, level: int) -> int:
    """A rung as Optuna's integer step: thousandths of the schedule, the same whatever the batch size."""
    return round(1000 * ladder.shares[level])


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a record holds of a race: its trials in the order of their numbers, and where it stands beside them."""

    trials: tuple[Trial, ...]
    state: RaceState


class StudyRecord:
    """The durable record of a run: one Optuna trial for each trial, in a journal file that optuna-dashboard opens.

    Rung scores are intermediate values at thousandths of the schedule. A paused trial is RUNNING with the user
    attribute `state` = "paused". In the end a complete trial is COMPLETE, a dropped or diverged one PRUNED, and one
    that ran out of memory, crashed or hung is FAIL.

    The attribute `now` has all of a trial and of the race beside it in one line of the journal; it is written first and
    is what a resumed run reads. The others are for dashboards, and are brought up to date when the record is opened.

    Args:
        path: of the journal file; made where it is missing, with its folder. Nobody else may be writing to it.
        name: of the study in it. One that is there already is opened, and trials recorded in it are not written twice.
        direction: of the scores.
        metric: what the score is called.

    Raises:
        StorageError: it cannot be written; so does each method.
        ReportError: it is no journal.
    """

    def __init__(self, path: Path, name: str, direction: Direction, metric: str = "score") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        _cut_torn_line(path)
        # A process killed while it writes leaves Optuna's own lock, which the next one would wait 30 s for (measured).
        path.with_name(path.name + ".lock").unlink(missing_ok=True)
        with _quiet(), self._stored(), _reading(path):
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=name,
                direction=direction,
                load_if_exists=True,
            )
            # Experimental since Optuna 3.2 and unchanged since; without it every dashboard calls the score "Value".
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                if self._study.metric_names != [metric]:
                    self._study.set_metric_names([metric])
            sync_folder(path.parent)  # Optuna synchronises each line, but not the name of the file
        # Optuna offers no public way from a trial's number back to a handle that reports on it; its own storages, the
        # dashboard among them, go by this attribute.
        self._ids = {
            trial.user_attrs["trial"]: trial._trial_id
            for trial in self._study.get_trials(deepcopy=False)
            if "trial" in trial.user_attrs
        }

    def kept(self) -> Kept | None:
        """What it holds of a race; None before the first trial.

        Raises:
            ReportError: it holds something else.
        """
        return _kept(self._study, self._path)

    def save(self, trial: Trial, state: RaceState) -> None:
        """Bring the record of `trial` up to date: new scores are appended, a state that ends it is told.

        On disk when this returns: the journal is synchronised at every line.
        """
        with _quiet(), self._stored():
            now = _now(trial)
            if trial.number not in self._ids:
                self._add(trial, now | {"race": state.to_json()})
            stored = optuna.trial.Trial(self._study, self._ids[trial.number])
            known = self._study.get_trials(deepcopy=False)[stored.number]
            if known.state.is_finished():
                return
            written = known.user_attrs.get("now", {})
            if any(written.get(key) != value for key, value in now.items()):
                stored.set_user_attr("now", now | {"race": state.to_json()})
            for step, score in trial.scores:
                share = round(1000 * round(16 * step / trial.total_steps) / 16)
                if share not in known.intermediate_values:
                    stored.report(score, share)
            # Each write is synchronised to the disk, so nothing is written that did not change.
            attributes: dict[str, object] = {"state": trial.state}
            if trial.state not in ("running", "paused"):
                attributes["seconds"] = trial.seconds
            if trial.outcome != "ok":
                attributes |= {"outcome": trial.outcome, "message": trial.message}
            for name, value in attributes.items():
                if known.user_attrs.get(name) != value:
                    stored.set_user_attr(name, value)
            if trial.state == "complete":
                self._study.tell(stored.number, trial.final_score)
            elif trial.state == "dropped" or (trial.state == "failed" and trial.outcome == "diverged"):
                self._study.tell(stored.number, state=TrialState.PRUNED)
            elif trial.state == "failed":
                self._study.tell(stored.number, state=TrialState.FAIL)

    def end(self, state: RaceState) -> None:
        """Note that the race is over."""
        with _quiet(), self._stored():
            self._study.set_user_attr("race", state.to_json())

    def _add(self, trial: Trial, now: dict[str, Any]) -> None:
        plan = trial.config.plan
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params={
                    "batch_size": plan.batch_size,
                    "accumulation_steps": plan.accumulation_steps,
                    "effective_batch_size": plan.effective_batch_size,
                    "lr": trial.config.lr,
                },
                distributions=_RECORDED,
                user_attrs={
                    "trial": trial.number,
                    "state": trial.state,
                    "role": trial.role,
                    "origin": trial.origin,
                    "seed": trial.seed,
                    "total_steps": trial.total_steps,
                    "precision": plan.precision,
                    "ranks": plan.ranks,
                    "now": now,
                },
            )
        )
        self._ids[trial.number] = self._study.get_trials(deepcopy=False)[-1]._trial_id

    @contextmanager
    def _stored(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self._path} cannot be written: {error.strerror}") from None


def read_kept(path: Path) -> Kept | None:
    """What the journal at `path` holds of a race, read as it is, whoever is writing to it; None before the first trial.

    Raises:
        ReportError: there is none, or it holds something else.
    """
    if not path.is_file():
        raise ReportError(f"{path} cannot be read: there is no such file")
    with _quiet(), _reading(path):
        try:
            study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(path))))
        except (KeyError, ValueError) as error:
            if not path.read_bytes().count(b"\n"):
                return None  # nothing has been written yet
            raise ReportError(f"{path} is no journal of a run: {error}") from None
        return _kept(study, path)


def _now(trial: Trial) -> dict[str, Any]:
    """What changes of a trial, as it is in JSON."""
    whole = trial.to_json()
    return {name: whole[name] for name in _CHANGING}


def _kept(study: optuna.Study, path: Path) -> Kept | None:
    ours = [trial for trial in study.get_trials(deepcopy=False) if "trial" in trial.user_attrs]
    found = [(_trial(Reader(t.params | t.user_attrs, f"trial {t.number} of {path}")), t.user_attrs) for t in ours]
    found.sort(key=lambda pair: pair[0].number)
    if not found:
        return None
    if [trial.number for trial, _ in found] != list(range(len(found))) or found[0][0].role != "baseline":
        raise ReportError(f"{path} holds trials numbered from 0, the first of them the baseline; it does not")
    races = [Reader(attributes["now"], f"a trial of {path}").inside("race") for _, attributes in found]
    if "race" in study.user_attrs:
        races.append(Reader(study.user_attrs["race"], f"the race of {path}"))
    states = [RaceState.from_json(race) for race in races]
    return Kept(trials=tuple(trial for trial, _ in found), state=max(states, key=lambda state: state.count))


def _trial(found: Reader) -> Trial:
    now = found.inside("now")
    scores = now.get("scores", [[NUMBER]])
    total_steps = found.get("total_steps", int)
    if any(len(score) != 2 or not isinstance(score[0], int) or not 0 < score[0] <= total_steps for score in scores):
        raise ReportError(f"the scores of a trial are pairs of a step and a score; found {scores!r:.80}")
    plan = Plan(
        batch_size=found.get("batch_size", int),
        accumulation_steps=found.get("accumulation_steps", int),
        precision=found.one_of("precision", Precision),
        ranks=found.get("ranks", int),
    )
    return Trial(
        number=found.get("trial", int),
        config=Config(plan=plan, lr=found.number("lr")),
        seed=found.get("seed", int),
        total_steps=total_steps,
        role=found.one_of("role", Role),
        origin=found.get("origin", str),
        state=now.one_of("state", State),
        scores=tuple((step, float(score)) for step, score in scores),
        outcome=now.one_of("outcome", RungOutcome),
        message=now.get("message", TEXT_OR_NULL),
        grad_norms=tuple(_norms(Reader(norms, "the norms of a rung")) for norms in now.get("grad_norms", [dict])),
        seconds=now.number("seconds"),
        predicted_s=now.number("predicted_s"),
    )


def _norms(found: Reader) -> GradNorms:
    return GradNorms(
        median=found.number("median"), largest=found.number("largest"), clipped=found.number_or_none("clipped")
    )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What Optuna makes of a file that is no journal, as an error of ours."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, AssertionError) as error:
        if isinstance(error, ReportError):
            raise
        raise ReportError(f"{path} is no journal of a run: {type(error).__name__}: {error}") from None


def _cut_torn_line(path: Path) -> None:
    """Cut a journal back to its last whole line.

    A process killed while it writes leaves half a line. Optuna 5 forgives it on the first load and appends to it, after
    which no load succeeds (measured), so it has to go before the file is opened.
    """
    if not path.exists():
        return
    text = path.read_bytes()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        with path.open("r+b") as journal:
            journal.truncate(whole)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Optuna's line for each study and trial, and leave its verbosity as the user has it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
