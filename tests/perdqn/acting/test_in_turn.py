"""Environments in turn show what Gymnasium's own vector shows."""

from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from perdqn.acting.environment import describe, make, to_columns
from perdqn.acting.guard import FAILURE, Guard
from perdqn.acting.in_turn import InTurn
from perdqn.config import EnvConfig
from perdqn.transition import OBS


def both(config, num_envs):
    """The environments in turn, the oracle over the same ones, and their spec."""
    factories = [partial(Guard, partial(make, config)) for _ in range(num_envs)]
    spec = describe(config)
    return (
        InTurn([factory() for factory in factories], spec),
        SyncVectorEnv(factories, autoreset_mode=AutoresetMode.DISABLED),
        spec,
    )


def assert_same(shown, expected, spec):
    columns, *outcome, infos = shown
    oracle, *expected_outcome, expected_infos = expected
    for name, column in to_columns(oracle, spec).items():
        np.testing.assert_array_equal(columns[name], column)
        assert columns[name].dtype == column.dtype
    for left, right in zip(outcome, expected_outcome, strict=True):
        np.testing.assert_array_equal(left, right.astype(left.dtype))
    assert str(infos) == str(expected_infos)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("toys.Counting", {"length": 3, "spread": 5, "ending": "truncated"}),
        ("toys.Mapping", {"length": 3, "spread": 5}),
        ("toys.Stepping", {"length": 4}),
        ("toys.Faulty", {"faults": [[3, 2, "raise"], [8, 0, "raise if used"], [9, 1, "nan"]]}),
        ("CartPole-v1", {}),
        ("MinAtar/Breakout-v0", {}),
    ],
)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_resets_and_steps_show_what_gymnasiums_vector_shows(env_id, kwargs, num_envs):
    in_turn, oracle, spec = both(EnvConfig(id=env_id, kwargs=kwargs), num_envs)
    rng, seeds = np.random.default_rng(0), iter(range(1_000))
    first = [next(seeds) for _ in range(num_envs)]
    assert_same(in_turn.reset(seed=first), oracle.reset(seed=first), spec)
    for _ in range(100):
        actions = rng.integers(spec.num_actions, size=num_envs)
        shown, expected = in_turn.step(actions), oracle.step(actions)
        assert_same(shown, expected, spec)
        ended = shown[2] | shown[3]
        if ended.any():
            listed = [next(seeds) if has_ended else None for has_ended in ended]
            options = None if ended.all() else {"reset_mask": ended}
            shown = in_turn.reset(seed=listed, options=options)
            assert_same(shown, oracle.reset(seed=listed, options=options and dict(options)), spec)
    in_turn.close()
    oracle.close()


def test_environments_of_other_spaces_are_refused():
    envs = [make(EnvConfig(id="toys.Counting", kwargs={"num_actions": n})) for n in (3, 4)]
    with pytest.raises(RuntimeError, match=r"Discrete\(4\) beside .*Discrete\(3\)"):
        InTurn(envs, describe(EnvConfig(id="toys.Counting")))


@pytest.mark.parametrize(
    ("obs", "error"),
    [(np.zeros(1, np.float32), ValueError), (np.zeros((3, 1), np.float32), ValueError), (1j, ValueError)],
)
def test_an_observation_that_does_not_fit_its_space_is_refused(obs, error, monkeypatch):
    in_turn, _, _ = both(EnvConfig(id="toys.Counting"), 1)
    in_turn.reset(seed=[0])
    monkeypatch.setattr(in_turn._envs[0]._env, "observe", lambda: obs)
    with pytest.raises(error, match=r"'obs' has shape .*its space says \(3,\)"):
        in_turn.step(np.zeros(1, np.int64))


def test_an_observation_of_another_dtype_is_converted_where_that_is_safe(monkeypatch):
    in_turn, _, _ = both(EnvConfig(id="toys.Counting"), 1)
    in_turn.reset(seed=[0])
    toy = in_turn._envs[0]._env
    monkeypatch.setattr(toy, "observe", lambda: np.full(3, 0.1))
    assert in_turn.step(np.zeros(1, np.int64))[0][OBS].tolist() == [[np.float32(0.1)] * 3]
    monkeypatch.setattr(toy, "observe", lambda: np.full(3, 1j))
    with pytest.raises(TypeError, match="complex128"):
        in_turn.step(np.zeros(1, np.int64))


def test_actions_arrive_as_python_integers_and_infos_are_dropped():
    seen = []

    class Watching(gymnasium.Wrapper):
        def step(self, action):
            seen.append(action)
            return self.env.step(action)

    config = EnvConfig(id="toys.Counting")
    in_turn = InTurn([Guard(lambda: Watching(make(config)))], describe(config))
    in_turn.reset(seed=[0])
    assert in_turn.step(np.array([2]))[-1] == {}
    assert [type(action) for action in seen] == [int]
    assert FAILURE not in in_turn.reset(seed=[1])[1]
