"""Lightning's transformer demo on synthetic tokens; its dropout draws from torch's global stream."""

from typing import Any

import torch
from lightning.pytorch.demos.transformer import LightningTransformer, Transformer
from torch.utils.data import DataLoader, TensorDataset

from . import Program


class SmallTransformer(LightningTransformer):
    def __init__(self, vocab_size: int = 20) -> None:
        super().__init__(vocab_size)
        self.model = Transformer(vocab_size, ninp=8, nhead=2, nhid=8, nlayers=1)

    def prepare_data(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        tokens = torch.randint(20, (36, 7))
        return DataLoader(TensorDataset(tokens[:, :-1], tokens[:, 1:]), batch_size=3, shuffle=True)


def build() -> Program:
    return Program(SmallTransformer(), settings={"max_epochs": 2, "limit_train_batches": 4})
