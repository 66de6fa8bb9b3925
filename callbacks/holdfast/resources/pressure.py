"""How long work stood still for want of processor, memory or disk: the kernel's pressure stall information.

Knows nothing about why.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .cgroups import groups_of
from .kernel_file import KernelFile
from .reader import Rates

KINDS = ("cpu", "memory", "io")


class Stalls:
    """Of this process's group where it has figures of its own, else of the machine.

    Args:
        kind: ``cpu``, ``memory`` or ``io``.
    """

    def __init__(self, kind: str, root: str | os.PathLike[str] = "/") -> None:
        root = Path(root)
        name = f"{kind}.pressure"
        own = [group.folder / name for group in groups_of(root, kind, name) if group.is_v2][:1]
        files = [KernelFile(path) for path in (*own, root / f"proc/pressure/{kind}")]
        self.file = next((file for file in files if file.text()), None)

    def seconds(self) -> dict[str, float]:
        """So far: ``some``, in which something waited, and ``full``, in which nothing ran; {} if unknown."""
        lines = self.file.text().splitlines() if self.file else ()
        return {line.partition(" ")[0]: int(line.rpartition("total=")[2]) / 1e6 for line in lines}


class PressureFigures:
    """Shares of the time since the last reading."""

    every_s = 1.0

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        self._stalls = {kind: Stalls(kind, root) for kind in KINDS}
        self._rates = Rates()

    def read(self, now: float) -> Mapping[str, float]:
        totals = {
            f"pressure_{kind}_{which}": total
            for kind, stalls in self._stalls.items()
            for which, total in stalls.seconds().items()
        }
        return {name: min(1.0, rate) for name, rate in self._rates(now, totals).items()}
