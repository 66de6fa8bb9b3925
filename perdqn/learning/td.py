"""The mathematics of temporal-difference targets and losses, as pure functions of tensors.

Knows nothing about networks, replay or how a batch came about.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional


class ItemLoss(NamedTuple):
    """What a head hands back for each transition of a batch.

    Args:
        loss: [batch], differentiable, not yet weighted by importance.
        priority: [batch], non-negative and detached; the replay adds its eps and its exponent.
        td_error: [batch], signed target - estimate, detached.
    """

    loss: Tensor
    priority: Tensor
    td_error: Tensor


def bootstrap_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """The n-step return, continued by a value where the episode goes on.

    y = R_k + discount * V(s_{t+k}),   R_k = sum_{i<k} gamma^i r_{t+i}

    Args:
        reward: R_k over the k steps taken, [batch].
        discount: gamma^k, and 0 after a termination, [batch]; a truncation keeps its gamma^k.
        next_value: the value of the observation k steps on, [batch].

    Raises:
        ValueError: the shapes differ, which broadcasting would turn into a [batch, batch] target.
    """
    if not reward.shape == discount.shape == next_value.shape:
        shapes = f"reward {[*reward.shape]}, discount {[*discount.shape]}, next_value {[*next_value.shape]}"
        raise ValueError(f"a target needs one shape, [batch], got {shapes}")
    return reward + discount * next_value


def td_error(
    q_values: Tensor,
    action: Tensor,
    reward: Tensor,
    discount: Tensor,
    next_q_values: Tensor,
    next_action: Tensor,
) -> Tensor:
    """Signed TD error of an n-step target, [batch]; the gradient reaches ``q_values`` alone.

    delta = R_k + discount * Q_target(s_{t+k}, a*) - Q(s_t, a_t)

    a* = argmax_a Q_online(s_{t+k}, a) makes it double Q-learning (arXiv:1509.06461),
    argmax_a Q_target(s_{t+k}, a) the plain one.

    Args:
        q_values: Q(s_t, .), [batch, actions].
        action: a_t, int64 [batch].
        reward: R_k, [batch], see `bootstrap_target`.
        discount: gamma^k, 0 after a termination, [batch].
        next_q_values: Q_target(s_{t+k}, .), [batch, actions].
        next_action: a*, int64 [batch].
    """
    target = bootstrap_target(reward, discount, select(next_q_values, next_action))
    return target.detach() - select(q_values, action)


def select(values: Tensor, action: Tensor) -> Tensor:
    """The entry of each item's action: [batch, actions, ...] and [batch] to [batch, ...]."""
    if values.ndim == 2:
        return values.gather(1, action.unsqueeze(1)).squeeze(1)
    index = action.view(-1, 1, *[1] * (values.ndim - 2)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index).squeeze(1)


def huber(td_error: Tensor, delta: float) -> Tensor:
    """x^2 / 2 up to |x| = ``delta``, delta * (|x| - delta / 2) beyond; same shape as ``td_error``.

    Its slope is x clipped to [-delta, delta]: DQN's clipped error (doi:10.1038/nature14236) at delta 1.
    """
    return functional.huber_loss(td_error, td_error.new_zeros(td_error.shape), reduction="none", delta=delta)


def squared(td_error: Tensor) -> Tensor:
    """x^2 / 2, with the half, so that its slope is x and it equals `huber` with an endless delta."""
    return 0.5 * td_error.square()
