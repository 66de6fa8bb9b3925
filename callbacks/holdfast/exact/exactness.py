"""What keeps a resumed run from ending bit for bit as an uninterrupted one, each cause with its remedy.

Knows nothing about how a run is resumed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import torch

from .loaders import draws_nothing, flattened, has_length, is_iterable_style, is_stateful, num_workers
from .plain import NotPlain, encode

Causes = Iterator[str]


def state_exactness(trainer: Any) -> str:
    """Of a trainer whose loaders are made.

    Returns:
        ``bit-exact``, ``bit-exact, provided that ...``, or ``not exact: ...``.
    """
    owns_data = getattr(trainer.lightning_module, "owns_data_position", False)
    faults = [*_of_machine(trainer), *([] if owns_data else _of_data(trainer))]
    if faults:
        return f"not exact: {'; '.join(faults)}"
    conditions = [] if owns_data else list(_conditions(trainer))
    return f"bit-exact, provided that {'; and that '.join(conditions)}" if conditions else "bit-exact"


def _of_machine(trainer: Any) -> Causes:
    if trainer.world_size > 1:
        yield "random streams of the first process alone are saved (use one device)"
    is_gpu = trainer.strategy.root_device.type == "cuda"
    if is_gpu and not torch.are_deterministic_algorithms_enabled():
        yield "sums on the GPU differ from run to run (use Trainer(deterministic=True))"
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        yield "the clock decides when to validate (use val_check_interval in steps)"


def _of_data(trainer: Any) -> Causes:
    combined, fetcher = trainer.fit_loop._combined_loader, trainer.fit_loop._data_fetcher
    loaders = flattened(combined)
    stateful = [is_stateful(loader) for loader in loaders]
    if any(stateful) and not all(stateful):
        yield "some training loaders have a state_dict and others have none (let all have one)"
    for loader in loaders:
        yield from _of_loader(loader)
    if len(loaders) > 1 and combined._mode == "max_size_cycle" and not all(stateful):
        if not all(map(has_length, loaders)):
            yield "a loader without a length may start again within an epoch (give it a length)"
        elif hasattr(fetcher, "iterator_wrapper") and len({len(loader) for loader in loaders}) > 1:
            yield "a loader starts again within a step that takes dataloader_iter (use equal lengths)"
    try:
        encode(getattr(fetcher, "batches", []))
    except NotPlain as error:
        yield f"a batch fetched ahead is a {error} (yield tuples, lists or dicts, or give it a length)"


def _of_loader(loader: Any) -> Causes:
    if isinstance(loader, Iterator):
        yield "the training data are an iterator, which ends with its process (use a DataLoader)"
    has_workers = num_workers(loader) > 0 and not draws_nothing(loader)
    if has_workers and getattr(loader, "persistent_workers", False):
        yield "persistent workers take random streams from epoch to epoch (use persistent_workers=False)"
    if num_workers(loader) > 1 and not getattr(loader, "in_order", True):
        yield "workers hand over batches in the order they are ready (use in_order=True)"


def _conditions(trainer: Any) -> Causes:
    loaders = flattened(trainer.fit_loop._combined_loader)
    if any(is_iterable_style(one) and not is_stateful(one) and not num_workers(one) for one in loaders):
        yield "no step draws from the global random streams that the iterable dataset draws from"
    if any(is_stateful(one) and num_workers(one) and not draws_nothing(one) for one in loaders):
        yield "the state_dict of the loader holds its workers' random streams (torchdata's does not)"
    if "PL_GLOBAL_SEED" not in os.environ:
        yield "what the program draws before it trains is drawn again (call seed_everything)"
