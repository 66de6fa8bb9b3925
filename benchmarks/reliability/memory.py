"""Lets a training process leak memory in a control group, and sees whether it saves before it is killed.

    python benchmarks/reliability/memory.py --count 60 --healthy 10

Leaks run at 1 to 500 MiB/s, evenly spread on a logarithmic scale, from a random moment on, with room for
100 MiB or four seconds, whichever is more. A healthy run breathes in saw-teeth and reads files instead; an
emergency save there is a false alarm. Where no control group can be made (root, v1 or v2 writable), the
limit is simulated: the figures are those of the process itself, and this program does the killing.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from control_group import Group, make_group
from holdfast.emergency import EmergencyCheckpoint
from holdfast.resources.memory import Usage
from holdfast.storage.generations import GenerationFolder
from holdfast.triggers import Memory
from lightning.pytorch import Callback, Trainer
from small_run import QUIET, Classifier

MIB = 2**20
BALLAST = 256 * MIB  # held from the start
SLOWEST, FASTEST = 1.0, 500.0  # MiB/s


class OwnFigures:
    """In place of a group: what this process has taken since it began, against a limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.process = limit, psutil.Process()
        self.base = self.process.memory_info().rss

    def tightest(self) -> Usage:
        used = max(0, self.process.memory_info().rss - self.base)
        return Usage("a simulated group", self.limit, used, max(0, self.limit - used))

    def stalled_s(self) -> None:
        return None


class Leak(Callback):
    """Takes ``rate`` bytes a second from some second on, in each step what is due."""

    def __init__(self, rate: float, begins_s: float, shown: mmap.mmap) -> None:
        self.rate, self.begins_s, self.shown = rate, begins_s, shown
        self.held: list[bytearray] = [taken(BALLAST)]
        self.num_bytes, self.began = 0, 0.0

    def on_train_start(self, *_: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, *_: Any) -> None:
        due = int(self.rate * (time.monotonic() - self.began - self.begins_s))
        if due - self.num_bytes > MIB // 4:
            self.shown[0] = 1
            self.held.append(taken(due - self.num_bytes))
            self.num_bytes = due


class Healthy(Callback):
    """Takes up to half of what is free and gives it back, over and over, and reads a file all the time."""

    def __init__(self, room: int, folder: Path, shown: mmap.mmap) -> None:
        self.room, self.shown, self.file = room, shown, folder / "data"
        self.held: list[bytearray] = [taken(BALLAST)]
        self.file.write_bytes(os.urandom(MIB) * 64)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        phase = trainer.global_step % 500
        if phase == 0:
            del self.held[1:]
            with self.file.open("rb") as file:
                while file.read(MIB):
                    pass
        elif phase % 10 == 0:
            self.held.append(taken(self.room // 100))


def taken(num_bytes: int) -> bytearray:
    """Memory that is really there: every page is written to."""
    memory = bytearray(num_bytes)
    memory[::4096] = b"\1" * len(memory[::4096])
    return memory


class Trial(NamedTuple):
    rate: float  # MiB/s; 0: healthy
    is_saved: bool
    code: int  # negative: killed by that signal
    seconds: float


def train(root: Path, callback: Callback, memory: Memory) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    callbacks = [callback, EmergencyCheckpoint(root / "saved", triggers=[memory])]
    trainer = Trainer(**QUIET, enable_checkpointing=False, default_root_dir=root, callbacks=callbacks)
    trainer.fit(Classifier())


def attempt(number: int, rate: float, seconds: float, group: Group | None, seed: int) -> Trial:
    """One leak, or one healthy run of so many seconds."""
    draw = random.Random(f"{seed} {number} {rate}")
    room = int(max(100 * MIB, 4 * rate * MIB)) if rate else 512 * MIB
    limit = BALLAST + room + 64 * MIB  # the process itself
    root, shown = Path(tempfile.mkdtemp(prefix="memory-")), mmap.mmap(-1, 1)
    if group is not None:
        group.limit(limit)

    def work() -> None:
        if group is not None:
            group.enter()
        figures = None if group is not None else OwnFigures(limit)
        leak = Leak(rate * MIB, draw.uniform(5, 10), shown) if rate else Healthy(room, root, shown)
        train(root, leak, Memory(figures=figures))

    began = time.monotonic()
    child = in_child(work, root / "log")
    code = watch(child, limit, seconds, is_killer=group is None)
    kinds = [generation.kind for generation in GenerationFolder(root / "saved").generations()]
    trial = Trial(rate, "emergency" in kinds, code, time.monotonic() - began)
    if trial.is_saved != bool(rate):
        print(f"trial {number}: {trial}; see {root}", file=sys.stderr)
    else:
        shutil.rmtree(root)
    return trial


def watch(child: int, limit: int, seconds: float, is_killer: bool) -> int:
    """Wait for the end; kill beyond the limit where no kernel does, and when the time is over."""
    end, process = time.monotonic() + seconds, psutil.Process(child)
    base = process.memory_info().rss
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end or (is_killer and process.memory_info().rss - base > limit):
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)


def in_child(work: Callable[[], None], log: Path) -> int:
    """Fork; the child works and is gone at once, since an interpreter that ends touches all it shares."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    try:
        work()
        os._exit(0)
    except SystemExit as end:
        os._exit(int(end.code or 0))


def rates(count: int) -> Iterator[float]:
    for number in range(count):
        yield SLOWEST * (FASTEST / SLOWEST) ** (number / max(1, count - 1))


def sweep(count: int, num_healthy: int, seconds: float, seed: int) -> tuple[list[Trial], dict[str, Any]]:
    group, parent = make_group(), os.getpid()
    if group is None:
        print("no memory control group can be made here: the limit is simulated", file=sys.stderr)
    try:
        leaks = [attempt(n, rate, 300.0, group, seed) for n, rate in enumerate(rates(count))]
        healthy = [attempt(n, 0.0, seconds, group, seed) for n in range(num_healthy)]
    finally:
        if group is not None and os.getpid() == parent:  # a fork that ends comes by here too
            group.remove()
    num_saved = sum(trial.is_saved for trial in leaks)
    return leaks + healthy, {
        "control_group": str(group.folder) if group else "simulated",
        "leaks": count,
        "saved_before_the_kill": num_saved,
        "saved_share": round(num_saved / count, 3) if count else math.nan,
        "ended_by_itself": sum(trial.code == 137 for trial in leaks),
        "healthy_runs": num_healthy,
        "healthy_seconds": seconds * num_healthy,
        "false_alarms": sum(trial.is_saved for trial in healthy),
        "seed": seed,
    }


def table(trials: list[Trial]) -> str:
    lines = ["| leak, MiB/s | trials | saved before the kill | ended by itself |", "|-|-|-|-|"]
    for low, high in ((1, 5), (5, 20), (20, 100), (100, 501)):
        own = [trial for trial in trials if low <= trial.rate < high]
        saved, ended = sum(trial.is_saved for trial in own), sum(trial.code == 137 for trial in own)
        lines.append(f"| {low} to {min(high, 500)} | {len(own)} | {saved} | {ended} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--healthy", type=int, default=10)
    parser.add_argument("--healthy-seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # else the first collection in a fork would copy all that it shares with this process
    trials, summary = sweep(args.count, args.healthy, args.healthy_seconds, args.seed)
    print(table(trials))
    print(json.dumps(summary))
    sys.exit(summary["saved_share"] < 0.95 or summary["false_alarms"] > 0)


if __name__ == "__main__":
    main()
