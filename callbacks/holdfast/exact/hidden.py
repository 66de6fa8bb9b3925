"""Python attributes that training changed and that Lightning leaves out of a checkpoint.

Such as lists of outputs, counters, states of metrics, buffers that are not persistent, ``requires_grad``
and ``training`` flags, and the average kept by an EMA callback that saves nothing itself.

Knows nothing about loops and data. An attribute that is as it was when training started is left alone, so
that settings may change on resume.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sized
from functools import partial
from types import MethodType
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from torch import Tensor, nn

from .plain import Generator, NotPlain, decode, encode, find_generators, get_generator, set_generator

_MODULE_INTERNALS = frozenset(vars(nn.Module())) - {"training"}
_LIGHTNING_INTERNALS = frozenset(vars(LightningModule())) - {"training"}
_SELF_SAVING = ("lightning", "holdfast")  # packages whose callbacks save themselves
_ATOMS = (bool, int, float, complex, str, bytes, type(None), torch.device, torch.dtype)
_MANY_ITEMS, _MANY_BYTES = 10_000, 2**20  # above, only a new object counts as a change


class Hidden:
    """Knows the attributes as they were, and saves those that differ.

    Args:
        trainer: its module, submodules and callbacks are looked at; the module not where it
            ``saves_own_state``.
        changed: attributes, as owner and key, that have changed already.
    """

    def __init__(self, trainer: Trainer, changed: frozenset[tuple[str, str]] = frozenset()) -> None:
        self._trainer = trainer
        self._module = trainer.lightning_module
        self._before = {name: _marks(owner) for name, owner in _owners(trainer)}
        self._changed = set(changed)
        self._at_start = self.capture(also_unchanged=True)
        self.unsaved: dict[str, str] = {}  # attribute of the module -> its type

    def capture(self, also_unchanged: bool = False) -> dict[str, Any]:
        """All that differs from the start, as plain types; ``also_unchanged`` adds what is small."""
        owners = list(_owners(self._trainer))
        attributes = {name: dict(self._chosen(name, owner, also_unchanged)) for name, owner in owners}
        streams = {name: {k: get_generator(g) for k, g in find_generators(owner)} for name, owner in owners}
        return {
            "attributes": {name: changed for name, changed in attributes.items() if changed},
            "generators": {name: found for name, found in streams.items() if found},
        }

    def _chosen(self, name: str, owner: Any, also_unchanged: bool) -> Iterator[tuple[str, Any]]:
        before = self._before.get(name, {})
        for key, value in _attributes(owner):
            is_known = key in before and (name, key) not in self._changed
            if is_known and before[key] == _mark(value) and not (also_unchanged and _is_small(value)):
                continue
            try:
                yield key, self._encode(value)
            except NotPlain as error:
                if name.startswith("module") and not also_unchanged:
                    self.unsaved[f"{name}.{key}"] = str(error)

    def _encode(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, nn.Module):
            return {"plain": encode(value)}
        if any(value is part for part in self._trainer.lightning_module.modules()):
            raise NotPlain("the trained module")
        return {"module": encode(dict(value.state_dict()))}  # a callback's

    def is_of(self, module: LightningModule) -> bool:
        """Whether the attributes are those of ``module``."""
        return self._module is module

    def go_to_start(self) -> None:
        """As in a new process: what a run within this one has changed since is forgotten."""
        self.restore(self._at_start, remember=False)

    def changed(self) -> frozenset[tuple[str, str]]:
        """Owner and key of all that differs."""
        attributes = self.capture()["attributes"]
        return frozenset((name, key) for name, changed in attributes.items() for key in changed)

    def restore(self, state: dict[str, Any], remember: bool = True) -> None:
        """Put back what `capture` gave; what no longer exists is left out.

        Args:
            remember: the attributes had changed before this process began, so they are saved from now on.
        """
        owners = dict(_owners(self._trainer))
        device = self._trainer.strategy.root_device
        for name in owners.keys() & state["attributes"].keys():
            for key, value in state["attributes"][name].items():
                _restore(owners[name], key, value, device)
                if remember:
                    self._changed.add((name, key))
        for name in owners.keys() & state["generators"].keys():
            for key, generator in find_generators(owners[name]):
                if key in state["generators"][name]:
                    set_generator(generator, state["generators"][name][key])


def weights_mark(module: nn.Module) -> Any:
    """Equal for as long as no weight or buffer is replaced or written to."""
    return [_Seen(tensor) for tensor in (*module.parameters(), *module.buffers())]


def get_gradients(module: nn.Module) -> dict[str, Tensor]:
    """Those that exist, by the names of their parameters."""
    return {n: p.grad.detach().clone() for n, p in module.named_parameters() if p.grad is not None}


def set_gradients(module: nn.Module, gradients: dict[str, Tensor]) -> None:
    """Accumulation goes on from there."""
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].to(parameter.device, copy=True) if name in gradients else None


def _owners(trainer: Trainer) -> Iterator[tuple[str, Any]]:
    module = trainer.lightning_module
    if not getattr(module, "saves_own_state", False):
        for name, part in module.named_modules():
            yield f"module.{name}" if name else "module", part
    for index, callback in enumerate(trainer.callbacks):  # type: ignore[attr-defined]
        if not _saves_itself(callback):
            yield f"callback.{index}.{type(callback).__qualname__}", callback


def _saves_itself(callback: Callback) -> bool:
    kind = type(callback)
    if kind.__module__.split(".")[0] in _SELF_SAVING or isinstance(callback, ProgressBar):
        return True
    ours = kind.state_dict is Callback.state_dict and kind.on_save_checkpoint is Callback.on_save_checkpoint
    return not ours


def _attributes(owner: Any) -> Iterator[tuple[str, Any]]:
    """Those of the object itself; of modules also the buffers and flags that a state_dict leaves out."""
    internals: frozenset[str] = frozenset()
    if isinstance(owner, nn.Module):
        internals = _LIGHTNING_INTERNALS if isinstance(owner, LightningModule) else _MODULE_INTERNALS
        for key in owner._non_persistent_buffers_set:
            yield f"buffer:{key}", owner._buffers[key]
        for key, parameter in owner.named_parameters(recurse=False):
            yield f"requires_grad:{key}", parameter.requires_grad
    for key, value in list(vars(owner).items()):
        # somebody stands around a method, or has put it back, as DDP does with forward
        is_method = isinstance(value, partial | MethodType) and hasattr(type(owner), key)
        if key not in internals and not isinstance(value, Generator) and not is_method:
            yield key, value


def _restore(owner: Any, key: str, value: dict[str, Any], device: torch.device) -> None:
    kind, _, name = key.rpartition(":")
    if "module" in value:
        if isinstance(found := getattr(owner, key, None), nn.Module):
            found.load_state_dict(decode(value["module"], device))
        return
    content = decode(value["plain"], device)
    if not kind:
        object.__setattr__(owner, name, content)  # nn.Module's own asks whether it is a parameter
    elif kind == "requires_grad":
        owner._parameters[name].requires_grad_(content)
    elif owner._buffers[name] is None or content is None:
        owner._buffers[name] = content
    else:
        owner._buffers[name].copy_(content)


class _Same:
    """Equal to the same object only."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value


class _Seen(_Same):
    """A tensor as it is; writing to it raises its version."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__(tensor)
        self._version = tensor._version

    def __eq__(self, other: object) -> bool:
        return super().__eq__(other) and isinstance(other, _Seen) and self._version == other._version


def _marks(owner: Any) -> dict[str, Any]:
    return {key: _mark(value) for key, value in _attributes(owner)}


def _is_small(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.nbytes <= _MANY_BYTES
    return not isinstance(value, nn.Module) and (not isinstance(value, Sized) or len(value) <= _MANY_ITEMS)


def _mark(value: Any) -> Any:
    """Equal for as long as the value is: by content where that is small, a tensor by its version."""
    if isinstance(value, nn.Parameter):
        return _Same(value)
    if isinstance(value, Tensor):
        return _Seen(value)
    if isinstance(value, nn.Module):
        return [_Seen(tensor) for tensor in value.state_dict(keep_vars=True).values()]
    if isinstance(value, np.ndarray) and value.nbytes <= _MANY_BYTES:
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict) and len(value) <= _MANY_ITEMS:
        return type(value), [(key, _mark(item)) for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset | deque) and len(value) <= _MANY_ITEMS:
        return type(value), [_mark(item) for item in value]
    return value if isinstance(value, _ATOMS) else _Same(value)
