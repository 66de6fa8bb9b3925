"""Kills, tears or starves a save and a resume at every call that changes a file.

    python benchmarks/reliability/syscalls.py

A preloaded library counts the calls below the checkpoint folder; a fork of one running process then
meets its fate at each of them: killed before, killed after, half a write and killed, no space once, no
space from there on. Afterwards there is never less than one valid generation, none that is damaged is
loaded, and the run goes on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from crash import Fate, every_point, preloaded, was_killed, why_unavailable
from holdfast import VerifiedCheckpoint
from holdfast.boundary import BoundaryCallback
from holdfast.storage.generations import GenerationFolder
from small_run import train

KILLS = [Fate.KILL_BEFORE, Fate.KILL_AFTER, Fate.TEAR]
STARVES = [Fate.FULL_ONCE, Fate.FULL_FROM]


class AtStep(BoundaryCallback):
    """Calls ``act`` once, at the clean boundary after ``step`` updates."""

    def __init__(self, step: int, act: Callable[[Any], None]) -> None:
        self.step, self.act = step, act

    def on_boundary(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            self.step = -1
            self.act(trainer)


def callback(folder: Path) -> VerifiedCheckpoint:
    return VerifiedCheckpoint(dirpath=folder, every={"steps": 3}, keep=2, max_time_fraction=1.0)


def break_saves(root: Path, stride: int) -> Counter[str]:
    """Break the third save of a run at every call."""
    folder, counts = root / "checkpoints", Counter[str]()
    saver = callback(folder)

    def break_them(trainer: Any) -> None:
        before = GenerationFolder(folder).newest_valid()
        assert before is not None

        def save() -> None:
            saver.save_now(trainer)

        for nth, fate, status in every_point(folder, save, KILLS + STARVES, stride):
            counts["save"] += 1
            counts["save harmed"] += bool(
                judge(folder, before.sequence, fate, status, f"save {nth} {fate.name}")
            )

    train(root, [saver, AtStep(8, break_them)], steps=9)
    return counts


def break_resumes(root: Path, stride: int) -> Counter[str]:
    """Break a resumed run, its clean-up and its next save at every call."""
    folder, counts = root / "checkpoints", Counter[str]()
    train(root, [callback(folder)], steps=9)
    before = GenerationFolder(folder).newest_valid()
    assert before is not None

    def go_on() -> None:
        train(root, [callback(folder)], steps=13, ckpt_path=before.checkpoint)

    for nth, fate, status in every_point(folder, go_on, KILLS, stride):
        counts["resume"] += 1
        counts["resume harmed"] += bool(
            judge(folder, before.sequence, fate, status, f"resume {nth} {fate.name}")
        )
    return counts


def judge(folder: Path, before: int, fate: Fate, status: int, what: str) -> list[str]:
    """What is wrong after a call met its fate; printed as well."""
    found = GenerationFolder(folder).newest_valid()
    faults = []
    if fate in KILLS and not was_killed(status):
        faults.append(f"ended with {status} instead of being killed")
    if fate in STARVES and status:
        faults.append(f"a full disk ended the run with {status}")
    if found is None or found.sequence < before:
        faults.append(f"newest valid generation is {found and found.sequence}, was {before}")
    else:
        torch.load(found.checkpoint, weights_only=True)
    for fault in faults:
        print(f"{what}: {fault}", file=sys.stderr)
    return faults


def sweep(stride: int = 1) -> dict[str, int]:
    """Points tried and points where harm was done; in a process with the library preloaded."""
    done = preloaded([__file__, "--inside", "--stride", str(stride)])
    sys.stderr.write(done.stderr)
    done.check_returncode()
    return dict(json.loads(done.stdout.splitlines()[-1]))


def inside(stride: int) -> dict[str, int]:
    counts = Counter[str]()
    for broken in (break_saves, break_resumes):
        root = Path(tempfile.mkdtemp(prefix="syscalls-"))
        counts.update(broken(root, stride))
        shutil.rmtree(root)
    return {key: counts[key] for key in ("save", "save harmed", "resume", "resume harmed")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stride", type=int, default=1, help="try every nth call alone")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if reason := why_unavailable():
        sys.exit(reason)
    figures = inside(args.stride) if args.inside else sweep(args.stride)
    print(json.dumps(figures))
    sys.exit(not args.inside and bool(figures["save harmed"] or figures["resume harmed"]))


if __name__ == "__main__":
    main()
