"""An iterable dataset without a length, which Lightning reads one batch ahead."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from . import Program
from .regression import Regression


class Walk(IterableDataset):
    """Each item depends on all before it, through numpy's global stream."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[torch.Tensor]:
        position = np.zeros(4)
        for _ in range(self.size):
            position = position + np.random.randn(4)
            yield torch.from_numpy(position.astype(np.float32))


def build() -> Program:
    train, val = DataLoader(Walk(15), batch_size=2), DataLoader(Walk(4), batch_size=2)
    return Program(Regression(), train, val, {"max_epochs": 2})
