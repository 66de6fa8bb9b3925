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


_DRAWN_STEPS = 256  # random numbers drawn at once; a resumed run must draw as many


class Exploration:
    """Greedy actions, each replaced by a uniform one with probability ``epsilon``.

    Args:
        num_envs: actions per step.
        num_actions: to choose among.
        seed: of its random numbers.
    """

    def __init__(self, num_envs: int, num_actions: int, seed: int) -> None:
        self._num_envs, self._num_actions = num_envs, num_actions
        self._rng = np.random.default_rng(seed)
        self._draw()

    def _draw(self) -> None:
        """The next steps' random numbers, and the state they came from."""
        self._drawn_from = self._rng.bit_generator.state
        shape = (_DRAWN_STEPS, self._num_envs)
        self._chances, self._uniform = (
            self._rng.random(shape),
            self._rng.integers(self._num_actions, size=shape),
        )
        self._smallest, self._largest = self._chances.min(1).tolist(), self._chances.max(1).tolist()
        self._position = 0

    def choose(self, epsilon: float, greedy: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
        """The next step's actions [num_envs]; ``greedy`` is asked unless all explore."""
        if self._position == _DRAWN_STEPS:
            self._draw()
        now = self._position
        self._position += 1
        if self._smallest[now] >= epsilon:
            return greedy()
        if self._largest[now] < epsilon:
            return self._uniform[now]
        return np.where(self._chances[now] < epsilon, self._uniform[now], greedy())

    def state_dict(self) -> dict[str, Any]:
        return {"rng": {**self._drawn_from, "num_used": self._position}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as saved; a state from before numbers were drawn ahead goes on with its next ones."""
        drawn_from = dict(state["rng"])
        position = drawn_from.pop("num_used", 0)
        self._rng.bit_generator.state = drawn_from
        self._draw()
        self._position = position


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
        self.environments, self._replay = environments, replay
        self._policy, self._on_episode = policy, on_episode
        self._exploration = Exploration(environments.num_envs, environments.spec.num_actions, seed)
        self._returns = np.zeros(environments.num_envs)

    def step(self, epsilon: float) -> None:
        """Take one step in every environment."""
        environments = self.environments
        actions = self._exploration.choose(epsilon, lambda: self._policy(environments.obs))
        frames = environments.frames
        step = environments.step(actions)
        self._replay.add(frames, actions, step.reward, step.terminated, step.truncated, environments.frames)
        self._returns += step.reward
        if np.count_nonzero(environments.has_ended):
            self._finish(environments.has_ended)
            environments.reset(environments.has_ended)

    def timed_methods(self) -> list[tuple[Any, str, str]]:
        """Owner, method and phase of what a step consists of."""
        return [
            (self, "_policy", "acting/act"),
            (self.environments, "step", "environment/env step"),
            (self.environments, "reset", "environment/env reset"),
        ]

    def _finish(self, ended: NDArray[np.bool_]) -> None:
        for env in map(int, np.flatnonzero(ended)):
            self._on_episode(float(self._returns[env]), self.environments.episode_length(env))
        self._returns[ended] = 0.0

    def abandon(self, lost: NDArray[np.bool_], saved: dict[str, Any]) -> None:
        """End episodes that could not be restored, on the observation saved, and begin others."""
        for env in np.flatnonzero(lost):
            self._replay.cut(int(env), {name: frames.numpy()[env] for name, frames in saved.items()})
        self._returns[lost] = 0.0
        self.environments.reset(lost)

    def state_dict(self) -> dict[str, Any]:
        environments = self.environments
        lengths = [environments.episode_length(env) for env in range(environments.num_envs)]
        return {
            **self._exploration.state_dict(),
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.tensor(lengths),  # read by fingerprints alone
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if "rng" in state:  # else the run was forked with another seed
            self._exploration.load_state_dict(state)
        self._returns = state["returns"].numpy().copy()
