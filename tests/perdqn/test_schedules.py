"""Schedules by hand."""

import pytest

from perdqn.schedules import LinearSchedule


@pytest.mark.parametrize(
    ("env_step", "value"), [(0, 1.0), (25, 0.8), (50, 0.6), (100, 0.2), (101, 0.2), (10**9, 0.2)]
)
def test_a_straight_line_and_then_a_constant(env_step, value):
    assert LinearSchedule(1.0, 0.2, 100)(env_step) == pytest.approx(value)


def test_a_rising_line_ends_exactly_at_its_end():
    assert LinearSchedule(0.4, 1.0, 7)(7) == 1.0
    assert all(LinearSchedule(0.4, 1.0, 7)(step) <= 1.0 for step in range(9))


def test_no_steps_at_all_mean_the_end_from_the_start():
    assert LinearSchedule(1.0, 0.1, 0)(0) == 0.1


def test_the_value_depends_on_the_step_alone():
    schedule = LinearSchedule(1.0, 0.1, 10)
    forwards = [schedule(step) for step in range(15)]
    assert forwards == [schedule(step) for step in reversed(range(15))][::-1]
