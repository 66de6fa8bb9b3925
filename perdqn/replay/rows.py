"""Rings of rows, one per environment: single frames in, n-step transitions and frame stacks out.

Knows nothing about priorities: which rows may start a transition follows from the rows alone.

A row holds the newest frame, the action taken on it, its reward, and how that step ended. The final
observation of an episode takes a row of its own, which never starts a transition. A row's id is
``counter * num_envs + env`` with a counter that never wraps; it lies at slot ``counter % length`` of
its environment's ring and is dead once overwritten.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from holdfast.storage.parts import PartStore
from numpy.typing import NDArray

from perdqn.jit import kernel
from perdqn.replay.compressed_frames import CompressedFrames
from perdqn.replay.frames import NO_FRAME, RawFrames
from perdqn.replay.journal import Counters, Journal, Segment
from perdqn.transition import EnvSpec

Array = NDArray[Any]
Ints = NDArray[np.int64]
Columns = dict[str, Array]

FIRST, TERMINATED, TRUNCATED, FINAL = 1, 2, 4, 8
ENDED = TERMINATED | TRUNCATED


class Appended(NamedTuple):
    """What an append changed, as slots: rows no longer able to start a transition, and rows now able."""

    retired: Ints
    ready: Ints


class Windows(NamedTuple):
    """n-step windows of a batch; see `Rows.windows`."""

    action: Array
    reward: Array
    discount: Array
    next_id: Ints


@kernel
def _is_complete(flags: Array, ring: int, length: int, offset: int, num_newer: int, n_step: int) -> bool:
    """Whether the ``num_newer`` rows after ``offset`` hold the whole window that starts there."""
    if flags[ring + offset] & FINAL:
        return False
    if num_newer >= n_step:
        return True
    has_ended = False
    for step in range(num_newer):
        has_ended |= (flags[ring + (offset + step) % length] & ENDED) != 0
    return has_ended


@kernel
def _begins_within(flags: Array, ring: int, length: int, offset: int, num_older: int) -> bool:
    """Whether the episode began at ``offset`` or in one of the ``num_older`` rows before."""
    has_begun = False
    for back in range(num_older + 1):
        has_begun |= (flags[ring + (offset - back) % length] & FIRST) != 0
    return has_begun


@kernel
def locate(
    flags: Array, heads: Ints, length: int, ids: Ints, n_step: int, frame_stack: int, slots: Ints
) -> None:
    """Write the slots of those ``ids`` that may start a transition, and -1 of the others.

    They are alive, their window is complete and every frame of their stack is alive.
    """
    num_envs = heads.size
    ends = heads % length  # where the next row goes; from there no id takes a division
    for i in range(ids.size):
        slots[i] = -1
        counter, env = (ids[i], 0) if num_envs == 1 else divmod(ids[i], num_envs)
        num_newer = heads[env] - 1 - counter
        num_older = length - 1 - num_newer
        if counter < 0 or num_newer < 0 or num_older < 0:
            continue
        ring, offset = env * length, ends[env] - 1 - num_newer
        offset += length if offset < 0 else 0
        if flags[ring + offset] & FINAL:
            continue
        if num_newer < n_step and not _is_complete(flags, ring, length, offset, num_newer, n_step):
            continue
        if num_older < frame_stack - 1 and not _begins_within(flags, ring, length, offset, num_older):
            continue
        slots[i] = ring + offset


@kernel
def append_rows(
    flags: Array,
    actions: Array,
    rewards: Array,
    heads: Ints,
    length: int,
    n_step: int,
    frame_stack: int,
    envs: Ints,
    action: Array,
    reward: Array,
    flag: Array,
) -> tuple[Ints, Ints, Ints]:
    slots = np.empty(envs.size, np.int64)
    retired = np.empty(envs.size * frame_stack, np.int64)
    ready = np.empty(envs.size * n_step, np.int64)
    num_retired = 0
    num_ready = 0
    for i in range(envs.size):
        env = envs[i]
        ring, head = env * length, heads[env]
        slot = ring + head % length
        slots[i] = slot
        previous = flags[ring + (head - 1) % length]
        is_first = head == 0 or (previous & FINAL) != 0
        flags[slot] = flag[i] | (FIRST if is_first else 0)
        actions[slot], rewards[slot] = action[i], reward[i]
        heads[env] = head + 1

        if head >= length:
            retired[num_retired] = slot  # the row overwritten
            num_retired += 1
            oldest = head + 1 - length
            for counter in range(oldest, oldest + frame_stack - 1):
                if flags[ring + counter % length] & FIRST:
                    break
                retired[num_retired] = ring + counter % length  # its stack reached into that row
                num_retired += 1
        for num_newer in range(min(n_step, head), 0, -1):
            offset = slot - ring - num_newer
            offset += length if offset < 0 else 0
            was_complete = _is_complete(flags, ring, length, offset, num_newer - 1, n_step)
            if not was_complete and _is_complete(flags, ring, length, offset, num_newer, n_step):
                ready[num_ready] = ring + offset
                num_ready += 1
    return slots, retired[:num_retired], ready[:num_ready]


@kernel
def windows(
    flags: Array,
    actions: Array,
    rewards: Array,
    heads: Ints,
    length: int,
    slots: Ints,
    n_step: int,
    gamma: float,
    reward_clip: float,
    both_slots: Ints,
    both_ids: Ints,
) -> tuple[Array, Array, Array]:
    """Actions, rewards and discounts of the windows that start at ``slots`` [n].

    Args:
        both_slots: [2, n], is set to where the windows begin and where they end.
        both_ids: [2, n], likewise the ids of these rows.
    """
    action = np.empty(slots.size, np.int64)
    reward = np.empty(slots.size, np.float32)
    discount = np.empty(slots.size, np.float32)
    num_envs = heads.size
    ends = heads % length
    for i in range(slots.size):
        slot = slots[i]
        env = 0 if num_envs == 1 else slot // length
        ring = env * length
        offset = slot - ring
        num_newer = ends[env] - 1 - offset
        num_newer += length if num_newer < 0 else 0
        action[i] = actions[slot]
        both_slots[0, i], both_ids[0, i] = slot, (heads[env] - 1 - num_newer) * num_envs + env
        total, factor, steps, flag = 0.0, 1.0, 0, 0
        while steps < n_step and not flag & ENDED:
            flag = flags[ring + offset]
            total += factor * min(max(rewards[ring + offset], -reward_clip), reward_clip)
            factor *= gamma
            offset = 0 if offset + 1 == length else offset + 1
            steps += 1
        reward[i] = total
        discount[i] = 0.0 if flag & TERMINATED else factor
        both_slots[1, i], both_ids[1, i] = ring + offset, both_ids[0, i] + steps * num_envs
    return action, reward, discount


@kernel
def stack_slots(
    flags: Array, num_envs: int, length: int, ids: Ints, frame_stack: int, repeat_first: bool
) -> Ints:
    """Where the frames of the stacks ending at ``ids`` lie, oldest first [n, stack]."""
    slots = np.full((ids.size, frame_stack), NO_FRAME, np.int64)
    for i in range(ids.size):
        counter, env = divmod(ids[i], num_envs)
        ring = env * length
        slot = ring + counter % length
        slots[i, frame_stack - 1] = slot
        started = (flags[slot] & FIRST) != 0
        for back in range(1, frame_stack):
            if not started:
                slot = ring + (counter - back) % length
                started = (flags[slot] & FIRST) != 0
            elif not repeat_first:
                break
            slots[i, frame_stack - 1 - back] = slot
    return slots


class Rows:
    """``num_envs`` rings that share ``capacity`` rows.

    Args:
        spec: names, shapes and dtypes of the frames, and how stacks are built.
        num_envs: rings.
        capacity: physical rows over all rings; each takes ``capacity // num_envs``.
        n_step: longest window.
        gamma: discount per step.
        reward_clip: each reward is clipped to [-c, c] before it is summed; inf leaves them alone.
        storage: ``raw``, or ``lz4`` to compress images of bytes.
        cached_frames: compressed frames kept decompressed, per column.

    Raises:
        ValueError: a ring is too short for one window and one stack.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        capacity: int,
        *,
        n_step: int = 1,
        gamma: float = 0.99,
        reward_clip: float = np.inf,
        storage: str = "raw",
        cached_frames: int = 0,
    ) -> None:
        self.spec, self.num_envs, self.length = spec, num_envs, capacity // num_envs
        self.n_step, self.gamma, self.reward_clip = n_step, gamma, reward_clip
        shortest = n_step + spec.frame_stack + 2
        if self.length < shortest:
            raise ValueError(
                f"capacity {capacity} over {num_envs} environments leaves {self.length} rows each; "
                f"n_step {n_step} with frame_stack {spec.frame_stack} needs at least {shortest}"
            )
        size = self.size_limit
        self.frames: dict[str, RawFrames | CompressedFrames] = {
            column.name: CompressedFrames(column, size, num_envs, cached_frames)
            if storage == "lz4" and column.is_byte_image
            else RawFrames(column, size)
            for column in spec.columns
        }
        names, dtypes = ("action", "reward", "draws"), (np.int32, np.float32, np.int32)
        # next to each other: a row that is drawn is one line of the cache
        by_row = np.zeros(size, np.dtype(list(zip(names, dtypes, strict=True))))
        self.actions, self.rewards, self.draws = (by_row[name] for name in names)
        self.flags = np.zeros(size, np.uint8)
        self.heads = np.zeros(num_envs, np.int64)
        self._journal = Journal(self._unchanging(), num_envs)

    @property
    def size_limit(self) -> int:
        """Rows that fit."""
        return self.length * self.num_envs

    def __len__(self) -> int:
        """Rows alive."""
        return int(np.minimum(self.heads, self.length).sum())

    @property
    def scalars(self) -> tuple[Array, Array, Array]:
        """Flags, actions and rewards by slot, as the kernels take them."""
        return self.flags, self.actions, self.rewards

    def append(self, envs: Ints, frames: Columns, action: Array, reward: Array, flag: Array) -> Appended:
        """Write one row to each ring in ``envs`` [n]; everything else is [n, ...] alike."""
        slots, retired, ready = append_rows(
            self.flags,
            self.actions,
            self.rewards,
            self.heads,
            self.length,
            self.n_step,
            self.spec.frame_stack,
            envs,
            action,
            reward,
            flag,
        )
        self.store(slots, frames)
        return Appended(retired, ready)

    def store(self, slots: Ints, frames: Columns) -> None:
        """Write the frames of rows that have been appended."""
        for name, stored in self.frames.items():
            stored[slots] = frames[name]

    def cut(self, env: int, frames: Columns) -> Appended:
        """End the episode in ring ``env`` as truncated, with ``frames`` [1, ...] as its final observation."""
        last = self.last_slot(env)
        if last is None or self.flags[last] & FINAL:
            return Appended(np.empty(0, np.int64), np.empty(0, np.int64))
        self.flags[last] |= TRUNCATED
        zero = np.zeros(1, np.float32)
        return self.append(np.array([env]), frames, zero, zero, np.array([FINAL], np.uint8))

    def last_slot(self, env: int) -> int | None:
        """Slot of the newest row of ring ``env``."""
        head = int(self.heads[env])
        return None if head == 0 else env * self.length + (head - 1) % self.length

    def slots(self, ids: Ints) -> Ints:
        """Where live rows lie."""
        counter, env = np.divmod(ids, self.num_envs)
        return env * self.length + counter % self.length

    def ids(self, slots: Ints) -> Ints:
        """Ids of the rows now at ``slots``."""
        env, offset = np.divmod(slots, self.length)
        newest = self.heads[env] - 1
        return (newest - (newest - offset) % self.length) * self.num_envs + env

    def may_start(self, ids: Ints) -> NDArray[np.bool_]:
        """Which ids are alive, have a complete window and all frames of their stack."""
        slots = np.empty(ids.size, np.int64)
        locate(self.flags, self.heads, self.length, ids, self.n_step, self.spec.frame_stack, slots)
        return slots >= 0

    def windows(self, ids: Ints) -> Windows:
        """Action, summed reward, gamma^k (0 after a termination) and the id k steps later.

        Args:
            ids: rows for which `may_start` holds.
        """
        both_slots, both_ids = np.empty((2, 2, ids.size), np.int64)
        settings = (self.n_step, self.gamma, self.reward_clip)
        action, reward, discount = windows(
            *self.scalars, self.heads, self.length, self.slots(ids), *settings, both_slots, both_ids
        )
        return Windows(action, reward, discount, both_ids[1])

    def observations(self, ids: Ints, scaled: bool = False) -> Columns:
        """Observations ending at ``ids``, per column [n, (stack,) *shape].

        Args:
            scaled: images of bytes as float32 in [0, 1].
        """
        return self.observations_at(self.slots(ids), ids, scaled)

    def observations_at(self, slots: Ints, ids: Ints, scaled: bool = False) -> Columns:
        """`observations` of rows that are known to lie at ``slots``."""
        wanted = slots if self.spec.frame_stack == 1 else self._stacks(ids)
        return {name: stored.gather(wanted, scaled) for name, stored in self.frames.items()}

    def _stacks(self, ids: Ints) -> Ints:
        repeat = self.spec.stack_padding == "repeat"
        return stack_slots(self.flags, self.num_envs, self.length, ids, self.spec.frame_stack, repeat)

    def release_memory(self, caches: bool = False) -> None:
        """Let go of what only makes gathering faster; ``caches``: of decompressed frames too, for good."""
        for compressed in self._compressed.values() if caches else ():
            compressed.drop_cache()
        for stored in self.frames.values():
            stored.release_memory()

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes reserved; compressed frames reserve as they come in, the others all at once.

        The operating system hands out pages only as they are written.
        """
        scalars = sum(
            each.nbytes for each in (self.actions, self.rewards, self.draws, self.flags, self.heads)
        )
        frames = {f"frames/{name}": stored.nbytes for name, stored in self.frames.items()}
        caches = {f"frame_cache/{name}": stored.cache_nbytes for name, stored in self._compressed.items()}
        return {**frames, **caches, "scalars": scalars}

    @property
    def untouched_bytes(self) -> int:
        """Bytes reserved for rows that are still to come."""
        raw = (stored.nbytes for stored in self.frames.values() if isinstance(stored, RawFrames))
        reserved = (
            sum(raw) + self.actions.nbytes + self.rewards.nbytes + self.draws.nbytes + self.flags.nbytes
        )
        return int((1 - len(self) / self.size_limit) * reserved)

    @property
    def bytes_to_come(self) -> int:
        """Bytes that compressed frames will still reserve, if those to come shrink like those there are."""
        return sum(max(0, stored.nbytes_when_full - stored.nbytes) for stored in self._compressed.values())

    @property
    def frame_cache_counts(self) -> tuple[int, int]:
        """Look-ups of decompressed frames that hit and missed; none where nothing is compressed."""
        counts = [stored.cache_counts for stored in self._compressed.values()]
        return sum(hits for hits, _ in counts), sum(misses for _, misses in counts)

    @property
    def _compressed(self) -> dict[str, CompressedFrames]:
        return {n: stored for n, stored in self.frames.items() if isinstance(stored, CompressedFrames)}

    def _stored(self) -> dict[str, Any]:
        return {**self._unchanging(), "flags": self.flags}

    def _unchanging(self) -> dict[str, Any]:
        """All columns but the flags, of which `cut` changes the newest."""
        columns = {f"frames/{name}": stored for name, stored in self.frames.items()}
        return {**columns, "actions": self.actions, "rewards": self.rewards}

    @property
    def _used(self) -> int:
        """Rows of a ring that have ever been written."""
        return int(min(self.length, self.heads.max()))

    def state_dict(self) -> dict[str, Any]:
        """Tensors over the rows in use; those of a full replay share its memory."""
        state: dict[str, Any] = {"heads": torch.from_numpy(self.heads.copy()), "length": self.length}
        for name, stored in self._stored().items():
            state[name] = torch.from_numpy(self._rings(stored))
        return state

    def _rings(self, stored: Any) -> Array:
        """Rows in use [num_envs, used, ...]."""
        used = self._used
        if self.num_envs == 1 or used == self.length:
            return stored[: self.num_envs * used].reshape(self.num_envs, used, *stored.shape[1:])
        return np.stack([stored[begin : begin + used] for begin in self._begins])

    @property
    def _begins(self) -> range:
        """The first slot of each ring."""
        return range(0, self.size_limit, self.length)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over rows saved by an equally shaped replay.

        Raises:
            ValueError: rings, length or columns differ; nothing is changed then.
        """
        heads = state["heads"].numpy()
        self._check_rings(heads, state["length"])
        stored = self._stored()
        for name, column in stored.items():
            if name not in state or tuple(state[name].shape[2:]) != column.shape[1:]:
                raise ValueError(f"saved replay lacks {name} of shape {column.shape[1:]}")
        self._journal.forget()
        self.heads[:] = heads
        for name, column in stored.items():
            for begin, ring in zip(self._begins, state[name].numpy(), strict=True):
                column[begin : begin + self._used] = ring

    def _check_rings(self, heads: Ints, length: int) -> None:
        if heads.size != self.num_envs or length != self.length:
            raise ValueError(
                f"saved replay has {heads.size} rings of {length} rows, "
                f"this one {self.num_envs} of {self.length}; num_envs and capacity must be as saved"
            )

    def alive(self, heads: Ints) -> tuple[Counters, Counters]:
        """Of every ring, the counter of its oldest row alive and that of its next row, at ``heads``."""
        return tuple(np.maximum(0, heads - self.length).tolist()), tuple(heads.tolist())

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        """Write the rows no earlier part holds; flags, which may change, are the caller's to save."""
        segments = self._journal.save(store, self.heads)
        return {
            "heads": self.heads.tolist(),
            "length": self.length,
            "segments": [segment.entry() for segment in segments],
        }

    def saved_heads(self, entry: dict[str, Any]) -> Ints:
        """`heads` at the time of `save_parts`.

        Raises:
            ValueError: the saved replay had other rings.
        """
        heads = np.array(entry["heads"], np.int64)
        self._check_rings(heads, entry["length"])
        return heads

    def load_parts(self, store: PartStore, entry: dict[str, Any], flags: Array) -> None:
        """Take over rows saved by an equally shaped replay, and their flags by slot.

        Raises:
            DamagedPart: a part is not as it was written; rows alive are unchanged then.
            ValueError: rings, length or columns differ; nothing is changed then.
        """
        heads = self.saved_heads(entry)
        segments = [Segment.from_entry(segment) for segment in entry["segments"]]
        self._journal.load(store, segments, heads, has_rows=len(self) > 0)
        self._clear_dead(heads)
        self.flags[:], self.heads[:] = flags, heads

    def _clear_dead(self, heads: Ints) -> None:
        """Forget rows of a time after ``heads``, so that a slot says no more than a new replay's."""
        for column in self._unchanging().values():
            for begin, head in zip(self._begins, heads, strict=True):
                column[begin + head : begin + self._used] = 0
