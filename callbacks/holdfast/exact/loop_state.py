"""What Lightning's loops hold between two iterations and leave out of a checkpoint.

Epoch aggregates, the metrics callbacks look at, when loaders were made, and how the validation stands; and
the cure for a restart that assumes something is left to redo, which at a clean boundary is not so.

Knows nothing about data and random streams.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.trainer.connectors.logger_connector.result import (
    _Metadata,
    _ResultCollection,
    _ResultMetric,
    _Sync,
)

from .plain import NotPlain, decode, encode

_OPTIONS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_METADATA = (*_OPTIONS, "dataloader_idx", "metric_attribute")
_VALUES = ("value", "cumulated_batch_size", "_forward_cache", "has_reset", "_update_count")
_METRICS = ("_progress_bar_metrics", "_logged_metrics", "_callback_metrics")
_POSITION = ("_first_loop_iter", "_current_fx")  # decide whether the next log starts an aggregate anew
_TIMES = ("_train_start_time", "_last_val_time")  # of a validation by the clock
_ABSENT = object()


def forget_restart(trainer: Trainer) -> None:
    """Nothing is left to redo: the loops go on as if they had never stopped.

    Otherwise a run restarted after an iteration's end skips the next step, counts a batch twice, waits for
    a validation, fetches a batch too many, or leaves out schedulers at the epoch's end.
    """
    fit_loop = trainer.fit_loop
    for loop in (fit_loop, fit_loop.epoch_loop, fit_loop.epoch_loop.val_loop):
        loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
        loop.reset_restart_stage()


def make_val_loaders(trainer: Trainer) -> None:
    """As Lightning makes them while it trains."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    trainer.training = True


# -- state ------------------------------------------------------------------------------------------


def capture_loops(trainer: Trainer) -> dict[str, Any]:
    """As plain types."""
    fit_loop, val_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
    return {
        "results": [_capture_result(key, result) for key, result in fit_loop.epoch_loop._results.items()],
        "metrics": capture_metrics(trainer),
        "train_loaders_made_in": fit_loop._last_train_dl_reload_epoch,
        "val_loaders_made_in": val_loop._last_val_dl_reload_epoch,
        "has_val_loaders": val_loop._combined_loader is not None,
        "has_validated": val_loop._has_run,
        "val_batches_seen": dict(val_loop._seen_batches_per_dataloader),
        "seconds_since": {k: time.monotonic() - vars(trainer)[k] for k in _TIMES if k in vars(trainer)},
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "is_stopped_early": trainer.should_stop and _is_stopped_early(trainer),
    }


def restore_loops(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put back what `capture_loops` gave."""
    fit_loop, val_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
    _restore_results(trainer, fit_loop.epoch_loop._results, state["results"])
    restore_metrics(trainer, state["metrics"])
    if state["has_val_loaders"] and val_loop._combined_loader is None:
        make_val_loaders(trainer)
    fit_loop._last_train_dl_reload_epoch = state["train_loaders_made_in"]
    val_loop._last_val_dl_reload_epoch = state["val_loaders_made_in"]
    val_loop._has_run = state["has_validated"]
    val_loop._seen_batches_per_dataloader = defaultdict(int, state["val_batches_seen"])
    for name, seconds in state["seconds_since"].items():
        setattr(trainer, name, time.monotonic() - seconds)
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in _callbacks(trainer)):
        trainer.accumulate_grad_batches = state["accumulate_grad_batches"]  # set at an epoch's start only
    if state["is_stopped_early"] and any(
        _stopping_callbacks(trainer)
    ):  # else whoever stopped it was taken out
        trainer.should_stop = True


def capture_metrics(trainer: Trainer) -> dict[str, Any]:
    """The newest values, as callbacks, loggers and the progress bar see them."""
    connector = trainer._logger_connector
    metrics = {name: _plain_items(getattr(connector, name)) for name in _METRICS}
    return {**metrics, **{name: getattr(connector, name) for name in _POSITION}}


def restore_metrics(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put back what `capture_metrics` gave."""
    for name in (*_METRICS, *_POSITION):
        setattr(trainer._logger_connector, name, decode(state[name], trainer.strategy.root_device))


def _plain_items(metrics: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in metrics.items():
        with contextlib.suppress(NotPlain):  # an object handed to a logger
            plain[key] = encode(value)
    return plain


def _is_stopped_early(trainer: Trainer) -> bool:
    """Any other stop was a wish of the moment, and a resume is the wish to go on."""
    return any(callback.stopping_reason.value for callback in _stopping_callbacks(trainer))


def _stopping_callbacks(trainer: Trainer) -> Iterator[EarlyStopping]:
    return (callback for callback in _callbacks(trainer) if isinstance(callback, EarlyStopping))


def _callbacks(trainer: Any) -> list[Callback]:
    return list(trainer.callbacks)


# -- epoch aggregates -------------------------------------------------------------------------------


def _capture_result(key: str, result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    return {
        "key": key,
        "meta": {name: getattr(meta, name) for name in _METADATA},
        "reduce_fx": meta.reduce_fx.__name__,
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "is_tensor": result.is_tensor,
        "values": {n: encode(v) for n in _VALUES if (v := vars(result).get(n, _ABSENT)) is not _ABSENT}
        if result.is_tensor
        else {"has_reset": result.has_reset, "_update_count": result._update_count},
    }


def _restore_results(trainer: Trainer, results: _ResultCollection, entries: list[dict[str, Any]]) -> None:
    results.clear()
    for entry in entries:
        meta = _Metadata(**entry["meta"], reduce_fx=getattr(torch, entry["reduce_fx"]))
        meta.sync = _Sync(**entry["sync"], fn=trainer.strategy.reduce)  # Lightning compares it at each log
        result = results[entry["key"]] = _ResultMetric(meta, entry["is_tensor"])
        for name, value in entry["values"].items():
            setattr(result, name, decode(value, trainer.strategy.root_device))
        if not entry["is_tensor"]:  # a Metric of the module, which has its own state
            result.value = trainer.lightning_module.get_submodule(entry["meta"]["metric_attribute"])
            result._forward_cache = result.value._forward_cache
