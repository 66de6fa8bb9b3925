"""How costs grow: of an update with the replay's capacity, of an env step with the number of environments.

    python benchmarks/scaling.py            # some minutes and 2 GB; writes benchmarks/results/scaling.json
    python benchmarks/scaling.py --quick    # seconds; shows that it works
    python benchmarks/scaling.py plot       # docs/images/scaling.png from the results

``replay`` is what an update asks of a full replay of CartPole rows: a batch of 64 drawn, its priorities
written, and 4 rows added. ``acting`` is one env step of CartPole through the actor, an MLP 64-64 choosing,
into the replay. Capacities and numbers of environments take turns, round after round, in one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perdqn import PERDQN
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

RESULTS = Path(__file__).parent / "results" / "scaling.json"
IMAGE = Path(__file__).parents[1] / "docs" / "images" / "scaling.png"
SPEC = EnvSpec((Column(OBS, (4,), np.dtype(np.float32)),), False, 2)
EXPONENTS, ENVS = range(14, 24), (1, 2, 4, 8, 16, 32, 64, 128, 256)
BATCH, ROWS_AN_UPDATE = 64, 4


def replay_side(capacity: int) -> Callable[[], None]:
    """One update's work on a full replay whose rows have priorities of their own."""
    replay, rng = PrioritizedReplay(SPEC, ROWS_AN_UPDATE, capacity), np.random.default_rng(0)
    nothing = np.zeros(ROWS_AN_UPDATE, np.bool_)
    rows = [rng.standard_normal((ROWS_AN_UPDATE, 4)).astype(np.float32) for _ in range(64)]
    actions, rewards = np.zeros(ROWS_AN_UPDATE, np.int64), np.ones(ROWS_AN_UPDATE, np.float32)
    for i in range(capacity // ROWS_AN_UPDATE + 1):
        replay.add({OBS: rows[i % 64]}, actions, rewards, nothing, nothing)
    ids = replay.rows.ids(np.arange(replay.capacity))
    for part in np.array_split(ids, max(1, ids.size // 65_536)):
        replay.update_priorities(part, rng.exponential(size=part.size))
    priorities = rng.exponential(size=(64, BATCH)).astype(np.float32)
    count = 0

    def update() -> None:
        nonlocal count
        count += 1
        batch = replay.sample(BATCH, 0.5)
        replay.update_priorities(batch.id, priorities[count % 64])
        replay.add({OBS: rows[count % 64]}, actions, rewards, nothing, nothing)

    return update


def acting_side(num_envs: int) -> Callable[[], None]:
    """One step of every environment."""
    module = PERDQN(
        env={"id": "CartPole-v1", "num_envs": num_envs},
        replay={"capacity": 200_000},
        network={"class_path": "mlp", "init_args": {"hidden_sizes": [64, 64]}},
    )
    actor = module.experience._open()
    return lambda: actor.step(0.05)


def measure(sides: dict[int, Callable[[], None]], calls: dict[int, int], rounds: int) -> dict[int, Any]:
    """Microseconds a call: median, and 10th to 90th percentile of the rounds."""
    seen: dict[int, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            call()
            began = time.perf_counter()
            for _ in range(calls[name]):
                call()
            seen[name].append(1e6 * (time.perf_counter() - began) / calls[name])
    return {
        name: {
            "median": round(statistics.median(values), 2),
            "low": round(float(np.percentile(values, 10)), 2),
            "high": round(float(np.percentile(values, 90)), 2),
        }
        for name, values in seen.items()
    }


def plot(found: dict[str, Any]) -> None:
    """Both curves, with the rounds' spread."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2))
    titles = {"replay": ("rows", "us an update"), "acting": ("environments", "us an env step")}
    for axis, (name, labels) in zip(axes, titles.items(), strict=True):
        at = [int(key) for key in found[name]]
        cells = list(found[name].values())
        axis.plot(at, [cell["median"] for cell in cells], marker="o")
        axis.fill_between(at, [c["low"] for c in cells], [c["high"] for c in cells], alpha=0.2)
        axis.set_xscale("log", base=2)
        axis.set(title=name, xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
    figure.tight_layout()
    figure.savefig(IMAGE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["measure", "plot"], default="measure")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="small and few: does it work?")
    args = parser.parse_args()
    if args.command == "plot":
        plot(json.loads(args.out.read_text()))
        return
    torch.set_num_threads(1)
    rounds = 2 if args.quick else args.rounds
    capacities = [2**exponent for exponent in (EXPONENTS[:2] if args.quick else EXPONENTS)]
    envs = ENVS[:2] if args.quick else ENVS
    found: dict[str, Any] = {"machine": platform.processor() or platform.machine(), "rounds": rounds}
    sides = {capacity: replay_side(capacity) for capacity in capacities}
    found["replay"] = measure(sides, dict.fromkeys(capacities, 200), rounds)
    steps = measure({n: acting_side(n) for n in envs}, {n: max(8, 512 // n) for n in envs}, rounds)
    found["acting"] = {
        n: {key: round(value / n, 3) for key, value in cell.items()} for n, cell in steps.items()
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
