"""The time by which a run must have saved and ended.

Knows nothing about saving but how long it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import NamedTuple

from .reason import Context, Trigger
from .slurm import Ask, ask_program, end_of, job_of


class Deadline(Trigger):
    """Fires early enough for a save before the end of the time given, whichever end comes first.

    Args:
        max_seconds: of training, counted from its start in this process.
        until: wall-clock end: seconds since 1970, or ISO 8601 text (local time unless it says otherwise).
        factor: the save is expected to take this many times the longest so far.
        margin_s: seconds to spare beside that.
        environment: where a SLURM job finds its number and end; None is the process's own.
        ask: runs a command and returns what it prints.
        ask_every_s: seconds between two questions to SLURM, whose limits may be changed.
    """

    kind = "deadline"
    may_block = True

    def __init__(
        self,
        max_seconds: float | None = None,
        until: float | str | None = None,
        factor: float = 2.0,
        margin_s: float = 5.0,
        environment: Mapping[str, str] | None = None,
        ask: Ask = ask_program,
        ask_every_s: float = 600.0,
    ) -> None:
        super().__init__()
        if max_seconds is not None and not max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, got {max_seconds}; null for no limit")
        self.max_seconds, self.until = max_seconds, _seconds(until)
        self.factor, self.margin_s, self.ask_every_s = factor, margin_s, ask_every_s
        self._environment = os.environ if environment is None else environment
        self._ask = ask
        self._ends: list[_End] = []
        self._slurm_end: float | None = None
        self._asked_at = float("-inf")

    def start(self, context: Context) -> None:
        super().start(context)
        self._slurm_end, self._asked_at = None, float("-inf")
        self._ends = []
        if self.max_seconds is not None:
            end = context.clock() + self.max_seconds
            self._ends.append(_End(lambda: end - context.clock(), f"max_seconds={self.max_seconds:g}"))
        if (until := self.until) is not None:
            shown = datetime.fromtimestamp(until).isoformat(" ", "seconds")
            self._ends.append(_End(lambda: until - context.wall_clock(), f"until={shown}"))

    def poll(self) -> None:
        if (left := self.seconds_left()) is None:
            return
        needed = self.factor * self._context.save_seconds() + self.margin_s
        if left.seconds <= needed:
            message = (
                f"{max(0.0, left.seconds):.0f} s are left of {left.name}, and a save may take {needed:.0f}"
            )
            self.fire(message, grace_s=max(0.0, left.seconds))

    def seconds_left(self) -> _Left | None:
        """Until the earliest end, and whose it is; None without one."""
        ends = [_Left(end.seconds_left(), end.name) for end in self._ends]
        if (slurm := self._ask_slurm()) is not None:
            ends.append(_Left(slurm - self._context.wall_clock(), "the SLURM job"))
        return min(ends, default=None)

    def _ask_slurm(self) -> float | None:
        if (job := job_of(self._environment)) is None:
            return None
        if self._context.clock() - self._asked_at >= self.ask_every_s:
            self._asked_at = self._context.clock()
            self._slurm_end = end_of(job, self._environment, self._ask) or self._slurm_end
            if self._slurm_end is None:
                self._context.note(f"SLURM does not say when job {job} ends; set max_seconds to be safe")
        return self._slurm_end


class _End(NamedTuple):
    seconds_left: Callable[[], float]
    name: str


class _Left(NamedTuple):
    seconds: float
    name: str


def _seconds(until: float | str | None) -> float | None:
    if until is None or isinstance(until, int | float):
        return until
    try:
        return datetime.fromisoformat(until).timestamp()
    except ValueError:
        message = f"until must be seconds since 1970 or a time such as 2030-01-31T18:00, got {until!r}"
        raise ValueError(message) from None
