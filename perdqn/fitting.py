"""Settings that change what is learnt, decided once before a new run by how fast it is with them here.

Knows nothing about command lines, nor how a pace is measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from holdfast.scaling.cache import remembered
from holdfast.scaling.climb import fastest
from holdfast.scaling.knob import Knob

from perdqn.calibration import time_training
from perdqn.config import Config, ConfigError, check
from perdqn.learning.inductor import cache_folder

DECIDED_ONCE = ("learner.num_threads", "env.num_envs")
SCALABLE = (*DECIDED_ONCE, "learner.updates_per_step")  # the last while a run goes on
_MOST = 1 << 16


def fit_to_machine(
    config: Config,
    bounds: Mapping[str, Sequence[int]],
    min_gain: float = 0.05,
    seconds: float = 0.4,
    clock: Callable[[], float] = time.perf_counter,
    trainer: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """The fastest values of `DECIDED_ONCE` within ``bounds``, by env steps a second with their updates.

    Each candidate trains throw-away copies of the agent for ``seconds``, four times in turns with the others;
    the answer is remembered for this machine. Names that bounds leave out stay as they are.

    Args:
        config: of the run; must be without faults.
        trainer: arguments that decide where and how updates are computed.

    Raises:
        ConfigError: the settings have a fault with a value within the bounds.
    """
    decided: dict[str, int] = {}
    for name in DECIDED_ONCE:
        if name in bounds:
            low, high = bounds[name]
            decided[name] = value = _decide(config, name, low, high, min_gain, seconds, clock, trainer or {})
            config = with_value(config, name, value)
    return decided


def _decide(
    config: Config,
    name: str,
    low: int,
    high: int,
    min_gain: float,
    seconds: float,
    clock: Callable[[], float],
    trainer: Mapping[str, Any],
) -> int:
    now = _value(config, name) or 0
    values = Knob(lambda: now, lambda _: None, 1, _MOST).within(name, low, high).values
    if found := [fault for value in values for fault in check(with_value(config, name, value)).faults]:
        raise ConfigError([f"scaler.bounds['{name}'] {[low, high]}: {found[0]}"])
    work = asdict(replace(config, seed=0, total_env_steps=None, total_episodes=None))
    question = [values, work, dict(trainer), min_gain]

    def measure(value: int) -> float:
        return time_training(with_value(config, name, value), seconds, clock, dict(trainer))

    return remembered(cache_folder(), name, question, lambda: fastest(values, now, measure, min_gain))


def _value(config: Config, name: str) -> int | None:
    section, key = name.split(".")
    value: int | None = getattr(getattr(config, section), key)
    return value


def with_value(config: Config, name: str, value: int) -> Config:
    """A copy with another value of a setting such as ``env.num_envs``."""
    section, key = name.split(".")
    changed: dict[str, Any] = {section: replace(getattr(config, section), **{key: value})}
    return replace(config, **changed)
