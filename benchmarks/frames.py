"""Batches of stacked frames: memory, and time against the memcpy of the same bytes.

    python benchmarks/frames.py                  # a million rows of Breakout and Pong: 9 GB of memory
    python benchmarks/frames.py --quick          # small, as a check that it works

Frames are recorded from ALE under random play, and repeated until the replay is full. Every batch is 32
transitions, stack 4, n_step 3. Each side gathers new rows every time, in random order, so that none finds
the rows of another warm. The reference is a memcpy of as many bytes that lie in one piece, from a random
place of the replay; beside it stands one whose source stays in the caches. A ratio is taken round by
round; figures are medians with the 10th and 90th percentile.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from perdqn.learning.networks import ToImage
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec

BATCH, STACK, N_STEP = 32, 4, 3
SPEC = EnvSpec((Column(OBS, (84, 84), np.dtype(np.uint8)),), False, 6, frame_stack=STACK)
RESULT = Path(__file__).parent / "results" / "frames.json"


def record(game: str, num: int, num_envs: int = 4) -> np.ndarray:
    """Frames of random play [num, 84, 84], environment after environment."""
    import ale_py  # noqa: F401

    envs = gymnasium.make_vec(
        f"ALE/{game}-v5", num_envs=num_envs, vectorization_mode="vector_entry_point", reward_clipping=False
    )
    envs.action_space.seed(0)
    envs.reset(seed=0)
    frames = [envs.step(envs.action_space.sample())[0][:, -1].copy() for _ in range(-(-num // num_envs))]
    envs.close()
    return np.concatenate(np.stack(frames, 1))[:num]


def filled(frames: np.ndarray, rows: int, **settings: Any) -> tuple[PrioritizedReplay, float]:
    """A full replay with random priorities, and microseconds per row added."""
    replay = PrioritizedReplay(SPEC, 1, rows, n_step=N_STEP, alpha=0.5, **settings)
    action, reward, goes_on, ends = np.zeros(1, np.int64), np.zeros(1), np.array([False]), np.array([True])
    started = time.perf_counter()
    for i in range(rows):
        frame = {OBS: frames[i % len(frames)][None]}
        is_last = i % 1000 == 999
        replay.add(frame, action, reward, ends if is_last else goes_on, goes_on, frame)
    took = (time.perf_counter() - started) / rows * 1e6
    ids = replay.rows.ids(np.arange(replay.capacity))
    ids = ids[replay.rows.may_start(ids)]
    replay.update_priorities(ids, np.random.default_rng(0).exponential(size=ids.size))
    return replay, took


def percentiles(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in np.percentile(values, [50, 10, 90])]


def measure(frames: np.ndarray, rows: int, rounds: int, cached: int) -> dict[str, Any]:
    """Times by side, ratios, and memory, of one game."""
    raw, raw_add = filled(frames, rows)
    lz4, lz4_add = filled(frames, rows, storage="lz4", cached_frames=cached)
    encoder = ToImage((STACK, 84, 84))
    num, starts = 2 * BATCH * STACK, np.random.default_rng(2)
    source = np.ones(num * 84 * 84, np.uint8)

    def gather(replay: PrioritizedReplay, scaled: bool) -> Callable[[np.ndarray], Any]:
        return lambda ids: replay.rows.observations(ids, scaled)

    sides: dict[str, Callable[[np.ndarray], Any]] = {
        "memcpy": lambda ids: raw.rows.frames[OBS][
            (start := starts.integers(rows - num)) : start + num
        ].copy(),
        "memcpy, warm": lambda ids: source.copy(),
        "raw": gather(raw, False),
        "raw, scaled": gather(raw, True),
        "raw, scaled by the encoder": lambda ids: encoder(torch.from_numpy(raw.rows.observations(ids)[OBS])),
        "lz4": gather(lz4, False),
        "lz4, scaled": gather(lz4, True),
        "raw, sample": lambda ids: raw.sample(BATCH, 0.5),
        "lz4, sample": lambda ids: lz4.sample(BATCH, 0.5),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    held: dict[str, Any] = {}  # as in training, a batch lives until the next one is there
    rng = np.random.default_rng(1)
    for _ in range(rounds + 20):
        for name in rng.permutation(list(sides)):
            ids = raw.sample(BATCH).id.numpy()
            both = np.concatenate([ids, raw.rows.windows(ids).next_id])
            started = time.perf_counter()
            held[name[:3]] = sides[name](both)
            times[name].append(time.perf_counter() - started)
        for scaled in (False, True):
            of_raw, of_lz4 = (gather(replay, scaled)(both)[OBS] for replay in (raw, lz4))
            assert np.array_equal(of_raw, of_lz4)
    us = {name: np.array(taken[20:]) * 1e6 for name, taken in times.items()}
    pairs = [(name, "memcpy") for name in sides if "sample" not in name and "memcpy" not in name]
    pairs += [(name, "memcpy, warm") for name in ("raw", "raw, scaled")]
    pairs += [("lz4", "raw"), ("lz4, scaled", "raw, scaled"), ("lz4, sample", "raw, sample")]
    usage, stats = {"raw": raw.get_memory_usage(), "lz4": lz4.get_memory_usage()}, lz4.get_performance_stats()
    return {
        "us": {name: percentiles(taken) for name, taken in us.items()},
        "ratios": {f"{name} / {other}": percentiles(us[name] / us[other]) for name, other in pairs},
        "add_us": {"raw": raw_add, "lz4": lz4_add},
        "reserved_bytes": {name: used["reserved_bytes"] for name, used in usage.items()},
        "bytes_per_transition": {name: used["bytes_per_transition"] for name, used in usage.items()},
        "frame_cache_hit_rate": stats["frame_cache_hit_rate"],
    }


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--games", nargs="+", default=["Breakout", "Pong"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--recorded", type=int, default=10_000, help="different frames of each game")
    parser.add_argument("--cached", type=int, default=1024, help="model.replay.cached_frames")
    parser.add_argument("--quick", action="store_true", help="2,000 rows, 20 rounds")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.rounds, args.recorded = 2_000, 20, 400
    torch.set_num_threads(1)
    found = {}
    for game in args.games:
        found[game] = measure(record(game, args.recorded), args.rows, args.rounds, args.cached)
        print(f"{game}\n| | median | 10 % | 90 % |\n|-|-|-|-|")
        for name, (median, low, high) in {**found[game]["us"], **found[game]["ratios"]}.items():
            print(f"| {name} | {median:,.4g} | {low:,.4g} | {high:,.4g} |")
        print({name: value for name, value in found[game].items() if name not in ("us", "ratios")})
    settings = {name: getattr(args, name) for name in ("rows", "rounds", "recorded", "cached")}
    machine = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__}
    args.out.write_text(json.dumps({**settings, **machine, "games": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
