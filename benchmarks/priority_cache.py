"""Priority time per training step: stored p^alpha against computing it anew at every read.

    python benchmarks/priority_cache.py

Both sides do the same work of a training step, on the same priorities and random numbers: enter a
new row's priority, draw a stratified batch, weigh it, store the batch's new priorities. One side is
`PrioritizedReplay`, whose sum tree holds p^alpha from when it was written. The other keeps p alone
and computes p^alpha from it whenever it is read, which a draw does for every row. Steps of the two
alternate; the ratio is taken pair by pair.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

ALPHA, BETA, BATCH = 0.6, 0.5, 32


class Recomputed:
    """Proportional prioritization without any stored p^alpha."""

    def __init__(self, priorities: np.ndarray, seed: int) -> None:
        self.priorities = priorities.copy()
        self.rng = np.random.default_rng(seed)

    def step(self, slot: int, measured: np.ndarray) -> None:
        self.priorities[slot] = self.priorities.max()
        sums = np.cumsum(self.priorities**ALPHA)
        strata = (np.arange(BATCH) + self.rng.random(BATCH)) * (sums[-1] / BATCH)
        slots = np.minimum(np.searchsorted(sums, strata, side="right"), sums.size - 1)
        drawn = self.priorities[slots] ** ALPHA
        (drawn / drawn.min()) ** -BETA
        self.priorities[slots] = measured + 1e-6


class Stored:
    """The same step through `PrioritizedReplay`, which also gathers rows of one number."""

    def __init__(self, replay: PrioritizedReplay) -> None:
        self.replay = replay

    def step(self, slot: int, measured: np.ndarray) -> None:
        replay = self.replay
        entry, leaf = replay._entry_priority()
        replay._priorities[slot] = entry
        replay._set_leaves(np.array([slot]), np.array([leaf]))
        replay.update_priorities(replay.sample(BATCH, BETA).id, measured)


def filled(size: int, seed: int) -> PrioritizedReplay:
    """A full replay of ``size`` rows with priorities of all sizes."""
    spec = EnvSpec((Column(OBS, (1,), np.dtype(np.float32)),), False, num_actions=2)
    replay = PrioritizedReplay(spec, capacity=size, alpha=ALPHA, seed=seed)
    one, no = np.zeros(1, np.int64), np.array([False])
    for _ in range(size + 2):
        replay.add({OBS: np.zeros((1, 1), np.float32)}, one, np.zeros(1), no, no)
    ids = replay.rows.ids(np.arange(size))
    ids = ids[replay.rows.may_start(ids)]
    replay.update_priorities(ids, np.random.default_rng(seed).exponential(size=ids.size))
    return replay


def seconds(step: Callable[[int, np.ndarray], None], slot: int, measured: np.ndarray) -> float:
    started = time.perf_counter()
    step(slot, measured)
    return time.perf_counter() - started


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2**12, 2**14, 2**17, 2**20])
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args()
    print("| rows | stored, us | computed anew, us | share saved: median (10 to 90 %) |\n|-|-|-|-|")
    for size in args.sizes:
        replay = filled(size, seed=0)
        sides = (Stored(replay), Recomputed(replay._priorities, seed=0))
        rng = np.random.default_rng(1)
        pairs = []
        for _ in range(args.steps + 20):
            slot, measured = int(rng.integers(size // 2)), rng.exponential(size=BATCH)
            pairs.append([seconds(side.step, slot, measured) for side in sides])
        stored, anew = np.array(pairs[20:]).T * 1e6
        low, saved, high = np.percentile(1 - stored / anew, [10, 50, 90])
        print(
            f"| {size:,} | {np.median(stored):,.0f} | {np.median(anew):,.0f} | "
            f"{saved:.0%} ({low:.0%} to {high:.0%}) |"
        )


if __name__ == "__main__":
    main()
