"""VerifiedCheckpoint: all that ModelCheckpoint does, saved whole, and never lost to a fault."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import textwrap
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from disks import Crash, Disk
from holdfast import checkpoint as checkpoints
from holdfast.boundary import BoundaryCallback, is_at_boundary
from holdfast.checkpoint import DamagedCheckpoint, RehearsalFailed, VerifiedCheckpoint
from holdfast.emergency import EmergencyCheckpoint
from holdfast.saving import save
from holdfast.saving.environment import environment_fingerprint
from holdfast.storage.generations import File, Generation, GenerationFolder
from holdfast.storage.lock import FolderInUse, FolderLock
from holdfast.storage.parts import PartStore, saving_parts
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

OURS = ("dirpath", "is_deferred")  # beyond what ModelCheckpoint remembers, or not to be compared
SCORES = (5.0, 3.0, 4.0, 3.0, 6.0, 1.0, 2.0, 0.5)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Line(LightningModule):
    """Fits a line over epochs of 10 batches; its validations score what they are told to."""

    def __init__(self, scores: tuple[float, ...] = SCORES, **hyperparameters: Any) -> None:
        super().__init__()
        self.save_hyperparameters(*hyperparameters) if hyperparameters else None
        self.layer = torch.nn.Linear(1, 1)
        self.scores, self.env_steps, self.num_validations = scores, 0, 0

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.env_steps += 3
        return (self.layer(batch[0]) - 2 * batch[0]).square().mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("score", self.scores[self.num_validations % len(self.scores)])

    def on_validation_epoch_end(self) -> None:
        self.num_validations += not self.trainer.sanity_checking

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.linspace(-1, 1, 20)[:, None]), batch_size=2)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(2, 1)), batch_size=2)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["line"] = [self.env_steps, self.num_validations]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.env_steps, self.num_validations = checkpoint["line"]


class Manual(Line):
    """Three steps of the optimiser a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        for _ in range(3):
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()


class Each(Callback):
    """Calls something after every batch, before any save."""

    def __init__(self, work: Any) -> None:
        self.work = work

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.work(trainer)


def make_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fixed = {"max_epochs": 1, "accelerator": "cpu", "default_root_dir": folder, "num_sanity_val_steps": 0}
    return Trainer(**{**quiet, **fixed, **settings}, callbacks=list(callbacks))


def steps_of(folder: GenerationFolder, kind: str = "regular") -> list[int]:
    return [g.counters["global_step"] for g in reversed(folder.generations()) if g.kind == kind]


def names_of(path: Path | str, suffix: str = ".ckpt") -> list[str]:
    return sorted(file.name for file in Path(path).iterdir() if file.suffix == suffix)


def load(path: Path | str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def audited(folder: GenerationFolder) -> list[Generation]:
    audit = folder.audit()
    assert audit.damaged == audit.orphaned == []
    return audit.good


# Everything ModelCheckpoint does


OPTIONS: dict[str, dict[str, Any]] = {
    "best one": {"monitor": "score"},
    "top 2, last, largest": {"monitor": "score", "save_top_k": 2, "save_last": True, "mode": "max"},
    "top 3, link, named": {
        "monitor": "score",
        "save_top_k": 3,
        "save_last": "link",
        "filename": "{epoch}-{step}-{score:.1f}",
    },
    "always the same name": {"monitor": "score", "filename": "best", "enable_version_counter": False},
    "the same name, counted": {"monitor": "score", "filename": "best", "save_top_k": 3},
    "all": {"save_top_k": -1},
    "every few steps": {"every_n_train_steps": 4, "save_top_k": -1},
    "steps, newest": {"every_n_train_steps": 4, "save_last": True},
    "steps and monitor": {"monitor": "score", "every_n_train_steps": 5, "save_top_k": 2},
    "time": {"train_time_interval": timedelta(0), "save_top_k": -1},
    "every second epoch": {"every_n_epochs": 2, "save_top_k": -1},
    "epoch's end": {"save_on_train_epoch_end": True, "save_last": True},
    "only last": {"save_top_k": 0, "save_last": True, "every_n_train_steps": 3},
    "weights only": {"monitor": "score", "save_weights_only": True, "save_last": True},
    "folders in names": {"monitor": "score", "filename": "{step}/loss={score:.1f}", "save_top_k": 2},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("val_check_interval", [1.0, 5])
def test_decisions_are_those_of_model_checkpoint_beside_it(
    tmp_path: Path, options: dict[str, Any], val_check_interval: Any
) -> None:
    stock = ModelCheckpoint(tmp_path / "stock", **options)
    ours = VerifiedCheckpoint(tmp_path / "ours", **options)
    trainer = make_trainer(tmp_path, stock, ours, max_epochs=4, val_check_interval=val_check_interval)
    trainer.fit(Line())
    assert relative(ours, tmp_path / "ours") == relative(stock, tmp_path / "stock")
    saved = {p.relative_to(tmp_path / "stock").as_posix() for p in (tmp_path / "stock").rglob("*.ckpt")}
    own = {p.relative_to(tmp_path / "ours").as_posix() for p in (tmp_path / "ours").rglob("*.ckpt")}
    assert {name for name in own if not name.startswith("regular-")} == saved
    for name in saved - {"last.ckpt"}:
        mine, theirs = load(tmp_path / "ours" / name), load(tmp_path / "stock" / name)
        assert mine["global_step"] == theirs["global_step"]
        torch.testing.assert_close(mine["state_dict"], theirs["state_dict"], rtol=0, atol=0)
    assert audited(ours.folder)


def relative(callback: ModelCheckpoint, folder: Path) -> dict[str, Any]:
    """The state without the folder, whose name differs."""
    text = {key: value for key, value in callback.state_dict().items() if key not in OURS}
    text["best_k_models"] = {key: float(value) for key, value in text["best_k_models"].items()}
    return json.loads(json.dumps(text, default=float).replace(str(folder), ""))  # type: ignore[no-any-return]


def test_best_and_last_are_found_as_ever(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", monitor="score", save_last=True, every={"steps": 10})
    trainer = make_trainer(tmp_path, ours, max_epochs=3)
    trainer.fit(Line())
    trainer.validate(ckpt_path="best", verbose=False)
    assert trainer.ckpt_path == ours.best_model_path
    again = make_trainer(tmp_path, other := VerifiedCheckpoint(tmp_path / "c", "x", "score"), max_epochs=4)
    again.fit(Line(), ckpt_path="last")
    assert (again.global_step, other.best_model_score) == (40, 3.0)


def test_last_is_always_there_and_always_whole(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 2})
    last, seen = tmp_path / "c" / "last.ckpt", []

    def look(trainer: Trainer) -> None:
        if trainer.global_step > 2:
            seen.append(load(last)["global_step"])
            assert ours.folder.find(last) == ours.folder.newest_valid()

    make_trainer(tmp_path, Each(look), ours).fit(Line())
    assert seen == [2, 2, 4, 4, 6, 6, 8, 8][: len(seen)]
    assert last.stat().st_nlink == 2
    assert ours.last_model_path == str(last)


def test_a_foreign_last_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    torch.save({"of": "another"}, tmp_path / "c" / "last.ckpt")
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 5})
    make_trainer(tmp_path, ours).fit(Line())
    assert load(tmp_path / "c" / "last.ckpt") == {"of": "another"}
    assert load(tmp_path / "c" / "last-v1.ckpt")["global_step"] == 10


def test_stock_lightning_resumes_from_our_checkpoint(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"epochs": 1})
    make_trainer(tmp_path, ours, max_epochs=2).fit(Line())
    stock = make_trainer(tmp_path, enable_checkpointing=False, max_epochs=3)
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint"):
        stock.fit(Line(), ckpt_path=ours.last_model_path)
    assert stock.global_step == 30


# When regular saves are due


def test_steps_are_those_of_the_optimizer(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=99)
    make_trainer(tmp_path, ours).fit(Line())
    assert steps_of(ours.folder) == [4, 8, 10]


def test_steps_passed_within_a_batch_count_in_manual_optimization(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 10}, keep=99)
    make_trainer(tmp_path, ours).fit(Manual())
    assert steps_of(ours.folder) == [12, 21, 30, 30]  # and the closed epoch


def test_own_triggers_work_in_manual_optimization_too(tmp_path: Path) -> None:
    steps = VerifiedCheckpoint(tmp_path / "steps", every_n_train_steps=10, save_top_k=-1)
    interval = VerifiedCheckpoint(tmp_path / "time", train_time_interval=timedelta(0), save_top_k=-1)
    make_trainer(tmp_path, steps, interval).fit(Manual())
    assert steps_of(steps.folder, "checkpoint") == [12, 21, 30]
    assert len(steps_of(interval.folder, "checkpoint")) == 10


def test_minutes_are_counted_by_the_clock_from_the_last_save(tmp_path: Path) -> None:
    clock = Clock()

    def tick(trainer: Trainer) -> None:
        clock.now += 30

    ours = VerifiedCheckpoint(tmp_path / "c", every={"minutes": 1.5}, keep=99, clock=clock)
    make_trainer(tmp_path, Each(tick), ours).fit(Line())
    assert steps_of(ours.folder) == [3, 6, 9, 10]


def test_any_counter_of_the_module_may_set_the_pace(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"env_steps": 10}, keep=99)
    make_trainer(tmp_path, ours).fit(Line())
    assert [g.counters["env_steps"] for g in reversed(ours.folder.generations())] == [12, 21, 30, 30]


def test_whichever_comes_first_sets_the_pace(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 6, "env_steps": 15}, keep=99)
    make_trainer(tmp_path, ours).fit(Line())
    assert steps_of(ours.folder) == [5, 6, 10, 10]


def test_epochs_are_saved_once_they_are_over(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"epochs": 2}, keep=99)
    make_trainer(tmp_path, ours, max_epochs=5).fit(Line())
    assert steps_of(ours.folder) == [20, 40, 50]


def test_slow_saves_become_rarer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, save = Clock(), checkpoints.save_generation

    def slow(*args: Any, **kwargs: Any) -> Generation:
        clock.now += 0.5
        return save(*args, **kwargs)

    def tick(trainer: Trainer) -> None:
        clock.now += 1

    monkeypatch.setattr(checkpoints, "save_generation", slow)
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 1}, keep=99, max_time_fraction=0.1, clock=clock)
    make_trainer(tmp_path, Each(tick), ours, max_epochs=2).fit(Line())
    assert steps_of(ours.folder) == [1, 6, 11, 16, 20]  # half a second in five


def test_the_end_is_saved_while_a_run_that_stops_can_be_extended(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 100})
    make_trainer(tmp_path, ours, max_epochs=3, max_steps=15).fit(Line())
    (end,) = ours.folder.generations()
    assert end.counters["global_step"] == 15
    assert load(end.checkpoint)["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 1
    extended = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 100}), max_epochs=3)
    extended.fit(Line(), ckpt_path="last")
    assert extended.global_step == 30


def test_a_finished_run_that_is_resumed_saves_nothing_new(tmp_path: Path) -> None:
    def run() -> GenerationFolder:
        ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4})
        make_trainer(tmp_path, ours, max_steps=8, max_epochs=2).fit(Line(), ckpt_path="last")
        return ours.folder

    with pytest.warns(UserWarning, match="there is no last checkpoint available"):
        before = run().generations()
    assert run().generations() == before


def test_nothing_is_saved_in_a_fast_dev_run(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", monitor="score", every={"steps": 1}, rehearse=True)
    make_trainer(tmp_path, ours, fast_dev_run=True).fit(Line())
    assert not (tmp_path / "c").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "zero": ({"every": {"steps": 0}}, r"every\['steps'\] must be a number above 0, got 0"),
    "text": ({"every": {"steps": "5"}}, r"every\['steps'\] must be a number above 0, got '5'"),
    "keep": ({"keep": 0}, "keep must be at least 1, got 0"),
    "fraction": ({"max_time_fraction": 0}, r"max_time_fraction must lie in \(0, 1\], got 0"),
}


@pytest.mark.parametrize(("settings", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_setting_is_named_with_its_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerifiedCheckpoint("x", **settings)


def test_an_unknown_counter_is_refused_with_what_was_meant(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"env_step": 5}))
    with pytest.raises(MisconfigurationException, match=r"neither steps, .* did you mean 'env_steps'"):
        trainer.fit(Line())


# What is kept


def test_so_many_valid_regular_generations_are_kept(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 2}, keep=2)
    make_trainer(tmp_path, ours).fit(Line())
    assert steps_of(ours.folder) == [10, 10]
    assert names_of(tmp_path / "c") == ["last.ckpt", "regular-000005.ckpt", "regular-000006.ckpt"]


def test_damaged_generations_do_not_count_as_kept(tmp_path: Path) -> None:
    first = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=3)
    make_trainer(tmp_path, first, max_steps=8).fit(Line())
    old, damaged = reversed(first.folder.generations())
    damage = Each(lambda trainer: damaged.checkpoint.write_bytes(b"x"))
    resumed = VerifiedCheckpoint(tmp_path / "c", every={"steps": 8}, keep=2)
    trainer = make_trainer(tmp_path, resumed, damage, max_steps=16, max_epochs=2)
    trainer.fit(Line(), ckpt_path=damaged.checkpoint)
    kept = [generation.sequence for generation in resumed.folder.generations()]
    assert kept == [3, damaged.sequence, old.sequence]


def test_generations_of_another_run_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    for _ in range(2):
        ours = VerifiedCheckpoint(
            tmp_path / "c", monitor="score", filename="best", every={"steps": 4}, keep=1
        )
        make_trainer(tmp_path, ours).fit(Line())
    assert steps_of(ours.folder) == [8, 8]
    assert steps_of(ours.folder, "best") == [10, 10]  # which serve as the end, too
    assert len({g.manifest["run"] for g in audited(ours.folder)}) == 2


def test_the_manifest_says_what_the_checkpoint_is(tmp_path: Path) -> None:
    class Counting(Line):
        holdfast_counters: ClassVar = ("num_validations",)

    ours = VerifiedCheckpoint(tmp_path / "c", every={"env_steps": 30}, user={"task": "line"})
    make_trainer(tmp_path, ours).fit(Counting())
    told = ours.folder.generations()[0].manifest
    assert told["counters"] == {"global_step": 10, "epoch": 1, "env_steps": 30, "num_validations": 1}
    assert told["tensors"] == {
        "layer.weight": ["torch.float32", [1, 1]],
        "layer.bias": ["torch.float32", [1]],
    }
    assert told["user"] == {"task": "line"}
    assert told["versions"]["torch"] == told["environment"]["torch"] == torch.__version__
    assert (told["device"], told["is_resumable"], told["pid"]) == ("cpu", True, os.getpid())
    assert len(told["config_sha256"]) == 64


# Resume


def finish(folder: Path, path: Any = None, **settings: Any) -> VerifiedCheckpoint:
    options = {"monitor": "score", "filename": "best", "enable_version_counter": False, **settings}
    ours = VerifiedCheckpoint(folder, every={"steps": 10}, keep=99, **options)
    make_trainer(folder.parent, ours, max_epochs=8).fit(Line(), ckpt_path=path)
    return ours


def test_the_best_survives_a_resume_in_a_moved_folder(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "a/c", filename="best", monitor="score", every={"steps": 10})
    make_trainer(tmp_path, ours, max_epochs=4).fit(Line())
    assert ours.best_model_score == 3
    (tmp_path / "a").rename(tmp_path / "b")
    worse = Line(scores=(9.0,))
    moved = VerifiedCheckpoint(tmp_path / "b/c", filename="best", monitor="score", every={"steps": 10})
    make_trainer(tmp_path, moved, max_epochs=5).fit(worse, ckpt_path="last")
    assert (moved.best_model_score, moved.best_model_path) == (3, str(tmp_path / "b/c/best.ckpt"))
    assert load(moved.best_model_path)["global_step"] == 20


def test_a_best_that_the_resumed_checkpoint_does_not_know_is_not_lost_to_a_worse_one(tmp_path: Path) -> None:
    first = finish(tmp_path / "c")
    assert (first.best_model_score, load(first.best_model_path)["global_step"]) == (0.5, 80)
    early = next(g for g in first.folder.generations() if g.counters["global_step"] == 20)
    again = VerifiedCheckpoint(
        tmp_path / "c", "best", "score", every={"steps": 10}, enable_version_counter=False
    )
    make_trainer(tmp_path, again, max_epochs=8).fit(Line(scores=(0.7,)), ckpt_path=early.checkpoint)
    assert (again.best_model_score, load(again.best_model_path)["global_step"]) == (0.5, 80)


@pytest.mark.parametrize("k", [1, 2, 3, -1])
@pytest.mark.parametrize("step", [10, 30, 60])
def test_a_run_cut_back_ends_with_the_same_best_as_one_that_was_not(
    tmp_path: Path, k: int, step: int
) -> None:
    options = {"save_top_k": k, "filename": None, "enable_version_counter": True}
    whole = finish(tmp_path / "whole", **options)
    cut = finish(tmp_path / "cut", **options)
    early = [g for g in cut.folder.generations() if g.counters["global_step"] == step and g.kind == "regular"]
    again = finish(tmp_path / "cut", early[-1].checkpoint, **options)
    assert relative(again, tmp_path / "cut") == relative(whole, tmp_path / "whole")
    best = [g.name for g in audited(again.folder) if g.kind == "best"]
    assert sorted(best) == sorted(g.name for g in whole.folder.generations() if g.kind == "best")


def test_names_of_a_future_given_up_are_taken_again(tmp_path: Path) -> None:
    def run(path: Any = None) -> VerifiedCheckpoint:
        ours = VerifiedCheckpoint(tmp_path / "c", every_n_epochs=1, save_top_k=-1)
        make_trainer(tmp_path, ours, max_epochs=3).fit(Line(), ckpt_path=path)
        return ours

    before = names_of(run().dirpath or "")
    run(tmp_path / "c" / before[0])
    assert names_of(tmp_path / "c") == before


def test_a_damaged_newest_falls_back_and_says_so(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4})
    make_trainer(tmp_path, ours, max_steps=8).fit(Line())
    older = ours.folder.generations()[1]
    with ours.folder.generations()[0].checkpoint.open("r+b") as file:
        file.seek(700)
        file.write(b"damage")
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}), max_steps=8)
    with pytest.warns(UserWarning, match="regular-000002 is passed over: .* has the checksum"):
        trainer.fit(Line(), ckpt_path="last")
    assert str(trainer.ckpt_path) == str(older.checkpoint)


def test_a_damaged_checkpoint_named_by_path_is_refused_with_what_else_there_is(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4})
    make_trainer(tmp_path, ours, max_steps=8).fit(Line())
    newest, older = ours.folder.generations()
    newest.path.write_text(newest.path.read_text().replace('"epoch": 0', '"epoch": 1'))
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}))
    with pytest.raises(DamagedCheckpoint, match=f"does not match its own checksum; .* is {older.checkpoint}"):
        trainer.fit(Line(), ckpt_path=newest.checkpoint)


def test_another_machine_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4})
    make_trainer(tmp_path, ours, max_steps=4).fit(Line())
    elsewhere = {**environment_fingerprint(), "cpu": "Z80"}
    monkeypatch.setattr(save, "environment_fingerprint", lambda: elsewhere)
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}), max_steps=8)
    with pytest.warns(UserWarning, match="arithmetic may differ because: processor: .* then, Z80 now"):
        trainer.fit(Line(), ckpt_path="last")


# Parts


class Rows(Callback):
    """Large state that grows by one row a batch; old rows are never written again."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.files: list[File] = []
        self.asked: list[bool] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.rows.append(len(self.rows))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        self.asked.append(saving_parts())

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        kept = [store.keep(file) for file in self.files]
        new = self.rows[sum(file.size for file in kept) :]
        self.files = [*kept, store.write("rows.bin", [bytes(new)])]
        return {"files": [dataclasses.asdict(file) for file in self.files]}

    def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
        self.files = [File(**file) for file in entry["files"]]
        self.rows = [row for file in self.files for row in store.read(file)]


def test_parts_are_written_once_and_read_back(tmp_path: Path) -> None:
    rows, ours = Rows(), VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=1)
    make_trainer(tmp_path, rows, ours, max_steps=10).fit(Line())
    assert rows.asked == [True, True, True]
    (newest,) = audited(ours.folder)
    assert [file.size for file in newest.files[1:]] == [4, 4, 2]
    resumed = Rows()
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=1)
    make_trainer(tmp_path, resumed, ours, max_epochs=2).fit(Line(), ckpt_path="last")
    assert resumed.rows == list(range(20))


def test_parts_without_their_owner_are_told(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4})
    make_trainer(tmp_path, Rows(), ours, max_steps=4).fit(Line())
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}), max_steps=8)
    with pytest.warns(UserWarning, match="holds parts of Rows, which nothing in this trainer takes back"):
        trainer.fit(Line(), ckpt_path="last")


def test_a_damaged_part_refuses_the_checkpoint(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=1)
    make_trainer(tmp_path, Rows(), ours, max_steps=4).fit(Line())
    (newest,) = ours.folder.generations()
    (tmp_path / "c" / newest.files[1].path).write_bytes(b"1234")
    trainer = make_trainer(tmp_path, Rows(), VerifiedCheckpoint(tmp_path / "c"), max_steps=8)
    with pytest.raises(DamagedCheckpoint, match=r"rows\..*bin has the checksum"):
        trainer.fit(Line(), ckpt_path=newest.checkpoint)


def test_an_emergency_checkpoint_alone_verifies_and_gives_parts_back(tmp_path: Path) -> None:
    def fit(rows: Rows, path: Path | None) -> GenerationFolder:
        alone = EmergencyCheckpoint(tmp_path / "c", every={"steps": 4}, reserve=False)
        trainer = make_trainer(tmp_path, rows, alone, enable_checkpointing=False)
        trainer.fit(Line(), ckpt_path=path)
        return GenerationFolder(tmp_path / "c")

    newest = fit(Rows(), None).generations()[0]
    assert newest.counters["global_step"] == 8
    fit(resumed := Rows(), newest.checkpoint)
    assert resumed.rows == list(range(10))
    with newest.checkpoint.open("r+b") as file:
        file.seek(700)
        file.write(b"damage")
    with pytest.raises(DamagedCheckpoint, match="has the checksum"):
        fit(Rows(), newest.checkpoint)


def test_weights_alone_have_no_parts(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, save_weights_only=True)
    make_trainer(tmp_path, rows := Rows(), ours, max_steps=4).fit(Line())
    (newest,) = ours.folder.generations()
    assert len(newest.files) == 1
    assert not newest.is_resumable
    assert not rows.asked
    assert load(tmp_path / "c" / "last.ckpt")["global_step"] == 4


# What goes wrong


class Faulty(Callback):
    """Fails, or returns what cannot be loaded, where it is asked for its state."""

    def __init__(self, hook: str, state: Any = None) -> None:
        self.hook, self.state = hook, state

    def state_dict(self) -> Any:
        if self.hook == "state_dict" and self.state is None:
            raise RuntimeError("a bug")
        return self.state or {}

    def on_save_checkpoint(self, *_: Any) -> None:
        if self.hook == "on_save_checkpoint":
            raise RuntimeError("a bug")


@pytest.mark.parametrize("hook", ["state_dict", "on_save_checkpoint"])
def test_a_misbehaving_callback_is_named_and_prevents_no_save(tmp_path: Path, hook: str) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 10})
    with pytest.warns(
        UserWarning, match=rf"without the state of Faulty: {hook} raised RuntimeError\('a bug'\)"
    ):
        make_trainer(tmp_path, Faulty(hook), ours, max_steps=10).fit(Line())
    (newest,) = audited(ours.folder)
    assert newest.is_resumable
    assert "Faulty" in newest.manifest["notes"][0]
    assert ours.state_key in load(newest.checkpoint)["callbacks"]


def test_a_callback_s_state_that_could_not_be_loaded_is_left_out(tmp_path: Path) -> None:
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 10})
    faulty = Faulty("", {"deep": [1, {"array": np.zeros(2)}]})
    with pytest.warns(
        UserWarning, match=r"state of Faulty, of which \['deep'\]\[1\]\['array'\] is a numpy.ndarray"
    ):
        make_trainer(tmp_path, faulty, ours, max_steps=10).fit(Line())
    assert set(load(audited(ours.folder)[0].checkpoint)["callbacks"]) == {ours.state_key}


def test_a_hyperparameter_that_could_not_be_loaded_is_left_out(tmp_path: Path) -> None:
    class Keeping(Line):
        def __init__(self, path: Path, rate: float) -> None:
            super().__init__()
            self.save_hyperparameters()

    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 10})
    with pytest.warns(UserWarning, match="without the hyperparameter 'path'"):
        make_trainer(tmp_path, ours, max_steps=10).fit(Keeping(tmp_path, 0.5))
    assert load(audited(ours.folder)[0].checkpoint)["hyper_parameters"] == {"rate": 0.5}


def test_a_state_that_could_not_be_loaded_is_not_saved_and_says_where_it_is(tmp_path: Path) -> None:
    class Arrays(Line):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mean"] = np.zeros(2)

    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 5})
    with pytest.warns(UserWarning, match=r"checkpoint\['mean'\] is a numpy.ndarray; keep tensors") as told:
        make_trainer(tmp_path, ours, max_steps=10).fit(Arrays())
    assert len([w for w in told if "mean" in str(w.message)]) == 1
    assert ours.folder.generations() == []


def test_a_full_disk_is_told_once_harms_nothing_and_heals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, ours = Disk(monkeypatch), VerifiedCheckpoint(tmp_path / "c", every={"steps": 2}, keep=9)

    def fill_and_free(trainer: Trainer) -> None:
        if trainer.global_step == 3:
            disk.reset(full_from=1)
        if trainer.global_step == 7:
            disk.reset()

    with pytest.warns(UserWarning, match=r"no checkpoint was saved in .*No space left") as told:
        make_trainer(tmp_path, Each(fill_and_free), ours, max_steps=10).fit(Line())
    assert len([w for w in told if "No space" in str(w.message)]) == 1
    assert steps_of(ours.folder) == [2, 8, 10]
    assert len(audited(ours.folder)) == 3
    assert any("are saved in" in record.message for record in caplog.records)
    assert load(tmp_path / "c" / "last.ckpt")["global_step"] == 10


def test_a_best_that_could_not_be_saved_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    ours = VerifiedCheckpoint(tmp_path / "c", "best", "score")

    def fill_and_free(trainer: Trainer) -> None:
        disk.reset(full_from=1 if 15 < trainer.global_step < 25 else float("inf"))

    with pytest.warns(UserWarning, match="No space left"):
        make_trainer(tmp_path, Each(fill_and_free), ours, max_epochs=3).fit(Line(scores=(5.0, 1.0, 4.0)))
    assert (ours.best_model_score, ours.best_model_path) == (4, str(tmp_path / "c/best.ckpt"))
    assert load(ours.best_model_path)["global_step"] == 30
    assert len(audited(ours.folder)) == 1


def test_broken_weights_are_kept_apart_and_the_last_good_ones_stay(tmp_path: Path) -> None:
    module = Line()

    def spoil(trainer: Trainer) -> None:
        if trainer.global_step >= 5:
            module.layer.weight.data.fill_(float("nan"))

    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 2}, keep=9)
    with pytest.warns(UserWarning, match=r"not to be resumed from: weights are not finite: layer.weight"):
        make_trainer(tmp_path, Each(spoil), ours, max_steps=10).fit(module)
    assert steps_of(ours.folder) == [2, 4]
    (kept,) = [g for g in ours.folder.generations() if g.kind == "post-mortem"]
    assert (kept.is_resumable, kept.counters["global_step"]) == (False, 10)
    assert load(tmp_path / "c" / "last.ckpt")["global_step"] == 4
    trainer = make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c", every={"steps": 2}), max_steps=6)
    trainer.fit(Line(), ckpt_path="last")
    assert trainer.ckpt_path == str(tmp_path / "c" / "regular-000002.ckpt")


def test_an_infinite_mask_is_no_fault(tmp_path: Path) -> None:
    module = Line()
    module.register_buffer("mask", torch.full((2,), -torch.inf))
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 10})
    make_trainer(tmp_path, ours, max_steps=10).fit(module)
    assert ours.folder.generations()[0].is_resumable


def test_what_was_decided_but_not_saved_before_an_exception_is_taken_back(tmp_path: Path) -> None:
    class Failing(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise RuntimeError("now")

    ours = VerifiedCheckpoint(tmp_path / "c", save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="now"):
        make_trainer(tmp_path, Failing(), ours, max_epochs=2).fit(Line())
    assert (ours.best_model_path, ours.best_k_models) == ("", {})
    with FolderLock(tmp_path / "c") as free:
        assert free.is_held


def test_what_is_saved_on_an_exception_is_not_resumed_from(tmp_path: Path) -> None:
    def fail(trainer: Trainer) -> None:
        if trainer.global_step == 5:
            raise RuntimeError("mid-step")

    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 3}, save_on_exception=True)
    with pytest.raises(RuntimeError, match="mid-step"):
        make_trainer(tmp_path, Each(fail), ours).fit(Line())
    torn, good = audited(ours.folder)
    assert (torn.kind, torn.is_resumable, torn.counters["global_step"]) == ("post-mortem", False, 5)
    assert torn.manifest["exception"] == "RuntimeError('mid-step')"
    assert good.is_resumable
    assert load(tmp_path / "c" / "last.ckpt")["global_step"] == 3


def test_every_save_is_made_at_a_boundary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, places = checkpoints.save_generation, []

    def look(trainer: Trainer, *args: Any, **kwargs: Any) -> Generation:
        places.append(is_at_boundary(trainer))
        return save(trainer, *args, **kwargs)

    monkeypatch.setattr(checkpoints, "save_generation", look)
    ours = VerifiedCheckpoint(
        tmp_path / "c", monitor="score", save_last=True, every={"steps": 3}, rehearse=True
    )
    make_trainer(tmp_path, ours, max_epochs=3, val_check_interval=4).fit(Line())
    assert len(places) > 9
    assert all(places)


def test_a_run_killed_at_any_call_of_any_save_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    def run(name: str, path: Any = None) -> tuple[Line, VerifiedCheckpoint]:
        torch.manual_seed(0)
        ours = VerifiedCheckpoint(
            tmp_path / name, "best", "score", every={"steps": 3}, save_last=True, enable_version_counter=False
        )
        module = Line()
        make_trainer(tmp_path, ours, max_epochs=2, val_check_interval=4).fit(module, ckpt_path=path)
        return module, ours

    disk.reset()
    whole, kept = run("whole")
    assert disk.num_calls > 150
    for call in range(5, disk.num_calls, 17):
        disk.reset(dead_from=call)
        with pytest.raises(Crash):
            run(str(call))
        disk.reset()
        has_saved = GenerationFolder(tmp_path / str(call)).newest_valid() is not None
        assert has_saved or call < 30
        module, ours = run(str(call), "last" if has_saved else None)
        torch.testing.assert_close(module.state_dict(), whole.state_dict(), rtol=0, atol=0)
        assert relative(ours, tmp_path / str(call)) == relative(kept, tmp_path / "whole")
        assert {g.kind for g in audited(ours.folder)} == {"best", "regular"}


def test_the_best_of_one_callback_is_not_lost_between_the_saves_of_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one's checkpoint is whole, and knows of a best whose file is still to come."""
    disk = Disk(monkeypatch)

    def run(name: str, path: Any = None) -> VerifiedCheckpoint:
        torch.manual_seed(0)
        folder = tmp_path / name
        regular = VerifiedCheckpoint(folder, every={"steps": 4})
        best = VerifiedCheckpoint(
            folder,
            "best-{epoch}-{step}",
            "score",
            save_top_k=2,
            save_weights_only=True,
            auto_insert_metric_name=False,
            save_on_train_epoch_end=False,
        )
        trainer = make_trainer(tmp_path, regular, best, max_epochs=2, val_check_interval=4)
        trainer.fit(Line(), ckpt_path=path)
        return best

    disk.reset()
    kept = run("whole")
    for call in range(60, disk.num_calls, 7):
        disk.reset(dead_from=call)
        with pytest.raises(Crash):
            run(str(call))
        disk.reset()
        best = run(str(call), "last")
        assert relative(best, tmp_path / str(call)) == relative(kept, tmp_path / "whole")
        saved = {g.name: g.manifest["monitor"]["value"] for g in audited(best.folder) if g.kind == "best"}
        assert saved == {
            g.name: g.manifest["monitor"]["value"] for g in kept.folder.generations() if g.kind == "best"
        }


@pytest.mark.timeout(660)  # two processes, each with its own imports
def test_ranks_agree_and_survive_a_full_disk_of_the_first(tmp_path: Path) -> None:
    program = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_checkpoint import *

        class Full(Callback):
            def on_train_batch_end(self, trainer, *_):
                if trainer.is_global_zero:
                    os.fsync = refuse if 3 <= trainer.global_step < 6 else flush

        def refuse(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        class Synced(Line):
            def validation_step(self, batch, batch_idx):
                self.log("score", self.scores[self.num_validations], sync_dist=True)

        flush, folder = os.fsync, Path({str(tmp_path)!r})
        every = {{"steps": 2, "minutes": 9}}
        ours = VerifiedCheckpoint(folder / "c", "best", "score", every=every, rehearse=True)
        trainer = make_trainer(folder, Full(), ours, strategy="ddp", devices=2, max_epochs=2)
        trainer.fit(Synced())
        said = [float(ours.best_model_score), ours.best_model_path, ours.last_model_path, ours.num_saves]
        (folder / f"rank{{trainer.global_rank}}.json").write_text(json.dumps(said))
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, "-W", "ignore", path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    said = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert (
        said[0] == said[1] == [3.0, str(tmp_path / "c/best.ckpt"), str(tmp_path / "c/last.ckpt"), said[0][-1]]
    )
    assert "are saved in" in done.stderr
    folder = GenerationFolder(tmp_path / "c")
    assert steps_of(folder, "best") == [10]  # the one of step 5 had no space
    assert audited(folder)


# Rehearsal, locks, and what is refused


def test_a_rehearsal_leaves_nothing_behind(tmp_path: Path) -> None:
    seen: list[str] = []
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 5}, rehearse=True)

    class Look(Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            seen.extend(names_of(tmp_path / "c") if not seen else [])
            seen.append("started")

    make_trainer(tmp_path, Rows(), Look(), ours, max_steps=5).fit(Line())
    assert seen[0] == "started"
    assert len(audited(ours.folder)) == 1


REHEARSALS: dict[str, tuple[dict[str, Any], str]] = {
    "cannot be loaded": ({"mean": np.zeros(2)}, r"checkpoint\['mean'\] is a numpy.ndarray"),
    "cannot be saved": ({"f": lambda: 0}, r"checkpoint\['f'\] is a builtins.function"),
}


@pytest.mark.parametrize(("state", "message"), REHEARSALS.values(), ids=REHEARSALS)
def test_a_save_that_would_fail_ends_the_run_before_it_began(
    tmp_path: Path, state: dict[str, Any], message: str
) -> None:
    class Unloadable(Line):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint.update(state)

    module = Unloadable()
    ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 5}, rehearse=True)
    with pytest.raises(RehearsalFailed, match=f"the rehearsal of a save in .* failed: {message}"):
        make_trainer(tmp_path, ours).fit(module)
    assert module.env_steps == 0


def test_a_full_disk_ends_a_rehearsed_run_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, ours = Disk(monkeypatch), VerifiedCheckpoint(tmp_path / "c", every={"steps": 5}, rehearse=True)

    class Fill(Callback):
        def on_train_start(self, *_: Any) -> None:
            disk.reset(full_from=1)

    with pytest.raises(RehearsalFailed, match="No space left"):
        make_trainer(tmp_path, Fill(), ours).fit(Line())


def test_a_folder_in_use_is_refused_before_training(tmp_path: Path) -> None:
    program = f"""
        import sys
        from holdfast.storage.lock import FolderLock
        FolderLock({str(tmp_path / "c")!r}).acquire()
        print(flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(FolderInUse, match=f"is being written by process {other.pid}"):
            make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c")).fit(Line())
        other.communicate()


def test_what_would_write_files_itself_is_refused(tmp_path: Path) -> None:
    class Sharded(SingleDeviceStrategy):
        def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
            raise AssertionError

    for settings, message in (
        ({"plugins": [AsyncCheckpointIO()]}, "the plugin AsyncCheckpointIO would not be used"),
        ({"strategy": Sharded(torch.device("cpu"))}, "Sharded writes checkpoints in a form of its own"),
    ):
        with pytest.raises(MisconfigurationException, match=message):
            make_trainer(tmp_path, VerifiedCheckpoint(tmp_path / "c"), **settings).fit(Line())
    with pytest.raises(MisconfigurationException, match="must be a local folder"):
        make_trainer(tmp_path, VerifiedCheckpoint("memory://c")).fit(Line())


def test_data_modules_may_have_parts_too(tmp_path: Path) -> None:
    class Data(LightningDataModule):
        loaded: bytes | None = None

        def train_dataloader(self) -> DataLoader:
            return Line().train_dataloader()

        def val_dataloader(self) -> DataLoader:
            return Line().val_dataloader()

        def save_parts(self, store: PartStore) -> dict[str, Any]:
            return dataclasses.asdict(store.write("data.bin", [b"position"]))

        def load_parts(self, store: PartStore, entry: dict[str, Any]) -> None:
            self.loaded = store.read(File(**entry))

    def fit(data: Data, path: Any = None) -> None:
        ours = VerifiedCheckpoint(tmp_path / "c", every={"steps": 5})
        make_trainer(tmp_path, ours, max_steps=5, limit_val_batches=0).fit(
            Line(), datamodule=data, ckpt_path=path
        )

    fit(Data())
    fit(data := Data(), "last")
    assert data.loaded == b"position"


# What is used of Lightning's internals


def test_lightning_still_has_what_is_used_of_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, ours := VerifiedCheckpoint())
    assert callable(trainer._checkpoint_connector.dump_checkpoint)
    assert ours._ModelCheckpoint__resolve_ckpt_dir(trainer) == os.path.join(tmp_path, "checkpoints")  # type: ignore[attr-defined]
    names = {"_save_checkpoint", "_remove_checkpoint", "_link_checkpoint", "_save_topk_checkpoint"}
    names |= {"_save_last_checkpoint", "_find_last_checkpoints", "file_exists", "check_monitor_top_k"}
    assert names <= set(vars(ModelCheckpoint))
    assert set(checkpoints._BOOKKEEPING) <= set(vars(ModelCheckpoint()))
    assert trainer.fit_loop._can_stop_early in (True, False)
    assert trainer.fit_loop.epoch_progress.current.completed == 0
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 0
    assert issubclass(VerifiedCheckpoint, BoundaryCallback)
