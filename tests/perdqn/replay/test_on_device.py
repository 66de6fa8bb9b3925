"""The replay on a device beside the one on the host: the same draws, the same bits, each other's saves."""

import numpy as np
import pytest
import torch
from replays import MIXED, VECTOR, Store, assert_same_batch, random_frames, random_step, spec_of

from perdqn.replay.on_device import OnDeviceReplay
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.replay.sum_tree import SumTree
from perdqn.replay.tensor_tree import TensorSumTree
from perdqn.transition import OBS, Column

CPU = torch.device("cpu")
IMAGE = (Column(OBS, (5, 7), np.dtype(np.uint8)),)
SETTINGS = [  # num_envs, ring length, n_step, frame_stack, padding, columns
    (1, 5, 1, 1, "zero", VECTOR),
    (1, 40, 5, 4, "zero", VECTOR),
    (2, 9, 3, 2, "repeat", VECTOR),
    (3, 17, 4, 4, "zero", MIXED),
    (4, 90, 2, 3, "repeat", MIXED),
    (2, 30, 3, 4, "zero", IMAGE),
]


def pair(settings, **more):
    num_envs, length, n_step, stack, padding, columns = settings
    spec = spec_of(columns, stack, padding)
    shared = {"n_step": n_step, "gamma": 0.9, "seed": 7, **more}
    return [kind(spec, num_envs, num_envs * length, **shared) for kind in (PrioritizedReplay, OnDeviceReplay)]


def assert_same_state(host, other):
    """But for what was looked up, and for a maximum that a host has yet to seek anew."""
    assert host.priority_max == other.priority_max
    left, right = host.state_dict(), other.state_dict()
    for name in ("cache", "scaled_maximum"):
        del left[name], right[name]
    assert str(left.pop("maximum")) == str(right.pop("maximum")) or not host._measured.any()
    assert left["rng"] == right["rng"]
    assert left["counters"] == right["counters"]
    for name in ("priorities", "measured", "draws", "leaves"):
        assert torch.equal(left[name], right[name]), name


def step_both(rng, replays, known):
    """One random operation on both, compared."""
    host, other = replays
    num_envs, operation = host.rows.num_envs, rng.random()
    if operation < 0.6:
        arguments = random_step(rng, host.spec, num_envs)
        for replay in replays:
            replay.add(*arguments)
    elif operation < 0.65:
        frames = {name: c[0] for name, c in random_frames(rng, host.spec.columns, 1).items()}
        for replay in replays:
            replay.cut(num_envs - 1, frames)
    elif len(host) and operation < 0.85:
        size, beta = int(rng.integers(1, 9)), float(rng.choice([0.0, 0.4, 1.0]))
        scaled = bool(rng.random() < 0.5)
        batches = [replay.sample(size, beta, scaled) for replay in replays]
        assert_same_batch(*batches)
        known.extend(batches[0].id.tolist())
    elif known:
        ids = np.array(rng.choice(np.array([*known[-40:], -1, 10**6]), size=7))
        priorities = rng.choice([0.0, 0.3, rng.exponential()], size=7)
        for replay in replays:
            replay.update_priorities(ids, priorities)
    assert len(host) == len(other)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize(
    "more",
    [
        {"alpha": 0.0, "reward_clip": 1.0},
        {"alpha": 0.6, "priority_clip": 1.5},
        {"alpha": 0.6, "weight_normalization": "buffer"},
        {"alpha": 1.0},
        {"prioritized": False},
    ],
)
def test_any_sequence_of_operations_gives_the_bits_of_the_host_replay(settings, more):
    rng = np.random.default_rng(settings[:4])
    replays, known = pair(settings, **more), []
    for i in range(12 * settings[1] + 200):
        step_both(rng, replays, known)
        if i % 50 == 0:
            assert_same_state(*replays)
            replays[1].check_valid()
    assert replays[0].rows.heads.min() > 2 * settings[1], "the rings must have wrapped several times"


def test_rows_leaving_before_the_device_hears_of_them_take_the_maximum_along():
    host, other = replays = pair((1, 12, 1, 1, "zero", VECTOR))
    rng = np.random.default_rng(0)
    for _ in range(12):
        arguments = random_step(rng, host.spec, 1, end_probability=0.0)
        for replay in replays:
            replay.add(*arguments)
    for replay in replays:
        replay.update_priorities(np.arange(11), np.linspace(9.0, 1.0, 11))
    for _ in range(30):  # rows of ever smaller priority leave, and others enter, twice around
        arguments = random_step(rng, host.spec, 1, end_probability=0.0)
        for replay in replays:
            replay.add(*arguments)
        if rng.random() < 0.2:
            assert_same_state(*replays)
    assert_same_state(*replays)
    assert len(other._pending) == 0


def test_adopting_the_first_maximum_happens_again_once_all_measured_rows_have_left():
    replays = pair((1, 10, 1, 1, "zero", VECTOR))
    rng = np.random.default_rng(1)
    for priority in (5.0, 0.1, 3.0):
        for _ in range(20):
            arguments = random_step(rng, replays[0].spec, 1, end_probability=0.0)
            for replay in replays:
                replay.add(*arguments)
        for _ in range(2):
            batches = [replay.sample(2) for replay in replays]
            assert_same_batch(*batches)
            for replay, batch in zip(replays, batches, strict=True):
                replay.update_priorities(batch.id, torch.full((2,), priority))
            assert_same_state(*replays)


def test_changing_alpha_midway_gives_the_bits_of_the_host_replay():
    rng = np.random.default_rng(2)
    replays, known = pair(SETTINGS[2]), []
    for i in range(600):
        step_both(rng, replays, known)
        if i % 40 == 0:
            for replay in replays:
                replay.alpha = (i % 7) / 7
    assert_same_state(*replays)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("include_leaves", [True, False])
@pytest.mark.parametrize("by_parts", [True, False])
def test_each_goes_on_from_the_saves_of_the_other(first, include_leaves, by_parts):
    rng = np.random.default_rng(3)
    replays, known, store = pair(SETTINGS[3]), [], Store()
    for _ in range(200):
        step_both(rng, replays, known)
    saved = replays[first]
    fresh = pair(SETTINGS[3])[1 - first]
    if by_parts:
        fresh.load_parts(store, saved.save_parts(store))
    else:
        fresh.load_state_dict(saved.state_dict(include_leaves))
    both = [fresh, saved] if first else [saved, fresh]
    assert_same_batch(both[0].sample(8, 0.5), both[1].sample(8, 0.5))
    for _ in range(200):
        step_both(rng, both, known)
    assert_same_state(*both)


def test_saving_changes_nothing_of_what_follows():
    rng = np.random.default_rng(4)
    replays, known = pair(SETTINGS[1]), []
    for i in range(300):
        step_both(rng, replays, known)
        if i % 3 == 0:
            replays[1].state_dict()
            replays[1].get_performance_stats()
    assert_same_state(*replays)


def test_priorities_that_are_not_finite_leave_a_batch_out_where_they_cannot_be_looked_at():
    host, other = replays = pair(SETTINGS[2])
    rng = np.random.default_rng(5)
    for _ in range(20):
        arguments = random_step(rng, host.spec, 2)
        for replay in replays:
            replay.add(*arguments)
    ids = host.sample(4).id
    other.sample(4)
    with pytest.raises(ValueError, match="priorities must be finite and non-negative"):
        other.update_priorities(ids, np.array([1.0, np.nan, 1.0, 1.0]))
    for bad in (torch.nan, torch.inf, -1.0):
        other._measure(ids, torch.tensor([1.0, bad, 1.0, 1.0], dtype=torch.float64))
    assert_same_state(host, other)


def test_statistics_and_memory_are_told_as_by_the_host_replay():
    rng = np.random.default_rng(6)
    replays, known = pair(SETTINGS[4]), []
    for _ in range(300):
        step_both(rng, replays, known)
    left, right = (replay.get_performance_stats() for replay in replays)
    for stats in (left, right):
        usage = stats.pop("memory_usage")
        assert (usage["device_bytes"] > 0) == (stats is right)
        for name in ("cache_hits", "cache_misses", "cache_hit_rate"):
            del stats[name]
    assert left == right
    assert replays[0].newest_batch_stats() == replays[1].newest_batch_stats()


def test_moving_to_another_device_takes_everything_along():
    rng = np.random.default_rng(8)
    replays, known = pair(SETTINGS[3]), []
    for i in range(400):
        step_both(rng, replays, known)
        if i % 60 == 0:  # as if it came from elsewhere
            replays[1]._device = torch.device("cpu:0")
            replays[1].place(CPU)
    assert_same_state(*replays)


def test_drawing_adding_and_updating_never_ask_the_device_for_a_number(monkeypatch):
    """Such a question is what would make the host wait."""
    rng = np.random.default_rng(9)
    replays, known = pair(SETTINGS[4]), []
    for _ in range(200):
        step_both(rng, replays, known)
    other = replays[1]
    batch = other.sample(8)
    other.update_priorities(batch.id, torch.ones(8))  # from here on a row is known to be measured

    def refuse(*_):
        raise AssertionError("the host waits for the device")

    for name in ("item", "__bool__", "__int__", "__float__", "cpu", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for _ in range(5):
        other.add(*random_step(rng, other.spec, 4))
        batch = other.sample(8)
        other._measure(batch.id, torch.ones(8, dtype=torch.float64))


# -- the tree ----------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 15, 16, 17, 255, 256, 300, 5000])
def test_the_tree_sums_and_finds_as_that_of_the_host(capacity):
    rng = np.random.default_rng(capacity)
    host, other = SumTree(capacity), TensorSumTree(capacity, CPU)
    for _ in range(20):
        slots = rng.permutation(capacity)[: rng.integers(1, 40)]
        leaves = rng.exponential(size=slots.size) * rng.integers(0, 2, slots.size)
        leaves[0] += 0.1
        host.set(slots, leaves)
        other.set(torch.from_numpy(slots), torch.from_numpy(leaves))
        assert host.total == other.total
        wanted = rng.random(100) * host.total
        wanted[:3] = 0.0, np.nextafter(host.total, 0.0), host.total  # rounding may reach the total
        np.testing.assert_array_equal(other.find(torch.from_numpy(wanted)).numpy(), host.find(wanted))
        again = TensorSumTree(capacity, CPU)
        again.set_all(other.leaves)
        assert all(map(torch.equal, again._ends, other._ends))
