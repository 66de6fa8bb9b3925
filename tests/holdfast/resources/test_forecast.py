"""Simulated courses of memory: leaks are foretold within their interval, everything else leaves in peace.

Levels are shares of the limit, a sample is a second. Each course is looked at from random moments, and the
truth is when a sample first reaches 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pytest
from holdfast.resources.forecast import Forecast, time_to_end, time_to_limit
from holdfast.resources.history import History, Series

HORIZON_S = 600.0  # of the alarm
SECONDS = 20_000
RESOLUTION = 5e-4


def lingering(rng: np.random.Generator, deviation: float, correlation: float) -> np.ndarray:
    steps = rng.normal(size=SECONDS) * deviation * math.sqrt(1 - correlation**2)
    values = np.empty(SECONDS)
    value = rng.normal() * deviation
    for index, step in enumerate(steps.tolist()):
        value = correlation * value + step
        values[index] = value
    return values


def leak(rng: np.random.Generator) -> np.ndarray:
    since = np.maximum(0, np.arange(SECONDS) - rng.uniform(0, 100))
    noise = lingering(rng, 10 ** rng.uniform(-3.5, -2.2), rng.choice([0, 0.7]))
    return 0.3 + 10 ** rng.uniform(-4.5, -3.2) * since + noise


def teeth(rng: np.random.Generator, period: float, height: float) -> np.ndarray:
    phase = np.cumsum(rng.uniform(0.85, 1.15, SECONDS) / period) + rng.uniform()
    return height * (phase % 1) + rng.normal(size=SECONDS) * 0.003


def saw(rng: np.random.Generator) -> np.ndarray:
    return 0.3 + teeth(rng, 10 ** rng.uniform(0.5, 2.6), rng.uniform(0.1, 0.55))


def leaking_saw(rng: np.random.Generator) -> np.ndarray:
    rate = 10 ** rng.uniform(-4.3, -3.5)
    return 0.3 + rate * np.arange(SECONDS) + teeth(rng, 10 ** rng.uniform(0.7, 2.3), rng.uniform(0.05, 0.2))


def steps(rng: np.random.Generator) -> np.ndarray:
    values = 0.2 + lingering(rng, 0.002, rng.choice([0, 0.7]))
    for _ in range(rng.integers(1, 4)):
        values[rng.integers(0, 3000) :] += rng.uniform(0.02, 0.2)
    return values


def noise(rng: np.random.Generator) -> np.ndarray:
    return 0.5 + lingering(rng, 10 ** rng.uniform(-3, -1.5), rng.choice([0, 0.5, 0.9]))


def saturating(rng: np.random.Generator) -> np.ndarray:
    rise = 1 - np.exp(-np.arange(SECONDS) / 10 ** rng.uniform(1.5, 2.5))
    return 0.2 + rng.uniform(0.2, 0.6) * rise + rng.normal(size=SECONDS) * 0.002


def filling(rng: np.random.Generator) -> np.ndarray:
    """Over within 300 s; looked at from then on."""
    share = np.minimum(1, np.arange(SECONDS) / rng.uniform(50, 250))
    return 0.2 + rng.uniform(0.2, 0.6) * share + rng.normal(size=SECONDS) * 0.002


def stairs(rng: np.random.Generator) -> np.ndarray:
    number = np.floor(np.arange(SECONDS) / rng.uniform(15, 80) + rng.uniform())
    return 0.2 + rng.uniform(0.004, 0.02) * number + rng.normal(size=SECONDS) * 0.001


def seen(values: np.ndarray, most: int = 48, factor: int = 8) -> Series:
    """What a History that was shown these values has of them, much faster."""
    means = peaks = values
    found: list[tuple[float, float, float, float]] = []
    for scale in range(5):
        width = factor**scale
        if scale:
            num = len(means) // factor
            means = means[: num * factor].reshape(num, factor).mean(axis=1)
            peaks = peaks[: num * factor].reshape(num, factor).max(axis=1)
        first = max(0, len(means) - most)
        begin = found[0][0] - (found[0][3] - 1) / 2 if found else math.inf
        older = [
            (n * width + (width - 1) / 2, float(means[n]), float(peaks[n]), float(width))
            for n in range(first, len(means))
            if n * width < begin
        ]
        end = older[-1][0] + (older[-1][3] - 1) / 2 if older else -math.inf
        found = [*older, *(entry for entry in found if entry[0] - (entry[3] - 1) / 2 > end)]
    return Series(*np.array(found).reshape(-1, 4).T)


class Look(NamedTuple):
    forecast: Forecast
    truth_s: float
    seen_s: int


def looks(
    course: Callable[[np.random.Generator], np.ndarray], from_s: int = 30, runs: int = 30
) -> Iterator[Look]:
    for seed in range(runs):
        rng = np.random.default_rng([7, seed])
        values = course(rng)
        reached = np.flatnonzero(values >= 1)
        end = int(reached[0]) if reached.size else SECONDS
        last = min(end, 3000)
        for now in rng.integers(min(from_s, last - 1), last, 4):
            forecast = time_to_limit(seen(values[: now + 1]), 1.0, RESOLUTION)
            yield Look(forecast, end - now if reached.size else math.inf, int(now))


def is_alarming(look: Look) -> bool:
    return look.forecast.high_s < HORIZON_S


def test_the_fast_history_of_these_tests_is_the_real_one():
    values = np.random.default_rng(0).random(3000)
    history = History()
    for at, value in enumerate(values):
        history.add(float(at), {"a": value})
    for real, fast in zip(history.series("a", 48), seen(values), strict=True):
        assert real == pytest.approx(fast)


@pytest.mark.parametrize("course", [leak, leaking_saw, stairs])
def test_nine_of_ten_ends_that_are_foretold_lie_within_the_interval(course):
    told = [look for look in looks(course) if look.forecast.seconds < math.inf]
    hits = [look.forecast.low_s <= look.truth_s <= look.forecast.high_s for look in told]
    assert len(told) > 20
    assert np.mean(hits) >= 0.9


def test_a_leak_is_foretold_in_time_and_closely():
    due = [look for look in looks(leak, 200, 60) if look.truth_s < 400]
    assert len(due) >= 5
    assert all(is_alarming(look) for look in due)
    far = [look for look in looks(leak, 200, 20) if look.truth_s > 600]
    told = [look for look in far if look.forecast.high_s < math.inf]
    widths = [(look.forecast.high_s - look.forecast.low_s) / look.truth_s for look in told]
    assert np.median(widths) < 0.3


@pytest.mark.parametrize(
    ("course", "from_s"), [(saw, 800), (steps, 30), (noise, 30), (saturating, 300), (filling, 300)]
)
def test_what_does_not_end_raises_no_alarm(course, from_s):
    """A first tooth, and a filling not yet over, are lines like a leak's: who can announces them."""
    alarms = [look for look in looks(course, from_s) if is_alarming(look)]
    assert len(alarms) <= 1  # of 120


def test_saw_teeth_however_near_the_limit_raise_no_alarm():
    alarms = [look for look in looks(lambda rng: 0.4 + teeth(rng, 60, 0.5), 200) if is_alarming(look)]
    assert alarms == []


def test_courses_are_told_apart():
    leaks = [look.forecast.shape for look in looks(leak, 1000, 20)]
    levels = [look.forecast.shape for look in looks(noise, 1000, 20)]
    rises = (0.2 + 0.6 * (1 - np.exp(-np.arange(400) / constant)) for constant in (150, 200, 250, 300))
    saturations = [time_to_limit(seen(values), 1.0, RESOLUTION).shape for values in rises]
    long_teeth = 0.3 + 0.4 * (np.arange(3000) % 900) / 900
    assert leaks.count("growing") / len(leaks) > 0.9
    assert levels.count("flat") / len(levels) > 0.85
    assert set(saturations) == {"saturating"}
    assert time_to_limit(seen(long_teeth), 1.0, RESOLUTION).shape == "saw-teeth"


def test_stairs_that_have_ended_are_level():
    values = 0.3 + 0.01 * np.minimum(np.arange(3000) // 30, 40)
    assert time_to_limit(seen(values[:1100]), 1.0, RESOLUTION).seconds < math.inf
    assert time_to_limit(seen(values), 1.0, RESOLUTION).seconds == math.inf


def test_a_leak_after_hours_of_quiet_is_seen_within_a_minute():
    values = 0.4 + np.random.default_rng(0).normal(size=10_060) * 0.001
    values[10_000:] += 0.003 * np.arange(60)
    found = time_to_limit(seen(values), 1.0, RESOLUTION)
    assert found.low_s <= (0.6 / 0.003) - 60 <= found.high_s < HORIZON_S


def test_nothing_is_foretold_of_a_few_samples_nor_far_beyond_what_was_seen():
    assert time_to_limit(seen(np.arange(8) / 10), 1.0, RESOLUTION).shape == "unknown"
    slow = 0.1 + 1e-4 * np.arange(100)
    assert time_to_limit(seen(slow), 1.0, RESOLUTION).seconds == math.inf


def test_samples_that_come_a_little_early_or_late_say_the_same():
    rng, history = np.random.default_rng(3), History()
    for at in range(1500):
        late = at + rng.uniform(0, 0.3)
        history.add(late, {"a": 0.2 + 0.0004 * late + rng.normal() * 0.002})
    found = time_to_limit(history.series("a", 48), 1.0, RESOLUTION)
    assert found.low_s <= 0.8 / 0.0004 - 1500 <= found.high_s < HORIZON_S


def test_no_random_stream_moves():
    before = np.random.get_state()[1].copy()
    values = 0.3 + 1e-3 * np.arange(300)
    first, second = (time_to_limit(seen(values), 1.0, RESOLUTION) for _ in range(2))
    assert first == second
    assert (np.random.get_state()[1] == before).all()


def test_the_end_of_the_work_lies_within_the_interval_pauses_included():
    hits = []
    for seed in range(60):
        rng = np.random.default_rng([9, seed])
        speed = rng.uniform(2e-4, 1e-3) * rng.uniform(0.8, 1.2, 30_000)
        period, pause = int(rng.uniform(40, 120)), int(rng.uniform(0, 20))
        speed[np.arange(30_000) % period < pause] = 0  # evaluations
        done = np.minimum(1, np.cumsum(speed))
        end = int(np.argmax(done >= 1))
        now = int(rng.uniform(0.15, 0.9) * end)
        found = time_to_end(seen(done[: now + 1]))
        hits.append(found.low_s <= end - now <= found.high_s)
    assert np.mean(hits) >= 0.85


def test_work_that_stands_still_has_no_end():
    assert time_to_end(seen(np.full(100, 0.5))).seconds == math.inf
