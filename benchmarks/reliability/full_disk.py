"""Fills the disk under a run that saves, gives the space back, and sees whether it saves again.

    sudo python benchmarks/reliability/full_disk.py --rounds 20

The disk is a small tmpfs. While it is full, nothing older is harmed and training goes on; once there is
space, saving heals itself. (`syscalls.py` refuses space at every single write.)
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from holdfast import VerifiedCheckpoint
from holdfast.boundary import BoundaryCallback
from holdfast.storage.generations import GenerationFolder
from small_run import train


def why_unavailable() -> str | None:
    """Why no tmpfs can be had here, or None."""
    if not sys.platform.startswith("linux"):
        return "tmpfs is of Linux"
    return "mounting needs root" if os.geteuid() else None


class Filler(BoundaryCallback):
    """Takes all space at one step and gives it back at another, noting the newest valid generation."""

    def __init__(self, disk: Path, folder: Path, full_at: int, free_at: int) -> None:
        self.ballast, self.folder = disk / "ballast", folder
        self.full_at, self.free_at = full_at, free_at
        self.seen: dict[str, int] = {}

    def on_boundary(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.full_at:
            self._note("before")
            _fill(self.ballast)
        elif trainer.global_step == self.free_at:
            self._note("while full")
            self.ballast.unlink()

    def _note(self, when: str) -> None:
        found = GenerationFolder(self.folder).newest_valid()
        self.seen[when] = -1 if found is None else found.sequence


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


def fill_once(rng: random.Random) -> dict[str, int]:
    """Newest valid generation before the disk was full, while it was, and in the end."""
    disk = Path(tempfile.mkdtemp(prefix="full-disk-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", disk], check=True)
    try:
        folder = disk / "checkpoints"
        full_at = rng.randrange(5, 30)
        filler = Filler(disk, folder, full_at, full_at + rng.randrange(3, 12))
        saver = VerifiedCheckpoint(dirpath=folder, every={"steps": 2}, keep=2, max_time_fraction=1.0)
        trainer = train(disk, [saver, filler], steps=60)
        filler._note("after")
        return {**filler.seen, "steps": trainer.global_step}
    finally:
        subprocess.run(["umount", disk], check=True)
        shutil.rmtree(disk)


def sweep(rounds: int, seed: int = 0) -> dict[str, int]:
    """How often nothing was harmed, training went on, and saving came back."""
    seen = [fill_once(random.Random(f"{seed} {number}")) for number in range(rounds)]
    return {
        "rounds": rounds,
        "seed": seed,
        "unharmed": sum(s["while full"] >= s["before"] >= 0 for s in seen),
        "trained_on": sum(s["steps"] == 60 for s in seen),
        "healed": sum(s["after"] > s["while full"] for s in seen),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if reason := why_unavailable():
        sys.exit(reason)
    figures = sweep(args.rounds, args.seed)
    print(json.dumps(figures))
    sys.exit(min(figures["unharmed"], figures["trained_on"], figures["healed"]) < args.rounds)


if __name__ == "__main__":
    main()
