"""How fast something grows, on several scales of time, told apart from jumps and noise.

Knows nothing about what grows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import combinations
from statistics import median


class Growth:
    """The steadiest growth seen in a series, from tenths of seconds to ``window_s``.

    On each scale the last eight samples count. Their rate is the median slope of all pairs (Theil-Sen), or of
    the newer half's if that is more, and it counts where almost all pairs rise (Kendall's tau above
    `STEADY`). A single jump makes at most 16 of 28 pairs rise, and noise one time in 150.

    Args:
        window_s: length of the longest scale.
    """

    NUM_SAMPLES = 8
    STEADY = 0.65

    def __init__(self, window_s: float) -> None:
        spacings = [0.0]
        while (spacing := max(0.5, 4 * spacings[-1])) < window_s / self.NUM_SAMPLES:
            spacings.append(spacing)
        self._scales = [_Scale(spacing) for spacing in [*spacings, window_s / self.NUM_SAMPLES]]

    def add(self, at: float, value: float) -> None:
        """A sample, ``at`` seconds on a clock that never goes back."""
        for scale in self._scales:
            scale.add(at, value)

    @property
    def rate(self) -> float:
        """Per second, on the scale that grows fastest; 0 where nothing grows steadily."""
        return max(scale.rate for scale in self._scales)


class _Scale:
    def __init__(self, spacing_s: float) -> None:
        self.rate = 0.0
        self._spacing_s = spacing_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=Growth.NUM_SAMPLES)

    def add(self, at: float, value: float) -> None:
        if self._samples and at - self._samples[-1][0] < max(self._spacing_s, 1e-3):
            return
        self._samples.append((at, value))
        if len(self._samples) < Growth.NUM_SAMPLES:
            return
        slopes = _slopes(list(self._samples))
        tau = sum((slope > 0) - (slope < 0) for slope in slopes) / len(slopes)
        newest = list(self._samples)[Growth.NUM_SAMPLES // 2 :]  # all of growth that has only begun
        self.rate = max(median(slopes), median(_slopes(newest))) if tau >= Growth.STEADY else 0.0


def _slopes(samples: Sequence[tuple[float, float]]) -> list[float]:
    """Of all pairs."""
    return [(w - v) / (b - a) for (a, v), (b, w) in combinations(samples, 2)]
