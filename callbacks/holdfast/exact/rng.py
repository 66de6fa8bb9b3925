"""The global random streams of python, numpy and torch, as plain values that a checkpoint can hold.

Knows nothing about who draws from them.
"""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def get_global_rng() -> dict[str, Any]:
    """Where every global stream stands, those of CUDA devices included."""
    name, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_rng(state: dict[str, Any]) -> None:
    """Put every stream back; those of CUDA only where there are as many devices as then."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
