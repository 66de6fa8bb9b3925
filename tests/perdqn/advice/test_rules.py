"""The rules of value-based learning: what they say of given figures, and what their document says."""

import re
from pathlib import Path

import pytest
from holdfast.advising.signals import Signals
from observability.faults import FAULTS

from perdqn.advice import RULES, advise
from perdqn.advice.settings import settings_of
from perdqn.config.values import HINTS, own_fault
from perdqn.module import PERDQN

DOCUMENT = Path(__file__).parents[3] / "docs" / "advice.md"
BY_NAME = {rule.name: rule for rule in RULES}

# a run in good health, halfway through
FIGURES = {
    "eval/return_mean": 120.0,
    "rollout/epsilon": 0.05,
    "rollout/length_mean": 100.0,
    "rollout/return_mean": 100.0,
    "train/grad_norm": 2.0,
    "health/updates": 12_500.0,
    "replay/beta": 0.7,
    "replay/size": 49_000.0,
    "health/progress": 0.51,
    "health/q_bound_ratio": 0.6,
    "health/overestimation": 0.1,
    "health/terminal_surplus": 0.1,
    "health/terminal_priority_growth": 0.1,
    "health/action_gap": 0.03,
    "health/policy_churn": 0.1,
    "health/td_error_relative": 0.05,
    "health/td_error_beyond_huber": 0.2,
    "health/td_error_abs_p50": 0.4,
    "health/priority_staleness": 0.8,
    "health/priority_entropy": 0.93,
    "health/weight_sample_size": 0.2,
    "health/never_replayed_fraction": 0.02,
    "health/replay_ratio": 8.0,
    "health/overwritten_fraction": 0.0,
    "health/reward_disagreement": 0.0,
    "health/reward_abs_mean": 1.0,
    "health/reward_abs_max": 1.0,
    "health/truncated_fraction": 0.1,
    "health/truncated_early_fraction": 0.0,
    "health/obs_abs_max": 3.0,
    "health/obs_varying_fraction": 1.0,
    "health/dormant_fraction": 0.2,
    "health/dead_fraction": 0.15,
    "health/num_features": 128.0,
    "health/feature_rank": 20.0,
    "health/weight_norm_growth": 2.0,
    "health/weight_gain": 1.5,
    "health/weight_gain_first": 0.8,
    "health/target_norm_growth": 1.9,
    "health/step_ratio": 4e-4,
    "health/step_limit": 5e-3,
    "health/adam_eps_fraction": 0.01,
    "health/untrained_fraction": 0.0,
}
SETTINGS = settings_of(PERDQN())

# what is different where a rule is to speak: figures, settings, and its proposal
CASES = {
    "obs_scale": ({"health/obs_abs_max": 800.0}, {}, None),
    "obs_constant": ({"health/obs_varying_fraction": 0.0}, {}, None),
    "reward_large": ({"health/reward_abs_mean": 300.0}, {}, 1.0),
    "reward_clipped_away": ({}, {"learner.reward_clip": 0.001}, 1.0),
    "rewards_disagree": ({"health/reward_disagreement": 2.0}, {}, None),
    "terminal_bootstrap": (
        {"health/terminal_surplus": 0.97, "health/terminal_priority_growth": 3.0},
        {},
        None,
    ),
    "termination_hidden": (
        {"health/truncated_fraction": 1.0, "health/truncated_early_fraction": 0.9},
        {},
        None,
    ),
    "learning_rate_high": ({"health/step_limit": 0.5}, {"learner.learning_rate": 0.05}, 5e-4),
    "learning_rate_low": (
        {"health/step_ratio": 4e-7, "health/step_limit": 5e-6},
        {"learner.learning_rate": 3e-7},
        3e-4,
    ),
    "adam_eps_large": ({"health/adam_eps_fraction": 1.0}, {"learner.adam_eps": 10.0}, 1e-8),
    "clip_tiny": ({}, {"learner.max_grad_norm": 1e-5}, 10.0),
    "target_static": ({"health/target_norm_growth": 1.0}, {}, 1230),
    "target_slow": ({}, {"learner.target_update_period": 10_000}, 1230),
    "target_tau_low": (
        {},
        {"learner.target_update_period": 100, "learner.target_tau": 0.005},
        pytest.approx(20 * 100 / 24_600, rel=1e-2),
    ),
    "target_fast": ({}, {"learner.target_update_period": 1}, 500),
    "epsilon_high": ({"rollout/epsilon": 1.0}, {"exploration.epsilon_end": 1.0}, 0.05),
    "epsilon_low": ({"rollout/epsilon": 0.0}, {"exploration.epsilon_start": 0.0}, 1.0),
    "discount_short": ({}, {"learner.gamma": 0.5}, 0.99),
    "n_step_long": ({}, {"learner.n_step": 20}, 3),
    "replay_small": ({"health/overwritten_fraction": 0.98}, {"replay.capacity": 500}, 50_000),
    "replay_ratio_low": ({"health/replay_ratio": 0.1}, {"learner.train_every": 256.0}, 4.0),
    "replay_ratio_high": ({"health/replay_ratio": 900.0}, {"learner.train_every": 0.05}, 1.0),
    "batch_small": ({}, {"learner.batch_size": 2}, 32),
    "network_small": ({"health/num_features": 2.0}, {}, None),
    "dead_relus": ({"health/dead_fraction": 1.0}, {}, pytest.approx(1e-4 / 3, rel=1e-2)),
    "weight_init_large": ({"health/weight_gain": 12.0, "health/weight_gain_first": 12.0}, {}, None),
    "untrained_parameters": ({"health/untrained_fraction": 0.5}, {}, None),
    "priorities_not_updated": ({"health/never_replayed_fraction": 1.0}, {}, None),
    "priorities_uniform": (
        {"health/priority_entropy": 0.99999},
        {"replay.priority_eps": 100.0},
        1e-6,
    ),
    "alpha_high": ({"health/priority_entropy": 0.3, "health/weight_sample_size": 0.001}, {}, 0.4),
    "beta_low": ({"replay/beta": 0.0}, {"replay.beta_end": 0.0}, 1.0),
    "huber_delta_tiny": ({"health/td_error_beyond_huber": 0.99}, {"learner.huber_delta": 1e-3}, 1.0),
    "warmup_long": ({}, {"learner.warmup_env_steps": 70_000}, 5_000),
    "warmup_short": ({}, {"learner.warmup_env_steps": 40}, 640),
    "q_divergence": ({"health/q_bound_ratio": 40.0}, {}, pytest.approx(1e-4 / 3, rel=1e-2)),
    "overestimation": ({"health/overestimation": 4.0}, {}, 2_000),
    "loss_linear": (
        {"health/td_error_beyond_huber": 1.0, "health/td_error_abs_p50": 7.0},
        {},
        7.0,
    ),
    "dormant_units": ({"health/dormant_fraction": 0.95}, {}, 5e-5),
    "rank_collapse": ({"health/feature_rank": 1.0}, {}, 5e-5),
    "weight_norm_growth": ({"health/weight_norm_growth": 30.0}, {}, 5e-5),
    "weight_sample_size": ({"health/weight_sample_size": 0.001}, {}, 0.4),
    "never_replayed": ({"health/never_replayed_fraction": 0.7}, {}, 0.4),
    "stale_priorities": ({"health/priority_staleness": 6.0}, {}, 50_000),
    "policy_churn": ({"health/policy_churn": 0.9}, {}, 5e-5),
    "action_gap": ({"health/action_gap": 1e-5}, {}, None),
    "evaluation_above_training": (
        {"eval/return_mean": 500.0, "rollout/epsilon": 0.3},
        {"exploration.epsilon_end": 0.3},
        0.15,
    ),
    "clipped_share": ({"train/grad_norm": 50.0}, {}, 50.0),
}
BY_HISTORY = {"gradient_tails", "td_error_rising"}


def signals_of(figures, settings, length=25):
    changed = {f"model.{name}": value for name, value in settings.items()}
    signals = Signals({**SETTINGS, **changed})
    for step in range(length):
        signals.add(51_000 + step, {**FIGURES, **figures})
    return signals


def test_nothing_is_said_of_a_healthy_run():
    assert advise(RULES, signals_of({}, {})) == []


def test_nothing_is_said_where_nothing_is_known():
    assert advise(RULES, Signals(SETTINGS)) == []


def test_every_rule_has_a_case():
    assert CASES.keys() | BY_HISTORY == BY_NAME.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_rule_speaks_where_its_figures_say_so_and_proposes_what_may_be_typed(name):
    figures, settings, proposed = CASES[name]
    found = {advice.rule: advice for advice in advise(RULES, signals_of(figures, settings))}
    assert name in found
    changes = found[name].changes
    assert [change.proposed for change in changes] == ([] if proposed is None else [proposed])
    for change in changes:
        key = change.setting.removeprefix("model.")
        assert own_fault(key, change.proposed) is None
        assert change.value == signals_of(figures, settings).settings[change.setting]
        assert isinstance(change.proposed, int) or HINTS[key] is not int
    assert "{" not in found[name].message
    assert BY_NAME[name].source in found[name].source


@pytest.mark.parametrize("name", CASES)
def test_a_cause_comes_before_what_it_brings_about(name):
    figures, settings, _ = CASES[name]
    symptoms = {rule.name for rule in RULES if BY_NAME[name] in rule.causes}
    worse = {"health/q_bound_ratio": 40.0, "health/dormant_fraction": 0.95, "health/policy_churn": 0.9}
    found = [advice.rule for advice in advise(RULES, signals_of({**worse, **figures}, settings))]
    if BY_NAME[name].causes:  # a symptom itself
        return
    assert found.index(name) < min((found.index(s) for s in symptoms if s in found), default=99)


def test_single_gradients_far_beyond_the_others_are_clipped():
    signals = signals_of({}, {"learner.max_grad_norm": None})
    signals.add(52_000, {"train/grad_norm": 500.0})
    (advice,) = advise(RULES, signals)
    assert advice.rule == "gradient_tails"
    assert [(c.setting, c.value, c.proposed) for c in advice.changes] == [
        ("model.learner.max_grad_norm", None, 2.0)
    ]


def test_a_run_that_still_warms_up_is_told_that_it_does_and_nothing_that_follows_from_it():
    young = {
        "health/updates": 0.0,
        "health/progress": 0.75,
        "health/replay_ratio": 0.0,
        "health/never_replayed_fraction": 1.0,
        "health/priority_entropy": 1.0,
        "health/target_norm_growth": 1.0,
    }
    long, proper = {"learner.warmup_env_steps": 60_000}, {}
    assert [each.rule for each in advise(RULES, signals_of(young, long))] == ["warmup_long"]
    assert advise(RULES, signals_of(young, proper)) == []


def test_steps_are_not_small_where_weights_have_become_large():
    grown = {"health/step_limit": 9e-5, "health/step_ratio": 1e-5, "health/weight_norm_growth": 50.0}
    assert [advice.rule for advice in advise(RULES, signals_of(grown, {}))] == ["weight_norm_growth"]


def test_a_target_that_moves_softly_is_slowed_down_by_how_far_it_moves():
    signals = signals_of({}, {"learner.target_update_period": 1, "learner.target_tau": 0.2})
    (advice,) = advise(RULES, signals)
    assert [(c.setting, c.proposed) for c in advice.changes] == [("model.learner.target_update_period", 100)]
    usual = {"learner.target_update_period": 1, "learner.target_tau": 0.005}
    assert advise(RULES, signals_of({}, usual)) == []


def test_few_updates_are_named_before_the_target_they_leave_behind():
    few = {"health/updates": 280.0, "health/replay_ratio": 0.3}
    signals = signals_of(few, {"learner.train_every": 100, "learner.target_update_period": 1_000})
    assert [advice.rule for advice in advise(RULES, signals)] == ["replay_ratio_low", "target_slow"]


def test_errors_that_outgrow_values_are_named():
    signals = Signals(SETTINGS)
    for step, error in enumerate([0.05] * 6 + [0.1] * 6 + [0.4] * 6):
        signals.add(step, {**FIGURES, "health/td_error_relative": error})
    assert [advice.rule for advice in advise(RULES, signals)] == ["td_error_rising"]


# -- docs/advice.md --------------------------------------------------------------------------------


def row_of(rule):
    """How the document's table shows a rule."""
    whens = "<br>".join(f"`{when}`" for when in rule.when)
    causes = f"<br>unless {', '.join(sorted(cause.name for cause in rule.causes))}" if rule.causes else ""
    change = f"`{rule.setting}` = `{rule.propose}`" if rule.setting else "by hand"
    scored = ", ".join(name for name, fault in FAULTS.items() if rule.name in fault.labels)
    cells = (
        f"`{rule.name}`",
        f"{rule.priority}, {rule.confidence:g}",
        whens + causes,
        change,
        rule.expected,
        rule.source,
        scored or "healthy runs alone",
    )
    return f"| {' | '.join(cells)} |"


def test_the_document_shows_every_rule_as_it_is():
    shown = re.findall(r"^\| `\w+` \|.*$", DOCUMENT.read_text(), re.MULTILINE)
    assert shown == [row_of(rule) for rule in RULES]
