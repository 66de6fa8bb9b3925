"""Single frames by slot, each compressed by itself with LZ4, decompressed when gathered.

Knows nothing about episodes or what a stack is. In all but cost it is `RawFrames`.

Compressed frames lie in chunks of one array. Every ring fills chunks of its own, so that frames written
after each other lie next to each other and die together; a chunk without a live frame is used again, and
the array grows only where none is free. A frame that does not shrink is stored as it is, so noise takes
what `RawFrames` would, some percent for the rest of a chunk, and 12 bytes a slot.
"""

from __future__ import annotations

import heapq
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from perdqn.jit import kernel
from perdqn.replay.buffers import ALIGNMENT, Buffers
from perdqn.replay.frames import NO_FRAME, scale
from perdqn.replay.lz4_block import decompress
from perdqn.replay.memcpy import WIDE, copy_bytes, fill_bytes, finish_stream
from perdqn.transition import Column

Array = NDArray[Any]
Ints = NDArray[np.int64]

_CHUNK_BYTES = 1 << 16
_GROWTH = 16  # the array grows by a 16th, and at least so many chunks
_PLACES = 1 << 10  # remembered of a batch while it is gathered
_NO_FLOATS = np.empty(0, np.float32)
_NO_CACHE = (np.empty(0, np.uint8), *np.empty((2, 0), np.int64), np.zeros(2, np.int64))


@kernel
def _unpack(arena: Array, begin: int, size: int, width: int, to: Array, at: int) -> bool:
    """Write one frame; returns whether it was sound."""
    if size == 0:
        fill_bytes(to, at, width, 0)
    elif size == width:
        copy_bytes(to, at, arena, begin, width)
    else:
        return decompress(arena, begin, begin + size, to, at, at + width)
    return True


@kernel
def _gather(
    arena: Array,
    starts: Ints,
    sizes: Array,
    width: int,
    slots: Ints,
    out: Array,
    floats: Array,
    cache: Array,
    cached: Ints,
    wanted: Ints,
    counts: Ints,
) -> bool:
    """Write the frames at ``slots``; returns whether all were sound.

    Args:
        out: flat, ``width`` bytes a frame; of one frame alone where ``floats`` are wanted.
        floats: flat, for the scaled frames; empty where bytes are wanted.
        cache, cached, wanted: frames kept, whose they are, and who has asked of late.
        counts: look-ups that found a frame in the cache, and that did not.
    """
    is_scaled = floats.size > 0
    streams = width % WIDE == 0 and floats.ctypes.data % ALIGNMENT == 0
    is_sound = True
    places = np.zeros(_PLACES, np.int64)
    for i in range(slots.size):
        slot, at = slots[i], 0 if is_scaled else i * width
        if slot == NO_FRAME:
            fill_bytes(out, at, width, 0)
        else:
            before = places[slot % _PLACES]
            places[slot % _PLACES] = i
            is_repeated = before < i and slots[before] == slot
            kept = slot % max(1, cached.size)
            if is_repeated and not is_scaled:
                copy_bytes(out, at, out, before * width, width)
            elif cached.size and cached[kept] == slot:
                copy_bytes(out, at, cache, kept * width, width)
                counts[0] += not is_repeated
            else:
                is_sound &= _unpack(arena, starts[slot], sizes[slot], width, out, at)
                if not is_repeated:
                    counts[1] += 1
                    if cached.size and wanted[slot % wanted.size] == slot:
                        copy_bytes(cache, kept * width, out, at, width)
                        cached[kept] = slot
                    if cached.size:
                        wanted[slot % wanted.size] = slot
        if is_scaled:
            scale(floats, i * width, out, 0, width, streams)
    finish_stream()
    return is_sound


class CompressedFrames:
    """Frames of a column, compressed.

    Args:
        column: shape and dtype of a frame.
        num_slots: frames that fit.
        num_rings: slots are written one after the other in each of so many equal parts.
        num_cached: frames kept decompressed; only those that are asked for twice get there.

    Raises:
        ValueError: lz4 is not installed.
    """

    def __init__(self, column: Column, num_slots: int, num_rings: int, num_cached: int = 0) -> None:
        self._compress = _compressor()
        self.shape, self.dtype = (num_slots, *column.shape), column.dtype
        self._is_scalable = column.is_byte_image
        self._width = column.dtype.itemsize * math.prod(column.shape)
        self._ring_length = num_slots // num_rings
        self._starts = np.zeros(num_slots, np.int64)
        self._sizes = np.zeros(num_slots, np.int32)  # 0: never written, and so zeros
        self._chunk_bytes = max(_CHUNK_BYTES, 8 * self._width)
        self._arena = np.zeros(0, np.uint8)
        self._num_alive = np.zeros(0, np.int64)  # frames in each chunk, and one more while a ring fills it
        self._free: list[int] = []  # chunks, as a heap: the lowest first, so that the end can be cut off
        self._filling = [(-1, 0, 0)] * num_rings  # chunk, and where in the array the next frame goes, and end
        self._make_cache(num_cached)
        self._counts = np.zeros(2, np.int64)
        self._buffers = Buffers()

    def _make_cache(self, num_frames: int) -> None:
        self._cache = np.zeros(num_frames * self._width, np.uint8)
        self._cached = np.full(num_frames, NO_FRAME, np.int64)
        self._wanted = np.full(8 * num_frames, NO_FRAME, np.int64)

    def drop_cache(self) -> None:
        """Keep no frame decompressed from now on."""
        self._make_cache(0)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes taken by now; it grows as frames come in."""
        return self._arena.nbytes + self._starts.nbytes + self._sizes.nbytes + self._num_alive.nbytes

    @property
    def nbytes_when_full(self) -> int:
        """Bytes taken once every slot was written, if all frames shrink like those there are."""
        num_written = int(np.count_nonzero(self._sizes))
        full = len(self) / max(1, num_written)
        return int(self._sizes.sum(dtype=np.int64) * full) + self._starts.nbytes + self._sizes.nbytes

    @property
    def cache_nbytes(self) -> int:
        return self._cache.nbytes + self._cached.nbytes + self._wanted.nbytes

    @property
    def cache_counts(self) -> tuple[int, int]:
        """Look-ups of the cache that hit and missed; a frame that a batch holds twice is looked up once."""
        hits, misses = self._counts.tolist()
        return hits, misses

    # -- writing

    def __setitem__(self, slots: Any, frames: Any) -> None:
        places = range(*slots.indices(len(self))) if isinstance(slots, slice) else slots.tolist()
        frames = np.broadcast_to(np.asarray(frames, self.dtype), (len(places), *self.shape[1:]))
        for slot, frame in zip(places, frames, strict=True):
            self._write(slot, np.ascontiguousarray(frame))

    def _write(self, slot: int, frame: Array) -> None:
        block = self._compress(frame)
        content = np.frombuffer(block if len(block) < self._width else frame, np.uint8)
        self._forget(slot)
        begin = self._reserve(slot // self._ring_length, content.size)
        self._arena[begin : begin + content.size] = content
        self._starts[slot], self._sizes[slot] = begin, content.size
        self._num_alive[begin // self._chunk_bytes] += 1

    def _forget(self, slot: int) -> None:
        if self._cached.size and self._cached[slot % self._cached.size] == slot:
            self._cached[slot % self._cached.size] = NO_FRAME
        if self._sizes[slot]:
            self._let_go(int(self._starts[slot]) // self._chunk_bytes)
            self._sizes[slot] = 0

    def _let_go(self, chunk: int) -> None:
        self._num_alive[chunk] -= 1
        if self._num_alive[chunk] == 0:
            heapq.heappush(self._free, chunk)

    def _reserve(self, ring: int, num: int) -> int:
        """Where ``num`` bytes of this ring may go."""
        chunk, begin, end = self._filling[ring]
        if begin + num > end:
            if chunk >= 0:
                self._let_go(chunk)
            if not self._free:
                self._grow()
            chunk = heapq.heappop(self._free)
            self._num_alive[chunk] += 1
            begin, end = chunk * self._chunk_bytes, (chunk + 1) * self._chunk_bytes
        self._filling[ring] = chunk, begin + num, end
        return begin

    def _grow(self) -> None:
        before = self._num_alive.size
        now = before + max(_GROWTH, before // _GROWTH)
        # in place where the system can, so that there are never two copies
        self._arena.resize(now * self._chunk_bytes, refcheck=False)
        self._num_alive = np.append(self._num_alive, np.zeros(now - before, np.int64))
        self._free.extend(range(before, now))  # all are above those in use, and none is free: still a heap

    # -- reading

    def __getitem__(self, slots: slice) -> Array:
        places = np.arange(*slots.indices(len(self)))
        out = np.empty((places.size, *self.shape[1:]), self.dtype)
        self._gather(places, out, _NO_FLOATS, _NO_CACHE)
        return out

    def gather(self, slots: Ints, scaled: bool = False) -> Array:
        """See `RawFrames.gather`.

        Raises:
            RuntimeError: memory is damaged.
        """
        shape = (*slots.shape, *self.shape[1:])
        cache = (self._cache, self._cached, self._wanted, self._counts)
        if scaled and self._is_scalable:
            floats = self._buffers.take(shape, np.dtype(np.float32))
            self._gather(slots, np.empty(self._width, np.uint8), floats, cache)
            return floats
        out = self._buffers.take(shape, self.dtype)
        self._gather(slots, out, _NO_FLOATS, cache)
        return out

    def _gather(self, slots: Ints, out: Array, floats: Array, cache: tuple[Array, ...]) -> None:
        stored = (self._arena, self._starts, self._sizes, self._width)
        into = (out.reshape(-1).view(np.uint8), floats.reshape(-1))
        if not _gather(*stored, slots.reshape(-1), *into, *cache):
            raise RuntimeError("a compressed frame in memory is damaged")

    def check_valid(self) -> None:
        """Raise AssertionError unless chunks are counted right and frames lie apart, each in one chunk."""
        slots = np.flatnonzero(self._sizes)
        begins, sizes = self._starts[slots], self._sizes[slots]
        order = np.argsort(begins)
        assert (begins[order][1:] >= (begins + sizes)[order][:-1]).all(), "frames overlap"
        chunks = begins // self._chunk_bytes
        assert np.array_equal(chunks, (begins + sizes - 1) // self._chunk_bytes)
        counts = np.bincount(chunks, minlength=self._num_alive.size)
        for chunk, begin, end in self._filling:
            if chunk >= 0:
                counts[chunk] += 1
                assert begin <= end == (chunk + 1) * self._chunk_bytes
        assert np.array_equal(counts, self._num_alive)
        assert sorted(self._free) == np.flatnonzero(self._num_alive == 0).tolist()
        assert self._arena.size == self._num_alive.size * self._chunk_bytes

    def release_memory(self) -> None:
        """Let go of chunks at the array's end that no frame is in, and of what makes gathering faster."""
        self._buffers.release()
        used = int(np.flatnonzero(self._num_alive).max(initial=-1)) + 1
        self._arena.resize(used * self._chunk_bytes, refcheck=False)
        self._num_alive = self._num_alive[:used].copy()
        self._free = [chunk for chunk in self._free if chunk < used]
        heapq.heapify(self._free)


def _compressor() -> Any:
    try:
        import lz4.block
    except ImportError:
        raise ValueError("model.replay.storage lz4 needs lz4: pip install 'perdqn[lz4]'") from None

    # Slower than the fast mode by 10 us, and found again in half the time.
    settings = {"mode": "high_compression", "compression": 2, "store_size": False}
    return lambda frame: lz4.block.compress(frame, **settings)
