"""How long an iteration takes, seen from outside."""

from __future__ import annotations

import pytest
from holdfast.triggers import Pace


@pytest.fixture
def loop(run):
    run.count = 0
    run.pace = Pace(lambda: run.count, lambda: run.now)

    def train(num_iterations: int, seconds: float) -> float:
        found = 0.0
        for _ in range(num_iterations):
            run.wait(seconds)
            run.count += 1
            found = run.pace.seconds()
        return found

    run.train = train
    return run


def test_it_is_the_time_of_recent_iterations(loop):
    assert loop.train(1000, 0.01) == pytest.approx(0.01)
    assert loop.train(10, 5.0) == pytest.approx(5.0)
    assert loop.train(1000, 0.01) == pytest.approx(0.01, rel=0.1)


def test_an_iteration_that_takes_longer_counts_before_it_is_over(loop):
    loop.train(100, 0.1)
    loop.wait(30)
    assert loop.pace.seconds() == pytest.approx(30, abs=1)


def test_what_can_be_given_up_does_not_count(loop):
    loop.train(100, 0.1)
    done, loop.count = loop.count, None
    for _ in range(100):
        loop.wait(1)
        assert loop.pace.seconds() == pytest.approx(0.1)
    loop.count = done
    assert loop.train(100, 0.1) == pytest.approx(0.1)
