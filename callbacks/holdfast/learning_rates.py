"""All learning rates of a run by one factor.

Knows nothing about why.
"""

from __future__ import annotations

from typing import Any


def scale_learning_rates(trainer: Any, factor: float) -> None:
    """In optimisers and in what schedulers compute them from; checkpoints to come hold both."""
    if factor == 1:
        return
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in ("lr", "initial_lr", "max_lr", "min_lr"):
                if name in group:
                    group[name] = group[name] * factor
    for config in trainer.lr_scheduler_configs:
        for name in ("base_lrs", "_last_lr"):
            if hasattr(config.scheduler, name):
                setattr(config.scheduler, name, [rate * factor for rate in getattr(config.scheduler, name)])
