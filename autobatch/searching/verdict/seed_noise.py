"""How much does a seed change a full-length score? Repeats show it, and while there are few, the spread of the best.

The honest source is one configuration under several seeds. A race has few of those. So the spread of the best
full-length scores supplies the missing degrees of freedom: configurations that are about equally good differ by their
seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

from ..history import History

# With fewer degrees of freedom, the spread between configurations is added: it counts as the missing ones. Two fresh
# seeds give one or two degrees, at which a lucky pair of equal scores would pass for certainty. From this number on
# repeats are enough, and other configurations add nothing. Simulated: at 4 a race with two seeds to spare ends in a
# false win by 1 % more often than at 6; at 8 fewer true wins are seen (benchmarks/NOTES.md, 2026-11-22).
ENOUGH_REPEATS = 6

# The spread is that of the better third of the full-length scores, and of at least three. Assumed.
SPREAD_LEAST = 3

# A score that is farther below the best than this many times the second counts as that far. The last of some equal
# configurations lies two to three times as far on average (expected order statistics of 3 to 16 normal draws); a score
# that lies much farther is worse by more than its seed. Simulated: at 5 false wins are as rare as without this limit;
# at 8 one bad score of three still hides half of the wins that are seen at 5 (benchmarks/NOTES.md, 2026-11-22).
FARTHEST = 5.0

# Scores that differ by less than this share of the larger one are equal: a mean in single precision has seven digits.
_SAME_SCORE = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Sigma:
    """The standard deviation of a full-length score between seeds, and its source.

    Attributes:
        value: in units of the score; above 0.
        repeats: degrees of freedom from repeated configurations.
        spread_of: how many full-length scores of different configurations were pooled in by their spread; 0 for none.
        lent: degrees of freedom that the spread counts as; 0 for none.
        is_resolution: whether it is the smallest step between two scores of the race, because the pooled value was
            smaller.
    """

    value: float
    repeats: int
    spread_of: int
    lent: int = 0
    is_resolution: bool = False

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the figure, for Student's t; at least 1.

        Pooled variances have those of Satterthwaite (1946). Those of the repeats are counted; the spread of a few
        scores has one fewer than there are scores, whatever it counts as.
        """
        from_spread = self.lent**2 / (self.spread_of - 1) if self.lent else 0.0
        total = self.repeats + self.lent
        return max(1.0, total**2 / (self.repeats + from_spread)) if total else 1.0

    @property
    def source(self) -> str:
        """The source of the figure, in words."""
        sources = []
        if self.repeats:
            sources.append(
                f"{self.repeats} degree{'s' if self.repeats > 1 else ''} of freedom from configurations run under "
                "several seeds"
            )
        if self.spread_of:
            sources.append(
                f"the spread of the best {self.spread_of} full-length scores, which counts as {self.lent} (assumed)"
            )
        text = " and ".join(sources)
        if self.is_resolution:
            text += "; these differ by less than the smallest step between two scores, which is taken instead"
        return text


def pooled_sigma(
    repeats: Sequence[Sequence[float]],
    full_length: Sequence[float],
    *,
    resolution: float = 0.0,
    farthest: float = FARTHEST,
) -> Sigma | None:
    """The seed-to-seed standard deviation, pooled over repeated configurations and the spread of the better ones.

    Args:
        repeats: scores of one configuration each, under different seeds.
        full_length: `History.full_length`; see `spread`. Not used if there are fewer than `SPREAD_LEAST`, or the
            repeats have `ENOUGH_REPEATS` degrees of freedom.
        resolution: the smallest step between two scores. Sigma is at least that, since nothing finer was seen.
        farthest: see `spread`; infinite for an upper estimate, which a bad score may widen.

    Returns:
        None if nothing was repeated and too few configurations were trained to the end, or if no two scores differ.
    """
    degrees = sum(max(0, len(scores) - 1) for scores in repeats)
    squares = sum(squared_deviations(scores) for scores in repeats)
    lent, spread_of, between = max(0, ENOUGH_REPEATS - degrees), 0, 0.0
    if lent and len(full_length) >= SPREAD_LEAST:
        gap = max(resolution, math.sqrt(squares / degrees) if degrees else 0.0)
        between, spread_of = spread(full_length, gap, farthest)
    else:
        lent = 0
    if degrees + lent == 0:
        return None
    value = math.sqrt((squares + lent * between**2) / (degrees + lent))
    if max(value, resolution) == 0:
        return None
    return Sigma(
        value=max(value, resolution),
        repeats=degrees,
        spread_of=spread_of,
        lent=lent,
        is_resolution=value < resolution,
    )


def spread(scores: Sequence[float], least_gap: float, farthest: float = FARTHEST) -> tuple[float, int]:
    """The standard deviation of a seed, estimated from the best of different configurations, and the number of these.

    If all configurations were equally good, the variance of the better third would be that of a truncated normal
    distribution, which is corrected for. Since they differ in quality too, it is an upper estimate. So that one bad
    score does not make it useless, no score counts as farther behind the best than `farthest` times the second one.

    Args:
        scores: at least `SPREAD_LEAST`, higher is better.
        least_gap: the least gap to assume for the second one: it may tie with the best, or be close by luck.
        farthest: see above.
    """
    best = sorted(scores, reverse=True)[: max(SPREAD_LEAST, math.ceil(len(scores) / 3))]
    if farthest < math.inf:
        worst = best[0] - farthest * max(best[0] - best[1], least_gap)
        best = [max(score, worst) for score in best]
    squares = squared_deviations(best)
    return math.sqrt(squares / (len(best) - 1) / variance_of_the_top(len(best) / len(scores))), len(best)


def chance_below(t: float, degrees: float) -> float:
    """The chance that a Student's t with this many degrees of freedom, at least 1, is below `t`.

    With t = sqrt(degrees) tan(angle) the density is a power of the cosine, which is smooth. Simpson's rule over 256
    pieces is then within 2e-4 everywhere, and within 1e-7 from 2 degrees on.
    """
    if math.isinf(t):
        return 1.0 if t > 0 else 0.0
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)
    end, pieces = math.atan2(abs(t), math.sqrt(degrees)), 256
    heights = [math.cos(end * piece / pieces) ** (degrees - 1) for piece in range(pieces + 1)]
    weighted = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    above_half = min(0.5, scale * weighted * end / pieces / 3)
    return 0.5 + math.copysign(above_half, t)


def score_resolution(history: History) -> float:
    """The smallest step between two scores of any trial at any rung; 0 if no two differ.

    An accuracy over fifty samples moves in steps of .02, and scores that tie may truly differ by as much.
    """
    scores = sorted({score for trial in history.trials for _, score in trial.scores})
    return min(
        (high - low for low, high in pairwise(scores) if high - low > _SAME_SCORE * max(abs(low), abs(high))),
        default=0.0,
    )


def variance_of_the_top(share: float) -> float:
    """The variance of the best `share` of a normal sample, relative to that of the whole sample.

    1 + a h - h^2 with a the quantile where the top begins and h = density(a) / share, for a normal distribution
    truncated from below (Johnson, Kotz and Balakrishnan 1994, section 13.10).
    """
    if share >= 1:
        return 1.0
    normal = NormalDist()
    begins = normal.inv_cdf(1 - share)
    hazard = normal.pdf(begins) / share
    return 1 + begins * hazard - hazard**2


def squared_deviations(scores: Sequence[float]) -> float:
    """The sum of squared deviations from the mean; infinite if it is beyond the largest double."""
    if not scores:
        return 0.0
    mean = sum(scores) / len(scores)
    return sum((score - mean) * (score - mean) for score in scores)  # ** would raise instead of giving infinity
