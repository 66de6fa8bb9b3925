"""How long an iteration of the training takes, seen from outside.

Knows nothing about what an iteration is.
"""

from __future__ import annotations

from collections.abc import Callable


class Pace:
    """Seconds an iteration took lately, and at least as many as the present one has taken already.

    Args:
        count: how many iterations are complete; None while something else goes on, that can be given up.
        clock: seconds, monotonic.
    """

    def __init__(self, count: Callable[[], int | None], clock: Callable[[], float]) -> None:
        self._count, self._clock = count, clock
        self._at, self._number = clock(), count() or 0
        self._seconds = 0.0

    def seconds(self) -> float:
        """Now; to be asked about once a second."""
        now, number = self._clock(), self._count()
        if number is None:
            self._at = now
            return self._seconds
        elapsed = now - self._at
        if number == self._number:
            return max(self._seconds, elapsed)
        self._seconds = elapsed / (number - self._number)
        self._at, self._number = now, number
        return self._seconds
