"""Sums (or minima) over leaves, and the leaf at which a running sum is reached.

Knows nothing about reinforcement learning: leaves are non-negative numbers at slots.

Every level holds the sums of 16 nodes below, and beside them the running sums within each block of 16. A
write stores the leaf and notes that its block is stale; sums are settled when they are next asked for, so
a block written many times is added up once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perdqn.jit import kernel, prefetch

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

WIDTH = 16  # float64 nodes in two cache lines


class Nodes(NamedTuple):
    """What the kernels work on.

    Args:
        values: level after level, the leaves first and the root last; each begins at a multiple of `WIDTH`.
        running: of every node above the leaves, the sum of its block up to and with it.
        starts: where each level begins in ``values``; in ``running``, ``starts[1]`` earlier.
        is_stale: by block of ``values``, whether the node above it is yet to be settled.
        stale: blocks of leaves that are stale, in the order they became so.
        num_stale: how many these are, as an array of one.
    """

    values: Floats
    running: Floats
    starts: Ints
    is_stale: NDArray[np.bool_]
    stale: Ints
    num_stale: Ints


# No kernel calls another for each item: handing arrays over costs more than the work done with them.


@kernel
def set_leaves(
    values: Floats, is_stale: NDArray[np.bool_], stale: Ints, num_stale: Ints, slots: Ints, leaves: Floats
) -> None:
    num = num_stale[0]
    for i in range(slots.size):
        slot = np.uint64(slots[i])  # never counted from the end
        block = slot // np.uint64(WIDTH)
        values[slot] = leaves[i]
        if not is_stale[block]:
            is_stale[block] = True
            stale[num] = block
            num += 1
    num_stale[0] = num


@kernel
def settle(
    values: Floats,
    running: Floats,
    starts: Ints,
    is_stale: NDArray[np.bool_],
    stale: Ints,
    num_stale: Ints,
    is_minimum: bool,
) -> None:
    """Compute every node above a stale block anew, one level at a time, so that memory loads overlap."""
    num = num_stale[0]
    for level in range(starts.size - 1):
        num_above = 0
        for i in range(num):
            block = stale[i]
            is_stale[block] = False
            begin = np.uint64(block) * np.uint64(WIDTH)
            node = values[begin]
            for k in range(1, WIDTH):
                child = values[begin + np.uint64(k)]
                node = min(node, child) if is_minimum else node + child
            parent = starts[level + 1] + block - starts[level] // WIDTH
            values[parent] = node
            above = parent // WIDTH
            if not is_stale[above]:
                is_stale[above] = True
                stale[num_above] = above  # at most the place just read
                num_above += 1
        num = num_above
        for i in range(num if level + 2 < starts.size and not is_minimum else 0):
            begin = np.uint64(stale[i]) * np.uint64(WIDTH)
            node = 0.0
            for k in range(WIDTH):
                node += values[begin + np.uint64(k)]
                running[begin + np.uint64(k) - np.uint64(starts[1])] = node
    is_stale[is_stale.size - 1] = False  # above the root there is nothing
    num_stale[0] = 0


@kernel
def find(values: Floats, running: Floats, starts: Ints, prefix_sums: Floats, found: Ints) -> None:
    """All items descend one level at a time; ``prefix_sums`` [n] are used up, ``found`` [n] becomes slots."""
    found[:] = 0
    for level in range(starts.size - 2, 0, -1):
        begin = np.uint64(starts[level] - starts[1])
        for i in range(found.size):
            block = begin + np.uint64(found[i] * WIDTH)
            rest, total = prefix_sums[i], running[block + np.uint64(WIDTH - 1)]
            passed = np.uint64(0)  # children that end before; the last one that adds to the sum never does
            for step in (np.uint64(8), np.uint64(4), np.uint64(2), np.uint64(1)):
                end = running[block + passed + step - np.uint64(1)]
                passed = passed + step if (end <= rest) & (end < total) else passed
            rest -= running[block + passed - np.uint64(1)] if passed != np.uint64(0) else 0.0
            child = found[i] * WIDTH + np.int64(passed)
            prefix_sums[i], found[i] = rest, child
            if level == 1:
                prefetch(values, child * WIDTH)
                prefetch(values, child * WIDTH + WIDTH // 2)
    for i in range(found.size):
        block, rest = np.uint64(found[i] * WIDTH), prefix_sums[i]
        before, chosen = 0.0, block  # the last leaf that begins no later; never an empty one
        for k in range(WIDTH):
            slot = block + np.uint64(k)
            leaf = values[slot]
            chosen = slot if (before <= rest) & (leaf > 0.0) else chosen
            before += leaf
        found[i] = chosen


def _aligned(size: int, value: float) -> Floats:
    """``size`` numbers whose blocks begin at a cache line."""
    array = np.full(size + WIDTH, value) if value else np.zeros(size + WIDTH)
    skipped = -array.ctypes.data // array.itemsize % WIDTH
    return array[skipped : skipped + size]


class _Tree:
    """Every node is computed from its children anew, in one order, never adjusted.

    It is therefore a pure function of its leaves: rebuilding it from them restores every bit.
    """

    _empty: float
    _is_minimum: bool

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        sizes = [capacity]
        while sizes[-1] > 1:
            sizes.append(-(-sizes[-1] // WIDTH))
        if len(sizes) == 1:
            sizes.append(1)  # a single leaf has a root of its own
        num_blocks = [-(-size // WIDTH) for size in sizes]
        self.nodes = Nodes(
            values=_aligned(sum(num_blocks) * WIDTH, self._empty),
            running=_aligned(sum(num_blocks[1:]) * WIDTH, 0.0),
            starts=np.cumsum([0, *num_blocks[:-1]]) * WIDTH,
            is_stale=np.zeros(sum(num_blocks), np.bool_),
            stale=np.zeros(num_blocks[0], np.int64),
            num_stale=np.zeros(1, np.int64),
        )

    @property
    def leaves(self) -> Floats:
        """The leaves by slot [capacity]; a view, to read only."""
        return self.nodes.values[: self.capacity]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.nodes)

    @property
    def root(self) -> float:
        """What all leaves come to."""
        settle(*self.nodes, self._is_minimum)
        return float(self.nodes.values[self.nodes.starts[-1]])

    def set(self, slots: Ints, leaves: Floats) -> None:
        """Write leaves [n]; of a slot named twice, the later value holds."""
        values, _, _, is_stale, stale, num_stale = self.nodes
        set_leaves(values, is_stale, stale, num_stale, slots, leaves)

    def set_all(self, leaves: Floats) -> None:
        """Write every leaf [capacity]."""
        self.leaves[:] = leaves
        stale = self.nodes.stale
        stale[:] = np.arange(stale.size)
        self.nodes.is_stale[: stale.size] = True
        self.nodes.num_stale[0] = stale.size

    def check_valid(self) -> None:
        """Raise AssertionError unless every node is what its children say."""
        values, running, starts, is_stale, _, num_stale = self.nodes
        noted = is_stale[: starts[1] // WIDTH]
        assert np.count_nonzero(noted) == np.count_nonzero(is_stale) == num_stale[0]
        blocks = values.reshape(-1, WIDTH)
        combine = np.minimum if self._is_minimum else np.add
        expected = combine.accumulate(blocks, axis=1)[:, -1]  # one after the other, as `settle` does
        for level, (begin, parents) in enumerate(pairwise(starts)):
            below = slice(begin // WIDTH, parents // WIDTH)
            nodes = values[parents : parents + below.stop - below.start]
            unsettled = noted if level == 0 else np.zeros(nodes.size, np.bool_)
            assert np.array_equal(nodes[~unsettled], expected[below][~unsettled])
        if not (self._is_minimum or num_stale[0]):
            sums = blocks.cumsum(axis=1).reshape(-1)[starts[1] : starts[-1]]
            assert np.array_equal(running[: sums.size], sums)


class SumTree(_Tree):
    """Prefix sums over non-negative leaves."""

    _empty = 0.0
    _is_minimum = False

    @property
    def total(self) -> float:
        return self.root

    def find(self, prefix_sums: Floats) -> Ints:
        """Slots [n] where the running sum of the leaves first exceeds each of ``prefix_sums`` [n].

        Args:
            prefix_sums: each in [0, total); rounding at the upper end still finds a positive leaf.

        Raises:
            ValueError: every leaf is 0.
        """
        if self.total <= 0.0:
            raise ValueError("nothing to find: every leaf is 0")
        found = np.empty(prefix_sums.size, np.int64)
        find(*self.nodes[:3], prefix_sums.copy(), found)
        return found


class MinTree(_Tree):
    """The smallest leaf; an empty one counts as infinite."""

    _empty = np.inf
    _is_minimum = True

    @property
    def minimum(self) -> float:
        return self.root
