"""Lines of JSON that are added to a file, which stays bounded; written without ever disturbing its run.

Knows nothing about what the lines say.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Journal:
    """A file of which each line is a JSON object. Where it grows too large, older lines are thinned out.

    What cannot be written is lost, and said once.

    Args:
        path: its folder is made.
        most_bytes: size at which every other line of the older half goes.
        note: says a sentence to the user, the same one only once.
    """

    def __init__(self, path: Path, note: Callable[[str], None], most_bytes: int = 4 * 2**20) -> None:
        self._path, self._note, self._most_bytes = path, note, most_bytes
        self._is_torn = True  # by a process that was killed, for all that is known

    def add(self, line: Mapping[str, Any]) -> None:
        try:
            self._add(json.dumps(_plain(line)).encode() + b"\n")
        except OSError as error:
            self._is_torn = True
            self._note(f"{self._path} cannot be written: {error}")

    def _add(self, line: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if (
                self._is_torn
                and size
                and os.lseek(descriptor, -1, os.SEEK_END)
                and os.read(descriptor, 1) != b"\n"
            ):
                line = b"\n" + line
            self._is_torn = os.write(descriptor, line) < len(line)
        finally:
            os.close(descriptor)
        if size + len(line) > self._most_bytes:
            self._thin_out()

    def _thin_out(self) -> None:
        """Line by line: memory for a whole file, taken once in a thread, is never given back."""
        fresh = self._path.with_suffix(".tmp")
        with self._path.open("rb") as lines, fresh.open("wb") as kept:
            num_older = self._path.stat().st_size // 2  # bytes
            for number, line in enumerate(lines):
                num_older -= len(line)
                if num_older < 0 or number % 2 == 0:
                    kept.write(line)
        fresh.replace(self._path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole, oldest first; none where there is no file."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _plain(value: Any) -> Any:
    """Numbers with six digits or to thousandths, whichever is finer; None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return round(value, 3) if abs(value) >= 1000 else float(f"{value:.6g}")
    return value
