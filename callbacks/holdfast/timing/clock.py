"""A clock of nested phases: seconds of each without those within it, in any thread.

Knows nothing about what the phases are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from .sketch import Sketch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]
_THREAD = getattr(resource, "RUSAGE_THREAD", None)

Clock = Callable[[], float]


class Usage(NamedTuple):
    """Of a thread so far.

    Attributes:
        cpu_s: computed.
        num_waits: times it gave the CPU up of its own accord: for a disk, a lock, a sleep.
        num_faults: times it had to wait for a page of memory to be read from a disk.
    """

    cpu_s: float
    num_waits: int
    num_faults: int


def thread_usage() -> Usage:
    """Of the thread that asks; where the system counts no waits, whatever is not computed is one."""
    cpu_s = time.thread_time()
    if _THREAD is None:
        return Usage(cpu_s, time.perf_counter_ns(), 0)
    counts = resource.getrusage(_THREAD)
    return Usage(cpu_s, counts.ru_nvcsw, counts.ru_majflt)


class Phase:
    """What a phase took so far.

    Attributes:
        seconds: without phases within it.
        cpu_s: of these, what its thread computed.
        blocked_s: of these, what it waited for something; the rest it was ready, and did not get the CPU.
        fault_s: of what was blocked, for memory read from a disk.
        num_within: phases opened within it.
        durations: of whole calls, phases within them included.
    """

    __slots__ = ("blocked_s", "cpu_s", "durations", "fault_s", "num_within", "seconds")

    def __init__(self) -> None:
        self.seconds = self.cpu_s = self.blocked_s = self.fault_s = 0.0
        self.num_within = 0
        self.durations = Sketch()

    def add(self, other: Phase) -> None:
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.blocked_s += other.blocked_s
        self.fault_s += other.fault_s
        self.num_within += other.num_within
        self.durations.merge(other.durations)


class Taken(NamedTuple):
    """Seconds that a phase took, corrected for what the clock itself takes."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    blocked_s: float = 0.0
    fault_s: float = 0.0

    def since(self, before: Taken) -> Taken:
        return Taken._make(now - then for now, then in zip(self, before, strict=True))


class _Thread:
    """The open phases of one thread, and all it has been in."""

    __slots__ = ("phases", "since", "stack", "thread", "used")

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.phases: dict[str, Phase] = {}
        self.stack: list[tuple[Phase, float]] = []
        self.since, self.used = 0.0, Usage(0.0, 0, 0)


class Span:
    """``with`` it a phase is open; may be entered again, also within itself."""

    __slots__ = ("_clock", "_name")

    def __init__(self, clock: PhaseClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.enter(self._name)

    def __exit__(self, *_: Any) -> None:
        self._clock.leave()


class PhaseClock:
    """Seconds by phase; in a thread they add up to the time from the first `enter` on with a phase open.

    Args:
        clock: seconds, monotonic.
        usage: of the thread that asks; None is to measure time alone, at a third of the cost.
    """

    def __init__(self, clock: Clock = time.perf_counter, usage: Callable[[], Usage] | None = None) -> None:
        self.clock, self._usage = clock, usage
        self.pair_cost_s = 0.0  # what entering and leaving a phase costs, to be taken off
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[_Thread] = []
        self._ended: dict[str, Phase] = {}

    def __reduce__(self) -> Any:
        return PhaseClock, (self.clock, self._usage)  # another process has its own times

    def enter(self, name: str) -> None:
        """Open a phase within the one that is open in this thread."""
        own = self._own()
        now = self._charge(own)
        phase = own.phases.get(name)
        if phase is None:
            phase = own.phases[name] = Phase()
        if own.stack:
            own.stack[-1][0].num_within += 1
        own.stack.append((phase, now))

    def leave(self) -> None:
        """Close the innermost phase of this thread; nothing where none is open."""
        own = self._own()
        if own.stack:
            now = self._charge(own)
            phase, entered = own.stack.pop()
            phase.durations.add(now - entered)

    def span(self, name: str) -> Span:
        return Span(self, name)

    def depth(self) -> int:
        """How many phases this thread is in."""
        return len(self._own().stack)

    def charge(self) -> None:
        """Count what has passed in this thread's open phase up to now."""
        self._charge(self._own())

    def totals(self) -> dict[str, Phase]:
        """Copies, of all threads together."""
        with self._lock:
            found: dict[str, Phase] = {}
            for phases in [self._ended, *(own.phases for own in self._threads)]:
                _fold(phases, found)
            return found

    def taken(self) -> dict[str, Taken]:
        """By phase, of this thread alone, up to the last `enter`, `leave` or `charge`."""
        return {name: self._taken(phase) for name, phase in self._own().phases.items()}

    def _taken(self, phase: Phase) -> Taken:
        """Half of what a clock costs is within its phase, half within the phase around it."""
        cost = self.pair_cost_s / 2 * (phase.durations.count + phase.num_within)
        cost = min(cost, phase.seconds)
        return Taken(phase.seconds - cost, max(0.0, phase.cpu_s - cost), phase.blocked_s, phase.fault_s)

    def num_calls(self) -> int:
        """Phases closed in this thread."""
        return sum(phase.durations.count for phase in self._own().phases.values())

    def measure_cost(self, num: int = 300) -> None:
        """Find out what a phase costs, so that it is taken off."""
        other = PhaseClock(time.perf_counter, self._usage)
        began = time.thread_time()
        for _ in range(num):
            other.enter("")
            other.leave()
        self.pair_cost_s = (time.thread_time() - began) / num

    def _charge(self, own: _Thread) -> float:
        now = self.clock()
        if own.stack:
            phase, seconds = own.stack[-1][0], now - own.since
            phase.seconds += seconds
        if self._usage is not None:
            used, before = self._usage(), own.used
            own.used = used
            if own.stack:
                cpu_s = used.cpu_s - before.cpu_s
                phase.cpu_s += cpu_s
                if used.num_waits != before.num_waits and seconds > cpu_s:
                    phase.blocked_s += seconds - cpu_s
                    if used.num_faults != before.num_faults:
                        phase.fault_s += seconds - cpu_s
        own.since = now
        return now

    def _own(self) -> _Thread:
        try:
            own: _Thread = self._local.own
        except AttributeError:
            own = self._local.own = _Thread()
            with self._lock:
                ended = [other for other in self._threads if not other.thread.is_alive()]
                self._threads = [other for other in self._threads if other not in ended]
                self._threads.append(own)
                for other in ended:
                    _fold(other.phases, self._ended)
        return own


def _fold(phases: dict[str, Phase], into: dict[str, Phase]) -> None:
    items: Iterable[tuple[str, Phase]] = list(phases.items())  # its thread may add one meanwhile
    for name, phase in items:
        into.setdefault(name, Phase()).add(phase)
