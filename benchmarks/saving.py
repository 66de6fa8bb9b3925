"""How long a save of the replay stalls training, beside Stable-Baselines3 and TorchRL.

    python benchmarks/saving.py                                  # 100,000 rows, all three
    python benchmarks/saving.py --rows 1000000 --sides perdqn    # the peers would need 28 to 60 GB of memory
    python benchmarks/saving.py --game noise                     # frames that nothing can compress

Every side holds the same Atari steps, random play recorded once: perdqn single frames, Stable-Baselines3
stacks of four in its leanest layout (`optimize_memory_usage`), TorchRL stacks before and after the step.
Then each adds 10,000 steps and saves, again and again: perdqn a generation of its journal, flushed, read
back and verified, the generation before last removed; Stable-Baselines3 by what `save_replay_buffer`
calls; TorchRL by `dumps`. The peers flush nothing; how long that takes after their call is given apart.

The peers run in virtual environments of their own, made under ``--environments`` where they are not yet
there. Linux only. Results go to ``benchmarks/results/saving.json``, by number of rows and game.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peers
from peers.items import record_frames

RESULTS = Path(__file__).resolve().parent / "results" / "saving.json"
SIDES = ("perdqn", "sb3", "torchrl")
NEW_ROWS, NUM_FRAMES, EPISODE, STACK, NUM_ACTIONS = 10_000, 10_000, 800, 4, 6
INTERVAL_S = 60.0  # at default settings there is at most one save in that time


# -- the sides: each has add(first, last) and save(folder); step i shows frames[i % NUM_FRAMES] ----


class Perdqn:
    packages = ("perdqn", "lightning-holdfast", "zstandard", "torch")

    def __init__(self, frames: np.ndarray, rows: int, folder: Path) -> None:
        from holdfast.storage.generations import GenerationFolder

        self.frames, self.folder = frames, GenerationFolder(folder)
        self.replay = self._make(rows)

    @staticmethod
    def _make(rows: int) -> Any:
        from perdqn.replay.prioritized import PrioritizedReplay
        from perdqn.transition import OBS, Column, EnvSpec

        spec = EnvSpec((Column(OBS, (84, 84), np.dtype(np.uint8)),), False, NUM_ACTIONS, 0, STACK)
        return PrioritizedReplay(spec, 1, rows, n_step=3, alpha=0.5)

    def add(self, first: int, last: int) -> None:
        from perdqn.transition import OBS

        zero, rng = np.zeros(1), np.random.default_rng(first)
        actions = rng.integers(NUM_ACTIONS, size=(last - first, 1))
        for i in range(first, last):
            frame = {OBS: self.frames[i % NUM_FRAMES][None]}
            ended = np.array([i % EPISODE == EPISODE - 1])
            self.replay.add(frame, actions[i - first], zero, ended, ~ended & ended, frame)
        # as after the updates of the meantime: every priority is another one
        ids = self.replay.rows.ids(np.arange(self.replay.capacity))
        self.replay.update_priorities(ids, rng.exponential(size=ids.size).astype(np.float32))

    def save(self, name: str) -> None:
        import torch
        from holdfast.storage.parts import PartStore

        store = PartStore(self.folder.path)
        entry = self.replay.save_parts(store)
        self.folder.write(name, "regular", partial(torch.save, entry), store.files)
        for old in self.folder.generations()[2:]:
            self.folder.remove(old)

    def flush(self) -> None:
        """Done by the save itself."""

    def check(self, rows: int) -> dict[str, Any]:
        """Load what was saved last; the old replay goes first, so that memory for one is enough."""
        import torch
        from holdfast.storage.parts import PartStore

        digest, self.replay = self._digest(), None
        loaded = self._make(rows)
        started = time.perf_counter()
        newest = self.folder.newest_valid()
        assert newest is not None
        loaded.load_parts(PartStore(self.folder.path), torch.load(newest.checkpoint, weights_only=True))
        seconds = time.perf_counter() - started
        self.replay = loaded
        assert self._digest() == digest, "the loaded replay differs from the saved one"
        return {
            "load_s": round(seconds, 3),
            "parts": len(newest.files) - 1,
            "disk_bytes": sum(file.size for file in newest.files),
        }

    def _digest(self) -> list[int]:
        from zlib import crc32

        rows, replay = self.replay.rows, self.replay
        arrays = [
            *(stored[:] for stored in rows.frames.values()),
            rows.actions,
            rows.rewards,
            rows.flags,
            rows.heads,
        ]
        return [
            crc32(array) for array in (*arrays, replay._priorities, replay._measured, replay._tree.leaves)
        ]


class Peer:
    """Saves to a file or folder of its own; the one before goes when the new one is written."""

    def __init__(self, frames: np.ndarray, rows: int, folder: Path) -> None:
        self.frames, self.folder = frames, folder
        self.make(rows)

    def stack(self, i: int) -> np.ndarray:
        return self.frames[np.arange(i - STACK + 1, i + 1) % NUM_FRAMES]

    def save(self, name: str) -> None:
        before = list(self.folder.iterdir())
        self.write(self.folder / name)
        for old in before:
            shutil.rmtree(old) if old.is_dir() else old.unlink()

    def flush(self) -> None:
        for path in filter(Path.is_file, self.folder.rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())

    def check(self, rows: int) -> dict[str, Any]:
        return {"disk_bytes": sum(p.stat().st_size for p in self.folder.rglob("*") if p.is_file())}


class StableBaselines3(Peer):
    packages = ("stable-baselines3", "torch")

    def make(self, rows: int) -> None:
        from gymnasium import spaces
        from stable_baselines3.common.buffers import ReplayBuffer

        image = spaces.Box(0, 255, (STACK, 84, 84), np.uint8)
        lean = {"optimize_memory_usage": True, "handle_timeout_termination": False}
        self.buffer = ReplayBuffer(rows, image, spaces.Discrete(NUM_ACTIONS), **lean)

    def add(self, first: int, last: int) -> None:
        action, reward = np.zeros(1, np.int64), np.zeros(1, np.float32)
        for i in range(first, last):
            ended = np.array([i % EPISODE == EPISODE - 1])
            self.buffer.add(self.stack(i)[None], self.stack(i + 1)[None], action, reward, ended, [{}])

    def write(self, path: Path) -> None:
        from stable_baselines3.common.save_util import save_to_pkl

        save_to_pkl(path, self.buffer)


class TorchRL(Peer):
    packages = ("torchrl", "tensordict", "torch")

    def make(self, rows: int) -> None:
        from torchrl.data import LazyTensorStorage, ReplayBuffer

        self.buffer = ReplayBuffer(storage=LazyTensorStorage(rows), batch_size=32)

    def add(self, first: int, last: int) -> None:
        import torch
        from tensordict import TensorDict

        for start in range(first, last, 1000):
            steps = range(start, min(last, start + 1000))
            before, after = (np.stack([self.stack(i + k) for i in steps]) for k in (0, 1))
            ended = torch.tensor([[i % EPISODE == EPISODE - 1] for i in steps])
            following = {
                "obs": torch.from_numpy(after),
                "reward": torch.zeros(len(steps), 1),
                "done": ended,
                "terminated": ended,
            }
            step = {"obs": torch.from_numpy(before), "action": torch.zeros(len(steps), dtype=torch.int64)}
            self.buffer.extend(TensorDict({**step, "next": following}, batch_size=[len(steps)]))

    def write(self, path: Path) -> None:
        self.buffer.dumps(path)


KINDS: dict[str, Callable[..., Any]] = {"perdqn": Perdqn, "sb3": StableBaselines3, "torchrl": TorchRL}


def measure(side: str, frames: Path, rows: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Fill, save once, then add and save repeatedly; in a process that holds nothing else."""
    subject = KINDS[side](np.load(frames), rows, folder)
    subject.add(0, rows)
    saves = [_save(subject, "save-0")]
    for repeat in range(1, repeats + 1):
        subject.add(rows + (repeat - 1) * NEW_ROWS, rows + repeat * NEW_ROWS)
        saves.append(_save(subject, f"save-{repeat}"))
    return {
        "versions": {name: version(name) for name in subject.packages},
        "first_save": saves[0],
        **{key: _summary([save[key] for save in saves[1:]]) for key in saves[0]},
        **subject.check(rows),
    }


def _save(subject: Any, name: str) -> dict[str, float]:
    os.sync()
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory counts from now
    before, started, worked = _status("VmRSS"), time.perf_counter(), time.process_time()
    subject.save(name)
    called, worked = time.perf_counter(), time.process_time() - worked
    subject.flush()
    flushed = time.perf_counter()
    return {
        "call_s": round(called - started, 4),
        "call_cpu_s": round(worked, 4),  # other programs do not change it much
        "flush_s": round(flushed - called, 4),
        "extra_memory_bytes": max(0, _status("VmHWM") - before),
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024


def _summary(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "all": values}


# -- all of them -----------------------------------------------------------------------------------


def run(side: str, python: str, frames: Path, args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        own = ["--side", side, "--frames", frames, "--folder", folder]
        shared = ["--rows", str(args.rows), "--repeats", str(args.repeats)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [python, __file__, *own, *shared]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        frames = Path(scratch) / "frames.npy"
        record_frames(args.game, frames, NUM_FRAMES)
        sides = {}
        for side in args.sides:
            sides[side] = run(side, peers.python_of(side, args.environments), frames, args)
            print(side, json.dumps(sides[side], indent=1), flush=True)
    result: dict[str, Any] = {
        "command": f"python benchmarks/saving.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": peers.get_cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "rows": args.rows,
        "new_rows": NEW_ROWS,
        "game": args.game,
        "sides": sides,
    }
    if ours := sides.get("perdqn"):
        stall = ours["call_s"]["median"]
        result["share_of_a_run_with_a_save_each_minute"] = round(stall / INTERVAL_S, 5)
        result["times_slower_than_perdqn"] = {
            side: round(each["call_s"]["median"] / stall, 1)
            for side, each in sides.items()
            if side != "perdqn"
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--game", default="Breakout", help="of ALE, or noise")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument(
        "--environments", type=Path, default=peers.ENVIRONMENTS, help="of the peers; made if missing"
    )
    parser.add_argument(
        "--folder", type=Path, help="on the disk to measure; default: the system's temporary one"
    )
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--frames", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args.side, args.frames, args.rows, args.repeats, args.folder)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[f"{args.rows} rows, {args.game}"] = result = compare(args)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print({key: value for key, value in result.items() if key != "sides"})


if __name__ == "__main__":
    main()
