"""LZ4 blocks decompressed inside kernels.

Knows nothing about who wrote them. The format: github.com/lz4/lz4, doc/lz4_Block_format.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdqn.jit import kernel
from perdqn.replay.memcpy import WIDE, copy_16, copy_bytes, fill_bytes

Array = NDArray[Any]


@kernel
def _read_length(source: Array, s: int, end: int) -> tuple[int, int]:
    """What a length has beyond 15, and where it stops: beyond ``end`` where the block is too short."""
    length: Any = 0
    part: Any = 255
    while part == 255:
        if s >= end:
            return length, end + 1
        part = np.int64(source[s])  # unsigned and signed would meet as floats
        length += part
        s += 1
    return length, s


@kernel
def decompress(source: Array, begin: int, end: int, to: Array, at: int, stop: int) -> bool:
    """Fill ``to[at:stop]`` from the block ``source[begin:end]``; both are flat uint8 arrays.

    Returns:
        Whether the block is sound and fills it exactly. If not, what lies there means nothing, but
        nothing beside it was written and nothing beside the block was read.
    """
    s: Any = begin
    d: Any = at
    while s < end:
        token = np.int64(source[s])
        s += 1
        length = token >> 4
        if length == 15:
            more, s = _read_length(source, s, end)
            length += more
        if length > end - s or length > stop - d:
            return False
        if length <= WIDE and s + WIDE <= end and d + WIDE <= stop:
            copy_16(to, d, source, s)
        else:
            copy_bytes(to, d, source, s, length)
        s += length
        d += length
        if s == end:
            return d == stop

        if end - s < 2:
            return False
        offset = np.int64(source[s]) | np.int64(source[s + 1]) << 8
        s += 2
        length = token & 15
        if length == 15:
            more, s = _read_length(source, s, end)
            length += more
        length += 4
        if s > end or offset == 0 or offset > d - at or length > stop - d:
            return False
        if offset >= WIDE and d + length + WIDE <= stop:
            for i in range(0, length, WIDE):
                copy_16(to, d + i, to, d - offset + i)
        elif offset == 1:
            fill_bytes(to, d, length, to[d - 1])
        else:  # a period that repeats: what can be copied at once doubles
            done: Any = 0
            while done < length:
                num = min(offset + done, length - done)
                copy_bytes(to, d + done, to, d - offset, num)
                done += num
        d += length
    return False
