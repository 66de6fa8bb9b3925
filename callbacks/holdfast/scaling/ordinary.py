"""Knobs of any Lightning run: torch's threads, and the workers of its DataLoaders.

Knows nothing about when they are turned.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
)

from ..exact.aside import step_aside, streams_put_back
from ..exact.loaders import draws_nothing, is_iterable_style
from ..resources.cpu import num_cores
from .knob import Knob

_NUM_BATCHES, _NUM_STEPS = 8, 3  # measured


def workers_of(loaders: list[Any], progress: Callable[[], int], clock: Callable[[], float]) -> Knob | None:
    """Of all ordinary loaders together, from their next iterator on; None where there is nothing to set.

    Results are the same where reading an item draws no random number (known of tensors, or declared by the
    dataset: ``is_deterministic = True``) and no sampler draws from a generator that was handed to it: workers
    run a sampler to its very end, where torch's RandomSampler draws once more, while Lightning alone stops
    at the last batch, so that the next epoch would be shuffled otherwise.
    """
    own = [each for each in loaders if type(each) is DataLoader and not each.persistent_workers]
    own = [each for each in own if not is_iterable_style(each)]
    if not own:
        return None

    def put(value: int) -> None:
        for loader in own:
            loader.num_workers = value
            loader.prefetch_factor = (loader.prefetch_factor or 2) if value else None

    def measure(value: int) -> float:
        before = own[0].num_workers
        with streams_put_back(own):
            put(value)
            begun = clock()
            for loader in own:
                for _ in itertools.islice(loader, _NUM_BATCHES):
                    pass
            seconds = clock() - begun
            put(before)
        return seconds

    keeps_result = all(draws_nothing(each) and _has_own_order(each) for each in own)
    high = max(own[0].num_workers, num_cores())
    sizes = [each.batch_size for each in own]
    return Knob(lambda: own[0].num_workers, put, 0, high, keeps_result, progress, measure, about=sizes)


def _has_own_order(loader: Any) -> bool:
    known = type(loader.sampler) in (SequentialSampler, RandomSampler, DistributedSampler)
    is_free = getattr(loader.sampler, "generator", None) is None and loader.generator is None
    return known and is_free and type(loader.batch_sampler) in (BatchSampler, type(None))


def threads_of(module: Any, loaders: list[Any], clock: Callable[[], float] = time.perf_counter) -> Knob:
    """Torch's threads in this process; another number rounds otherwise, so they are decided once."""
    high = max(torch.get_num_threads(), num_cores())

    def measure(value: int) -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(value)
        try:
            return time_steps(module, loaders, clock, _NUM_STEPS)
        finally:
            torch.set_num_threads(before)

    sizes = [getattr(each, "batch_size", None) for each in loaders]
    return Knob(torch.get_num_threads, torch.set_num_threads, 1, high, measure=measure, about=sizes)


def time_steps(module: Any, loaders: list[Any], clock: Callable[[], float], num_steps: int) -> float:
    """Seconds for training steps aside, on the first batch."""
    with streams_put_back(loaders):
        step = step_aside(module, first_batch(module, loaders))
        begun = clock()
        for _ in range(num_steps):
            step()
        return clock() - begun


def first_batch(module: Any, loaders: list[Any]) -> Any:
    """Where the module computes."""
    return module.trainer.strategy.batch_to_device(next(iter(loaders[0])))
