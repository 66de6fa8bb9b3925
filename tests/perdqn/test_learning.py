"""Learning as a whole: toys whose optimum is known are solved, and priorities win where they must."""

import numpy as np
import pytest
import torch
from cliffwalk import count_updates, fill, right_action, true_values
from lightning.pytorch import Trainer

from perdqn.module import PERDQN

GAMMA, LENGTH = 0.9, 5


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("prioritized", [True, False])
def test_a_corridor_is_valued_as_it_must_be(n_step: int, prioritized: bool) -> None:
    """Q*(s, right) = gamma^(steps still to go after this one), by hand."""
    agent = PERDQN(
        env={"id": "toys.Corridor", "kwargs": {"length": LENGTH}},
        replay={"capacity": 2_000, "beta_env_steps": 2_500, "prioritized": prioritized},
        learner={
            "learning_rate": 3e-3,
            "gamma": GAMMA,
            "n_step": n_step,
            "train_every": 1,
            "warmup_env_steps": 200,
            "target_update_period": 25,
        },
        exploration={"epsilon_end": 0.3, "epsilon_env_steps": 1_000},
        evaluation={"every_env_steps": None, "test_episodes": 2, "num_envs": 2},
        network={"class_path": "mlp", "init_args": {"hidden_sizes": [32]}},
        total_env_steps=2_500,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(agent)
    trainer.test(agent, verbose=False)
    assert agent.final_evaluation is not None
    assert agent.final_evaluation["mean"] == 1.0
    assert agent.final_evaluation["length_mean"] == LENGTH
    with torch.no_grad():
        values = agent({"obs": torch.arange(LENGTH)})[:, 1].numpy()
    # off-policy n-step returns include the detours of exploration, so they come out a little low
    tolerance = 0.05 if n_step == 1 else 0.2
    np.testing.assert_allclose(values, GAMMA ** np.arange(LENGTH - 1, -1, -1), atol=tolerance)


def test_the_cliffwalks_true_values_are_those_of_value_iteration() -> None:
    num_states, gamma = 6, 1 - 1 / 6
    q = np.zeros((num_states + 1, 2))
    for _ in range(50):
        for state in range(num_states):
            reward = float(state == num_states - 1)
            q[state, right_action(state)] = reward + (1 - reward) * gamma * q[state + 1].max()
    np.testing.assert_allclose(true_values(num_states), q)


def test_the_cliffwalk_replay_holds_each_sequence_once() -> None:
    replay = fill(5, prioritized=True, seed=0)
    assert len(replay) == 2**6 - 2
    assert replay.rows.rewards.sum() == 1.0


def test_priorities_find_the_cliffwalks_reward_in_a_third_of_the_updates() -> None:
    """Measured 3.6 to 4.9 over ten seeds at six states; see docs/results.md."""
    ratios = [count_updates(6, False, seed) / count_updates(6, True, seed) for seed in range(3)]
    assert np.median(ratios) > 2.5
