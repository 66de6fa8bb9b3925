"""Programs of many kinds, resumed from a boundary, end bit for bit where they end uninterrupted."""

from __future__ import annotations

import contextlib
import os
import random
import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import programs
import pytest
import torch
from holdfast.boundary import BoundaryCallback, StopRun, abort_evaluation, exact_state, exactness
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.demos.boring_classes import RandomIterableDataset
from lightning.pytorch.utilities import CombinedLoader
from programs import NAMES, Memory, Outcome, Program, Resumed, SaveAt, Trace, build, differences, run
from programs.augmented import Noisy
from programs.autoencoder import Digits
from programs.iterable import Walk
from programs.regression import Regression
from programs.stateful import StatefulLoader
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

IS_FULL = bool(os.environ.get("HOLDFAST_EVERY_BOUNDARY"))
Make = Callable[[], Program]


@pytest.fixture(autouse=True)
def _lightning_says_little() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", module="torchmetrics")
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")  # torchdata calls it
        yield


@contextlib.contextmanager
def warning_of(pattern: str, times: int = 1) -> Iterator[None]:
    """As `pytest.warns`, which would repeat Lightning's own advice."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [str(one.message) for one in caught if re.search(pattern, str(one.message))]
    assert len(found) == times, [str(one.message) for one in caught]


class Straight:
    """One uninterrupted run, saved at its boundaries on the way."""

    def __init__(self, make: Make, folder: Path, **settings: Any) -> None:
        self.make, self.folder = make, folder
        self.outcome = run(make(), folder, make_callbacks=self._saver, **settings)

    def _saver(self, trace: Trace, memory: Memory) -> list[Callback]:
        self.saver = SaveAt(self.folder, trace, memory)
        return [self.saver]

    def chosen(self) -> list[int]:
        """First and last boundaries of epochs and every third, or all; but not those of the finished run."""
        notes = self.saver.notes[:-2]
        starts = {k for k, note in enumerate(notes) if note.endswith("batch 0")}
        ends = {k - 1 for k in starts - {0}} | {len(notes) - 1}
        picked = sorted(starts | ends | set(range(2, len(notes), 3)))
        return list(range(len(notes))) if IS_FULL else picked[:: max(1, len(picked) // 8)]

    def rest(self, index: int) -> Outcome:
        """What a run has yet to show that was saved at one boundary."""
        _, num_events, num_lines = self.saver.saved[index]
        whole = self.outcome
        return Outcome(whole.state, whole.events[num_events:], whole.lines[num_lines:])

    def faults(self, index: int, **settings: Any) -> list[str]:
        """Differences of the run that resumes there."""
        path = self.saver.saved[index][0]
        resumed = run(self.make(), self.folder, path, lambda *_: [Resumed()], **settings)
        return differences(vars(self.rest(index)), vars(resumed))


def check_every_resume(make: Make, folder: Path) -> None:
    straight = Straight(make, folder)
    faults = {index: found[:6] for index in straight.chosen() if (found := straight.faults(index))}
    notes = straight.saver.notes
    assert not faults, "\n".join(f"boundary {k} ({notes[k]}): {v}" for k, v in faults.items())


@pytest.mark.parametrize("name", NAMES)
def test_program_resumed_at_a_boundary_ends_as_if_uninterrupted(name: str, tmp_path: Path) -> None:
    check_every_resume(partial(build, name), tmp_path)


@pytest.mark.parametrize("name", ["gan", "augmented", "accumulating"])
def test_saving_changes_nothing(name: str, tmp_path: Path) -> None:
    plain, saved = run(build(name), tmp_path), Straight(partial(build, name), tmp_path).outcome
    assert not differences(vars(plain), vars(saved))


def test_programs_are_those_in_the_folder() -> None:
    found = {path.stem for path in Path(programs.__file__).parent.glob("*.py")}
    assert found - {"__init__", "__main__", "regression"} == set(NAMES)


# -- kinds of data ----------------------------------------------------------------------------------


class Shards(IterableDataset):
    """Split among workers, each with noise of its own; no length."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(first, 22, step):
            yield torch.full((4,), index / 22) + 0.1 * torch.randn(4)


class Continuing(IterableDataset):
    """Goes on where it was in the epoch before, by a counter that it saves."""

    def __init__(self) -> None:
        self.count = 0

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(10):
            self.count += 1
            yield torch.full((4,), self.count / 30)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Shuffled:
    """A batch sampler that draws from python's global stream as an epoch begins."""

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(12))
        random.shuffle(order)
        yield from ([order[i], order[i + 1]] for i in range(0, 12, 2))

    def __len__(self) -> int:
        return 6


class UnsizedStateful(StatefulLoader):
    """Read one batch ahead, since Lightning cannot ask for its length."""

    __len__ = None  # type: ignore[assignment]

    def _batches(self) -> Iterator[torch.Tensor]:
        while self.position < 6:
            self.position += 1
            start = 2 * self.position - 2
            yield torch.tensor(self.order[start : start + 2])[:, None].expand(-1, 4) / 12 + torch.randn(4)


def distributed_sampler() -> DataLoader:
    data = Noisy(12, 1)
    sampler = DistributedSampler(data, num_replicas=1, rank=0, seed=3)
    return DataLoader(data, batch_size=2, sampler=sampler, num_workers=1)


def weighted_sampler() -> DataLoader:
    data = TensorDataset(torch.rand(12, 4))
    sampler = WeightedRandomSampler(torch.arange(1.0, 13.0), 12)
    return DataLoader(
        data, batch_size=2, sampler=sampler, collate_fn=lambda rows: torch.stack([r[0] for r in rows])
    )


LOADERS: dict[str, Callable[[], Any]] = {
    "distributed sampler and a worker": distributed_sampler,
    "weighted sampler": weighted_sampler,
    "batch sampler of one's own": lambda: DataLoader(Noisy(12, 1), batch_sampler=Shuffled()),
    "iterable with workers": lambda: DataLoader(Shards(), batch_size=2, num_workers=2),
    "iterable that saves itself": lambda: DataLoader(Continuing(), batch_size=2),
    "stateful without a length": lambda: UnsizedStateful(12, 2),
    "shorter of two": lambda: CombinedLoader([DataLoader(Noisy(6, 1)), DataLoader(Noisy(5, 2))], "min_size"),
    "longer of two": lambda: CombinedLoader([DataLoader(Noisy(6, 1)), DataLoader(Noisy(4, 2))], "max_size"),
}


class AnyBatch(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch if isinstance(batch, torch.Tensor) else batch[0], batch_idx)


def with_loader(make_loader: Callable[[], Any], **settings: Any) -> Program:
    program = build("accumulating")  # for its seed
    val = DataLoader(Noisy(4, 2), batch_size=2, shuffle=True)
    return Program(AnyBatch(), make_loader(), val, {"max_epochs": 2, **settings}, program.callbacks[1:])


@pytest.mark.parametrize("kind", LOADERS)
def test_kind_of_loader_stands_where_it_stood(kind: str, tmp_path: Path) -> None:
    check_every_resume(partial(with_loader, LOADERS[kind]), tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 3},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"max_epochs": -1, "max_steps": 8, "val_check_interval": 3, "check_val_every_n_epoch": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_setting_of_the_trainer_is_followed(settings: dict[str, Any], tmp_path: Path) -> None:
    loader = partial(DataLoader, Noisy(10, 1), batch_size=2, shuffle=True)
    check_every_resume(partial(with_loader, loader, **settings), tmp_path)


def test_torchdata_is_followed_by_its_own_state(tmp_path: Path) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    check_every_resume(partial(with_loader, lambda: stateful(Noisy(12, 1), 2, shuffle=True)), tmp_path)


def test_items_that_draw_nothing_are_not_read_again(tmp_path: Path) -> None:
    straight = Straight(partial(build, "autoencoder"), tmp_path, max_epochs=1, limit_val_batches=0)
    Digits.num_reads = 0
    assert not straight.faults(4, max_epochs=1, limit_val_batches=0)
    assert Digits.num_reads == 4  # the fifth batch alone


def test_stateful_loader_reads_nothing_again(tmp_path: Path) -> None:
    straight = Straight(partial(build, "stateful"), tmp_path, max_epochs=1, limit_val_batches=0)
    StatefulLoader.num_reads = 0
    assert not straight.faults(4, max_epochs=1, limit_val_batches=0)
    assert StatefulLoader.num_reads == 2


def test_data_that_have_become_shorter_are_refused(tmp_path: Path) -> None:
    straight = Straight(partial(with_loader, lambda: DataLoader(Noisy(12, 1), batch_size=2)), tmp_path)
    straight.make = partial(with_loader, lambda: DataLoader(Noisy(6, 1), batch_size=2))
    with pytest.raises(RuntimeError, match=r"end after 3 batches of this epoch, but .* had used 5"):
        straight.faults(5)


def test_iterable_dataset_that_shares_a_stream_with_the_steps_is_named(tmp_path: Path) -> None:
    class Drawing(AnyBatch):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            np.random.rand()
            return super().training_step(batch, batch_idx)

    def make() -> Program:
        program = with_loader(lambda: DataLoader(Walk(12), batch_size=2))
        program.module = Drawing()
        return program

    straight = Straight(make, tmp_path)
    with warning_of(r"an iterable dataset draws from the same global stream \(numpy\)"):
        assert straight.faults(3)


@pytest.mark.filterwarnings("ignore:the position in the data may be inexact")
def test_batch_read_ahead_is_kept_where_it_cannot_be_drawn_again(tmp_path: Path) -> None:
    # each item is new noise from the stream that dropout draws from too
    check_every_resume(partial(with_loader, lambda: DataLoader(RandomIterableDataset(4, 12), 2)), tmp_path)


def test_module_that_owns_its_data_position_is_left_alone(tmp_path: Path) -> None:
    class Owner(AnyBatch):
        owns_data_position = True

    def make() -> Program:
        program = with_loader(lambda: DataLoader(Noisy(12, 1), batch_size=2))
        program.module = Owner()
        return program

    straight = Straight(make, tmp_path)
    saved = torch.load(straight.saver.saved[3][0], weights_only=True)
    assert saved["holdfast"]["exact"]["data"] is None
    resumed = run(make(), tmp_path, straight.saver.saved[3][0], lambda *_: [Resumed()])
    assert len([e for e in resumed.events if e[0] == "on_train_batch_start"]) == 3 + 6


# -- kinds of runs ----------------------------------------------------------------------------------


def test_run_interrupted_twice_ends_as_if_uninterrupted(tmp_path: Path) -> None:
    for name in ("augmented", "combined", "iterable"):
        straight = Straight(partial(build, name), tmp_path / "one")
        path = straight.saver.saved[2][0]
        again = Straight.__new__(Straight)
        again.make, again.folder = partial(build, name), tmp_path / "two"
        again.outcome = run(build(name), tmp_path, path, again._saver)
        for index in (0, 2, 5):
            assert not again.faults(index)
            assert not differences(vars(straight.rest(index + 2)), vars(again.rest(index)))


def test_finished_run_given_more_epochs_equals_the_longer_run(tmp_path: Path) -> None:
    for name in ("augmented", "boring"):
        short, whole = (Straight(partial(build, name), tmp_path / str(n), max_epochs=n) for n in (2, 4))
        closed = len(short.saver.notes) - 2
        path = short.saver.saved[closed][0]
        resumed = run(build(name), tmp_path, path, lambda *_: [Resumed()], max_epochs=4)
        _, num_events, num_lines = short.saver.saved[closed]
        rest = Outcome(
            whole.outcome.state, whole.outcome.events[num_events:], whole.outcome.lines[num_lines:]
        )
        assert not differences(vars(rest), vars(resumed))


def test_run_by_steps_given_more_of_them_equals_the_longer_run(tmp_path: Path) -> None:
    make = partial(with_loader, lambda: DataLoader(Noisy(12, 1), batch_size=2, shuffle=True), max_epochs=-1)
    short, whole = (Straight(make, tmp_path / str(n), max_steps=n) for n in (9, 15))
    last = len(short.saver.notes) - 3
    resumed = run(make(), tmp_path, short.saver.saved[last][0], lambda *_: [Resumed()], max_steps=15)
    assert not differences(vars(whole.rest(last)), vars(resumed))


def test_epoch_that_a_hook_cut_short_is_counted_as_it_was(tmp_path: Path) -> None:
    class CutShort(Regression):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.current_epoch == 0 and batch_idx == 2 else None

    def make() -> Program:
        program = with_loader(lambda: DataLoader(Noisy(10, 1), batch_size=2, shuffle=True))
        program.module = CutShort()
        return program

    check_every_resume(make, tmp_path)


def test_lightning_does_not_advise_what_is_done(tmp_path: Path) -> None:
    straight = Straight(partial(build, "boring"), tmp_path)
    with warning_of("dataloader is not resumable", times=0):
        assert not straight.faults(3)


class Abort(Callback):
    """Asks in the first batch of one validation."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.count += 1
            if self.count == self.number:
                abort_evaluation(trainer)


class SaveWhereDue(SaveAt):
    """Saves where a validation was given up, and ends the run."""

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if exact_state(trainer)["is_evaluation_due"]:
            trainer.save_checkpoint(self.folder / "due.ckpt")
            raise StopRun


@pytest.mark.parametrize("name", ["augmented", "image_classifier", "gan", "combined"])
def test_validation_given_up_is_played_whole_after_the_resume(name: str, tmp_path: Path) -> None:
    whole = run(build(name), tmp_path)
    with pytest.raises(StopRun):
        run(build(name), tmp_path, None, lambda *a: [Abort(1), SaveWhereDue(tmp_path, *a)])
    resumed = run(build(name), tmp_path, tmp_path / "due.ckpt", lambda *_: [Resumed()])
    first = next(k for k, e in enumerate(whole.events) if e[0] == "on_validation_start")
    at = next(k for k in range(first, -1, -1) if whole.events[k][0] == "on_train_batch_end") + 1
    missing = len(whole.lines) - len(resumed.lines)
    rest = Outcome(whole.state, whole.events[at:], whole.lines[missing:])
    assert not differences(vars(rest), vars(resumed))


class Manual(Regression):
    """Steps every third batch, and looks at its gradients in between."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 3 == 2:
            optimizer.step()
            optimizer.zero_grad()


def test_gradients_of_manual_optimization_are_kept(tmp_path: Path) -> None:
    def make() -> Program:
        program = with_loader(lambda: DataLoader(Noisy(16, 1), batch_size=2, shuffle=True))
        program.module = Manual()
        return program

    check_every_resume(make, tmp_path)


class Rolling(BoundaryCallback):
    """Goes back to an earlier checkpoint once, within the process, as a recovery from divergence does."""

    def __init__(self, folder: Path, trace: Trace, memory: Memory, at: int) -> None:
        self.saver, self.at, self.is_done = SaveAt(folder, trace, memory, {2}), at, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not self.is_done:
            fit_loop = trainer.fit_loop
            self.run, fit_loop.run = fit_loop.run, partial(self.run_twice, trainer)  # type: ignore[method-assign]

    def on_save_checkpoint(self, *args: Any) -> None:
        self.saver.on_save_checkpoint(*args)

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.saver.on_boundary(trainer, pl_module)
        if self.saver.num_boundaries == self.at and not self.is_done:
            self.is_done = True
            raise StopRun

    def run_twice(self, trainer: Trainer) -> None:
        with contextlib.suppress(StopRun):
            return self.run()
        loop, connector = trainer.fit_loop, trainer._checkpoint_connector
        loop.teardown()
        loop._combined_loader = loop.epoch_loop.val_loop._combined_loader = None
        trainer.training = True
        self.setup(trainer, trainer.lightning_module, "fit")
        connector._restore_modules_and_callbacks(self.saver.saved[2][0])
        connector.restore_training_state()
        return self.run()


@pytest.mark.parametrize("at", [5, 13])
def test_run_that_goes_back_within_its_process_ends_as_if_it_had_not(at: int, tmp_path: Path) -> None:
    whole = Straight(partial(build, "augmented"), tmp_path)
    rolled = run(build("augmented"), tmp_path, None, lambda *a: [Rolling(tmp_path, *a, at)])
    assert not differences(whole.outcome.state, rolled.state)
    num_events = len(whole.rest(2).events)
    assert not differences(whole.rest(2).events, rolled.events[-num_events:])


def test_early_stop_is_kept_and_any_other_wish_to_stop_is_not(tmp_path: Path) -> None:
    def make(callback: Callback) -> Program:
        program = with_loader(lambda: DataLoader(Noisy(6, 1), batch_size=2), max_epochs=4)
        program.callbacks = [callback]
        return program

    class Pause(Callback):
        def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.should_stop or trainer.current_epoch == 1

    early = lambda: EarlyStopping("val_loss", patience=1, min_delta=100.0)  # noqa: E731
    stopped = Straight(lambda: make(early()), tmp_path)
    last = len(stopped.saver.notes) - 3
    assert stopped.saver.notes[last] == "epoch 1 batch 3"
    assert not stopped.faults(last)
    paused = Straight(lambda: make(Pause()), tmp_path)
    resumed = run(make(Callback()), tmp_path, paused.saver.saved[last][0], lambda *_: [Resumed()])
    assert resumed.state["steps"][:2] == (12, 4)


# -- attributes -------------------------------------------------------------------------------------


class Keeping(Regression):
    """Attributes of many types, one of them a setting, one a class whose instances have a length."""

    def __init__(self, setting: float = 1.0) -> None:
        super().__init__()
        self.setting = setting
        self.dropout = torch.nn.Dropout(setting / 10)
        self.counts = {"steps": 0}
        self.array = np.zeros(3)
        self.stream = np.random.default_rng(4)
        self.first: torch.Tensor | None = None
        self.same = list(self.parameters())
        self.kind = dict

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.counts["steps"] += 1
        self.array[batch_idx % 3] += self.stream.random()
        self.first = batch[0] if self.first is None else self.first
        return super().training_step(batch, batch_idx) * (1 + self.array.mean())


def keeping(setting: float = 1.0) -> Program:
    program = with_loader(lambda: DataLoader(Noisy(12, 1), batch_size=2, shuffle=True))
    program.module = Keeping(setting)
    return program


def test_attributes_that_training_changed_come_back(tmp_path: Path) -> None:
    check_every_resume(keeping, tmp_path)


def test_settings_may_change_on_resume(tmp_path: Path) -> None:
    straight = Straight(keeping, tmp_path)
    program = keeping(5.0)
    run(program, tmp_path, straight.saver.saved[3][0], lambda *_: [Resumed()])
    assert isinstance(program.module, Keeping)
    assert (program.module.setting, program.module.dropout.p) == (5.0, 0.5)
    assert program.module.counts == {"steps": 12}
    assert all(a is b for a, b in zip(program.module.same, program.module.parameters(), strict=True))


def test_attribute_that_cannot_be_saved_is_named_once(tmp_path: Path) -> None:
    class Opaque(Regression):
        def on_train_batch_end(self, *_: Any) -> None:
            self.last = SimpleNamespace(step=self.global_step)

    program = with_loader(lambda: DataLoader(Noisy(4, 1), batch_size=2))
    program.module = Opaque()
    with warning_of(r"not saved: module.last \(a types.SimpleNamespace\)"):
        run(program, tmp_path, None, lambda *a: [SaveAt(tmp_path, *a)])


def test_method_that_was_put_back_is_no_attribute_to_save(tmp_path: Path) -> None:
    """As DDP does with forward."""

    class Redirected(Regression):
        def on_train_batch_end(self, *_: Any) -> None:
            self.forward = self.forward

    program = with_loader(lambda: DataLoader(Noisy(4, 1), batch_size=2))
    program.module = Redirected()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*not saved")
        run(program, tmp_path, None, lambda *a: [SaveAt(tmp_path, *a)])
    assert "forward" in vars(program.module)


def test_state_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    straight = Straight(partial(build, "boring"), tmp_path)
    path = straight.saver.saved[3][0]
    saved = torch.load(path, weights_only=True)
    saved["holdfast"]["exact"]["version"] = 99
    torch.save(saved, path)
    with pytest.raises(ValueError, match="has version 99, this holdfast reads up to 1; upgrade"):
        straight.faults(3)


def test_checkpoint_without_exact_state_resumes_as_lightning_does(tmp_path: Path) -> None:
    straight = Straight(partial(build, "boring"), tmp_path)
    path = straight.saver.saved[3][0]
    saved = torch.load(path, weights_only=True)
    saved["holdfast"]["exact"] = {}
    torch.save(saved, path)
    one = run(build("boring"), tmp_path, path, lambda *_: [Resumed()])
    other = run(build("boring"), tmp_path, path)
    assert one.state["steps"] == other.state["steps"]


# -- what is said at the start ----------------------------------------------------------------------


class Ask(BoundaryCallback):
    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.answer = exactness(trainer)
        raise StopRun


def answer_of(program: Program, folder: Path) -> str:
    ask = Ask()
    with pytest.raises(StopRun):
        run(program, folder, None, lambda *_: [ask])
    return ask.answer


def test_ordinary_program_is_bit_exact(tmp_path: Path) -> None:
    assert answer_of(build("image_classifier"), tmp_path) == "bit-exact"


@pytest.mark.parametrize(
    ("loader", "settings", "cause"),
    [
        (
            lambda: DataLoader(Noisy(8, 1), num_workers=1, persistent_workers=True),
            {},
            "persistent_workers=False",
        ),
        (lambda: DataLoader(Noisy(8, 1), num_workers=2, in_order=False), {}, "in_order=True"),
        (lambda: iter([torch.rand(2, 4)]), {}, "the training data are an iterator"),
        (lambda: [DataLoader(Noisy(8, 1)), StatefulLoader(8, 2)], {}, "let all have one"),
        (lambda: [DataLoader(Noisy(8, 1)), DataLoader(Walk(8))], {}, "without a length may start again"),
        (lambda: DataLoader(Noisy(8, 1)), {"val_check_interval": "00:01:00:00"}, "the clock decides"),
    ],
    ids=["persistent", "out of order", "iterator", "mixed", "cycle", "clock"],
)
def test_cause_of_inexactness_is_named_at_the_start(
    loader: Callable[[], Any], settings: dict[str, Any], cause: str, tmp_path: Path
) -> None:
    with warning_of(f"resuming this run is not exact: .*{cause}"):
        assert cause in answer_of(with_loader(loader, **settings), tmp_path)


@pytest.mark.parametrize(
    ("loader", "condition"),
    [(lambda: DataLoader(Walk(8)), "no step draws from the global random streams")],
)
def test_condition_of_exactness_is_named(loader: Callable[[], Any], condition: str, tmp_path: Path) -> None:
    assert answer_of(with_loader(loader), tmp_path).startswith(f"bit-exact, provided that {condition}")


def test_unseeded_program_is_asked_to_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = build("boring")
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert "call seed_everything" in answer_of(program, tmp_path)


# -- processes --------------------------------------------------------------------------------------


def test_program_killed_in_the_middle_of_a_hook_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    from programs.__main__ import kill_and_compare, start

    assert start("gan", tmp_path / "whole") == 0
    assert kill_and_compare("gan", tmp_path / "killed", tmp_path / "whole", 35, 1, "a seed") == []
