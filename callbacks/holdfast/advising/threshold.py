"""A rule that is data: conditions on statistics of signals, and what to propose where they all hold.

Knows nothing about single rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .advice import Advice, Change, Priority
from .expression import Condition, Expression
from .names import find_setting
from .rule import Rule
from .signals import Signals


@dataclass(frozen=True)
class Threshold(Rule):
    """Advises where all conditions hold.

        Threshold(
            name="grad_norm_tails",
            when=["tail(grad_norm) > 10"],
            priority="medium",
            message="Single gradients are {0:.0f} times as long as those around them; clip them.",
            source="arXiv:2007.14469",
            setting="gradient_clip_val",
            propose="p90(grad_norm)",
        )

    Conditions and what is computed are `Expression`s. Confidence grows from ``confidence`` at the threshold
    to 1 far beyond it, by the first condition: x 2 is half of the way, x 10 nine tenths.

    Args:
        name: of the rule.
        when: conditions; the first is the one the message is about.
        message: for `str.format`: {0}, {1} are left sides of the conditions, {value} and {proposed} the
            setting's.
        setting: as it is typed, or its role (see `names.SETTINGS`).
        propose: expression for its new value; ``value`` is the present one. Without it, or where the setting
            has no number, the advice has no change.
        gain: expression for the speed-up.
        least: samples of each signal, below which nothing is said.
        window: newest samples looked at.
        confidence: at the threshold.

    Raises:
        ValueError: an expression cannot be computed.
    """

    name: str
    when: Sequence[str]
    priority: Priority
    message: str
    source: str
    setting: str | None = None
    propose: str | None = None
    expected: str = ""
    gain: str | None = None
    least: int = 20
    window: int = 100
    confidence: float = 0.5
    _conditions: tuple[Condition, ...] = field(init=False, repr=False, compare=False)
    _propose: Expression | None = field(init=False, repr=False, compare=False)
    _gain: Expression | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.when, str) or not self.when:
            raise ValueError(f"rule {self.name}: when must be a list of conditions, got {self.when!r}")
        object.__setattr__(self, "_conditions", tuple(Condition(text) for text in self.when))
        object.__setattr__(self, "_propose", Expression(self.propose) if self.propose else None)
        object.__setattr__(self, "_gain", Expression(self.gain) if self.gain else None)

    @property
    def signals(self) -> set[str]:
        """Names of those it looks at."""
        sides = [side for condition in self._conditions for side in (condition.left, condition.right)]
        return {name for side in sides for name in side.signals}

    def check(self, signals: Signals) -> Advice | None:
        found = []
        for condition in self._conditions:
            held = condition(signals, self.least, self.window)
            if held is None:
                return None
            found.append(held)
        change = self._change(signals)
        figures = [next(iter(held.values())) for held in found]
        named = {"value": change.value, "proposed": change.proposed} if change else {}
        return Advice(
            rule=self.name,
            priority=self.priority,
            message=self.message.format(*figures, **{"value": "", "proposed": "", **named}),
            evidence={name: value for held in found for name, value in held.items()},
            source=self.source,
            changes=(change,) if change else (),
            expected=self.expected,
            gain=self._gain(signals, 1, self.window) if self._gain else None,
            confidence=self.confidence + (1 - self.confidence) * _margin(*found[0].values()),
        )

    def _change(self, signals: Signals) -> Change | None:
        if self.setting is None or self._propose is None:
            return None
        setting, value = find_setting(signals.settings, self.setting)
        number = {} if isinstance(value, bool | str | None) else {"value": float(value)}
        proposed = self._propose(signals, 1, self.window, **number)
        if setting is None or proposed is None or proposed == value:
            return None
        return Change(setting, value, float(f"{proposed:.3g}"))


def _margin(figure: float, bound: float) -> float:
    """How far a figure is beyond its bound, 0 to 1."""
    small, large = sorted((abs(figure), abs(bound)))
    return 1 - small / large if figure * bound > 0 and large < float("inf") else 1.0
