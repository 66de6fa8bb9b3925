"""HyperparameterTuner: recommendations for numbers somebody has, without a Trainer.

Knows nothing about Lightning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .general import general_rules
from .names import FIGURES, SETTINGS, figure_of
from .rule import Rule
from .signals import Signals
from .threshold import Threshold


class HyperparameterTuner:
    """Looks at a dict of metrics as rules look at a run.

    A sequence is a history, oldest first. A number stands for all of it: rules that ask how high something is
    answer, those that ask for a trend do not.

    Args:
        rules: more of them; one with the name of a general rule replaces it.
        settings: of the run, by the names a user types; those in the metrics count too.
        names: what a key of the metrics is called by rules, where they do not know it.
        general: whether the rules for any run are asked.
    """

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        settings: Mapping[str, Any] | None = None,
        names: Mapping[str, str] | None = None,
        general: bool = True,
    ) -> None:
        self.rules = merge(general_rules() if general else [], rules)
        self.settings, self.names = dict(settings or {}), dict(names or {})
        self.notes: list[str] = []  # of the newest call: what was not understood

    def get_tuning_recommendations(self, training_metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
        """As `Advice.as_dict`, most urgent first; what was ignored stands in ``notes``.

        Args:
            training_metrics: numbers, or sequences of numbers, by their usual names: loss, val_loss,
                grad_norm, learning_rate, batch_size, ...; or by the names the rules use.
        """
        self.notes = []
        signals = self._read(training_metrics)
        found = [advice for rule in self.rules if (advice := _eager(rule).check(signals)) is not None]
        return [advice.as_dict() for advice in sorted(found, key=lambda advice: advice.rank)]

    def _read(self, metrics: Mapping[str, Any]) -> Signals:
        histories = {name: _history(value) for name, value in metrics.items()}
        longest = max((len(history) for history in histories.values() if history), default=1)
        signals = Signals(self.settings, max(longest, 1))
        for name, history in histories.items():
            if history is None:
                self.notes.append(f"{name} is ignored: {metrics[name]!r:.40} is neither number nor numbers")
                continue
            known = {self.names.get(name), figure_of(name), name} - {None}
            if not known & self._known and name.rpartition(".")[2] not in _SETTINGS:
                self.notes.append(f"{name} is ignored: no rule knows it")
            for step, value in enumerate(history):
                signals.add(step, {str(each): value for each in known})
            if name.rpartition(".")[2] in _SETTINGS and history:
                signals.settings.setdefault(name, history[-1])
        _derive(signals, {name: history for name, history in histories.items() if history})
        return signals

    @property
    def _known(self) -> set[str]:
        looked_at = [rule.signals for rule in self.rules if isinstance(rule, Threshold)]
        return {*FIGURES, *self.names.values()}.union(*looked_at)


_SETTINGS = {word for name, words in SETTINGS.items() for word in (name, *words.split())}


def merge(rules: Sequence[Rule], others: Iterable[Rule]) -> list[Rule]:
    """All of them; of two with one name the later."""
    return list({rule.name: rule for rule in (*rules, *others)}.values())


def _derive(signals: Signals, histories: Mapping[str, list[float]]) -> None:
    """What `Vitals` would have measured beside them."""
    watched = {
        name: history for name, history in histories.items() if figure_of(name) in ("loss", "grad_norm")
    }
    for name, history in watched.items():
        if len(history) >= 20:
            signals.add(0, {f"{figure_of(name)}_start": float(np.median(history[:10]))})
    for back in range(max(map(len, watched.values()), default=0), 0, -1):
        newest = [history[-back] for history in watched.values() if len(history) >= back]
        signals.add(-back, {"non_finite": float(not np.isfinite(newest).all())})


def _eager(rule: Rule) -> Rule:
    """The rule, content with a single sample."""
    return dataclasses.replace(rule, least=1) if isinstance(rule, Threshold) else rule


def _history(value: Any) -> list[float] | None:
    if isinstance(value, str | bytes | bool | Mapping | None):
        return None
    try:
        return [float(x) for x in np.asarray(value, dtype=float).reshape(-1)]
    except (TypeError, ValueError):
        return None
