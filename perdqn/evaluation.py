"""Plays chosen episodes greedily and says what their returns show.

Knows nothing about training: it has environments, seeds and random numbers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from perdqn.acting.environment import episode_seed
from perdqn.acting.vector import Environments
from perdqn.config import Config, EnvConfig
from perdqn.transition import EnvSpec

NUM_RESAMPLES = 2_000
CONFIDENCE = 0.95
Floats = NDArray[np.float64]
Policy = Callable[[dict[str, np.ndarray]], np.ndarray]


def interquartile_mean(values: Floats) -> float:
    """Mean of the middle half: floor(n / 4) values are left out at either end.

    The trimmed mean rliable reports (scipy's ``trim_mean(values, 0.25)``). Source: arXiv:2108.13264.
    """
    num_cut = len(values) // 4
    return float(np.sort(values)[num_cut : len(values) - num_cut].mean())


def bootstrap_interval(values: Floats, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean, at `CONFIDENCE`, over `NUM_RESAMPLES` resamples.

    The same values give the same interval: the generator is its own and newly seeded.
    """
    chosen = np.random.default_rng(seed).integers(len(values), size=(NUM_RESAMPLES, len(values)))
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values[chosen].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def episode_statistics(returns: Floats, lengths: NDArray[np.int64]) -> dict[str, float]:
    """Summary of finished episodes; every statistic of no episode is NaN.

    Returns:
        ``mean`` and ``iqm`` of the returns, ``low`` and ``high`` of the mean's 95 % interval,
        ``length_mean`` in env steps, ``num_episodes``.
    """
    if len(returns) == 0:
        unknown = dict.fromkeys(("mean", "iqm", "low", "high", "length_mean"), float("nan"))
        return unknown | {"num_episodes": 0}
    low, high = bootstrap_interval(returns)
    return {
        "mean": float(returns.mean()),
        "iqm": interquartile_mean(returns),
        "low": low,
        "high": high,
        "length_mean": float(lengths.mean()),
        "num_episodes": len(returns),
    }


class EpisodeStatistics(Metric):
    """Returns and lengths of every episode finished since the last reset.

    Kept as float64 and int64 on the CPU, since some accelerators have no float64.
    """

    full_state_update = False
    returns: list[Tensor]
    lengths: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("returns", default=[], dist_reduce_fx="cat")
        self.add_state("lengths", default=[], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """Always: no episode has statistics too, so torchmetrics has nothing to warn of."""
        return True

    def update(self, returns: Sequence[float] | Floats, lengths: Sequence[int] | NDArray[np.int64]) -> None:
        """Add finished episodes.

        Raises:
            ValueError: there are not as many lengths as returns.
        """
        if len(returns) != len(lengths):
            counts = f"{len(returns)} and {len(lengths)}"
            raise ValueError(f"an episode has one return and one length, got {counts}")
        self.returns.append(torch.as_tensor(np.asarray(returns, dtype=np.float64)))
        self.lengths.append(torch.as_tensor(np.asarray(lengths, dtype=np.int64)))

    def compute(self) -> dict[str, float]:
        """See `episode_statistics`."""
        return episode_statistics(_joined(self.returns, np.float64), _joined(self.lengths, np.int64))


def _joined(parts: list[Tensor] | Tensor, dtype: type) -> np.ndarray:
    if isinstance(parts, Tensor):  # torchmetrics joins the list itself when it syncs
        return parts.cpu().numpy()
    return np.concatenate([np.empty(0, dtype), *(part.cpu().numpy() for part in parts)])


class RecentEpisodes(Metric):
    """Mean return and length of the newest ``window`` training episodes.

    Plain lists instead of metric states: an update costs microseconds, and the window fits into a
    checkpoint that holds nothing but plain types.
    """

    full_state_update = False

    def __init__(self, window: int = 100) -> None:
        super().__init__()
        self.window = window
        self.reset()

    def reset(self) -> None:
        super().reset()
        self._returns: list[float] = []
        self._lengths: list[int] = []

    @property
    def update_called(self) -> bool:
        """Always: an empty window has statistics too, so torchmetrics has nothing to warn of."""
        return True

    def update(self, returns: float | Sequence[float], lengths: int | Sequence[int]) -> None:
        """Add one finished episode, or several, oldest first."""
        self._returns = [*self._returns, *map(float, np.atleast_1d(returns))][-self.window :]
        self._lengths = [*self._lengths, *map(int, np.atleast_1d(lengths))][-self.window :]

    def compute(self) -> dict[str, float]:
        """``mean``, ``length_mean`` and ``num_episodes`` of the window; the means of nothing are NaN."""
        count = len(self._returns)
        mean, length = (sum(v) / count if count else float("nan") for v in (self._returns, self._lengths))
        return {"mean": mean, "length_mean": length, "num_episodes": count}

    def window_state(self) -> dict[str, list]:
        """The window as plain lists, oldest episode first."""
        return {"returns": list(self._returns), "lengths": list(self._lengths)}

    def load_window_state(self, state: dict[str, list]) -> None:
        """Go on from a saved window; of a longer one, its newest episodes."""
        self.reset()
        self.update(state["returns"], state["lengths"])


class EpisodeIndex:
    """The episodes of one evaluation, in chunks that are played side by side.

    A sized iterable, so that Lightning's ``limit_val_batches`` counts chunks.
    """

    def __init__(self, num_episodes: int, num_envs: int) -> None:
        self.num_episodes = num_episodes
        self.num_envs = num_envs

    def __len__(self) -> int:
        return -(-self.num_episodes // self.num_envs)

    def __iter__(self) -> Iterator[list[int]]:
        for first in range(0, self.num_episodes, self.num_envs):
            yield list(range(first, min(first + self.num_envs, self.num_episodes)))


def make_environments(
    config: EnvConfig, spec: EnvSpec, num_envs: int, run_seed: int, phase: str
) -> Environments:
    """Environments for `play`: episode ``i`` of a phase has one seed, whatever slot plays it.

    Args:
        phase: ``validate``, ``test`` or ``record``; their seeds never meet each other's nor training's.
    """
    return Environments(config, spec, num_envs, lambda _, episode: episode_seed(run_seed, phase, 0, episode))


def play(
    policy: Policy,
    environments: Environments,
    episodes: Sequence[int],
    *,
    epsilon: float = 0.0,
    rng: np.random.Generator | None = None,
    max_episode_steps: float = math.inf,
    is_aborted: Callable[[], bool] = lambda: False,
) -> tuple[Floats, NDArray[np.int64]]:
    """Play the given episodes side by side, each to its end.

    A slot that is done, or has no episode, plays on uncounted until the last one is done: the policy
    sees a batch of one size, so that a network's rounding, and with it each action, does not depend on
    which other episodes still go on.

    Args:
        policy: observations, per column [num_envs, ...], to actions [num_envs], counted from 0.
        environments: made by `make_environments`; what they played before makes no difference.
        episodes: at most one per environment.
        epsilon: share of uniformly random actions, drawn from ``rng``.
        rng: needed where ``epsilon`` is above 0; left untouched otherwise.
        max_episode_steps: episodes are cut after this many steps.
        is_aborted: asked at every step; once it says so, what has been played so far is returned.

    Returns:
        returns float64 [episodes] and lengths int64 [episodes], in the order given.
    """
    num_envs, count = environments.num_envs, len(episodes)
    if not 0 < count <= num_envs:
        raise ValueError(f"1 to {num_envs} episodes fit side by side, got {count}")
    in_slots = [*episodes, *[episodes[-1]] * (num_envs - count)]
    is_counted = np.arange(num_envs) < count
    returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
    environments.reset(episode=in_slots)
    while True:
        actions = _explore(policy(environments.obs), environments.spec.num_actions, epsilon, rng)
        step = environments.step(actions)
        returns[is_counted] += step.reward[is_counted]
        lengths += is_counted
        ended = step.terminated | step.truncated
        is_counted &= ~ended & (lengths < max_episode_steps)
        if not is_counted.any() or is_aborted():
            return returns[:count], lengths[:count]
        if ended.any():
            environments.reset(ended, in_slots)


class Evaluator:
    """Evaluations of one policy, one after the other, each in fresh environments.

    Args:
        config: of the run.
        spec: of its environments.
        policy: see `play`.
    """

    def __init__(self, config: Config, spec: EnvSpec, policy: Policy) -> None:
        self._config, self._spec, self._policy = config, spec, policy
        self._environments: Environments | None = None
        self._rng = np.random.default_rng(config.seed)
        self.statistics = EpisodeStatistics()
        self.is_aborted = False

    def start(self, phase: str) -> None:
        """Begin an evaluation of ``validate`` or ``test``; the same one every time."""
        self.close()
        config, settings = self._config, self._config.evaluation
        num_episodes = settings.episodes if phase == "validate" else settings.test_episodes
        num_envs = min(settings.num_envs, num_episodes)
        self._environments = make_environments(config.env, self._spec, num_envs, config.seed, phase)
        self._rng = np.random.default_rng(config.seed)
        self.statistics.reset()

    def play(self, episodes: Sequence[int]) -> None:
        """Play some of its episodes, at most ``evaluation.num_envs``; nothing once it is aborted."""
        assert self._environments is not None, "start comes first"
        if self.is_aborted:
            return
        settings = self._config.evaluation
        outcome = play(
            self._policy,
            self._environments,
            episodes,
            epsilon=settings.epsilon,
            rng=self._rng,
            max_episode_steps=settings.max_episode_steps,
            is_aborted=lambda: self.is_aborted,
        )
        self.statistics.update(*outcome)

    def close(self) -> None:
        """Close the environments."""
        if self._environments is not None:
            self._environments.close()
            self._environments = None


def _explore(
    actions: np.ndarray, num_actions: int, epsilon: float, rng: np.random.Generator | None
) -> np.ndarray:
    if epsilon == 0.0:
        return actions
    if rng is None:
        raise ValueError(f"epsilon={epsilon} needs a generator of its own: pass rng")
    random = rng.integers(num_actions, size=len(actions))
    return np.where(rng.random(len(actions)) < epsilon, random, actions)
