"""What Optuna's samplers would try next.

The race keeps its own trials. Optuna is only asked for proposals here; storage/study_writer.py writes the results into
a study. So any `optuna.samplers.BaseSampler` can replace TPE.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from ..history import History
from ..space import Space
from ..trials import Ladder, Trial
from .promotion import promotable


def propose(
    history: History,
    space: Space,
    *,
    seed: int,
    sampler: BaseSampler | None = None,
) -> tuple[int, float]:
    """The (effective batch size, learning rate) to try next: a pure function of the history and the seed.

    The sampler sees the index of the batch size, and the learning rate scaled to the reference batch, where the best
    rates of all batch sizes lie close together. Trials are shown to it like this:

    - A trial that was trained to the end is COMPLETE.
    - One that is paused, running or dropped is PRUNED with its rung scores: TPE ranks PRUNED trials by (last step,
    value) behind the complete ones, while it would take RUNNING ones for bad (`constant_liar`).
    - One that failed is PRUNED at the first rung with the worst score so far. Samplers do not see NaN or FAIL, and a
    COMPLETE trial with a bad score would rank before every paused one.
    - One that is under way to its first score, on another worker, is shown like a failed one, so that the next proposal
    lies elsewhere (the constant liar of Ginsbourger et al. 2010).
    - The baseline runs to the end with any score. It is shown only up to the rung where halving would have stopped it,
    since its neighbourhood would otherwise pass for good.

    Args:
        history: of the race; confirmations are left out.
        space: where to look.
        seed: of the run. The draw depends on it and on the number of trials.
        sampler: any Optuna sampler, whose own state then replaces the seed; by default TPE.
    """
    if sampler is None:
        sampler = TPESampler(seed=(seed * 10_007 + len(history.trials)) % 2**32)
    sizes = space.effective_batch_sizes
    box: dict[str, BaseDistribution] = {
        "batch": IntDistribution(0, len(sizes) - 1),
        "lr": FloatDistribution(space.lr_low, space.lr_high, log=True),
    }
    seen = [history.oriented(score) for trial in history.racing for _, score in trial.scores]
    worst = history.oriented(min(seen, default=0.0))
    with quiet():
        study = optuna.create_study(direction=history.direction, sampler=sampler)
        for trial in history.racing:
            if trial.scores or trial.state in ("failed", "running"):
                params = {
                    "batch": sizes.index(space.nearest(trial.config.plan.effective_batch_size)),
                    "lr": min(max(space.scaled_lr(trial.config), space.lr_low), space.lr_high),
                }
                study.add_trial(_as_seen(trial, history, worst, params, box))
        asked = study.ask(box)
    batch = sizes[asked.params["batch"]]
    return batch, space.lr_at(batch, asked.params["lr"])


def _as_seen(
    trial: Trial,
    history: History,
    worst: float,
    params: dict[str, int | float],
    box: dict[str, BaseDistribution],
) -> FrozenTrial:
    """A trial as the sampler should see it."""
    levels = len(trial.scores)
    if trial.role == "baseline":
        levels = _stopped_by_halving(trial, history)
    if trial.state == "complete" and levels == len(trial.scores):
        return optuna.trial.create_trial(value=trial.final_score, params=params, distributions=box)
    curve = {_step_of(history.ladder, level): trial.scores[level][1] for level in range(levels)}
    if trial.state == "failed" or not trial.scores:
        curve = {_step_of(history.ladder, 0): worst}
    return optuna.trial.create_trial(
        state=TrialState.PRUNED, params=params, distributions=box, intermediate_values=curve
    )


def _stopped_by_halving(trial: Trial, history: History) -> int:
    """The number of a trial's rungs that successive halving would have paid for."""
    for level in range(1, len(trial.scores)):
        as_paused = replace(trial, state="paused", scores=trial.scores[:level])
        if as_paused not in promotable(history.updated(as_paused)):
            return level
    return len(trial.scores)


def _step_of(ladder: Ladder, level: int) -> int:
    """A rung as Optuna's integer step: thousandths of the schedule, the same for all batch sizes."""
    return round(1000 * ladder.shares[level])


_quiet = threading.Lock()
_quiet_depth, _verbosity = 0, 0  # how many blocks silence Optuna, and its verbosity before the first


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's line for each study and trial, and restore the user's verbosity afterwards; in any thread."""
    global _quiet_depth, _verbosity
    with _quiet:
        if not _quiet_depth:
            _verbosity = optuna.logging.get_verbosity()
            optuna.logging.set_verbosity(max(_verbosity, optuna.logging.WARNING))
        _quiet_depth += 1
    try:
        yield
    finally:
        with _quiet:
            _quiet_depth -= 1
            if not _quiet_depth:
                optuna.logging.set_verbosity(_verbosity)
