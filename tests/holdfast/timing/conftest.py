"""A clock that stands still until it is told, and a kernel that says what it is told."""

from __future__ import annotations

import pytest
from holdfast.timing.kernel import Waits


class Hands:
    """Of a clock; ``cpu`` is what a thread has computed."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.waits = Waits()

    def work(self, seconds: float) -> None:
        """Time passes, computing."""
        self.now += seconds
        self.cpu += seconds

    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.now += seconds

    def clock(self) -> float:
        return self.now

    def cpu_clock(self) -> float:
        return self.cpu

    def read(self) -> Waits:
        return self.waits


@pytest.fixture
def hands() -> Hands:
    return Hands()
