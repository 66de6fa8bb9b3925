"""Lightning's LSTM demo on synthetic tokens; the hidden state, an attribute, lives from batch to batch."""

from typing import Any

import torch
from lightning.pytorch.demos.lstm import LightningLSTM, SequenceSampler, SimpleLSTM
from torch.utils.data import DataLoader, TensorDataset

from . import Program


class SmallLSTM(LightningLSTM):
    def __init__(self, vocab_size: int = 20) -> None:
        super().__init__(vocab_size)
        self.model = SimpleLSTM(vocab_size, ninp=8, nhid=8, nlayers=2)

    def prepare_data(self) -> None:
        pass

    def train_dataloader(self) -> Any:
        tokens = torch.randint(20, (24, 6))
        dataset = TensorDataset(tokens[:, :-1], tokens[:, 1:])
        return DataLoader(dataset, batch_sampler=SequenceSampler(dataset, batch_size=4))


def build() -> Program:
    return Program(SmallLSTM(), settings={"max_epochs": 2, "gradient_clip_val": 0.25})
