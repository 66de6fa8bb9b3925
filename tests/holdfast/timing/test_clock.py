"""Phases by hand: every second in one of them, in every thread."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import threading
import time
from typing import Any

import numpy as np
import pytest
from holdfast.timing.clock import PhaseClock
from holdfast.timing.clocked import ClockedMethods
from holdfast.timing.sketch import Sketch


def test_a_phase_is_charged_without_those_within_it(hands: Any) -> None:
    clock = PhaseClock(hands.clock, hands.usage)
    with clock.span("outer"):
        hands.work(1)
        with clock.span("inner"):
            hands.wait(10)
        hands.queue(2)
    hands.work(100)  # in no phase
    totals = clock.totals()
    assert {name: phase.seconds for name, phase in totals.items()} == {"outer": 3.0, "inner": 10.0}
    assert {name: phase.cpu_s for name, phase in totals.items()} == {"outer": 1.0, "inner": 0.0}
    assert {name: phase.blocked_s for name, phase in totals.items()} == {"outer": 0.0, "inner": 10.0}
    assert totals["outer"].durations.total_s == 13.0


def test_a_phase_within_itself_is_charged_once(hands: Any) -> None:
    clock = PhaseClock(hands.clock)
    span = clock.span("again")
    with span:
        hands.work(1)
        with span:
            hands.work(2)
    assert clock.totals()["again"].seconds == 3.0
    assert clock.totals()["again"].durations.count == 2


def test_exclusive_times_add_up_to_the_time_that_passed(hands: Any) -> None:
    draw, clock, depth = random.Random(0), PhaseClock(hands.clock), 0
    clock.enter("root")
    for _ in range(500):
        hands.work(draw.randrange(8) / 8)
        if depth and draw.random() < 0.5:
            clock.leave()
            depth -= 1
        else:
            clock.enter(draw.choice("abc"))
            depth += 1
    clock.charge()
    assert sum(phase.seconds for phase in clock.totals().values()) == hands.now


def test_threads_have_phases_of_their_own_and_those_that_ended_are_kept() -> None:
    ticks = itertools.count()
    clock = PhaseClock(lambda: float(next(ticks)))

    def work() -> None:
        with clock.span("worker"):
            pass

    with clock.span("main"):
        for _ in range(5):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert clock.totals()["worker"].durations.count == 5
    assert clock.totals()["main"].durations.count == 1
    assert clock.taken().keys() == {"main"}
    assert len(clock._threads) <= 3


def test_waiting_for_pages_is_told_from_other_waiting(hands: Any) -> None:
    clock = PhaseClock(hands.clock, hands.usage)
    with clock.span("step"):
        hands.wait(3)
        with clock.span("within"):
            hands.work(1)
        hands.wait(4, num_faults=2)
    phase = clock.totals()["step"]
    assert (phase.blocked_s, phase.fault_s) == (7.0, 4.0)


def test_what_the_clock_takes_is_taken_off(hands: Any) -> None:
    clock = PhaseClock(hands.clock, hands.usage)
    clock.pair_cost_s = 0.5
    with clock.span("outer"):
        hands.work(4)
        for _ in range(3):
            with clock.span("inner"):
                hands.work(1)
    taken = clock.taken()
    assert (taken["outer"].seconds, taken["inner"].seconds) == (4 - 0.25 * 4, 3 - 0.25 * 3)
    clock.measure_cost(10)
    assert 0 < clock.pair_cost_s < 0.1


def test_what_raises_leaves_its_phase(hands: Any) -> None:
    clock = PhaseClock(hands.clock)
    with pytest.raises(OSError), clock.span("fails"):
        raise OSError
    assert clock.depth() == 0
    clock.leave()  # nothing is open: nothing happens
    assert clock.totals()["fails"].durations.count == 1


def test_a_clock_can_go_to_another_process() -> None:
    clock = PhaseClock()
    clock.enter("here")
    for other in (pickle.loads(pickle.dumps(clock)), copy.deepcopy(clock)):
        assert other.totals() == {}
        assert other.clock is time.perf_counter


def test_percentiles_of_a_sketch_are_within_half_a_bin() -> None:
    values = np.random.default_rng(0).lognormal(-7, 2, 20_000)
    sketch, parts = Sketch(), [Sketch(), Sketch()]
    for index, value in enumerate(values):
        sketch.add(value)
        parts[index % 2].add(value)
    parts[0].merge(parts[1])
    for percent in (1, 50, 90, 99):
        true = np.percentile(values, percent, method="inverted_cdf")
        assert sketch.percentile(percent) == pytest.approx(true, rel=2 ** (1 / 16) - 1 + 1e-9)
        assert parts[0].percentile(percent) == sketch.percentile(percent)
    assert sketch.percentile(100) == values.max()
    assert len(sketch.bins) < 300


def test_a_sketch_of_nothing_and_of_no_time() -> None:
    sketch = Sketch()
    assert sketch.percentile(50) == 0.0
    sketch.add(0.0)
    assert sketch.percentile(50) == 0.0


def test_clocked_methods_are_phases_until_the_clocks_are_taken_away(hands: Any) -> None:
    class Owner:
        def outer(self) -> None:
            hands.work(1)
            self.inner()

        def inner(self) -> None:
            hands.work(10)

    owner, clock = Owner(), PhaseClock(hands.clock)
    methods = ClockedMethods(clock)
    methods.put([(owner, "outer", "outer"), (owner, "inner", "inner"), (owner, "not there", "-")])
    methods.put([(owner, "outer", "twice")])
    owner.outer()
    methods.take_away()
    owner.outer()
    assert {name: phase.seconds for name, phase in clock.totals().items()} == {"outer": 1.0, "inner": 10.0}
    assert vars(owner) == {}
