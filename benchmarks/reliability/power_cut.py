"""Cuts the power of a file system while a run saves on it, and looks at what is left.

    sudo python benchmarks/reliability/power_cut.py --cuts 100

An ext4 in a file is mounted through a loop device and shut down without a flush of its journal
(FS_IOC_SHUTDOWN, no log flush): what was not forced to the disk is gone, as after a power cut.
VerifiedCheckpoint and the stock ModelCheckpoint go through the same cuts.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from crash import spawn, wait
from holdfast import VerifiedCheckpoint
from holdfast.storage.generations import GenerationFolder
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from small_run import train

SHUTDOWN = 0x8004587D  # FS_IOC_SHUTDOWN of linux/fs.h
NO_LOG_FLUSH = 2
NEVER = 10**9


def why_unavailable() -> str | None:
    """Why no power can be cut here, or None."""
    if not sys.platform.startswith("linux"):
        return "file systems are shut down by an ioctl of Linux"
    if os.geteuid():
        return "mounting needs root"
    missing = [tool for tool in ("mkfs.ext4", "mount", "losetup") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    return None if Path("/dev/loop-control").exists() else "no loop devices"


@contextlib.contextmanager
def disk(megabytes: int = 128) -> Iterator[Disk]:
    """A file system of its own, gone afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="power-cut-"))
    made = Disk(scratch / "image", scratch / "mounted")
    made.mounted.mkdir()
    subprocess.run(["truncate", "-s", f"{megabytes}M", made.image], check=True)
    subprocess.run(["mkfs.ext4", "-q", made.image], check=True)
    made.mount()
    try:
        yield made
    finally:
        made.unmount()
        shutil.rmtree(scratch)


class Disk:
    def __init__(self, image: Path, mounted: Path) -> None:
        self.image, self.mounted = image, mounted

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.mounted], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", self.mounted], check=True)

    def cut(self) -> None:
        """Lose what is not on the disk; every later call on it fails."""
        folder = os.open(self.mounted, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("<I", NO_LOG_FLUSH))
        finally:
            os.close(folder)

    def recover(self) -> None:
        self.unmount()
        self.mount()


def verified(folder: Path, acknowledge: int) -> list[Callback]:
    """Our callback, telling the number of each generation once it calls it saved."""
    write = GenerationFolder.write

    def told(self: GenerationFolder, *args: Any, **kwargs: Any) -> Any:
        generation = write(self, *args, **kwargs)
        os.write(acknowledge, struct.pack("<q", generation.sequence))
        return generation

    GenerationFolder.write = told  # type: ignore[method-assign]
    return [VerifiedCheckpoint(dirpath=folder, every={"steps": 1}, max_time_fraction=1.0)]


class Stock(ModelCheckpoint):
    """Lightning's callback, telling the step of each file once it has saved it."""

    def __init__(self, folder: Path, acknowledge: int) -> None:
        super().__init__(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=1)
        self._acknowledge = acknowledge

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        os.write(self._acknowledge, struct.pack("<q", trainer.global_step))


def stock(folder: Path, acknowledge: int) -> list[Callback]:
    return [Stock(folder, acknowledge)]


def newest_verified(folder: Path) -> int:
    """Number of the newest generation that is whole and loads; -1 where none is."""
    generation = GenerationFolder(folder).newest_valid()
    if generation is None:
        return -1
    torch.load(generation.checkpoint, weights_only=True)
    return generation.sequence


def newest_stock(folder: Path) -> int:
    """Step of the newest file that loads; -1 where none does."""
    steps = [-1]
    for path in folder.glob("*.ckpt"):
        with contextlib.suppress(Exception):
            steps.append(int(torch.load(path, weights_only=True)["global_step"]))
    return max(steps)


KINDS = {"verified": (verified, newest_verified), "stock": (stock, newest_stock)}


def cut_once(kind: str, rng: random.Random) -> tuple[int, int]:
    """Train, cut the power, recover; returns (newest acknowledged, newest that loads)."""
    callbacks, newest = KINDS[kind]
    read, write = os.pipe()
    with disk() as drive:
        folder = drive.mounted / "checkpoints"
        child = spawn(lambda: train(drive.mounted, callbacks(folder, write), NEVER))
        os.close(write)
        first = os.read(read, 8)  # from here on there is something to lose
        time.sleep(rng.uniform(0.0, 0.5))
        drive.cut()
        os.kill(child, signal.SIGKILL)
        wait(child)
        told = first + _drain(read)
        drive.recover()
        acknowledged = struct.unpack(f"<{len(told) // 8}q", told[: len(told) // 8 * 8])
        return max(acknowledged), newest(folder)


def _drain(pipe: int) -> bytes:
    chunks = b""
    while chunk := os.read(pipe, 1 << 16):
        chunks += chunk
    os.close(pipe)
    return chunks


def sweep(kind: str, cuts: int, seed: int = 0) -> dict[str, Any]:
    """How often the newest acknowledged save, or a newer one, was there after the cut."""
    kept = gone = 0
    for number in range(cuts):
        acknowledged, found = cut_once(kind, random.Random(f"{seed} {number}"))
        kept += found >= acknowledged
        gone += found < 0
    return {"kind": kind, "cuts": cuts, "seed": seed, "newest_kept": kept, "nothing_left": gone}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if reason := why_unavailable():
        sys.exit(reason)
    figures = [sweep(kind, args.cuts, args.seed) for kind in KINDS]
    print("\n".join(map(json.dumps, figures)))
    sys.exit(figures[0]["newest_kept"] < args.cuts)


if __name__ == "__main__":
    main()
