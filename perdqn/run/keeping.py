"""The callbacks of holdfast that keep a run, with the settings a command line has of them.

Knows nothing about how they do it.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from holdfast import EmergencyCheckpoint, ErrorRecovery, VerifiedCheckpoint
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

# By section of the settings: the callback, and what may be set of it with the default here.
SECTIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "checkpoint": (
        VerifiedCheckpoint,
        {
            "every": {"minutes": 1.0},
            "keep": 2,
            "at_start": True,
            "rehearse": False,
            "max_time_fraction": 0.005,
            "user": None,
        },
    ),
    "emergency": (
        EmergencyCheckpoint,
        {
            "every": None,
            "keep": 1,
            "grace_seconds": 30.0,
            "max_seconds": None,
            "until": None,
            "notices": [],
            "reserve": True,
        },
    ),
    "recovery": (
        ErrorRecovery,
        {
            "max_skipped": 10,
            "max_rollbacks": 3,
            "lr_factor": 0.5,
            "spike_factor": None,
            "check_gradients": False,
            "oom_retries": 2,
        },
    ),
}


def add_sections(parser: Any) -> None:
    """Give each callback a section; they are built with the trainer."""
    for name, (kind, defaults) in SECTIONS.items():
        parser.add_class_arguments(kind, name, skip=_parameters_of(kind) - defaults.keys())
        parser.set_defaults({f"{name}.{key}": value for key, value in defaults.items()})


def _parameters_of(kind: type) -> set[str]:
    """Names that its constructor takes, those handed on to ModelCheckpoint included."""
    kinds = (kind, ModelCheckpoint) if issubclass(kind, ModelCheckpoint) else (kind,)
    names = {name for each in kinds for name in inspect.signature(each).parameters}
    return names - {"options"}


class BestCheckpoint(VerifiedCheckpoint):
    """Keeps the weights with the highest ``eval/return_mean``; keeps nothing where nothing is evaluated."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path.parent,
            path.stem,
            "eval/return_mean",
            mode="max",
            save_weights_only=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not getattr(pl_module, "is_evaluation_aborted", False):  # it has no score then
            super().on_validation_end(trainer, pl_module)
