"""Memory running out, simulated: leaks are seen in time, healthy runs are left in peace."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from holdfast.resources.memory import Usage
from holdfast.triggers import Memory
from holdfast.triggers.memory import MIB

GIB = 1024 * MIB


class Simulated:
    """A group whose use is a function of time; the kernel kills where it reaches the limit."""

    def __init__(self, run, limit: int, used: Callable[[float], float], stalled=lambda t: None) -> None:
        self.run, self.limit, self.used, self.stalled = run, limit, used, stalled

    def tightest(self) -> Usage:
        used = max(0, int(self.used(self.run.now)))
        return Usage("cgroup /simulated", self.limit, used, max(0, self.limit - used))

    def stalled_s(self) -> float | None:
        return self.stalled(self.run.now)


def start(run, limit: int, used: Callable[[float], float], *, stalled=lambda t: None, **settings) -> Memory:
    trigger = Memory(figures=Simulated(run, limit, used, stalled), **settings)
    trigger.start(run.context)
    return trigger


@pytest.mark.parametrize("save_seconds", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("limit", [1 * GIB, 4 * GIB, 64 * GIB])
@pytest.mark.parametrize("rate", [1, 3, 10, 30, 100, 200, 500])
def test_a_leak_is_seen_while_there_is_time_for_a_save(run, rate, limit, save_seconds):
    """After half a minute of quiet, with half of the limit left or what five minutes take."""
    run.save_seconds = save_seconds
    begins, free = 30.3, min(0.5 * limit, 300 * rate * MIB)
    killed_at = begins + free / (rate * MIB)
    if killed_at - begins < 2 * save_seconds + 1:
        pytest.skip("nobody could save in that time")
    memory = start(run, limit, lambda t: limit - free + max(0.0, t - begins) * rate * MIB)
    fired_at = run.watch(memory, killed_at)
    assert fired_at is not None
    assert fired_at < killed_at - save_seconds
    assert not memory.fired().is_stopping


def breathing(t: float) -> float:
    return 0.5 + 0.02 * math.sin(t)


def saw(low: float, high: float, period: float) -> Callable[[float], float]:
    return lambda t: low + (high - low) * (t % period) / period


def steps(*levels: tuple[float, float], rise: float) -> Callable[[float], float]:
    """(second, level), each approached at ``rise`` of the limit a second."""

    def level(t: float) -> float:
        now = levels[0][1]
        for at, goal in levels[1:]:
            if t > at:
                now += min(goal - now, (t - at) * rise)
        return now

    return level


def noise(level: float, width: float) -> Callable[[float], float]:
    draw = random.Random(0)
    return lambda t: level + width * (draw.random() - 0.5)


HEALTHY = {
    "flat at nine tenths": lambda t: 0.9,
    "breathing": breathing,
    "saw-tooth of an epoch": saw(0.4, 0.8, 60.0),
    "saw-tooth of a second": saw(0.5, 0.7, 1.0),
    "steep and high saw-tooth": saw(0.4, 0.9, 3.0),
    "high saw-tooth": saw(0.6, 0.9, 30.0),
    "data set loaded, then flat": steps((0, 0.2), (30, 0.7), rise=0.05),
    "three loads": steps((0, 0.2), (30, 0.4), (60, 0.6), (90, 0.8), rise=0.04),
    "replay filling up, then full": steps((0, 0.2), (10, 0.85), rise=0.002),
    "jump in one look": steps((0, 0.2), (30, 0.8), rise=10.0),
    "noise": noise(0.6, 0.2),
    "noise near the limit": noise(0.9, 0.05),
    "validation every minute": lambda t: 0.75 if t % 60 > 50 else 0.55,
}


@pytest.mark.parametrize("limit", [1 * GIB, 16 * GIB])
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_left_in_peace(run, name, limit):
    """Ten minutes each, with saves of a second."""
    memory = start(run, limit, lambda t: limit * HEALTHY[name](t))
    assert run.watch(memory, 600) is None, memory.fired()


def test_page_cache_that_grows_to_the_limit_is_left_in_peace(run, tmp_path: Path):
    root, folder = tmp_path / "root", tmp_path / "root/sys/fs/cgroup/box"
    folder.mkdir(parents=True)
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("0::/box\n")
    (root / "proc/meminfo").write_text(f"MemTotal: {64 * 2**20} kB\nMemAvailable: {60 * 2**20} kB\n")
    (folder / "memory.max").write_text(f"{GIB}\n")
    memory = Memory(root=root)
    memory.start(run.context)
    for second in range(60):
        cached = min(600, second * 20) * MIB  # read twice, so half of it is active
        (folder / "memory.current").write_text(f"{400 * MIB + cached}\n")
        (folder / "memory.stat").write_text(
            f"inactive_file {cached // 2}\nactive_file {cached - cached // 2}\n"
        )
        memory.poll()
        run.wait(1.0)
    assert memory.fired() is None
    assert "no pressure stall information" in run.notes[0]


def test_little_left_is_an_alarm_however_slowly_it_came(run):
    memory = start(run, 16 * GIB, lambda t: 16 * GIB * (0.9 + 1e-4 * t))
    run.watch(memory, 1000)
    assert memory._figures.tightest().free_share == pytest.approx(0.04, abs=0.001)
    assert "MiB are left in cgroup /simulated" in memory.fired().message


def test_standing_still_for_want_of_memory_is_an_alarm(run):
    memory = start(run, GIB, lambda t: 0.85 * GIB, stalled=lambda t: 0.4 * max(0.0, t - 60))
    assert 60 < run.watch(memory, 120) < 66
    assert "of the time is spent waiting for memory" in memory.fired().message


def test_others_standing_still_is_no_alarm_where_enough_is_left(run):
    memory = start(run, GIB, lambda t: 0.5 * GIB, stalled=lambda t: 0.9 * t)
    assert run.watch(memory, 600) is None


def test_a_leak_goes_on_being_answered_and_ends_the_run_before_the_kernel_does(run):
    run.save_seconds = 0.5
    memory = start(run, 4 * GIB, lambda t: 2 * GIB + max(0.0, t - 60) * 20 * MIB)
    alarms = []
    while not alarms or not alarms[-1][1].is_stopping:
        assert run.watch(memory, 300) is not None
        alarms.append((4 * GIB - memory._figures.tightest().used_bytes, memory.fired()))
        memory.rearm(memory.fired())
    assert [reason.is_stopping for _, reason in alarms] == [False] * (len(alarms) - 1) + [True]
    assert 2 <= len(alarms) <= 4
    assert alarms[-1][0] > 20 * MIB * run.save_seconds
    assert alarms[-1][1].exit_code == 137


def test_a_run_that_recovered_is_not_ended_by_its_next_alarm(run):
    level = [0.98]
    memory = start(run, GIB, lambda t: level[0] * GIB)
    assert run.watch(memory, 5) is not None
    memory.rearm(memory.fired())
    level[0] = 0.5
    assert run.watch(memory, 60) is None
    level[0] = 0.98
    assert run.watch(memory, 5) is not None
    assert not memory.fired().is_stopping


def test_what_a_save_takes_is_no_leak_and_is_kept_free_from_then_on(run):
    growing = [0.0]
    memory = start(run, 4 * GIB, lambda t: GIB + growing[0])
    run.watch(memory, 60)
    run.is_saving = True
    for _ in range(20):
        memory.poll()
        growing[0] += 25 * MIB
        run.wait(0.1)
    run.is_saving, growing[0] = False, 0.0
    assert run.watch(memory, 60) is None
    assert memory.save_room_bytes == 19 * 25 * MIB


def test_looks_are_frequent_only_while_it_may_matter(run):
    memory = start(run, 64 * GIB, lambda t: GIB + max(0.0, t - 60) * 100 * MIB)
    run.watch(memory, 65)
    assert memory.interval_s == 0.5
    run.watch(memory, 620)
    assert memory.interval_s == 0.1


def test_a_floor_that_is_no_share_is_refused():
    with pytest.raises(ValueError, match="floor"):
        Memory(floor=4)
