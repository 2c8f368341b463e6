"""Optuna, and nowhere else: proposals from its samplers, and the record of a run in its journal storage.

The search keeps its own trials; Optuna is asked what to try next and told what happened. So a sampler is replaced by
passing another `optuna.samplers.BaseSampler`, and the record opens in optuna-dashboard as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from .errors import SettingError
from .plan import Direction
from .trials import Ladder, Space, Trial, oriented, promotable

# Upper end of the recorded integer parameters, so that every trial of every run shares one distribution. Assumed to be
# above any batch size in samples.
_MOST_SAMPLES = 1 << 24

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


class StudyRecord:
    """The durable record of a run: one Optuna trial for each trial, in a journal file that optuna-dashboard opens.

    Rung scores are intermediate values at thousandths of the schedule. A paused trial is RUNNING with the user
    attribute `state` = "paused". In the end a complete trial is COMPLETE, a dropped or diverged one PRUNED, and one
    that ran out of memory, crashed or hung is FAIL.

    Args:
        path: of the journal file; made where it is missing, with its folder.
        name: of the study in it. One that is there already is opened, and trials recorded in it are not written twice.
        direction: of the scores.
        metric: what the score is called.
    """

    def __init__(self, path: Path, name: str, direction: Direction, metric: str = "score") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _cut_torn_line(path)
        with _quiet():
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(path))),
                study_name=name,
                direction=direction,
                load_if_exists=True,
            )
            # Experimental since Optuna 3.2 and unchanged since; without it every dashboard calls the score "Value".
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names([metric])
        # Optuna offers no public way from a trial's number back to a handle that reports on it; its own storages, the
        # dashboard among them, go by this attribute.
        self._ids = {
            trial.user_attrs["trial"]: trial._trial_id
            for trial in self._study.get_trials(deepcopy=False)
            if "trial" in trial.user_attrs
        }

    def save(self, trial: Trial) -> None:
        """Bring the record of `trial` up to date: new scores are appended, a state that ends it is told.

        On disk when this returns: the journal is synchronised at every line.
        """
        with _quiet():
            if trial.number not in self._ids:
                self._add(trial)
            stored = optuna.trial.Trial(self._study, self._ids[trial.number])
            known = self._study.trials[stored.number]
            if known.state.is_finished():
                return
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

    def _add(self, trial: Trial) -> None:
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
                },
            )
        )
        self._ids[trial.number] = self._study.get_trials(deepcopy=False)[-1]._trial_id


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
