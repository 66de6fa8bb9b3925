"""Where `on_boundary` is called, and what one callback can do to another there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from holdfast.boundary import BoundaryCallback, StopRun, is_at_boundary
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel


class Boring(BoringModel):
    """Eight batches an epoch, four of validation."""

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(8, 32))

    def val_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(4, 32))


class Trace(BoundaryCallback):
    """Notes what a boundary sees."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress = trainer.fit_loop.epoch_loop.batch_progress.current
        assert progress.ready == progress.completed
        assert is_at_boundary(trainer)
        self.seen.append((trainer.current_epoch, progress.completed, trainer.global_step))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert not is_at_boundary(trainer)
        self.seen.append("validated")


def make_trainer(*callbacks: Any, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fixed = {"max_epochs": 1, "accelerator": "cpu", "num_sanity_val_steps": 0, "enable_checkpointing": False}
    return Trainer(**{**quiet, **fixed, **settings}, callbacks=list(callbacks))


def test_boundary_follows_every_iteration_and_the_start_of_each_epoch() -> None:
    trace = Trace()
    make_trainer(trace, max_epochs=2, limit_train_batches=2, limit_val_batches=0).fit(Boring())
    first, second = [(0, 0, 0), (0, 1, 1), (0, 2, 2)], [(1, 0, 2), (1, 1, 3), (1, 2, 4)]
    assert trace.seen == [*first, *second, (2, 2, 4), (2, 2, 4)]  # twice as training ends


def test_boundary_comes_after_the_validation_that_was_due() -> None:
    trace = Trace()
    make_trainer(trace, limit_train_batches=2, val_check_interval=1).fit(Boring())
    end = [(1, 2, 2), (1, 2, 2)]
    assert trace.seen == [(0, 0, 0), "validated", (0, 1, 1), "validated", (0, 2, 2), *end]


def test_failing_callback_is_named_and_prevents_no_other() -> None:
    class Broken(BoundaryCallback):
        def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise ValueError("disk on fire")

    trace = Trace()
    with pytest.warns(UserWarning, match=r"Broken failed at a boundary: ValueError\('disk on fire'\)"):
        make_trainer(Broken(), trace, max_steps=1).fit(Boring())
    assert trace.seen[:2] == [(0, 0, 0), (0, 1, 1)]


@pytest.mark.parametrize("wish", [SystemExit(143), StopRun("enough")], ids=["exit code", "stop"])
def test_run_ends_once_every_callback_has_had_its_turn(wish: BaseException) -> None:
    class Ending(BoundaryCallback):
        def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.global_step == 2:
                raise wish

    trace = Trace()
    with pytest.raises(type(wish)) as caught:
        make_trainer(Ending(), trace).fit(Boring())
    assert caught.value is wish
    assert trace.seen[-1] == (0, 2, 2)


def test_second_fit_calls_once_per_boundary() -> None:
    trace, module = Trace(), Boring()
    trainer = make_trainer(trace, max_steps=1, limit_val_batches=0)
    trainer.fit(module)
    trace.seen.clear()
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(module)
    assert trace.seen.count((0, 1, 2)) <= 1
