"""Episodes, their statistics and their independence of slots."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from perdqn import evaluation
from perdqn.acting.environment import describe
from perdqn.config import EnvConfig
from perdqn.evaluation import (
    EpisodeIndex,
    EpisodeStatistics,
    RecentEpisodes,
    bootstrap_interval,
    interquartile_mean,
    make_environments,
    play,
)


class Countdown:
    """Episodes whose length is seed % 7 + 1; each step pays the action plus one.

    Stands in for `perdqn.acting.vector.Environments`.
    """

    def __init__(self, config, spec, num_envs, seed_of):
        self.spec, self.num_envs, self.seed_of = spec, num_envs, seed_of
        self.left = np.zeros(num_envs, dtype=int)

    def reset(self, mask=None, episode=None):
        for env in range(self.num_envs) if mask is None else np.flatnonzero(mask):
            self.left[env] = self.seed_of(env, episode[env]) % 7 + 1

    @property
    def obs(self):
        return {"obs": self.left.astype(np.float32)[:, None]}

    def step(self, actions):
        assert (self.left > 0).all(), "an ended episode was stepped"
        self.left -= 1
        ended = self.left == 0
        return SimpleNamespace(reward=actions + 1.0, terminated=ended, truncated=np.zeros_like(ended))


@pytest.fixture
def countdown(monkeypatch):
    monkeypatch.setattr(evaluation, "Environments", Countdown)
    monkeypatch.setattr(evaluation, "episode_seed", lambda run_seed, phase, env, episode: run_seed + episode)


def slots(num_envs, run_seed=0):
    return make_environments(EnvConfig(), SimpleNamespace(num_actions=2), num_envs, run_seed, "validate")


def always_zero(obs):
    return np.zeros(len(obs["obs"]), dtype=np.int64)


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        ([5.0], [5.0]),
        ([1.0, 2.0, 9.0], [1.0, 2.0, 9.0]),
        ([100.0, 2.0, 3.0, -50.0], [2.0, 3.0]),
        ([7.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0], [3.0, 4.0, 5.0, 6.0]),
        ([0.0, 0.0, 1.0, 2.0, 3.0, 90.0], [0.0, 1.0, 2.0, 3.0]),
    ],
)
def test_interquartile_mean_leaves_out_a_quarter_of_the_episodes_at_either_end(values, middle):
    assert interquartile_mean(np.array(values)) == pytest.approx(np.mean(middle))


def test_interval_covers_the_mean_about_as_often_as_it_says():
    # 400 samples of 40 normal values: at 95 % nominal (percentile bootstrap: about 94 %) fewer than 350 hits
    # has a probability below 1e-7
    rng = np.random.default_rng(7)
    intervals = [bootstrap_interval(rng.normal(3.0, 2.0, size=40)) for _ in range(400)]
    hits = sum(low <= 3.0 <= high for low, high in intervals)
    assert 350 <= hits <= 395


def test_interval_agrees_with_the_normal_one_for_many_episodes():
    values = np.random.default_rng(0).normal(10.0, 3.0, size=1_000)
    low, high = bootstrap_interval(values)
    half_width = 1.96 * values.std() / np.sqrt(1_000)
    # 2,000 resamples leave about 3 % noise in each end's distance
    assert low == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
    assert high == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)


def test_statistics_of_chunks_equal_those_of_all_episodes():
    metric = EpisodeStatistics()
    metric.update([1.0, 2.0, 3.0], [10, 20, 30])
    metric.update(np.array([1_000.0]), np.array([40]))
    result = metric.compute()
    assert result["mean"] == 251.5
    assert result["iqm"] == 2.5
    assert result["length_mean"] == 25.0
    assert result["num_episodes"] == 4
    assert (result["low"], result["high"]) == bootstrap_interval(np.array([1.0, 2.0, 3.0, 1_000.0]))
    assert all(type(value) in (float, int) for value in result.values())


def test_the_same_returns_give_the_same_interval():
    values = np.random.default_rng(1).normal(size=30)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_interval_of_equal_returns_is_a_point():
    metric = EpisodeStatistics()
    metric.update([500.0] * 5, [500] * 5)
    assert metric.compute()["low"] == metric.compute()["high"] == 500.0


def test_statistics_of_no_episode_are_nan_without_a_warning():
    for metric in (EpisodeStatistics(), RecentEpisodes()):
        result = metric.compute()
        assert result.pop("num_episodes") == 0
        assert all(np.isnan(value) for value in result.values())


def test_reset_forgets_every_episode():
    for metric in (EpisodeStatistics(), RecentEpisodes()):
        metric.update([1.0], [1])
        metric.reset()
        assert metric.compute()["num_episodes"] == 0


def test_a_return_without_a_length_is_refused():
    with pytest.raises(ValueError, match="got 2 and 1"):
        EpisodeStatistics().update([1.0, 2.0], [1])


def test_recent_episodes_are_the_newest_of_the_window():
    metric = RecentEpisodes(window=3)
    metric.update([100.0], [100])
    for value in (1, 2):
        metric.update(float(value), value)
    metric.update(np.array([3.0, 7.0]), np.array([3, 7]))
    assert metric.compute() == {"mean": 4.0, "length_mean": 4.0, "num_episodes": 3}


def test_window_survives_a_weights_only_file(tmp_path):
    metric = RecentEpisodes(window=3)
    metric.update(np.array([1.5, 2.5, 3.5, 4.5]), np.array([1, 2, 3, 4]))
    torch.save(metric.window_state(), tmp_path / "window.pt")
    restored = RecentEpisodes(window=3)
    restored.update([9.0], [9])
    restored.load_window_state(torch.load(tmp_path / "window.pt", weights_only=True))
    for each in (metric, restored):
        each.update([5.5], [5])
    assert restored.compute() == metric.compute() == {"mean": 4.5, "length_mean": 4.0, "num_episodes": 3}


@pytest.mark.parametrize(("episodes", "num_envs"), [(10, 10), (10, 4), (1, 8), (0, 4), (9, 3)])
def test_index_hands_out_every_episode_once_in_chunks_that_fit(episodes, num_envs):
    index = EpisodeIndex(episodes, num_envs)
    chunks = list(index)
    assert len(chunks) == len(index)
    assert all(0 < len(chunk) <= num_envs for chunk in chunks)
    assert [episode for chunk in chunks for episode in chunk] == list(range(episodes))


def test_every_episode_is_counted_to_its_own_end(countdown):
    returns, lengths = play(always_zero, slots(4), [0, 1, 5, 2])
    assert lengths.tolist() == [1, 2, 6, 3]
    assert returns.tolist() == [1.0, 2.0, 6.0, 3.0]


def test_an_episode_is_the_same_in_whatever_slot_it_is_played(countdown):
    together = play(always_zero, slots(8, run_seed=3), range(8))
    environments = slots(3, run_seed=3)
    alone = [play(always_zero, environments, [episode]) for episode in (7, 0, 4, 1, 6, 2, 5, 3)]
    by_episode = dict(zip((7, 0, 4, 1, 6, 2, 5, 3), (int(lengths[0]) for _, lengths in alone), strict=True))
    assert [by_episode[episode] for episode in range(8)] == together[1].tolist()


@pytest.mark.parametrize("frame_stack", [1, 2])
def test_real_episodes_do_not_depend_on_slot_order_or_company(frame_stack):
    config = EnvConfig("CartPole-v1", frame_stack=frame_stack)
    spec = describe(config)
    weights = np.random.default_rng(0).normal(size=(frame_stack, 4))

    def policy(obs):
        return ((obs["obs"].reshape(-1, frame_stack, 4) * weights).sum((1, 2)) > 0).astype(np.int64)

    def evaluate(phase, chunks, num_envs):
        environments = make_environments(config, spec, num_envs, 5, phase)
        results = [play(policy, environments, chunk)[0] for chunk in chunks]
        environments.close()
        return np.concatenate(results).tolist()

    expected = evaluate("validate", [range(6)], 6)
    assert len(set(expected)) > 1
    assert evaluate("validate", [[0, 1, 2], [3, 4, 5]], 4) == expected
    assert evaluate("validate", [[5, 3], [4], [2, 1], [0]], 2) == [expected[i] for i in (5, 3, 4, 2, 1, 0)]
    assert evaluate("test", [range(6)], 6) != expected


def test_fewer_episodes_than_slots_leave_the_other_slots_out(countdown):
    returns, lengths = play(always_zero, slots(5), [6, 0])
    assert lengths.tolist() == [7, 1]
    assert returns.tolist() == [7.0, 1.0]


def test_policy_is_always_shown_all_slots(countdown):
    sizes = []

    def policy(obs):
        sizes.append(len(obs["obs"]))
        return always_zero(obs)

    play(policy, slots(4), [0, 6])
    assert sizes == [4] * 7


def test_an_episode_is_cut_after_its_most_steps(countdown):
    _, lengths = play(always_zero, slots(3), [0, 6, 2], max_episode_steps=3)
    assert lengths.tolist() == [1, 3, 3]


@pytest.mark.parametrize("episodes", [[], [0, 1, 2]])
def test_episodes_that_do_not_fit_the_slots_are_refused(countdown, episodes):
    with pytest.raises(ValueError, match=f"1 to 2 episodes .* got {len(episodes)}"):
        play(always_zero, slots(2), episodes)


def test_epsilon_is_the_share_of_random_actions(countdown):
    # Half of the random actions are 1, which pays one more: over 700 steps at epsilon 0.5 the mean surplus is
    # 0.25, and four standard errors are 0.065
    environments, rng = slots(10, run_seed=6), np.random.default_rng(0)
    total = sum(play(always_zero, environments, [0] * 10, epsilon=0.5, rng=rng)[0].sum() for _ in range(10))
    assert (total - 700) / 700 == pytest.approx(0.25, abs=0.065)


def test_greedy_play_draws_no_random_number(countdown):
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    play(always_zero, slots(2), [0, 1], rng=rng)
    assert rng.bit_generator.state == before


def test_random_actions_without_a_generator_are_refused(countdown):
    with pytest.raises(ValueError, match=r"epsilon=0\.1 .* pass rng"):
        play(always_zero, slots(2), [0, 1], epsilon=0.1)


def test_play_leaves_the_global_generators_alone(countdown):
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    play(always_zero, slots(4), range(4), epsilon=0.3, rng=np.random.default_rng(1))
    metric = EpisodeStatistics()
    metric.update([1.0, 2.0], [1, 2])
    metric.compute()
    assert random.getstate() == before[0]
    assert str(np.random.get_state()) == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
