"""Recommendations for plain dicts."""

from perdqn.advice import get_tuning_recommendations


def rules_of(metrics, **settings):
    return [found["rule"] for found in get_tuning_recommendations(metrics, settings)]


HEALTHY = {
    "td_error": [0.5 + 0.01 * (i % 3) for i in range(30)],
    "q_values": [10.0 + 0.1 * i for i in range(30)],
    "epsilon": [max(0.05, 1.0 - 0.1 * i) for i in range(30)],
    "grad_norm": [2.0 + 0.1 * (i % 5) for i in range(30)],
    "rewards": [10.0 + 3.0 * i for i in range(30)],
    "loss": [0.3] * 30,
    "buffer_utilization": 0.6,
}


def test_healthy_metrics_call_for_nothing():
    assert rules_of(HEALTHY) == []


def test_usual_names_are_understood():
    assert rules_of({"td_errors": [0.1] * 15 + [5.0] * 15}) == ["td_errors_grow"]
    assert rules_of({"q_value": [1.0] * 15 + [500.0] * 15}) == ["q_values_grow"]
    assert rules_of({"gradient_norm": [1.0] * 29 + [900.0]}) == ["gradient_tails"]
    assert rules_of({"rewards": [100.0 - i for i in range(30)]}) == ["returns_fall"]
    assert rules_of({"exploration_rate": 0.9, "rewards": [5.0, 6.0] * 15}) == ["exploration_lingers"]
    assert rules_of({"buffer_utilization": 0.02}) == ["buffer_underused"]


def test_settings_are_changed_by_the_names_they_have():
    (found,) = get_tuning_recommendations({"td_error": [0.1] * 15 + [5.0] * 15}, {"learning_rate": 3e-3})
    assert found["changes"] == ({"setting": "learning_rate", "value": 3e-3, "proposed": 1e-3},)
    assert found["priority"] == "high"
    assert "learning rate" in found["message"]


def test_figures_as_perdqn_logs_them_are_understood():
    metrics = {"train/td_error_abs_mean": [0.1] * 15 + [5.0] * 15, "health/dead_fraction": 1.0}
    assert rules_of(metrics) == ["dead_relus", "td_errors_grow"]
