"""What the peers of a comparison of throughput act in and learn with: games as gymnasium has them, networks.

Knows nothing about any library but torch and gymnasium.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import torch
from torch import nn

from peers.window import Setting


def make(setting: Setting) -> Any:
    """One environment; Atari with the preprocessing of ALE's vector: 4 frames a step, the last 2 pooled."""
    if setting.network == "mlp":
        return gymnasium.make(setting.env)
    if setting.network == "minatar":
        import minatar.gym

        minatar.gym.register_envs()
        return gymnasium.make(setting.env)
    import ale_py

    gymnasium.register_envs(ale_py)
    env = gymnasium.make(setting.env, frameskip=1, repeat_action_probability=0.0)
    env = gymnasium.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=84)
    env = gymnasium.wrappers.ClipReward(env, -1.0, 1.0)
    return gymnasium.wrappers.FrameStackObservation(env, 4)


class MinAtarCNN(nn.Sequential):
    """The network of arXiv:1903.03176: 16 filters of 3x3, 128 units; bool [batch, 10, 10, channels] in."""

    def __init__(self, num_actions: int, num_channels: int = 4) -> None:
        super().__init__(
            nn.Conv2d(num_channels, 16, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 8 * 8, 128),
            nn.ReLU(),
            nn.Linear(128, num_actions),
        )

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return super().forward(obs.float().permute(0, 3, 1, 2))


class NatureCNN(nn.Sequential):
    """The network of the Nature paper; uint8 [batch, 4, 84, 84] in."""

    def __init__(self, num_actions: int, num_channels: int = 4) -> None:
        super().__init__(
            nn.Conv2d(num_channels, 32, 8, 4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, 2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
            nn.Linear(512, num_actions),
        )

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        return super().forward(obs.float() / 255)
