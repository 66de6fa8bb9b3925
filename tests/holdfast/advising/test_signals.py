"""Windows of figures that rules look at."""

import math

from holdfast.advising.signals import Sample, Signals


def test_a_window_holds_the_newest_samples_oldest_first():
    signals = Signals(length=3)
    for step in range(5):
        signals.add(step, {"loss": 10.0 * step})
    assert signals.window("loss") == [Sample(2, 20.0), Sample(3, 30.0), Sample(4, 40.0)]
    assert signals.window("loss", 2) == [Sample(3, 30.0), Sample(4, 40.0)]
    assert signals.window("loss", 0) == []
    assert signals.newest("loss") == 40.0


def test_what_is_no_number_is_left_out_and_what_is_infinite_is_not():
    signals = Signals()
    signals.add(1, {"loss": math.nan, "norm": math.inf})
    assert signals.newest("loss") is None
    assert "loss" not in signals
    assert signals.newest("norm") == math.inf


def test_what_was_never_measured_has_an_empty_window():
    assert Signals().window("loss") == []


def test_windows_survive_a_checkpoint():
    before, after = Signals(length=2), Signals(length=2)
    for step in range(4):
        before.add(step, {"loss": float(step)})
    after.load_state_dict(before.state_dict())
    assert after.window("loss") == before.window("loss")
    after.add(9, {"loss": 9.0})
    assert len(after.window("loss")) == 2


def test_a_selection_holds_what_came_after_a_step_but_for_some_names():
    signals = Signals({"lr": 0.1}, length=3)
    for step in range(4):
        signals.add(step, {"loss": float(step), "time/data": 1.0})
    signals.add(0, {"early": 1.0})
    chosen = signals.select(since=1, without={"time/data"})
    assert list(chosen) == ["loss"]
    assert chosen.window("loss") == [Sample(2, 2.0), Sample(3, 3.0)]
    assert chosen.settings == {"lr": 0.1}
    chosen.add(5, {"loss": 5.0})
    assert signals.newest("loss") == 3.0
