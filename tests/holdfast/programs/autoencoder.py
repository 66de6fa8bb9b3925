"""Lightning's autoencoder example: encoder and decoder on flattened digits, the split drawn in the hook."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, Dataset, random_split

from . import Program


class LitAutoEncoder(LightningModule):
    def __init__(self, hidden_dim: int = 16, learning_rate: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.encoder = nn.Sequential(nn.Linear(28 * 28, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 3))
        self.decoder = nn.Sequential(nn.Linear(3, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, 28 * 28))

    def _common_step(self, batch: Any, stage: str) -> torch.Tensor:
        x = batch[0].view(batch[0].size(0), -1)
        loss = F.mse_loss(self.decoder(self.encoder(x)), x)
        self.log(f"{stage}_loss", loss, on_step=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self._common_step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._common_step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


class Digits(Dataset):
    """Reads draw nothing, so a resume needs no more than their indices."""

    is_deterministic = True
    num_reads = 0

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        Digits.num_reads += 1
        return torch.full((1, 28, 28), index / 30), index % 10

    def __len__(self) -> int:
        return 30


class MyDataModule(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        self.train_data, self.val_data = random_split(Digits(), [20, 10])
        self.train_data.is_deterministic = True
        return DataLoader(self.train_data, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_data, batch_size=4, shuffle=True)


def build() -> Program:
    settings = {"max_steps": 13, "check_val_every_n_epoch": 1, "reload_dataloaders_every_n_epochs": 2}
    return Program(LitAutoEncoder(), MyDataModule(), settings={**settings, "num_sanity_val_steps": 0})
