"""Gradients accumulated over 3 of 8 batches, noise in this process, plateau schedulers, an average."""

from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from . import Program
from .augmented import Noisy
from .regression import Regression


class Average(Callback):
    """An average of the weights that saves nothing itself, and is used in validation."""

    def __init__(self, decay: float = 0.8) -> None:
        self.decay, self.num_updates = decay, 0
        self.shadow: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shadow = deepcopy(pl_module.layers)

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.num_updates += 1
        for mean, value in zip(self.shadow.parameters(), pl_module.layers.parameters(), strict=True):
            mean.lerp_(value, 1 - self.decay)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.shadow is not None:
            pl_module.layers, self.shadow = self.shadow, pl_module.layers

    on_validation_end = on_validation_start


class Plateau(Regression):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        reduce = torch.optim.lr_scheduler.ReduceLROnPlateau
        by_epoch = {"scheduler": reduce(optimizer, patience=0, factor=0.5), "monitor": "train_loss_epoch"}
        by_step = {"scheduler": reduce(optimizer, patience=1, factor=0.9), "monitor": "val_loss"}
        return [optimizer], [by_epoch, {**by_step, "interval": "step", "strict": False}]

    def configure_callbacks(self) -> list[Callback]:
        return []


def build() -> Program:
    train, val = DataLoader(Noisy(16, 1), batch_size=2, shuffle=True), DataLoader(Noisy(4, 2), batch_size=2)
    settings = {"max_epochs": 3, "accumulate_grad_batches": 3, "val_check_interval": 4}
    return Program(Plateau(), train, val, {**settings, "num_sanity_val_steps": 1}, [Average()])
