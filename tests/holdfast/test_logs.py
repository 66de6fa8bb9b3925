"""Logs of killed and resumed runs against those of a run that was never interrupted."""

from __future__ import annotations

import csv
import os
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from holdfast.boundary import BoundaryCallback
from holdfast.exact.logs import (
    forget_logs,
    log_positions,
    masked_crc32c,
    restore_log_positions,
    resume_logging,
    whole_records,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.summary.writer import event_file_writer
from torch.utils.data import DataLoader, TensorDataset

NUM_STEPS = 12
Curves = dict[str, list[tuple[int, float]]]


class Killed(BaseException):
    """Ends a run as a kill does: no hook of Lightning's writes anything on the way out."""


class Talkative(LightningModule):
    """Logs every way there is: by Lightning, and by itself against a step of its own."""

    num_steps: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self.save_hyperparameters({"size": 1})

    def on_train_start(self) -> None:
        for logger in self.loggers:
            logger.log_metrics({"started": 1.0}, step=0)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        count = int(self.num_steps)
        self.num_steps += 1
        self.log("by_lightning", float(count))
        for logger in self.loggers:
            logger.log_metrics({"by_itself": count / 3, f"since/{count // 4}": 1.0}, step=count * 10)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_scalars("pair", {"left": count, "right": -count}, count)
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(NUM_STEPS, 1)))


class Keeper(BoundaryCallback):
    """Saves at the boundaries ``save_at``, dies at ``kill_at``; carries the positions as a save would."""

    def __init__(self, save_at: list[int], kill_at: int | None) -> None:
        self.save_at, self.kill_at = save_at, kill_at

    def on_boundary(self, trainer: Trainer, _: Any) -> None:
        resume_logging(trainer)
        if trainer.global_step in self.save_at:
            trainer.save_checkpoint(Path(trainer.default_root_dir, "run.ckpt"))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.kill_at:
            raise Killed

    def on_save_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["logs"] = log_positions(trainer)

    def on_load_checkpoint(self, trainer: Trainer, _: Any, checkpoint: dict[str, Any]) -> None:
        restore_log_positions(trainer, checkpoint["logs"])


def fit(folder: Path, kind: type, save_at: list[int], kill_at: int | None, monkeypatch: Any) -> None:
    """One process of a run, resumed from its checkpoint where there is one."""
    settings: dict[str, Any] = {"flush_logs_every_n_steps": 10**9} if kind is CSVLogger else {}
    logger = kind(folder, name="logs", version="run", **settings)
    trainer = Trainer(
        logger=logger,
        callbacks=[Keeper(save_at, kill_at)],
        default_root_dir=folder,
        max_epochs=-1,
        max_steps=NUM_STEPS,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    saved = folder / "run.ckpt"
    try:
        with monkeypatch.context() as patch:
            # a kill leaves what is buffered in memory where it is
            patch.setattr(Logger, "finalize", lambda *_: None)
            patch.setattr(kind, "finalize", lambda *_: None)
            trainer.fit(Talkative(), ckpt_path=saved if saved.exists() else None)
        logger.finalize("success")
    except Killed:
        if kind is TensorBoardLogger:
            logger.experiment.close()


def read(folder: Path, kind: type) -> Curves:
    """Every curve, in the order it is written."""
    curves: Curves = {}
    if kind is CSVLogger:
        with (folder / "logs" / "run" / "metrics.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                for name in row.keys() - {"step"}:
                    if row[name]:
                        curves.setdefault(name, []).append((int(row["step"]), float(row[name])))
        return curves
    run = folder / "logs" / "run"
    for below in [run, *(path for path in run.iterdir() if path.is_dir() and path.name != "set-aside")]:
        accumulator = EventAccumulator(str(below), size_guidance={"scalars": 0})
        accumulator.Reload()
        for tag in accumulator.Tags()["scalars"]:
            curves[f"{below.name}:{tag}"] = [(e.step, e.value) for e in accumulator.Scalars(tag)]
    return curves


@pytest.fixture(scope="module", params=[CSVLogger, TensorBoardLogger])
def uninterrupted(request: Any, tmp_path_factory: Any) -> tuple[type, Curves, bytes]:
    kind, folder = request.param, tmp_path_factory.mktemp("straight")
    # files of one second and process are read in the order of their number's digits: let all have four
    event_file_writer._global_uid._value = max(event_file_writer._global_uid._value, 1000)
    fit(folder, kind, [3, 6, 9], None, pytest.MonkeyPatch())
    metrics = folder / "logs" / "run" / "metrics.csv"
    return kind, read(folder, kind), metrics.read_bytes() if metrics.exists() else b""


pytestmark = [
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


def test_curves_of_runs_killed_at_random_equal_those_of_the_uninterrupted_run(
    uninterrupted: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    kind, expected, metrics = uninterrupted
    choose = random.Random(0)
    for attempt in range(6):
        folder = tmp_path / str(attempt)
        for kill_at in sorted(choose.sample(range(1, NUM_STEPS), choose.randint(1, 3))):
            save_at = choose.sample(range(1, NUM_STEPS), 3)
            fit(
                folder,
                kind,
                save_at if (folder / "run.ckpt").exists() else [0, *save_at],
                kill_at,
                monkeypatch,
            )
        fit(folder, kind, [], None, monkeypatch)
        assert read(folder, kind) == expected
        if kind is CSVLogger:
            assert (folder / "logs" / "run" / "metrics.csv").read_bytes() == metrics


def test_killed_twice_from_the_same_checkpoint_and_moved_between(
    uninterrupted: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    kind, expected, _ = uninterrupted
    for kill_at in (8, 10, 5):
        fit(tmp_path / "here", kind, [4] if kill_at == 8 else [], kill_at, monkeypatch)
    shutil.move(tmp_path / "here", tmp_path / "there")
    fit(tmp_path / "there", kind, [], None, monkeypatch)
    assert read(tmp_path / "there", kind) == expected


def test_what_is_cut_off_is_kept_where_tensorboard_does_not_look(tmp_path: Path, monkeypatch: Any) -> None:
    for kill_at in (8, 6, None):
        fit(tmp_path, TensorBoardLogger, [4] if kill_at == 8 else [], kill_at, monkeypatch)
    aside = list((tmp_path / "logs" / "run" / "set-aside").iterdir())
    assert any(".from-" in path.name for path in aside)  # the tail of the first process
    assert any(".from-" not in path.name for path in aside)  # all of the second one
    assert not [path for path in aside if "tfevents" in path.name]


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_another_folder_is_left_alone(kind: type, tmp_path: Path, monkeypatch: Any) -> None:
    fit(tmp_path / "a", kind, [5], 8, monkeypatch)
    fit(tmp_path / "b", kind, [5], 6, monkeypatch)
    for journal in (tmp_path / "b").rglob(".metrics-*"):
        journal.write_bytes(journal.read_bytes().replace(b"1.0", b"7.0"))
    before = {path: path.read_bytes() for path in (tmp_path / "b").rglob("*") if path.is_file()}
    shutil.copy(tmp_path / "a" / "run.ckpt", tmp_path / "b" / "run.ckpt")
    if kind is CSVLogger:
        with pytest.warns(UserWarning, match="holds other rows than the checkpoint"):
            fit(tmp_path / "b", kind, [], 5, monkeypatch)
        before = {path: content for path, content in before.items() if path.name.startswith(".metrics")}
    else:
        fit(tmp_path / "b", kind, [], 5, monkeypatch)
    before.pop(tmp_path / "b" / "run.ckpt", None)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_checkpoint_that_names_files_elsewhere_cuts_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    fit(tmp_path, TensorBoardLogger, [4], 8, monkeypatch)
    run, victim = tmp_path / "logs" / "run", tmp_path / "tfevents.precious"
    content = next(run.glob("*tfevents*")).read_bytes()
    victim.write_bytes(content)
    (run / "tfevents.link").symlink_to(victim)
    half = whole_records(victim, len(content) // 2)
    checkpoint = torch.load(tmp_path / "run.ckpt", weights_only=True)
    elsewhere = {"../../tfevents.precious": half, "tfevents.link": half, str(victim): half}
    checkpoint["logs"]["loggers"][0]["files"] |= elsewhere
    torch.save(checkpoint, tmp_path / "run.ckpt")
    with pytest.warns(UserWarning, match=f"lacks {half} bytes"):
        fit(tmp_path, TensorBoardLogger, [], None, monkeypatch)
    assert victim.read_bytes() == content


def test_running_process_that_goes_back_logs_on_behind_the_cut(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="logs", version="run")
    trainer = Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
    trainer.state.fn = "fit"  # type: ignore[assignment]
    for step in range(3):
        logger.log_metrics({"a": step}, step)
    positions = log_positions(trainer)
    for step in range(3, 7):
        logger.log_metrics({"a": -step}, step)
    restore_log_positions(trainer, positions)
    logger.log_metrics({"a": 0.0}, 0)  # as a process starts: discarded
    resume_logging(trainer)
    for step in range(3, 5):
        logger.log_metrics({"a": step}, step)
    logger.finalize("success")
    assert read(tmp_path, TensorBoardLogger)["run:a"] == [(step, step) for step in range(5)]


def test_rows_before_a_checkpoint_survive_a_rewrite_that_was_cut_short(
    tmp_path: Path, monkeypatch: Any, uninterrupted: Any
) -> None:
    kind, expected, _ = uninterrupted
    if kind is TensorBoardLogger:
        return  # its files only grow
    fit(tmp_path, kind, [5], 8, monkeypatch)
    (tmp_path / "logs" / "run" / "metrics.csv").write_bytes(b"")
    fit(tmp_path, kind, [], None, monkeypatch)
    assert read(tmp_path, kind) == expected


def test_logger_that_cannot_be_rewound_is_named(tmp_path: Path) -> None:
    class Elsewhere(Logger):
        name = version = "x"

        def log_metrics(self, *_: Any, **__: Any) -> None: ...

        def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    trainer = Trainer(logger=Elsewhere(), accelerator="cpu", enable_checkpointing=False)
    trainer.state.fn = "fit"  # type: ignore[assignment]
    with pytest.warns(UserWarning, match="Elsewhere is not rewound"):
        restore_log_positions(trainer, log_positions(trainer))


def test_full_disk_leaves_a_logger_out_with_a_warning(tmp_path: Path, monkeypatch: Any) -> None:
    trainer = Trainer(logger=CSVLogger(tmp_path), accelerator="cpu", enable_checkpointing=False)
    trainer.logger.log_metrics({"a": 1.0}, 0)  # type: ignore[union-attr]

    def fail(_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CSVLogger, "save", fail)
    with pytest.warns(UserWarning, match="CSVLogger was not flushed: .*No space left"):
        assert log_positions(trainer)["loggers"] == [None]


def test_run_that_starts_anew_sets_its_earlier_start_aside(tmp_path: Path, uninterrupted: Any) -> None:
    kind, *_ = uninterrupted
    for value in (1.0, 2.0):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # CSVLogger deletes the file of the earlier start, and says so
            logger = kind(tmp_path, name="logs", version="run")
            trainer = Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
            _ = logger.experiment
        forget_logs(trainer)
        logger.log_metrics({"a": value}, 0)
        logger.finalize("success")
    assert read(tmp_path, kind)["a" if kind is CSVLogger else "run:a"] == [(0, 2.0)]


def test_evaluating_a_checkpoint_cuts_nothing(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="logs", version="run")
    trainer = Trainer(logger=logger, accelerator="cpu", enable_checkpointing=False)
    positions = log_positions(trainer)
    logger.log_metrics({"a": 1.0}, 0)
    trainer.state.fn = "test"  # type: ignore[assignment]
    restore_log_positions(trainer, positions)
    logger.finalize("success")
    assert read(tmp_path, TensorBoardLogger)["run:a"] == [(0, 1.0)]


def test_checksum_is_that_of_tensorboard() -> None:
    for size in (0, 1, 8, 1000):
        data = os.urandom(size)
        expected = pywrap_tensorflow.masked_crc32c(data)
        assert int.from_bytes(masked_crc32c(data), "little") == expected


def test_torn_record_ends_before_it_begins(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="logs", version="run")
    logger.log_metrics({"a": 1.0}, 0)
    logger.save()
    (path,) = (tmp_path / "logs" / "run").glob("*tfevents*")
    start = path.stat().st_size
    logger.log_metrics({"b": 1.0}, 0)
    logger.finalize("success")
    whole = path.read_bytes()
    assert whole_records(path, 10**9) == len(whole)
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert whole_records(path, 10**9) == start
    for place in range(start, len(whole)):  # and one with any byte wrong
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert whole_records(path, 10**9) == start
    path.write_bytes(b"")
    assert whole_records(path, 10**9) == 0
