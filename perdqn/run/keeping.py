"""The callbacks of holdfast that keep a run and watch it, with the settings a command line has of them.

Knows nothing about how they do it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast import (
    AutoScaler,
    EmergencyCheckpoint,
    ErrorRecovery,
    PerformanceMonitor,
    ResourceMonitor,
    TuningAdvisor,
    VerifiedCheckpoint,
)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException

Sections = dict[str, tuple[type, dict[str, Any]]]

# By section of the settings: the callback, and what may be set of it with the default here.
KEEPERS: Sections = {
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


WATCHERS: Sections = {
    "resources": (
        ResourceMonitor,
        {"interval_s": 1.0, "log_every_seconds": 30.0, "write_every_seconds": 10.0, "releases": True},
    ),
    "performance": (
        PerformanceMonitor,
        {
            "report_every_steps": None,
            "report_every_episodes": None,
            "window_steps": 24,
            "every_s": 1.0,
            "max_cost": 0.002,
            "interventions": False,
        },
    ),
    "advisor": (
        TuningAdvisor,
        {
            "mode": "advise",
            "rules": [],
            "without": [],
            "every_n_steps": 500,
            "monitor": "eval/return_mean",
            "monitor_mode": "max",
            "num_samples": 20,
            "bounds": None,
        },
    ),
    "scaler": (AutoScaler, {"bounds": None, "window": 500, "min_gain": 0.05}),
}
SWITCHES = {  # of the watchers: what is on unless told otherwise, and the help
    "resources": (True, "watch memory, processor, disk and accelerator"),
    "performance": (True, "measure where the time goes, and name what slows the run down"),
    "advisor": (True, "say which settings to change, and why"),
    "scaler": (False, "fit settings to the machine that change the speed alone"),
}


def add_sections(parser: Any) -> None:
    """Give each callback a section; they are built with the trainer."""
    for name, (default, text) in SWITCHES.items():
        parser.add_argument(f"--watch.{name}", type=bool, default=default, help=text)
    for name, (kind, defaults) in {**KEEPERS, **WATCHERS}.items():
        parser.add_class_arguments(kind, name, skip=_parameters_of(kind) - defaults.keys())
        parser.set_defaults({f"{name}.{key}": value for key, value in defaults.items()})


def find_faults(settings: Mapping[str, Any], **others: type) -> list[str]:
    """What the callbacks, and ``others`` by section, refuse of their settings: the first fault of each."""
    found = []
    kinds = {section: kind for section, (kind, _) in {**KEEPERS, **WATCHERS}.items()}
    for section, kind in {**kinds, **others}.items():
        try:
            kind(**settings[section])
        except (ValueError, MisconfigurationException) as error:
            found.append(f"{section}.{' '.join(str(error).split())}")
    return found


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
