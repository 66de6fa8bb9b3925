"""Robust statistics of a window of samples.

Knows nothing about what was sampled.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

NAN = math.nan
Statistic = Callable[[np.ndarray], float]


def trend(x: np.ndarray) -> float:
    """Mann-Kendall's Z: how surely the samples rise (positive) or fall, in standard deviations.

    Standard normal where they are independent of one another and of time. Below 8 samples NaN.
    Source: H. B. Mann, Nonparametric tests against trend, Econometrica 13 (1945).
    """
    n = len(x)
    if n < 8:
        return NAN
    rises = np.sign(np.subtract.outer(x, x))  # of sample i over sample j
    score = float(np.nansum(np.tril(rises)))
    _, ties = np.unique(x, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    return (score - np.sign(score)) / math.sqrt(variance) if variance > 0 else 0.0


def rank_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Wilcoxon's and Mann and Whitney's Z: how surely ``y`` lies above ``x``, in standard deviations.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947).
    """
    n, m = len(x), len(y)
    if not n or not m:
        return NAN
    above = float((np.sign(np.subtract.outer(y, x)) / 2 + 0.5).sum())
    return (above - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)


def slope(x: np.ndarray) -> float:
    """Theil and Sen's: the median over all pairs, per sample."""
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((x[second] - x[first]) / (second - first))) if len(x) > 1 else NAN


def growth(x: np.ndarray) -> float:
    """Median of the newest third over that of the oldest third."""
    third = len(x) // 3
    if not third or not (old := float(np.median(x[:third]))):
        return NAN
    return float(np.median(x[-third:])) / old


def shift(x: np.ndarray) -> float:
    """Newest third's median less the oldest third's, in units of `noise`."""
    third, spread = len(x) // 3, noise(x)
    return float(np.median(x[-third:]) - np.median(x[:third])) / spread if third and spread else NAN


def noise(x: np.ndarray) -> float:
    """Standard deviation of a sample about its neighbours: 1.05 median absolute differences.

    1.4826 / sqrt(2) = 1.05 where samples are normal; a slow trend does not count.
    """
    return 1.0484 * float(np.median(np.abs(np.diff(x)))) if len(x) > 2 else NAN


def spikes(x: np.ndarray) -> float:
    """Share of samples that lie 8 of `noise` above those before and above those after."""
    spread, inner = noise(x), x[_SIDE:-_SIDE]
    return float(np.mean(inner - _beside(x) > 8 * spread)) if len(inner) and spread else NAN


def tail(x: np.ndarray) -> float:
    """The 98th percentile of samples over those before or after, whichever are larger."""
    inner, beside = x[_SIDE:-_SIDE], _beside(x)
    return float(np.quantile(inner / beside, 0.98)) if len(inner) and bool((beside > 0).all()) else NAN


_SIDE = 4  # samples on either side; a decay, however steep, is not above those before it


def _beside(x: np.ndarray) -> np.ndarray:
    """For all but the outermost: the larger of the medians of the 4 before and the 4 after."""
    if len(x) <= 2 * _SIDE:
        return np.empty(0)
    medians = np.median(np.lib.stride_tricks.sliding_window_view(x, _SIDE), axis=1)
    return np.maximum(medians[: -_SIDE - 1], medians[_SIDE + 1 :])


def quantile(share: float) -> Statistic:
    """The statistic that is this quantile."""
    return lambda x: float(np.quantile(x, share))


STATISTICS: dict[str, Statistic] = {
    "newest": lambda x: float(x[-1]),
    "oldest": lambda x: float(x[0]),
    "count": lambda x: float(len(x)),
    "min": lambda x: float(x.min()),
    "max": lambda x: float(x.max()),
    "mean": lambda x: float(x.mean()),
    "median": lambda x: float(np.median(x)),
    **{f"p{percent:02d}": quantile(percent / 100) for percent in (1, 5, 10, 25, 75, 90, 95, 99)},
    "trend": trend,
    "slope": slope,
    "growth": growth,
    "shift": shift,
    "noise": noise,
    "spikes": spikes,
    "tail": tail,
}
SHARES: dict[str, Callable[[np.ndarray, float], float]] = {
    "share_above": lambda x, bound: float(np.mean(x > bound)),
    "share_below": lambda x, bound: float(np.mean(x < bound)),
}
