"""Looks at some steps now and then: what each phase takes of the time, and what the kernel kept it from.

Knows nothing about Lightning, nor what is concluded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from .actions import category_of
from .clock import Clock, PhaseClock, Taken
from .kernel import Waits

ROOT = "loop"
THROTTLED = "throttled"
ALWAYS = ("validation", "checkpoint", "logging/loggers")  # rare and long: clocked all the time
NUM_REFERENCE = 5
_PAID_WITHIN_S = 5.0  # where steps are dear to look at, a window is shorter


class Reader(Protocol):
    """See `Kernel`."""

    def read(self) -> Waits: ...


@dataclass(frozen=True)
class Record:
    """An interval between the ends of two windows, as far as the second tells.

    Time in the CPU's queue, while others ran, is left out of all: what remains is the time the run would take
    on a machine of its own.

    Attributes:
        seconds: of the interval.
        steps: made in it.
        shares: of the interval by phase, each without those within it, and `THROTTLED`; together 1.
        blocked: share of the interval in which a phase waited for something else than memory.
        faulted: share in which it waited for memory that had to be read from a disk, but as data.
        cpu_s: computed by the thread in a step, by category.
        probe_s: CPU time of a fixed computation, then.
        waits: what the kernel counted in the interval.
        layer_excess_s: time a step that layers took beyond what torch takes for the same, as last
            measured; None: not measured.
    """

    seconds: float
    steps: int
    shares: Mapping[str, float]
    blocked: Mapping[str, float] = field(default_factory=dict)
    faulted: float = 0.0
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    probe_s: float = 1.0
    waits: Waits = Waits()  # noqa: RUF009 - a tuple
    layer_excess_s: float | None = None

    def share(self, category: str) -> float:
        return sum(share for phase, share in self.shares.items() if category_of(phase) == category)

    def wait(self, *categories: str) -> float:
        return sum(share for phase, share in self.blocked.items() if category_of(phase) in categories)


@dataclass
class Mark:
    """Readings of one moment."""

    now: float
    step: int
    phases: dict[str, Taken]
    waits: Waits
    num_calls: int


class Windows:
    """Opens a window every so often, of so many steps, and makes a record of each.

    The time between two windows follows from what the last one cost, so that the whole stays below
    ``max_cost`` of the run.

    Args:
        clock: is in phase `ROOT` while a window is open; see `ALWAYS` for what it measures otherwise.
        kernel: read at both ends of a window.
        length: steps of a window, of the first and of dear ones fewer.
        every_s: least time between two windows.
        max_cost: share of the time that all windows together may cost.
        num_kept: records kept.
        probe: CPU seconds of a fixed computation.
        cpu_clock: by which its own cost is measured.
    """

    def __init__(
        self,
        clock: PhaseClock,
        kernel: Reader,
        length: int = 24,
        every_s: float = 1.0,
        max_cost: float = 0.002,
        num_kept: int = 64,
        probe: Callable[[], float] | None = None,
        cpu_clock: Clock = time.thread_time,
    ) -> None:
        self.records: deque[Record] = deque(maxlen=num_kept)
        self.reference: list[Record] = []  # the earliest but the very first
        self.num_records = 0
        self.estimated_s: dict[str, float] = {}  # by phase, of all the time so far
        self.cost_s = 0.0  # of all windows so far
        self.layer_excess_s: float | None = None  # as last measured, see `interventions`
        self.is_open = False
        self.due = 0  # the step at which the next thing is to do
        self._clock, self._kernel, self._length = clock, kernel, length
        self._steps = min(2, length)  # of the next window
        self._every_s, self._max_cost, self._probe = every_s, max_cost, probe or probe_cpu
        self.cpu_clock = cpu_clock
        self._last: Mark | None = None
        self._opened: Mark | None = None
        self._opening_s = self._newest_cost_s = self._probed_s = 0.0

    def begin(self, step: int) -> None:
        """A run begins, in this thread."""
        self._last, self._opened, self.is_open = self._mark(step), None, False
        self.due = step + self._length  # what is done once is done by then

    def open(self, step: int, since: float | None = None) -> None:
        """Begin to look; ``since``, by the CPU clock, this has cost something."""
        began = self.cpu_clock() if since is None else since
        self._newest_cost_s, self._probed_s = 0.0, self._probe()
        self._clock.enter(ROOT)
        self._opened = self._mark(step)
        self.is_open, self.due = True, step + self._steps
        self._opening_s = self.cpu_clock() - began

    def close(self, step: int) -> Record | None:
        """The record of the interval that ends; None where no step was made."""
        began = self.cpu_clock()
        self._clock.leave()
        mark, opened, last = self._mark(step), self._opened, self._last
        self.is_open = False
        assert opened is not None
        assert last is not None
        probe_s = min(self._probed_s, self._probe())
        record = None
        if step > opened.step and mark.now > opened.now:
            record = replace(record_of(last, opened, mark, probe_s), layer_excess_s=self.layer_excess_s)
            self.keep(record)
        self._last = mark
        num_calls = mark.num_calls - opened.num_calls
        if record is not None:
            step_cost_s = max(1e-9, num_calls * self._clock.pair_cost_s / (step - opened.step))
            self._steps = max(1, min(self._length, int(_PAID_WITHIN_S * self._max_cost / step_cost_s)))
        self.charge(self._opening_s + self.cpu_clock() - began + num_calls * self._clock.pair_cost_s)
        return record

    def restart(self, step: int) -> None:
        """What passed since the last window belongs to no record."""
        self._last = self._mark(step)

    def charge(self, seconds: float) -> None:
        """Note what looking has cost, and put off the next window accordingly."""
        assert self._last is not None
        self.cost_s += seconds
        self._newest_cost_s += seconds
        newest = self.records[-1] if self.records else None
        step_s = newest.seconds / max(1, newest.steps) if newest else 0.01
        gap_s = max(self._every_s, self._newest_cost_s / self._max_cost)
        self.due = self._last.step + max(1, round(gap_s / step_s))

    def keep(self, record: Record) -> None:
        """One more, the newest."""
        self.num_records += 1
        self.records.append(record)
        for name, share in record.shares.items():
            self.estimated_s[name] = self.estimated_s.get(name, 0.0) + share * record.seconds
        if 1 < self.num_records <= 1 + NUM_REFERENCE:
            self.reference.append(record)

    def _mark(self, step: int) -> Mark:
        waits = self._kernel.read()
        self._clock.charge()
        phases, num_calls = self._clock.taken(), self._clock.num_calls()
        return Mark(self._clock.clock(), step, phases, waits, num_calls)


def record_of(last: Mark, opened: Mark, mark: Mark, probe_s: float = 1.0) -> Record:
    """Of the interval from ``last`` on, of which the part since ``opened`` was looked at."""
    waits = mark.waits.since(last.waits)
    wall_s = mark.now - last.now
    throttled_s = min(waits.throttled_s, max(0.0, wall_s - waits.thread_cpu_s))
    seconds = max(1e-9, wall_s - max(0.0, waits.queued_s - throttled_s))  # throttled counts as queued, too
    inside = _taken(opened, mark)
    factor = _waiting_alone(inside, mark, opened)
    inside = {name: _scaled(taken, factor) for name, taken in inside.items()}
    whole = {n: _scaled(taken, factor) for n, taken in _taken(last, mark).items() if n in ALWAYS}
    seen = {name: taken for name, taken in inside.items() if name not in ALWAYS}
    shares = {name: _net(taken) / seconds for name, taken in whole.items()}
    if throttled_s:
        shares[THROTTLED] = throttled_s / seconds
    seen_s = sum(map(_net, seen.values())) or 1.0
    scale = max(0.0, 1 - sum(shares.values())) / seen_s
    shares |= {name: scale * _net(taken) for name, taken in seen.items()}
    steps = max(1, mark.step - opened.step)
    cpu_s: dict[str, float] = {}
    for name, taken in inside.items():
        cpu_s[category_of(name)] = cpu_s.get(category_of(name), 0.0) + taken.cpu_s / steps
    return Record(
        seconds,
        mark.step - last.step,
        shares,
        {name: scale * (taken.blocked_s - taken.fault_s) for name, taken in seen.items()},
        scale * sum(taken.fault_s for name, taken in seen.items() if category_of(name) != "data"),
        cpu_s,
        probe_s,
        waits,
    )


def _taken(before: Mark, mark: Mark) -> dict[str, Taken]:
    differences = {name: taken.since(before.phases.get(name, Taken())) for name, taken in mark.phases.items()}
    return {name: taken for name, taken in differences.items() if taken.seconds > 0}


def _waiting_alone(phases: dict[str, Taken], mark: Mark, opened: Mark) -> float:
    """Part of what was blocked that was no queue: who has waited stands in it before going on."""
    kept = mark.waits.since(opened.waits)
    available_s = mark.now - opened.now - max(0.0, kept.queued_s - kept.throttled_s)
    blocked_s = sum(taken.blocked_s for taken in phases.values())
    excess_s = sum(map(_net, phases.values())) - available_s
    return 1 - excess_s / blocked_s if 0 < excess_s <= blocked_s else 1.0


def _scaled(taken: Taken, factor: float) -> Taken:
    return taken._replace(blocked_s=factor * taken.blocked_s, fault_s=factor * taken.fault_s)


def _net(taken: Taken) -> float:
    """Without time in the CPU's queue."""
    return taken.cpu_s + taken.blocked_s


def probe_cpu(repeats: int = 3) -> float:
    """CPU seconds of ten small matrix products, the least of some: how fast the machine is just now."""
    one = torch.ones(64, 64)
    took = []
    for _ in range(repeats):
        began = time.thread_time()
        for _ in range(10):
            torch.mm(one, one)
        took.append(time.thread_time() - began)
    return max(min(took), 1e-9)
