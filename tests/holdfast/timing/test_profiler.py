"""Lightning's actions as phases, and a profiler that is idle between windows."""

from __future__ import annotations

from typing import Any

import pytest
from holdfast.timing.actions import CATEGORIES, category_of, phase_of
from holdfast.timing.clock import PhaseClock
from holdfast.timing.profiler import _NOTHING, PhaseProfiler
from lightning.pytorch.profilers import SimpleProfiler


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("[_TrainingEpochLoop].train_dataloader_next", "data"),
        ("[Strategy]SingleDeviceStrategy.batch_to_device", "transfer"),
        ("[Strategy]SingleDeviceStrategy.training_step", "forward"),
        ("[Strategy]SingleDeviceStrategy.backward", "backward"),
        ("[LightningModule]Net.optimizer_step", "optimiser"),
        ("[LightningModule]Net.configure_gradient_clipping", "optimiser"),
        ("[LightningModule]Net.on_train_batch_end", "callbacks/Net"),
        ("[Callback]ModelCheckpoint{'monitor': 'a.b'}.on_train_batch_end", "callbacks/ModelCheckpoint"),
        ("[LightningDataModule]Digits.on_before_batch_transfer", "callbacks/Digits"),
        ("optimizer_step", "optimiser"),
        ("save_checkpoint", "checkpoint"),
        ("run_training_batch", "loop"),
        ("run_training_epoch", None),
        ("[_EvaluationLoop].val_next", None),
        ("[Strategy]SingleDeviceStrategy.validation_step", None),
        ("[Callback]TQDMProgressBar.on_validation_batch_end", None),
        ("[Callback]EarlyStopping.on_save_checkpoint", None),
        ("[LightningModule]Net.train_dataloader", None),
        ("what somebody profiles", None),
    ],
)
def test_actions_of_lightning_are_phases(action: str, phase: str | None) -> None:
    assert phase_of(action) == phase
    assert phase is None or category_of(phase) in CATEGORIES


def test_between_windows_nothing_is_made_nor_measured(hands: Any) -> None:
    clock = PhaseClock(hands.clock)
    profiler = PhaseProfiler(clock)
    action = "[Strategy]S.training_step"
    assert profiler.profile(action) is profiler.profile("another") is _NOTHING
    profiler.start(action)
    profiler.stop(action)
    assert clock.totals() == {}


def test_in_a_window_actions_are_charged_without_those_within_them(hands: Any) -> None:
    clock = PhaseClock(hands.clock)
    profiler = PhaseProfiler(clock)
    profiler.is_measuring = True
    with profiler.profile("[LightningModule]N.optimizer_step"):  # Lightning's closure runs within it
        hands.work(1)
        with profiler.profile("[Strategy]S.training_step"):
            hands.work(4)
        with profiler.profile("[Strategy]S.backward"), profiler.profile("unknown"):
            hands.work(8)
    profiler.start("[_TrainingEpochLoop].train_dataloader_next")
    hands.work(16)
    profiler.stop("[_TrainingEpochLoop].train_dataloader_next")
    assert {name: phase.seconds for name, phase in clock.totals().items()} == {
        "optimiser": 1.0,
        "forward": 4.0,
        "backward": 8.0,
        "data": 16.0,
    }


def test_a_save_is_always_measured(hands: Any) -> None:
    clock = PhaseClock(hands.clock)
    with PhaseProfiler(clock).profile("save_checkpoint"):
        hands.work(3)
    assert clock.totals()["checkpoint"].seconds == 3.0


@pytest.mark.parametrize("is_measuring", [False, True])
def test_the_users_profiler_sees_everything(hands: Any, is_measuring: bool) -> None:
    inner = SimpleProfiler()
    profiler = PhaseProfiler(PhaseClock(hands.clock), inner)
    profiler.is_measuring = is_measuring
    with profiler.profile("[Strategy]S.backward") as name:
        assert name == "[Strategy]S.backward"
    profiler.start("run")
    profiler.stop("run")
    assert inner.recorded_durations.keys() == {"[Strategy]S.backward", "run"}
    assert profiler.recorded_durations is inner.recorded_durations
    assert "S.backward" in profiler.summary()
    with pytest.raises(OSError), profiler.profile("fails"):
        raise OSError
    assert "fails" in inner.recorded_durations
