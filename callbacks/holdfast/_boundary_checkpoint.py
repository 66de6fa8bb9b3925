"""A last checkpoint that is always whole, saved where a step is over and the next has not begun.

Knows nothing about what is trained, nor what the module and its data put into a checkpoint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class BoundaryCheckpoint(Checkpoint):
    """Keeps one full checkpoint that stock Lightning resumes from.

    It is saved before a training step begins: hooks and progress of the step before are complete, and the
    weights, counters and data are those of the same instant. (A batch that was fetched already is not
    trained again; a ``training_step(self, dataloader_iter)`` fetches later, so nothing is lost there.)
    The end of a run is saved while its epoch is still open, because Lightning cannot extend a closed one:
    where the module says it ``is_finished``, and where Lightning is about to stop.

    The file is written beside the old one, flushed to disk and renamed over it. A save that fails warns,
    leaves the old file, and training goes on.

    Args:
        dirpath: folder of the file; None is ``checkpoints`` in the trainer's log folder.
        filename: name of the file.
        every_seconds: least time between two saves.
        max_time_fraction: largest share of the run spent saving; slow saves become rarer.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str = "last.ckpt",
        every_seconds: float = 60.0,
        max_time_fraction: float = 0.02,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every_seconds < 0:
            raise ValueError(f"every_seconds must be at least 0, got {every_seconds}")
        if not 0 < max_time_fraction <= 1:
            raise ValueError(f"max_time_fraction must lie in (0, 1], got {max_time_fraction}; use 0.02")
        self.every_seconds = every_seconds
        self.max_time_fraction = max_time_fraction
        self.path = Path(dirpath, filename) if dirpath is not None else None
        self.num_saves = 0
        self._filename = filename
        self._clock = clock
        self._due_at = float("inf")
        self._is_stop_requested = False

    def request_stop(self) -> None:
        """Save before the next training step, then end as Ctrl-C does. Safe to call in a signal handler."""
        self._is_stop_requested = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.path is None:
            log_dir = trainer.strategy.broadcast(trainer.log_dir)
            self.path = Path(log_dir or trainer.default_root_dir, "checkpoints", self._filename)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._due_at = self._clock() + self.every_seconds

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_stop_requested:
            self.save(trainer)
            raise KeyboardInterrupt
        if _agree(trainer, self._clock() >= self._due_at) or getattr(pl_module, "is_finished", False):
            self.save(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.should_stop or 0 <= trainer.max_steps <= trainer.global_step:
            self.save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.should_stop and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Replace the file by the state of this instant; on every rank."""
        if getattr(trainer, "fast_dev_run", False):
            return
        started = self._clock()
        try:
            self._replace(trainer)
        except OSError as error:
            rank_zero_warn(f"{self.path} was not saved: {error}; the one before is kept and training goes on")
        now = self._clock()
        self._due_at = now + max(self.every_seconds, (now - started) / self.max_time_fraction)

    def _replace(self, trainer: Trainer) -> None:
        assert self.path is not None
        temporary = self.path.with_name(f".{self.path.name}.part")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                _flush(temporary)
                os.replace(temporary, self.path)
                _flush(self.path.parent)
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        self.num_saves += 1


def _agree(trainer: Trainer, is_due: bool) -> bool:
    """The first rank's word: clocks differ, and a save needs every rank."""
    return is_due if trainer.world_size == 1 else bool(trainer.strategy.broadcast(is_due))


def _flush(path: Path) -> None:
    """Wait until ``path``, a file or a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
