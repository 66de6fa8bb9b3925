"""A failing environment: cut, rebuilt, reported, or given up."""

import numpy as np
import pytest
from toys import Faulty

from perdqn.acting.guard import FAILURE, Guard


def guarded(faults):
    built = []

    def make():
        built.append(Faulty(faults, length=10))
        return built[-1]

    return Guard(make), built


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise", "the simulator crashed"),
        ("nan", "NaN or infinity in the observation"),
        ("nan reward", "the reward is nan"),
    ],
)
def test_a_fault_in_a_step_cuts_the_episode_as_truncated(what, reason):
    env, built = guarded([[5, 2, what]])
    env.reset(seed=5)
    assert env.step(0)[4] == {}, "infos of the environment are dropped"
    _, reward, terminated, truncated, info = env.step(0)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert reason in info[FAILURE]
    assert len(built) == 1, "it is rebuilt when the next episode begins, not before"


def test_the_environment_is_rebuilt_for_the_next_episode():
    env, built = guarded([[5, 1, "raise"]])
    env.reset(seed=5)
    env.step(0)
    obs, info = env.reset(seed=6)
    assert len(built) == 2
    assert info == {}
    np.testing.assert_array_equal(obs[:2], [6, 0])
    assert env.step(0)[0][1] == 1
    env.reset(seed=7)
    assert len(built) == 2, "rebuilt once, not for ever"


@pytest.mark.parametrize("what", ["raise if used", "nan"])
def test_a_fault_in_a_reset_is_tried_once_more_on_a_new_environment(what):
    faults = [[6, 0, "raise if used"]] if what == "raise if used" else []
    env, built = guarded(faults)
    env.reset(seed=5)
    if what == "nan":
        built[0].faults[6, 0] = "nan"  # of this one alone; the next is built without it
    obs, info = env.reset(seed=6)
    assert len(built) == 2
    assert FAILURE in info
    np.testing.assert_array_equal(obs[:2], [6, 0])


@pytest.mark.parametrize(("what", "error"), [("raise", OSError), ("nan", RuntimeError)])
def test_a_reset_that_fails_twice_is_raised(what, error):
    env, _ = guarded([[6, 0, what]])
    env.reset(seed=5)
    with pytest.raises(error):
        env.reset(seed=6)


def test_interrupts_are_not_faults():
    env, built = guarded([])
    env.reset(seed=1)

    def interrupt(action):
        raise KeyboardInterrupt

    built[0].step = interrupt
    with pytest.raises(KeyboardInterrupt):
        env.step(0)
