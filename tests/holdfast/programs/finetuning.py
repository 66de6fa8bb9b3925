"""Lightning's transfer learning example: a backbone unfrozen at milestones."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks.finetuning import BaseFinetuning
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Accuracy

from . import Program


class MilestonesFinetuning(BaseFinetuning):
    def __init__(self, milestones: tuple[int, int] = (1, 2), train_bn: bool = False) -> None:
        super().__init__()
        self.milestones, self.train_bn = milestones, train_bn

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(modules=pl_module.feature_extractor, train_bn=self.train_bn)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        layers = {self.milestones[0]: pl_module.feature_extractor[-3:]}
        layers[self.milestones[1]] = pl_module.feature_extractor[:-3]
        if epoch in layers:
            self.unfreeze_and_add_param_group(
                modules=layers[epoch], optimizer=optimizer, train_bn=self.train_bn
            )


class TransferLearningModel(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        backbone = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
        self.feature_extractor = nn.Sequential(*backbone, nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        self.train_acc, self.valid_acc = Accuracy(task="binary"), Accuracy(task="binary")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.flatten(self.feature_extractor(x), 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        logits = self(x)
        loss = F.binary_cross_entropy_with_logits(logits, y)
        self.train_acc(torch.sigmoid(logits), y.int())
        self.log("train_acc", self.train_acc, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.valid_acc(torch.sigmoid(self(x)), y.int())
        self.log("val_acc", self.valid_acc, prog_bar=True)

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=0.01)
        return [optimizer], [MultiStepLR(optimizer, milestones=[1, 2], gamma=0.1)]


def build() -> Program:
    images = TensorDataset(torch.rand(12, 3, 10, 10), torch.randint(2, (12, 1)).float())
    train, val = DataLoader(images, batch_size=4, shuffle=True), DataLoader(images, batch_size=6)
    return Program(TransferLearningModel(), train, val, {"max_epochs": 4}, [MilestonesFinetuning()])
