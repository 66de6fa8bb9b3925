"""Where `on_boundary` is called, and what one callback can do to another there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from holdfast.boundary import BoundaryCallback, StopRun, abort_evaluation, exact_state, is_at_boundary
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torchmetrics import MeanMetric


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
    trainer = make_trainer(trace, max_epochs=-1, max_steps=1, limit_val_batches=0)
    trainer.fit(module)
    first = len(trace.seen)
    trainer.fit_loop.epoch_loop.max_steps = 2
    trainer.fit(module)
    assert (first, len(trace.seen)) == (4, 8)


class Own(BoundaryCallback):
    """Overrides one of the hooks of a batch."""

    def __init__(self) -> None:
        self.num_batches, self.idle = 0, set[str]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.num_batches += 1

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.num_batches == 2:
            self.idle = {name for name in dir(self) if name.startswith("on_") and not getattr(self, name)}


def test_hooks_of_a_batch_that_do_nothing_are_not_called() -> None:
    own = Own()
    make_trainer(own, max_epochs=2, limit_train_batches=3).fit(Boring())
    assert own.num_batches == 6
    assert own.idle == {
        "on_train_batch_start",
        "on_before_zero_grad",
        "on_before_backward",
        "on_after_backward",
        "on_before_optimizer_step",
    }
    assert all(callable(getattr(own, name)) for name in own.idle)  # again, once the fit is over


class Counting(Boring):
    """Validates; optionally asks to be aborted in its second validation batch."""

    def __init__(self, ask: Any = None, changes_weights: bool = False) -> None:
        super().__init__()
        self.ask, self.changes_weights = ask, changes_weights
        self.record = SimpleNamespace(played=[])  # no plain attribute, so it is not put back
        self.outputs: list[torch.Tensor] = []
        self.mean = MeanMetric()

    def on_validation_start(self) -> None:
        if self.changes_weights:
            with torch.no_grad():
                self.layer.weight.add_(0.0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.record.played.append(batch_idx)
        self.outputs.append(torch.rand(1))
        self.mean.update(torch.rand(1))
        self.log("noise", torch.rand(1))
        if self.ask is not None and batch_idx == 1:
            self.ask, ask = None, self.ask
            ask(self.trainer)

    def on_validation_epoch_end(self) -> None:
        self.log("mean", self.mean.compute())
        self.log("total", torch.stack(self.outputs).sum())
        self.mean.reset()
        self.outputs.clear()


class Ending(BoundaryCallback):
    """Keeps the exact state of boundaries where a validation is due, and may end the run there."""

    def __init__(self, ends: bool = False) -> None:
        self.ends, self.due = ends, 0

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if exact_state(trainer)["is_evaluation_due"]:
            self.due += 1
            assert trainer.training
            assert pl_module.training
            assert pl_module._current_fx_name is None
            if self.ends:
                raise SystemExit(143)


def fit_counting(module: Counting, *callbacks: Any) -> dict[str, Any]:
    torch.manual_seed(3)
    trainer = make_trainer(*callbacks, limit_train_batches=3, val_check_interval=2)
    trainer.fit(module)
    return {
        "weights": module.layer.weight.detach().clone(),
        "rng": torch.get_rng_state(),
        **trainer.callback_metrics,
    }


def test_aborted_validation_is_played_whole_where_the_run_goes_on() -> None:
    straight, ending = Counting(), Ending()
    aborted = Counting(abort_evaluation)
    torch.manual_seed(1)
    aborted.load_state_dict(straight.state_dict())
    one, other = fit_counting(straight, Trace()), fit_counting(aborted, ending)
    assert ending.due == 1
    assert (straight.record.played, aborted.record.played) == ([0, 1, 2, 3], [0, 1, 0, 1, 2, 3])
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_run_that_ends_gives_its_validation_up() -> None:
    module = Counting(abort_evaluation)
    with pytest.raises(SystemExit) as caught:
        fit_counting(module, Ending(ends=True))
    assert caught.value.code == 143
    assert module.record.played == [0, 1]


def test_abort_before_the_validation_begins_lets_no_batch_of_it_be_played() -> None:
    class Early(BoundaryCallback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 2:
                abort_evaluation(trainer)

    module = Counting()
    with pytest.raises(SystemExit):
        fit_counting(module, Early(), Ending(ends=True))
    assert module.record.played == []


def test_wish_to_abort_without_a_validation_is_forgotten_at_the_boundary() -> None:
    class Early(BoundaryCallback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 1:
                abort_evaluation(trainer)

    module, ending = Counting(), Ending()
    fit_counting(module, Early(), ending)
    assert module.record.played == [0, 1, 2, 3]
    assert ending.due == 0


def test_validation_that_has_changed_the_weights_is_finished() -> None:
    module, ending = Counting(abort_evaluation, changes_weights=True), Ending(ends=True)
    fit_counting(module, ending)
    assert module.record.played == [0, 1, 2, 3]
    assert ending.due == 0


def test_module_with_its_own_way_to_abort_is_asked_instead() -> None:
    class Own(Counting):
        asked = 0

        def abort_evaluation(self) -> None:
            self.asked += 1

    module, ending = Own(abort_evaluation), Ending(ends=True)
    fit_counting(module, ending)
    assert module.asked == 1
    assert module.record.played == [0, 1, 2, 3]


def test_sanity_check_has_no_boundary_and_is_never_aborted() -> None:
    module, trace = Counting(abort_evaluation), Trace()
    make_trainer(trace, num_sanity_val_steps=2, limit_train_batches=1).fit(module)
    assert module.record.played == [0, 1, 0, 1, 2, 3]
    assert trace.seen == ["validated", (0, 0, 0), "validated", (0, 1, 1), (1, 1, 1), (1, 1, 1)]


def test_exact_state_is_empty_between_boundaries() -> None:
    states: list[dict[str, Any]] = []

    class Peek(BoundaryCallback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            states.append(exact_state(trainer))

    make_trainer(Peek(), max_steps=2, limit_val_batches=0).fit(Boring())
    assert states == [{}, {}]
