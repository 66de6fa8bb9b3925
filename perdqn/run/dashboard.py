"""What TensorBoard needs beside the scalars: a layout at the start, hparams with the score at the end.

Knows nothing about other loggers; Lightning gives them the hyperparameters as it does always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast import BoundaryCallback
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

LAYOUT = {
    "learning": {
        "return, training": ["Multiline", ["rollout/return_mean"]],
        "return, evaluation": ["Margin", ["eval/return_mean", "eval/return_low", "eval/return_high"]],
        "episode length": ["Multiline", ["rollout/length_mean", "eval/length_mean"]],
        "q-values": ["Multiline", ["train/q_mean"]],
        "TD error": ["Multiline", ["train/td_error_abs_mean", "train/loss"]],
        "gradient norm": ["Multiline", ["train/grad_norm"]],
    },
    "replay": {
        "schedules": ["Multiline", ["rollout/epsilon", "replay/beta"]],
        "importance weights": ["Multiline", ["replay/is_weight_mean"]],
        "effective sample size": ["Multiline", ["replay/effective_sample_size"]],
        "largest priority": ["Multiline", ["replay/priority_max"]],
        "size": ["Multiline", ["replay/size"]],
    },
    "speed": {"env steps per second": ["Multiline", ["time/env_steps_per_second"]]},
}


class Dashboard(BoundaryCallback):  # whose idle hooks cost nothing
    """Adds the layout as training starts; `log_score` adds the rest."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(LAYOUT)


def log_score(trainer: Trainer, hparams: Mapping[str, Any], score: float | None, env_steps: int) -> None:
    """Hyperparameters beside the final score, once: TensorBoard keeps the first hparams it reads."""
    metrics = {} if score is None else {"final/return_mean": score}
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(dict(hparams), metrics, step=env_steps)
            logger.save()
