"""How many cores may be used, and how often a quota held back, from both versions of control groups."""

from __future__ import annotations

import os

import pytest
from holdfast.resources.cpu import CpuFigures, num_cores

V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"
MOUNT_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"


def stat(periods: int, throttled: int, usec: int) -> str:
    return f"usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {usec}"


def test_without_a_quota_the_affinity_counts(tmp_path, write, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    write({"proc/self/cgroup": "0::/box", f"{V2}/box/cpu.max": "max 100000"})
    figures = CpuFigures(tmp_path).read(0.0)
    assert (figures["cpu_cores"], figures["cpu_affinity"]) == (3, 3)
    assert "cpu_quota_cores" not in figures


def test_the_tightest_quota_of_all_groups_above_counts(tmp_path, write, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quotas = {f"{V2}/pod/box/cpu.max": "400000 100000", f"{V2}/pod/cpu.max": "150000 100000"}
    write({"proc/self/cgroup": "0::/pod/box", **quotas})
    figures = CpuFigures(tmp_path).read(0.0)
    assert (figures["cpu_cores"], figures["cpu_quota_cores"]) == (1.5, 1.5)


def test_throttling_is_the_share_of_periods_since_the_last_look(tmp_path, write):
    files = {"proc/self/cgroup": "0::/box", f"{V2}/box/cpu.max": "50000 100000"}
    write({**files, f"{V2}/box/cpu.stat": stat(1000, 900, 10**6)})
    cpu = CpuFigures(tmp_path)
    assert "cpu_throttled_share" not in cpu.read(10.0)
    write({f"{V2}/box/cpu.stat": stat(1020, 905, 10**6 + 600_000)})
    figures = cpu.read(12.0)
    assert figures["cpu_throttled_share"] == pytest.approx(5 / 20)
    assert figures["cpu_throttled_s_per_s"] == pytest.approx(0.3)


def test_version_1_says_it_in_two_files_and_nanoseconds(tmp_path, write):
    files = {"proc/self/cgroup": "1:cpu:/box", "proc/self/mountinfo": MOUNT_V1}
    quota = {f"{V1}/box/cpu.cfs_quota_us": 25_000, f"{V1}/box/cpu.cfs_period_us": 100_000}
    write({**files, **quota, f"{V1}/box/cpu.stat": "nr_periods 10\nnr_throttled 0\nthrottled_time 0"})
    cpu = CpuFigures(tmp_path)
    cpu.read(0.0)
    write({f"{V1}/box/cpu.stat": f"nr_periods 20\nnr_throttled 10\nthrottled_time {2 * 10**9}"})
    figures = cpu.read(4.0)
    assert figures["cpu_quota_cores"] == 0.25
    assert figures["cpu_throttled_share"] == 1.0
    assert figures["cpu_throttled_s_per_s"] == 0.5


def test_version_1_has_a_word_for_no_quota(tmp_path, write):
    quota = {f"{V1}/cpu.cfs_quota_us": -1, f"{V1}/cpu.cfs_period_us": 100_000}
    write({"proc/self/cgroup": "1:cpu:/", "proc/self/mountinfo": MOUNT_V1, **quota})
    assert "cpu_quota_cores" not in CpuFigures(tmp_path).read(0.0)


def test_what_is_used_is_a_share_of_what_may_be(tmp_path, monkeypatch):
    spent = iter([(1.0, 0.5), (2.0, 1.0)])
    monkeypatch.setattr(os, "times", lambda: os.times_result((*next(spent), 0, 0, 0)))
    cpu = CpuFigures(tmp_path)
    cpu.read(0.0)
    figures = cpu.read(3.0)
    assert figures["cpu_used_cores"] == pytest.approx(0.5)
    assert figures["cpu_share"] == pytest.approx(0.5 / num_cores())
