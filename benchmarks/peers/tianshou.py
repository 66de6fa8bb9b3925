"""Tianshou: its prioritized buffers, and DQN through its trainer, as in its examples.

Knows nothing about how it is timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.algorithm_base import Algorithm
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Batch, Collector, PrioritizedVectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net
from torch import nn

from peers.games import MinAtarCNN, NatureCNN, make
from peers.items import ALPHA, BETA, GAMMA, N_STEP, STACK, VECTORS, Chunk, Items, stack
from peers.window import Setting, Window

LEAN = {"stack_num": STACK, "ignore_obs_next": True, "save_only_last_obs": True}


class Replay:
    """One buffer an environment; n-step returns are computed beside the buffer, by its own function."""

    adds_steps = True

    def __init__(self, kind: str, capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        self.one = self._make(1)
        self.many: Any = None

    def _make(self, num_envs: int) -> Any:
        lean = {} if self.kind == VECTORS else LEAN
        return PrioritizedVectorReplayBuffer(self.capacity, num_envs, alpha=ALPHA, beta=BETA, **lean)

    def fill(self, items: Items) -> None:
        chunks = items.side_by_side(1)
        for _ in range(self.capacity):
            self.append(self.prepare(next(chunks)))
        if self.kind == VECTORS:
            self.many, steps = self._make(64), items.side_by_side(64)
            for _ in range(self.capacity // 64):
                self.append(self.prepare(next(steps)))

    def prepare(self, chunk: Chunk) -> Any:
        named = {
            "obs": chunk["obs"],
            "act": chunk["action"],
            "rew": chunk["reward"],
            "terminated": chunk["done"],
            "truncated": chunk["truncated"],
            "done": chunk["done"],
        }
        if self.kind == VECTORS:
            named["obs_next"] = chunk["next_obs"]
        else:
            named |= {"obs": stack(chunk["obs"]), "obs_next": stack(chunk["next_obs"])}
        return Batch(named)

    def append(self, step: Any) -> None:
        num_envs = len(step.rew)
        buffer = self.one if num_envs == 1 else self.many
        buffer.add(step, buffer_ids=np.arange(num_envs))

    def sample(self, batch_size: int) -> Any:
        batch, ids = self.one.sample(batch_size)
        if self.kind != VECTORS:
            self._add_returns(batch, ids)
        return ids

    def _add_returns(self, batch: Any, ids: np.ndarray) -> Any:
        def gather_next(buffer: Any, indices: np.ndarray) -> torch.Tensor:
            self.next_obs = buffer[indices].obs_next
            return torch.zeros(len(indices))

        return Algorithm.compute_nstep_return(batch, self.one, ids, gather_next, GAMMA, N_STEP)

    def update(self, ids: Any, priorities: np.ndarray) -> None:
        self.one.update_weight(ids, priorities)


# -- training ---------------------------------------------------------------------------------------


class Closed(Exception):
    """The window has; Tianshou's trainer knows no other end."""


class ImageNet(nn.Module):
    """What a policy calls: observations in, values and no state out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Any, state: Any = None, info: Any = None) -> tuple[torch.Tensor, Any]:
        return self.net(torch.as_tensor(np.asarray(obs))), state


def train(setting: Setting, window: Window, num_envs: int) -> None:
    """Collect for one update an environment, then make these, again and again."""
    envs = DummyVectorEnv([lambda: make(setting) for _ in range(num_envs)])
    space = envs.get_env_attr("action_space", 0)[0]
    shape = envs.get_env_attr("observation_space", 0)[0].shape
    num_actions = int(space.n)
    if setting.network == "mlp":
        net: Any = Net(state_shape=shape, action_shape=num_actions, hidden_sizes=setting.hidden_sizes)
    else:
        net = ImageNet((NatureCNN if setting.network == "nature" else MinAtarCNN)(num_actions))
    policy = DiscreteQLearningPolicy(model=net, action_space=space, eps_training=setting.epsilon)
    algorithm: Any = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=setting.learning_rate),
        gamma=setting.gamma,
        target_update_freq=setting.target_updates,
        is_double=False,
    )
    lean = LEAN if setting.network == "nature" else {}
    buffer = PrioritizedVectorReplayBuffer(setting.capacity, num_envs, alpha=ALPHA, beta=BETA, **lean)
    collector = Collector(algorithm, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=setting.warmup, random=True)

    def look(epoch: int, env_step: int) -> None:
        if window.see(setting.warmup + env_step, algorithm._iter):
            raise Closed

    parameters = OffPolicyTrainerParams(
        max_epochs=10**6,
        epoch_num_steps=10**6,
        training_collector=collector,
        collection_step_num_env_steps=setting.train_every * num_envs,
        update_step_num_gradient_steps_per_sample=1 / setting.train_every,
        batch_size=setting.batch_size,
        training_fn=look,
        show_progress=False,
        verbose=False,
    )
    try:
        algorithm.run_training(parameters)
    except Closed:
        envs.close()
