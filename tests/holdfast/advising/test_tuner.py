"""Recommendations for a plain dict."""

import json
import math

import numpy as np
import pytest
from holdfast import HyperparameterTuner
from holdfast.advising.advice import PRIORITIES, Advice
from holdfast.advising.names import figure_of, find_setting
from holdfast.advising.rule import Rule
from holdfast.advising.signals import Signals
from holdfast.advising.threshold import Threshold

BAD = {
    "loss": [1.0 + step / 10 for step in range(60)],
    "val_loss": np.linspace(1, 3, 12),
    "grad_norm": 40.0,
    "max_grad_norm": 0.5,
    "learning_rate": 0.1,
    "dead_units": 0.9,
    "mood": 3.0,
    "name": "try 7",
}


def test_recommendations_are_plain_and_most_urgent_first() -> None:
    found = HyperparameterTuner().get_tuning_recommendations(BAD)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(found, default=list))
    assert {"rule", "priority", "message", "changes", "evidence"} <= found[0].keys()
    ranks = [PRIORITIES.index(each["priority"]) for each in found]
    assert ranks == sorted(ranks)
    assert [each["rule"] for each in found][:1] == ["loss_diverging"]
    assert found[0]["changes"] == ({"setting": "learning_rate", "value": 0.1, "proposed": 0.01},)


def test_a_number_stands_for_all_of_it_but_shows_no_trend() -> None:
    names = [each["rule"] for each in HyperparameterTuner().get_tuning_recommendations({"dead_units": 0.9})]
    assert names == ["dead_units"]
    assert HyperparameterTuner().get_tuning_recommendations({"loss": 5.0, "learning_rate": 1e-3}) == []


def test_what_is_not_understood_is_noted() -> None:
    tuner = HyperparameterTuner()
    tuner.get_tuning_recommendations(BAD)
    assert [note.split()[0] for note in tuner.notes] == ["mood", "name"]
    tuner.get_tuning_recommendations({"loss": 1.0})
    assert tuner.notes == []


@pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, math.nan]])
def test_a_loss_that_is_not_finite_is_named(value: object) -> None:
    metrics = {"train/loss": value, "grad_norm": [1.0] * 50}
    (found,) = HyperparameterTuner().get_tuning_recommendations(metrics)
    assert (found["rule"], found["priority"]) == ("not_finite", "critical")


@pytest.mark.parametrize("value", [[], None, {}, "text", [[1.0], [2.0, 3.0]], True])
def test_values_that_are_no_numbers_break_nothing(value: object) -> None:
    assert HyperparameterTuner().get_tuning_recommendations({"loss": value}) == []


def test_rules_and_names_of_others_are_used() -> None:
    class Mine(Rule):
        name = "mine"

        def check(self, signals: Signals) -> Advice | None:
            value = signals.newest("train/q")
            return None if value is None else Advice("mine", "low", f"{value}", {}, "us")

    dead = Threshold("dead_units", ["newest(dead_units) > 2"], "low", "", "us")
    tuner = HyperparameterTuner([Mine(), dead], names={"q_values": "train/q"})
    found = tuner.get_tuning_recommendations({"q_values": [1.0, 7.0], "dead_units": 0.9})
    assert [(each["rule"], each["message"]) for each in found] == [("mine", "7.0")]
    assert tuner.notes == []
    assert HyperparameterTuner(general=False).rules == []


@pytest.mark.parametrize(
    ("name", "figure"),
    [
        ("loss", "loss"),
        ("train/loss", "loss"),
        ("train_loss_step", "loss"),
        ("train_loss_epoch", None),
        ("Val-Loss", "val_loss"),
        ("val_loss_epoch", "val_loss"),
        ("val_loss_step", None),
        ("lr-Adam", "learning_rate"),
        ("gradient_norm", "grad_norm"),
        ("g_loss", None),
    ],
)
def test_figures_are_known_by_many_names(name: str, figure: str | None) -> None:
    assert figure_of(name) == figure


def test_settings_are_found_by_name_or_role() -> None:
    settings = {"model.optimizer.lr": 0.1, "model.max_grad_norm": 5}
    assert find_setting(settings, "learning_rate") == ("model.optimizer.lr", 0.1)
    assert find_setting(settings, "gradient_clip_val") == ("model.max_grad_norm", 5)
    assert find_setting(settings, "model.max_grad_norm") == ("model.max_grad_norm", 5)
    assert find_setting(settings, "batch_size") == (None, None)
