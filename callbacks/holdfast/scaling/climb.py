"""Finding the fastest of a row of values while each is being used.

Knows nothing about what the values set, nor what a clock is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any


class HillClimb:
    """Tries the next value above and below in turns with the one at hand, and moves where that gains enough.

    Windows of both alternate, so that what disturbs the machine meets both; the median of their ratios
    decides, so that a save or a hiccup in some windows does not. It has settled when neither neighbour is
    faster by ``min_gain``; that keeps it from going back and forth.

    Args:
        values: in order.
        start: the one at hand.
        min_gain: share of the time that a move must save.
        rounds: pairs of windows compared.
    """

    def __init__(self, values: Sequence[int], start: int, min_gain: float = 0.05, rounds: int = 5) -> None:
        self._values, self._min_gain, self._rounds = list(values), min_gain, rounds
        self._at = self._values.index(start)
        self._direction = 0
        self._refused: set[int] = set()
        self._begin()

    @property
    def best(self) -> int:
        """The value at hand."""
        return self._values[self._at]

    @property
    def value(self) -> int:
        """The one to use in the next window."""
        is_trial = self._direction and len(self._seconds) % 2
        return self._values[self._at + self._direction] if is_trial else self.best

    @property
    def is_settled(self) -> bool:
        return self._direction == 0

    def note(self, seconds: float) -> None:
        """What a window with `value` took for the same work as any other."""
        if self.is_settled:
            return
        self._seconds.append(seconds)
        if len(self._seconds) == 2 * self._rounds:
            self._decide()

    def _decide(self) -> None:
        pairs = zip(self._seconds[::2], self._seconds[1::2], strict=True)
        ratio = statistics.median(trial / base for base, trial in pairs)
        if ratio < 1 - self._min_gain:
            self._at += self._direction
            self._refused = {-self._direction}  # slower, as was just seen
        else:
            self._refused.add(self._direction)
        self._begin()

    def _begin(self) -> None:
        self._seconds: list[float] = []
        inside = range(len(self._values))
        open_ways = [way for way in (1, -1) if way not in self._refused and self._at + way in inside]
        self._direction = open_ways[0] if open_ways else 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values; windows of a comparison that has not ended are measured again."""
        return {"best": self.best, "refused": sorted(self._refused)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as saved; from the start where the values do not have that one any more."""
        if state["best"] in self._values:
            self._at, self._refused = self._values.index(state["best"]), set(state["refused"])
            self._begin()


def fastest(
    values: Sequence[int], now: int, measure: Callable[[int], float], min_gain: float = 0.05, rounds: int = 3
) -> int:
    """The value with the least median time, each measured ``rounds`` times in turns.

    It must save ``min_gain`` of the time against ``now``, which is kept otherwise. The first time of each
    is not counted.
    """
    for value in values:
        measure(value)
    taken = [[measure(value) for value in values] for _ in range(rounds)]
    medians = dict(zip(values, map(statistics.median, zip(*taken, strict=True)), strict=True))
    best = min(values, key=lambda value: medians[value])
    return best if now not in medians or medians[best] < (1 - min_gain) * medians[now] else now
