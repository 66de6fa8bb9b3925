"""Environments side by side: episodes, stacks, failures, and their exact restoration."""

import warnings

import numpy as np
import pytest
import torch

from perdqn.acting import environment
from perdqn.acting.environment import describe
from perdqn.acting.exactness import self_test
from perdqn.acting.vector import EnvironmentFailure, Environments
from perdqn.config import EnvConfig
from perdqn.transition import OBS


def seed_of(env, episode):
    return 100 * env + episode


def opened(env_id="toys.Counting", num_envs=2, kwargs=None, **settings):
    config = EnvConfig(id=env_id, kwargs=kwargs or {}, **settings)
    return Environments(config, describe(config), num_envs, seed_of)


@pytest.fixture
def counting():
    environments = opened(num_envs=3, kwargs={"length": 3, "spread": 100})  # 3, 3 + 0, ... by seed % 100
    yield environments
    environments.close()


def act(environments, *actions):
    return environments.step(np.array(actions, np.int64))


# -- episodes ----------------------------------------------------------------------------------


def test_every_episode_begins_with_the_seed_of_its_environment_and_number(counting):
    counting.reset()
    np.testing.assert_array_equal(counting.obs[OBS][:, 0], [0, 100, 200])
    counting.reset(np.array([True, False, True]))
    np.testing.assert_array_equal(counting.obs[OBS][:, 0], [1, 100, 201])
    counting.reset(np.array([False, True, False]), episode=[7, 7, 7])
    np.testing.assert_array_equal(counting.obs[OBS][:, 0], [1, 107, 201])
    np.testing.assert_array_equal(counting.episode, [1, 7, 1])


def test_a_reset_of_some_leaves_the_others_where_they_are(counting):
    counting.reset()
    act(counting, 1, 2, 0)
    before = counting.frames[OBS].copy()
    counting.reset(np.array([False, True, False]))
    np.testing.assert_array_equal(counting.frames[OBS][[0, 2]], before[[0, 2]])
    step = act(counting, 0, 0, 0)
    np.testing.assert_array_equal(counting.frames[OBS][:, 1], [2, 1, 2])
    np.testing.assert_array_equal(step.reward, [2, 1, 2])


@pytest.mark.parametrize("ending", ["terminated", "truncated", "both"])
def test_the_end_shows_the_final_observation_and_how_it_came(ending):
    environments = opened(kwargs={"length": 2, "ending": ending})
    environments.reset()
    assert not np.any(act(environments, 0, 0)[1:])
    step = act(environments, 0, 1)
    np.testing.assert_array_equal(environments.frames[OBS][:, 1], [2, 2])
    assert step.terminated.tolist() == [ending != "truncated"] * 2
    assert step.truncated.tolist() == [ending != "terminated"] * 2
    assert step.terminated.dtype == step.truncated.dtype == np.bool_
    np.testing.assert_array_equal(step.reward, [2, 12])
    environments.close()


def test_actions_are_counted_from_zero_inside():
    environments = opened(kwargs={"action_start": 2})
    environments.reset()
    np.testing.assert_array_equal(act(environments, 0, 2).reward, [21, 41])
    environments.close()


@pytest.mark.parametrize(("padding", "expected"), [("zero", [0, 0, 1, 2]), ("repeat", [1, 1, 1, 2])])
def test_a_stack_is_padded_at_reset_and_shifted_by_each_step(padding, expected):
    environments = opened(kwargs={}, frame_stack=4, stack_padding=padding)
    environments.reset(episode=[1, 1])
    first = environments.obs[OBS][0]
    np.testing.assert_array_equal(first[-1], environments.frames[OBS][0])
    np.testing.assert_array_equal(first[:-1], np.zeros((3, 3)) if padding == "zero" else first[[-1] * 3])
    act(environments, 0, 0)
    act(environments, 0, 0)
    newest = environments.obs[OBS][0, :, 1]
    np.testing.assert_array_equal(newest, [0, 0, 1, 2])
    assert (environments.obs[OBS][0, :, 0] == 1).sum() == (3 if padding == "zero" else 4)
    environments.close()


def test_a_stack_holds_nothing_of_the_episode_before():
    environments = opened(frame_stack=3, kwargs={"length": 4})
    environments.reset()
    act(environments, 0, 0)
    environments.reset(np.array([False, True]))
    np.testing.assert_array_equal(environments.obs[OBS][1, :, 0], [0, 0, 101])
    np.testing.assert_array_equal(environments.obs[OBS][0, :, 1], [0, 0, 1])
    environments.close()


@pytest.mark.parametrize(
    ("env_id", "vectorization"),
    [
        ("toys.Counting", "sync"),
        ("toys.Counting", "async"),
        ("toys.Faulty", "sync"),
        ("ALE/Pong-v5", "native"),
    ],
)
def test_frames_handed_out_are_never_written_again(env_id, vectorization):
    environments = opened(env_id, vectorization=vectorization)
    handed_out = []
    environments.reset()
    for now in range(8):
        handed_out.append((environments.frames[OBS], environments.frames[OBS].copy()))
        step = act(environments, 1, 1)
        handed_out.append((step.reward, step.reward.copy()))
        if now == 2:
            environments.reset(np.array([False, True]))
        if (step.terminated | step.truncated).any():
            environments.reset(step.terminated | step.truncated)
    for array, copy in handed_out:
        np.testing.assert_array_equal(array, copy)
    environments.close()


def test_dict_and_discrete_observations_come_as_columns():
    environments = opened("toys.Mapping", frame_stack=2)
    environments.reset()
    act(environments, 0, 0)
    assert environments.obs["picture"].shape == (2, 2, 2, 2, 1)
    np.testing.assert_array_equal(environments.obs["position"], [[2, 3], [2, 3]])
    environments.close()
    environments = opened("toys.Stepping")
    environments.reset()
    np.testing.assert_array_equal(environments.obs[OBS], [3, 3])
    environments.close()


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectorization", "what"),
    [("sync", "raise"), ("sync", "nan"), ("sync", "torn"), ("sync", "nan reward"), ("async", "torn")],
)
def test_a_failure_is_reported_and_cuts_that_episode_alone(vectorization, what):
    kwargs = {"faults": [[100, 2, what]]}
    environments = opened("toys.Faulty", kwargs=kwargs, vectorization=vectorization)
    environments.reset()
    act(environments, 1, 1)
    shown = environments.frames[OBS][1].copy()
    with pytest.warns(RuntimeWarning, match=r"toys\.Faulty, environment 1, episode seed 100, step 2: "):
        step = act(environments, 1, 1)
    assert step.truncated.tolist() == [False, True]
    assert not step.terminated.any()
    np.testing.assert_array_equal(step.reward, [12, 0])
    np.testing.assert_array_equal(environments.frames[OBS][1], shown)
    environments.reset(step.truncated)
    act(environments, 0, 0)
    np.testing.assert_array_equal(environments.frames[OBS][:, :2], [[0, 3], [101, 1]])
    environments.close()


def test_a_failing_reset_is_reported_and_tried_on_a_new_environment():
    environments = opened("toys.Faulty", kwargs={"faults": [[1, 0, "raise if used"]]})
    environments.reset()
    with pytest.warns(RuntimeWarning, match="environment 0, episode seed 1, step 0: reset raised"):
        environments.reset(np.array([True, False]))
    np.testing.assert_array_equal(environments.frames[OBS][:, 0], [1, 100])
    assert environments.num_failures == 1
    environments.close()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_max_restarts_bounds_the_failures(vectorization):
    kwargs = {"faults": [[episode, 1, "raise"] for episode in range(9)]}
    environments = opened("toys.Faulty", 1, kwargs, max_restarts=2, vectorization=vectorization)
    for episode in range(2):
        environments.reset()
        with pytest.warns(RuntimeWarning, match=f"episode seed {episode}, step 1"):
            act(environments, 0)
    environments.reset()
    with pytest.raises(EnvironmentFailure, match=r"model\.env\.max_restarts is 2"):
        act(environments, 0)
    environments.close()


def test_a_whole_vector_failing_is_rebuilt_and_every_episode_cut(monkeypatch):
    environments = opened(kwargs={"length": 9}, frame_stack=2)
    environments.reset()
    act(environments, 0, 0)
    shown = environments.obs[OBS].copy()

    def fail(actions):
        raise BrokenPipeError("a worker died")

    monkeypatch.setattr(environments._vector, "step", fail)
    with pytest.warns(RuntimeWarning, match="the whole vector failed: BrokenPipeError"):
        step = act(environments, 0, 0)
    assert step.truncated.all()
    assert not step.terminated.any()
    np.testing.assert_array_equal(environments.obs[OBS], shown)
    environments.reset()
    act(environments, 0, 0)
    np.testing.assert_array_equal(environments.frames[OBS][:, :2], [[1, 1], [101, 1]])
    environments.close()


def test_a_killed_worker_process_costs_the_episodes_not_the_run():
    environments = opened(vectorization="async")
    environments.reset()
    worker = environments._vector.processes[1]
    worker.kill()
    worker.join()
    with pytest.warns(RuntimeWarning, match="the whole vector failed"):
        step = act(environments, 0, 0)
    assert step.truncated.all()
    environments.reset()
    np.testing.assert_array_equal(environments.frames[OBS][:, 0], [1, 101])
    environments.close()


# -- restoration -------------------------------------------------------------------------------


def play(environments, rng, num_steps):
    """Random actions; resets what has ended. Returns everything that was seen."""
    seen = []
    for _ in range(num_steps):
        num_actions = environments.spec.num_actions
        step = environments.step(rng.integers(num_actions, size=environments.num_envs))
        seen.append((*step, *(column.copy() for column in environments.obs.values())))
        ended = step.terminated | step.truncated
        if ended.any():
            environments.reset(ended)
            seen.append(tuple(column.copy() for column in environments.obs.values()))
    return seen


def assert_continues_identically(config, num_envs, num_before, num_after):
    spec = describe(config)
    original, restored = (Environments(config, spec, num_envs, seed_of) for _ in range(2))
    original.reset()
    play(original, np.random.default_rng(0), num_before)
    lost = restored.load_state_dict(original.state_dict())
    assert not lost.any(), f"lost episodes: {lost}"
    for name, column in original.obs.items():
        np.testing.assert_array_equal(restored.obs[name], column)
    np.testing.assert_array_equal(restored.episode, original.episode)
    streams = [play(e, np.random.default_rng(1), num_after) for e in (original, restored)]
    assert len(streams[0]) == len(streams[1])
    for expected, shown in zip(*streams, strict=True):
        for left, right in zip(expected, shown, strict=True):
            np.testing.assert_array_equal(left, right)
    assert torch.equal(original.state_dict()["actions"][0], restored.state_dict()["actions"][0])
    original.close()
    restored.close()


@pytest.mark.parametrize("num_before", [0, 1, 23, 60])
@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("toys.Counting", {"kwargs": {"length": 3, "spread": 7}, "frame_stack": 3}),
        ("toys.Mapping", {"kwargs": {"length": 4, "spread": 5}, "frame_stack": 2, "stack_padding": "repeat"}),
        ("CartPole-v1", {"frame_stack": 2}),
        ("Acrobot-v1", {}),
        ("LunarLander-v3", {}),
        ("MinAtar/Breakout-v0", {}),
    ],
)
def test_a_restored_environment_plays_on_bit_for_bit(env_id, settings, num_before):
    assert_continues_identically(EnvConfig(id=env_id, **settings), 3, num_before, 60)


def test_a_restored_atari_vector_plays_on_bit_for_bit_sticky_actions_included():
    config = EnvConfig(id="ALE/Breakout-v5", kwargs={"repeat_action_probability": 0.25}, frame_stack=2)
    assert_continues_identically(config, 2, 200, 60)


def test_restored_worker_processes_play_on_bit_for_bit():
    assert_continues_identically(EnvConfig(id="CartPole-v1", vectorization="async"), 2, 37, 30)


@pytest.mark.parametrize("waits", range(5))
def test_environments_arrive_together_however_long_one_waits_for_the_other(waits):
    """Episode 4 of environment 0 takes 8 steps; episode 5 of environment 1 takes 4, also while it waits."""
    kwargs = {"length": 4, "spread": 7}
    original, restored = (opened(kwargs=kwargs) for _ in range(2))
    original.reset(episode=[4, 5])
    for now in range(4):
        if now == waits:
            original.reset(np.array([False, True]), episode=[4, 5])
        if act(original, 1, 2).terminated[1]:
            original.reset(np.array([False, True]), episode=[4, 5])
    if waits == 4:
        original.reset(np.array([False, True]), episode=[4, 5])
    assert not restored.load_state_dict(original.state_dict()).any()
    assert str(restored.state_dict()["actions"]) == str(original.state_dict()["actions"])
    np.testing.assert_array_equal(restored.frames[OBS], original.frames[OBS])
    for environments in (original, restored):
        act(environments, 1, 1)
    np.testing.assert_array_equal(restored.frames[OBS], original.frames[OBS])
    original.close()
    restored.close()


def test_an_episode_saved_after_its_end_counts_as_lost():
    original, restored = (opened(kwargs={"length": 3, "spread": 100}) for _ in range(2))
    original.reset(episode=[0, 1])
    for _ in range(3):
        act(original, 0, 0)
    assert restored.load_state_dict(original.state_dict()).tolist() == [True, False]
    original.close()
    restored.close()


def test_failures_before_the_save_still_count_after_it():
    original, restored = (opened("toys.Faulty", 1, {"faults": [[0, 1, "raise"]]}) for _ in range(2))
    original.reset()
    with pytest.warns(RuntimeWarning, match="step 1"):
        act(original, 0)
    original.reset()
    restored.load_state_dict(original.state_dict())
    assert restored.num_failures == original.num_failures == 1
    original.close()
    restored.close()


def test_an_episode_that_cannot_be_restored_is_named():
    environments = opened("toys.Leaky", kwargs={"length": 4, "spread": 3})
    environments.reset()
    play(environments, np.random.default_rng(0), 13)
    state = environments.state_dict()
    fresh = opened("toys.Leaky", kwargs={"length": 4, "spread": 3})
    assert fresh.load_state_dict(state).all()
    environments.close()
    fresh.close()


def test_another_number_of_environments_is_refused():
    environments, other = opened(num_envs=2), opened(num_envs=3)
    environments.reset()
    with pytest.raises(ValueError, match=r"saved with model\.env\.num_envs 2, now 3"):
        other.load_state_dict(environments.state_dict())
    environments.close()
    other.close()


# -- the self-test -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "num_episodes"),
    [
        ("toys.Counting", 20),
        ("toys.Mapping", 20),
        ("CartPole-v1", 100),
        ("Acrobot-v1", 10),
        ("LunarLander-v3", 20),
        ("MinAtar/Breakout-v0", 100),
        ("ALE/Breakout-v5", 1),
    ],
)
def test_environments_that_can_be_restored_pass_the_self_test(env_id, num_episodes):
    config = EnvConfig(id=env_id)
    assert str(self_test(config, describe(config), num_episodes=num_episodes)) == "bit-exact"


def test_a_leak_through_the_reset_fails_the_self_test_by_name():
    config = EnvConfig(id="toys.Leaky")
    assert str(self_test(config, describe(config))) == (
        "not reproducible: toys.Leaky begins differently from the same seed: "
        "its reset leaves something behind"
    )


def test_an_episode_that_begins_as_its_seed_says_but_plays_on_by_chance_is_exact_at_its_boundary():
    config = EnvConfig(id="toys.Noisy")
    assert str(self_test(config, describe(config), num_episodes=3)) == (
        "episode-boundary: toys.Noisy plays on differently after 1 steps from the same seed: "
        "it draws from what no seed sets"
    )


def test_the_self_test_wears_an_environment_for_two_episode_ends():
    config = EnvConfig(id="toys.LateLeak", kwargs={"num_ends": 2})
    assert "begins differently" in self_test(config, describe(config), num_episodes=1).reason
    config = EnvConfig(id="toys.LateLeak", kwargs={"num_ends": 3})
    assert self_test(config, describe(config), num_episodes=1).level == "bit-exact"


def test_the_self_test_looks_at_fifty_steps_of_an_episode():
    late = {"length": 60, "leaks_at": 50}
    config = EnvConfig(id="toys.LateLeak", kwargs=late)
    assert "after 50 steps" in self_test(config, describe(config), num_episodes=1).reason
    config = EnvConfig(id="toys.LateLeak", kwargs={**late, "leaks_at": 51})
    assert self_test(config, describe(config), num_episodes=1).level == "bit-exact"


@pytest.mark.parametrize("seed", [0, 1_000, 2_000])
def test_minatar_as_shipped_fails_the_self_test(seed, monkeypatch):
    monkeypatch.setattr(environment, "StickyActionReset", lambda env: env)
    config = EnvConfig(id="MinAtar/Breakout-v0")
    level, reason = self_test(config, describe(config), seed)
    assert level == "episode-boundary"
    assert "MinAtar/Breakout-v0 plays on differently" in reason
    assert "its reset leaves something" in reason


def test_the_self_test_warns_of_nothing():
    config = EnvConfig(id="toys.Counting")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert self_test(config, describe(config), num_episodes=3).level == "bit-exact"
