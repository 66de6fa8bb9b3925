"""Memory for batches, used again once nobody else refers to it.

Knows nothing about what is written there. Fresh memory costs a page fault every 4 KiB, which takes as long
as filling it.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALIGNMENT = 64  # bytes: a line of the caches
_LEAST_BYTES = 1 << 16  # below, the allocator hands out memory that is warm anyway


def _references(buffers: list[Array]) -> list[int]:
    return [sys.getrefcount(buffer) for buffer in buffers]


_ALONE = _references([np.empty(0)])[0]  # how many a buffer has that only the list holds


class Buffers:
    """The newest few arrays handed out.

    Every view of an array, and every tensor made from it, holds a reference to it for as long as it lives.

    Args:
        most: arrays kept: the batch in use and the one being made, as bytes and as floats.
    """

    def __init__(self, most: int = 4) -> None:
        self._most = most
        self._kept: list[Array] = []  # of bytes; what is handed out are views of these

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """An array, at a multiple of 64 bytes, that nobody else refers to; what it holds means nothing."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _LEAST_BYTES:
            return np.empty(shape, dtype)
        for buffer, references in zip(self._kept, _references(self._kept), strict=True):
            if references == _ALONE and buffer.size == num_bytes + ALIGNMENT:
                break
        else:
            buffer = np.empty(num_bytes + ALIGNMENT, np.uint8)
            self._kept = [*self._kept[1 - self._most :], buffer]
        begin = -buffer.ctypes.data % ALIGNMENT
        return buffer[begin : begin + num_bytes].view(dtype).reshape(shape)

    def release(self) -> None:
        """Keep none."""
        self._kept = []
