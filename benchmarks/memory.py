"""Bytes of memory a transition of Atari takes in the replay, beside cpprb, Tianshou, TorchRL and SB3.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 1000000 --sides perdqn --game Pong
    python benchmarks/memory.py --variant lz4 storage=lz4     # one more side of ours, its replay made so

Each side, in a process of its own, holds the same frames of random play (84x84, stacks of four, n_step 3) in
its leanest layout that has priorities and n-step returns, Stable-Baselines3's without priorities. Memory is
how much the process grew from the empty replay until it was full, by transition; what the rows themselves
take up in the meantime, and allocators keep, is thus counted as well. ``reserved``: what perdqn says.

Linux only. Results go to ``benchmarks/results/memory.json``, by number of rows and game.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peers
from peers.items import IMAGES, Items, record_frames

SIDES = ("perdqn", "cpprb", "tianshou", "torchrl", "sb3")
NUM_FRAMES = 16_000


def fill(side: str, frames: str, rows: int, **options: Any) -> dict[str, float]:
    """What a side's process does: bytes by transition once ``rows`` are in."""
    library = importlib.import_module(f"peers.{side.partition('-')[0]}")
    items = Items(IMAGES, np.load(frames))
    _exercise(library.Replay(IMAGES, 512, **options), items)
    gc.collect()
    before = get_rss_bytes()
    replay = library.Replay(IMAGES, rows, **options)
    _exercise(replay, items)
    gc.collect()
    measured = {"bytes_per_transition": round((get_rss_bytes() - before) / rows, 1)}
    if hasattr(replay, "reserved_bytes"):
        measured["reserved_bytes_per_transition"] = round(replay.reserved_bytes / rows, 1)
    return measured


def _exercise(replay: Any, items: Items) -> None:
    """Fill it, and touch all that is only made when it is first used."""
    replay.fill(items)
    replay.update(replay.sample(32), np.ones(32))


def get_rss_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) * 1024


def main() -> None:
    parser = peers.get_parser(__doc__, "memory.json", SIDES)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--game", default="Pong", help="of ALE, or noise")
    peers.add_variants(parser, "as arguments of PrioritizedReplay")
    args = parser.parse_args()
    if args.side:
        peers.serve(fill)
        return
    variants = peers.get_variants(args)
    names = peers.choose_sides(parser, args, [*SIDES, *variants])
    if args.quick:
        args.rows, args.game = 4_000, "noise"
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "frames.npy"
        record_frames(args.game, frames, 800 if args.quick else NUM_FRAMES)
        versions = {}
        for name in names * args.rounds:
            options = dict(setting.split("=", 1) for setting in variants.get(name, []))
            with peers.Side(name, Path(__file__), args.environments) as side:
                found[name].append(side.ask(side=name, frames=str(frames), rows=args.rows, **options))
                versions[name] = side.versions
            print(name, found[name][-1], flush=True)
    sides = {
        name: {key: peers.summary(each[key] for each in runs) for key in runs[0]}
        for name, runs in found.items()
    }
    shared = {"rows": args.rows, "game": args.game, "sides": sides, "variants": variants}
    provenance = peers.get_provenance("memory.py") | {"versions": versions}
    peers.record(args.out, {f"{args.rows} rows, {args.game}": {**provenance, **shared}})


if __name__ == "__main__":
    main()
