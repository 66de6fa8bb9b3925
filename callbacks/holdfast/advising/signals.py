"""The newest figures of a run by name, and its settings: what rules look at.

Knows nothing about what the figures mean.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple


class Sample(NamedTuple):
    """A figure and the step it was measured at."""

    step: int
    value: float


class Signals:
    """Bounded windows of figures.

    Args:
        settings: of the run, by the dotted name a user types.
        length: samples kept of each figure.
    """

    def __init__(self, settings: Mapping[str, Any] | None = None, length: int = 256) -> None:
        self.settings = dict(settings or {})
        self._length = length
        self._windows: dict[str, deque[Sample]] = {}

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of one moment; those that are not numbers are left out, infinite ones are not."""
        for name, value in figures.items():
            if not math.isnan(value):
                window = self._windows.setdefault(name, deque(maxlen=self._length))
                window.append(Sample(step, float(value)))

    def newest(self, name: str) -> float | None:
        """None where it was never measured."""
        window = self._windows.get(name)
        return window[-1].value if window else None

    def window(self, name: str, num: int | None = None) -> list[Sample]:
        """The newest ``num`` samples, oldest first; all that are kept where None."""
        samples = list(self._windows.get(name, ()))
        return samples if num is None else samples[-num:] if num else []

    def select(self, since: int = -1, without: Collection[str] = ()) -> Signals:
        """Those measured after a step, but for some names."""
        chosen = Signals(self.settings, self._length)
        for name, window in self._windows.items():
            samples = [sample for sample in window if sample.step > since]
            if samples and name not in without:
                chosen._windows[name] = deque(samples, self._length)
        return chosen

    def __iter__(self) -> Iterator[str]:
        """Names of those that were measured."""
        return iter(self._windows)

    def __contains__(self, name: str) -> bool:
        return name in self._windows

    def state_dict(self) -> dict[str, Any]:
        return {name: [tuple(sample) for sample in window] for name, window in self._windows.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._windows = {
            name: deque((Sample(*sample) for sample in samples), maxlen=self._length)
            for name, samples in state.items()
        }
