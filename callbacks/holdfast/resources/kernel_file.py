"""Small files in which a kernel shows figures, read over and over.

Knows nothing about what the figures mean.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_MOST_BYTES = 1 << 16


class KernelFile:
    """One that stays open: reading it again costs a fifth of opening it each time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def text(self) -> str:
        """All of it, or nothing where it is not there."""
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            return os.pread(self._descriptor, _MOST_BYTES, 0).decode()
        except (OSError, AttributeError):  # gone, or a system without pread
            self.close()
            return read_once(self.path)

    def number(self) -> int | None:
        """None where it holds something else, as ``max``."""
        text = self.text().strip()
        return int(text) if text.isdigit() else None

    def numbers(self) -> dict[str, int]:
        """By the first word of a line, what follows it: of memory.stat, /proc/self/io and the like."""
        lines = (line.split() for line in self.text().splitlines())
        pairs = (words[:2] for words in lines if len(words) > 1)
        return {name.rstrip(":"): int(value) for name, value in pairs if value.isdigit()}

    def close(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def __del__(self) -> None:
        self.close()


def read_once(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
