"""How much memory this process may use, and how much is used.

Knows nothing about what the memory holds.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil

_ROOT, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_FILES = (  # limit, usage, and what of the usage is given up before anything is killed: cgroup v2, v1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Memory(NamedTuple):
    """What may be used and what is, in bytes."""

    limit_bytes: int
    used_bytes: int


def memory(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> Memory:
    """The tightest limit among this process's cgroup and its ancestors, and that group's working set.

    The working set is usage less inactive file cache: all processes of the group, as the kernel
    counts before it kills one. Without a limit: the machine's memory and this process's share.
    psutil alone reports the host, also inside a container.
    """
    groups = [Memory(psutil.virtual_memory().total, psutil.Process().memory_info().rss)]
    for folder in _cgroups(root, membership):
        for limit, usage, cache in _FILES:
            if (text := _read(folder / limit)).isdigit():
                used = int(_read(folder / usage) or 0) - _statistic(folder, cache)
                groups.append(Memory(int(text), max(0, used)))
    return min(groups, key=lambda group: group.limit_bytes)


def memory_limit(root: Path = _ROOT, membership: Path = _MEMBERSHIP) -> int:
    """Bytes this process may use; see `memory`."""
    return memory(root, membership).limit_bytes


def _cgroups(root: Path, membership: Path) -> list[Path]:
    folders = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base = root / "memory" if controllers else root
        own = base / path.lstrip("/")
        folders += [f for f in (own, *own.parents) if f == base or base in f.parents]
    return folders


def _statistic(folder: Path, name: str) -> int:
    lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
    return next((int(value) for key, value in lines if key == name), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
