"""Resident memory of a long run with everything on, once its replay is full; and a run that is kept alive.

    python benchmarks/observability/flat_memory.py --minutes 60
    python benchmarks/observability/flat_memory.py --relief

The first trains CartPole at the shipped settings and those of `guarded`, its figures written every second.
From the moment the replay is full (and three minutes more, for what is allocated late) the time is cut into
20 stretches of equal length, and a line is laid through the mean resident memory of each, and another through
the highest: growth in an hour, with a 95 % interval by Student's t. The mean goes up and down with how often
the allocator has just given pages back; a leak raises both. The second trains in a memory control group of
700 MiB while a cache grows by 20 MiB/s: without ResourceMonitor until the kernel kills, with it, beside
EmergencyCheckpoint, for two minutes. Root, Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from holdfast import BoundaryCallback, EmergencyCheckpoint, ResourceMonitor
from holdfast.boundary import StopRun
from holdfast.resources.journal import read_lines
from lightning.pytorch import Callback, Trainer

sys.path.append(str(Path(__file__).resolve().parents[1] / "reliability"))

from control_group import Group, make_group

MIB = 2**20
LIMIT, LEAK = 700 * MIB, 20 * MIB  # bytes, bytes a second
RELIEF_S = 120.0
CAPACITY = 50_000
SETTLING_S = 180.0
NUM_STRETCHES, QUANTILE = 20, 2.10  # of Student's t with 18 degrees of freedom
SETTINGS = [
    "--config=cartpole",
    "--config=guarded",
    "--trainer.enable_progress_bar=false",
    f"--model.replay.capacity={CAPACITY}",
    "--model.evaluation.stop_at_return=null",
    "--model.total_env_steps=1000000000",
    "--resources.write_every_seconds=1",
]


class End(BoundaryCallback):
    """Ends the run after so many seconds of training."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, *_: Any) -> None:
        self.at = time.monotonic() + self.seconds

    def on_boundary(self, *_: Any) -> None:
        if time.monotonic() > self.at:
            raise StopRun("the time is over")


# -- flat -------------------------------------------------------------------------------------------


def train(folder: Path, seconds: float) -> None:
    from perdqn.assembly import RunCLI
    from perdqn.cli.command_line import expand

    cli = RunCLI("fit", expand([*SETTINGS, f"--trainer.default_root_dir={folder}"]))
    cli.trainer.callbacks.append(End(seconds))
    with contextlib.suppress(StopRun):
        cli.trainer.fit(cli.model)


def judge(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth in an hour, of what is resident on average and of the most that ever is."""
    full_at = next(line["time"] for line in lines if line["step"] >= CAPACITY)
    used = [line for line in lines if line["time"] >= full_at + SETTLING_S]
    if len(used) < 2 * NUM_STRETCHES:
        raise SystemExit(f"only {len(used)} samples since the replay was full; use more --minutes")
    rss = np.array_split([line["resource/rss_bytes"] / MIB for line in used], NUM_STRETCHES)
    at = np.array_split([line["time"] / 3600 for line in used], NUM_STRETCHES)
    hours = np.array([part.mean() for part in at])
    return {
        "minutes_after_full": round((used[-1]["time"] - used[0]["time"]) / 60, 1),
        "env_steps": used[-1]["step"],
        "mean": growth(hours, np.array([part.mean() for part in rss])),
        "highest": growth(hours, np.array([part.max() for part in rss])),
    }


def growth(hours: np.ndarray, mib: np.ndarray) -> dict[str, Any]:
    """The slope of one value a stretch, as a share of their mean, with its interval; and all of them."""
    since, level = hours - hours.mean(), mib.mean()
    slope = since @ mib / (since @ since)
    left = mib - level - slope * since
    error = np.sqrt((left @ left) / (NUM_STRETCHES - 2) / (since @ since))
    ends = (slope - QUANTILE * error, slope + QUANTILE * error)
    return {
        "percent_an_hour": round(100 * slope / level, 3),
        "interval": [round(100 * end / level, 3) for end in ends],
        "first_to_last_percent": round(100 * (mib[-1] / mib[0] - 1), 3),
        "mib": [round(value, 1) for value in mib],
    }


# -- relief -----------------------------------------------------------------------------------------


class Cache(Callback):
    """Remembers more and more, and can forget."""

    def __init__(self) -> None:
        self.held: list[bytes] = []
        self.began = 0.0

    def on_train_start(self, *_: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, *_: Any) -> None:
        if time.monotonic() > self.began:
            self.began += 0.1
            self.held.append(os.urandom(LEAK // 10))

    def release_memory(self) -> int:
        num_bytes = sum(map(len, self.held))
        self.held.clear()
        return num_bytes


def live(group: Path, folder: Path, is_watched: bool) -> None:
    from small_run import QUIET, Classifier

    (group / "cgroup.procs").write_text(str(os.getpid()))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    callbacks: list[Callback] = [Cache(), End(RELIEF_S)]
    if is_watched:
        callbacks += [ResourceMonitor(write_every_seconds=1), EmergencyCheckpoint(folder / "saved")]
    trainer = Trainer(**QUIET, enable_checkpointing=False, default_root_dir=folder, callbacks=callbacks)
    with contextlib.suppress(StopRun):
        trainer.fit(Classifier())


def relieve(group: Group) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("without", "with"):
        with tempfile.TemporaryDirectory() as folder:
            group.limit(LIMIT)
            command = [sys.executable, __file__, "--inside", str(group.folder), folder, name]
            began = time.monotonic()
            code = subprocess.run(command, capture_output=True).returncode
            events = read_lines(Path(folder, "monitor", "alerts.jsonl"))
            lines = read_lines(Path(folder, "monitor", "resources.jsonl"))
            found[name] = {
                "exit_code": code,
                "seconds": round(time.monotonic() - began, 1),
                "events": dict(Counter(f"{event['kind']} {event['state']}" for event in events)),
                "highest_share": max((line["resource/memory_share"] for line in lines), default=None),
                "given_back_mib": [
                    round(event["figures"]["process"] / MIB)
                    for event in events
                    if event["state"] == "released"
                ],
                "saved": sorted(path.name for path in Path(folder, "saved").glob("*.json")),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="of training, beside those until it is full"
    )
    parser.add_argument("--relief", action="store_true", help="the run that would hit its limit")
    parser.add_argument("--inside", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        group, folder, name = args.inside
        live(Path(group), Path(folder), name == "with")
        return
    if args.relief:
        if (own := make_group()) is None:
            sys.exit("no memory control group can be made here: it takes root, and a hierarchy to write to")
        try:
            print(json.dumps(relieve(own), indent=1))
        finally:
            own.remove()
        return
    with tempfile.TemporaryDirectory() as folder:
        train(Path(folder), 60 * args.minutes + SETTLING_S)
        found = judge(read_lines(next(Path(folder).glob("**/monitor/resources.jsonl"))))
    print(json.dumps(found, indent=1))
    sys.exit(int(any(found[of]["interval"][0] > 1 for of in ("mean", "highest"))))


if __name__ == "__main__":
    main()
