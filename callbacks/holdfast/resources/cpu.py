"""How many processor cores this process may use and does use, and how long it is held back from more.

Knows nothing about what is computed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .cgroups import Group, groups_of
from .kernel_file import KernelFile
from .reader import Rates

_MARKS = ("cpu.max", "cpu.cfs_quota_us")


class CpuFigures:
    """Affinity, the tightest quota of this process's groups with its throttling, and what is used."""

    every_s = 1.0

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._quotas = [_Quota(group) for group in groups_of(Path(root), "cpu", *_MARKS)]
        self._used, self._rates = Rates(), Rates()

    def read(self, now: float) -> Mapping[str, float]:
        affinity = num_cores()
        cores, tightest = min(
            ((cores, quota) for quota in self._quotas if (cores := quota.cores()) is not None),
            key=lambda pair: pair[0],
            default=(float(affinity), None),
        )
        figures = {"cpu_affinity": float(affinity), "cpu_cores": min(cores, affinity)}
        times = os.times()
        if used := self._used(now, {"cpu": times.user + times.system}):
            figures |= {"cpu_used_cores": used["cpu"], "cpu_share": used["cpu"] / figures["cpu_cores"]}
        if tightest is None:
            return figures
        rates = self._rates(now, tightest.counts())
        if "periods" in rates:
            figures["cpu_throttled_share"] = rates["throttled"] / max(rates["periods"], 1e-9)
            figures["cpu_throttled_s_per_s"] = rates["seconds"]
        return {**figures, "cpu_quota_cores": cores}


def num_cores() -> int:
    """Those this process may run on, whatever its quota."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Quota:
    def __init__(self, group: Group) -> None:
        names = ("cpu.max",) if group.is_v2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        self._limit = [KernelFile(group.folder / name) for name in names]
        self._stat = KernelFile(group.folder / "cpu.stat")

    def cores(self) -> float | None:
        """None where there is no quota: ``max`` in version 2, -1 in version 1."""
        words = " ".join(file.text() for file in self._limit).split()
        if len(words) != 2 or not words[0].isdigit():
            return None
        return int(words[0]) / int(words[1])

    def counts(self) -> dict[str, float]:
        counts = self._stat.numbers()
        if "nr_periods" not in counts:
            return {}
        seconds = counts.get("throttled_usec", 0) / 1e6 + counts.get("throttled_time", 0) / 1e9
        return {"periods": counts["nr_periods"], "throttled": counts["nr_throttled"], "seconds": seconds}
