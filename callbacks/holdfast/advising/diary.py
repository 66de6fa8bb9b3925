"""What advice was given and followed in a run, one JSON object a line, in RUN/monitor/advice.jsonl.

Knows nothing about when advice is given.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from .advice import Advice

_MOST_LINES = 2_000  # a run that has so much to say is not read any more


class Diary:
    """Appends; a run that resumes goes on behind what it had written when it was saved."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "monitor" / "advice.jsonl"
        self.num_lines = 0

    def begin(self, num_lines: int) -> None:
        """Keep so many lines; what was written after them is told again."""
        self.num_lines = num_lines
        with contextlib.suppress(OSError):  # what stays is told twice
            lines = self.path.read_bytes().splitlines(keepends=True)
            fresh = self.path.with_suffix(".tmp")
            fresh.write_bytes(b"".join(lines[:num_lines]))
            fresh.replace(self.path)

    def write(self, time_s: float, step: int, event: str, advice: Advice) -> None:
        """One event: ``advised``, ``withdrawn``, ``applied`` or ``rolled back``."""
        if self.num_lines >= _MOST_LINES:
            return
        record: dict[str, Any] = {"time": time_s, "step": step, "event": event, "advice": advice.as_dict()}
        with contextlib.suppress(OSError):  # a full disk is told of by those who watch it
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(record, default=str) + "\n")
            self.num_lines += 1
