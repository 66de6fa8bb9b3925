"""The phase timer: every second in one phase, every call counted, nothing left behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from perdqn.phases import REST, PhaseTimer

from .small_runs import assert_same, fingerprint, fitted, small, trainer

pytestmark = pytest.mark.timeout(400)  # compiling takes a while


def test_every_call_is_counted_in_its_phase() -> None:
    timer = PhaseTimer()
    module = fitted(timer, learner={"backend": "eager"})
    steps = module.env_steps // 2  # of two environments at once
    assert timer.calls["env step"] == timer.calls["add"] == steps
    for phase in ("sample", "priority update", "forward", "backward", "optimiser", "target network"):
        assert timer.calls[phase] == module.update_steps
    assert 0 < timer.calls["act"] < steps  # not where all explore
    assert timer.calls["evaluation"] == 3
    assert "forward, backward, optimiser as one graph" not in timer.seconds


def test_a_compiled_update_is_one_phase() -> None:
    timer = PhaseTimer()
    module = fitted(timer, learner={"backend": "compiled"})
    assert timer.calls["forward, backward, optimiser as one graph"] == module.update_steps
    assert "backward" not in timer.seconds


def test_phases_add_up_to_the_time_that_passed() -> None:
    ticks = itertools.count()
    timer = PhaseTimer(clock=lambda: float(next(ticks)))
    fitted(timer)
    assert sum(timer.seconds.values()) == next(ticks) - 1
    assert all(seconds > 0 for seconds in timer.seconds.values())


def test_it_changes_nothing_and_leaves_nothing() -> None:
    timed = fitted(PhaseTimer())
    assert_same(fingerprint(timed), fingerprint(fitted()))
    left = [
        name
        for owner in (timed, timed.experience, timed.memory)
        for name, value in vars(owner).items()
        if "ClockedMethods" in repr(value) or "PhaseTimer" in repr(value)
    ]
    assert left == []


def test_what_fails_is_left_too() -> None:
    timer, module = PhaseTimer(), small()

    def fail(*_: Any) -> None:
        raise OSError("no disk")

    module._log = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="no disk"):
        trainer(timer, log_every_n_steps=1).fit(module)
    assert module._log is fail
    assert next(iter(timer.seconds)) == REST
    assert not timer._methods
