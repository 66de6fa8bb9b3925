"""TorchRL: its prioritized replay of tensordicts, and DQN by collector, replay and loss, as in its examples.

Knows nothing about how it is timed. Needs its compiled part; see `build_torchrl`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torchrl.collectors import Collector
from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer
from torchrl.envs import GymWrapper
from torchrl.modules import MLP, EGreedyModule, QValueActor
from torchrl.objectives import DQNLoss, HardUpdate

from peers.games import MinAtarCNN, NatureCNN, make
from peers.items import ALPHA, BETA, GAMMA, N_STEP, VECTORS, Chunk, Items, stack
from peers.window import Setting, Window

_FILL = 64
_UPDATES_AT_ONCE = 16  # its examples collect a thousand frames, then make a hundred


class Replay:
    """Whole stacks before and after; n-step returns are summed beforehand, by whoever collects."""

    adds_steps = False

    def __init__(self, kind: str, capacity: int) -> None:
        self.kind, self.capacity = kind, capacity
        self.buffer = _make_buffer(capacity)

    def fill(self, items: Items) -> None:
        chunks = items.chunks(_FILL)
        for _ in range(self.capacity // _FILL):
            self.append(self.prepare(next(chunks)))

    def prepare(self, chunk: Chunk) -> TensorDict:
        if self.kind != VECTORS:
            chunk = chunk | {k: stack(chunk[k]) for k in ("obs", "next_obs")}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(each)) for name, each in chunk.items()}
        obs = tensors["obs"]
        after = {
            "observation": tensors["next_obs"],
            "reward": tensors["reward"][:, None],
            "done": tensors["done"][:, None],
            "terminated": tensors["done"][:, None],
        }
        if self.kind != VECTORS:
            after["gamma"] = torch.full((len(obs), 1), GAMMA**N_STEP)
        step = {"observation": obs, "action": tensors["action"], "next": after}
        return TensorDict(step, batch_size=[len(obs)])

    def append(self, step: TensorDict) -> None:
        self.buffer.extend(step)

    def sample(self, batch_size: int) -> Any:
        return self.buffer.sample(batch_size)["index"]

    def update(self, ids: Any, priorities: np.ndarray) -> None:
        self.buffer.update_priority(ids, torch.from_numpy(priorities).float())


def _make_buffer(
    capacity: int, batch_size: int | None = None, device: str = "cpu"
) -> TensorDictPrioritizedReplayBuffer:
    storage = LazyTensorStorage(capacity, device=device)
    return TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=storage, batch_size=batch_size)


# -- training ---------------------------------------------------------------------------------------


class AnyBatch(torch.nn.Module):
    """Values of images in batches of any shape: a single environment hands out none."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        batch, image = obs.shape[:-3], obs.shape[-3:]
        return self.net(obs.reshape(-1, *image)).reshape(*batch, -1)


def train(setting: Setting, window: Window, num_envs: int) -> None:
    """Collect for some updates, then make them, again and again."""
    assert num_envs == 1, "one environment"
    env = GymWrapper(make(setting), categorical_action_encoding=True)
    spec, num_actions = env.action_spec, env.action_spec.n
    if setting.network == "mlp":
        net: Any = MLP(
            in_features=env.observation_spec["observation"].shape[-1],
            out_features=num_actions,
            num_cells=setting.hidden_sizes,
            activation_class=torch.nn.ReLU,
        )
    else:
        net = AnyBatch((NatureCNN if setting.network == "nature" else MinAtarCNN)(num_actions))
    net, spec = net.to(setting.device), spec.to(setting.device)
    actor = QValueActor(net, spec=spec, in_keys=["observation"])
    explore = EGreedyModule(spec, setting.epsilon, setting.epsilon, annealing_num_steps=1)
    collector = Collector(
        env,
        TensorDictSequential(actor, explore),
        frames_per_batch=setting.train_every * _UPDATES_AT_ONCE,
        total_frames=-1,
        init_random_frames=setting.warmup,
        policy_device=setting.device,
        env_device="cpu",
        storing_device=setting.device,
    )
    buffer = _make_buffer(setting.capacity, setting.batch_size, setting.device)
    loss_module = DQNLoss(actor, loss_function="smooth_l1", delay_value=True, double_dqn=False)
    loss_module.make_value_estimator(gamma=setting.gamma)
    target = HardUpdate(loss_module, value_network_update_interval=setting.target_updates)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=setting.learning_rate)
    env_steps = updates = 0
    for steps in collector:
        buffer.extend(steps.reshape(-1))
        env_steps += steps.numel()
        if env_steps <= setting.warmup:
            continue
        for _ in range(_UPDATES_AT_ONCE):
            batch = buffer.sample()
            loss = loss_module(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            buffer.update_tensordict_priority(batch)
            target.step()
            updates += 1
        if window.see(env_steps, updates):
            break
    collector.shutdown()
