"""What the kernel counted while this process waited: throttling, memory stalls, faults, run queue.

Knows nothing about what the process does. The one place in `timing` that reads ``proc`` and ``sys``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
_THREAD = getattr(resource, "RUSAGE_THREAD", None)


class Waits(NamedTuple):
    """Totals so far; a difference of two tells what was waited for between them.

    Attributes:
        cpu_s: computed by all threads of this process.
        thread_cpu_s: computed by the thread that asks; thread_system_s: of that, by the kernel for it.
        throttled_s: for which the CPU quota of a control group stopped its processes, over its CPUs.
        memory_stalled_s: some task waited for memory: in this control group, else in the machine.
        io_stalled_s: the same for reads and writes.
        queued_s: the thread that asks could have run and another ran instead.
        major_faults: pages that had to be read from a disk.
        minor_faults: pages that were mapped without.
        swapped_bytes: of this process, now.
    """

    cpu_s: float = 0.0
    thread_cpu_s: float = 0.0
    thread_system_s: float = 0.0
    throttled_s: float = 0.0
    memory_stalled_s: float = 0.0
    io_stalled_s: float = 0.0
    queued_s: float = 0.0
    major_faults: int = 0
    minor_faults: int = 0
    swapped_bytes: int = 0

    def since(self, before: Waits) -> Waits:
        return Waits._make(now - then for now, then in zip(self, before, strict=True))


class Kernel:
    """Reads `Waits`; what a kernel does not tell stays 0.

    Args:
        root: where ``proc`` and ``sys`` are found; another one in tests.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._proc, self._groups = Path(root) / "proc", Path(root) / "sys/fs/cgroup"
        folders = list(self._find_groups())
        self._quotas = [folder / "cpu.stat" for folder in folders if (folder / "cpu.stat").exists()]
        self._pressures = {kind: self._find_pressure(kind, folders) for kind in ("memory", "io")}

    def read(self) -> Waits:
        """Of now, for the thread that asks."""
        fields = _read(self._proc / "self/stat").rpartition(")")[2].split()
        queued = _read(self._proc / "thread-self/schedstat").split()
        return Waits(
            cpu_s=time.process_time(),
            thread_cpu_s=time.thread_time(),
            thread_system_s=_system_s(),
            throttled_s=sum(_throttled(path) for path in self._quotas),
            memory_stalled_s=_stalled(self._pressures["memory"]),
            io_stalled_s=_stalled(self._pressures["io"]),
            queued_s=int(queued[1]) / 1e9 if len(queued) > 1 else 0.0,
            major_faults=int(fields[9]) if len(fields) > 9 else 0,
            minor_faults=int(fields[7]) if len(fields) > 9 else 0,
            swapped_bytes=self._swapped(),
        )

    def _swapped(self) -> int:
        for line in _read(self._proc / "self/status").splitlines():
            if line.startswith("VmSwap:"):
                return 1024 * int(line.split()[1])
        return 0

    def _find_groups(self) -> Iterator[Path]:
        """Of the second version and of the CPU controller of the first, innermost first."""
        for line in _read(self._proc / "self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                home = self._groups / controllers
                inside = home / path.lstrip("/")
                yield from (folder for folder in (inside, *inside.parents) if folder.is_relative_to(home))

    def _find_pressure(self, kind: str, folders: list[Path]) -> Path:
        own = [folder / f"{kind}.pressure" for folder in folders[:1]]
        return next((path for path in own if path.exists()), self._proc / "pressure" / kind)


def _system_s() -> float:
    return resource.getrusage(_THREAD).ru_stime if _THREAD is not None else 0.0


def _throttled(path: Path) -> float:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name in ("throttled_usec", "throttled_time"):
            return int(value) / (1e6 if name == "throttled_usec" else 1e9)
    return 0.0


def _stalled(path: Path) -> float:
    for line in _read(path).splitlines():
        if line.startswith("some "):
            return int(line.rpartition("total=")[2]) / 1e6
    return 0.0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
