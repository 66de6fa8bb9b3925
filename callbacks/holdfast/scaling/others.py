"""How much of the processors others take while something is measured.

Knows nothing about what is measured.
"""

from __future__ import annotations

import contextlib
from typing import Any

import psutil

_NOT_BUSY = ("idle", "iowait")
_COUNTED_TWICE = ("guest", "guest_nice")  # user and nice hold them


class OtherWork:
    """Of other processes, and of other machines on the same hardware, since this was made.

    Own are this process and those it has started. Counted are the cores it may run on.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = self._now()

    def share(self) -> float:
        """Of the time of the cores, in [0, 1]; 0.0 where none has passed by the kernel's clock."""
        all_s, busy_s, own_s = (now - began for now, began in zip(self._now(), self._began, strict=True))
        return min(1.0, max(0.0, busy_s - own_s) / all_s) if all_s > 0 else 0.0

    def _now(self) -> tuple[float, float, float]:
        """Seconds of the cores, those in which they worked, and those in which they did for us."""
        cores = psutil.cpu_times(percpu=True)
        if hasattr(self._process, "cpu_affinity"):
            cores = [cores[number] for number in self._process.cpu_affinity() if number < len(cores)]
        all_s = sum(sum(core) - _sum_of(core, _COUNTED_TWICE) for core in cores)
        own_s = sum(self._process.cpu_times()[:4])  # and of children that have ended
        for child in self._process.children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may end meanwhile
                own_s += sum(child.cpu_times()[:4])
        return all_s, all_s - sum(_sum_of(core, _NOT_BUSY) for core in cores), own_s


def _sum_of(core: Any, names: tuple[str, ...]) -> float:
    return sum(getattr(core, name, 0.0) for name in names)
