"""Which advice was given and still holds, so that each is said once.

Knows nothing about how it is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .advice import Advice, Change

_MUCH_SURER = 0.2
_SILENT_CHECKS = 3


class Standing:
    """Advice by rule.

    It is news where its rule was silent before, where its priority rose, or where its confidence grew by 0.2.
    It is withdrawn once its rule was silent in 3 checks in a row.
    """

    def __init__(self) -> None:
        self.advice: dict[str, Advice] = {}
        self._silent: dict[str, int] = {}

    def update(self, found: Sequence[Advice]) -> tuple[list[Advice], list[Advice]]:
        """What is news, and what is withdrawn, each most urgent first."""
        news = [advice for advice in found if self._is_news(advice)]
        self.advice.update({advice.rule: advice for advice in news})
        spoken = {advice.rule for advice in found}
        self._silent = {rule: self._silent.get(rule, 0) + 1 for rule in self.advice if rule not in spoken}
        gone = [rule for rule, checks in self._silent.items() if checks >= _SILENT_CHECKS]
        withdrawn = [self.advice.pop(rule) for rule in gone]
        return sorted(news, key=lambda a: a.rank), sorted(withdrawn, key=lambda a: a.rank)

    def _is_news(self, advice: Advice) -> bool:
        before = self.advice.get(advice.rule)
        if before is None or advice.rank[0] < before.rank[0]:
            return True
        return advice.confidence >= before.confidence + _MUCH_SURER

    def state_dict(self) -> dict[str, Any]:
        given = {rule: json.dumps(advice.as_dict(), default=float) for rule, advice in self.advice.items()}
        return {"advice": given, "silent": dict(self._silent)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._silent = dict(state["silent"])
        self.advice = {rule: _from_dict(json.loads(text)) for rule, text in state["advice"].items()}


def _from_dict(fields: Mapping[str, Any]) -> Advice:
    changes = tuple(Change(**change) for change in fields["changes"])
    return Advice(**{**fields, "changes": changes})
