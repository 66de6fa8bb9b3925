"""Follows advice: one bounded change at a time, kept or taken back by what happened to one figure.

Knows nothing about Lightning, nor what settings mean. All it decides is a function of signals and of the
state it saves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from .advice import Advice, Change
from .rule import Adaptable
from .signals import Sample, Signals
from .statistics import rank_sum, slope, trend

_SURE = 2.33  # Z beyond which a change made things worse: 1 % of changes that do nothing
_VERY_SURE = 3.3  # to say so before the trial is over: 0.05 %
_FEWEST = 8  # samples to say anything
_MOST_REPEATS = 3  # of one change
_RISING = 1.65  # Z of a trend that is expected to go on: 5 %


@dataclass(frozen=True)
class Event:
    """A change that was made, or taken back."""

    kind: Literal["applied", "rolled back"]
    advice: Advice


@dataclass(frozen=True)
class Trial:
    """A change whose effect is watched.

    Args:
        typed: the setting before, as rules know it; a schedule may have moved ``value`` from there.
        since: step it was made at.
        before: newest samples of the figure until then, oldest first.
    """

    rule: str
    setting: str
    value: float
    proposed: float
    typed: Any
    since: int
    before: list[tuple[int, float]]

    @property
    def direction(self) -> str:
        return "up" if self.proposed > self.value else "down"


class Adapter:
    """One change at a time; the next follows only from what was measured since.

    A change is taken back where the figure is worse after it than before, by Wilcoxon's rank sum; where the
    figure was getting worse already, worse than that would have made it. It is then never tried again in
    that direction; one that is kept, at most 3 times.

    Args:
        settings: those that may be changed, by name.
        watched: name of the figure.
        is_better_high: whether a larger figure is better.
        num_samples: of the figure, before a change is judged.
    """

    def __init__(
        self, settings: Mapping[str, Adaptable], watched: str, is_better_high: bool, num_samples: int
    ) -> None:
        self.settings = dict(settings)
        self._watched, self._sign, self._num_samples = watched, 1 if is_better_high else -1, num_samples
        self._trial: Trial | None = None
        self._tried: dict[str, int] = {}  # "setting direction" -> how often; -1: never again
        self._changed: set[str] = set()
        self.effective: dict[str, Any] = {}  # what would have to be typed, where a schedule moves it
        self.settled_at = -1  # step since when nothing was changed

    def decide(self, step: int, signals: Signals, advice: Sequence[Advice]) -> list[Event]:
        """Judge the change that is on trial, else follow the first advice that can be followed.

        Args:
            advice: most urgent first, from what was measured since `settled_at`.
        """
        if self._trial is not None:
            return self._judge(step, signals, self._trial)
        for piece in advice:
            for change in piece.changes:
                if (bounded := self._bounded(change)) is not None:
                    return [self._apply(step, signals, replace(piece, changes=(bounded,)), change.value)]
        return []

    # -- a change ----------------------------------------------------------------------------------

    def _bounded(self, change: Change) -> Change | None:
        """From the value now, within bounds; None where it cannot be made or was tried enough."""
        setting = self.settings.get(change.setting)
        if setting is None or not _is_number(change.proposed):
            return None
        now = setting.get()
        wanted = now * change.proposed / change.value if _is_scale(change.value, now) else change.proposed
        proposed = min(max(float(wanted), setting.low), setting.high)
        if not math.isfinite(proposed) or math.isclose(proposed, now, rel_tol=1e-3):
            return None
        num_tried = self._tried.get(f"{change.setting} {'up' if proposed > now else 'down'}", 0)
        return Change(change.setting, now, proposed) if 0 <= num_tried < _MOST_REPEATS else None

    def _apply(self, step: int, signals: Signals, advice: Advice, typed: Any) -> Event:
        (change,) = advice.changes
        before = [(sample.step, sample.value) for sample in signals.window(self._watched, self._num_samples)]
        trial = Trial(advice.rule, change.setting, change.value, change.proposed, typed, step, before)
        key = f"{trial.setting} {trial.direction}"
        self._tried[key] = self._tried.get(key, 0) + 1
        self._trial, self.settled_at = trial, step
        is_scaled = _is_scale(typed, change.value)
        effective = typed * trial.proposed / trial.value if is_scaled else trial.proposed
        self.effective[trial.setting] = float(f"{effective:.12g}")
        self._set(trial.setting, trial.proposed)
        return Event("applied", advice)

    def _set(self, name: str, value: float) -> None:
        self._changed.add(name)
        self.settings[name].set(value)

    def follow(self, changes: Sequence[tuple[str, float]]) -> None:
        """Values another rank has decided on."""
        for name, value in changes:
            self._set(name, value)

    # -- what came of it ---------------------------------------------------------------------------

    def _judge(self, step: int, signals: Signals, trial: Trial) -> list[Event]:
        samples = [sample for sample in signals.window(self._watched) if sample.step > trial.since]
        is_over = len(samples) >= self._num_samples
        z = self._how_much_worse(trial, samples)
        if z > (_SURE if is_over else _VERY_SURE):
            return [self._roll_back(step, trial, z, len(samples))]
        if is_over:
            self._trial, self.settled_at = None, step
        return []

    def _how_much_worse(self, trial: Trial, samples: Sequence[Sample]) -> float:
        """Z of the newer half of the samples against those before the change."""
        if not all(math.isfinite(sample.value) for sample in samples):
            return math.inf
        if len(samples) < _FEWEST or len(trial.before) < _FEWEST:
            return 0.0
        newer = samples[min(len(samples) // 2, len(samples) - _FEWEST) :]
        before = np.array([-self._sign * value for _, value in trial.before])  # more is worse
        after = np.array([-self._sign * sample.value for sample in newer])
        if trend(before) > _RISING:
            rate = slope(before)
            before = before - rate * np.arange(1 - len(before), 1)
            num_between = len(samples) - len(newer)
            after = after - rate * np.arange(num_between + 1, len(samples) + 1)
        return rank_sum(before, after)

    def _roll_back(self, step: int, trial: Trial, z: float, num_samples: int) -> Event:
        self._tried[f"{trial.setting} {trial.direction}"] = -1
        self._trial, self.settled_at = None, step
        self.effective[trial.setting] = trial.typed
        now = self.settings[trial.setting].get()
        is_as_set = now == trial.proposed or not trial.proposed
        value = trial.value if is_as_set else now * trial.value / trial.proposed
        self._set(trial.setting, value)
        message = (
            f"{trial.setting} {trial.value:g} -> {trial.proposed:g} made {self._watched} worse; taken back, "
            "and not tried again."
        )
        return Event(
            "rolled back",
            Advice(
                rule=trial.rule,
                priority="medium",
                message=message,
                evidence={"worse by": z, "worse by >": _SURE, f"samples of {self._watched}": num_samples},
                source="rank sum of Wilcoxon, Mann and Whitney",
                changes=(Change(trial.setting, now, value),),
            ),
        )

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """With the values of what was changed, as they are now."""
        return {
            "trial": asdict(self._trial) if self._trial else None,
            "tried": dict(self._tried),
            "settled_at": self.settled_at,
            "effective": dict(self.effective),
            "values": {name: self.settings[name].get() for name in sorted(self._changed)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Settings that others have restored already are left alone."""
        self._trial = Trial(**state["trial"]) if state["trial"] else None
        self._tried, self.settled_at = dict(state["tried"]), state["settled_at"]
        self.effective = dict(state["effective"])
        for name, value in state["values"].items():
            self._changed.add(name)
            if name in self.settings and self.settings[name].get() != value:
                self.settings[name].set(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_scale(typed: Any, now: float) -> bool:
    """Whether a proposal for the one is, by its factor, one for the other."""
    return _is_number(typed) and typed != 0 and now != 0 and math.isfinite(now)
