"""The many names of one thing: figures as projects log them, settings as they call them.

Knows nothing about what is done with them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# What general rules look at, and what it is called elsewhere; ``/``, ``.``, ``-`` and blanks count as ``_``.
FIGURES = {
    "loss": "train_loss training_loss loss_train",
    "val_loss": "valid_loss validation_loss eval_loss loss_val",
    "grad_norm": "gradient_norm total_grad_norm train_grad_norm grad_2_0_norm_total",
    "learning_rate": "lr train_learning_rate train_lr lr_adam lr_adamw lr_sgd",
    "weight_norm": "param_norm train_weight_norm",
    "update_ratio": "update_to_weight_ratio update_to_data_ratio",
    "gradient_noise_scale": "noise_scale",
    "dead_units": "dead_relus dead_share",
}
SETTINGS = {
    "learning_rate": "lr",
    "gradient_clip_val": "max_grad_norm clip_norm grad_clip gradient_clip",
    "batch_size": "train_batch_size",
    "weight_decay": "wd",
    "num_workers": "",
}
_FIGURE_OF = {alias: name for name, aliases in FIGURES.items() for alias in (name, *aliases.split())}


def figure_of(name: str) -> str | None:
    """What general rules call it; None where they do not know it.

    Means over an epoch are left out where Lightning also logs single steps, but not those of a validation.
    """
    plain = re.sub(r"\W", "_", name.lower())
    found = _FIGURE_OF.get(re.sub(r"_(step|epoch)$", "", plain))
    is_other_half = plain.endswith("_step" if found == "val_loss" else "_epoch")
    return None if is_other_half else found


def find_setting(settings: Mapping[str, Any], name: str) -> tuple[str | None, Any]:
    """A setting as it is typed, and its value, by its role; (None, None) where it is not there.

    Args:
        name: in full, or a role: the last part of a dotted name, or another word for it.
    """
    if name in settings:
        return name, settings[name]
    words = {name, *SETTINGS.get(name, "").split()}
    found = [key for key in settings if key.rpartition(".")[2] in words]
    return (found[0], settings[found[0]]) if found else (None, None)
