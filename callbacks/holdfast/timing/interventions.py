"""Confirms by running once more: layers beside torch's own on kept inputs, steps aside on a kept batch.

Knows nothing about phases, nor when this is done.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import nn

from ..around import around
from ..exact.aside import step_aside, streams_put_back
from .clock import Clock, Usage, thread_usage

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
    with streams_put_back(), torch.no_grad():
        return sum(_excess(layer, inputs, repeats) for layer, inputs in calls)


class NewestBatch:
    """Keeps what the next step is given, where the module's device has it.

    Args:
        strategy: of the trainer, by which batches go there.
    """

    def __init__(self, strategy: Any) -> None:
        self.batches: list[Any] = []  # the newest, if there was one
        self._strategy = strategy
        self._before = vars(strategy).get("batch_to_device")
        around(strategy, "batch_to_device", self._keep)

    def _keep(self, batch_to_device: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        batch = batch_to_device(*args, **kwargs)
        self.batches = [batch]
        return batch

    def stop(self) -> list[Any]:
        """Nothing is left at the strategy."""
        if self._before is None:
            vars(self._strategy).pop("batch_to_device", None)
        else:
            self._strategy.batch_to_device = self._before
        return self.batches


def cached_step_s(
    module: LightningModule,
    batch: Any,
    clock: Clock = time.perf_counter,
    usage: Callable[[], Usage] = thread_usage,
    repeats: int = 5,
) -> float:
    """Seconds of forward and backward on a batch that is there already; the median of steps aside.

    Raises:
        Exception: as `step_aside`; and where other processes would have to take part.
    """
    if module.trainer.world_size > 1:
        raise ValueError("several processes train: a step of one of them would wait for the others")
    with streams_put_back():
        step = step_aside(module, batch)
        step()  # what is done once
        return statistics.median(_own_s(step, clock, usage) for _ in range(repeats))


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
    return min(_own_s(call, time.perf_counter, thread_usage) for _ in range(repeats))


def _own_s(call: Callable[[], Any], clock: Clock, usage: Callable[[], Usage]) -> float:
    """Computed and waited; not what others had the CPU for."""
    began, before = clock(), usage()
    call()
    used, seconds = usage(), clock() - began
    return seconds if used.num_waits != before.num_waits else used.cpu_s - before.cpu_s
