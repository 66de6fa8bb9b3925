"""A saved replay, read without its environment: the numbers of every row, and the frames asked for.

Knows nothing about acting or learning, and builds no replay: of frames, no more is kept than was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from holdfast.storage.generations import File
from holdfast.storage.parts import PartStore

from perdqn.replay.journal import Journal, Segment, read_described, read_rows
from perdqn.replay.rows import Array, Ints

FRAMES = "frames/"


class StoredReplay:
    """What `PrioritizedReplay` has saved, inside a checkpoint or in parts beside it.

    Attributes:
        heads: of each ring, the counter of its next row, int64 [rings].
        length: slots of a ring.
        flags, priorities: by slot; the priority of a row that cannot start a transition is 0.
        draws: by slot, how often the row was drawn; None where that was not counted.
        samples_drawn: in all, also of rows overwritten since.

    Raises:
        KeyError: the checkpoint holds no replay.
        DamagedPart, ValueError: see `read_rows`.
    """

    def __init__(self, checkpoint: Mapping[str, Any], folder: Path) -> None:
        self._inside = checkpoint["perdqn"].get("replay")
        self._store = PartStore(folder)
        self._entry = self._inside or checkpoint["holdfast"]["parts"]["module"]
        rows = self._entry["rows"]
        self.heads, self.length = np.array(list(map(int, rows["heads"]))), int(rows["length"])
        self.samples_drawn = int(self._entry["counters"][0])
        numbers = self._numbers() if self._inside is None else self._numbers_inside(rows)
        self.flags, self.priorities = numbers["flags"], numbers["priorities"]
        self.draws = numbers.get("draws")

    @property
    def num_slots(self) -> int:
        return self.heads.size * self.length

    @property
    def ids(self) -> Ints:
        """Of the rows at all slots."""
        env, offset = np.divmod(np.arange(self.num_slots), self.length)
        newest = self.heads[env] - 1
        return (newest - (newest - offset) % self.length) * self.heads.size + env

    @property
    def ages(self) -> Ints:
        """By slot, rows of the same environment that came later."""
        env, offset = np.divmod(np.arange(self.num_slots), self.length)
        return (self.heads[env] - 1 - offset) % self.length

    def _numbers(self) -> dict[str, Array]:
        dtypes: dict[str, Any] = {"flags": np.uint8}
        dtypes |= {"draws": np.int32} if self._entry.get("has_draws") else {}
        dtypes |= {"priorities": np.float64, "measured": np.bool_}
        dtypes |= {"leaves": np.float64} if self._entry["has_leaves"] else {}
        numbers = {name: np.zeros(self.num_slots, dtype) for name, dtype in dtypes.items()}
        first = np.maximum(0, self.heads - self.length)
        bounds = tuple(first.tolist()), tuple(self.heads.tolist())
        read_rows(self._store, File(**self._entry["priorities"]), numbers, *bounds)
        return numbers

    def _numbers_inside(self, rows: Mapping[str, Any]) -> dict[str, Array]:
        named = {name: self._entry[name].numpy() for name in ("priorities", "draws") if name in self._entry}
        return {**named, "flags": self._by_slot(rows["flags"].numpy())}

    def _by_slot(self, rings: Array) -> Array:
        """From the rows in use [rings, used]."""
        whole = np.zeros((self.heads.size, self.length), rings.dtype)
        whole[:, : rings.shape[1]] = rings
        return whole.reshape(-1)

    def read(self, slots: Ints) -> tuple[Array, Array, dict[str, Array]]:
        """Actions and rewards by slot, and the frames at ``slots`` [n], per column [n, *shape]."""
        if self._inside is not None:
            rows = self._inside["rows"]
            env, offset = np.divmod(slots, self.length)
            frames = {n: each.numpy()[env, offset] for n, each in rows.items() if n.startswith(FRAMES)}
            actions, rewards = (self._by_slot(rows[name].numpy()) for name in ("actions", "rewards"))
            return actions, rewards, _without_prefix(frames)
        segments = [Segment.from_entry(segment) for segment in self._entry["rows"]["segments"]]
        columns: dict[str, Any] = {
            name: _Chosen(self.num_slots, shape, dtype, slots)
            if name.startswith(FRAMES)
            else np.zeros((self.num_slots, *shape), dtype)
            for name, dtype, shape in read_described(self._store, segments[0].file)
        }
        Journal(columns, self.heads.size).load(self._store, segments, self.heads, has_rows=False)
        frames = {name: each.at(slots) for name, each in columns.items() if isinstance(each, _Chosen)}
        return columns["actions"], columns["rewards"], _without_prefix(frames)


class _Chosen:
    """A column over all slots that keeps those rows alone that were asked for."""

    def __init__(self, num_slots: int, shape: tuple[int, ...], dtype: np.dtype, slots: Ints) -> None:
        self.shape, self.dtype, self._slots = (num_slots, *shape), dtype, np.unique(slots)
        self._rows = np.zeros((self._slots.size, *shape), dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __setitem__(self, written: slice, rows: Array) -> None:
        begin, end = np.searchsorted(self._slots, [written.start, written.stop])
        self._rows[begin:end] = rows[self._slots[begin:end] - written.start]

    def at(self, slots: Ints) -> Array:
        return self._rows[np.searchsorted(self._slots, slots)]


def _without_prefix(frames: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(FRAMES): frame for name, frame in frames.items()}
