"""What other implementations got wrong, one test named after each mistake.

Who made it is told in the docstrings; the behaviour itself is covered in depth elsewhere.
"""

from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from perdqn import PERDQN
from perdqn.diagnostics import Evaluation
from perdqn.module import STATE_KEY
from perdqn.replay.memory import memory
from perdqn.replay.prioritized import PrioritizedReplay
from perdqn.schedules import LinearSchedule
from perdqn.transition import OBS, Column, EnvSpec

GAMMA = 0.5


def replay_of(*ends, n_step=1, capacity=20, frame_stack=1, **settings):
    """One environment, one step for each of ``ends``: None, ``terminated`` or ``truncated``.

    Step i shows i + 1 and pays i + 1; the final observation of an episode is minus its last one.
    """
    spec = EnvSpec((Column(OBS, (), np.dtype(np.float32)),), False, 2, frame_stack=frame_stack)
    replay = PrioritizedReplay(spec, 1, capacity, n_step=n_step, gamma=GAMMA, **settings)
    for i, end in enumerate(ends):
        add(replay, i + 1, end)
    return replay


def add(replay, number, end=None):
    frame, action = np.array([number], np.float32), np.array([number % 2])
    terminated, truncated = np.array([end == "terminated"]), np.array([end == "truncated"])
    replay.add({OBS: frame}, action, np.array([float(number)]), terminated, truncated, {OBS: -frame})


def measure(replay, priorities):
    """Report priorities of ids, given as a dict."""
    replay.update_priorities(np.array([*priorities], np.int64), np.array([*priorities.values()]))


def leaf(replay, item):
    return replay._tree.leaves[replay.rows.slots(np.array([item]))[0]]


def transition(replay, item):
    """(reward, discount, newest frame of next_obs) of one id."""
    window = replay.rows.windows(np.array([item]))
    frame = replay.rows.observations(window.next_id)[OBS].reshape(-1)[-1]
    return window.reward[0], window.discount[0], frame


# -- priorities --------------------------------------------------------------------------------


def test_new_items_enter_at_the_running_maximum_not_at_one():
    """RLlib: always 1."""
    replay = replay_of(*[None] * 5, alpha=1.0, priority_eps=1e-9)
    measure(replay, {0: 7.0, 1: 0.5})
    add(replay, 6)
    assert leaf(replay, 4) == pytest.approx(7.0)
    measure(replay, {0: 0.25})
    add(replay, 7)
    assert leaf(replay, 5) == pytest.approx(0.5)


def test_the_exponent_is_applied_once_to_new_items():
    """TorchRL: the maximum was kept as p^alpha and raised again."""
    replay = replay_of(*[None] * 5, alpha=0.5, priority_eps=1e-12)
    measure(replay, {0: 16.0})
    add(replay, 6)
    assert replay.priority_max == pytest.approx(16.0)
    assert leaf(replay, 4) == leaf(replay, 0) == pytest.approx(4.0)


def test_first_weights_do_not_vanish_once_td_errors_shrink():
    """TorchRL: an all-time maximum that begins at 1 dwarfs TD errors of 1/1000."""
    replay = replay_of(*[None] * 50, capacity=200, alpha=1.0)
    for _ in range(200):
        batch = replay.sample(8, beta=1.0)
        replay.update_priorities(batch.id, np.full(8, 1e-3))
    for number in range(50, 60):
        add(replay, number)
    assert replay.sample(64, beta=1.0).is_weight.min() > 0.9


def test_the_maximum_sinks_when_the_row_that_held_it_is_overwritten():
    """TorchRL: one early outlier stays the maximum for ever."""
    replay = replay_of(*[None] * 10, capacity=10, priority_eps=1e-9)
    measure(replay, {0: 100.0, 5: 0.5})
    assert replay.priority_max == pytest.approx(100.0)
    add(replay, 11)
    assert replay.priority_max == pytest.approx(0.5)


def test_the_maximum_survives_a_resume():
    """Dopamine: new items enter at 1 after a restart."""
    replay, resumed = replay_of(*[None] * 5, alpha=1.0, priority_eps=1e-9), replay_of(alpha=1.0)
    measure(replay, {0: 7.0})
    resumed.load_state_dict(replay.state_dict())
    assert resumed.priority_max == replay.priority_max == pytest.approx(7.0)
    add(resumed, 6)
    assert leaf(resumed, 4) == pytest.approx(7.0)


def test_priorities_of_overwritten_rows_are_ignored():
    """RLlib, CleanRL, TorchRL: written to whatever lies in the slot by then."""
    replay = replay_of(*[None] * 10, capacity=10)
    batch = replay.sample(32)
    for number in range(11, 31):
        add(replay, number)
    before = replay._tree.leaves.copy()
    replay.update_priorities(batch.id, np.full(32, 99.0))
    np.testing.assert_array_equal(replay._tree.leaves, before)
    assert replay.priorities_updated == 0
    replay.check_valid()


def test_an_update_never_makes_a_row_eligible_that_may_not_start():
    replay = replay_of(None, "terminated", None, None, n_step=2)
    final, incomplete = 2, 4
    measure(replay, {final: 9.0, incomplete: 9.0, 999: 9.0, -1: 9.0})
    assert leaf(replay, final) == leaf(replay, incomplete) == 0.0
    replay.check_valid()


# -- n-step ------------------------------------------------------------------------------------


def test_a_terminal_inside_the_window_is_not_bootstrapped_through():
    """lightning-bolts, cpprb: the discount came from the last step of the window alone."""
    replay = replay_of(None, "terminated", None, None, None, n_step=3)
    assert transition(replay, 0) == (1 + 2 * GAMMA, 0.0, -2.0)


def test_the_bootstrap_is_discounted_by_gamma_to_the_steps_taken():
    """CleanRL Rainbow's like: gamma, whatever n."""
    assert transition(replay_of(*[None] * 4, n_step=3), 0) == (1 + 2 * GAMMA + 3 * GAMMA**2, GAMMA**3, 4.0)
    shorter = replay_of(None, None, "truncated", n_step=3)
    assert transition(shorter, 1) == (2 + 3 * GAMMA, GAMMA**2, -3.0)


def test_windows_do_not_cross_a_truncation():
    replay = replay_of(None, "truncated", None, None, None, n_step=3)
    assert transition(replay, 0) == (1 + 2 * GAMMA, GAMMA**2, -2.0)


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_tails_of_n_minus_one_steps_are_not_lost(end):
    replay = replay_of(None, None, None, None, end, n_step=4)
    assert len(replay) == 5
    drawn = set(replay.sample(200).id.tolist())
    assert drawn == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("n_step", [1, 2, 3])
def test_no_window_reads_across_the_head_of_the_ring(n_step):
    """Off by one at the head: the newest rows continue into the oldest."""
    replay = replay_of(*[None] * 37, n_step=n_step, capacity=10)
    batch = replay.sample(500)
    assert set(batch.id.tolist()) == set(range(27, 37 - n_step))
    assert torch.equal(batch.next_obs[OBS], batch.obs[OBS] + n_step)


# -- truncation --------------------------------------------------------------------------------


def test_a_truncated_episode_bootstraps_from_its_own_final_observation():
    """SB3 shares next_obs by shifting the ring: the next episode's first frame would be there."""
    replay = replay_of(None, "truncated", None, None)
    assert transition(replay, 1) == (2.0, GAMMA, -2.0)


def test_a_final_observation_is_no_start():
    replay = replay_of(*(["truncated"] * 4))
    assert set(replay.sample(100).obs[OBS].tolist()) == {1.0, 2.0, 3.0, 4.0}


def test_a_stack_does_not_reach_into_the_episode_before():
    replay = replay_of(None, None, "terminated", None, None, frame_stack=3)
    batch = replay.sample(200)
    stacks = {tuple(stack) for stack in batch.obs[OBS].tolist()}
    assert stacks == {(0.0, 0.0, 1.0), (0.0, 1.0, 2.0), (1.0, 2.0, 3.0), (0.0, 0.0, 4.0)}


# -- schedules and resume ----------------------------------------------------------------------


def test_schedules_do_not_jump_when_a_run_is_extended():
    """SB3: tied to the total number of steps, epsilon rises again when that grows."""
    short, long = (PERDQN(total_env_steps=total).experience for total in (50_000, 500_000))
    for env_step in (0, 5_000, 49_999, 50_000, 60_000):
        assert short.epsilon(env_step) == long.epsilon(env_step)
        assert short.beta(env_step) == long.beta(env_step)


def resumed_agent(**changes):
    """An agent that takes over the checkpoint of one at env step 20,000 whose best evaluation was 200."""
    agent, other = PERDQN(), PERDQN()
    agent.experience.restart(env_steps=20_000, episodes=150)
    agent.evaluations = [Evaluation(200.0, 180.0, 220.0), Evaluation(150.0, 140.0, 160.0)]
    checkpoint = {"hyper_parameters": dict(agent.hparams)}
    agent.on_save_checkpoint(checkpoint)
    other.on_load_checkpoint(checkpoint)
    assert checkpoint[STATE_KEY]["env_steps"] == 20_000
    return other


def test_epsilon_does_not_restart_at_one_on_resume():
    """SB3 without the exact call that keeps num_timesteps."""
    agent = resumed_agent()
    assert agent.env_steps == 20_000
    explore = agent.config.exploration
    assert agent.experience.epsilon(agent.env_steps) == explore.epsilon_end < explore.epsilon_start
    assert isinstance(agent.experience.epsilon, LinearSchedule)


def test_the_best_score_survives_a_resume():
    """SB3, Tianshou: it begins at -inf, so a worse model overwrites the best one."""
    assert resumed_agent().best_evaluation_mean == 200.0


def test_saving_a_full_replay_does_not_copy_its_frames():
    """Tianshou pickles it whole: 17 GB of memory for 2.5 GB of data."""
    replay = replay_of(*[None] * 25, capacity=10)
    saved = replay.state_dict()["rows"][f"frames/{OBS}"]
    assert np.shares_memory(saved.numpy(), replay.rows.frames[OBS][:])


# -- memory ------------------------------------------------------------------------------------


def test_a_container_is_asked_for_its_own_memory_not_the_hosts(tmp_path, monkeypatch):
    """psutil said 4.8 % just before the out-of-memory kill: it knows the host alone."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**36, available=2**36))
    group, process = tmp_path / "sys/fs/cgroup", tmp_path / "proc/self"
    group.mkdir(parents=True)
    process.mkdir(parents=True)
    (group / "memory.max").write_text("1000")
    (group / "memory.current").write_text("980")
    (group / "memory.stat").write_text("inactive_file 100\nactive_file 50\n")
    (process / "cgroup").write_text("0::/\n")
    assert memory(tmp_path) == (1000, 880)
