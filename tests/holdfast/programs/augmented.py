"""Two workers, items with noise of three libraries, a loader generator, shuffled validation by batches."""

import random
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from . import Program
from .regression import Regression


class Noisy(Dataset):
    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.numpy = np.random.default_rng(seed)  # a stream of its own

    def __getitem__(self, index: int) -> torch.Tensor:
        noise = random.random() + float(np.random.rand()) + float(self.numpy.random())
        return torch.randn(4) * 0.1 + index / self.size + 0.01 * noise

    def __len__(self) -> int:
        return self.size


class Collecting(Regression):
    """Keeps outputs in a list until the epoch ends, as Lightning's own migration guide advises."""

    def __init__(self) -> None:
        super().__init__()
        self.training_outputs: list[torch.Tensor] = []
        self.generator = torch.Generator().manual_seed(3)
        self.num_validations = 0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch + 0.01 * torch.randn(4, generator=self.generator), batch_idx)
        self.training_outputs.append(loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("collected", torch.stack(self.training_outputs).mean())
        self.training_outputs.clear()

    def on_validation_epoch_end(self) -> None:
        self.num_validations += 1
        self.log("num_validations", float(self.num_validations))


def build() -> Program:
    streams = torch.Generator().manual_seed(11), torch.Generator().manual_seed(12)
    train = DataLoader(Noisy(18, 1), batch_size=3, shuffle=True, generator=streams[0], num_workers=2)
    val = DataLoader(Noisy(8, 2), batch_size=4, shuffle=True, generator=streams[1])
    return Program(Collecting(), train, val, {"max_epochs": 2, "val_check_interval": 4})
