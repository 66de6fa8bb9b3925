"""Figures of value-based learning, against numbers worked out by hand; when they are looked at."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from small_runs import SaveAt, fitted, small, snapshot, trainer
from torch import nn

from perdqn import formulas, health
from perdqn.learning.networks import MLP
from perdqn.module import PERDQN
from perdqn.transition import OBS

# -- a module whose every number is known ----------------------------------------------------------


def make(hidden_sizes=(), **learner):
    return PERDQN(
        network={"class_path": "mlp", "init_args": {"hidden_sizes": list(hidden_sizes)}},
        replay={"capacity": 400, "alpha": 1.0, "beta_start": 0.5, "beta_end": 0.5},
        learner={"warmup_env_steps": 50, "batch_size": 8, "dueling": False, "gamma": 0.5, **learner},
        total_env_steps=2_000,
    )


def add(module, x, action=0, reward=1.0, terminated=False, truncated=False):
    obs = {OBS: np.array([[x, 0, 0, 0]], np.float32)}
    flags = (np.array([terminated]), np.array([truncated]))
    final = {OBS: np.full((1, 4), -1, np.float32)}
    module.memory.add(obs, np.array([action]), np.array([reward], np.float32), *flags, final)


def make_linear(network, weight, bias):
    """Q(s, 0) = weight * s[0] + bias and Q(s, 1) = 0."""
    with torch.no_grad():
        network.head.advantage.weight.zero_()
        network.head.advantage.bias.zero_()
        network.head.advantage.weight[0, 0] = weight
        network.head.advantage.bias[0] = bias


def measure(module):
    figures = module._health.measure(module)
    return {name.removeprefix("health/"): value for name, value in figures.items()}


def test_an_empty_replay_leaves_the_weights_alone_to_be_told():
    found = measure(make())
    assert {"weight_norm", "target_lag", "progress"} <= found.keys()
    assert "q_abs_max" not in found


def test_values_are_told_beside_what_can_be_earned():
    module = make()
    for step in range(5):
        add(module, step, reward=2.0 if step == 3 else -4.0)  # 4 transitions
    make_linear(module.online, 3.0, 1.0)  # values 1, 4, 7, 10 and 0
    found = measure(module)
    assert found["q_abs_max"] == pytest.approx(10.0)
    assert found["q_bound_ratio"] == pytest.approx(10.0 / (4.0 / 0.5))
    assert found["action_gap"] == pytest.approx(22 / 4 / (22 / 8))
    assert found["action_spread"] == pytest.approx(22 / 8 / (22 / 8))
    assert found["reward_abs_mean"] == pytest.approx(14 / 4)


def test_realised_returns_are_compared_with_the_values_of_actions_taken():
    module = make()
    add(module, 1, reward=1.0)
    add(module, 2, reward=2.0)
    add(module, 3, action=1, reward=4.0, terminated=True)  # returns 3, 4 and 4
    add(module, 7)
    add(module, 8)  # an episode that goes on
    make_linear(module.online, 2.0, 0.0)  # values taken 2, 4 and 0
    found = measure(module)
    assert found["realised_return_mean"] == pytest.approx(11 / 3)
    assert found["q_taken_mean"] == pytest.approx(2.0)
    assert found["overestimation"] == pytest.approx((6 - 11) / 11)
    assert found["value_correlation"] == pytest.approx(np.corrcoef([2, 4, 0], [3, 4, 4])[0, 1])
    sizes = np.array([2, 4, 6, 14])  # of action 0 in the 4 transitions
    assert found["terminal_surplus"] == pytest.approx(-4.0 / (sizes.sum() / 8))
    assert found["terminal_fraction"] == 0.25
    assert found["truncated_fraction"] == 0.0


def test_episodes_that_are_cut_early_are_told_from_those_a_time_limit_cuts():
    for lengths, early in (([3, 5, 5, 5], 0.0), ([3, 5, 2, 4, 5], 0.5)):  # the first may have lost rows
        module = make()
        for length in lengths:
            for step in range(length):
                add(module, step, truncated=step == length - 1)
        found = measure(module)
        assert found["truncated_fraction"] == 1.0
        assert found["truncated_early_fraction"] == pytest.approx(early)


def test_rewards_in_the_replay_are_compared_with_those_the_episodes_earned():
    module = make()
    for reward in (5.0, 1.0, 3.0):
        add(module, 0, reward=reward)
        add(module, 1, reward=reward, terminated=True)
    module.recent_episodes.update([10.0, 2.0, 6.0], [2, 2, 2])
    assert measure(module)["reward_disagreement"] == 0.0
    module.recent_episodes.update([8.0, -2.0], [2, 2])  # of the newest two the replay says 2 and 6
    assert measure(module)["reward_disagreement"] == pytest.approx((4.0 - 3.0) / 5.0)


def test_priorities_are_told_as_they_are_stored():
    module = make()
    for step in range(5):
        add(module, step)
    make_linear(module.online, 0.0, 0.0)
    make_linear(module.target, 0.0, 0.0)  # every TD error is 1
    ids = module.memory.rows.ids(np.arange(4))
    module.memory.update_priorities(ids[:3], np.array([2.0, 1.0, 1.0]))
    found = measure(module)
    assert found["never_replayed_fraction"] == 0.25  # it took over the maximum, 2
    probabilities = np.array([2, 1, 1, 2]) / 6
    assert found["priority_entropy"] == pytest.approx(formulas.entropy(probabilities), abs=1e-5)
    assert found["weight_sample_size"] == pytest.approx(
        formulas.weight_sample_size(probabilities, 0.5), abs=1e-5
    )
    assert found["priority_staleness"] == pytest.approx(0.0, abs=1e-5)  # median of log 2, 0, 0
    assert found["td_error_abs_p50"] == pytest.approx(1.0)
    assert (found["replay_ratio"], found["overwritten_fraction"]) == (0.0, 0.0)


def test_nothing_is_told_of_priorities_where_draws_are_uniform():
    module = PERDQN(replay={"prioritized": False})
    for step in range(5):
        add(module, step)
    found = measure(module)
    assert "reward_abs_mean" in found
    assert not {"priority_entropy", "never_replayed_fraction", "priority_staleness"} & found.keys()


def test_priorities_of_ends_are_compared_with_errors_that_expect_nothing_to_follow():
    module = make()
    for _ in range(2):
        add(module, 1)
        add(module, 2, reward=3.0, terminated=True)
    make_linear(module.online, 4.0, 0.0)  # 8 where 3 is all that comes: errors of 5
    first, last = module.memory.rows.ids(np.array([1, 4]))
    module.memory.update_priorities(np.array([first, last]), np.array([5.0, 5.0]))
    assert measure(module)["terminal_priority_growth"] == pytest.approx(0.0, abs=1e-5)
    module.memory.update_priorities(np.array([first, last]), np.array([0.5, 0.5]))
    assert measure(module)["terminal_priority_growth"] == pytest.approx(math.log(10), abs=1e-5)


def test_inputs_are_told_as_the_network_sees_them():
    module = make()
    for step in range(4):
        add(module, step)
    found = measure(module)
    assert found["obs_abs_max"] == 2.0
    assert found["obs_mean"] == pytest.approx((0 + 1 + 2) / 12)
    assert found["obs_std"] == pytest.approx(np.std([0, 1, 2] + [0] * 9))
    assert found["obs_varying_fraction"] == 0.25


def silent_network(module):
    """4 units: 2 never answer, one hardly does, one does."""
    layer = module.online.torso.layers[0]
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias[:] = torch.tensor([-1.0, -2.0, 0.01, 3.0])


def test_units_that_do_nothing_are_counted():
    module = make([4])
    silent_network(module)
    for step in range(4):
        add(module, step)
    found = measure(module)
    assert (found["dead_fraction"], found["dormant_fraction"]) == (0.5, 0.75)
    assert (found["num_features"], found["feature_rank"]) == (4.0, 1.0)
    assert found["feature_rank_fraction"] == pytest.approx(1 / 3)  # of 3 transitions


def test_activations_are_seen_however_a_network_calls_them():
    class Functional(MLP):
        def forward(self, x):
            return torch.relu(self.layers[0](x))

    module = make([4])
    module.online.torso.__class__ = Functional
    silent_network(module)
    add(module, 0)
    add(module, 1)
    assert measure(module)["dead_fraction"] == 0.5


def test_weights_are_told_beside_those_of_the_beginning_and_of_the_target():
    module = make()
    norm = formulas.weight_norm(module.online)
    with torch.no_grad():
        for parameter in module.online.parameters():
            parameter.mul_(3.0)
    found = measure(module)
    assert found["weight_norm"] == pytest.approx(3 * norm)
    assert found["weight_norm_growth"] == pytest.approx(3.0)
    assert found["target_norm_growth"] == 1.0
    assert found["target_lag"] == pytest.approx(2 / 3)
    weight = module.online.head.advantage.weight.detach()
    assert found["weight_gain"] == pytest.approx(float(weight.square().mean().sqrt()) * 2.0)


def test_the_gain_of_the_first_look_is_kept_however_long_a_run():
    module = make()
    first = module._health.look(module)["health/weight_gain_first"]
    with torch.no_grad():
        for parameter in module.online.parameters():
            parameter.mul_(9.0)
    again = make()
    again._health.load_state_dict(module._health.state_dict())
    for own in (module._health, again._health):
        found = own.look(module)
        assert found["health/weight_gain_first"] == first
        assert found["health/weight_gain"] == pytest.approx(9 * first)


def test_churn_is_the_share_of_rows_whose_greedy_action_changed_since_the_last_look():
    module = make()
    for step in range(5):
        add(module, step)
    make_linear(module.online, 1.0, 1.0)
    assert "health/policy_churn" not in module._health.look(module)
    make_linear(module.online, -1.0, 1.5)  # action 1 from s = 2 on
    assert module._health.measure(module)["health/policy_churn"] == 0.5
    state = module._health.state_dict()
    again = make()._health
    again.load_state_dict(state)
    assert again.measure(module)["health/policy_churn"] == 0.5
    assert module._health.look(module)["health/policy_churn"] == 0.5
    assert module._health.look(module)["health/policy_churn"] == 0.0


def test_churn_leaves_out_rows_that_are_gone():
    module = PERDQN(replay={"capacity": 10}, learner={"warmup_env_steps": 8, "batch_size": 8})
    for step in range(10):
        add(module, step)
    module._health.look(module)
    for step in range(8):
        add(module, step)
    assert module._health.measure(module)["health/policy_churn"] == 0.0  # the one that is left
    add(module, 8)
    assert "health/policy_churn" not in module._health.measure(module)


def test_a_look_changes_nothing_and_gives_the_same_figures_again():
    module = make([8])
    for network in (module.online, module.target):
        network.torso = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), network.torso)
    module.train()
    for step in range(60):
        add(module, step, terminated=step % 7 == 0)
    module.memory.sample(8)

    before = snapshot(module)
    first = measure(module)
    assert first == measure(module)
    assert before == snapshot(module)


def test_figures_of_a_large_replay_are_of_rows_spread_over_all_of_it():
    module = PERDQN(env={"num_envs": 2}, replay={"capacity": 50_000}, network={"class_path": "mlp"})
    pair = {OBS: np.zeros((2, 4), np.float32)}
    never = np.zeros(2, bool)
    for step in range(12_000):
        module.memory.add(pair, np.zeros(2, int), np.full(2, step, np.float32), never, never)
    ids = health.spread_ids(module, 1_000)
    assert ids.size == 1_000 == np.unique(ids).size
    assert module.memory.rows.may_start(ids).all()
    counter, env = np.divmod(ids, 2)
    assert (env == 0).sum() == 500
    assert counter[env == 0].max() > 11_900
    assert counter[env == 1].min() < 100


# -- runs ------------------------------------------------------------------------------------------


class Hearing(Callback):
    """Keeps what a run logs of its health."""

    def __init__(self):
        self.heard = []

    def on_train_start(self, trainer, module):
        module.metrics_watch = lambda metrics: self.heard.append((module.env_steps, self._of(metrics)))

    @staticmethod
    def _of(metrics):
        return {name: value for name, value in metrics.items() if name.startswith("health/")}


def test_health_is_looked_at_first_seldom_and_with_each_evaluation(monkeypatch):
    monkeypatch.setattr(health, "EVERY_UPDATES", 45)
    hearing, module = Hearing(), small()
    trainer(hearing, log_every_n_steps=10).fit(module)
    told = [step for step, figures in hearing.heard if figures]
    assert told == [90, 200, 360, 400, 540, 600]  # updates 10, 46, 100, 113, 160, 180


def test_a_resumed_run_tells_the_same_health(tmp_path):
    whole, resumed = Hearing(), Hearing()
    save = SaveAt(tmp_path / "at.ckpt", 300)
    fitted(whole, save)
    trainer(resumed).fit(small(), ckpt_path=save.path)
    assert resumed.heard
    assert resumed.heard == whole.heard[-len(resumed.heard) :]


def test_steps_are_those_adam_would_take():
    module = small(learner={"backend": "eager"})
    trainer().fit(module)
    group, state = module.trainer.optimizers[0].param_groups[0], module.trainer.optimizers[0].state
    (beta1, beta2), count = group["betas"], module.update_steps
    moved = total = 0.0
    for parameter in module.online.parameters():
        mean = state[parameter]["exp_avg"] / (1 - beta1**count)
        root = (state[parameter]["exp_avg_sq"] / (1 - beta2**count)).sqrt()
        moved += float((group["lr"] * mean / (root + group["eps"])).square().sum())
        total += float(parameter.detach().square().sum())
    found = measure(module)
    assert found["step_ratio"] == pytest.approx(math.sqrt(moved / total), rel=1e-5)
    num_parameters = sum(parameter.numel() for parameter in module.online.parameters())
    assert found["step_limit"] == pytest.approx(group["lr"] * math.sqrt(num_parameters / total), rel=1e-5)
    assert found["untrained_fraction"] == 0.0
    assert 0.0 <= found["adam_eps_fraction"] < 0.1
