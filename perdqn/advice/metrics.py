"""Recommendations for a dict of metrics from any value-based training, by the names people use.

Knows nothing about PERDQN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast.advising.tuner import HyperparameterTuner

from perdqn.advice.rule import ValueRule
from perdqn.advice.rules import RULES

_SPELLINGS = {
    "train/td_error_abs_mean": "td_error td_errors mean_td_error td_loss",
    "train/q_mean": "q_values q_value q_mean mean_q avg_q average_q_value",
    "train/grad_norm": "grad_norm gradient_norm gradient_norms grad_norms",
    "train/loss": "loss losses q_loss",
    "health/updates": "updates num_updates gradient_steps",
    "rollout/epsilon": "epsilon exploration_rate eps",
    "rollout/return_mean": "rewards reward returns return episode_rewards episode_reward episode_return "
    "mean_reward ep_rew_mean",
    "rollout/length_mean": "episode_length episode_lengths ep_len_mean",
    "eval/return_mean": "eval_reward eval_rewards eval_return evaluation_reward",
    "replay/beta": "beta",
    "replay/utilization": "buffer_utilization buffer_utilisation replay_utilization memory_utilization "
    "buffer_fill buffer_fill_fraction",
    "health/priority_entropy": "priority_entropy",
    "health/replay_ratio": "replay_ratio",
    "health/dormant_fraction": "dormant_fraction dormant_ratio",
    "health/dead_fraction": "dead_relus dead_fraction dead_relu_fraction",
}
NAMES = {spelling: name for name, spellings in _SPELLINGS.items() for spelling in spellings.split()}

_LR = "learning_rate"

# What a history alone shows; each asks for 20 samples, as the tuner does of any trend.
TRENDS = (
    ValueRule(
        name="td_errors_grow",
        when=["growth(train/td_error_abs_mean) > 2", "count(train/td_error_abs_mean) > 9"],
        priority="high",
        confidence=0.7,
        message="TD errors are {0:.1f} times what they were; lower the learning rate.",
        source="arXiv:1812.02648",
        setting=_LR,
        propose="value / 3",
        expected="errors that fall",
    ),
    ValueRule(
        name="q_values_grow",
        when=["growth(train/q_mean) > 10", "count(train/q_mean) > 9"],
        priority="high",
        confidence=0.6,
        message="Values are {0:.0f} times what they were; compare them with r_max / (1 - gamma), and update "
        "the target network less often.",
        source="arXiv:1812.02648",
        setting=_LR,
        propose="value / 3",
        expected="values within what can be earned",
    ),
    ValueRule(
        name="returns_fall",
        when=["trend(rollout/return_mean) < -3", "count(rollout/return_mean) > 9"],
        priority="high",
        confidence=0.7,
        message="Returns have been falling (Mann-Kendall's Z {0:.1f}); lower the learning rate, or look at "
        "the sign of rewards.",
        source="Mann, Econometrica 13 (1945)",
        setting=_LR,
        propose="value / 3",
        expected="returns that rise",
    ),
    ValueRule(
        name="exploration_lingers",
        when=["newest(rollout/epsilon) > 0.3", "trend(rollout/return_mean) < 1"],
        priority="medium",
        confidence=0.6,
        message="{0:.0%} of the actions are random while returns do not rise; let epsilon fall sooner.",
        source="doi:10.1038/nature14236",
        setting="epsilon_end",
        propose="0.05",
        expected="experience of where the policy leads",
    ),
    ValueRule(
        name="exploration_ended",
        when=["newest(rollout/epsilon) < 0.02", "abs(trend(rollout/return_mean)) < 1"],
        priority="low",
        confidence=0.5,
        message="Returns have been flat with {0:.1%} random actions; explore more if they are low.",
        source="doi:10.1038/nature14236",
        setting="epsilon_end",
        propose="0.05",
        expected="a way off the plateau",
    ),
    ValueRule(
        name="buffer_underused",
        when=["newest(replay/utilization) < 0.1"],
        priority="low",
        confidence=0.5,
        message="{0:.0%} of the replay is used; a smaller one saves memory, a longer warm-up fills it.",
        source="arXiv:2007.06700",
    ),
)


def get_tuning_recommendations(
    training_metrics: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """What the numbers say should be changed, most urgent first.

    Args:
        training_metrics: numbers or histories (oldest first) by name: td_error, q_values, epsilon, grad_norm,
            rewards, loss, buffer_utilization, beta, ...; or as PERDQN logs them.
        settings: learning_rate and the like; or as ``model.learner.learning_rate``.

    Returns:
        `Advice.as_dict` of each: ``rule``, ``priority``, ``message``, ``evidence``, ``changes``, ...
    """
    tuner = HyperparameterTuner([*RULES, *TRENDS], settings, NAMES, general=False)
    return tuner.get_tuning_recommendations(training_metrics)
