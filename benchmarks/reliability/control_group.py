"""A memory control group of one's own, version 1 or 2, where it is allowed to make one.

Knows nothing about what runs in it.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


class Group:
    """A memory control group of our own, below the one this process is in."""

    def __init__(self, parent: Path, is_v2: bool) -> None:
        self.folder = parent / f"holdfast-{os.getpid()}"
        self._limit = "memory.max" if is_v2 else "memory.limit_in_bytes"
        self.folder.mkdir()

    def limit(self, num_bytes: int) -> None:
        (self.folder / self._limit).write_text(str(num_bytes))

    def enter(self) -> None:
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        for _ in range(100):  # it takes a moment until the last process is gone
            with contextlib.suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.05)


def make_group() -> Group | None:
    """None where that is not allowed or not possible."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        is_v2, is_v1 = controllers == "", "memory" in controllers.split(",")
        for base in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified") if is_v2 else ("/sys/fs/cgroup/memory",):
            for parent in (Path(base, path.lstrip("/")), Path(base)) if is_v1 or is_v2 else ():
                with contextlib.suppress(OSError):
                    if is_v2:
                        (parent / "cgroup.subtree_control").write_text("+memory")
                    group = Group(parent, is_v2)
                    try:
                        group.limit(2**40)
                        return group
                    except OSError:
                        group.remove()
    return None
