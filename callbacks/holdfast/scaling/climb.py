"""Finding the fastest of a row of values while each is being used.

Knows nothing about what the values set, nor what a clock is.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any


class HillClimb:
    """Tries the values near the one at hand in turns with it, and moves to one that gains enough.

    Near are those up to two places away: one worker may be no faster than none, and two much faster.
    Windows of both alternate, so that what disturbs the machine meets both; the median of their ratios
    decides, so that a save or a hiccup in some windows does not. A value that lost is not tried again, so it
    does not go back and forth; it has settled when none near is left.

    Args:
        values: in order.
        start: the one at hand.
        min_gain: share of the time that a move must save.
        rounds: pairs of windows compared.
    """

    def __init__(self, values: Sequence[int], start: int, min_gain: float = 0.05, rounds: int = 5) -> None:
        self._values, self._min_gain, self._rounds = list(values), min_gain, rounds
        self.best = start  # the value at hand
        self._slower: set[int] = set()
        self._begin()

    @property
    def value(self) -> int:
        """The one to use in the next window."""
        return self.best if self._trial is None or len(self._seconds) % 2 == 0 else self._trial

    @property
    def is_settled(self) -> bool:
        return self._trial is None

    def note(self, seconds: float) -> None:
        """What a window with `value` took for the same work as any other."""
        if self._trial is None:
            return
        self._seconds.append(seconds)
        if len(self._seconds) == 2 * self._rounds:
            self._decide(self._trial)

    def _decide(self, trial: int) -> None:
        pairs = zip(self._seconds[::2], self._seconds[1::2], strict=True)
        ratio = statistics.median(tried / usual for usual, tried in pairs)
        winner, loser = (trial, self.best) if ratio < 1 - self._min_gain else (self.best, trial)
        self.best = winner
        self._slower.add(loser)
        self._begin()

    def _begin(self) -> None:
        self._seconds: list[float] = []
        at = self._values.index(self.best)
        near = [at + way for way in (1, -1, 2, -2) if 0 <= at + way < len(self._values)]
        left = [self._values[place] for place in near if self._values[place] not in self._slower]
        self._trial = left[0] if left else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values; windows of a comparison that has not ended are measured again."""
        return {"best": self.best, "slower": sorted(self._slower)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as saved; from the start where the values do not have that one any more."""
        if state["best"] in self._values:
            self.best, self._slower = state["best"], set(state.get("slower", ()))  # older saves have none
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
