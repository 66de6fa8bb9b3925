"""What a change does, from pairs that differ in nothing else: mean difference with its interval.

Knows nothing about runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
METHOD = "paired t"


@dataclass(frozen=True)
class Effect:
    """Differences of pairs, changed less unchanged.

    Args:
        mean: of the differences.
        low, high: bounds of its interval at `CONFIDENCE`; None of a single pair, which has none.
        improved: share of the pairs in which the change was better, ties counting half.
        num_pairs: differences there are.
    """

    mean: float
    low: float | None
    high: float | None
    improved: float
    num_pairs: int

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``no evidence`` where the interval covers 0 or there is none."""
        if self.low is not None and self.low > 0:
            return "better"
        return "worse" if self.high is not None and self.high < 0 else "no evidence"

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict, "method": METHOD, "confidence": CONFIDENCE}


def paired_effect(unchanged: Sequence[float], changed: Sequence[float]) -> Effect | None:
    """The effect over pairs [n] of each; None of no pair.

    Differences are taken as drawn from a normal distribution, whose spread is estimated from them: Student's
    interval has its 95 % with five pairs too, where a bootstrap's has some 80.
    """
    differences = np.subtract(changed, unchanged, dtype=np.float64)
    n = len(differences)
    if n == 0:
        return None
    mean, improved = float(differences.mean()), float((np.sign(differences) / 2 + 0.5).mean())
    if n == 1:
        return Effect(mean, None, None, improved, n)
    reach = t_quantile((1 + CONFIDENCE) / 2, n - 1) * float(differences.std(ddof=1)) / math.sqrt(n)
    return Effect(mean, mean - reach, mean + reach, improved, n)


def t_quantile(share: float, freedom: int) -> float:
    """Quantile of Student's t with ``freedom`` degrees of freedom, for a ``share`` above one half."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < share else (low, middle)
    return high


def _t_cdf(t: float, freedom: int) -> float:
    """Source: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    term, total = (cosine, cosine) if freedom % 2 else (1.0, 1.0)
    for k in range(3 if freedom % 2 else 2, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom % 2 == 0:
        return 0.5 + math.sin(angle) * total / 2
    return 0.5 + (angle + (math.sin(angle) * total if freedom > 1 else 0.0)) / math.pi
