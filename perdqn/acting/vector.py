"""Environments side by side, each episode from a seed of its own, and their exact restoration.

Knows nothing about policies or replay. An episode is restored from its seed and the actions since;
that is exact where a seeded reset erases whatever came before; see `perdqn.acting.exactness`.
"""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv
from numpy.typing import NDArray

from perdqn.acting.environment import is_native, make, make_native, to_columns
from perdqn.acting.guard import FAILURE, Guard
from perdqn.acting.in_turn import InTurn
from perdqn.config import EnvConfig
from perdqn.transition import EnvSpec

Array = NDArray[Any]
Columns = dict[str, Array]


class EnvironmentFailure(RuntimeError):
    """Environments failed more often than ``model.env.max_restarts`` allows."""


class Step(NamedTuple):
    """Outcome of one step of every environment, each [num_envs]."""

    reward: Array
    terminated: Array
    truncated: Array


class Environments:
    """``num_envs`` environments whose episodes are numbered and seeded one by one.

    After a step that ended an episode, `frames` and `obs` show its final observation until `reset`
    is called for that environment; it must be before the next step. All arrays are new at each step.

    Args:
        config: what to make.
        spec: its observations and actions; see `perdqn.acting.environment.describe`.
        num_envs: overrides ``config.num_envs``, for evaluation.
        seed_of: (env, episode) -> seed.
    """

    def __init__(
        self, config: EnvConfig, spec: EnvSpec, num_envs: int, seed_of: Callable[[int, int], int]
    ) -> None:
        self.config, self.spec, self.num_envs, self._seed_of = config, spec, num_envs, seed_of
        self._is_native = is_native(config)
        self._vector = self._make_vector()
        self.episode = np.full(num_envs, -1, np.int64)
        self.num_failures = 0
        self._actions = [array("i") for _ in range(num_envs)]
        self._seeds = [0] * num_envs  # of the current episodes
        self._has_started = False
        self.has_ended = np.zeros(num_envs, np.bool_)
        self.frames: Columns = {c.name: np.zeros((num_envs, *c.shape), c.dtype) for c in spec.columns}
        self._stacks: Columns = {
            c.name: np.zeros((num_envs, *spec.obs_shape(c)), c.dtype) for c in spec.columns
        }

    @property
    def obs(self) -> Columns:
        """Current observations, per column [num_envs, (stack,) *shape]; valid until the next step."""
        return self.frames if self.spec.frame_stack == 1 else self._stacks

    def reset(
        self,
        mask: Array | None = None,
        episode: Sequence[int] | Array | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        """Begin the next episode, or the given ones, in every environment or those in ``mask``.

        Args:
            mask: bool [num_envs].
            episode: int [num_envs], read where ``mask`` is set; by default the one after the last.
            seeds: [num_envs], likewise; by default what ``seed_of`` says.
        """
        mask = np.ones(self.num_envs, np.bool_) if mask is None else np.asarray(mask, np.bool_)
        chosen = self.episode + 1 if episode is None else np.asarray(episode, np.int64)
        self.episode = np.where(mask, chosen, self.episode)
        self.has_ended = self.has_ended & ~mask
        for env in map(int, np.flatnonzero(mask)):
            self._actions[env] = array("i")
            self._seeds[env] = seeds[env] if seeds else self._seed_of(env, int(self.episode[env]))
        self._show(self._reset_vector(mask), mask)

    def step(self, actions: Array) -> Step:
        """Take one action, counted from 0, in every environment [num_envs]."""
        for log, action in zip(self._actions, actions.tolist(), strict=True):
            log.append(action)
        start = self.spec.action_start
        try:
            obs, reward, terminated, truncated, infos = self._vector.step(
                actions + start if start else actions
            )
        except Exception as error:  # a whole vector failing: a worker died, native code raised
            return self._cut_all(error)
        frames = self._columns(obs)
        if FAILURE in infos:
            self._report(infos)
            frames = self._keep_last(frames, infos[f"_{FAILURE}"])
        self._show(frames)
        self.has_ended = terminated | truncated
        return Step(np.asarray(reward, np.float32), terminated, truncated)

    def episode_length(self, env: int) -> int:
        """Steps taken in its current episode."""
        return len(self._actions[env])

    def close(self) -> None:
        self._vector.close()

    def state_dict(self) -> dict[str, Any]:
        """Episode numbers, the actions since, and what is seen now, to check a restoration against.

        The episodes' seeds where they do not follow from the numbers: a run was forked meanwhile.
        """
        usual = [self._seed_of(env, int(number)) for env, number in enumerate(self.episode)]
        return {
            **({} if self._seeds == usual else {"seeds": list(self._seeds)}),
            "episode": torch.from_numpy(self.episode.copy()),
            "actions": [torch.tensor(log, dtype=torch.int32) for log in self._actions],
            "frames": {name: torch.from_numpy(frame.copy()) for name, frame in self.frames.items()},
            "num_failures": self.num_failures,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Array:
        """Play every saved episode again up to where it was.

        All are made to arrive together: the one with most actions starts first, and the others wait
        in throw-away steps for their turn.

        Returns:
            bool [num_envs]: where the environment does not show what was saved, so that the caller
            must end that episode and begin another.
        """
        logs = [actions.numpy() for actions in state["actions"]]
        if len(logs) != self.num_envs:
            raise ValueError(
                f"saved with model.env.num_envs {len(logs)}, now {self.num_envs}; keep it as saved"
            )
        self.num_failures = int(state["num_failures"])
        saved = state["episode"].numpy()
        seeds = state.get("seeds") or [self._seed_of(env, int(n)) for env, n in enumerate(saved)]
        longest = max(len(log) for log in logs)
        start = np.array([longest - len(log) for log in logs])
        self.reset(episode=saved, seeds=seeds)
        for now in range(longest):
            begins = (start == now) & (now > 0)
            if (begins | self.has_ended).any():
                self.reset(begins | self.has_ended, saved, seeds)
            actions = [log[now - s] if now >= s else 0 for log, s in zip(logs, start, strict=True)]
            self.step(np.array(actions, np.int64))
        late = (start == longest) & (longest > 0)
        if late.any():
            self.reset(late, saved, seeds)
        same = [_is_same(state["frames"], self.frames, env) for env in range(self.num_envs)]
        return ~np.array(same) | self.has_ended

    def _make_vector(self) -> VectorEnv[Any, Any, Any] | InTurn:
        """What it hands out is new at every step, so nothing is copied here."""
        if self._is_native:
            return make_native(self.config, self.num_envs)
        factories = [partial(Guard, partial(make, self.config)) for _ in range(self.num_envs)]
        if self.config.vectorization == "async":
            return AsyncVectorEnv(factories, autoreset_mode=AutoresetMode.DISABLED)
        return InTurn([factory() for factory in factories], self.spec)

    def _reset_vector(self, mask: Array) -> Columns:
        seeds = [self._seeds[env] for env in np.flatnonzero(mask)]
        is_partial = self._has_started and not mask.all()
        options = {"reset_mask": mask} if is_partial else None
        self._has_started = True
        if self._is_native:
            obs, infos = self._vector.reset(seed=np.array(seeds), options=options)  # type: ignore[arg-type]
        else:
            by_env = iter(seeds)
            listed = [next(by_env) if chosen else None for chosen in mask]
            obs, infos = self._vector.reset(seed=listed, options=options)  # type: ignore[arg-type]
        if FAILURE in infos:
            self._report(infos)
        return self._columns(obs)

    def _columns(self, obs: Any) -> Columns:
        if isinstance(self._vector, InTurn):
            return obs
        frames = to_columns(obs, self.spec)
        return {name: f[:, 0] for name, f in frames.items()} if self._is_native else frames  # stacks of one

    def _keep_last(self, frames: Columns, failed: Array) -> Columns:
        """What a failed environment hands out may be torn; it ends on what it showed before."""
        wide = {name: failed.reshape(-1, *[1] * (frame.ndim - 1)) for name, frame in frames.items()}
        return {name: np.where(wide[name], self.frames[name], frame) for name, frame in frames.items()}

    def _show(self, frames: Columns, begins: Array | None = None) -> None:
        self.frames = frames
        if self.spec.frame_stack == 1:
            return
        for name, frame in self.frames.items():
            stack = self._stacks[name]
            if begins is None:
                stack[:, :-1] = stack[:, 1:]
                stack[:, -1] = frame
            else:
                first = frame[begins]
                stack[begins] = first[:, None] if self.spec.stack_padding == "repeat" else 0
                stack[begins, -1] = first

    def _report(self, infos: dict[str, Any]) -> None:
        for env in np.flatnonzero(infos[f"_{FAILURE}"]):
            self._count_failure(int(env), infos[FAILURE][env])

    def _count_failure(self, env: int, reason: str) -> None:
        self.num_failures += 1
        where = f"{self.config.id}, environment {env}, episode seed {self._seeds[env]}"
        where = f"{where}, step {len(self._actions[env])}: {reason}"
        if self.num_failures > self.config.max_restarts:
            raise EnvironmentFailure(
                f"{where}; that is failure {self.num_failures} and model.env.max_restarts is "
                f"{self.config.max_restarts}: mend the environment or allow more"
            )
        warnings.warn(
            f"{where}; the episode is cut and the environment rebuilt", RuntimeWarning, stacklevel=3
        )

    def _cut_all(self, error: Exception) -> Step:
        self._count_failure(0, f"the whole vector failed: {error!r}")
        try:
            self._vector.close(**({"terminate": True} if isinstance(self._vector, AsyncVectorEnv) else {}))
        except Exception as closing:
            warnings.warn(f"closing the failed environments raised {closing!r}", RuntimeWarning, stacklevel=2)
        self._vector = self._make_vector()
        self._has_started = False
        self.has_ended[:] = True
        everywhere = np.ones(self.num_envs, np.bool_)
        return Step(np.zeros(self.num_envs, np.float32), ~everywhere, everywhere)


def _is_same(saved: dict[str, Any], shown: Columns, env: int) -> bool:
    return all(np.array_equal(saved[name].numpy()[env], shown[name][env]) for name in shown)
