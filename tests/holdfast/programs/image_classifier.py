"""Lightning's image classifier example: convolutions with dropout, an accuracy, a scheduler by epoch."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from . import Program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, 2)
        self.conv2 = nn.Conv2d(8, 8, 3, 2)
        self.dropout1, self.dropout2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(72, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.flatten(self.dropout1(F.max_pool2d(x, 2)), 1)
        return F.log_softmax(self.fc2(self.dropout2(F.relu(self.fc1(x)))), dim=1)


class ImageClassifier(LightningModule):
    def __init__(self, lr: float = 1.0, gamma: float = 0.7) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Net()
        self.train_acc = Accuracy(task="multiclass", num_classes=10)
        self.val_acc = Accuracy(task="multiclass", num_classes=10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        logits = self.model(x)
        self.train_acc(logits, y)
        self.log("train_acc", self.train_acc, on_step=True, on_epoch=True)
        loss = F.nll_loss(logits, y)
        self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.model(x)
        self.val_acc(logits, y)
        self.log("val_acc", self.val_acc)
        self.log("val_loss", F.nll_loss(logits, y), on_step=True, on_epoch=True)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adadelta(self.model.parameters(), lr=self.hparams["lr"])
        return [optimizer], [StepLR(optimizer, step_size=1, gamma=self.hparams["gamma"])]


class Digits(LightningDataModule):
    def setup(self, stage: str) -> None:
        images, labels = torch.rand(44, 1, 28, 28), torch.randint(10, (44,))
        self.train_data = TensorDataset(images[:28], labels[:28])
        self.val_data = TensorDataset(images[28:], labels[28:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_data, batch_size=4, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_data, batch_size=8)


def build() -> Program:
    return Program(ImageClassifier(), Digits(), settings={"max_epochs": 3, "val_check_interval": 3})
