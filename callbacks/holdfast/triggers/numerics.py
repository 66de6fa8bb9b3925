"""NaN and infinity in losses, gradients, weights and whatever else a module declares.

Knows nothing about what is done about them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .reason import Context, Trigger

_DTYPES = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}


@runtime_checkable
class Declares(Protocol):
    """A module that knows of more numbers than its weights: a replay, running statistics."""

    def non_finite(self) -> str | None:
        """Where NaN or infinity stands that must not; cheap, since it is asked again and again."""
        ...


class Numerics(Trigger):
    """Fires on the first NaN or infinity it is shown.

    Asked by the training loop rather than polled. Looking costs a wait for the device, so losses and
    gradients are looked at every so many steps; weights whenever they are saved, so none is ever saved as
    good that is not finite.

    Args:
        check_every_n_steps: 1 finds the first bad step; more costs less.
    """

    kind = "numerics"

    def __init__(self, check_every_n_steps: int = 100) -> None:
        super().__init__()
        if check_every_n_steps < 1:
            raise ValueError(f"check_every_n_steps must be at least 1, got {check_every_n_steps}; use 100")
        self.check_every_n_steps = check_every_n_steps
        self._meant: set[str] = set()

    def start(self, context: Context) -> None:
        super().start(context)
        self._meant = set()

    def accept(self, buffers: Iterable[tuple[str, Tensor]]) -> None:
        """Buffers that are not finite when training begins are meant so: masks of minus infinity."""
        self._meant = {name for name, value in buffers if non_finite([(name, value)])}

    def check_loss(self, outputs: Any) -> bool:
        """Whether the loss is finite, or there is none in what ``training_step`` returned."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):
            return True
        return self._judge("the loss is", non_finite([("", loss)]), "NaN or infinite")

    def check_gradients(self, parameters: Iterable[tuple[str, Tensor]]) -> bool:
        """Whether all gradients are finite."""
        gradients = [(name, p.grad) for name, p in parameters if p.grad is not None]
        return self._judge("NaN or infinity in the gradient of", non_finite(gradients))

    def check_state(self, state: Iterable[tuple[str, Tensor]]) -> bool:
        """Whether all tensors of a state are finite but those that never were."""
        return self._judge(
            "NaN or infinity in",
            non_finite([(name, value) for name, value in state if name not in self._meant]),
        )

    def check_declared(self, module: object) -> bool:
        """Whether a module that knows of more has nothing to say."""
        if not isinstance(module, Declares):
            return True
        return self._judge("NaN or infinity in", module.non_finite())

    def _judge(self, text: str, where: str | None, instead: str | None = None) -> bool:
        if where is not None:
            self.fire(f"{text} {instead or where}")
        return where is None


def non_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor with NaN or infinity; one wait per device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        if tensor.numel() and tensor.dtype in _DTYPES and tensor.layout is torch.strided:
            groups.setdefault((tensor.device, tensor.dtype), []).append((name, tensor.detach()))
    for (_, dtype), group in groups.items():
        wide = torch.float32 if dtype.itemsize == 2 else None
        norms = torch._foreach_norm([tensor for _, tensor in group], dtype=wide)
        if not bool(torch.stack(norms).sum().isfinite()):
            # of large numbers the squares alone may overflow, so the numbers themselves have the last word
            suspects = (entry for entry, norm in zip(group, norms, strict=True) if not norm.isfinite())
            if (found := next((n for n, t in suspects if not t.isfinite().all()), None)) is not None:
                return found
    return None
