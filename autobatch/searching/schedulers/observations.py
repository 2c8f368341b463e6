"""The scores so far as the surrogate sees them, and the same scores without the luck of their seeds."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import accumulate, chain

from ..history import History
from ..space import scale
from ..trials import Trial, has_blown_up
from . import surrogate
from .surrogate import Observation

# The most trials whose scores are denoised: the baseline and those that came farthest and scored best. The time for it
# grows with the cube of their number. Assumed: this many include the best few and all around them.
_MOST = 64


def place(trial: Trial, reference_batch: int) -> tuple[float, float]:
    """A trial's batch size as its logarithm to base 2, and the natural logarithm of its rate, scaled to
    `reference_batch`.
    """
    batch = trial.config.plan.effective_batch_size
    return math.log2(batch), math.log(trial.config.lr * scale(batch, reference_batch))


def observations(history: History, reference_batch: int) -> tuple[Observation, ...]:
    """Every score so far. A trial that diverged counts as the worst score, at the rung that it did not reach."""
    return tuple(chain.from_iterable(_by_trial(history, reference_batch)))


def denoised_scores(history: History) -> dict[int, float]:
    """The full-length score of each trial of the search, by its number, without the luck of its seed.

    Oriented so that higher is better, in the unit of the score (see `surrogate.denoised`). Of many trials that are
    about equally good, the one that scored best had the luckiest seed. Those around it had other seeds, and pull it
    back. Fresh seeds are left out: the finalist's are compared with the baseline's, not with trials that were run once.
    """
    racing = history.racing
    if not any(trial.state == "complete" for trial in racing):
        return {}
    ends = (history.last(t) if t.scores else -math.inf for t in racing)
    order = sorted(zip(racing, ends, strict=True), key=lambda pair: (-len(pair[0].scores), -pair[1]))
    order.sort(key=lambda pair: pair[0].role != "baseline")
    kept = [trial for trial, _ in order[:_MOST]]
    by_trial = _by_trial(replace(history, trials=tuple(kept)), 1)
    scores = surrogate.denoised(tuple(chain.from_iterable(by_trial)))
    last = (end - 1 for end in accumulate(map(len, by_trial)))
    return {t.number: float(scores[index]) for t, index in zip(kept, last, strict=True) if t.state == "complete"}


def _by_trial(history: History, reference_batch: int) -> list[list[Observation]]:
    """The observations of each trial, with its last rung at the end."""
    scores = [history.oriented(score) for trial in history.trials for _, score in trial.scores]
    by_trial = []
    for trial in history.trials:
        batch, rate = place(trial, reference_batch)
        # A confirmation has one rung, the last.
        shares = history.ladder.shares if trial.role != "confirmation" else history.ladder.shares[-1:]
        observed = [
            Observation(batch=batch, rate=rate, share=share, score=history.oriented(score))
            for share, (_, score) in zip(shares, trial.scores, strict=False)
        ]
        if trial.state == "failed" and has_blown_up(trial) and scores:
            share = shares[min(len(trial.scores), len(shares) - 1)]
            observed.append(Observation(batch=batch, rate=rate, share=share, score=min(scores)))
        by_trial.append(observed)
    return by_trial
