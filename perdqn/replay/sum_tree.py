"""Sums (or minima) over leaves, and the leaf at which a running sum is reached.

Knows nothing about reinforcement learning: leaves are non-negative numbers at slots.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from perdqn.jit import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@kernel
def _set(nodes: Floats, first_leaf: int, slots: Ints, values: Floats, is_minimum: bool) -> None:
    for i in range(slots.size):
        nodes[first_leaf + slots[i]] = values[i]
    # All items rise one level at a time, so that their memory loads overlap.
    rising = slots + first_leaf
    level = first_leaf
    while level > 1:
        level //= 2
        for i in range(rising.size):
            parent = rising[i] // 2
            left, right = nodes[2 * parent], nodes[2 * parent + 1]
            nodes[parent] = min(left, right) if is_minimum else left + right
            rising[i] = parent


@kernel
def _rebuild(nodes: Floats, first_leaf: int, is_minimum: bool) -> None:
    for parent in range(first_leaf - 1, 0, -1):
        left, right = nodes[2 * parent], nodes[2 * parent + 1]
        nodes[parent] = min(left, right) if is_minimum else left + right


@kernel
def _find(nodes: Floats, first_leaf: int, prefix_sums: Floats) -> Ints:
    found = np.ones(prefix_sums.size, np.int64)
    rest = prefix_sums.copy()
    level = 1
    while level < first_leaf:
        level *= 2
        for i in range(found.size):
            left = 2 * found[i]
            # An empty right side is never entered, however a sum was rounded.
            if rest[i] < nodes[left] or nodes[left + 1] <= 0.0:
                found[i] = left
            else:
                rest[i] -= nodes[left]
                found[i] = left + 1
    return found - first_leaf


class _Tree:
    """A complete binary tree whose parents are recomputed from their children, never adjusted.

    It is therefore a pure function of its leaves: rebuilding it from them restores every bit.
    """

    _empty: float
    _is_minimum: bool

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity = capacity
        self._first_leaf = 1 << (capacity - 1).bit_length()
        self._nodes = np.full(2 * self._first_leaf, self._empty)

    @property
    def leaves(self) -> Floats:
        """The leaves by slot [capacity]; a view, to read only."""
        return self._nodes[self._first_leaf : self._first_leaf + self.capacity]

    @property
    def nbytes(self) -> int:
        return self._nodes.nbytes

    def set(self, slots: Ints, values: Floats) -> None:
        """Write leaves [n] and everything above them; of a slot named twice, the later value holds."""
        _set(self._nodes, self._first_leaf, slots, values, self._is_minimum)

    def set_all(self, values: Floats) -> None:
        """Write every leaf [capacity]."""
        self.leaves[:] = values
        _rebuild(self._nodes, self._first_leaf, self._is_minimum)

    def check_valid(self) -> None:
        """Raise AssertionError unless every parent is what its children say."""
        pairs = self._nodes[2:].reshape(-1, 2)
        expected = pairs.min(axis=1) if self._is_minimum else pairs.sum(axis=1)
        assert np.array_equal(self._nodes[1 : self._first_leaf], expected[: self._first_leaf - 1])


class SumTree(_Tree):
    """Prefix sums over non-negative leaves in O(log capacity)."""

    _empty = 0.0
    _is_minimum = False

    @property
    def total(self) -> float:
        return float(self._nodes[1])

    def find(self, prefix_sums: Floats) -> Ints:
        """Slots [n] where the running sum of the leaves first exceeds each of ``prefix_sums`` [n].

        Args:
            prefix_sums: each in [0, total); rounding at the upper end still finds a positive leaf.

        Raises:
            ValueError: every leaf is 0.
        """
        if self.total <= 0.0:
            raise ValueError("nothing to find: every leaf is 0")
        return _find(self._nodes, self._first_leaf, prefix_sums)


class MinTree(_Tree):
    """The smallest leaf; an empty one counts as infinite."""

    _empty = np.inf
    _is_minimum = True

    @property
    def minimum(self) -> float:
        return float(self._nodes[1])
