"""``training_step(self, dataloader_iter)``: several batches a step, as the module likes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from . import Program
from .augmented import Noisy
from .regression import Regression


class Groups(Regression):
    def training_step(self, dataloader_iter: Iterator[Any]) -> torch.Tensor:
        losses = [self.loss(next(dataloader_iter)[0]) for _ in range(2)]
        loss = torch.stack(losses).mean()
        self.log("train_loss", loss, on_epoch=True, batch_size=4)
        return loss


def build() -> Program:
    train, val = DataLoader(Noisy(16, 1), batch_size=2, shuffle=True), DataLoader(Noisy(4, 2), batch_size=2)
    return Program(Groups(), train, val, {"max_epochs": 2})
