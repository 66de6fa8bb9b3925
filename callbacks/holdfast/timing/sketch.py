"""Durations as counts in bins of equal ratio: percentiles in bounded memory, however many are added.

Knows nothing about what took the time.
"""

from __future__ import annotations

import math

_PER_OCTAVE = 8
_SMALLEST_S = 1e-9


class Sketch:
    """A percentile is at most 4.5 % beside the true one: half a bin. At most some 500 bins are in use."""

    __slots__ = ("bins", "count", "highest_s", "lowest_s", "total_s")

    def __init__(self) -> None:
        self.bins: dict[int, int] = {}
        self.count = 0
        self.total_s = 0.0
        self.lowest_s, self.highest_s = math.inf, 0.0

    def add(self, seconds: float) -> None:
        index = math.floor(_PER_OCTAVE * math.log2(seconds)) if seconds > _SMALLEST_S else -240
        self.bins[index] = self.bins.get(index, 0) + 1
        self.count += 1
        self.total_s += seconds
        if seconds < self.lowest_s:
            self.lowest_s = seconds
        if seconds > self.highest_s:
            self.highest_s = seconds

    def merge(self, other: Sketch) -> None:
        """As if all of the other's durations had been added."""
        for index, count in other.bins.items():
            self.bins[index] = self.bins.get(index, 0) + count
        self.count += other.count
        self.total_s += other.total_s
        self.lowest_s = min(self.lowest_s, other.lowest_s)
        self.highest_s = max(self.highest_s, other.highest_s)

    def percentile(self, percent: float) -> float:
        """Seconds that ``percent`` of the durations do not exceed; 0 where there are none."""
        wanted, seen = max(1, math.ceil(percent / 100 * self.count)), 0
        for index, count in sorted(self.bins.items()):
            seen += count
            if seen >= wanted:
                middle: float = 2 ** ((index + 0.5) / _PER_OCTAVE)
                return min(max(middle, self.lowest_s), self.highest_s)
        return 0.0
