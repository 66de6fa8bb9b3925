"""Environments by id or import path: what is made, what is said when nothing can be, and the seeds."""

import importlib.util
import sys

import gymnasium
import numpy as np
import pytest
from toys import Counting, HalfSpeed

from perdqn.acting import environment
from perdqn.acting.environment import MissingExtra, describe, episode_seed, is_native, make, to_columns
from perdqn.config import ClassSpec, EnvConfig
from perdqn.transition import OBS, Column, EnvSpec


def test_a_box_is_one_column_named_obs():
    spec = describe(EnvConfig(id="CartPole-v1", frame_stack=2, stack_padding="repeat"))
    assert spec == EnvSpec((Column(OBS, (4,), np.dtype(np.float32)),), False, 2, 0, 2, "repeat")
    assert spec.obs_shape(spec.columns[0]) == (2, 4)


def test_a_discrete_observation_keeps_its_size_and_start():
    spec = describe(EnvConfig(id="toys.Stepping"))
    assert spec.columns == (Column(OBS, (), np.dtype(np.int64), 6, 3),)
    np.testing.assert_array_equal(to_columns(4, spec)[OBS], np.int64(4))


def test_a_flat_dict_is_named_columns():
    spec = describe(EnvConfig(id="toys.Mapping"))
    assert spec.is_dict
    assert [(c.name, c.shape, c.dtype) for c in spec.columns] == [
        ("picture", (2, 2, 1), np.uint8),
        ("position", (), np.int64),
        ("vector", (3,), np.float32),
    ]
    assert spec.columns[1].num_values == 4
    assert spec.columns[1].start == 2


def test_the_smallest_action_is_told():
    spec = describe(EnvConfig(id="toys.Counting", kwargs={"action_start": -1, "num_actions": 3}))
    assert (spec.num_actions, spec.action_start) == (3, -1)


@pytest.mark.parametrize(
    ("env_id", "complaint"),
    [
        ("toys.Continuous", "actions must be Discrete"),
        ("toys.Nested", "'inner' is a Dict"),
        ("toys.not_an_environment", "makes a str, not a gymnasium.Env"),
        ("NoSuchThing-v3", "NoSuchThing"),
        ("no_such_module.Env", "no_such_module"),
        ("toys.NoSuchName", "NoSuchName"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_name(env_id, complaint):
    with pytest.raises(ValueError, match=complaint) as refusal:
        describe(EnvConfig(id=env_id))
    assert "model.env.id" in str(refusal.value)


@pytest.mark.parametrize("path", ["toys.make_counting", "toys:make_counting", "toys:Counting"])
def test_an_environment_is_made_by_import_path(path):
    env = make(EnvConfig(id=path, kwargs={"length": 2}))
    assert isinstance(env, Counting)
    assert env.length == 2


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import broken", "ModuleNotFoundError: No module named 'broken'"),  # begins as the module's own name
        ("import module_that_is_not_there", "module_that_is_not_there"),
        ("class Env(", "SyntaxError"),
        ("def Env():\n    raise OSError('no ROM\\nfound')", "OSError: no ROM found"),
    ],
)
def test_a_module_of_the_users_own_that_fails_is_named_with_its_reason(source, reason, tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)
    with pytest.raises(ValueError, match=r"^model\.env\.id broken_module\.Env: ") as refusal:
        make(EnvConfig(id="broken_module.Env"))
    assert reason in str(refusal.value)
    sys.modules.pop("broken_module", None)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "toys.Counting"])
def test_an_argument_the_environment_does_not_take_is_refused_with_the_setting(env_id):
    with pytest.raises(ValueError, match=r"model\.env\.kwargs \{'foo': 1\}.*foo"):
        make(EnvConfig(id=env_id, kwargs={"foo": 1}))


def test_a_wrapper_that_fails_is_named_with_its_reason():
    wrapper = ClassSpec("gymnasium.wrappers.ResizeObservation", {"shape": [0, 0]})
    with pytest.raises(ValueError, match=r"^model\.env\.wrappers gymnasium\.wrappers\.ResizeObservation: "):
        make(EnvConfig(id="CartPole-v1", wrappers=[wrapper]))


def test_an_unknown_atari_game_is_refused_with_the_setting():
    pytest.importorskip("ale_py")
    with pytest.raises(ValueError, match=r"model\.env\.id ALE/Pung-v5: .*Pung"):
        make(EnvConfig(id="ALE/Pung-v5"))


def test_wrappers_are_applied_in_order_the_first_innermost():
    wrappers = [ClassSpec("toys.HalfSpeed", {"times": 3}), ClassSpec("toys.HalfSpeed")]
    env = make(EnvConfig(id="toys.Counting", wrappers=wrappers))
    assert isinstance(env, HalfSpeed)
    assert (env.times, env.env.times) == (2, 3)
    env.reset(seed=0)
    assert env.step(0)[0][1] == 6


@pytest.mark.parametrize(
    ("env_id", "package", "extra"),
    [
        ("ALE/Pong-v5", "ale_py", "atari"),
        ("MinAtar/Breakout-v0", "minatar", "minatar"),
        ("LunarLander-v3", "Box2D", "box2d"),
    ],
)
def test_a_missing_package_is_named_with_the_extra_that_brings_it(env_id, package, extra, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == package else find_spec(name, *rest)
    )
    with pytest.raises(MissingExtra, match=rf"{env_id} needs {package}: pip install 'perdqn\[{extra}\]'"):
        make(EnvConfig(id=env_id))
    assert issubclass(MissingExtra, ValueError)


def test_every_phase_environment_and_episode_has_a_seed_of_its_own():
    coordinates = [
        (run, phase, env, episode, rank)
        for run in (0, 1)
        for phase in environment._PHASES
        for env in range(4)
        for episode in range(50)
        for rank in (0, 1)
    ]
    seeds = [episode_seed(*where) for where in coordinates]
    assert seeds == [episode_seed(*where) for where in coordinates]
    assert all(0 <= seed < 2**31 for seed in seeds)
    # 4000 draws from 2^31: 0.004 collisions are to be expected
    assert len(set(seeds)) == len(seeds)


def test_native_stepping_is_for_unwrapped_ale_ids():
    assert is_native(EnvConfig(id="ALE/Pong-v5"))
    assert is_native(EnvConfig(id="ALE/Pong-v5", vectorization="native"))
    assert not is_native(EnvConfig(id="ALE/Pong-v5", vectorization="sync"))
    assert not is_native(EnvConfig(id="ALE/Pong-v5", wrappers=[ClassSpec("toys.HalfSpeed")]))
    assert not is_native(EnvConfig(id="CartPole-v1"))
    with pytest.raises(ValueError, match=r"model\.env\.vectorization native"):
        is_native(EnvConfig(id="CartPole-v1", vectorization="native"))


def test_a_single_atari_environment_shows_single_frames():
    env = make(EnvConfig(id="ALE/Pong-v5"))
    try:
        obs, _ = env.reset(seed=3)
        assert obs.shape == env.observation_space.shape == (84, 84)
        assert obs.dtype == np.uint8
        stepped, reward, terminated, truncated, _ = env.step(0)
        assert stepped.shape == (84, 84)
        assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
        assert env.render().shape == (84, 84, 3)
    finally:
        env.close()


def test_minatar_forgets_its_last_action_at_reset():
    env = make(EnvConfig(id="MinAtar/Breakout-v0"))
    env.reset(seed=0)
    env.unwrapped.game.last_action = 3
    env.reset(seed=1)
    assert env.unwrapped.game.last_action == 0
    assert isinstance(env, gymnasium.Env)
