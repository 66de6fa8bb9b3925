"""Training steps aside: of a copy of the module that is thrown away, unnoticed by the training.

Knows nothing about what they are made for.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule

from .loaders import get_state, set_state
from .rng import get_global_rng, set_global_rng


def step_aside(module: LightningModule, batch: Any) -> Callable[[], None]:
    """A function that makes one step of a copy, forward and backward, on a copy of the batch, to its end.

    What the module owns is copied; what its ``training_step`` does to files and global variables is done.
    Random streams move: see `streams_put_back`.

    Raises:
        ValueError: the module optimises by itself, so that only a run can tell what a step is.
        Exception: whatever keeps the module from being copied, or from making a step without a trainer.
    """
    if not module.automatic_optimization:
        raise ValueError(f"{type(module).__name__} optimises by itself: only a run can tell what a step is")
    context = module.trainer.precision_plugin.train_step_context
    alone, batch = _copy(module), copy.deepcopy(batch)

    def step() -> None:
        alone.zero_grad()
        with context():
            outputs = alone.training_step(batch, 0)
        alone.backward(outputs["loss"] if isinstance(outputs, dict) else outputs)
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)

    return step


def _copy(module: LightningModule) -> Any:
    trainers = [(each, each._trainer) for each in module.modules() if isinstance(each, LightningModule)]
    for each, _ in trainers:
        each._trainer = None
    try:
        alone: Any = copy.deepcopy(module)
    finally:
        for each, trainer in trainers:
            each._trainer = trainer
    alone.log = alone.log_dict = lambda *_, **__: None
    return alone.train()


@contextlib.contextmanager
def streams_put_back(loaders: Sequence[Any] = ()) -> Iterator[None]:
    """What is drawn within, from global streams and those of loaders, is drawn again afterwards."""
    rng, state = get_global_rng(), get_state(list(loaders))
    try:
        yield
    finally:
        set_state(list(loaders), state)
        set_global_rng(rng)
