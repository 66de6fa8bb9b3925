"""A clock of nested phases: seconds of each without those within it, in any thread.

Knows nothing about what the phases are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from .sketch import Sketch

Clock = Callable[[], float]


class Phase:
    """What a phase took so far.

    Attributes:
        seconds: without phases within it.
        cpu_s: of these, what its thread computed; 0 where no CPU clock is read.
        durations: of whole calls, phases within them included.
    """

    __slots__ = ("cpu_s", "durations", "seconds")

    def __init__(self) -> None:
        self.seconds = self.cpu_s = 0.0
        self.durations = Sketch()

    def add(self, other: Phase) -> None:
        self.seconds += other.seconds
        self.cpu_s += other.cpu_s
        self.durations.merge(other.durations)


class _Thread:
    """The open phases of one thread, and all it has been in."""

    __slots__ = ("cpu_since", "phases", "since", "stack", "thread")

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.phases: dict[str, Phase] = {}
        self.stack: list[tuple[Phase, float]] = []
        self.since = self.cpu_since = 0.0


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
        cpu_clock: seconds computed by the thread that asks; None is not to measure it.
    """

    def __init__(self, clock: Clock = time.perf_counter, cpu_clock: Clock | None = None) -> None:
        self.clock, self._cpu_clock = clock, cpu_clock
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads: list[_Thread] = []
        self._ended: dict[str, Phase] = {}

    def __reduce__(self) -> Any:
        return PhaseClock, (self.clock, self._cpu_clock)  # another process has its own times

    def enter(self, name: str) -> None:
        """Open a phase within the one that is open in this thread."""
        own = self._own()
        now = self._charge(own)
        phase = own.phases.get(name)
        if phase is None:
            phase = own.phases[name] = Phase()
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

    def is_open(self) -> bool:
        """Whether this thread is in a phase."""
        return bool(self._own().stack)

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

    def own_seconds(self) -> dict[str, tuple[float, float]]:
        """Seconds and CPU seconds by phase, of this thread alone."""
        return {name: (phase.seconds, phase.cpu_s) for name, phase in self._own().phases.items()}

    def num_calls(self) -> int:
        """Phases closed in this thread."""
        return sum(phase.durations.count for phase in self._own().phases.values())

    def pair_cost_s(self, num: int = 300) -> float:
        """What entering and leaving a phase costs, measured now on a clock like this one."""
        other = PhaseClock(self.clock, self._cpu_clock)
        began = time.perf_counter()
        for _ in range(num):
            other.enter("")
            other.leave()
        return (time.perf_counter() - began) / num

    def _charge(self, own: _Thread) -> float:
        now = self.clock()
        if self._cpu_clock is not None:
            cpu = self._cpu_clock()
            if own.stack:
                own.stack[-1][0].cpu_s += cpu - own.cpu_since
            own.cpu_since = cpu
        if own.stack:
            own.stack[-1][0].seconds += now - own.since
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
