"""The watching thread, and what all triggers have in common."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from holdfast.triggers import Reason, Trigger, Watch
from holdfast.triggers.watch import poll_once


class Counting(Trigger):
    kind = "counting"
    interval_s = 0.01

    def __init__(self, enough: int = 3) -> None:
        super().__init__()
        self.num_polls, self.enough, self.seen = 0, enough, threading.Event()

    def poll(self) -> None:
        self.num_polls += 1
        if self.num_polls >= self.enough:
            self.seen.set()


class Blocking(Counting):
    may_block = True

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def poll(self) -> None:
        self.let_go.wait(60)


class Failing(Trigger):
    kind = "failing"

    def poll(self) -> None:
        raise RuntimeError("no such figure")


def test_one_that_waits_for_a_network_holds_up_no_other(run):
    counting, blocking = Counting(), Blocking()
    watch = Watch([blocking, counting])
    watch.start(replace(run.context, clock=time.monotonic))
    assert counting.seen.wait(10)
    blocking.let_go.set()
    watch.stop()


def test_nothing_is_polled_once_it_was_stopped(run):
    counting = Counting(enough=1)
    watch = Watch([counting])
    watch.start(run.context)
    assert counting.seen.wait(10)
    watch.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("holdfast")]


def test_a_watch_that_fails_says_so_once_and_is_given_up(run):
    assert poll_once(Failing(), run.context) is False
    assert poll_once(Failing(), run.context) is False
    assert run.notes == ["failing is no longer watched: RuntimeError('no such figure')"]


def test_a_reason_to_stop_replaces_one_to_save_and_no_other_does(run):
    trigger = Trigger()
    trigger.start(run.context)
    trigger.fire("first", is_stopping=False)
    trigger.fire("second", is_stopping=False)
    assert trigger.fired().message == "first"
    trigger.fire("third")
    trigger.fire("fourth")
    assert trigger.fired().message == "third"
    assert run.num_alarms == 2


def test_an_answer_to_an_old_reason_leaves_a_newer_one(run):
    trigger = Trigger()
    trigger.start(run.context)
    trigger.fire("save", is_stopping=False)
    old = trigger.fired()
    trigger.fire("stop")
    trigger.rearm(old)
    assert trigger.fired().message == "stop"


def test_exit_codes_are_those_a_shell_would_show():
    assert Reason("signal", "", signal=15).exit_code == 143
    assert Reason("memory", "").exit_code == 137
    assert Reason("preemption", "").exit_code == 143
    assert Reason("deadline", "").exit_code == 124
    assert Reason("mine", "").exit_code == 1
