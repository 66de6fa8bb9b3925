"""Signals: flags in handlers, taken over and given back."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from holdfast.triggers import Signals
from holdfast.triggers.signals import SAVING, STOPPING


@pytest.fixture
def signals(run):
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    for name in (*STOPPING, *SAVING):  # a test runner in the background has some of them ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    trigger = Signals(grace_s=30)
    trigger.start(run.context)
    yield trigger
    trigger.stop()
    for number, handler in before.items():
        if signal.getsignal(number) != handler:
            signal.signal(number, handler)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize("name", STOPPING)
def test_a_signal_sets_a_flag_and_asks_for_its_exit_code(signals, run, name):
    send(name)
    reason = signals.fired()
    assert reason.is_stopping
    assert reason.exit_code == 128 + getattr(signal, name)
    assert (reason.kind, reason.grace_s, run.num_alarms) == ("signal", 30, 1)


def test_sigusr2_asks_for_a_save_and_the_run_goes_on(signals):
    send("SIGUSR2")
    reason = signals.fired()
    assert not reason.is_stopping
    signals.rearm(reason)
    assert signals.fired() is None


def test_a_signal_to_stop_outranks_one_to_save_and_outlives_its_answer(signals):
    send("SIGUSR2")
    first = signals.fired()
    send("SIGTERM")
    assert signals.fired().signal == signal.SIGTERM
    signals.rearm(first)
    assert signals.fired().signal == signal.SIGTERM


def test_the_first_of_two_signals_to_stop_gives_the_exit_code_and_both_are_noted(signals):
    send("SIGHUP")
    send("SIGTERM")
    assert signals.fired().signal == signal.SIGHUP
    assert signals.received == ["SIGHUP", "SIGTERM"]


def test_the_third_ctrl_c_within_the_grace_period_ends_at_once(signals):
    send("SIGINT")
    send("SIGINT")
    with pytest.raises(SystemExit) as ended:
        send("SIGINT")
    assert ended.value.code == 130


def test_no_number_of_ctrl_c_ends_a_save_in_progress(signals, run):
    run.is_saving = True
    for _ in range(5):
        send("SIGINT")
    assert len(signals.received) == 5


def test_slow_ctrl_c_end_nothing_at_once(signals, run):
    for _ in range(5):
        send("SIGINT")
        run.wait(16)
    assert len(signals.received) == 5


def test_handlers_are_given_back(run):
    names = ("SIGTERM", "SIGUSR1")
    before = [signal.getsignal(getattr(signal, name)) for name in names]
    trigger = Signals(names, ())
    trigger.start(run.context)
    assert signal.getsignal(signal.SIGUSR1) == trigger._handle
    trigger.stop()
    assert [signal.getsignal(getattr(signal, name)) for name in names] == before


def test_a_handler_that_somebody_set_meanwhile_is_left_alone(signals):
    def theirs(*_):
        pass

    signal.signal(signal.SIGUSR1, theirs)
    signals.stop()
    assert signal.getsignal(signal.SIGUSR1) is theirs


def test_a_signal_that_was_ignored_stays_ignored(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    trigger = Signals(["SIGHUP"], ())
    try:
        trigger.start(run.context)
        send("SIGHUP")
        assert trigger.fired() is None
        assert run.notes == ["SIGHUP was ignored when training began and stays so"]
    finally:
        trigger.stop()
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_it_says_so_and_does_nothing(run):
    trigger = Signals()
    thread = threading.Thread(target=trigger.start, args=(run.context,))
    thread.start()
    thread.join()
    assert run.notes == ["signals are not watched: training does not run in the main thread"]


def test_signals_a_platform_does_not_have_are_named_once(run, monkeypatch):
    for name in ("SIGUSR1", "SIGXCPU"):
        monkeypatch.delattr(signal, name)
    trigger = Signals(["SIGTERM", "SIGUSR1", "SIGXCPU"], ())
    trigger.start(run.context)
    trigger.stop()
    assert run.notes == ["signals this platform does not have are not watched: SIGUSR1, SIGXCPU"]


@pytest.mark.parametrize("name", ["TERM", "SIGKILL"])
def test_names_that_can_be_no_signal_to_handle_are_refused(name):
    with pytest.raises(ValueError, match=name):
        Signals([name])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_worker_leaves_the_answer_to_its_parent(signals):
    child = os.fork()
    if child == 0:
        send("SIGTERM")
        os._exit(len(signals.received))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
