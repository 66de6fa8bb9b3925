"""What reads figures, and how a count becomes a rate.

Knows nothing about single figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Reader(Protocol):
    """Reads some figures, by name; what the platform lacks is left out.

    Attributes:
        every_s: seconds between two readings, at least.
    """

    every_s: float

    def read(self, now: float) -> Mapping[str, float]:
        """Figures of this moment, ``now`` seconds on a clock that never goes back."""


class Rates:
    """How fast counts have grown since they were last shown, per second; the first time nothing is known."""

    def __init__(self) -> None:
        self._at, self._before = 0.0, dict[str, float]()

    def __call__(self, now: float, counts: Mapping[str, float]) -> dict[str, float]:
        seconds, before = now - self._at, self._before
        self._at, self._before = now, dict(counts)
        if not before or seconds <= 0:
            return {}
        return {
            name: max(0.0, count - before[name]) / seconds for name, count in counts.items() if name in before
        }
