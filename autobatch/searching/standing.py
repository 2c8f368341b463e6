"""How a race stands, for whoever watches it; nothing is decided by it."""

from __future__ import annotations

from collections import Counter

from ..core.progress import Standing
from .history import History
from .verdict.seed_noise import pooled_sigma, score_resolution


def standing_of(history: History) -> Standing | None:
    """The best so far and where the trials stand; None before anything has a score."""
    scored = [trial for trial in history.racing if trial.scores]
    if not scored:
        return None
    furthest = max(len(trial.scores) for trial in scored)
    rivals = [trial for trial in scored if trial.state == "complete"]
    rivals = rivals or [trial for trial in scored if len(trial.scores) == furthest]
    best = max(rivals, key=history.last)
    own = history.baseline.config if history.baseline else None
    others = dict.fromkeys(trial.config for trial in history.confirmations if trial.config != own)
    repeats = [history.baseline_scores, *(history.fresh_scores(config) for config in others)]
    sigma = pooled_sigma(repeats, history.full_length, resolution=score_resolution(history))
    shares = history.ladder.shares
    rungs = Counter(shares[min(len(trial.scores), len(shares)) - 1] for trial in scored)
    return Standing(
        score=best.scores[-1][1],
        noise=None if sigma is None else sigma.value,
        share=best.steps_done / best.total_steps,
        batch_size=best.config.plan.effective_batch_size,
        lr=best.config.lr,
        is_baseline=best.role == "baseline",
        baseline=history.baseline.final_score if history.baseline else None,
        rungs=tuple(sorted(rungs.items())),
        failed=sum(trial.state == "failed" for trial in history.racing),
    )
