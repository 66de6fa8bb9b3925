"""Small CartPole runs in a real Trainer, and how two of them are compared.

Knows nothing about what is tested with them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from perdqn.module import PERDQN

SMALL: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "replay": {"capacity": 400, "beta_env_steps": 600},
    "learner": {
        "batch_size": 16,
        "n_step": 2,
        "train_every": 3,
        "warmup_env_steps": 60,
        "updates_per_step": 4,
        "target_update_period": 20,
    },
    "exploration": {"epsilon_env_steps": 300},
    "evaluation": {"every_env_steps": 200, "episodes": 2, "num_envs": 2, "test_episodes": 3},
    "network": {"class_path": "mlp", "init_args": {"hidden_sizes": [16]}},
    "total_env_steps": 600,
}


def small(**overrides: Any) -> PERDQN:
    """A run of 600 env steps and 180 updates; overrides are merged into its sections."""
    settings = {**SMALL}
    for key, value in overrides.items():
        merges = isinstance(value, dict) and isinstance(SMALL.get(key), dict)
        settings[key] = {**SMALL[key], **value} if merges else value
    return PERDQN(**settings)


def trainer(*callbacks: Callback, **kwargs: Any) -> Trainer:
    return Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": 1,
            "logger": False,
            "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "callbacks": list(callbacks),
            **kwargs,
        }
    )


def fitted(*callbacks: Callback, **overrides: Any) -> PERDQN:
    module = small(**overrides)
    trainer(*callbacks).fit(module)
    return module


def fingerprint(module: PERDQN) -> dict[str, Any]:
    """Everything that decides how a run goes on."""
    return {
        "weights": module.state_dict(),
        "replay": module.memory.state_dict(),
        "experience": module.experience.capture(),
        "updates": module.update_steps,
        "episodes": module.recent_episodes.window_state(),
        "evaluation": (module.newest_evaluation_mean, module.best_evaluation_mean),
    }


def snapshot(module: PERDQN) -> tuple[Any, ...]:
    """What looking at a module must not change: weights, replay, the process's random streams, modes."""
    memory = module.memory.state_dict()
    return (
        {name: value.tolist() for name, value in module.state_dict().items()},
        (str(memory["rng"]), memory["counters"], memory["cache"]),
        (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
        [part.training for part in module.modules()],
    )


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


class SaveAt(Callback):
    """Saves a full checkpoint at the first boundary from ``env_step`` on."""

    def __init__(self, path: Path, env_step: int) -> None:
        self.path, self.env_step = path, env_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if pl_module.env_steps >= self.env_step and not self.path.exists():
            trainer.save_checkpoint(self.path)
