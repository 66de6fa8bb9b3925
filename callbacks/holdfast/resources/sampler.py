"""Reads all figures that are due, and lets no reader take more than its share of the time.

Knows nothing about single figures, nor threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from .reader import Reader

MOST_OF_TIME = 0.001  # for one reader; a dearer one is asked less often
_AFTER_FAILURE_S = 60.0


class Sampler:
    """Asks readers whenever they are due; one that fails is told of once and asked again a minute later.

    Args:
        readers: what is asked.
        note: says a sentence to the user, the same one only once.
        cpu_clock: processor time of this thread, in seconds.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        note: Callable[[str], None],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._readers, self._note, self._cpu_clock = list(readers), note, cpu_clock
        self._due = [float("-inf")] * len(self._readers)
        self._newest: list[dict[str, float]] = [{} for _ in self._readers]

    def sample(self, now: float) -> dict[str, float]:
        """The newest figures of all readers, asked now where they are due."""
        for index, reader in enumerate(self._readers):
            if now >= self._due[index]:
                self._ask(index, reader, now)
        return {name: value for figures in self._newest for name, value in figures.items()}

    def _ask(self, index: int, reader: Reader, now: float) -> None:
        began = self._cpu_clock()
        try:
            self._newest[index] = dict(reader.read(now))
            wait = reader.every_s
        except Exception as error:
            self._note(f"{type(reader).__name__} cannot be read: {error!r}")
            self._newest[index] = {}
            wait = max(_AFTER_FAILURE_S, reader.every_s)
        wait = max(wait, (self._cpu_clock() - began) / MOST_OF_TIME)
        self._due[index] = now + 0.99 * wait  # a thread's turns come a little early or late
