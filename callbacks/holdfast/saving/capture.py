"""A trainer's whole state as one checkpoint that loads with ``weights_only``, and what a manifest says of it.

Knows nothing about files, nor when a state is worth saving.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, cast

import lightning.pytorch
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from ..boundary import exact_state
from ..exact.logs import log_positions
from ..storage.manifest import plain
from ..storage.parts import PartStore, Stateful, save_with_parts
from .environment import environment_fingerprint

VERSION = 1
_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_TENSORS = (Tensor, torch.nn.Parameter, torch.Size, torch.dtype, torch.device)


class Unloadable(TypeError):
    """The state holds what no reader would take back; the message says where and what."""


class Capture(NamedTuple):
    """A checkpoint, and what had to be left out of it, in sentences."""

    checkpoint: dict[str, Any]
    notes: list[str]


def capture(trainer: Trainer, store: PartStore | None, weights_only: bool) -> Capture:
    """The trainer's state now; on every rank, as strategies may gather.

    A callback that fails to give its state, or gives what cannot be loaded, is named and left out. So are
    hyperparameters that cannot be loaded, which resuming does not need.

    Args:
        store: takes the parts of large states, on the first rank; None keeps them in the checkpoint.

    Raises:
        Unloadable: anything else could not be loaded.
    """
    notes: list[str] = []
    has_parts = store is not None and not weights_only
    entries = _save_parts(trainer, store, notes) if has_parts and trainer.is_global_zero else {}
    with save_with_parts(has_parts):
        checkpoint = _dump(trainer, weights_only, notes)
    if not weights_only:
        checkpoint["holdfast"] = {
            "version": VERSION,
            "parts": entries,
            "exact": exact_state(trainer),
            "logs": log_positions(trainer),
        }
    _leave_out_unloadable(checkpoint, notes)
    return Capture(checkpoint, notes)


def stateful_of(trainer: Trainer) -> dict[str, Stateful]:
    """All that write parts of their own, by the name their entry has."""
    callbacks = {callback.state_key: callback for callback in _callbacks_of(trainer)}
    owners = {"module": trainer.lightning_module, "datamodule": _datamodule_of(trainer), **callbacks}
    return {name: owner for name, owner in owners.items() if isinstance(owner, Stateful)}


def non_finite_of(module: LightningModule) -> list[str]:
    """Names of weights that hold NaN or infinity, and of buffers that hold NaN (a mask may be infinite)."""
    weights = [name for name, weight in module.named_parameters() if _is_broken(weight, Tensor.isfinite)]
    buffers = [name for name, buffer in module.named_buffers() if _is_broken(buffer, _is_number)]
    return weights + buffers


def facts_of(trainer: Trainer, checkpoint: Mapping[str, Any], counters: tuple[str, ...]) -> dict[str, Any]:
    """What the manifest says of a checkpoint beside its files.

    Args:
        counters: attributes of the module to note beside those of its ``holdfast_counters``.
    """
    module = trainer.lightning_module
    names = (*counters, *getattr(module, "holdfast_counters", ()))
    tensors = {name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)}
    return {
        "counters": {
            "global_step": trainer.global_step,
            "epoch": trainer.current_epoch,
            **{name: int(getattr(module, name)) for name in names},
        },
        "tensors": {name: [str(value.dtype), list(value.shape)] for name, value in tensors.items()},
        "device": str(trainer.strategy.root_device),
        "versions": _versions(),
        "environment": environment_fingerprint(),
        "config_sha256": _checksum(plain(dict(module.hparams))),
    }


def _save_parts(trainer: Trainer, store: PartStore | None, notes: list[str]) -> dict[str, Any]:
    assert store is not None
    entries = {}
    for name, owner in stateful_of(trainer).items():
        try:
            entries[name] = owner.save_parts(store)
        except Exception as error:
            if isinstance(error, OSError) or not isinstance(owner, Callback):
                raise
            notes.append(f"without the parts of {name}: save_parts raised {error!r}")
    return entries


def _dump(trainer: Trainer, weights_only: bool, notes: list[str]) -> dict[str, Any]:
    """Lightning's own dump; where a callback spoils it, a second one that leaves out those which do."""
    dump = trainer._checkpoint_connector.dump_checkpoint
    try:
        return dump(weights_only)
    except Exception:
        with _guarded(trainer, notes):
            checkpoint = dump(weights_only)
        if not notes:
            raise
        return checkpoint


@contextlib.contextmanager
def _guarded(trainer: Trainer, notes: list[str]) -> Iterator[None]:
    callbacks = _callbacks_of(trainer)
    guards = [_Guard(callback, notes) for callback in callbacks]
    trainer.callbacks = cast(list[Callback], guards)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]


class _Guard:
    """Stands for a callback while its state is asked for, and notes instead of raising."""

    def __init__(self, callback: Callback, notes: list[str]) -> None:
        self._callback, self._notes = callback, notes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callback, name)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # hooks that look for a callback of their kind still find it
        return type(self._callback)

    def state_dict(self) -> dict[str, Any]:
        return self._try("state_dict", self._callback.state_dict) or {}

    def on_save_checkpoint(self, *args: Any) -> None:
        self._try("on_save_checkpoint", lambda: self._callback.on_save_checkpoint(*args))

    def _try(self, hook: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            self._notes.append(f"without the state of {self._callback.state_key}: {hook} raised {error!r}")
            return None


def _leave_out_unloadable(checkpoint: dict[str, Any], notes: list[str]) -> None:
    callbacks = checkpoint.get("callbacks", {})
    for key in list(callbacks):
        if (fault := next(_unloadable(callbacks[key], ""), None)) is not None:
            notes.append(f"without the state of {key}, of which {fault}")
            del callbacks[key]
    names = (LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, "datamodule_hyper_parameters")
    for hparams in (checkpoint[name] for name in names if isinstance(checkpoint.get(name), dict)):
        for key in list(hparams):
            if (fault := next(_unloadable(hparams[key], ""), None)) is not None:
                notes.append(f"without the hyperparameter {key!r}, of which {fault}")
                del hparams[key]
    for fault in _unloadable(checkpoint, "checkpoint"):
        raise Unloadable(f"{fault}; keep tensors, numbers, strings and built-in containers of them instead")


def _unloadable(value: Any, where: str) -> Iterator[str]:
    """What in ``value`` would be refused on loading; only the unusual is tried out."""
    kind = type(value)
    if kind in _ATOMS or kind in _TENSORS:
        return
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            yield from _unloadable(key, f"a key of {where}")
            yield from _unloadable(item, f"{where}[{key!r}]")
    elif kind in (list, tuple, set):
        for index, item in enumerate(value):
            yield from _unloadable(item, f"{where}[{index}]")
    elif not _is_loadable(value):
        yield f"{where or 'the whole'} is a {kind.__module__}.{kind.__qualname__}"


def _is_loadable(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:
        return False
    return True


def _is_broken(value: Tensor, is_sound: Callable[[Tensor], Tensor]) -> bool:
    return value.is_floating_point() and not bool(is_sound(value.detach()).all())


def _is_number(value: Tensor) -> Tensor:
    return ~value.isnan()


def _checksum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _versions() -> dict[str, str]:
    try:
        own = version("lightning-holdfast")
    except PackageNotFoundError:
        own = "unknown"
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": lightning.pytorch.__version__,
        "lightning-holdfast": own,
    }


def _callbacks_of(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined,no-any-return]


def _datamodule_of(trainer: Trainer) -> Any:
    return trainer.datamodule  # type: ignore[attr-defined]
