"""Memory given back by those who can spare some: whoever has a ``release_memory()``.

Knows nothing about when it is time for that.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import psutil
import torch
from lightning.pytorch.utilities.memory import garbage_collection_cuda

from .heap import trim_heap


class Registry:
    """Things with a ``release_memory()``, as long as they live."""

    def __init__(self) -> None:
        self._things: list[weakref.ref[Any]] = []

    def register(self, thing: Any) -> None:
        """Ask ``thing`` too.

        Raises:
            TypeError: it has no method ``release_memory``.
        """
        if not can_release(thing):
            raise TypeError(
                f"{type(thing).__name__} cannot be registered: it has no method release_memory(), "
                "which gives back what it can spare and returns how many bytes that was"
            )
        if all(known is not thing for known in self.things):
            self._things.append(weakref.ref(thing))

    @property
    def things(self) -> list[Any]:
        return [thing for ref in self._things if (thing := ref()) is not None]


def can_release(thing: Any) -> bool:
    return not isinstance(thing, type) and callable(getattr(thing, "release_memory", None))


def owners_of(trainer: Any) -> list[Any]:
    """What a trainer has that can give memory back: module, datamodule, callbacks, what those registered."""
    callbacks = trainer.callbacks
    registered = [thing for each in callbacks for thing in getattr(each, "registered", ())]
    asking = [each for each in callbacks if not hasattr(each, "registered")]  # a monitor asks the others
    owners = [trainer.lightning_module, getattr(trainer, "datamodule", None), *asking, *registered]
    return list({id(owner): owner for owner in owners if can_release(owner)}.values())


def release(things: Iterable[Any]) -> dict[str, int]:
    """Ask each, then the garbage collector, the heap and the accelerator's cache; bytes given back by name.

    ``process`` is by how much this process shrank. One that fails is left out.
    """
    process = psutil.Process()
    before = process.memory_info().rss
    found: dict[str, int] = {}
    for thing in things:
        try:
            num_bytes, name = int(thing.release_memory() or 0), type(thing).__name__
        except Exception as error:
            num_bytes, name = 0, f"{type(thing).__name__} ({error!r})"
        found[name] = found.get(name, 0) + num_bytes
    garbage_collection_cuda()  # Python's garbage first
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim_heap()
    return {**found, "process": max(0, before - process.memory_info().rss)}


def free_memory(trainer: Any) -> None:
    """Everything a trainer's owners can spare."""
    release(owners_of(trainer))
