"""Ends an arm where its budget is used up, while its settings keep the run's own.

Knows nothing about what is compared.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


def until(env_steps: int) -> dict[str, Any]:
    """The callback as a setting."""
    return {"class_path": f"{__name__}.{Until.__name__}", "init_args": {"env_steps": env_steps}}


class Until(Callback):
    """Ends training at the first boundary from ``env_steps`` on: schedules may not outlast a run's budget."""

    def __init__(self, env_steps: int) -> None:
        self.env_steps = env_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        if pl_module.env_steps >= self.env_steps:
            trainer.should_stop = True
