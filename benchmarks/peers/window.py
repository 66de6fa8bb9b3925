"""What is trained in a comparison of throughput, and the stretch of it that counts.

Knows nothing about any library.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Setting:
    """One task, on every side with plain DQN: neither double nor dueling, n_step 1, Huber or squared loss.

    Args:
        network: ``mlp``, ``minatar`` or ``nature``.
        train_every: env steps per update.
        warmup: env steps before the first update.
        begin: env step at which the window opens.
        target_updates: updates between two copies to the target network.
        device: of networks and updates: ``cpu`` or ``cuda``; perdqn and TorchRL heed it.
    """

    env: str
    network: str
    batch_size: int
    train_every: int
    learning_rate: float
    begin: int
    hidden_sizes: list[int] = field(default_factory=list)
    capacity: int = 100_000
    warmup: int = 1_000
    target_updates: int = 250
    epsilon: float = 0.05
    gamma: float = 0.99
    device: str = "cpu"


class Window:
    """Opens at an env step, and closes so many seconds later."""

    def __init__(self, begin: int, seconds: float) -> None:
        self._begin, self._seconds = begin, seconds
        self._first: tuple[int, int, float, float] | None = None
        self._last: tuple[int, int, float, float] | None = None

    def see(self, env_steps: int, updates: int) -> bool:
        """Note both counters; whether the window has closed."""
        if self._last is not None:
            return True
        if env_steps < self._begin:
            return False
        now = time.perf_counter()
        if self._first is None:
            self._first = (env_steps, updates, now, time.process_time())
        elif now - self._first[2] >= self._seconds:
            self._last = (env_steps, updates, now, time.process_time())
        return self._last is not None

    def result(self) -> dict[str, Any]:
        """Rates inside the window, and the counters that show what they stand for."""
        assert self._first is not None
        assert self._last is not None
        env_steps, updates, seconds, cpu_seconds = (
            b - a for a, b in zip(self._first, self._last, strict=True)
        )
        return {
            "env_steps_per_second": env_steps / seconds,
            "env_steps_per_cpu_second": env_steps / cpu_seconds,
            "updates_per_second": updates / seconds,
            "env_steps": env_steps,
            "updates": updates,
            "env_steps_per_update": round(env_steps / updates, 4),
        }
