"""Rows of rings on disk: immutable compressed segments, which later saves name again instead of rewriting.

Knows nothing about priorities or observations: its columns are arrays over the slots of rings.

A segment holds of every ring the rows from one counter up to another. A save writes the rows that no
segment holds yet, and lists the segments that together hold every row alive. Rows never change, so
neither do segments; one whose rows are all overwritten is listed no more, and its file goes with the
last generation that names it.

Many small saves would make many small segments. So a new one takes in those before it that hold less than
twice its own rows, as long as all come to less than a share of the replay (`_JOINED`). Each time a row is
written again its segment has grown by half at least; there are about ``2 * _JOINED`` segments at most.

Format, version 1. The file is a Zstandard file (RFC 8878) of two frames: ``zstd -dc`` prints the columns.

    skippable frame   bytes 50 2A 4D 18, length as uint32, then that many bytes of JSON in UTF-8:
                      {"format": "perdqn-rows", "version": 1, "first": [..], "stop": [..],
                       "columns": [[name, dtype, shape of a row], ..]}
    one frame         with content checksum: the columns in the header's order; in each, ring after
                      ring; of each ring, rows first <= counter < stop in that order; C order, no gaps

Every number is little-endian; dtypes are numpy's (``<f4``, ``|u1``, ``|b1``). Size and SHA-256 of the
whole file stand in the manifest of each generation that needs it, so a torn or altered one is refused
before it is read; segments that no manifest names are leftovers of a save that did not finish.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import zstandard
from holdfast.storage.generations import File
from holdfast.storage.parts import DamagedPart, PartStore
from numpy.typing import NDArray

Array = NDArray[Any]
Ints = NDArray[np.int64]
Columns = Mapping[str, Any]  # arrays, or what has their len, shape, dtype and slices
Counters = tuple[int, ...]  # one per ring

FORMAT, VERSION = "perdqn-rows", 1
_SKIPPABLE = bytes.fromhex("502a4d18")
_BLOCK_BYTES = 4 << 20  # handed to the compressor at once
_JOINED, _SPLIT = 32, 16  # segments are joined up to a 32nd of the replay, and split from a 16th on ...
_LEAST_BYTES = 32 << 20  # ... unless that would be less than this, uncompressed
FAST, FASTEST = 1, -5  # zstd levels: for rows; for numbers that hardly shrink


# -- one file ------------------------------------------------------------------------------------


def write_rows(
    store: PartStore,
    columns: Columns,
    first: Counters,
    stop: Counters,
    *,
    kind: str = "rows",
    level: int = FAST,
) -> File:
    """Write rows ``first <= counter < stop`` of every ring as a new part.

    Args:
        columns: arrays [rings * length, ...], ring after ring; row ``counter`` lies at ``counter % length``.
        kind: in the file's name. The store adds a checksum: after a resume from an older generation the
            same counters hold other rows.
    """
    name = f"replay-{kind}-{sum(stop):012d}.zst"
    return store.write(name, _encode(columns, first, stop, level))


def read_rows(
    store: PartStore,
    file: File,
    columns: Columns,
    first: Counters,
    stop: Counters,
    *,
    only_check: bool = False,
) -> None:
    """Fill these rows of ``columns`` from a part written by `write_rows`, or only see that it could be done.

    Raises:
        DamagedPart: the file is not what the manifest says, or cannot be decompressed.
        ValueError: it holds other rows or columns.
    """
    content = memoryview(store.read(file))
    frame = content[_check_header(file, content, columns, first, stop) :]
    try:
        with zstandard.ZstdDecompressor().stream_reader(frame) as reader:
            for column, slots in _pieces(columns, first, stop):
                rows = _read(reader, (slots.stop - slots.start, *column.shape[1:]), column.dtype)
                if not only_check:
                    column[slots] = rows
            if reader.read(1):
                raise EOFError("there is more than its header says")
    except (zstandard.ZstdError, EOFError) as error:
        path = store.folder / file.path
        raise DamagedPart(f"{path} has its checksum, but cannot be decompressed: {error}") from error


def read_described(store: PartStore, file: File) -> list[tuple[str, np.dtype, tuple[int, ...]]]:
    """Name, dtype and shape of a row of the columns that a part written by `write_rows` holds.

    Raises:
        DamagedPart, ValueError: see `read_rows`.
    """
    header, _ = _read_header(file, memoryview(store.read(file)))
    return [(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in header["columns"]]


def _encode(columns: Columns, first: Counters, stop: Counters, level: int) -> Iterator[bytes]:
    header = json.dumps(_header(columns, first, stop), separators=(",", ":")).encode()
    yield _SKIPPABLE + len(header).to_bytes(4, "little") + header
    compressor = zstandard.ZstdCompressor(level=level, write_checksum=True).compressobj()
    for column, slots in _pieces(columns, first, stop):
        yield compressor.compress(_as_bytes(np.ascontiguousarray(column[slots], _little(column.dtype))))
    yield compressor.flush()


def _header(columns: Columns, first: Counters, stop: Counters) -> dict[str, Any]:
    described = [[name, _little(c.dtype).str, list(c.shape[1:])] for name, c in columns.items()]
    return {
        "format": FORMAT,
        "version": VERSION,
        "first": list(first),
        "stop": list(stop),
        "columns": described,
    }


def _check_header(file: File, content: memoryview, columns: Columns, first: Counters, stop: Counters) -> int:
    """Where the compressed frame begins."""
    header, end = _read_header(file, content)
    expected = _header(columns, first, stop)
    wrong = [
        f"{key} {header.get(key)}, not {expected[key]}"
        for key in expected
        if header.get(key) != expected[key]
    ]
    if wrong:
        raise ValueError(f"{file.path} holds other rows: {'; '.join(wrong)}")
    return end


def _read_header(file: File, content: memoryview) -> tuple[dict[str, Any], int]:
    """It, and where it ends."""
    end = 8 + int.from_bytes(content[4:8], "little")
    try:
        header = json.loads(bytes(content[8:end])) if content[:4] == _SKIPPABLE else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file.path} holds no rows of a replay")
    if header.get("version") != VERSION:
        raise ValueError(
            f"{file.path} has format version {header.get('version')}, this perdqn reads {VERSION}"
        )
    return header, end


def _pieces(columns: Columns, first: Counters, stop: Counters) -> Iterator[tuple[Any, slice]]:
    """Columns and slots of these rows next to each other, in the order of the file."""
    for column in columns.values():
        length = len(column) // len(first)
        at_once = max(1, _BLOCK_BYTES // max(1, _row_bytes(column)))
        for ring, (begin, end) in enumerate(zip(first, stop, strict=True)):
            while begin < end:
                slot = ring * length + begin % length
                num = min(end - begin, (ring + 1) * length - slot, at_once)
                yield column, slice(slot, slot + num)
                begin += num


def _read(reader: Any, shape: tuple[int, ...], dtype: np.dtype) -> Array:
    rows = np.empty(shape, _little(dtype))
    rest = _as_bytes(rows)
    while rest:
        num = reader.readinto(rest)
        if not num:
            raise EOFError("they end too early")
        rest = rest[num:]
    return rows


def _row_bytes(column: Any) -> int:
    return column.dtype.itemsize * math.prod(column.shape[1:])


def _little(dtype: np.dtype) -> np.dtype:
    return dtype.newbyteorder("<")


def _as_bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


# -- all rows ------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A part and the rows it holds: of every ring, ``first <= counter < stop``."""

    file: File
    first: Counters
    stop: Counters

    def entry(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return {**asdict(self.file), "first": list(self.first), "stop": list(self.stop)}

    def num_rows(self, oldest: Ints) -> int:
        """Rows of it that are alive."""
        return int(np.maximum(0, np.array(self.stop) - np.maximum(self.first, oldest)).sum())

    @staticmethod
    def from_entry(entry: dict[str, Any]) -> Segment:
        file = File(entry["path"], entry["size"], entry["sha256"])
        return Segment(file, tuple(entry["first"]), tuple(entry["stop"]))


class Journal:
    """Writes the rows of rings to a store, those alone that no earlier segment holds, and reads them back.

    Args:
        columns: arrays [rings * length, ...], ring after ring, whose rows never change once written.
        num_rings: rings of equal length that share each array.
    """

    def __init__(self, columns: Columns, num_rings: int) -> None:
        self._columns = columns
        num_slots = len(next(iter(columns.values())))
        row_bytes = sum(map(_row_bytes, columns.values()))
        self._length = num_slots // num_rings
        least = _LEAST_BYTES // max(1, row_bytes)
        self._most_joined, self._most = (max(num_slots // n, least, 1) for n in (_JOINED, _SPLIT))
        self._segments: dict[Path, list[Segment]] = {}  # of each folder saved to, oldest first

    def forget(self) -> None:
        """The rows are no longer those written: no earlier segment may be listed again."""
        self._segments.clear()

    def save(self, store: PartStore, heads: Ints) -> list[Segment]:
        """Have every row alive in the store, and list the segments that hold them, oldest first.

        A segment that is gone from the folder or torn there is written anew.

        Args:
            heads: of every ring, the counter of its next row.
        """
        oldest = self._oldest(heads)
        known = [s for s in self._segments.get(store.folder, []) if s.num_rows(oldest)]
        first = np.maximum(known[-1].stop, oldest) if known else oldest
        known, first = self._join(known, first, heads)
        segments = [self._keep(store, segment, oldest) for segment in known]
        segments += [self._write(store, *bounds) for bounds in self._split(first, heads)]
        self._segments[store.folder] = segments
        return segments

    def load(self, store: PartStore, segments: list[Segment], heads: Ints, has_rows: bool) -> None:
        """Fill the rows alive at ``heads`` from what `save` has listed, and go on from there.

        Args:
            has_rows: there are rows to lose: none changes before every part has been read once.

        Raises:
            DamagedPart, ValueError: see `read_rows`; or the segments do not hold all these rows.
        """
        self._check_cover(segments, heads)
        for only_check in (True, False) if has_rows else (False,):
            for file, first, stop in segments:
                read_rows(store, file, self._columns, first, stop, only_check=only_check)
        self._segments = {store.folder: segments}

    def _oldest(self, heads: Ints) -> Ints:
        return np.maximum(0, heads - self._length)

    def _join(self, known: list[Segment], first: Ints, heads: Ints) -> tuple[list[Segment], Ints]:
        """Let the new segment take in those before it that hold less than twice its rows, within bounds."""
        oldest = self._oldest(heads)
        while known:
            fresh, before = int((heads - first).sum()), known[-1].num_rows(oldest)
            if before >= 2 * fresh or before + fresh > self._most_joined:
                break
            first = np.minimum(first, np.maximum(known[-1].first, oldest))
            known = known[:-1]
        return known, first

    def _split(self, first: Ints, stop: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Into equal parts that are not too large, so that each can go when its own rows are dead."""
        num = -(-int((stop - first).sum()) // self._most)
        bounds = [first + (stop - first) * i // num for i in range(num + 1)] if num else []
        return pairwise(bounds)

    def _keep(self, store: PartStore, segment: Segment, oldest: Ints) -> Segment:
        try:
            store.keep(segment.file)
        except DamagedPart:
            stop = np.array(segment.stop)
            first = np.minimum(np.maximum(segment.first, oldest), stop)
            # A name of its own: what is left of the damaged file stays where it is.
            return self._write(store, first, stop, kind=f"rows-{uuid4().hex[:8]}")
        return segment

    def _write(self, store: PartStore, first: Ints, stop: Ints, kind: str = "rows") -> Segment:
        bounds = tuple(first.tolist()), tuple(stop.tolist())
        return Segment(write_rows(store, self._columns, *bounds, kind=kind), *bounds)

    def _check_cover(self, segments: Sequence[Segment], heads: Ints) -> None:
        covered = self._oldest(heads)
        for segment in segments:
            if (segment.first > covered).any() or (segment.stop > heads).any():
                raise ValueError(f"{segment.file.path} holds rows that do not follow those before it")
            covered = np.maximum(covered, segment.stop)
        if (covered != heads).any():
            raise ValueError(f"the saved replay ends at rows {covered.tolist()}, not {heads.tolist()}")
