"""Small Lightning programs, and what is needed to run one, stop it, resume it and compare.

Each program is a module with ``build() -> Program``; those in `PUBLISHED` are Lightning's own examples, on
synthetic data of the same kind. ``python -m programs NAME FOLDER`` runs one; see `__main__.py`.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from holdfast.boundary import BoundaryCallback, exact_state
from holdfast.exact.rng import get_global_rng
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import Logger

PUBLISHED = ("boring", "image_classifier", "autoencoder", "gan", "finetuning", "transformer", "lstm")
OWN = ("augmented", "accumulating", "averaged", "iterable", "combined", "stateful", "own_loop", "scheduled")
NAMES = (*PUBLISHED, *OWN)


@dataclass
class Program:
    """What a script hands to Lightning."""

    module: LightningModule
    train: Any = None  # loaders or a datamodule; None where the module has them
    val: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)


class Memory(Logger):
    """Every value logged, in order."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.lines.append((step, dict(metrics)))

    def log_hyperparams(self, *_: Any) -> None:
        pass


class Trace(Callback):
    """Every hook of training and validation, and what the batches held."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith(("on_train_epoch", "on_train_batch", "on_validation", "on_before_optimizer")):
            return lambda trainer, module, *args: self._note(trainer, name, args)
        return super().__getattribute__(name)

    def state_dict(self) -> dict[str, Any]:
        return {}  # each process has its own

    def _note(self, trainer: Trainer, name: str, args: Sequence[Any]) -> None:
        if not trainer.sanity_checking:
            is_start = name in ("on_train_batch_start", "on_validation_batch_start")
            # with dataloader_iter this hook gets the batch before, which a resume draws and drops
            is_start &= not hasattr(trainer.fit_loop._data_fetcher, "iterator_wrapper")
            self.events.append((name, trainer.global_step, digest(args[0]) if is_start else None))


class SaveAt(BoundaryCallback):
    """Saves at chosen boundaries, and notes how far trace and log were.

    Args:
        wanted: which of them, counted from 0; None: all.
    """

    def __init__(self, folder: Path, trace: Trace, log: Memory, wanted: set[int] | None = None) -> None:
        self.folder, self.trace, self.memory, self.wanted = folder, trace, log, wanted
        self.num_boundaries = 0
        self.saved: dict[int, tuple[Path, int, int]] = {}
        self.notes: list[str] = []

    def on_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index, self.num_boundaries = self.num_boundaries, self.num_boundaries + 1
        progress = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self.notes.append(f"epoch {trainer.current_epoch} batch {progress}")
        if self.wanted is None or index in self.wanted:
            path = self.folder / f"{index}.ckpt"
            trainer.save_checkpoint(path)
            self.saved[index] = (path, len(self.trace.events), len(self.memory.lines))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Any) -> None:
        checkpoint["holdfast"] = {"version": 1, "exact": exact_state(trainer)}


class Resumed(BoundaryCallback):
    """One added line that restores and does no more; the streams it finds are others than were saved."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seed_everything(7, verbose=False)


def digest(value: Any) -> int:
    """Of all tensors in a batch."""
    if isinstance(value, torch.Tensor):
        return zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes())
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return hash(tuple(digest(item) for item in items))


@dataclass
class Outcome:
    """What a run leaves."""

    state: dict[str, Any]
    events: list[tuple[Any, ...]]
    lines: list[tuple[int | None, dict[str, float]]]


def run(
    program: Program,
    folder: Path,
    ckpt_path: Path | None = None,
    make_callbacks: Callable[[Trace, Memory], list[Callback]] = lambda trace, log: [],
    **settings: Any,
) -> Outcome:
    """Train to the end."""
    trace, log = Trace(), Memory()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    fixed = {"accelerator": "cpu", "default_root_dir": folder, "logger": log, "log_every_n_steps": 1}
    callbacks = [*program.callbacks, trace, *make_callbacks(trace, log)]
    trainer = Trainer(**{**quiet, **fixed, **program.settings, **settings}, callbacks=callbacks)
    data: dict[str, Any] = {"train_dataloaders": program.train, "val_dataloaders": program.val}
    if isinstance(program.train, LightningDataModule):
        data = {"datamodule": program.train}
    trainer.fit(program.module, **data, ckpt_path=ckpt_path)
    return Outcome(final_state(trainer), trace.events, log.lines)


def final_state(trainer: Trainer) -> dict[str, Any]:
    """Weights, optimisers, schedulers, streams, metrics and counters."""
    loop = trainer.fit_loop
    return {
        "weights": trainer.lightning_module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "rng": get_global_rng(),
        "callback_metrics": dict(trainer.callback_metrics),
        "logged_metrics": dict(trainer.logged_metrics),
        "progress_bar_metrics": dict(trainer.progress_bar_metrics),
        "loops": {key: value for key, value in loop.state_dict().items() if "state_dict" not in key},
        "callbacks": {
            c.state_key: c.state_dict() for c in trainer.callbacks if not isinstance(c, BoundaryCallback)
        },
        "steps": (trainer.global_step, trainer.current_epoch, loop.epoch_loop._batches_that_stepped),
        "log_step": loop.epoch_loop._batches_that_stepped,
    }


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two outcomes are not the same bits."""
    if isinstance(one, dict) and isinstance(other, dict):
        return [
            fault
            for key in sorted({*one, *other}, key=str)
            for fault in differences(one.get(key, "absent"), other.get(key, "absent"), f"{path}/{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [fault for index, (a, b) in pairs for fault in differences(a, b, f"{path}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        is_same = one.dtype == other.dtype and one.shape == other.shape and digest(one) == digest(other)
    else:
        is_same = type(one) is type(other) and (one == other or (one != one and other != other))
    return [] if is_same else [f"{path}: {one!r:.60} != {other!r:.60}"]


def build(name: str, seed: int = 1) -> Program:
    """As a script does it: seed, then make module and data."""
    seed_everything(seed, verbose=False)
    program: Program = importlib.import_module(f"{__name__}.{name}").build()
    return program
