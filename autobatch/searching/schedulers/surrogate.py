"""A Gaussian process over (batch size, learning rate, share of the schedule) that predicts trials before they are
trained.

The idea is freeze-thaw (Swersky et al. 2014, arXiv 1406.3896): scores at early rungs and at the end are values of one
function, so a paused trial says something about its own end and about its neighbours'. The kernel is a Matern 5/2 in
the logarithms of batch, rate and share. Its rate axis is sheared along the batch axis: the best rate is a power of the
batch, and the exponent is one of the hyperparameters that are averaged over. All of it is plain linear algebra on at
most a few hundred scores, and a pure function of them.
"""

from __future__ import annotations

import functools
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]

# The values of each hyperparameter, averaged over by their marginal likelihood. The shears are added to LR_EXPONENT.
# Lengths are in doublings of the batch, e-folds of the rate, and doublings of the share. The noise and the offsets of
# the rungs are variances relative to that of the function. Assumed, and kept few: a few dozen scores cannot distinguish
# more of them. The two lengths for rates are measured (NOTES.md).
_SHEARS = (-0.5, -0.25, 0.0, 0.25, 0.5)
_BATCH_LENGTHS = (1.5, 3.0)
_RATE_LENGTHS = (1.5, 3.0)
_SHARE_LENGTHS = (6.0,)
_NOISES = (0.02, 0.1)
_OFFSET = 1.0  # of a rung: what its scores have in common after scaling

# A score that lies more than this many scales below the best of its rung is compressed by its logarithm: how bad a bad
# score is says little about the best one. The choice among these values is averaged over by marginal likelihood, like
# the hyperparameters; the likelihood is that of the scores before compression (a warped Gaussian process, Snelson et
# al. 2004). Assumed; the gain is measured in benchmarks/NOTES.md.
_SQUASHES = np.array([0.5, 1.0, 4.0])
# The scale of a rung is the distance from its best score to the end of its better third. It needs no unit, and failed
# trials do not change it.
_SCALE_SHARE = 1 / 3
_SCALE_LEAST = 3  # a rung with fewer scores has no scale of its own

# The least scale of a rung, as a share of its widest gap; it is also at least the smallest normal double. So divisions
# by it stay finite, with room to be undone. Assumed: scores that differ by less are not worth telling apart.
_FINEST = 1e-100

# The hyperparameters that hold this share of the weight are used to predict. Assumed.
_WEIGHT_KEPT = 0.98

# The share of a score's noise that is the luck of its seed. The rest belongs to the configuration, for which the kernel
# is too smooth. Measured on tables of three kinds with 0, 1/2 and 1 (benchmarks/NOTES.md).
_LUCK = 0.5

# The factor on the noise that discounts a future score (`Surrogate.expected_improvement`). With 1, a search still
# chooses among neighbours by the luck of seeds. Measured on tables of three kinds: of 0, 1, 4, 8 and 16 none is better
# than 4 on all, and 4 is never worse than 0 (benchmarks/NOTES.md).
_NOISE_COUNTS = 4.0

# Added to the variance of each point of a draw, relative to that of the function: without it, the covariance of points
# that lie close together has no Cholesky factor. Assumed: a thousandth of a standard deviation.
_JITTER = 1e-6


@dataclass(frozen=True, slots=True)
class Observation:
    """One score of a configuration after a share of its schedule; higher is better.

    Attributes:
        batch: logarithm of the effective batch size, base 2.
        rate: natural logarithm of the learning rate, scaled to one batch size.
        share: of the schedule, in (0, 1].
        score: oriented so that higher is better, in any unit.
    """

    batch: float
    rate: float
    share: float
    score: float


@dataclass(frozen=True, slots=True)
class Surrogate:
    """The posterior, a mixture over hyperparameters, with one row for each that counts.

    Attributes:
        points: (n, 3), the points of the scores.
        shears, lengths: (h,) and (h, 3).
        weights: (h,), their sum is 1.
        factors: (h, n, n), inverse Cholesky factors of the covariance.
        solved: (h, n), the covariance's inverse times the values.
        variances: (h,), of the function.
        noises: (h,), of a score, relative to the function's variance.
        squashes: (h,), the way of compressing low scores of each, as an index.
    """

    points: Array
    shears: Array
    lengths: Array
    weights: Array
    factors: Array
    solved: Array
    variances: Array
    noises: Array
    squashes: np.ndarray[Any, np.dtype[np.intp]]

    def believing(self, points: Array) -> Surrogate:
        """The posterior if scores at `points` (m, 3) came out as predicted: for trials that are under way.

        Its mean is the same everywhere, as each new value equals the mean; its variance is lower around them (the
        "kriging believer" of Ginsbourger, Le Riche and Carraro 2010).
        """
        together = np.concatenate([self.points, points])
        noise = self.noises[:, None, None] * np.eye(len(together))
        lower = np.linalg.cholesky(_covariance(together, self.shears, self.lengths) + noise)
        return replace(
            self,
            points=together,
            factors=np.linalg.inv(lower),
            solved=np.concatenate([self.solved, np.zeros((len(self.solved), len(points)))], axis=1),
        )

    def predict(self, points: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the true value at `points` (m, 3), each (h, m), one row per hyperparameter.

        The unit is the scale of a rung near its best score. Only differences between points of one share mean anything.
        """
        kernel = _kernel(points, self.points, self.shears, self.lengths)
        mean = np.einsum("hmn,hn->hm", kernel, self.solved)
        reduced = kernel @ self.factors.transpose(0, 2, 1)
        left = np.maximum(1.0 - np.einsum("hmi,hmi->hm", reduced, reduced), 1e-9)
        return mean, np.sqrt(self.variances[:, None] * left)

    def draw(self, points: Array, *, count: int, seed: int) -> Array:
        """About `count` functions drawn from the posterior, as their values at `points` (m, 3): (count, m).

        Each hyperparameter draws in proportion to its weight, at least once.
        """
        mean, _ = self.predict(points)
        reduced = _kernel(points, self.points, self.shears, self.lengths) @ self.factors.transpose(0, 2, 1)
        covariance = _kernel(points, points, self.shears, self.lengths) - reduced @ reduced.transpose(0, 2, 1)
        lower = np.linalg.cholesky(covariance + _JITTER * np.eye(len(points)))
        generator = np.random.default_rng(seed)
        drawn = []
        for row, share in enumerate(self.weights):
            normal = generator.standard_normal((max(1, round(share * count)), len(points)))
            drawn.append(mean[row] + math.sqrt(self.variances[row]) * normal @ lower[row].T)
        return np.concatenate(drawn)

    def mean(self, points: Array) -> Array:
        """The mean at `points` over all hyperparameters, (m,)."""
        return np.asarray(self.weights @ self.predict(points)[0])

    def expected_improvement(self, points: Array, over: Array) -> Array:
        """By how much `points` (m, 3) are expected to be better than the best of `over` (k, 3), each (m,).

        It compares true values, not noisy scores (Mockus 1978; `over` stands for the best mean). A point that is
        already known about as well as one more score would show it gains little from that score. So the improvement is
        discounted by the share of the deviation that would be left ("augmented expected improvement", Huang, Allen,
        Notz and Zeng 2006, with the noise counted more than once).
        """
        mean, sd = self.predict(points)
        best = self.predict(over)[0].max(axis=1, keepdims=True)
        z = (mean - best) / sd
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        below = 0.5 * (1.0 + _erf(z / math.sqrt(2)))
        noise = _NOISE_COUNTS * (self.noises * self.variances)[:, None]
        told = 1.0 - np.sqrt(noise / (sd * sd + noise))
        return np.asarray(self.weights @ (told * sd * (z * below + density)))


@functools.lru_cache(maxsize=4)
def fit(observations: tuple[Observation, ...]) -> Surrogate:
    """The posterior of these scores, of which there is at least one; a pure function of them."""
    points = np.array([[o.batch, o.rate, math.log2(o.share)] for o in observations])
    values, log_slopes = _values(observations)
    spreads = values.std(axis=0)
    spreads[spreads == 0] = 1.0
    values = (values - values.mean(axis=0)) / spreads
    grid = list(itertools.product(_SHEARS, _BATCH_LENGTHS, _RATE_LENGTHS, _SHARE_LENGTHS))
    shears = np.array([row[0] for row in grid])
    lengths = np.array([row[1:] for row in grid])

    smooth = _covariance(points, shears, lengths)
    lower = np.linalg.cholesky(np.concatenate([smooth + noise * np.eye(len(points)) for noise in _NOISES]))
    noises = np.repeat(_NOISES, len(grid))
    shears, lengths = np.tile(shears, len(_NOISES)), np.tile(lengths, (len(_NOISES), 1))
    whitened = np.linalg.solve(lower, np.broadcast_to(values, (len(lower), *values.shape)))
    # The function's variance, integrated out under an inverse gamma prior that is worth two scores of variance 1.
    fits = 2.0 + np.einsum("hnw,hnw->hw", whitened, whitened)
    count = len(values) + 2
    logs = -0.5 * count * np.log(fits) - np.log(np.einsum("hnn->hn", lower)).sum(axis=1)[:, None]
    logs += (log_slopes - np.log(spreads)).sum(axis=0)  # the likelihood of the scores before compression
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    rows, warps = np.unravel_index(np.argsort(-weights, axis=None, kind="stable"), weights.shape)
    kept = 1 + int(np.searchsorted(np.cumsum(weights[rows, warps]), _WEIGHT_KEPT))
    rows, warps = rows[:kept], warps[:kept]
    factors = np.linalg.inv(lower[rows])
    return Surrogate(
        points=points,
        shears=shears[rows],
        lengths=lengths[rows],
        weights=weights[rows, warps] / weights[rows, warps].sum(),
        factors=factors,
        solved=np.einsum("hji,hj->hi", factors, whitened[rows, :, warps]) * spreads[warps][:, None],
        variances=fits[rows, warps] / count * spreads[warps] ** 2,
        noises=noises[rows],
        squashes=warps,
    )


def denoised(observations: tuple[Observation, ...]) -> Array:
    """Each score without the luck of its seed, (n,), in the unit of the scores.

    For values y with the covariance K + s I, of which a noise of variance r s is to be removed, the posterior mean is y
    - r s (K + s I)^-1 y (Rasmussen and Williams 2006, eq. 2.25, at the data); r is `_LUCK`. A compressed value is
    stretched again afterwards.
    """
    known = fit(observations)
    values, _ = _values(observations)
    bests, scales = _rungs(observations)
    squashes = _SQUASHES[known.squashes][:, None]
    smooth = values[:, known.squashes].T - _LUCK * known.noises[:, None] * known.solved
    return np.asarray(known.weights @ (bests - squashes * scales * np.expm1(-smooth / squashes)))


def _covariance(points: Array, shears: Array, lengths: Array) -> Array:
    """The covariance of scores at `points` (n, 3) without their noise, for each hyperparameter: (h, n, n)."""
    rungs = np.equal.outer(points[:, 2], points[:, 2])
    return np.asarray(_kernel(points, points, shears, lengths) + _OFFSET * rungs)


def _kernel(ones: Array, others: Array, shears: Array, lengths: Array) -> Array:
    """Matern 5/2 between two sets of points, for each hyperparameter: (h, m, n)."""
    left, right = _scaled(ones, shears, lengths), _scaled(others, shears, lengths)
    # |x - y|^2 = |x|^2 + |y|^2 - 2 x y, which avoids an array of all differences. Rounding may make it negative.
    squares = left @ right.transpose(0, 2, 1)
    squares *= -2.0
    squares += (left * left).sum(axis=2)[:, :, None]
    squares += (right * right).sum(axis=2)[:, None, :]
    distance = np.sqrt(5.0 * np.maximum(squares, 0.0, out=squares), out=squares)
    decay = np.exp(-distance)
    decay *= 1.0 + distance * (1.0 + distance / 3.0)
    return decay


def _scaled(points: Array, shears: Array, lengths: Array) -> Array:
    """The points in lengths of the kernel, with sheared rates: (h, m, 3)."""
    batch, rate, share = points.T
    sheared = rate - shears[:, None] * math.log(2) * batch
    columns = (np.broadcast_to(batch, sheared.shape), sheared, np.broadcast_to(share, sheared.shape))
    return np.stack(columns, axis=2) / lengths[:, None, :]


def _values(observations: Sequence[Observation]) -> tuple[Array, Array]:
    """The scores of each rung on one scale: 0 for its best, -1 at the end of its better third, compressed below that.

    (n, w), with a column for each way of compressing, and the logarithm of the factor by which it shortens a small
    difference.
    """
    bests, scales = _rungs(observations)
    gaps = bests - [o.score for o in observations]
    logs = np.log1p(gaps[:, None] / (_SQUASHES * scales[:, None]))
    return -_SQUASHES * logs, -logs


def _rungs(observations: Sequence[Observation]) -> tuple[Array, Array]:
    """For each score, the best of its rung, and how far below that the better third of the rung ends, each (n,)."""
    bests, scales = np.empty((2, len(observations)))
    scale = None
    for share in sorted({o.share for o in observations}):
        here = [index for index, o in enumerate(observations) if o.share == share]
        scores = np.array([observations[index].score for index in here])
        gaps = scores.max() - scores
        widest = float(gaps.max())
        if len(here) >= _SCALE_LEAST or scale is None:
            third = float(np.sort(gaps)[max(1, math.ceil(_SCALE_SHARE * len(here)) - 1)]) if len(here) > 1 else 0.0
            scale = third or widest or scale or 1.0
        scale = max(scale, _FINEST * widest, sys.float_info.min)
        bests[here], scales[here] = scores.max(), scale
    return bests, scales


_erf = np.vectorize(math.erf, otypes=[float])
