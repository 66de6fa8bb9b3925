"""The actor: a policy acting epsilon-greedily in its environments, step by step into the replay.

Knows nothing about networks or how the policy learns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from perdqn.acting.vector import Columns, Environments
from perdqn.replay.prioritized import PrioritizedReplay

Policy = Callable[[Columns], NDArray[np.int64]]  # observations [n, ...] -> greedy actions [n]


class Actor:
    """Acts in ``environments`` and adds every step to ``replay``.

    Args:
        environments: already reset or restored.
        replay: takes one row per environment and step.
        policy: greedy actions, counted from 0.
        on_episode: called with the return and length of every finished episode.
        seed: of the exploration's own random numbers.
    """

    def __init__(
        self,
        environments: Environments,
        replay: PrioritizedReplay,
        policy: Policy,
        on_episode: Callable[[float, int], None],
        seed: int,
    ) -> None:
        self._environments, self._replay = environments, replay
        self._policy, self._on_episode = policy, on_episode
        self._rng = np.random.default_rng(seed)
        self._returns = np.zeros(environments.num_envs)
        self._lengths = np.zeros(environments.num_envs, np.int64)

    def step(self, epsilon: float) -> None:
        """Take one step in every environment."""
        environments = self._environments
        actions = self._choose(epsilon)
        frames = environments.frames
        step = environments.step(actions)
        self._replay.add(frames, actions, step.reward, step.terminated, step.truncated, environments.frames)
        self._returns += step.reward
        self._lengths += 1
        ended = step.terminated | step.truncated
        if ended.any():
            self._finish(ended)
            environments.reset(ended)

    def _choose(self, epsilon: float) -> NDArray[np.int64]:
        """Greedy actions, each replaced by a uniform one with probability ``epsilon``."""
        num_envs, num_actions = self._environments.num_envs, self._environments.spec.num_actions
        explores = self._rng.random(num_envs) < epsilon
        uniform = self._rng.integers(num_actions, size=num_envs)
        if explores.all():
            return uniform
        return np.where(explores, uniform, self._policy(self._environments.obs))

    def _finish(self, ended: NDArray[np.bool_]) -> None:
        for env in np.flatnonzero(ended):
            self._on_episode(float(self._returns[env]), int(self._lengths[env]))
        self._returns[ended] = 0.0
        self._lengths[ended] = 0

    def abandon(self, lost: NDArray[np.bool_], saved: dict[str, Any]) -> None:
        """End episodes that could not be restored, on the observation saved, and begin others."""
        for env in np.flatnonzero(lost):
            self._replay.cut(int(env), {name: frames.numpy()[env] for name, frames in saved.items()})
        self._returns[lost] = 0.0
        self._lengths[lost] = 0
        self._environments.reset(lost)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rng": self._rng.bit_generator.state,
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["rng"]
        self._returns = state["returns"].numpy().copy()
        self._lengths = state["lengths"].numpy().copy()
