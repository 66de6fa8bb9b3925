"""What stands inside a data loader, and how batches are drawn from one without using them.

Knows nothing about loops and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data.dataloader import default_collate

from .plain import NotPlain, decode, encode, find_generators, get_generator, set_generator


def flattened(loader: CombinedLoader | None) -> list[Any]:
    """The single loaders of a combined one."""
    return [] if loader is None else loader.flattened


def is_stateful(thing: Any) -> bool:
    """Whether it saves itself, as StatefulDataLoader does: by shape, as Lightning sees it."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def is_iterable_style(loader: Any) -> bool:
    """Whether its items come in an order of its own, instead of by index."""
    return not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)


def num_workers(loader: Any) -> int:
    """Processes that read for it; 0: this one."""
    return int(getattr(loader, "num_workers", 0))


def parts(loader: Any) -> Iterator[tuple[str, Any]]:
    """The loader, its samplers and its datasets, by name, each once."""
    seen: set[int] = set()
    waiting = [("loader", loader)]
    while waiting:
        path, part = waiting.pop(0)
        if id(part) in seen or part is None or isinstance(part, str | bytes | int | float | type):
            continue
        seen.add(id(part))
        yield path, part
        below = ((name, getattr(part, name, None)) for name in ("sampler", "batch_sampler", "dataset"))
        waiting += [(f"{path}.{name}", child) for name, child in below]
        if isinstance(children := getattr(part, "datasets", None), list | tuple):
            waiting += [(f"{path}.datasets.{index}", child) for index, child in enumerate(children)]


def set_epoch(loader: Any, epoch: int) -> None:
    """As Lightning tells the samplers, but before workers draw their first indices."""
    for _, part in parts(loader):
        if "sampler" in type(part).__name__.lower() and callable(tell := getattr(part, "set_epoch", None)):
            tell(epoch)


def get_state(loaders: list[Any]) -> dict[str, Any]:
    """Generators of every part, and the state of samplers and iterable datasets that save themselves."""
    state: dict[str, Any] = {"generators": {}, "parts": {}}
    for name, part in _all_parts(loaders):
        for key, generator in find_generators(part):
            state["generators"][f"{name}.{key}"] = get_generator(generator)
        if _saves_itself_within(name, part):
            try:
                state["parts"][name] = encode(part.state_dict())
            except NotPlain:
                continue  # said where exactness is stated
    return state


def set_state(loaders: list[Any], state: dict[str, Any]) -> None:
    """Put back what `get_state` gave."""
    for name, part in _all_parts(loaders):
        if name in state["parts"]:
            part.load_state_dict(decode(state["parts"][name]))
        for key, generator in find_generators(part):
            if f"{name}.{key}" in state["generators"]:
                set_generator(generator, state["generators"][f"{name}.{key}"])


def set_generators(loaders: list[Any], state: dict[str, Any]) -> None:
    """As `set_state`, but generators alone."""
    set_state(loaders, {**state, "parts": {}})


def _all_parts(loaders: list[Any]) -> Iterator[tuple[str, Any]]:
    for index, loader in enumerate(loaders):
        for path, part in parts(loader):
            yield f"{index}.{path}", part


def _saves_itself_within(name: str, part: Any) -> bool:
    is_order = isinstance(part, IterableDataset) or name.endswith("sampler")
    return is_order and is_stateful(part)


def cycle_lengths(loader: CombinedLoader) -> list[int]:
    """Batches after which a loader of several starts again, while a longer one goes on."""
    if loader._mode != "max_size_cycle" or len(loader.flattened) < 2:
        return []
    return sorted({len(one) for one in loader.flattened if has_length(one)} - {0})


def has_length(loader: Any) -> bool:
    """Whether ``len`` works."""
    try:
        return len(loader) >= 0
    except (TypeError, NotImplementedError):
        return False


def drawing(fetcher: Any) -> Callable[[], Any]:
    """A function that takes the next batch out of Lightning's fetcher, at the least cost.

    Where reading an item draws no random number, its index is enough.
    """
    if hasattr(fetcher, "iterator_wrapper"):
        wrapper = fetcher.iterator_wrapper
        return lambda: next(wrapper)
    combined = fetcher.combined_loader
    if (
        len(combined.flattened) == 1
        and fetcher.length is not None
        and _is_index_enough(combined.flattened[0])
    ):
        return _skipping(fetcher, combined._iterator)
    return lambda: next(fetcher)


def _skipping(fetcher: Any, mode_iterator: Any) -> Callable[[], None]:
    iterator = mode_iterator.iterators[0]

    def skip() -> None:
        iterator._next_index()
        iterator._num_yielded += 1
        mode_iterator._idx += 1
        fetcher.fetched += 1

    return skip


def _is_index_enough(loader: Any) -> bool:
    is_plain = type(loader) is DataLoader and not loader.num_workers and not is_iterable_style(loader)
    return is_plain and draws_nothing(loader)


def draws_nothing(loader: Any) -> bool:
    """Whether reading an item takes no random number: known of tensors, or declared by the dataset."""
    dataset = getattr(loader, "dataset", None)
    if getattr(dataset, "is_deterministic", False):
        return True
    return getattr(loader, "collate_fn", None) is default_collate and _is_pure(dataset)


def _is_pure(dataset: Any) -> bool:
    if isinstance(dataset, Subset):
        return _is_pure(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return all(map(_is_pure, dataset.datasets))
    return type(dataset) is TensorDataset
