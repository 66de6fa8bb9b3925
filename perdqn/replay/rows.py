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

from perdqn.jit import kernel, prefetch
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
def _gather_stacks(
    frames: Array, flags: Array, num_envs: int, length: int, ids: Ints, frame_stack: int, repeat_first: bool
) -> Array:
    """Bytes of the stacks ending at ``ids``, oldest frame first [n, stack, row bytes]."""
    out = np.zeros((ids.size, frame_stack, frames.shape[1]), np.uint8)
    for i in range(ids.size):
        counter, env = divmod(ids[i], num_envs)
        ring = env * length
        slot = ring + counter % length
        out[i, frame_stack - 1] = frames[slot]
        started = (flags[slot] & FIRST) != 0
        for back in range(1, frame_stack):
            if not started:
                slot = ring + (counter - back) % length
                started = (flags[slot] & FIRST) != 0
            elif not repeat_first:
                break
            out[i, frame_stack - 1 - back] = frames[slot]
    return out


@kernel
def _ask_for(frames: Array, width: int, slots: Ints) -> None:
    """Begin to load small frames of ``width`` numbers, so that gathering them does not wait for each."""
    for slot in slots:
        prefetch(frames, slot * width)


class Rows:
    """``num_envs`` rings that share ``capacity`` rows.

    Args:
        spec: names, shapes and dtypes of the frames, and how stacks are built.
        num_envs: rings.
        capacity: physical rows over all rings; each takes ``capacity // num_envs``.
        n_step: longest window.
        gamma: discount per step.
        reward_clip: each reward is clipped to [-c, c] before it is summed; inf leaves them alone.

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
        self.frames: Columns = {c.name: np.zeros((size, *c.shape), c.dtype) for c in spec.columns}
        self.actions = np.zeros(size, np.int32)
        self.rewards = np.zeros(size, np.float32)
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

    def observations(self, ids: Ints) -> Columns:
        """Observations ending at ``ids``, per column [n, (stack,) *shape]."""
        if self.spec.frame_stack == 1:
            slots = self.slots(ids)
            return {name: stored.take(slots, axis=0) for name, stored in self.frames.items()}
        return {name: self._stacks(stored, ids) for name, stored in self.frames.items()}

    def observations_at(self, slots: Ints, ids: Ints) -> Columns:
        """`observations` of rows that are known to lie at ``slots``."""
        if self.spec.frame_stack > 1:
            return self.observations(ids)
        for stored in self.frames.values():
            _ask_for(stored.reshape(-1), stored[0].size, slots)
        return {name: stored.take(slots, axis=0) for name, stored in self.frames.items()}

    def _stacks(self, stored: Array, ids: Ints) -> Array:
        as_bytes = stored.reshape(len(stored), -1).view(np.uint8)
        repeat = self.spec.stack_padding == "repeat"
        stack = self.spec.frame_stack
        out = _gather_stacks(as_bytes, self.flags, self.num_envs, self.length, ids, stack, repeat)
        return out.view(stored.dtype).reshape(len(ids), stack, *stored.shape[1:])

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes reserved; the operating system hands out pages only as they are written."""
        scalars = self.actions.nbytes + self.rewards.nbytes + self.flags.nbytes + self.heads.nbytes
        return {**{f"frames/{n}": a.nbytes for n, a in self.frames.items()}, "scalars": scalars}

    def _stored(self) -> dict[str, Array]:
        return {**self._unchanging(), "flags": self.flags}

    def _unchanging(self) -> dict[str, Array]:
        """All but the flags, of which `cut` changes the newest."""
        columns = {f"frames/{name}": stored for name, stored in self.frames.items()}
        return {**columns, "actions": self.actions, "rewards": self.rewards}

    @property
    def _used(self) -> int:
        """Rows of a ring that have ever been written."""
        return int(min(self.length, self.heads.max()))

    def state_dict(self) -> dict[str, Any]:
        """Tensors over the rows in use; those of a full replay share its memory."""
        used = self._used
        state: dict[str, Any] = {"heads": torch.from_numpy(self.heads.copy()), "length": self.length}
        for name, stored in self._stored().items():
            rings = stored.reshape(self.num_envs, self.length, *stored.shape[1:])[:, :used]
            state[name] = torch.from_numpy(np.ascontiguousarray(rings))
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over rows saved by an equally shaped replay.

        Raises:
            ValueError: rings, length or columns differ; nothing is changed then.
        """
        heads = state["heads"].numpy()
        self._check_rings(heads, state["length"])
        stored = self._stored()
        for name, array in stored.items():
            if name not in state or tuple(state[name].shape[2:]) != array.shape[1:]:
                raise ValueError(f"saved replay lacks {name} of shape {array.shape[1:]}")
        self._journal.forget()
        self.heads[:] = heads
        for name, array in stored.items():
            rings = array.reshape(self.num_envs, self.length, *array.shape[1:])
            rings[:, : self._used] = state[name].numpy()

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
        for array in self._unchanging().values():
            rings = array.reshape(self.num_envs, self.length, *array.shape[1:])
            for ring, head in zip(rings, heads, strict=True):
                ring[head : self._used] = 0
