"""Programs in processes of their own, killed at random hooks and resumed with one added line.

    cd tests/holdfast && python -m programs run NAME FOLDER [--die-at N]
    cd tests/holdfast && python -m programs kill FOLDER [--names NAME ...] [--runs R] [--kills K] [--seed S]

``run`` trains to the end, or from the newest generation in FOLDER if there is one; the N-th hook it comes
to kills it. ``kill`` compares R runs of each program, each killed K times, with one that was never killed;
the exit code is the number of runs that differ.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from holdfast import VerifiedCheckpoint
from holdfast.storage.generations import GenerationFolder

from . import NAMES, Memory, Trace, build, differences, run


class Deadly(Trace):
    """The process ends at one of the hooks, in the middle of whatever goes on.

    Args:
        hook: counted from 1; 0: none.
    """

    def __init__(self, hook: int) -> None:
        super().__init__()
        self.hook = hook

    def _note(self, *args: Any) -> None:
        super()._note(*args)
        if self.hook and len(self.events) == self.hook:
            os.kill(os.getpid(), signal.SIGKILL)


class Lines(Memory):
    """Values logged, one line each, in a file that outlives the process."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        with self.path.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")


def run_once(name: str, folder: Path, die_at: int = 0) -> None:
    """To the end, from the newest generation; what is left of the run lies in ``outcome.pt``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    checkpoints = folder / "checkpoints"
    checkpoint = VerifiedCheckpoint(checkpoints, every={"steps": 1}, keep=2)  # the one added line
    newest = GenerationFolder(checkpoints).newest_valid() if checkpoints.exists() else None
    program = build(name)
    program.settings["logger"] = Lines(folder / "log.jsonl")
    program.callbacks.append(deadly := Deadly(die_at))
    outcome = run(
        program,
        folder,
        newest.checkpoint if newest else None,
        lambda *_: [checkpoint],
        enable_checkpointing=True,
    )
    outcome.state["callbacks"] = {k: v for k, v in outcome.state["callbacks"].items() if "Verified" not in k}
    (folder / "hooks").write_text(str(len(deadly.events)))
    torch.save(outcome.state, folder / "outcome.pt")


def values_of(folder: Path) -> dict[str, Any]:
    """What was logged last for each step and each set of names."""
    if not (folder / "log.jsonl").exists():
        return {}
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {f"{step} {' '.join(sorted(metrics))}": metrics for step, metrics in lines}


def compare(one: Path, other: Path) -> list[str]:
    """Where two finished runs are not the same bits."""
    states = [torch.load(folder / "outcome.pt", weights_only=False) for folder in (one, other)]
    return differences(*states) + differences(values_of(one), values_of(other), "log")


def start(name: str, folder: Path, die_at: int = 0) -> int:
    """`run_once` in a process; its return code."""
    command = [sys.executable, "-m", "programs", "run", name, str(folder), "--die-at", str(die_at)]
    return subprocess.run(command, cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL).returncode


def kill_and_compare(
    name: str, folder: Path, whole: Path, num_hooks: int, num_kills: int, seed: str
) -> list[str]:
    """One run killed at random hooks."""
    stream = random.Random(seed)
    for _ in range(num_kills):
        if start(name, folder, stream.randrange(1, num_hooks)) == 0:
            break  # resumed, it had fewer hooks left
    if not (folder / "outcome.pt").exists() and (code := start(name, folder)) != 0:
        return [f"the resumed run ended with code {code}"]
    return compare(whole, folder)


def kill(folder: Path, names: list[str], num_runs: int, num_kills: int, seed: int) -> int:
    """All programs; the number of runs that differ."""
    num_bad = 0
    for name in names:
        whole = folder / name / "whole"
        assert start(name, whole) == 0, f"{name} fails without being killed"
        num_hooks = int((whole / "hooks").read_text())
        for index in range(num_runs):
            place = folder / name / str(index)
            faults = kill_and_compare(name, place, whole, num_hooks, num_kills, f"{seed} {name} {index}")
            num_bad += bool(faults)
            print(name, index, "equal" if not faults else faults[:5], flush=True)
    return num_bad


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m programs", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run")
    one.add_argument("name", choices=NAMES)
    one.add_argument("folder", type=Path)
    one.add_argument("--die-at", type=int, default=0)
    many = commands.add_parser("kill")
    many.add_argument("folder", type=Path)
    many.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    many.add_argument("--runs", type=int, default=3)
    many.add_argument("--kills", type=int, default=2)
    many.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.command == "kill":
        return kill(given.folder.absolute(), list(given.names), given.runs, given.kills, given.seed)
    logging.disable(logging.INFO)
    warnings.filterwarnings("ignore", module="lightning")
    run_once(given.name, given.folder.absolute(), given.die_at)
    return 0


if __name__ == "__main__":
    sys.exit(main())
