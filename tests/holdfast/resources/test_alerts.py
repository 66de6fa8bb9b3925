"""Alarms are raised above, cleared below, and not for a moment's sake."""

from __future__ import annotations

from holdfast.resources.alerts import THRESHOLDS, Alerts, Threshold

HOT = Threshold("hot", "heat_c", 80.0, 70.0, 3.0, "it has {heat_c}; {fan_share} of the fan", "cool it")
LOW = Threshold("low", "fuel", 10.0, 20.0, 0.0, "{fuel} left", "refuel")


def states(values: list[float], threshold: Threshold = HOT) -> list[str]:
    """What happens in each second."""
    alerts = Alerts([threshold])
    found = [alerts.check(float(now), {threshold.figure: value}) for now, value in enumerate(values)]
    return [alert[0].state if alert else "" for alert in found]


def test_an_alarm_waits_for_its_time_and_ends_below_where_it_began():
    assert states([90, 90, 90, 90, 75, 75, 69]) == ["", "", "", "raised", "", "", "cleared"]


def test_a_figure_that_hovers_around_its_threshold_raises_one_alarm():
    assert states([90] * 5 + [79, 81] * 50).count("raised") == 1


def test_a_short_peak_is_no_alarm():
    assert set(states([90, 90, 90, 20] * 10)) == {""}


def test_what_must_not_shrink_is_raised_below():
    assert states([30, 10, 15, 21], LOW) == ["", "raised", "", "cleared"]


def test_a_figure_that_is_missing_changes_nothing():
    alerts = Alerts([LOW])
    alerts.check(0.0, {"fuel": 5.0})
    assert alerts.check(1.0, {}) == []
    assert [*alerts.raised] == ["low"]


def test_an_alarm_says_what_it_is_with_figures_and_what_to_do():
    alerts = Alerts([HOT])
    alerts.check(0.0, {"heat_c": 90.0, "fan_share": 0.5, "other": 1.0})
    (alert,) = alerts.check(3.0, {"heat_c": 90.0, "fan_share": 0.5, "other": 1.0})
    assert alert.as_dict() == {
        "kind": "hot",
        "state": "raised",
        "message": "it has 90 °C; 50% of the fan",
        "figures": {"heat_c": 90.0, "fan_share": 0.5},
        "remedy": "cool it",
    }


def test_one_of_a_kind_that_is_there_stands_in_its_place():
    alerts = Alerts([Threshold("disk", "disk_free_bytes", 5.0, 6.0, 0.0, "full", "empty it")])
    assert alerts.check(0.0, {"disk_free_bytes": 100.0}) == []


def test_every_alarm_of_ours_has_room_between_raising_and_clearing_and_says_what_to_do():
    assert len({threshold.kind for threshold in THRESHOLDS}) == len(THRESHOLDS)
    for threshold in THRESHOLDS:
        at, over = threshold.raise_at, threshold.clear_at
        is_flag = threshold.kind in ("accelerator_throttled", "accelerator_ecc")
        assert (at != over) != is_flag
        assert threshold.is_beyond(at)
        assert not threshold.is_over(at)
        assert threshold.remedy
