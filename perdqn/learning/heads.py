"""Heads: the last part of a Q-network, which owns its loss, its greedy action and its priorities.

Knows nothing about observations, replay or optimisers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from perdqn.learning import td
from perdqn.learning.td import ItemLoss


class Head(nn.Module):
    """From features to whatever the head learns of each action: scalars, distributions, quantiles.

    A subclass is made as ``cls(num_features, num_actions, **init_args)``; where its signature has them,
    ``dueling``, ``loss`` and ``huber_delta`` come from ``model.learner``. It writes `forward`, `q_values`
    and `item_loss`. The output is its own affair: any tensor or (named) tuple of tensors.
    """

    def forward(self, features: Tensor) -> Any:
        """The head's output for features [batch, num_features]."""
        raise NotImplementedError

    def q_values(self, output: Any) -> Tensor:
        """Expected returns [batch, actions] of an output."""
        raise NotImplementedError

    def greedy(self, output: Any) -> Tensor:
        """The best action by `q_values`, int64 [batch]; of equal ones the lowest."""
        return self.q_values(output).argmax(1)

    def item_loss(
        self,
        output: Any,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_output: Any,
        next_action: Tensor,
    ) -> ItemLoss:
        """Loss, priority and TD error of each transition; the gradient reaches ``output`` alone.

        Args:
            output: of the online network at obs.
            action: taken there, int64 [batch].
            reward: n-step reward, [batch].
            discount: gamma^k over the k steps taken, 0 after a termination, [batch].
            next_output: of the target network at next_obs.
            next_action: chosen at next_obs, by the online network in double Q-learning, int64 [batch].
        """
        raise NotImplementedError


class ExpectedHead(Head):
    """Scalar action values, trained by the Huber or squared TD error; the priority is its size.

    Dueling (arXiv:1511.06581, eq. 9): Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a'). The paper's rescaling
    of the gradient where the two streams meet is left out.

    Args:
        num_features: length of the feature vector.
        num_actions: number of actions.
        dueling: one stream for the value and one for the advantages.
        loss: ``huber`` or ``squared``.
        huber_delta: where the Huber loss turns linear.
        hidden_size: width of one ReLU layer in each stream; None makes the streams linear.
    """

    def __init__(
        self,
        num_features: int,
        num_actions: int,
        dueling: bool = True,
        loss: str = "huber",
        huber_delta: float = 1.0,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        if loss not in ("huber", "squared"):
            raise ValueError(f"model.learner.loss must be huber or squared, got {loss!r}")
        if loss == "huber" and not huber_delta > 0:
            raise ValueError(f"model.learner.huber_delta must be above 0, got {huber_delta!r}; 1.0 is usual")
        if hidden_size is not None and hidden_size < 1:
            setting = "model.head.init_args.hidden_size"
            raise ValueError(f"{setting} must be at least 1, got {hidden_size!r}; null leaves the layer out")
        self.huber_delta = huber_delta if loss == "huber" else None
        self.advantage = _stream(num_features, hidden_size, num_actions)
        self.value = _stream(num_features, hidden_size, 1) if dueling else None

    def forward(self, features: Tensor) -> Tensor:
        advantage = self.advantage(features)
        if self.value is None:
            return advantage
        return self.value(features) + advantage - advantage.mean(1, keepdim=True)

    def q_values(self, output: Tensor) -> Tensor:
        return output

    def item_loss(
        self,
        output: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_output: Tensor,
        next_action: Tensor,
    ) -> ItemLoss:
        error = td.td_error(output, action, reward, discount, next_output, next_action)
        loss = td.squared(error) if self.huber_delta is None else td.huber(error, self.huber_delta)
        detached = error.detach()
        return ItemLoss(loss, detached.abs(), detached)


def _stream(num_features: int, hidden_size: int | None, num_outputs: int) -> nn.Module:
    if hidden_size is None:
        return nn.Linear(num_features, num_outputs)
    return nn.Sequential(nn.Linear(num_features, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_outputs))


HEADS: dict[str, type] = {"expected": ExpectedHead}  # the short names of model.head
