"""The sum tree as tensors on any device: settled and searched without waiting for it.

Knows nothing about priorities: leaves are non-negative numbers at slots. The same on the host: `sum_tree`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from perdqn.replay.sum_tree import WIDTH


class TensorSumTree:
    """Prefix sums over non-negative leaves, bit for bit those of `SumTree`: added in the same order.

    One slot more than ``capacity``, whose leaf is 0, takes what is meant for no slot: picking items out of a
    batch would have to wait for the device.

    Args:
        capacity: leaves.
        device: where they lie.
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        num_blocks = [-(-(capacity + 1) // WIDTH)]
        while num_blocks[-1] > 1:
            num_blocks.append(-(-num_blocks[-1] // WIDTH))
        padded = [*(num * WIDTH for num in num_blocks[1:]), 1]
        self._slots = torch.zeros(padded[0] * WIDTH, dtype=torch.float64, device=device)
        self._ends = [torch.zeros(num, WIDTH, dtype=torch.float64, device=device) for num in padded]
        self._children = [self._slots.view(-1, WIDTH)]
        self._children += [ends[:, -1].view(-1, WIDTH) for ends in self._ends[:-1]]
        self.leaves = self._slots[: capacity + 1]
        self._places = torch.arange(WIDTH, device=device)

    @property
    def nbytes(self) -> int:
        return self._slots.nbytes + sum(ends.nbytes for ends in self._ends)

    @property
    def total(self) -> Tensor:
        """Of all leaves, float64 []."""
        return self._ends[-1][0, -1]

    def set(self, slots: Tensor, leaves: Tensor) -> None:
        """Write leaves [n >= 1]; a slot named twice takes one value."""
        self._slots[slots] = leaves
        blocks = slots
        for children, ends in zip(self._children, self._ends, strict=True):
            blocks = blocks // WIDTH
            ends[blocks] = _running_sums(children[blocks])

    def set_all(self, leaves: Tensor) -> None:
        """Write every leaf [capacity + 1]."""
        self.leaves.copy_(leaves)
        for children, ends in zip(self._children, self._ends, strict=True):
            ends[: len(children)] = _running_sums(children)

    def find(self, prefix_sums: Tensor) -> Tensor:
        """Slots [n] where the running sum of the leaves first exceeds each of ``prefix_sums`` [n]."""
        rest = prefix_sums[:, None]
        found = torch.zeros_like(prefix_sums, dtype=torch.int64)
        for level in reversed(self._ends[1:]):
            ends = level[found]
            passed = ((ends <= rest) & (ends < ends[:, -1:])).sum(1, keepdim=True)
            before = ends.gather(1, (passed - 1).clamp(min=0))
            rest = torch.where(passed > 0, rest - before, rest)
            found = found * WIDTH + passed[:, 0]
        leaves, ends = self._children[0][found], self._ends[0][found]
        begins = torch.cat([torch.zeros_like(rest), ends[:, :-1]], 1)
        may_be = (begins <= rest) & (leaves > 0.0)  # the last leaf that begins no later; never an empty one
        return found * WIDTH + (may_be * self._places).amax(1)


def _running_sums(blocks: Tensor) -> Tensor:
    """Sums within blocks [n, 16], one number after the other.

    So torch adds along an axis that is not the last, on a GPU too; along the last, or where there is one
    block alone, it adds in parallel there, in another order.
    """
    columns = blocks.t()
    if len(blocks) == 1:
        columns = columns.expand(-1, 2)
    return columns.contiguous().cumsum(0).t()[: len(blocks)]
