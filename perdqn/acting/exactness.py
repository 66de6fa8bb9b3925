"""How exactly an environment's episodes can be restored: found out by trying.

Knows nothing about how they are restored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from perdqn.acting.vector import Environments
from perdqn.config import EnvConfig
from perdqn.transition import EnvSpec

_NUM_COMPARED = 50  # steps of an episode that are looked at
_NUM_FRESH = 3  # episodes that tell randomness of its own from a leak through the reset

BIT_EXACT = "bit-exact"
EPISODE_BOUNDARY = "episode-boundary"
NOT_REPRODUCIBLE = "not reproducible"


class Exactness(NamedTuple):
    """What follows from an episode's seed: all of it, given the actions; its beginning; or nothing.

    Attributes:
        level: ``bit-exact``; ``episode-boundary``, where an episode in progress is cut on resume;
            ``not reproducible``, where the next one begins differently, too.
        reason: empty if bit-exact.
    """

    level: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.reason}" if self.reason else self.level


def self_test(
    config: EnvConfig, spec: EnvSpec, seed: int = 0, num_episodes: int = 100, max_steps: int = 2_000
) -> Exactness:
    """Whether an episode follows from its seed and actions alone, whatever its environment saw before.

    An environment used for two episode ends (or ``max_steps`` steps) of random actions is compared
    with a fresh one, and again after every further stretch of its own, since a leak may be rare:
    MinAtar's sticky action gave one episode in twelve away.
    """
    steps = _differing_steps(config, spec, seed, num_episodes, max_steps)
    if not steps:
        return Exactness(BIT_EXACT)
    plays_by_chance = _differing_steps(config, spec, seed, _NUM_FRESH, wears=False)
    cause = "it draws from what no seed sets" if plays_by_chance else "its reset leaves something behind"
    if 0 in steps:
        return Exactness(NOT_REPRODUCIBLE, f"{config.id} begins differently from the same seed: {cause}")
    what = f"plays on differently after {steps[0]} steps from the same seed"
    return Exactness(EPISODE_BOUNDARY, f"{config.id} {what}: {cause}")


def _differing_steps(
    config: EnvConfig, spec: EnvSpec, seed: int, num_episodes: int, max_steps: int = 0, wears: bool = True
) -> list[int]:
    """For each episode that two environments play differently: after how many steps.

    Args:
        wears: let the first play between them what the other does not.
    """
    rng, differing = np.random.default_rng(seed), list[int]()
    used, fresh = (Environments(config, spec, 1, lambda env, episode: seed + episode) for _ in range(2))
    try:
        if wears:
            _wear(used, rng, num_ends=2, num_steps=max_steps)
        for _ in range(num_episodes):
            step = _first_difference(used, fresh, rng)
            if step is not None:
                differing.append(step)
            if step == 0:
                break  # it cannot be worse
            if wears:
                _wear(used, rng, num_ends=1, num_steps=int(rng.integers(1, _NUM_COMPARED)))
        return differing
    finally:
        used.close()
        fresh.close()


def _wear(environments: Environments, rng: np.random.Generator, num_ends: int, num_steps: int) -> None:
    environments.reset()
    for _ in range(num_steps):
        step = environments.step(rng.integers(environments.spec.num_actions, size=1))
        if step.terminated[0] or step.truncated[0]:
            num_ends -= 1
            if num_ends == 0:
                return
            environments.reset()


def _first_difference(used: Environments, fresh: Environments, rng: np.random.Generator) -> int | None:
    """Steps until the next episode of ``used`` is another one in ``fresh``; None if none within sight."""
    used.reset()
    fresh.reset(episode=used.episode)
    if not _show_the_same(used, fresh):
        return 0
    for step in range(1, _NUM_COMPARED + 1):
        action = rng.integers(used.spec.num_actions, size=1)
        outcome, expected = used.step(action), fresh.step(action)
        if outcome != expected or not _show_the_same(used, fresh):
            return step
        if outcome.terminated[0] or outcome.truncated[0]:
            return None
    return None


def _show_the_same(used: Environments, fresh: Environments) -> bool:
    return all(np.array_equal(used.frames[name], frame) for name, frame in fresh.frames.items())
