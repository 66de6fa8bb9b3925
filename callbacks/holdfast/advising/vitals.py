"""Figures of one optimiser step, measured around it: gradients, weights, and how far they moved.

Knows nothing about when to measure, nor what the figures mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

_MOST_ELEMENTS = 65_536  # of a weight, evenly spread, by which its movement is measured
_DEAD_AFTER = 5  # measurements in a row without any gradient
_FEWEST_UNITS = 8  # of a layer whose dead ones count
_NUM_FIRST = 10  # measurements that tell where it began


class Vitals:
    """Of one module; call `before_step`, `after_step` and, once the batch is over, `after_batch`.

    | figure | meaning |
    |-|-|
    | ``loss`` | what the training step returned |
    | ``grad_norm`` | 2-norm of all gradients of the optimiser, before Lightning clips |
    | ``loss_start``, ``grad_norm_start`` | median of the first 10 |
    | ``grad_depth_ratio`` | root mean square gradient of the first linear or convolutional weight over the last's |
    | ``clipped`` | 1 where that norm is above Trainer's gradient_clip_val, else 0 |
    | ``weight_norm`` | 2-norm of linear and convolutional weights |
    | ``update_ratio`` | median over these weights of the norm of a step's change over the weight's own |
    | ``dead_units`` | share of units without any gradient in 5 measurements in a row, in the worst layer |
    | ``learning_rate`` | of the first parameter group |
    | ``non_finite`` | 1 where loss or gradient norm is not finite, else 0 |
    """  # noqa: E501

    def __init__(self, module: nn.Module) -> None:
        self._layers: list[Any] = [m for m in module.modules() if isinstance(m, nn.Linear | _ConvNd)]
        self._streaks: dict[int, np.ndarray] = {}  # of a layer's units: measurements without gradient
        self._first: dict[str, list[float]] = {"loss": [], "grad_norm": []}
        self._figures: dict[str, Any] = {}
        self._weights: list[Tensor] = []
        self._before: list[Tensor] = []  # samples of them

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, clip_norm: float | None) -> None:
        """Gradients are there, and not yet clipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        norms = dict(zip(map(id, gradients), _norms(gradients), strict=True))
        norm = math.hypot(*norms.values())
        trained = [i for i, layer in enumerate(self._layers) if id(layer.weight.grad) in norms]
        self._figures = {"grad_norm": norm, "learning_rate": float(optimizer.param_groups[0]["lr"])}
        if clip_norm:
            self._figures["clipped"] = float(norm > clip_norm)
        if len(trained) > 1:
            grads = [self._layers[i].weight.grad for i in (trained[0], trained[-1])]
            first, last = (norms[id(grad)] / math.sqrt(grad.numel()) for grad in grads)
            self._figures["grad_depth_ratio"] = first / last if last else math.nan
        if norm > 0:  # else nothing is to be learnt, whatever units do
            self._note_dead(trained)
        self._weights = [self._layers[i].weight for i in trained]
        self._before = [_sample(weight).clone() for weight in self._weights]

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimiser has stepped; called twice, the first call counts."""
        weights, before = self._weights, self._before
        self._weights, self._before = [], []
        if before:
            moved = torch._foreach_sub([_sample(weight) for weight in weights], before)
            norms = np.array(_norms([*moved, *before, *weights])).reshape(3, -1)
            self._figures["update_ratio"] = float(np.median(norms[0] / norms[1].clip(min=1e-12)))
            self._figures["weight_norm"] = math.hypot(*norms[2])

    def after_batch(self, outputs: Any) -> dict[str, float]:
        """All figures of the step.

        Args:
            outputs: what the training step returned.
        """
        self.after_step()
        figures, self._figures = self._figures, {}
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            figures["loss"] = float(loss)
        self._note_start(figures)
        is_finite = all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm"))
        return {**figures, "non_finite": float(not is_finite)}

    def _note_start(self, figures: dict[str, float]) -> None:
        for name, first in self._first.items():
            if len(first) < _NUM_FIRST and math.isfinite(figures.get(name, math.nan)):
                first.append(figures[name])
            if len(first) == _NUM_FIRST:
                figures[f"{name}_start"] = statistics.median(first)

    def _note_dead(self, trained: Sequence[int]) -> None:
        found = ((i, _by_unit(self._layers[i])) for i in trained)
        by_unit = {i: units for i, units in found if units is not None and len(units) >= _FEWEST_UNITS}
        if not by_unit:
            return
        gradients = torch.cat([units.float() for units in by_unit.values()]).cpu().numpy()
        ends = np.cumsum([len(units) for units in by_unit.values()])[:-1]
        shares = []
        for i, units in zip(by_unit, np.split(gradients, ends), strict=True):
            streak = (self._streaks.get(i, 0) + 1) * (units == 0)
            self._streaks[i] = np.minimum(streak, _DEAD_AFTER)
            shares.append(np.mean(self._streaks[i] == _DEAD_AFTER))
        self._figures["dead_units"] = float(max(shares))

    def state_dict(self) -> dict[str, Any]:
        streaks = {i: torch.from_numpy(streak.astype(np.uint8)) for i, streak in self._streaks.items()}
        return {"streaks": streaks, "first": {name: list(first) for name, first in self._first.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._streaks = {i: streak.cpu().numpy().astype(np.int64) for i, streak in state["streaks"].items()}
        self._first = {name: list(first) for name, first in state["first"].items()}


def _norms(tensors: Sequence[Tensor]) -> list[float]:
    """2-norms, with one transfer from the device."""
    if not tensors:
        return []
    norms = torch._foreach_norm(list(tensors), dtype=torch.float32)
    return [float(norm) for norm in torch.stack([norm.to(norms[0].device) for norm in norms]).tolist()]


def _by_unit(layer: Any) -> Tensor | None:
    """The gradient that reached each unit of a layer, or its size."""
    if layer.bias is not None and layer.bias.grad is not None:
        bias: Tensor = layer.bias.grad
        return bias
    if isinstance(layer, _ConvTransposeNd):
        return None
    size: Tensor = layer.weight.grad.flatten(1).abs().amax(1)
    return size


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _MOST_ELEMENTS)]
