"""The numbers of a run: phases by their criterion, statistics against numbers known beforehand."""

import json

import numpy as np
import pytest
import torch
from small_runs import snapshot
from torch import nn

from perdqn.diagnostics import Evaluation, learning_phase, training_diagnostics
from perdqn.module import PERDQN
from perdqn.transition import OBS

FLAT = [Evaluation(mean, mean - 5.0, mean + 5.0) for mean in (100.0, 103.0, 98.0, 101.0)]
RISING = [Evaluation(mean, mean - 5.0, mean + 5.0) for mean in (100.0, 110.0, 120.0, 130.0)]


def phase(env_steps=5_000, epsilon=0.05, **given):
    return learning_phase(env_steps, 1_000, epsilon, 0.05, **given)


def test_run_warms_up_until_the_first_update_is_due():
    assert phase(env_steps=999, epsilon=0.9) == "warm-up"
    assert phase(env_steps=1_000, epsilon=0.9) == "exploration"


def test_run_explores_while_epsilon_is_annealed():
    assert phase(epsilon=0.06, evaluations=FLAT) == "exploration"
    assert phase(epsilon=0.05) == "learning"


def test_annealing_upwards_is_exploration_too():
    assert phase(epsilon=0.01) == "exploration"


def test_run_learns_while_evaluations_move_out_of_the_newest_interval():
    assert phase(evaluations=RISING) == "learning"
    assert phase(evaluations=FLAT[::-1] + RISING) == "learning"


def test_run_has_converged_when_the_newest_evaluations_are_flat():
    assert phase(evaluations=FLAT) == "converged"
    assert phase(evaluations=RISING + FLAT) == "converged"


def test_a_few_evaluations_are_not_called_flat():
    assert phase(evaluations=FLAT[:3]) == "learning"


def test_equal_returns_without_spread_are_flat():
    assert phase(evaluations=[Evaluation(500.0, 500.0, 500.0)] * 4) == "converged"


def test_a_reached_target_is_convergence_at_any_epsilon():
    assert phase(epsilon=0.5, has_reached_target=True) == "converged"


# -- a module ------------------------------------------------------------------------------------


@pytest.fixture
def module():
    return PERDQN(
        network={"class_path": "mlp", "init_args": {"hidden_sizes": []}},
        replay={"capacity": 400},
        learner={"warmup_env_steps": 50, "batch_size": 8, "dueling": False, "gamma": 0.5},
        exploration={"epsilon_start": 1.0, "epsilon_end": 0.1, "epsilon_env_steps": 900},
        total_env_steps=2_000,
    )


def fill_memory(module, num_steps, reward=1.0):
    """Ongoing steps at obs = (step, 0, 0, 0)."""
    for step in range(num_steps):
        obs = {OBS: np.array([[step, 0, 0, 0]], np.float32)}
        never = np.zeros(1, bool)
        module.memory.add(obs, np.zeros(1, int), np.full(1, reward, np.float32), never, never)


def make_linear(network, weight, bias):
    """Q(s, 0) = weight * s[0] + bias and Q(s, 1) = 0."""
    with torch.no_grad():
        network.head.advantage.weight.zero_()
        network.head.advantage.bias.zero_()
        network.head.advantage.weight[0, 0] = weight
        network.head.advantage.bias[0] = bias


def test_diagnostics_work_before_training_and_say_what_is_not_known(module):
    found = training_diagnostics(module)
    progress = found["training_progress"]
    assert progress["learning_phase"] == "warm-up"
    assert (progress["env_steps"], progress["updates"], progress["episodes"]) == (0, 0, 0)
    assert progress["return_mean"] is None
    assert progress["best_evaluation_mean"] is None
    assert (found["memory_info"]["memory_size"], found["memory_info"]["capacity"]) == (0, 400)
    assert found["memory_info"]["bytes"] > 0
    assert found["q_values"]["mean"] is found["td_error"]["mean"] is found["gradients"]["norm"] is None
    assert found["schedules"] == {"epsilon": 1.0, "beta": 0.4, "learning_rate": 1e-4}
    assert found["device"]["type"] == "cpu"
    assert found["device"]["num_parameters"] == 4 * 2 + 2


def test_diagnostics_are_plain_values(module):
    for num_steps in (0, 30):
        fill_memory(module, num_steps)
        found = training_diagnostics(module)
        assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_q_values_and_td_errors_are_those_of_the_networks(module):
    fill_memory(module, 11)  # 10 transitions, from s = 0..9 to s + 1
    make_linear(module.online, weight=2.0, bias=-9.0)
    make_linear(module.target, weight=1.0, bias=4.0)
    found = training_diagnostics(module)
    # Q(s, 0) = 2s - 9 and Q(s, 1) = 0: from s' = 5 on the online network chooses action 0, which the
    # target network values at s' + 4, and before that action 1, at 0
    q_values = np.array([[2.0 * s - 9.0, 0.0] for s in range(10)])
    next_values = [s + 1 + 4 if s + 1 >= 5 else 0.0 for s in range(10)]
    td_error = np.array([1.0 + 0.5 * next_values[s] - (2.0 * s - 9.0) for s in range(10)])
    for key, values in (("q_values", q_values), ("td_error", td_error)):
        expected = {
            "mean": values.mean(),
            "std": values.std(),
            "min": values.min(),
            "max": values.max(),
            "abs_mean": np.abs(values).mean(),
            "num_transitions": 10,
        }
        assert found[key] == pytest.approx(expected, abs=1e-5)


def test_a_large_replay_is_probed_from_its_oldest_row_to_its_newest(module):
    fill_memory(module, 350)
    make_linear(module.online, weight=1.0, bias=0.0)
    q_values = training_diagnostics(module)["q_values"]
    assert (q_values["num_transitions"], q_values["min"], q_values["max"]) == (256, 0.0, 348.0)


def test_diagnostics_change_nothing(module):
    module.online.torso = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), module.online.torso)
    module.train()
    fill_memory(module, 60)
    module.memory.sample(8)

    before = snapshot(module)
    first, second = training_diagnostics(module), training_diagnostics(module)
    assert before == snapshot(module)
    assert first["q_values"] == second["q_values"]


def test_progress_follows_counters_schedules_and_newest_logged_values(module):
    module.experience.env_steps = 450
    module.experience.episodes = 12
    module.update_steps = 100
    module.recent_episodes.update([10.0, 20.0], [10, 20])
    module.latest = {"train/grad_norm": 2.5, "train/learning_rate": 0.5, "train/loss": 0.25}
    found = training_diagnostics(module)
    progress = found["training_progress"]
    assert progress["learning_phase"] == "exploration"
    assert (progress["env_steps"], progress["updates"], progress["episodes"]) == (450, 100, 12)
    assert (progress["return_mean"], progress["length_mean"]) == (15.0, 15.0)
    assert found["gradients"] == {"norm": 2.5, "max_norm": 10.0, "loss": 0.25}
    assert found["schedules"]["epsilon"] == pytest.approx(0.55)
    assert found["schedules"]["learning_rate"] == 0.5


def test_phase_follows_the_evaluations_of_the_run(module):
    module.experience.env_steps = 1_500
    assert training_diagnostics(module)["training_progress"]["learning_phase"] == "learning"
    module.evaluations = list(FLAT)
    assert training_diagnostics(module)["training_progress"]["learning_phase"] == "converged"


def test_a_reached_target_is_read_from_the_newest_evaluation(module):
    module.experience.env_steps = 100
    module.config.evaluation.stop_at_return = 90.0
    module.evaluations = [Evaluation(89.0, 80.0, 95.0)]
    assert training_diagnostics(module)["training_progress"]["learning_phase"] == "exploration"
    module.evaluations.append(Evaluation(90.0, 80.0, 95.0))
    assert training_diagnostics(module)["training_progress"]["learning_phase"] == "converged"
