"""Memory running out: from its growth, what is left, and how long everything waits for it.

Knows nothing about where the figures come from, nor what uses the memory.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Protocol

from ..resources.memory import MemoryFigures, Usage
from .growth import Growth
from .reason import Context, Trigger

MIB = 2**20
_LITTLE = 0.2  # share of the limit that is free
_SAME = 0.02  # of the limit: levels less apart are one


class Figures(Protocol):
    """What is watched; see `MemoryFigures`."""

    def tightest(self) -> Usage: ...

    def stalled_s(self) -> float | None: ...


class Memory(Trigger):
    """Fires while there is still time and room for a save.

    1. Steady growth (see `Growth`) would reach the limit before a save is whole. Not in the first seconds, in
       which every run takes what it needs, and not up to a level that the use has come back from before.
    2. Less than ``floor`` of the limit is free.
    3. Nothing runs for want of memory in more than ``max_stall`` of the time, and little is free.

    The first alarm asks to save and to give memory back, and the run goes on. Another comes when what is
    free has halved since; where that is little, it ends the run, before the kernel does.

    Args:
        floor: share of the limit that is to stay free.
        margin_s: seconds to spare beside twice the time of a save.
        window_s: how far back slow growth is looked for.
        settling_s: seconds at the beginning in which growth is no alarm.
        max_stall: share of time, from pressure stall information.
        save_room_bytes: what a save may take for itself while it streams.
        figures: what to watch; None is this process's control groups and the machine.
        root: where ``proc`` and ``sys`` are found.
    """

    kind = "memory"
    _SLOW_S, _FAST_S, _STALL_S = 0.5, 0.1, 5.0

    def __init__(
        self,
        floor: float = 0.04,
        margin_s: float = 1.0,
        window_s: float = 30.0,
        settling_s: float = 5.0,
        max_stall: float = 0.25,
        save_room_bytes: int = 64 * MIB,
        figures: Figures | None = None,
        root: str | os.PathLike[str] = "/",
    ) -> None:
        super().__init__()
        if not 0 <= floor < 1:
            raise ValueError(f"floor is a share of the memory limit and must lie in [0, 1), got {floor}")
        self.floor, self.margin_s, self.window_s, self.max_stall = floor, margin_s, window_s, max_stall
        self.settling_s, self.save_room_bytes = settling_s, save_room_bytes
        self._given, self._root = figures, root
        self._reset(0.0)

    def start(self, context: Context) -> None:
        super().start(context)
        self._reset(context.clock())
        if isinstance(self._figures, MemoryFigures):
            self._say_what_is_missing(self._figures)

    def _reset(self, now: float) -> None:
        self._figures: Figures = self._given or MemoryFigures(self._root)
        self.interval_s = self._SLOW_S
        self._settled_at = now + self.settling_s
        self._growth = Growth(self.window_s)
        self._newest = (now, float("inf"))
        self._stalls: deque[tuple[float, float]] = deque()
        self._highest = self._survived = 0  # since the last fall; the highest level come back from
        self._alarmed_at: int | None = None  # bytes free at the last alarm
        self._before_save: int | None = None  # bytes used when the save in progress began

    def _say_what_is_missing(self, figures: MemoryFigures) -> None:
        if not figures.groups:
            self._context.note("no memory control group is visible: the machine's memory is watched")
        if figures.stalls.file is None:
            self._context.note("no pressure stall information: memory is watched by what is free alone")

    def poll(self) -> None:
        usage, now = self._figures.tightest(), self._context.clock()
        if self._context.is_saving():
            self._learn_what_a_save_takes(usage)
            return
        self._before_save = None
        seconds = self._seconds_left(usage, now)
        needed = 2 * self._context.save_seconds() + self.margin_s
        is_known = usage.used_bytes < self._survived + _SAME * usage.limit_bytes
        is_new = now >= self._settled_at and not is_known
        message = self._message(usage, seconds, needed if is_new else 0.0)
        self._note_level(usage, now)
        if message and (self._alarmed_at is None or usage.free_bytes < self._alarmed_at / 2):
            is_last = self._alarmed_at is not None and usage.free_share < _LITTLE
            self._alarmed_at = usage.free_bytes
            self.fire(message, seconds if seconds < 3600 else None, is_last)

    def _message(self, usage: Usage, seconds: float, needed: float) -> str | None:
        left = f"{usage.free_bytes / MIB:.0f} of {usage.limit_bytes / MIB:.0f} MiB are left in {usage.where}"
        if usage.free_share < self.floor:
            return left
        if seconds < needed:
            return f"{left}, enough for {seconds:.1f} s at this growth; a save may take {needed:.1f}"
        if (stall := self._stall()) > self.max_stall and usage.free_share < _LITTLE:
            return f"{left}, and {100 * stall:.0f} % of the time is spent waiting for memory"
        return None

    def _seconds_left(self, usage: Usage, now: float) -> float:
        """Until the limit, less the room a save needs; infinite where the use does not grow."""
        self._growth.add(now, usage.used_bytes)
        room = max(0, usage.free_bytes - min(self.save_room_bytes, usage.limit_bytes // 10))
        at, used = self._newest
        at_once = (usage.used_bytes - used) / max(1e-3, now - at)  # may be noise: a reason to look more often
        self._newest = (now, usage.used_bytes)
        is_urgent = (
            usage.free_share < 0.1 or at_once * 10 * (self._context.save_seconds() + self.margin_s) > room
        )
        self.interval_s = self._FAST_S if is_urgent else self._SLOW_S
        return room / self._growth.rate if self._growth.rate > 0 else float("inf")

    def _note_level(self, usage: Usage, now: float) -> None:
        """What has been survived, how long all stood still, and whether an alarm is over."""
        self._highest = max(self._highest, usage.used_bytes)
        if usage.used_bytes < self._highest - _SAME * usage.limit_bytes:
            self._survived, self._highest = max(self._survived, self._highest), usage.used_bytes
        enough = max(2 * (self._alarmed_at or 0), 2 * self.floor * usage.limit_bytes)
        if usage.free_bytes > enough:
            self._alarmed_at = None

    def _stall(self) -> float:
        """Share of the last seconds in which nothing ran for want of memory."""
        if (stalled := self._figures.stalled_s()) is None:
            return 0.0
        now = self._context.clock()
        self._stalls.append((now, stalled))
        while now - self._stalls[0][0] > self._STALL_S:
            self._stalls.popleft()
        since, before = self._stalls[0]
        return (stalled - before) / (now - since) if now - since >= self._STALL_S / 2 else 0.0

    def _learn_what_a_save_takes(self, usage: Usage) -> None:
        if self._before_save is None:
            self._before_save = usage.used_bytes
        self.save_room_bytes = max(self.save_room_bytes, usage.used_bytes - self._before_save)
