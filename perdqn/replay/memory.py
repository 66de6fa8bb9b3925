"""How much memory this process may use, and giving some back.

Knows nothing about what the memory holds.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil

_LIMIT_FILES = ("memory.max", "memory.limit_in_bytes")  # cgroup v2, v1


def memory_limit(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes: the tightest limit among this process's cgroup and its ancestors, else the machine's memory.

    psutil alone reports the host, also inside a container.
    """
    limits = [psutil.virtual_memory().total]
    for folder in _cgroups(root, membership):
        for file in _LIMIT_FILES:
            text = _read(folder / file)
            if text.isdigit():
                limits.append(int(text))
    return min(limits)


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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def trim_heap() -> None:
    """Ask glibc to return free heap pages; other C libraries do so by themselves or not at all."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
