"""The weights of the best evaluation so far.

Knows nothing about how an evaluation is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class BestCheckpoint(ModelCheckpoint):
    """Keeps the weights with the highest ``eval/return_mean``; keeps nothing where nothing is evaluated.

    The best score survives a resume even where the run folder was moved (Lightning's own callback forgets
    it then, and a worse agent replaces the best one).
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            dirpath=path.parent,
            filename=path.stem,
            monitor="eval/return_mean",
            mode="max",
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not getattr(pl_module, "is_evaluation_aborted", False):  # it has no score then
            super().on_validation_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        here = {"dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path"):
            here[key] = self._find(state_dict[key])
        best = {self._find(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **here, "best_k_models": best})

    def _find(self, path: str) -> str:
        """Where a file of the run lies now; nothing stays nothing."""
        return str(Path(str(self.dirpath), Path(path).name)) if path else path
