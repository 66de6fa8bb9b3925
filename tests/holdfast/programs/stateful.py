"""A loader with ``state_dict`` and ``load_state_dict``, as torchdata's StatefulDataLoader has them."""

from collections.abc import Iterator
from typing import Any

import torch

from . import Program
from .regression import Regression


class StatefulLoader:
    """Endlessly many shuffles; it counts what it read, so a test sees that a resume reads nothing again."""

    num_reads = 0

    def __init__(self, size: int, batch_size: int) -> None:
        self.size, self.batch_size = size, batch_size
        self.order: list[int] = []
        self.position = 0
        self._is_loaded = False

    def __len__(self) -> int:
        return self.size // self.batch_size

    def __iter__(self) -> Iterator[torch.Tensor]:
        if not self._is_loaded:
            self.order, self.position = torch.randperm(self.size).tolist(), 0
        self._is_loaded = False
        return self._batches()

    def _batches(self) -> Iterator[torch.Tensor]:
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            StatefulLoader.num_reads += 1
            yield torch.tensor(self.order[start : start + self.batch_size])[:, None].expand(-1, 4) / self.size

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.position = list(state["order"]), state["position"]
        self._is_loaded = True


def build() -> Program:
    return Program(Regression(), StatefulLoader(12, 2), StatefulLoader(4, 2), {"max_epochs": 3})
