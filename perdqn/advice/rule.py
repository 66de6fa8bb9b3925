"""What a rule of value-based learning is: thresholds, settings of PERDQN, and causes that explain it away.

Knows nothing about single rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from holdfast.advising.advice import PRIORITIES, Advice, Change
from holdfast.advising.rule import Rule
from holdfast.advising.signals import Signals
from holdfast.advising.threshold import Threshold

from perdqn.config.values import HINTS, RANGES, own_fault


@dataclass(frozen=True)
class ValueRule(Threshold):
    """A threshold on a run of PERDQN; its confidence is a constant, by which causes come before symptoms.

    What it proposes has the setting's type and lies in its range.

    Args:
        causes: rules that explain what this one sees: where one of them speaks, this one has low priority
            and half its confidence.
    """

    least: int = 1
    causes: tuple[ValueRule, ...] = ()

    def check(self, signals: Signals) -> Advice | None:
        advice = super().check(signals)
        if advice is None:
            return None
        changes = tuple(filter(None, map(_fit, advice.changes)))
        advice = replace(advice, changes=changes, confidence=self.confidence)
        if any(cause.check(signals) is not None for cause in self.causes):
            return replace(advice, priority=PRIORITIES[-1], confidence=self.confidence / 2)
        return advice


def _fit(change: Change) -> Change | None:
    """Of the setting's type and in its range; None where that changes nothing."""
    key = change.setting.removeprefix("model.")
    if key not in HINTS:
        return change
    wanted: Any = change.proposed
    if key in RANGES:
        wanted = min(max(wanted, RANGES[key].low), RANGES[key].high)
    types = get_args(HINTS[key]) or (HINTS[key],)
    wanted = next(kind(round(wanted)) if kind is not float else float(wanted) for kind in types)
    return None if wanted == change.value or own_fault(key, wanted) else replace(change, proposed=wanted)


def advise(rules: Sequence[Rule], signals: Signals) -> list[Advice]:
    """What the rules have to say, what to do first in front."""
    found = [advice for rule in rules if (advice := rule.check(signals)) is not None]
    return sorted(found, key=lambda advice: advice.rank)
