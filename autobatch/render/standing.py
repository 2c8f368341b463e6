"""How a race stands, in two lines of words."""

from __future__ import annotations

from ..core.progress import Standing
from ..core.units import format_lr, format_size
from .numbers import score_decimals, score_text


def best_line(standing: Standing) -> str:
    """The best so far with its uncertainty, and what it is to beat: `best 0.9712 ± 0.0031: batch 256, lr 0.0034`."""
    decimals = score_decimals([standing.score], [standing.noise])
    noise = "?" if standing.noise is None else score_text(standing.noise, decimals)
    after = "" if standing.share == 1 else f" after {_rung(standing.share)}"
    line = f"best {score_text(standing.score, decimals)} ± {noise}{after}: "
    if standing.is_baseline:
        return f"{line}the baseline"
    line += f"batch {standing.batch_size}, lr {format_lr(standing.lr)}"
    return line if standing.baseline is None else f"{line}; baseline {score_text(standing.baseline, decimals)}"


def trials_line(standing: Standing, under_way: int) -> str:
    """Where the trials stand, and the memory: `trials: 14 at T/8, 6 at T; 1 failed; memory 1.7 of 7.6 GiB`."""
    at = [f"{count} at {_rung(share)}" for share, count in standing.rungs]
    parts = [f"trials: {', '.join(at)}"]
    if standing.failed:
        parts.append(f"{standing.failed} failed")
    if under_way > 1:
        parts.append(f"{under_way} under way")
    if standing.peak_bytes is not None and standing.limit_bytes is not None:
        parts.append(f"memory {format_size(standing.peak_bytes)} of {format_size(standing.limit_bytes)}")
    return "; ".join(parts)


def _rung(share: float) -> str:
    return "T" if share == 1 else f"T/{1 / share:.3g}"
