"""ErrorRecovery on plain modules: what goes wrong leaves no trace in what is learnt."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.attempts import _all_finite, are_finite
from holdfast.checkpoint import VerifiedCheckpoint
from holdfast.exact.logs import log_positions, restore_log_positions, resume_logging
from holdfast.recovery import Diverged, ErrorRecovery
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

NAN, NAN_GRADIENT = 13.0, 26.0  # batches filled with these make loss or gradients not finite
Weights = dict[str, Tensor]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers: Any = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.3), nn.Linear(4, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        output = self.layers(x).square().mean()
        if x[0, 0] == NAN:
            return output * float("nan")
        if x[0, 0] == NAN_GRADIENT:
            return output + (self.layers[4].weight.sum() * 0).sqrt()
        return output


class Automatic(LightningModule):
    """Logs an aggregate, draws dropout, keeps running statistics."""

    def __init__(self, batches: list[Tensor], lr: float = 0.01) -> None:
        super().__init__()
        self.net, self.batches, self.lr = Net(), batches, lr
        self.epoch_loss: float | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch)
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.epoch_loss = float(self.trainer.callback_metrics["loss"])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Manual(Automatic):
    """Two optimisers, toggled; the second one's loss comes first."""

    def __init__(self, batches: list[Tensor], lr: float = 0.01) -> None:
        super().__init__(batches, lr)
        self.automatic_optimization = False
        self.critic = Net()

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        for network, optimizer in zip((self.critic, self.net), self.optimizers(), strict=True):
            with optimizer.toggle_model():
                loss = network(batch)
                self.log("loss", loss, on_step=False, on_epoch=True)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), lr=self.lr) for net in (self.critic, self.net)]


def make_batches(number: int, bad: dict[int, float] | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(5, 3, generator=generator) for _ in range(number)]
    for index, value in (bad or {}).items():
        batches.insert(index, torch.full((5, 3), value))
    return batches


def fit(module: Automatic, *callbacks: Callback, folder: Path | None = None, **settings: Any) -> Trainer:
    seed_everything(5, verbose=False)
    module.net.load_state_dict(_initial(0))
    if isinstance(module, Manual):
        module.critic.load_state_dict(_initial(1))
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fixed = {
        "max_epochs": 1,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "logger": False,
        "default_root_dir": folder,
    }
    if any(isinstance(callback, VerifiedCheckpoint) for callback in callbacks):
        quiet.pop("enable_checkpointing")
    path = settings.pop("ckpt_path", None)
    trainer = Trainer(**{**quiet, **fixed, **settings}, callbacks=list(callbacks))
    trainer.fit(module, ckpt_path=path)
    return trainer


def _initial(seed: int) -> Weights:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().state_dict()


def assert_same(module: LightningModule, other: LightningModule) -> None:
    state, expected = module.state_dict(), other.state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {
        name: value.tolist() for name, value in expected.items()
    }


# -- batches that are not finite -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [Automatic, Manual])
@pytest.mark.parametrize("value", [NAN, NAN_GRADIENT])
def test_batch_that_is_not_finite_leaves_no_trace(kind: type[Automatic], value: float) -> None:
    expected, module, recovery = (
        kind(make_batches(8)),
        kind(make_batches(8, {0: value, 5: value})),
        ErrorRecovery(check_gradients=value == NAN_GRADIENT),
    )
    fit(expected)
    trainer = fit(module, recovery)
    assert_same(module, expected)
    assert module.epoch_loss == expected.epoch_loss
    assert recovery.counts["skipped_batches"] == (4 if kind is Manual and value == NAN_GRADIENT else 2)
    assert trainer.global_step == {
        (Automatic, NAN): 10,
        (Automatic, NAN_GRADIENT): 10,
        (Manual, NAN): 16,
    }.get((kind, value), 20)
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("draws", [False, True])
def test_what_batches_change_is_found_out_and_put_back(tmp_path: Path, draws: bool) -> None:
    class Counting(Automatic):
        def __init__(self, batches: list[Tensor]) -> None:
            super().__init__(batches)
            self.net = torch.nn.Linear(3, 1)  # type: ignore[assignment]
            self.register_buffer("scale", torch.ones(2))
            self.register_buffer("seen", torch.zeros(()))

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            self.seen += 1
            loss = self.net(batch).square().mean() + (torch.rand(()) if draws else 0)
            return loss * float("nan") if batch[0, 0] == NAN else loss

        def on_train_epoch_end(self) -> None:
            self.drawn = float(torch.rand(()))

    def run(bad: dict[int, float], *callbacks: Callback) -> Counting:
        module = Counting(make_batches(80, bad))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module.net.reset_parameters()
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=bool(callbacks),
            callbacks=list(callbacks),
        )
        seed_everything(3, verbose=False)
        trainer.fit(module)
        return module

    expected = run({})
    ours = VerifiedCheckpoint(tmp_path, every={"steps": 1000})
    module = run({20: NAN, 70: NAN}, ours, ErrorRecovery())
    assert_same(module, expected)
    assert module.drawn == expected.drawn
    saved = torch.load(ours.folder.generations()[0].checkpoint, weights_only=True)
    state = saved["callbacks"]["ErrorRecovery"]
    assert state["draws"] == draws
    assert state["moving"] == [".seen"]


def test_accumulation_goes_on_without_the_batch() -> None:
    class WithoutLoss(Automatic):
        """What it should be: the batch adds nothing to its window."""

        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            return None if batch[0, 0] == NAN else super().training_step(batch, batch_idx)

    bad = {1: NAN, 4: NAN}
    expected, module = WithoutLoss(make_batches(7, bad)), Automatic(make_batches(7, bad))
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(expected, accumulate_grad_batches=3)
    fit(module, ErrorRecovery(), accumulate_grad_batches=3)
    assert_same(module, expected)


def test_window_without_any_finite_batch_takes_no_step() -> None:
    expected = Automatic(make_batches(4))
    module = Automatic(make_batches(4, {2: NAN, 3: NAN}))
    fit(expected, accumulate_grad_batches=2)
    fit(module, ErrorRecovery(), accumulate_grad_batches=2)
    assert_same(module, expected)  # AdamW would decay weights and move on its averages


def test_gradients_are_left_alone_where_they_are_not_checked() -> None:
    module = Automatic(make_batches(4, {2: NAN_GRADIENT}))
    with (
        pytest.warns(UserWarning, match="weights or buffers are not finite"),
        pytest.raises(Diverged, match="no sound"),
    ):
        fit(module, ErrorRecovery(check_gradients=False))


def test_healthy_run_is_the_same_with_and_without() -> None:
    for kind in (Automatic, Manual):
        expected, module = kind(make_batches(6)), kind(make_batches(6))
        fit(expected)
        fit(module, ErrorRecovery(spike_factor=100.0))
        assert_same(module, expected)


def test_sum_that_overflows_is_not_taken_for_infinity() -> None:
    large = torch.full((2**15,), 3e38)
    assert are_finite(iter([large, torch.ones(3), None]))
    for bad in (float("nan"), float("inf"), -float("inf")):
        assert not are_finite(iter([large, torch.tensor([1.0, bad])]))
        assert not are_finite(iter([large.index_fill(0, torch.tensor([7]), bad), torch.ones(3)]))


# -- divergence ----------------------------------------------------------------------------------


class Exploding(Automatic):
    """Diverges where its learning rate, or a batch, is too large."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.trainer.optimizers[0].param_groups[0]["lr"] > 0.006 and self.trainer.global_step == 6:
            return self.net(batch) * float("nan")
        if torch.isnan(batch).any():
            raise AssertionError
        return super().training_step(batch, batch_idx)


def keep(folder: Path) -> VerifiedCheckpoint:
    return VerifiedCheckpoint(folder / "checkpoints", every={"steps": 4}, keep=99)


def diverge_once(trainer: Trainer, module: LightningModule) -> str | None:
    is_now = trainer.global_step == 6 and trainer.optimizers[0].param_groups[0]["lr"] > 0.006
    return "told to" if is_now else None


def test_gradients_that_are_sparse_or_of_a_graph_are_looked_at_too() -> None:
    sparse = torch.sparse_coo_tensor([[1]], [2.0], (4,), check_invariants=True)
    of_a_graph = torch.ones(3, requires_grad=True) * 2
    for look in (are_finite, _all_finite):
        assert look([torch.ones(2), sparse, of_a_graph])
        assert not look([torch.ones(2), sparse * math.inf, of_a_graph])
        assert not look([torch.ones(2), sparse, of_a_graph * math.nan])


def test_diverged_run_goes_back_and_on_with_a_lower_learning_rate(tmp_path: Path) -> None:
    class Lowered(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.optimizers[0].param_groups[0]["lr"] = 0.005

    expected, module = Automatic(make_batches(10)), Automatic(make_batches(10))
    fit(expected, Lowered())
    recovery = ErrorRecovery(is_diverged=diverge_once)
    with pytest.warns(UserWarning, match=r"rollback: told to; back to .* of step 4, with 0.5 times"):
        trainer = fit(module, recovery, keep(tmp_path), folder=tmp_path)
    assert_same(module, expected)
    assert module.epoch_loss == expected.epoch_loss
    assert trainer.global_step == 10
    assert recovery.status()["rollbacks"] == 1
    assert recovery.status()["lr_scale"] == 0.5
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.005


def test_learning_rate_is_lowered_for_its_schedule_too(tmp_path: Path) -> None:
    class Scheduled(Automatic):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    with pytest.warns(UserWarning, match="rollback"):
        trainer = fit(
            Scheduled(make_batches(10)),
            ErrorRecovery(is_diverged=diverge_once),
            keep(tmp_path),
            folder=tmp_path,
        )
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.005 * 0.99**10)


def test_each_rollback_lowers_further_and_their_number_is_bounded(tmp_path: Path) -> None:
    recovery = ErrorRecovery(
        is_diverged=lambda trainer, _: "always" if trainer.global_step == 6 else None, max_rollbacks=2
    )
    module = Automatic(make_batches(10))
    with (
        pytest.warns(UserWarning, match="rollback"),
        pytest.warns(UserWarning, match="gave up"),
        pytest.raises(Diverged, match="always, after 2 rollbacks; lower the learning rate"),
    ):
        fit(module, recovery, keep(tmp_path), folder=tmp_path)
    assert recovery.lr_scale == 0.25
    assert [record["what"] for record in recovery.history] == ["rollback", "rollback", "gave up"]


def test_without_a_lower_rate_the_losses_that_led_there_are_left_out(tmp_path: Path) -> None:
    batches = make_batches(40)
    expected, module = Automatic(batches[:16] + batches[24:]), Automatic(batches)
    fit(expected)
    asked = []

    def is_diverged(trainer: Trainer, _: Any) -> str | None:
        asked.append(trainer.global_step)
        return "once" if asked.count(24) == 1 and trainer.global_step == 24 else None

    recovery = ErrorRecovery(is_diverged=is_diverged, lr_factor=1.0)
    with pytest.warns(UserWarning, match="leaving out losses 17 to 24"):
        fit(module, recovery, keep(tmp_path), folder=tmp_path)
    assert_same(module, expected)
    assert recovery.counts["skipped_batches"] == 8


def test_resumed_run_leaves_out_the_same_losses(tmp_path: Path) -> None:
    def is_diverged(trainer: Trainer, _: Any) -> str | None:
        return "once" if trainer.global_step == 24 and not recovery.counts["rollbacks"] else None

    recovery = ErrorRecovery(is_diverged=is_diverged, lr_factor=1.0)
    straight = Automatic(make_batches(40))
    with pytest.warns(UserWarning, match="leaving out"):
        fit(straight, recovery, keep(tmp_path), folder=tmp_path)
    (saved,) = [g for g in keep(tmp_path).folder.generations() if g.counters["global_step"] == 28]
    (early,) = [g for g in keep(tmp_path).folder.generations() if g.counters["global_step"] == 12]
    assert torch.load(early.checkpoint, weights_only=True)["callbacks"]["ErrorRecovery"]["leave_out"] == []

    recovery = ErrorRecovery(is_diverged=is_diverged, lr_factor=1.0)
    resumed = Automatic(make_batches(40))
    trainer = Trainer(
        max_epochs=1, callbacks=[recovery, keep(tmp_path)], accelerator="cpu", logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(resumed, ckpt_path=saved.checkpoint)
    assert_same(resumed, straight)
    assert recovery.counts["rollbacks"] == 1


def test_batches_that_stay_bad_make_it_go_back_past_poisoned_weights(tmp_path: Path) -> None:
    class Poison(Callback):
        """Ruins a weight once, after step 6, before the save of step 8."""

        is_done = False

        def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
            if trainer.global_step == 6 and not self.is_done:
                self.is_done = True
                module.net.layers[0].weight.data[0, 0] = float("inf")

    expected, module = Automatic(make_batches(12)), Automatic(make_batches(12))
    fit(expected)
    with pytest.warns(
        UserWarning, match="weights or buffers are not finite; back to .* of step 4, leaving out losses"
    ):
        fit(module, Poison(), ErrorRecovery(lr_factor=1.0), keep(tmp_path), folder=tmp_path)
    assert are_finite(iter(module.parameters()))


def test_losses_far_above_their_median_count_as_divergence(tmp_path: Path) -> None:
    class Spiking(Automatic):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            is_lowered = self.trainer.optimizers[0].param_groups[0]["lr"] < 0.009
            return super().training_step(batch, batch_idx) * (1 if batch_idx < 60 or is_lowered else 1e6)

    module, recovery = Spiking(make_batches(90)), ErrorRecovery(spike_factor=50.0, spike_losses=5)
    with pytest.warns(
        UserWarning, match=r"rollback: 5 losses in a row above 50 times their median .*step 30"
    ):
        fit(module, recovery, VerifiedCheckpoint(tmp_path, every={"steps": 30}, keep=9), folder=tmp_path)


def test_healthy_share_of_bad_batches_is_no_divergence_and_a_large_one_is() -> None:
    every_third = {4 * index: NAN for index in range(20)}
    fit(Automatic(make_batches(60, every_third)), ErrorRecovery())
    with pytest.warns(UserWarning, match="11 batches in a row"), pytest.raises(Diverged):
        fit(Automatic(make_batches(30, dict.fromkeys(range(11), NAN))), ErrorRecovery())


# -- memory --------------------------------------------------------------------------------------


def out_of_memory(call: Callable[..., Any], at: set[int], after: bool) -> Callable[..., Any]:
    """The same function, out of memory before or after its ``at``-th calls."""
    numbers = itertools.count(1)

    @functools.wraps(call)
    def hungry(*args: Any, **kwargs: Any) -> Any:
        is_now = next(numbers) in at
        if is_now and not after:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        result = call(*args, **kwargs)
        if is_now:
            raise MemoryError
        return result

    return hungry


class Starve(Callback):
    def __init__(self, name: str, at: set[int], after: bool) -> None:
        self.name, self.at, self.after, self.num_released = name, at, after, 0

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        setattr(pl_module, self.name, out_of_memory(getattr(pl_module, self.name), self.at, self.after))

    def release_memory(self) -> None:
        self.num_released += 1


@pytest.mark.parametrize("name", ["training_step", "backward"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("kind", [Automatic, Manual])
def test_batch_tried_again_gives_what_it_gives_at_once(kind: type[Automatic], name: str, after: bool) -> None:
    if kind is Manual and (name, after) == ("training_step", True):
        return  # its optimisers have stepped by then
    expected, module = kind(make_batches(7)), kind(make_batches(7))
    clean = fit(expected)
    at = {3, 5} if kind is Automatic else {1, 8}  # of `backward`, the first of two in a step
    starve, recovery = Starve(name, at, after), ErrorRecovery()
    trainer = fit(module, starve, recovery)
    assert_same(module, expected)
    assert module.epoch_loss == expected.epoch_loss
    assert recovery.counts["oom_retries"] == starve.num_released == 2
    for loop in ("automatic_optimization", "manual_optimization"):
        state, other = (getattr(t.fit_loop.epoch_loop, loop).state_dict() for t in (trainer, clean))
        assert repr(state) == repr(other)
        name_of = "optim_progress" if loop == "automatic_optimization" else "optim_step_progress"
        assert getattr(getattr(trainer.fit_loop.epoch_loop, loop), name_of) == getattr(
            getattr(clean.fit_loop.epoch_loop, loop), name_of
        )


def test_forward_out_of_memory_keeps_what_was_accumulated() -> None:
    expected, module = Automatic(make_batches(8)), Automatic(make_batches(8))
    fit(expected, accumulate_grad_batches=4)
    recovery = ErrorRecovery()
    fit(module, Starve("training_step", {3}, True), recovery, accumulate_grad_batches=4)
    assert_same(module, expected)


def test_where_trying_again_would_not_be_exact_it_goes_back(tmp_path: Path) -> None:
    expected, module = Automatic(make_batches(12)), Automatic(make_batches(12))
    fit(expected, accumulate_grad_batches=2)
    recovery = ErrorRecovery()
    with pytest.warns(UserWarning, match="rollback: out of memory.*back to .* of step 4$"):
        fit(
            module, Starve("backward", {10}, True), recovery, keep(tmp_path),
            folder=tmp_path, accumulate_grad_batches=2,
        )  # fmt: skip
    assert_same(module, expected)
    assert recovery.lr_scale == 1.0


def test_retries_are_bounded_and_the_error_is_the_first_one() -> None:
    recovery = ErrorRecovery(oom_retries=2)
    with pytest.warns(UserWarning, match="gave up"), pytest.raises(torch.OutOfMemoryError):
        fit(Automatic(make_batches(7)), Starve("training_step", {2, 3, 4}, False), recovery)
    assert recovery.counts["oom_retries"] == 2


def test_other_errors_pass() -> None:
    class Wrong(Automatic):
        def training_step(self, *_: Any) -> Any:
            raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        fit(Wrong(make_batches(2)), ErrorRecovery())


# -- loggers -------------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Logging(Automatic):
    """Columns appear and one second passes with each step."""

    def __init__(self, batches: list[Tensor], clock: Clock) -> None:
        super().__init__(batches)
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 1
        for logger in self.loggers:
            logger.log_metrics(
                {"by_itself": self.clock.now, f"since/{int(self.clock.now) // 4}": 1.0}, int(self.clock.now)
            )
            if self.clock.now % 3 == 0:
                logger.save()


class FullDisk(Callback):
    """Takes half of a write between two seconds of the clock, then none."""

    def __init__(self, clock: Clock, start: float, end: float, monkeypatch: Any) -> None:
        self.clock, self.start, self.end, self.patch = clock, start, end, monkeypatch

    def is_full(self) -> bool:
        return self.start <= self.clock.now < self.end

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        from lightning.fabric.loggers import csv_logs
        from tensorboard.summary.writer import record_writer

        save, write = csv_logs._ExperimentWriter.save, record_writer.RecordWriter.write

        def save_half(experiment: Any) -> None:
            if self.is_full() and experiment.metrics:
                rows, experiment.metrics = (
                    experiment.metrics,
                    experiment.metrics[: len(experiment.metrics) // 2 + 1],
                )
                save(experiment)
                experiment.metrics = rows
                raise OSError(28, "No space left on device")
            save(experiment)

        def write_half(writer: Any, data: bytes) -> None:
            if self.is_full():
                writer._writer.write(b"half a record")
                raise OSError(28, "No space left on device")
            write(writer, data)

        self.patch.setattr(csv_logs._ExperimentWriter, "save", save_half)
        self.patch.setattr(record_writer.RecordWriter, "write", write_half)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_logger_that_fails_for_a_while_loses_and_doubles_no_row(
    kind: type, tmp_path: Path, monkeypatch: Any
) -> None:
    from test_logs import read

    curves = []
    for start, end in ((99, 99), (7, 13)):
        folder, clock = tmp_path / str(start), Clock()
        recovery = ErrorRecovery(logger_retry_seconds=2, clock=clock)
        disk = FullDisk(clock, start, end, monkeypatch)
        settings: dict[str, Any] = {"flush_logs_every_n_steps": 10**9} if kind is CSVLogger else {}
        logger = kind(folder, name="logs", version="run", **settings)
        with monkeypatch.context() as patch:
            disk.patch = patch
            if start == 7:
                with pytest.warns(UserWarning, match="failed: .*No space left on device; its rows wait"):
                    fit(Logging(make_batches(20), clock), disk, recovery, logger=logger)
            else:
                fit(Logging(make_batches(20), clock), disk, recovery, logger=logger)
        curves.append({k: v for k, v in read(folder, kind).items() if "recovery" not in k})
    assert curves[0] == curves[1]
    assert recovery.counts["logger_failures"] == 1
    assert [record["what"] for record in recovery.history] == [
        f"{kind.__name__} failed",
        f"{kind.__name__} works again",
    ]
    assert recovery.status()["rows_lost"] == 0


class KeepLogs(Callback):
    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["logs"] = log_positions(trainer)

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        restore_log_positions(trainer, checkpoint["logs"])

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        resume_logging(trainer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", r"ignore:step \d+. ")
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_logger_may_also_fail_after_its_files_were_cut_back(
    kind: type, is_resumed: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    from test_logs import read

    clock = Clock()

    def is_diverged(trainer: Trainer, _: Any) -> str | None:
        if is_resumed or trainer.global_step != 10 or recovery.counts["rollbacks"]:
            return None
        clock.now = 8.0
        return "once"

    def run(recovery: ErrorRecovery, **settings: Any) -> None:
        logger = kind(tmp_path, name="logs", version="run")
        with monkeypatch.context() as patch:
            callbacks = [KeepLogs(), recovery, keep(tmp_path), FullDisk(clock, 12, 15, patch)]
            module = Logging(make_batches(20), clock)
            fit(module, *callbacks, logger=logger, folder=tmp_path, **settings)

    if is_resumed:
        run(ErrorRecovery(clock=clock), max_steps=10)
        clock.now = 8.0
    generations = keep(tmp_path).folder.generations()
    path = next((g.checkpoint for g in generations if g.counters["global_step"] == 8), None)
    recovery = ErrorRecovery(is_diverged=is_diverged, logger_retry_seconds=2, clock=clock)
    run(recovery, ckpt_path=path)
    assert recovery.counts["logger_failures"] == 1
    name = "by_itself" if kind is CSVLogger else "run:by_itself"
    assert read(tmp_path, kind)[name] == [(step, float(step)) for step in range(1, 21)]


def test_rows_beyond_the_limit_are_counted_as_lost(tmp_path: Path, monkeypatch: Any) -> None:
    clock = Clock()
    recovery = ErrorRecovery(logger_retry_seconds=2, max_waiting_rows=5, clock=clock)
    disk = FullDisk(clock, 7, 999, monkeypatch)
    with (
        pytest.warns(UserWarning, match="No space left"),
        pytest.warns(UserWarning, match="did not come back"),
    ):
        fit(Logging(make_batches(20), clock), disk, recovery, logger=CSVLogger(tmp_path))
    assert recovery.status()["rows_lost"] >= 13


def test_misused_logger_still_raises(tmp_path: Path) -> None:
    class Misuse(Automatic):
        def on_train_batch_end(self, *_: Any) -> None:
            self.logger.log_metrics({"a": object()}, 0)  # type: ignore

    with pytest.raises(ValueError, match="not supported"):
        fit(Misuse(make_batches(3)), ErrorRecovery(), logger=TensorBoardLogger(tmp_path))


def test_what_it_did_is_in_metrics_status_and_checkpoint(tmp_path: Path) -> None:
    from test_logs import read

    recovery = ErrorRecovery()
    logger = CSVLogger(tmp_path, name="logs", version="run")
    fit(Automatic(make_batches(8, {3: NAN})), recovery, keep(tmp_path), folder=tmp_path, logger=logger)
    assert read(tmp_path, CSVLogger)["recovery/skipped_batches"] == [(4, 1.0)]
    status = recovery.status()
    assert status["skipped_batches"] == 1
    assert status["history"][0] == {
        "what": "batch left out",
        "global_step": 3,
        "epoch": 0,
        "why": "loss is nan",
        "decision": "1 in a row, 1 in all",
    }
    newest = keep(tmp_path).folder.generations()[0]
    state = torch.load(newest.checkpoint, weights_only=True)["callbacks"]["ErrorRecovery"]
    other = ErrorRecovery()
    other.load_state_dict(state)
    assert other.counts == recovery.counts
    assert other.history == recovery.history


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_skipped": 0},
        {"lr_factor": 2.0},
        {"max_rollbacks": -1},
        {"spike_factor": 0.5},
        {"spike_factor": 0},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"{name} must lie in \[.*got {wrong[name]}; use"):
        ErrorRecovery(**wrong)
