"""Us, through the public ways: `PrioritizedReplay`, and what `perdqn fit` does.

Knows nothing about how it is timed.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from peers.items import ALPHA, BETA, FRAME, GAMMA, N_STEP, NUM_ACTIONS, STACK, VECTORS, Chunk, Items
from peers.window import Setting, Window
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS, Column, EnvSpec


class Replay:
    """Rows of one environment; steps of many environments go to a replay with as many rings."""

    adds_steps = True

    def __init__(self, kind: str, capacity: int, **options: Any) -> None:
        self.kind, self.capacity, self.options = kind, capacity, options
        self.one = self._make(1)
        self.many: PrioritizedReplay | None = None

    def _make(self, num_envs: int) -> PrioritizedReplay:
        num_actions = NUM_ACTIONS[self.kind]
        if self.kind == VECTORS:
            spec = EnvSpec((Column(OBS, (4,), np.dtype(np.float64)),), False, num_actions)
            return PrioritizedReplay(spec, num_envs, self.capacity, alpha=ALPHA, **self.options)
        spec = EnvSpec((Column(OBS, FRAME, np.dtype(np.uint8)),), False, num_actions, 0, STACK)
        settings = {"alpha": ALPHA, "n_step": N_STEP, "gamma": GAMMA, **self.options}
        return PrioritizedReplay(spec, num_envs, self.capacity, **settings)

    def fill(self, items: Items) -> None:
        chunks = items.side_by_side(1)
        for _ in range(self.capacity):
            self._add(self.one, next(chunks))
        if self.kind == VECTORS:
            self.many, steps = self._make(64), items.side_by_side(64)
            for _ in range(self.capacity // 64):
                self._add(self.many, next(steps))

    def prepare(self, chunk: Chunk) -> Any:
        return chunk

    def append(self, chunk: Chunk) -> None:
        replay = self.one if len(chunk["done"]) == 1 else self.many
        assert replay is not None
        self._add(replay, chunk)

    @staticmethod
    def _add(replay: PrioritizedReplay, chunk: Chunk) -> None:
        final = {OBS: chunk["next_obs"]}
        obs = {OBS: chunk["obs"]}
        replay.add(obs, chunk["action"], chunk["reward"], chunk["done"], chunk["truncated"], final)

    def sample(self, batch_size: int) -> Any:
        return self.one.sample(batch_size, BETA).id

    def update(self, ids: Any, priorities: np.ndarray) -> None:
        self.one.update_priorities(ids, priorities)

    def gather(self, ids: Any) -> Any:
        return self.one.rows.observations(self._with_next(ids))[OBS]

    def gather_scaled(self, ids: Any) -> Any:
        observations = self.one.rows.observations
        if "scaled" in inspect.signature(observations).parameters:
            return observations(self._with_next(ids), scaled=True)[OBS]
        return torch.from_numpy(self.gather(ids)).float().div_(255)

    def _with_next(self, ids: Any) -> np.ndarray:
        ids = np.asarray(ids)
        return np.concatenate([ids, self.one.rows.windows(ids).next_id])

    @property
    def reserved_bytes(self) -> int:
        return int(self.one.get_memory_usage()["reserved_bytes"])


class Terminal(io.StringIO):
    """Something to draw a progress bar on."""

    def isatty(self) -> bool:
        return True


def train(setting: Setting, window: Window, num_threads: int, overrides: Sequence[str] = ()) -> None:
    """`perdqn fit` with the default callbacks, TensorBoard and a progress bar, until the window closes."""
    from lightning.pytorch import Callback

    from perdqn.assembly import RunCLI
    from perdqn.cli.quiet import quiet

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            if window.see(pl_module.env_steps, pl_module.update_steps):
                trainer.should_stop = True

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(Terminal()), quiet():
        argv = [*_arguments(setting, num_threads), *map(_spell, overrides)]
        cli = RunCLI("fit", [*argv, f"--trainer.default_root_dir={folder}"])
        cli.trainer.callbacks.append(Watch())
        cli.trainer.fit(cli.model)
        os.chdir("/")


def _spell(override: str) -> str:
    return f"--{override}" if override.startswith("trainer.") else f"--model.{override}"


def _arguments(setting: Setting, num_threads: int) -> list[str]:
    torsos = {
        "mlp": f"{{class_path: mlp, init_args: {{hidden_sizes: {setting.hidden_sizes}}}}}",
        "minatar": "{class_path: minatar_cnn}",
        "nature": "{class_path: nature_cnn}",
    }
    pong = ["env.frame_stack=4", "env.kwargs={repeat_action_probability: 0.0}", "learner.reward_clip=1.0"]
    settings = [
        f"env.id={setting.env}",
        f"network={torsos[setting.network]}",
        f"replay.capacity={setting.capacity}",
        f"learner.batch_size={setting.batch_size}",
        f"learner.train_every={setting.train_every}",
        f"learner.learning_rate={setting.learning_rate}",
        f"learner.warmup_env_steps={setting.warmup}",
        f"learner.target_update_period={setting.target_updates}",
        f"learner.num_threads={num_threads}",
        "learner.double=false",
        "learner.dueling=false",
        f"exploration.epsilon_start={setting.epsilon}",
        f"exploration.epsilon_end={setting.epsilon}",
        "evaluation.every_env_steps=null",
        f"total_env_steps={10**9}",
        *(pong if setting.network == "nature" else []),
    ]
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[setting.device]
    trainer = [f"--trainer.accelerator={accelerator}", "--trainer.devices=1"]
    return [*trainer, *(f"--model.{each}" for each in settings)]
