"""What a LightningModule or DataModule lets an AutoScaler set.

Knows nothing about how a value is found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True)
class Knob:
    """A whole number that decides how fast training is.

    Args:
        get: its value now.
        set: gives it another; called before the first batch, or at a boundary.
        low, high: bounds, both allowed.
        keeps_result: whether every value trains the same bits. Only such a knob is turned while a run goes
            on; any other is decided once, before the first batch, and kept when the run is resumed.
        progress: of a knob that is turned: a count of work done that no value changes, such as updates.
        measure: of one that is decided once: seconds for the same work with a value, on throw-away copies.
        choices: the only values allowed, in order; any if None.
        about: plain values that decide what ``measure`` finds, besides the module's hyperparameters.
    """

    get: Callable[[], int]
    set: Callable[[int], None]
    low: int
    high: int
    keeps_result: bool = False
    progress: Callable[[], int] | None = None
    measure: Callable[[int], float] | None = None
    choices: tuple[int, ...] | None = None
    about: Any = None

    @classmethod
    def fixed(cls, value: int) -> Knob:
        """One that was decided before the module was built, and cannot be set any more."""
        return cls(lambda: value, lambda _: None, value, value)

    @property
    def is_fixed(self) -> bool:
        return not self.keeps_result and self.measure is None

    @property
    def values(self) -> list[int]:
        """Those of the choices that lie within; else from lowest to highest, doubling, with the value now."""
        if self.choices is not None:
            return [value for value in self.choices if self.low <= value <= self.high]
        values, value = {self.low, self.high}, max(1, self.low)
        while value < self.high:
            values.add(value)
            value *= 2
        return sorted(values | {min(self.high, max(self.low, self.get()))})

    def within(self, name: str, low: int, high: int) -> Knob:
        """The same with narrower bounds.

        Raises:
            ValueError: they are not bounds, or lie outside of its own.
        """
        if not self.low <= low <= high <= self.high:
            must = f"lie in [{self.low}, {self.high}], the lower first"
            raise ValueError(f"bounds['{name}'] must {must}, got {[low, high]}")
        narrowed = replace(self, low=low, high=high)
        if not narrowed.values:
            raise ValueError(f"bounds['{name}'] must enclose one of {self.choices}, got {[low, high]}")
        return narrowed


@runtime_checkable
class Scalable(Protocol):
    """A LightningModule or DataModule with settings of that kind."""

    def scalable_settings(self) -> Mapping[str, Knob]:
        """By the names a user knows them by."""
