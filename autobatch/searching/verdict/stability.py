"""How likely is a configuration to diverge under another seed, from what the trials around it did?

At the edge of stability some seeds blow up and the others score best of all: what a search likes most there is luck.
On a table of regressions (benchmarks/NOTES.md) the rate that scored best where it came through diverged under one to
three of four seeds, and the next lower one, a tenth behind, under none of fourteen.
"""

from __future__ import annotations

import math

from ...core.plan import Config
from ..history import History
from ..space import scale
from ..trials import has_blown_up

# A gradient norm so many times its median is out of line, and a clip that touches more than this share of the steps
# sets their length. Both assumed.
_SPIKE = 10.0
_MOST_STEPS = 0.5

# A configuration that is more likely than this to diverge does not pass for safe. Assumed: one run in twenty.
SAFE_RISK = 0.05


def divergence_risk(config: Config, history: History) -> float:
    """The chance, in [0, 1), that training `config` diverges under a fresh seed; 0 where nothing did.

    A smoothed share (Laplace's rule of succession with one survival assumed) in which a trial counts the less the
    farther it is: one that diverged by half for each doubling that its learning rate is *above* the configuration's,
    one that did not by half for each doubling that it is below, since what holds at a rate holds at lower ones, and
    what breaks breaks at higher ones; and either by half for each doubling between their batch sizes. Halves are
    assumed.

    Args:
        config: the configuration.
        history: of the race; a trial that did not diverge counts only if it came to its end.
    """
    if not any(map(has_blown_up, history.trials)):  # the rule, and every decision comes by here
        return 0.0
    diverged = survived = 0.0
    for trial in history.trials:
        doublings = math.log2(trial.config.plan.effective_batch_size / config.plan.effective_batch_size)
        here = trial.config.lr * scale(trial.config.plan.effective_batch_size, config.plan.effective_batch_size)
        above = math.log2(here / config.lr)
        if has_blown_up(trial):
            diverged += 0.5 ** (max(0.0, above) + abs(doublings))
        elif trial.state == "complete":
            survived += 0.5 ** (max(0.0, -above) + abs(doublings))
    return diverged / (diverged + survived + 1)


def norms_out_of_line(config: Config, history: History) -> str | None:
    """A sentence where the gradient norms of `config` were out of line; None where they were not, or are not known.

    The first rung of a trial is left out: at the beginning of a training norms are large.
    """
    segments = [norms for trial in history.trials if trial.config == config for norms in trial.grad_norms[1:]]
    clips = [norms.clipped for norms in segments if norms.clipped is not None]
    if clips:
        share = sum(clips) / len(clips)
        if share <= _MOST_STEPS:
            return None
        return (
            f"clip_grad_norm shortened {share:.0%} of the steps of the recommended configuration: their length is set "
            "by the clip as much as by the learning rate"
        )
    worst = max(segments, key=lambda norms: norms.largest / max(norms.median, 1e-300), default=None)
    if worst is None or worst.largest <= _SPIKE * worst.median:
        return None
    return (
        f"the gradient norm of the recommended configuration reached {worst.largest:.3g} where its median was "
        f"{worst.median:.3g}: clip_grad_norm would bound such a step"
    )
