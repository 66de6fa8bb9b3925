"""A batch in pieces, gradients added up: the same step of the optimiser with less memory, or faster.

Knows nothing about which size is best, nor when it is decided.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import BatchSampler, DataLoader

from ..exact.aside import step_aside, streams_put_back
from ..exact.loaders import is_iterable_style
from ..resources.memory import MemoryFigures
from .knob import Knob
from .ordinary import first_batch, time_steps

MICRO_BATCH = "micro_batch"
_USABLE = 0.8  # of the free memory, for what a forward pass keeps for the backward pass
_AS_THEY_COME = {
    "limit_train_batches": 1.0,
    "val_check_interval": 1.0,
    "overfit_batches": 0.0,
    "reload_dataloaders_every_n_epochs": 0,
    "world_size": 1,
}  # trainer's settings: others count batches, or make loaders anew with other batches


def micro_batch_of(trainer: Any, loaders: list[Any], clock: Callable[[], float] = time.perf_counter) -> Knob:
    """Examples that go through the network at once, while a step is still made of a whole batch.

    The loader's batches become pieces of this size, in the same order, and the trainer accumulates the
    gradients of as many as made up a batch. The same: examples of each step, number of steps, what counts
    steps (schedules, ``max_steps``, ``global_step``), and the gradient up to rounding where the loss is a
    mean over examples. Not the same: batch normalisation and losses that compare examples see a piece only;
    a loss that is a sum is divided by the number of pieces; dropout draws otherwise; ``batch_idx``, hooks
    and figures logged by step are of pieces.

    A size is measured by its time for a whole batch. One whose saved tensors would take more than 80 % of
    what is free, reckoned from the smallest, is not tried; one that runs out of memory is not taken.

    Raises:
        ValueError: something else would change.
    """
    loader, *others = loaders
    if others or type(loader) is not DataLoader or type(loader.batch_sampler) is not BatchSampler:
        raise ValueError(f"bounds['{MICRO_BATCH}'] needs one ordinary DataLoader with a batch_size")
    module = trainer.lightning_module
    if is_iterable_style(loader) or not module.automatic_optimization:
        raise ValueError(f"bounds['{MICRO_BATCH}'] needs automatic optimisation and data with a length")
    _refuse_what_counts_batches(trainer)
    sampler: Any = loader.batch_sampler
    whole, accumulated = sampler.batch_size, trainer.accumulate_grad_batches

    def put(size: int) -> None:
        sampler.batch_size = size
        object.__setattr__(loader, "batch_size", size)  # a DataLoader refuses it, but for others' eyes
        trainer.accumulate_grad_batches = accumulated * (whole // size)

    bytes_each: list[float] = []

    def measure(size: int) -> float:
        now = sampler.batch_size
        put(size)
        try:
            if not bytes_each:
                bytes_each.append(saved_bytes(module, loaders) / size)
            if bytes_each[0] * size > _USABLE * free_bytes(module.device):
                return math.inf
            return time_steps(module, loaders, clock, whole // size)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return math.inf
        finally:
            put(now)

    choices = _choices(len(sampler.sampler), whole, sampler.drop_last)
    return Knob(lambda: sampler.batch_size, put, 1, whole, measure=measure, choices=choices, about=whole)


def _refuse_what_counts_batches(trainer: Any) -> None:
    for name, value in _AS_THEY_COME.items():
        if getattr(trainer, name) != value:
            now = f"got trainer.{name} {getattr(trainer, name)}; leave one of the two out"
            raise ValueError(f"bounds['{MICRO_BATCH}'] needs trainer.{name} {value}, {now}")
    if any(isinstance(each, GradientAccumulationScheduler) for each in trainer.callbacks):
        raise ValueError(f"bounds['{MICRO_BATCH}'] and GradientAccumulationScheduler exclude each other")


def _choices(num_examples: int, whole: int, drop_last: bool) -> tuple[int, ...]:
    """Sizes that divide a batch, and leave as much of an epoch over as it does."""
    rest = num_examples % whole
    divisors = [size for size in range(1, whole + 1) if whole % size == 0]
    choices = tuple(size for size in divisors if not rest or (drop_last and rest < size))
    if not choices:
        raise ValueError(
            f"bounds['{MICRO_BATCH}'] needs an epoch of whole batches, "
            f"got {num_examples} examples for batches of {whole}; use drop_last=True"
        )
    return choices


def saved_bytes(module: Any, loaders: list[Any]) -> int:
    """Of the tensors that a forward pass of a batch keeps for the backward pass, parameters aside."""
    sizes: dict[int, int] = {}

    def note(saved: torch.Tensor) -> torch.Tensor:
        if not isinstance(saved, torch.nn.Parameter) and not _is_view_of_parameter(saved):
            storage = saved.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
        return saved

    with streams_put_back(loaders):
        step = step_aside(module, first_batch(module, loaders))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            step()
    return sum(sizes.values())


def _is_view_of_parameter(saved: torch.Tensor) -> bool:
    return isinstance(saved._base, torch.nn.Parameter)


def free_bytes(device: torch.device) -> float:
    """Memory still to be had where a module computes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu":
        return MemoryFigures().tightest().free_bytes
    return math.inf
