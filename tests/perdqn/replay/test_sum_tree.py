"""Both trees against numpy on the plain leaves, under random writes."""

import numpy as np
import pytest

from perdqn.replay.sum_tree import MinTree, SumTree

CAPACITIES = [1, 2, 3, 13, 16, 17, 100, 256, 5000]


def random_writes(capacity, num_writes=60):
    """Slots and values; slots repeat within a write, and a third of the values is 0."""
    rng = np.random.default_rng(capacity)
    for _ in range(num_writes):
        num = int(rng.integers(1, 2 * capacity + 1))
        values = rng.exponential(size=num) * (rng.random(num) < 2 / 3)
        yield rng.integers(capacity, size=num), values


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_leaves_and_total_agree_with_an_array_after_every_write(capacity):
    tree, plain = SumTree(capacity), np.zeros(capacity)
    for slots, values in random_writes(capacity):
        tree.set(slots, values)
        for slot, value in zip(slots, values, strict=True):
            plain[slot] = value
        tree.check_valid()
        np.testing.assert_array_equal(tree.leaves, plain)
        assert tree.total == pytest.approx(plain.sum(), rel=1e-12)


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_the_smallest_leaf_agrees_with_an_array_after_every_write(capacity):
    tree, plain = MinTree(capacity), np.full(capacity, np.inf)
    assert tree.minimum == np.inf
    for slots, values in random_writes(capacity):
        tree.set(slots, values)
        for slot, value in zip(slots, values, strict=True):
            plain[slot] = value
        tree.check_valid()
        assert tree.minimum == plain.min()


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_prefix_sum_is_found_where_the_running_sum_first_exceeds_it(capacity):
    rng = np.random.default_rng(capacity)
    tree = SumTree(capacity)
    for slots, _ in random_writes(capacity, num_writes=20):
        # integers, so that running sums are exact in any order
        tree.set(slots, rng.integers(0, 4, size=slots.size).astype(np.float64))
        if tree.total == 0:
            continue
        prefixes = np.concatenate([rng.random(20) * tree.total, np.arange(tree.total)])
        found = tree.find(prefixes)
        np.testing.assert_array_equal(found, np.searchsorted(np.cumsum(tree.leaves), prefixes, side="right"))


@pytest.mark.parametrize("capacity", [5, 500, 70_000])
def test_rounding_at_the_upper_end_still_finds_a_positive_leaf(capacity):
    tree = SumTree(capacity)
    tree.set(np.arange(3), np.array([0.1, 0.2, 0.3]))
    beyond = np.array([np.nextafter(tree.total, 0), tree.total, tree.total * 1.1])
    assert tree.find(beyond).tolist() == [2, 2, 2]


def test_an_empty_leaf_is_never_found():
    tree = SumTree(100)
    rng = np.random.default_rng(0)
    held = rng.choice(100, size=7, replace=False)
    tree.set(held, rng.exponential(size=7) * 10.0 ** rng.integers(-12, 12, size=7))
    assert set(tree.find(rng.random(5_000) * tree.total)) <= set(held)


def test_finding_in_an_empty_tree_is_refused():
    tree = SumTree(4)
    with pytest.raises(ValueError, match="every leaf is 0"):
        tree.find(np.array([0.0]))


@pytest.mark.parametrize("kind", [SumTree, MinTree])
@pytest.mark.parametrize("capacity", CAPACITIES)
def test_the_tree_is_a_function_of_its_leaves(kind, capacity):
    written, rebuilt = kind(capacity), kind(capacity)
    for slots, values in random_writes(capacity):
        written.set(slots, values)
    rebuilt.set_all(written.leaves.copy())
    assert rebuilt.root == written.root
    rebuilt.check_valid()
    np.testing.assert_array_equal(written.nodes.values, rebuilt.nodes.values)


@pytest.mark.parametrize("capacity", [2**10, 2**17 - 3, 2**20])
def test_the_tree_takes_little_beyond_its_leaves(capacity):
    # nodes and running sums of 15 blocks above every 16 * 15 leaves, and the list of stale blocks
    assert SumTree(capacity).nbytes < 1.3 * capacity * 8


def test_a_block_written_many_times_is_noted_once():
    tree = SumTree(100)
    for slot in (3, 4, 5, 3, 20, 4):
        tree.set(np.array([slot]), np.array([1.0]))
    assert tree.nodes.stale[: tree.nodes.num_stale[0]].tolist() == [0, 1]
    assert tree.total == 4.0
    assert tree.nodes.num_stale[0] == 0


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_tree_without_leaves_is_refused(capacity):
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        SumTree(capacity)


@pytest.mark.parametrize("part", ["values", "running"])
def test_check_valid_notices_a_node_that_lies(part):
    tree = SumTree(300)
    tree.set(np.array([3]), np.array([2.0]))
    assert tree.total == 2.0
    nodes = getattr(tree.nodes, part)
    nodes[tree.nodes.starts[1] if part == "values" else 1] += 1.0
    with pytest.raises(AssertionError):
        tree.check_valid()


def test_check_valid_notices_a_stale_block_that_nobody_noted():
    tree = SumTree(300)
    tree.nodes.is_stale[2] = True
    with pytest.raises(AssertionError):
        tree.check_valid()
