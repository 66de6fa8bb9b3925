"""How much memory this process may use, and what of it is used.

Knows nothing about how a system tells, nor what the memory holds.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import psutil
from holdfast.resources.memory import MemoryFigures


class Memory(NamedTuple):
    """What may be used and what is, in bytes."""

    limit_bytes: int
    used_bytes: int


def memory(root: str | os.PathLike[str] = "/") -> Memory:
    """The limit with the least left, and what counts against it.

    Of a control group that is its working set: usage less inactive file cache, all its processes. Without
    a limit: the machine's memory and this process's share.

    Args:
        root: where ``proc`` and ``sys`` are found; another one in tests.
    """
    usage = MemoryFigures(root).tightest()
    used = psutil.Process().memory_info().rss if usage.is_machine else usage.working_set_bytes
    return Memory(usage.limit_bytes, used)
