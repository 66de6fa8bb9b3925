"""A small Lightning run that saves all the time, for whoever wants to break its saves.

Knows nothing about how it is broken.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(LightningModule):
    """A few hundred kilobytes of weights and Adam's moments."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 4))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(256, 32, generator=generator)
        labels = torch.randint(4, (256,), generator=generator)
        return DataLoader(TensorDataset(inputs, labels), batch_size=16, shuffle=True)


QUIET: dict[str, Any] = {
    "max_epochs": -1,
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def train(root: Path, callbacks: list[Callback], steps: int, ckpt_path: Path | None = None) -> Trainer:
    """Train for ``steps`` updates, on one thread and in silence."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = Trainer(**QUIET, max_steps=steps, default_root_dir=root, callbacks=callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(Classifier(), ckpt_path=ckpt_path)
    return trainer
