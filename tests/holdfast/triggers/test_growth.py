"""Steady growth is told apart from jumps and noise."""

from __future__ import annotations

import random

import pytest
from holdfast.triggers.growth import Growth


def grow(values, spacing_s: float = 0.5) -> Growth:
    growth = Growth(window_s=30)
    for number, value in enumerate(values):
        growth.add(number * spacing_s, value)
    return growth


@pytest.mark.parametrize("spacing_s", [0.1, 0.5, 3.0])
def test_a_line_has_its_slope(spacing_s):
    assert grow([7 * spacing_s * n for n in range(100)], spacing_s).rate == pytest.approx(7)


def test_noise_and_outliers_on_a_line_change_little():
    draw = random.Random(1)
    values = [1e4 if n % 9 == 8 else 50 * n + 20 * draw.random() for n in range(98)]
    assert grow(values).rate == pytest.approx(100, rel=0.3)


@pytest.mark.parametrize("at", range(1, 60))
def test_a_jump_is_no_growth_whenever_it_came(at):
    assert grow([0.0] * at + [1e9] * (60 - at)).rate == 0


def test_noise_is_rarely_growth():
    draw = random.Random(2)
    growth, num_rising = Growth(window_s=30), 0
    for number in range(4000):
        growth._scales[0].add(0.5 * number, draw.random())
        num_rising += growth._scales[0].rate > 0
    assert num_rising / 4000 < 0.015


def test_falling_and_standing_still_are_no_growth():
    assert grow([100.0 - n for n in range(60)]).rate == 0
    assert grow([5.0] * 60).rate == 0


def test_too_few_samples_say_nothing():
    assert grow([0, 1, 2, 3, 4, 5, 6]).rate == 0


def test_growth_too_slow_for_one_scale_is_seen_on_another():
    lumps = [100.0 * (n // 20) for n in range(300)]  # one every ten seconds
    assert grow(lumps).rate == pytest.approx(10, rel=0.5)
