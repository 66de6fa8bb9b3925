"""The replay on the learner's device: priorities, tree and a copy of the rows as tensors, nothing waited for.

Knows nothing about networks. The host keeps rows and journal, from which runs are saved as ever.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from holdfast.storage.parts import PartStore
from numpy.typing import NDArray
from torch import Tensor

from perdqn.replay.frames import SCALE
from perdqn.replay.prioritized import FIRST_PRIORITY, PrioritizedReplay
from perdqn.replay.rows import ENDED, FIRST, TERMINATED, TRUNCATED, Appended, Array, Columns, Ints
from perdqn.replay.tensor_tree import TensorSumTree
from perdqn.transition import EnvSpec, TransitionBatch, copy_to

_MOST_PENDING = 256  # appends that the device has not heard of
_ROWS_AT_ONCE = 1 << 13  # copied


class OnDeviceReplay(PrioritizedReplay):
    """The same replay as `PrioritizedReplay`, and each loads the other's saves.

    Appends are noted on the host and carried out together before the next draw or update. Drawing, weights
    and updating are operations of torch alone, in the host's order, so on the CPU every bit is the host
    replay's; a GPU's powers may differ in the last bit. The host waits where it must have numbers: for saves
    and statistics, and once in a ring's length to learn that rows measured are still there.

    Rows lie in the host's memory too. Batches, their ids included, lie on the device.
    """

    def __init__(self, spec: EnvSpec, num_envs: int = 1, capacity: int = 100_000, **settings: Any) -> None:
        super().__init__(spec, num_envs, capacity, **settings)
        self._device = torch.device("cpu")
        self._held = np.zeros(self.capacity, np.bool_)  # rows that may start a transition
        self._pending: list[Appended] = []
        self._witness: int | None = None  # id of a row that was measured
        self._newest_there: tuple[Tensor, Tensor] | None = None
        self._forget_tensors()

    def _forget_tensors(self) -> None:
        """From here on the host's arrays are what holds, until the device is needed."""
        self._is_there = False
        self._frames: dict[str, Tensor] = {}
        self._tensors: dict[str, Tensor] = {}

    def place(self, device: torch.device) -> None:
        """Lie on another device from now on."""
        if device == self._device:
            return
        if self._is_there:
            self._fetch()
        self._forget_tensors()
        self._device = device

    def _copy(self, array: Array) -> Tensor:
        return copy_to(torch.from_numpy(array), self._device)

    # -- adding ----------------------------------------------------------------------------------

    def _append(
        self, obs: Columns, action: Array, reward: Array, terminated: Array, truncated: Array
    ) -> None:
        flags = TERMINATED * terminated.astype(np.uint8) | TRUNCATED * truncated.astype(np.uint8)
        self._note(self.rows.append(self._envs, obs, action, reward, flags))

    def _note(self, appended: Appended) -> None:
        retired, ready = appended
        self._num_eligible += ready.size - int(np.count_nonzero(self._held[retired]))
        self._held[retired], self._held[ready] = False, True
        self._pending.append(appended)
        if len(self._pending) == _MOST_PENDING:
            self._catch_up()

    def _catch_up(self) -> None:
        """Let the device hear of all that was appended."""
        if not self._is_there:
            self._fill()
        if not self._pending:
            return
        self._copy_rows()
        events = [slots for appended in self._pending for slots in appended]
        self._pending = []
        slots = np.concatenate(events)
        if slots.size:
            self._retire_and_enter(slots, np.repeat(np.arange(len(events)), [each.size for each in events]))

    def _fill(self) -> None:
        """Take everything over from the host's arrays."""
        size, device = self.capacity + 1, self._device
        dtypes = {"actions": torch.int32, "rewards": torch.float32, "flags": torch.uint8}
        dtypes |= {"priorities": torch.float64, "measured": torch.bool, "draws": torch.int32}
        self._tensors = {
            name: torch.zeros(size, dtype=dtype, device=device) for name, dtype in dtypes.items()
        }
        widths = {c.name: c.dtype.itemsize * math.prod(c.shape) for c in self.spec.columns}
        self._frames = {
            name: torch.zeros(size, width, dtype=torch.uint8, device=device) for name, width in widths.items()
        }
        self._num_updated = torch.zeros((), dtype=torch.int64, device=device)
        self._leaves = TensorSumTree(self.capacity, device)
        self._tensors["priorities"][:-1] = self._copy(self._priorities)
        self._tensors["measured"][:-1] = self._copy(self._measured)
        self._tensors["draws"][:-1] = self._copy(self.rows.draws)
        self._leaves.set_all(self._copy(np.append(self._tree.leaves, 0.0)))
        self._copied, self._witness, self._is_there = np.zeros_like(self.rows.heads), None, True
        self._copy_rows()

    def _copy_rows(self) -> None:
        """Rows written since the last time, and each ring's row before, which may have been cut."""
        heads, length = self.rows.heads, self.rows.length
        first = np.where(
            heads > self._copied, np.maximum(np.maximum(self._copied - 1, heads - length), 0), heads
        )
        num = heads - first
        counter = np.arange(num.sum()) - np.repeat(np.cumsum(num) - num - first, num)
        slots = np.repeat(self._envs, num) * length + counter % length
        for begin in range(0, slots.size, _ROWS_AT_ONCE):
            part = slots[begin : begin + _ROWS_AT_ONCE]
            at = self._copy(part)
            for name, stored in self.rows.frames.items():
                frames = np.ascontiguousarray(stored[part]).reshape(part.size, -1).view(np.uint8)
                self._frames[name][at] = self._copy(frames)
            for name in ("actions", "rewards", "flags"):
                self._tensors[name][at] = self._copy(getattr(self.rows, name)[part])
        self._heads, self._copied = self._copy(heads.copy()), heads.copy()

    def _retire_and_enter(self, slots: Ints, event: Ints) -> None:
        """Rows leave in events of even number and enter in those of odd number, in this order.

        A row enters at the largest priority of the rows measured that have not left by then.
        """
        priorities, measured = self._tensors["priorities"], self._tensors["measured"]
        leaves = event % 2 == 0
        _, first = np.unique(slots[leaves], return_index=True)
        first.sort()
        gone = self._copy(slots[leaves][first])
        lost = torch.where(measured[gone], priorities[gone], 0.0)
        measured[gone], self._tensors["draws"][gone] = False, 0
        lost = torch.cat([lost, torch.where(measured, priorities, 0.0).amax()[None]])
        maximum = lost.flip(0).cummax(0).values.flip(0)  # once so many rows have gone

        _, newest = np.unique(slots[::-1], return_index=True)
        newest = slots.size - 1 - newest  # what happens to a slot last is what holds
        num_gone = self._copy(np.searchsorted(event[leaves][first], event[newest]))
        enters = self._copy(~leaves[newest])
        entry = maximum[num_gone]
        entry = torch.where(entry > 0.0, entry, FIRST_PRIORITY)
        at = self._copy(slots[newest])
        priorities[at] = torch.where(enters, entry, 0.0)
        self._leaves.set(at, torch.where(enters, _power(entry, self._alpha), 0.0))
        self._misses += 1

    @property
    def priority_max(self) -> float:
        """The running maximum, at which new rows enter; waits for the device."""
        self._catch_up()
        maximum = float(self._maximum_there())
        return maximum if maximum > 0.0 else FIRST_PRIORITY

    def _maximum_there(self) -> Tensor:
        return torch.where(self._tensors["measured"], self._tensors["priorities"], 0.0).amax()

    # -- drawing ---------------------------------------------------------------------------------

    def sample(self, batch_size: int, beta: float = 1.0, scaled: bool = False) -> TransitionBatch:
        self._check_draw(batch_size, beta)
        self._catch_up()
        self._refresh()
        uniform = self._copy(self._rng.random(batch_size))
        tree = self._leaves
        # divided by a tensor: by a number, a GPU would multiply with its reciprocal
        share = tree.total / torch.full_like(tree.total, batch_size)
        slots = tree.find((torch.arange(batch_size, device=self._device) + uniform) * share)
        leaves = tree.leaves[slots]
        smallest = (
            leaves if self._smallest is None else torch.where(tree.leaves > 0.0, tree.leaves, torch.inf)
        )
        weights = _power(leaves / smallest.amin(), -beta).float()
        self._hits += batch_size
        self.samples_drawn += batch_size
        self._tensors["draws"].index_add_(0, slots, torch.ones_like(slots, dtype=torch.int32))

        env = slots // self.rows.length
        newest = self._heads[env] - 1
        ids = (newest - (newest - slots) % self.rows.length) * self.rows.num_envs + env
        reward, discount, num_steps = self._windows(env, slots)
        ends = self._later(env, slots, num_steps)
        obs, next_obs = self._observations(env, slots, scaled), self._observations(env, ends, scaled)
        self._newest_there = (ids, weights)
        action = self._tensors["actions"][slots].long()
        return TransitionBatch(obs, action, reward, discount, next_obs, weights, ids)

    def _later(self, env: Tensor, slots: Tensor, num_rows: Tensor | int) -> Tensor:
        """Slots so many rows on in the same ring."""
        begin = env * self.rows.length
        return begin + (slots - begin + num_rows) % self.rows.length

    def _windows(self, env: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rewards, discounts and lengths of the windows that start at ``slots`` [n]; see `rows.windows`."""
        rows, flags = self.rows, self._tensors["flags"]
        total = torch.zeros(slots.shape, dtype=torch.float64, device=self._device)
        discount, num_steps = torch.zeros_like(total), torch.zeros_like(slots)
        flag, goes_on, factor = torch.zeros_like(flags[slots]), torch.ones_like(slots, dtype=torch.bool), 1.0
        for step in range(rows.n_step):
            at = self._later(env, slots, step)
            reward = self._tensors["rewards"][at].double().clamp(-rows.reward_clip, rows.reward_clip)
            total = torch.where(goes_on, total + factor * reward, total)
            flag = torch.where(goes_on, flags[at], flag)
            factor *= rows.gamma
            discount = torch.where(goes_on, factor, discount)
            num_steps = num_steps + goes_on
            goes_on = goes_on & (flag & ENDED == 0)
        discount = torch.where(flag & TERMINATED != 0, 0.0, discount)
        return total.float(), discount.float(), num_steps

    def _observations(self, env: Tensor, slots: Tensor, scaled: bool) -> dict[str, Tensor]:
        """Observations ending at ``slots`` [n], per column [n, (stack,) *shape]."""
        stack, repeats = self.spec.frame_stack, self.spec.stack_padding == "repeat"
        flags = self._tensors["flags"]
        at, is_blank = [slots], [torch.zeros_like(slots, dtype=torch.bool)]
        has_begun = flags[slots] & FIRST != 0
        for back in range(1, stack):
            is_blank.append(has_begun)
            at.append(torch.where(has_begun, at[-1], self._later(env, slots, -back)))
            has_begun = has_begun | (flags[at[-1]] & FIRST != 0)
        places, blank = (torch.stack(parts[::-1], 1).flatten() for parts in (at, is_blank))
        found = {}
        for column in self.spec.columns:
            frames = self._frames[column.name].index_select(0, places)
            if stack > 1 and not repeats:
                frames.masked_fill_(blank[:, None], 0)
            dtype = torch.from_numpy(np.empty(0, column.dtype)).dtype
            frames = frames.view(dtype).reshape(len(slots), *self.spec.obs_shape(column))
            found[column.name] = (
                frames.float().mul_(float(SCALE)) if scaled and column.is_byte_image else frames
            )
        return found

    # -- priorities ------------------------------------------------------------------------------

    def update_priorities(self, ids: Ints | Tensor, priorities: Array | Tensor) -> None:
        """See `PrioritizedReplay`; priorities that lie on a GPU are not looked at.

        Where any of these is not finite or negative, none is stored.
        """
        ids, values = torch.as_tensor(ids), torch.as_tensor(priorities).double()
        if ids.dtype != torch.int64 or ids.ndim != 1 or values.shape != ids.shape:
            raise ValueError(
                f"ids must be int64 [n] and priorities [n], got {ids.dtype} {list(ids.shape)} "
                f"and {list(values.shape)}"
            )
        if values.device.type == "cpu" and not bool(_are_priorities(values)):
            raise ValueError("priorities must be finite and non-negative")
        if self.prioritized and len(ids):
            self._measure(copy_to(ids, self._device), copy_to(values, self._device))

    def _measure(self, ids: Tensor, values: Tensor) -> None:
        self._catch_up()
        self._refresh()
        slots = self._locate(ids)
        is_stored = (slots < self.capacity) & _are_priorities(values)
        is_first = self._is_nothing_measured()
        if is_first and not bool(is_stored.any()):
            return
        slots, order = torch.where(is_stored, slots, self.capacity).sort(stable=True)
        values = torch.where(is_stored, (values + self.priority_eps).clamp(max=self.priority_clip), 0.0)[
            order
        ]
        # Of a slot named twice the later value holds: all take the one at the end of their run.
        is_last = torch.cat([slots[1:] != slots[:-1], torch.ones_like(is_stored[:1])])
        place = torch.arange(len(slots), device=self._device)
        values = values[torch.where(is_last, place, len(slots)).flip(0).cummin(0).values.flip(0)]
        is_row = slots < self.capacity
        self._tensors["priorities"][slots] = torch.where(is_row, values, 0.0)
        self._tensors["measured"][slots] = is_row
        self._leaves.set(slots, torch.where(is_row, _power(values, self._alpha), 0.0))
        self._num_updated += is_stored.sum()
        if is_first:
            self._adopt_first_maximum()

    def _locate(self, ids: Tensor) -> Tensor:
        """Slots of those ids that may start a transition, which have a leaf; ``capacity`` for the others."""
        rows = self.rows
        counter, env = ids // rows.num_envs, ids % rows.num_envs
        newest = self._heads[env] - 1
        is_alive = (counter <= newest) & (counter > newest - rows.length)  # or never was: without a leaf
        slots = torch.where(is_alive, env * rows.length + counter % rows.length, self.capacity)
        return torch.where(self._leaves.leaves[slots] > 0.0, slots, self.capacity)

    def _is_nothing_measured(self) -> bool:
        """Waits for the device only where the row known to be measured may have left."""
        rows = self.rows
        if self._witness is not None:
            counter, env = divmod(self._witness, rows.num_envs)
            if counter > rows.heads[env] - rows.length + rows.spec.frame_stack - 2:
                return False
        slot = torch.arange(self.capacity, device=self._device)
        age = (self._heads[slot // rows.length] - 1 - slot) % rows.length
        youngest = int(torch.where(self._tensors["measured"][:-1], age, rows.length).argmin())
        self._witness = None
        if bool(self._tensors["measured"][youngest]):
            self._witness = int(rows.ids(np.array([youngest]))[0])
        return self._witness is None

    def _adopt_first_maximum(self) -> None:
        maximum, leaves = self._maximum_there()[None], self._leaves.leaves
        waits = (leaves > 0.0) & ~self._tensors["measured"]
        self._tensors["priorities"] = torch.where(waits, maximum, self._tensors["priorities"])
        self._leaves.set_all(torch.where(waits, _power(maximum, self._alpha), leaves))

    def _refresh(self) -> None:
        if not self._stale:
            return
        leaves = self._leaves.leaves
        powers = _power(self._tensors["priorities"], self._alpha)
        self._misses += self._num_eligible
        self._leaves.set_all(torch.where(leaves > 0.0, powers, 0.0))
        self._stale = False

    # -- looking and saving ----------------------------------------------------------------------

    def _fetch(self) -> None:
        """Bring the host's arrays up to date."""
        self._catch_up()
        self._priorities[:] = self._tensors["priorities"][:-1].cpu().numpy()
        self._measured[:] = self._tensors["measured"][:-1].cpu().numpy()
        self.rows.draws[:] = self._tensors["draws"][:-1].cpu().numpy()
        self._set_all_leaves(self._leaves.leaves[:-1].cpu().numpy())
        self._bounds[:] = np.inf
        self._seek_maximum()
        self._scaled_maximum = None
        self.priorities_updated += int(self._num_updated)
        self._num_updated.zero_()

    def check_valid(self) -> None:
        self._catch_up()
        self._refresh()
        self._fetch()
        assert np.array_equal(self._held, self._tree.leaves > 0.0)
        super().check_valid()

    def get_performance_stats(self) -> dict[str, Any]:
        self._fetch()
        return super().get_performance_stats()

    def priorities_of(self, ids: Ints) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        self._catch_up()
        slots = self._copy(self.rows.slots(ids))
        priorities, measured = (self._tensors[name][slots].cpu() for name in ("priorities", "measured"))
        return priorities.numpy(), measured.numpy()

    def newest_batch_stats(self) -> dict[str, float]:
        if self._newest_there is not None:
            ids, weights = self._newest_there
            self._newest_batch = ids.cpu().numpy(), weights.cpu().numpy()
        return super().newest_batch_stats()

    def get_memory_usage(self) -> dict[str, Any]:
        """Of the host; ``device_bytes`` lie on the device."""
        tensors = [*self._frames.values(), *self._tensors.values()]
        tree = self._leaves.nbytes if self._is_there else 0
        return {**super().get_memory_usage(), "device_bytes": sum(each.nbytes for each in tensors) + tree}

    def release_memory(self, caches: bool = False) -> int:
        self._newest_there = None
        return super().release_memory(caches)

    def state_dict(self, include_leaves: bool = True) -> dict[str, Any]:
        self._fetch()
        return super().state_dict(include_leaves)

    def save_parts(self, store: PartStore) -> dict[str, Any]:
        self._fetch()
        return super().save_parts(store)

    def _restore(
        self, state: dict[str, Any], priorities: Array, measured: Array, leaves: NDArray[Any] | None
    ) -> None:
        self._pending = []
        self._forget_tensors()
        super()._restore(state, priorities, measured, leaves)
        self._held[:] = self._tree.leaves > 0.0


def _are_priorities(values: Tensor) -> Tensor:
    """Whether all are finite and none is negative, bool []."""
    return (torch.isfinite(values) & (values >= 0.0)).all()


def _power(values: Tensor, exponent: float) -> Tensor:
    """The host replay's powers on the CPU; another library's may differ in the last bit, a GPU's too."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy() ** exponent)
    return values**exponent
