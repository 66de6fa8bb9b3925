"""Compares the memory share that ResourceMonitor reports in a container with what the kernel says outside.

    python benchmarks/observability/container.py

A process enters a memory control group of 600 MiB and takes memory step by step: anonymous, a file read
twice, a file in memory (tmpfs); then it gives everything back, and takes anonymous memory until the kernel
kills it. At each step this program reads the kernel's own files, and works out from them the working set
(usage less inactive file cache, as Kubernetes counts it) and what cannot be had back (anonymous memory, tmpfs
and the kernel's). psutil, which sees the machine, stands beside it. Root, Linux.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1] / "reliability"))

from control_group import Group, make_group

MIB = 2**20
LIMIT = 600 * MIB
STEP = 50 * MIB


class Step(NamedTuple):
    """Shares of the limit after one step: as reported, and as the kernel says."""

    name: str
    working_set: float
    kernel_working_set: float
    used: float
    kernel_used: float
    psutil: float

    @property
    def difference(self) -> float:
        """The larger of both, in points."""
        pairs = (self.working_set, self.kernel_working_set), (self.used, self.kernel_used)
        return 100 * max(abs(reported - kernel) for reported, kernel in pairs)


def compare(group: Group) -> tuple[list[Step], float]:
    """All steps, and the share reported last before the kernel killed the process."""
    group.limit(LIMIT)
    with tempfile.NamedTemporaryFile() as shown, tempfile.TemporaryDirectory() as disk:
        shown.write(bytes(8))
        shown.flush()
        command = [sys.executable, __file__, "--inside", str(group.folder), shown.name, disk]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        steps = []
        with subprocess.Popen(command, **pipes) as process:
            for line in process.stdout:
                kernel = {"kernel_working_set": working_set(group), "kernel_used": kernel_used(group)}
                steps.append(Step(**json.loads(line), **kernel))
                process.stdin.write("\n")
                process.stdin.flush()
        if process.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the kernel should have killed it, but it ended with {process.returncode}")
        last: float = struct.unpack("d", Path(shown.name).read_bytes())[0]
    return steps, last


def working_set(group: Group) -> float:
    v1, v2 = group.folder / "memory.usage_in_bytes", group.folder / "memory.current"
    usage = int((v1 if v1.exists() else v2).read_text())
    stat = statistics(group)
    return (usage - stat.get("total_inactive_file", stat["inactive_file"])) / LIMIT


def kernel_used(group: Group) -> float:
    """By what it is made of, not by what is left over; the kernel's own only where that is told."""
    stat = statistics(group)
    if "total_rss" in stat:
        slab = group.folder / "memory.kmem.usage_in_bytes"
        kernel = int(slab.read_text()) if slab.exists() else 0
        return (stat["total_rss"] + stat["total_shmem"] + kernel) / LIMIT
    return (stat["anon"] + stat["shmem"] + stat.get("kernel", 0) - stat["slab_reclaimable"]) / LIMIT


def statistics(group: Group) -> dict[str, int]:
    lines = (group.folder / "memory.stat").read_text().splitlines()
    return {name: int(value) for name, value in map(str.split, lines)}


# -- inside -----------------------------------------------------------------------------------------


def live(folder: Path, shown: Path, disk: Path) -> None:
    """Take memory in steps, reporting after each, then until the end."""
    import psutil
    from holdfast.resources.memory import MemoryFigures
    from holdfast.resources.watching import Watching

    class Counted(MemoryFigures):
        """As it is, but as often as it can."""

        every_s, num_read = 0.001, 0

        def read(self, now: float) -> Mapping[str, float]:
            self.num_read += 1
            return super().read(now)

    (folder / "cgroup.procs").write_text(str(os.getpid()))
    reader = Counted()
    watching = Watching([reader], interval_s=0.005)  # the thread of ResourceMonitor
    watching.start()
    with shown.open("r+b") as file:
        screen = mmap.mmap(file.fileno(), 8)

        def look() -> dict[str, float]:
            before = reader.num_read
            while reader.num_read < before + 2:  # until the thread has read and told
                time.sleep(0.005)
            return watching.newest

        for name in take(disk):
            stats = look()
            used = stats["memory_used_bytes"] / LIMIT
            report = {"name": name, "working_set": stats["memory_share"], "used": used}
            print(json.dumps({**report, "psutil": psutil.virtual_memory().percent / 100}), flush=True)
            sys.stdin.readline()
        held = []
        while True:
            stats = look()
            screen[:] = struct.pack("d", stats["memory_used_bytes"] / LIMIT)
            held.append(touched(max(2 * MIB, int(stats["memory_free_bytes"]) // 4)))


def take(disk: Path) -> Iterator[str]:
    held = []
    yield "nothing yet"
    for number in range(1, 5):
        held.append(touched(STEP))
        yield f"{number * STEP // MIB} MiB of its own"
    path = disk / "file"
    with path.open("wb") as file:
        for _ in range(STEP // MIB * 2):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    yield "a file of 100 MiB written"
    for number in ("once", "twice"):
        with path.open("rb") as file:
            while file.read(MIB):
                pass
        yield f"and read {number}"
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as memory:
        for number in range(1, 4):
            memory.write(os.urandom(STEP))
            memory.flush()
            yield f"{number * STEP // MIB} MiB in /dev/shm"
    yield "those removed"
    held.clear()
    yield "its own given back"


def touched(num_bytes: int) -> mmap.mmap:
    """Memory of which every page is there."""
    memory = mmap.mmap(-1, num_bytes)
    for at in range(0, num_bytes, mmap.PAGESIZE):
        memory[at] = 1
    return memory


def table(steps: list[Step]) -> str:
    lines = [
        "| the process holds | working set | of the kernel | cannot be had back | of the kernel | psutil |",
        "|-|-|-|-|-|-|",
    ]
    lines += [f"| {step.name} | " + " | ".join(f"{share:.1%}" for share in step[1:]) + " |" for step in steps]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inside", nargs=3, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        live(*args.inside)
        return
    if (group := make_group()) is None:
        sys.exit("no memory control group can be made here: it takes root, and a hierarchy that is writable")
    try:
        steps, last = compare(group)
    finally:
        group.remove()
    worst = max(step.difference for step in steps)
    print(table(steps))
    print(f"largest difference {worst:.2f} points; reported last before the kernel killed: {last:.1%}")
    sys.exit(worst > 3 or not 0.97 <= last <= 1.03)


if __name__ == "__main__":
    main()
