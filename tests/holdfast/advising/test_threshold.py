"""Rules that are data."""

import pytest
from holdfast.advising.advice import Change
from holdfast.advising.signals import Signals
from holdfast.advising.threshold import Threshold


def rule(**more: object) -> Threshold:
    fixed = {"name": "long", "priority": "high", "message": "{0:.0f}: {value} to {proposed}", "source": "us"}
    return Threshold(**{**fixed, "when": ["median(norm) > 10"], "least": 3, **more})  # type: ignore[arg-type]


def signals(*values: float, **settings: object) -> Signals:
    found = Signals(settings)
    for step, value in enumerate(values):
        found.add(step, {"norm": value})
    return found


def test_it_speaks_where_all_conditions_hold_and_enough_is_known() -> None:
    assert rule().check(signals(20, 20)) is None
    assert rule().check(signals(9, 9, 9)) is None
    assert rule(when=["median(norm) > 10", "min(norm) > 15"]).check(signals(20, 20, 5)) is None
    advice = rule().check(signals(20, 20, 20))
    assert advice is not None
    assert advice.evidence == {"median(norm)": 20.0, "median(norm) >": 10.0}


def test_the_proposal_is_for_the_setting_as_it_is_typed() -> None:
    wants = rule(setting="learning_rate", propose="value / 3")
    advice = wants.check(signals(20, 20, 20, **{"model.lr": 0.01}))
    assert advice is not None
    assert advice.changes == (Change("model.lr", 0.01, 0.00333),)
    assert advice.message == "20: 0.01 to 0.00333"


@pytest.mark.parametrize("value", [None, "auto", True])
def test_a_setting_that_is_no_number_gets_no_factor(value: object) -> None:
    advice = rule(setting="lr", propose="value / 3").check(signals(20, 20, 20, lr=value))
    assert advice is not None
    assert advice.changes == ()


def test_a_setting_that_is_off_can_be_turned_on() -> None:
    advice = rule(setting="gradient_clip_val", propose="p25(norm)").check(
        signals(20, 20, 20, **{"trainer.gradient_clip_val": None})
    )
    assert advice is not None
    assert advice.changes == (Change("trainer.gradient_clip_val", None, 20.0),)


@pytest.mark.parametrize(("value", "confidence"), [(10.001, 0.5), (20, 0.75), (100, 0.95)])
def test_confidence_grows_with_the_distance_from_the_threshold(value: float, confidence: float) -> None:
    advice = rule().check(signals(value, value, value))
    assert advice is not None
    assert advice.confidence == pytest.approx(confidence, abs=1e-3)


def test_conditions_that_are_no_list_are_refused() -> None:
    with pytest.raises(ValueError, match="when must be a list of conditions, got 'median"):
        rule(when="median(norm) > 10")
