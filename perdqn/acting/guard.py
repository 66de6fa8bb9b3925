"""An environment that fails alone: exceptions and NaN end its episode, not the run.

Knows nothing about vectors, replay or learning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

FAILURE = "failure"  # info key: why an episode was cut


class Guard(gymnasium.Env[Any, Any]):
    """Steps an environment; one that raises or hands out NaN is cut as truncated and rebuilt on reset.

    Args:
        make: builds the environment, again after each failure.
    """

    def __init__(self, make: Callable[[], gymnasium.Env[Any, Any]]) -> None:
        self._make = make
        self._env = make()
        self._is_broken = False
        self._obs: Any = None
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begin an episode; a fault here is tried once more on a rebuilt environment, then raised."""
        info = {}
        if not self._is_broken:
            try:
                self._obs, _ = self._env.reset(seed=seed)
                self._is_broken = not _is_finite(self._obs)
                info = {FAILURE: "NaN or infinity in the first observation"} if self._is_broken else {}
            except Exception as error:
                self._is_broken, info = True, {FAILURE: f"reset raised {error!r}"}
        if self._is_broken:
            self._env.close()
            self._env = self._make()
            self._obs, _ = self._env.reset(seed=seed)
            self._is_broken = False
            if not _is_finite(self._obs):
                raise RuntimeError("a rebuilt environment starts with NaN or infinity")
        return self._obs, info

    def step(self, action: Any) -> Any:
        """As `gymnasium.Env.step`; infos are dropped but for `FAILURE`."""
        fault = None
        try:
            obs, reward, terminated, truncated, _ = self._env.step(action)
            if not math.isfinite(reward):
                fault = f"the reward is {reward}"
            elif not _is_finite(obs):
                fault = "NaN or infinity in the observation"
        except Exception as error:
            fault = f"step raised {error!r}"
        if fault is not None:
            self._is_broken = True
            return self._obs, 0.0, False, True, {FAILURE: fault}
        self._obs = obs
        return obs, reward, terminated, truncated, {}

    def render(self) -> Any:
        return self._env.render()

    def close(self) -> None:
        self._env.close()


def _is_finite(obs: Any) -> bool:
    if isinstance(obs, dict):
        return all(map(_is_finite, obs.values()))
    part = np.asarray(obs)
    if part.dtype.kind != "f":
        return True
    # The sum of squares takes a third of the time; it may overflow, but is finite only where all are.
    return bool(np.vdot(part, part) < math.inf or np.isfinite(part).all())
