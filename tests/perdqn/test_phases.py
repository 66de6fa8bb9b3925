"""The phase timer: every second in one phase, every call counted, nothing left behind."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from holdfast import PerformanceMonitor

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


@pytest.mark.parametrize("backend", ["eager", "compiled"])
def test_a_performance_monitor_sees_these_phases_and_changes_nothing(backend: str, tmp_path: Path) -> None:
    monitor = PerformanceMonitor(window_steps=2, every_s=1e-6, max_cost=0.99)
    watched = small(learner={"backend": backend})
    trainer(monitor, default_root_dir=tmp_path).fit(watched)
    assert_same(fingerprint(watched), fingerprint(fitted(learner={"backend": backend})))
    report = monitor.get_performance_report()
    assert sum(report["shares"].values()) == pytest.approx(1)
    wanted = ["acting", "environment", "replay", "forward", "optimiser", "validation"]
    assert min(report["shares"][name] for name in wanted) > 0
    assert {"environment/env step", "replay/sample"} <= report["timings"]["phases"].keys()
    assert (report["shares"]["backward"] > 0) is (backend == "eager")


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
