"""Memory that a process holds without using it, given back to the system.

Knows nothing about who used it.
"""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Ask glibc to return free heap pages; other C libraries do so by themselves or not at all."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
