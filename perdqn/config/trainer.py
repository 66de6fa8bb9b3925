"""Which Trainer settings a run refuses, and why.

Knows nothing about Lightning: names and values only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from perdqn.config.wording import sentence


@dataclass(frozen=True)
class Refusal:
    """A Trainer setting that must stay as it is, unless ``allows`` its value.

    Args:
        must: what it must be, as a phrase.
        remedy: why, and what to use instead.
    """

    allows: Callable[[Any], bool]
    must: str
    remedy: str


def _only(*allowed: Any) -> Callable[[Any], bool]:
    """Nothing given, or one of ``allowed`` in its type: 1 batch is not all (1.0) of them."""
    return lambda value: value is None or any(value == a and type(value) is type(a) for a in allowed)


def _is_one_device(value: Any) -> bool:
    return value in (None, "auto", 1, "1") or (isinstance(value, list | tuple) and len(value) == 1)


def _is_duration(value: Any) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"\d+:\d\d:\d\d:\d\d", value.strip()) is not None


_EPOCH = "the run is one epoch, ended by its own budget: use model.total_env_steps or trainer.max_steps"
_EVALUATION = "evaluations are counted in env steps: use model.evaluation.every_env_steps"
_BATCH = "batches are drawn anew with the newest priorities: use model.learner.batch_size"
_CLIPPING = "updates clip their own gradients: use model.learner.max_grad_norm"
_BAREBONES = "it turns off the checkpoints and evaluations a run consists of"
_ONE_DEVICE = "acting, replay and learning share one process: start one run per seed instead"

REFUSED = {
    "accumulate_grad_batches": Refusal(_only(1), "stay 1", _BATCH),
    "limit_train_batches": Refusal(_only(1.0), "stay unset", _EPOCH),
    "overfit_batches": Refusal(_only(0, 0.0), "stay 0", _BATCH),
    "val_check_interval": Refusal(_only(1.0), "stay unset", _EVALUATION),
    "check_val_every_n_epoch": Refusal(_only(1), "stay 1", _EVALUATION),
    "max_epochs": Refusal(_only(-1, 1), "be null, -1 or 1", _EPOCH),
    "min_epochs": Refusal(_only(0, 1), "stay unset", _EPOCH),
    "min_steps": Refusal(_only(0), "stay unset", _EPOCH),
    "reload_dataloaders_every_n_epochs": Refusal(_only(0), "stay 0", _EPOCH),
    "gradient_clip_val": Refusal(_only(), "stay unset", _CLIPPING),
    "gradient_clip_algorithm": Refusal(_only(), "stay unset", _CLIPPING),
    "precision": Refusal(
        lambda value: not str(value).startswith(("16", "transformer")),
        "not be 16 bit",
        "its loss scaling hides the gradients' norm from max_grad_norm: use bf16-mixed",
    ),
    "devices": Refusal(_is_one_device, "be one device", _ONE_DEVICE),
    "num_nodes": Refusal(_only(1), "stay 1", _ONE_DEVICE),
    "barebones": Refusal(_only(False), "stay false", _BAREBONES),
    "max_time": Refusal(_is_duration, "read DD:HH:MM:SS", "use 00:01:30:00 for one and a half hours"),
}


def trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """A sentence for each of the Trainer's arguments that a run refuses."""
    refused = [(name, REFUSED[name], value) for name, value in trainer.items() if name in REFUSED]
    return [
        sentence(f"trainer.{n}", r.must, value, r.remedy) for n, r, value in refused if not r.allows(value)
    ]
