"""The replay beside cpprb, Tianshou, TorchRL and Stable-Baselines3: append, sample, update, gather.

    python benchmarks/replay.py                                  # all cells, all sides
    python benchmarks/replay.py --sides perdqn cpprb --rounds 5 --capacities 131072
    python benchmarks/replay.py --only images

Every side is called as its users call it, checks included. A cell is timed in short blocks, side by side in
turns, in processes that live as long as the comparison; the figure is the median over rounds, in microseconds
a call, and the ratio the median over rounds of peer / perdqn, so that above 1 perdqn is the faster one.

Vectors: CartPole-shaped items in float64 (observation of 4, action, reward, next observation, done). What is
sampled are gathered arrays and importance weights. An append of 64 is one step of 64 environments where the
library adds steps of environments (perdqn, Tianshou), else 64 rows of one. An update gives rows priorities
they do not have already: trees that look (cpprb's) would stop at the leaves.
Images: stacks of four 84x84 frames, n_step 3, a batch of 32; ``gather`` is the part after the draw,
``gather_scaled`` the same to float32 in [0, 1], and ``memcpy`` copies as many bytes, one piece a stack, into
memory of its own. Stable-Baselines3 has no priorities. Bytes a transition of all sides: see memory.py.

Every process keeps what it frees (``MALLOC_TRIM_THRESHOLD_``), as one that trains mostly does: otherwise it
is chance whether a batch of images lies in memory that the system must first make, which costs more.

Linux only. Results go to ``benchmarks/results/replay.json``, by name of the cell.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import itertools
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import peers
from peers.items import FRAME, IMAGES, STACK, VECTORS, Items

SIDES = ("perdqn", "cpprb", "tianshou", "torchrl", "sb3")
OF_VECTORS = SIDES[:4]
CAPACITIES, IMAGE_CAPACITY = (2**17, 2**20), 2**15
BATCHES, APPENDS, IMAGE_BATCH = (32, 256, 2048), (1, 64), 32
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
NUM_PREPARED = 16  # ids of an update; one more of the priorities, so that rows are given new ones each time


class Subject:
    """Answers for one side, in its process."""

    def __init__(self, side: str) -> None:
        self.library = importlib.import_module(f"peers.{side}")
        self.rng = np.random.default_rng(0)
        self.replay: Any = None

    def answer(self, task: str, **job: Any) -> Any:
        return getattr(self, task)(**job)

    def make(self, kind: str, capacity: int) -> dict[str, float]:
        """Fill a replay, and give every row drawn a priority of its own."""
        self.replay, self.items = None, Items(kind)
        self.replay = self.library.Replay(kind, capacity)
        self.replay.fill(self.items)
        for _ in range(0 if kind == IMAGES else capacity // 1024):
            self.replay.update(self.replay.sample(2048), self.rng.exponential(size=2048))
        if not hasattr(self.replay, "reserved_bytes"):
            return {}
        return {"reserved_bytes_per_transition": self.replay.reserved_bytes / capacity}

    def measure(self, operation: str, number: int, seconds: float) -> float:
        """Microseconds a call, over a block of about ``seconds``."""
        return block(self._get_call(operation, number), seconds)

    def _get_call(self, operation: str, number: int) -> Callable[[], Any]:
        replay = self.replay
        if operation == "append":
            chunks = self.items.side_by_side(number) if replay.adds_steps else self.items.chunks(number)
            prepared = [replay.prepare(chunk) for chunk in itertools.islice(chunks, 256)]
            endless = itertools.cycle(prepared)
            return lambda: replay.append(next(endless))
        if operation == "sample":
            return lambda: replay.sample(number)
        if operation == "memcpy":
            return self._get_memcpy(number)
        # copied, since cpprb hands out the same memory again
        ids = itertools.cycle([copy.deepcopy(replay.sample(number)) for _ in range(NUM_PREPARED)])
        if operation in ("gather", "gather_scaled"):
            return lambda: getattr(replay, operation)(next(ids))
        values = itertools.cycle([self.rng.exponential(size=number) for _ in range(NUM_PREPARED + 1)])
        if operation == "update":
            return lambda: replay.update(next(ids), next(values))
        assert operation == "sample+update", operation
        return lambda: replay.update(replay.sample(number), next(values))

    def _get_memcpy(self, number: int) -> Callable[[], Any]:
        """Stacks before and after a transition, copied from anywhere in as many frames as a replay has."""
        source = np.zeros((IMAGE_CAPACITY, *FRAME), np.uint8)
        source[:] = 1
        starts = itertools.cycle(self.rng.integers(0, len(source) - STACK, (NUM_PREPARED, 2 * number)))

        def memcpy() -> np.ndarray:
            out = np.empty((2 * number, STACK, *FRAME), np.uint8)
            for i, start in enumerate(next(starts)):
                out[i] = source[start : start + STACK]
            return out

        return memcpy


def block(call: Callable[[], Any], seconds: float) -> float:
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < seconds / 10:
        call()
        calls += 1
    number = max(1, int(calls * seconds / (time.perf_counter() - began)))
    began = time.perf_counter()
    for _ in range(number):
        call()
    return 1e6 * (time.perf_counter() - began) / number


# -- all of them -----------------------------------------------------------------------------------


def compare(
    sides: dict[str, peers.Side], cells: dict[str, tuple[str, int]], rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Microseconds a call, by cell and side, one a round."""
    found: dict[str, dict[str, list[float]]] = {cell: {side: [] for side in sides} for cell in cells}
    for _ in range(rounds):
        for cell, (operation, number) in cells.items():
            for name, side in sides.items():
                if is_offered(name, operation):
                    job = {"task": "measure", "operation": operation, "number": number}
                    found[cell][name].append(side.ask(**job, seconds=seconds))
    return found


def is_offered(side: str, operation: str) -> bool:
    """The yardstick and the parts of a sample are measured on our side alone."""
    if operation in ("gather", "gather_scaled", "memcpy"):
        return side == peers.OURS
    return side != "sb3" or operation == "sample"


def judge(found: dict[str, list[float]]) -> dict[str, Any]:
    measured = {side: times for side, times in found.items() if times}
    result: dict[str, Any] = {"us": {side: peers.summary(times) for side, times in measured.items()}}
    if ours := measured.get(peers.OURS):
        result["times_slower_than_perdqn"] = {
            side: peers.summary(b / a for a, b in zip(ours, times, strict=True))
            for side, times in measured.items()
            if side != peers.OURS
        }
    return result


def run(args: argparse.Namespace) -> None:
    parts = [(VECTORS, capacity) for capacity in args.capacities] + [(IMAGES, args.image_capacity)]
    for kind, capacity in parts:
        if args.only not in (None, kind):
            continue
        offered = OF_VECTORS if kind == VECTORS else SIDES
        with ExitStack() as stack:
            sides = {
                name: stack.enter_context(peers.Side(name, Path(__file__), args.environments, **KEEP_MEMORY))
                for name in args.sides
                if name in offered
            }
            made = {name: side.ask(task="make", kind=kind, capacity=capacity) for name, side in sides.items()}
            found = compare(sides, get_cells(kind), args.rounds, args.seconds)
            shared = {"rounds": args.rounds, **peers.get_provenance("replay.py", sides.values())}
        results = {f"{kind}, {capacity}, {cell}": judge(each) for cell, each in found.items()}
        if kind == IMAGES:
            results[f"{kind}, {capacity}, bytes"] = made
        for name, result in results.items():
            print(name, to_line(result), flush=True)
        peers.record(args.out, {f"{kind}, {capacity}": shared, **results})


def get_cells(kind: str) -> dict[str, tuple[str, int]]:
    if kind == IMAGES:
        operations = ("append", "sample", "gather", "gather_scaled", "memcpy", "update")
        return {name: (name, 1 if name == "append" else IMAGE_BATCH) for name in operations}
    appends = {f"append {n}": ("append", n) for n in APPENDS}
    operations = ("sample", "update", "sample+update")
    return appends | {f"{name} {n}": (name, n) for name in operations for n in BATCHES}


def to_line(result: dict[str, Any]) -> str:
    if "us" not in result:
        return json.dumps(result)
    times = {side: each["median"] for side, each in result["us"].items()}
    ratios = {side: each["median"] for side, each in result.get("times_slower_than_perdqn", {}).items()}
    fastest = f"  fastest peer / perdqn {min(ratios.values()):.2f}" if ratios else ""
    return "  ".join(f"{side} {us:.1f}" for side, us in times.items()) + fastest


def main() -> None:
    parser = peers.get_parser(__doc__, "replay.json", SIDES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="of one block")
    parser.add_argument("--capacities", type=int, nargs="+", default=CAPACITIES, help="of vectors")
    parser.add_argument("--image-capacity", type=int, default=IMAGE_CAPACITY)
    parser.add_argument("--only", choices=(VECTORS, IMAGES))
    args = parser.parse_args()
    if args.side:
        peers.serve(Subject(args.side).answer)
        return
    args.sides = peers.choose_sides(parser, args, list(SIDES))
    if args.quick:
        args.capacities, args.image_capacity = [2**12], 2**9
        args.rounds, args.seconds = 1, 0.001
    run(args)


if __name__ == "__main__":
    main()
