"""When the next regular save is due: by counters, by time, and by what saving costs.

Knows nothing about how a save is made.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_BUILT_IN: dict[str, Callable[[Trainer], int]] = {
    "steps": lambda trainer: trainer.global_step,
    "epochs": lambda trainer: trainer.current_epoch,
}
MINUTES = "minutes"


class Schedule:
    """Due where a counter has passed a multiple of its period since the last save, or time has.

    Args:
        every: periods of "steps", "epochs", "minutes", or any whole number that is the module's attribute.
        max_time_fraction: largest share of the time spent on these saves; slow ones become rarer.
        clock: seconds, monotonic.
    """

    def __init__(
        self, every: Mapping[str, int | float] | None, max_time_fraction: float, clock: Callable[[], float]
    ) -> None:
        for name, period in (every or {}).items():
            if not isinstance(period, numbers.Real) or isinstance(period, bool) or not period > 0:
                raise ValueError(f"every['{name}'] must be a number above 0, got {period!r}; use e.g. 1000")
        if not 0 < max_time_fraction <= 1:
            raise ValueError(
                f"max_time_fraction must lie in (0, 1], got {max_time_fraction}; 0.02 lets saves cost 2 %"
            )
        self.every = dict(every or {})
        self.counters = tuple(name for name in self.every if name not in _BUILT_IN and name != MINUTES)
        self._max_time_fraction = max_time_fraction
        self._clock = clock
        self._counts: dict[str, float] = {}
        self._saved_at = self._not_before = clock()

    def check(self, module: LightningModule) -> None:
        """Refuse a name that means nothing."""
        for name in self.counters:
            value = getattr(module, name, None)
            if not isinstance(value, numbers.Real):
                known = [*_BUILT_IN, MINUTES, *(key for key in dir(type(module)) + list(vars(module)))]
                close = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise MisconfigurationException(
                    f"every['{name}'] is neither steps, epochs, minutes nor a number that "
                    f"{type(module).__name__} counts{hint}"
                )

    def start(self, trainer: Trainer, module: LightningModule) -> None:
        """Count from here."""
        self._saved_at = self._not_before = self._clock()
        self._counts = self._count(trainer, module)

    def saved(self, trainer: Trainer, module: LightningModule, seconds: float = 0.0) -> None:
        """A save was made, or tried; the next is one period away.

        Args:
            seconds: what it took, where it was a regular one.
        """
        self._saved_at = self._clock()
        self._counts = self._count(trainer, module)
        if seconds:
            self._not_before = self._saved_at + seconds * (1 / self._max_time_fraction - 1)

    def is_due(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether to save now; the same on every rank."""
        is_due = self._is_time() or self._has_passed(self._count(trainer, module))
        may_differ = MINUTES in self.every or bool(self.counters)  # from rank to rank
        if not (is_due or (may_differ and trainer.world_size > 1)):
            return False
        is_due = is_due and self._clock() >= self._not_before
        return is_due if trainer.world_size == 1 else bool(trainer.strategy.broadcast(is_due))

    def _count(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        counts = {name: _BUILT_IN[name](trainer) for name in self.every if name in _BUILT_IN}
        return {**counts, **{name: getattr(module, name) for name in self.counters}}

    def _has_passed(self, counts: Mapping[str, Any]) -> bool:
        every = self.every
        return any(count // every[name] > self._counts[name] // every[name] for name, count in counts.items())

    def _is_time(self) -> bool:
        minutes = self.every.get(MINUTES)
        return minutes is not None and self._clock() - self._saved_at >= 60 * minutes
