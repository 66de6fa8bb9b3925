"""The target network follows the online one.

Knows nothing about when.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, tau: float) -> None:
    """Move every parameter and buffer of ``target`` by ``tau`` of the way to the one of ``online``.

    Args:
        tau: 1 copies; below 1 it is Polyak averaging (arXiv:1509.02971), and what holds integers is copied.
    """
    targets, onlines = _tensors(target), _tensors(online)
    if tau == 1.0:
        torch._foreach_copy_(targets, onlines)
        return
    for ours, theirs in zip(targets, onlines, strict=True):
        if ours.is_floating_point():
            ours.lerp_(theirs, tau)
        else:
            ours.copy_(theirs)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
