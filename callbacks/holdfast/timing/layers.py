"""A profile of single layers: time, FLOPs, memory and what their outputs look like.

Knows nothing about training; what it runs leaves the module as it was.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..exact.rng import get_global_rng, set_global_rng


@dataclass
class Layer:
    """One layer: a module without modules in it, or attention, which calls those in it past their forward.

    Attributes:
        seconds: of its forward, median over the repeats, all its calls in one.
        flops: of its forward, as torch counts them: matrix products, convolutions, attention.
        parameter_bytes, output_bytes: what it holds, and what it hands on.
        mean, std: of its outputs.
        zero_share: of its outputs that are 0; ``dead_share``: of its units (channels) that are 0 for all of
            the batch; ``nan_share``: that are not finite.
    """

    name: str
    kind: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    parameter_bytes: int = 0
    output_bytes: int = 0
    mean: float = 0.0
    std: float = 0.0
    zero_share: float = 0.0
    dead_share: float = 0.0
    nan_share: float = 0.0


@dataclass
class LayerProfile:
    """All layers that were called; ``seconds`` is of the whole forward."""

    layers: list[Layer] = field(default_factory=list)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The slowest first."""
        lines = [
            f"{'layer':<32} {'kind':<16} {'us':>9} {'share':>6} {'MFLOP':>9} {'GFLOP/s':>8} {'out KiB':>9}"
            f" {'mean':>9} {'std':>9} {'zero':>6} {'dead':>6} {'nan':>6}"
        ]
        for each in sorted(self.layers, key=lambda each: -each.seconds):
            rate = each.flops / each.seconds / 1e9 if each.seconds else 0.0
            lines.append(
                f"{each.name:<32} {each.kind:<16} {1e6 * each.seconds:>9.1f}"
                f" {each.seconds / (self.seconds or 1):>6.1%} {each.flops / 1e6:>9.3f} {rate:>8.2f}"
                f" {each.output_bytes / 1024:>9.1f} {each.mean:>9.3g} {each.std:>9.3g}"
                f" {each.zero_share:>6.1%} {each.dead_share:>6.1%} {each.nan_share:>6.1%}"
            )
        return "\n".join(lines)


def profile_layers(
    module: nn.Module,
    batch: Any,
    forward: Callable[[Any], Any] | None = None,
    *,
    repeats: int = 5,
    trace: str | os.PathLike[str] | None = None,
    table: str | os.PathLike[str] | None = None,
) -> LayerProfile:
    """Run a batch through a module some times, and look at each layer.

    Random streams, buffers, gradients and the mode are put back, so this may be done in the middle of a run.

    Args:
        batch: on the module's device.
        forward: called with the batch; None calls the module with the batch, or with as many of its first
            elements as ``module.forward`` needs where it is a tuple or list.
        repeats: of which the median is taken.
        trace: file for a Chrome trace of one more run (chrome://tracing, perfetto.dev).
        table: file for the table as text.
    """
    run = forward or (lambda given: module(*_arguments(module, given)))
    profile, found = LayerProfile(), {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention) or not any(True for _ in layer.children()):
            held = sum(p.numel() * p.element_size() for p in layer.parameters())
            found[layer] = Layer(name or type(module).__name__, type(layer).__name__, parameter_bytes=held)
    with _untouched(module), torch.no_grad():
        run(batch)  # warms up
        _look(found, lambda: run(batch))
        profile.layers = [layer for layer in found.values() if layer.calls]
        profile.seconds = _time(found, lambda: run(batch), repeats)
        _count_flops(found, lambda: run(batch))
        if trace is not None:
            _trace(lambda: run(batch), Path(trace))
    if table is not None:
        Path(table).write_text(profile.table() + "\n")
    return profile


def _arguments(module: nn.Module, batch: Any) -> tuple[Any, ...]:
    if not isinstance(batch, tuple | list):
        return (batch,)
    parameters = inspect.signature(module.forward).parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    num_needed = sum(p.default is p.empty and p.kind in plain for p in parameters)
    return tuple(batch[: max(1, num_needed)])


@contextlib.contextmanager
def _untouched(module: nn.Module) -> Iterator[None]:
    streams = get_global_rng()
    buffers = {buffer: buffer.detach().clone() for buffer in module.buffers()}
    modes = {each: each.training for each in module.modules()}
    try:
        yield
    finally:
        set_global_rng(streams)
        with torch.no_grad():
            for buffer, before in buffers.items():
                buffer.copy_(before)
        for each, mode in modes.items():
            each.training = mode


@contextlib.contextmanager
def _hooked(
    layers: Mapping[nn.Module, Layer],
    before: Callable[[Layer], None] | None,
    after: Callable[[Layer, Any], None],
) -> Iterator[None]:
    handles = []
    for module, layer in layers.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(lambda _, __, layer=layer: before(layer)))
        handles.append(module.register_forward_hook(lambda _, __, out, layer=layer: after(layer, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _look(layers: Mapping[nn.Module, Layer], run: Callable[[], Any]) -> None:
    def note(layer: Layer, output: Any) -> None:
        layer.calls += 1
        for tensor in _tensors(output):
            layer.output_bytes += tensor.numel() * tensor.element_size()
        values = next((t for t in _tensors(output) if t.is_floating_point() and t.numel()), None)
        if values is not None:
            _describe(layer, values.detach().float())

    with _hooked(layers, None, note):
        run()


def _describe(layer: Layer, values: Tensor) -> None:
    is_finite = torch.isfinite(values)
    finite = values[is_finite]
    layer.nan_share = 1 - float(is_finite.float().mean())
    if finite.numel():
        layer.mean, layer.std = float(finite.mean()), float(finite.std(correction=0))
    layer.zero_share = float((values == 0).float().mean())
    if values.ndim > 1:
        channel = 1 if values.ndim == 4 else values.ndim - 1  # of images the second, else the last
        units = (values == 0).movedim(channel, 0).flatten(1)
        layer.dead_share = float(units.all(dim=1).float().mean())


def _time(layers: Mapping[nn.Module, Layer], run: Callable[[], Any], repeats: int) -> float:
    took: dict[str, list[float]] = {layer.name: [] for layer in layers.values()}
    since: dict[str, float] = {}
    now: dict[str, float] = {}

    def begin(layer: Layer) -> None:
        _synchronize()
        since[layer.name] = time.perf_counter()

    def end(layer: Layer, _: Any) -> None:
        _synchronize()
        now[layer.name] = now.get(layer.name, 0.0) + time.perf_counter() - since[layer.name]

    whole = []
    with _hooked(layers, begin, end):
        for _ in range(repeats):
            now.clear()
            began = time.perf_counter()
            run()
            _synchronize()
            whole.append(time.perf_counter() - began)
            for name, seconds in now.items():
                took[name].append(seconds)
    for layer in layers.values():
        layer.seconds = statistics.median(took[layer.name] or [0.0])
    return statistics.median(whole)


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _count_flops(layers: Mapping[nn.Module, Layer], run: Callable[[], Any]) -> None:
    counter = FlopCounterMode(display=False)

    def begin(layer: Layer) -> None:
        layer.flops -= counter.get_total_flops()

    def end(layer: Layer, _: Any) -> None:
        layer.flops += counter.get_total_flops()

    with counter, _hooked(layers, begin, end):
        run()


def _trace(run: Callable[[], Any], path: Path) -> None:
    from torch.profiler import ProfilerActivity, profile, record_function

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    found = profile(activities=activities, record_shapes=True, profile_memory=True, with_flops=True)
    with found, record_function("forward"):
        run()
    path.parent.mkdir(parents=True, exist_ok=True)
    found.export_chrome_trace(str(path))


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    return [t for each in output for t in _tensors(each)] if isinstance(output, tuple | list) else []
