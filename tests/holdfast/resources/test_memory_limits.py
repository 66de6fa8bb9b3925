"""Memory figures out of trees of control groups as the kernels write them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from holdfast.resources.memory import MemoryFigures, Usage

MIB = 2**20
UNLIMITED_V1 = 9223372036854771712
V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"
MOUNT_V2 = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate"
MOUNT_V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"


def grow(root: Path, files: dict[str, object]) -> MemoryFigures:
    """A machine of 64 GiB, half of it available, with these files besides."""
    meminfo = f"MemTotal: {64 * 2**20} kB\nMemFree: 1 kB\nMemAvailable: {32 * 2**20} kB\nSwapFree: 0 kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return MemoryFigures(root)


def v2(group: str, limit: object, used: int, stat: str = "") -> dict[str, object]:
    folder = f"{V2}{group}"
    return {
        f"{folder}/memory.max": limit,
        f"{folder}/memory.current": used,
        f"{folder}/memory.stat": stat or "anon 1",
    }


def test_the_group_with_the_least_left_counts_whatever_its_limit(tmp_path):
    own = v2("/pod/box", 600 * MIB, 100 * MIB)
    above = v2("/pod", 900 * MIB, 850 * MIB)  # a neighbour in the pod takes the rest
    figures = grow(tmp_path, {"proc/self/cgroup": "0::/pod/box", **own, **above})
    assert figures.tightest() == Usage("cgroup /pod", 900 * MIB, 850 * MIB, 50 * MIB)


def test_files_in_the_cache_are_no_use_of_memory(tmp_path):
    stat = f"anon {400 * MIB}\ninactive_file {90 * MIB}\nactive_file {60 * MIB}\nslab_reclaimable {10 * MIB}"
    figures = grow(tmp_path, {"proc/self/cgroup": "0::/box", **v2("/box", 600 * MIB, 580 * MIB, stat)})
    assert figures.tightest().used_bytes == 420 * MIB
    assert figures.tightest().free_bytes == 180 * MIB
    assert figures.tightest().working_set_bytes == 490 * MIB


def test_files_in_memory_alone_are_use_of_memory(tmp_path):
    stat = f"anon {100 * MIB}\nshmem {400 * MIB}\ninactive_anon {400 * MIB}\ninactive_file 0"
    figures = grow(tmp_path, {"proc/self/cgroup": "0::/box", **v2("/box", 600 * MIB, 500 * MIB, stat)})
    assert figures.tightest().used_bytes == 500 * MIB


def test_a_limit_that_throttles_is_a_limit(tmp_path):
    files = {"proc/self/cgroup": "0::/box", **v2("/box", 600 * MIB, 100 * MIB)}
    figures = grow(tmp_path, {**files, f"{V2}/box/memory.high": 500 * MIB})
    assert figures.tightest().limit_bytes == 500 * MIB


def test_version_1_counts_the_groups_below_and_knows_no_word_for_unlimited(tmp_path):
    files = {
        "proc/self/cgroup": "12:cpu,cpuacct:/docker/a\n7:memory:/docker/a\n1:name=systemd:/docker/a",
        "proc/self/mountinfo": MOUNT_V1,
        f"{V1}/memory.limit_in_bytes": UNLIMITED_V1,
        f"{V1}/memory.usage_in_bytes": 1,
        f"{V1}/docker/a/memory.limit_in_bytes": 600 * MIB,
        f"{V1}/docker/a/memory.usage_in_bytes": 580 * MIB,
        f"{V1}/docker/a/memory.stat": f"inactive_file 1\n"
        f"total_inactive_file {90 * MIB}\ntotal_active_file {30 * MIB}",
        "sys/fs/cgroup/cpu,cpuacct/docker/a/memory.limit_in_bytes": 1,
    }
    assert grow(tmp_path, files).tightest() == Usage(
        "cgroup /docker/a", 600 * MIB, 460 * MIB, 140 * MIB, 30 * MIB
    )


def test_a_container_sees_its_own_group_at_the_mount(tmp_path):
    files = {
        "proc/self/cgroup": "7:memory:/docker/a/below",
        "proc/self/mountinfo": MOUNT_V1.replace(" / ", " /docker/a ", 1),
        f"{V1}/memory.limit_in_bytes": 600 * MIB,
        f"{V1}/memory.usage_in_bytes": 100 * MIB,
        f"{V1}/below/memory.limit_in_bytes": 300 * MIB,
        f"{V1}/below/memory.usage_in_bytes": 100 * MIB,
    }
    assert grow(tmp_path, files).tightest().free_bytes == 200 * MIB


def test_a_path_that_is_the_hosts_still_finds_the_mounted_limit(tmp_path):
    files = {"proc/self/cgroup": "7:memory:/docker/unseen", f"{V1}/memory.limit_in_bytes": 600 * MIB}
    assert grow(tmp_path, files).tightest().limit_bytes == 600 * MIB


def test_a_hierarchy_may_be_mounted_anywhere(tmp_path):
    files = {
        "proc/self/cgroup": "0::/box",
        "proc/self/mountinfo": MOUNT_V2.replace("/sys/fs/cgroup", "/elsewhere"),
        "elsewhere/box/memory.max": 600 * MIB,
        "elsewhere/box/memory.current": 10 * MIB,
    }
    assert grow(tmp_path, files).tightest().limit_bytes == 600 * MIB


def test_both_versions_side_by_side_are_read_where_memory_is_counted(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/box\n0::/",
        "proc/self/mountinfo": f"{MOUNT_V1}\n{MOUNT_V2.replace('/sys/fs/cgroup', '/sys/fs/cgroup/unified')}",
        f"{V1}/box/memory.limit_in_bytes": 600 * MIB,
        f"{V1}/box/memory.usage_in_bytes": 10 * MIB,
    }
    assert grow(tmp_path, files).tightest().where == "cgroup /box"


@pytest.mark.parametrize("limit", ["max", UNLIMITED_V1, "", "garbage"])
def test_without_a_limit_the_machine_counts(tmp_path, limit):
    figures = grow(tmp_path, {"proc/self/cgroup": "0::/box", **v2("/box", limit, 5)})
    assert figures.tightest() == Usage("the machine", 64 * 1024 * MIB, 32 * 1024 * MIB, 32 * 1024 * MIB)


def test_where_there_is_no_proc_psutil_knows_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=10, available=4))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(free=3))
    figures = MemoryFigures(tmp_path)
    assert figures.groups == []
    assert figures.tightest() == Usage("the machine", 10, 6, 7)


def test_swap_is_memory_that_may_still_be_taken(tmp_path):
    swap = f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\nSwapFree: {100 * 1024} kB"
    files = {"proc/meminfo": swap, "proc/self/cgroup": "0::/box", **v2("/box", 600 * MIB, 500 * MIB)}
    assert grow(tmp_path, files).tightest().free_bytes == 200 * MIB
    limited = {f"{V2}/box/memory.swap.max": 30 * MIB, f"{V2}/box/memory.swap.current": 10 * MIB}
    assert grow(tmp_path, {**files, **limited}).tightest().free_bytes == 120 * MIB


def test_version_1_counts_swap_together_with_memory(tmp_path):
    files = {
        "proc/meminfo": f"MemTotal: {64 * 2**20} kB\nMemAvailable: {32 * 2**20} kB\nSwapFree: {2**20} kB",
        "proc/self/cgroup": "7:memory:/",
        f"{V1}/memory.limit_in_bytes": 600 * MIB,
        f"{V1}/memory.usage_in_bytes": 500 * MIB,
        f"{V1}/memory.memsw.limit_in_bytes": 640 * MIB,
        f"{V1}/memory.memsw.usage_in_bytes": 510 * MIB,
    }
    assert grow(tmp_path, files).tightest().free_bytes == (100 + 30) * MIB


def test_stalls_are_those_of_the_group_where_it_has_its_own(tmp_path):
    lines = "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total={}"
    machine = {"proc/pressure/memory": lines.format(5_000_000), "proc/self/cgroup": "0::/box"}
    assert grow(tmp_path, machine).stalled_s() == 5.0
    own = {f"{V2}/box/memory.pressure": lines.format(7_000_000), **v2("/box", 600 * MIB, 5)}
    assert grow(tmp_path, {**machine, **own}).stalled_s() == 7.0


def test_without_stall_information_there_is_none(tmp_path):
    assert grow(tmp_path, {}).stalled_s() is None


def test_figures_of_the_machine_the_test_runs_on_are_possible():
    usage = MemoryFigures().tightest()
    assert 0 <= usage.used_bytes <= usage.limit_bytes
    assert usage.free_share > 0
