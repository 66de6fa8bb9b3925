"""What the programs of our own have in common."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn


class Regression(LightningModule):
    """Dropout, epoch aggregates of train and validation loss."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 1))
        self.lr = lr

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layers(x) - x.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)
