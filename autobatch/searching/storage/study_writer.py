"""An Optuna study that follows a race: one Optuna trial for each trial, in any storage."""

from __future__ import annotations

import warnings
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from ...core.plan import Direction
from ..trials import Trial

# The upper end of the recorded integer parameters, so that every trial of every run shares one distribution. Assumed to
# be above any batch size in samples.
_MOST_SAMPLES = 1 << 24

# The name of a trial's value in dashboards.
_METRIC = "score"

# The fields of a trial that change during the race.
_CHANGING = ("state", "scores", "outcome", "message", "grad_norms", "seconds", "predicted_s")

_RECORDED: dict[str, BaseDistribution] = {
    "batch_size": IntDistribution(1, _MOST_SAMPLES, log=True),
    "accumulation_steps": IntDistribution(1, _MOST_SAMPLES, log=True),
    "effective_batch_size": IntDistribution(1, _MOST_SAMPLES, log=True),
    "lr": FloatDistribution(1e-12, 1e6, log=True),
}


class StudyWriter:
    """Brings a study up to date with the trials of a race.

    Scores at rungs are intermediate values at thousandths of the schedule. A paused trial is RUNNING with the user
    attribute `state` = "paused". At the end a complete trial is COMPLETE, a dropped or diverged one is PRUNED, and one
    that ran out of memory, crashed or hung is FAIL. The attribute `now` holds everything that changes during a trial.

    Args:
        storage: holds the study.
        name: of the study. An existing study of that name is opened, and trials that it has are not written twice.
        direction: whether a higher or a lower score is better.
    """

    def __init__(self, storage: BaseStorage, name: str, direction: Direction) -> None:
        self.study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        # Experimental since Optuna 3.2 and unchanged since. Without it every dashboard calls the score "Value".
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            if self.study.metric_names != [_METRIC]:
                self.study.set_metric_names([_METRIC])
        # Optuna has no public way from a trial's number back to a handle that can report its scores. Its own storages,
        # and the dashboard, go by this attribute.
        self._ids: dict[int, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            number = trial.user_attrs.get("trial")
            if number in self._ids and not trial.state.is_finished():
                # A database that went away before it confirmed this trial has got it twice.
                self.study.tell(trial.number, state=TrialState.FAIL)
            elif number is not None:
                self._ids[number] = trial._trial_id

    def write(self, trial: Trial, beside: dict[str, Any]) -> None:
        """Bring `trial` up to date: append new scores, and record its final state.

        Only what changed is written, and an update that was interrupted is completed.

        Args:
            trial: as it stands.
            beside: what else to keep in `now`, each time that is written. `now` is written first, so a journal that
                ends in the middle of an update still holds the whole trial.
        """
        now = _now(trial)
        if trial.number not in self._ids:
            self._add(trial, now | beside)
        stored = optuna.trial.Trial(self.study, self._ids[trial.number])
        known = self.study.get_trials(deepcopy=False)[stored.number]
        if known.state.is_finished():
            return
        written = known.user_attrs.get("now", {})
        if any(written.get(key) != value for key, value in now.items()):
            stored.set_user_attr("now", now | beside)
        for step, score in trial.scores:
            share = round(1000 * round(16 * step / trial.total_steps) / 16)
            if share not in known.intermediate_values:
                stored.report(score, share)
        attributes: dict[str, object] = {"state": trial.state}
        if trial.state not in ("running", "paused"):
            attributes["seconds"] = trial.seconds
        if trial.outcome != "ok":
            attributes |= {"outcome": trial.outcome, "message": trial.message}
        for name, value in attributes.items():
            if known.user_attrs.get(name) != value:
                stored.set_user_attr(name, value)
        if trial.state == "complete":
            self.study.tell(stored.number, trial.final_score)
        elif trial.state == "dropped" or (trial.state == "failed" and trial.outcome == "diverged"):
            self.study.tell(stored.number, state=TrialState.PRUNED)
        elif trial.state == "failed":
            self.study.tell(stored.number, state=TrialState.FAIL)

    def _add(self, trial: Trial, now: dict[str, Any]) -> None:
        plan = trial.config.plan
        self.study.add_trial(
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
        self._ids[trial.number] = self.study.get_trials(deepcopy=False)[-1]._trial_id


def _now(trial: Trial) -> dict[str, Any]:
    """The fields of a trial that change, as JSON."""
    whole = trial.to_json()
    return {name: whole[name] for name in _CHANGING}
