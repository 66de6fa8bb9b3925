"""Accumulation that changes with epochs, a metric collection, a one-cycle schedule, a passing buffer."""

from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from . import Program
from .augmented import Noisy
from .regression import Regression


class Measured(Regression):
    def __init__(self) -> None:
        super().__init__()
        errors = {"mae": MeanAbsoluteError(), "mse": MeanSquaredError(), "same": MeanSquaredError()}
        self.errors = MetricCollection(errors)
        self.register_buffer("mean", torch.zeros(4), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.mean.lerp_(batch.mean(0), 0.1)
        self.errors.update(self.layers(batch), batch.sum(1, keepdim=True) - self.mean.sum())
        self.log_dict(self.errors, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=40)
        return [optimizer], [{"scheduler": cycle, "interval": "step"}]


def build() -> Program:
    train, val = DataLoader(Noisy(14, 1), batch_size=2, shuffle=True), DataLoader(Noisy(4, 2), batch_size=2)
    callbacks = [GradientAccumulationScheduler(scheduling={0: 1, 1: 2})]
    return Program(Measured(), train, val, {"max_epochs": 3, "check_val_every_n_epoch": 2}, callbacks)
