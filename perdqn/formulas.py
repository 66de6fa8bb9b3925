"""Formulas behind the figures of value-based learning, as pure functions of arrays and tensors.

Knows nothing about runs, replay or networks beyond their parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

RANK_LOSS = 0.01  # share of the singular values' sum that an effective rank leaves out: arXiv:2010.14498

Floats = NDArray[np.float64]


def dormant_fraction(sizes: Tensor, threshold: float) -> float:
    """Share of units whose mean activation is at most ``threshold`` of their layer's mean.

    Source: arXiv:2302.12902, definition 3.1. Of a layer that is silent altogether every unit is dormant.

    Args:
        sizes: mean absolute activation of each unit, [units].
    """
    return float((sizes <= threshold * sizes.mean()).double().mean())


def effective_rank(features: Tensor, loss: float = RANK_LOSS) -> int:
    """Fewest singular values that make up 1 - ``loss`` of their sum (srank of arXiv:2010.14498).

    Args:
        features: [n, num_features]; not centred.
    """
    wide = features.double()
    if len(wide) < wide.shape[1]:
        wide = wide.T
    # squares of the singular values; half the cost of finding these themselves
    values = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0.0).sqrt().flip(0)
    total = float(values.sum())
    if total == 0.0:
        return 0
    return int((values.cumsum(0) < (1 - loss) * total * (1 - 1e-9)).sum()) + 1


def realised_returns(
    rewards: Floats, terminated: NDArray[np.bool_], truncated: NDArray[np.bool_], gamma: float
) -> tuple[Floats, Floats]:
    """Discounted return from each row to its episode's end, and the weight of what lies beyond that.

    Args:
        rewards: of consecutive steps of one environment, [n].
        terminated, truncated: how each step ended, [n].
        gamma: discount per step.

    Returns:
        G_t = r_t + gamma G_{t+1} and w_t = gamma w_{t+1}, where w is 0 after a termination, gamma at
        the last step before a truncation, and NaN in an episode that has not ended.
    """
    returns, weights = np.zeros(rewards.size), np.zeros(rewards.size)
    total, weight = math.nan, math.nan
    steps = zip(rewards.tolist(), terminated.tolist(), truncated.tolist(), strict=True)
    for i, (reward, terminates, truncates) in reversed([*enumerate(steps)]):
        if terminates or truncates:
            total, weight = 0.0, 0.0 if terminates else 1.0
        total, weight = reward + gamma * total, gamma * weight
        returns[i], weights[i] = total, weight
    return returns, weights


def weight_sample_size(probabilities: Floats, beta: float) -> float:
    """Effective share of a batch drawn with P and weighted by (N P)^-beta: E[w]^2 / E[w^2], 1 at best.

    Over a draw: E[w] = sum P^(1 - beta), E[w^2] = sum P^(1 - 2 beta), up to powers of N that cancel.
    """
    mean, square = (probabilities**power for power in (1 - beta, 1 - 2 * beta))
    return float(mean.sum() ** 2 / square.sum())


def entropy(probabilities: Floats) -> float:
    """Of P in nats divided by log N: 1 is uniform, and so is a single one."""
    if probabilities.size < 2:
        return 1.0
    positive = probabilities[probabilities > 0.0]
    return float(-(positive * np.log(positive)).sum() / np.log(probabilities.size))


def weight_norm(network: nn.Module) -> float:
    """2-norm over all parameters."""
    return norm_of([*network.parameters()])


def norm_of(tensors: Sequence[Tensor]) -> float:
    if not tensors:
        return math.nan
    norms = torch._foreach_norm([tensor.detach() for tensor in tensors])
    return float(torch.stack([norm.double() for norm in norms]).norm())


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
