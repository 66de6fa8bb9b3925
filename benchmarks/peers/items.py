"""Rows that every side's replay is given: CartPole-shaped and Atari-shaped, the same on each.

Knows nothing about any library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Chunk = dict[str, np.ndarray]
VECTORS, IMAGES = "vectors", "images"
STACK, N_STEP, GAMMA, ALPHA, BETA = 4, 3, 0.99, 0.6, 0.4
FRAME = (84, 84)
NUM_ACTIONS = {VECTORS: 2, IMAGES: 6}
EPISODE = {VECTORS: 200, IMAGES: 800}
NUM_ITEMS = {VECTORS: 12_800, IMAGES: 3_200}  # after so many they come round again


class Items:
    """Steps of endless play, handed out in order.

    Args:
        kind: `VECTORS`: float64 observations of 4 numbers; `IMAGES`: single frames, uint8.
        frames: uint8 [n, 84, 84], for `IMAGES`; noise by default.
    """

    def __init__(self, kind: str, frames: np.ndarray | None = None) -> None:
        rng = np.random.default_rng(0)
        num = NUM_ITEMS[kind]
        if kind == VECTORS:
            obs = rng.normal(size=(num, 4))
        elif frames is None:
            obs = rng.integers(0, 256, (num, *FRAME), np.uint8)
        else:
            num = len(frames) // EPISODE[kind] * EPISODE[kind]
            obs = frames[:num]
        done = np.arange(num) % EPISODE[kind] == EPISODE[kind] - 1
        self._all: Chunk = {
            "obs": obs,
            "action": rng.integers(NUM_ACTIONS[kind], size=num),
            "reward": np.ones(num),
            "next_obs": np.roll(obs, -1, axis=0),
            "done": done,
            "truncated": np.zeros_like(done),
        }

    def chunks(self, size: int) -> Iterator[Chunk]:
        """``size`` steps of one environment at a time, without end."""
        num = len(self._all["done"])
        return itertools.cycle(
            [{k: v[i : i + size] for k, v in self._all.items()} for i in range(0, num - size + 1, size)]
        )

    def side_by_side(self, num_envs: int) -> Iterator[Chunk]:
        """One step of ``num_envs`` environments at a time, without end."""
        num = len(self._all["done"]) // num_envs
        return itertools.cycle([{k: v[i::num][:num_envs] for k, v in self._all.items()} for i in range(num)])


def stack(frames: np.ndarray, axis: int = 1) -> np.ndarray:
    """Stacks of one frame each [n, ...], for replays that are given what a wrapper hands out."""
    return np.repeat(np.expand_dims(frames, axis), STACK, axis)


def record_frames(game: str, path: Path, num_frames: int) -> None:
    """Frames of random play, one environment after the other; noise where the game is ``noise``."""
    if game == "noise":
        np.save(path, np.random.default_rng(0).integers(0, 256, (num_frames, *FRAME), np.uint8))
        return
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    envs = gymnasium.make_vec(f"ALE/{game}-v5", num_envs=4, vectorization_mode="vector_entry_point")
    envs.action_space.seed(0)
    envs.reset(seed=0)
    steps = [envs.step(envs.action_space.sample())[0][:, -1] for _ in range(num_frames // 4)]
    np.save(path, np.concatenate(np.stack(steps, axis=1)))
