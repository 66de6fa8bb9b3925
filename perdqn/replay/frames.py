"""Single frames by slot: written once, gathered many at a time.

Knows nothing about episodes, rings or what a stack is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdqn.jit import kernel, prefetch
from perdqn.replay.buffers import ALIGNMENT, Buffers
from perdqn.replay.memcpy import WIDE, copy_bytes, fill_bytes, finish_stream, scale_16, stream_16
from perdqn.transition import Column

Array = NDArray[Any]
Ints = NDArray[np.int64]

NO_FRAME = -1  # the slot of a frame of zeros
_FLOAT = np.dtype(np.float32)
SCALE = np.float32(1 / 255)


@kernel
def scale(to: Array, at: int, source: Array, begin: int, num: int, streams: bool) -> None:
    """``to[at : at + num] = source[begin : begin + num] * float32(1 / 255)``, from uint8 to float32.

    Args:
        streams: past the caches; ``to[at]`` lies at a multiple of `ALIGNMENT`, and `finish_stream` follows.
    """
    wide = num - num % WIDE
    if streams:
        for i in range(0, wide, WIDE):
            stream_16(to, at + i, source, begin + i)
    else:
        for i in range(0, wide, WIDE):
            scale_16(to, at + i, source, begin + i)
    for i in range(wide, num):
        to[at + i] = np.float32(source[begin + i]) * SCALE


@kernel
def _gather(stored: Array, width: int, slots: Ints, out: Array) -> None:
    """Copy frames of ``width`` bytes; those next to each other in both places go at once."""
    for slot in slots:  # so that copying does not wait for each
        prefetch(stored, slot * width)
    i = 0
    while i < slots.size:
        end = i + 1
        if slots[i] == NO_FRAME:
            fill_bytes(out, i * width, width, 0)
        else:
            while end < slots.size and slots[end] == slots[end - 1] + 1:
                end += 1
            copy_bytes(out, i * width, stored, slots[i] * width, (end - i) * width)
        i = end


@kernel
def _gather_scaled(stored: Array, width: int, slots: Ints, out: Array) -> None:
    streams = width % WIDE == 0 and out.ctypes.data % ALIGNMENT == 0
    for i in range(slots.size):
        if slots[i] == NO_FRAME:
            out[i * width : (i + 1) * width] = np.float32(0.0)
        else:
            scale(out, i * width, stored, slots[i] * width, width, streams)
    finish_stream()


class RawFrames:
    """Frames as they are.

    Args:
        column: shape and dtype of a frame.
        num_slots: frames that fit.
    """

    def __init__(self, column: Column, num_slots: int) -> None:
        self._array = np.zeros((num_slots, *column.shape), column.dtype)
        self._bytes = self._array.reshape(-1).view(np.uint8)
        self._width = column.dtype.itemsize * math.prod(column.shape)
        self._is_scalable = column.is_byte_image
        self._buffers = Buffers()

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    @property
    def nbytes(self) -> int:
        """Bytes reserved; the operating system hands out pages only as they are written."""
        return self._array.nbytes

    def __getitem__(self, slots: Any) -> Array:
        return self._array[slots]

    def __setitem__(self, slots: Any, frames: Any) -> None:
        self._array[slots] = frames

    def gather(self, slots: Ints, scaled: bool = False) -> Array:
        """Frames at ``slots`` [...], `NO_FRAME` standing for zeros, as an array [..., *shape] of its own.

        Args:
            scaled: images of bytes as float32 in [0, 1], each value times float32(1 / 255).
        """
        shape = (*slots.shape, *self.shape[1:])
        if scaled and self._is_scalable:
            out = self._buffers.take(shape, _FLOAT)
            _gather_scaled(self._bytes, self._width, slots.reshape(-1), out.reshape(-1))
        else:
            out = self._buffers.take(shape, self.dtype)
            _gather(self._bytes, self._width, slots.reshape(-1), out.reshape(-1).view(np.uint8))
        return out

    def release_memory(self) -> None:
        """Let go of what only makes gathering faster."""
        self._buffers.release()
