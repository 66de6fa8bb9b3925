"""What a trigger is, and what it says when it fires.

Knows nothing about what fires, nor what is done about it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

# `timeout` ends with 124, a kernel that runs out of memory kills by SIGKILL, clouds preempt by SIGTERM.
EXIT_CODES = {"deadline": 124, "memory": 128 + 9, "preemption": 128 + 15}


class Reason(NamedTuple):
    """Why a save is called for.

    Attributes:
        kind: ``signal``, ``memory``, ``disk``, ``numerics``, ``deadline``, ``preemption``, or one's own.
        signal: number of the signal, if it was one.
        grace_s: seconds from ``at`` until it may be too late; None where nothing is known to end the run.
        is_stopping: whether the run ends after the save.
        at: when it fired, on the context's clock.
    """

    kind: str
    message: str
    signal: int | None = None
    grace_s: float | None = None
    is_stopping: bool = True
    at: float = 0.0

    @property
    def exit_code(self) -> int:
        """What the process is to end with; 128 + signal as shells say it."""
        return 128 + self.signal if self.signal else EXIT_CODES.get(self.kind, 1)


def _nothing(*_: object) -> None:
    pass


@dataclass(frozen=True)
class Context:
    """What triggers may ask about the run they watch.

    Args:
        folder: where generations are written.
        save_seconds: how long it takes from an alarm until a save is whole, at worst, as far as known.
        save_bytes: how much a save writes, as far as known.
        is_saving: whether a save is in progress.
        note: says a sentence to the user, the same one only once.
        alarm: called whenever a trigger fires; inside a signal handler too.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970.
    """

    folder: Path
    save_seconds: Callable[[], float] = lambda: 1.0
    save_bytes: Callable[[], int] = lambda: 0
    is_saving: Callable[[], bool] = lambda: False
    note: Callable[[str], None] = _nothing
    alarm: Callable[[], None] = _nothing
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time


class Trigger:
    """Watches one danger. `poll` runs in the watching thread, everything else in the main one.

    Attributes:
        interval_s: seconds until the next `poll`; may change from poll to poll.
        may_block: whether a poll can wait for a network or a program; it then gets a thread of its own.
    """

    kind = ""
    interval_s = 1.0
    may_block = False

    def __init__(self) -> None:
        self._reason: Reason | None = None
        self._context = Context(Path())

    def start(self, context: Context) -> None:
        """Begin to watch."""
        self._context = context
        self._reason = None

    def stop(self) -> None:
        """Give back all that was taken."""

    def poll(self) -> None:
        """Look once; cheap, never raises for what the platform lacks."""

    def fired(self) -> Reason | None:
        """Why a save is called for, until `rearm`."""
        return self._reason

    def rearm(self, reason: Reason) -> None:
        """``reason`` has been seen to, and the run goes on."""
        if self._reason is reason:
            self._reason = None

    def fire(self, message: str, grace_s: float | None = None, is_stopping: bool = True) -> None:
        """Call for a save; while one is called for already, only for a reason to stop."""
        if self._reason is not None and (self._reason.is_stopping or not is_stopping):
            return
        self._reason = Reason(self.kind, message, None, grace_s, is_stopping, self._context.clock())
        self._context.alarm()
