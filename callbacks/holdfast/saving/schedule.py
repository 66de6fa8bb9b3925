"""When the next regular save is due: by counters, by time, and by what saving costs.

Knows nothing about how a save is made.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

_Count = Callable[[Trainer, LightningModule], float]
_BUILT_IN: dict[str, _Count] = {
    "steps": lambda trainer, module: trainer.global_step,
    "epochs": lambda trainer, module: trainer.current_epoch,
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
        self._due: list[tuple[_Count, float]] = []  # what to count, and the next multiple of its period
        self._due_at = float("inf")
        self._not_before = clock()
        self._is_alone = True
        self._may_differ = MINUTES in self.every or bool(self.counters)  # from rank to rank

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
        self._not_before = self._clock()
        self._is_alone = trainer.world_size == 1
        self.saved(trainer, module)

    def saved(self, trainer: Trainer, module: LightningModule, seconds: float = 0.0) -> None:
        """A save was made, or tried; the next is one period away.

        Args:
            seconds: what it took, where it was a regular one.
        """
        now = self._clock()
        self._due_at = now + 60 * self.every.get(MINUTES, float("inf"))
        periods = ((period, self._counted(name)) for name, period in self.every.items() if name != MINUTES)
        self._due = [(count, (count(trainer, module) // n + 1) * n) for n, count in periods]
        if seconds:
            self._not_before = now + seconds * (1 / self._max_time_fraction - 1)

    def is_due(self, trainer: Trainer, module: LightningModule) -> bool:
        """Whether to save now; the same on every rank."""
        is_due = self._clock() >= self._due_at
        for count, due in self._due:
            is_due = is_due or count(trainer, module) >= due
        if not is_due and (self._is_alone or not self._may_differ):
            return False
        is_due = is_due and self._clock() >= self._not_before
        return is_due if self._is_alone else bool(trainer.strategy.broadcast(is_due))

    @staticmethod
    def _counted(name: str) -> _Count:
        return _BUILT_IN.get(name) or (lambda trainer, module: getattr(module, name))
