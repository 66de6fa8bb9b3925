"""What adding, drawing and updating do to arrays, each as one compiled pass over rows, priorities and tree.

Knows nothing about settings, checks of shapes, or batches as tensors.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from perdqn.jit import kernel, prefetch
from perdqn.replay.rows import TERMINATED, TRUNCATED, Array, Ints, append_rows, locate, windows
from perdqn.replay.sum_tree import find, set_leaves, settle

LARGEST_REWARD = float(np.finfo(np.float32).max)
BLOCK = 1024  # rows whose largest priority is bounded together


@kernel
def find_fault(
    action: Array, reward: Array, terminated: Array, truncated: Array, num_actions: int
) -> tuple[bool, bool, bool]:
    """Whether an action is out of range, a reward is no finite float32, and whether an episode ended."""
    has_wrong_action = has_wrong_reward = has_ended = False
    for i in range(action.size):
        has_wrong_action |= action[i] < 0 or action[i] >= num_actions
        has_wrong_reward |= not abs(np.float64(reward[i])) <= LARGEST_REWARD
        has_ended |= terminated[i] | truncated[i]
    return has_wrong_action, has_wrong_reward, has_ended


@kernel
def is_finite(frames: Array) -> bool:
    is_finite = True
    for value in frames.flat:
        is_finite &= abs(value) < np.inf
    return is_finite


@kernel
def add(
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
    terminated: Array,
    truncated: Array,
    draws: Ints,
    priorities: Array,
    measured: Array,
    leaves: Array,
    is_stale: Array,
    stale: Ints,
    num_stale: Ints,
    maximum: float,
    num_at_maximum: int,
    entry_priority: float,
    entry_leaf: float,
) -> tuple[Ints, Ints, Ints, int, int, bool]:
    """Append rows, retire those overwritten and let those now complete enter, unless the maximum is gone.

    Returns the slots written, retired and ready, how many retired rows could start a transition, how many
    rows hold the maximum, and whether those ready have entered.
    """
    flag = np.empty(envs.size, np.uint8)
    for i in range(envs.size):
        flag[i] = TERMINATED * terminated[i] | TRUNCATED * truncated[i]
    slots, retired, ready = append_rows(
        flags, actions, rewards, heads, length, n_step, frame_stack, envs, action, reward, flag
    )
    num_lost = 0
    for slot in retired:
        num_lost += leaves[slot] > 0.0
        num_at_maximum -= measured[slot] and priorities[slot] == maximum
        priorities[slot], measured[slot], draws[slot] = 0.0, False, 0
    set_leaves(leaves, is_stale, stale, num_stale, retired, np.zeros(retired.size))
    may_enter = maximum == 0.0 or num_at_maximum > 0
    if may_enter:
        for slot in ready:
            priorities[slot] = entry_priority
        set_leaves(leaves, is_stale, stale, num_stale, ready, np.full(ready.size, entry_leaf))
    return slots, retired, ready, num_lost, num_at_maximum, may_enter


@kernel
def draw(
    leaves: Array,
    running: Array,
    starts: Ints,
    is_stale: Array,
    stale: Ints,
    num_stale: Ints,
    uniform: Array,
    draws: Ints,
    flags: Array,
    actions: Array,
    rewards: Array,
    heads: Ints,
    length: int,
    n_step: int,
    gamma: float,
    reward_clip: float,
) -> tuple[Ints, Ints, Array, Array, Array, Array]:
    """One row from each equal share of the sum, ``uniform`` [n] saying where in the share, and its window.

    Returns where windows begin and end as slots and as ids, both [2, n], the leaves where they begin,
    actions, rewards and discounts; ``draws`` counts where they begin.
    """
    settle(leaves, running, starts, is_stale, stale, num_stale, False)
    num = uniform.size
    share = leaves[starts[-1]] / num
    for i in range(num):
        uniform[i] = (i + uniform[i]) * share
    both_slots = np.empty((2, num), np.int64)
    both_ids = np.empty((2, num), np.int64)
    slots = both_slots[0]
    find(leaves, running, starts, uniform, slots)
    for i in range(num):
        uniform[i] = leaves[slots[i]]
        prefetch(flags, slots[i])
        prefetch(actions, slots[i])
        draws[slots[i]] += 1
    action, reward, discount = windows(
        flags, actions, rewards, heads, length, slots, n_step, gamma, reward_clip, both_slots, both_ids
    )
    return both_slots, both_ids, uniform, action, reward, discount


@kernel
def check_priorities(
    ids: Ints,
    values: Array,
    eps: float,
    clip: float,
    flags: Array,
    heads: Ints,
    length: int,
    n_step: int,
    frame_stack: int,
) -> tuple[bool, Ints, Array]:
    """Whether all values may be priorities; slots of rows that may start a transition, and theirs."""
    is_valid = True
    for value in values:
        is_valid &= 0.0 <= value < np.inf
    slots = np.empty(ids.size, np.int64)
    if not is_valid:
        return is_valid, slots, values
    locate(flags, heads, length, ids, n_step, frame_stack, slots)
    priorities, num = np.empty(ids.size), 0
    for i in range(ids.size):
        if slots[i] >= 0:
            slots[num], priorities[num] = slots[i], min(values[i] + eps, clip)
            num += 1
    return is_valid, slots[:num], priorities[:num]


@kernel
def seek_maximum(priorities: Array, measured: Array, bounds: Array) -> tuple[float, int]:
    """The largest priority of measured rows, and how many have it; 0 where none is measured.

    Args:
        bounds: of each `BLOCK` of rows, at least the largest priority measured in it; lowered to it here
            where one stands in the way, so that few blocks are looked at.
    """
    while True:
        top = 0
        for block in range(bounds.size):
            if bounds[block] > bounds[top]:
                top = block
        largest, _ = _largest(priorities, measured, top)
        if largest == bounds[top]:
            break
        bounds[top] = largest
    num = 0
    for block in range(bounds.size):
        if bounds[block] == largest:
            bounds[block], count = _largest(priorities, measured, block)
            num += count if bounds[block] == largest else 0
    return largest, num


@partial(kernel, fastmath={"nnan", "nsz"})  # so that it is done for several rows at a time
def _largest(priorities: Array, measured: Array, block: int) -> tuple[float, int]:
    """Of a block's measured rows, and how many have it."""
    begin, end = block * BLOCK, min(priorities.size, (block + 1) * BLOCK)
    largest, num = 0.0, 0
    for slot in range(begin, end):
        value = priorities[slot] if measured[slot] else 0.0
        largest = max(largest, value)
    for slot in range(begin, end):
        num += measured[slot] and priorities[slot] == largest
    return largest, num


@kernel
def measure(
    priorities: Array,
    measured: Array,
    bounds: Array,
    leaves: Array,
    is_stale: Array,
    stale: Ints,
    num_stale: Ints,
    slots: Ints,
    values: Array,
    powers: Array,
    maximum: float,
    num_at_maximum: int,
) -> tuple[float, int]:
    """Store measured priorities; returns the maximum and how many rows hold it (0: it must be sought)."""
    for i in range(slots.size):
        slot, value = slots[i], values[i]
        if measured[slot] and priorities[slot] == maximum:
            num_at_maximum -= 1
        priorities[slot], measured[slot] = value, True
        bounds[slot // BLOCK] = max(bounds[slot // BLOCK], value)
        if value > maximum:
            maximum, num_at_maximum = value, 1
        elif value == maximum:
            num_at_maximum += 1
    set_leaves(leaves, is_stale, stale, num_stale, slots, powers)
    return maximum, num_at_maximum
