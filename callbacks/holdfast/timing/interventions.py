"""What layers take beyond torch's own forward of the same layer, found out by running both on kept inputs.

Knows nothing about phases, nor when this is done.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..exact.rng import get_global_rng, set_global_rng
from .clock import thread_usage

# Their forward is a function of their input: it draws nothing and changes nothing.
PURE = (
    nn.Linear,
    nn.Bilinear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.ReLU,
    nn.GELU,
    nn.SiLU,
    nn.Tanh,
    nn.Sigmoid,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)


class LayerInputs:
    """Keeps what layers are called with, for a step.

    Args:
        module: whose layers; only those of torch's kinds that are not quite torch's own.
    """

    def __init__(self, module: nn.Module) -> None:
        self._calls: list[tuple[nn.Module, tuple[Any, ...]]] = []
        self._handles = [
            layer.register_forward_pre_hook(self._keep) for layer in module.modules() if _differs(layer)
        ]

    def _keep(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if all(isinstance(each, torch.Tensor) for each in inputs):
            self._calls.append((layer, tuple(each.detach() for each in inputs)))

    def stop(self) -> list[tuple[nn.Module, tuple[Any, ...]]]:
        """The calls so far; nothing is left at the layers."""
        for handle in self._handles:
            handle.remove()
        return self._calls


def layer_excess_s(calls: list[tuple[nn.Module, tuple[Any, ...]]], repeats: int = 3) -> float:
    """Seconds of all calls beyond those of torch's own forward; only what is beyond half of it counts.

    On copies, without gradients, with the random streams put back: the training is not touched.
    """
    state = get_global_rng()
    try:
        with torch.no_grad():
            return sum(_excess(layer, inputs, repeats) for layer, inputs in calls)
    finally:
        set_global_rng(state)


def _excess(layer: nn.Module, inputs: tuple[Any, ...], repeats: int) -> float:
    base = _base(layer)
    layer = copy.deepcopy(layer)
    taken = _time(lambda: layer(*inputs), repeats)
    needed = _time(lambda: base.forward(layer, *inputs), repeats)
    return taken - needed if taken > 1.5 * needed else 0.0


def _differs(layer: nn.Module) -> bool:
    """Whether anything stands between a call of it and the forward that torch has for its kind."""
    base = _base(layer)
    if base is None:
        return False
    has_hooks = bool(layer._forward_hooks or layer._forward_pre_hooks)
    return has_hooks or "forward" in vars(layer) or type(layer).forward is not base.forward


def _base(layer: nn.Module) -> Any:
    """The class of torch's that a layer is of; None where it is of none, or consists of others."""
    return next((kind for kind in PURE if isinstance(layer, kind)), None)


def _time(call: Callable[[], Any], repeats: int) -> float:
    """Computed and waited, the least of some; not what others had the CPU for."""
    took = []
    for _ in range(repeats):
        began, before = time.perf_counter(), thread_usage()
        call()
        used, seconds = thread_usage(), time.perf_counter() - began
        took.append(seconds if used.num_waits != before.num_waits else used.cpu_s - before.cpu_s)
    return min(took)
