"""How much memory may still be taken before the kernel kills, containers included.

Knows nothing about time, nor what the memory is used for.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

from .cgroups import Group, groups_of
from .kernel_file import KernelFile
from .pressure import Stalls

_MACHINE = "the machine"


class Usage(NamedTuple):
    """Memory under one limit, in bytes.

    Attributes:
        used_bytes: what cannot be had back: the working set (usage less inactive file cache) less the
            active file cache too, which a run fills by reading its data twice, and which goes before
            anything is killed.
        free_bytes: what may still be taken, swap included.
        reclaimable_bytes: of the working set, what is no part of ``used_bytes``.
    """

    where: str
    limit_bytes: int
    used_bytes: int
    free_bytes: int
    reclaimable_bytes: int = 0

    @property
    def free_share(self) -> float:
        return self.free_bytes / self.limit_bytes

    @property
    def is_machine(self) -> bool:
        """Whether no control group has less left than the whole machine."""
        return self.where == _MACHINE

    @property
    def working_set_bytes(self) -> int:
        return self.used_bytes + self.reclaimable_bytes


class _Version(NamedTuple):
    """File names of one version of control groups."""

    limits: tuple[str, ...]
    usage: str
    inactive: str  # file cache, of memory.stat
    reclaimable: tuple[str, ...]  # of memory.stat
    swap: tuple[str, str]  # limit, usage
    is_swap_with_memory: bool


_V2 = _Version(
    ("memory.max", "memory.high"),
    "memory.current",
    "inactive_file",
    ("active_file", "slab_reclaimable"),
    ("memory.swap.max", "memory.swap.current"),
    False,
)
_V1 = _Version(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    "total_inactive_file",
    ("total_active_file",),
    ("memory.memsw.limit_in_bytes", "memory.memsw.usage_in_bytes"),
    True,
)


class _Limit:
    """One control group's files, kept open."""

    def __init__(self, group: Group) -> None:
        self.name, self.version = group.name, _V2 if group.is_v2 else _V1
        self._limits = [KernelFile(group.folder / name) for name in self.version.limits]
        self._usage, self._stat = (KernelFile(group.folder / n) for n in (self.version.usage, "memory.stat"))
        self._swap = [KernelFile(group.folder / name) for name in self.version.swap]

    def usage(self, machine: int, swap_free: int) -> Usage | None:
        """None where no limit holds; version 1 writes that as a huge number."""
        limits = [file.number() for file in self._limits]
        limit = min((value for value in limits if value is not None), default=machine)
        if limit >= machine:
            return None
        usage, statistics = self._usage.number() or 0, self._stat.numbers()
        working_set = max(0, usage - statistics.get(self.version.inactive, 0))
        reclaimable = sum(statistics.get(name, 0) for name in self.version.reclaimable)
        used = max(0, working_set - reclaimable)
        free = max(0, limit - used) + self._swap_left(limit, usage, swap_free)
        return Usage(self.name, limit, used, free, working_set - used)

    def _swap_left(self, limit: int, usage: int, swap_free: int) -> int:
        if not swap_free:
            return 0
        allowed, taken = (file.number() for file in self._swap)
        if allowed is None:  # "max", or not accounted for
            return swap_free
        if self.version.is_swap_with_memory:
            allowed -= limit
            taken = (taken or 0) - usage
        return max(0, min(swap_free, allowed - (taken or 0)))


class MemoryFigures:
    """Reads the control groups of this process and all above them, and the machine.

    Args:
        root: where ``proc`` and ``sys`` are found; another one in tests.
    """

    every_s = 1.0

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self.root = Path(root)
        marks = (_V2.usage, _V1.usage, _V2.limits[0], _V1.limits[0])
        self.groups = list(groups_of(self.root, "memory", *marks))
        self.stalls = Stalls("memory", self.root)
        self._limits = [_Limit(group) for group in self.groups]
        self._meminfo = KernelFile(self.root / "proc/meminfo")

    def tightest(self) -> Usage:
        """Of all limits that hold for this process, the one with the least left."""
        machine, swap_free = self._machine()
        usages = (limit.usage(machine.limit_bytes, swap_free) for limit in self._limits)
        return min([machine, *filter(None, usages)], key=lambda usage: usage.free_bytes)

    def stalled_s(self) -> float | None:
        """Seconds so far in which nothing could run for want of memory; None where that is not known."""
        return self.stalls.seconds().get("full")

    def read(self, now: float) -> Mapping[str, float]:
        usage = self.tightest()
        return {
            "memory_limit_bytes": usage.limit_bytes,
            "memory_used_bytes": usage.used_bytes,
            "memory_free_bytes": usage.free_bytes,
            "memory_working_set_bytes": usage.working_set_bytes,
            "memory_free_share": usage.free_share,
            "memory_share": usage.working_set_bytes / usage.limit_bytes,
        }

    def _machine(self) -> tuple[Usage, int]:
        values = self._meminfo.numbers()
        if "MemAvailable" in values:
            total, available, swap_free = (
                1024 * values.get(name, 0) for name in ("MemTotal", "MemAvailable", "SwapFree")
            )
        else:
            memory = psutil.virtual_memory()
            total, available, swap_free = memory.total, memory.available, psutil.swap_memory().free
        return Usage(_MACHINE, total, total - available, available + swap_free), swap_free
