"""A run that goes on from an older state: what it had saved after that neither comes back nor is lost."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast import BoundaryCallback, EmergencyCheckpoint, ErrorRecovery, VerifiedCheckpoint
from holdfast.recovery import Diverged
from holdfast.storage.generations import File, GenerationFolder
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
]


class KillAt(BoundaryCallback):
    """Ends a fit at a boundary."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            raise SystemExit(9)


class Scored(LightningModule):
    """Sixteen batches; a validation scores what the step says; losses are NaN where told."""

    def __init__(self, scores: dict[int, float] | None = None, bad: range = range(0)) -> None:
        super().__init__()
        self.layer, self.lr = torch.nn.Linear(4, 1), 0.01
        self.scores, self.bad = scores or {}, bad

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        return loss * float("nan") if batch_idx in self.bad else loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("score", self.scores[self.trainer.global_step])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.lr)

    def train_dataloader(self) -> DataLoader:
        rows = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(rows), batch_size=4)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.zeros(4, 4)), batch_size=4)


def fit(module: Scored, *callbacks: Callback, ckpt_path: Any = None, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    fixed = {"max_steps": 16, "accelerator": "cpu", "num_sanity_val_steps": 0}
    checkpoints = any(isinstance(callback, VerifiedCheckpoint) for callback in callbacks)
    fixed["limit_val_batches"] = 1.0 if module.scores else 0
    settings = {**quiet, **fixed, "enable_checkpointing": checkpoints, **settings}
    trainer = Trainer(callbacks=list(callbacks), **settings)
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def at_step(folder: Path, step: int, kind: str = "regular") -> Path:
    known = GenerationFolder(folder).generations()
    return next(g.checkpoint for g in known if g.kind == kind and g.counters["global_step"] == step)


def best_of(folder: Path) -> VerifiedCheckpoint:
    return VerifiedCheckpoint(
        folder,
        "best",
        "score",
        mode="max",
        save_weights_only=True,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def test_a_best_still_to_be_saved_does_not_replace_a_better_one_that_came_after(tmp_path: Path) -> None:
    scores = {4: 5.0, 8: 10.0, 12: 7.0, 16: 6.0}
    regular = VerifiedCheckpoint(tmp_path, every={"steps": 4}, keep=9)  # at the boundary of the evaluation
    with pytest.raises(SystemExit):
        fit(Scored(scores), KillAt(9), regular, best_of(tmp_path), val_check_interval=4)
    regular = VerifiedCheckpoint(tmp_path, every={"steps": 4}, keep=9)
    resumed = best_of(tmp_path)
    fit(Scored(scores), regular, resumed, val_check_interval=4, ckpt_path=at_step(tmp_path, 4))
    best = next(g for g in GenerationFolder(tmp_path).generations() if g.kind == "best")
    assert best.manifest["monitor"]["value"] == 10.0
    assert resumed.best_model_score == 10.0


def test_last_is_what_the_run_went_on_from_and_no_row_of_its_log_is_lost(tmp_path: Path) -> None:
    def part(ckpt_path: Any, *more: Callback) -> None:
        saver = VerifiedCheckpoint(tmp_path / "c", every={"steps": 4}, keep=9)
        logger = CSVLogger(tmp_path, "", version=0)
        fit(Scored(), *more, saver, logger=logger, log_every_n_steps=1, ckpt_path=ckpt_path)

    with pytest.raises(SystemExit):
        part(None, KillAt(13))
    with pytest.raises(SystemExit):
        part(at_step(tmp_path / "c", 8), KillAt(8))
    part("last")
    rows = (tmp_path / "version_0" / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 16


def test_a_full_disk_does_not_keep_a_run_from_going_on_from_an_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    fit(Scored(), VerifiedCheckpoint(tmp_path, every={"steps": 4}, keep=9), max_steps=8)
    monkeypatch.setattr(GenerationFolder, "give_up", refuse)
    saver = VerifiedCheckpoint(tmp_path, every={"steps": 4}, keep=9)
    with pytest.warns(UserWarning, match="regular-000002 is of a future given up.*No space left"):
        trainer = fit(Scored(), saver, ckpt_path=at_step(tmp_path, 4))
    assert trainer.global_step == 16


def test_a_diverged_run_does_not_go_back_into_another_one_s_state(tmp_path: Path) -> None:
    fit(Scored(), VerifiedCheckpoint(tmp_path, every={"steps": 4}), max_steps=4)
    later = VerifiedCheckpoint(tmp_path, every={"steps": 100})
    with pytest.warns(UserWarning, match="gave up"), pytest.raises(Diverged, match="no sound checkpoint"):
        fit(Scored(bad=range(6, 12)), ErrorRecovery(max_skipped=2), later)


def test_a_run_killed_as_it_goes_back_decides_the_same_once_it_is_resumed(tmp_path: Path) -> None:
    class KillOnceBack(BoundaryCallback):
        def on_boundary(self, trainer: Any, pl_module: LightningModule) -> None:
            if any(c.counts["rollbacks"] for c in trainer.callbacks if isinstance(c, ErrorRecovery)):
                raise SystemExit(9)

    def run(folder: Path, ckpt_path: Any, *more: Callback) -> tuple[int, float]:
        recovery = ErrorRecovery(max_skipped=2, max_rollbacks=1)
        saver = VerifiedCheckpoint(folder, every={"steps": 4}, keep=9)
        with pytest.raises(Diverged), pytest.warns(UserWarning, match="rollback"):
            fit(Scored(bad=range(5, 9)), recovery, *more, saver, ckpt_path=ckpt_path)
        return recovery.counts["rollbacks"], recovery.lr_scale

    whole = run(tmp_path / "whole", None)
    with pytest.raises(SystemExit):
        run(tmp_path / "killed", None, KillOnceBack())
    assert run(tmp_path / "killed", "last") == whole == (1, 0.5)


def test_the_trial_of_a_learning_rate_search_is_not_saved(tmp_path: Path) -> None:
    saver = VerifiedCheckpoint(tmp_path / "c", every={"steps": 1000}, at_start=True)
    search = LearningRateFinder(num_training_steps=10)
    fit(Scored(), search, saver, default_root_dir=tmp_path)
    steps = [generation.counters["global_step"] for generation in saver.folder.generations()]
    assert steps == [16, 0]


class Big(Callback):
    """Writes a part of its own."""

    loaded = b""

    def save_parts(self, store: Any) -> dict[str, Any]:
        return {"big": asdict(store.write("big.bin", [b"content"]))}

    def load_parts(self, store: Any, entry: dict[str, Any]) -> None:
        self.loaded = store.read(File(**entry["big"]))


def test_a_requeued_job_finds_the_parts_through_another_name(tmp_path: Path) -> None:
    saver = EmergencyCheckpoint(tmp_path / "c", every={"steps": 4}, reserve=False)
    fit(Scored(), Big(), saver, max_steps=8)
    link = tmp_path / "hpc_ckpt_1.ckpt"
    link.symlink_to(at_step(tmp_path / "c", 8, "emergency"))
    big = Big()
    fit(Scored(), big, EmergencyCheckpoint(tmp_path / "c", reserve=False), ckpt_path=link)
    assert big.loaded == b"content"


def test_a_checkpoint_without_a_manifest_is_not_searched_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[Path] = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda top, *rest: walked.append(Path(top)) or walk(top, *rest))
    deep = tmp_path / "a" / "b" / "stock.ckpt"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"")
    assert GenerationFolder.around(deep).path == deep.parent
    assert GenerationFolder.around(deep).find(deep) is None
    assert set(walked) <= {deep.parent}


class Looking(VerifiedCheckpoint):
    """Has a hook of its own."""

    num_batches = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.num_batches += 1


def test_a_hook_that_a_subclass_overrides_is_called(tmp_path: Path) -> None:
    saver = Looking(tmp_path, every={"steps": 100})
    fit(Scored(), saver)
    assert saver.num_batches == 16


def test_hooks_are_called_in_another_fit_after_one_that_failed(tmp_path: Path) -> None:
    class Failing(Scored):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("in the middle")

    emergency = EmergencyCheckpoint(tmp_path, reserve=False)
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(Failing(), emergency, ErrorRecovery())  # which looks for NaN in its place
    fit(Scored(), emergency)
    assert emergency._num_batches == 16
