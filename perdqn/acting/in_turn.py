"""Environments stepped one after the other in this process, as a vector without autoreset.

Knows nothing about seeds, policies or replay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from perdqn.acting.guard import FAILURE
from perdqn.transition import EnvSpec

Array = NDArray[Any]


class InTurn:
    """What Gymnasium's ``SyncVectorEnv`` does, without its cost of several microseconds a step.

    `reset` and `step` are those of a ``gymnasium.vector.VectorEnv``, but that observations come as columns,
    rewards as float32 and infos with `FAILURE` alone. Actions reach the environments as Python integers.

    Args:
        envs: alike in their spaces.
        spec: of their observations.

    Raises:
        RuntimeError: the environments' spaces differ.
    """

    def __init__(self, envs: Sequence[gymnasium.Env[Any, Any]], spec: EnvSpec) -> None:
        self._envs, self._is_dict = envs, spec.is_dict
        spaces = (envs[0].observation_space, envs[0].action_space)
        for env in envs:
            if (env.observation_space, env.action_space) != spaces:
                raise RuntimeError(
                    "environments side by side must have the same spaces, got "
                    f"{env.observation_space} and {env.action_space} beside {spaces[0]} and {spaces[1]}"
                )
        self._frames = {c.name: np.zeros((len(envs), *c.shape), c.dtype) for c in spec.columns}

    def reset(
        self, *, seed: Sequence[int | None], options: dict[str, Array] | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Begin an episode everywhere, or where ``options["reset_mask"]`` is set, bool [num_envs]."""
        mask = [True] * len(self._envs) if options is None else options["reset_mask"]
        self._frames = {name: frame.copy() for name, frame in self._frames.items()}
        failures: dict[int, str] = {}
        for i, env in enumerate(self._envs):
            if mask[i]:
                obs, info = env.reset(seed=seed[i])
                self._show(i, obs)
                if info:
                    failures[i] = info[FAILURE]
        return self._frames, self._infos(failures)

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Array]]:
        """Take one action [num_envs] in every environment; every array returned is new."""
        num_envs = len(self._envs)
        self._frames = {name: np.empty_like(frame) for name, frame in self._frames.items()}
        reward = np.empty(num_envs, np.float32)
        terminated, truncated = np.empty(num_envs, np.bool_), np.empty(num_envs, np.bool_)
        failures: dict[int, str] = {}
        for i, action in enumerate(actions.tolist()):
            obs, reward[i], terminated[i], truncated[i], info = self._envs[i].step(action)
            self._show(i, obs)
            if info:
                failures[i] = info[FAILURE]
        return self._frames, reward, terminated, truncated, self._infos(failures)

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _show(self, i: int, obs: Any) -> None:
        for name, frame in self._frames.items():
            part = np.asarray(obs[name] if self._is_dict else obs)
            if part.shape != frame.shape[1:]:  # NumPy would stretch it
                shapes = f"{part.shape}, its space says {frame.shape[1:]}"
                raise ValueError(f"the observation {name!r} has shape {shapes}")
            if part.dtype == frame.dtype:
                frame[i] = part
            else:
                np.copyto(frame[i, ...], part, casting="same_kind")

    def _infos(self, failures: dict[int, str]) -> dict[str, Array]:
        if not failures:
            return {}
        envs = range(len(self._envs))
        return {
            FAILURE: np.array([failures.get(i) for i in envs], object),
            f"_{FAILURE}": np.array([i in failures for i in envs]),
        }
