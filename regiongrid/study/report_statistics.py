"""Intervals over seeds, and rank correlations whose intervals take runs, not points, as independent.

>>> [round(number, 3) for number in t_interval([1.0, 2.0, 3.0])]
[2.0, -0.484, 4.484, 3]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 1_000
LEAST_RUNS = 3
"""Two runs can be drawn in three ways only, whose spread says next to nothing."""
_SEED = 0


class Interval(NamedTuple):
    """A mean with its interval; over ``seeds`` values; ``low`` and ``high`` are NaN for too few of them."""

    mean: float
    low: float
    high: float
    seeds: int

    def map(self, function: Callable[[float], float]) -> Interval:
        """The interval of a function that grows (such as `math.exp`)."""
        return Interval(function(self.mean), function(self.low), function(self.high), self.seeds)

    def clipped(self, least: float, most: float) -> Interval:
        """The interval as far as values can lie."""
        return self._replace(low=max(self.low, least), high=min(self.high, most))  # NaN stays NaN


def t_interval(values: ArrayLike) -> Interval:
    """Mean of values of independent seeds, and Student's 95% interval of it; NaN are left out."""
    from scipy.stats import t

    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    if x.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(x.mean())
    if x.size == 1:
        return Interval(mean, math.nan, math.nan, 1)
    half = float(t.ppf((1 + CONFIDENCE) / 2, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size))
    return Interval(mean, mean - half, mean + half, int(x.size))


def predicted_range(values: Array, confidence: float) -> tuple[Array, Array]:
    """Where one more seed would lie, by Student's prediction interval; values [seeds, n] to low and high, [n]."""
    from scipy.stats import t

    count = len(values)
    if count < 2:
        return np.full(values.shape[1], -np.inf), np.full(values.shape[1], np.inf)
    half: Array = t.ppf((1 + confidence) / 2, count - 1) * values.std(axis=0, ddof=1) * math.sqrt(1 + 1 / count)
    mean = values.mean(axis=0)
    return mean - half, mean + half


def spearman(x: Array, y: Array) -> float:
    """Spearman's rank correlation; NaN for fewer than three pairs, or where one of both does not change."""
    return float(_row_spearman(x[None], y[None])[0])


def clustered_spearman(x: Sequence[Array], y: Sequence[Array]) -> Interval:
    """Spearman's rank correlation of all points of several runs, with a percentile bootstrap over whole runs.

    Points of one run are not independent; so runs are drawn with replacement, `RESAMPLES` times. Fewer than
    `LEAST_RUNS` runs have no interval.

    Parameters
    ----------
    x, y
        The points of each run, [n] a run.
    """
    pairs = [(a[ok], b[ok]) for a, b in zip(x, y) for ok in [np.isfinite(a) & np.isfinite(b)]]
    pairs = [(a, b) for a, b in pairs if a.size]
    if not pairs:
        return Interval(math.nan, math.nan, math.nan, 0)
    whole = spearman(np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs]))
    if len(pairs) < LEAST_RUNS:
        return Interval(whole, math.nan, math.nan, len(pairs))
    drawn = np.random.Generator(np.random.PCG64(_SEED)).integers(len(pairs), size=(RESAMPLES, len(pairs)))
    if len({a.size for a, _ in pairs}) == 1:
        both = np.stack([np.stack(pair) for pair in pairs])  # [runs, 2, n]
        found = _row_spearman(*(both[drawn, k].reshape(RESAMPLES, -1) for k in (0, 1)))
    else:
        found = np.array([spearman(*(np.concatenate([pairs[i][k] for i in row]) for k in (0, 1))) for row in drawn])
    found = found[np.isfinite(found)]
    if not found.size:
        return Interval(whole, math.nan, math.nan, len(pairs))
    low, high = np.percentile(found, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return Interval(whole, float(low), float(high), len(pairs))


def _row_spearman(x: Array, y: Array) -> Array:
    """Of each row of x and y, [B, n] to [B]."""
    from scipy.stats import rankdata

    if x.shape[1] < 3:
        return np.full(len(x), np.nan)
    a, b = (rankdata(values, axis=1) for values in (x, y))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    product = (a * b).sum(axis=1)
    found: Array = np.divide(product, size, out=np.full(len(x), np.nan), where=size > 0)
    return found
