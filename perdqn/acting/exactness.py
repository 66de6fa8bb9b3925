"""Whether an environment's episodes can be restored bit for bit: found out by trying.

Knows nothing about how they are restored.
"""

from __future__ import annotations

import numpy as np

from perdqn.acting.vector import Environments
from perdqn.config import EnvConfig
from perdqn.transition import EnvSpec

_NUM_COMPARED = 50  # steps of an episode that are looked at


def self_test(
    config: EnvConfig, spec: EnvSpec, seed: int = 0, num_episodes: int = 100, max_steps: int = 2_000
) -> str | None:
    """Whether an episode follows from its seed and actions alone, whatever its environment saw before.

    An environment used for two episode ends (or ``max_steps`` steps) of random actions is compared
    with a fresh one, and again after every further stretch of its own, since a leak may be rare:
    MinAtar's sticky action gave one episode in twelve away.

    Returns:
        None if all agree, so episodes can be restored bit for bit; else why not.
    """
    rng = np.random.default_rng(seed)
    used, fresh = (Environments(config, spec, 1, lambda env, episode: seed + episode) for _ in range(2))
    try:
        _wear(used, rng, num_ends=2, num_steps=max_steps)
        for _ in range(num_episodes):
            step = _first_difference(used, fresh, rng)
            if step is not None:
                return f"{config.id} plays on differently after {step} steps from the same seed"
            _wear(used, rng, num_ends=1, num_steps=int(rng.integers(1, _NUM_COMPARED)))
        return None
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
