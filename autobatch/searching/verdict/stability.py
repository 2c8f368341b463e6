"""How likely is a configuration to diverge under another seed, judged by the trials around it?

At the edge of stability some seeds diverge and the others score best of all, so a search is drawn there by luck. On a
table of regressions (benchmarks/NOTES.md) the rate that scored best when it survived diverged under one to three of
four seeds. The next lower rate, a tenth behind, diverged under none of fourteen.
"""

from __future__ import annotations

import math

from ...core.plan import Config
from ..history import History
from ..space import scale
from ..trials import has_blown_up

# A gradient norm of this many times the median is out of line. A clip that changes more than this share of the steps
# determines their length. Both assumed.
_SPIKE = 10.0
_MOST_STEPS = 0.5

# A configuration that is more likely than this to diverge does not count as safe. Assumed: one run in twenty.
SAFE_RISK = 0.05


def divergence_risk(config: Config, history: History) -> float:
    """The chance, in [0, 1), that training `config` diverges under a fresh seed; 0 if no trial diverged.

    It is a smoothed share (Laplace's rule of succession with one survival assumed), in which a trial counts the less
    the farther it is. A trial that diverged counts half for each doubling of its learning rate *above* the
    configuration's, and one that did not counts half for each doubling below it: what is stable at a rate is stable at
    lower ones, and what diverges diverges at higher ones. Either counts half for each doubling between the batch sizes.
    The halves are assumed.

    Args:
        config: the configuration.
        history: of the race. A trial that did not diverge counts only if it was trained to the end.
    """
    if not any(map(has_blown_up, history.trials)):  # a short cut for the usual case: every decision calls this
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
    """A sentence if the gradient norms of `config` were out of line; None if they were not, or are not known.

    The first segment of a trial is left out: norms are large at the beginning of a training.
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
