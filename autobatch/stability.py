"""How likely is a configuration to diverge under another seed, from what the trials around it did?

At the edge of stability some seeds blow up and the others score best of all: what a search likes most there is luck.
On a table of regressions (benchmarks/NOTES.md) the rate that scored best where it came through diverged under one to
three of four seeds, and the next lower one, a tenth behind, under none of fourteen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .plan import Config
from .trials import Trial, scale

# A configuration that is more likely than this to diverge does not pass for safe. Assumed: one run in twenty.
SAFE_RISK = 0.05


def divergence_risk(config: Config, trials: Sequence[Trial]) -> float:
    """The chance, in [0, 1), that training `config` diverges under a fresh seed; 0 where nothing did.

    A smoothed share (Laplace's rule of succession with one survival assumed) in which a trial counts the less the
    farther it is: one that diverged by half for each doubling that its learning rate is *above* the configuration's,
    one that did not by half for each doubling that it is below, since what holds at a rate holds at lower ones, and
    what breaks breaks at higher ones; and either by half for each doubling between their batch sizes. Halves are
    assumed.

    Args:
        config: of which configuration.
        trials: of the race; those that ended for another reason than divergence tell nothing unless they have scores.
    """
    if not any(trial.outcome == "diverged" for trial in trials):  # as a rule, and it is asked at every decision
        return 0.0
    diverged = survived = 0.0
    for trial in trials:
        doublings = math.log2(trial.config.plan.effective_batch_size / config.plan.effective_batch_size)
        here = trial.config.lr * scale(trial.config.plan.effective_batch_size, config.plan.effective_batch_size)
        above = math.log2(here / config.lr)
        if trial.outcome == "diverged":
            diverged += 0.5 ** (max(0.0, above) + abs(doublings))
        elif trial.state == "complete":
            survived += 0.5 ** (max(0.0, -above) + abs(doublings))
    return diverged / (diverged + survived + 1)
