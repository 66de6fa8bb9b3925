"""One piece of advice: what was seen, what to change, and what that should bring.

Knows nothing about how it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Priority = Literal["critical", "high", "medium", "low"]
PRIORITIES: tuple[Priority, ...] = ("critical", "high", "medium", "low")


@dataclass(frozen=True)
class Change:
    """A setting as it is typed, with its value now and the one proposed."""

    setting: str
    value: Any
    proposed: Any


@dataclass(frozen=True)
class Advice:
    """What a rule found.

    Args:
        rule: its name.
        priority: ``critical``: the run is failing; ``high``: it will miss its aim; ``medium``: time or
            memory is wasted; ``low``: worth knowing.
        message: one sentence, what is wrong and what to do about it.
        evidence: figures that say so, by name; thresholds among them.
        source: where formula and threshold come from.
        changes: to settings; none where there is nothing to set.
        expected: what following it should do, in words.
        gain: expected speed-up as a factor above 1, where it is about speed.
        confidence: in the diagnosis, 0 to 1.
    """

    rule: str
    priority: Priority
    message: str
    evidence: Mapping[str, Any]
    source: str
    changes: tuple[Change, ...] = ()
    expected: str = ""
    gain: float | None = None
    confidence: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @property
    def rank(self) -> tuple[int, float]:
        """Sorts the most urgent and surest first."""
        return PRIORITIES.index(self.priority), -self.confidence
