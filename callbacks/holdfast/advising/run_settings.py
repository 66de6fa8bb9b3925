"""Settings of a Lightning run by the names a user types, and those that may be changed while it goes on.

Knows nothing about who changes them, nor why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler

from ..learning_rates import scale_learning_rates
from .names import find_setting
from .rule import Adaptable


def settings_of(trainer: Any) -> dict[str, Any]:
    """What the module says, else its and its data's hyperparameters, its optimiser's, and the Trainer's."""
    module = trainer.lightning_module
    if callable(getattr(module, "advice_settings", None)):
        return dict(module.advice_settings())
    found = {f"model.{name}": value for name, value in _flat(module.hparams)}
    if trainer.datamodule is not None:
        found |= {f"data.{name}": value for name, value in _flat(trainer.datamodule.hparams)}
    names = ("gradient_clip_val", "accumulate_grad_batches", "max_epochs", "max_steps")
    inferred = {f"trainer.{name}": getattr(trainer, name) for name in names}
    for optimizer in trainer.optimizers[:1]:
        options = {"lr": optimizer.defaults.get("lr"), "weight_decay": optimizer.defaults.get("weight_decay")}
        inferred |= {f"optimizer.{name}": value for name, value in options.items() if value is not None}
    inferred |= {f"data.{name}": value for name, value in _loader_settings(trainer.train_dataloader)}
    roles = {"optimizer.lr": "learning_rate"}
    return found | {
        name: value
        for name, value in inferred.items()
        if find_setting(found, roles.get(name, name.rpartition(".")[2]))[0] is None
    }


def adaptable_of(trainer: Any, settings: Mapping[str, Any]) -> dict[str, Adaptable]:
    """What the module declares; else learning rates, all by one factor, and where gradients are clipped."""
    module = trainer.lightning_module
    if callable(getattr(module, "adaptable_settings", None)):
        return dict(module.adaptable_settings())
    found = {}
    name, _ = find_setting(settings, "learning_rate")
    if name is not None and trainer.optimizers and (start := trainer.optimizers[0].defaults.get("lr")):
        found[name] = _learning_rate(trainer, float(start))
    if module.automatic_optimization:
        found["trainer.gradient_clip_val"] = _clipping(trainer)
    return found


def _learning_rate(trainer: Trainer, start: float) -> Adaptable:
    def now() -> float:
        return float(trainer.optimizers[0].param_groups[0]["lr"])

    def change(value: float) -> None:
        scale_learning_rates(trainer, value / now())

    return Adaptable(now, change, start / 1000, start * 100)


def _clipping(trainer: Any) -> Adaptable:
    """Infinity stands for none."""

    def change(value: float) -> None:
        trainer.gradient_clip_val = value if math.isfinite(value) else None

    return Adaptable(lambda: float(trainer.gradient_clip_val or math.inf), change, 1e-8, math.inf)


def _loader_settings(loader: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(loader, DataLoader):
        return
    yield "num_workers", loader.num_workers
    if loader.batch_size is not None:
        yield "batch_size", loader.batch_size
    if not isinstance(loader.dataset, IterableDataset) and type(loader.sampler) is SequentialSampler:
        yield "shuffle", False


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str | None):
            yield f"{prefix}{name}", value
