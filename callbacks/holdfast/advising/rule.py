"""What a rule is, and what a LightningModule may say of itself to those who advise.

Knows nothing about single rules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .advice import Advice
from .signals import Signals


class Rule(ABC):
    """Looks at signals and settings, and may have something to say.

    A rule is a pure function of what it is shown: the same signals give the same advice, so that advice that
    is followed in a run is followed again where the run is resumed.
    """

    name: str

    @abstractmethod
    def check(self, signals: Signals) -> Advice | None:
        """None where nothing is wrong, or too little is known to say so."""


@dataclass(frozen=True)
class Adaptable:
    """A setting that may be changed while the run goes on.

    Args:
        get: its value now.
        set: gives it another; called at a boundary.
        low: lowest value allowed.
        high: highest.
    """

    get: Callable[[], float]
    set: Callable[[float], None]
    low: float
    high: float


@runtime_checkable
class Advisable(Protocol):
    """A LightningModule that knows more of itself than it logs."""

    def advice_rules(self) -> Sequence[Rule]:
        """Rules for what it is."""

    def advice_signals(self) -> Mapping[str, float]:
        """Figures that are measured when asked for; draws no random number and changes nothing."""

    def advice_settings(self) -> Mapping[str, Any]:
        """Its settings by the dotted names a user types."""

    def adaptable_settings(self) -> Mapping[str, Adaptable]:
        """Those that may be changed while the run goes on, by the same names."""
