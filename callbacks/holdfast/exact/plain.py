"""Values as plain types that a checkpoint loads with ``weights_only``, and back.

Knows nothing about where they come from.
"""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TAG = "__holdfast__"  # marks a dict that stands for another type
_FACTORIES = {factory.__name__: factory for factory in (int, float, bool, str, list, dict, set)}
_ATOMS = (bool, int, float, complex, str, bytes, type(None))

Generator = torch.Generator | np.random.Generator | np.random.RandomState | random.Random


class NotPlain(TypeError):
    """No plain type stands for the value."""


def encode(value: Any) -> Any:
    """A copy of ``value`` in plain types; tensors are cloned and keep their device.

    A Parameter is refused: it belongs to a module, and a copy would be another.

    Raises:
        NotPlain: it holds something else than tensors, arrays, numbers, strings and built-in containers.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        copy = value.detach().clone()
        return copy if copy.device.type == "cpu" else {_TAG: "device", "value": copy}
    if kind in (list, tuple, set, frozenset):
        return kind(encode(item) for item in value)
    if kind is dict and _TAG not in value:
        return {encode(key): encode(item) for key, item in value.items()}
    return _encode_tagged(value, kind)


def _encode_tagged(value: Any, kind: type) -> dict[str, Any]:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc":
        is_scalar, array = isinstance(value, np.generic), np.array(value)
        bits = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
        return {_TAG: "array", "bits": bits, "of": (array.dtype.str, array.shape, is_scalar)}
    if kind is deque:
        return {_TAG: "deque", "value": encode(list(value)), "maxlen": value.maxlen}
    if kind is OrderedDict:
        return {_TAG: "ordered", "value": encode(dict(value))}
    if kind is defaultdict and _FACTORIES.get(getattr(value.default_factory, "__name__", "")):
        return {_TAG: "default", "value": encode(dict(value)), "factory": value.default_factory.__name__}
    raise NotPlain(f"{kind.__module__}.{kind.__qualname__}")


def decode(value: Any, device: torch.device | str = "cpu") -> Any:
    """What `encode` was given; tensors of an accelerator go to ``device``."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(decode(item, device) for item in value)
    if not isinstance(value, dict):
        return value
    if _TAG not in value:
        return {key: decode(item, device) for key, item in value.items()}
    return _decode_tagged(value, device)


def _decode_tagged(value: dict[str, Any], device: torch.device | str) -> Any:
    kind = value[_TAG]
    if kind == "device":
        return value["value"].to(device, copy=True)
    if kind == "array":
        dtype, shape, is_scalar = value["of"]
        array = np.frombuffer(value["bits"].numpy().tobytes(), np.dtype(dtype)).reshape(shape).copy()
        return array[()] if is_scalar else array
    content = decode(value["value"], device)
    if kind == "deque":
        return deque(content, value["maxlen"])
    return OrderedDict(content) if kind == "ordered" else defaultdict(_FACTORIES[value["factory"]], content)


# -- generators of random numbers, which keep their identity ------------------------------------


def find_generators(owner: Any) -> Iterator[tuple[str, Generator]]:
    """Generators among the attributes of one object, by name."""
    for name, value in list(getattr(owner, "__dict__", {}).items()):
        if isinstance(value, Generator):
            yield name, value


def get_generator(generator: Generator) -> Any:
    """Where it stands, as plain types."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.RandomState):
        return encode(generator.get_state(legacy=False))
    return encode(generator.bit_generator.state)


def set_generator(generator: Generator, state: Any) -> None:
    """Put it there again."""
    if isinstance(generator, torch.Generator):
        generator.set_state(state)
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.RandomState):
        generator.set_state(decode(state))
    else:
        generator.bit_generator.state = decode(state)
