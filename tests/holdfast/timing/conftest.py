"""A clock that stands still until it is told, and a kernel that says what it is told."""

from __future__ import annotations

import pytest
from holdfast.timing.clock import Usage
from holdfast.timing.kernel import Waits


class Hands:
    """Of a clock; ``cpu`` is what a thread has computed."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0
        self.num_waits = self.num_faults = 0
        self.waits = Waits()

    def work(self, seconds: float) -> None:
        """Time passes, computing."""
        self.now += seconds
        self.cpu += seconds

    def wait(self, seconds: float, num_faults: int = 0) -> None:
        """Time passes, for something else."""
        self.now += seconds
        self.num_waits += 1
        self.num_faults += num_faults

    def queue(self, seconds: float) -> None:
        """Time passes, and others have the CPU."""
        self.now += seconds
        self.waits = self.waits._replace(queued_s=self.waits.queued_s + seconds)

    def clock(self) -> float:
        return self.now

    def cpu_clock(self) -> float:
        return self.cpu

    def usage(self) -> Usage:
        return Usage(self.cpu, self.num_waits, self.num_faults)

    def read(self) -> Waits:
        return self.waits._replace(thread_cpu_s=self.cpu)


@pytest.fixture
def hands() -> Hands:
    return Hands()
