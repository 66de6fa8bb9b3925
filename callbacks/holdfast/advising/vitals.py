"""Figures of one optimiser step, measured around it: gradients, weights, and how far they moved.

Knows nothing about when to measure, nor what the figures mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.optim import Optimizer

_MOST_ELEMENTS = 65_536  # of a weight, evenly spread, by which its movement is measured
_DEAD_AFTER = 5  # measurements in a row without any gradient
_FEWEST_UNITS = 8  # of a layer whose dead ones count
_NUM_FIRST_LOSSES = 10


class Vitals:
    """Of one module; call `before_step`, `after_step` and, once the batch is over, `after_batch`.

    | figure | meaning |
    |-|-|
    | ``loss`` | what the training step returned |
    | ``loss_start`` | median of the first 10 |
    | ``grad_norm`` | 2-norm of all gradients of the optimiser, before Lightning clips |
    | ``grad_depth_ratio`` | root mean square gradient of the first linear or convolutional weight over the last's |
    | ``clipped`` | 1 where that norm is above Trainer's gradient_clip_val, else 0 |
    | ``weight_norm`` | 2-norm of linear and convolutional weights |
    | ``update_ratio`` | median over these weights of the norm of a step's change over the weight's own |
    | ``dead_units`` | share of units without any gradient in 5 measurements in a row, in the worst layer |
    | ``learning_rate`` | of the first parameter group |
    | ``non_finite`` | 1 where loss or gradient norm is not finite, else 0 |
    """  # noqa: E501

    def __init__(self, module: nn.Module) -> None:
        layers = [part for part in module.modules() if isinstance(part, nn.Linear | _ConvNd)]
        self._layers = [layer for layer in layers if isinstance(layer.weight, Tensor)]
        self._streaks: dict[int, Tensor] = {}  # of a layer's units: measurements without gradient
        self._first_losses: list[float] = []
        self._figures: dict[str, Any] = {}
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer, clip_norm: float | None) -> None:
        """Gradients are there, and not yet clipped."""
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None and not p.grad.is_sparse]
        trained = [
            (index, layer)
            for index, layer in enumerate(self._layers)
            if id(layer.weight) in owned and layer.weight.grad is not None
        ]
        norm = float(nn.utils.get_total_norm(gradients)) if gradients else 0.0
        self._figures = {"grad_norm": norm, "learning_rate": float(optimizer.param_groups[0]["lr"])}
        if clip_norm:
            self._figures["clipped"] = float(norm > clip_norm)
        if len(trained) > 1:
            first, last = (_rms(layer.weight.grad) for layer in (trained[0][1], trained[-1][1]))
            self._figures["grad_depth_ratio"] = float(first / last) if last else math.nan
        if norm > 0:  # else nothing is to be learnt, whatever units do
            self._note_dead(trained)
        self._before = [(layer.weight, _sample(layer.weight).clone()) for _, layer in trained]

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimiser has stepped; called twice, the first call counts."""
        before, self._before = self._before, []
        if before:
            moved = torch.stack([_ratio(_sample(weight) - old, old) for weight, old in before])
            self._figures["update_ratio"] = statistics.median(moved.tolist())
            self._figures["weight_norm"] = float(nn.utils.get_total_norm([weight for weight, _ in before]))

    def after_batch(self, outputs: Any) -> dict[str, float]:
        """All figures of the step.

        Args:
            outputs: what the training step returned.
        """
        self.after_step()
        figures, self._figures = self._figures, {}
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            figures |= self._losses(float(loss))
        is_finite = all(math.isfinite(figures.get(name, 0.0)) for name in ("loss", "grad_norm"))
        return {**figures, "non_finite": float(not is_finite)}

    def _losses(self, loss: float) -> dict[str, float]:
        if len(self._first_losses) < _NUM_FIRST_LOSSES and math.isfinite(loss):
            self._first_losses.append(loss)
        figures = {"loss": loss}
        if len(self._first_losses) == _NUM_FIRST_LOSSES:
            figures["loss_start"] = statistics.median(self._first_losses)
        return figures

    def _note_dead(self, trained: Sequence[tuple[int, Any]]) -> None:
        shares = []
        for index, layer in trained:
            gradient = _by_unit(layer)
            if gradient is None or len(gradient) < _FEWEST_UNITS:
                continue
            is_still = gradient == 0
            streak = self._streaks.get(index, torch.zeros_like(is_still, dtype=torch.uint8))
            streak = ((streak.to(is_still.device) + 1) * is_still).clamp(max=_DEAD_AFTER)
            self._streaks[index] = streak
            shares.append((streak == _DEAD_AFTER).float().mean())
        if shares:
            self._figures["dead_units"] = float(torch.stack(shares).max())

    def state_dict(self) -> dict[str, Any]:
        streaks = {index: streak.cpu() for index, streak in self._streaks.items()}
        return {"streaks": streaks, "first_losses": list(self._first_losses)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._streaks, self._first_losses = dict(state["streaks"]), list(state["first_losses"])


def _by_unit(layer: Any) -> Tensor | None:
    """Size of the gradient that reached each unit of a layer; 0 where none did."""
    if layer.bias is not None and layer.bias.grad is not None:
        return layer.bias.grad.abs()
    if isinstance(layer, _ConvTransposeNd):
        return None
    return layer.weight.grad.flatten(1).abs().amax(1)


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().reshape(-1)
    return flat[:: -(-flat.numel() // _MOST_ELEMENTS)]


def _ratio(change: Tensor, weight: Tensor) -> Tensor:
    return change.norm() / weight.norm().clamp(min=1e-12)


def _rms(x: Any) -> Tensor:
    norm: Tensor = x.norm() / math.sqrt(x.numel())
    return norm
