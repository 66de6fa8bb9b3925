"""cpprb's prioritized replay, as its documentation uses it.

Knows nothing about how it is timed; the library trains nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cpprb import PrioritizedReplayBuffer

from peers.items import ALPHA, BETA, EPISODE, FRAME, GAMMA, N_STEP, STACK, VECTORS, Chunk, Items, stack

_FILL = 64


class Replay:
    adds_steps = False

    def __init__(self, kind: str, capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        scalars: dict[str, Any] = {"action": {"dtype": np.int64}, "reward": {}, "done": {}}
        if kind == VECTORS:
            vector = {"shape": 4, "dtype": np.float64}
            columns = {"obs": vector, "next_obs": vector, **scalars}
            options: dict[str, Any] = {"default_dtype": np.float64}
        else:
            image = {"shape": (*FRAME, STACK), "dtype": np.uint8}
            columns = {"obs": image, "next_obs": image, **scalars}
            n_step = {"size": N_STEP, "gamma": GAMMA, "rew": "reward", "next": "next_obs"}
            options = {"stack_compress": ["obs", "next_obs"], "Nstep": n_step}
        self.buffer = PrioritizedReplayBuffer(capacity, columns, alpha=ALPHA, **options)

    def fill(self, items: Items) -> None:
        """Episode by episode, since the newest frames of one are kept apart until it ends."""
        size = _FILL if self.kind == VECTORS else 1
        chunks = items.chunks(size)
        for i in range(0, self.capacity, size):
            self.append(self.prepare(next(chunks)))
            if self.kind != VECTORS and i % EPISODE[self.kind] == EPISODE[self.kind] - 1:
                self.buffer.on_episode_end()

    def prepare(self, chunk: Chunk) -> dict[str, Any]:
        names = ("obs", "action", "reward", "next_obs", "done")
        row: dict[str, Any] = {name: chunk[name] for name in names}
        if self.kind != VECTORS:
            row |= {k: stack(chunk[k][0], -1) for k in ("obs", "next_obs")}
        return row

    def append(self, row: dict[str, Any]) -> None:
        self.buffer.add(**row)

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size, BETA)["indexes"]

    def update(self, ids: Any, priorities: np.ndarray) -> None:
        self.buffer.update_priorities(ids, priorities)
