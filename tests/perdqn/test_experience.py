"""Experience: how many updates are owed when, where acting pauses, and how it goes on after a restore."""

from dataclasses import asdict
from math import floor

import numpy as np
import pytest
import torch

from perdqn.acting.environment import describe
from perdqn.config import Config, EnvConfig, ExplorationConfig, LearnerConfig, ReplayConfig
from perdqn.experience import PrioritizedReplayDataset
from perdqn.replay.prioritized import PrioritizedReplay


def parity(obs):
    """A policy that looks at every column and nothing else."""
    total = sum(column.reshape(len(column), -1).sum(axis=1) for column in obs.values())
    return (np.abs(total) * 7).astype(np.int64) % 2


def config_of(env_id="toys.Counting", num_envs=1, budget=None, kwargs=None, frame_stack=1, **learner):
    defaults = {"batch_size": 4, "warmup_env_steps": 20, "train_every": 1.0, "n_step": 3}
    return Config(
        env=EnvConfig(env_id, kwargs or {}, num_envs, frame_stack=frame_stack),
        replay=ReplayConfig(capacity=120, beta_env_steps=200),
        learner=LearnerConfig(**{**defaults, **learner}),
        exploration=ExplorationConfig(1.0, 0.1, 100),
        **(budget or {"total_env_steps": 10_000}),
    )


def dataset_of(config, on_episode=lambda total, length: None):
    spec = describe(config.env)
    learner = config.learner
    replay = PrioritizedReplay(
        spec, config.env.num_envs, config.replay.capacity, n_step=learner.n_step, gamma=learner.gamma
    )
    return PrioritizedReplayDataset(config, spec, replay, parity, on_episode), replay


def learn(dataset, replay, num_fetches):
    """Fetch and report priorities as a learner would; returns the batches, None for ticks."""
    batches = []
    for _, batch in zip(range(num_fetches), dataset, strict=False):
        batches.append(batch)
        if batch is not None:
            replay.update_priorities(batch.id, batch.reward.abs().double())
    return batches


# -- updates owed ------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize("train_every", [0.5, 1, 3, 4])
def test_every_update_comes_at_the_first_env_step_that_owes_it(num_envs, train_every):
    dataset, _ = dataset_of(config_of(num_envs=num_envs, train_every=train_every, n_step=1))
    came_at = []
    for batch in dataset:
        if batch is not None:
            came_at.append(dataset.env_steps)
        if dataset.env_steps > 150:
            break
    reached = range(0, 10_000, num_envs)
    expected = [
        next(step for step in reached if floor((step - 20) / train_every) >= update)
        for update in range(1, len(came_at) + 1)
    ]
    assert came_at == expected
    assert len(came_at) > 30


@pytest.mark.parametrize("train_every", [0.5, 3])
def test_nothing_is_owed_during_the_warm_up(train_every):
    dataset, _ = dataset_of(config_of(train_every=train_every, warmup_env_steps=50))
    for env_steps in (20, 50):
        dataset.pause_at = env_steps
        assert next(iter(dataset)) is None
        assert dataset.env_steps == env_steps
        assert dataset.updates_issued == dataset.updates_owed == 0


def test_a_long_warm_up_ticks_without_an_update():
    config = config_of(warmup_env_steps=2_500, kwargs={"length": 50})
    dataset, _ = dataset_of(config)
    dataset.pause_at = 2_200
    ticks = []
    for batch in dataset:
        if batch is not None:
            break
        ticks.append(dataset.env_steps)
        if dataset.env_steps == dataset.pause_at:
            dataset.pause_at = None
    assert ticks == [1_000, 2_000, 2_200]


def test_updates_wait_until_a_batch_can_be_filled_and_then_catch_up():
    config = config_of(warmup_env_steps=1, batch_size=32, n_step=1, kwargs={"length": 100})
    dataset, replay = dataset_of(config)
    assert next(iter(dataset)) is not None
    assert len(replay) == 32
    came_at = dataset.env_steps
    owed = dataset.updates_owed
    assert owed == came_at - 1 - 1
    learn(dataset, replay, owed)
    assert (dataset.env_steps, dataset.updates_owed) == (came_at, 0)


def test_acting_pauses_where_somebody_wants_to_look_and_goes_on_when_told():
    dataset, replay = dataset_of(config_of(train_every=2))
    dataset.pause_at = 41
    batches = learn(dataset, replay, 30)
    assert dataset.env_steps == 41
    assert [batch is not None for batch in batches] == [True] * 10 + [False] * 20
    dataset.pause_at = None
    learn(dataset, replay, 1)
    assert dataset.env_steps == 42


def test_with_several_environments_a_pause_waits_for_the_step_under_way():
    dataset, replay = dataset_of(config_of(num_envs=8))
    dataset.pause_at = 42
    learn(dataset, replay, 100)
    assert dataset.env_steps == 48


@pytest.mark.parametrize(
    ("budget", "num_steps"),
    [({"total_env_steps": 37}, 37), ({"total_env_steps": None, "total_episodes": 8}, 40)],
)
def test_nothing_is_acted_beyond_the_budget_and_the_updates_owed_still_come(budget, num_steps):
    dataset, replay = dataset_of(config_of(budget=budget))
    batches = learn(dataset, replay, 60)
    assert dataset.env_steps == num_steps
    assert dataset.is_spent
    assert sum(batch is not None for batch in batches) == num_steps - 20


def test_a_budget_overshot_by_several_environments_is_spent():
    dataset, _ = dataset_of(config_of(num_envs=7, budget={"total_env_steps": 1_000}))
    dataset.env_steps = 994
    assert not dataset.is_spent
    dataset.env_steps = 1_001
    assert dataset.is_spent


def test_epsilon_and_beta_follow_the_env_step():
    dataset, replay = dataset_of(config_of())
    learn(dataset, replay, 31)
    assert dataset.env_steps == 51
    assert dataset.epsilon(51) == pytest.approx(1.0 - 0.9 * 0.51)
    assert dataset.beta(51) == pytest.approx(0.4 + 0.6 * 51 / 200)


def test_finished_episodes_are_counted_and_told():
    told = []
    dataset, replay = dataset_of(config_of(num_envs=2), lambda total, length: told.append(length))
    dataset.pause_at = 40
    learn(dataset, replay, 100)
    assert told == [5] * 8
    assert dataset.episodes == 8


def test_memory_is_cleaned_up_once_a_period(monkeypatch):
    config = config_of(num_envs=3, train_every=50)
    config.replay.cleanup_env_steps = 10
    dataset, replay = dataset_of(config)
    cleaned_at = []
    monkeypatch.setattr(replay, "release_memory", lambda: cleaned_at.append(dataset.env_steps))
    dataset.pause_at = 60
    learn(dataset, replay, 10)
    assert cleaned_at == [12, 21, 30, 42, 51, 60]


# -- going on ----------------------------------------------------------------------------------


def snapshot(dataset, replay, path):
    """What comes back from a file, as a checkpoint would do it."""
    torch.save({"experience": dataset.capture(), "replay": replay.state_dict()}, path)
    return torch.load(path, weights_only=True)


def flattened(batch):
    if batch is None:
        return {}
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return {**tensors, **batch.obs, **{f"next {name}": column for name, column in batch.next_obs.items()}}


def assert_same_batches(left, right):
    assert len(left) == len(right)
    for one, other in zip(map(flattened, left), map(flattened, right), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("num_fetches", [0, 1, 17, 120])
@pytest.mark.parametrize(
    ("env_id", "num_envs", "kwargs"),
    [
        ("toys.Counting", 1, {"length": 9}),
        ("toys.Counting", 3, {"length": 4, "spread": 7, "ending": "truncated"}),
        ("toys.Mapping", 4, {"length": 4, "spread": 5, "num_actions": 2}),
        ("CartPole-v1", 3, {}),
    ],
)
def test_a_restored_run_yields_the_same_batches_mid_episode(env_id, num_envs, kwargs, num_fetches, tmp_path):
    config = config_of(env_id, num_envs, kwargs=kwargs, frame_stack=2, train_every=1.5)
    dataset, replay = dataset_of(config)
    learn(dataset, replay, num_fetches)
    state = snapshot(dataset, replay, tmp_path / "state.pt")
    resumed, memory = dataset_of(config)
    resumed.restore(state["experience"])
    memory.load_state_dict(state["replay"])
    assert (resumed.env_steps, resumed.episodes) == (dataset.env_steps, dataset.episodes)
    assert_same_batches(learn(dataset, replay, 150), learn(resumed, memory, 150))
    assert resumed.capture()["counters"] == dataset.capture()["counters"]


def test_a_capture_is_untouched_by_what_follows(tmp_path):
    dataset, replay = dataset_of(config_of(num_envs=2, kwargs={"length": 6, "spread": 3}))
    learn(dataset, replay, 10)
    state = dataset.capture()
    torch.save(state, tmp_path / "then.pt")
    learn(dataset, replay, 50)
    torch.save(state, tmp_path / "now.pt")
    then, now = (torch.load(tmp_path / name, weights_only=True) for name in ("then.pt", "now.pt"))
    assert str(then) == str(now)


def test_closing_the_environments_in_between_changes_nothing():
    left, right = (dataset_of(config_of(num_envs=2, kwargs={"length": 6, "spread": 3})) for _ in range(2))
    before = [learn(*side, 20) for side in (left, right)]
    right[0].close()
    right[0].close()
    assert_same_batches(*before)
    assert_same_batches(learn(*left, 40), learn(*right, 40))


def test_a_restored_run_can_be_saved_again_before_it_acts(tmp_path):
    dataset, replay = dataset_of(config_of())
    learn(dataset, replay, 10)
    state = dataset.capture()
    other, _ = dataset_of(config_of())
    other.restore(state)
    assert other.capture()["counters"] == state["counters"]
    assert str(other.capture()["acting"]) == str(state["acting"])


def test_episodes_that_cannot_be_restored_are_cut_where_they_were(tmp_path):
    config = config_of("toys.Leaky", num_envs=2, kwargs={"length": 6, "spread": 3}, train_every=4)
    dataset, replay = dataset_of(config)
    learn(dataset, replay, 10)
    state = snapshot(dataset, replay, tmp_path / "state.pt")
    resumed, memory = dataset_of(config)
    resumed.restore(state["experience"])
    memory.load_state_dict(state["replay"])
    with pytest.warns(RuntimeWarning, match="2 of 2 episodes in progress could not be played again"):
        learn(resumed, memory, 1)
    memory.check_valid()
    learn(resumed, memory, 30)
    memory.check_valid()
    ids = memory.rows.ids(np.arange(memory.capacity))
    ids = ids[memory.rows.may_start(ids)]
    seeds = [memory.rows.observations(at)["obs"][:, 0] for at in (ids, memory.rows.windows(ids).next_id)]
    np.testing.assert_array_equal(*seeds)


def test_a_run_without_its_replay_warms_up_again_and_keeps_its_counters():
    dataset, replay = dataset_of(config_of())
    dataset.restart(env_steps=500, episodes=80)
    dataset.pause_at = 520
    assert learn(dataset, replay, 3) == [None] * 3
    assert (dataset.env_steps, dataset.episodes) == (520, 84)
    dataset.pause_at = None
    assert learn(dataset, replay, 1)[0] is not None
    assert (dataset.env_steps, dataset.updates_issued) == (521, 1)


def test_the_state_is_plain_enough_for_a_weights_only_load(tmp_path):
    dataset, replay = dataset_of(config_of(num_envs=2))
    learn(dataset, replay, 5)
    assert snapshot(dataset, replay, tmp_path / "state.pt").keys() == {"experience", "replay"}
    assert asdict(dataset._config)["env"]["num_envs"] == 2
