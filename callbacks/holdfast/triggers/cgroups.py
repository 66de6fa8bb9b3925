"""How much memory may still be taken before the kernel kills, containers included.

Knows nothing about time, nor what the memory is used for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil


class Usage(NamedTuple):
    """Memory under one limit, in bytes.

    Attributes:
        used_bytes: what cannot be had back: the working set (usage less inactive file cache) less the
            active file cache too, which a run fills by reading its data twice, and which goes before
            anything is killed.
        free_bytes: what may still be taken, swap included.
    """

    where: str
    limit_bytes: int
    used_bytes: int
    free_bytes: int

    @property
    def free_share(self) -> float:
        return self.free_bytes / self.limit_bytes


class _Version(NamedTuple):
    """File names of one version of control groups."""

    limits: tuple[str, ...]
    usage: str
    given_up: tuple[str, ...]  # of memory.stat
    swap: tuple[str, str]  # limit, usage
    is_swap_with_memory: bool


_V2 = _Version(
    ("memory.max", "memory.high"),
    "memory.current",
    ("inactive_file", "active_file", "slab_reclaimable"),
    ("memory.swap.max", "memory.swap.current"),
    False,
)
_V1 = _Version(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    True,
)


class MemoryFigures:
    """Reads the control groups of this process and all above them, and the machine.

    Args:
        root: where ``proc`` and ``sys`` are found; another one in tests.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        self.groups = list(self._find_groups())
        own = [folder / "memory.pressure" for folder, _, _ in self.groups[:1]]
        pressures = [*own, self.root / "proc/pressure/memory"]
        self.pressure_file = next((path for path in pressures if _read(path)), None)

    def tightest(self) -> Usage:
        """Of all limits that hold for this process, the one with the least left."""
        machine, swap_free = self._machine()
        usages = [_usage(*group, machine.limit_bytes, swap_free) for group in self.groups]
        return min([machine, *filter(None, usages)], key=lambda usage: usage.free_bytes)

    def stalled_s(self) -> float | None:
        """Seconds so far in which nothing could run for want of memory; None where that is not known."""
        for line in _read(self.pressure_file).splitlines() if self.pressure_file else ():
            if line.startswith("full "):
                return int(line.rpartition("total=")[2]) / 1e6
        return None

    def _machine(self) -> tuple[Usage, int]:
        lines = (line.split() for line in _read(self.root / "proc/meminfo").splitlines())
        values = {words[0]: 1024 * int(words[1]) for words in lines if len(words) > 1}
        if "MemAvailable:" in values:
            total, available = values["MemTotal:"], values["MemAvailable:"]
            swap_free = values.get("SwapFree:", 0)
        else:
            memory = psutil.virtual_memory()
            total, available, swap_free = memory.total, memory.available, psutil.swap_memory().free
        return Usage("the machine", total, total - available, available + swap_free), swap_free

    def _find_groups(self) -> Iterator[tuple[Path, str, _Version]]:
        """Folder, name and version of this process's groups, innermost first."""
        for line in _read(self.root / "proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            version = _V2 if controllers == "" else _V1 if "memory" in controllers.split(",") else None
            if version is None:
                continue
            mounted, shown = self._mount(version)
            inside = Path(path).relative_to(shown) if Path(path).is_relative_to(shown) else Path()
            for below in (inside, *inside.parents):
                folder = mounted / below
                if (folder / version.usage).exists() or (folder / version.limits[0]).exists():
                    yield folder, f"cgroup /{below}".removesuffix("."), version

    def _mount(self, version: _Version) -> tuple[Path, Path]:
        """Where the hierarchy is mounted, and which of its folders that is: in containers not the top."""
        for line in _read(self.root / "proc/self/mountinfo").splitlines():
            fields, _, rest = line.partition(" - ")
            kind, _, options = rest.split(" ", 2)
            if (kind == "cgroup2") if version is _V2 else "memory" in options.split(" ")[-1].split(","):
                shown, mounted = fields.split(" ")[3:5]
                return self.root / mounted.lstrip("/"), Path(shown)
        return self.root / ("sys/fs/cgroup" if version is _V2 else "sys/fs/cgroup/memory"), Path("/")


def _usage(folder: Path, name: str, version: _Version, machine: int, swap_free: int) -> Usage | None:
    limits = [_number(folder / file) for file in version.limits]
    limit = min((value for value in limits if value is not None), default=machine)
    if limit >= machine:  # v1 writes "no limit" as a huge number
        return None
    given_up = _statistics(folder, version.given_up)
    used = max(0, (_number(folder / version.usage) or 0) - given_up)
    return Usage(name, limit, used, max(0, limit - used) + _swap_left(folder, version, limit, swap_free))


def _swap_left(folder: Path, version: _Version, limit: int, swap_free: int) -> int:
    if not swap_free:
        return 0
    allowed, taken = (_number(folder / file) for file in version.swap)
    if allowed is None:  # "max", or not accounted for
        return swap_free
    if version.is_swap_with_memory:
        allowed -= limit
        taken = (taken or 0) - (_number(folder / version.usage) or 0)
    return max(0, min(swap_free, allowed - (taken or 0)))


def _statistics(folder: Path, names: tuple[str, ...]) -> int:
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return sum(int(words[1]) for words in lines if words[0] in names)


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path | None) -> str:
    try:
        return path.read_text() if path else ""
    except OSError:
        return ""
