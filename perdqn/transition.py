"""What one row and one batch hold: field names, shapes, dtypes.

Knows nothing about how rows are stored, drawn or made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

OBS = "obs"  # the column's name where observations are not a Dict


@dataclass(frozen=True)
class Column:
    """One named part of an observation, as a single frame.

    Args:
        name: key of the Dict space; `OBS` where there is no Dict.
        shape: of one frame, without stack or batch.
        dtype: as the environment hands it out.
        num_values: size of a Discrete space, whose values begin at ``start``; None for Box.
        start: smallest value of a Discrete space.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    num_values: int | None = None
    start: int = 0

    @property
    def is_image(self) -> bool:
        """Whether a network sees an image: two axes, or three with channels."""
        return self.num_values is None and len(self.shape) in (2, 3)

    @property
    def is_byte_image(self) -> bool:
        """Whether it is an image that a network sees scaled to [0, 1]."""
        return self.is_image and self.dtype == np.uint8


@dataclass(frozen=True)
class EnvSpec:
    """What a network and a replay must know of an environment.

    Args:
        columns: the observation's parts; one named `OBS` unless ``is_dict``.
        is_dict: whether the environment hands out Dict observations.
        num_actions: discrete actions, counted from 0 inside perdqn.
        action_start: the environment's smallest action.
        frame_stack: frames joined along a new leading axis; 1 adds no axis.
        stack_padding: ``zero`` or ``repeat``, before an episode's first frame.
    """

    columns: tuple[Column, ...]
    is_dict: bool
    num_actions: int
    action_start: int = 0
    frame_stack: int = 1
    stack_padding: str = "zero"

    def obs_shape(self, column: Column) -> tuple[int, ...]:
        """Shape of the column as a network sees it, without the batch."""
        return column.shape if self.frame_stack == 1 else (self.frame_stack, *column.shape)


@dataclass(frozen=True)
class TransitionBatch:
    """``batch`` n-step transitions drawn from the replay.

    Args:
        obs: per column [batch, (stack,) *shape], the environment's dtype.
        action: int64 [batch], counted from 0.
        reward: float32 [batch], sum of gamma^i * r_i over the steps taken.
        discount: float32 [batch], gamma^k over the k steps taken; 0 after a termination.
        next_obs: like obs, k steps later; an episode's final observation where it ended.
        is_weight: float32 [batch], importance weight.
        id: int64 [batch], names the row for as long as it is alive.
    """

    obs: dict[str, Tensor]
    action: Tensor
    reward: Tensor
    discount: Tensor
    next_obs: dict[str, Tensor]
    is_weight: Tensor
    id: Tensor

    def to(self, device: torch.device) -> TransitionBatch:
        """A copy on ``device``; the batch itself where it already lies there. Ids stay on the CPU.

        See `copy_to`: nothing waits for a GPU.
        """
        if self.action.device == device:
            return self

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: copy_to(column, device) for name, column in value.items()}
            return copy_to(value, device)

        return replace(self, **{f.name: move(getattr(self, f.name)) for f in fields(self) if f.name != "id"})


def copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``, itself where it lies there; to a GPU through pinned memory, without waiting.

    The pinned memory is one of its own each time: torch's allocator hands it out again once the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def empty_batch(spec: EnvSpec, size: int, scaled: bool = False) -> TransitionBatch:
    """Zeros of the shapes and dtypes that a replay hands out; no two tensors are the same one."""

    def observations() -> dict[str, Tensor]:
        dtypes = {c.name: np.float32 if scaled and c.is_byte_image else c.dtype for c in spec.columns}
        shapes = {c.name: (size, *spec.obs_shape(c)) for c in spec.columns}
        return {name: torch.from_numpy(np.zeros(shapes[name], dtypes[name])) for name in shapes}

    reward, discount, is_weight = (torch.zeros(size) for _ in range(3))
    action, ids = (torch.zeros(size, dtype=torch.int64) for _ in range(2))
    return TransitionBatch(observations(), action, reward, discount, observations(), is_weight, ids)
