"""Looks at some steps now and then: what each phase takes of the time, and what the kernel kept it from.

Knows nothing about Lightning, nor what is concluded.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from .actions import category_of
from .clock import PhaseClock
from .kernel import Waits

ROOT = "loop"
ALWAYS = ("validation", "checkpoint", "logging/loggers")  # rare and long: clocked all the time
NUM_REFERENCE = 5


class Reader(Protocol):
    """See `Kernel`."""

    def read(self) -> Waits: ...


@dataclass(frozen=True)
class Record:
    """An interval between the ends of two windows, as far as the second tells.

    Attributes:
        seconds: of the interval.
        steps: made in it.
        shares: of the interval by phase, each without those within it; together 1.
        waited: share of the interval in which a phase neither computed nor stood in the CPU's queue nor was
            throttled.
        cpu_s: computed by the thread in a step, by category.
        probe_s: CPU time of a fixed computation, then.
        waits: what the kernel counted in the interval.
        layer_excess_s: time a step that layers took beyond what torch takes for the same; None: not measured.
    """

    seconds: float
    steps: int
    shares: Mapping[str, float]
    waited: Mapping[str, float] = field(default_factory=dict)
    cpu_s: Mapping[str, float] = field(default_factory=dict)
    probe_s: float = 1.0
    waits: Waits = Waits()  # noqa: RUF009 - a tuple
    layer_excess_s: float | None = None

    def share(self, category: str) -> float:
        return sum(share for phase, share in self.shares.items() if category_of(phase) == category)

    def wait(self, *categories: str) -> float:
        return sum(share for phase, share in self.waited.items() if category_of(phase) in categories)


@dataclass
class _Mark:
    """Readings of one moment."""

    now: float
    step: int
    phases: dict[str, tuple[float, float]]
    waits: Waits
    num_calls: int


class Windows:
    """Opens a window every so often, of so many steps, and makes a record of each.

    The time between two windows follows from what the last one cost, so that the whole stays below
    ``max_cost`` of the run.

    Args:
        clock: is in phase `ROOT` while a window is open; see `ALWAYS` for what it measures otherwise.
        kernel: read at both ends of a window.
        length: steps of a window.
        every_s: least time between two windows.
        max_cost: share of the time that all windows together may cost.
        num_kept: records kept.
        probe: CPU seconds of a fixed computation.
        phase_cost_s: what entering and leaving a phase costs; None is to measure it.
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
        phase_cost_s: float | None = None,
    ) -> None:
        self.records: deque[Record] = deque(maxlen=num_kept)
        self.reference: list[Record] = []  # the earliest but the very first
        self.num_records = 0
        self.estimated_s: dict[str, float] = {}  # by phase, of all the time so far
        self.cost_s = 0.0  # of all windows so far
        self.is_open = False
        self.due = 0  # the step at which the next thing is to do
        self._clock, self._kernel, self._length = clock, kernel, length
        self._every_s, self._max_cost, self._probe = every_s, max_cost, probe or probe_cpu
        self._phase_cost_s = phase_cost_s
        self._last: _Mark | None = None
        self._opened: _Mark | None = None
        self._opening_s = self._newest_cost_s = self._probed_s = 0.0

    def begin(self, step: int) -> None:
        """A run begins, in this thread."""
        if self._phase_cost_s is None:
            self._phase_cost_s = self._clock.pair_cost_s()
        self._last, self._opened, self.is_open = self._mark(step), None, False
        self.due = step + self._length  # what is done once is done by then

    def open(self, step: int) -> None:
        began = self._clock.clock()
        self._newest_cost_s, self._probed_s = 0.0, self._probe()
        self._clock.enter(ROOT)
        self._opened = self._mark(step)
        self.is_open, self.due = True, step + self._length
        self._opening_s = self._opened.now - began

    def close(self, step: int) -> Record | None:
        """The record of the interval that ends; None where no step was made."""
        self._clock.leave()
        mark, opened, last = self._mark(step), self._opened, self._last
        self.is_open = False
        assert opened is not None
        assert last is not None
        probe_s = min(self._probed_s, self._probe())
        record = None
        if step > opened.step and mark.now > opened.now:
            record = self._record(last, opened, mark, probe_s)
            self.keep(record)
        self._last = mark
        num_calls = mark.num_calls - opened.num_calls
        self.charge(self._opening_s + self._clock.clock() - mark.now + num_calls * (self._phase_cost_s or 0))
        return record

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

    def _mark(self, step: int) -> _Mark:
        waits = self._kernel.read()
        self._clock.charge()
        phases, num_calls = self._clock.own_seconds(), self._clock.num_calls()
        return _Mark(self._clock.clock(), step, phases, waits, num_calls)

    def _record(self, last: _Mark, opened: _Mark, mark: _Mark, probe_s: float) -> Record:
        seconds, window = mark.now - last.now, mark.now - opened.now
        whole = {name: value for name, (value, _) in _difference(mark, last).items() if name in ALWAYS}
        inside = _difference(mark, opened)
        looked_at = {name: value for name, value in inside.items() if name not in ALWAYS}
        looked_at_s = sum(value for value, _ in looked_at.values()) or window
        rest = max(0.0, 1 - sum(whole.values()) / seconds)
        scale = rest / looked_at_s
        shares = {name: scale * value for name, (value, _) in looked_at.items()}
        shares |= {name: value / seconds for name, value in whole.items()}
        kept = mark.waits.since(opened.waits)
        kept_s = kept.queued_s + kept.throttled_s
        cpu_s = sum(cpu for _, cpu in inside.values()) or 1.0
        waited = {
            name: scale * max(0.0, value - cpu - kept_s * cpu / cpu_s)
            for name, (value, cpu) in looked_at.items()
        }
        steps = mark.step - opened.step
        cpu_by_category: dict[str, float] = {}
        for name, (_, cpu) in inside.items():
            category = category_of(name)
            cpu_by_category[category] = cpu_by_category.get(category, 0.0) + cpu / steps
        waits = mark.waits.since(last.waits)
        return Record(seconds, mark.step - last.step, shares, waited, cpu_by_category, probe_s, waits)


def _difference(mark: _Mark, before: _Mark) -> dict[str, tuple[float, float]]:
    differences = {}
    for name, (seconds, cpu) in mark.phases.items():
        seconds_before, cpu_before = before.phases.get(name, (0.0, 0.0))
        if seconds > seconds_before:
            differences[name] = (seconds - seconds_before, cpu - cpu_before)
    return differences


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
