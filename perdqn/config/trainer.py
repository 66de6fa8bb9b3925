"""Which Trainer settings a run refuses, and why.

Knows nothing about Lightning: names and values only.
"""

from __future__ import annotations

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


def _one_of(*allowed: Any) -> Callable[[Any], bool]:
    return lambda value: not isinstance(value, bool) and value in allowed or value is None


def _is_one_device(value: Any) -> bool:
    return value in (None, "auto", "1") or value == 1 or (isinstance(value, list | tuple) and len(value) == 1)


_EPOCH = "the run is one epoch, ended by its own budget: use model.total_env_steps or trainer.max_steps"
_EVALUATION = "evaluations are counted in env steps: use model.evaluation.every_env_steps"
_ONE_DEVICE = "acting, replay and learning share one process: start one run per seed instead"

REFUSED = {
    "accumulate_grad_batches": Refusal(
        _one_of(1),
        "stay 1",
        "every batch is drawn with the newest priorities: raise model.learner.batch_size",
    ),
    "limit_train_batches": Refusal(_one_of(1.0), "stay unset", _EPOCH),
    "overfit_batches": Refusal(
        _one_of(0),
        "stay 0",
        "there is no fixed data set to overfit: lower model.replay.capacity for a small replay",
    ),
    "val_check_interval": Refusal(_one_of(1.0), "stay unset", _EVALUATION),
    "check_val_every_n_epoch": Refusal(_one_of(1), "stay 1", _EVALUATION),
    "max_epochs": Refusal(_one_of(-1, 1), "be null, -1 or 1", _EPOCH),
    "min_epochs": Refusal(_one_of(0, 1), "stay unset", _EPOCH),
    "min_steps": Refusal(_one_of(0), "stay unset", _EPOCH),
    "reload_dataloaders_every_n_epochs": Refusal(
        _one_of(0), "stay 0", "the run is one epoch and its loader the replay"
    ),
    "gradient_clip_val": Refusal(
        _one_of(), "stay unset", "updates clip by themselves: use model.learner.max_grad_norm"
    ),
    "gradient_clip_algorithm": Refusal(
        _one_of(), "stay unset", "updates clip by norm by themselves: use model.learner.max_grad_norm"
    ),
    "devices": Refusal(_is_one_device, "be one device", _ONE_DEVICE),
    "num_nodes": Refusal(_one_of(1), "stay 1", _ONE_DEVICE),
    "barebones": Refusal(
        lambda value: not value, "stay false", "checkpoints and evaluations need what it turns off"
    ),
}


def trainer_faults(trainer: Mapping[str, Any]) -> list[str]:
    """A sentence for each of the Trainer's arguments that a run refuses."""
    refused = [(name, REFUSED[name], value) for name, value in trainer.items() if name in REFUSED]
    return [
        sentence(f"trainer.{n}", r.must, value, r.remedy) for n, r, value in refused if not r.allows(value)
    ]
