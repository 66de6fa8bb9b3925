"""Shares of the time in which work stood still."""

from __future__ import annotations

import pytest
from holdfast.resources.pressure import PressureFigures

LINE = "avg10=0.00 avg60=0.00 avg300=0.00 total="


def shown(some: int, full: int) -> str:
    return f"some {LINE}{some}\nfull {LINE}{full}"


def test_totals_in_microseconds_become_shares_of_the_time_since(tmp_path, write):
    write({"proc/pressure/memory": shown(0, 0), "proc/pressure/io": shown(10, 5)})
    pressure = PressureFigures(tmp_path)
    assert pressure.read(0.0) == {}
    write({"proc/pressure/memory": shown(500_000, 250_000), "proc/pressure/io": shown(10, 5)})
    assert pressure.read(2.0) == pytest.approx(
        {
            "pressure_memory_some": 0.25,
            "pressure_memory_full": 0.125,
            "pressure_io_some": 0.0,
            "pressure_io_full": 0.0,
        }
    )


def test_a_kernel_without_pressure_information_shows_none(tmp_path):
    pressure = PressureFigures(tmp_path)
    assert pressure.read(0.0) == pressure.read(1.0) == {}
