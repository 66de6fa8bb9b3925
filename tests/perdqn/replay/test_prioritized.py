"""The prioritized replay against an obviously right one, its sampling against the formula, its state."""

import numpy as np
import pytest
import torch
from replays import (
    MIXED,
    VECTOR,
    Store,
    assert_same,
    assert_same_batch,
    eligible_ids,
    filled,
    frozen,
    random_frames,
    random_step,
    spec_of,
)
from slow_replay import SlowReplay

from perdqn.replay import passes
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.transition import OBS

# -- against the slow replay -------------------------------------------------------------------


def assert_agrees(replay, slow):
    replay.check_valid()
    expected = slow.transitions()
    ids = np.array(sorted(expected), np.int64)
    assert len(replay) == ids.size
    newest = max(slow.rows_written) * slow.num_envs
    everything = np.arange(-3 * slow.num_envs, newest + 3 * slow.num_envs)
    np.testing.assert_array_equal(everything[replay.rows.may_start(everything)], ids)
    if not ids.size:
        return
    window = replay.rows.windows(ids)
    np.testing.assert_array_equal(window.action, [expected[i].action for i in ids])
    # float32 sums of at most 5 rewards below 10
    np.testing.assert_allclose(window.reward, [expected[i].reward for i in ids], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(window.discount, [expected[i].discount for i in ids], rtol=1e-6)
    for side, at in (("obs", ids), ("next_obs", window.next_id)):
        for name, column in replay.rows.observations(at).items():
            np.testing.assert_array_equal(column, [getattr(expected[i], side)[name] for i in ids])
    slots = replay.rows.slots(ids)
    np.testing.assert_array_equal(replay.rows.ids(slots), ids)
    priorities = np.array([slow.priorities[i] for i in ids])
    np.testing.assert_array_equal(replay._tree.leaves[slots], priorities**replay.alpha)
    np.testing.assert_array_equal(replay.rows.draws[slots], [slow.draws[i] for i in ids])
    assert replay.priority_max == slow.maximum


SETTINGS = [  # num_envs, ring length (None: the shortest), n_step, frame_stack, padding, clip, columns
    (1, None, 1, 1, "zero", None, VECTOR),
    (1, None, 5, 4, "zero", None, VECTOR),
    (2, None, 3, 2, "repeat", 1.0, VECTOR),
    (3, None, 2, 3, "repeat", None, MIXED),
    (3, 17, 4, 4, "zero", 0.5, MIXED),
    (4, 23, 5, 1, "zero", None, VECTOR),
    (2, 40, 3, 4, "repeat", None, MIXED),
    (5, 31, 1, 4, "zero", 2.0, VECTOR),
]


@pytest.mark.parametrize("end_probability", [0.05, 0.4])
@pytest.mark.parametrize(("num_envs", "length", "n_step", "stack", "padding", "clip", "columns"), SETTINGS)
def test_any_sequence_of_operations_agrees_with_whole_episodes_in_lists(
    num_envs, length, n_step, stack, padding, clip, columns, end_probability
):
    rng = np.random.default_rng([num_envs, n_step, stack, int(100 * end_probability)])
    length = length or n_step + stack + 2
    spec = spec_of(columns, stack, padding)
    shared = {"n_step": n_step, "gamma": 0.9, "priority_clip": 1.5}
    # a rest that no ring can use must not matter
    replay = PrioritizedReplay(spec, num_envs, num_envs * length + num_envs - 1, reward_clip=clip, **shared)
    slow = SlowReplay(
        num_envs, length, frame_stack=stack, stack_padding=padding, reward_clip=clip or np.inf, **shared
    )
    known = [0]  # ids ever seen, so that updates also meet dead ones
    for _ in range(5 * length):
        operation = rng.random()
        if operation < 0.7:
            step = random_step(rng, spec, num_envs, end_probability)
            replay.add(*step)
            slow.add(*step)
        elif operation < 0.75:
            env = int(rng.integers(num_envs))
            frames = {name: column[0] for name, column in random_frames(rng, columns, 1).items()}
            replay.cut(env, frames)
            slow.cut(env, frames)
        elif len(replay):
            newest = max(slow.rows_written) * num_envs
            ids = rng.choice(np.array([*known[-30:], newest, newest + num_envs, -1]), size=6)
            priorities = rng.choice([0.0, 0.3, rng.exponential()], size=6)
            if rng.random() < 0.5:
                ids = replay.sample(6, beta=0.5).id.numpy()
                slow.draws.update(ids.tolist())
            replay.update_priorities(ids, priorities)
            slow.update(ids.tolist(), priorities.tolist())
        assert_agrees(replay, slow)
        known.extend(sorted(slow.transitions()))
    assert min(slow.rows_written) > 2 * length, "the rings must have wrapped several times"


def test_cutting_before_any_step_or_after_an_end_changes_nothing():
    replay = PrioritizedReplay(spec_of(), 1, 20)
    frames = {OBS: np.ones(3, np.float32)}
    replay.cut(0, frames)
    assert len(replay.rows) == 0
    end = np.array([True])
    replay.add({OBS: np.ones((1, 3), np.float32)}, [0], [1.0], end, end, {OBS: np.ones((1, 3), np.float32)})
    replay.cut(0, frames)
    assert len(replay.rows) == 2
    assert replay.rows.windows(np.array([0])).discount == 0.0, "a termination must not become a truncation"


# -- sampling ----------------------------------------------------------------------------------


def draw_counts(replay, num_draws):
    """How often each eligible id comes in batches of one, which are independent of each other."""
    drawn = np.concatenate([replay.sample(1).id.numpy() for _ in range(num_draws)])
    return np.array([np.count_nonzero(drawn == item) for item in eligible_ids(replay)])


def chi_squared_p_value(counts, probabilities):
    from scipy.stats import chisquare

    return chisquare(counts, probabilities * counts.sum()).pvalue


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_rows_are_drawn_in_proportion_to_the_power_alpha_of_their_priority(alpha):
    replay = filled(capacity=40, alpha=alpha)
    ids = eligible_ids(replay)
    priorities = np.random.default_rng(1).exponential(size=ids.size) + 0.3
    replay.update_priorities(ids, priorities)
    powers = (priorities + replay.priority_eps) ** alpha
    # seed 0 fixed by `filled`; a right sampler fails one seed in a thousand
    assert chi_squared_p_value(draw_counts(replay, 10_000), powers / powers.sum()) > 0.001


def test_uniform_mode_draws_every_row_alike_with_weight_one_whatever_was_measured():
    replay = filled(capacity=40, prioritized=False)
    counts = draw_counts(replay, 10_000)
    assert chi_squared_p_value(counts, np.full(counts.size, 1 / counts.size)) > 0.001
    assert (replay.sample(64, beta=1.0).is_weight == 1.0).all()
    assert replay.priorities_updated == 0


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_a_batch_takes_one_row_from_each_equal_share_of_the_priority_mass(batch_size):
    replay = filled(capacity=60)
    slots = replay.rows.slots(replay.sample(batch_size).id.numpy())
    ends = np.cumsum(replay._tree.leaves)
    begins = ends - replay._tree.leaves
    share = ends[-1] / batch_size
    tolerance = 1e-12 * ends[-1]  # prefix sums added in another order
    stratum = np.arange(batch_size)
    assert (begins[slots] <= (stratum + 1) * share + tolerance).all()
    assert (ends[slots] >= stratum * share - tolerance).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("normalization", ["batch", "buffer"])
def test_weights_follow_the_formula_of_the_paper(normalization, beta):
    replay = filled(capacity=60, weight_normalization=normalization)
    batch = replay.sample(16, beta)
    probability = replay._tree.leaves / replay._tree.leaves.sum()
    weights = (len(replay) * probability[replay._tree.leaves > 0]) ** -beta
    drawn = (len(replay) * probability[replay.rows.slots(batch.id.numpy())]) ** -beta
    largest = drawn.max() if normalization == "batch" else weights.max()
    np.testing.assert_allclose(batch.is_weight, drawn / largest, rtol=1e-6)  # float32
    assert batch.is_weight.dtype == torch.float32


def test_buffer_weights_never_exceed_one_while_rows_come_and_go():
    rng = np.random.default_rng(3)
    replay = filled(capacity=40, weight_normalization="buffer")
    for _ in range(300):
        replay.add(*random_step(rng, replay.spec, 2))
        batch = replay.sample(8)
        assert batch.is_weight.max() <= 1.0
        replay.update_priorities(batch.id, rng.exponential(size=8))
        replay.check_valid()


def test_a_batch_carries_the_transitions_its_ids_name():
    spec = spec_of(MIXED, frame_stack=2)
    replay = filled(spec=spec, n_step=3)
    batch = replay.sample(32, 0.5)
    window = replay.rows.windows(batch.id.numpy())
    assert batch.action.dtype == torch.int64
    np.testing.assert_array_equal(batch.action, window.action)
    np.testing.assert_array_equal(batch.reward, window.reward)
    np.testing.assert_array_equal(batch.discount, window.discount)
    for name, column in replay.rows.observations(window.next_id).items():
        np.testing.assert_array_equal(batch.next_obs[name], column)
        assert batch.obs[name].numpy().dtype == column.dtype
        assert batch.obs[name].shape == column.shape


def test_a_batch_is_not_touched_by_later_steps():
    replay = filled(capacity=40)
    rng = np.random.default_rng(0)
    batch = replay.sample(32)
    before = frozen(vars(batch))
    for _ in range(100):
        replay.add(*random_step(rng, replay.spec, 2))
    assert_same(vars(batch), before)


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan")])
def test_beta_outside_zero_to_one_is_refused(beta):
    with pytest.raises(ValueError, match=r"beta must lie in \[0, 1\]"):
        filled().sample(4, beta)


def test_sampling_before_a_transition_is_complete_is_refused():
    replay = PrioritizedReplay(spec_of(), 1, 20, n_step=3)
    frames, flag = {OBS: np.zeros((1, 3), np.float32)}, np.array([False])
    for _ in range(3):
        with pytest.raises(ValueError, match="no complete transition"):
            replay.sample(1)
        replay.add(frames, np.array([0]), np.array([0.0]), flag, flag)
    replay.add(frames, np.array([0]), np.array([0.0]), flag, flag)
    assert replay.sample(1).id.tolist() == [0]


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ValueError, match="batch_size"):
        filled().sample(0)


# -- what may come in --------------------------------------------------------------------------

FRAMES = np.zeros((2, 3), np.float32)
VALID = {
    "obs": {OBS: FRAMES},
    "action": np.array([0, 4]),
    "reward": np.array([0.5, -1.0]),
    "terminated": np.array([False, True]),
    "truncated": np.array([False, False]),
    "final_obs": {OBS: FRAMES},
}
WRONG_STEPS = {
    "obs as float64": {"obs": {OBS: FRAMES.astype(np.float64)}},
    "obs of another shape": {"obs": {OBS: FRAMES[:, :2]}},
    "obs of another number of environments": {"obs": {OBS: FRAMES[:1]}},
    "obs with NaN": {"obs": {OBS: np.full_like(FRAMES, np.nan)}},
    "obs with infinity": {"obs": {OBS: np.full_like(FRAMES, np.inf)}},
    "obs under another name": {"obs": {"image": FRAMES}},
    "obs as a list": {"obs": {OBS: FRAMES.tolist()}},
    "no final observation": {"final_obs": None},
    "final observation with NaN": {"final_obs": {OBS: np.full_like(FRAMES, np.nan)}},
    "final observation of another shape": {"final_obs": {OBS: FRAMES[:, :2]}},
    "final observation of fewer environments": {"final_obs": {OBS: FRAMES[:1]}},
    "final observation under another name": {"final_obs": {"image": FRAMES}},
    "action below 0": {"action": np.array([0, -1])},
    "action too large": {"action": np.array([0, 5])},
    "action as float": {"action": np.array([0.0, 1.0])},
    "one action for two environments": {"action": np.array([0])},
    "reward NaN": {"reward": np.array([0.0, np.nan])},
    "reward infinite": {"reward": np.array([0.0, np.inf])},
    "reward beyond float32": {"reward": np.array([0.0, 1e300])},
    "reward complex": {"reward": np.array([0.0, 1j])},
    "reward as text": {"reward": np.array(["0", "1"])},
    "terminated as float": {"terminated": np.array([0.0, 1.0])},
    "truncated as a list of ints": {"truncated": [0, 1]},
    "truncated of another shape": {"truncated": np.array([[False, False]])},
}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble, np.int8, np.uint64, np.bool_])
def test_rewards_of_any_real_dtype_are_taken(dtype):
    replay = filled()
    replay.add(**{**VALID, "reward": np.ones(2, dtype)})
    replay.check_valid()


@pytest.mark.parametrize("wrong", WRONG_STEPS.values(), ids=WRONG_STEPS.keys())
def test_a_wrong_step_is_refused_and_changes_nothing(wrong):
    replay = filled()
    before = frozen(replay.state_dict())
    with pytest.raises(ValueError):
        replay.add(**{**VALID, **wrong})
    assert_same(replay.state_dict(), before)
    replay.add(**VALID)
    replay.check_valid()


WRONG_PRIORITIES = {
    "NaN": ([0, 1], [1.0, np.nan]),
    "infinite": ([0, 1], [1.0, np.inf]),
    "negative": ([0, 1], [1.0, -1e-9]),
    "fewer than ids": ([0, 1], [1.0]),
    "a column": ([0, 1], [[1.0], [1.0]]),
    "float ids": ([0.0, 1.0], [1.0, 1.0]),
    "a single id": (0, 1.0),
    "text": ([0, 1], ["a", "b"]),
}


@pytest.mark.parametrize("prioritized", [True, False])
@pytest.mark.parametrize(("ids", "priorities"), WRONG_PRIORITIES.values(), ids=WRONG_PRIORITIES.keys())
def test_wrong_priorities_are_refused_and_change_nothing(ids, priorities, prioritized):
    replay = filled(prioritized=prioritized)
    before = frozen(replay.state_dict())
    with pytest.raises(ValueError):
        replay.update_priorities(np.array(ids), np.array(priorities))
    assert_same(replay.state_dict(), before)


def test_a_wrong_final_observation_of_a_cut_is_refused_and_changes_nothing():
    replay = filled()
    before = frozen(replay.state_dict())
    for frame in (np.full(3, np.nan, np.float32), np.zeros(2, np.float32), np.zeros(3)):
        with pytest.raises(ValueError):
            replay.cut(0, {OBS: frame})
    assert_same(replay.state_dict(), before)


@pytest.mark.parametrize(
    "setting",
    [
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"alpha": float("nan")},
        {"priority_eps": 0.0},
        {"priority_clip": 0.0},
        {"weight_normalization": "max"},
        {"capacity": 3},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_refused(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PrioritizedReplay(spec_of(), **setting)


# -- state -------------------------------------------------------------------------------------


def restored(replay, num_envs=2, include_leaves=True, **settings):
    other = PrioritizedReplay(replay.spec, num_envs, **{"capacity": 200, "n_step": 2, "seed": 99, **settings})
    other.load_state_dict(frozen(replay.state_dict(include_leaves)))
    return other


@pytest.mark.parametrize("num_steps", [0, 1, 30, 300])
@pytest.mark.parametrize("include_leaves", [True, False])
@pytest.mark.parametrize("normalization", ["batch", "buffer"])
def test_a_restored_replay_draws_the_same_batches_for_ever(num_steps, include_leaves, normalization):
    spec = spec_of(MIXED, frame_stack=2)
    original = filled(num_steps, spec=spec, weight_normalization=normalization)
    copy = restored(original, include_leaves=include_leaves, weight_normalization=normalization)
    streams = [np.random.default_rng(7) for _ in range(2)]
    for _ in range(150):
        batches = []
        for replay, rng in zip((original, copy), streams, strict=True):
            replay.add(*random_step(rng, spec, 2))
            if len(replay):
                batches.append(replay.sample(8, 0.5))
                replay.update_priorities(batches[-1].id, rng.exponential(size=8))
        if batches:
            assert_same_batch(*batches)
    assert_same(original.state_dict(), copy.state_dict()) if include_leaves else None
    copy.check_valid()


def test_saving_and_restoring_disturbs_nothing():
    replays = [filled(), filled()]
    replays[0].state_dict()
    replays[0].get_performance_stats()
    replays[0].release_memory()
    assert_same_batch(*(replay.sample(16) for replay in replays))


def test_a_replay_saved_before_draws_were_counted_begins_at_none():
    replay = filled()
    replay.sample(64)
    state = frozen(replay.state_dict())
    del state["draws"]
    other = PrioritizedReplay(replay.spec, 2, 200, n_step=2)
    other.load_state_dict(state)
    assert not other.rows.draws.any()
    assert_same_batch(replay.sample(8), other.sample(8))


def test_parts_saved_before_draws_were_counted_are_read(monkeypatch):
    replay, store = filled(), Store()
    replay.sample(64)
    changing = replay._changing()
    del changing["draws"]
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_changing", lambda: dict(changing))
        entry = replay.save_parts(store)
    del entry["has_draws"]
    other = PrioritizedReplay(replay.spec, 2, 200, n_step=2)
    other.load_parts(store, entry)
    assert not other.rows.draws.any()
    assert_same_batch(replay.sample(8), other.sample(8))


def test_a_state_of_another_shape_is_refused_and_changes_nothing():
    replay = filled()
    before = frozen(replay.state_dict())
    for other in (filled(num_envs=3), filled(capacity=100), filled(spec=spec_of(MIXED))):
        with pytest.raises(ValueError, match="saved replay"):
            replay.load_state_dict(other.state_dict())
        assert_same(replay.state_dict(), before)


@pytest.mark.parametrize("changed", [{"n_step": 4}, {"n_step": 1}, {"frame_stack": 3}], ids=str)
def test_a_replay_restored_with_other_windows_knows_anew_which_rows_may_start(changed):
    replay = filled()
    spec = spec_of(frame_stack=changed.get("frame_stack", 1))
    other = PrioritizedReplay(spec, 2, 200, n_step=changed.get("n_step", 2))
    other.load_state_dict(replay.state_dict())
    other.check_valid()
    slots = other.rows.slots(np.intersect1d(eligible_ids(replay), eligible_ids(other)))
    np.testing.assert_array_equal(other._tree.leaves[slots], replay._tree.leaves[slots])


def test_the_state_holds_nothing_but_tensors_and_plain_values(tmp_path):
    state = filled().state_dict()
    torch.save(state, tmp_path / "replay.pt")
    assert_same(torch.load(tmp_path / "replay.pt", weights_only=True), state)


# -- the cache of p^alpha ----------------------------------------------------------------------


def hits_and_misses(replay):
    stats = replay.get_performance_stats()
    return np.array([stats["cache_hits"], stats["cache_misses"]])


def test_drawing_from_warm_leaves_hits_once_per_row_drawn():
    replay = filled()
    before = hits_and_misses(replay)
    for _ in range(10):
        replay.sample(32)
    np.testing.assert_array_equal(hits_and_misses(replay) - before, [320, 0])


def test_changing_alpha_misses_once_for_every_stored_row():
    replay = filled()
    before = hits_and_misses(replay)
    replay.alpha = 0.3
    replay.sample(32)
    np.testing.assert_array_equal(hits_and_misses(replay) - before, [32, len(replay)])
    replay.sample(32)
    np.testing.assert_array_equal(hits_and_misses(replay) - before, [64, len(replay)])
    replay.check_valid()


def test_setting_alpha_to_what_it_is_keeps_the_leaves_warm():
    replay = filled()
    before = hits_and_misses(replay)
    replay.alpha = 0.6
    replay.sample(32)
    np.testing.assert_array_equal(hits_and_misses(replay) - before, [32, 0])


@pytest.mark.parametrize("include_leaves", [True, False])
def test_a_restored_replay_is_warm_with_leaves_and_cold_without(include_leaves):
    replay = filled()
    copy = restored(replay, include_leaves=include_leaves)
    before = hits_and_misses(copy)
    copy.sample(32)
    np.testing.assert_array_equal(hits_and_misses(copy) - before, [32, 0 if include_leaves else len(copy)])


def test_a_replay_restored_under_another_alpha_is_cold_and_draws_by_the_new_one():
    replay = filled()
    copy = restored(replay, alpha=1.0)
    copy.sample(1)
    assert hits_and_misses(copy)[1] - hits_and_misses(replay)[1] == len(copy)
    assert copy.alpha == 1.0
    copy.check_valid()


def test_the_hit_rate_is_hits_over_lookups():
    replay = filled()
    replay.sample(32)
    hits, misses = hits_and_misses(replay)
    assert replay.get_performance_stats()["cache_hit_rate"] == hits / (hits + misses)
    assert hits / (hits + misses) > 0.9
    fresh = PrioritizedReplay(spec_of())
    assert fresh.get_performance_stats()["cache_hit_rate"] == 0.0


def test_an_alpha_out_of_range_is_refused_and_keeps_the_old_one():
    replay = filled()
    with pytest.raises(ValueError, match="alpha"):
        replay.alpha = 2.0
    assert replay.alpha == 0.6


# -- statistics --------------------------------------------------------------------------------


def test_performance_stats_count_what_happened():
    replay = filled(num_steps=300)
    for _ in range(3):
        batch = replay.sample(16)
        replay.update_priorities(batch.id, np.ones(16))
    stats = replay.get_performance_stats()
    assert stats["samples_drawn"] == 48
    assert stats["transitions_added"] == 600
    assert stats["priorities_updated"] == len(replay) + 48
    assert (stats["size"], stats["rows"], stats["capacity"]) == (len(replay), 200, 200)
    assert stats["memory_usage"] == replay.get_memory_usage() or stats["memory_usage"]["reserved_bytes"] > 0


def test_equal_priorities_have_full_entropy_and_sample_size():
    replay = filled()
    replay.update_priorities(eligible_ids(replay), np.ones(len(replay)))
    stats = replay.get_performance_stats()
    assert stats["priority_entropy"] == pytest.approx(1.0)
    assert stats["effective_sample_size"] == pytest.approx(len(replay))
    assert stats["never_replayed_fraction"] == 0.0


def test_one_dominant_priority_leaves_an_effective_sample_of_one():
    replay = filled(alpha=1.0)
    priorities = np.zeros(len(replay))
    priorities[3] = 1e9
    replay.update_priorities(eligible_ids(replay), priorities)
    stats = replay.get_performance_stats()
    assert stats["effective_sample_size"] == pytest.approx(1.0)
    assert stats["priority_entropy"] == pytest.approx(0.0, abs=1e-6)


def test_statistics_of_an_empty_replay_are_finite():
    stats = PrioritizedReplay(spec_of()).get_performance_stats()
    assert stats["size"] == stats["samples_drawn"] == 0
    assert all(np.isfinite(value) for value in stats.values() if isinstance(value, (int, float)))


def test_figures_of_the_newest_batch_follow_their_definitions():
    replay = filled(num_envs=1)
    batch = replay.sample(16, 1.0)
    figures = replay.newest_batch_stats()
    weights = batch.is_weight.double().numpy()
    assert figures["is_weight_mean"] == pytest.approx(weights.mean())
    assert figures["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    assert figures["age_mean"] == pytest.approx((replay.rows.heads[0] - 1 - batch.id.numpy()).mean())


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_the_maximum_is_that_of_all_rows_alive_however_it_is_sought(monkeypatch, block):
    monkeypatch.setattr(passes, "BLOCK", block)
    for kernel in (passes.seek_maximum, passes.measure, passes._largest):
        monkeypatch.setattr(passes, kernel.__name__, kernel.py_func)
    replay, rng = filled(capacity=38, num_steps=20), np.random.default_rng(block)
    for _ in range(300):
        if rng.random() < 0.4:
            replay.add(*random_step(rng, replay.spec, 2))
        else:
            batch = replay.sample(4)
            replay.update_priorities(batch.id, rng.choice([0.5, 1.0, 2.0, rng.exponential()], size=4))
        measured = replay._priorities[replay._measured]
        assert replay.priority_max == (measured.max() if measured.size else 1.0)
        assert not measured.size or replay._num_at_maximum == np.count_nonzero(measured == measured.max())
        replay.check_valid()
