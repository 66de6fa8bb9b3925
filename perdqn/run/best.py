"""The weights of the best evaluation so far.

Knows nothing about how an evaluation is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved_at = {"dirpath": self.dirpath}
        for key in ("best_model_path", "kth_best_model_path"):
            if state_dict.get(key):
                saved_at[key] = str(Path(str(self.dirpath), Path(state_dict[key]).name))
        best = {saved_at["best_model_path"]: score for score in state_dict["best_k_models"].values()}
        super().load_state_dict({**state_dict, **saved_at, "best_k_models": best})
