"""What one batch teaches: the loss that is minimised, and the priorities its transitions take.

Knows nothing about optimisers, replay or how gradients are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perdqn.learning.networks import QNetwork
from perdqn.transition import TransitionBatch


class Learned(NamedTuple):
    """Of one batch.

    Args:
        loss: scalar, mean of the item losses weighted by importance, differentiable.
        priority: [batch], detached.
        td_error: [batch], signed, detached.
        q_values: of obs, [batch, actions], detached.
    """

    loss: Tensor
    priority: Tensor
    td_error: Tensor
    q_values: Tensor


def objective(online: QNetwork, target: QNetwork, batch: TransitionBatch, double: bool) -> Learned:
    """Lines 9 to 13 of algorithm 1 in arXiv:1511.05952; the gradient reaches ``online`` at obs alone.

    Args:
        double: choose the next action with the online network (arXiv:1509.06461).
    """
    with torch.no_grad():
        next_output = target(batch.next_obs)
        chooser = online(batch.next_obs) if double else next_output
        next_action = online.head.greedy(chooser)
    output = online(batch.obs)
    item = online.head.item_loss(output, batch.action, batch.reward, batch.discount, next_output, next_action)
    loss = (batch.is_weight * item.loss).mean()
    return Learned(loss, item.priority, item.td_error, online.head.q_values(output).detach())


class Figures(NamedTuple):
    """Numbers of one update, to be logged."""

    loss: float
    grad_norm: float
    td_error_abs_mean: float
    td_error_abs_max: float
    q_mean: float


class Report(NamedTuple):
    """What is known after an update.

    Args:
        loss: where it is at hand at no cost.
        priority: numpy array or tensor [batch].
        figures: computes them when asked.
    """

    loss: float | None
    priority: Any
    figures: Callable[[], Figures]


def eager_report(learned: Learned, parameters: Iterable[Tensor], grad_norm: Tensor | None) -> Report:
    """Of an update whose gradients are still there; ``grad_norm`` is None where it was not needed."""
    return Report(None, learned.priority, partial(_figures, learned, parameters, grad_norm))


def _figures(learned: Learned, parameters: Iterable[Tensor], grad_norm: Tensor | None) -> Figures:
    if grad_norm is None:
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    error = learned.td_error.abs()
    numbers = (learned.loss, grad_norm, error.mean(), error.max(), learned.q_values.mean())
    return Figures(*(number.item() for number in numbers))
