"""Sends signals to a training process at random moments, and looks at what it leaves and how it ends.

    python benchmarks/reliability/signals.py --count 300

Each trial is a fork of one process that has everything imported: it trains, validates and saves until a
signal of every kind in turn comes, and, half of the time, a second one shortly after. It must end with
128 + signal within the grace period (SIGUSR2 asks for a save and no end), leave a whole emergency
generation and nothing damaged, and another process must go on from there.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import mmap
import os
import random
import re
import shutil
import signal
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from holdfast.checkpoint import VerifiedCheckpoint
from holdfast.emergency import EmergencyCheckpoint
from holdfast.storage.generations import GenerationFolder
from holdfast.triggers.signals import SAVING, STOPPING
from lightning.pytorch import Callback, Trainer
from small_run import QUIET, Classifier
from torch import Tensor
from torch.utils.data import DataLoader

GRACE_S = 30.0
PHASES = ("starting", "step", "validation", "save")


class Validated(Classifier):
    """Validates once in an epoch of sixteen steps."""

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.layers(batch[0])

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self.train_dataloader()


class Phase(Callback):
    """Shows in shared memory what training is doing."""

    def __init__(self, shown: mmap.mmap) -> None:
        self.shown = shown

    def on_train_batch_start(self, *_: Any) -> None:
        self.shown[0] = 1

    def on_validation_start(self, *_: Any) -> None:
        self.shown[0] = 2

    def on_save_checkpoint(self, *_: Any) -> None:
        self.shown[0] = 3


def train(root: Path, shown: mmap.mmap, steps: int = -1, ckpt_path: Path | None = None) -> None:
    """Train in silence, until stopped or for so many steps; saves every five."""
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO)  # the log says how long a save took
    warnings.simplefilter("ignore")
    callbacks = [Phase(shown), EmergencyCheckpoint(), VerifiedCheckpoint(root / "saved", every={"steps": 5})]
    settings = {**QUIET, "max_steps": steps, "num_sanity_val_steps": 0}
    Trainer(**settings, default_root_dir=root, callbacks=callbacks).fit(Validated(), ckpt_path=ckpt_path)


class Outcome(NamedTuple):
    """One trial: what was sent and what came of it."""

    first: str
    second: str | None
    phase: str
    saved_s: float | None  # from the signal until the save was whole, as the run says itself
    ended_s: float  # from the first signal until the process was gone, interpreter included
    faults: list[str]


def in_child(work: Callable[[], None], log: Path) -> int:
    """Fork; the child works and then ends as any program does, the parent gets its number."""
    child = os.fork()
    if child:
        return child
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    for name in (*STOPPING, *SAVING):  # a shell that runs this in the background has some ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.dump_traceback_later(2 * GRACE_S, exit=True)  # so that the log says where it hangs
    work()
    sys.exit(0)


def end_of(child: int, timeout_s: float) -> int | None:
    """The exit code, negative for a signal; None where it did not end in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def kill(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def emergencies(root: Path) -> list[str]:
    folder = GenerationFolder(root / "saved")
    return [generation.name for generation in folder.generations() if generation.kind == "emergency"]


def attempt(number: int, seed: int) -> Outcome:
    """One trial in a folder of its own."""
    draw = random.Random(f"{seed} {number}")
    kinds = (*STOPPING, *SAVING)
    first = kinds[number % len(kinds)]
    second = draw.choice(kinds) if draw.random() < 0.5 else None
    root, shown = Path(tempfile.mkdtemp(prefix="signals-")), mmap.mmap(-1, 1)
    child = in_child(lambda: train(root, shown), root / "log")
    while shown[0] == 0 and end_of(child, 0.01) is None:
        pass
    time.sleep(draw.uniform(0.0, 1.0))
    phase, sent = PHASES[shown[0]], time.monotonic()
    os.kill(child, getattr(signal, first))
    if second is not None:
        time.sleep(draw.uniform(0.0, 0.4))
        try:
            os.kill(child, getattr(signal, second))
        except ProcessLookupError:
            second = None
    faults = judge(root, shown, child, [name for name in (first, second) if name])
    saved = [float(found) for found in re.findall(r"saved ([0-9.]+) s after", (root / "log").read_text())]
    outcome = Outcome(first, second, phase, max(saved, default=None), time.monotonic() - sent, faults)
    faults += go_on(root, shown)
    if faults:
        print(
            f"trial {number}: {first} {second} in {phase}: {'; '.join(faults)}; see {root}", file=sys.stderr
        )
    else:
        shutil.rmtree(root)
    return outcome


def judge(root: Path, shown: mmap.mmap, child: int, sent: list[str]) -> list[str]:
    """What is wrong with how the process ended and what it left."""
    faults = []
    stopping = [128 + getattr(signal, name) for name in sent if name in STOPPING]
    if stopping:
        code = end_of(child, GRACE_S)
        if code is None:
            end_of(child, 2 * GRACE_S)
            return [f"did not end within {GRACE_S} s"]
        if code != stopping[0]:
            faults.append(f"ended with {code} instead of {stopping[0]}")
    else:
        end = time.monotonic() + GRACE_S
        while not emergencies(root) and time.monotonic() < end:
            time.sleep(0.002)
        code = end_of(child, 0.05)
        if code is None:
            kill(child)
        else:
            faults.append(f"ended with {code} though asked only to save")
    if not emergencies(root):
        faults.append("no emergency generation")
    damaged = GenerationFolder(root / "saved").audit().damaged
    return faults + [f"{damage.path.name} {damage.reason}" for damage in damaged]


def go_on(root: Path, shown: mmap.mmap) -> list[str]:
    """Whether another process resumes from the newest valid generation."""
    newest = GenerationFolder(root / "saved").newest_valid(where=lambda generation: generation.is_resumable)
    if newest is None:
        return ["nothing to resume from"]
    steps = newest.counters["global_step"] + 3
    child = in_child(lambda: train(root, shown, steps, newest.checkpoint), root / "log")
    code = end_of(child, 120)
    return [] if code == 0 else [f"resuming ended with {code}"]


def sweep(count: int, seed: int) -> tuple[list[Outcome], dict[str, Any]]:
    """All trials, and their summary."""
    outcomes = [attempt(number, seed) for number in range(count)]
    saved_s = [outcome.saved_s for outcome in outcomes if outcome.saved_s is not None]
    return outcomes, {
        "trials": count,
        "seed": seed,
        "double": sum(outcome.second is not None for outcome in outcomes),
        "faulty": sum(bool(outcome.faults) for outcome in outcomes),
        "phases": dict(Counter(outcome.phase for outcome in outcomes)),
        "saved_median_s": round(statistics.median(saved_s), 3),
        "saved_longest_s": round(max(saved_s), 3),
        "ended_longest_s": round(max(outcome.ended_s for outcome in outcomes), 3),
        "grace_s": GRACE_S,
    }


def table(outcomes: list[Outcome]) -> str:
    lines = ["| signal | trials | with a second | right exit code, whole save, resumed | slowest save, s |"]
    lines += ["|-|-|-|-|-|"]
    for name in (*STOPPING, *SAVING):
        own = [outcome for outcome in outcomes if outcome.first == name]
        if own:
            double, good = sum(o.second is not None for o in own), sum(not o.faults for o in own)
            longest = max((o.saved_s or 0.0) for o in own)
            lines.append(f"| {name} | {len(own)} | {double} | {good} | {longest:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    outcomes, summary = sweep(args.count, args.seed)
    print(table(outcomes))
    print(json.dumps(summary))
    sys.exit(summary["faulty"] > 0)


if __name__ == "__main__":
    main()
