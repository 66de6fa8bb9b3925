"""Stable-Baselines3: its n-step replay, and DQN; it has no priorities.

Knows nothing about how it is timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from peers.games import make
from peers.items import FRAME, GAMMA, N_STEP, NUM_ACTIONS, STACK, VECTORS, Chunk, Items, stack
from peers.window import Setting, Window


class Replay:
    """Whole stacks before and after: its leaner layout and n-step returns exclude each other."""

    adds_steps = True

    def __init__(self, kind: str, capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        action = spaces.Discrete(NUM_ACTIONS[kind])
        if kind == VECTORS:
            self.buffer: Any = ReplayBuffer(capacity, spaces.Box(-10, 10, (4,), np.float64), action)
        else:
            image = spaces.Box(0, 255, (STACK, *FRAME), np.uint8)
            self.buffer = NStepReplayBuffer(capacity, image, action, n_steps=N_STEP, gamma=GAMMA)

    def fill(self, items: Items) -> None:
        chunks = items.side_by_side(1)
        for _ in range(self.capacity):
            self.append(self.prepare(next(chunks)))

    def prepare(self, chunk: Chunk) -> Any:
        obs, next_obs = chunk["obs"], chunk["next_obs"]
        if self.kind != VECTORS:
            obs, next_obs = stack(obs), stack(next_obs)
        return obs, next_obs, chunk["action"], chunk["reward"], chunk["done"], [{}]

    def append(self, step: Any) -> None:
        self.buffer.add(*step)

    def sample(self, batch_size: int) -> Any:
        self.buffer.sample(batch_size)

    def update(self, ids: Any, priorities: np.ndarray) -> None:
        """There is nothing to update."""


# -- training ---------------------------------------------------------------------------------------


class MinAtarFeatures(BaseFeaturesExtractor):
    """All but the last layer of the network of arXiv:1903.03176."""

    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, features_dim=128)
        filters = nn.Conv2d(observation_space.shape[-1], 16, 3)
        self.layers = nn.Sequential(filters, nn.ReLU(), nn.Flatten(), nn.Linear(1024, 128), nn.ReLU())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return self.layers(obs.permute(0, 3, 1, 2))


class Watch(BaseCallback):
    def __init__(self, window: Window) -> None:
        super().__init__()
        self.window = window

    def _on_step(self) -> bool:
        model: Any = self.model
        return not self.window.see(model.num_timesteps, model._n_updates)


def train(setting: Setting, window: Window, num_envs: int) -> None:
    """An update after ``train_every`` steps, and one for each environment where there are more."""
    envs = make_vec_env(lambda: make(setting), n_envs=num_envs)
    policies: dict[str, tuple[str, dict[str, Any]]] = {
        "mlp": ("MlpPolicy", {"net_arch": setting.hidden_sizes}),
        "minatar": ("MlpPolicy", {"net_arch": [], "features_extractor_class": MinAtarFeatures}),
        "nature": ("CnnPolicy", {}),
    }
    policy, kwargs = policies[setting.network]
    model = DQN(
        policy,
        envs,
        learning_rate=setting.learning_rate,
        buffer_size=setting.capacity,
        learning_starts=setting.warmup,
        batch_size=setting.batch_size,
        gamma=setting.gamma,
        train_freq=setting.train_every,
        gradient_steps=num_envs,
        target_update_interval=setting.target_updates * setting.train_every,
        exploration_initial_eps=setting.epsilon,
        exploration_final_eps=setting.epsilon,
        policy_kwargs=kwargs,
        device="cpu",
    )
    model.learn(10**9, callback=Watch(window))
