"""Windows: what they tell of the time between them, and how rare they are."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast.timing.clock import PhaseClock
from holdfast.timing.windows import Windows, probe_cpu


def made(hands: Any, **settings: Any) -> tuple[PhaseClock, Windows]:
    clock = PhaseClock(hands.clock, hands.usage)
    given = {"length": 2, "every_s": 1.0, "probe": lambda: 1.0, "cpu_clock": lambda: 0.0, **settings}
    windows = Windows(clock, hands, **given)
    windows.begin(0)
    return clock, windows


def test_a_window_speaks_for_the_time_before_it_less_what_is_always_timed(hands: Any) -> None:
    clock, windows = made(hands)
    with clock.span("checkpoint"):
        hands.work(20)  # outside of any window, and timed all the same
    hands.work(60)
    windows.open(8)
    with clock.span("forward"):
        hands.work(12)
    with clock.span("data"):
        hands.wait(6)
    hands.work(2)  # in no phase: the loop's
    record = windows.close(10)
    assert record is not None
    assert (record.seconds, record.steps) == (100.0, 10)
    # a fifth is the save's; of the rest, 12, 6 and 2 of 20 as in the window
    assert record.shares == pytest.approx({"checkpoint": 0.2, "forward": 0.48, "data": 0.24, "loop": 0.08})
    assert record.blocked == pytest.approx({"forward": 0.0, "data": 0.24, "loop": 0.0})
    assert record.cpu_s == {"forward": 6.0, "data": 0.0, "loop": 1.0}


def test_a_save_within_a_window_is_no_part_of_its_steps(hands: Any) -> None:
    clock, windows = made(hands)
    windows.open(0)
    with clock.span("forward"):
        hands.work(10)
    with clock.span("checkpoint"):
        hands.work(30)
    record = windows.close(2)
    assert record is not None
    assert record.shares == pytest.approx({"forward": 0.25, "checkpoint": 0.75})


def test_time_in_the_queue_of_the_cpu_is_left_out(hands: Any) -> None:
    clock, windows = made(hands)
    hands.queue(80)
    windows.open(0)
    with clock.span("forward"):
        hands.work(6)
        hands.queue(30)
    with clock.span("data"):
        hands.wait(4)
    record = windows.close(2)
    assert record is not None
    assert record.seconds == 10.0
    assert record.shares == pytest.approx({"forward": 0.6, "data": 0.4})
    assert record.wait("data", "forward") == pytest.approx(0.4)


def test_who_has_waited_stands_in_the_queue_before_it_goes_on(hands: Any) -> None:
    clock, windows = made(hands)
    windows.open(0)
    with clock.span("logging/loggers"):
        hands.wait(4)
        hands.queue(12)  # blocked, as far as this phase can tell
    with clock.span("forward"):
        hands.work(6)
    record = windows.close(2)
    assert record is not None
    assert record.seconds == 10.0
    assert record.shares == pytest.approx({"forward": 0.6, "logging/loggers": 0.4})


def test_throttled_time_is_a_share_of_its_own(hands: Any) -> None:
    clock, windows = made(hands)
    windows.open(0)
    with clock.span("forward"):
        hands.work(6)
        hands.queue(4)  # where the kernel counts what it throttles
        hands.waits = hands.waits._replace(throttled_s=3.0)
    record = windows.close(2)
    assert record is not None
    assert record.seconds == 9.0
    assert record.shares == pytest.approx({"forward": 2 / 3, "throttled": 1 / 3})


def test_pages_that_come_back_are_memorys_but_as_data(hands: Any) -> None:
    clock, windows = made(hands)
    windows.open(0)
    with clock.span("forward"):
        hands.wait(3, num_faults=1)
    with clock.span("data"):
        hands.wait(7, num_faults=1)
    record = windows.close(2)
    assert record is not None
    assert record.faulted == pytest.approx(0.3)
    assert record.wait("forward") == 0.0
    assert record.share("data") == pytest.approx(0.7)


def test_windows_get_rarer_with_what_they_cost(hands: Any) -> None:
    clock, windows = made(hands, max_cost=0.01)
    windows.open(0)
    for _ in range(3):
        with clock.span("forward"):
            hands.work(1)
    clock.pair_cost_s = 0.5
    windows.close(2)  # four phases with the loop: 2 s, so 200 s until the next at 1.5 s a step
    assert windows.cost_s == 2.0
    assert windows.due == 2 + round(200 / 1.5)
    windows.charge(1.0)
    assert windows.due == 2 + round(300 / 1.5)


def test_windows_are_shorter_where_steps_are_dear(hands: Any) -> None:
    clock, windows = made(hands, length=24, max_cost=0.2)
    clock.pair_cost_s = 0.05
    windows.open(0)
    assert windows.due == 2
    for _ in range(8):  # four in each step: 0.2 s, of 1 s that five may cost
        with clock.span("forward"):
            hands.work(1)
    windows.close(2)
    windows.open(10)
    assert windows.due == 10 + 5 - 1  # and the loop's phase


def test_the_first_window_is_no_reference(hands: Any) -> None:
    clock, windows = made(hands)
    for step in range(0, 20, 2):
        windows.open(step)
        with clock.span("forward"):
            hands.work(1)
        windows.close(step + 2)
    assert windows.reference == list(windows.records)[1:6]
    assert windows.estimated_s["forward"] == pytest.approx(10.0)


def test_a_window_without_a_step_makes_no_record(hands: Any) -> None:
    _, windows = made(hands)
    windows.open(5)
    hands.work(1)
    assert windows.close(5) is None
    assert not windows.records


def test_the_probe_takes_a_while() -> None:
    assert 0 < probe_cpu(1) < 1
