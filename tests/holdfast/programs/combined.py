"""Two loaders of different lengths; the shorter one starts again within the epoch, shuffled anew."""

from typing import Any

import torch
from torch.utils.data import DataLoader

from . import Program
from .augmented import Noisy
from .regression import Regression


class Two(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch["a"]) + 0.5 * self.loss(batch["b"])
        self.log("train_loss", loss, on_epoch=True, batch_size=2)
        return loss


def build() -> Program:
    loaders = {
        "a": DataLoader(Noisy(14, 1), batch_size=2, shuffle=True),
        "b": DataLoader(Noisy(6, 2), batch_size=2, shuffle=True),
    }
    return Program(Two(), loaders, [DataLoader(Noisy(2, 3)), DataLoader(Noisy(3, 4))], {"max_epochs": 2})
