"""Lightning's bug report template: BoringModel on random vectors, metrics logged, validation."""

from typing import Any

from lightning.pytorch.demos.boring_classes import BoringModel as Template
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch.utils.data import DataLoader

from . import Program


class BoringModel(Template):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self(batch).sum()
        self.log("train_loss", loss)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("valid_loss", self(batch).sum())


def build() -> Program:
    train, val = (DataLoader(RandomDataset(32, 64), batch_size=2) for _ in range(2))
    settings = {"limit_train_batches": 5, "limit_val_batches": 2, "num_sanity_val_steps": 0, "max_epochs": 2}
    return Program(BoringModel(), train, val, settings)
